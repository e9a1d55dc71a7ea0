/* bench_engine.h: the modes of `kr bench engine` and what they report alike. */
#ifndef CLI_BENCH_ENGINE_H
#define CLI_BENCH_ENGINE_H

#include "bench_requests.h"

#define CLI_STREAM_COUNTS_MAX 16u

/* What was asked for, with the mode's own defaults where nothing was. */
typedef struct cli_engine_bench_s {
    const cli_options_t *options;
    cli_engine_t loaded;           /* model; no session */
    uint32_t n_prompt, n_generate, n_rounds;
    uint32_t n_streams[CLI_STREAM_COUNTS_MAX], n_counts;
    uint32_t n_rows_max, max_stall_ms;
    bool prefix_cache;
} cli_engine_bench_t;

/* A mode: measures and prints, or appends its reports to the array. 0 or an exit code that has
 * been reported. */
int cli_engine_bench_throughput(cli_engine_bench_t *bench, json_t *reports);
int cli_engine_bench_mixed(cli_engine_bench_t *bench, json_t *reports);
int cli_engine_bench_prefix(cli_engine_bench_t *bench, json_t *reports);
int cli_engine_bench_kv(cli_engine_bench_t *bench, json_t *reports);
int cli_engine_bench_growth(cli_engine_bench_t *bench, json_t *reports);
int cli_engine_bench_slices(cli_engine_bench_t *bench, json_t *reports);

/* KR_E_CONTEXT_LENGTH is reported when n tokens are more than the model's context. */
int cli_engine_bench_check_ctx(const cli_engine_bench_t *bench, uint64_t n_tokens);
/* Settings with the given context and number of sequences and the options' other values. */
cli_bench_settings_t cli_engine_bench_settings(const cli_engine_bench_t *bench, uint32_t n_ctx,
                                               uint32_t n_seqs);
/* An object with the fields that `kr bench model --json` has too, for such an engine, appended to
 * reports and borrowed into *object. */
int cli_engine_bench_report(const cli_engine_bench_t *bench, const char *mode,
                            const cli_bench_settings_t *settings, json_t *reports,
                            json_t **object);
/* Text instead of JSON: a line per row whose key the object has. */
typedef struct cli_report_row_s {
    const char *key, *label;
} cli_report_row_t;
void cli_engine_bench_print(const json_t *object, const cli_report_row_t *rows, size_t n_rows);
/* Steps, preemptions and other counters of the engine, and whether it has telemetry. */
kr_status_t cli_engine_bench_counters(cli_bench_engine_t *engine, json_t *object);
/* Median into KEY, spread into KEY_spread; sorts. */
void cli_engine_bench_median(json_t *object, const char *key, cli_samples_t *samples);
/* The same of paired ratios, with their verdict in KEY_verdict. */
void cli_engine_bench_ratio(json_t *object, const char *key, cli_samples_t *samples);
/* Reports a failure while measuring. */
int cli_engine_bench_failed(kr_status_t status, const cli_bench_engine_t *engine);

#endif
