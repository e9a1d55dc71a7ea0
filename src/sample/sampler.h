/* sampler.h: from a row of logits to a token. Order of the steps: kr.h, kr_sampler_params_t.
 * No full sort: one pass finds the candidates, only those are selected from. Allocates at create
 * only. Each filter sees the distribution that the former one left, renormalised. One number of
 * the seed's sequence is used per sample, none when greedy. */
#ifndef KRI_SAMPLE_SAMPLER_H
#define KRI_SAMPLE_SAMPLER_H

#include <stdbool.h>

#include "kr.h"

typedef struct kri_sampler_s kri_sampler_t;

/* The defaults of kr.h. */
void kri_sampler_params_init(kr_sampler_params_t *params);
/* Heap bytes that a sampler of these checked params takes, at most. */
uint64_t kri_sampler_bytes(const kr_sampler_params_t *params, uint32_t n_vocab);
/* params may be NULL (defaults). */
kr_status_t kri_sampler_create(const kr_sampler_params_t *params, uint32_t n_vocab,
                               kri_sampler_t **sampler, kr_error_t *error);
void kri_sampler_destroy(kri_sampler_t *sampler);
/* Whether it takes the largest logit (the first of equal ones) and asks for nothing else. */
bool kri_sampler_is_argmax(const kri_sampler_t *sampler);
kr_status_t kri_sampler_accept(kri_sampler_t *sampler, kr_token_t token);
kr_status_t kri_sampler_sample(kri_sampler_t *sampler, const float *logits, kr_token_t *token);
/* KR_E_NOT_FOUND also with n_logprobs 0: the sum over the vocabulary is then never taken. Where
 * fewer than n_logprobs tokens are possible, the rest of `top` is {-1, -Inf}. */
kr_status_t kri_sampler_logprobs(kri_sampler_t *sampler, kr_logprob_t *chosen,
                                 kr_logprob_t *top);

#endif
