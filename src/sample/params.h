/* params.h: defaults and checks of kr_sampler_params_t; limits as in kr.h. */
#ifndef KRI_SAMPLE_PARAMS_H
#define KRI_SAMPLE_PARAMS_H

#include "kr.h"

#define KRI_SAMPLER_LOGPROBS_MAX 20u
#define KRI_SAMPLER_BIAS_MAX 1024u
#define KRI_SAMPLER_PENALTY_LAST_MAX (1u << 20)

/* Reads `source` (NULL = defaults) over the defaults and checks every field.
 * KR_E_INVALID_ARG (param names the field), KR_E_UNSUPPORTED (a longer struct). params->logit_bias
 * stays borrowed from the caller. */
kr_status_t kri_sampler_params_read(kr_sampler_params_t *params,
                                    const kr_sampler_params_t *source, uint32_t n_vocab,
                                    kr_error_t *error);

#endif
