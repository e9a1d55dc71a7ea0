/* attention_neon.c: attention over a paged KV cache with NEON. Scores and weighted sums are small
 * matrix products on register tiles of up to six queries times 16 keys (or dimensions), or three
 * times 32, in f32 throughout: 24 of the 32 registers hold sums. K is transposed and widened once
 * per key block and tile, V is widened on the fly for a few queries and once per block for many
 * (the conversion is exact, so both agree). Per (query, key) a score is one chain of fused
 * multiply-adds over ascending dimensions, per (query, dimension) an output is one chain over
 * ascending keys: no tile size changes a bit. */
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

/* Keys of the pages in use -> tile->keys [page][head_dim][16]. */
KRI_INLINE void load_keys(const attn_tile_t *tile, attn_range_t keys, size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
        float *to = tile->keys + page * tile->head_dim * STEP;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            attn_prefetch_keys(tile, page, d, LANES);
            KRI_UNROLL
            for (size_t part = 0; part < STEP; part += LANES) {
                float32x4_t x[LANES];
                KRI_UNROLL
                for (size_t j = 0; j < LANES; j++) {
                    x[j] = load_elements(from + (part + j) * row_bytes + d * elem_bytes,
                                         elem_bytes);
                }
                transpose_4x4(x);
                KRI_UNROLL
                for (size_t j = 0; j < LANES; j++) {
                    vst1q_f32(to + (d + j) * STEP + part, x[j]);
                }
            }
        }
    }
}

/* Values of the pages in use -> tile->values [head_dim / 32][64 keys][32]. */
static void load_values(const attn_tile_t *tile, attn_range_t keys, size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
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

/* scores[i][4 j ..] = q[i] . keys for n_q queries and n_v vectors of 4 keys. */
KRI_INLINE void score_tile(const attn_tile_t *tile, const float *q, const float *keys,
                           float *scores, const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const size_t next_step = KRI_PAGE_TOKENS * tile->elem_bytes;
    const uint8_t *next = tile->next_k[ATTN_PAGES / 2u];
    const uint8_t *next_last = tile->next_k[ATTN_PAGES / 2u + 1u];
    float32x4_t sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = vdupq_n_f32(0.0f);
        }
    }
    for (size_t d = 0; d < head_dim; d++) {
        __builtin_prefetch(next + d * next_step);
        __builtin_prefetch(next_last + d * next_step);
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
typedef void score_fn(const attn_tile_t *tile, const float *q, const float *keys, float *scores);
typedef void value_fn(const value_source_t *values, const float *weights, const float *decay,
                      float *acc, size_t head_dim);

#define TILE(q_, v_)                                                                             \
    static void score_##q_##_##v_(const attn_tile_t *tile, const float *q, const float *keys,    \
                                  float *scores) {                                               \
        score_tile(tile, q, keys, scores, q_, v_);                                               \
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
static value_fn *const value_f32_fns[QUERIES] = NARROW(value_f32);
static value_fn *const value_f32_wide_fns[WIDE_QUERIES] = WIDE(value_f32);
static value_fn *const value_f16_fns[QUERIES] = NARROW(value_f16);
static value_fn *const value_f16_wide_fns[WIDE_QUERIES] = WIDE(value_f16);
#undef WIDE
#undef NARROW

/* ---- one run of one block ------------------------------------------------------------------ */

/* Up to three queries alone have too few sums of four vectors to hide the latency of an FMA, so
 * they take two pages at a time. */
static void score_run(const attn_tile_t *tile, const attn_run_t *run) {
    const size_t page_end = (run->keys.end + STEP - 1u) / STEP;
    for (size_t page = run->keys.begin / STEP; page < page_end;) {
        const float *keys = tile->keys + page * tile->head_dim * STEP;
        const int wide = run->end - run->begin <= WIDE_QUERIES && page + 2u <= page_end;
        for (size_t i = run->begin; i < run->end; i += QUERIES) {
            const size_t n_q = run->end - i < QUERIES ? run->end - i : QUERIES;
            score_fn *fn = wide ? score_wide_fns[n_q - 1u] : score_fns[n_q - 1u];
            fn(tile, tile->q + i * tile->head_dim, keys,
               tile->scores + i * KRI_ATTN_BLOCK + page * STEP);
        }
        page += wide ? 2u : 1u;
    }
}

/* All bits set in the lanes of vector j of the block that lie in the range. */
KRI_INLINE uint32x4_t visible_lanes(attn_range_t keys, size_t j) {
    static const uint32_t first[LANES] = {0, 1, 2, 3};
    const uint32x4_t lane = vaddq_u32(vld1q_u32(first), vdupq_n_u32((uint32_t)(j * LANES)));
    return vandq_u32(vcgeq_u32(lane, vdupq_n_u32((uint32_t)keys.begin)),
                     vcltq_u32(lane, vdupq_n_u32((uint32_t)keys.end)));
}

/* Scale, soft cap and mask the scores; new maximum, and how much the old one loses against it. */
static void max_run(const attn_tile_t *tile, const attn_run_t *run) {
    const float cap = tile->args->softcap;
    const float inverse = cap > 0.0f ? 1.0f / cap : 0.0f;
    const float32x4_t lowest = vdupq_n_f32(-INFINITY);
    uint32x4_t visible[BLOCK_VECTORS];
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        visible[j] = visible_lanes(run->keys, j);
    }
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        float32x4_t largest = lowest;
        for (size_t j = 0; j < BLOCK_VECTORS; j++) {
            float32x4_t s = vmulq_n_f32(vld1q_f32(scores + j * LANES), tile->args->scale);
            if (cap > 0.0f) {
                s = vmulq_n_f32(vector_tanh(vmulq_n_f32(s, inverse)), cap);
            }
            s = vbslq_f32(visible[j], s, lowest);
            largest = vmaxq_f32(largest, s);
            vst1q_f32(scores + j * LANES, s);
        }
        const float old = tile->max[i];
        const float block = vmaxvq_f32(largest);
        const float next = block > old ? block : old;
        tile->decay[i] = old - next;
        tile->max[i] = next;
    }
    for (size_t i = run->begin; i < run->end; i += LANES) {
        const size_t n = run->end - i;
        store_up_to(tile->decay + i, n, vector_exp_weight(load_up_to(tile->decay + i, n)));
    }
}

/* Scores -> weights, and the running sum of weights. */
static void weight_run(const attn_tile_t *tile, const attn_run_t *run) {
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        const float32x4_t largest = vdupq_n_f32(tile->max[i]);
        float32x4_t sums[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
        for (size_t j = 0; j < BLOCK_VECTORS; j += 2u) {
            KRI_UNROLL
            for (size_t odd = 0; odd < 2u; odd++) {
                float *at = scores + (j + odd) * LANES;
                const float32x4_t w = vector_exp_weight(vsubq_f32(vld1q_f32(at), largest));
                sums[odd] = vaddq_f32(sums[odd], w);
                vst1q_f32(at, w);
            }
        }
        tile->sum[i] = tile->sum[i] * tile->decay[i] + vaddvq_f32(vaddq_f32(sums[0], sums[1]));
    }
}

/* The values of one run for the dimensions from d on, narrow or wide. */
static void value_dims(const attn_tile_t *tile, const attn_run_t *run, int from_scratch, size_t d,
                       value_fn *const *fns) {
    const size_t elem_bytes = from_scratch ? sizeof(float) : tile->elem_bytes;
    const float *chunk = tile->values + d / VALUE_WIDTH * (KRI_ATTN_BLOCK * VALUE_WIDTH) +
                         d % VALUE_WIDTH;
    value_source_t values = {.keys = run->keys};
    values.row_bytes = (from_scratch ? VALUE_WIDTH : tile->head_dim) * elem_bytes;
    for (size_t page = run->keys.begin / STEP; page * STEP < run->keys.end; page++) {
        if (from_scratch) {
            values.page[page] = (const uint8_t *)(chunk + page * STEP * VALUE_WIDTH);
            values.next[page] = values.page[page];
        } else {
            values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * elem_bytes;
            values.next[page] = tile->next_v[page] + d * elem_bytes;
        }
    }
    for (size_t i = run->begin; i < run->end; i += QUERIES) {
        const size_t n_q = run->end - i < QUERIES ? run->end - i : QUERIES;
        fns[n_q - 1u](&values, tile->scores + i * KRI_ATTN_BLOCK, tile->decay + i,
                      tile->acc + i * tile->head_dim + d, tile->head_dim);
    }
}

/* from_scratch: values were converted by load_values. Dimensions outside, queries inside, so that
 * one column of the block's values stays in the first-level cache. */
static void value_run(const attn_tile_t *tile, const attn_run_t *run, int from_scratch) {
    const int is_f32 = from_scratch || tile->elem_bytes == sizeof(float);
    const int few = run->end - run->begin <= WIDE_QUERIES;
    for (size_t d = 0; d < tile->head_dim;) {
        if (few && d + VALUE_WIDTH <= tile->head_dim) {
            value_dims(tile, run, from_scratch, d,
                       is_f32 ? value_f32_wide_fns : value_f16_wide_fns);
            d += VALUE_WIDTH;
        } else {
            value_dims(tile, run, from_scratch, d, is_f32 ? value_f32_fns : value_f16_fns);
            d += STEP;
        }
    }
}

/* ---- the whole tile ------------------------------------------------------------------------ */

static void write_rows(const attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    for (size_t i = 0; i < tile->n_queries; i++) {
        const size_t row = i / args->n_heads;
        float *out = args->out + row * args->out_stride + i % args->n_heads * tile->head_dim;
        const float factor = 1.0f / tile->sum[i];
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const float32x4_t y = vld1q_f32(tile->acc + i * tile->head_dim + d);
            vst1q_f32(out + d, vmulq_n_f32(y, factor));
        }
    }
}

KRI_INLINE void attention(const kri_attn_args_t *args, const size_t elem_bytes) {
    attn_tile_t tile;
    attn_tile_init(&tile, args, elem_bytes, VALUE_WIDTH);
    /* One pass of a register tile reads the values once: converting them first pays from two. */
    const int from_scratch = tile.n_queries > QUERIES;
    const size_t n_keys = (size_t)args->pos_begin + args->n_rows;
    size_t block = attn_first_key(args, 0) / KRI_ATTN_BLOCK * KRI_ATTN_BLOCK;
    for (; block < n_keys; block += KRI_ATTN_BLOCK) {
        attn_block_begin(&tile, block);
        const attn_range_t keys = attn_keys(&tile, 0, args->n_rows);
        load_keys(&tile, keys, elem_bytes);
        if (from_scratch) {
            load_values(&tile, keys, elem_bytes);
        }
        attn_run_t run;
        size_t row = 0;
        while (attn_next_run(&tile, &row, &run)) {
            score_run(&tile, &run);
            max_run(&tile, &run);
            weight_run(&tile, &run);
            value_run(&tile, &run, from_scratch);
        }
    }
    write_rows(&tile);
}

void kri_attention_f32_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(float));
}

void kri_attention_f16_neon(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t));
}
