/* bench.c: `kr bench model`: speed of prefill and decode on this machine. A warm-up comes first
 * and is not counted; every round then empties the context down to the depth, so that rounds
 * differ by noise only; the report gives medians. Nothing is compared here. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "load.h"
#include "options.h"
#include "report.h"
#include "stream_bench.h"
#include "terminal.h"

#define PREFILL_ROWS 512

typedef struct bench_s {
    cli_engine_t engine;
    uint32_t n_prompt, n_generate, n_rounds, depth;
    kr_token_t *tokens; /* [depth + n_prompt] random ids */
    kr_sampler_t sampler;
    double *prefill_tps, *decode_tps, *ttft_ms; /* [n_rounds] */
} bench_t;

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t n) {
    qsort(values, n, sizeof *values, compare_doubles);
    return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void fill_random(kr_token_t *tokens, size_t n, uint32_t n_vocab) {
    uint64_t x = 0x9e3779b97f4a7c15u; /* fixed: every run computes the same thing */
    for (size_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        tokens[i] = (kr_token_t)((x >> 11) % n_vocab);
    }
}

/* The last of n rows gives logits when wanted. */
static kr_status_t feed(bench_t *bench, const kr_token_t *tokens, uint32_t n, bool wants_logits,
                        kr_error_t *error) {
    kr_status_t status = KR_OK;
    for (uint32_t done = 0; done < n && status == KR_OK;) {
        uint32_t n_step = n - done < PREFILL_ROWS ? n - done : PREFILL_ROWS;
        uint32_t out_row = n_step - 1;
        bool is_last = wants_logits && done + n_step == n;
        status = cli_engine_decode(&bench->engine, tokens + done, n_step, &out_row, is_last,
                                   bench->engine.row, error);
        done += n_step;
    }
    return status;
}

/* Prompt, then n tokens of greedy continuation; end tokens do not end it. */
static kr_status_t run_round(bench_t *bench, uint32_t n_generate, double *prefill_tps,
                             double *decode_tps, double *ttft_ms, kr_error_t *error) {
    kr_status_t status = kr_session_truncate(bench->engine.session, 0, bench->depth);
    uint64_t start_ns = kri_clock_ns(), prefill_ns = 0, first_ns = 0, last_ns = 0;
    if (status == KR_OK) {
        status = feed(bench, bench->tokens + bench->depth, bench->n_prompt, true, error);
    }
    prefill_ns = kri_clock_ns();
    for (uint32_t i = 0; i < n_generate && status == KR_OK; i++) {
        kr_token_t token = 0;
        status = kr_sampler_sample(bench->sampler, bench->engine.row, &token);
        last_ns = kri_clock_ns();
        if (i == 0) first_ns = last_ns;
        if (status == KR_OK && i + 1 < n_generate) status = feed(bench, &token, 1, true, error);
    }
    *prefill_tps = bench->n_prompt * 1e9 / (double)(prefill_ns - start_ns);
    *decode_tps = (n_generate - 1) * 1e9 / (double)(last_ns - first_ns);
    *ttft_ms = (double)(first_ns - start_ns) / 1e6;
    return status;
}

static int measure(bench_t *bench) {
    kr_error_t error;
    kr_error_init(&error);
    double ignored[3];
    kr_status_t status = feed(bench, bench->tokens, bench->depth, false, &error);
    uint32_t n_warm = bench->n_generate < 4 ? bench->n_generate : 4;
    if (status == KR_OK) {
        status = run_round(bench, n_warm, &ignored[0], &ignored[1], &ignored[2], &error);
    }
    for (uint32_t i = 0; i < bench->n_rounds && status == KR_OK; i++) {
        cli_progress("bench", i, bench->n_rounds);
        status = run_round(bench, bench->n_generate, &bench->prefill_tps[i],
                           &bench->decode_tps[i], &bench->ttft_ms[i], &error);
    }
    cli_progress_clear();
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &error);
}

static void print_bench(const cli_options_t *options, bench_t *bench) {
    uint64_t rss_bytes = kri_rss_peak_bytes(); /* before the read test takes its buffer */
    const cli_engine_t *engine = &bench->engine;
    uint32_t n_threads = engine->session_info.n_threads;
    double decode_min = bench->decode_tps[0], decode_max = bench->decode_tps[0];
    for (uint32_t i = 1; i < bench->n_rounds; i++) {
        if (bench->decode_tps[i] < decode_min) decode_min = bench->decode_tps[i];
        if (bench->decode_tps[i] > decode_max) decode_max = bench->decode_tps[i];
    }
    double prefill = median(bench->prefill_tps, bench->n_rounds);
    double decode = median(bench->decode_tps, bench->n_rounds);
    double ttft = median(bench->ttft_ms, bench->n_rounds);
    double read_gbps = stream_bench_read_gbps(n_threads, 0, 0);
    double used_gbps = decode * (double)engine->info.bytes_per_token / 1e9;
    if (!cli_given(options, CLI_OPT_json)) {
        (void)cli_out_printf("prefill %10.1f tok/s   (%u tokens at depth %u)\n", prefill,
                             bench->n_prompt, bench->depth);
        (void)cli_out_printf("decode  %10.1f tok/s   (%u tokens; rounds %.1f to %.1f)\n", decode,
                             bench->n_generate, decode_min, decode_max);
        double percent = read_gbps > 0 ? 100 * used_gbps / read_gbps : 0;
        (void)cli_out_printf("weights %10.1f GB/s    (%.0f%% of the %.1f GB/s that can be read)\n",
                             used_gbps, percent, read_gbps);
        cli_note("%s, %u threads | %u rounds | first token %.0f ms | load %.0f ms",
                 engine->session_info.isa, n_threads, bench->n_rounds, ttft, engine->load_ms);
        return;
    }
    json_t *object = cli_engine_json(engine);
    json_object_set_new(object, "read_gbps", read_gbps > 0 ? cli_json_real(read_gbps)
                                                           : json_null());
    json_object_set_new(object, "n_prompt", json_integer(bench->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(bench->n_generate));
    json_object_set_new(object, "depth", json_integer(bench->depth));
    json_object_set_new(object, "rounds", json_integer(bench->n_rounds));
    json_object_set_new(object, "prefill_tps", cli_json_real(prefill));
    json_object_set_new(object, "decode_tps", cli_json_real(decode));
    json_object_set_new(object, "decode_tps_min", cli_json_real(decode_min));
    json_object_set_new(object, "decode_tps_max", cli_json_real(decode_max));
    json_object_set_new(object, "ttft_ms", cli_json_real(ttft));
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)rss_bytes));
    (void)cli_out_json(object);
    json_decref(object);
}

static int prepare(const cli_options_t *options, bench_t *bench) {
    int failed = cli_engine_open_model(options, NULL, false, &bench->engine);
    if (failed != 0) return failed;
    bench->n_prompt = cli_u32(options, CLI_OPT_bench_p);
    bench->n_generate = cli_u32(options, CLI_OPT_bench_n);
    bench->n_rounds = cli_u32(options, CLI_OPT_rounds);
    bench->depth = cli_u32(options, CLI_OPT_depth);
    uint64_t n_ctx = (uint64_t)bench->depth + bench->n_prompt + bench->n_generate;
    if (n_ctx > bench->engine.info.n_ctx_train) {
        return cli_usage("--depth", "-d, -p and -n together are %llu tokens, the model's context "
                                    "holds %u", (unsigned long long)n_ctx,
                         bench->engine.info.n_ctx_train);
    }
    failed = cli_engine_open_session(options, (uint32_t)n_ctx, PREFILL_ROWS, &bench->engine);
    if (failed != 0) return failed;
    size_t n_tokens = (size_t)bench->depth + bench->n_prompt;
    bench->tokens = calloc(n_tokens, sizeof *bench->tokens);
    bench->prefill_tps = calloc(bench->n_rounds, sizeof(double));
    bench->decode_tps = calloc(bench->n_rounds, sizeof(double));
    bench->ttft_ms = calloc(bench->n_rounds, sizeof(double));
    if (bench->tokens == NULL || bench->prefill_tps == NULL || bench->decode_tps == NULL ||
        bench->ttft_ms == NULL) {
        return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    fill_random(bench->tokens, n_tokens, bench->engine.info.n_vocab);
    kr_sampler_params_t params;
    kr_sampler_params_init(&params);
    params.temperature = 0;
    params.n_penalty_last = 0;
    kr_status_t status = kr_sampler_create(&params, bench->engine.info.n_vocab, &bench->sampler,
                                           NULL);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, NULL);
}

int cli_bench(const cli_options_t *options) {
    const char *what = options->n_positional > 0 ? options->positional[0] : "";
    if (what[0] == '\0') return cli_usage("command", "bench what? `kr bench model -m MODEL`");
    if (strcmp(what, "model") != 0) {
        return cli_usage("command", "`kr bench %.32s` is not built in this version; `kr bench "
                                    "model` is", what);
    }
    bench_t bench;
    memset(&bench, 0, sizeof bench);
    int failed = prepare(options, &bench);
    if (failed == 0) failed = measure(&bench);
    if (failed == 0) print_bench(options, &bench);
    kr_sampler_destroy(bench.sampler);
    free(bench.tokens);
    free(bench.prefill_tps);
    free(bench.decode_tps);
    free(bench.ttft_ms);
    cli_engine_close(&bench.engine);
    return failed;
}
