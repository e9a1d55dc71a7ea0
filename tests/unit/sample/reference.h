/* reference.h: the sampler written the obvious way (doubles, full sorts), the oracle of
 * test_sampler.c and test_candidates.c. */
#ifndef TEST_SAMPLE_REFERENCE_H
#define TEST_SAMPLE_REFERENCE_H

#include <math.h>
#include <stdlib.h>

#include "kr.h"

#define REF_VOCAB_MAX 8192

typedef struct ref_item_s { double logit, p, order; kr_token_t token; } ref_item_t;

static inline int ref_by_order(const void *a, const void *b) {
    const ref_item_t *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Softmax over the items. */
static inline void ref_normalise(ref_item_t *items, size_t n, double temperature) {
    double max = -HUGE_VAL, total = 0.0;
    for (size_t i = 0; i < n; i++) max = fmax(max, items[i].logit);
    for (size_t i = 0; i < n; i++) total += exp((items[i].logit - max) / temperature);
    for (size_t i = 0; i < n; i++) items[i].p = exp((items[i].logit - max) / temperature) / total;
}

static inline size_t ref_prefix(const ref_item_t *items, size_t n, double mass) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += items[i].p;
        if (sum >= mass) return i + 1;
    }
    return n;
}

static inline void ref_sort_by_logit(ref_item_t *items, size_t n) {
    for (size_t i = 0; i < n; i++) items[i].order = -items[i].logit;
    qsort(items, n, sizeof *items, ref_by_order);
}

/* Bias and penalties; `history` is everything accepted so far. */
static inline void ref_penalise(double *logits, const kr_sampler_params_t *p,
                                const kr_token_t *history, size_t n_history, size_t n_vocab) {
    size_t first = n_history > p->n_penalty_last ? n_history - p->n_penalty_last : 0;
    for (uint32_t i = 0; i < p->n_logit_bias; i++)
        logits[p->logit_bias[i].token] += (double)p->logit_bias[i].bias;
    for (size_t token = 0; token < n_vocab; token++) {
        double count = 0.0;
        for (size_t i = first; i < n_history; i++) count += history[i] == (kr_token_t)token;
        if (count == 0.0) continue;
        double *x = &logits[token];
        *x = *x > 0.0 ? *x / (double)p->repeat_penalty : *x * (double)p->repeat_penalty;
        *x -= (double)p->presence_penalty + count * (double)p->frequency_penalty;
    }
}

/* The filters of params over logits [n_vocab]; leaves survivors in items and returns how many.
 * Their p is the softmax without temperature. */
static inline size_t ref_filter(ref_item_t *items, const double *logits, size_t n_vocab,
                                const kr_sampler_params_t *p) {
    size_t n = 0;
    for (size_t i = 0; i < n_vocab; i++)
        if (logits[i] > -HUGE_VAL)
            items[n++] = (ref_item_t){logits[i], 0.0, 0.0, (kr_token_t)i};
    ref_sort_by_logit(items, n);
    if (p->top_k > 0 && n > (size_t)p->top_k) n = (size_t)p->top_k;
    if (p->typical_p < 1.0f) {
        double entropy = 0.0;
        ref_normalise(items, n, 1.0);
        for (size_t i = 0; i < n; i++)
            if (items[i].p > 0.0) entropy -= items[i].p * log(items[i].p);
        for (size_t i = 0; i < n; i++) items[i].order = fabs(-log(items[i].p) - entropy);
        qsort(items, n, sizeof *items, ref_by_order);
        n = ref_prefix(items, n, (double)p->typical_p);
        ref_sort_by_logit(items, n);
    }
    if (p->top_p < 1.0f) {
        ref_normalise(items, n, 1.0);
        n = ref_prefix(items, n, (double)p->top_p);
    }
    ref_normalise(items, n, 1.0);
    if (p->min_p > 0.0f) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (items[i].p >= (double)p->min_p * items[0].p) kept++;
        n = kept; /* descending: they are the first */
    }
    return n;
}

/* Small deterministic numbers, apart from the sampler's own generator. */
static inline double ref_random(uint64_t *state) {
    *state = *state * UINT64_C(2862933555777941757) + UINT64_C(3037000493);
    return (double)(*state >> 11) * 0x1.0p-53;
}
static inline double ref_normal(uint64_t *state) {
    double u = 1.0 - ref_random(state), v = ref_random(state);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

#endif
