/* chat.c: `kr chat`: a conversation in the terminal or over a pipe. Every turn renders the whole
 * conversation with the model's template and keeps the longest common beginning of tokens that
 * the session already holds, so only what is new is computed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "generate.h"
#include "input.h"
#include "options.h"
#include "report.h"
#include "terminal.h"

#define MESSAGES_MAX 2048

typedef struct chat_s {
    const cli_options_t *options;
    cli_engine_t engine;
    kr_message_t messages[MESSAGES_MAX]; /* contents malloc'ed; [0] may be the system message */
    size_t n_messages;
    bool has_system;
    kr_token_t *held; /* [n_ctx] tokens in the session */
    uint32_t n_held;
    double temperature;
    kr_sampler_params_t sampler_params;
    kr_logit_bias_t *bias;
    const char *stops[16];
    size_t n_stops;
    uint64_t n_turns;
    char last_figures[256];
} chat_t;

/* ---- the conversation --------------------------------------------------------------------- */

static int add_message(chat_t *chat, size_t index, const char *role, const char *text,
                       size_t n_bytes) {
    char *copy = malloc(n_bytes + 1);
    if (copy == NULL) return cli_report(CLI_PHASE_INPUT, KR_E_NOMEM, NULL);
    if (n_bytes > 0) memcpy(copy, text, n_bytes);
    copy[n_bytes] = '\0';
    kr_message_t *message = &chat->messages[index];
    memmove(message + 1, message, (chat->n_messages - index) * sizeof *message);
    *message = (kr_message_t){role, copy, n_bytes};
    chat->n_messages++;
    return 0;
}

static void drop_messages(chat_t *chat, size_t n_kept) {
    while (chat->n_messages > n_kept) {
        free((char *)(uintptr_t)chat->messages[--chat->n_messages].content);
    }
}

static int set_system(chat_t *chat, const char *text) {
    if (chat->has_system) {
        free((char *)(uintptr_t)chat->messages[0].content);
        chat->n_messages--;
        memmove(chat->messages, chat->messages + 1, chat->n_messages * sizeof chat->messages[0]);
        chat->has_system = false;
    }
    if (text[0] == '\0') return 0;
    int failed = add_message(chat, 0, "system", text, strlen(text));
    chat->has_system = failed == 0;
    return failed;
}

/* ---- one answer --------------------------------------------------------------------------- */

static kr_status_t emit_text(const char *text, size_t n_bytes, void *user) {
    (void)user;
    return cli_out_text(text, n_bytes);
}

static int create_tools(chat_t *chat, kr_sampler_t *sampler, kr_detokenizer_t *detokenizer) {
    kr_error_t error;
    kr_error_init(&error);
    kr_sampler_params_t params = chat->sampler_params;
    params.temperature = (float)chat->temperature;
    params.seed += chat->n_turns; /* each turn draws anew, the whole conversation repeats */
    kr_status_t status = kr_sampler_create(&params, chat->engine.info.n_vocab, sampler, &error);
    if (status == KR_OK) {
        status = kr_detokenizer_create(chat->engine.model, chat->stops, chat->n_stops, detokenizer,
                                       &error);
    }
    return status == KR_OK ? 0 : cli_report(CLI_PHASE_SETUP, status, &error);
}

/* Keeps in the session what the new prompt begins with; at least one token stays to be computed. */
static int reuse_prefix(chat_t *chat, const cli_tokens_t *tokens, uint32_t *n_reused) {
    uint32_t n = 0;
    while (n < chat->n_held && n + 1 < tokens->n && chat->held[n] == tokens->data[n]) n++;
    kr_status_t status = kr_session_truncate(chat->engine.session, 0, n);
    if (status == KR_E_UNSUPPORTED) { /* a sliding window has moved past them: compute all anew */
        n = 0;
        status = kr_session_truncate(chat->engine.session, 0, n);
    }
    if (status != KR_OK) return cli_report(CLI_PHASE_INPUT, status, NULL);
    chat->n_held = n;
    *n_reused = n;
    return 0;
}

/* The session is the authority on how much it holds (a cancelled prefill holds a part). */
static void remember_held(chat_t *chat, const cli_tokens_t *tokens, const cli_generation_t *g) {
    uint32_t n = 0;
    if (kr_session_length(chat->engine.session, 0, &n) != KR_OK) n = 0;
    for (uint32_t i = 0; i < n; i++) {
        chat->held[i] = i < tokens->n ? tokens->data[i] : g->tokens[i - tokens->n];
    }
    chat->n_held = n;
}

static void note_figures(chat_t *chat, const cli_generation_t *g) {
    snprintf(chat->last_figures, sizeof chat->last_figures,
             "prompt %u tokens (%u reused), %.1f tok/s | generated %u (%s), %.1f tok/s | first "
             "token %.0f ms", g->n_prompt, g->n_reused, cli_generation_prefill_tps(g),
             g->n_tokens, g->finish_reason, cli_generation_decode_tps(g),
             cli_generation_ttft_ms(g));
}

static int generate(chat_t *chat, cli_generation_t *g, const cli_tokens_t *tokens) {
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = cli_generate(g, &error);
    bool is_open_line = g->text.n_bytes == 0 || g->text.data[g->text.n_bytes - 1] != '\n';
    if (is_open_line && status == KR_OK) (void)cli_out_write("\n", 1);
    remember_held(chat, tokens, g);
    if (cli_out_is_closed()) return 0;
    if (status == KR_E_IO || status == KR_E_NOSPC) return CLI_EXIT_IO;
    if (status == KR_E_CONTEXT_LENGTH) {
        return cli_fail(CLI_PHASE_INPUT, status, "messages",
                        "the conversation has %u tokens, the context holds %u: /reset begins anew, "
                        "-c allows more", g->n_prompt, chat->engine.session_info.n_ctx);
    }
    if (status != KR_OK) return cli_report(CLI_PHASE_INPUT, status, &error);
    note_figures(chat, g);
    if (strcmp(g->finish_reason, "length") == 0) cli_note("(the answer was cut: -n or context)");
    if (strcmp(g->finish_reason, "cancelled") == 0) cli_note("(stopped)");
    return add_message(chat, chat->n_messages, "assistant", g->text.data, g->text.n_bytes);
}

/* Answers the conversation as it stands; on failure it is as before the last message. */
static int answer(chat_t *chat) {
    cli_tokens_t tokens = {NULL, 0};
    kr_sampler_t sampler = NULL;
    kr_detokenizer_t detokenizer = NULL;
    cli_generation_t g;
    memset(&g, 0, sizeof g);
    int failed = cli_tokenize_chat(chat->engine.model, chat->messages, chat->n_messages, &tokens);
    if (failed == 0) failed = create_tools(chat, &sampler, &detokenizer);
    if (failed == 0) failed = reuse_prefix(chat, &tokens, &g.n_reused);
    if (failed == 0) {
        g.engine = &chat->engine;
        g.sampler = sampler;
        g.detokenizer = detokenizer;
        g.prompt = tokens.data;
        g.n_prompt = (uint32_t)tokens.n;
        g.n_tokens_max = cli_u32(chat->options, CLI_OPT_chat_n);
        g.emit = emit_text;
        failed = generate(chat, &g, &tokens);
    }
    if (failed != 0) drop_messages(chat, chat->n_messages - 1);
    chat->n_turns++;
    cli_generation_deinit(&g);
    kr_detokenizer_destroy(detokenizer);
    kr_sampler_destroy(sampler);
    free(tokens.data);
    return failed;
}

/* ---- slash commands ----------------------------------------------------------------------- */

static void help(void) {
    fputs("  /help         this list\n"
          "  /reset        forget the conversation (the system message stays)\n"
          "  /system TEXT  set the system message; without TEXT remove it\n"
          "  /temp X       temperature from 0 to 2\n"
          "  /stats        context used and the speed of the last answer\n"
          "  /exit         leave (also Ctrl-D)\n"
          "A line ending in \\ goes on in the next one; //x says /x to the model; Ctrl-C stops an "
          "answer.\n", stderr);
}

static int set_temperature(chat_t *chat, const char *text) {
    double value = -1;
    if (!cli_parse_number(text, &value) || value < 0 || value > 2) {
        return cli_usage("/temp", "/temp wants a number from 0 to 2, not '%.64s'", text);
    }
    chat->temperature = value;
    return 0;
}

static void print_stats(const chat_t *chat) {
    cli_note("%zu messages, %u of %u tokens held | temperature %g | seed %lld | %s, %u threads",
             chat->n_messages, chat->n_held, chat->engine.session_info.n_ctx, chat->temperature,
             (long long)chat->sampler_params.seed, chat->engine.session_info.isa,
             chat->engine.session_info.n_threads);
    if (chat->last_figures[0] != '\0') cli_note("%s", chat->last_figures);
}

/* Sets *leave on /exit. Returns 0 or a reported code. */
static int obey(chat_t *chat, const char *line, bool *leave) {
    char word[16] = "";
    size_t n = strcspn(line, " ");
    if (n < sizeof word) memcpy(word, line, n);
    const char *rest = line + n + strspn(line + n, " ");
    bool takes_text = strcmp(word, "/system") == 0 || strcmp(word, "/temp") == 0;
    if (!takes_text && rest[0] != '\0') {
        return cli_usage(NULL, "%.64s takes nothing behind it; /help lists the commands", word);
    }
    if (strcmp(word, "/exit") == 0 || strcmp(word, "/quit") == 0) *leave = true;
    else if (strcmp(word, "/help") == 0) help();
    else if (strcmp(word, "/stats") == 0) print_stats(chat);
    else if (strcmp(word, "/temp") == 0) return set_temperature(chat, rest);
    else if (strcmp(word, "/system") == 0) return set_system(chat, rest);
    else if (strcmp(word, "/reset") == 0) drop_messages(chat, chat->has_system ? 1 : 0);
    else return cli_usage(NULL, "unknown command '%.*s'; /help lists them", (int)(n < 64 ? n : 64),
                          line);
    return 0;
}

/* ---- reading lines ------------------------------------------------------------------------ */

typedef enum line_e { LINE_READ, LINE_END, LINE_INTERRUPTED, LINE_FAILED } line_t;

/* One message: a line, or several joined by a backslash at their ends. */
static line_t read_message(kri_buffer_t *line, int *failed) {
    kri_buffer_clear(line);
    for (;;) {
        errno = 0;
        int c = getc(stdin);
        if (c == EOF && errno == EINTR) {
            clearerr(stdin);
            if (cli_interrupted()) return LINE_INTERRUPTED;
            continue;
        }
        if (c == EOF && ferror(stdin)) {
            *failed = cli_fail(CLI_PHASE_INPUT, KR_E_IO, "stdin", "cannot read stdin");
            return LINE_FAILED;
        }
        if (c == EOF) return line->n_bytes > 0 ? LINE_READ : LINE_END;
        char byte = (char)c;
        bool is_end = byte == '\n';
        if (is_end && line->n_bytes > 0 && line->data[line->n_bytes - 1] == '\\') {
            line->data[line->n_bytes - 1] = '\n';
            if (cli_stdin_is_terminal()) fputs("... ", stderr);
            continue;
        }
        if (is_end) return LINE_READ;
        if (kri_buffer_append(line, &byte, 1) != KR_OK) {
            *failed = cli_fail(CLI_PHASE_INPUT, KR_E_LIMIT, "stdin",
                               "a message is over the limit of %zu bytes", CLI_INPUT_BYTES_MAX);
            return LINE_FAILED;
        }
    }
}

static int take_message(chat_t *chat, const kri_buffer_t *line, bool *leave) {
    if (line->n_bytes == 0) return 0;
    int failed = cli_input_check_utf8("message", line->data, line->n_bytes);
    if (failed != 0) return failed;
    const char *text = line->data;
    size_t n_bytes = line->n_bytes;
    if (n_bytes > 1 && text[0] == '/' && text[1] == '/') {
        text++;
        n_bytes--;
    } else if (text[0] == '/') {
        return obey(chat, text, leave);
    }
    if (chat->n_messages + 2 > MESSAGES_MAX) {
        return cli_fail(CLI_PHASE_INPUT, KR_E_LIMIT, "messages",
                        "the conversation has %d messages: /reset begins anew", MESSAGES_MAX);
    }
    failed = add_message(chat, chat->n_messages, "user", text, n_bytes);
    return failed != 0 ? failed : answer(chat);
}

/* In a terminal a mistake is told and the conversation goes on; from a pipe it ends the run. */
static int talk(chat_t *chat) {
    bool is_terminal = cli_stdin_is_terminal(), leave = false, was_interrupted = false;
    int failed = 0;
    kri_buffer_t line;
    kri_buffer_init(&line, CLI_INPUT_BYTES_MAX);
    while (!leave && failed == 0 && !cli_out_is_closed()) {
        if (is_terminal) fputs("> ", stderr);
        line_t read = read_message(&line, &failed);
        if (read == LINE_END || read == LINE_FAILED) break;
        if (read == LINE_INTERRUPTED) {
            if (was_interrupted || !is_terminal) failed = cli_interrupt_exit();
            else fputs("\n(Ctrl-C again or /exit leaves)\n", stderr);
            was_interrupted = true;
            cli_interrupt_reset();
            continue;
        }
        was_interrupted = false;
        failed = take_message(chat, &line, &leave);
        bool stop_here = cli_interrupted() && !is_terminal;
        if (is_terminal && failed != CLI_EXIT_IO && failed != CLI_EXIT_BUG) failed = 0;
        cli_interrupt_reset();
        if (stop_here) break;
    }
    if (is_terminal && !leave) fputs("\n", stderr);
    kri_buffer_deinit(&line);
    return failed;
}

static int prepare(chat_t *chat) {
    const cli_options_t *options = chat->options;
    const char *system = cli_text(options, CLI_OPT_system);
    int failed = 0;
    if (system != NULL) failed = cli_input_check_utf8("--system", system, strlen(system));
    if (failed == 0) failed = cli_stop_strings(options, chat->stops, &chat->n_stops);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, false, &chat->engine);
    if (failed != 0) return failed;
    if (chat->engine.info.has_chat_template == 0) {
        return cli_usage("model", "this model has no chat template (a base model): use `kr run "
                                  "--raw` to continue a text");
    }
    failed = cli_sampler_params(options, chat->engine.info.n_vocab, &chat->sampler_params,
                                &chat->bias);
    if (failed == 0) {
        failed = cli_engine_open_session(options, cli_u32(options, CLI_OPT_ctx),
                                         cli_u32(options, CLI_OPT_chunk), &chat->engine);
    }
    if (failed != 0) return failed;
    chat->held = calloc(chat->engine.session_info.n_ctx, sizeof *chat->held);
    if (chat->held == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    chat->temperature = cli_number(options, CLI_OPT_temp);
    return system != NULL ? set_system(chat, system) : 0;
}

int cli_chat(const cli_options_t *options) {
    chat_t *chat = calloc(1, sizeof *chat);
    if (chat == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    chat->options = options;
    int failed = prepare(chat);
    if (failed == 0 && cli_stdin_is_terminal()) {
        cli_note("%s | context %u tokens | %s, %u threads | /help lists the commands",
                 chat->engine.info.name != NULL ? chat->engine.info.name : "model",
                 chat->engine.session_info.n_ctx, chat->engine.session_info.isa,
                 chat->engine.session_info.n_threads);
    }
    if (failed == 0) failed = talk(chat);
    drop_messages(chat, 0);
    free(chat->held);
    free(chat->bias);
    cli_engine_close(&chat->engine);
    free(chat);
    return failed;
}
