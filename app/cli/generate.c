/* generate.c: the generation loop. All memory is taken before the first step except the text,
 * which grows; the loop asks after every step whether the user wants to stop. */
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "input.h"
#include "report.h"
#include "terminal.h"

#define TEXT_BYTES_MAX ((size_t)256 << 20)
#define STOPS_MAX 16
#define STOP_BYTES_MAX 256
#define LOGIT_BIAS_MAX 1024

static kr_status_t fail(kr_error_t *error, kr_status_t status, const char *param,
                        const char *message) {
    if (error != NULL) {
        error->code = status;
        snprintf(error->param, sizeof error->param, "%s", param);
        snprintf(error->message, sizeof error->message, "%s", message);
    }
    return status;
}

static kr_status_t prepare(cli_generation_t *g, kr_error_t *error) {
    uint32_t n_ctx = g->engine->session_info.n_ctx;
    if (g->n_prompt == 0) {
        return fail(error, KR_E_INVALID_ARG, "prompt", "the prompt has no tokens");
    }
    if (g->n_prompt > n_ctx) {
        char message[160];
        snprintf(message, sizeof message,
                 "the prompt has %u tokens, the context holds %u (-c sets it, the model was "
                 "trained for %u)", g->n_prompt, n_ctx, g->engine->info.n_ctx_train);
        return fail(error, KR_E_CONTEXT_LENGTH, "prompt", message);
    }
    /* The last sampled token needs no place in the context. */
    uint32_t n_left = n_ctx - g->n_prompt + 1;
    if (g->n_tokens_max > n_left) g->n_tokens_max = n_left;
    size_t n_tokens = g->n_tokens_max;
    kri_buffer_init(&g->text, TEXT_BYTES_MAX);
    g->tokens = calloc(n_tokens, sizeof *g->tokens);
    g->logprobs = calloc(n_tokens * (1 + g->n_logprobs), sizeof *g->logprobs);
    if (g->tokens == NULL || g->logprobs == NULL) return KR_E_NOMEM;
    for (uint32_t i = 0; i < g->n_prompt; i++) {
        kr_status_t status = kr_sampler_accept(g->sampler, g->prompt[i]);
        if (status != KR_OK) return status;
    }
    return KR_OK;
}

static kr_status_t prefill(cli_generation_t *g, kr_error_t *error) {
    uint32_t n_rows_max = g->engine->session_info.n_rows_max;
    for (uint32_t done = g->n_reused; done < g->n_prompt;) {
        uint32_t n = g->n_prompt - done < n_rows_max ? g->n_prompt - done : n_rows_max;
        bool is_last = done + n == g->n_prompt;
        uint32_t out_row = n - 1;
        if (done > g->n_reused) cli_progress("prompt", done, g->n_prompt);
        kr_status_t status = cli_engine_decode(g->engine, g->prompt + done, n, &out_row, is_last,
                                               g->engine->row, error);
        if (status != KR_OK) return status;
        done += n;
    }
    cli_progress_clear();
    return KR_OK;
}

static kr_status_t emit(cli_generation_t *g, const char *text, size_t n_bytes) {
    if (n_bytes == 0) return KR_OK;
    kr_status_t status = kri_buffer_append(&g->text, text, n_bytes);
    return status != KR_OK ? status : g->emit(text, n_bytes, g->emit_user);
}

/* Samples from the logits at hand and hands out text. Sets finish_reason when this was the end. */
static kr_status_t take_token(cli_generation_t *g) {
    kr_token_t token = -1;
    kr_status_t status = kr_sampler_sample(g->sampler, g->engine->row, &token);
    if (status != KR_OK) return status;
    if (g->n_logprobs > 0) {
        kr_logprob_t *row = g->logprobs + (size_t)g->n_tokens * (1 + g->n_logprobs);
        status = kr_sampler_logprobs(g->sampler, row, row + 1);
        if (status != KR_OK) return status;
    }
    status = kr_sampler_accept(g->sampler, token);
    if (status != KR_OK) return status;
    g->tokens[g->n_tokens++] = token;
    g->last_ns = kri_clock_ns();
    if (g->first_ns == 0) g->first_ns = g->last_ns;
    if (!g->ignore_eos && kr_model_token_is_end(g->engine->model, token)) {
        g->finish_reason = "stop";
        return KR_OK;
    }
    const char *text = NULL;
    size_t n_bytes = 0;
    int32_t stopped = 0;
    status = kr_detokenizer_push(g->detokenizer, token, &text, &n_bytes, &stopped);
    if (status == KR_OK) status = emit(g, text, n_bytes);
    g->stop_string_found = stopped != 0;
    if (stopped != 0) g->finish_reason = "stop";
    else if (g->n_tokens == g->n_tokens_max) g->finish_reason = "length";
    return status;
}

static kr_status_t generate(cli_generation_t *g, kr_error_t *error) {
    kr_status_t status = prefill(g, error);
    g->prefill_ns = kri_clock_ns();
    while (status == KR_OK) {
        status = take_token(g);
        if (status != KR_OK || g->finish_reason != NULL) break;
        uint32_t out_row = 0;
        status = cli_engine_decode(g->engine, &g->tokens[g->n_tokens - 1], 1, &out_row, 1,
                                   g->engine->row, error);
    }
    return status;
}

kr_status_t cli_generate(cli_generation_t *g, kr_error_t *error) {
    g->start_ns = kri_clock_ns();
    kr_status_t status = prepare(g, error);
    if (status != KR_OK) return status;
    status = generate(g, error);
    cli_progress_clear();
    if (status == KR_E_CANCELLED) {
        g->finish_reason = "cancelled";
        status = KR_OK;
    }
    /* Behind a stop string nothing is text any more. */
    if (status != KR_OK || g->stop_string_found) return status;
    const char *text = NULL;
    size_t n_bytes = 0;
    status = kr_detokenizer_finish(g->detokenizer, &text, &n_bytes);
    if (status == KR_OK) status = emit(g, text, n_bytes);
    return status == KR_E_CANCELLED ? KR_OK : status;
}

void cli_generation_deinit(cli_generation_t *g) {
    free(g->tokens);
    free(g->logprobs);
    kri_buffer_deinit(&g->text);
}

/* ---- figures ------------------------------------------------------------------------------ */

double cli_generation_prefill_tps(const cli_generation_t *g) {
    if (g->first_ns == 0 || g->prefill_ns <= g->start_ns) return 0;
    return (double)(g->n_prompt - g->n_reused) * 1e9 / (double)(g->prefill_ns - g->start_ns);
}

double cli_generation_decode_tps(const cli_generation_t *g) {
    if (g->n_tokens < 2 || g->last_ns <= g->first_ns) return 0;
    return (double)(g->n_tokens - 1) * 1e9 / (double)(g->last_ns - g->first_ns);
}

double cli_generation_ttft_ms(const cli_generation_t *g) {
    return g->first_ns == 0 ? 0 : (double)(g->first_ns - g->start_ns) / 1e6;
}

/* ---- parameters from the options ---------------------------------------------------------- */

/* "ID=V": canonical decimal id inside the vocabulary, value -100..100, each id once. */
static int parse_bias(const char *text, uint32_t n_vocab, const kr_logit_bias_t *known,
                      uint32_t n_known, kr_logit_bias_t *bias) {
    char id_text[16] = "";
    const char *equals = strchr(text, '=');
    size_t n_id = equals != NULL ? (size_t)(equals - text) : 0;
    int64_t id = -1;
    double value = 0;
    if (n_id > 0 && n_id < sizeof id_text) memcpy(id_text, text, n_id);
    bool is_canonical = id_text[0] != '-' && (id_text[0] != '0' || n_id == 1);
    if (!is_canonical || !cli_parse_integer(id_text, &id) ||
        !cli_parse_number(equals + 1, &value) || value < -100 || value > 100) {
        return cli_usage("--logit-bias", "--logit-bias wants ID=V with V from -100 to 100, not "
                                         "'%.64s'", text);
    }
    if (id >= n_vocab) {
        return cli_usage("--logit-bias", "--logit-bias: id %lld is outside the vocabulary of %u "
                                         "tokens", (long long)id, n_vocab);
    }
    for (uint32_t i = 0; i < n_known; i++) {
        if (known[i].token != (kr_token_t)id) continue;
        return cli_usage("--logit-bias", "--logit-bias: id %lld is given twice", (long long)id);
    }
    bias->token = (kr_token_t)id;
    bias->bias = (float)value;
    return 0;
}

static int collect_bias(const cli_options_t *options, uint32_t n_vocab,
                        kr_sampler_params_t *params, kr_logit_bias_t **bias) {
    *bias = NULL;
    if (!cli_given(options, CLI_OPT_logit_bias)) return 0;
    *bias = calloc(LOGIT_BIAS_MAX, sizeof **bias);
    if (*bias == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    uint32_t n = 0;
    for (size_t i = 0; i < options->n_items; i++) {
        if (options->items[i].id != CLI_OPT_logit_bias) continue;
        if (n == LOGIT_BIAS_MAX) {
            return cli_usage("--logit-bias", "--logit-bias is given more than %d times",
                             LOGIT_BIAS_MAX);
        }
        int failed = parse_bias(options->items[i].text, n_vocab, *bias, n, *bias + n);
        if (failed != 0) return failed;
        n++;
    }
    params->logit_bias = *bias;
    params->n_logit_bias = n;
    return 0;
}

/* A seed that differs between runs without asking the system for randomness: time and address
 * layout, mixed (splitmix64). 31 bits, so that it is easy to type again. */
static uint64_t random_seed(void) {
    uint64_t x = kri_clock_ns() ^ (uint64_t)(uintptr_t)&x;
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (x ^ x >> 31) >> 33;
}

int cli_sampler_params(const cli_options_t *options, uint32_t n_vocab,
                       kr_sampler_params_t *params, kr_logit_bias_t **bias) {
    kr_sampler_params_init(params);
    params->temperature = (float)cli_number(options, CLI_OPT_temp);
    params->top_k = (int32_t)cli_integer(options, CLI_OPT_top_k);
    params->top_p = (float)cli_number(options, CLI_OPT_top_p);
    params->min_p = (float)cli_number(options, CLI_OPT_min_p);
    params->typical_p = (float)cli_number(options, CLI_OPT_typical);
    params->repeat_penalty = (float)cli_number(options, CLI_OPT_repeat_penalty);
    params->presence_penalty = (float)cli_number(options, CLI_OPT_presence_penalty);
    params->frequency_penalty = (float)cli_number(options, CLI_OPT_frequency_penalty);
    params->n_logprobs = cli_u32(options, CLI_OPT_logprobs);
    if (params->n_logprobs > n_vocab) params->n_logprobs = n_vocab;
    params->seed = cli_given(options, CLI_OPT_seed) ? (uint64_t)cli_integer(options, CLI_OPT_seed)
                                                    : random_seed();
    return collect_bias(options, n_vocab, params, bias);
}

int cli_stop_strings(const cli_options_t *options, const char *stops[16], size_t *n_stops) {
    size_t n = 0;
    for (size_t i = 0; i < options->n_items; i++) {
        if (options->items[i].id != CLI_OPT_stop) continue;
        const char *text = options->items[i].text;
        size_t n_bytes = strlen(text);
        if (n == STOPS_MAX) return cli_usage("--stop", "--stop is given more than 16 times");
        if (n_bytes < 1 || n_bytes > STOP_BYTES_MAX) {
            return cli_usage("--stop", "--stop wants 1 to 256 bytes, not %zu", n_bytes);
        }
        int failed = cli_input_check_utf8("--stop", text, n_bytes);
        if (failed != 0) return failed;
        stops[n++] = text;
    }
    *n_stops = n;
    return 0;
}
