/* session.h: N sequences over one model, driven by the caller: validation of a batch, pages for
 * it, one forward pass, logits. Chooses the back-end (composition root). Everything that decoding
 * needs is taken at create. */
#ifndef KRI_ENGINE_SESSION_H
#define KRI_ENGINE_SESSION_H

#include "cache/kv_pool.h"
#include "kr.h"
#include "ops/step.h"

struct kr_model_s;
struct kr_session_s;

/* prefix_cache ON gives the pool one: for engines, which publish; the caller of a plain session
 * cannot (kr_session.c refuses it). */
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
kr_status_t kri_session_fork(struct kr_session_s *session, uint32_t src, uint32_t dst,
                             uint32_t n_tokens);

/* ---- for engines, which prepare steps themselves -------------------------------------------- */

kri_kv_pool_t *kri_session_kv(struct kr_session_s *session);
/* The forward pass of a prepared step and its telemetry: no pages are taken, nothing is committed.
 * logits [n_out_rows, n_vocab]; step->cancel NULL: kri_session_cancel cancels.
 * Where kri_session_has_argmax, step->argmax may ask for the tokens of the largest logits (the
 * first of equal ones; -1 in a row that is not finite) in place of logits, which may be NULL then.
 * KR_E_NUMERIC: all logits and hidden states were written, some row of them is not finite.
 * KR_E_CANCELLED. */
kr_status_t kri_session_run(struct kr_session_s *session, const kri_step_t *step, float *logits,
                            kr_error_t *error);
bool kri_session_has_argmax(const struct kr_session_s *session);
/* [n_hidden_rows, n_embd] of the last step, until the next one. */
const float *kri_session_hidden(const struct kr_session_s *session);

/* ---- session_state.c: a sequence as bytes --------------------------------------------------- */

kr_status_t kri_session_save(const struct kr_session_s *session, uint32_t seq, void *buf,
                             size_t capacity, size_t *n_bytes);
kr_status_t kri_session_restore(struct kr_session_s *session, uint32_t seq, const void *buf,
                                size_t n_bytes, kr_error_t *error);

#endif
