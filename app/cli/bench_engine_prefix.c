/* bench_engine_prefix.c: `kr bench engine --mode prefix`: what the prefix cache saves when 95 % of
 * a prompt are in it, and what it costs when nothing ever is: the same model stands in one engine
 * twice, with and without cache, and the two take turns. */
#include <string.h>

#include "base/os.h"
#include "bench.h"
#include "bench_engine.h"
#include "terminal.h"

#define SHARED_PERCENT 95u
#define WARM_ROUNDS_MAX 32u

typedef struct prefix_s {
    cli_bench_engine_t engine;
    cli_samples_t cold_ms, warm_ms, ratios; /* times to the first token */
    cli_samples_t on_tps, off_tps, tps_ratios; /* all tokens / all time; on / off */
    uint32_t n_cached, miss_position;       /* of the last warm prompt */
} prefix_t;

static kr_status_t first_token(prefix_t *prefix, const kr_token_t *tokens, uint32_t n_prompt,
                               double *ttft_ms, kr_request_stats_t *stats) {
    cli_request_t request;
    kr_status_t status = cli_bench_submit(&prefix->engine, "on", tokens, n_prompt, 1, 0, &request);
    if (status == KR_OK) {
        status = cli_bench_wait(&prefix->engine, &request, 1, CLI_BENCH_UNTIL_ENDED);
    }
    kr_request_stats_init(stats);
    if (status == KR_OK) status = kr_request_stats(request.handle, stats);
    *ttft_ms = (double)(request.first_ns - request.submit_ns) / 1e6;
    cli_bench_release(&request, 1);
    return status;
}

/* A new prompt, then its first 95 % with another end. */
static kr_status_t run_hit(prefix_t *prefix, uint32_t n_prompt) {
    kr_token_t *tokens = prefix->engine.tokens;
    uint32_t n_shared = (uint32_t)((uint64_t)n_prompt * SHARED_PERCENT / 100);
    kr_request_stats_t stats;
    double cold_ms = 0, warm_ms = 0;
    cli_bench_random(&prefix->engine, tokens, n_prompt);
    kr_status_t status = first_token(prefix, tokens, n_prompt, &cold_ms, &stats);
    cli_bench_random(&prefix->engine, tokens + n_shared, n_prompt - n_shared);
    if (status == KR_OK) status = first_token(prefix, tokens, n_prompt, &warm_ms, &stats);
    prefix->n_cached = stats.n_cached;
    prefix->miss_position = stats.miss_position;
    if (status == KR_OK) status = cli_samples_add(&prefix->cold_ms, cold_ms);
    if (status == KR_OK) status = cli_samples_add(&prefix->warm_ms, warm_ms);
    return status != KR_OK ? status : cli_samples_add(&prefix->ratios, warm_ms / cold_ms);
}

/* Streams with prompts nobody has seen, at one model name. */
static kr_status_t run_misses(const cli_engine_bench_t *bench, prefix_t *prefix, const char *name,
                              double *tps) {
    cli_batch_t batch;
    uint32_t n_streams = bench->n_streams[0], n_prompt = bench->n_prompt / 8 + 1;
    kr_status_t status = cli_bench_batch(&prefix->engine, name, n_streams, n_prompt,
                                         bench->n_generate, NULL, &batch);
    double n_tokens = (double)n_streams * (n_prompt + bench->n_generate);
    *tps = n_tokens * 1e9 / (double)(batch.prefill_ns + batch.decode_ns);
    return status;
}

static kr_status_t run_cost(const cli_engine_bench_t *bench, prefix_t *prefix, uint32_t round) {
    static const char *const names[2] = {"on", "off"};
    double tps[2];
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t s = (turn + round) % 2;
        kr_status_t status = run_misses(bench, prefix, names[s], &tps[s]);
        if (status != KR_OK) return status;
    }
    kr_status_t status = cli_samples_add(&prefix->on_tps, tps[0]);
    if (status == KR_OK) status = cli_samples_add(&prefix->off_tps, tps[1]);
    return status != KR_OK ? status : cli_samples_add(&prefix->tps_ratios, tps[0] / tps[1]);
}

/* Until the pool with the cache is full: what counts is the state in which pages are evicted, not
 * the first touch of memory. */
static kr_status_t warm_up(const cli_engine_bench_t *bench, prefix_t *prefix) {
    kr_engine_stats_t stats;
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < WARM_ROUNDS_MAX && status == KR_OK; i++) {
        double ignored = 0;
        status = run_misses(bench, prefix, "on", &ignored);
        kr_engine_stats_init(&stats);
        if (status == KR_OK) status = kr_engine_stats(prefix->engine.engine, "on", &stats);
        if (stats.kv_bytes_used + stats.kv_bytes_cached >= stats.kv_bytes_max / 10 * 9) break;
    }
    return status;
}

static kr_status_t measure(const cli_engine_bench_t *bench, prefix_t *prefix) {
    double ignored = 0;
    kr_status_t status = warm_up(bench, prefix);
    if (status == KR_OK) status = run_misses(bench, prefix, "off", &ignored);
    for (uint32_t i = 0; i < bench->n_rounds && status == KR_OK; i++) {
        cli_progress("bench", i, bench->n_rounds);
        status = run_hit(prefix, bench->n_prompt);
        if (status == KR_OK) status = run_cost(bench, prefix, i);
    }
    return status;
}

static kr_status_t report(const cli_engine_bench_t *bench, prefix_t *prefix, json_t *object) {
    static const cli_report_row_t rows[] = {
        {"ttft_cold_ms", "first token, nothing cached (ms)"},
        {"ttft_warm_ms", "first token, 95 % cached (ms)"},
        {"ttft_ratio", "warm / cold"},
        {"cached_tokens", "tokens found in the cache"},
        {"tps_cache_on", "all new prompts, cache on (tok/s)"},
        {"tps_cache_off", "all new prompts, cache off (tok/s)"},
        {"tps_ratio", "with / without cache"},
    };
    cli_engine_bench_median(object, "ttft_cold_ms", &prefix->cold_ms);
    cli_engine_bench_median(object, "ttft_warm_ms", &prefix->warm_ms);
    cli_engine_bench_ratio(object, "ttft_ratio", &prefix->ratios);
    json_object_set_new(object, "cached_tokens", json_integer(prefix->n_cached));
    json_object_set_new(object, "miss_position", json_integer(prefix->miss_position));
    cli_engine_bench_median(object, "tps_cache_on", &prefix->on_tps);
    cli_engine_bench_median(object, "tps_cache_off", &prefix->off_tps);
    cli_engine_bench_ratio(object, "tps_ratio", &prefix->tps_ratios);
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    kr_status_t status = cli_engine_bench_counters(&prefix->engine, object);
    if (!cli_given(bench->options, CLI_OPT_json)) {
        cli_engine_bench_print(object, rows, sizeof rows / sizeof rows[0]);
    }
    return status;
}

int cli_engine_bench_prefix(cli_engine_bench_t *bench, json_t *reports) {
    prefix_t prefix;
    json_t *object = NULL;
    memset(&prefix, 0, sizeof prefix);
    bench->prefix_cache = true;
    uint32_t n_ctx = bench->n_prompt + bench->n_generate;
    cli_bench_settings_t settings = cli_engine_bench_settings(bench, n_ctx, bench->n_streams[0]);
    int failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    failed = cli_engine_bench_report(bench, "prefix", &settings, reports, &object);
    if (failed == 0) {
        failed = cli_bench_engine_create(bench->options, &bench->loaded, &settings, &prefix.engine);
    }
    for (int cached = 1; cached >= 0 && failed == 0; cached--) {
        settings.prefix_cache = cached != 0;
        failed = cli_bench_engine_add(bench->options, &bench->loaded, cached ? "on" : "off",
                                      &settings, &prefix.engine);
    }
    if (failed == 0) {
        kr_status_t status = measure(bench, &prefix);
        if (status == KR_OK) status = report(bench, &prefix, object);
        if (status != KR_OK) failed = cli_engine_bench_failed(status, &prefix.engine);
    }
    cli_bench_engine_destroy(&prefix.engine);
    cli_samples_deinit(&prefix.cold_ms);
    cli_samples_deinit(&prefix.warm_ms);
    cli_samples_deinit(&prefix.ratios);
    cli_samples_deinit(&prefix.on_tps);
    cli_samples_deinit(&prefix.off_tps);
    cli_samples_deinit(&prefix.tps_ratios);
    return failed;
}
