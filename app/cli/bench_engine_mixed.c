/* bench_engine_mixed.c: `kr bench engine --mode mixed`: what running streams notice of a long
 * prompt that arrives, and what their protection costs the prompt. Two engines take turns: one
 * holds --max-stall-ms, the other one takes fixed chunks of 512 rows, however long they last. */
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "bench.h"
#include "bench_engine.h"
#include "terminal.h"

#define FIXED_CHUNK 512u
#define FIXED_STALL_MS 60000u
#define STREAM_PROMPT 64u
/* Tokens of each stream before the prompt arrives. */
#define STREAM_LEAD 8u

typedef struct side_s {
    cli_bench_engine_t engine;
    cli_bench_settings_t settings;
    cli_samples_t gaps_ms, quiet_gaps_ms; /* while the prompt is computed; before */
    cli_samples_t prefill_tps;
    uint64_t n_steps, n_stalls;           /* of the arrivals */
} side_t;

/* A step has at least a page of 16 prompt rows, so no stream needs more tokens than this. */
static uint32_t stream_budget(const cli_engine_bench_t *bench) {
    return bench->n_prompt / 16 + 4 * STREAM_LEAD;
}

static kr_status_t count_stalls(const cli_request_t *streams, uint32_t n, uint64_t *n_stalls) {
    for (uint32_t i = 0; i < n; i++) {
        kr_request_stats_t stats;
        kr_request_stats_init(&stats);
        kr_status_t status = kr_request_stats(streams[i].handle, &stats);
        if (status != KR_OK) return status;
        *n_stalls += stats.n_stalls;
    }
    return KR_OK;
}

static kr_status_t count_steps(side_t *side, uint64_t *n_steps) {
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    kr_status_t status = kr_engine_stats(side->engine.engine, NULL, &stats);
    *n_steps = stats.n_steps;
    return status;
}

/* The prompt arrives. Gaps count until each stream has shown a token after the prompt's first. */
static kr_status_t arrive(side_t *side, const cli_request_t *streams, uint32_t n_streams,
                          uint32_t n_prompt, cli_request_t *arrival) {
    uint64_t n_before = 0, n_after = 0;
    uint32_t goals[CLI_STREAMS_MAX];
    cli_bench_random(&side->engine, side->engine.tokens, n_prompt);
    kr_status_t status = count_steps(side, &n_before);
    side->engine.gaps_ms = &side->gaps_ms;
    if (status == KR_OK) {
        status = cli_bench_submit(&side->engine, NULL, side->engine.tokens, n_prompt, 1, 0,
                                  arrival);
    }
    if (status == KR_OK) status = cli_bench_wait(&side->engine, arrival, 1, 1);
    for (uint32_t i = 0; i < n_streams; i++) goals[i] = streams[i].n_tokens + 1;
    for (uint32_t i = 0; i < n_streams && status == KR_OK; i++) {
        status = cli_bench_wait(&side->engine, streams + i, 1, goals[i]);
    }
    side->engine.gaps_ms = NULL;
    if (status == KR_OK) status = count_steps(side, &n_after);
    side->n_steps += n_after - n_before;
    return status;
}

/* Streams, the prompt's arrival, and the end of all. */
static kr_status_t run_round(const cli_engine_bench_t *bench, side_t *side, double *prefill_tps) {
    cli_request_t streams[CLI_STREAMS_MAX], arrival;
    uint32_t n = bench->n_streams[0];
    kr_status_t status = KR_OK;
    memset(streams, 0, sizeof streams);
    memset(&arrival, 0, sizeof arrival);
    for (uint32_t i = 0; i < n && status == KR_OK; i++) {
        cli_bench_random(&side->engine, side->engine.tokens, STREAM_PROMPT);
        status = cli_bench_submit(&side->engine, NULL, side->engine.tokens, STREAM_PROMPT,
                                  stream_budget(bench), 0, &streams[i]);
    }
    if (status == KR_OK) status = cli_bench_wait(&side->engine, streams, n, 1);
    side->engine.gaps_ms = &side->quiet_gaps_ms;
    for (uint32_t i = 0; i < n && status == KR_OK; i++) {
        status = cli_bench_wait(&side->engine, streams + i, 1, STREAM_LEAD);
    }
    if (status == KR_OK) status = arrive(side, streams, n, bench->n_prompt, &arrival);
    side->engine.gaps_ms = NULL;
    if (status == KR_OK) status = count_stalls(streams, n, &side->n_stalls);
    *prefill_tps = bench->n_prompt * 1e9 / (double)(arrival.first_ns - arrival.submit_ns);
    kr_status_t stopped = cli_bench_stop(&side->engine, streams, n);
    cli_bench_release(&arrival, 1);
    return status != KR_OK ? status : stopped;
}

/* The first round of a side teaches its cost model and does not count. */
static kr_status_t warm_up(const cli_engine_bench_t *bench, side_t *side) {
    double ignored = 0;
    kr_status_t status = run_round(bench, side, &ignored);
    side->gaps_ms.n = side->quiet_gaps_ms.n = 0;
    side->n_steps = side->n_stalls = 0;
    return status;
}

static int open_side(const cli_engine_bench_t *bench, side_t *side) {
    int failed = cli_bench_engine_create(bench->options, &bench->loaded, &side->settings,
                                         &side->engine);
    if (failed != 0) return failed;
    failed = cli_bench_engine_add(bench->options, &bench->loaded, "model", &side->settings,
                                  &side->engine);
    if (failed != 0) return failed;
    kr_status_t status = warm_up(bench, side);
    return status == KR_OK ? 0 : cli_engine_bench_failed(status, &side->engine);
}

static int measure(const cli_engine_bench_t *bench, side_t *sides, cli_samples_t *ratios) {
    for (uint32_t i = 0; i < bench->n_rounds; i++) {
        double tps[2];
        for (uint32_t turn = 0; turn < 2; turn++) {
            uint32_t s = (turn + i) % 2; /* who comes first changes */
            cli_progress("bench", 2 * i + turn, 2 * bench->n_rounds);
            kr_status_t status = run_round(bench, &sides[s], &tps[s]);
            if (status == KR_OK) status = cli_samples_add(&sides[s].prefill_tps, tps[s]);
            if (status != KR_OK) return cli_engine_bench_failed(status, &sides[s].engine);
        }
        kr_status_t status = cli_samples_add(ratios, tps[0] / tps[1]);
        if (status != KR_OK) return cli_engine_bench_failed(status, &sides[0].engine);
    }
    return 0;
}

static void side_json(const cli_engine_bench_t *bench, side_t *side, json_t *object) {
    double n_arrivals = bench->n_rounds;
    cli_engine_bench_median(object, "prefill_tps", &side->prefill_tps);
    cli_samples_json(&side->gaps_ms, "gap", object);
    cli_samples_json(&side->quiet_gaps_ms, "quiet_gap", object);
    json_object_set_new(object, "gaps", json_integer((json_int_t)side->gaps_ms.n));
    json_object_set_new(object, "steps_per_arrival",
                        cli_json_real((double)side->n_steps / n_arrivals));
    json_object_set_new(object, "stalls", json_integer((json_int_t)side->n_stalls));
    json_object_set_new(object, "max_stall_ms", json_integer(side->settings.max_stall_ms));
    json_object_set_new(object, "chunk", json_integer(side->settings.n_rows_max));
}

static void print(const json_t *object) {
    static const cli_report_row_t rows[] = {
        {"max_stall_ms", "bound (ms)"},
        {"gap_p50_ms", "gap of the streams meanwhile (ms, p50)"},
        {"gap_p99_ms", "gap of the streams meanwhile (ms, p99)"},
        {"gap_max_ms", "gap of the streams meanwhile (ms, longest)"},
        {"quiet_gap_p50_ms", "gap before (ms, p50)"},
        {"prefill_tps", "prefill of the arriving prompt (tok/s)"},
        {"steps_per_arrival", "steps of an arrival"},
        {"gap_bound_ratio", "p99 gap / bound"},
        {"prefill_ratio", "prefill / prefill with fixed chunks"},
    };
    cli_engine_bench_print(object, rows, sizeof rows / sizeof rows[0]);
}

static void report(const cli_engine_bench_t *bench, side_t *sides, cli_samples_t *ratios,
                   json_t *object) {
    json_t *fixed = json_object();
    side_json(bench, &sides[0], object);
    side_json(bench, &sides[1], fixed);
    double p99 = cli_samples_percentile(&sides[0].gaps_ms, 99);
    json_object_set_new(object, "gap_bound_ratio",
                        cli_json_real(p99 / sides[0].settings.max_stall_ms));
    cli_engine_bench_ratio(object, "prefill_ratio", ratios);
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    json_object_set_new(object, "fixed", fixed);
    if (cli_given(bench->options, CLI_OPT_json)) return;
    print(object);
    (void)cli_out_printf("fixed chunks of %u rows:\n", FIXED_CHUNK);
    print(fixed);
}

int cli_engine_bench_mixed(cli_engine_bench_t *bench, json_t *reports) {
    side_t sides[2];
    cli_samples_t ratios = {NULL, 0, 0};
    json_t *object = NULL;
    memset(sides, 0, sizeof sides);
    uint32_t n_stream = STREAM_PROMPT + stream_budget(bench);
    uint32_t n_ctx = bench->n_prompt + 1 > n_stream ? bench->n_prompt + 1 : n_stream;
    int failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    sides[0].settings = cli_engine_bench_settings(bench, n_ctx, bench->n_streams[0] + 1);
    sides[1].settings = sides[0].settings;
    sides[1].settings.n_rows_max = FIXED_CHUNK;
    sides[1].settings.max_stall_ms = FIXED_STALL_MS;
    failed = cli_engine_bench_report(bench, "mixed", &sides[0].settings, reports, &object);
    if (failed == 0) failed = open_side(bench, &sides[0]);
    if (failed == 0) failed = open_side(bench, &sides[1]);
    if (failed == 0) failed = measure(bench, sides, &ratios);
    if (failed == 0) {
        json_object_set_new(object, "streams", json_integer(bench->n_streams[0]));
        report(bench, sides, &ratios, object);
        kr_status_t status = cli_engine_bench_counters(&sides[0].engine, object);
        if (status != KR_OK) failed = cli_engine_bench_failed(status, &sides[0].engine);
    }
    for (uint32_t s = 0; s < 2; s++) {
        cli_bench_engine_destroy(&sides[s].engine);
        cli_samples_deinit(&sides[s].gaps_ms);
        cli_samples_deinit(&sides[s].quiet_gaps_ms);
        cli_samples_deinit(&sides[s].prefill_tps);
    }
    cli_samples_deinit(&ratios);
    return failed;
}
