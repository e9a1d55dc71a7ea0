/* attention_i8_avx512.c: attention over a paged KV cache of 8-bit integers with AVX-512 VNNI.
 * Nothing of a page is converted: it is laid out for 4-way byte dot products (kernels.h), four
 * dimensions of 16 keys to a vector for the scores, four keys of 16 dimensions for the weighted
 * sums. The other side, a query or a block's weights, has 15 bits and comes as two digits of 8:
 * first all products with the high digit, then, the sum shifted by 8, all with the low one, which
 * costs a second pass over a block that lies in the first-level cache and no registers. Sums are
 * exact integers until the end of a block, so that no tile size changes a bit, and a key that a row
 * does not see is a weight of 0. */
#include "cpu/avx512/attn_avx512.h"
#include "cpu/impl.h"

#define DIGITS 2u
#define DIGIT_BITS 8
#define FOURS 4u /* keys or dimensions in an integer of a vector */
#define QUADS (KRI_PAGE_TOKENS / FOURS)

KRI_INLINE __m512i broadcast_four(const uint8_t *at) {
    int32_t four;
    memcpy(&four, at, sizeof four);
    return _mm512_set1_epi32(four);
}

/* ---- loading a block: only its scales ------------------------------------------------------ */

static void load_scales(const attn_tile_t *tile, attn_range_t keys, size_t which, float *to) {
    const size_t offset = tile->args->scale_offset + which * KRI_PAGE_TOKENS * sizeof(uint16_t);
    for (size_t page = keys.begin / LANES; page * LANES < keys.end; page++) {
        const uint8_t *from = attn_page(tile, page, offset);
        const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)from);
        _mm512_store_ps(to + page * LANES, _mm512_cvtph_ps(half));
    }
}

static void load_keys(const attn_tile_t *tile, attn_range_t keys) {
    load_scales(tile, keys, 0, tile->key_scale);
}

static void load_values(const attn_tile_t *tile, attn_range_t keys) {
    load_scales(tile, keys, 1, tile->value_scale);
}

/* ---- register tiles: always inlined with constant sizes ------------------------------------ */

/* sums[i][j] += one digit of the queries times the keys of page j. */
KRI_INLINE void add_scores(__m512i sums[QUERIES][VECTORS], const uint8_t *const *keys,
                           const uint8_t *const *next, const uint8_t *q, size_t head_dim,
                           const size_t n_q, const size_t n_v) {
    for (size_t d = 0; d < head_dim; d += FOURS) {
        __m512i k[VECTORS];
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            k[j] = _mm512_loadu_si512(keys[j] + d * LANES);
            if (next != NULL) {
                __builtin_prefetch(next[j] + d * LANES, 0, 3);
            }
        }
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            const __m512i x = broadcast_four(q + i * DIGITS * head_dim + d);
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j++) {
                sums[i][j] = dot_add(sums[i][j], k[j], x, 8u);
            }
        }
    }
}

/* scores[i][16 j ..] = q[i] . keys for n_q queries from `query` on and n_v pages from `page` on. */
KRI_INLINE void score_tile(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                           const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const uint8_t *q = (const uint8_t *)tile->q + query * DIGITS * head_dim;
    const uint8_t *keys[VECTORS];
    __m512i sums[QUERIES][VECTORS];
    for (size_t j = 0; j < n_v; j++) {
        keys[j] = attn_page(tile, page + j, tile->args->k_offset);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_setzero_si512();
        }
    }
    add_scores(sums, keys, tile->next_k + page, q, head_dim, n_q, n_v);
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) { /* the bias of the keys is taken back */
        const __m512i start = _mm512_set1_epi32(-KRI_I8_KEY_BIAS * tile->q_sum[query + i]);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_add_epi32(_mm512_slli_epi32(sums[i][j], DIGIT_BITS), start);
        }
    }
    add_scores(sums, keys, NULL, q + head_dim, head_dim, n_q, n_v);
    __m512 key_scale[VECTORS];
    __mmask16 differs[VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < n_v; j++) {
        const __m512 scale = _mm512_load_ps(tile->key_scale + (page + j) * LANES);
        key_scale[j] = _mm512_abs_ps(scale);
        differs[j] = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_LT_OQ);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const __m512 scale = _mm512_set1_ps(tile->q_scale[query + i]);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][j]), key_scale[j]);
            s = _mm512_mul_ps(s, scale);
            const __m512 first = _mm512_broadcastss_ps(_mm512_castps512_ps128(s));
            s = _mm512_mask_add_ps(s, differs[j], s, first);
            _mm512_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, s);
        }
    }
}

/* Values of a block from one dimension on: the pages in use, and those of the next block. */
typedef struct value_source_s {
    const uint8_t *page[ATTN_PAGES], *next[ATTN_PAGES];
    size_t page_begin, page_end, quad_bytes; /* four keys of all dimensions */
} value_source_t;

/* sums[i][j] += one digit of the weights times 16 dimensions of the values. */
KRI_INLINE void add_values(__m512i sums[QUERIES][VECTORS], const value_source_t *values,
                           const uint8_t *weights, const int is_first, const size_t n_q,
                           const size_t n_v) {
    for (size_t page = values->page_begin; page < values->page_end; page++) {
        const uint8_t *from = values->page[page], *next = values->next[page];
        const uint8_t *w = weights + page * KRI_PAGE_TOKENS;
        for (size_t quad = 0; quad < QUADS; quad++) {
            __m512i v[VECTORS];
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j++) {
                v[j] = _mm512_loadu_si512(from + j * FOURS * LANES);
                if (is_first) {
                    __builtin_prefetch(next + j * FOURS * LANES, 0, 3);
                }
            }
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const __m512i x =
                    broadcast_four(w + i * KRI_ATTN_BLOCK * sizeof(float) + quad * FOURS);
                KRI_UNROLL
                for (size_t j = 0; j < n_v; j++) {
                    sums[i][j] = dot_add(sums[i][j], x, v[j], 8u);
                }
            }
            from += values->quad_bytes;
            next += values->quad_bytes;
        }
    }
}

/* acc[i][16 j ..] = acc * decay[i] + unit[i] * sum over keys of weight[i][key] * value. */
KRI_INLINE void value_tile(const attn_tile_t *tile, const value_source_t *values, size_t query,
                           const uint8_t *weights, size_t d, const size_t n_q, const size_t n_v) {
    __m512i sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_setzero_si512();
        }
    }
    add_values(sums, values, weights, 1, n_q, n_v);
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_slli_epi32(sums[i][j], DIGIT_BITS);
        }
    }
    add_values(sums, values, weights + KRI_ATTN_BLOCK, 0, n_q, n_v);
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        float *acc = tile->acc + (query + i) * tile->head_dim + d;
        const __m512 decay = _mm512_set1_ps(tile->decay[query + i]);
        const __m512 unit = _mm512_set1_ps(tile->weight_unit[query + i]);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const __m512 old = _mm512_mul_ps(_mm512_load_ps(acc + j * LANES), decay);
            _mm512_store_ps(acc + j * LANES,
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i][j]), unit, old));
        }
    }
}

/* One function per tile size, and tables of them by [queries - 1][vectors - 1]. */
typedef void score_fn(const attn_tile_t *tile, size_t query, size_t page, float *scores);
typedef void value_fn(const attn_tile_t *tile, const value_source_t *values, size_t query,
                      const uint8_t *weights, size_t d);

#define TILE(q_, v_)                                                                             \
    static void score_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t page,            \
                                  float *scores) {                                               \
        score_tile(tile, query, page, scores, q_, v_);                                           \
    }                                                                                            \
    static void value_##q_##_##v_(const attn_tile_t *tile, const value_source_t *values,         \
                                  size_t query, const uint8_t *weights, size_t d) {              \
        value_tile(tile, values, query, weights, d, q_, v_);                                     \
    }
#define TILES(q_) TILE(q_, 1) TILE(q_, 2) TILE(q_, 3) TILE(q_, 4)
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#undef TILES
#undef TILE

#define ROW(name, q_) {name##_##q_##_1, name##_##q_##_2, name##_##q_##_3, name##_##q_##_4}
#define TABLE(name)                                                                              \
    {ROW(name, 1), ROW(name, 2), ROW(name, 3), ROW(name, 4), ROW(name, 5), ROW(name, 6)}
static score_fn *const score_fns[QUERIES][VECTORS] = TABLE(score);
static value_fn *const value_fns[QUERIES][VECTORS] = TABLE(value);
#undef TABLE
#undef ROW

/* ---- one group of queries and one block ---------------------------------------------------- */

static void score_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    const size_t first = keys.begin / LANES;
    const size_t n_v = (keys.end + LANES - 1u) / LANES - first;
    for (size_t i = begin; i < end; i += QUERIES) {
        const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
        score_fns[n_q - 1u][n_v - 1u](
            tile, i, first, tile->scores + (i - begin) * KRI_ATTN_BLOCK + first * LANES);
    }
}

/* Weights of one query times the scales of their values; the largest of each lane as bits. */
KRI_INLINE __m512 scale_weights(const attn_tile_t *tile, float *weights) {
    __m512 largest = _mm512_setzero_ps();
    KRI_UNROLL
    for (size_t j = 0; j < VECTORS; j++) {
        const __m512 w = _mm512_load_ps(weights + j * LANES);
        const __mmask16 used = _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512 scale = _mm512_load_ps(tile->value_scale + j * LANES);
        const __m512 scaled = _mm512_maskz_mul_ps(used, w, scale);
        largest = combine(largest, scaled, REDUCE_MAX_BITS);
        _mm512_store_ps(weights + j * LANES, scaled);
    }
    return largest;
}

/* Weights of one query -> their digits in place: 64 high ones, 64 low ones. */
KRI_INLINE void split_weights(float *weights, float inverse) {
    const __m512 factor = _mm512_set1_ps(inverse);
    uint8_t *to = (uint8_t *)weights;
    __m512i w[VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < VECTORS; j++) {
        const __m512 y = _mm512_mul_ps(_mm512_load_ps(weights + j * LANES), factor);
        w[j] = _mm512_cvtps_epi32(y);
    }
    KRI_UNROLL
    for (size_t j = 0; j < VECTORS; j++) {
        __m128i *high = (__m128i *)(void *)(to + j * LANES);
        const __m512i shifted = _mm512_srli_epi32(w[j], DIGIT_BITS);
        _mm_store_si128(high, _mm512_cvtepi32_epi8(shifted));
        _mm_store_si128(high + KRI_ATTN_BLOCK / LANES, _mm512_cvtepi32_epi8(w[j]));
    }
}

/* Up to 16 queries: scores -> digits of weights, their unit, max, sum, decay. */
static void weight_queries(const attn_tile_t *tile, size_t begin, size_t n, float *scores,
                           attn_range_t keys, int is_ragged) {
    const int is_plain = tile->args->softcap <= 0.0f && !is_ragged &&
                         keys.end - keys.begin == KRI_ATTN_BLOCK;
    const __mmask16 lanes = lanes_below(n);
    __m512 parts[LANES], most[LANES];
    for (size_t j = 0; j < LANES; j++) {
        const size_t row = (begin + j) / tile->args->n_heads;
        float *at = scores + j * KRI_ATTN_BLOCK;
        parts[j] = most[j] = _mm512_setzero_ps();
        if (j < n) {
            parts[j] = is_plain ? largest_lanes(at)
                                : cap_and_mask(tile, is_ragged ? attn_keys(tile, row, row + 1u)
                                                               : keys, at);
        }
    }
    const __m512 old = _mm512_maskz_loadu_ps(lanes, tile->max + begin);
    const __m512 next = _mm512_max_ps(reduce_16(parts, REDUCE_MAX), old);
    const __m512 decay = vector_exp2_weight(_mm512_sub_ps(old, next));
    _mm512_mask_storeu_ps(tile->max + begin, lanes, next);
    _mm512_mask_storeu_ps(tile->decay + begin, lanes, decay);
    for (size_t j = 0; j < n; j++) {
        parts[j] = weigh(scores + j * KRI_ATTN_BLOCK, tile->max[begin + j]);
        most[j] = scale_weights(tile, scores + j * KRI_ATTN_BLOCK);
    }
    const __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, tile->sum + begin), decay);
    _mm512_mask_storeu_ps(tile->sum + begin, lanes,
                          _mm512_add_ps(sum, reduce_16(parts, REDUCE_SUM)));
    const __m512 levels = _mm512_set1_ps(KRI_I8_WEIGHT_LEVELS);
    const __m512 largest = reduce_16(most, REDUCE_MAX_BITS);
    const __mmask16 used = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(1e-30f), _CMP_NLT_UQ);
    _Alignas(64) float inverse[LANES];
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(used, levels, largest));
    _mm512_mask_storeu_ps(tile->weight_unit + begin, lanes, _mm512_div_ps(largest, levels));
    for (size_t j = 0; j < n; j++) {
        split_weights(scores + j * KRI_ATTN_BLOCK, inverse[j]);
    }
}

/* Dimensions outside, queries inside, so that 64 dimensions of the block's values stay in the
 * first-level cache. */
static void value_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    value_source_t values = {.quad_bytes = tile->head_dim * FOURS,
                             .page_begin = keys.begin / LANES,
                             .page_end = (keys.end + LANES - 1u) / LANES};
    for (size_t d = 0; d < tile->head_dim; d += VALUE_WIDTH) {
        const size_t left = (tile->head_dim - d) / LANES;
        const size_t n_v = left < VECTORS ? left : VECTORS;
        for (size_t page = values.page_begin; page < values.page_end; page++) {
            values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * FOURS;
            values.next[page] = tile->next_v[page] + d * FOURS;
        }
        for (size_t i = begin; i < end; i += QUERIES) {
            const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
            const float *weights = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
            value_fns[n_q - 1u][n_v - 1u](tile, &values, i, (const uint8_t *)weights, d);
        }
    }
}

static void attend_group(const attn_tile_t *tile, size_t begin, size_t end) {
    int is_ragged;
    const attn_range_t keys = attn_group_keys(tile, begin, end, &is_ragged);
    score_group(tile, begin, end, keys);
    for (size_t i = begin; i < end; i += LANES) {
        weight_queries(tile, i, end - i < LANES ? end - i : LANES,
                       tile->scores + (i - begin) * KRI_ATTN_BLOCK, keys, is_ragged);
    }
    value_group(tile, begin, end, keys);
}

#include "cpu/attn_walk.h"

/* Queries as integers: their digits [high | low][head_dim], low ones in -128..127. */
static void load_queries(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    int8_t *digits = (int8_t *)(void *)tile->q;
    for (size_t i = 0; i < tile->n_queries; i++, digits += DIGITS * tile->head_dim) {
        const float *x = attn_query(tile->args, i);
        __m512i most = _mm512_setzero_si512(), sum = _mm512_setzero_si512();
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m512 v = _mm512_abs_ps(_mm512_loadu_ps(x + d));
            most = _mm512_max_epi32(most, _mm512_castps_si512(v));
        }
        const int32_t bits = _mm512_reduce_max_epi32(most);
        float amax;
        memcpy(&amax, &bits, sizeof amax);
        const int is_used = amax <= FLT_MAX && amax >= 1e-30f;
        const __m512 inverse = _mm512_set1_ps(is_used ? KRI_I8_QUERY_LEVELS / amax : 0.0f);
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(x + d), inverse);
            const __m512i q = is_used ? _mm512_cvtps_epi32(y) : _mm512_setzero_si512();
            const __m512i high =
                _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), DIGIT_BITS);
            sum = _mm512_add_epi32(sum, q);
            _mm_storeu_si128((__m128i *)(void *)(digits + d), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128((__m128i *)(void *)(digits + tile->head_dim + d),
                             _mm512_cvtepi32_epi8(q));
        }
        tile->q_sum[i] = _mm512_reduce_add_epi32(sum);
        tile->q_scale[i] = !(amax <= FLT_MAX) ? NAN
                           : is_used          ? factor * (amax / KRI_I8_QUERY_LEVELS)
                                              : 0.0f;
    }
}

void kri_attention_i8_avx512(const kri_attn_args_t *args) {
    attn_tile_t tile;
    attn_tile_init(&tile, args, 1u, 16u, VALUE_WIDTH);
    tile.from_scratch = 1; /* the scales of the values */
    if (args->stage != KRI_ATTN_MERGE) {
        load_queries(&tile);
    }
    attend_tile(&tile);
}
