/* bench_streams.c: `kr bench model --streams S`: a session that decodes S sequences in one step,
 * one new row each. Every sequence has a prompt of its own; then come n steps of S rows, whose
 * logits are sampled greedily one after the other, so that the figure holds all that a program
 * has to do. No scheduler, no prefix is shared: that is `kr bench engine`. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "bench.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "terminal.h"

#define PREFILL_ROWS 512u
#define LISTED_MAX 16u

typedef struct streams_s {
    cli_engine_t engine;
    kr_sampler_t sampler;
    uint32_t n_prompt, n_generate, n_rounds;
    uint32_t listed[LISTED_MAX], n_listed; /* numbers of streams, going up */
    uint32_t n_streams;                    /* the number under way */
    kr_token_t *prompt;                    /* [n_prompt] */
    float *logits;                         /* [largest number of streams][n_vocab] */
    double *prefill_tps, *decode_tps;      /* [n_rounds] */
    kr_token_t tokens[CLI_STREAMS_MAX];        /* the next one of each stream */
    kr_batch_seq_t seqs[CLI_STREAMS_MAX];      /* {i, 1} */
    uint32_t out_rows[CLI_STREAMS_MAX];        /* i */
} streams_t;

/* The prompt of stream `seq` into its emptied sequence, its last logits into their row. Streams
 * begin with another token each, so that no two of them compute the same. */
static kr_status_t feed_prompt(streams_t *bench, uint32_t seq, kr_error_t *error) {
    const uint32_t n_vocab = bench->engine.info.n_vocab;
    kr_status_t status = kr_session_truncate(bench->engine.session, seq, 0);
    bench->prompt[0] = (kr_token_t)(seq % n_vocab);
    for (uint32_t done = 0; done < bench->n_prompt && status == KR_OK;) {
        const uint32_t left = bench->n_prompt - done;
        const kr_batch_seq_t rows = {seq, left < PREFILL_ROWS ? left : PREFILL_ROWS};
        const uint32_t last = rows.n_rows - 1;
        if (cli_interrupted()) return KR_E_CANCELLED;
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = rows.n_rows;
        batch.tokens = bench->prompt + done;
        batch.seqs = &rows;
        batch.n_seqs = 1;
        batch.n_out_rows = rows.n_rows == left ? 1 : 0;
        batch.out_rows = &last;
        status = kr_session_decode(bench->engine.session, &batch,
                                   bench->logits + (size_t)seq * n_vocab, error);
        done += rows.n_rows;
    }
    return status;
}

/* Picks a token of every stream from the logits of the step before. */
static kr_status_t pick_tokens(streams_t *bench) {
    kr_status_t status = KR_OK;
    for (uint32_t i = 0; i < bench->n_streams && status == KR_OK; i++) {
        status = kr_sampler_sample(bench->sampler,
                                   bench->logits + (size_t)i * bench->engine.info.n_vocab,
                                   &bench->tokens[i]);
    }
    return status;
}

static kr_status_t step(streams_t *bench, kr_error_t *error) {
    if (cli_interrupted()) return KR_E_CANCELLED;
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = batch.n_seqs = batch.n_out_rows = bench->n_streams;
    batch.tokens = bench->tokens;
    batch.seqs = bench->seqs;
    batch.out_rows = bench->out_rows;
    return kr_session_decode(bench->engine.session, &batch, bench->logits, error);
}

/* All prompts, then n_generate tokens for every stream: the first comes from its prompt. */
static kr_status_t run_round(streams_t *bench, uint32_t n_generate, uint32_t round,
                             kr_error_t *error) {
    kr_status_t status = KR_OK;
    const uint64_t start_ns = kri_clock_ns();
    for (uint32_t i = 0; i < bench->n_streams && status == KR_OK; i++) {
        status = feed_prompt(bench, i, error);
    }
    if (status == KR_OK) status = pick_tokens(bench);
    const uint64_t first_ns = kri_clock_ns();
    for (uint32_t i = 1; i < n_generate && status == KR_OK; i++) {
        status = step(bench, error);
        if (status == KR_OK) status = pick_tokens(bench);
    }
    const uint64_t last_ns = kri_clock_ns();
    const double n_streams = bench->n_streams;
    bench->prefill_tps[round] = n_streams * bench->n_prompt * 1e9 / (double)(first_ns - start_ns);
    bench->decode_tps[round] = n_streams * (n_generate - 1) * 1e9 / (double)(last_ns - first_ns);
    return status;
}

static int measure(streams_t *bench, uint32_t index) {
    kr_error_t error;
    kr_error_init(&error);
    bench->n_streams = bench->listed[index];
    /* The warm-up leaves its figures to round 0, which overwrites them. */
    kr_status_t status = run_round(bench, bench->n_generate < 4 ? bench->n_generate : 4, 0,
                                   &error);
    for (uint32_t i = 0; i < bench->n_rounds && status == KR_OK; i++) {
        cli_progress("bench", index * bench->n_rounds + i, bench->n_listed * bench->n_rounds);
        status = run_round(bench, bench->n_generate, i, &error);
    }
    cli_progress_clear();
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &error);
}

/* ---- report --------------------------------------------------------------------------------- */

static json_t *report_json(streams_t *bench) {
    json_t *object = cli_engine_json(&bench->engine);
    const double spread = cli_bench_spread(bench->decode_tps, bench->n_rounds);
    json_object_set_new(object, "machine", cli_bench_machine());
    json_object_set_new(object, "build", cli_bench_build());
    json_object_set_new(object, "streams", json_integer(bench->n_streams));
    json_object_set_new(object, "n_prompt", json_integer(bench->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(bench->n_generate));
    json_object_set_new(object, "rounds", json_integer(bench->n_rounds));
    json_object_set_new(object, "prefill_tps_total",
                        cli_json_real(cli_bench_median(bench->prefill_tps, bench->n_rounds)));
    json_object_set_new(object, "decode_tps_total",
                        cli_json_real(cli_bench_median(bench->decode_tps, bench->n_rounds)));
    json_object_set_new(object, "spread", cli_json_real(spread));
    json_object_set_new(object, "verdict",
                        json_string(cli_bench_verdict(spread, bench->n_rounds)));
    json_object_set_new(object, "peak_rss_bytes", json_integer((json_int_t)kri_rss_peak_bytes()));
    return object;
}

static void print_reports(const cli_options_t *options, const streams_t *bench, json_t *reports) {
    if (cli_given(options, CLI_OPT_json)) {
        (void)cli_out_json(bench->n_listed > 1 ? reports : json_array_get(reports, 0));
        return;
    }
    for (size_t i = 0; i < json_array_size(reports); i++) {
        const json_t *report = json_array_get(reports, i);
        const double decode = json_number_value(json_object_get(report, "decode_tps_total"));
        (void)cli_out_printf("%3u streams  decode %10.1f tok/s in total, %8.1f ms a step   "
                             "prefill %10.1f tok/s   %s\n", bench->listed[i], decode,
                             bench->listed[i] * 1e3 / decode,
                             json_number_value(json_object_get(report, "prefill_tps_total")),
                             json_string_value(json_object_get(report, "verdict")));
    }
    cli_note("%s, %u threads | %u rounds of %u tokens after prompts of %u",
             bench->engine.session_info.isa, bench->engine.session_info.n_threads,
             bench->n_rounds, bench->n_generate, bench->n_prompt);
}

/* ---- set-up --------------------------------------------------------------------------------- */

static int prepare(const cli_options_t *options, streams_t *bench) {
    int failed = cli_bench_stream_counts(cli_text(options, CLI_OPT_streams), LISTED_MAX,
                                         bench->listed, &bench->n_listed);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &bench->engine);
    if (failed != 0) return failed;
    const kr_model_info_t *info = &bench->engine.info;
    const uint32_t n_most = bench->listed[bench->n_listed - 1];
    bench->n_prompt = cli_u32(options, CLI_OPT_bench_p);
    bench->n_generate = cli_u32(options, CLI_OPT_bench_n);
    bench->n_rounds = cli_bench_rounds(options, 3);
    const uint64_t n_ctx = (uint64_t)bench->n_prompt + bench->n_generate;
    if (n_ctx > info->n_ctx_train) {
        return cli_usage("-p", "-p and -n together are %llu tokens, the model's context holds %u",
                         (unsigned long long)n_ctx, info->n_ctx_train);
    }
    failed = cli_engine_open_seqs(options, (uint32_t)n_ctx, n_most, PREFILL_ROWS, &bench->engine);
    if (failed != 0) return failed;
    bench->prompt = calloc(bench->n_prompt, sizeof *bench->prompt);
    bench->logits = calloc((size_t)n_most * info->n_vocab, sizeof *bench->logits);
    bench->prefill_tps = calloc(bench->n_rounds, sizeof(double));
    bench->decode_tps = calloc(bench->n_rounds, sizeof(double));
    if (bench->prompt == NULL || bench->logits == NULL || bench->prefill_tps == NULL ||
        bench->decode_tps == NULL) {
        return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    for (uint32_t i = 0; i < bench->n_prompt; i++) { /* Knuth's multiplicative hash */
        bench->prompt[i] = (kr_token_t)((i * 2654435761u >> 8) % info->n_vocab);
    }
    for (uint32_t i = 0; i < n_most; i++) {
        bench->seqs[i] = (kr_batch_seq_t){i, 1};
        bench->out_rows[i] = i;
    }
    kr_sampler_params_t params;
    kr_sampler_params_init(&params);
    params.temperature = 0;
    params.n_penalty_last = 0;
    kr_status_t status = kr_sampler_create(&params, info->n_vocab, &bench->sampler, NULL);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, NULL);
}

int cli_bench_streams(const cli_options_t *options) {
    streams_t bench;
    memset(&bench, 0, sizeof bench);
    json_t *reports = json_array();
    int failed = prepare(options, &bench);
    for (uint32_t i = 0; i < bench.n_listed && failed == 0; i++) {
        failed = measure(&bench, i);
        if (failed == 0) json_array_append_new(reports, report_json(&bench));
    }
    if (failed == 0) print_reports(options, &bench, reports);
    json_decref(reports);
    kr_sampler_destroy(bench.sampler);
    free(bench.prompt);
    free(bench.logits);
    free(bench.prefill_tps);
    free(bench.decode_tps);
    cli_engine_close(&bench.engine);
    return failed;
}
