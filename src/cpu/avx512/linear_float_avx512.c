/* linear_float_avx512.c: matrix times activations for f32, f16 and bf16 weights (AVX-512).
 *
 * A lane is a row and k runs in order, one fused multiply-add per (row, token, k), which is the
 * order of kernels.h. That leaves one dependent chain per accumulator, so a tile must bring eight
 * or more of them: many tokens on one group, or several groups when tokens are few.
 *
 * Many tokens are read from a copy on the stack, a piece of k at a time: a model's row length is
 * often a multiple of 4096 bytes, and sixteen such rows fall into the same few sets of the
 * first-level cache, which halves the speed. The sums rest in memory between pieces. */
#include "cpu/impl.h"

#include <immintrin.h>

#include "cpu/avx512/tile_avx512.h"
#include "ops/pack.h"

#define CHUNK_GROUPS 4u
#define PREFETCH_BYTES 1024u
#define PIECE_ITEMS 256u      /* of k */
#define PIECE_TOKENS_MIN 8u   /* fewer tokens are read in place */

typedef struct piece_s {
    float x[TILE_TOKENS][PIECE_ITEMS];
} piece_t;

typedef struct sums_s {
    __m512 sum[CHUNK_GROUPS][TILE_TOKENS];
} sums_t;

INLINE __m512 row_load(kr_dtype_t type, const uint8_t *p) {
    switch (type) {
    case KR_DTYPE_F16: return _mm512_cvtph_ps(_mm256_load_si256((const void *)p));
    case KR_DTYPE_BF16: {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_load_si256((const void *)p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    default: return _mm512_load_ps(p);
    }
}

/* Adds n_k values of k to the sums of n_groups (constant, <= 4) groups by n (constant, <= 16)
 * tokens, n_groups * n <= 16. */
INLINE void tile(kr_dtype_t type, unsigned n_groups, unsigned n, const uint8_t *w,
                 size_t group_bytes, size_t n_k, const uint8_t *act, size_t act_stride,
                 __m512 (*sums)[TILE_TOKENS]) {
    const size_t row_bytes = type == KR_DTYPE_F32 ? 64 : 32;
    __m512 acc[CHUNK_GROUPS][TILE_TOKENS];
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) acc[g][t] = sums[g][t];
    }
    for (size_t k = 0; k < n_k; k++) {
        UNROLL for (unsigned g = 0; g < n_groups; g++) {
            const uint8_t *p = w + g * group_bytes + k * row_bytes;
            _mm_prefetch((const void *)(p + PREFETCH_BYTES), _MM_HINT_T0);
            const __m512 row = row_load(type, p);
            UNROLL for (unsigned t = 0; t < n; t++) {
                const uint8_t *base = act + (t / 4u) * 4u * act_stride;
                const float *x = (const void *)(base + (t % 4u) * act_stride);
                acc[g][t] = _mm512_fmadd_ps(row, _mm512_set1_ps(x[k]), acc[g][t]);
            }
        }
    }
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) sums[g][t] = acc[g][t];
    }
}

typedef void tile_fn(const uint8_t *w, size_t group_bytes, size_t n_k, const uint8_t *act,
                     size_t act_stride, __m512 (*sums)[TILE_TOKENS]);

/* A tile of each token count: over one group and over as many as its registers allow. */
typedef struct tile_pair_s {
    tile_fn *one, *many;
    unsigned n_many;
} tile_pair_t;

/* One piece of k for a tile of tokens over n_groups groups. */
INLINE void groups_add(const tile_pair_t *pair, const uint8_t *w, size_t group_bytes,
                       unsigned n_groups, size_t n_k, const uint8_t *act, size_t act_stride,
                       sums_t *sums) {
    unsigned g = 0;
    for (; g + pair->n_many <= n_groups; g += pair->n_many) {
        pair->many(w + g * group_bytes, group_bytes, n_k, act, act_stride, sums->sum + g);
    }
    for (; g < n_groups; g++) {
        pair->one(w + g * group_bytes, group_bytes, n_k, act, act_stride, sums->sum + g);
    }
}

static void piece_fill(const uint8_t *act, size_t act_stride, size_t n_tokens, size_t n_k,
                       piece_t *piece) {
    for (size_t t = 0; t < n_tokens; t++) {
        __builtin_memcpy(piece->x[t], act + t * act_stride, n_k * sizeof(float));
    }
}

/* A tile of n tokens over n_groups groups and all of k. */
INLINE void chunk_run(const tile_pair_t *pair, unsigned n, const uint8_t *w, size_t group_bytes,
                      size_t row_bytes, size_t n_in, unsigned n_groups, const uint8_t *act,
                      size_t act_stride, sums_t *sums) {
    _Alignas(64) piece_t piece;
    if (n < PIECE_TOKENS_MIN) {
        groups_add(pair, w, group_bytes, n_groups, n_in, act, act_stride, sums);
        return;
    }
    for (size_t k = 0; k < n_in; k += PIECE_ITEMS) {
        const size_t n_k = n_in - k < PIECE_ITEMS ? n_in - k : PIECE_ITEMS;
        piece_fill(act + k * sizeof(float), act_stride, n, n_k, &piece);
        groups_add(pair, w + k * row_bytes, group_bytes, n_groups, n_k,
                   (const uint8_t *)piece.x, sizeof piece.x[0], sums);
    }
}

INLINE void groups_run(kr_dtype_t type, const tile_pair_t *tiles, const uint8_t *w, size_t n_in,
                       size_t n_groups, size_t n_rows, const uint8_t *act, size_t act_stride,
                       size_t n_tokens, const float *bias, uint32_t accumulate, float *out,
                       size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(type, n_in, &layout)) return;
    for (size_t g = 0; g < n_groups; g += CHUNK_GROUPS) {
        const size_t left = n_groups - g;
        const unsigned n_chunk = left < CHUNK_GROUPS ? (unsigned)left : CHUNK_GROUPS;
        size_t t = 0;
        while (t < n_tokens) {
            const unsigned size = tile_size_find(n_tokens - t), n = tile_sizes[size];
            sums_t sums;
            for (unsigned i = 0; i < n_chunk; i++) {
                for (unsigned j = 0; j < n; j++) sums.sum[i][j] = _mm512_setzero_ps();
            }
            chunk_run(&tiles[size], n, w + g * layout.group_bytes, layout.group_bytes,
                      layout.quant_bytes, n_in, n_chunk, act + t * act_stride, act_stride, &sums);
            for (unsigned i = 0; i < n_chunk; i++) {
                const size_t row = (g + i) * KRI_GROUP_ROWS;
                const tile_out_t to = {out + t * out_stride + row, out_stride,
                                       bias != NULL ? bias + row : NULL,
                                       rows_mask(n_rows, g + i), accumulate};
                tile_store(&to, n, sums.sum[i]);
            }
            t += n;
        }
    }
}

#define TILE(slot, type, n_groups, n)                                                            \
    static void slot##_tile_##n_groups##_##n(const uint8_t *w, size_t group_bytes, size_t n_k,   \
                                             const uint8_t *act, size_t act_stride,              \
                                             __m512 (*sums)[TILE_TOKENS]) {                      \
        tile(type, n_groups, n, w, group_bytes, n_k, act, act_stride, sums);                     \
    }
#define LINEAR(slot, type)                                                                       \
    TILE(slot, type, 1, 1)                                                                       \
    TILE(slot, type, 4, 1)                                                                       \
    TILE(slot, type, 1, 2)                                                                       \
    TILE(slot, type, 4, 2)                                                                       \
    TILE(slot, type, 1, 4)                                                                       \
    TILE(slot, type, 4, 4)                                                                       \
    TILE(slot, type, 1, 8)                                                                       \
    TILE(slot, type, 2, 8)                                                                       \
    TILE(slot, type, 1, 16)                                                                      \
    void kri_##slot##_avx512(const uint8_t *restrict w, size_t n_in, size_t n_groups,            \
                             size_t n_rows, const void *restrict act, size_t act_stride,         \
                             size_t n_tokens, const float *restrict bias, uint32_t accumulate,   \
                             float *restrict out, size_t out_stride) {                           \
        static const tile_pair_t tiles[TILE_SIZES] = {{slot##_tile_1_1, slot##_tile_4_1, 4},     \
                                                      {slot##_tile_1_2, slot##_tile_4_2, 4},     \
                                                      {slot##_tile_1_4, slot##_tile_4_4, 4},     \
                                                      {slot##_tile_1_8, slot##_tile_2_8, 2},     \
                                                      {slot##_tile_1_16, slot##_tile_1_16, 1}};  \
        groups_run(type, tiles, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,      \
                   accumulate, out, out_stride);                                                 \
    }

LINEAR(linear_f32, KR_DTYPE_F32)
LINEAR(linear_f16, KR_DTYPE_F16)
LINEAR(linear_bf16, KR_DTYPE_BF16)
