/* pack.h: row-interleaved weight layouts shared by all ISA levels, by GEMV and GEMM.
 *
 * Rows are taken in groups of 16 (missing rows of the last group are zero weights). A group holds
 * two sections, each 64-byte aligned: scales, then quants. Let n32 = n_in / 32 and
 * n256 = n_in / 256. Per type, in order:
 *
 *   type        scale section                                     quants per 32-block
 *   q4_0        f16 d[n32][16]                                    u8 nib[4][16][4]
 *   q4_1        {f16 d[16]; f16 m[16]} [n32]                      nib
 *   q5_0        f16 d[n32][16]                                    u64 high[8]; nib
 *   q5_1        {f16 d[16]; f16 m[16]} [n32]                      high; nib
 *   q8_0        f16 d[n32][16]                                    u8 byte[8][16][4] (= q + 128)
 *   q4_k        {f16 d[16]; f16 dmin[16]} [n256];                 nib
 *               then {u8 sc[16]; u8 mn[16]} [n32]
 *   q5_k        as q4_k                                           high; nib
 *   q6_k        f16 d[n256][16], section padded to 64;            u8 two[2][16][4]; nib
 *               then {i8 sc_lo[16]; i8 sc_hi[16]} [n32]           (value = u6, zero point 32)
 *   f32 f16 bf16  no scales; one section  [n_in][16] elements
 *
 * A 64-byte vector [16][4] is, for each of the 16 rows, four consecutive k: the operand shape of a
 * 4-way byte dot product. nib vector v (0..3): low nibbles hold k = 4v..4v+3, high nibbles
 * k = 16+4v..16+4v+3, so unpacked vector u (0..7, k = 4u..4u+3) is low nibbles of v = u for u < 4
 * and high nibbles of v = u - 4 otherwise. high[u]: bit i is bit 4 of byte i of unpacked vector u
 * (byte i: row i / 4, k = 4u + i % 4). two[h]: unpacked vector u takes its bits 4..5 from bits
 * 2*(u % 4) .. +1 of the bytes of two[u / 4]. byte[u]: k = 4u..4u+3.
 * "section padded to 64" holds for every section; q6_k's two scale arrays both start at a multiple
 * of 32. */
#ifndef KRI_OPS_PACK_H
#define KRI_OPS_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"
#include "tensor/dtype.h"

#define KRI_PACK_LAYOUT_VERSION 1u

/* Byte offsets inside one group; all 0 where a type has no such array. */
typedef struct kri_pack_layout_s {
    size_t super;        /* offset of the per-256 scales */
    size_t scales;       /* offset of the per-32 scales */
    size_t quants;       /* offset of the quants */
    size_t super_bytes;  /* per 256 */
    size_t scale_bytes;  /* per 32 */
    size_t quant_bytes;  /* per 32 (float types: bytes of 16 elements, per k) */
    size_t group_bytes;  /* whole group, multiple of 64 */
} kri_pack_layout_t;

/* false when n_in does not fit the type (not a multiple of its block) or on overflow. */
bool kri_pack_layout(kr_dtype_t dtype, size_t n_in, kri_pack_layout_t *layout);
/* Packs groups [group_begin, group_end) of a row-major matrix [n_rows, n_in] in the file's block
 * format (rows of row_bytes) into dst, which is the packed matrix's first group. */
void kri_pack_rows(kr_dtype_t dtype, const uint8_t *src, size_t row_bytes, size_t n_rows,
                   size_t n_in, size_t group_begin, size_t group_end, uint8_t *dst);
/* Inverse for tests and for reading a row back: row `row` of a packed matrix as f32 [n_in]. */
void kri_unpack_row(kr_dtype_t dtype, const uint8_t *packed, size_t n_in, size_t row,
                    float *out);

/* Reference decode of one row of file blocks: n_items values (a multiple of the block). */
void kri_dequant_row(kr_dtype_t dtype, const void *src, size_t n_items, float *out);

/* Half precision, round to nearest even; portable. */
float kri_f16_to_f32(uint16_t h);
uint16_t kri_f32_to_f16(float f);
static inline float kri_bf16_to_f32(uint16_t h) {
    union { uint32_t u; float f; } v = {.u = (uint32_t)h << 16};
    return v.f;
}

#endif
