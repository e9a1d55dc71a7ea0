/* attn_group.h: one group of queries over one key block where values are summed in floats. Included
 * by an attention file after it has defined the parts:
 *
 *   score_group(tile, begin, end, keys)                 scores of queries [begin, end)
 *   weight_group(tile, begin, end, keys, is_ragged)     scores -> weights, max, sum, decay
 *   value_group(tile, begin, end, first, keys)          acc = acc * decay + weights * values for
 *                                                       queries of the group that starts at first
 *   decay_rows(tile, begin, end)                        acc *= decay, decay = 1
 *
 * A group's queries stay in the first-level cache from their scores to their values. Its rows may
 * see different keys (the diagonal, a window's start): then scores are masked by row, and values
 * are summed per row outside the keys that all rows of the group see. */
#ifndef KRI_CPU_ATTN_GROUP_H
#define KRI_CPU_ATTN_GROUP_H

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

#endif
