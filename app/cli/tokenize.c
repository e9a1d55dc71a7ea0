/* tokenize.c: `kr tokenize`: text to ids as a JSON array, or ids back to bytes. The text is taken
 * verbatim: nothing is trimmed, spellings of special tokens stay text unless --special. */
#include <stdlib.h>
#include <string.h>

#include "input.h"
#include "load.h"
#include "models.h"
#include "report.h"
#include "terminal.h"

static int print_text(const cli_options_t *options, cli_engine_t *engine) {
    cli_tokens_t tokens = {NULL, 0};
    char *text = NULL;
    size_t n_bytes = 0;
    kr_error_t error;
    kr_error_init(&error);
    uint32_t flags = cli_given(options, CLI_OPT_special) ? KR_TOKENIZE_PARSE_SPECIAL : 0;
    int failed = cli_input_parse_ids("--detokenize", cli_text(options, CLI_OPT_detokenize),
                                     &tokens);
    if (failed == 0) failed = cli_engine_open_model(options, NULL, true, engine);
    if (failed == 0) failed = cli_input_check_ids("--detokenize", &tokens, engine->info.n_vocab);
    if (failed != 0) goto done;
    kr_status_t status = kr_model_detokenize(engine->model, tokens.data, tokens.n, flags, NULL, 0,
                                             &n_bytes, &error);
    if (status == KR_E_LIMIT && n_bytes > 0) {
        text = malloc(n_bytes);
        kr_error_init(&error);
        status = text == NULL ? KR_E_NOMEM
                              : kr_model_detokenize(engine->model, tokens.data, tokens.n, flags,
                                                    text, n_bytes, &n_bytes, &error);
    }
    if (status != KR_OK) {
        failed = cli_report(CLI_PHASE_INPUT, status, &error);
    } else if (cli_given(options, CLI_OPT_json)) {
        json_t *object = json_object();
        json_object_set_new(object, "text", cli_json_text(text, n_bytes));
        (void)cli_out_json(object);
        json_decref(object);
    } else if (n_bytes > 0) {
        (void)cli_out_text(text, n_bytes);
        if (text[n_bytes - 1] != '\n') (void)cli_out_write("\n", 1);
    }
done:
    free(text);
    free(tokens.data);
    return failed;
}

static int print_ids(const cli_options_t *options, cli_engine_t *engine) {
    kri_buffer_t text;
    cli_tokens_t tokens = {NULL, 0};
    char path[CLI_PATH_BYTES_MAX];
    const char *word = options->n_positional > 0 ? options->positional[0] : NULL;
    uint32_t flags = KR_TOKENIZE_ADD_BOS;
    if (cli_given(options, CLI_OPT_special)) flags |= KR_TOKENIZE_PARSE_SPECIAL;
    kri_buffer_init(&text, CLI_INPUT_BYTES_MAX);
    int failed = cli_engine_find_model(options, NULL, path, sizeof path);
    if (failed == 0) {
        failed = cli_input_read(word, cli_text(options, CLI_OPT_file), false, &text);
    }
    if (failed == 0) failed = cli_engine_open_model(options, NULL, true, engine);
    if (failed == 0) {
        failed = cli_tokenize_text(engine->model, text.data, text.n_bytes, flags, &tokens);
    }
    if (failed == 0) {
        json_t *ids = json_array();
        for (size_t i = 0; i < tokens.n; i++) {
            json_array_append_new(ids, json_integer(tokens.data[i]));
        }
        (void)cli_out_json(ids);
        json_decref(ids);
    }
    free(tokens.data);
    kri_buffer_deinit(&text);
    return failed;
}

int cli_tokenize(const cli_options_t *options) {
    int n_sources = (options->n_positional > 0) + cli_given(options, CLI_OPT_file) +
                    cli_given(options, CLI_OPT_detokenize);
    if (n_sources > 1) return cli_usage(NULL, "TEXT, -f and --detokenize exclude each other");
    cli_engine_t engine;
    memset(&engine, 0, sizeof engine);
    int failed = cli_given(options, CLI_OPT_detokenize) ? print_text(options, &engine)
                                                        : print_ids(options, &engine);
    cli_engine_close(&engine);
    return failed;
}
