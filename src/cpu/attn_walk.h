/* attn_walk.h: an attention kernel's walk over spans, key blocks and groups of queries. Included
 * once by each ISA level's attention file after it has defined the parts:
 *
 *   load_keys(tile, keys), load_values(tile, keys)      of the current block
 *   score_group(tile, begin, end, keys)                 scores of queries [begin, end)
 *   weight_group(tile, begin, end, keys, is_ragged)     scores -> weights, max, sum, decay
 *   value_group(tile, begin, end, first, keys)          acc = acc * decay + weights * values for
 *                                                       queries of the group that starts at first
 *   decay_rows(tile, begin, end)                        acc *= decay, decay = 1
 *   merge_queries(tile, begin, end)                     max, sum, acc into the totals
 *   write_queries(tile)                                 totals -> out
 *
 * A group's queries stay in the first-level cache from their scores to their values. Its rows may
 * see different keys (the diagonal, a window's start): then scores are masked by row, and values
 * are summed per row outside the keys that all rows of the group see. */
#ifndef KRI_CPU_ATTN_WALK_H
#define KRI_CPU_ATTN_WALK_H

#include "cpu/attn_tile.h"

/* Values of a group with ragged rows, in ascending order of keys for each of them. */
static void sum_ragged(const attn_tile_t *tile, size_t begin, size_t end, attn_range_t common) {
    const size_t n_heads = tile->args->n_heads;
    decay_rows(tile, begin, end);
    for (size_t i = begin; i < end;) {
        const size_t row = i / n_heads;
        const size_t next = (row + 1u) * n_heads < end ? (row + 1u) * n_heads : end;
        attn_range_t keys = attn_keys(tile, row, row + 1u);
        if (common.begin < common.end) {
            keys.end = common.begin;
        }
        if (keys.begin < keys.end) {
            value_group(tile, i, next, begin, keys);
        }
        i = next;
    }
    if (common.begin >= common.end) {
        return;
    }
    value_group(tile, begin, end, begin, common);
    for (size_t i = begin; i < end;) {
        const size_t row = i / n_heads;
        const size_t next = (row + 1u) * n_heads < end ? (row + 1u) * n_heads : end;
        attn_range_t keys = attn_keys(tile, row, row + 1u);
        keys.begin = common.end;
        if (keys.begin < keys.end) {
            value_group(tile, i, next, begin, keys);
        }
        i = next;
    }
}

/* Queries [begin, end), at most KRI_ATTN_GROUP, all of which see some key of the block. */
static void attend_group(const attn_tile_t *tile, size_t begin, size_t end) {
    const size_t n_heads = tile->args->n_heads;
    const size_t first_row = begin / n_heads, last_row = (end - 1u) / n_heads;
    const attn_range_t first = attn_keys(tile, first_row, first_row + 1u);
    const attn_range_t last = attn_keys(tile, last_row, last_row + 1u);
    const attn_range_t all = {first.begin, last.end};
    const attn_range_t common = {last.begin, first.end};
    const int is_ragged = common.begin != all.begin || common.end != all.end;
    score_group(tile, begin, end, all);
    weight_group(tile, begin, end, all, is_ragged);
    if (is_ragged) {
        sum_ragged(tile, begin, end, common);
    } else {
        value_group(tile, begin, end, begin, all);
    }
}

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
