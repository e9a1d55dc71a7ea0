/* bench.h: what the subcommands of `kr bench` share: statistics, the fields that name a machine
 * and a build, and the subcommands themselves. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "options.h"

/* Above this spread a figure says "inconclusive": the machine was not quiet. */
#define CLI_BENCH_SPREAD_MAX 0.05

/* Of n > 0 values, which are sorted in place. */
double cli_bench_median(double *values, size_t n);
/* (largest - smallest) / median of n > 0 values. */
double cli_bench_spread(const double *values, size_t n);
/* "steady", or "inconclusive" above CLI_BENCH_SPREAD_MAX and for fewer than three values, whose
 * spread says nothing. */
const char *cli_bench_verdict(double spread, size_t n);
/* Nearest-rank percentile, 0 < p <= 100, of n > 0 sorted values. */
double cli_bench_percentile(const double *sorted, size_t n, double p);

/* {"cpu", "cores", "l3_bytes"} of this machine and {"compiler", "type"} of this program. */
json_t *cli_bench_machine(void);
json_t *cli_bench_build(void);
/* An object with machine, isa (NULL: the best), threads, build and commit. */
json_t *cli_bench_header(const char *isa, uint32_t n_threads);

/* The level to measure at into *isa: --isa, or the best. A level above the machine is refused. */
int cli_bench_isa(const cli_options_t *options, const char **isa);
/* Whether an option also belongs to other commands: it is about models, sessions or the machine. */
bool cli_bench_is_common(cli_option_id_t id);
/* Threads: -t, or what the library would take. */
uint32_t cli_bench_threads(const cli_options_t *options);
/* --streams "1,8,32": at most n_max numbers from 1 to CLI_STREAMS_MAX that go up. */
#define CLI_STREAMS_MAX 256u /* sequences of a session */
int cli_bench_stream_counts(const char *text, uint32_t n_max, uint32_t *counts, uint32_t *n_counts);
/* Rounds: -r, or `fallback` when it is not given. */
uint32_t cli_bench_rounds(const cli_options_t *options, uint32_t fallback);

/* ---- the subcommands: 0 or an exit code that has been reported ---- */
int cli_bench_model(const cli_options_t *options);
int cli_bench_streams(const cli_options_t *options); /* `model` with --streams */
int cli_bench_engine(const cli_options_t *options);
int cli_bench_ops(const cli_options_t *options);
int cli_bench_suite(const cli_options_t *options);
int cli_bench_flash(const cli_options_t *options);
int cli_bench_compare(const cli_options_t *options);
int cli_bench_gate(const cli_options_t *options);

/* One measurement of a model, for the gate: nanoseconds a token. */
typedef struct cli_bench_model_run_s cli_bench_model_run_t;
int cli_bench_model_open(const cli_options_t *options, cli_bench_model_run_t **run);
int cli_bench_model_sample(cli_bench_model_run_t *run, double *prefill_ns, double *decode_ns);
void cli_bench_model_close(cli_bench_model_run_t *run);

/* The same of an engine with a few streams: nanoseconds a token of all streams. */
typedef struct cli_bench_engine_run_s cli_bench_engine_run_t;
int cli_bench_engine_open(const cli_options_t *options, cli_bench_engine_run_t **run);
int cli_bench_engine_sample(cli_bench_engine_run_t *run, double *prefill_ns, double *decode_ns);
void cli_bench_engine_close(cli_bench_engine_run_t *run);

/* One of the suite's configurations, for the gate too. */
typedef struct cli_suite_row_s {
    uint32_t n_rows, n_seqs, n_heads, head_dim;
} cli_suite_row_t;
#define CLI_N_SUITE 11
extern const cli_suite_row_t cli_suite_rows[CLI_N_SUITE];
/* "512x8x32x64" */
void cli_suite_name(const cli_suite_row_t *row, char *name, size_t cap);

#endif
