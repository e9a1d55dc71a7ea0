/* kr_sampler.c: the public handle of a sampler is the internal object itself. */
#include "sample/sampler.h"

#include "base/error.h"

static kri_sampler_t *internal(kr_sampler_t sampler) { return (kri_sampler_t *)sampler; }

void kr_sampler_params_init(kr_sampler_params_t *params) {
    if (params) kri_sampler_params_init(params);
}

kr_status_t kr_sampler_create(const kr_sampler_params_t *params, uint32_t n_vocab,
                              kr_sampler_t *sampler, kr_error_t *error) {
    kri_sampler_t *out = NULL;
    if (!sampler) return KRI_FAIL(error, KR_E_INVALID_ARG, "sampler", "sampler is NULL");
    KR_TRY(kri_sampler_create(params, n_vocab, &out, error));
    *sampler = (kr_sampler_t)out;
    return KR_OK;
}

void kr_sampler_destroy(kr_sampler_t sampler) { kri_sampler_destroy(internal(sampler)); }

kr_status_t kr_sampler_accept(kr_sampler_t sampler, kr_token_t token) {
    return sampler ? kri_sampler_accept(internal(sampler), token) : KR_E_INVALID_ARG;
}

kr_status_t kr_sampler_sample(kr_sampler_t sampler, const float *logits, kr_token_t *token) {
    if (!sampler || !logits || !token) return KR_E_INVALID_ARG;
    return kri_sampler_sample(internal(sampler), logits, token);
}

kr_status_t kr_sampler_logprobs(kr_sampler_t sampler, kr_logprob_t *chosen, kr_logprob_t *top) {
    if (!sampler || !chosen || !top) return KR_E_INVALID_ARG;
    return kri_sampler_logprobs(internal(sampler), chosen, top);
}
