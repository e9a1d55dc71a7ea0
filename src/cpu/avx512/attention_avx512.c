/* attention_avx512.c: attention over a paged KV cache with AVX-512. Scores and weighted sums are
 * small matrix products on register tiles of up to six queries times 64 keys (or 64 dimensions),
 * in f32 throughout: K is transposed and widened once per key block and tile, V is widened on the
 * fly for a few queries and once per block for many (the conversion is exact, so both agree).
 * Per (query, key) a score is one chain of fused multiply-adds over ascending dimensions, per
 * (query, dimension) an output is one chain over ascending keys: no tile size changes a bit. */
#include "cpu/attn_tile.h"
#include "cpu/avx512/vmath_avx512.h"
#include "cpu/impl.h"

#define LANES 16u
#define QUERIES 6u /* of a register tile */
#define VECTORS 4u /* of a register tile: 64 keys or 64 dimensions */
#define VALUE_WIDTH (VECTORS * LANES)

KRI_INLINE __m512 load_half(const uint8_t *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)at));
}

KRI_INLINE __m512 load_elements(const uint8_t *at, size_t elem_bytes) {
    return elem_bytes == 2u ? load_half(at) : _mm512_loadu_ps(at);
}

/* Rows become columns; four rounds of two-operand shuffles, the least there can be. */
KRI_INLINE void transpose_16x16(__m512 x[LANES]) {
    __m512 y[LANES];
    KRI_UNROLL
    for (size_t i = 0; i < LANES; i += 2u) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1u]);
        y[i + 1u] = _mm512_unpackhi_ps(x[i], x[i + 1u]);
    }
    KRI_UNROLL
    for (size_t i = 0; i < LANES; i += 4u) {
        KRI_UNROLL
        for (size_t j = 0; j < 2u; j++) {
            const __m512d a = _mm512_castps_pd(y[i + j]);
            const __m512d b = _mm512_castps_pd(y[i + j + 2u]);
            x[i + 2u * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            x[i + 2u * j + 1u] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    /* x[4g + j] holds column j (+4, +8, +12 by 128-bit part) of rows 4g .. 4g + 3. */
    KRI_UNROLL
    for (size_t j = 0; j < 4u; j++) {
        y[j] = _mm512_shuffle_f32x4(x[j], x[j + 4u], 0x88);
        y[j + 4u] = _mm512_shuffle_f32x4(x[j], x[j + 4u], 0xDD);
        y[j + 8u] = _mm512_shuffle_f32x4(x[j + 8u], x[j + 12u], 0x88);
        y[j + 12u] = _mm512_shuffle_f32x4(x[j + 8u], x[j + 12u], 0xDD);
    }
    KRI_UNROLL
    for (size_t j = 0; j < 4u; j++) {
        x[j] = _mm512_shuffle_f32x4(y[j], y[j + 8u], 0x88);
        x[j + 8u] = _mm512_shuffle_f32x4(y[j], y[j + 8u], 0xDD);
        x[j + 4u] = _mm512_shuffle_f32x4(y[j + 4u], y[j + 12u], 0x88);
        x[j + 12u] = _mm512_shuffle_f32x4(y[j + 4u], y[j + 12u], 0xDD);
    }
}

/* Keys of the pages in use -> tile->keys [head_dim][64]. */
KRI_INLINE void load_keys(const attn_tile_t *tile, attn_range_t keys, size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    for (size_t page = keys.begin / LANES; page * LANES < keys.end; page++) {
        const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            attn_prefetch_keys(tile, page, d, LANES);
            __m512 x[LANES];
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                x[j] = load_elements(from + j * row_bytes + d * elem_bytes, elem_bytes);
            }
            transpose_16x16(x);
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                _mm512_store_ps(tile->keys + (d + j) * KRI_ATTN_BLOCK + page * LANES, x[j]);
            }
        }
    }
}

/* Values of the pages in use -> tile->values [head_dim / 64][64 keys][64]. */
static void load_values(const attn_tile_t *tile, attn_range_t keys, size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    for (size_t key = keys.begin / LANES * LANES; key < keys.end; key++) {
        const size_t page = key / LANES;
        const uint8_t *from = attn_page(tile, page, tile->args->v_offset) + key % LANES * row_bytes;
        attn_prefetch(tile->next_v[page] + key % LANES * row_bytes, row_bytes);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            float *to = tile->values + d / VALUE_WIDTH * (KRI_ATTN_BLOCK * VALUE_WIDTH) +
                        key * VALUE_WIDTH + d % VALUE_WIDTH;
            _mm512_store_ps(to, load_elements(from + d * elem_bytes, elem_bytes));
        }
    }
}

/* ---- register tiles: always inlined with constant sizes ------------------------------------ */

/* scores[i][16 j ..] = q[i] . keys for n_q queries and n_v vectors of 16 keys. */
KRI_INLINE void score_tile(const attn_tile_t *tile, const float *q, const float *keys,
                           float *scores, const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const size_t next_step = KRI_PAGE_TOKENS * tile->elem_bytes;
    const uint8_t *next = tile->next_k[ATTN_PAGES / 2u];
    const uint8_t *next_last = tile->next_k[ATTN_PAGES / 2u + 1u];
    __m512 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_setzero_ps();
        }
    }
    for (size_t d = 0; d < head_dim; d++) {
        __builtin_prefetch(next + d * next_step);
        __builtin_prefetch(next_last + d * next_step);
        __m512 k[VECTORS];
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            k[j] = _mm512_load_ps(keys + d * KRI_ATTN_BLOCK + j * LANES);
        }
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            const __m512 x = _mm512_set1_ps(q[i * head_dim + d]);
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j++) {
                sums[i][j] = _mm512_fmadd_ps(x, k[j], sums[i][j]);
            }
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            _mm512_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, sums[i][j]);
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

/* acc[i][16 j ..] = acc * decay[i] + sum over keys of weight[i][key] * value[key][16 j ..]. */
KRI_INLINE void value_tile(const value_source_t *values, const float *weights, const float *decay,
                           float *acc, size_t head_dim, const size_t elem_bytes, const size_t n_q,
                           const size_t n_v) {
    __m512 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_mul_ps(_mm512_loadu_ps(acc + i * head_dim + j * LANES),
                                       _mm512_set1_ps(decay[i]));
        }
    }
    size_t key = values->keys.begin;
    while (key < values->keys.end) {
        const uint8_t *from = values->page[key / LANES] + key % LANES * values->row_bytes;
        const uint8_t *next = values->next[key / LANES] + key % LANES * values->row_bytes;
        const size_t page_end = (key / LANES + 1u) * LANES;
        const size_t end = page_end < values->keys.end ? page_end : values->keys.end;
        for (; key < end; key++, from += values->row_bytes, next += values->row_bytes) {
            attn_prefetch(next, n_v * LANES * elem_bytes);
            __m512 v[VECTORS];
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j++) {
                v[j] = load_elements(from + j * LANES * elem_bytes, elem_bytes);
            }
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const __m512 w = _mm512_set1_ps(weights[i * KRI_ATTN_BLOCK + key]);
                KRI_UNROLL
                for (size_t j = 0; j < n_v; j++) {
                    sums[i][j] = _mm512_fmadd_ps(w, v[j], sums[i][j]);
                }
            }
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            _mm512_storeu_ps(acc + i * head_dim + j * LANES, sums[i][j]);
        }
    }
}

/* One function per tile size, and tables of them by [queries - 1][vectors - 1]. */
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
#define TILES(q_) TILE(q_, 1) TILE(q_, 2) TILE(q_, 3) TILE(q_, 4)
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#undef TILES
#undef TILE

#define ROW(name, q_) {name##_##q_##_1, name##_##q_##_2, name##_##q_##_3, name##_##q_##_4}
#define TABLE(name)                                                                              \
    {ROW(name, 1), ROW(name, 2), ROW(name, 3), ROW(name, 4), ROW(name, 5), ROW(name, 6)}
static score_fn *const score_fns[QUERIES][VECTORS] = TABLE(score);
static value_fn *const value_f32_fns[QUERIES][VECTORS] = TABLE(value_f32);
static value_fn *const value_f16_fns[QUERIES][VECTORS] = TABLE(value_f16);
#undef TABLE
#undef ROW

/* ---- one run of one block ------------------------------------------------------------------ */

static void score_run(const attn_tile_t *tile, const attn_run_t *run) {
    const size_t first = run->keys.begin / LANES;
    const size_t n_v = (run->keys.end + LANES - 1u) / LANES - first;
    for (size_t i = run->begin; i < run->end; i += QUERIES) {
        const size_t n_q = run->end - i < QUERIES ? run->end - i : QUERIES;
        score_fns[n_q - 1u][n_v - 1u](tile, tile->q + i * tile->head_dim,
                                      tile->keys + first * LANES,
                                      tile->scores + i * KRI_ATTN_BLOCK + first * LANES);
    }
}

/* Lanes of vector j of the block that lie in the range. */
KRI_INLINE __mmask16 visible_lanes(attn_range_t keys, size_t j) {
    const size_t base = j * LANES;
    const size_t end = keys.end > base ? keys.end - base : 0;
    const size_t begin = keys.begin > base ? keys.begin - base : 0;
    return (__mmask16)(lanes_below(end) & ~lanes_below(begin));
}

/* Scale, soft cap and mask the scores; new maximum, and how much the old one loses against it. */
static void max_run(const attn_tile_t *tile, const attn_run_t *run) {
    const __m512 scale = _mm512_set1_ps(tile->args->scale);
    const float cap = tile->args->softcap;
    const __m512 caps = _mm512_set1_ps(cap);
    const __m512 inverse = _mm512_set1_ps(cap > 0.0f ? 1.0f / cap : 0.0f);
    __mmask16 visible[VECTORS];
    for (size_t j = 0; j < VECTORS; j++) {
        visible[j] = visible_lanes(run->keys, j);
    }
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        __m512 largest = _mm512_set1_ps(-INFINITY);
        KRI_UNROLL
        for (size_t j = 0; j < VECTORS; j++) {
            __m512 s = _mm512_mul_ps(_mm512_maskz_load_ps(visible[j], scores + j * LANES), scale);
            if (cap > 0.0f) {
                s = _mm512_mul_ps(caps, vector_tanh(_mm512_mul_ps(s, inverse)));
            }
            s = _mm512_mask_blend_ps(visible[j], _mm512_set1_ps(-INFINITY), s);
            largest = _mm512_max_ps(largest, s);
            _mm512_store_ps(scores + j * LANES, s);
        }
        const float old = tile->max[i];
        const float block = _mm512_reduce_max_ps(largest);
        const float next = block > old ? block : old;
        tile->decay[i] = old - next;
        tile->max[i] = next;
    }
    for (size_t i = run->begin; i < run->end; i += LANES) {
        const __mmask16 lanes = lanes_below(run->end - i);
        const __m512 loss = _mm512_maskz_loadu_ps(lanes, tile->decay + i);
        _mm512_mask_storeu_ps(tile->decay + i, lanes, vector_exp_weight(loss));
    }
}

/* Scores -> weights, and the running sum of weights. */
static void weight_run(const attn_tile_t *tile, const attn_run_t *run) {
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        const __m512 largest = _mm512_set1_ps(tile->max[i]);
        __m512 w[VECTORS];
        KRI_UNROLL
        for (size_t j = 0; j < VECTORS; j++) {
            w[j] = vector_exp_weight(_mm512_sub_ps(_mm512_load_ps(scores + j * LANES), largest));
            _mm512_store_ps(scores + j * LANES, w[j]);
        }
        const __m512 sums = _mm512_add_ps(_mm512_add_ps(w[0], w[1]), _mm512_add_ps(w[2], w[3]));
        tile->sum[i] = tile->sum[i] * tile->decay[i] + _mm512_reduce_add_ps(sums);
    }
}

/* from_scratch: values were converted by load_values. Dimensions outside, queries inside, so that
 * 64 dimensions of the block's values stay in the first-level cache. */
static void value_run(const attn_tile_t *tile, const attn_run_t *run, int from_scratch) {
    const size_t elem_bytes = from_scratch ? sizeof(float) : tile->elem_bytes;
    const size_t row_bytes = (from_scratch ? VALUE_WIDTH : tile->head_dim) * elem_bytes;
    value_fn *const(*fns)[VECTORS] = elem_bytes == sizeof(float) ? value_f32_fns : value_f16_fns;
    value_source_t values = {.row_bytes = row_bytes, .keys = run->keys};
    for (size_t d = 0; d < tile->head_dim; d += VALUE_WIDTH) {
        const size_t left = (tile->head_dim - d) / LANES;
        const size_t n_v = left < VECTORS ? left : VECTORS;
        for (size_t page = run->keys.begin / LANES; page * LANES < run->keys.end; page++) {
            if (from_scratch) {
                values.page[page] = (const uint8_t *)(tile->values + d * KRI_ATTN_BLOCK) +
                                    page * LANES * row_bytes;
                values.next[page] = values.page[page];
            } else {
                values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * elem_bytes;
                values.next[page] = tile->next_v[page] + d * elem_bytes;
            }
        }
        for (size_t i = run->begin; i < run->end; i += QUERIES) {
            const size_t n_q = run->end - i < QUERIES ? run->end - i : QUERIES;
            fns[n_q - 1u][n_v - 1u](&values, tile->scores + i * KRI_ATTN_BLOCK, tile->decay + i,
                                    tile->acc + i * tile->head_dim + d, tile->head_dim);
        }
    }
}

/* ---- the whole tile ------------------------------------------------------------------------ */

static void write_rows(const attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    for (size_t i = 0; i < tile->n_queries; i++) {
        const size_t row = i / args->n_heads;
        float *out = args->out + row * args->out_stride + i % args->n_heads * tile->head_dim;
        const __m512 factor = _mm512_set1_ps(1.0f / tile->sum[i]);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m512 y = _mm512_load_ps(tile->acc + i * tile->head_dim + d);
            _mm512_storeu_ps(out + d, _mm512_mul_ps(y, factor));
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

void kri_attention_f32_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(float));
}

void kri_attention_f16_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t));
}
