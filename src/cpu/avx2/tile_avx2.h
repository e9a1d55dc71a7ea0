/* tile_avx2.h: what the linear kernels of this folder share: how tokens are cut into tiles and how
 * finished sums leave. A register holds half a group (8 rows). Sums pass through a small buffer,
 * [token][16 rows], so that only one place deals with the last group's missing rows. */
#ifndef KRI_CPU_AVX2_TILE_AVX2_H
#define KRI_CPU_AVX2_TILE_AVX2_H

#include <immintrin.h>

#include "ops/kernels.h"
#include "ops/pack.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Largest tile, and the tile sizes in ascending order. Four tokens by two halves make eight sums,
 * half of the registers. */
#define TILE_TOKENS 4u
#define TILE_SIZES 3u
static const unsigned tile_sizes[TILE_SIZES] = {1, 2, 4};

/* The largest tile size that fits n tokens (n >= 1). */
INLINE unsigned tile_size_find(size_t n) {
    unsigned size = TILE_SIZES - 1;
    while (tile_sizes[size] > n) size--;
    return size;
}

/* Tokens whose sums are kept at once: the more, the less a panel costs to fill. */
#define SUM_TOKENS 256u

typedef struct sums_s {
    float rows[SUM_TOKENS][KRI_GROUP_ROWS];
} sums_t;

typedef struct tile_out_s {
    float *out;        /* first row of the group, first token */
    size_t stride;     /* floats */
    const float *bias; /* of the group's rows, or NULL */
    size_t n_rows;     /* rows of the group that exist, 1..16 */
    uint32_t accumulate;
} tile_out_t;

INLINE size_t rows_left(size_t n_rows, size_t group) {
    const size_t left = n_rows - group * KRI_GROUP_ROWS;
    return left < KRI_GROUP_ROWS ? left : KRI_GROUP_ROWS;
}

/* Eight rows of a finished sum: bias, then what was there. */
INLINE void half_store(const tile_out_t *o, size_t token, unsigned half, __m256 acc) {
    float *row = o->out + token * o->stride + 8u * half;
    if (o->bias != NULL) acc = _mm256_add_ps(acc, _mm256_loadu_ps(o->bias + 8u * half));
    if (o->accumulate) acc = _mm256_add_ps(_mm256_loadu_ps(row), acc);
    _mm256_storeu_ps(row, acc);
}

/* Bias, then what was there, for the rows that exist. */
static inline void sums_store(const tile_out_t *o, const sums_t *sums, size_t n_tokens) {
    for (size_t t = 0; t < n_tokens; t++) {
        const float *sum = sums->rows[t];
        float *row = o->out + t * o->stride;
        if (o->n_rows == KRI_GROUP_ROWS) {
            half_store(o, t, 0, _mm256_loadu_ps(sum));
            half_store(o, t, 1, _mm256_loadu_ps(sum + 8));
            continue;
        }
        for (size_t r = 0; r < o->n_rows; r++) {
            float acc = sum[r];
            if (o->bias != NULL) acc += o->bias[r];
            row[r] = o->accumulate ? row[r] + acc : acc;
        }
    }
}

/* How far ahead of a group's start the prefetch of its walk begins: one group, or for large groups
 * far enough past the scales that a quant is asked for some 100 ns before its use. Measured:
 * farther costs bandwidth, nearer comes too late. */
INLINE size_t prefetch_distance(const kri_pack_layout_t *layout) {
    return layout->group_bytes <= 12288u ? layout->group_bytes : layout->quants + 6144u;
}

#endif
