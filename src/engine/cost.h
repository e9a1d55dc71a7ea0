/* cost.h: what a step of the scheduler costs, learned while serving by least squares that
 * forget: one fit for decode rows (constant, rows, keys read), learned from steps of decode rows
 * alone; one for what prompt rows add (constant with and without decode rows, rows, keys read).
 * Errors count relative to the step's time, so that short steps matter as much as long ones. A
 * single step far outside the recent spread moves a fit only a little; the second one in a row is
 * believed.
 * The bound it serves is on the slowest steps: kri_cost_limit_ns lowers the time aimed at by the
 * overshoot measured lately. Threads: one at a time. */
#ifndef KRI_ENGINE_COST_H
#define KRI_ENGINE_COST_H

#include <stdint.h>

#define KRI_COST_FEATURES 4
#define KRI_COST_RECENT 32u

typedef struct kri_cost_rows_s {
    uint32_t n_decode, n_prefill; /* rows */
    double keys_decode, keys_prefill; /* keys read, summed over rows; mean over layers */
} kri_cost_rows_t;

typedef struct kri_cost_fit_s {
    double coef[KRI_COST_FEATURES]; /* milliseconds per scaled feature */
    double info[KRI_COST_FEATURES][KRI_COST_FEATURES]; /* sum of features' products, forgetting */
    double spread;               /* mean size of recent relative errors */
    double last_error;           /* of the step before */
    uint64_t n_measured;
} kri_cost_fit_t;

typedef struct kri_cost_s {
    kri_cost_fit_t decode, prefill;
    double overhead_ns;          /* between steps: sampling, text, commands */
    float over[KRI_COST_RECENT]; /* measured / predicted - 1 of steps that mix both kinds */
    uint64_t n_measured, n_mixed;
    uint32_t n_prefill_seen;     /* most prompt rows in a measured step */
} kri_cost_t;

void kri_cost_init(kri_cost_t *cost);
/* 0 while nothing is measured. */
double kri_cost_predict_ns(const kri_cost_t *cost, const kri_cost_rows_t *rows);
void kri_cost_learn(kri_cost_t *cost, const kri_cost_rows_t *rows, uint64_t step_ns);
/* Time from the end of a step to the start of the next, when it followed at once. */
void kri_cost_learn_overhead(kri_cost_t *cost, uint64_t overhead_ns, uint64_t max_stall_ns);
/* The predicted time to aim at, so that all but the rarest gaps end near max_stall_ns. */
double kri_cost_limit_ns(const kri_cost_t *cost, uint64_t max_stall_ns);
/* Prompt rows beyond which the model would be guessing: twice what was measured. */
uint32_t kri_cost_trusted_rows(const kri_cost_t *cost, uint32_t n_rows_min);

#endif
