/* linear_float_avx2.c: matrix times activations for f32, f16 and bf16 weights (AVX2, FMA, F16C).
 *
 * A lane is a row and k runs in order, one fused multiply-add per (row, token, k), which is the
 * order of kernels.h. That leaves one dependent chain per accumulator; a tile brings eight of
 * them: two halves of a group by four tokens, or of several groups when tokens are few. */
#include "cpu/impl.h"

#include <immintrin.h>

#include "cpu/avx2/tile_avx2.h"
#include "ops/pack.h"

#define CHUNK_GROUPS 4u
#define PREFETCH_BYTES 1024u

INLINE __m256 half_load(kr_dtype_t type, const uint8_t *p, unsigned half) {
    switch (type) {
    case KR_DTYPE_F16: return _mm256_cvtph_ps(_mm_load_si128((const void *)(p + 16u * half)));
    case KR_DTYPE_BF16: {
        const __m128i raw = _mm_load_si128((const void *)(p + 16u * half));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    }
    default: return _mm256_load_ps((const float *)(const void *)(p + 32u * half));
    }
}

/* n_groups by n tokens, both constant, n_groups * n <= 4; sums of group g at sums[g], token 0. */
INLINE void tile(kr_dtype_t type, unsigned n_groups, unsigned n, const uint8_t *w,
                 size_t group_bytes, size_t n_in, const uint8_t *act, size_t act_stride,
                 sums_t *sums, size_t token) {
    const size_t row_bytes = type == KR_DTYPE_F32 ? 64 : 32;
    __m256 acc[CHUNK_GROUPS][2][TILE_TOKENS];
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            acc[g][0][t] = acc[g][1][t] = _mm256_setzero_ps();
        }
    }
    for (size_t k = 0; k < n_in; k++) {
        UNROLL for (unsigned g = 0; g < n_groups; g++) {
            const uint8_t *p = w + g * group_bytes + k * row_bytes;
            _mm_prefetch((const void *)(p + PREFETCH_BYTES), _MM_HINT_T0);
            const __m256 lo = half_load(type, p, 0);
            const __m256 hi = half_load(type, p, 1);
            UNROLL for (unsigned t = 0; t < n; t++) {
                const float *x = (const void *)(act + t * act_stride);
                const __m256 xk = _mm256_broadcast_ss(x + k);
                acc[g][0][t] = _mm256_fmadd_ps(lo, xk, acc[g][0][t]);
                acc[g][1][t] = _mm256_fmadd_ps(hi, xk, acc[g][1][t]);
            }
        }
    }
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            _mm256_storeu_ps(sums[g].rows[token + t], acc[g][0][t]);
            _mm256_storeu_ps(sums[g].rows[token + t] + 8, acc[g][1][t]);
        }
    }
}

typedef void tile_fn(const uint8_t *w, size_t group_bytes, size_t n_in, const uint8_t *act,
                     size_t act_stride, sums_t *sums, size_t token);

/* A tile of each token count: over one group and over as many as its registers allow. */
typedef struct tile_pair_s {
    tile_fn *one, *many;
    unsigned n_many;
} tile_pair_t;

/* Sums of n_tokens (<= SUM_TOKENS) tokens of up to CHUNK_GROUPS groups. */
INLINE void chunk_run(const tile_pair_t *tiles, const uint8_t *w, size_t group_bytes,
                      size_t n_in, unsigned n_groups, const uint8_t *act, size_t act_stride,
                      size_t n_tokens, sums_t *sums) {
    size_t t = 0;
    while (t < n_tokens) {
        const unsigned size = tile_size_find(n_tokens - t);
        const tile_pair_t *pair = &tiles[size];
        const uint8_t *a = act + t * act_stride;
        unsigned g = 0;
        for (; g + pair->n_many <= n_groups; g += pair->n_many) {
            pair->many(w + g * group_bytes, group_bytes, n_in, a, act_stride, sums + g, t);
        }
        for (; g < n_groups; g++) {
            pair->one(w + g * group_bytes, group_bytes, n_in, a, act_stride, sums + g, t);
        }
        t += tile_sizes[size];
    }
}

INLINE void groups_run(kr_dtype_t type, const tile_pair_t *tiles, const uint8_t *w, size_t n_in,
                       size_t n_groups, size_t n_rows, const uint8_t *act, size_t act_stride,
                       size_t n_tokens, const float *bias, uint32_t accumulate, float *out,
                       size_t out_stride) {
    kri_pack_layout_t layout;
    sums_t sums[CHUNK_GROUPS];
    if (!kri_pack_layout(type, n_in, &layout)) return;
    for (size_t g = 0; g < n_groups; g += CHUNK_GROUPS) {
        const size_t left = n_groups - g;
        const unsigned n = left < CHUNK_GROUPS ? (unsigned)left : CHUNK_GROUPS;
        for (size_t t = 0; t < n_tokens; t += SUM_TOKENS) {
            const size_t n_part = n_tokens - t < SUM_TOKENS ? n_tokens - t : SUM_TOKENS;
            chunk_run(tiles, w + g * layout.group_bytes, layout.group_bytes, n_in, n,
                      act + t * act_stride, act_stride, n_part, sums);
            for (unsigned i = 0; i < n; i++) {
                const size_t row = (g + i) * KRI_GROUP_ROWS;
                const tile_out_t to = {out + t * out_stride + row, out_stride,
                                       bias != NULL ? bias + row : NULL,
                                       rows_left(n_rows, g + i), accumulate};
                sums_store(&to, &sums[i], n_part);
            }
        }
    }
}

#define TILE(slot, type, n_groups, n)                                                            \
    static void slot##_tile_##n_groups##_##n(const uint8_t *w, size_t group_bytes, size_t n_in,  \
                                             const uint8_t *act, size_t act_stride,              \
                                             sums_t *sums, size_t token) {                       \
        tile(type, n_groups, n, w, group_bytes, n_in, act, act_stride, sums, token);             \
    }
#define LINEAR(slot, type)                                                                       \
    TILE(slot, type, 1, 1)                                                                       \
    TILE(slot, type, 4, 1)                                                                       \
    TILE(slot, type, 1, 2)                                                                       \
    TILE(slot, type, 2, 2)                                                                       \
    TILE(slot, type, 1, 4)                                                                       \
    void kri_##slot##_avx2(const uint8_t *restrict w, size_t n_in, size_t n_groups,              \
                           size_t n_rows, const void *restrict act, size_t act_stride,           \
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,     \
                           float *restrict out, size_t out_stride) {                             \
        static const tile_pair_t tiles[TILE_SIZES] = {{slot##_tile_1_1, slot##_tile_4_1, 4},     \
                                                      {slot##_tile_1_2, slot##_tile_2_2, 2},     \
                                                      {slot##_tile_1_4, slot##_tile_1_4, 1}};    \
        groups_run(type, tiles, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,      \
                   accumulate, out, out_stride);                                                 \
    }

LINEAR(linear_f32, KR_DTYPE_F32)
LINEAR(linear_f16, KR_DTYPE_F16)
LINEAR(linear_bf16, KR_DTYPE_BF16)
