/* attn_walk.h: an attention kernel's walk over spans, key blocks and groups of queries. Included
 * once by each attention file after it has defined the parts:
 *
 *   load_keys(tile, keys), load_values(tile, keys)   of the current block
 *   attend_group(tile, begin, end)                   queries [begin, end) over the current block,
 *                                                    at most KRI_ATTN_GROUP, all of which see some
 *                                                    key of it (attn_group.h has one for floats)
 *   merge_queries(tile, begin, end)                  max, sum, acc into the totals
 *   write_queries(tile)                              totals -> out */
#ifndef KRI_CPU_ATTN_WALK_H
#define KRI_CPU_ATTN_WALK_H

#include "cpu/attn_tile.h"

/* The tile's queries over the keys of one span; afterwards max, sum and acc hold its partials. */
static void attend_span(attn_tile_t *tile, size_t span) {
    const kri_attn_args_t *args = tile->args;
    const size_t first = attn_first_key(args, 0) / KRI_ATTN_BLOCK * KRI_ATTN_BLOCK;
    const size_t n_keys = (size_t)args->pos_begin + args->n_rows;
    const size_t span_end = (span + 1u) * KRI_ATTN_SPAN;
    const size_t end = n_keys < span_end ? n_keys : span_end;
    size_t block = first > span * KRI_ATTN_SPAN ? first : span * KRI_ATTN_SPAN;
    for (size_t i = 0; i < tile->n_queries; i++) {
        tile->max[i] = -FLT_MAX; /* below no score but -infinity, whose weight is thus 0 */
        tile->sum[i] = 0.0f;
        tile->decay[i] = 0.0f;
    }
    memset(tile->acc, 0, tile->n_queries * tile->head_dim * sizeof(float));
    for (; block < end; block += KRI_ATTN_BLOCK) {
        attn_block_begin(tile, block);
        const attn_range_t keys = attn_keys(tile, 0, args->n_rows);
        load_keys(tile, keys);
        if (tile->from_scratch) {
            load_values(tile, keys);
        }
        const attn_range_t queries = attn_queries(args, block, block + KRI_ATTN_BLOCK);
        for (size_t i = queries.begin; i < queries.end; i += KRI_ATTN_GROUP) {
            attend_group(tile, i,
                         queries.end - i < KRI_ATTN_GROUP ? queries.end : i + KRI_ATTN_GROUP);
        }
    }
}

/* Partials of one span from or to the caller's memory. */
static void copy_partials(const attn_tile_t *tile, float *partials, int is_store) {
    const size_t head_dim = tile->head_dim;
    for (size_t i = 0; i < tile->n_queries; i++) {
        float *record = partials + i * KRI_ATTN_PARTIAL_FLOATS(head_dim);
        if (is_store) {
            memcpy(record, tile->acc + i * head_dim, head_dim * sizeof(float));
            record[head_dim] = tile->max[i];
            record[head_dim + 1u] = tile->sum[i];
        } else {
            memcpy(tile->acc + i * head_dim, record, head_dim * sizeof(float));
            tile->max[i] = record[head_dim];
            tile->sum[i] = record[head_dim + 1u];
        }
    }
}

static void attend_tile(attn_tile_t *tile) {
    const kri_attn_args_t *args = tile->args;
    const size_t span_floats = tile->n_queries * KRI_ATTN_PARTIAL_FLOATS(tile->head_dim);
    uint32_t first, end;
    kri_attn_spans(args->pos_begin, args->n_rows, args->window, &first, &end);
    if (args->stage == KRI_ATTN_PARTIAL) {
        attend_span(tile, args->span);
        copy_partials(tile, args->partials + (args->span - first) * span_floats, 1);
        return;
    }
    for (size_t i = 0; i < tile->n_queries; i++) {
        tile->total_max[i] = -FLT_MAX;
        tile->total_sum[i] = 0.0f;
    }
    memset(tile->total, 0, tile->n_queries * tile->head_dim * sizeof(float));
    for (uint32_t span = first; span < end; span++) {
        if (args->stage == KRI_ATTN_MERGE) {
            copy_partials(tile, args->partials + (span - first) * span_floats, 0);
        } else {
            attend_span(tile, span);
        }
        const attn_range_t queries = attn_queries(args, (size_t)span * KRI_ATTN_SPAN,
                                                  ((size_t)span + 1u) * KRI_ATTN_SPAN);
        merge_queries(tile, queries.begin, queries.end);
    }
    write_queries(tile);
}

#endif
