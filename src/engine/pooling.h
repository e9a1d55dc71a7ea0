/* pooling.h: one vector from the final hidden states of a prompt. Rows come in the order of their
 * positions, over as many steps as the prompt takes; a sum is made in that order in f64, so that
 * neither steps nor neighbours change a bit. A prompt that begins anew (position 0, after a
 * preemption) forgets what it had. Threads: one at a time. */
#ifndef KRI_ENGINE_POOLING_H
#define KRI_ENGINE_POOLING_H

#include <stdbool.h>

#include "kr.h"

typedef struct kri_pooling_s {
    int32_t kind;       /* KR_POOLING_* */
    bool normalize;
    uint32_t n_embd;
    uint32_t n_added;   /* MEAN: rows in the sum */
    double *sum;        /* MEAN: [n_embd], owned */
    float *embedding;   /* [n_embd], owned; what kri_pooling_finish leaves */
} kri_pooling_t;

/* Heap that init takes: what is needed until the last row (sum) and to the end (embedding). */
uint64_t kri_pooling_work_bytes(int32_t kind, uint32_t n_embd);
uint64_t kri_pooling_event_bytes(int32_t kind, uint32_t n_embd);
/* KR_E_NOMEM; to be freed in any case. kind NONE takes nothing. */
kr_status_t kri_pooling_init(kri_pooling_t *pooling, int32_t kind, bool normalize,
                             uint32_t n_embd);
/* The sum, the embedding. */
void kri_pooling_free_work(kri_pooling_t *pooling);
void kri_pooling_free_embedding(kri_pooling_t *pooling);

/* hidden [n_rows, n_embd] from this position on: MEAN every row of the prompt, LAST its last. */
void kri_pooling_add(kri_pooling_t *pooling, const float *hidden, uint32_t n_rows,
                     uint32_t position);
/* After the last row: the embedding. */
void kri_pooling_finish(kri_pooling_t *pooling);

#endif
