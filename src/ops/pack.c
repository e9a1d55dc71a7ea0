/* pack.c: the layouts of pack.h, packing, and decoding of rows. Runs once at load and in tests,
 * so it is written for one clear path through kri_block_t rather than for the last cycle. */
#include "ops/pack.h"

#include <string.h>

#include "base/checked.h"
#include "ops/block.h"

/* Bytes per group: super per 256 items, scale and quants per 32 items (float types: per item). */
typedef struct shape_s {
    size_t super_bytes, scale_bytes, quant_bytes;
} shape_t;

static bool find_shape(kr_dtype_t dtype, shape_t *shape) {
    switch (dtype) {
    case KR_DTYPE_F32: *shape = (shape_t){0, 0, 64}; return true;
    case KR_DTYPE_F16:
    case KR_DTYPE_BF16: *shape = (shape_t){0, 0, 32}; return true;
    case KR_DTYPE_Q4_0: *shape = (shape_t){0, 32, 256}; return true;
    case KR_DTYPE_Q4_1: *shape = (shape_t){0, 64, 256}; return true;
    case KR_DTYPE_Q5_0: *shape = (shape_t){0, 32, 64 + 256}; return true;
    case KR_DTYPE_Q5_1: *shape = (shape_t){0, 64, 64 + 256}; return true;
    case KR_DTYPE_Q8_0: *shape = (shape_t){0, 32, 512}; return true;
    case KR_DTYPE_Q4_K: *shape = (shape_t){64, 32, 256}; return true;
    case KR_DTYPE_Q5_K: *shape = (shape_t){64, 32, 64 + 256}; return true;
    case KR_DTYPE_Q6_K: *shape = (shape_t){32, 32, 128 + 256}; return true;
    default: return false;
    }
}

bool kri_pack_layout(kr_dtype_t dtype, size_t n_in, kri_pack_layout_t *layout) {
    shape_t shape;
    size_t super, scales, quants, scale_section, group;
    if (!find_shape(dtype, &shape) || n_in == 0) return false;
    const kri_dtype_info_t *info = kri_dtype_info(dtype);
    if (!info || n_in % info->block_items != 0) return false;
    size_t n_units = kri_dtype_is_float(dtype) ? n_in : n_in / 32;
    size_t n_supers = shape.super_bytes ? n_in / 256 : 0;
    if (!kri_mul_size(n_supers, shape.super_bytes, &super)) return false;
    if (!kri_mul_size(n_units, shape.scale_bytes, &scales)) return false;
    if (!kri_mul_size(n_units, shape.quant_bytes, &quants)) return false;
    if (!kri_add_size(super, scales, &scale_section)) return false;
    if (!kri_align_size(scale_section, 64, &scale_section)) return false;
    if (!kri_add_size(scale_section, quants, &group)) return false;
    if (!kri_align_size(group, 64, &group)) return false;
    *layout = (kri_pack_layout_t){
        .super = 0,
        .scales = super,
        .quants = scale_section,
        .super_bytes = shape.super_bytes,
        .scale_bytes = shape.scale_bytes,
        .quant_bytes = shape.quant_bytes,
        .group_bytes = group,
    };
    return true;
}

/* [n_in][16] elements. */
static void pack_group_float(const uint8_t *src, size_t row_bytes, size_t n_rows, size_t n_in,
                             size_t element_bytes, uint8_t *group) {
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *row = src + r * row_bytes;
        uint8_t *dst = group + r * element_bytes;
        for (size_t k = 0; k < n_in; k++)
            memcpy(dst + k * KRI_GROUP_ROWS * element_bytes, row + k * element_bytes,
                   element_bytes);
    }
}

static void pack_group(kr_dtype_t dtype, const kri_pack_layout_t *layout, const uint8_t *src,
                       size_t row_bytes, size_t n_rows, size_t n_in, uint8_t *group) {
    kri_block_t block;
    /* Padding and missing rows are zero, so that equal weights give equal bytes (the packed
     * artifact is checksummed). */
    memset(group, 0, layout->group_bytes);
    if (kri_dtype_is_float(dtype)) {
        pack_group_float(src, row_bytes, n_rows, n_in, layout->quant_bytes / KRI_GROUP_ROWS,
                         group);
        return;
    }
    for (size_t b = 0; b < n_in / KRI_BLOCK_ITEMS; b++) {
        for (size_t r = 0; r < n_rows; r++) {
            kri_block_from_file(dtype, src + r * row_bytes, b, &block);
            kri_block_to_group(dtype, &block, layout, b, r, group);
        }
    }
}

void kri_pack_rows(kr_dtype_t dtype, const uint8_t *src, size_t row_bytes, size_t n_rows,
                   size_t n_in, size_t group_begin, size_t group_end, uint8_t *dst) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(dtype, n_in, &layout)) return;
    for (size_t g = group_begin; g < group_end; g++) {
        size_t row = g * KRI_GROUP_ROWS;
        size_t n = row < n_rows ? n_rows - row : 0;
        if (n > KRI_GROUP_ROWS) n = KRI_GROUP_ROWS;
        pack_group(dtype, &layout, n ? src + row * row_bytes : src, row_bytes, n, n_in,
                   dst + g * layout.group_bytes);
    }
}

void kri_unpack_row(kr_dtype_t dtype, const uint8_t *packed, size_t n_in, size_t row,
                    float *out) {
    kri_pack_layout_t layout;
    kri_block_t block;
    if (!kri_pack_layout(dtype, n_in, &layout)) return;
    const uint8_t *group = packed + row / KRI_GROUP_ROWS * layout.group_bytes;
    size_t r = row % KRI_GROUP_ROWS;
    if (kri_dtype_is_float(dtype)) {
        for (size_t k = 0; k < n_in; k++)
            out[k] = kri_block_element(dtype, group, k * KRI_GROUP_ROWS + r);
        return;
    }
    for (size_t b = 0; b < n_in / KRI_BLOCK_ITEMS; b++) {
        kri_block_from_group(dtype, group, &layout, b, r, &block);
        kri_block_values(dtype, &block, out + b * KRI_BLOCK_ITEMS);
    }
}

void kri_dequant_row(kr_dtype_t dtype, const void *src, size_t n_items, float *out) {
    const uint8_t *bytes = src;
    kri_block_t block;
    if (kri_dtype_is_float(dtype)) {
        for (size_t i = 0; i < n_items; i++) out[i] = kri_block_element(dtype, bytes, i);
        return;
    }
    for (size_t b = 0; b < n_items / KRI_BLOCK_ITEMS; b++) {
        kri_block_from_file(dtype, bytes, b, &block);
        kri_block_values(dtype, &block, out + b * KRI_BLOCK_ITEMS);
    }
}

/* ---- half precision ------------------------------------------------------------------------ */

float kri_f16_to_f32(uint16_t h) {
    union { uint32_t u; float f; } v;
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31) {
        /* NaNs become quiet, as the hardware conversion does. */
        v.u = sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0);
    } else if (exponent) {
        v.u = sign | (exponent + 112) << 23 | mantissa << 13;
    } else {
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
    }
    return v.f;
}

uint16_t kri_f32_to_f16(float f) {
    union { float f; uint32_t u; } v = {.f = f};
    uint32_t sign = (v.u >> 16) & 0x8000u, magnitude = v.u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* from 65520 on: infinity */
    if (magnitude < 0x38800000u) { /* below 2^-14: subnormal, in steps of 2^-24 */
        /* Adding 0.5 puts the step at the last mantissa bit, so the adder does the rounding. */
        v.u = magnitude;
        v.f += 0.5f;
        return (uint16_t)(sign | (v.u - 0x3f000000u));
    }
    magnitude += 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}
