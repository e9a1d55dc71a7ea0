/* tile_avx512.h: what the linear kernels of this folder share: where a tile of 16 rows and some
 * tokens is written, and how tokens are cut into tiles. */
#ifndef KRI_CPU_AVX512_TILE_AVX512_H
#define KRI_CPU_AVX512_TILE_AVX512_H

#include <immintrin.h>

#include "ops/kernels.h"
#include "ops/pack.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define TILE_TOKENS 16u

typedef struct tile_out_s {
    float *out;          /* first row of the group, first token of the tile */
    size_t stride;       /* floats */
    const float *bias;   /* of the group's rows, or NULL */
    __mmask16 rows;
    uint32_t accumulate;
} tile_out_t;

/* Finishes n tokens of a tile: bias, then what was there, then the rows that exist. */
INLINE void tile_store(const tile_out_t *o, unsigned n, __m512 *acc) {
    const __mmask16 rows = o->rows;
    if (o->bias != NULL) {
        const __m512 bias = _mm512_maskz_loadu_ps(rows, o->bias);
        UNROLL for (unsigned t = 0; t < n; t++) acc[t] = _mm512_add_ps(acc[t], bias);
    }
    if (o->accumulate) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            acc[t] = _mm512_add_ps(_mm512_maskz_loadu_ps(rows, o->out + t * o->stride), acc[t]);
        }
    }
    UNROLL for (unsigned t = 0; t < n; t++) {
        _mm512_mask_storeu_ps(o->out + t * o->stride, rows, acc[t]);
    }
}

/* Rows of group g that exist. */
INLINE __mmask16 rows_mask(size_t n_rows, size_t g) {
    const size_t left = n_rows - g * KRI_GROUP_ROWS;
    if (left >= KRI_GROUP_ROWS) return 0xffff;
    return (__mmask16)((1u << left) - 1u);
}

/* Tile sizes in tokens, ascending, and the largest one that fits n tokens (n >= 1). */
#define TILE_SIZES 5u
static const unsigned tile_sizes[TILE_SIZES] = {1, 2, 4, 8, 16};
INLINE unsigned tile_size_find(size_t n) {
    unsigned size = TILE_SIZES - 1;
    while (tile_sizes[size] > n) size--;
    return size;
}

/* How far ahead of a group's start the prefetch of its walk begins: one group, or for large groups
 * far enough past the scales that a quant is asked for some 100 ns before its use. Measured:
 * farther costs bandwidth, nearer comes too late. */
INLINE size_t prefetch_distance(const kri_pack_layout_t *layout) {
    return layout->group_bytes <= 12288u ? layout->group_bytes : layout->quants + 6144u;
}

#endif
