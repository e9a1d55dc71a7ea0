/* bench_engine.c: `kr bench engine`: the choice of a mode, the report that all modes begin with,
 * and the throughput of S streams. Modes compare their two sides in turns inside one process, where
 * the question allows it: that is what a restless machine disturbs least. */
#include "bench_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "bench.h"
#include "report.h"
#include "stream_bench.h"
#include "terminal.h"

/* ---- modes ---------------------------------------------------------------------------------- */

typedef struct bench_mode_s {
    const char *name;
    int (*run)(cli_engine_bench_t *bench, json_t *reports);
    uint32_t n_prompt, n_generate, n_rounds; /* what is not given; 0: the mode has no such option */
    const char *streams;                     /* the same; NULL: none; "1,": a list */
    bool has_stall, has_chunk, has_cache, has_sampling, has_kv;
} bench_mode_t;

static const bench_mode_t modes[] = {
    {"throughput", cli_engine_bench_throughput, 128, 128, 3, "8,", true, true, true, true, true},
    {"mixed", cli_engine_bench_mixed, 4096, 0, 5, "8", true, true, false, true, true},
    {"prefix", cli_engine_bench_prefix, 2048, 32, 5, "8", false, true, false, true, true},
    {"kv", cli_engine_bench_kv, 7936, 32, 7, "1", false, true, false, false, false},
    {"growth", cli_engine_bench_growth, 16, 2031, 0, NULL, false, true, false, true, true},
    {"slices", cli_engine_bench_slices, 16, 32, 0, "8", true, true, true, true, true},
};
#define N_MODES (sizeof modes / sizeof modes[0])

/* Options of this subcommand that some modes do not take. */
static int check_mode(const cli_options_t *options, const bench_mode_t *mode) {
    const struct { cli_option_id_t id; bool is_taken; } rows[] = {
        {CLI_OPT_bench_p, mode->n_prompt != 0},     {CLI_OPT_bench_n, mode->n_generate != 0},
        {CLI_OPT_rounds, mode->n_rounds != 0},      {CLI_OPT_streams, mode->streams != NULL},
        {CLI_OPT_max_stall_ms, mode->has_stall},    {CLI_OPT_bench_chunk, mode->has_chunk},
        {CLI_OPT_prefix_cache, mode->has_cache},    {CLI_OPT_sampling, mode->has_sampling},
        {CLI_OPT_telemetry, mode->has_sampling},    {CLI_OPT_kv, mode->has_kv},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const cli_value_t *value = &options->values[rows[i].id];
        if (!cli_is_typed(value) || rows[i].is_taken) continue;
        const char *name = cli_option_rows[rows[i].id].long_name;
        return cli_usage(name, "`kr bench engine --mode %s` does not take %s", mode->name, name);
    }
    return 0;
}

static uint32_t given_or(const cli_options_t *options, cli_option_id_t id, uint32_t preset) {
    return cli_given(options, id) ? cli_u32(options, id) : preset;
}

static int choose(const cli_options_t *options, const bench_mode_t *mode,
                  cli_engine_bench_t *bench) {
    memset(bench, 0, sizeof *bench);
    bench->options = options;
    bench->n_prompt = given_or(options, CLI_OPT_bench_p, mode->n_prompt);
    bench->n_generate = given_or(options, CLI_OPT_bench_n, mode->n_generate);
    bench->n_rounds = given_or(options, CLI_OPT_rounds, mode->n_rounds);
    bench->n_rows_max = cli_u32(options, CLI_OPT_bench_chunk);
    bench->max_stall_ms = cli_u32(options, CLI_OPT_max_stall_ms);
    bench->prefix_cache = strcmp(cli_text(options, CLI_OPT_prefix_cache), "on") == 0;
    bool is_list = mode->streams != NULL && strchr(mode->streams, ',') != NULL;
    if (mode->streams == NULL || !cli_given(options, CLI_OPT_streams)) {
        char preset[8] = "1";
        if (mode->streams != NULL) {
            snprintf(preset, sizeof preset, "%.*s", (int)strcspn(mode->streams, ","),
                     mode->streams);
        }
        return cli_bench_stream_counts(preset, 1, bench->n_streams, &bench->n_counts);
    }
    return cli_bench_stream_counts(cli_text(options, CLI_OPT_streams),
                                   is_list ? CLI_STREAM_COUNTS_MAX : 1, bench->n_streams,
                                   &bench->n_counts);
}

int cli_bench_engine(const cli_options_t *options) {
    const char *name = cli_text(options, CLI_OPT_bench_mode);
    const bench_mode_t *mode = modes;
    while (mode < modes + N_MODES - 1 && strcmp(mode->name, name) != 0) mode++;
    cli_engine_bench_t bench;
    int failed = check_mode(options, mode);
    if (failed == 0) failed = choose(options, mode, &bench);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &bench.loaded);
    else return failed;
    json_t *reports = json_array();
    if (failed == 0) failed = mode->run(&bench, reports);
    cli_progress_clear();
    if (failed == 0 && cli_given(options, CLI_OPT_json)) {
        (void)cli_out_json(bench.n_counts > 1 ? reports : json_array_get(reports, 0));
    }
    json_decref(reports);
    cli_engine_close(&bench.loaded);
    return failed;
}

/* ---- reports -------------------------------------------------------------------------------- */

int cli_engine_bench_check_ctx(const cli_engine_bench_t *bench, uint64_t n_tokens) {
    uint32_t n_ctx = bench->loaded.info.n_ctx_train;
    if (n_tokens <= n_ctx) return 0;
    return cli_usage("-p", "this takes %llu tokens of context, the model's context holds %u",
                     (unsigned long long)n_tokens, n_ctx);
}

cli_bench_settings_t cli_engine_bench_settings(const cli_engine_bench_t *bench, uint32_t n_ctx,
                                               uint32_t n_seqs) {
    cli_bench_settings_t settings = {n_ctx, n_seqs, bench->n_rows_max, bench->max_stall_ms,
                                     bench->prefix_cache};
    return settings;
}

int cli_engine_bench_report(const cli_engine_bench_t *bench, const char *mode,
                            const cli_bench_settings_t *settings, json_t *reports,
                            json_t **object_out) {
    cli_engine_t planned = bench->loaded;
    kr_session_params_t params;
    kr_error_t error;
    kr_error_init(&error);
    cli_bench_session_params(bench->options, settings, &params);
    params.prefix_cache = KR_PREFIX_CACHE_DEFAULT; /* what is planned is a session */
    kr_session_info_init(&planned.session_info);
    kr_status_t status = kr_session_plan(planned.model, &params, &planned.session_info, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    json_t *object = cli_engine_json(&planned);
    json_object_set_new(object, "mode", json_string(mode));
    json_object_set_new(object, "machine", cli_bench_machine());
    json_object_set_new(object, "build", cli_bench_build());
    json_object_set_new(object, "streams", json_integer(settings->n_seqs));
    json_object_set_new(object, "n_prompt", json_integer(bench->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(bench->n_generate));
    json_object_set_new(object, "rounds", json_integer(bench->n_rounds));
    json_object_set_new(object, "chunk", json_integer(settings->n_rows_max));
    json_object_set_new(object, "sampling",
                        json_string(cli_text(bench->options, CLI_OPT_sampling)));
    json_array_append_new(reports, object);
    *object_out = object;
    return 0;
}

void cli_engine_bench_print(const json_t *object, const cli_report_row_t *rows, size_t n_rows) {
    for (size_t i = 0; i < n_rows; i++) {
        const json_t *value = json_object_get(object, rows[i].key);
        if (!json_is_number(value)) continue;
        (void)cli_out_printf("%-44s %14.3f\n", rows[i].label, json_number_value(value));
    }
}

kr_status_t cli_engine_bench_counters(cli_bench_engine_t *engine, json_t *object) {
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    kr_status_t status = kr_engine_stats(engine->engine, NULL, &stats);
    if (status != KR_OK) return status;
    double n_steps = stats.n_steps > 0 ? (double)stats.n_steps : 1;
    double n_rows = (double)(stats.n_rows_prefill + stats.n_rows_decode);
    json_object_set_new(object, "telemetry", json_boolean(engine->telemetry != NULL));
    json_object_set_new(object, "steps", json_integer((json_int_t)stats.n_steps));
    json_object_set_new(object, "rows_per_step", cli_json_real(n_rows / n_steps));
    json_object_set_new(object, "preempted", json_integer((json_int_t)stats.n_preempted));
    json_object_set_new(object, "tokens_cached", json_integer((json_int_t)stats.n_tokens_cached));
    json_object_set_new(object, "kv_bytes_moved", json_integer((json_int_t)stats.kv_bytes_moved));
    json_object_set_new(object, "kv_bytes_max", json_integer((json_int_t)stats.kv_bytes_max));
    return KR_OK;
}

void cli_engine_bench_median(json_t *object, const char *key, cli_samples_t *samples) {
    char name[64];
    snprintf(name, sizeof name, "%s_spread", key);
    double spread = cli_bench_spread(samples->values, samples->n);
    double median = cli_bench_median(samples->values, samples->n);
    json_object_set_new(object, key, cli_json_real(median));
    json_object_set_new(object, name, cli_json_real(spread));
}

void cli_engine_bench_ratio(json_t *object, const char *key, cli_samples_t *samples) {
    char name[64];
    snprintf(name, sizeof name, "%s_verdict", key);
    cli_engine_bench_median(object, key, samples);
    double spread = cli_bench_spread(samples->values, samples->n);
    json_object_set_new(object, name, json_string(cli_bench_verdict(spread, samples->n)));
}

int cli_engine_bench_failed(kr_status_t status, const cli_bench_engine_t *engine) {
    cli_progress_clear();
    return cli_report(CLI_PHASE_INPUT, status, &engine->error);
}

/* ---- throughput ----------------------------------------------------------------------------- */

typedef struct throughput_s {
    cli_bench_engine_t engine;
    cli_samples_t prefill_tps, decode_tps, ttft_ms, gaps_ms, sched_us;
    uint64_t kv_bytes_used;
} throughput_t;

/* One short round warms up, then the rounds that count. */
static kr_status_t measure(const cli_engine_bench_t *bench, uint32_t n_streams, throughput_t *t) {
    cli_batch_t batch;
    kr_engine_stats_t stats;
    uint32_t n_warm = bench->n_prompt < 32 ? bench->n_prompt : 32;
    kr_status_t status = cli_bench_batch(&t->engine, NULL, n_streams, n_warm, 2, NULL, &batch);
    t->engine.gaps_ms = &t->gaps_ms;
    for (uint32_t i = 0; i < bench->n_rounds && status == KR_OK; i++) {
        double n_prompt = (double)bench->n_prompt * n_streams;
        double n_decode = (double)(bench->n_generate - 1) * n_streams;
        cli_progress("bench", i, bench->n_rounds);
        status = cli_bench_batch(&t->engine, NULL, n_streams, bench->n_prompt, bench->n_generate,
                                 &t->ttft_ms, &batch);
        if (status != KR_OK) break;
        kr_engine_stats_init(&stats);
        status = kr_engine_stats(t->engine.engine, NULL, &stats);
        t->kv_bytes_used = batch.kv_bytes_used;
        if (status == KR_OK) status = cli_samples_add(&t->sched_us, stats.sched_us);
        if (status == KR_OK) {
            status = cli_samples_add(&t->prefill_tps, n_prompt * 1e9 / (double)batch.prefill_ns);
        }
        if (status == KR_OK) {
            status = cli_samples_add(&t->decode_tps, n_decode * 1e9 / (double)batch.decode_ns);
        }
    }
    return status;
}

static kr_status_t throughput_json(const cli_engine_bench_t *bench, throughput_t *t,
                                   uint32_t n_streams, json_t *object) {
    cli_engine_bench_median(object, "decode_tps_total", &t->decode_tps);
    cli_engine_bench_median(object, "prefill_tps", &t->prefill_tps);
    cli_engine_bench_median(object, "sched_us", &t->sched_us);
    double total = json_number_value(json_object_get(object, "decode_tps_total"));
    json_object_set_new(object, "decode_tps", cli_json_real(total / n_streams));
    json_object_set_new(object, "ttft_ms", cli_json_real(cli_samples_percentile(&t->ttft_ms, 50)));
    cli_samples_json(&t->ttft_ms, "ttft", object);
    cli_samples_json(&t->gaps_ms, "gap", object);
    double n_prompt = (double)bench->n_prompt * n_streams;
    json_object_set_new(object, "max_stall_ms", json_integer(bench->max_stall_ms));
    json_object_set_new(object, "prefix_cache", json_boolean(bench->prefix_cache));
    json_object_set_new(object, "kv_bytes_used", json_integer((json_int_t)t->kv_bytes_used));
    json_object_set_new(object, "kv_bytes_per_token",
                        cli_json_real((double)t->kv_bytes_used / n_prompt));
    return cli_engine_bench_counters(&t->engine, object);
}

static const cli_report_row_t throughput_rows[] = {
    {"streams", "streams"},
    {"decode_tps_total", "decode, all streams (tok/s)"},
    {"decode_tps", "decode, each stream (tok/s)"},
    {"prefill_tps", "prefill (tok/s)"},
    {"ttft_p50_ms", "submit to first token (ms, p50)"},
    {"ttft_p99_ms", "submit to first token (ms, p99)"},
    {"gap_p50_ms", "between two tokens of a stream (ms, p50)"},
    {"gap_p99_ms", "between two tokens of a stream (ms, p99)"},
    {"sched_us", "scheduler (us a step)"},
    {"kv_bytes_per_token", "keys and values (bytes a token)"},
};

static int run_streams(cli_engine_bench_t *bench, uint32_t n_streams, json_t *reports) {
    throughput_t t;
    memset(&t, 0, sizeof t);
    cli_bench_settings_t settings =
        cli_engine_bench_settings(bench, bench->n_prompt + bench->n_generate, n_streams);
    json_t *object = NULL;
    int failed = cli_engine_bench_report(bench, "throughput", &settings, reports, &object);
    if (failed != 0) return failed;
    failed = cli_bench_engine_create(bench->options, &bench->loaded, &settings, &t.engine);
    if (failed == 0) {
        failed = cli_bench_engine_add(bench->options, &bench->loaded, "model", &settings,
                                      &t.engine);
    }
    if (failed == 0) {
        kr_status_t status = measure(bench, n_streams, &t);
        if (status == KR_OK) status = throughput_json(bench, &t, n_streams, object);
        if (status != KR_OK) failed = cli_engine_bench_failed(status, &t.engine);
    }
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    cli_bench_engine_destroy(&t.engine);
    cli_samples_deinit(&t.prefill_tps);
    cli_samples_deinit(&t.decode_tps);
    cli_samples_deinit(&t.ttft_ms);
    cli_samples_deinit(&t.gaps_ms);
    cli_samples_deinit(&t.sched_us);
    return failed;
}

int cli_engine_bench_throughput(cli_engine_bench_t *bench, json_t *reports) {
    int failed = cli_engine_bench_check_ctx(bench, (uint64_t)bench->n_prompt + bench->n_generate);
    for (uint32_t i = 0; i < bench->n_counts && failed == 0; i++) {
        failed = run_streams(bench, bench->n_streams[i], reports);
    }
    if (failed != 0) return failed;
    /* The read test comes last: it takes a buffer of its own. It is of the CPU's memory. */
    const json_t *threads = json_object_get(json_array_get(reports, 0), "threads");
    const char *device = cli_text(bench->options, CLI_OPT_device);
    double read_gbps = 0;
    if (device == NULL || strcmp(device, "cpu") == 0) {
        read_gbps = stream_bench_read_gbps((unsigned)json_integer_value(threads), 0, 0);
    }
    for (size_t i = 0; i < json_array_size(reports); i++) {
        json_t *object = json_array_get(reports, i);
        json_object_set_new(object, "read_gbps",
                            read_gbps > 0 ? cli_json_real(read_gbps) : json_null());
        if (cli_given(bench->options, CLI_OPT_json)) continue;
        cli_engine_bench_print(object, throughput_rows,
                               sizeof throughput_rows / sizeof throughput_rows[0]);
    }
    return 0;
}

/* ---- single rounds, for the gate ------------------------------------------------------------ */

#define GATE_STREAMS 4u

struct cli_bench_engine_run_s {
    cli_engine_bench_t bench;
    cli_bench_engine_t engine;
};

static int open_run(const cli_options_t *options, cli_bench_engine_run_t *run) {
    cli_engine_bench_t *bench = &run->bench;
    int failed = choose(options, &modes[0], bench);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &bench->loaded);
    if (failed != 0) return failed;
    uint64_t n_ctx = (uint64_t)bench->n_prompt + bench->n_generate;
    failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    cli_bench_settings_t settings =
        cli_engine_bench_settings(bench, (uint32_t)n_ctx, GATE_STREAMS);
    failed = cli_bench_engine_create(options, &bench->loaded, &settings, &run->engine);
    if (failed == 0) {
        failed = cli_bench_engine_add(options, &bench->loaded, "model", &settings, &run->engine);
    }
    if (failed != 0) return failed;
    double ignored = 0;
    return cli_bench_engine_sample(run, &ignored, &ignored); /* warms up */
}

int cli_bench_engine_open(const cli_options_t *options, cli_bench_engine_run_t **run) {
    cli_bench_engine_run_t *opened = calloc(1, sizeof *opened);
    if (opened == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    int failed = open_run(options, opened);
    if (failed == 0) *run = opened;
    else cli_bench_engine_close(opened);
    return failed;
}

int cli_bench_engine_sample(cli_bench_engine_run_t *run, double *prefill_ns, double *decode_ns) {
    const cli_engine_bench_t *bench = &run->bench;
    cli_batch_t batch;
    kr_status_t status = cli_bench_batch(&run->engine, NULL, GATE_STREAMS, bench->n_prompt,
                                         bench->n_generate, NULL, &batch);
    if (status != KR_OK) return cli_engine_bench_failed(status, &run->engine);
    *prefill_ns = (double)batch.prefill_ns / ((double)GATE_STREAMS * bench->n_prompt);
    *decode_ns = (double)batch.decode_ns / ((double)GATE_STREAMS * (bench->n_generate - 1));
    return 0;
}

void cli_bench_engine_close(cli_bench_engine_run_t *run) {
    if (run == NULL) return;
    cli_bench_engine_destroy(&run->engine);
    cli_engine_close(&run->bench.loaded);
    free(run);
}
