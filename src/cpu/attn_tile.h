/* attn_tile.h: what the attention kernels of all ISA levels share: the layout of the scratch
 * memory, which keys a row sees, and integer queries. The walk over spans, blocks and groups of
 * queries is attn_walk.h. Inline in headers, since each ISA folder compiles them with its own
 * flags.
 *
 * Of each block the keys are transposed once per tile (lane = key, so that scores need no
 * horizontal sums) and the values widened once. A value is never multiplied for a row that does
 * not see its key: a weight of 0 times what lies there would not be 0 if it held an infinity or
 * memory never written, and the row's result would depend on its tile. Scores of keys that a row
 * does not see are computed where that is cheaper, and masked. */
#ifndef KRI_CPU_ATTN_TILE_H
#define KRI_CPU_ATTN_TILE_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ops/kernels.h"

#define ATTN_PAGES (KRI_ATTN_BLOCK / KRI_PAGE_TOKENS)
#define ATTN_LOG2_E 1.44269504f

typedef struct attn_tile_s {
    const kri_attn_args_t *args;
    size_t head_dim;
    size_t n_queries;  /* query vectors: rows * heads, row-major */
    size_t elem_bytes; /* of K and V in the pool: 4 (f32), 2 (f16) or 1 (i8) */
    uint32_t qk_bits;  /* scores in integers of 8 or 16 bits; 0: in floats */
    int from_scratch;  /* values were converted into `values` */
    size_t block;      /* position of the first key of the block */
    float *keys;       /* transposed keys of the block, layout of the ISA level */
    float *key_scale;  /* [KRI_ATTN_BLOCK], of integer keys */
    float *value_scale; /* [KRI_ATTN_BLOCK], of integer values (i8) */
    float *values;     /* converted values of the block, layout of the ISA level */
    float *q;          /* [n_queries][head_dim] floats, or head_dim integers */
    float *q_scale;    /* [n_queries], takes an integer to a score; floats have it in q */
    int32_t *q_sum;    /* [n_queries], sum of the query's integers */
    float *acc;        /* [n_queries][head_dim], weighted values of the span so far */
    float *total;      /* [n_queries][head_dim], of the spans merged so far */
    float *scores;     /* [KRI_ATTN_GROUP][KRI_ATTN_BLOCK], base 2 logarithms; then weights */
    float *max, *sum, *decay;                   /* [n_queries]; decay: old weights times this */
    float *weight_unit; /* [n_queries], of the weights as integers (i8) */
    float *total_max, *total_sum, *total_decay; /* the same of the merged spans */
    float cap;         /* soft cap in base 2 logarithms */
    /* K and V of the pages of the next block, to prefetch; scratch where no row sees that page. */
    const uint8_t *next_k[ATTN_PAGES], *next_v[ATTN_PAGES];
} attn_tile_t;

/* Keys of a block, relative to its first position; begin == end: none. */
typedef struct attn_range_s {
    size_t begin, end;
} attn_range_t;

static inline size_t attn_first_key(const kri_attn_args_t *args, size_t row) {
    return kri_attn_first_key(args->pos_begin + (uint32_t)row, args->window);
}

/* The keys of the current block that some row of [row_begin, row_end) sees. */
static inline attn_range_t attn_keys(const attn_tile_t *tile, size_t row_begin, size_t row_end) {
    const size_t first = attn_first_key(tile->args, row_begin);
    const size_t end = (size_t)tile->args->pos_begin + row_end;
    const size_t from = first > tile->block ? first : tile->block;
    const size_t to = end < tile->block + KRI_ATTN_BLOCK ? end : tile->block + KRI_ATTN_BLOCK;
    attn_range_t keys = {0, 0};
    if (from < to) {
        keys.begin = from - tile->block;
        keys.end = to - tile->block;
    }
    return keys;
}

/* The keys of the current block that some row of queries [begin, end) sees; is_ragged: not all of
 * the rows see all of them. */
static inline attn_range_t attn_group_keys(const attn_tile_t *tile, size_t begin, size_t end,
                                           int *is_ragged) {
    const size_t first_row = begin / tile->args->n_heads;
    const size_t last_row = (end - 1u) / tile->args->n_heads;
    const attn_range_t first = attn_keys(tile, first_row, first_row + 1u);
    const attn_range_t last = attn_keys(tile, last_row, last_row + 1u);
    *is_ragged = first.begin != last.begin || first.end != last.end;
    return (attn_range_t){first.begin, last.end};
}

/* The queries that see some key of [key_begin, key_end). */
static inline attn_range_t attn_queries(const kri_attn_args_t *args, size_t key_begin,
                                        size_t key_end) {
    const size_t pos = args->pos_begin;
    const size_t past = key_end + args->window - 1u; /* first position that sees none any more */
    size_t begin = key_begin > pos ? key_begin - pos : 0, end = args->n_rows;
    if (args->window != 0 && pos + end > past) {
        end = past > pos ? past - pos : 0;
    }
    begin = begin < end ? begin : end;
    return (attn_range_t){begin * args->n_heads, end * args->n_heads};
}

/* Address of the K (or V) of a page of the current block. */
static inline const uint8_t *attn_page(const attn_tile_t *tile, size_t page, size_t offset) {
    const kri_attn_args_t *args = tile->args;
    const uint32_t id = args->page_table[tile->block / KRI_PAGE_TOKENS + page];
    return args->pool + (size_t)id * args->page_bytes + offset;
}

/* ---- scratch ------------------------------------------------------------------------------- */

/* value_width: floats per row of a stored value chunk; the value scratch is rounded up to it. */
static inline void attn_tile_init(attn_tile_t *tile, const kri_attn_args_t *args,
                                  size_t elem_bytes, uint32_t qk_bits, size_t value_width) {
    const size_t head_dim = args->head_dim;
    const size_t head_dim_up = (head_dim + value_width - 1u) / value_width * value_width;
    tile->args = args;
    tile->head_dim = head_dim;
    tile->n_queries = (size_t)args->n_rows * args->n_heads;
    tile->elem_bytes = elem_bytes;
    tile->qk_bits = qk_bits;
    tile->cap = args->softcap * ATTN_LOG2_E;
    tile->keys = args->scratch;
    tile->values = tile->keys + KRI_ATTN_BLOCK * head_dim;
    tile->scores = tile->values + KRI_ATTN_BLOCK * head_dim_up;
    tile->key_scale = tile->scores + KRI_ATTN_GROUP * KRI_ATTN_BLOCK;
    tile->value_scale = tile->key_scale + KRI_ATTN_BLOCK;
    tile->max = tile->value_scale + KRI_ATTN_BLOCK;
    tile->sum = tile->max + KRI_ATTN_TILE;
    tile->decay = tile->sum + KRI_ATTN_TILE;
    tile->total_max = tile->decay + KRI_ATTN_TILE;
    tile->total_sum = tile->total_max + KRI_ATTN_TILE;
    tile->total_decay = tile->total_sum + KRI_ATTN_TILE;
    tile->q_scale = tile->total_decay + KRI_ATTN_TILE;
    tile->q_sum = (int32_t *)(void *)(tile->q_scale + KRI_ATTN_TILE);
    tile->weight_unit = tile->q_scale + 2u * KRI_ATTN_TILE;
    tile->q = tile->q_scale + 3u * KRI_ATTN_TILE;
    tile->acc = tile->q + tile->n_queries * head_dim;
    tile->total = tile->acc + tile->n_queries * head_dim;
}

/* Scores are base 2 logarithms; a soft cap needs them natural first. */
static inline float attn_score_factor(const kri_attn_args_t *args) {
    return args->softcap > 0.0f ? args->scale : args->scale * ATTN_LOG2_E;
}

static inline const float *attn_query(const kri_attn_args_t *args, size_t i) {
    return args->q + i / args->n_heads * args->q_stride + i % args->n_heads * args->head_dim;
}

static inline void attn_load_queries(const attn_tile_t *tile) {
    const float factor = attn_score_factor(tile->args);
    for (size_t i = 0; i < tile->n_queries; i++) {
        const float *from = attn_query(tile->args, i);
        float *to = tile->q + i * tile->head_dim;
        for (size_t d = 0; d < tile->head_dim; d++) {
            to[d] = from[d] * factor;
        }
    }
}

/* The integer form of kernels.h: x [n] -> q [n] and its sum; returns the scale. */
static inline float attn_quantise(const float *x, size_t n, float levels, int16_t *q,
                                  int32_t *sum) {
    uint32_t amax_bits = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        amax_bits = bits > amax_bits ? bits : amax_bits;
    }
    float amax;
    memcpy(&amax, &amax_bits, sizeof amax);
    memset(q, 0, n * sizeof(int16_t));
    *sum = 0;
    if (!(amax <= FLT_MAX)) {
        return NAN;
    }
    if (amax < 1e-30f) {
        return 0.0f;
    }
    const float inverse = levels / amax;
    for (size_t i = 0; i < n; i++) {
        const int32_t rounded = (int32_t)rintf(x[i] * inverse);
        q[i] = (int16_t)rounded;
        *sum += rounded;
    }
    return amax / levels;
}

/* ---- prefetch ------------------------------------------------------------------------------ */

/* Moves to a block. What a block reads is prefetched during the block before, a share in each of
 * its phases (keys while transposing and while scoring, values while summing), so that memory is
 * busy all the time: pages are scattered over the pool, where no hardware prefetcher follows.
 * Prefetching all keys while transposing makes decode from memory 10 to 25 % slower. */
static inline void attn_block_begin(attn_tile_t *tile, size_t block) {
    const kri_attn_args_t *args = tile->args;
    const size_t n_keys = (size_t)args->pos_begin + args->n_rows;
    tile->block = block;
    for (size_t page = 0; page < ATTN_PAGES; page++) {
        tile->next_k[page] = (const uint8_t *)tile->keys;
        tile->next_v[page] = (const uint8_t *)tile->keys;
        if (block + (page + ATTN_PAGES) * KRI_PAGE_TOKENS < n_keys) {
            tile->next_k[page] = attn_page(tile, page + ATTN_PAGES, args->k_offset);
            tile->next_v[page] = attn_page(tile, page + ATTN_PAGES, args->v_offset);
        }
    }
}

static inline void attn_prefetch(const uint8_t *at, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i += 64u) {
        __builtin_prefetch(at + i, 0, 3);
    }
}

/* The share of a transposed square at (page, dim): the first two pages of the next keys, spread
 * over all pages. The other two are for the scores. */
static inline void attn_prefetch_keys(const attn_tile_t *tile, size_t page, size_t dim,
                                      size_t n_dims) {
    const size_t half = KRI_PAGE_TOKENS / 2u * tile->elem_bytes;
    const uint8_t *next = tile->next_k[page / 2u] + page % 2u * half * tile->head_dim;
    attn_prefetch(next + dim * half, n_dims * half);
}

/* The share of dimension `dim` of the scores of one register tile. */
static inline void attn_prefetch_late(const attn_tile_t *tile, size_t dim) {
    const size_t at = dim * KRI_PAGE_TOKENS * tile->elem_bytes;
    __builtin_prefetch(tile->next_k[ATTN_PAGES / 2u] + at, 0, 3);
    __builtin_prefetch(tile->next_k[ATTN_PAGES / 2u + 1u] + at, 0, 3);
}

#endif
