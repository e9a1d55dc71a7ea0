/* bench_gate.h: the two halves of `kr bench gate`: stages that can be opened by name and sampled
 * in turns, and the test whether one is slower than it was. */
#ifndef CLI_BENCH_GATE_H
#define CLI_BENCH_GATE_H

#include "bench_baseline.h"
#include "options.h"

typedef struct cli_stages_s cli_stages_t;

/* Names of the stages that a new baseline holds, at one ISA level: into baseline->stages, with no
 * samples yet. filter NULL: all. */
void cli_stages_list(const char *isa, bool with_model, const char *filter,
                     cli_baseline_t *baseline);
/* Prepares all stages of the baseline (model, sizes, threads and level are the baseline's).
 * 0 or an exit code already reported: a stage that this build or machine has not got, a model that
 * cannot be opened, no memory. */
int cli_stages_open(const cli_options_t *options, const cli_baseline_t *baseline,
                    cli_stages_t **stages);
/* One sample of each stage in turn into samples [n_stages], nanoseconds. */
int cli_stages_sample(cli_stages_t *stages, double *samples);
void cli_stages_close(cli_stages_t *stages);

/* One-sided exact Mann-Whitney test: the probability that values as much larger than `base` as
 * `now` would come up if both came from one distribution. n_base, n_now in 1..64. */
double cli_gate_p(const double *base, uint32_t n_base, const double *now, uint32_t n_now);

#endif
