/* bench_suite.c: `kr bench suite`: eleven configurations of attention, each a whole causal prefill
 * through the engine's op, run 100 times: latency percentiles, throughput and memory. The runs are
 * cut into five slices; when the medians of the slices differ by more than 5 %, the machine was
 * not quiet and the row says "inconclusive". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "bench.h"
#include "bench/ops/bench_attn.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "terminal.h"

#define N_SLICES 5u

const cli_suite_row_t cli_suite_rows[CLI_N_SUITE] = {
    {128, 1, 32, 64},   {512, 1, 32, 64},   {2048, 1, 32, 64},  {512, 8, 32, 64},
    {2048, 4, 32, 64},  {128, 1, 32, 128},  {512, 1, 32, 128},  {2048, 1, 32, 128},
    {4096, 1, 32, 128}, {512, 8, 32, 128},  {2048, 1, 8, 256}};

void cli_suite_name(const cli_suite_row_t *row, char *name, size_t cap) {
    snprintf(name, cap, "%ux%ux%ux%u", row->n_rows, row->n_seqs, row->n_heads, row->head_dim);
}

typedef struct result_s {
    double p50_ms, p95_ms, p99_ms, gflops, spread;
    uint64_t n_bytes, kv_bytes;
} result_t;

/* Nanoseconds of each run into times [n_runs]. */
static int time_runs(kri_bench_attn_t *attn, const char *name, uint32_t n_runs, double *times) {
    for (uint32_t i = 0; i < 2; i++) (void)kri_bench_attn_fused(attn); /* warm-up */
    for (uint32_t i = 0; i < n_runs; i++) {
        if (cli_interrupted()) return cli_report(CLI_PHASE_SETUP, KR_E_CANCELLED, NULL);
        cli_progress(name, i, n_runs);
        times[i] = (double)kri_bench_attn_fused(attn);
    }
    cli_progress_clear();
    return 0;
}

/* Sorts times. */
static void summarise(const cli_suite_row_t *row, double *times, uint32_t n_runs,
                      result_t *result) {
    double medians[N_SLICES], n = (double)row->n_rows;
    for (uint32_t i = 0; i < N_SLICES; i++) {
        uint32_t begin = n_runs * i / N_SLICES, end = n_runs * (i + 1) / N_SLICES;
        medians[i] = cli_bench_median(times + begin, end - begin);
    }
    result->spread = cli_bench_spread(medians, N_SLICES);
    double median = cli_bench_median(times, n_runs); /* sorts all */
    result->p50_ms = cli_bench_percentile(times, n_runs, 50) / 1e6;
    result->p95_ms = cli_bench_percentile(times, n_runs, 95) / 1e6;
    result->p99_ms = cli_bench_percentile(times, n_runs, 99) / 1e6;
    /* Causal: half of the 4 * batch * heads * n^2 * head_dim operations. */
    result->gflops = 4.0 * row->n_seqs * row->n_heads * n * n * row->head_dim / 2 / median;
}

static int measure(const cli_suite_row_t *row, const char *name, const char *isa,
                   uint32_t n_threads, uint32_t n_runs, result_t *result) {
    kri_bench_attn_shape_t shape = {1, row->n_seqs, 0, row->n_rows, row->n_heads, row->n_heads,
                                    row->head_dim, KR_ATTN_QK_DEFAULT, KR_DTYPE_F16};
    kri_bench_attn_t *attn = NULL;
    double *times = calloc(n_runs, sizeof *times);
    kr_status_t status = times != NULL ? kri_bench_attn_create(&shape, isa, n_threads, false, &attn)
                                       : KR_E_NOMEM;
    if (status != KR_OK) {
        free(times);
        return cli_fail(CLI_PHASE_SETUP, status, NULL, "no memory for %s", name);
    }
    int failed = time_runs(attn, name, n_runs, times);
    if (failed == 0) summarise(row, times, n_runs, result);
    result->n_bytes = kri_bench_attn_fused_bytes(attn);
    result->kv_bytes = kri_bench_attn_kv_bytes(attn);
    kri_bench_attn_destroy(attn);
    free(times);
    return failed;
}

static json_t *row_json(const cli_suite_row_t *row, const char *name, const result_t *result) {
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(name));
    json_object_set_new(object, "sequence_length", json_integer(row->n_rows));
    json_object_set_new(object, "batch", json_integer(row->n_seqs));
    json_object_set_new(object, "heads", json_integer(row->n_heads));
    json_object_set_new(object, "head_size", json_integer(row->head_dim));
    json_object_set_new(object, "p50_ms", cli_json_real(result->p50_ms));
    json_object_set_new(object, "p95_ms", cli_json_real(result->p95_ms));
    json_object_set_new(object, "p99_ms", cli_json_real(result->p99_ms));
    json_object_set_new(object, "gflops", cli_json_real(result->gflops));
    json_object_set_new(object, "bytes", json_integer((json_int_t)result->n_bytes));
    json_object_set_new(object, "kv_bytes", json_integer((json_int_t)result->kv_bytes));
    json_object_set_new(object, "spread", cli_json_real(result->spread));
    json_object_set_new(object, "verdict",
                        json_string(cli_bench_verdict(result->spread, N_SLICES)));
    return object;
}

static void print_row(const char *name, const result_t *result) {
    (void)cli_out_printf("%-14s %10.3f %10.3f %10.3f %10.1f %8.1f %6.1f%% %s\n", name,
                         result->p50_ms, result->p95_ms, result->p99_ms, result->gflops,
                         (double)result->n_bytes / 1048576.0, 100 * result->spread,
                         cli_bench_verdict(result->spread, N_SLICES));
}

int cli_bench_suite(const cli_options_t *options) {
    const char *isa = NULL, *filter = cli_text(options, CLI_OPT_filter);
    uint32_t n_threads = cli_bench_threads(options), n_runs = cli_u32(options, CLI_OPT_runs);
    bool is_json = cli_given(options, CLI_OPT_json);
    int failed = cli_bench_isa(options, &isa);
    if (failed != 0) return failed;
    json_t *report = cli_bench_header(isa, n_threads), *rows = json_array();
    json_object_set_new(report, "runs", json_integer(n_runs));
    json_object_set_new(report, "configurations", rows);
    size_t n_rows = 0;
    for (size_t i = 0; i < CLI_N_SUITE && failed == 0 && !cli_out_is_closed(); i++) {
        char name[48];
        result_t result = {0};
        cli_suite_name(&cli_suite_rows[i], name, sizeof name);
        if (filter != NULL && strstr(name, filter) == NULL) continue;
        if (n_rows++ == 0 && !is_json) {
            (void)cli_out_printf("%-14s %10s %10s %10s %10s %8s %7s  (%s, %u threads, %u runs)\n",
                                 "n x b x h x d", "p50 ms", "p95 ms", "p99 ms", "GFLOP/s", "MiB",
                                 "spread", isa, n_threads, n_runs);
        }
        failed = measure(&cli_suite_rows[i], name, isa, n_threads, n_runs, &result);
        if (failed != 0) break;
        if (is_json) json_array_append_new(rows, row_json(&cli_suite_rows[i], name, &result));
        else print_row(name, &result);
    }
    if (failed == 0 && n_rows == 0) {
        failed = cli_usage("--filter", "no configuration contains '%.64s'; names look like "
                                       "512x8x32x64", filter);
    }
    json_object_set_new(report, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    if (failed == 0 && is_json) (void)cli_out_json(report);
    json_decref(report);
    return failed;
}
