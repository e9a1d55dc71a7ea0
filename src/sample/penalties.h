/* penalties.h: logit bias and the penalties on tokens that were seen before.
 * repetition   Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable
 *              Generation", 2019, section 4.1, in the usual form that also lowers negative
 *              logits: x > 0 is divided by the penalty, x <= 0 multiplied by it.
 * presence, frequency   as in the OpenAI API: x -= presence + count * frequency for count > 0.
 * The last n_penalty_last accepted tokens count. A ring holds them in order and a hash table holds
 * the count of each different one, so that accepting is O(1) and sampling touches only tokens of
 * the history, however large the vocabulary. */
#ifndef KRI_SAMPLE_PENALTIES_H
#define KRI_SAMPLE_PENALTIES_H

#include "kr.h"
#include "sample/row.h"

typedef struct kri_token_count_s {
    kr_token_t token;
    uint32_t n; /* 0 = free slot */
} kri_token_count_t;

typedef struct kri_penalties_s {
    float repeat, presence, frequency;
    uint32_t n_bias;
    kr_logit_bias_t *bias;     /* [n_bias], owned */
    uint32_t n_ring;           /* 0: the penalties are off and no history is kept */
    uint32_t n_held, next;     /* ring: tokens held, where the next one goes */
    kr_token_t *ring;          /* [n_ring] */
    uint32_t slot_mask;        /* slots - 1; a power of two, at least twice n_ring */
    kri_token_count_t *slots;  /* open addressing, linear probing */
} kri_penalties_t;

/* How many different tokens kri_penalties_apply may edit (an upper bound). */
uint64_t kri_penalties_edits_max(const kr_sampler_params_t *params);
/* KR_E_NOMEM; kri_penalties_deinit may be called also then. params are checked ones. */
kr_status_t kri_penalties_init(kri_penalties_t *penalties, const kr_sampler_params_t *params);
void kri_penalties_deinit(kri_penalties_t *penalties);
void kri_penalties_accept(kri_penalties_t *penalties, kr_token_t token);
/* Edits the row: bias first, then the penalties. Finite logits stay finite. */
void kri_penalties_apply(const kri_penalties_t *penalties, kri_row_t *row);

#endif
