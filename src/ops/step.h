/* step.h: what one step of a session hands to a model's forward pass: the flat batch, where each
 * sequence's keys and values live, and which rows give logits or hidden states. No back-end is
 * named here. */
#ifndef KRI_OPS_STEP_H
#define KRI_OPS_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/checked.h"
#include "kr.h"
#include "ops/kernels.h"

#define KRI_KV_GROUPS_MAX 4u
#define KRI_POS_COMPONENTS 3u

/* Layers with equal window, KV heads, head size and type share one pool and one page table per
 * sequence. Page, where a block is 16 keys or values of a KV head (kernels.h):
 *   f32, f16  [layer in group][K | V][kv_head] blocks
 *   int8, fp8 [layer in group][kv_head] times K block, V block, f16 scales [K | V][16]: blocks
 *             start at multiples of 64 bytes, and the scales of a head are one cache line. Keys of
 *             int8 may refer to the one in slot 0: a page is copied whole, and no slot before
 *             others. fp8 has e4m3 where int8 has integers, without bias and references */
typedef struct kri_kv_group_s {
    uint8_t *pool;
    size_t page_bytes;
    kr_dtype_t dtype;
    uint32_t n_layers, n_kv_heads, head_dim;
    uint32_t window; /* 0 = full attention */
} kri_kv_group_t;

static inline bool kri_kv_is_8bit(kr_dtype_t dtype) {
    return dtype == KR_DTYPE_I8 || dtype == KR_DTYPE_F8;
}

/* One block. 8 bits: head_dim up to a multiple of 4, because the layout is made of fours. */
static inline size_t kri_kv_block_bytes(kr_dtype_t dtype, uint32_t head_dim) {
    size_t n = (size_t)KRI_PAGE_TOKENS * head_dim;
    if (kri_kv_is_8bit(dtype)) return (size_t)KRI_PAGE_TOKENS * KRI_I8_DIMS(head_dim);
    return n * (dtype == KR_DTYPE_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* K and V of one layer and KV head in one page, with their scales. */
static inline size_t kri_kv_head_bytes(kr_dtype_t dtype, uint32_t head_dim) {
    size_t scales = kri_kv_is_8bit(dtype) ? 2 * KRI_PAGE_TOKENS * sizeof(uint16_t) : 0;
    return 2 * kri_kv_block_bytes(dtype, head_dim) + scales;
}

/* Bytes of a page; false on overflow. */
static inline bool kri_kv_page_bytes(kr_dtype_t dtype, uint32_t n_layers, uint32_t n_kv_heads,
                                     uint32_t head_dim, size_t *n_bytes) {
    size_t n = 0;
    return kri_mul_size(n_layers, n_kv_heads, &n) &&
           kri_mul_size(n, kri_kv_head_bytes(dtype, head_dim), n_bytes);
}

/* Where a layer's KV head lies inside a page; scales: 8 bits only. */
typedef struct kri_kv_place_s {
    size_t k, v, scales;
} kri_kv_place_t;

static inline kri_kv_place_t kri_kv_place(const kri_kv_group_t *group, uint32_t layer,
                                          uint32_t kv_head) {
    size_t block = kri_kv_block_bytes(group->dtype, group->head_dim);
    if (kri_kv_is_8bit(group->dtype)) {
        size_t head = (size_t)layer * group->n_kv_heads + kv_head;
        size_t begin = head * kri_kv_head_bytes(group->dtype, group->head_dim);
        return (kri_kv_place_t){begin, begin + block, begin + 2 * block};
    }
    size_t k = ((size_t)layer * 2 * group->n_kv_heads + kv_head) * block;
    return (kri_kv_place_t){k, k + group->n_kv_heads * block, 0};
}

typedef struct kri_step_seq_s {
    uint32_t seq;                /* id of the sequence in the session */
    uint32_t row_begin, n_rows;  /* rows of the batch, consecutive positions */
    uint32_t pos_begin;          /* position of the first row = tokens held before the step */
    const uint32_t *page_table[KRI_KV_GROUPS_MAX]; /* by group, indexed by position / 16 */
} kri_step_seq_t;

typedef struct kri_step_s {
    uint32_t n_rows;
    const kr_token_t *tokens;    /* [n_rows] */
    const int32_t *positions;    /* [n_rows, 3]; text: all three equal */
    uint32_t n_seqs;
    const kri_step_seq_t *seqs;  /* [n_seqs], in row order */
    uint32_t n_out_rows;
    const uint32_t *out_rows;    /* [n_out_rows], ascending: they give logits */
    uint32_t n_hidden_rows;
    const uint32_t *hidden_rows; /* [n_hidden_rows], ascending: they give final hidden states */
    uint32_t n_groups;
    const kri_kv_group_t *groups;
    kr_token_t *argmax;          /* [n_out_rows] of the host; not NULL: filled in place of logits,
                                  * by a device that can (session.h) */
    const uint32_t *cancel;      /* read with __atomic_load_n; non-zero: stop between layers */
} kri_step_t;

#endif
