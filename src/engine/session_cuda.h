/* session_cuda.h: the part of a session that is on the CUDA device: buffers of activations,
 * tables of the step, recorded graphs of decode steps. */
#ifndef KRI_ENGINE_SESSION_CUDA_H
#define KRI_ENGINE_SESSION_CUDA_H

#include "cache/kv_pool.h"
#include "kr.h"
#include "model/model.h"

typedef struct kri_session_cuda_s kri_session_cuda_t;

/* For params already checked and completed for any device: refuses by name what is not built there,
 * and fills info->scratch_bytes, isa, is_invariant, device_weight_bytes, device_work_bytes. No
 * device is asked. */
kr_status_t kri_session_cuda_plan(const struct kr_model_s *model,
                                  const kr_session_params_t *params, kr_session_info_t *info,
                                  kr_error_t *error);
/* memory: the device's, for the KV pool; valid until destroy, which follows that of the pool. */
kr_status_t kri_session_cuda_create(struct kr_model_s *model, const kr_session_info_t *info,
                                    kri_pool_t *pool, kri_session_cuda_t **session,
                                    kri_kv_memory_t *memory, kr_error_t *error);
/* Why the KV pool got no memory: KR_E_DEVICE_NOMEM, KR_E_DEVICE_LOST; KR_OK: it did. */
kr_status_t kri_session_cuda_kv_status(const kri_session_cuda_t *session, kr_error_t *error);
/* "sm_90", or "sm_90+cublaslt" where that library is found; static. */
const char *kri_session_cuda_level(const kri_session_cuda_t *session);
void kri_session_cuda_destroy(kri_session_cuda_t *session);
/* The forward pass of a step; logits [n_out_rows, n_vocab] and hidden [n_hidden_rows, n_embd] are
 * the host's; with step->argmax tokens in place of logits (session.h). KR_E_NUMERIC: all were
 * written, one is not finite. KR_E_CANCELLED, KR_E_DEVICE_LOST. */
kr_status_t kri_session_cuda_run(kri_session_cuda_t *session, const kri_step_t *step,
                                 float *logits, float *hidden, kr_error_t *error);

#endif
