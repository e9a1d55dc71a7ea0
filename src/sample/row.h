/* row.h: one row of logits as blocks of 64 that can be edited without copying the row.
 * The caller's row is const. Bias and penalties touch few tokens, so only their blocks are copied
 * ("patched"); the ragged last block is always a copy padded with -Inf. Every loop therefore runs
 * over whole blocks with a constant trip count, which compilers vectorise at -O2 for the baseline
 * instruction set. The maxima of the blocks, found on the one pass over the row, let later steps
 * skip the blocks that cannot matter. */
#ifndef KRI_SAMPLE_ROW_H
#define KRI_SAMPLE_ROW_H

#include "kr.h"

#define KRI_ROW_BLOCK 64u
/* Steps of exp; below exp(-87) an f32 would be subnormal and counts as 0. */
#define KRI_ROW_EXP_MIN (-87.0f)

typedef struct kri_row_s {
    const float *logits;      /* [n_vocab], borrowed from kri_row_begin to the next one */
    uint32_t n_vocab, n_blocks;
    uint32_t n_patches, n_patches_max;
    uint32_t *patch_of_block; /* [n_blocks], 1 + index of the block's patch; 0 = none */
    uint32_t *patched;        /* [n_patches_max] the blocks that have one */
    float *patches;           /* [n_patches_max, 64] */
    float *block_max;         /* [n_blocks], after kri_row_scan */
    float *block_sum;         /* [n_blocks], after kri_row_sum_exp */
    float max;                /* after kri_row_scan; finite */
} kri_row_t;

/* Room for edits of n_edits_max different tokens between two kri_row_begin. KR_E_NOMEM; the row
 * may be given to kri_row_deinit also then. n_vocab is in 1..INT32_MAX. */
kr_status_t kri_row_init(kri_row_t *row, uint32_t n_vocab, uint64_t n_edits_max);
void kri_row_deinit(kri_row_t *row);

/* Looks at a new row of logits and forgets the edits of the former one. */
void kri_row_begin(kri_row_t *row, const float *logits);
/* Where the logit of `token` may be changed. */
float *kri_row_edit(kri_row_t *row, kr_token_t token);
/* Finds the maxima. KR_E_NUMERIC: a NaN or +Inf, or nothing but -Inf. */
kr_status_t kri_row_scan(kri_row_t *row);
/* The token of the largest logit, the lowest one among equals. After kri_row_scan. */
kr_token_t kri_row_argmax(const kri_row_t *row);
/* Sum of exp((x - max) * scale) over the row; also fills block_sum. After kri_row_scan; scale is
 * positive and finite. */
double kri_row_sum_exp(kri_row_t *row, float scale);

/* out[i] = exp((x[i] - shift) * scale) for [64] values with x <= shift; exactly 0 below
 * KRI_ROW_EXP_MIN, relative error under 3e-7 of the rounded argument above it. */
void kri_row_exp(const float *x, float shift, float scale, float *out);

static inline const float *kri_row_block(const kri_row_t *row, uint32_t block) {
    uint32_t patch = row->patch_of_block[block];
    if (patch != 0) return row->patches + (size_t)(patch - 1) * KRI_ROW_BLOCK;
    return row->logits + (size_t)block * KRI_ROW_BLOCK;
}

static inline float kri_row_get(const kri_row_t *row, kr_token_t token) {
    return kri_row_block(row, (uint32_t)token / KRI_ROW_BLOCK)[(uint32_t)token % KRI_ROW_BLOCK];
}

#endif
