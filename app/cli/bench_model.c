/* bench_model.c: `kr bench model`: speed of prefill and decode on this machine. A warm-up comes
 * first and is not counted; every round then empties the context down to the depth, so that rounds
 * differ by noise only; the report gives medians. Depths go up, each filling on from the one
 * before. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "bench.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "stream_bench.h"
#include "terminal.h"

#define PREFILL_ROWS 512
#define PREFILL_ROWS_CUDA 4096 /* a step should keep all multiprocessors busy */
#define DEPTHS_MAX 64u

typedef struct bench_s {
    cli_engine_t engine;
    uint32_t n_prompt, n_generate, n_rounds;
    uint32_t depths[DEPTHS_MAX], n_depths;
    uint32_t depth;     /* the one under way */
    kr_token_t *tokens; /* [largest depth + n_prompt] random ids */
    kr_sampler_t sampler;
    double *prefill_tps, *decode_tps, *ttft_ms; /* [n_rounds] */
    double free_tps; /* prefill of an invariant run without that; 0 = not measured */
} bench_t;

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
        const uint32_t n_most = bench->engine.session_info.n_rows_max;
        uint32_t n_step = n - done < n_most ? n - done : n_most;
        uint32_t out_row = n_step - 1;
        bool is_last = wants_logits && done + n_step == n;
        status = cli_engine_decode(&bench->engine, tokens + done, n_step, &out_row, is_last,
                                   bench->engine.row, error);
        done += n_step;
    }
    return status;
}

/* Back to the first `depth` tokens. A model with a sliding window has given back pages that they
 * need: then they are computed again. */
static kr_status_t rewind_to(bench_t *bench, uint32_t depth, kr_error_t *error) {
    kr_status_t status = kr_session_truncate(bench->engine.session, 0, depth);
    if (status != KR_E_UNSUPPORTED) return status;
    status = kr_session_truncate(bench->engine.session, 0, 0);
    return status == KR_OK ? feed(bench, bench->tokens, depth, false, error) : status;
}

typedef struct round_s {
    double prefill_tps, decode_tps, ttft_ms;
} round_t;

/* Prompt, then n tokens of greedy continuation; end tokens do not end it. */
static kr_status_t run_round(bench_t *bench, uint32_t n_generate, round_t *round,
                             kr_error_t *error) {
    kr_status_t status = rewind_to(bench, bench->depth, error);
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
    round->prefill_tps = bench->n_prompt * 1e9 / (double)(prefill_ns - start_ns);
    round->decode_tps = (n_generate - 1) * 1e9 / (double)(last_ns - first_ns);
    round->ttft_ms = (double)(first_ns - start_ns) / 1e6;
    return status;
}

/* Fills the context up to `depth`, from the depth before, and warms up. */
static kr_status_t begin_depth(bench_t *bench, uint32_t depth, kr_error_t *error) {
    round_t ignored;
    uint32_t n_warm = bench->n_generate < 4 ? bench->n_generate : 4;
    kr_status_t status = rewind_to(bench, bench->depth, error);
    if (status == KR_OK) {
        status = feed(bench, bench->tokens + bench->depth, depth - bench->depth, false, error);
    }
    bench->depth = depth;
    return status == KR_OK ? run_round(bench, n_warm, &ignored, error) : status;
}

static int measure_depth(bench_t *bench, uint32_t index) {
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = begin_depth(bench, bench->depths[index], &error);
    for (uint32_t i = 0; i < bench->n_rounds && status == KR_OK; i++) {
        round_t round;
        cli_progress("bench", index * bench->n_rounds + i, bench->n_depths * bench->n_rounds);
        status = run_round(bench, bench->n_generate, &round, &error);
        bench->prefill_tps[i] = round.prefill_tps;
        bench->decode_tps[i] = round.decode_tps;
        bench->ttft_ms[i] = round.ttft_ms;
    }
    cli_progress_clear();
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &error);
}

/* What `--invariant on` costs: the prompt once more, at the first depth, in a session without it,
 * where that makes a difference on this level. */
static int measure_free(const cli_options_t *options, bench_t *bench) {
    const char *invariant = cli_text(options, CLI_OPT_invariant);
    cli_engine_t *engine = &bench->engine;
    kr_session_t invariant_session = engine->session, session = NULL;
    kr_session_params_t params;
    kr_session_info_t info;
    kr_error_t error;
    if (invariant == NULL || strcmp(invariant, "on") != 0) return 0;
    kr_error_init(&error);
    kr_session_info_init(&info);
    cli_session_params(options, engine->session_info.n_ctx, PREFILL_ROWS, &params);
    params.invariant = KR_INVARIANT_OFF;
    kr_status_t status = kr_session_plan(engine->model, &params, &info, &error);
    if (status == KR_OK && info.is_invariant) return 0;
    if (status == KR_OK) status = kr_session_create(engine->model, &params, &session, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    engine->session = session;
    cli_interrupt_watch(session);
    uint32_t depth = bench->depths[0];
    status = feed(bench, bench->tokens, depth, false, &error);
    for (uint32_t i = 0; i <= bench->n_rounds && status == KR_OK; i++) { /* the first warms up */
        status = rewind_to(bench, depth, &error);
        uint64_t start_ns = kri_clock_ns();
        if (status == KR_OK) {
            status = feed(bench, bench->tokens + depth, bench->n_prompt, true, &error);
        }
        double ns = (double)(kri_clock_ns() - start_ns);
        if (i > 0) bench->prefill_tps[i - 1] = bench->n_prompt * 1e9 / ns;
    }
    if (status == KR_OK) bench->free_tps = cli_bench_median(bench->prefill_tps, bench->n_rounds);
    engine->session = invariant_session;
    cli_interrupt_watch(invariant_session);
    kr_session_destroy(session);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &error);
}

/* ---- report --------------------------------------------------------------------------------- */

/* The numbers of the depth just measured. */
static json_t *depth_json(bench_t *bench) {
    json_t *object = cli_engine_json(&bench->engine);
    double decode_min = bench->decode_tps[0], decode_max = bench->decode_tps[0];
    for (uint32_t i = 1; i < bench->n_rounds; i++) {
        if (bench->decode_tps[i] < decode_min) decode_min = bench->decode_tps[i];
        if (bench->decode_tps[i] > decode_max) decode_max = bench->decode_tps[i];
    }
    double prefill = cli_bench_median(bench->prefill_tps, bench->n_rounds);
    double decode = cli_bench_median(bench->decode_tps, bench->n_rounds);
    double ttft = cli_bench_median(bench->ttft_ms, bench->n_rounds);
    json_object_set_new(object, "machine", cli_bench_machine());
    json_object_set_new(object, "build", cli_bench_build());
    json_object_set_new(object, "n_prompt", json_integer(bench->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(bench->n_generate));
    json_object_set_new(object, "depth", json_integer(bench->depth));
    json_object_set_new(object, "rounds", json_integer(bench->n_rounds));
    json_object_set_new(object, "prefill_tps", cli_json_real(prefill));
    json_object_set_new(object, "decode_tps", cli_json_real(decode));
    json_object_set_new(object, "decode_tps_min", cli_json_real(decode_min));
    json_object_set_new(object, "decode_tps_max", cli_json_real(decode_max));
    json_object_set_new(object, "ttft_ms", cli_json_real(ttft));
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    return object;
}

static double number(const json_t *object, const char *key) {
    return json_number_value(json_object_get(object, key));
}

static void print_text(const bench_t *bench, const json_t *reports, double read_gbps) {
    const cli_engine_t *engine = &bench->engine;
    for (size_t i = 0; i < json_array_size(reports); i++) {
        const json_t *report = json_array_get(reports, i);
        double decode = number(report, "decode_tps");
        double used_gbps = decode * (double)engine->info.bytes_per_token / 1e9;
        (void)cli_out_printf("prefill %10.1f tok/s   (%u tokens at depth %u)\n",
                             number(report, "prefill_tps"), bench->n_prompt, bench->depths[i]);
        (void)cli_out_printf("decode  %10.1f tok/s   (%u tokens; rounds %.1f to %.1f)\n", decode,
                             bench->n_generate, number(report, "decode_tps_min"),
                             number(report, "decode_tps_max"));
        (void)cli_out_printf("weights %10.1f GB/s", used_gbps);
        if (read_gbps > 0) {
            (void)cli_out_printf("    (%.0f%% of the %.1f GB/s that can be read)",
                                 100 * used_gbps / read_gbps, read_gbps);
        }
        (void)cli_out_printf("\n");
        cli_note("%s, %u threads | %u rounds | first token %.0f ms | load %.0f ms",
                 engine->session_info.isa, engine->session_info.n_threads, bench->n_rounds,
                 number(report, "ttft_ms"), engine->load_ms);
    }
    if (bench->free_tps > 0) {
        double prefill = number(json_array_get(reports, 0), "prefill_tps");
        (void)cli_out_printf("invariant costs %.0f%% of prefill   (%.1f tok/s without it)\n",
                             100 * (1 - prefill / bench->free_tps), bench->free_tps);
    }
}

/* reports: an object per depth. The read test comes last, since it takes a buffer of its own; it is
 * of the CPU's memory. */
static void print_reports(const cli_options_t *options, const bench_t *bench, json_t *reports) {
    const kr_session_info_t *info = &bench->engine.session_info;
    double read_gbps =
        info->device == KR_DEVICE_CPU ? stream_bench_read_gbps(info->n_threads, 0, 0) : 0;
    if (!cli_given(options, CLI_OPT_json)) {
        print_text(bench, reports, read_gbps);
        return;
    }
    for (size_t i = 0; i < json_array_size(reports); i++) {
        json_object_set_new(json_array_get(reports, i), "read_gbps",
                            read_gbps > 0 ? cli_json_real(read_gbps) : json_null());
        json_object_set_new(json_array_get(reports, i), "prefill_tps_not_invariant",
                            bench->free_tps > 0 ? cli_json_real(bench->free_tps) : json_null());
    }
    bool is_list = bench->n_depths > 1 || cli_given(options, CLI_OPT_frontiers);
    (void)cli_out_json(is_list ? reports : json_array_get(reports, 0));
}

/* ---- set-up --------------------------------------------------------------------------------- */

/* "0,512,2048": whole numbers that go up. */
static int parse_depths(const char *text, bench_t *bench) {
    for (const char *next = text; ; next++) {
        char word[24];
        int64_t depth = 0;
        size_t n = strcspn(next, ",");
        bool is_good = n > 0 && n < sizeof word;
        if (is_good) {
            memcpy(word, next, n);
            word[n] = '\0';
            is_good = cli_parse_integer(word, &depth) && depth >= 0 && depth <= INT32_MAX;
        }
        if (!is_good) {
            return cli_usage("--depth", "--depth wants whole numbers from 0 to 2147483647 with "
                                        "commas between them, not '%.64s'", text);
        }
        if (bench->n_depths == DEPTHS_MAX) {
            return cli_usage("--depth", "--depth takes at most %u depths", DEPTHS_MAX);
        }
        if (bench->n_depths > 0 && depth <= bench->depths[bench->n_depths - 1]) {
            return cli_usage("--depth", "the depths of --depth have to go up, not '%.64s'", text);
        }
        bench->depths[bench->n_depths++] = (uint32_t)depth;
        next += n;
        if (*next == '\0') return 0;
    }
}

static int choose_depths(const cli_options_t *options, bench_t *bench) {
    static const uint32_t frontiers[] = {0, 512, 2048, 4096, 8192};
    uint64_t n_more = (uint64_t)bench->n_prompt + bench->n_generate;
    uint32_t n_ctx = bench->engine.info.n_ctx_train;
    if (cli_given(options, CLI_OPT_frontiers)) {
        if (cli_given(options, CLI_OPT_depth)) {
            return cli_usage("--frontiers", "--frontiers and --depth exclude each other");
        }
        for (size_t i = 0; i < sizeof frontiers / sizeof frontiers[0]; i++) {
            if (i > 0 && frontiers[i] + n_more > n_ctx) break;
            bench->depths[bench->n_depths++] = frontiers[i];
        }
    } else {
        int failed = parse_depths(cli_text(options, CLI_OPT_depth), bench);
        if (failed != 0) return failed;
    }
    uint64_t n_most = bench->depths[bench->n_depths - 1] + n_more;
    if (n_most <= n_ctx) return 0;
    return cli_usage("--depth", "-d, -p and -n together are %llu tokens, the model's context "
                                "holds %u", (unsigned long long)n_most, n_ctx);
}

static int prepare(const cli_options_t *options, bench_t *bench) {
    int failed = cli_engine_open_model(options, NULL, false, &bench->engine);
    if (failed != 0) return failed;
    bench->n_prompt = cli_u32(options, CLI_OPT_bench_p);
    bench->n_generate = cli_u32(options, CLI_OPT_bench_n);
    bench->n_rounds = cli_u32(options, CLI_OPT_rounds);
    failed = choose_depths(options, bench);
    if (failed != 0) return failed;
    size_t n_tokens = (size_t)bench->depths[bench->n_depths - 1] + bench->n_prompt;
    const char *device = cli_text(options, CLI_OPT_device);
    const bool is_cuda = device != NULL && strcmp(device, "cuda") == 0;
    failed = cli_engine_open_session(options, (uint32_t)n_tokens + bench->n_generate,
                                     is_cuda ? PREFILL_ROWS_CUDA : PREFILL_ROWS, &bench->engine);
    if (failed != 0) return failed;
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

static void bench_deinit(bench_t *bench) {
    kr_sampler_destroy(bench->sampler);
    free(bench->tokens);
    free(bench->prefill_tps);
    free(bench->decode_tps);
    free(bench->ttft_ms);
    cli_engine_close(&bench->engine);
}

int cli_bench_model(const cli_options_t *options) {
    if (cli_given(options, CLI_OPT_streams)) {
        if (cli_given(options, CLI_OPT_depth) || cli_given(options, CLI_OPT_frontiers)) {
            return cli_usage("--streams", "--streams excludes --depth and --frontiers");
        }
        return cli_bench_streams(options);
    }
    bench_t bench;
    memset(&bench, 0, sizeof bench);
    json_t *reports = json_array();
    int failed = prepare(options, &bench);
    for (uint32_t i = 0; i < bench.n_depths && failed == 0; i++) {
        failed = measure_depth(&bench, i);
        if (failed == 0) json_array_append_new(reports, depth_json(&bench));
    }
    if (failed == 0) failed = measure_free(options, &bench);
    if (failed == 0) print_reports(options, &bench, reports);
    json_decref(reports);
    bench_deinit(&bench);
    return failed;
}

/* ---- single rounds, for the gate ------------------------------------------------------------ */

struct cli_bench_model_run_s {
    bench_t bench;
};

int cli_bench_model_open(const cli_options_t *options, cli_bench_model_run_t **run) {
    cli_bench_model_run_t *opened = calloc(1, sizeof *opened);
    if (opened == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    kr_error_t error;
    kr_error_init(&error);
    int failed = prepare(options, &opened->bench);
    if (failed == 0) {
        kr_status_t status = begin_depth(&opened->bench, opened->bench.depths[0], &error);
        if (status != KR_OK) failed = cli_report(CLI_PHASE_INPUT, status, &error);
    }
    if (failed == 0) *run = opened;
    else cli_bench_model_close(opened);
    return failed;
}

int cli_bench_model_sample(cli_bench_model_run_t *run, double *prefill_ns, double *decode_ns) {
    kr_error_t error;
    kr_error_init(&error);
    round_t round;
    kr_status_t status = run_round(&run->bench, run->bench.n_generate, &round, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_INPUT, status, &error);
    *prefill_ns = 1e9 / round.prefill_tps;
    *decode_ns = 1e9 / round.decode_tps;
    return 0;
}

void cli_bench_model_close(cli_bench_model_run_t *run) {
    if (run == NULL) return;
    bench_deinit(&run->bench);
    free(run);
}
