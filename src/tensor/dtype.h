/* dtype.h: sizes and names of element types, from dtypes.def. */
#ifndef KRI_TENSOR_DTYPE_H
#define KRI_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

typedef struct kri_dtype_info_s {
    const char *name;      /* lower case, static */
    int32_t ggml_id;
    uint32_t block_items;
    uint32_t block_bytes;
} kri_dtype_info_t;

/* NULL for an unknown id. */
const kri_dtype_info_t *kri_dtype_info(kr_dtype_t dtype);
/* KR_DTYPE_NONE when the file's type id is not one of ours; the name then tells which it was
 * (kri_ggml_type_name(id): "iq2_xxs", or "?" when unknown to us). */
kr_dtype_t kri_dtype_from_ggml(uint32_t ggml_id);
const char *kri_ggml_type_name(uint32_t ggml_id);
/* Bytes of n_items elements; false on overflow or when n_items is no multiple of the block. */
bool kri_dtype_bytes(kr_dtype_t dtype, uint64_t n_items, uint64_t *n_bytes);
/* F32, F16, BF16: elements that stand alone. */
static inline bool kri_dtype_is_float(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_F32 || dtype == KR_DTYPE_F16 || dtype == KR_DTYPE_BF16;
}

/* A view over borrowed memory: row-major, rows of shape[n_dims-1] elements, outermost first. */
typedef struct kri_tensor_s {
    kr_dtype_t dtype;
    uint32_t n_dims;
    uint64_t shape[4];
    uint64_t n_bytes;
    const void *data;
} kri_tensor_t;

#endif
