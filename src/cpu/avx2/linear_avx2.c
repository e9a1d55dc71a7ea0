/* linear_avx2.c: matrix times activations for the eight quantised weight types (AVX2, no VNNI).
 *
 * A register holds four consecutive k of 8 rows (half a packed group). A tile is a group and up
 * to four tokens: a weight vector of each half meets a 4-byte broadcast of every token's values,
 * unsigned by signed bytes into int16 pairs (vpmaddubsw), and eight running sums (two halves by
 * four tokens) fill half of the registers. Sharing each broadcast between the halves matters:
 * loads, not multiplies, were the limit without it. Pairs are added in int16 as long as they
 * cannot overflow with activations in -127..127, which is what makes narrow weights cheap:
 * 15 * 127 * 2 * 8 = 30480 for 4 bits, 31 * 127 * 2 * 4 = 31496 for 5 bits,
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

/* Scales of the 8 rows of a half. */
typedef struct scales_s {
    __m256 d; /* scale; q6_k: of k < 16 */
    __m256 m; /* q6_k: scale of k >= 16; q4_1 q5_1: added; q4_k q5_k: subtracted */
} scales_t;

typedef struct panel_s {
    uint8_t w[PANEL_BLOCKS][8][64];
    float d[PANEL_BLOCKS][KRI_GROUP_ROWS];
    float m[PANEL_BLOCKS][KRI_GROUP_ROWS];
} panel_t;

/* Where a tile's weights come from. */
typedef struct source_s {
    const uint8_t *super, *scales, *quants; /* sections of the group */
    const uint8_t *ahead; /* bytes to prefetch meanwhile, as many as the group has, or NULL */
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

/* ---- unpacking: `half` picks rows 0..7 or 8..15, u is the unpacked vector (pack.h) ---------- */

INLINE __m256i nibbles_get(const uint8_t *p, unsigned u, unsigned half) {
    const __m256i x = load(p + 64u * (u % 4u) + 32u * half);
    return _mm256_and_si256(u < 4 ? x : _mm256_srli_epi16(x, 4), _mm256_set1_epi8(0x0f));
}

/* Bit i of a 32-bit word becomes bit 4 of byte i: every byte gets the word's byte i / 8, then only
 * its own bit is looked at. */
INLINE __m256i fifth_bits_get(const uint8_t *high, unsigned u, unsigned half) {
    const __m256i spread = _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101,
                                              0x0202020202020202, 0x0303030303030303);
    const __m256i own = _mm256_set1_epi64x((long long)0x8040201008040201ull);
    int32_t word;
    __builtin_memcpy(&word, high + 8u * u + 4u * half, sizeof word);
    const __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(word), spread);
    const __m256i on = _mm256_cmpeq_epi8(_mm256_and_si256(x, own), own);
    return _mm256_and_si256(on, _mm256_set1_epi8(0x10));
}

/* Bits 4..5 of vector u lie at bits 2 (u % 4) of the bytes of two[u / 4]. The shifts cross byte
 * borders, which the mask undoes. */
INLINE __m256i two_bits_get(const uint8_t *two, unsigned u, unsigned half) {
    __m256i x = load(two + 64u * (u / 4u) + 32u * half);
    switch (u % 4u) {
    case 0: x = _mm256_slli_epi16(x, 4); break;
    case 1: x = _mm256_slli_epi16(x, 2); break;
    case 2: break;
    default: x = _mm256_srli_epi16(x, 2); break;
    }
    return _mm256_and_si256(x, _mm256_set1_epi8(0x30));
}

/* Vector u of a 32-block: unsigned quants, except for q8_0, where the zero point is taken off. */
INLINE __m256i weights_get(kr_dtype_t type, const uint8_t *quants, unsigned u, unsigned half) {
    switch (type) {
    case KR_DTYPE_Q8_0:
        return _mm256_xor_si256(load(quants + 64u * u + 32u * half),
                                _mm256_set1_epi8((char)0x80));
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        return _mm256_or_si256(nibbles_get(quants + 64, u, half),
                               fifth_bits_get(quants, u, half));
    case KR_DTYPE_Q6_K:
        return _mm256_or_si256(nibbles_get(quants + 128, u, half),
                               two_bits_get(quants, u, half));
    default: return nibbles_get(quants, u, half);
    }
}

INLINE scales_t scales_get(kr_dtype_t type, const source_t *s, size_t b, unsigned half) {
    scales_t out = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    switch (type) {
    case KR_DTYPE_Q4_1:
    case KR_DTYPE_Q5_1:
        out.d = halfs_load(s->scales + 64u * b + 16u * half);
        out.m = halfs_load(s->scales + 64u * b + 32u + 16u * half);
        break;
    case KR_DTYPE_Q4_K:
    case KR_DTYPE_Q5_K: {
        const uint8_t *super = s->super + 64u * (b / 8u) + 16u * half;
        const uint8_t *scales = s->scales + 32u * b + 8u * half;
        out.d = _mm256_mul_ps(halfs_load(super), bytes_load(scales));
        out.m = _mm256_mul_ps(halfs_load(super + 32), bytes_load(scales + 16));
        break;
    }
    case KR_DTYPE_Q6_K: {
        const __m256 d = halfs_load(s->super + 32u * (b / 8u) + 16u * half);
        const uint8_t *scales = s->scales + 32u * b + 8u * half;
        out.d = _mm256_mul_ps(d, signed_bytes_load(scales));
        out.m = _mm256_mul_ps(d, signed_bytes_load(scales + 16));
        break;
    }
    default:
        out.d = halfs_load(s->scales + 32u * b + 16u * half);
        break;
    }
    return out;
}

/* Blocks [from, from + n) of the group into the panel. */
INLINE void panel_fill(kr_dtype_t type, const source_t *s, size_t from, size_t n,
                       panel_t *panel) {
    for (size_t b = 0; b < n; b++) {
        const uint8_t *quants = s->quants + (from + b) * s->quant_bytes;
        UNROLL for (unsigned half = 0; half < 2; half++) {
            UNROLL for (unsigned u = 0; u < 8; u++) {
                _mm256_store_si256((void *)(panel->w[b][u] + 32u * half),
                                   weights_get(type, quants, u, half));
            }
            const scales_t scales = scales_get(type, s, from + b, half);
            _mm256_store_ps(panel->d[b] + 8u * half, scales.d);
            _mm256_store_ps(panel->m[b] + 8u * half, scales.m);
        }
    }
}

/* ---- one block of a tile ------------------------------------------------------------------- */

/* A 32-block of weights, packed or in a panel, and the tokens that meet it. */
typedef struct meeting_s {
    kr_dtype_t type;
    bool from_panel;
    unsigned n; /* tokens; constant like the two above */
    const source_t *source;
    size_t b;
    const uint8_t *act;
    size_t act_stride;
} meeting_t;

typedef struct dots_s {
    __m256i sum[2][TILE_TOKENS]; /* [half][token] */
} dots_t;

INLINE __m256i block_weights(const meeting_t *m, unsigned u, unsigned half) {
    if (m->from_panel) return load(m->source->panel->w[m->b][u] + 32u * half);
    return weights_get(m->type, m->source->quants + m->b * m->source->quant_bytes, u, half);
}

INLINE scales_t block_scales(const meeting_t *m, unsigned half) {
    if (!m->from_panel) return scales_get(m->type, m->source, m->b, half);
    const panel_t *panel = m->source->panel;
    return (scales_t){_mm256_load_ps(panel->d[m->b] + 8u * half),
                      _mm256_load_ps(panel->m[m->b] + 8u * half)};
}

INLINE const kri_q8_block_t *token_block(const meeting_t *m, unsigned t) {
    return (const void *)(m->act + t * m->act_stride);
}

INLINE __m256i quad_broadcast(const int8_t *q) {
    int32_t v;
    __builtin_memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}

/* An addition the compiler must do here and now: regrouped sums keep all products alive at once,
 * and they do not fit the registers. */
INLINE __m256i pinned(__m256i sum) {
    __asm__("" : "+x"(sum));
    return sum;
}

/* Adds vector u to int16 pair sums; the first vector of a run starts them. The runs below name
 * their vectors one by one because clang does not unroll a loop over them. */
INLINE void pairs_add(const meeting_t *m, unsigned u, bool first, dots_t *dots) {
    const __m256i w0 = block_weights(m, u, 0), w1 = block_weights(m, u, 1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256i a = quad_broadcast(token_block(m, t)->q + 4u * u);
        const __m256i p0 = _mm256_maddubs_epi16(w0, a), p1 = _mm256_maddubs_epi16(w1, a);
        dots->sum[0][t] = first ? p0 : pinned(_mm256_add_epi16(dots->sum[0][t], p0));
        dots->sum[1][t] = first ? p1 : pinned(_mm256_add_epi16(dots->sum[1][t], p1));
    }
}

INLINE void widen(const meeting_t *m, dots_t *dots) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        dots->sum[0][t] = _mm256_madd_epi16(dots->sum[0][t], ones);
        dots->sum[1][t] = _mm256_madd_epi16(dots->sum[1][t], ones);
    }
}

/* Dot products over two, four and all eight vectors from u on: as far as int16 carries. */
INLINE void dots_2(const meeting_t *m, unsigned u, dots_t *dots) {
    pairs_add(m, u, true, dots);
    pairs_add(m, u + 1, false, dots);
    widen(m, dots);
}

INLINE void dots_4(const meeting_t *m, unsigned u, dots_t *dots) {
    pairs_add(m, u, true, dots);
    pairs_add(m, u + 1, false, dots);
    pairs_add(m, u + 2, false, dots);
    pairs_add(m, u + 3, false, dots);
    widen(m, dots);
}

INLINE void dots_8(const meeting_t *m, dots_t *dots) {
    pairs_add(m, 0, true, dots);
    pairs_add(m, 1, false, dots);
    pairs_add(m, 2, false, dots);
    pairs_add(m, 3, false, dots);
    pairs_add(m, 4, false, dots);
    pairs_add(m, 5, false, dots);
    pairs_add(m, 6, false, dots);
    pairs_add(m, 7, false, dots);
    widen(m, dots);
}

INLINE void dots_add(const meeting_t *m, dots_t *dots, const dots_t *other) {
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        dots->sum[0][t] = _mm256_add_epi32(dots->sum[0][t], other->sum[0][t]);
        dots->sum[1][t] = _mm256_add_epi32(dots->sum[1][t], other->sum[1][t]);
    }
}

INLINE __m256i wide_products(__m256i w, __m256i magnitude, __m256i a) {
    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void wide_add(const meeting_t *m, unsigned u, bool first, dots_t *dots) {
    const __m256i w0 = block_weights(m, u, 0), w1 = block_weights(m, u, 1);
    const __m256i m0 = _mm256_abs_epi8(w0), m1 = _mm256_abs_epi8(w1);
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256i a = quad_broadcast(token_block(m, t)->q + 4u * u);
        const __m256i p0 = wide_products(w0, m0, a), p1 = wide_products(w1, m1, a);
        dots->sum[0][t] = first ? p0 : pinned(_mm256_add_epi32(dots->sum[0][t], p0));
        dots->sum[1][t] = first ? p1 : pinned(_mm256_add_epi32(dots->sum[1][t], p1));
    }
}

/* 8-bit weights. */
INLINE void wide_dots(const meeting_t *m, dots_t *dots) {
    wide_add(m, 0, true, dots);
    wide_add(m, 1, false, dots);
    wide_add(m, 2, false, dots);
    wide_add(m, 3, false, dots);
    wide_add(m, 4, false, dots);
    wide_add(m, 5, false, dots);
    wide_add(m, 6, false, dots);
    wide_add(m, 7, false, dots);
}

/* acc += (scale * da) * (dot - zero * sum) for both halves. */
INLINE void scaled_add(const meeting_t *m, const dots_t *dots, __m256 d0, __m256 d1, int zero,
                       bool first_half, bool second_half, __m256 acc[2][TILE_TOKENS]) {
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const kri_q8_block_t *a = token_block(m, t);
        const __m256 da = _mm256_set1_ps(a->d);
        __m256i s0 = dots->sum[0][t], s1 = dots->sum[1][t];
        if (zero != 0) {
            const int32_t sum =
                (first_half ? a->sum_half[0] : 0) + (second_half ? a->sum_half[1] : 0);
            const __m256i off = _mm256_set1_epi32(zero * sum);
            s0 = _mm256_sub_epi32(s0, off);
            s1 = _mm256_sub_epi32(s1, off);
        }
        acc[0][t] = _mm256_fmadd_ps(_mm256_mul_ps(d0, da), _mm256_cvtepi32_ps(s0), acc[0][t]);
        acc[1][t] = _mm256_fmadd_ps(_mm256_mul_ps(d1, da), _mm256_cvtepi32_ps(s1), acc[1][t]);
    }
}

INLINE void minimum_add(const meeting_t *m, __m256 m0, __m256 m1, bool subtract,
                        __m256 acc[2][TILE_TOKENS]) {
    UNROLL for (unsigned t = 0; t < m->n; t++) {
        const __m256 ds = _mm256_set1_ps(token_block(m, t)->ds);
        acc[0][t] = subtract ? _mm256_fnmadd_ps(m0, ds, acc[0][t])
                             : _mm256_fmadd_ps(m0, ds, acc[0][t]);
        acc[1][t] = subtract ? _mm256_fnmadd_ps(m1, ds, acc[1][t])
                             : _mm256_fmadd_ps(m1, ds, acc[1][t]);
    }
}

INLINE void block_dots(const meeting_t *m, dots_t *dots) {
    dots_t other;
    switch (m->type) {
    case KR_DTYPE_Q8_0: wide_dots(m, dots); break;
    case KR_DTYPE_Q5_0:
    case KR_DTYPE_Q5_1:
    case KR_DTYPE_Q5_K:
        dots_4(m, 0, dots);
        dots_4(m, 4, &other);
        dots_add(m, dots, &other);
        break;
    default: dots_8(m, dots); break;
    }
}

/* Vectors u..u+3: one half of k of a q6_k block. */
INLINE void block_dots_6_bit(const meeting_t *m, unsigned u, dots_t *dots) {
    dots_t other;
    dots_2(m, u, dots);
    dots_2(m, u + 2, &other);
    dots_add(m, dots, &other);
}

/* The step of kernels.h. */
INLINE void block_step(const meeting_t *m, __m256 acc[2][TILE_TOKENS]) {
    dots_t dots;
    if (m->type == KR_DTYPE_Q6_K) {
        block_dots_6_bit(m, 0, &dots);
        scaled_add(m, &dots, block_scales(m, 0).d, block_scales(m, 1).d, 32, true, false, acc);
        block_dots_6_bit(m, 4, &dots);
        scaled_add(m, &dots, block_scales(m, 0).m, block_scales(m, 1).m, 32, false, true, acc);
        return;
    }
    block_dots(m, &dots);
    const scales_t s0 = block_scales(m, 0), s1 = block_scales(m, 1);
    const int zero = m->type == KR_DTYPE_Q4_0 ? 8 : m->type == KR_DTYPE_Q5_0 ? 16 : 0;
    scaled_add(m, &dots, s0.d, s1.d, zero, true, true, acc);
    if (m->type == KR_DTYPE_Q4_1 || m->type == KR_DTYPE_Q5_1) {
        minimum_add(m, s0.m, s1.m, false, acc);
    } else if (m->type == KR_DTYPE_Q4_K || m->type == KR_DTYPE_Q5_K) {
        minimum_add(m, s0.m, s1.m, true, acc);
    }
}

/* ---- one group, n tokens ------------------------------------------------------------------- */

/* The share of block b in the prefetch: one linear walk over all sections, so that every line is
 * asked for once. */
INLINE void ahead_prefetch(kr_dtype_t type, const uint8_t *ahead, size_t b) {
    UNROLL for (unsigned i = 0; i < (block_bytes(type) + 63u) / 64u; i++) {
        _mm_prefetch((const void *)(ahead + b * block_bytes(type) + 64u * i), _MM_HINT_T0);
    }
}

/* Adds blocks [0, n_blocks) of the source to the sums of n tokens (a constant). */
INLINE void tile(kr_dtype_t type, bool from_panel, unsigned n, const source_t *s,
                 const uint8_t *act, size_t act_stride, float (*sums)[KRI_GROUP_ROWS]) {
    __m256 acc[2][TILE_TOKENS];
    UNROLL for (unsigned t = 0; t < n; t++) {
        acc[0][t] = _mm256_loadu_ps(sums[t]);
        acc[1][t] = _mm256_loadu_ps(sums[t] + 8);
    }
    for (size_t b = 0; b < s->n_blocks; b++) {
        const meeting_t m = {type,       from_panel, n, s, b, act + b * sizeof(kri_q8_block_t),
                             act_stride};
        block_step(&m, acc);
        if (!from_panel && s->ahead != NULL) ahead_prefetch(type, s->ahead, b);
    }
    UNROLL for (unsigned t = 0; t < n; t++) {
        _mm256_storeu_ps(sums[t], acc[0][t]);
        _mm256_storeu_ps(sums[t] + 8, acc[1][t]);
    }
}

typedef void tile_fn(const source_t *s, const uint8_t *act, size_t act_stride,
                     float (*sums)[KRI_GROUP_ROWS]);

/* All tokens of one part over one source. The first tile does the prefetch. */
INLINE void tiles_run(tile_fn *const tiles[TILE_SIZES], source_t *s, const uint8_t *act,
                      size_t act_stride, size_t n_tokens, sums_t *sums) {
    size_t t = 0;
    while (t < n_tokens) {
        const unsigned size = tile_size_find(n_tokens - t);
        tiles[size](s, act + t * act_stride, act_stride, sums->rows + t);
        s->ahead = NULL;
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
    const size_t distance = prefetch_distance(&layout);
    for (size_t g = 0; g < n_groups; g++) {
        const uint8_t *base = w + g * layout.group_bytes;
        source_t s = {.super = base + layout.super,
                      .scales = base + layout.scales,
                      .quants = base + layout.quants,
                      .ahead = g + 1 < n_groups || distance < layout.group_bytes
                                   ? base + distance
                                   : NULL,
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

#define TILE(name, type, from_panel, n)                                                          \
    static void name##_##n(const source_t *s, const uint8_t *act, size_t act_stride,             \
                           float (*sums)[KRI_GROUP_ROWS]) {                                      \
        tile(type, from_panel, n, s, act, act_stride, sums);                                     \
    }
#define TILES(name, type, from_panel)                                                            \
    TILE(name, type, from_panel, 1)                                                              \
    TILE(name, type, from_panel, 2)                                                              \
    TILE(name, type, from_panel, 4)

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
