/* perplexity.c: `kr perplexity` by llama-perplexity's method, so that the two compare: the text is
 * tokenized once (with BOS where the model adds one) and cut into chunks of -c tokens; the first
 * token of each chunk is replaced by BOS where the model adds one; the logits of positions c/2 to
 * c-2 score the tokens c/2+1 to c-1; ppl = exp(mean negative log-likelihood). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/os.h"
#include "input.h"
#include "load.h"
#include "models.h"
#include "report.h"
#include "terminal.h"

/* Rows whose logits are held at once; the logits of a large vocabulary are 1 MB a row. */
#define SCORE_ROWS_MAX 32u

typedef struct score_s {
    double nll, nll_squared;
    uint64_t n_scored;
    uint32_t n_chunks;
} score_t;

static double token_nll(const float *logits, uint32_t n_vocab, kr_token_t token) {
    float max = logits[0];
    for (uint32_t i = 1; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    double sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++) sum += (double)expf(logits[i] - max);
    return log(sum) - (double)(logits[token] - max);
}

static void score_rows(const cli_engine_t *engine, const float *rows, uint32_t n_rows,
                       const kr_token_t *targets, score_t *score) {
    for (uint32_t i = 0; i < n_rows; i++) {
        double nll = token_nll(rows + (size_t)i * engine->info.n_vocab, engine->info.n_vocab,
                               targets[i]);
        score->nll += nll;
        score->nll_squared += nll * nll;
        score->n_scored++;
    }
}

/* `tokens` [n_ctx] is one chunk whose first token may already be BOS. */
static kr_status_t score_chunk(cli_engine_t *engine, const kr_token_t *tokens, uint32_t n_ctx,
                               float *rows, score_t *score, kr_error_t *error) {
    uint32_t out_rows[SCORE_ROWS_MAX];
    uint32_t first = n_ctx / 2, n_rows_max = engine->session_info.n_rows_max;
    kr_status_t status = kr_session_truncate(engine->session, 0, 0);
    for (uint32_t i = 0; i < SCORE_ROWS_MAX; i++) out_rows[i] = i;
    for (uint32_t done = 0; done + 1 < n_ctx && status == KR_OK;) {
        bool is_scored = done >= first;
        uint32_t end = is_scored ? n_ctx - 1 : first; /* the last token is only a target */
        uint32_t n = end - done < n_rows_max ? end - done : n_rows_max;
        if (is_scored && n > SCORE_ROWS_MAX) n = SCORE_ROWS_MAX;
        status = cli_engine_decode(engine, tokens + done, n, out_rows, is_scored ? n : 0, rows,
                                   error);
        if (status == KR_OK && is_scored) score_rows(engine, rows, n, tokens + done + 1, score);
        done += n;
    }
    return status;
}

static int score_all(const cli_options_t *options, cli_engine_t *engine, cli_tokens_t *tokens,
                     score_t *score) {
    uint32_t n_ctx = cli_u32(options, CLI_OPT_chunk_ctx);
    uint64_t n_chunks = tokens->n / n_ctx;
    if (n_chunks == 0) {
        return cli_fail(CLI_PHASE_INPUT, KR_E_INVALID_ARG, "--file",
                        "the text has %zu tokens, one chunk takes %u (-c sets it)", tokens->n,
                        n_ctx);
    }
    if (cli_given(options, CLI_OPT_chunks) && cli_u32(options, CLI_OPT_chunks) < n_chunks) {
        n_chunks = cli_u32(options, CLI_OPT_chunks);
    }
    kr_tensor_t tensor = NULL;
    float *rows = cli_engine_rows(engine, SCORE_ROWS_MAX, &tensor);
    if (rows == NULL) return cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL);
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = KR_OK;
    for (uint64_t i = 0; i < n_chunks && status == KR_OK; i++) {
        kr_token_t *chunk = tokens->data + i * n_ctx;
        if (engine->info.add_bos != 0) chunk[0] = engine->info.token_bos;
        cli_progress("perplexity", i, n_chunks);
        status = score_chunk(engine, chunk, n_ctx, rows, score, &error);
        score->n_chunks += status == KR_OK;
    }
    cli_progress_clear();
    kr_tensor_release(tensor);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_INPUT, status, &error);
}

static void print_score(const cli_options_t *options, const cli_engine_t *engine,
                        const cli_tokens_t *tokens, const score_t *score, double seconds) {
    double n = (double)score->n_scored, mean = score->nll / n, ppl = exp(mean);
    double variance = score->nll_squared / n - mean * mean;
    double error = n > 1 && variance > 0 ? sqrt(variance / (n - 1)) * ppl : 0;
    double tps = (double)score->n_chunks * engine->session_info.n_ctx / seconds;
    if (!cli_given(options, CLI_OPT_json)) {
        (void)cli_out_printf("ppl %.4f +/- %.4f\n", ppl, error);
        cli_note("%u chunks of %u tokens, %llu scored | %.1f tok/s | %s, %u threads",
                 score->n_chunks, engine->session_info.n_ctx, (unsigned long long)score->n_scored,
                 tps, engine->session_info.isa, engine->session_info.n_threads);
        return;
    }
    json_t *object = cli_engine_json(engine);
    json_object_set_new(object, "ppl", cli_json_real(ppl));
    json_object_set_new(object, "ppl_error", cli_json_real(error));
    json_object_set_new(object, "nll", cli_json_real(mean));
    json_object_set_new(object, "n_chunks", json_integer(score->n_chunks));
    json_object_set_new(object, "n_scored", json_integer((json_int_t)score->n_scored));
    json_object_set_new(object, "n_tokens", json_integer((json_int_t)tokens->n));
    json_object_set_new(object, "tps", cli_json_real(tps));
    json_object_set_new(object, "peak_rss_bytes",
                        json_integer((json_int_t)kri_rss_peak_bytes()));
    (void)cli_out_json(object);
    json_decref(object);
}

int cli_perplexity(const cli_options_t *options) {
    kri_buffer_t text;
    cli_engine_t engine;
    cli_tokens_t tokens = {NULL, 0};
    score_t score = {0, 0, 0, 0};
    char path[CLI_PATH_BYTES_MAX];
    memset(&engine, 0, sizeof engine);
    kri_buffer_init(&text, CLI_INPUT_BYTES_MAX);
    int failed = 0;
    if (!cli_given(options, CLI_OPT_file)) failed = cli_usage("--file", "-f FILE is missing");
    if (failed == 0) failed = cli_engine_find_model(options, NULL, path, sizeof path);
    if (failed == 0) failed = cli_input_read(NULL, cli_text(options, CLI_OPT_file), true, &text);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &engine);
    if (failed == 0) {
        failed = cli_tokenize_text(engine.model, text.data, text.n_bytes, KR_TOKENIZE_ADD_BOS,
                                   &tokens);
    }
    if (failed == 0) {
        failed = cli_engine_open_session(options, cli_u32(options, CLI_OPT_chunk_ctx),
                                         cli_u32(options, CLI_OPT_chunk), &engine);
    }
    uint64_t start_ns = kri_clock_ns();
    if (failed == 0) failed = score_all(options, &engine, &tokens, &score);
    double seconds = (double)(kri_clock_ns() - start_ns) / 1e9;
    if (failed == 0) print_score(options, &engine, &tokens, &score, seconds);
    free(tokens.data);
    cli_engine_close(&engine);
    kri_buffer_deinit(&text);
    return failed;
}
