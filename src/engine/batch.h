/* batch.h: from a caller's kr_batch_t to a step: every field checked before anything is touched,
 * then pages reserved and the flat arrays of the step filled in space taken at create. */
#ifndef KRI_ENGINE_BATCH_H
#define KRI_ENGINE_BATCH_H

#include "cache/kv_pool.h"
#include "kr.h"
#include "ops/step.h"

typedef struct kri_batch_space_s {
    kri_step_seq_t *seqs; /* [n_seqs] */
    int32_t *positions;   /* [n_rows_max, 3] */
    uint8_t *seen;        /* [n_seqs] */
} kri_batch_space_t;

size_t kri_batch_space_bytes(uint32_t n_rows_max, uint32_t n_seqs);
void kri_batch_space_init(kri_batch_space_t *space, void *memory, uint32_t n_rows_max,
                          uint32_t n_seqs);
/* kr_session_decode's argument errors. */
kr_status_t kri_batch_check(const kr_batch_t *batch, const float *logits,
                            const kri_kv_pool_t *kv, const kr_session_info_t *info,
                            uint32_t n_vocab, kri_batch_space_t *space, kr_error_t *error);
/* Reserves pages for a checked batch and describes the step; on failure nothing is reserved. */
kr_status_t kri_batch_prepare(const kr_batch_t *batch, kri_kv_pool_t *kv,
                              kri_batch_space_t *space, kri_step_t *step, kr_error_t *error);

#endif
