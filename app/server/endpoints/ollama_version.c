/* ollama_version.c: GET /api/version: kr's own version, not that of an Ollama it might pass for. */
#include "ollama.h"
#include "server/endpoints.h"

#define TEXT(number) #number
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)

void endpoint_ollama_version(call_t *call) {
    static const char body[] = "{\"version\":\"" VERSION(KR_VERSION_MAJOR, KR_VERSION_MINOR,
                                                          KR_VERSION_PATCH) "\"}";
    call_reply(call, 200, "application/json", body, sizeof body - 1);
}
