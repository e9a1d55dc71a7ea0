/* attention_avx2.c: attention over a paged KV cache with AVX2. Scores and weighted sums are small
 * matrix products on register tiles of up to six queries times 16 keys (or dimensions), or three
 * times 32: K is transposed and widened (or quantised) once per key block and tile, V is
 * widened on the fly for a few queries and once per block for many (the conversion is exact, so
 * both agree). Per (query, key) a score is one chain of fused multiply-adds over ascending
 * dimensions or an exact integer, per (query, dimension) an output is one chain over ascending
 * keys: no tile size changes a bit. */
#include "cpu/avx2/attn_avx2.h"
#include "cpu/impl.h"

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

/* ---- loading a block ----------------------------------------------------------------------- */

/* Keys of a page -> tile->keys [page][head_dim][16]. */
KRI_INLINE void load_page(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    float *to = tile->keys + page * tile->head_dim * STEP;
    for (size_t d = 0; d < tile->head_dim; d += LANES) {
        attn_prefetch_keys(tile, page, d, LANES);
        for (size_t half = 0; half < STEP; half += LANES) {
            __m256 x[LANES];
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                x[j] = load_elements(from + (half + j) * row_bytes + d * elem_bytes, elem_bytes);
            }
            transpose_8x8(x);
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                _mm256_store_ps(to + (d + j) * STEP + half, x[j]);
            }
        }
    }
}

/* Inverse scales of 8 keys of a page, and their scales to tile->key_scale. */
KRI_INLINE void scale_keys(const attn_tile_t *tile, size_t key, const uint8_t *from,
                           const size_t elem_bytes, float *inverse) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most[LANES];
    for (size_t j = 0; j < LANES; j++) {
        most[j] = _mm256_setzero_ps();
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const uint8_t *at = from + (j * tile->head_dim + d) * elem_bytes;
            const __m256 x = _mm256_and_ps(load_elements(at, elem_bytes), magnitude);
            most[j] = combine(most[j], x, REDUCE_MAX_BITS);
        }
    }
    const __m256 amax = reduce_8(most, REDUCE_MAX_BITS);
    const __m256 finite = _mm256_cmp_ps(amax, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ);
    const __m256 used =
        _mm256_and_ps(_mm256_cmp_ps(amax, _mm256_set1_ps(1e-30f), _CMP_GE_OQ), finite);
    const __m256 levels =
        _mm256_set1_ps(kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim));
    const __m256 scale = _mm256_and_ps(_mm256_div_ps(amax, levels), used);
    _mm256_store_ps(inverse, _mm256_and_ps(_mm256_div_ps(levels, amax), used));
    _mm256_store_ps(tile->key_scale + key,
                    _mm256_blendv_ps(_mm256_set1_ps(NAN), scale, finite));
}

/* Keys of a page, quantised -> tile->keys [page][head_dim / 2][16 keys][2 x 16 bits], also for
 * qk8: a 16-bit multiply-add is exact and takes two dimensions at once; the 8-bit one saturates or
 * needs the signs moved for every product. */
KRI_INLINE void load_page_integers(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    static const uint8_t pair_of[LANES] = {0, 1, 4, 5, 2, 3, 6, 7}; /* packing works by halves */
    const size_t row_bytes = tile->head_dim * elem_bytes;
    float *to = tile->keys + page * tile->head_dim / 2u * STEP;
    for (size_t half = 0; half < STEP; half += LANES) {
        const uint8_t *from = attn_page(tile, page, tile->args->k_offset) + half * row_bytes;
        _Alignas(32) float inverse[LANES];
        scale_keys(tile, page * STEP + half, from, elem_bytes, inverse);
        for (size_t d = 0; d < tile->head_dim; d += STEP) {
            attn_prefetch_keys(tile, page, d + half, LANES);
            __m256 x[LANES];
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                const uint8_t *at = from + j * row_bytes + d * elem_bytes;
                const __m256 factor = _mm256_broadcast_ss(inverse + j);
                const __m256 low = _mm256_mul_ps(load_elements(at, elem_bytes), factor);
                const __m256 high =
                    _mm256_mul_ps(load_elements(at + LANES * elem_bytes, elem_bytes), factor);
                x[j] = _mm256_castsi256_ps(
                    _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high)));
            }
            transpose_8x8(x);
            KRI_UNROLL
            for (size_t j = 0; j < LANES; j++) {
                _mm256_store_ps(to + (d / 2u + pair_of[j]) * STEP + half, x[j]);
            }
        }
    }
}

static void load_keys(const attn_tile_t *tile, attn_range_t keys) {
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        if (tile->qk_bits != 0 && tile->elem_bytes == sizeof(float)) {
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

/* Values of the pages in use -> tile->values [head_dim / 32][64 keys][32]. */
static void load_values(const attn_tile_t *tile, attn_range_t keys) {
    const size_t elem_bytes = tile->elem_bytes, row_bytes = tile->head_dim * elem_bytes;
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

/* scores[i][8 j ..] = q[i] . keys for n_q queries from `query` on and n_v vectors of 8 keys from
 * page `page` on. */
KRI_INLINE void score_tile(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                           const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const float *q = tile->q + query * head_dim, *keys = tile->keys + page * head_dim * STEP;
    __m256 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm256_setzero_ps();
        }
    }
    for (size_t d = 0; d < head_dim; d++) {
        attn_prefetch_late(tile, d);
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

/* The same in integers. */
KRI_INLINE void score_tile_int(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                               const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim, page_floats = head_dim / 2u * STEP;
    const int16_t *q = (const int16_t *)(const void *)tile->q + query * head_dim;
    const float *keys = tile->keys + page * page_floats;
    __m256i sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm256_setzero_si256();
        }
    }
    for (size_t d = 0; d < head_dim; d += 2u, keys += STEP) {
        attn_prefetch_late(tile, d);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j += 2u) { /* two vectors are held, queries come in turn */
            const __m256i *at = (const __m256i *)(const void *)(keys + j / 2u * page_floats);
            const __m256i k0 = _mm256_load_si256(at), k1 = _mm256_load_si256(at + 1);
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const __m256i x = broadcast_pair(q + i * head_dim + d);
                sums[i][j] = dot_2_add(sums[i][j], k0, x);
                sums[i][j + 1u] = dot_2_add(sums[i][j + 1u], k1, x);
            }
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const __m256 scale = _mm256_broadcast_ss(tile->q_scale + query + i);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const __m256 key_scale = _mm256_load_ps(tile->key_scale + page * STEP + j * LANES);
            const __m256 s = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][j]), key_scale);
            _mm256_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, _mm256_mul_ps(s, scale));
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
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#undef TILE

#define NARROW(name) {name##_1_2, name##_2_2, name##_3_2, name##_4_2, name##_5_2, name##_6_2}
#define WIDE(name) {name##_1_4, name##_2_4, name##_3_4}
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

/* Up to three queries alone have too few sums of two vectors to hide the latency of an FMA, so
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
            fn(tile, i, page, tile->scores + (i - begin) * KRI_ATTN_BLOCK + page * STEP);
        }
        page += is_wide ? 2u : 1u;
    }
}

static void weight_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys,
                         int is_ragged) {
    const int is_plain = tile->args->softcap <= 0.0f && !is_ragged &&
                         keys.end - keys.begin == KRI_ATTN_BLOCK;
    for (size_t i = begin; i < end; i += LANES) {
        const size_t n = end - i < LANES ? end - i : LANES;
        const __m256i lanes = lanes_below(n);
        float *scores = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
        __m256 parts[LANES];
        for (size_t j = 0; j < n; j++, scores += KRI_ATTN_BLOCK) {
            if (is_plain) {
                parts[j] = largest_lanes(scores);
                continue;
            }
            const size_t row = (i + j) / tile->args->n_heads;
            parts[j] = cap_and_mask(tile, is_ragged ? attn_keys(tile, row, row + 1u) : keys,
                                    scores);
        }
        for (size_t j = n; j < LANES; j++) {
            parts[j] = _mm256_setzero_ps();
        }
        const __m256 old = _mm256_maskload_ps(tile->max + i, lanes);
        const __m256 next = _mm256_max_ps(reduce_8(parts, REDUCE_MAX), old);
        const __m256 decay = vector_exp2_weight(_mm256_sub_ps(old, next));
        _mm256_maskstore_ps(tile->max + i, lanes, next);
        _mm256_maskstore_ps(tile->decay + i, lanes, decay);
        scores = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
        for (size_t j = 0; j < n; j++, scores += KRI_ATTN_BLOCK) {
            parts[j] = weigh(scores, tile->max[i + j]);
        }
        const __m256 sum = _mm256_mul_ps(_mm256_maskload_ps(tile->sum + i, lanes), decay);
        _mm256_maskstore_ps(tile->sum + i, lanes, _mm256_add_ps(sum, reduce_8(parts, REDUCE_SUM)));
    }
}

static void decay_rows(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        const __m256 decay = _mm256_set1_ps(tile->decay[i]);
        float *acc = tile->acc + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            _mm256_store_ps(acc + d, _mm256_mul_ps(_mm256_load_ps(acc + d), decay));
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

#include "cpu/attn_group.h"
#include "cpu/attn_walk.h"

static void load_queries_integers(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    const float levels = kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim);
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
    tile.from_scratch = tile.n_queries > QUERIES;
    if (qk_bits != 0) {
        load_queries_integers(&tile);
    } else {
        attn_load_queries(&tile);
    }
    attend_tile(&tile);
}

void kri_attention_f32_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 0);
}

void kri_attention_f16_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 0);
}

void kri_attention_f32_qk8_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 8);
}

void kri_attention_f16_qk8_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 8);
}

void kri_attention_f32_qk16_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 16);
}

void kri_attention_f16_qk16_avx2(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 16);
}
