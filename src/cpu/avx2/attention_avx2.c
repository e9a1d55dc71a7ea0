/* attention_avx2.c: attention over a paged KV cache with AVX2. Scores and weighted sums are small
 * matrix products on register tiles of up to six queries times 16 keys (or dimensions), or three
 * times 32, in f32 throughout: K is transposed and widened once per key block and tile, V is
 * widened on the fly for a few queries and once per block for many (the conversion is exact, so
 * both agree). Per (query, key) a score is one chain of fused multiply-adds over ascending
 * dimensions, per (query, dimension) an output is one chain over ascending keys: no tile size
 * changes a bit. */
#include "cpu/attn_tile.h"
#include "cpu/avx2/vmath_avx2.h"
#include "cpu/impl.h"

#define LANES 8u
#define QUERIES 6u      /* of a register tile of two vectors */
#define WIDE_QUERIES 3u /* of a register tile of four vectors */
#define VECTORS 4u
#define STEP 16u        /* keys or dimensions of two vectors; keys: a page */
#define VALUE_WIDTH (VECTORS * LANES)
#define BLOCK_VECTORS (KRI_ATTN_BLOCK / LANES)

KRI_INLINE __m256 load_elements(const uint8_t *at, size_t elem_bytes) {
    if (elem_bytes == sizeof(float)) {
        return _mm256_loadu_ps((const float *)(const void *)at);
    }
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)at));
}

/* Rows become columns; three rounds of two-operand shuffles, the least there can be. */
KRI_INLINE void transpose_8x8(__m256 x[LANES]) {
    __m256 y[LANES];
    KRI_UNROLL
    for (size_t i = 0; i < LANES; i += 2u) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1u]);
        y[i + 1u] = _mm256_unpackhi_ps(x[i], x[i + 1u]);
    }
    KRI_UNROLL
    for (size_t i = 0; i < LANES; i += 4u) {
        KRI_UNROLL
        for (size_t j = 0; j < 2u; j++) {
            const __m256d a = _mm256_castps_pd(y[i + j]);
            const __m256d b = _mm256_castps_pd(y[i + j + 2u]);
            x[i + 2u * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            x[i + 2u * j + 1u] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    }
    /* x[4g + j] holds columns j and j + 4 of rows 4g .. 4g + 3. */
    KRI_UNROLL
    for (size_t j = 0; j < 4u; j++) {
        y[j] = _mm256_permute2f128_ps(x[j], x[j + 4u], 0x20);
        y[j + 4u] = _mm256_permute2f128_ps(x[j], x[j + 4u], 0x31);
    }
    KRI_UNROLL
    for (size_t j = 0; j < LANES; j++) {
        x[j] = y[j];
    }
}

/* Keys of the pages in use -> tile->keys [page][head_dim][16]. */
KRI_INLINE void load_keys(const attn_tile_t *tile, attn_range_t keys, size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
        float *to = tile->keys + page * tile->head_dim * STEP;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            attn_prefetch_keys(tile, page, d, LANES);
            for (size_t half = 0; half < STEP; half += LANES) {
                __m256 x[LANES];
                KRI_UNROLL
                for (size_t j = 0; j < LANES; j++) {
                    x[j] = load_elements(from + (half + j) * row_bytes + d * elem_bytes,
                                         elem_bytes);
                }
                transpose_8x8(x);
                KRI_UNROLL
                for (size_t j = 0; j < LANES; j++) {
                    _mm256_store_ps(to + (d + j) * STEP + half, x[j]);
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
            _mm256_store_ps(to, load_elements(from + d * elem_bytes, elem_bytes));
        }
    }
}

/* ---- register tiles: always inlined with constant sizes ------------------------------------ */

/* sums[i][j] += x[i * x_stride] * y[j], the pairs of vectors of y y_stride elements apart. The
 * shorter side is kept in registers and the other one loaded in turn: of sixteen registers twelve
 * hold sums. */
KRI_INLINE void multiply_add(__m256 sums[QUERIES][VECTORS], const float *x, size_t x_stride,
                             const uint8_t *y, size_t y_stride, size_t elem_bytes,
                             const size_t n_q, const size_t n_v) {
    if (n_q < n_v) {
        __m256 held[WIDE_QUERIES];
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            held[i] = _mm256_broadcast_ss(x + i * x_stride);
        }
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const size_t at = j / 2u * y_stride + j % 2u * LANES;
            const __m256 v = load_elements(y + at * elem_bytes, elem_bytes);
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                sums[i][j] = _mm256_fmadd_ps(held[i], v, sums[i][j]);
            }
        }
        return;
    }
    __m256 held[2];
    KRI_UNROLL
    for (size_t j = 0; j < 2u; j++) {
        held[j] = load_elements(y + j * LANES * elem_bytes, elem_bytes);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const __m256 v = _mm256_broadcast_ss(x + i * x_stride);
        KRI_UNROLL
        for (size_t j = 0; j < 2u; j++) {
            sums[i][j] = _mm256_fmadd_ps(v, held[j], sums[i][j]);
        }
    }
}

/* scores[i][8 j ..] = q[i] . keys for n_q queries and n_v vectors of 8 keys. */
KRI_INLINE void score_tile(const attn_tile_t *tile, const float *q, const float *keys,
                           float *scores, const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const size_t next_step = KRI_PAGE_TOKENS * tile->elem_bytes;
    const uint8_t *next = tile->next_k[ATTN_PAGES / 2u];
    const uint8_t *next_last = tile->next_k[ATTN_PAGES / 2u + 1u];
    __m256 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm256_setzero_ps();
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
            _mm256_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, sums[i][j]);
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

/* acc[i][8 j ..] = acc * decay[i] + sum over keys of weight[i][key] * value[key][8 j ..]. */
KRI_INLINE void value_tile(const value_source_t *values, const float *weights, const float *decay,
                           float *acc, size_t head_dim, const size_t elem_bytes, const size_t n_q,
                           const size_t n_v) {
    __m256 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm256_mul_ps(_mm256_loadu_ps(acc + i * head_dim + j * LANES),
                                       _mm256_broadcast_ss(decay + i));
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
            _mm256_storeu_ps(acc + i * head_dim + j * LANES, sums[i][j]);
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
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#undef TILE

#define NARROW(name) {name##_1_2, name##_2_2, name##_3_2, name##_4_2, name##_5_2, name##_6_2}
#define WIDE(name) {name##_1_4, name##_2_4, name##_3_4}
static score_fn *const score_fns[QUERIES] = NARROW(score);
static score_fn *const score_wide_fns[WIDE_QUERIES] = WIDE(score);
static value_fn *const value_f32_fns[QUERIES] = NARROW(value_f32);
static value_fn *const value_f32_wide_fns[WIDE_QUERIES] = WIDE(value_f32);
static value_fn *const value_f16_fns[QUERIES] = NARROW(value_f16);
static value_fn *const value_f16_wide_fns[WIDE_QUERIES] = WIDE(value_f16);
#undef WIDE
#undef NARROW

/* ---- one run of one block ------------------------------------------------------------------ */

/* Up to three queries alone have too few sums of two vectors to hide the latency of an FMA, so
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
KRI_INLINE __m256 visible_lanes(attn_range_t keys, size_t j) {
    const size_t base = j * LANES;
    const size_t end = keys.end > base ? keys.end - base : 0;
    const size_t begin = keys.begin > base ? keys.begin - base : 0;
    return _mm256_castsi256_ps(_mm256_andnot_si256(lanes_below(begin), lanes_below(end)));
}

KRI_INLINE float horizontal_max(__m256 v) {
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

KRI_INLINE float horizontal_sum(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* Scale, soft cap and mask the scores; new maximum, and how much the old one loses against it. */
static void max_run(const attn_tile_t *tile, const attn_run_t *run) {
    const __m256 scale = _mm256_set1_ps(tile->args->scale);
    const float cap = tile->args->softcap;
    const __m256 caps = _mm256_set1_ps(cap);
    const __m256 inverse = _mm256_set1_ps(cap > 0.0f ? 1.0f / cap : 0.0f);
    __m256 visible[BLOCK_VECTORS];
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        visible[j] = visible_lanes(run->keys, j);
    }
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        __m256 largest = _mm256_set1_ps(-INFINITY);
        for (size_t j = 0; j < BLOCK_VECTORS; j++) {
            __m256 s = _mm256_mul_ps(_mm256_load_ps(scores + j * LANES), scale);
            if (cap > 0.0f) {
                s = _mm256_mul_ps(caps, vector_tanh(_mm256_mul_ps(s, inverse)));
            }
            s = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), s, visible[j]);
            largest = _mm256_max_ps(largest, s);
            _mm256_store_ps(scores + j * LANES, s);
        }
        const float old = tile->max[i];
        const float block = horizontal_max(largest);
        const float next = block > old ? block : old;
        tile->decay[i] = old - next;
        tile->max[i] = next;
    }
    size_t i = run->begin;
    for (; i + LANES <= run->end; i += LANES) {
        _mm256_storeu_ps(tile->decay + i, vector_exp_weight(_mm256_loadu_ps(tile->decay + i)));
    }
    if (i < run->end) {
        const __m256i lanes = lanes_below(run->end - i);
        const __m256 loss = _mm256_maskload_ps(tile->decay + i, lanes);
        _mm256_maskstore_ps(tile->decay + i, lanes, vector_exp_weight(loss));
    }
}

/* Scores -> weights, and the running sum of weights. */
static void weight_run(const attn_tile_t *tile, const attn_run_t *run) {
    for (size_t i = run->begin; i < run->end; i++) {
        float *scores = tile->scores + i * KRI_ATTN_BLOCK;
        const __m256 largest = _mm256_set1_ps(tile->max[i]);
        __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t j = 0; j < BLOCK_VECTORS; j += 2u) {
            KRI_UNROLL
            for (size_t odd = 0; odd < 2u; odd++) {
                float *at = scores + (j + odd) * LANES;
                const __m256 w = vector_exp_weight(_mm256_sub_ps(_mm256_load_ps(at), largest));
                sums[odd] = _mm256_add_ps(sums[odd], w);
                _mm256_store_ps(at, w);
            }
        }
        tile->sum[i] = tile->sum[i] * tile->decay[i] +
                       horizontal_sum(_mm256_add_ps(sums[0], sums[1]));
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
        const __m256 factor = _mm256_set1_ps(1.0f / tile->sum[i]);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m256 y = _mm256_load_ps(tile->acc + i * tile->head_dim + d);
            _mm256_storeu_ps(out + d, _mm256_mul_ps(y, factor));
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

void kri_attention_f32_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(float));
}

void kri_attention_f16_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t));
}
