/* linear_bf16_avx512bf16.c: bf16 weights by bf16 activations (AVX512_BF16), two k per operation.
 *
 * The activations are rounded to bf16 here, which the f32 form of this slot does not do: twice the
 * speed of many tokens for 8 bits of an activation's mantissa. The order is that of
 * kri_linear_bf16_pair_ref (ops/kernels.h), the same for any number of tokens.
 *
 * Two consecutive k of 16 rows lie side by side in a packed group; one word permutation makes the
 * (even, odd) pairs that vdpbf16ps wants, for all tokens of a tile. Rounded activations of a piece
 * of k rest on the stack and serve CHUNK_GROUPS groups; the sums rest in memory between pieces. */
#include "cpu/impl.h"

#include <immintrin.h>

#include "cpu/avx512/tile_avx512.h"
#include "ops/pack.h"

#define CHUNK_GROUPS 8u
#define CHUNK_PAIRS 256u /* of k */
#define PREFETCH_BYTES 1024u

/* Rounded activations: (even k, odd k) of a token per dword. */
typedef struct acts_s {
    uint32_t pair[TILE_TOKENS][CHUNK_PAIRS];
} acts_t;

typedef struct sums_s {
    __m512 sum[CHUNK_GROUPS][TILE_TOKENS];
} sums_t;

/* Values k of n_k (a piece's length) that a vector from `from` on holds. */
INLINE __mmask16 values_mask(size_t n_k, size_t from) {
    if (n_k >= from + 16u) return 0xffff;
    return n_k > from ? (__mmask16)((1u << (n_k - from)) - 1u) : 0;
}

/* Rounds to nearest even; past the end of k comes zero. */
static void acts_fill(const uint8_t *act, size_t act_stride, size_t n_tokens, size_t n_k,
                      acts_t *acts) {
    for (size_t t = 0; t < n_tokens; t++) {
        const float *x = (const void *)(act + t * act_stride);
        for (size_t k = 0; k < n_k; k += 32) {
            const __m512 lo = _mm512_maskz_loadu_ps(values_mask(n_k, k), x + k);
            const __m512 hi = _mm512_maskz_loadu_ps(values_mask(n_k, k + 16), x + k + 16);
            const __m512bh pairs = _mm512_cvtne2ps_pbh(hi, lo);
            __builtin_memcpy(acts->pair[t] + k / 2u, &pairs, sizeof pairs);
        }
    }
}

/* Two rows of 16 weights at p, the second one zero for the last k of an odd n_in, as pairs. */
INLINE __m512bh weights_load(const uint8_t *p, __mmask32 words) {
    const __m512i halves = _mm512_setr_epi32(
        0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005, 0x00160006,
        0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b, 0x001c000c, 0x001d000d,
        0x001e000e, 0x001f000f);
    const __m512i raw = _mm512_maskz_loadu_epi16(words, p);
    return (__m512bh)_mm512_permutexvar_epi16(halves, raw);
}

/* Adds n_k values of k to the sums of n_groups by n tokens, both constant, their product at most
 * 16. w: the first group at the piece's first k. */
INLINE void tile(unsigned n_groups, unsigned n, const uint8_t *w, size_t group_bytes, size_t n_k,
                 const acts_t *acts, __m512 (*sums)[TILE_TOKENS]) {
    __m512 acc[CHUNK_GROUPS][TILE_TOKENS];
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) acc[g][t] = sums[g][t];
    }
    for (size_t i = 0; i < (n_k + 1) / 2; i++) {
        const __mmask32 words = 2u * i + 1u < n_k ? 0xffffffffu : 0xffffu;
        UNROLL for (unsigned g = 0; g < n_groups; g++) {
            const uint8_t *p = w + g * group_bytes + 64u * i;
            _mm_prefetch((const void *)(p + PREFETCH_BYTES), _MM_HINT_T0);
            const __m512bh rows = weights_load(p, words);
            UNROLL for (unsigned t = 0; t < n; t++) {
                const __m512bh x = (__m512bh)_mm512_set1_epi32((int)acts->pair[t][i]);
                acc[g][t] = _mm512_dpbf16_ps(acc[g][t], rows, x);
            }
        }
    }
    UNROLL for (unsigned g = 0; g < n_groups; g++) {
        UNROLL for (unsigned t = 0; t < n; t++) sums[g][t] = acc[g][t];
    }
}

typedef void tile_fn(const uint8_t *w, size_t group_bytes, size_t n_k, const acts_t *acts,
                     __m512 (*sums)[TILE_TOKENS]);

#define TILE(n_groups, n)                                                                        \
    static void tile_##n_groups##_##n(const uint8_t *w, size_t group_bytes, size_t n_k,          \
                                      const acts_t *acts, __m512 (*sums)[TILE_TOKENS]) {         \
        tile(n_groups, n, w, group_bytes, n_k, acts, sums);                                      \
    }
TILE(1, 1)
TILE(4, 1)
TILE(1, 2)
TILE(4, 2)
TILE(1, 4)
TILE(4, 4)
TILE(1, 8)
TILE(2, 8)
TILE(1, 16)

/* A tile of each token count: over one group and over as many as its registers allow. */
typedef struct tile_pair_s {
    tile_fn *one, *many;
    unsigned n_many;
} tile_pair_t;

static const tile_pair_t tiles[TILE_SIZES] = {{tile_1_1, tile_4_1, 4},
                                              {tile_1_2, tile_4_2, 4},
                                              {tile_1_4, tile_4_4, 4},
                                              {tile_1_8, tile_2_8, 2},
                                              {tile_1_16, tile_1_16, 1}};

/* Sums of a tile of tokens over n_groups groups. */
static void chunk_run(unsigned size, const uint8_t *w, size_t group_bytes, size_t n_in,
                      unsigned n_groups, const uint8_t *act, size_t act_stride, sums_t *sums) {
    _Alignas(64) acts_t acts;
    const tile_pair_t *pair = &tiles[size];
    for (size_t k = 0; k < n_in; k += 2u * CHUNK_PAIRS) {
        const size_t n_k = n_in - k < 2u * CHUNK_PAIRS ? n_in - k : 2u * CHUNK_PAIRS;
        const uint8_t *first = w + k * 2u * KRI_GROUP_ROWS;
        unsigned g = 0;
        acts_fill(act + k * sizeof(float), act_stride, tile_sizes[size], n_k, &acts);
        for (; g + pair->n_many <= n_groups; g += pair->n_many) {
            pair->many(first + g * group_bytes, group_bytes, n_k, &acts, sums->sum + g);
        }
        for (; g < n_groups; g++) {
            pair->one(first + g * group_bytes, group_bytes, n_k, &acts, sums->sum + g);
        }
    }
}

void kri_linear_bf16_avx512bf16(const uint8_t *restrict w, size_t n_in, size_t n_groups,
                                size_t n_rows, const void *restrict act, size_t act_stride,
                                size_t n_tokens, const float *restrict bias, uint32_t accumulate,
                                float *restrict out, size_t out_stride) {
    const uint8_t *x = act;
    kri_pack_layout_t layout;
    if (!kri_pack_layout(KR_DTYPE_BF16, n_in, &layout)) return;
    for (size_t g = 0; g < n_groups; g += CHUNK_GROUPS) {
        const size_t left = n_groups - g;
        const unsigned n = left < CHUNK_GROUPS ? (unsigned)left : CHUNK_GROUPS;
        size_t t = 0;
        while (t < n_tokens) {
            const unsigned size = tile_size_find(n_tokens - t);
            sums_t sums;
            __builtin_memset(&sums, 0, n * sizeof sums.sum[0]);
            chunk_run(size, w + g * layout.group_bytes, layout.group_bytes, n_in, n,
                      x + t * act_stride, act_stride, &sums);
            for (unsigned i = 0; i < n; i++) {
                const size_t row = (g + i) * KRI_GROUP_ROWS;
                const tile_out_t to = {out + t * out_stride + row, out_stride,
                                       bias != NULL ? bias + row : NULL,
                                       rows_mask(n_rows, g + i), accumulate};
                tile_store(&to, tile_sizes[size], sums.sum[i]);
            }
            t += tile_sizes[size];
        }
    }
}
