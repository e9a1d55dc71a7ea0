/* bench_engine_kv.c: two questions about keys and values. `kr bench engine --mode kv`: decoding
 * over a long context with INT8 beside f16, the two in turns over their own sessions; a context is
 * computed once and restored into the other sequences, so that they share no pages. `--mode
 * growth`: what is copied while one context grows to its full length. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "bench.h"
#include "bench_engine.h"
#include "report.h"
#include "terminal.h"

/* ---- kv: two types in turns ----------------------------------------------------------------- */

typedef struct side_s {
    kr_session_t session;
    kr_session_info_t info;
    cli_samples_t decode_tps;
} side_t;

typedef struct kv_s {
    const cli_engine_bench_t *bench;
    side_t sides[2];       /* f16, INT8 */
    cli_samples_t ratios;
    kr_token_t *tokens;    /* [n_prompt] */
    float *logits;         /* [n_streams, n_vocab] */
    kr_error_t error;
} kv_t;

static const kr_dtype_t side_dtypes[2] = {KR_DTYPE_F16, KR_DTYPE_I8};

static kr_status_t prefill(kv_t *kv, side_t *side) {
    uint32_t n = kv->bench->n_prompt, n_rows_max = kv->bench->n_rows_max;
    kr_status_t status = KR_OK;
    for (uint32_t done = 0; done < n && status == KR_OK; done += n_rows_max) {
        kr_batch_seq_t seq = {0, n - done < n_rows_max ? n - done : n_rows_max};
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = seq.n_rows;
        batch.tokens = kv->tokens + done;
        batch.seqs = &seq;
        batch.n_seqs = 1;
        if (cli_interrupted()) return KR_E_CANCELLED;
        cli_progress("prompt", done, n);
        status = kr_session_decode(side->session, &batch, NULL, &kv->error);
    }
    return status;
}

/* Sequence 0 is copied into the others: the same values, pages of their own. */
static kr_status_t copy_sequences(kv_t *kv, side_t *side) {
    uint32_t n_streams = kv->bench->n_streams[0];
    size_t n_bytes = 0;
    if (n_streams == 1) return KR_OK;
    kr_status_t status = kr_session_save(side->session, 0, NULL, 0, &n_bytes);
    if (status != KR_E_LIMIT) return status != KR_OK ? status : KR_E_INTERNAL;
    void *saved = malloc(n_bytes);
    if (saved == NULL) return KR_E_NOMEM;
    status = kr_session_save(side->session, 0, saved, n_bytes, &n_bytes);
    for (uint32_t i = 1; i < n_streams && status == KR_OK; i++) {
        status = kr_session_restore(side->session, i, saved, n_bytes, &kv->error);
    }
    free(saved);
    return status;
}

static int open_side(kv_t *kv, uint32_t s) {
    const cli_engine_bench_t *bench = kv->bench;
    side_t *side = &kv->sides[s];
    uint32_t n_ctx = bench->n_prompt + bench->n_generate * (bench->n_rounds + 1);
    cli_bench_settings_t settings = cli_engine_bench_settings(bench, n_ctx, bench->n_streams[0]);
    kr_session_params_t params;
    cli_bench_session_params(bench->options, &settings, &params);
    params.prefix_cache = KR_PREFIX_CACHE_DEFAULT;
    params.kv_dtype = side_dtypes[s];
    kr_status_t status = kr_session_create(bench->loaded.model, &params, &side->session,
                                           &kv->error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &kv->error);
    kr_session_info_init(&side->info);
    status = kr_session_info(side->session, &side->info);
    if (status == KR_OK) status = prefill(kv, side);
    if (status == KR_OK) status = copy_sequences(kv, side);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &kv->error);
}

/* n_generate steps of one row for each sequence. Tokens are random: picking is not measured. */
static kr_status_t run_round(kv_t *kv, side_t *side, double *tps) {
    uint32_t n = kv->bench->n_streams[0];
    kr_batch_seq_t seqs[CLI_STREAMS_MAX];
    uint32_t out_rows[CLI_STREAMS_MAX];
    kr_token_t tokens[CLI_STREAMS_MAX];
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < n; i++) {
        seqs[i] = (kr_batch_seq_t){i, 1};
        out_rows[i] = i;
        tokens[i] = kv->tokens[i % kv->bench->n_prompt];
    }
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = batch.n_seqs = batch.n_out_rows = n;
    batch.tokens = tokens;
    batch.seqs = seqs;
    batch.out_rows = out_rows;
    uint64_t begin_ns = kri_clock_ns();
    for (uint32_t i = 0; i < kv->bench->n_generate && status == KR_OK; i++) {
        if (cli_interrupted()) return KR_E_CANCELLED;
        status = kr_session_decode(side->session, &batch, kv->logits, &kv->error);
    }
    *tps = (double)n * kv->bench->n_generate * 1e9 / (double)(kri_clock_ns() - begin_ns);
    return status;
}

static kr_status_t measure(kv_t *kv) {
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i <= kv->bench->n_rounds && status == KR_OK; i++) { /* 0 warms up */
        double tps[2] = {0, 0};
        cli_progress("bench", i, kv->bench->n_rounds + 1);
        for (uint32_t turn = 0; turn < 2 && status == KR_OK; turn++) {
            uint32_t s = (turn + i) % 2;
            status = run_round(kv, &kv->sides[s], &tps[s]);
            if (status == KR_OK && i > 0) {
                status = cli_samples_add(&kv->sides[s].decode_tps, tps[s]);
            }
        }
        if (status == KR_OK && i > 0) status = cli_samples_add(&kv->ratios, tps[1] / tps[0]);
    }
    return status;
}

static void report(kv_t *kv, json_t *object) {
    static const cli_report_row_t rows[] = {
        {"decode_tps_total_f16", "decode, all streams, f16 (tok/s)"},
        {"decode_tps_total_int8", "decode, all streams, INT8 (tok/s)"},
        {"decode_ratio", "INT8 / f16"},
        {"kv_bytes_f16", "keys and values, f16 (bytes)"},
        {"kv_bytes_int8", "keys and values, INT8 (bytes)"},
        {"kv_bytes_ratio", "INT8 / f16"},
    };
    uint64_t bytes[2] = {kv->sides[0].info.kv_bytes, kv->sides[1].info.kv_bytes};
    cli_engine_bench_median(object, "decode_tps_total_f16", &kv->sides[0].decode_tps);
    cli_engine_bench_median(object, "decode_tps_total_int8", &kv->sides[1].decode_tps);
    cli_engine_bench_ratio(object, "decode_ratio", &kv->ratios);
    json_object_set_new(object, "kv_bytes_f16", json_integer((json_int_t)bytes[0]));
    json_object_set_new(object, "kv_bytes_int8", json_integer((json_int_t)bytes[1]));
    json_object_set_new(object, "kv_bytes_ratio",
                        cli_json_real((double)bytes[1] / (double)bytes[0]));
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    if (cli_given(kv->bench->options, CLI_OPT_json)) return;
    cli_engine_bench_print(object, rows, sizeof rows / sizeof rows[0]);
}

static void fill_random(kr_token_t *tokens, uint32_t n, uint32_t n_vocab) {
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (uint32_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        tokens[i] = (kr_token_t)((x >> 11) % n_vocab);
    }
}

int cli_engine_bench_kv(cli_engine_bench_t *bench, json_t *reports) {
    kv_t kv;
    json_t *object = NULL;
    memset(&kv, 0, sizeof kv);
    kr_error_init(&kv.error);
    kv.bench = bench;
    uint64_t n_ctx = bench->n_prompt + (uint64_t)bench->n_generate * (bench->n_rounds + 1);
    int failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    cli_bench_settings_t settings = cli_engine_bench_settings(bench, (uint32_t)n_ctx,
                                                              bench->n_streams[0]);
    failed = cli_engine_bench_report(bench, "kv", &settings, reports, &object);
    if (failed != 0) return failed;
    kv.tokens = calloc(bench->n_prompt, sizeof *kv.tokens);
    kv.logits = malloc((size_t)bench->n_streams[0] * bench->loaded.info.n_vocab * sizeof(float));
    if (kv.tokens == NULL || kv.logits == NULL) {
        failed = cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    } else {
        fill_random(kv.tokens, bench->n_prompt, bench->loaded.info.n_vocab);
    }
    for (uint32_t s = 0; s < 2 && failed == 0; s++) failed = open_side(&kv, s);
    if (failed == 0) {
        kr_status_t status = measure(&kv);
        if (status == KR_OK) report(&kv, object);
        else failed = cli_report(CLI_PHASE_INPUT, status, &kv.error);
    }
    for (uint32_t s = 0; s < 2; s++) {
        kr_session_destroy(kv.sides[s].session);
        cli_samples_deinit(&kv.sides[s].decode_tps);
    }
    cli_samples_deinit(&kv.ratios);
    free(kv.tokens);
    free(kv.logits);
    return failed;
}

/* ---- growth --------------------------------------------------------------------------------- */

/* A row whenever the context has doubled, and one at the end, a token before its own. Credits hold
 * the request at each, so that its pages are seen and not what it has left behind. */
static kr_status_t grow(const cli_engine_bench_t *bench, cli_bench_engine_t *engine,
                        json_t *points) {
    cli_request_t request;
    uint32_t n_seen = bench->n_prompt, n_total = bench->n_prompt + bench->n_generate;
    uint64_t moved_before = 0;
    uint32_t n_granted = 1;
    cli_bench_random(engine, engine->tokens, bench->n_prompt);
    kr_status_t status = cli_bench_submit(engine, NULL, engine->tokens, bench->n_prompt,
                                          bench->n_generate + 1, n_granted, &request);
    if (status == KR_OK) status = cli_bench_wait(engine, &request, 1, 1);
    while (status == KR_OK && n_seen < n_total) {
        uint32_t n_next = n_seen < n_total / 2 ? 2 * n_seen : n_total;
        kr_engine_stats_t stats;
        kr_engine_stats_init(&stats);
        cli_progress("bench", n_seen, n_total);
        const uint64_t begin_ns = kri_clock_ns();
        if (n_next - bench->n_prompt > n_granted) {
            status = kr_request_add_credits(request.handle, n_next - bench->n_prompt - n_granted);
            n_granted = n_next - bench->n_prompt;
        }
        if (status == KR_OK) {
            status = cli_bench_wait(engine, &request, 1, n_next - bench->n_prompt);
        }
        const uint64_t now_ns = kri_clock_ns();
        if (status == KR_OK) status = kr_engine_stats(engine->engine, NULL, &stats);
        if (status != KR_OK) break;
        double n = n_next - n_seen;
        json_t *point = json_object();
        json_object_set_new(point, "tokens", json_integer(n_next));
        json_object_set_new(point, "kv_bytes_used", json_integer((json_int_t)stats.kv_bytes_used));
        json_object_set_new(point, "kv_bytes_moved_per_token",
                            cli_json_real((double)(stats.kv_bytes_moved - moved_before) / n));
        json_object_set_new(point, "ms_per_token",
                            cli_json_real((double)(now_ns - begin_ns) / 1e6 / n));
        json_array_append_new(points, point);
        moved_before = stats.kv_bytes_moved;
        n_seen = n_next;
    }
    kr_status_t stopped = cli_bench_stop(engine, &request, 1);
    return status != KR_OK ? status : stopped;
}

static void print_growth(const json_t *points) {
    for (size_t i = 0; i < json_array_size(points); i++) {
        const json_t *point = json_array_get(points, i);
        (void)cli_out_printf("%8lld tokens %14.1f bytes moved a token %10.3f ms a token\n",
                             (long long)json_integer_value(json_object_get(point, "tokens")),
                             json_number_value(json_object_get(point,
                                                               "kv_bytes_moved_per_token")),
                             json_number_value(json_object_get(point, "ms_per_token")));
    }
}

int cli_engine_bench_growth(cli_engine_bench_t *bench, json_t *reports) {
    cli_bench_engine_t engine;
    cli_samples_t gaps = {NULL, 0, 0};
    json_t *object = NULL, *points = NULL;
    uint64_t n_ctx = (uint64_t)bench->n_prompt + bench->n_generate + 1;
    int failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    cli_bench_settings_t settings = cli_engine_bench_settings(bench, (uint32_t)n_ctx, 1);
    memset(&engine, 0, sizeof engine);
    failed = cli_engine_bench_report(bench, "growth", &settings, reports, &object);
    if (failed == 0) {
        failed = cli_bench_engine_create(bench->options, &bench->loaded, &settings, &engine);
    }
    if (failed == 0) {
        failed = cli_bench_engine_add(bench->options, &bench->loaded, "model", &settings, &engine);
    }
    if (failed == 0) {
        points = json_array();
        json_object_set_new(object, "points", points);
        engine.gaps_ms = &gaps;
        kr_status_t status = grow(bench, &engine, points);
        if (status == KR_OK) status = cli_engine_bench_counters(&engine, object);
        if (status != KR_OK) failed = cli_engine_bench_failed(status, &engine);
    }
    if (failed == 0) {
        cli_samples_json(&gaps, "gap", object);
        if (!cli_given(bench->options, CLI_OPT_json)) print_growth(points);
    }
    cli_bench_engine_destroy(&engine);
    cli_samples_deinit(&gaps);
    return failed;
}
