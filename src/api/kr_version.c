/* kr_version.c: what was built. */
#include "kr.h"

#define TEXT_OF(x) #x
#define VERSION_TEXT(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

uint32_t kr_abi_version(void) { return KR_ABI_VERSION; }

const char *kr_version(void) {
    return VERSION_TEXT(KR_VERSION_MAJOR, KR_VERSION_MINOR, KR_VERSION_PATCH) " (" KR_COMMIT ")";
}

const char *kr_commit(void) { return KR_COMMIT; }
