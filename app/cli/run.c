/* run.c: `kr run`: one prompt, one answer, streamed to stdout; figures go to stderr, or with
 * --json everything becomes one object. */
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "generate.h"
#include "input.h"
#include "models.h"
#include "options.h"
#include "report.h"
#include "terminal.h"

typedef struct run_s {
    const cli_options_t *options;
    cli_engine_t engine;
    kri_buffer_t prompt;
    cli_tokens_t tokens;
    kr_sampler_params_t sampler_params;
    kr_logit_bias_t *bias;
    kr_sampler_t sampler;
    kr_detokenizer_t detokenizer;
    cli_generation_t generation;
} run_t;

/* What can be refused before anything is read or loaded. */
static int check_options(const cli_options_t *options) {
    int n_sources = cli_given(options, CLI_OPT_prompt) + cli_given(options, CLI_OPT_file) +
                    cli_given(options, CLI_OPT_ids);
    bool is_raw = cli_given(options, CLI_OPT_raw) || cli_given(options, CLI_OPT_ids);
    if (n_sources > 1) return cli_usage(NULL, "-p, -f and --ids exclude each other");
    if (is_raw && cli_given(options, CLI_OPT_system)) {
        return cli_usage("--system", "--system needs the chat template: drop --raw or --ids");
    }
    if (cli_given(options, CLI_OPT_special) && !cli_given(options, CLI_OPT_raw)) {
        return cli_usage("--special", "--special needs --raw");
    }
    if (cli_integer(options, CLI_OPT_logprobs) > 0 && !cli_given(options, CLI_OPT_json)) {
        return cli_usage("--logprobs", "--logprobs needs --json");
    }
    const char *system = cli_text(options, CLI_OPT_system);
    return system == NULL ? 0 : cli_input_check_utf8("--system", system, strlen(system));
}

static int read_prompt(run_t *run) {
    const cli_options_t *options = run->options;
    if (cli_given(options, CLI_OPT_ids)) {
        int failed = cli_input_parse_ids("--ids", cli_text(options, CLI_OPT_ids), &run->tokens);
        if (failed != 0 || run->tokens.n > 0) return failed;
    } else {
        int failed = cli_input_read(cli_text(options, CLI_OPT_prompt),
                                    cli_text(options, CLI_OPT_file), true, &run->prompt);
        if (failed != 0 || run->prompt.n_bytes > 0) return failed;
    }
    return cli_fail(CLI_PHASE_INPUT, KR_E_INVALID_ARG, "prompt", "the prompt is empty");
}

static int tokenize_prompt(run_t *run) {
    const cli_options_t *options = run->options;
    const kr_model_info_t *info = &run->engine.info;
    if (cli_given(options, CLI_OPT_ids)) {
        return cli_input_check_ids("--ids", &run->tokens, info->n_vocab);
    }
    if (cli_given(options, CLI_OPT_raw)) {
        uint32_t flags = KR_TOKENIZE_ADD_BOS;
        if (cli_given(options, CLI_OPT_special)) flags |= KR_TOKENIZE_PARSE_SPECIAL;
        return cli_tokenize_text(run->engine.model, run->prompt.data, run->prompt.n_bytes, flags,
                                 &run->tokens);
    }
    if (info->has_chat_template == 0) {
        return cli_usage("--raw", "this model has no chat template (a base model): use --raw to "
                                  "continue the text as it is");
    }
    const char *system = cli_text(options, CLI_OPT_system);
    kr_message_t messages[2];
    size_t n = 0;
    if (system != NULL) messages[n++] = (kr_message_t){"system", system, strlen(system)};
    messages[n++] = (kr_message_t){"user", run->prompt.data, run->prompt.n_bytes};
    return cli_tokenize_chat(run->engine.model, messages, n, &run->tokens);
}

static int create_tools(run_t *run) {
    const char *stops[16];
    size_t n_stops = 0;
    uint32_t n_vocab = run->engine.info.n_vocab;
    kr_error_t error;
    kr_error_init(&error);
    int failed = cli_sampler_params(run->options, n_vocab, &run->sampler_params, &run->bias);
    if (failed != 0) return failed;
    kr_status_t status = kr_sampler_create(&run->sampler_params, n_vocab, &run->sampler, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_SETUP, status, &error);
    failed = cli_stop_strings(run->options, stops, &n_stops);
    if (failed != 0) return failed;
    status = kr_detokenizer_create(run->engine.model, stops, n_stops, &run->detokenizer, &error);
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, &error);
}

static kr_status_t emit_text(const char *text, size_t n_bytes, void *user) {
    (void)user;
    return cli_out_text(text, n_bytes);
}

static kr_status_t emit_nothing(const char *text, size_t n_bytes, void *user) {
    (void)text, (void)n_bytes, (void)user;
    return KR_OK;
}

/* ---- reports ------------------------------------------------------------------------------ */

static json_t *token_json(kr_model_t model, const kr_logprob_t *entry) {
    char text[512];
    size_t n_bytes = 0;
    kr_status_t status = kr_model_detokenize(model, &entry->token, 1, KR_TOKENIZE_PARSE_SPECIAL,
                                             text, sizeof text, &n_bytes, NULL);
    json_t *object = json_object();
    json_object_set_new(object, "id", json_integer(entry->token));
    json_object_set_new(object, "logprob", cli_json_real((double)entry->logprob));
    json_object_set_new(object, "text", status == KR_OK ? cli_json_text(text, n_bytes)
                                                        : json_null());
    return object;
}

static json_t *logprobs_json(const run_t *run) {
    const cli_generation_t *g = &run->generation;
    json_t *steps = json_array();
    for (uint32_t i = 0; i < g->n_tokens; i++) {
        const kr_logprob_t *row = g->logprobs + (size_t)i * (1 + g->n_logprobs);
        json_t *step = token_json(run->engine.model, row), *top = json_array();
        for (uint32_t k = 1; k <= g->n_logprobs; k++) {
            json_array_append_new(top, token_json(run->engine.model, row + k));
        }
        json_object_set_new(step, "top", top);
        json_array_append_new(steps, step);
    }
    return steps;
}

static void print_json(const run_t *run) {
    const cli_generation_t *g = &run->generation;
    json_t *object = cli_engine_json(&run->engine), *tokens = json_array();
    for (uint32_t i = 0; i < g->n_tokens; i++) {
        json_array_append_new(tokens, json_integer(g->tokens[i]));
    }
    json_object_set_new(object, "read_gbps", json_null()); /* measured by `kr bench model` */
    json_object_set_new(object, "n_prompt", json_integer(g->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(g->n_tokens));
    json_object_set_new(object, "rounds", json_integer(1));
    json_object_set_new(object, "prefill_tps", cli_json_real(cli_generation_prefill_tps(g)));
    json_object_set_new(object, "decode_tps", cli_json_real(cli_generation_decode_tps(g)));
    json_object_set_new(object, "ttft_ms", cli_json_real(cli_generation_ttft_ms(g)));
    json_object_set_new(object, "peak_rss_bytes",
                        json_integer((json_int_t)kri_rss_peak_bytes()));
    json_object_set_new(object, "seed", json_integer((json_int_t)run->sampler_params.seed));
    json_object_set_new(object, "finish_reason", json_string(g->finish_reason));
    json_object_set_new(object, "text", cli_json_text(g->text.data, g->text.n_bytes));
    json_object_set_new(object, "tokens", tokens);
    if (g->n_logprobs > 0) json_object_set_new(object, "logprobs", logprobs_json(run));
    (void)cli_out_json(object);
    json_decref(object);
}

static void print_figures(const run_t *run) {
    const cli_generation_t *g = &run->generation;
    char seed[48] = "";
    if (run->sampler_params.temperature > 0) {
        snprintf(seed, sizeof seed, " | seed %lld", (long long)run->sampler_params.seed);
    }
    cli_note("prompt %u tokens, %.1f tok/s | generated %u (%s), %.1f tok/s | first token %.0f ms "
             "| load %.0f ms | %s, %u threads%s",
             g->n_prompt, cli_generation_prefill_tps(g), g->n_tokens, g->finish_reason,
             cli_generation_decode_tps(g), cli_generation_ttft_ms(g), run->engine.load_ms,
             run->engine.session_info.isa, run->engine.session_info.n_threads, seed);
}

static int generate(run_t *run) {
    bool as_json = cli_given(run->options, CLI_OPT_json);
    cli_generation_t *g = &run->generation;
    g->engine = &run->engine;
    g->sampler = run->sampler;
    g->detokenizer = run->detokenizer;
    g->prompt = run->tokens.data;
    g->n_prompt = (uint32_t)run->tokens.n;
    g->n_tokens_max = cli_u32(run->options, CLI_OPT_n);
    g->n_logprobs = run->sampler_params.n_logprobs;
    g->ignore_eos = cli_given(run->options, CLI_OPT_ignore_eos);
    g->emit = as_json ? emit_nothing : emit_text;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = cli_generate(g, &error);
    bool has_text = g->text.n_bytes > 0;
    if (!as_json && has_text && g->text.data[g->text.n_bytes - 1] != '\n') {
        (void)cli_out_write("\n", 1);
    }
    if (cli_out_is_closed()) return 0; /* the reader had enough */
    /* Failures of stdout itself are reported at the end of main. */
    if (status == KR_E_IO || status == KR_E_NOSPC) return CLI_EXIT_IO;
    if (status != KR_OK) return cli_report(CLI_PHASE_INPUT, status, &error);
    if (g->n_tokens == 0) return cli_report(CLI_PHASE_INPUT, KR_E_CANCELLED, NULL);
    if (as_json) print_json(run);
    else print_figures(run);
    return 0;
}

int cli_run(const cli_options_t *options) {
    run_t run;
    memset(&run, 0, sizeof run);
    run.options = options;
    kri_buffer_init(&run.prompt, CLI_INPUT_BYTES_MAX);
    char path[CLI_PATH_BYTES_MAX];
    int failed = check_options(options);
    if (failed == 0) failed = cli_engine_find_model(options, NULL, path, sizeof path);
    if (failed == 0) failed = read_prompt(&run);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &run.engine);
    if (failed == 0) failed = tokenize_prompt(&run);
    if (failed == 0) failed = create_tools(&run);
    if (failed == 0) {
        failed = cli_engine_open_session(options, cli_u32(options, CLI_OPT_ctx),
                                         cli_u32(options, CLI_OPT_chunk), &run.engine);
    }
    if (failed == 0) failed = generate(&run);
    cli_generation_deinit(&run.generation);
    kr_detokenizer_destroy(run.detokenizer);
    kr_sampler_destroy(run.sampler);
    free(run.bias);
    free(run.tokens.data);
    cli_engine_close(&run.engine);
    kri_buffer_deinit(&run.prompt);
    return failed;
}
