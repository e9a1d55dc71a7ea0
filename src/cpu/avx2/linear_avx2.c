/* linear_avx2.c: matrix times activations for the eight quantised weight types (AVX2, no VNNI).
 *
 * A register holds four consecutive k of 8 rows (half a packed group). Per 32-block eight weight
 * registers are unpacked and every token of the tile multiplies them with 4-byte broadcasts of
 * its values: unsigned by signed bytes into int16 pairs (vpmaddubsw). Pairs are added in int16 as
 * long as they cannot overflow with activations in -127..127, which is what makes narrow weights
 * cheap: 15 * 127 * 2 * 8 = 30480 for 4 bits, 31 * 127 * 2 * 4 = 31496 for 5 bits,
 * 63 * 127 * 2 * 2 = 32004 for 6 bits. 8-bit weights are made signed and multiplied as
 * |w| * sign(a, w): 128 * 127 * 2 = 32512, one pair at a time.
 *
 * 5- and 6-bit weights are dear to unpack. With PANEL_TOKENS_MIN tokens and more they are unpacked
 * once into a panel of bytes on the stack (a piece of k that fits the first-level cache), which
 * all tokens then use; the sums rest in between, so the order of kernels.h is kept. */
#include "cpu/impl.h"

#include <immintrin.h>
#include <stdbool.h>

#include "cpu/avx2/tile_avx2.h"
#include "ops/pack.h"

#define PANEL_BLOCKS 16u
#define PANEL_TOKENS_MIN 8u

/* One unpacked 32-block of half a group: bytes [u][8 rows][4 k] and the scales of the rows. */
typedef struct block_s {
    __m256i w[8];
    __m256 d; /* scale; q6_k: of k < 16 */
    __m256 m; /* q6_k: scale of k >= 16; q4_1 q5_1: added; q4_k q5_k: subtracted */
} block_t;

typedef struct panel_s {
    uint8_t w[PANEL_BLOCKS][8][64];
    float d[PANEL_BLOCKS][KRI_GROUP_ROWS];
    float m[PANEL_BLOCKS][KRI_GROUP_ROWS];
} panel_t;

/* Where a tile's weights come from. */
typedef struct source_s {
    const uint8_t *super, *scales, *quants; /* sections of the group */
    const uint8_t *next;                    /* group to prefetch meanwhile, or NULL */
    const panel_t *panel;
    size_t quant_bytes;
    size_t n_blocks;
} source_t;

/* Bytes of one 32-block of a group, all sections together. */
INLINE unsigned block_bytes(kr_dtype_t type) {
    switch (type) {
    case KR_DTYPE_Q4_0: return 288;
    case KR_DTYPE_Q4_1: return 320;
    case KR_DTYPE_Q5_0: return 352;
    case KR_DTYPE_Q5_1: return 384;
    case KR_DTYPE_Q8_0: return 544;
    case KR_DTYPE_Q4_K: return 296;
    case KR_DTYPE_Q5_K: return 360;
    default: return 420;
    }
}

INLINE __m256i load(const uint8_t *p) {
    return _mm256_load_si256((const void *)p);
}

INLINE __m256 halfs_load(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_load_si128((const void *)p));
}

INLINE __m256 bytes_load(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}

INLINE __m256 signed_bytes_load(const uint8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}

/* ---- unpacking: `half` picks rows 0..7 or 8..15 -------------------------------------------- */

INLINE void nibbles_unpack(const uint8_t *p, unsigned half, __m256i w[8]) {
    const __m256i low = _mm256_set1_epi8(0x0f);
    UNROLL for (unsigned v = 0; v < 4; v++) {
        const __m256i x = load(p + 64u * v + 32u * half);
        w[v] = _mm256_and_si256(x, low);
        w[v + 4] = _mm256_and_si256(_mm256_srli_epi16(x, 4), low);
    }
}

/* Bit i of a 32-bit word becomes bit 4 of byte i: every byte gets the word's byte i / 8, then only
 * its own bit is looked at. */
INLINE void fifth_bits_add(const uint8_t *high, unsigned half, __m256i w[8]) {
    const __m256i spread = _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101,
                                              0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    const __m256i bit = _mm256_set1_epi8(0x10);
    UNROLL for (unsigned u = 0; u < 8; u++) {
        int32_t word;
        __builtin_memcpy(&word, high + 8u * u + 4u * half, sizeof word);
        const __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
        const __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(x, own), own);
        w[u] = _mm256_or_si256(w[u], _mm256_and_si256(on, bit));
    }
}

/* Bits 4..5 of vector u lie at bits 2 (u % 4) of the bytes of two[u / 4]. The shifts cross byte
 * borders, which the mask undoes. */
INLINE void two_bits_add(const uint8_t *two, unsigned half, __m256i w[8]) {
    const __m256i mask = _mm256_set1_epi8(0x30);
    UNROLL for (unsigned h = 0; h < 2; h++) {
        const __m256i x = load(two + 64u * h + 32u * half);
        const __m256i part[4] = {_mm256_slli_epi16(x, 4), _mm256_slli_epi16(x, 2), x,
                                 _mm256_srli_epi16(x, 2)};
        UNROLL for (unsigned i = 0; i < 4; i++) {
            w[4 * h + i] = _mm256_or_si256(w[4 * h + i], _mm256_and_si256(part[i], mask));
        }
    }
}

INLINE void block_unpack(kr_dtype_t type, const uint8_t *quants, unsigned half, __m256i w[8]) {
    switch (type) {
    case KR_DTYPE_Q8_0: /* q + 128 -> q */
        UNROLL for (unsigned u = 0; u < 8; u++) {
            w[u] = _mm256_xor_si256(load(quants + 64u * u + 32u * half),
                                    _mm256_set1_epi8((char)0x80));
        }
        break;
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        nibbles_unpack(quants + 64, half, w);
        fifth_bits_add(quants, half, w);
        break;
    case KR_DTYPE_Q6_K:
        nibbles_unpack(quants + 128, half, w);
        two_bits_add(quants, half, w);
        break;
    default:
        nibbles_unpack(quants, half, w);
        break;
    }
}

INLINE void block_scales(kr_dtype_t type, const source_t *s, size_t b, unsigned half,
                         block_t *block) {
    block->m = _mm256_setzero_ps();
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        block->d = halfs_load(s->scales + 64u * b + 16u * half);
        block->m = halfs_load(s->scales + 64u * b + 32u + 16u * half);
        break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: {
        const uint8_t *super = s->super + 64u * (b / 8u) + 16u * half;
        const uint8_t *scales = s->scales + 32u * b + 8u * half;
        block->d = _mm256_mul_ps(halfs_load(super), bytes_load(scales));
        block->m = _mm256_mul_ps(halfs_load(super + 32), bytes_load(scales + 16));
        break;
    }
    case KR_DTYPE_Q6_K: {
        const __m256 d = halfs_load(s->super + 32u * (b / 8u) + 16u * half);
        const uint8_t *scales = s->scales + 32u * b + 8u * half;
        block->d = _mm256_mul_ps(d, signed_bytes_load(scales));
        block->m = _mm256_mul_ps(d, signed_bytes_load(scales + 16));
        break;
    }
    default:
        block->d = halfs_load(s->scales + 32u * b + 16u * half);
        break;
    }
}

/* Block b of the source; in a panel, b counts from the panel's first block. */
INLINE void block_get(kr_dtype_t type, bool from_panel, const source_t *s, size_t b,
                      unsigned half, block_t *block) {
    if (from_panel) {
        UNROLL for (unsigned u = 0; u < 8; u++) {
            block->w[u] = load(s->panel->w[b][u] + 32u * half);
        }
        block->d = _mm256_load_ps(s->panel->d[b] + 8u * half);
        block->m = _mm256_load_ps(s->panel->m[b] + 8u * half);
    } else {
        block_unpack(type, s->quants + b * s->quant_bytes, half, block->w);
        block_scales(type, s, b, half, block);
    }
}

/* Blocks [from, from + n) of the group into the panel. */
INLINE void panel_fill(kr_dtype_t type, const source_t *s, size_t from, size_t n,
                       panel_t *panel) {
    for (size_t b = 0; b < n; b++) {
        UNROLL for (unsigned half = 0; half < 2; half++) {
            block_t block;
            block_get(type, false, s, from + b, half, &block);
            UNROLL for (unsigned u = 0; u < 8; u++) {
                _mm256_store_si256((void *)(panel->w[b][u] + 32u * half), block.w[u]);
            }
            _mm256_store_ps(panel->d[b] + 8u * half, block.d);
            _mm256_store_ps(panel->m[b] + 8u * half, block.m);
        }
    }
}

/* ---- one block, one token ------------------------------------------------------------------ */

/* Four products of vector w with the token's four values, as int16 pairs. */
INLINE __m256i pairs(__m256i w, const int8_t *q) {
    int32_t v;
    __builtin_memcpy(&v, q, sizeof v);
    return _mm256_maddubs_epi16(w, _mm256_set1_epi32(v));
}

INLINE __m256i pairs_2(const __m256i *w, const int8_t *q) {
    return _mm256_add_epi16(pairs(w[0], q), pairs(w[1], q + 4));
}

INLINE __m256i pairs_4(const __m256i *w, const int8_t *q) {
    return _mm256_add_epi16(pairs_2(w, q), pairs_2(w + 2, q + 8));
}

INLINE __m256i widen(__m256i x) {
    return _mm256_madd_epi16(x, _mm256_set1_epi16(1));
}

INLINE __m256i dot_4_bit(const __m256i *w, const int8_t *q) {
    return widen(_mm256_add_epi16(pairs_4(w, q), pairs_4(w + 4, q + 16)));
}

INLINE __m256i dot_5_bit(const __m256i *w, const int8_t *q) {
    return _mm256_add_epi32(widen(pairs_4(w, q)), widen(pairs_4(w + 4, q + 16)));
}

/* 16 values only. */
INLINE __m256i dot_6_bit(const __m256i *w, const int8_t *q) {
    return _mm256_add_epi32(widen(pairs_2(w, q)), widen(pairs_2(w + 2, q + 8)));
}

INLINE __m256i signed_quad(__m256i w, const int8_t *q) {
    int32_t v;
    __builtin_memcpy(&v, q, sizeof v);
    const __m256i a = _mm256_sign_epi8(_mm256_set1_epi32(v), w);
    return widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), a));
}

INLINE __m256 scaled_add(__m256 acc, __m256 d, float da, __m256i sum) {
    return _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(da)), _mm256_cvtepi32_ps(sum), acc);
}

INLINE __m256i zero_take(__m256i dot, int zero, int32_t sum) {
    return _mm256_sub_epi32(dot, _mm256_set1_epi32(zero * sum));
}

INLINE __m256 block_step(kr_dtype_t type, const block_t *block, const kri_q8_block_t *a,
                         __m256 acc) {
    const __m256i *w = block->w;
    const int32_t lo = a->sum_half[0], hi = a->sum_half[1];
    switch (type) {
    case KR_DTYPE_Q4_0:
        return scaled_add(acc, block->d, a->d, zero_take(dot_4_bit(w, a->q), 8, lo + hi));
    case KR_DTYPE_Q5_0:
        return scaled_add(acc, block->d, a->d, zero_take(dot_5_bit(w, a->q), 16, lo + hi));
    case KR_DTYPE_Q6_K:
        acc = scaled_add(acc, block->d, a->d, zero_take(dot_6_bit(w, a->q), 32, lo));
        return scaled_add(acc, block->m, a->d, zero_take(dot_6_bit(w + 4, a->q + 16), 32, hi));
    case KR_DTYPE_Q4_1:
        acc = scaled_add(acc, block->d, a->d, dot_4_bit(w, a->q));
        return _mm256_fmadd_ps(block->m, _mm256_set1_ps(a->ds), acc);
    case KR_DTYPE_Q5_1:
        acc = scaled_add(acc, block->d, a->d, dot_5_bit(w, a->q));
        return _mm256_fmadd_ps(block->m, _mm256_set1_ps(a->ds), acc);
    case KR_DTYPE_Q4_K:
        acc = scaled_add(acc, block->d, a->d, dot_4_bit(w, a->q));
        return _mm256_fnmadd_ps(block->m, _mm256_set1_ps(a->ds), acc);
    default: /* q5_k */
        acc = scaled_add(acc, block->d, a->d, dot_5_bit(w, a->q));
        return _mm256_fnmadd_ps(block->m, _mm256_set1_ps(a->ds), acc);
    }
}

/* 8-bit weights: a register and its magnitudes serve all tokens before the next is loaded, since
 * all eight and their magnitudes would take every register. The zero point is already taken. */
INLINE void block_step_q8(unsigned n, const block_t *block, const uint8_t *a, size_t act_stride,
                          __m256 *acc) {
    __m256i sum[TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < n; t++) sum[t] = _mm256_setzero_si256();
    UNROLL for (unsigned u = 0; u < 8; u++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            const kri_q8_block_t *x = (const void *)(a + t * act_stride);
            sum[t] = _mm256_add_epi32(sum[t], signed_quad(block->w[u], x->q + 4u * u));
        }
    }
    UNROLL for (unsigned t = 0; t < n; t++) {
        const kri_q8_block_t *x = (const void *)(a + t * act_stride);
        acc[t] = scaled_add(acc[t], block->d, x->d, sum[t]);
    }
}

/* ---- one group, n tokens ------------------------------------------------------------------- */

INLINE void next_prefetch(kr_dtype_t type, const uint8_t *next, size_t b) {
    UNROLL for (unsigned i = 0; i < (block_bytes(type) + 63u) / 64u; i++) {
        _mm_prefetch((const void *)(next + b * block_bytes(type) + 64u * i), _MM_HINT_T0);
    }
}

/* Adds blocks [0, n_blocks) of the source for n tokens and the halves [half, half + n_halves) to
 * sums, which start at zero. n_halves * n <= 4. */
INLINE void tile(kr_dtype_t type, bool from_panel, unsigned n, unsigned half, unsigned n_halves,
                 const source_t *s, const uint8_t *act, size_t act_stride,
                 float (*sums)[KRI_GROUP_ROWS]) {
    __m256 acc[2][TILE_TOKENS];
    UNROLL for (unsigned h = 0; h < n_halves; h++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            acc[h][t] = _mm256_loadu_ps(sums[t] + 8u * (half + h));
        }
    }
    for (size_t b = 0; b < s->n_blocks; b++) {
        const uint8_t *a = act + b * sizeof(kri_q8_block_t);
        if (!from_panel && s->next != NULL) next_prefetch(type, s->next, b);
        UNROLL for (unsigned h = 0; h < n_halves; h++) {
            block_t block;
            block_get(type, from_panel, s, b, half + h, &block);
            if (type == KR_DTYPE_Q8_0) {
                block_step_q8(n, &block, a, act_stride, acc[h]);
            } else {
                UNROLL for (unsigned t = 0; t < n; t++) {
                    acc[h][t] = block_step(type, &block, (const void *)(a + t * act_stride),
                                           acc[h][t]);
                }
            }
        }
    }
    UNROLL for (unsigned h = 0; h < n_halves; h++) {
        UNROLL for (unsigned t = 0; t < n; t++) {
            _mm256_storeu_ps(sums[t] + 8u * (half + h), acc[h][t]);
        }
    }
}

typedef void tile_fn(const source_t *s, const uint8_t *act, size_t act_stride,
                     float (*sums)[KRI_GROUP_ROWS]);

/* All tokens of one part over one source. The next group is prefetched by the first tile. */
INLINE void tiles_run(tile_fn *const tiles[TILE_SIZES], source_t *s, const uint8_t *act,
                      size_t act_stride, size_t n_tokens, sums_t *sums) {
    size_t t = 0;
    while (t < n_tokens) {
        const unsigned size = tile_size_find(n_tokens - t);
        tiles[size](s, act + t * act_stride, act_stride, sums->rows + t);
        s->next = NULL;
        t += tile_sizes[size];
    }
}

/* ---- the kernels --------------------------------------------------------------------------- */

typedef void panel_fn(const source_t *s, size_t from, size_t n, panel_t *panel);

/* What a type brings: tiles over packed weights and, where unpacking is dear, over a panel. */
typedef struct kernel_s {
    kr_dtype_t type;
    tile_fn *tiles[TILE_SIZES];
    tile_fn *panel_tiles[TILE_SIZES];
    panel_fn *panel_fill; /* NULL: no panel */
} kernel_t;

static void panels_run(const kernel_t *kernel, const source_t *group, const uint8_t *act,
                       size_t act_stride, size_t n_tokens, sums_t *sums) {
    _Alignas(64) panel_t panel;
    for (size_t b = 0; b < group->n_blocks; b += PANEL_BLOCKS) {
        const size_t left = group->n_blocks - b;
        source_t s = {.panel = &panel, .n_blocks = left < PANEL_BLOCKS ? left : PANEL_BLOCKS};
        kernel->panel_fill(group, b, s.n_blocks, &panel);
        tiles_run(kernel->panel_tiles, &s, act + b * sizeof(kri_q8_block_t), act_stride, n_tokens,
                  sums);
    }
}

static void groups_run(const kernel_t *kernel, const uint8_t *w, size_t n_in, size_t n_groups,
                       size_t n_rows, const uint8_t *act, size_t act_stride, size_t n_tokens,
                       const float *bias, uint32_t accumulate, float *out, size_t out_stride) {
    kri_pack_layout_t layout;
    if (!kri_pack_layout(kernel->type, n_in, &layout)) return;
    for (size_t g = 0; g < n_groups; g++) {
        const uint8_t *base = w + g * layout.group_bytes;
        source_t s = {.super = base + layout.super,
                      .scales = base + layout.scales,
                      .quants = base + layout.quants,
                      .next = g + 1 < n_groups ? base + layout.group_bytes : NULL,
                      .quant_bytes = layout.quant_bytes,
                      .n_blocks = n_in / KRI_Q8_ITEMS};
        const size_t row = g * KRI_GROUP_ROWS;
        for (size_t t = 0; t < n_tokens; t += SUM_TOKENS) {
            const size_t n = n_tokens - t < SUM_TOKENS ? n_tokens - t : SUM_TOKENS;
            const uint8_t *a = act + t * act_stride;
            sums_t sums;
            __builtin_memset(sums.rows, 0, n * sizeof sums.rows[0]);
            if (kernel->panel_fill != NULL && n >= PANEL_TOKENS_MIN) {
                panels_run(kernel, &s, a, act_stride, n, &sums);
            } else {
                tiles_run(kernel->tiles, &s, a, act_stride, n, &sums);
            }
            const tile_out_t to = {out + t * out_stride + row, out_stride,
                                   bias != NULL ? bias + row : NULL, rows_left(n_rows, g),
                                   accumulate};
            sums_store(&to, &sums, n);
        }
    }
}

/* Four tokens take all registers with half a group, fewer take both halves in one pass. */
#define TILES(name, type, from_panel)                                                            \
    static void name##_1(const source_t *s, const uint8_t *act, size_t act_stride,               \
                         float (*sums)[KRI_GROUP_ROWS]) {                                        \
        tile(type, from_panel, 1, 0, 2, s, act, act_stride, sums);                               \
    }                                                                                            \
    static void name##_2(const source_t *s, const uint8_t *act, size_t act_stride,               \
                         float (*sums)[KRI_GROUP_ROWS]) {                                        \
        tile(type, from_panel, 2, 0, 2, s, act, act_stride, sums);                               \
    }                                                                                            \
    static void name##_4(const source_t *s, const uint8_t *act, size_t act_stride,               \
                         float (*sums)[KRI_GROUP_ROWS]) {                                        \
        tile(type, from_panel, 4, 0, 1, s, act, act_stride, sums);                               \
        tile(type, from_panel, 4, 1, 1, s, act, act_stride, sums);                               \
    }

#define ENTRY(slot)                                                                              \
    void kri_##slot##_avx2(const uint8_t *restrict w, size_t n_in, size_t n_groups,              \
                           size_t n_rows, const void *restrict act, size_t act_stride,           \
                           size_t n_tokens, const float *restrict bias, uint32_t accumulate,     \
                           float *restrict out, size_t out_stride) {                             \
        groups_run(&slot##_kernel, w, n_in, n_groups, n_rows, act, act_stride, n_tokens, bias,   \
                   accumulate, out, out_stride);                                                 \
    }

#define LINEAR(slot, type)                                                                       \
    TILES(slot, type, false)                                                                     \
    static const kernel_t slot##_kernel = {                                                      \
        type, {slot##_1, slot##_2, slot##_4}, {NULL, NULL, NULL}, NULL};                         \
    ENTRY(slot)

#define LINEAR_PANEL(slot, type)                                                                 \
    TILES(slot, type, false)                                                                     \
    TILES(slot##_panel, type, true)                                                              \
    static void slot##_panel_fill(const source_t *s, size_t from, size_t n, panel_t *panel) {    \
        panel_fill(type, s, from, n, panel);                                                     \
    }                                                                                            \
    static const kernel_t slot##_kernel = {type,                                                 \
                                           {slot##_1, slot##_2, slot##_4},                       \
                                           {slot##_panel_1, slot##_panel_2, slot##_panel_4},     \
                                           slot##_panel_fill};                                   \
    ENTRY(slot)

LINEAR(linear_q4_0, KR_DTYPE_Q4_0)
LINEAR(linear_q4_1, KR_DTYPE_Q4_1)
LINEAR(linear_q8_0, KR_DTYPE_Q8_0)
LINEAR(linear_q4_k, KR_DTYPE_Q4_K)
LINEAR_PANEL(linear_q5_0, KR_DTYPE_Q5_0)
LINEAR_PANEL(linear_q5_1, KR_DTYPE_Q5_1)
LINEAR_PANEL(linear_q5_k, KR_DTYPE_Q5_K)
LINEAR_PANEL(linear_q6_k, KR_DTYPE_Q6_K)
