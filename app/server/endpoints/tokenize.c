/* tokenize.c: POST /tokenize in llama-server's form: {"content": TEXT, "add_special": false,
 * "parse_special": false, "with_pieces": false} -> {"tokens": [...]}. Unlike there, spellings of
 * special tokens are text unless parse_special says otherwise. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "server/endpoints.h"
#include "text_tools.h"

#define PIECE_BYTES_MAX 65536u

typedef struct tokenize_s {
    const server_model_t *model;
    const char *content;
    size_t n_bytes;
    bool add_special, parse_special, with_pieces;
} tokenize_t;

static bool read_body(call_t *call, tokenize_t *request) {
    json_t *body = call_body(call);
    if (body == NULL) return false;
    json_mistake_t mistake = {0};
    json_reader_t reader;
    json_open(&reader, body, NULL, &mistake);
    request->model = text_tools_read_model(call, &reader);
    json_require(&reader, "content");
    (void)json_read_string(&reader, "content", 0, (size_t)16 << 20, &request->content,
                           &request->n_bytes);
    (void)json_read_bool(&reader, "add_special", &request->add_special);
    (void)json_read_bool(&reader, "parse_special", &request->parse_special);
    (void)json_read_bool(&reader, "with_pieces", &request->with_pieces);
    json_finish(&reader);
    if (mistake.is_set) call_fail_json(call, &mistake);
    return !mistake.is_set;
}

/* {"id":N,"piece":"text"}, or its bytes as numbers where they are no text alone. */
static void put_piece(kri_buffer_t *out, kr_model_t model, kr_token_t token, char *piece) {
    size_t n = 0;
    const kr_status_t status = kr_model_detokenize(model, &token, 1, KR_TOKENIZE_PARSE_SPECIAL,
                                                   piece, PIECE_BYTES_MAX, &n, NULL);
    if (status != KR_OK) n = 0;
    (void)kri_buffer_printf(out, "{\"id\":%d,\"piece\":", token);
    if (kri_utf8_valid_prefix(piece, n) == n) {
        (void)json_put_string(out, piece, n);
    } else {
        for (size_t i = 0; i < n; i++) {
            (void)kri_buffer_printf(out, "%s%u", i > 0 ? "," : "[", (unsigned char)piece[i]);
        }
        (void)kri_buffer_append(out, "]", 1);
    }
    (void)kri_buffer_append(out, "}", 1);
}

static void reply(call_t *call, const tokenize_t *request, const kr_token_t *tokens, size_t n) {
    char *piece = malloc(PIECE_BYTES_MAX);
    kri_buffer_t out;
    kri_buffer_init(&out, TEXT_TOOLS_BYTES_MAX);
    if (piece == NULL) out.status = KR_E_NOMEM;
    (void)kri_buffer_printf(&out, "{\"tokens\":[");
    for (size_t i = 0; i < n && out.status == KR_OK; i++) {
        if (i > 0) (void)kri_buffer_append(&out, ",", 1);
        if (request->with_pieces) put_piece(&out, request->model->model, tokens[i], piece);
        else (void)kri_buffer_printf(&out, "%d", tokens[i]);
    }
    (void)kri_buffer_append(&out, "]}", 2);
    free(piece);
    text_tools_reply(call, &out);
}

void endpoint_tokenize(call_t *call) {
    tokenize_t request = {0};
    if (!read_body(call, &request)) return;
    const uint32_t flags = (request.add_special ? KR_TOKENIZE_ADD_BOS : 0u) |
                           (request.parse_special ? KR_TOKENIZE_PARSE_SPECIAL : 0u);
    /* A token has at least one byte, save BOS and what a tokenizer puts in front. */
    const size_t capacity = request.n_bytes + 16;
    kr_token_t *tokens = malloc(capacity * sizeof *tokens);
    kr_error_t error;
    kr_error_init(&error);
    size_t n_tokens = 0;
    kr_status_t status = KR_E_NOMEM;
    if (tokens != NULL) {
        status = kr_model_tokenize(request.model->model, request.content, request.n_bytes, flags,
                                   tokens, capacity, &n_tokens, &error);
    }
    if (status == KR_OK) reply(call, &request, tokens, n_tokens);
    else call_fail_status(call, status, &error);
    free(tokens);
}
