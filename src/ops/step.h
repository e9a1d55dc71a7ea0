/* step.h: what one step of a session hands to a model's forward pass: the flat batch, where each
 * sequence's keys and values live, and which rows give logits. No back-end is named here. */
#ifndef KRI_OPS_STEP_H
#define KRI_OPS_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "kr.h"

#define KRI_KV_GROUPS_MAX 4u
#define KRI_POS_COMPONENTS 3u

/* Layers with equal window, KV heads, head size and type share one pool and one page table per
 * sequence. Page = [layer in group][K | V][kv_head][16][head_dim]. */
typedef struct kri_kv_group_s {
    uint8_t *pool;
    size_t page_bytes;
    kr_dtype_t dtype;
    uint32_t n_layers, n_kv_heads, head_dim;
    uint32_t window; /* 0 = full attention */
} kri_kv_group_t;

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
    const uint32_t *out_rows;    /* [n_out_rows], ascending */
    uint32_t n_groups;
    const kri_kv_group_t *groups;
    const int32_t *adapters;     /* [n_rows]; NULL until LoRA is built */
    const uint32_t *cancel;      /* read with __atomic_load_n; non-zero: stop between layers */
} kri_step_t;

#endif
