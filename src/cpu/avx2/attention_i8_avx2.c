/* attention_i8_avx2.c: attention over a paged KV cache of 8-bit integers with AVX2. Nothing of a
 * page is transposed or kept converted: it is laid out in fours (kernels.h), four dimensions of
 * eight keys to a vector for the scores, four keys of eight dimensions for the weighted sums. The
 * bytes are taken apart into 16-bit numbers in registers, even ones and odd ones, and multiplied by
 * the 15-bit integers of a query or of a block's weights, which are kept in the same order; the
 * multiplication of bytes would saturate. Sums are exact integers until the end of a block, so
 * that no tile size changes a bit, and a key that a row does not see is a weight of 0. */
#include "cpu/avx2/attn_avx2.h"
#include "cpu/impl.h"

#define FOURS 4u /* keys or dimensions in an integer of a vector */
#define QUADS (KRI_PAGE_TOKENS / FOURS)
#define VECTOR_BYTES 32u

/* ---- loading a block: only its scales ------------------------------------------------------ */

static void load_scales(const attn_tile_t *tile, attn_range_t keys, size_t which, float *to) {
    const size_t offset = tile->args->scale_offset + which * KRI_PAGE_TOKENS * sizeof(uint16_t);
    for (size_t page = keys.begin / STEP; page * STEP < keys.end; page++) {
        const __m128i *from = (const __m128i *)(const void *)attn_page(tile, page, offset);
        _mm256_store_ps(to + page * STEP, _mm256_cvtph_ps(_mm_loadu_si128(from)));
        _mm256_store_ps(to + page * STEP + LANES, _mm256_cvtph_ps(_mm_loadu_si128(from + 1)));
    }
}

static void load_keys(const attn_tile_t *tile, attn_range_t keys) {
    load_scales(tile, keys, 0, tile->key_scale);
}

static void load_values(const attn_tile_t *tile, attn_range_t keys) {
    load_scales(tile, keys, 1, tile->value_scale);
}

/* Four 16-bit numbers in the order 0, 2, 1, 3, as a vector of bytes is taken apart. */
KRI_INLINE __m128i order_fours(__m256i x) {
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(x, order), 0x08);
    return _mm256_castsi256_si128(packed);
}

/* ---- register tiles: always inlined with constant sizes ------------------------------------ */

/* sums[i][at .. at + 1] += fours of n_q queries (or weights) times two vectors of unsigned (or
 * signed) bytes. */
KRI_INLINE void add_fours(__m256i sums[QUERIES][VECTORS], size_t at, const uint8_t *bytes,
                          const int16_t *x, size_t x_stride, const int is_signed,
                          const size_t n_q) {
    KRI_UNROLL
    for (size_t j = 0; j < 2u; j++) {
        const void *from = bytes + j * VECTOR_BYTES;
        const __m256i v = _mm256_loadu_si256((const __m256i *)from);
        const __m256i even = is_signed ? _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8)
                                       : _mm256_and_si256(v, _mm256_set1_epi16(0xff));
        const __m256i odd = is_signed ? _mm256_srai_epi16(v, 8) : _mm256_srli_epi16(v, 8);
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            const int16_t *four = x + i * x_stride;
            sums[i][at + j] = dot_2_add(sums[i][at + j], even, broadcast_pair(four));
            sums[i][at + j] = dot_2_add(sums[i][at + j], odd, broadcast_pair(four + 2));
        }
    }
}

/* scores[i][8 j ..] = q[i] . keys for n_q queries from `query` on and n_v vectors of 8 keys from
 * page `page` on. */
KRI_INLINE void score_tile(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                           const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const int16_t *q = (const int16_t *)(const void *)tile->q + query * head_dim;
    const uint8_t *keys[VECTORS / 2u];
    __m256i sums[QUERIES][VECTORS];
    for (size_t p = 0; p < n_v / 2u; p++) {
        keys[p] = attn_page(tile, page + p, tile->args->k_offset);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) { /* the bias of the keys is taken back */
        const __m256i start = _mm256_set1_epi32(-KRI_I8_KEY_BIAS * tile->q_sum[query + i]);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = start;
        }
    }
    for (size_t d = 0; d < head_dim; d += FOURS) {
        KRI_UNROLL
        for (size_t p = 0; p < n_v / 2u; p++) {
            __builtin_prefetch(tile->next_k[page + p] + d * STEP, 0, 3);
            add_fours(sums, 2u * p, keys[p] + d * STEP, q + d, head_dim, 0, n_q);
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const __m256 scale = _mm256_broadcast_ss(tile->q_scale + query + i);
        __m256 first = _mm256_setzero_ps(); /* score of slot 0 */
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const __m256 signed_scale = _mm256_load_ps(tile->key_scale + page * STEP + j * LANES);
            const __m256 key_scale = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), signed_scale);
            const __m256 differs = _mm256_cmp_ps(signed_scale, _mm256_setzero_ps(), _CMP_LT_OQ);
            __m256 s = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][j]), key_scale);
            s = _mm256_mul_ps(s, scale);
            if (j % 2u == 0) {
                first = _mm256_broadcastss_ps(_mm256_castps256_ps128(s));
            }
            s = _mm256_blendv_ps(s, _mm256_add_ps(s, first), differs);
            _mm256_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, s);
        }
    }
}

/* Values of a block from one dimension on: the pages in use, and those of the next block. */
typedef struct value_source_s {
    const uint8_t *page[ATTN_PAGES], *next[ATTN_PAGES];
    size_t page_begin, page_end, quad_bytes; /* four keys of all dimensions */
} value_source_t;

/* acc[i][8 j ..] = acc * decay[i] + unit[i] * sum over keys of weight[i][key] * value. */
KRI_INLINE void value_tile(const attn_tile_t *tile, const value_source_t *values, size_t query,
                           const int16_t *weights, size_t d, const size_t n_q, const size_t n_v) {
    __m256i sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm256_setzero_si256();
        }
    }
    for (size_t page = values->page_begin; page < values->page_end; page++) {
        const uint8_t *from = values->page[page], *next = values->next[page];
        for (size_t quad = 0; quad < QUADS; quad++) {
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j += 2u) {
                __builtin_prefetch(next + j * VECTOR_BYTES, 0, 3);
                add_fours(sums, j, from + j * VECTOR_BYTES, weights + page * STEP + quad * FOURS,
                          2u * KRI_ATTN_BLOCK, 1, n_q);
            }
            from += values->quad_bytes;
            next += values->quad_bytes;
        }
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        float *acc = tile->acc + (query + i) * tile->head_dim + d;
        const __m256 decay = _mm256_broadcast_ss(tile->decay + query + i);
        const __m256 unit = _mm256_broadcast_ss(tile->weight_unit + query + i);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const __m256 old = _mm256_mul_ps(_mm256_load_ps(acc + j * LANES), decay);
            _mm256_store_ps(acc + j * LANES,
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i][j]), unit, old));
        }
    }
}

/* One function per tile size, and tables of them by [queries - 1]. */
typedef void score_fn(const attn_tile_t *tile, size_t query, size_t page, float *scores);
typedef void value_fn(const attn_tile_t *tile, const value_source_t *values, size_t query,
                      const int16_t *weights, size_t d);

#define TILE(q_, v_)                                                                             \
    static void score_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t page,            \
                                  float *scores) {                                               \
        score_tile(tile, query, page, scores, q_, v_);                                           \
    }                                                                                            \
    static void value_##q_##_##v_(const attn_tile_t *tile, const value_source_t *values,         \
                                  size_t query, const int16_t *weights, size_t d) {              \
        value_tile(tile, values, query, weights, d, q_, v_);                                     \
    }
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2)
TILE(1, 4) TILE(2, 4) TILE(3, 4)
#undef TILE

#define NARROW(name) {name##_1_2, name##_2_2, name##_3_2, name##_4_2, name##_5_2, name##_6_2}
#define WIDE(name) {name##_1_4, name##_2_4, name##_3_4}
static score_fn *const score_fns[QUERIES] = NARROW(score);
static score_fn *const score_wide_fns[WIDE_QUERIES] = WIDE(score);
static value_fn *const value_fns[QUERIES] = NARROW(value);
static value_fn *const value_wide_fns[WIDE_QUERIES] = WIDE(value);
#undef WIDE
#undef NARROW

/* ---- one group of queries and one block ---------------------------------------------------- */

/* Up to three queries alone have too few sums of two vectors to hide the latency of a sum, so they
 * take two pages at a time. */
static void score_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    const size_t page_end = (keys.end + STEP - 1u) / STEP;
    for (size_t page = keys.begin / STEP; page < page_end;) {
        const int is_wide = end - begin <= WIDE_QUERIES && page + 2u <= page_end;
        for (size_t i = begin; i < end; i += QUERIES) {
            const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
            score_fn *fn = is_wide ? score_wide_fns[n_q - 1u] : score_fns[n_q - 1u];
            fn(tile, i, page, tile->scores + (i - begin) * KRI_ATTN_BLOCK + page * STEP);
        }
        page += is_wide ? 2u : 1u;
    }
}

/* Weights of one query times the scales of their values; the largest of each lane as bits. */
KRI_INLINE __m256 scale_weights(const attn_tile_t *tile, float *weights) {
    __m256 largest = _mm256_setzero_ps();
    KRI_UNROLL
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        const __m256 w = _mm256_load_ps(weights + j * LANES);
        const __m256 used = _mm256_cmp_ps(w, _mm256_setzero_ps(), _CMP_NEQ_UQ);
        const __m256 scale = _mm256_load_ps(tile->value_scale + j * LANES);
        const __m256 scaled = _mm256_and_ps(_mm256_mul_ps(w, scale), used);
        largest = combine(largest, scaled, REDUCE_MAX_BITS);
        _mm256_store_ps(weights + j * LANES, scaled);
    }
    return largest;
}

/* Weights of one query -> 64 integers of 16 bits in place, those of four keys in the order of
 * order_fours. */
KRI_INLINE void round_weights(float *weights, float inverse) {
    const __m256 factor = _mm256_set1_ps(inverse);
    int16_t *to = (int16_t *)(void *)weights; /* stays behind what is read */
    for (size_t j = 0; j < BLOCK_VECTORS; j++) {
        const __m256 y = _mm256_mul_ps(_mm256_load_ps(weights + j * LANES), factor);
        _mm_store_si128((__m128i *)(void *)(to + j * LANES), order_fours(_mm256_cvtps_epi32(y)));
    }
}

/* Up to 8 queries: scores -> weights as integers, their unit, max, sum, decay. */
static void weight_queries(const attn_tile_t *tile, size_t begin, size_t n, float *scores,
                           attn_range_t keys, int is_ragged) {
    const int is_plain = tile->args->softcap <= 0.0f && !is_ragged &&
                         keys.end - keys.begin == KRI_ATTN_BLOCK;
    const __m256i lanes = lanes_below(n);
    __m256 parts[LANES], most[LANES];
    for (size_t j = 0; j < LANES; j++) {
        const size_t row = (begin + j) / tile->args->n_heads;
        float *at = scores + j * KRI_ATTN_BLOCK;
        parts[j] = most[j] = _mm256_setzero_ps();
        if (j < n) {
            parts[j] = is_plain ? largest_lanes(at)
                                : cap_and_mask(tile, is_ragged ? attn_keys(tile, row, row + 1u)
                                                               : keys, at);
        }
    }
    const __m256 old = _mm256_maskload_ps(tile->max + begin, lanes);
    const __m256 next = _mm256_max_ps(reduce_8(parts, REDUCE_MAX), old);
    const __m256 decay = vector_exp2_weight(_mm256_sub_ps(old, next));
    _mm256_maskstore_ps(tile->max + begin, lanes, next);
    _mm256_maskstore_ps(tile->decay + begin, lanes, decay);
    for (size_t j = 0; j < n; j++) {
        parts[j] = weigh(scores + j * KRI_ATTN_BLOCK, tile->max[begin + j]);
        most[j] = scale_weights(tile, scores + j * KRI_ATTN_BLOCK);
    }
    const __m256 sum = _mm256_mul_ps(_mm256_maskload_ps(tile->sum + begin, lanes), decay);
    _mm256_maskstore_ps(tile->sum + begin, lanes,
                        _mm256_add_ps(sum, reduce_8(parts, REDUCE_SUM)));
    const __m256 levels = _mm256_set1_ps(KRI_I8_WEIGHT_LEVELS);
    const __m256 largest = reduce_8(most, REDUCE_MAX_BITS);
    const __m256 used = _mm256_cmp_ps(largest, _mm256_set1_ps(1e-30f), _CMP_NLT_UQ);
    _Alignas(32) float inverse[LANES];
    _mm256_store_ps(inverse, _mm256_and_ps(_mm256_div_ps(levels, largest), used));
    _mm256_maskstore_ps(tile->weight_unit + begin, lanes, _mm256_div_ps(largest, levels));
    for (size_t j = 0; j < n; j++) {
        round_weights(scores + j * KRI_ATTN_BLOCK, inverse[j]);
    }
}

/* Dimensions outside, queries inside, so that one column of the block's values stays in the
 * first-level cache; up to three queries take two columns at a time. */
static void value_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    value_source_t values = {.quad_bytes = tile->head_dim * FOURS,
                             .page_begin = keys.begin / STEP,
                             .page_end = (keys.end + STEP - 1u) / STEP};
    const int is_few = end - begin <= WIDE_QUERIES;
    for (size_t d = 0; d < tile->head_dim;) {
        const int is_wide = is_few && d + VALUE_WIDTH <= tile->head_dim;
        for (size_t page = values.page_begin; page < values.page_end; page++) {
            values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * FOURS;
            values.next[page] = tile->next_v[page] + d * FOURS;
        }
        for (size_t i = begin; i < end; i += QUERIES) {
            const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
            const float *weights = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
            value_fn *fn = is_wide ? value_wide_fns[n_q - 1u] : value_fns[n_q - 1u];
            fn(tile, &values, i, (const int16_t *)(const void *)weights, d);
        }
        d += is_wide ? VALUE_WIDTH : STEP;
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

/* Queries as 16-bit integers, each four of them in the order of order_fours. */
static void load_queries(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    int16_t *to = (int16_t *)(void *)tile->q;
    for (size_t i = 0; i < tile->n_queries; i++, to += tile->head_dim) {
        tile->q_scale[i] = factor * attn_quantise(attn_query(tile->args, i), tile->head_dim,
                                                  KRI_I8_QUERY_LEVELS, to, &tile->q_sum[i]);
        for (size_t d = 0; d < tile->head_dim; d += FOURS) {
            const int16_t odd = to[d + 1u];
            to[d + 1u] = to[d + 2u];
            to[d + 2u] = odd;
        }
    }
}

void kri_attention_i8_avx2(const kri_attn_args_t *args) {
    attn_tile_t tile;
    attn_tile_init(&tile, args, 1u, 16u, VALUE_WIDTH);
    tile.from_scratch = 1; /* the scales of the values */
    if (args->stage != KRI_ATTN_MERGE) {
        load_queries(&tile);
    }
    attend_tile(&tile);
}
