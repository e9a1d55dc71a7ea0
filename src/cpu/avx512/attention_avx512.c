/* attention_avx512.c: attention over a paged KV cache with AVX-512. Scores and weighted sums are
 * small matrix products on register tiles of up to six queries times 64 keys (or 64 dimensions):
 * K is transposed and widened (or quantised) once per key block and tile, V is widened on the
 * fly for a few queries and once per block for many (the conversion is exact, so both agree).
 * Per (query, key) a score is one chain of fused multiply-adds over ascending dimensions or an
 * exact integer, per (query, dimension) an output is one chain over ascending keys: no tile size
 * changes a bit. Where the time goes: docs/perf-log.md. */
#include "cpu/avx512/attn_avx512.h"
#include "cpu/impl.h"

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

/* ---- loading a block ----------------------------------------------------------------------- */

/* Keys of a page -> columns 16 page .. of tile->keys [head_dim][64]. */
KRI_INLINE void load_page(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const size_t row_bytes = tile->head_dim * elem_bytes;
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

/* Largest magnitudes of the 16 keys of a page. Those of f16 are compared as bits. */
KRI_INLINE __m512 largest_page(const attn_tile_t *tile, const uint8_t *from,
                               const size_t elem_bytes) {
    const int is_half = elem_bytes == sizeof(uint16_t);
    const reduce_t op = is_half ? REDUCE_MAX_HALVES : REDUCE_MAX_BITS;
    const __m512i magnitude = _mm512_set1_epi32(is_half ? 0x7fff7fff : 0x7fffffff);
    const size_t row_bytes = tile->head_dim * elem_bytes, whole = row_bytes / 64u * 64u;
    __m512 most[LANES];
    KRI_UNROLL
    for (size_t j = 0; j < LANES; j++) {
        const uint8_t *row = from + j * row_bytes;
        __m512i x = _mm512_setzero_si512();
        if (whole != row_bytes) {
            x = _mm512_zextsi256_si512(_mm256_loadu_si256((const void *)(row + whole)));
        }
        most[j] = _mm512_castsi512_ps(_mm512_and_si512(x, magnitude));
        for (size_t at = 0; at < whole; at += 64u) {
            x = _mm512_and_si512(_mm512_loadu_si512(row + at), magnitude);
            most[j] = combine(most[j], _mm512_castsi512_ps(x), op);
        }
    }
    const __m512 largest = reduce_16(most, op);
    if (!is_half) {
        return largest;
    }
    const __m512i pairs = _mm512_castps_si512(largest);
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(
        _mm512_max_epu16(pairs, _mm512_srli_epi32(pairs, 16))));
}

/* Inverse scales of the 16 keys of a page, and their scales to tile->key_scale. */
KRI_INLINE void scale_page(const attn_tile_t *tile, size_t page, const uint8_t *from,
                           const size_t elem_bytes, float *inverse) {
    const __m512 amax = largest_page(tile, from, elem_bytes);
    const __mmask16 finite = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
    const __mmask16 used = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(1e-30f), _CMP_GE_OQ) & finite;
    const __m512 levels =
        _mm512_set1_ps(kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim));
    const __m512 scale = _mm512_maskz_div_ps(used, amax, levels);
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(used, levels, amax));
    _mm512_store_ps(tile->key_scale + page * LANES,
                    _mm512_mask_blend_ps(finite, _mm512_set1_ps(NAN), scale));
}

/* Keys of a page, quantised and offset by 128 -> 4 dimensions by 4: tile->keys [head_dim / 4][64
 * keys][4 bytes]. */
KRI_INLINE void load_page_qk8(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    _Alignas(64) float inverse[LANES];
    scale_page(tile, page, from, elem_bytes, inverse);
    for (size_t d = 0; d < tile->head_dim; d += 4u * LANES) {
        const size_t left = tile->head_dim - d, n_dims = left < 4u * LANES ? left : 4u * LANES;
        attn_prefetch_keys(tile, page, d, n_dims);
        __m512 x[LANES];
        for (size_t j = 0; j < LANES; j++) {
            const __m512 factor = _mm512_set1_ps(inverse[j]);
            __m128i q[4] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128(),
                            _mm_setzero_si128()};
            for (size_t i = 0; i < n_dims; i += LANES) {
                const uint8_t *at = from + (j * tile->head_dim + d + i) * elem_bytes;
                q[i / LANES] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(
                    _mm512_mul_ps(load_elements(at, elem_bytes), factor)));
            }
            const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(q[0]), q[1], 1);
            const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(q[2]), q[3], 1);
            const __m512i row = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
            x[j] = _mm512_castsi512_ps(_mm512_xor_si512(row, _mm512_set1_epi8(-128)));
        }
        transpose_16x16(x);
        float *to = tile->keys + d / 4u * KRI_ATTN_BLOCK + page * LANES;
        for (size_t j = 0; j < n_dims / 4u; j++) {
            _mm512_store_ps(to + j * KRI_ATTN_BLOCK, x[j]);
        }
    }
}

KRI_INLINE __m512i quantise_16(const uint8_t *at, __m512 factor, const size_t elem_bytes) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(load_elements(at, elem_bytes), factor));
}

/* 32 dimensions of a key as 16-bit integers, four of the first 16 and four of the last in
 * turns (order_query). */
KRI_INLINE __m512i quantise_32(const uint8_t *at, __m512 factor, const size_t elem_bytes) {
    return _mm512_packs_epi32(quantise_16(at, factor, elem_bytes),
                              quantise_16(at + LANES * elem_bytes, factor, elem_bytes));
}

/* The last 16 of a head, then zeros. */
KRI_INLINE __m512i quantise_last(const uint8_t *at, __m512 factor, const size_t elem_bytes) {
    return _mm512_zextsi256_si512(
        _mm512_cvtepi32_epi16(quantise_16(at, factor, elem_bytes)));
}

/* Keys of a page, quantised -> 2 dimensions by 2: tile->keys [head_dim / 2][64 keys][2 x 16
 * bits]. */
KRI_INLINE void load_page_qk16(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    _Alignas(64) float inverse[LANES];
    scale_page(tile, page, from, elem_bytes, inverse);
    for (size_t d = 0; d < tile->head_dim; d += 2u * LANES) {
        const size_t left = tile->head_dim - d, n_dims = left < 2u * LANES ? left : 2u * LANES;
        attn_prefetch_keys(tile, page, d, n_dims);
        __m512 x[LANES];
        KRI_UNROLL
        for (size_t j = 0; j < LANES; j++) {
            const __m512 factor = _mm512_set1_ps(inverse[j]);
            const uint8_t *at = from + (j * tile->head_dim + d) * elem_bytes;
            x[j] = _mm512_castsi512_ps(n_dims == LANES ? quantise_last(at, factor, elem_bytes)
                                                       : quantise_32(at, factor, elem_bytes));
        }
        transpose_16x16(x);
        float *to = tile->keys + d / 2u * KRI_ATTN_BLOCK + page * LANES;
        KRI_UNROLL
        for (size_t j = 0; j < LANES / 2u; j++) {
            _mm512_store_ps(to + j * KRI_ATTN_BLOCK, x[j]);
        }
        if (n_dims == LANES) {
            continue;
        }
        KRI_UNROLL
        for (size_t j = LANES / 2u; j < LANES; j++) {
            _mm512_store_ps(to + j * KRI_ATTN_BLOCK, x[j]);
        }
    }
}

KRI_INLINE void load_page_as(const attn_tile_t *tile, size_t page, const size_t elem_bytes) {
    if (tile->qk_bits == 8u) {
        load_page_qk8(tile, page, elem_bytes);
    } else if (tile->qk_bits == 16u) {
        load_page_qk16(tile, page, elem_bytes);
    } else {
        load_page(tile, page, elem_bytes);
    }
}

/* Few queries take the dot products of f16 keys in integers along the dimensions, as the keys lie
 * in the page: sums of integers are exact, so these are the bits of the other way. */
KRI_INLINE int is_by_rows(const attn_tile_t *tile) {
    return tile->qk_bits == 16u && tile->elem_bytes == sizeof(uint16_t) &&
           tile->n_queries <= QUERIES;
}

static void load_keys(const attn_tile_t *tile, attn_range_t keys) {
    if (is_by_rows(tile)) {
        return;
    }
    for (size_t page = keys.begin / LANES; page * LANES < keys.end; page++) {
        if (tile->elem_bytes == sizeof(float)) {
            load_page_as(tile, page, sizeof(float));
        } else {
            load_page_as(tile, page, sizeof(uint16_t));
        }
    }
}

/* Values of the pages in use -> tile->values [head_dim / 64][64 keys][64]. */
static void load_values(const attn_tile_t *tile, attn_range_t keys) {
    const size_t elem_bytes = tile->elem_bytes, row_bytes = tile->head_dim * elem_bytes;
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

/* scores[i][16 j ..] = q[i] . keys for n_q queries from `query` on and n_v vectors of 16 keys from
 * vector `vector` on. */
KRI_INLINE void score_tile(const attn_tile_t *tile, size_t query, size_t vector, float *scores,
                           const size_t n_q, const size_t n_v) {
    const size_t head_dim = tile->head_dim;
    const float *q = tile->q + query * head_dim, *keys = tile->keys + vector * LANES;
    __m512 sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_setzero_ps();
        }
    }
    for (size_t d = 0; d < head_dim; d++) {
        attn_prefetch_late(tile, d);
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

/* The same in integers. 8-bit keys are offset by 128, which the start of a sum takes back. */
KRI_INLINE void score_tile_integers(const attn_tile_t *tile, size_t query, size_t vector,
                                    float *scores, const size_t n_q, const size_t n_v,
                                    const uint32_t qk_bits) {
    const size_t head_dim = tile->head_dim, step = 32u / qk_bits;
    const size_t row_bytes = head_dim * qk_bits / 8u;
    const uint8_t *q = (const uint8_t *)tile->q + query * row_bytes;
    const float *keys = tile->keys + vector * LANES;
    __m512i sums[QUERIES][VECTORS];
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const int32_t start = qk_bits == 8u ? -128 * tile->q_sum[query + i] : 0;
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            sums[i][j] = _mm512_set1_epi32(start);
        }
    }
    for (size_t d = 0; d < head_dim; d += step, q += 4, keys += KRI_ATTN_BLOCK) {
        attn_prefetch_late(tile, d);
        attn_prefetch_late(tile, d + step / 2u);
        __m512i k[VECTORS];
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            k[j] = _mm512_load_si512(keys + j * LANES);
        }
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            int32_t some;
            memcpy(&some, q + i * row_bytes, sizeof some);
            const __m512i x = _mm512_set1_epi32(some);
            KRI_UNROLL
            for (size_t j = 0; j < n_v; j++) {
                sums[i][j] = dot_add(sums[i][j], k[j], x, qk_bits);
            }
        }
    }
    __m512 key_scale[VECTORS];
    KRI_UNROLL
    for (size_t j = 0; j < n_v; j++) {
        key_scale[j] = _mm512_load_ps(tile->key_scale + (vector + j) * LANES);
    }
    KRI_UNROLL
    for (size_t i = 0; i < n_q; i++) {
        const __m512 scale = _mm512_set1_ps(tile->q_scale[query + i]);
        KRI_UNROLL
        for (size_t j = 0; j < n_v; j++) {
            const __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][j]), key_scale[j]);
            _mm512_store_ps(scores + i * KRI_ATTN_BLOCK + j * LANES, _mm512_mul_ps(s, scale));
        }
    }
}

/* The same for keys as they lie in the pages: scores[i][16 page ..] of n_q queries. */
KRI_INLINE void score_page(const attn_tile_t *tile, size_t query, size_t page, float *scores,
                           const size_t n_q) {
    const size_t row_bytes = tile->head_dim * sizeof(uint16_t), whole = row_bytes / 64u * 64u;
    const uint8_t *from = attn_page(tile, page, tile->args->k_offset);
    const uint8_t *q = (const uint8_t *)tile->q + query * row_bytes;
    _Alignas(64) float inverse[LANES];
    __m512 sums[QUERIES][LANES];
    scale_page(tile, page, from, sizeof(uint16_t), inverse);
    for (size_t j = 0; j < LANES; j += 2u) {
        const uint8_t *key = from + j * row_bytes;
        const __m512 factor = _mm512_set1_ps(inverse[j]), other = _mm512_set1_ps(inverse[j + 1u]);
        __m512i sum[QUERIES][2];
        attn_prefetch(tile->next_k[page] + j * row_bytes, 2u * row_bytes);
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            sum[i][0] = sum[i][1] = _mm512_setzero_si512();
        }
        for (size_t at = 0; at < whole; at += 64u) {
            const __m512i x = quantise_32(key + at, factor, sizeof(uint16_t));
            const __m512i y = quantise_32(key + row_bytes + at, other, sizeof(uint16_t));
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const __m512i some = _mm512_loadu_si512(q + i * row_bytes + at);
                sum[i][0] = dot_add(sum[i][0], x, some, 16u);
                sum[i][1] = dot_add(sum[i][1], y, some, 16u);
            }
        }
        if (whole != row_bytes) {
            const __m512i x = quantise_last(key + whole, factor, sizeof(uint16_t));
            const __m512i y = quantise_last(key + row_bytes + whole, other, sizeof(uint16_t));
            KRI_UNROLL
            for (size_t i = 0; i < n_q; i++) {
                const __m512i some = _mm512_zextsi256_si512(
                    _mm256_loadu_si256((const void *)(q + i * row_bytes + whole)));
                sum[i][0] = dot_add(sum[i][0], x, some, 16u);
                sum[i][1] = dot_add(sum[i][1], y, some, 16u);
            }
        }
        KRI_UNROLL
        for (size_t i = 0; i < n_q; i++) {
            sums[i][j] = _mm512_castsi512_ps(sum[i][0]);
            sums[i][j + 1u] = _mm512_castsi512_ps(sum[i][1]);
        }
    }
    const __m512 key_scale = _mm512_load_ps(tile->key_scale + page * LANES);
    for (size_t i = 0; i < n_q; i++) {
        const __m512i dots = _mm512_castps_si512(reduce_16(sums[i], REDUCE_SUM_INTEGERS));
        const __m512 s = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), key_scale);
        _mm512_store_ps(scores + i * KRI_ATTN_BLOCK + page * LANES,
                        _mm512_mul_ps(s, _mm512_set1_ps(tile->q_scale[query + i])));
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
typedef void score_fn(const attn_tile_t *tile, size_t query, size_t vector, float *scores);
typedef void value_fn(const value_source_t *values, const float *weights, const float *decay,
                      float *acc, size_t head_dim);

#define TILE(q_, v_)                                                                             \
    static void score_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t vector,          \
                                  float *scores) {                                               \
        score_tile(tile, query, vector, scores, q_, v_);                                         \
    }                                                                                            \
    static void score_qk8_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t vector,      \
                                      float *scores) {                                           \
        score_tile_integers(tile, query, vector, scores, q_, v_, 8u);                            \
    }                                                                                            \
    static void score_qk16_##q_##_##v_(const attn_tile_t *tile, size_t query, size_t vector,     \
                                       float *scores) {                                          \
        score_tile_integers(tile, query, vector, scores, q_, v_, 16u);                           \
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

#define PAGE(q_)                                                                                 \
    static void score_page_##q_(const attn_tile_t *tile, size_t query, size_t page,              \
                                float *scores) {                                                 \
        score_page(tile, query, page, scores, q_);                                               \
    }
PAGE(1) PAGE(2) PAGE(3) PAGE(4) PAGE(5) PAGE(6)
#undef PAGE
static score_fn *const score_page_fns[QUERIES] = {score_page_1, score_page_2, score_page_3,
                                                  score_page_4, score_page_5, score_page_6};

#define ROW(name, q_) {name##_##q_##_1, name##_##q_##_2, name##_##q_##_3, name##_##q_##_4}
#define TABLE(name)                                                                              \
    {ROW(name, 1), ROW(name, 2), ROW(name, 3), ROW(name, 4), ROW(name, 5), ROW(name, 6)}
static score_fn *const score_fns[QUERIES][VECTORS] = TABLE(score);
static score_fn *const score_qk8_fns[QUERIES][VECTORS] = TABLE(score_qk8);
static score_fn *const score_qk16_fns[QUERIES][VECTORS] = TABLE(score_qk16);
static value_fn *const value_f32_fns[QUERIES][VECTORS] = TABLE(value_f32);
static value_fn *const value_f16_fns[QUERIES][VECTORS] = TABLE(value_f16);
#undef TABLE
#undef ROW

/* ---- one group of queries and one block ---------------------------------------------------- */

static void score_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys) {
    score_fn *const(*fns)[VECTORS] = tile->qk_bits == 8u    ? score_qk8_fns
                                     : tile->qk_bits == 16u ? score_qk16_fns
                                                            : score_fns;
    const size_t first = keys.begin / LANES;
    const size_t n_v = (keys.end + LANES - 1u) / LANES - first;
    if (is_by_rows(tile)) {
        for (size_t page = first; page < first + n_v; page++) {
            score_page_fns[end - begin - 1u](tile, begin, page, tile->scores);
        }
        return;
    }
    for (size_t i = begin; i < end; i += QUERIES) {
        const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
        fns[n_q - 1u][n_v - 1u](
            tile, i, first, tile->scores + (i - begin) * KRI_ATTN_BLOCK + first * LANES);
    }
}

static void weight_group(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t keys,
                         int is_ragged) {
    const int is_plain = tile->args->softcap <= 0.0f && !is_ragged &&
                         keys.end - keys.begin == KRI_ATTN_BLOCK;
    for (size_t i = begin; i < end; i += LANES) {
        const size_t n = end - i < LANES ? end - i : LANES;
        const __mmask16 lanes = lanes_below(n);
        float *scores = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
        __m512 parts[LANES];
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
            parts[j] = _mm512_setzero_ps();
        }
        const __m512 old = _mm512_maskz_loadu_ps(lanes, tile->max + i);
        const __m512 next = _mm512_max_ps(reduce_16(parts, REDUCE_MAX), old);
        const __m512 decay = vector_exp2_weight(_mm512_sub_ps(old, next));
        _mm512_mask_storeu_ps(tile->max + i, lanes, next);
        _mm512_mask_storeu_ps(tile->decay + i, lanes, decay);
        scores = tile->scores + (i - begin) * KRI_ATTN_BLOCK;
        for (size_t j = 0; j < n; j++, scores += KRI_ATTN_BLOCK) {
            parts[j] = weigh(scores, tile->max[i + j]);
        }
        const __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, tile->sum + i), decay);
        _mm512_mask_storeu_ps(tile->sum + i, lanes,
                              _mm512_add_ps(sum, reduce_16(parts, REDUCE_SUM)));
    }
}

static void decay_rows(const attn_tile_t *tile, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) {
        const __m512 decay = _mm512_set1_ps(tile->decay[i]);
        float *acc = tile->acc + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d += LANES) {
            _mm512_store_ps(acc + d, _mm512_mul_ps(_mm512_load_ps(acc + d), decay));
        }
        tile->decay[i] = 1.0f;
    }
}

/* Dimensions outside, queries inside, so that 64 dimensions of the block's values stay in the
 * first-level cache. */
static void value_group(const attn_tile_t *tile, size_t begin, size_t end, size_t first,
                        attn_range_t keys) {
    const size_t elem_bytes = tile->from_scratch ? sizeof(float) : tile->elem_bytes;
    const size_t row_bytes = (tile->from_scratch ? VALUE_WIDTH : tile->head_dim) * elem_bytes;
    value_fn *const(*fns)[VECTORS] = elem_bytes == sizeof(float) ? value_f32_fns : value_f16_fns;
    value_source_t values = {.row_bytes = row_bytes, .keys = keys};
    for (size_t d = 0; d < tile->head_dim; d += VALUE_WIDTH) {
        const size_t left = (tile->head_dim - d) / LANES;
        const size_t n_v = left < VECTORS ? left : VECTORS;
        for (size_t page = keys.begin / LANES; page * LANES < keys.end; page++) {
            if (tile->from_scratch) {
                values.page[page] = (const uint8_t *)(tile->values + d * KRI_ATTN_BLOCK) +
                                    page * LANES * row_bytes;
                values.next[page] = values.page[page];
            } else {
                values.page[page] = attn_page(tile, page, tile->args->v_offset) + d * elem_bytes;
                values.next[page] = tile->next_v[page] + d * elem_bytes;
            }
        }
        for (size_t i = begin; i < end; i += QUERIES) {
            const size_t n_q = end - i < QUERIES ? end - i : QUERIES;
            fns[n_q - 1u][n_v - 1u](&values, tile->scores + (i - first) * KRI_ATTN_BLOCK,
                                    tile->decay + i, tile->acc + i * tile->head_dim + d,
                                    tile->head_dim);
        }
    }
}

#include "cpu/attn_group.h"
#include "cpu/attn_walk.h"

/* 16-bit integers of a query in the order in which quantise_32 leaves those of a key. */
static void order_query(const int16_t *q, size_t head_dim, int16_t *to) {
    size_t d = 0;
    for (; d + 2u * LANES <= head_dim; d += 2u * LANES) {
        for (size_t i = 0; i < LANES; i += 4u) {
            memcpy(to + d + 2u * i, q + d + i, 4u * sizeof(int16_t));
            memcpy(to + d + 2u * i + 4u, q + d + LANES + i, 4u * sizeof(int16_t));
        }
    }
    memcpy(to + d, q + d, (head_dim - d) * sizeof(int16_t));
}

static void load_queries_integers(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    const float levels = kri_attn_qk_levels(tile->qk_bits, tile->args->head_dim);
    int8_t *bytes = (int8_t *)(void *)tile->q;
    int16_t q[KRI_HEAD_DIM_MAX];
    for (size_t i = 0; i < tile->n_queries; i++, bytes += tile->head_dim * tile->qk_bits / 8u) {
        tile->q_scale[i] = factor * attn_quantise(attn_query(tile->args, i), tile->head_dim,
                                                  levels, q, &tile->q_sum[i]);
        if (tile->qk_bits == 16u) {
            order_query(q, tile->head_dim, (int16_t *)(void *)bytes);
            continue;
        }
        for (size_t d = 0; d < tile->head_dim; d++) {
            bytes[d] = (int8_t)q[d];
        }
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

void kri_attention_f32_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 0);
}

void kri_attention_f16_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 0);
}

void kri_attention_f32_qk8_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 8);
}

void kri_attention_f16_qk8_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 8);
}

void kri_attention_f32_qk16_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(float), 16);
}

void kri_attention_f16_qk16_avx512(const kri_attn_args_t *args) {
    attention(args, sizeof(uint16_t), 16);
}
