/* engine.h: many requests at once over several models. kr.h states the contract; the parts:
 *   engine.c          threads, destruction, drain, figures, questions to the step thread
 *   engine_models.c   models under names, their share of the memory ledger
 *   engine_loop.c     the step thread: takes what was asked, picks a model, publishes, sleeps
 *   engine_step.c     one step: forward pass, then sampling of all rows in parallel
 *   request.c         submit: checks, memory; request_prompt.c segments to tokens
 *   request_run.c     a request on the step thread: credits, events, ends
 *   pooling.c         an embedding from the hidden states of a prompt
 *   events.c          finished events to their consumer: polling; dispatch.c: the callback thread
 * Arguments arrive here as complete structs (api/kr_engine.c reads them). */
#ifndef KRI_ENGINE_ENGINE_H
#define KRI_ENGINE_ENGINE_H

#include "kr.h"

kr_status_t kri_engine_create(const kr_engine_params_t *params, kr_engine_t *engine,
                              kr_error_t *error);
kr_status_t kri_engine_drain(kr_engine_t engine, uint32_t timeout_ms);
void kri_engine_destroy(kr_engine_t engine);
kr_status_t kri_engine_add_model(kr_engine_t engine, const char *name, kr_model_t model,
                                 const kr_session_params_t *params, kr_error_t *error);
kr_status_t kri_engine_remove_model(kr_engine_t engine, const char *name, kr_error_t *error);
kr_status_t kri_engine_resize_kv(kr_engine_t engine, const char *name, uint64_t kv_bytes,
                                 kr_error_t *error);
kr_status_t kri_engine_stats(kr_engine_t engine, const char *name, kr_engine_stats_t *stats);
kr_status_t kri_engine_submit(kr_engine_t engine, const kr_request_params_t *params,
                              kr_request_t *request, kr_error_t *error);
kr_status_t kri_engine_explain(kr_engine_t engine, const kr_request_params_t *params,
                               kr_explain_t *explain, kr_error_t *error);
kr_status_t kri_engine_poll(kr_engine_t engine, kr_event_t *events, uint32_t capacity,
                            uint32_t timeout_ms, uint32_t *n_events);
kr_status_t kri_engine_event_fd(kr_engine_t engine, int32_t *fd);
void kri_request_cancel(kr_request_t request);
kr_status_t kri_request_add_credits(kr_request_t request, uint32_t n);
void kri_request_release(kr_request_t request);
void kri_request_stats(kr_request_t request, kr_request_stats_t *stats);

#endif
