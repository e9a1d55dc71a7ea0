/* structs.h: the struct_bytes rule of kr.h for structs that callers fill or own.
 * Such a struct begins with uint32_t struct_bytes and is at most KRI_STRUCT_BYTES_MAX long, so
 * that an uninitialised size is refused instead of read through. */
#ifndef KRI_BASE_STRUCTS_H
#define KRI_BASE_STRUCTS_H

#include <stddef.h>

#include "kr.h"

#define KRI_STRUCT_BYTES_MIN 8u
#define KRI_STRUCT_BYTES_MAX 4096u

/* Reads a caller's params struct. `dst` [dst_bytes] comes in holding the defaults (its init
 * function was called on it) and keeps them for the fields that `src` is too short to have, and
 * entirely when src is NULL. dst's own struct_bytes stays dst_bytes. `name` names the argument
 * in errors ("params").
 * KR_E_INVALID_ARG: struct_bytes below 8, over the maximum or no multiple of 8 (not initialised).
 * KR_E_UNSUPPORTED: longer than ours with a non-zero tail. dst is untouched on errors. */
kr_status_t kri_struct_read(void *dst, size_t dst_bytes, const void *src, const char *name,
                            kr_error_t *error);

/* Writes an output struct: copies min(dst's struct_bytes, src_bytes) bytes of `src` and keeps
 * dst's struct_bytes; what dst has beyond ours stays as its init function left it.
 * KR_E_INVALID_ARG: NULL dst or a bad struct_bytes; dst is untouched then. */
kr_status_t kri_struct_write(void *dst, const void *src, size_t src_bytes);

/* For the init functions: all zero but struct_bytes. */
void kri_struct_init(void *dst, size_t dst_bytes);

#endif
