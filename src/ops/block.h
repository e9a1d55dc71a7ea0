/* block.h: one 32-block of one row in a neutral form, the hinge between file blocks, packed groups
 * and plain numbers. Reading either side gives the same kri_block_t, so packing is a copy and the
 * decode of packed weights equals the decode of the file bit for bit. Little-endian hosts only. */
#ifndef KRI_OPS_BLOCK_H
#define KRI_OPS_BLOCK_H

#include "ops/kernels.h"
#include "ops/pack.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file blocks are read in place");

#define KRI_BLOCK_ITEMS 32u

typedef struct kri_block_s {
    uint16_t d, m;      /* f16 bits: scale and offset; K types: d and dmin of the 256 items */
    uint8_t s[2];       /* q4_k, q5_k: sc, mn; q6_k: sc_lo, sc_hi (two's complement) */
    uint32_t quants[8]; /* nib[4], or byte[8] for q8_0: this row's four bytes of each vector */
    uint32_t high;      /* q5: bit k is bit 4 of item k */
    uint32_t two[2];    /* q6_k: this row's four bytes of two[2] */
} kri_block_t;

/* Block `block` of a row of file blocks. Quantised types only. */
void kri_block_from_file(kr_dtype_t dtype, const uint8_t *row, size_t block, kri_block_t *out);
/* Block `block` of row `row` (0..15) of a packed group. */
void kri_block_from_group(kr_dtype_t dtype, const uint8_t *group, const kri_pack_layout_t *layout,
                          size_t block, size_t row, kri_block_t *out);
void kri_block_to_group(kr_dtype_t dtype, const kri_block_t *in, const kri_pack_layout_t *layout,
                        size_t block, size_t row, uint8_t *group);
/* The unsigned quants, before the zero point. */
void kri_block_quants(kr_dtype_t dtype, const kri_block_t *block, uint8_t *quants);
/* The 32 values, in the float order of the format's definition. */
void kri_block_values(kr_dtype_t dtype, const kri_block_t *block, float *values);

/* One element of a float type. */
float kri_block_element(kr_dtype_t dtype, const uint8_t *src, size_t index);

#endif
