/* bench_engine_slices.c: `kr bench engine --mode slices`: one short batch of streams for each line
 * on stdin, answered by a line of JSON, so that a program that compares two builds keeps both alive
 * and lets them take turns faster than the machine changes. What a line says does not matter. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_engine.h"
#include "terminal.h"

/* Waits for the next line; false at the end of stdin or after an interrupt. */
static bool next_line(void) {
    int byte = 0;
    while (byte != '\n' && byte != EOF) byte = getchar();
    return byte == '\n' && !cli_interrupted();
}

static kr_status_t answer(const cli_batch_t *batch, uint64_t n_prompt, uint64_t n_decode) {
    json_t *line = json_pack("{s:I, s:I, s:f, s:f}", "tokens_prompt", (json_int_t)n_prompt,
                             "tokens_decode", (json_int_t)n_decode, "prefill_s",
                             (double)batch->prefill_ns / 1e9, "decode_s",
                             (double)batch->decode_ns / 1e9);
    char *text = line != NULL ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (text == NULL) return KR_E_NOMEM;
    const kr_status_t status = cli_out_printf("%s\n", text);
    free(text);
    return status;
}

static kr_status_t serve_lines(const cli_engine_bench_t *bench, cli_bench_engine_t *engine,
                               cli_samples_t *decode_tps) {
    const uint64_t n_prompt = (uint64_t)bench->n_streams[0] * bench->n_prompt;
    const uint64_t n_decode = (uint64_t)bench->n_streams[0] * (bench->n_generate - 1);
    while (next_line()) {
        cli_batch_t batch;
        kr_status_t status = cli_bench_batch(engine, NULL, bench->n_streams[0], bench->n_prompt,
                                             bench->n_generate, NULL, &batch);
        if (status == KR_OK) {
            status = cli_samples_add(decode_tps, (double)n_decode * 1e9 / (double)batch.decode_ns);
        }
        if (status == KR_OK) status = answer(&batch, n_prompt, n_decode);
        if (status != KR_OK) return status;
    }
    return cli_interrupted() ? KR_E_CANCELLED : KR_OK;
}

int cli_engine_bench_slices(cli_engine_bench_t *bench, json_t *reports) {
    static const cli_report_row_t rows[] = {
        {"slices", "slices"},
        {"decode_tps_total", "decode, all streams (tok/s)"},
    };
    cli_bench_engine_t engine;
    cli_samples_t decode_tps;
    json_t *object = NULL;
    memset(&engine, 0, sizeof engine);
    memset(&decode_tps, 0, sizeof decode_tps);
    const uint64_t n_ctx = (uint64_t)bench->n_prompt + bench->n_generate;
    int failed = cli_engine_bench_check_ctx(bench, n_ctx);
    if (failed != 0) return failed;
    cli_bench_settings_t settings =
        cli_engine_bench_settings(bench, (uint32_t)n_ctx, bench->n_streams[0]);
    failed = cli_engine_bench_report(bench, "slices", &settings, reports, &object);
    if (failed != 0) return failed;
    failed = cli_bench_engine_create(bench->options, &bench->loaded, &settings, &engine);
    if (failed == 0) {
        failed = cli_bench_engine_add(bench->options, &bench->loaded, "model", &settings, &engine);
    }
    if (failed == 0) {
        kr_status_t status = serve_lines(bench, &engine, &decode_tps);
        if (status == KR_OK) status = cli_engine_bench_counters(&engine, object);
        if (status != KR_OK) failed = cli_engine_bench_failed(status, &engine);
    }
    json_object_set_new(object, "slices", json_integer((json_int_t)decode_tps.n));
    if (decode_tps.n > 0) cli_engine_bench_median(object, "decode_tps_total", &decode_tps);
    if (failed == 0 && !cli_given(bench->options, CLI_OPT_json)) {
        cli_engine_bench_print(object, rows, sizeof rows / sizeof rows[0]);
    }
    cli_bench_engine_destroy(&engine);
    cli_samples_deinit(&decode_tps);
    return failed;
}
