/* candidates.h: the tokens that may still be drawn, and the filters that thin them out.
 * Nothing is sorted. A filter keeps the smallest prefix of an order (most likely first, lower id
 * first among equals) that holds k tokens or a probability mass; which tokens are in that prefix
 * is found by selection (Hoare, "Algorithm 65: Find", 1961) with random pivots from a fixed seed:
 * O(n) expected for every input, no input can be made slow. The items' own order means nothing
 * until kri_candidates_draw puts them in order of id, so that a draw depends on the surviving set
 * and the seed only. */
#ifndef KRI_SAMPLE_CANDIDATES_H
#define KRI_SAMPLE_CANDIDATES_H

#include "kr.h"
#include "sample/rng.h"
#include "sample/row.h"

typedef struct kri_candidate_s {
    uint32_t key;     /* place in the order of the filter at work, smaller is first */
    kr_token_t token; /* breaks ties, so that the order is strict */
    float logit;
    float weight;     /* exp((logit - shift) * scale) of the last kri_candidates_weigh */
} kri_candidate_t;

typedef struct kri_candidates_s {
    uint32_t n, capacity;
    kri_candidate_t *items; /* [capacity + 1]: gathering writes one ahead */
    uint64_t *is_kept;      /* [n_vocab / 64 rounded up] one bit per token, all 0 between calls */
    kri_rng_t pivots;
} kri_candidates_t;

/* Room that kri_candidates_top needs for k tokens. */
uint32_t kri_candidates_capacity(uint32_t n_vocab, uint32_t k);
/* KR_E_NOMEM; kri_candidates_deinit may be called also then. */
kr_status_t kri_candidates_init(kri_candidates_t *candidates, uint32_t n_vocab,
                                uint32_t capacity);
void kri_candidates_deinit(kri_candidates_t *candidates);

/* Starts from the k tokens of the largest logits, fewer if the others are -Inf. The row was
 * scanned. Capacity as above. */
void kri_candidates_top(kri_candidates_t *candidates, const kri_row_t *row, uint32_t k);
/* Starts from all tokens with a logit of at least `threshold` (over -Inf). Capacity: n_vocab. */
void kri_candidates_above(kri_candidates_t *candidates, const kri_row_t *row, float threshold);

/* Sets the weights and returns their sum; no logit is over `shift`. */
double kri_candidates_weigh(kri_candidates_t *candidates, float shift, float scale);
/* Top-p (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020): keeps the most
 * likely tokens that together weigh `mass`, or all if they weigh less. */
void kri_candidates_keep_mass(kri_candidates_t *candidates, double mass);
/* Locally typical sampling (Meister et al., "Locally Typical Sampling", 2022): keeps the tokens
 * whose information content is nearest to the entropy of the candidates' distribution and which
 * together have probability p. Weights are set with scale 1 and `shift`; `total` is their sum. */
void kri_candidates_keep_typical(kri_candidates_t *candidates, float shift, double total, float p);
/* Min-p (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024): keeps the tokens at least
 * min_p times as likely as the most likely one; min_p > 0. */
void kri_candidates_keep_min_p(kri_candidates_t *candidates, float min_p);

/* Most likely first. Insertion sort: for the few of a log-probability list only. */
void kri_candidates_sort_few(kri_candidates_t *candidates);
/* Draws with probabilities proportional to exp(logit * scale); `unit` is uniform in [0, 1). */
kr_token_t kri_candidates_draw(kri_candidates_t *candidates, const kri_row_t *row, float scale,
                               double unit);

#endif
