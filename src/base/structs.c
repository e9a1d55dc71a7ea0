/* structs.c: see structs.h. Works on bytes, because the caller's struct may be of another version
 * of kr.h; the fields themselves are validated by whoever reads them afterwards. */
#include "base/structs.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"

/* Every public struct is whole words of 8 bytes, so that no size cuts a pointer in half. */
static bool size_is_sane(uint32_t n_bytes) {
    return n_bytes >= KRI_STRUCT_BYTES_MIN && n_bytes <= KRI_STRUCT_BYTES_MAX && n_bytes % 8 == 0;
}

static uint32_t size_of(const void *any) {
    uint32_t n_bytes;
    memcpy(&n_bytes, any, sizeof n_bytes);
    return n_bytes;
}

kr_status_t kri_struct_read(void *dst, size_t dst_bytes, const void *src, const char *name,
                            kr_error_t *error) {
    if (src == NULL) return KR_OK;
    const uint32_t src_bytes = size_of(src);
    if (!size_is_sane(src_bytes)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, name,
                        "%s: struct_bytes is %u; use its init function", name,
                        (unsigned)src_bytes);
    }
    const unsigned char *tail = src;
    for (size_t i = dst_bytes; i < src_bytes; i++) {
        if (tail[i] == 0) continue;
        return KRI_FAIL(error, KR_E_UNSUPPORTED, name,
                        "%s: a field at byte %zu is set that this version does not know", name, i);
    }
    const size_t n_bytes = src_bytes < dst_bytes ? src_bytes : dst_bytes;
    memcpy((unsigned char *)dst + sizeof(uint32_t), tail + sizeof(uint32_t),
           n_bytes - sizeof(uint32_t));
    return KR_OK;
}

kr_status_t kri_struct_write(void *dst, const void *src, size_t src_bytes) {
    if (dst == NULL) return KR_E_INVALID_ARG;
    const uint32_t dst_bytes = size_of(dst);
    if (!size_is_sane(dst_bytes)) return KR_E_INVALID_ARG;
    const size_t n_bytes = dst_bytes < src_bytes ? dst_bytes : src_bytes;
    memcpy((unsigned char *)dst + sizeof(uint32_t), (const unsigned char *)src + sizeof(uint32_t),
           n_bytes - sizeof(uint32_t));
    return KR_OK;
}

void kri_struct_init(void *dst, size_t dst_bytes) {
    const uint32_t n_bytes = (uint32_t)dst_bytes;
    memset(dst, 0, dst_bytes);
    memcpy(dst, &n_bytes, sizeof n_bytes);
}
