/* penalties.c: see penalties.h. */
#include "sample/penalties.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"

static bool is_active(const kr_sampler_params_t *params) {
    return params->n_penalty_last > 0 &&
           (params->repeat_penalty != 1.0f || params->presence_penalty != 0.0f ||
            params->frequency_penalty != 0.0f);
}

uint64_t kri_penalties_edits_max(const kr_sampler_params_t *params) {
    return (uint64_t)params->n_logit_bias + (is_active(params) ? params->n_penalty_last : 0);
}

kr_status_t kri_penalties_init(kri_penalties_t *penalties, const kr_sampler_params_t *params) {
    memset(penalties, 0, sizeof *penalties);
    penalties->repeat = params->repeat_penalty;
    penalties->presence = params->presence_penalty;
    penalties->frequency = params->frequency_penalty;
    if (params->n_logit_bias > 0) {
        penalties->bias = kri_calloc(params->n_logit_bias, sizeof *penalties->bias, "sampler");
        if (penalties->bias == NULL) return KR_E_NOMEM;
        memcpy(penalties->bias, params->logit_bias,
               params->n_logit_bias * sizeof *penalties->bias);
        penalties->n_bias = params->n_logit_bias;
    }
    if (!is_active(params)) return KR_OK;
    size_t n_slots = 2;
    while (n_slots < 2 * (size_t)params->n_penalty_last) n_slots *= 2;
    penalties->ring = kri_calloc(params->n_penalty_last, sizeof *penalties->ring, "sampler");
    penalties->slots = kri_calloc(n_slots, sizeof *penalties->slots, "sampler");
    if (penalties->ring == NULL || penalties->slots == NULL) return KR_E_NOMEM;
    penalties->n_ring = params->n_penalty_last;
    penalties->slot_mask = (uint32_t)(n_slots - 1);
    return KR_OK;
}

void kri_penalties_deinit(kri_penalties_t *penalties) {
    kri_free(penalties->slots);
    kri_free(penalties->ring);
    kri_free(penalties->bias);
    memset(penalties, 0, sizeof *penalties);
}

/* Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4). */
static uint32_t home_slot(const kri_penalties_t *penalties, kr_token_t token) {
    return (uint32_t)(((uint64_t)(uint32_t)token * UINT64_C(0x9E3779B97F4A7C15)) >> 32) &
           penalties->slot_mask;
}

/* The slot of `token`, or the free one where it belongs; at most half of the slots are taken. */
static uint32_t find_slot(const kri_penalties_t *penalties, kr_token_t token) {
    uint32_t slot = home_slot(penalties, token);
    while (penalties->slots[slot].n != 0 && penalties->slots[slot].token != token)
        slot = (slot + 1) & penalties->slot_mask;
    return slot;
}

/* Takes one occurrence away. A slot that becomes free is filled from the run behind it, so that
 * probing never meets a hole (Knuth, section 6.4, algorithm R). */
static void forget(kri_penalties_t *penalties, kr_token_t token) {
    uint32_t mask = penalties->slot_mask;
    uint32_t hole = find_slot(penalties, token);
    if (--penalties->slots[hole].n > 0) return;
    for (uint32_t slot = (hole + 1) & mask; penalties->slots[slot].n != 0;
         slot = (slot + 1) & mask) {
        uint32_t home = home_slot(penalties, penalties->slots[slot].token);
        /* It may move only if its home is not between the hole and where it is now. */
        if (((slot - home) & mask) >= ((slot - hole) & mask)) {
            penalties->slots[hole] = penalties->slots[slot];
            penalties->slots[slot].n = 0;
            hole = slot;
        }
    }
}

void kri_penalties_accept(kri_penalties_t *penalties, kr_token_t token) {
    if (penalties->n_ring == 0) return;
    if (penalties->n_held == penalties->n_ring)
        forget(penalties, penalties->ring[penalties->next]);
    else
        penalties->n_held++;
    penalties->ring[penalties->next] = token;
    penalties->next = penalties->next + 1 == penalties->n_ring ? 0 : penalties->next + 1;
    kri_token_count_t *slot = &penalties->slots[find_slot(penalties, token)];
    slot->token = token;
    slot->n++;
}

static float clamp_finite(double x) {
    return x > (double)FLT_MAX ? FLT_MAX : x < -(double)FLT_MAX ? -FLT_MAX : (float)x;
}

void kri_penalties_apply(const kri_penalties_t *penalties, kri_row_t *row) {
    for (uint32_t i = 0; i < penalties->n_bias; i++) {
        const kr_logit_bias_t *entry = &penalties->bias[i];
        float *logit = kri_row_edit(row, entry->token);
        if (isfinite(*logit)) *logit = clamp_finite((double)*logit + (double)entry->bias);
    }
    if (penalties->n_held == 0) return;
    for (size_t i = 0; i <= penalties->slot_mask; i++) {
        const kri_token_count_t *seen = &penalties->slots[i];
        if (seen->n == 0) continue;
        float *logit = kri_row_edit(row, seen->token);
        /* -Inf (impossible) stays; a NaN or +Inf is left for kri_row_scan to refuse. */
        if (!isfinite(*logit)) continue;
        double x = (double)*logit, repeat = (double)penalties->repeat;
        x = x > 0.0 ? x / repeat : x * repeat;
        x -= (double)penalties->presence + (double)seen->n * (double)penalties->frequency;
        *logit = clamp_finite(x);
    }
}
