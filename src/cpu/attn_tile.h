/* attn_tile.h: what the attention kernels of all ISA levels share: the layout of the scratch
 * memory, which keys a row sees, and the walk over key blocks and rows. Inline in a header, since
 * each ISA folder compiles it with its own flags.
 *
 * A tile goes through its key blocks in ascending order. Of each block the keys are transposed
 * once (lane = key, so that scores need no horizontal sums), and the rows are taken in runs that
 * see the same keys of the block. A run never multiplies a key or value that its rows do not see:
 * a weight of 0 times what lies there would not be 0 if it held an infinity or memory never
 * written, and the row's result would depend on its tile. */
#ifndef KRI_CPU_ATTN_TILE_H
#define KRI_CPU_ATTN_TILE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ops/kernels.h"

#define ATTN_PAGES (KRI_ATTN_BLOCK / KRI_PAGE_TOKENS)

typedef struct attn_tile_s {
    const kri_attn_args_t *args;
    size_t head_dim;
    size_t n_queries;  /* query vectors: rows * heads, row-major */
    size_t elem_bytes; /* of K and V in the pool: 4 (f32) or 2 (f16) */
    size_t block;      /* position of the first key of the block */
    float *keys;       /* transposed keys of the block, layout of the ISA level */
    float *values;     /* converted values of the block, layout of the ISA level */
    float *q;          /* [n_queries][head_dim] */
    float *acc;        /* [n_queries][head_dim], weighted values not yet divided by sum */
    float *scores;     /* [n_queries][KRI_ATTN_BLOCK] */
    float *max;        /* [KRI_ATTN_TILE] */
    float *sum;        /* [KRI_ATTN_TILE] */
    float *decay;      /* [KRI_ATTN_TILE], old weights of a query times this */
    /* K and V of the pages of the next block, to prefetch; scratch where no row sees that page. */
    const uint8_t *next_k[ATTN_PAGES], *next_v[ATTN_PAGES];
} attn_tile_t;

/* Keys of a block, relative to its first position; begin == end: none. */
typedef struct attn_range_s {
    size_t begin, end;
} attn_range_t;

/* A run: queries [begin, end) that see the same keys. */
typedef struct attn_run_s {
    size_t begin, end;
    attn_range_t keys;
} attn_run_t;

static inline size_t attn_first_key(const kri_attn_args_t *args, size_t row) {
    const size_t n_past = (size_t)args->pos_begin + row + 1u;
    return args->window != 0 && n_past > args->window ? n_past - args->window : 0;
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

/* Address of the K (or V) of a page of the current block. */
static inline const uint8_t *attn_page(const attn_tile_t *tile, size_t page, size_t offset) {
    const kri_attn_args_t *args = tile->args;
    const uint32_t id = args->page_table[tile->block / KRI_PAGE_TOKENS + page];
    return args->pool + (size_t)id * args->page_bytes + offset;
}

/* value_width: floats per row of a stored value chunk; the value scratch is rounded up to it. */
static inline void attn_tile_init(attn_tile_t *tile, const kri_attn_args_t *args,
                                  size_t elem_bytes, size_t value_width) {
    const size_t head_dim = args->head_dim;
    const size_t head_dim_up = (head_dim + value_width - 1u) / value_width * value_width;
    tile->args = args;
    tile->head_dim = head_dim;
    tile->n_queries = (size_t)args->n_rows * args->n_heads;
    tile->elem_bytes = elem_bytes;
    tile->keys = args->scratch;
    tile->values = tile->keys + KRI_ATTN_BLOCK * head_dim;
    tile->scores = tile->values + KRI_ATTN_BLOCK * head_dim_up;
    tile->max = tile->scores + KRI_ATTN_TILE * KRI_ATTN_BLOCK;
    tile->sum = tile->max + KRI_ATTN_TILE;
    tile->decay = tile->sum + KRI_ATTN_TILE;
    tile->q = tile->decay + 2u * KRI_ATTN_TILE;
    tile->acc = tile->q + tile->n_queries * head_dim;
    for (size_t i = 0; i < KRI_ATTN_TILE; i++) {
        tile->max[i] = -INFINITY;
        tile->sum[i] = 0.0f;
        tile->decay[i] = 0.0f;
    }
    memset(tile->acc, 0, tile->n_queries * head_dim * sizeof(float));
    for (size_t r = 0; r < args->n_rows; r++) {
        memcpy(tile->q + r * args->n_heads * head_dim, args->q + r * args->q_stride,
               args->n_heads * head_dim * sizeof(float));
    }
}

/* The next run of the current block at or after *row; moves *row past it. 0 when there is none. */
static inline int attn_next_run(const attn_tile_t *tile, size_t *row, attn_run_t *run) {
    const size_t n_rows = tile->args->n_rows;
    while (*row < n_rows) {
        const size_t begin = *row;
        const attn_range_t keys = attn_keys(tile, begin, begin + 1u);
        size_t end = begin + 1u;
        while (end < n_rows) {
            const attn_range_t next = attn_keys(tile, end, end + 1u);
            if (next.begin != keys.begin || next.end != keys.end) {
                break;
            }
            end++;
        }
        *row = end;
        if (keys.begin < keys.end) {
            run->begin = begin * tile->args->n_heads;
            run->end = end * tile->args->n_heads;
            run->keys = keys;
            return 1;
        }
    }
    return 0;
}

/* Moves to a block. What a block reads is prefetched during the block before, a share in each of
 * its phases (keys while transposing and while scoring, values while summing), so that memory is
 * busy all the time: pages are scattered over the pool, where no hardware prefetcher follows. */
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

/* The share of a transposed square at (page, dim): the first half of the next keys, spread over
 * all pages. The other half is for the scores. */
static inline void attn_prefetch_keys(const attn_tile_t *tile, size_t page, size_t dim,
                                      size_t n_dims) {
    const size_t half = KRI_PAGE_TOKENS / 2u * tile->elem_bytes;
    const uint8_t *next = tile->next_k[page / 2u] + page % 2u * half * tile->head_dim;
    attn_prefetch(next + dim * half, n_dims * half);
}

#endif
