/* params.c: see params.h. Each range is written as what is allowed, so that a NaN, which compares
 * false with everything, is refused by the same test. */
#include "sample/params.h"

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/structs.h"
#include "sample/sampler.h"

void kri_sampler_params_init(kr_sampler_params_t *params) {
    if (params == NULL) return;
    kri_struct_init(params, sizeof *params);
    params->n_penalty_last = 64;
    params->temperature = 0.8f;
    params->top_k = 40;
    params->top_p = 0.95f;
    params->typical_p = 1.0f;
    params->repeat_penalty = 1.0f;
}

typedef struct range_s {
    const char *name, *text;
    float value, low, high;
    bool low_is_open;
} range_t;

static kr_status_t check_ranges(const kr_sampler_params_t *p, kr_error_t *error) {
    const range_t ranges[] = {
        {"temperature", "0 to 2", p->temperature, 0.0f, 2.0f, false},
        {"top_p", "over 0, at most 1", p->top_p, 0.0f, 1.0f, true},
        {"min_p", "0 to 1", p->min_p, 0.0f, 1.0f, false},
        {"typical_p", "over 0, at most 1", p->typical_p, 0.0f, 1.0f, true},
        {"repeat_penalty", "over 0, at most 2", p->repeat_penalty, 0.0f, 2.0f, true},
        {"presence_penalty", "-2 to 2", p->presence_penalty, -2.0f, 2.0f, false},
        {"frequency_penalty", "-2 to 2", p->frequency_penalty, -2.0f, 2.0f, false},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const range_t *r = &ranges[i];
        bool above = r->low_is_open ? r->value > r->low : r->value >= r->low;
        if (!(above && r->value <= r->high))
            return KRI_FAIL(error, KR_E_INVALID_ARG, r->name, "%s is %g; allowed: %s", r->name,
                            (double)r->value, r->text);
    }
    return KR_OK;
}

static kr_status_t check_logit_bias(const kr_sampler_params_t *p, uint32_t n_vocab,
                                    kr_error_t *error) {
    const char *name = "logit_bias";
    if (p->n_logit_bias > KRI_SAMPLER_BIAS_MAX)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_logit_bias",
                        "n_logit_bias is %u; allowed: at most %u", p->n_logit_bias,
                        KRI_SAMPLER_BIAS_MAX);
    if (p->n_logit_bias > 0 && p->logit_bias == NULL)
        return KRI_FAIL(error, KR_E_INVALID_ARG, name, "logit_bias is NULL but n_logit_bias is %u",
                        p->n_logit_bias);
    for (uint32_t i = 0; i < p->n_logit_bias; i++) {
        const kr_logit_bias_t *entry = &p->logit_bias[i];
        if (entry->token < 0 || (uint32_t)entry->token >= n_vocab)
            return KRI_FAIL(error, KR_E_INVALID_ARG, name,
                            "logit_bias: token %d is outside the vocabulary of %u", entry->token,
                            n_vocab);
        if (!(entry->bias >= -100.0f && entry->bias <= 100.0f))
            return KRI_FAIL(error, KR_E_INVALID_ARG, name,
                            "logit_bias: bias %g of token %d; allowed: -100 to 100",
                            (double)entry->bias, entry->token);
        /* Quadratic, but of at most 1024 entries and once per sampler. */
        for (uint32_t j = 0; j < i; j++)
            if (p->logit_bias[j].token == entry->token)
                return KRI_FAIL(error, KR_E_INVALID_ARG, name,
                                "logit_bias: token %d is given twice", entry->token);
    }
    return KR_OK;
}

kr_status_t kri_sampler_params_read(kr_sampler_params_t *params,
                                    const kr_sampler_params_t *source, uint32_t n_vocab,
                                    kr_error_t *error) {
    kr_sampler_params_t p;
    kri_sampler_params_init(&p);
    KR_TRY(kri_struct_read(&p, sizeof p, source, "params", error));
    if (n_vocab == 0 || n_vocab > INT32_MAX)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_vocab", "n_vocab is %u", n_vocab);
    KR_TRY(check_ranges(&p, error));
    if (p.top_k < -1)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "top_k",
                        "top_k is %d; allowed: 1 or more, or 0 and -1 for off", p.top_k);
    if (p.n_penalty_last > KRI_SAMPLER_PENALTY_LAST_MAX)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_penalty_last",
                        "n_penalty_last is %u; allowed: at most %u", p.n_penalty_last,
                        KRI_SAMPLER_PENALTY_LAST_MAX);
    if (p.n_logprobs > KRI_SAMPLER_LOGPROBS_MAX)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_logprobs",
                        "n_logprobs is %u; allowed: at most %u", p.n_logprobs,
                        KRI_SAMPLER_LOGPROBS_MAX);
    KR_TRY(check_logit_bias(&p, n_vocab, error));
    *params = p;
    return KR_OK;
}
