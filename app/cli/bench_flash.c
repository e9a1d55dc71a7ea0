/* bench_flash.c: `kr bench flash`: the engine's attention against the unfused form (bench/ops) at
 * long contexts: a prefill chunk of 512 rows and one decoded row. Both are checked to give the same
 * numbers before they are timed; then they take turns, and the report gives the median of the
 * rounds' ratios. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench/ops/bench_attn.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "terminal.h"

#define CHUNK_ROWS 512u
#define ROUNDS 5u
/* Relative: the forms round differently, they do not differ otherwise. Keys are put into the pages
 * as they are, so 8-bit scores go without the transform that the engine gives them. */
#define ERROR_MAX 1e-3
#define ERROR_INT8_MAX 5e-2
#define KV_BYTES_MAX ((uint64_t)256 << 20)
#define TURN_NS 4e6 /* a turn repeats what takes less than this */

typedef struct heads_s {
    const char *name;
    uint32_t n_layers, n_heads, n_kv_heads, head_dim;
} heads_t;

static const heads_t heads_rows[] = {
    {"gqa32:8x64", 32, 32, 8, 64},     {"gqa32:8x128", 32, 32, 8, 128},
    {"smollm2-9:3x64", 30, 9, 3, 64},  {"gemma3-4:1x256", 18, 4, 1, 256},
    {"qwen25-12:2x128", 28, 12, 2, 128}};
static const uint32_t contexts[] = {2048, 4096, 8192};
#define N_HEADS_ROWS (sizeof heads_rows / sizeof heads_rows[0])
#define N_CONTEXTS (sizeof contexts / sizeof contexts[0])

typedef struct result_s {
    double error, fused_ms, unfused_ms, ratio, spread;
    const char *verdict;
    uint64_t fused_bytes, unfused_bytes;
} result_t;

typedef uint64_t form_fn(kri_bench_attn_t *attn);

/* Best of a few repetitions; a short op is repeated more often: one interrupt is all of it. */
static double turn(kri_bench_attn_t *attn, form_fn *form) {
    double best = (double)form(attn), spent = best;
    while (spent < TURN_NS) {
        double ns = (double)form(attn);
        spent += ns;
        if (ns < best) best = ns;
    }
    return best;
}

static int time_rounds(kri_bench_attn_t *attn, const char *name, uint32_t n_rounds,
                       result_t *result) {
    double *fused = calloc(n_rounds, sizeof(double)), *unfused = calloc(n_rounds, sizeof(double));
    double *ratios = calloc(n_rounds, sizeof(double));
    int failed = fused != NULL && unfused != NULL && ratios != NULL
                     ? 0
                     : cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    for (uint32_t i = 0; i < n_rounds && failed == 0; i++) {
        if (cli_interrupted()) failed = cli_report(CLI_PHASE_SETUP, KR_E_CANCELLED, NULL);
        cli_progress(name, i, n_rounds);
        fused[i] = turn(attn, kri_bench_attn_fused);
        unfused[i] = turn(attn, kri_bench_attn_unfused);
        ratios[i] = unfused[i] / fused[i];
    }
    cli_progress_clear();
    if (failed == 0) {
        result->spread = cli_bench_spread(ratios, n_rounds);
        result->verdict = cli_bench_verdict(result->spread, n_rounds);
        result->ratio = cli_bench_median(ratios, n_rounds);
        result->fused_ms = cli_bench_median(fused, n_rounds) / 1e6;
        result->unfused_ms = cli_bench_median(unfused, n_rounds) / 1e6;
    }
    free(fused);
    free(unfused);
    free(ratios);
    return failed;
}

static int measure(const kri_bench_attn_shape_t *shape, const char *name, const char *isa,
                   uint32_t n_threads, uint32_t n_rounds, result_t *result) {
    kri_bench_attn_t *attn = NULL;
    kr_status_t status = kri_bench_attn_create(shape, isa, n_threads, true, &attn);
    if (status != KR_OK) {
        return cli_fail(CLI_PHASE_SETUP, status, NULL, "no memory for %s", name);
    }
    int failed = 0;
    result->error = kri_bench_attn_error(attn);
    result->fused_bytes = kri_bench_attn_fused_bytes(attn);
    result->unfused_bytes = kri_bench_attn_unfused_bytes(attn);
    if (!(result->error <= (shape->attn_qk == KR_ATTN_QK_INT8 ? ERROR_INT8_MAX : ERROR_MAX))) {
        failed = cli_fail(CLI_PHASE_SETUP, KR_E_INTERNAL, NULL,
                          "%s: fused and unfused attention differ by %g of the largest value",
                          name, result->error);
    }
    if (failed == 0) failed = time_rounds(attn, name, n_rounds, result);
    kri_bench_attn_destroy(attn);
    return failed;
}

static json_t *row_json(const char *name, const kri_bench_attn_shape_t *shape,
                        const result_t *result) {
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(name));
    json_object_set_new(object, "context", json_integer(shape->n_past + shape->n_rows));
    json_object_set_new(object, "layers", json_integer(shape->n_layers));
    json_object_set_new(object, "rows", json_integer(shape->n_rows));
    json_object_set_new(object, "heads", json_integer(shape->n_heads));
    json_object_set_new(object, "kv_heads", json_integer(shape->n_kv_heads));
    json_object_set_new(object, "head_size", json_integer(shape->head_dim));
    json_object_set_new(object, "error", cli_json_real(result->error));
    json_object_set_new(object, "fused_ms", cli_json_real(result->fused_ms));
    json_object_set_new(object, "unfused_ms", cli_json_real(result->unfused_ms));
    json_object_set_new(object, "gflops", cli_json_real(kri_bench_attn_flops(shape) /
                                                        result->fused_ms / 1e6));
    json_object_set_new(object, "ratio", cli_json_real(result->ratio));
    json_object_set_new(object, "spread", cli_json_real(result->spread));
    json_object_set_new(object, "verdict", json_string(result->verdict));
    json_object_set_new(object, "fused_bytes", json_integer((json_int_t)result->fused_bytes));
    json_object_set_new(object, "unfused_bytes", json_integer((json_int_t)result->unfused_bytes));
    return object;
}

typedef struct run_s {
    const char *isa, *filter;
    int32_t attn_qk;
    kr_dtype_t kv_dtype;
    uint32_t n_threads, n_rounds;
    bool is_json;
    json_t *rows;
    double log_sum[2]; /* of the ratios: prefill, decode */
    uint32_t n[2];
} run_t;

/* Decode reads each key once a token: as many layers as the model has, within this memory, or the
 * keys would lie in a cache where no model finds them. A prefill chunk reads them many times. */
static uint32_t count_layers(const heads_t *heads, uint32_t n_ctx, bool is_decode) {
    uint64_t layer_bytes = (uint64_t)n_ctx * heads->n_kv_heads * heads->head_dim * 4;
    uint64_t n_fit = KV_BYTES_MAX / layer_bytes;
    if (!is_decode || n_fit < 2) return 1;
    return n_fit < heads->n_layers ? (uint32_t)n_fit : heads->n_layers;
}

static int run_row(run_t *run, const heads_t *heads, uint32_t n_ctx, bool is_decode) {
    char name[64];
    result_t result = {0};
    uint32_t n_rows = is_decode ? 1 : CHUNK_ROWS;
    kri_bench_attn_shape_t shape = {count_layers(heads, n_ctx, is_decode), 1, n_ctx - n_rows,
                                    n_rows, heads->n_heads, heads->n_kv_heads, heads->head_dim,
                                    run->attn_qk, run->kv_dtype};
    snprintf(name, sizeof name, "%s/%s/%u", is_decode ? "decode" : "prefill", heads->name, n_ctx);
    if (run->filter != NULL && strstr(name, run->filter) == NULL) return 0;
    if (!run->is_json && run->n[0] + run->n[1] == 0) {
        (void)cli_out_printf("%-30s %11s %11s %7s %7s %9s  (%s, %u threads)\n", "attention",
                             "unfused ms", "fused ms", "ratio", "spread", "error", run->isa,
                             run->n_threads);
    }
    int failed = measure(&shape, name, run->isa, run->n_threads, run->n_rounds, &result);
    if (failed != 0) return failed;
    run->log_sum[is_decode] += log(result.ratio);
    run->n[is_decode]++;
    if (run->is_json) {
        json_array_append_new(run->rows, row_json(name, &shape, &result));
        return 0;
    }
    (void)cli_out_printf("%-30s %11.3f %11.3f %6.2fx %6.1f%% %9.1e  %s\n", name, result.unfused_ms,
                         result.fused_ms, result.ratio, 100 * result.spread, result.error,
                         result.verdict);
    return 0;
}

static void finish(const run_t *run, json_t *report) {
    static const char *const names[] = {"prefill", "decode"};
    for (int i = 0; i < 2; i++) {
        char key[32];
        if (run->n[i] == 0) continue;
        double mean = exp(run->log_sum[i] / run->n[i]);
        snprintf(key, sizeof key, "%s_ratio", names[i]);
        json_object_set_new(report, key, cli_json_real(mean));
        if (!run->is_json) {
            (void)cli_out_printf("%s: geometric mean %.2fx of %u rows\n", names[i], mean,
                                 run->n[i]);
        }
    }
    if (run->is_json) (void)cli_out_json(report);
}

int cli_bench_flash(const cli_options_t *options) {
    run_t run = {.filter = cli_text(options, CLI_OPT_filter),
                 .n_threads = cli_bench_threads(options),
                 .n_rounds = cli_bench_rounds(options, ROUNDS),
                 .is_json = cli_given(options, CLI_OPT_json)};
    int failed = cli_bench_isa(options, &run.isa);
    if (failed != 0) return failed;
    kr_session_params_t params;
    cli_session_params(options, 0, 0, &params);
    run.attn_qk = params.attn_qk;
    run.kv_dtype = params.kv_dtype;
    if (run.kv_dtype == KR_DTYPE_F32 || run.kv_dtype == KR_DTYPE_F8) {
        return cli_usage("--kv", "flash compares pages of f16 or int8");
    }
    if (run.kv_dtype == KR_DTYPE_I8 && cli_given(options, CLI_OPT_attn_qk)) {
        return cli_usage("--attn-qk", "pages of int8 have one way to multiply queries with keys");
    }
    json_t *report = cli_bench_header(run.isa, run.n_threads);
    run.rows = json_array();
    const char *attn_qk = cli_text(options, CLI_OPT_attn_qk);
    json_object_set_new(report, "attn_qk", json_string(attn_qk != NULL ? attn_qk : "default"));
    json_object_set_new(report, "kv", json_string(kr_dtype_name(run.kv_dtype)));
    json_object_set_new(report, "rounds", json_integer(run.n_rounds));
    json_object_set_new(report, "results", run.rows);
    for (size_t h = 0; h < N_HEADS_ROWS * 2 * N_CONTEXTS; h++) {
        bool is_decode = h / N_CONTEXTS % 2 != 0;
        if (failed != 0 || cli_out_is_closed()) break;
        failed = run_row(&run, &heads_rows[h / N_CONTEXTS / 2], contexts[h % N_CONTEXTS],
                         is_decode);
    }
    if (failed == 0 && run.n[0] + run.n[1] == 0) {
        failed = cli_usage("--filter", "no row contains '%.64s'; names look like "
                                       "prefill/gqa32:8x64/2048", run.filter);
    }
    if (failed == 0) finish(&run, report);
    json_decref(report);
    return failed;
}
