/* attention_neon.c: attention over a paged KV cache with NEON. Scores and weighted sums are small
 * matrix products on register tiles of up to six queries times 16 keys (or dimensions), or three
 * times 32: 24 of the 32 registers hold sums. K is transposed and widened (or quantised) once
 * per key block and tile, V is widened on the fly for a few queries and once per block for many
 * (the conversion is exact, so both agree). Per (query, key) a score is one chain of fused
 * multiply-adds over ascending dimensions or an exact integer, per (query, dimension) an output is
 * one chain over ascending keys: no tile size changes a bit. */
#include "cpu/attn_tile.h"
#include "cpu/impl.h"
#include "cpu/neon/vmath_neon.h"

#define LANES 4u
#define QUERIES 6u      /* of a register tile of four vectors */
#define WIDE_QUERIES 3u /* of a register tile of eight vectors */
#define VECTORS 8u
#define STEP 16u        /* keys or dimensions of four vectors; keys: a page */
#define STEP_VECTORS (STEP / LANES)
#define VALUE_WIDTH (VECTORS * LANES)
#define BLOCK_VECTORS (KRI_ATTN_BLOCK / LANES)

KRI_INLINE float32x4_t load_elements(const uint8_t *at, size_t elem_bytes) {
    if (elem_bytes == sizeof(float)) {
        return vld1q_f32((const float *)(const void *)at);
    }
    return vcvt_f32_f16(vld1_f16((const void *)at));
}

/* Rows become columns: two rounds of two-operand shuffles. */
KRI_INLINE void transpose_4x4(float32x4_t x[LANES]) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(x[0], x[1]));
    const float64x2_t b = vreinterpretq_f64_f32(vtrn2q_f32(x[0], x[1]));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn1q_f32(x[2], x[3]));
    const float64x2_t d = vreinterpretq_f64_f32(vtrn2q_f32(x[2], x[3]));
    x[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c));
    x[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    x[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c));
    x[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}

/* ---- loading a block ----------------------------------------------------------------------- */

/* Keys of a page -> tile->keys [page][head_dim][16]. */
KRI_INLINE void load_page(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    float *to = tile->keys + page * tile->head_dim * STEP;
    for (size_t d = 0; d < tile->head_dim; d += LANES) {
        attn_prefetch_keys(tile, page, d, LANES);
        KRI_UNROLL
        for (size_t part = 0; part < STEP; part += LANES) {
            float32x4_t x[LANES];
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                x[j] = load_elements(from + (part + j) * row_bytes + d * elem_bytes, elem_bytes);
            }
            transpose_4x4(x);
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                vst1q_f32(to + (d + j) * STEP + part, x[j]);
            }
        }
    }
}

/* Inverse scale of a key; its scale to *scale. */
KRI_INLINE float scale_key(const attn_tile_t *tile, const uint8_t *from, const size_t elem_bytes,
                           float *scale) {
    const float levels = kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim);
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t d = 0; d < tile->head_dim; d += LANES) {
        const float32x4_t x = load_elements(from + d * elem_bytes, elem_bytes);
        most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(x)));
    }
    const uint32_t bits = vmaxvq_u32(most);
    float amax;
    memcpy(&amax, &bits, sizeof amax);
    *scale = NAN;
    if (!(amax <= FLT_MAX)) return 0.0f;
    *scale = 0.0f;
    if (amax < 1e-30f) return 0.0f;
    *scale = amax / levels;
    return levels / amax;
}

/* Keys of a page, quantised -> tile->keys as int16_t [page][head_dim][16], also for qk8: a widening
 * 16-bit multiply-add is exact; bytes would need pairs of them folded between the products. */
KRI_INLINE void load_page_integers(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    int16_t *to = (int16_t *)(void *)tile->keys + page * tile->head_dim * STEP;
    float inverse[STEP];
    for (size_t j = 0; j < STEP; j++) {
        inverse[j] = scale_key(tile, from + j * row_bytes, elem_bytes,
                               tile->key_scale + page * STEP + j);
    }
    for (size_t d = 0; d < tile->head_dim; d += LANES) {
        attn_prefetch_keys(tile, page, d, LANES);
        for (size_t part = 0; part < STEP; part += LANES) {
            float32x4_t x[LANES];
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                const uint8_t *at = from + (part + j) * row_bytes + d * elem_bytes;
                const float32x4_t y = vmulq_n_f32(load_elements(at, elem_bytes), inverse[part + j]);
                x[j] = vreinterpretq_f32_s32(vcvtnq_s32_f32(y));
            }
            transpose_4x4(x);
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                vst1_s16(to + (d + j) * STEP + part, vmovn_s32(vreinterpretq_s32_f32(x[j])));
            }
        }
    }
}

/* Keys of a page of 8-bit integers -> the same. Four dimensions of a key lie side by side, which
 * is what a load of four interleaved vectors takes apart. */
KRI_INLINE void load_page_i8(const attn_tile_t *tile, size_t page) {
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    const uint8_t *scales = attn_page(tile, page, tile->args->scale_offset);
    int16_t *to = (int16_t *)(void *)tile->keys + page * tile->head_dim * STEP;
    const int16x8_t bias = vdupq_n_s16(KRI_I8_KEY_BIAS);
    for (size_t j = 0; j < STEP; j += LANES) {
        vst1q_f32(tile->key_scale + page * STEP + j,
                  vcvt_f32_f16(vld1_f16((const void *)(scales + j * sizeof(uint16_t)))));
    }
    for (size_t d = 0; d < tile->head_dim; d += 4u, from += 4u * STEP) {
        attn_prefetch_keys(tile, page, d, 4u);
        const uint8x16x4_t k = vld4q_u8(from);
        KRI_UNROLL
        for (size_t j = 0; j < 4u; j++, to += STEP) {
            const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(k.val[j])));
            const int16x8_t high = vreinterpretq_s16_u16(vmovl_high_u8(k.val[j]));
            vst1q_s16(to, vsubq_s16(low, bias));
            vst1q_s16(to + 8, vsubq_s16(high, bias));
        }
    }
}

static void load_keys(const attn_tile_t *tile, attn_range_t keys) {
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        if (tile->elem_bytes == 1u) {
            load_page_i8(tile, page);
        } else if (tile->qk_bits != 0 && tile->elem_bytes == sizeof(float)) {
            load_page_integers(tile, page, sizeof(float));
        } else if (tile->qk_bits != 0) {
            load_page_integers(tile, page, sizeof(uint16_t));
        } else if (tile->elem_bytes == sizeof(float)) {
            load_page(tile, page, sizeof(float));
        } else {
            load_page(tile, page, sizeof(uint16_t));
        }
    }
}

/* Values of a page of 8-bit integers -> the same as load_values. */
static void load_values_i8(const attn_tile_t *tile, size_t page) {
    const uint8_t *from = attn_page(tile, page, tile->args->v_offset);
    const uint8_t *scales = attn_page(tile, page, tile->args->scale_offset) +
                            KRI_PAGE_TOKENS * sizeof(uint16_t);
    for (size_t key = 0; key < STEP; key += 4u, scales += 4u * sizeof(uint16_t)) {
        const float32x4_t scale = vcvt_f32_f16(vld1_f16((const void *)scales));
        float each[4];
        vst1q_f32(each, scale);
        attn_prefetch(tile->next_v[page] + key * tile->head_dim, 4u * tile->head_dim);
        for (size_t d = 0; d < tile->head_dim; d += 16u, from += 64u) {
            const int8x16x4_t v = vld4q_s8((const int8_t *)(const void *)from);
            float *to = tile->values + d / VALUE_WIDTH * (KRI_ATTN_BLOCK * VALUE_WIDTH) +
                        (page * STEP + key) * VALUE_WIDTH + d % VALUE_WIDTH;
            KRI_UNROLL
            for (size_t j = 0; j < 4u; j++, to += VALUE_WIDTH) {
                const int16x8_t low = vmovl_s8(vget_low_s8(v.val[j]));
                const int16x8_t high = vmovl_high_s8(v.val[j]);
                vst1q_f32(to, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), each[j]));
                vst1q_f32(to + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(low)), each[j]));
                vst1q_f32(to + 8, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                                              each[j]));
                vst1q_f32(to + 12, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(high)), each[j]));
            }
        }
    }
}

/* Values of the pages in use -> tile->values [head_dim / 32][64 keys][32]. */
static void load_values(const attn_tile_t *tile, attn_range_t keys) {
    if (tile->elem_bytes == 1u) {
        for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
            load_values_i8(tile, page);
        }
        return;
    }
    const size_t elem_bytes = tile->elem_bytes, row_bytes = tile->head_dim * elem_bytes;
    for (size_t key = keys.begin / STEP * STEP; key < keys.end; key++) {
        const size_t page = key / STEP;
        const uint8_t *from = attn_page(tile, page, tile->args->v_offset) + key % STEP * row_bytes;
        attn_prefetch(tile->next_v[page] + key % STEP * row_bytes, row_bytes);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            float *to = tile->values + d / VALUE_WIDTH * (KRI_ATTN_BLOCK * VALUE_WIDTH) +
                        key * VALUE_WIDTH + d % VALUE_WIDTH;
            vst1q_f32(to, load_elements(from + d * elem_bytes, elem_bytes));
        }
    }
}

/* ---- register tiles: always inlined with constant sizes ------------------------------------ */

/* sums[i][j] += x[i * x_stride] * y[j], the steps of four vectors of y y_stride elements apart.
 * The shorter side is kept in registers and the other one loaded in turn. */
KRI_INLINE void multiply_add(float32x4_t sums[QUERIES][VECTORS], const float *x, size_t x_stride,
                             const uint8_t *y, size_t y_stride, size_t elem_bytes,
                             const size_t n_q, const size_t n_v) {
    if (n_q < n_v / 2u) {
        float held[WIDE_QUERIES];
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            held[i] = x[i * x_stride];
        }
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const size_t at = j / STEP_VECTORS * y_stride + j % STEP_VECTORS * LANES;
            const float32x4_t v = load_elements(y + at * elem_bytes, elem_bytes);
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                sums[i][j] = vfmaq_n_f32(sums[i][j], v, held[i]);
            }
        }
        return;
    }
    float32x4_t held[STEP_VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < STEP_VECTORS; j++) {
        held[j] = load_elements(y + j * LANES * elem_bytes, elem_bytes);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const float weight = x[i * x_stride];
        KRI_UNROLL
        for (size_t j = 0; j < STEP_VECTORS; j++) {
            sums[i][j] = vfmaq_n_f32(sums[i][j], held[j], weight);
        }
    }
}

/* scores[i][4 j ..] = q[i] . keys for n_q queries from `query` on and n_v vectors of 4 keys from
 * page `page` on. */
KRI_INLINE void score_tile(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                           const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const float *q = tile->q + query * head_dim, *keys = tile->keys + page * head_dim * STEP;
    float32x4_t sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = vdupq_n_f32(0.0f);
        }
    }
    for (size_t d = 0; d < head_dim; d++) {
        multiply_add(sums, q + d, head_dim, (const uint8_t *)(keys + d * STEP), head_dim * STEP,
                     sizeof(float), n_q, n_v);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            vst1q_f32(scores + i * KRI_ATTN_BLOCK + j * LANES, sums[i][j]);
        }
    }
}

/* The same in integers. */
KRI_INLINE void score_tile_int(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                               const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const int16_t *q = (const int16_t *)(const void *)tile->q + query * head_dim;
    const int16_t *keys = (const int16_t *)(const void *)tile->keys + page * head_dim * STEP;
    int32x4_t sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = vdupq_n_s32(0);
        }
    }
    for (size_t d = 0; d < head_dim; d++, keys += STEP) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j += 2u) { /* two vectors at a time, all queries for each */
            const int16x8_t k = vld1q_s16(keys + j / STEP_VECTORS * head_dim * STEP +
                                          j % STEP_VECTORS * LANES);
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const int16_t x = q[i * head_dim + d];
                sums[i][j] = vmlal_n_s16(sums[i][j], vget_low_s16(k), x);
                sums[i][j + 1u] = vmlal_high_n_s16(sums[i][j + 1u], k, x);
            }
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const float scale = tile->q_scale[query + i];
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const float *at = tile->key_scale + page * STEP + j * LANES;
            const float32x4_t key_scale = vabsq_f32(vld1q_f32(at)); /* a sign: add_first_scores */
            const float32x4_t s = vmulq_f32(vcvtq_f32_s32(sums[i][j]), key_scale);
            vst1q_f32(scores + i * KRI_ATTN_BLOCK + j * LANES, vmulq_n_f32(s, scale));
        }
    }
}

/* Where a product over values reads: row of key k at page[k / 16] + k % 16 * row_bytes. */
typedef struct value_source_s {
    const uint8_t *page[ATTN_PAGES];
    const uint8_t *next[ATTN_PAGES]; /* the same of the next block, to prefetch */
    size_t row_bytes;
    attn_range_t keys;
} value_source_t;

/* acc[i][4 j ..] = acc * decay[i] + sum over keys of weight[i][key] * value[key][4 j ..]. */
KRI_INLINE void value_tile(const value_source_t *values, const float *weights, const float *decay,
                           float *acc, size_t head_dim, const size_t elem_bytes, const size_t n_q,
                           const size_t n_v) {
    float32x4_t sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = vmulq_n_f32(vld1q_f32(acc + i * head_dim + j * LANES), decay[i]);
        }
    }
    size_t key = values->keys.begin;
    while (key < values->keys.end) {
        const uint8_t *from = values->page[key / STEP] + key % STEP * values->row_bytes;
        const uint8_t *next = values->next[key / STEP] + key % STEP * values->row_bytes;
        const size_t page_end = (key / STEP + 1u) * STEP;
        const size_t end = page_end < values->keys.end ? page_end : values->keys.end;
        for (; key < end; key++, from += values->row_bytes, next += values->row_bytes) {
            attn_prefetch(next, n_v * LANES * elem_bytes);
            multiply_add(sums, weights + key, KRI_ATTN_BLOCK, from, STEP, elem_bytes, n_q, n_v);
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            vst1q_f32(acc + i * head_dim + j * LANES, sums[i][j]);
        }
    }
}

/* One function per tile size, and tables of them by [queries - 1]. */
typedef void score_fn(const attn_tile_t *tile, size_t query, size_t page, float *scores);
typedef void value_fn(const value_source_t *values, const float *weights, const float *decay,
                      float *acc, size_t head_dim);

#define TILE(q_, v_)                                                                             \
    static void score_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t page,            \
                                  float *scores) {                                               \
        score_tile(tile, query, page, scores, q_, v_);                                           \
    }                                                                                            \
    static void score_int_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t page,        \
                                      float *scores) {                                           \
        score_tile_int(tile, query, page, scores, q_, v_);                                       \
    }                                                                                            \
    static void value_f32_##q_##_##v_(const value_source_t *values, const float *weights,        \
                                      const float *decay, float *acc, size_t head_dim) {         \
        value_tile(values, weights, decay, acc, head_dim, sizeof(float), q_, v_);                \
    }                                                                                            \
    static void value_f16_##q_##_##v_(const value_source_t *values, const float *weights,        \
                                      const float *decay, float *acc, size_t head_dim) {         \
        value_tile(values, weights, decay, acc, head_dim, sizeof(uint16_t), q_, v_);             \
    }
TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
TILE(1, 8) TILE(2, 8) TILE(3, 8)
#undef TILE

#define NARROW(name) {name##_1_4, name##_2_4, name##_3_4, name##_4_4, name##_5_4, name##_6_4}
#define WIDE(name) {name##_1_8, name##_2_8, name##_3_8}
static score_fn *const score_fns[QUERIES] = NARROW(score);
static score_fn *const score_wide_fns[WIDE_QUERIES] = WIDE(score);
static score_fn *const score_int_fns[QUERIES] = NARROW(score_int);
static score_fn *const score_int_wide_fns[WIDE_QUERIES] = WIDE(score_int);
static value_fn *const value_f32_fns[QUERIES] = NARROW(value_f32);
static value_fn *const value_f32_wide_fns[WIDE_QUERIES] = WIDE(value_f32);
static value_fn *const value_f16_fns[QUERIES] = NARROW(value_f16);
static value_fn *const value_f16_wide_fns[WIDE_QUERIES] = WIDE(value_f16);
#undef WIDE
#undef NARROW

/* ---- one group of queries and one block ---------------------------------------------------- */

/* Scores of keys that hold their difference to the key of slot 0 of their page. */
static void add_first_scores(const attn_tile_t *tile, size_t page, float *scores, size_t n_q) {
    for (size_t i = 0; i < n_q; i++) {
        float *at = scores + i * KRI_ATTN_BLOCK;
        const float32x4_t first = vdupq_n_f32(at[0]);
        for (size_t j = 0; j < STEP; j += LANES) {
            const uint32x4_t differs = vcltzq_f32(vld1q_f32(tile->key_scale + page * STEP + j));
            const float32x4_t s = vld1q_f32(at + j);
            vst1q_f32(at + j, vbslq_f32(differs, vaddq_f32(s, first), s));
        }
    }
}

/* Up to three queries alone have too few sums of four vectors to hide the latency of an FMA, so
 * they take two pages at a time. */
static void score_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    const size_t page_end = (keys.end + STEP - 1u) / STEP;
    score_fn *const *narrow = tile->qk_bits != 0 ? score_int_fns : score_fns;
    score_fn *const *wide = tile->qk_bits != 0 ? score_int_wide_fns : score_wide_fns;
    for (size_t page = keys.begin / STEP; page < page_end;) {
        const int is_wide = end - begin <= WIDE_QUERIES && page + 2u <= page_end;
        for (size_t i = begin; i < end; i += QUERIES) {
            const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
            score_fn *fn = is_wide ? wide[n_q - 1u] : narrow[n_q - 1u];
            float *scores = tile->scores + (i - begin) * KRI_ATTN_BLOCK + page * STEP;
            fn(tile, i, page, scores);
            for (size_t p = 0; p <= (size_t)is_wide && tile->elem_bytes == 1u; p++) {
                add_first_scores(tile, page + p, scores + p * STEP, n_q);
            }
        }
        page += is_wide ? 2u : 1u;
    }
}

/* All bits set in the lanes of vector j of the block that lie in the range. */
KRI_INLINE uint32x4_t visible_lanes(attn_range_t keys, size_t j) {
    static const uint32_t first[LANES] = {0, 1, 2, 3};
    const uint32x4_t lane = vaddq_u32(vld1q_u32(first), vdupq_n_u32((uint32_t)(j * LANES)));
    return vandq_u32(vcgeq_u32(lane, vdupq_n_u32((uint32_t)keys.begin)),
                     vcltq_u32(lane, vdupq_n_u32((uint32_t)keys.end)));
}

/* Soft cap and mask the scores of one query; the largest. */
KRI_INLINE float cap_and_mask(const attn_tile_t *tile, attn_range_t keys, float *scores) {
    const float softcap = tile->args->softcap;
    const float inverse = softcap > 0.0f ? 1.0f / softcap : 0.0f;
    const float32x4_t lowest = vdupq_n_f32(-INFINITY);
    float32x4_t largest = lowest;
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        float32x4_t s = vld1q_f32(scores + j * LANES);
        if (softcap > 0.0f) {
            s = vmulq_n_f32(vector_tanh(vmulq_n_f32(s, inverse)), tile->cap);
        }
        s = vbslq_f32(visible_lanes(keys, j), s, lowest);
        largest = vmaxq_f32(largest, s);
        vst1q_f32(scores + j * LANES, s);
    }
    return vmaxvq_f32(largest);
}

/* The largest score of a query that sees the whole block. */
KRI_INLINE float largest_score(const float *scores) {
    float32x4_t s[2] = {vld1q_f32(scores), vld1q_f32(scores + LANES)};
    for (size_t j = 2; j < BLOCK_VECTORS; j += 2u) {
        s[0] = vmaxq_f32(s[0], vld1q_f32(scores + j * LANES));
        s[1] = vmaxq_f32(s[1], vld1q_f32(scores + (j + 1u) * LANES));
    }
    return vmaxvq_f32(vmaxq_f32(s[0], s[1]));
}

/* Scores -> weights of one query; their sum. */
KRI_INLINE float weigh(float *scores, float max) {
    const float32x4_t largest = vdupq_n_f32(max);
    float32x4_t sums[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
    for (size_t j = 0; j < BLOCK_VECTORS; j += 2u) {
        KRI_UNROLL
        for (size_t odd = 0; odd < 2u; odd++) {
            float *at = scores + (j + odd) * LANES;
            const float32x4_t w = vector_exp2_weight(vsubq_f32(vld1q_f32(at), largest));
            sums[odd] = vaddq_f32(sums[odd], w);
            vst1q_f32(at, w);
        }
    }
    return vaddvq_f32(vaddq_f32(sums[0], sums[1]));
}

/* x[i] = 2^x[i] for queries [begin, end). */
static void exp2_queries(float *x, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += LANES) {
        store_up_to(x + i, end - i, vector_exp2_weight(load_up_to(x + i, end - i)));
    }
}

static void weight_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys,
                         int is_ragged) {
    const int is_plain = tile->args->softcap <= 0.0f && !is_ragged &&
                         keys.end - keys.begin == KRI_ATTN_BLOCK;
    float *scores = tile->scores;
    for (size_t i = begin; i < end; i++, scores += KRI_ATTN_BLOCK) {
        const size_t row = i / tile->args->n_heads;
        const float block =
            is_plain ? largest_score(scores)
                     : cap_and_mask(tile, is_ragged ? attn_keys(tile, row, row + 1u) : keys,
                                    scores);
        const float old = tile->max[i], next = block > old ? block : old;
        tile->decay[i] = old - next;
        tile->max[i] = next;
    }
    exp2_queries(tile->decay, begin, end);
    scores = tile->scores;
    for (size_t i = begin; i < end; i++, scores += KRI_ATTN_BLOCK) {
        tile->sum[i] = tile->sum[i] * tile->decay[i] + weigh(scores, tile->max[i]);
    }
}

static void decay_rows(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        float *acc = tile->acc + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            vst1q_f32(acc + d, vmulq_n_f32(vld1q_f32(acc + d), tile->decay[i]));
        }
        tile->decay[i] = 1.0f;
    }
}

/* The dimensions from d on of value_group, narrow or wide. */
static void value_dims(const attn_tile_t *tile, size_t begin, size_t end, size_t first,
                       attn_range_t keys, size_t d, value_fn *const *fns) {
    const size_t elem_bytes = tile->from_scratch ? sizeof(float) : tile->elem_bytes;
    const float *chunk = tile->values + d / VALUE_WIDTH * (KRI_ATTN_BLOCK * VALUE_WIDTH) +
                         d % VALUE_WIDTH;
    value_source_t values = {.keys = keys};
    values.row_bytes = (tile->from_scratch ? VALUE_WIDTH : tile->head_dim) * elem_bytes;
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        if (tile->from_scratch) {
            values.page[page] = (const uint8_t *)(chunk + page * STEP * VALUE_WIDTH);
            values.next[page] = values.page[page];
        } else {
            values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * elem_bytes;
            values.next[page] = tile->next_v[page] + d * elem_bytes;
        }
    }
    for (size_t i = begin; i < end; i += QUERIES) {
        const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
        fns[n_q - 1u](&values, tile->scores + (i - first) * KRI_ATTN_BLOCK, tile->decay + i,
                      tile->acc + i * tile->head_dim + d, tile->head_dim);
    }
}

/* Dimensions outside, queries inside, so that one column of the block's values stays in the
 * first-level cache. */
static void value_group(const attn_tile_t *tile, size_t begin, size_t end, size_t first,
                        attn_range_t keys) {
    const int is_f32 = tile->from_scratch || tile->elem_bytes == sizeof(float);
    const int is_few = end - begin <= WIDE_QUERIES;
    for (size_t d = 0; d < tile->head_dim;) {
        if (is_few && d + VALUE_WIDTH <= tile->head_dim) {
            value_dims(tile, begin, end, first, keys, d,
                       is_f32 ? value_f32_wide_fns : value_f16_wide_fns);
            d += VALUE_WIDTH;
        } else {
            value_dims(tile, begin, end, first, keys, d, is_f32 ? value_f32_fns : value_f16_fns);
            d += STEP;
        }
    }
}

/* ---- spans and the whole tile -------------------------------------------------------------- */

static void merge_queries(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        const float old = tile->total_max[i], max = tile->max[i], next = max > old ? max : old;
        tile->total_decay[i] = old - next;
        tile->decay[i] = max - next;
        tile->total_max[i] = next;
    }
    exp2_queries(tile->total_decay, begin, end);
    exp2_queries(tile->decay, begin, end);
    for (size_t i = begin; i < end; i++) {
        const float old_decay = tile->total_decay[i], decay = tile->decay[i];
        float *total = tile->total + i * tile->head_dim, *acc = tile->acc + i * tile->head_dim;
        tile->total_sum[i] = tile->total_sum[i] * old_decay + tile->sum[i] * decay;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const float32x4_t y = vmulq_n_f32(vld1q_f32(acc + d), decay);
            vst1q_f32(total + d, vfmaq_n_f32(y, vld1q_f32(total + d), old_decay));
        }
    }
}

static void write_queries(const attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    for (size_t i = 0; i < tile->n_queries; i++) {
        const size_t row = i / args->n_heads;
        float *out = args->out + row * args->out_stride + i % args->n_heads * tile->head_dim;
        const float factor = 1.0f / tile->total_sum[i];
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const float32x4_t y = vld1q_f32(tile->total + i * tile->head_dim + d);
            vst1q_f32(out + d, vmulq_n_f32(y, factor));
        }
    }
}

#include "cpu/attn_group.h"
#include "cpu/attn_walk.h"

static void load_queries_integers(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    const float levels = tile->elem_bytes == 1u
                             ? KRI_I8_QUERY_LEVELS
                             : kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim);
    int16_t *q = (int16_t *)(void *)tile->q;
    for (size_t i = 0; i < tile->n_queries; i++) {
        tile->q_scale[i] = factor * attn_quantise(attn_query(tile->args, i), tile->head_dim,
                                                  levels, q + i * tile->head_dim,
                                                  &tile->q_sum[i]);
    }
}

static void attention(const kri_attn_args_t *args, size_t elem_bytes, uint32_t qk_bits) {
    attn_tile_t tile;
    attn_tile_init(&tile, args, elem_bytes, qk_bits, VALUE_WIDTH);
    /* One pass of a register tile reads the values once: converting them first pays from two. */
    tile.from_scratch = tile.n_queries > QUERIES || elem_bytes == 1u;
    if (qk_bits != 0) {
        load_queries_integers(&tile);
    } else {
        attn_load_queries(&tile);
    }
    attend_tile(&tile);
}

void kri_attention_f32_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 0);
}

void kri_attention_f16_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 0);
}

void kri_attention_f32_qk8_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 8);
}

void kri_attention_f16_qk8_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 8);
}

void kri_attention_f32_qk16_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 16);
}

void kri_attention_f16_qk16_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 16);
}

void kri_attention_i8_neon(const kri_attn_args_t *args) {
    attention(args, 1u, 16);
}
