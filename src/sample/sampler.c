/* sampler.c: the order of the steps (kr.h, kr_sampler_params_t); the steps are in row.c,
 * penalties.c and candidates.c. What a sampler holds follows from its parameters: with top-k on,
 * the candidates take 1 KiB per k instead of 16 bytes per token of the vocabulary. */
#include "sample/sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "sample/candidates.h"
#include "sample/params.h"
#include "sample/penalties.h"
#include "sample/rng.h"
#include "sample/row.h"

/* Headers and rounding of its ten allocations. */
#define ALLOCATIONS_BYTES 1280u

struct kri_sampler_s {
    kr_sampler_params_t params; /* checked; logit_bias is not kept here */
    uint32_t top_k;             /* 0 = off */
    bool is_filtered;           /* any of top-k, typical, top-p, min-p is on */
    float scale;                /* 1 / temperature, finite; unused when greedy */
    kri_rng_t rng;
    kri_row_t row;
    kri_penalties_t penalties;
    kri_candidates_t candidates;
    bool has_logprobs;
    kr_logprob_t chosen;
    kr_logprob_t top[KRI_SAMPLER_LOGPROBS_MAX];
};

static void choose_filters(kri_sampler_t *s, uint32_t n_vocab) {
    const kr_sampler_params_t *p = &s->params;
    s->top_k = p->top_k > 0 && (uint32_t)p->top_k < n_vocab ? (uint32_t)p->top_k : 0;
    s->is_filtered = s->top_k > 0 || p->typical_p < 1.0f || p->top_p < 1.0f || p->min_p > 0.0f;
}

static uint32_t candidates_needed(const kri_sampler_t *sampler, uint32_t n_vocab) {
    const kr_sampler_params_t *p = &sampler->params;
    uint32_t n = 0;
    if (p->temperature > 0.0f && sampler->is_filtered)
        n = sampler->top_k > 0 ? kri_candidates_capacity(n_vocab, sampler->top_k) : n_vocab;
    if (p->n_logprobs > 0) {
        uint32_t n_top = kri_candidates_capacity(n_vocab, p->n_logprobs);
        n = n < n_top ? n_top : n;
    }
    return n;
}

uint64_t kri_sampler_bytes(const kr_sampler_params_t *params, uint32_t n_vocab) {
    kri_sampler_t s = {.params = *params};
    choose_filters(&s, n_vocab);
    const uint64_t n_blocks = n_vocab / KRI_ROW_BLOCK + 1;
    const uint64_t n_edits = kri_penalties_edits_max(params) + 1;
    const uint64_t n_patches = n_edits < n_blocks ? n_edits : n_blocks;
    const uint64_t n_seen = n_edits - 1 - params->n_logit_bias; /* 0: the penalties are off */
    return sizeof s + ALLOCATIONS_BYTES +
           n_blocks * (sizeof(uint32_t) + 2 * sizeof(float) + sizeof(uint64_t)) +
           n_patches * (sizeof(uint32_t) + KRI_ROW_BLOCK * sizeof(float)) +
           params->n_logit_bias * sizeof(kr_logit_bias_t) +
           n_seen * (sizeof(kr_token_t) + 4 * sizeof(kri_token_count_t)) +
           ((uint64_t)candidates_needed(&s, n_vocab) + 1) * sizeof(kri_candidate_t);
}

kr_status_t kri_sampler_create(const kr_sampler_params_t *params, uint32_t n_vocab,
                               kri_sampler_t **sampler, kr_error_t *error) {
    kr_status_t status = KR_OK;
    kr_sampler_params_t p;
    if (sampler == NULL)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "sampler", "sampler is NULL");
    KR_TRY(kri_sampler_params_read(&p, params, n_vocab, error));

    kri_sampler_t *s = kri_calloc(1, sizeof *s, "sampler");
    if (s == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for a sampler");
    s->params = p;
    choose_filters(s, n_vocab);
    /* A subnormal temperature would give +Inf, and 0 * Inf at the maximum is no number. */
    s->scale = p.temperature > 0.0f ? 1.0f / p.temperature : 0.0f;
    s->scale = s->scale < FLT_MAX ? s->scale : FLT_MAX;
    kri_rng_seed(&s->rng, p.seed, 0);
    KR_TRY_DONE(kri_penalties_init(&s->penalties, &p));
    KR_TRY_DONE(kri_row_init(&s->row, n_vocab, kri_penalties_edits_max(&p)));
    KR_TRY_DONE(kri_candidates_init(&s->candidates, n_vocab, candidates_needed(s, n_vocab)));
    s->params.logit_bias = NULL; /* borrowed until here; the penalties hold the copy */
    *sampler = s;
    s = NULL;
done:
    kri_sampler_destroy(s);
    if (status != KR_OK)
        return KRI_FAIL(error, status, NULL, "no memory for a sampler of %u tokens", n_vocab);
    return KR_OK;
}

void kri_sampler_destroy(kri_sampler_t *sampler) {
    if (sampler == NULL) return;
    kri_candidates_deinit(&sampler->candidates);
    kri_row_deinit(&sampler->row);
    kri_penalties_deinit(&sampler->penalties);
    kri_free(sampler);
}

bool kri_sampler_is_argmax(const kri_sampler_t *sampler) {
    return sampler->params.temperature <= 0.0f && sampler->params.n_logprobs == 0 &&
           kri_penalties_edits_max(&sampler->params) == 0;
}

kr_status_t kri_sampler_accept(kri_sampler_t *sampler, kr_token_t token) {
    if (sampler == NULL || token < 0 || (uint32_t)token >= sampler->row.n_vocab)
        return KR_E_INVALID_ARG;
    kri_penalties_accept(&sampler->penalties, token);
    return KR_OK;
}

/* The row without any filter: whole blocks are passed over until the one that holds the target. */
static kr_token_t draw_row(kri_sampler_t *s, double unit) {
    kri_row_t *row = &s->row;
    double target = unit * kri_row_sum_exp(row, s->scale), sum = 0.0;
    uint32_t block = 0, last = 0;
    for (uint32_t b = 0; b < row->n_blocks; b++) {
        double next = sum + (double)row->block_sum[b];
        if (!(row->block_sum[b] > 0.0f)) continue;
        block = b;
        if (target < next) break;
        sum = next;
    }
    float e[KRI_ROW_BLOCK];
    kri_row_exp(kri_row_block(row, block), row->max, s->scale, e);
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) {
        if (!(e[i] > 0.0f)) continue; /* impossible tokens and the padding are never drawn */
        last = i;
        sum += (double)e[i];
        if (target < sum) break;
    }
    return (kr_token_t)(block * KRI_ROW_BLOCK + last);
}

/* Without top-k and typical: the logit below which no token can survive top-p or min-p. All
 * tokens under max + ln((1 - p) total / n) together weigh less than (1 - p) total, so the others
 * hold the mass p. A margin and one rounding down cover the error of f32; the filters themselves
 * decide exactly. */
static float survivors_threshold(const kri_sampler_t *s, double total) {
    const kr_sampler_params_t *p = &s->params;
    const double MARGIN = 0.01;
    double max = (double)s->row.max, threshold = -INFINITY;
    if (p->top_p < 1.0f)
        threshold = max + log((1.0 - (double)p->top_p) * total / (double)s->row.n_vocab) - MARGIN;
    if (p->min_p > 0.0f) threshold = fmax(threshold, max + log((double)p->min_p) - MARGIN);
    return nextafterf((float)threshold, -INFINITY);
}

/* The filters in their order; each sees the distribution that the former one left. */
static void filter(kri_sampler_t *s) {
    const kr_sampler_params_t *p = &s->params;
    kri_candidates_t *candidates = &s->candidates;
    float max = s->row.max;
    double total = 0.0;
    if (s->top_k > 0) {
        kri_candidates_top(candidates, &s->row, s->top_k);
        total = kri_candidates_weigh(candidates, max, 1.0f);
    } else if (p->typical_p < 1.0f) {
        /* Less likely tokens have weight 0 and cannot count. */
        kri_candidates_above(candidates, &s->row, max + KRI_ROW_EXP_MIN);
        total = kri_candidates_weigh(candidates, max, 1.0f);
    } else {
        total = p->top_p < 1.0f ? kri_row_sum_exp(&s->row, 1.0f) : 0.0;
        kri_candidates_above(candidates, &s->row, survivors_threshold(s, total));
        (void)kri_candidates_weigh(candidates, max, 1.0f);
    }
    if (p->typical_p < 1.0f) {
        kri_candidates_keep_typical(candidates, max, total, p->typical_p);
        total = kri_candidates_weigh(candidates, max, 1.0f);
    }
    if (p->top_p < 1.0f) kri_candidates_keep_mass(candidates, (double)p->top_p * total);
    if (p->min_p > 0.0f) kri_candidates_keep_min_p(candidates, p->min_p);
}

/* ln of the softmax denominator, and the head of the list. */
static double take_logprobs(kri_sampler_t *s) {
    double log_total = (double)s->row.max + log(kri_row_sum_exp(&s->row, 1.0f));
    kri_candidates_top(&s->candidates, &s->row, s->params.n_logprobs);
    kri_candidates_sort_few(&s->candidates);
    for (uint32_t i = 0; i < s->params.n_logprobs; i++) {
        s->top[i] = (kr_logprob_t){-1, -INFINITY};
        if (i < s->candidates.n) {
            const kri_candidate_t *item = &s->candidates.items[i];
            s->top[i].token = item->token;
            s->top[i].logprob = (float)((double)item->logit - log_total);
        }
    }
    return log_total;
}

kr_status_t kri_sampler_sample(kri_sampler_t *sampler, const float *logits, kr_token_t *token) {
    if (sampler == NULL || logits == NULL || token == NULL) return KR_E_INVALID_ARG;
    kri_sampler_t *s = sampler;
    kr_token_t picked;
    double log_total = 0.0;
    s->has_logprobs = false;
    kri_row_begin(&s->row, logits);
    kri_penalties_apply(&s->penalties, &s->row);
    KR_TRY(kri_row_scan(&s->row));
    if (s->params.n_logprobs > 0) log_total = take_logprobs(s);
    if (s->params.temperature > 0.0f) {
        double unit = kri_rng_unit(&s->rng);
        if (s->is_filtered) {
            filter(s);
            picked = kri_candidates_draw(&s->candidates, &s->row, s->scale, unit);
        } else {
            picked = draw_row(s, unit);
        }
    } else {
        picked = kri_row_argmax(&s->row);
    }
    if (s->params.n_logprobs > 0) {
        s->chosen.token = picked;
        s->chosen.logprob = (float)((double)kri_row_get(&s->row, picked) - log_total);
        s->has_logprobs = true;
    }
    *token = picked;
    return KR_OK;
}

kr_status_t kri_sampler_logprobs(kri_sampler_t *sampler, kr_logprob_t *chosen,
                                 kr_logprob_t *top) {
    if (sampler == NULL || chosen == NULL || (top == NULL && sampler->params.n_logprobs > 0))
        return KR_E_INVALID_ARG;
    if (!sampler->has_logprobs) return KR_E_NOT_FOUND;
    *chosen = sampler->chosen;
    memcpy(top, sampler->top, sampler->params.n_logprobs * sizeof *top);
    return KR_OK;
}
