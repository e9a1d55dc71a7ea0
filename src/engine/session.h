/* session.h: N sequences over one model, driven by the caller: validation of a batch, pages for
 * it, one forward pass, logits. Chooses the back-end (composition root). Everything that decoding
 * needs is taken at create. */
#ifndef KRI_ENGINE_SESSION_H
#define KRI_ENGINE_SESSION_H

#include "kr.h"

struct kr_model_s;
struct kr_session_s;

kr_status_t kri_session_create(struct kr_model_s *model, const kr_session_params_t *params,
                               struct kr_session_s **session, kr_error_t *error);
void kri_session_destroy(struct kr_session_s *session);
/* Checked and completed parameters, and the bytes they ask for. */
kr_status_t kri_session_plan(const struct kr_model_s *model, const kr_session_params_t *params,
                             kr_session_info_t *info, kr_error_t *error);
void kri_session_info(const struct kr_session_s *session, kr_session_info_t *info);
kr_status_t kri_session_decode(struct kr_session_s *session, const kr_batch_t *batch,
                               float *logits, kr_error_t *error);
void kri_session_cancel(struct kr_session_s *session);
kr_status_t kri_session_length(const struct kr_session_s *session, uint32_t seq,
                               uint32_t *n_tokens);
kr_status_t kri_session_truncate(struct kr_session_s *session, uint32_t seq, uint32_t n_tokens);

#endif
