/* detokenize.c: POST /detokenize in llama-server's form: {"tokens": [1, 2]} -> {"content": TEXT}.
 * Special tokens are spelled out; bytes that are no character become U+FFFD. */
#include <stdlib.h>
#include <string.h>

#include "server/endpoints.h"
#include "text_tools.h"

#define TOKENS_MAX 1000000u

/* False: a mistake is set. */
static bool read_tokens(json_reader_t *reader, json_t *array, uint32_t n_vocab,
                        kr_token_t *tokens) {
    for (size_t i = 0; i < json_array_size(array); i++) {
        json_t *value = json_array_get(array, i);
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= (json_int_t)n_vocab) {
            char param[32];
            (void)snprintf(param, sizeof param, "tokens.%zu", i);
            json_fail(reader, "invalid_value", param,
                      "'%s' must be a token id, a whole number from 0 to %u", param, n_vocab - 1);
            return false;
        }
        tokens[i] = (kr_token_t)id;
    }
    return true;
}

static void reply(call_t *call, const server_model_t *model, const kr_token_t *tokens, size_t n) {
    kr_error_t error;
    kr_error_init(&error);
    size_t n_bytes = 0;
    kr_status_t status = kr_model_detokenize(model->model, tokens, n, KR_TOKENIZE_PARSE_SPECIAL,
                                             NULL, 0, &n_bytes, &error);
    if (status == KR_E_LIMIT && n_bytes <= TEXT_TOOLS_BYTES_MAX) status = KR_OK;
    char *text = status == KR_OK ? malloc(n_bytes + 1) : NULL;
    if (status == KR_OK && text == NULL) status = KR_E_NOMEM;
    if (status == KR_OK) {
        status = kr_model_detokenize(model->model, tokens, n, KR_TOKENIZE_PARSE_SPECIAL, text,
                                     n_bytes, &n_bytes, &error);
    }
    if (status == KR_OK) {
        kri_buffer_t out;
        kri_buffer_init(&out, TEXT_TOOLS_BYTES_MAX);
        (void)kri_buffer_printf(&out, "{\"content\":");
        (void)json_put_string(&out, text, n_bytes);
        (void)kri_buffer_append(&out, "}", 1);
        text_tools_reply(call, &out);
    } else {
        call_fail_status(call, status, &error);
    }
    free(text);
}

void endpoint_detokenize(call_t *call) {
    json_t *body = call_body(call), *array = NULL;
    if (body == NULL) return;
    json_mistake_t mistake = {0};
    json_reader_t reader;
    json_open(&reader, body, NULL, &mistake);
    const server_model_t *model = text_tools_read_model(call, &reader);
    json_require(&reader, "tokens");
    (void)json_read_array(&reader, "tokens", 0, TOKENS_MAX, &array);
    json_finish(&reader);
    const size_t n = array != NULL ? json_array_size(array) : 0;
    kr_token_t *tokens = calloc(n + 1, sizeof *tokens);
    if (tokens == NULL) {
        call_fail_status(call, KR_E_NOMEM, NULL);
    } else if (mistake.is_set || !read_tokens(&reader, array, model->info.n_vocab, tokens)) {
        call_fail_json(call, &mistake);
    } else {
        reply(call, model, tokens, n);
    }
    free(tokens);
}
