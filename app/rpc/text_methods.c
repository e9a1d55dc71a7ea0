/* text_methods.c: tokenize, detokenize, count_tokens. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "generation.h"
#include "shared.h"

#define TOKENS_MAX 1000000u
#define TEXT_BYTES_MAX ((size_t)16 << 20)
#define PIECE_BYTES_MAX 65536u

static void record(rpc_t *rpc, uint64_t begin_ns) {
    if (rpc->calls == NULL) return;
    (void)kr_telemetry_record(rpc->calls, "tokenize", (double)(kri_clock_ns() - begin_ns) / 1e6);
}

/* ---- tokenize -------------------------------------------------------------------------------- */

typedef struct tokenize_s {
    const char *model_id, *text;
    size_t n_bytes;
    bool add_special, parse_special, with_strings;
} tokenize_t;

static uint32_t flags_of(const tokenize_t *request) {
    return (request->add_special ? KR_TOKENIZE_ADD_BOS : 0u) |
           (request->parse_special ? KR_TOKENIZE_PARSE_SPECIAL : 0u);
}

static void put_piece(kri_buffer_t *out, kr_model_t model, kr_token_t token, char *piece) {
    size_t n = 0;
    const kr_status_t status = kr_model_detokenize(model, &token, 1, KR_TOKENIZE_PARSE_SPECIAL,
                                                   piece, PIECE_BYTES_MAX, &n, NULL);
    (void)json_put_string(out, piece, status == KR_OK ? n : 0);
}

static void put_tokens(rpc_call_t *call, rpc_tensor_t *tensor, size_t n, kri_buffer_t *out) {
    rpc_tensor_shape(tensor, RPC_DTYPE_I32, n, 0);
    if (rpc_tensor_give(call->conn, tensor, out)) return;
    const kr_token_t *tokens = (const kr_token_t *)(const void *)tensor->data;
    if (tokens == NULL) out->status = KR_E_NOMEM;
    (void)kri_buffer_append(out, "[", 1);
    for (size_t i = 0; i < n && out->status == KR_OK; i++) {
        (void)kri_buffer_printf(out, i > 0 ? ",%d" : "%d", tokens[i]);
    }
    (void)kri_buffer_append(out, "]", 1);
}

static void put_strings(const rpc_model_t *model, const kr_token_t *tokens, size_t n,
                        kri_buffer_t *out) {
    char *piece = malloc(PIECE_BYTES_MAX);
    if (piece == NULL) out->status = KR_E_NOMEM;
    (void)kri_buffer_printf(out, "\"token_strings\":[");
    for (size_t i = 0; i < n && out->status == KR_OK; i++) {
        if (i > 0) (void)kri_buffer_append(out, ",", 1);
        put_piece(out, model->model, tokens[i], piece);
    }
    (void)kri_buffer_printf(out, "],");
    free(piece);
}

/* The strings first: tokens that are given away are not there any more. */
static void reply_tokens(rpc_call_t *call, const rpc_model_t *model, const tokenize_t *request,
                         rpc_tensor_t *tensor, size_t n) {
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_append(&out, "{", 1);
    if (request->with_strings) {
        put_strings(model, (const kr_token_t *)(const void *)tensor->data, n, &out);
    }
    (void)kri_buffer_printf(&out, "\"tokens\":");
    put_tokens(call, tensor, n, &out);
    (void)kri_buffer_append(&out, "}", 1);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

static void read_text(json_reader_t *reader, tokenize_t *request) {
    (void)json_read_string(reader, "text", 0, TEXT_BYTES_MAX, &request->text, &request->n_bytes);
    (void)json_read_bool(reader, "add_special_tokens", &request->add_special);
    (void)json_read_bool(reader, "parse_special", &request->parse_special);
}

void rpc_method_tokenize(rpc_call_t *call) {
    const uint64_t begin_ns = kri_clock_ns();
    rpc_t *rpc = call->rpc;
    json_mistake_t mistake;
    json_reader_t reader;
    tokenize_t request = {.add_special = true, .with_strings = true};
    rpc_open(call, &reader, &mistake);
    request.model_id = rpc_read_model_id(&reader, "model_id");
    json_require(&reader, "text");
    read_text(&reader, &request);
    (void)json_read_bool(&reader, "token_strings", &request.with_strings);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    rpc_model_t *model = rpc_need_model(call, request.model_id);
    if (model == NULL) return;
    /* A token has at least one byte, save BOS and what a tokenizer puts in front. */
    const size_t capacity = request.n_bytes + 16;
    rpc_tensor_t tensor;
    kr_error_t error;
    kr_error_init(&error);
    size_t n_tokens = 0;
    kr_status_t status = KR_E_NOMEM;
    if (rpc_tensor_create(call->conn, capacity * sizeof(kr_token_t), &tensor)) {
        status = kr_model_tokenize(model->model, request.text, request.n_bytes, flags_of(&request),
                                   (kr_token_t *)(void *)tensor.data, capacity, &n_tokens, &error);
    }
    if (status == KR_OK) reply_tokens(call, model, &request, &tensor, n_tokens);
    else rpc_fail_status(call, RPC_E_TOKENIZER, status, &error);
    rpc_tensor_deinit(&tensor);
    rpc_model_release(model);
    record(rpc, begin_ns);
}

void rpc_method_batch_tokenize(rpc_call_t *call) { rpc_run_requests(call, "tokenize"); }

/* ---- detokenize ------------------------------------------------------------------------------ */

static void reply_text(rpc_call_t *call, const rpc_model_t *model, const kr_token_t *tokens,
                       size_t n, uint32_t flags) {
    kr_error_t error;
    kr_error_init(&error);
    size_t n_bytes = 0;
    kr_status_t status = kr_model_detokenize(model->model, tokens, n, flags, NULL, 0, &n_bytes,
                                             &error);
    if (status == KR_E_LIMIT && n_bytes <= RPC_RESULT_BYTES_MAX) status = KR_OK;
    char *text = status == KR_OK ? malloc(n_bytes + 1) : NULL;
    if (status == KR_OK && text == NULL) status = KR_E_NOMEM;
    if (status == KR_OK) {
        status = kr_model_detokenize(model->model, tokens, n, flags, text, n_bytes, &n_bytes,
                                     &error);
    }
    if (status == KR_OK) {
        kri_buffer_t out;
        kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
        (void)kri_buffer_printf(&out, "{\"text\":");
        (void)json_put_string(&out, text, n_bytes);
        (void)kri_buffer_append(&out, "}", 1);
        rpc_reply(call, &out);
        kri_buffer_deinit(&out);
    } else {
        rpc_fail_status(call, RPC_E_TOKENIZER, status, &error);
    }
    free(text);
}

void rpc_method_detokenize(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    rpc_tokens_t list = {0};
    bool skips_special = false;
    rpc_open(call, &reader, &mistake);
    const char *model_id = rpc_read_model_id(&reader, "model_id");
    json_require(&reader, "tokens");
    rpc_read_tokens(call->conn, &reader, "tokens", TOKENS_MAX, &list);
    (void)json_read_bool(&reader, "skip_special_tokens", &skips_special);
    json_finish(&reader);
    if (!rpc_fail_mistake(call, &mistake)) {
        rpc_model_t *model = rpc_need_model(call, model_id);
        if (model != NULL) {
            reply_text(call, model, list.tokens, list.n,
                       skips_special ? 0 : KR_TOKENIZE_PARSE_SPECIAL);
        }
        rpc_model_release(model);
    }
    free(list.tokens);
}

/* ---- count_tokens ---------------------------------------------------------------------------- */

static kr_status_t count(const rpc_model_t *model, const tokenize_t *request,
                         const rpc_messages_t *messages, size_t *n, kr_error_t *error) {
    kr_status_t status = KR_OK;
    if (messages->messages != NULL) {
        status = kr_model_chat_tokenize(model->model, messages->messages, messages->n, 1, NULL, 0,
                                        n, error);
    } else {
        status = kr_model_tokenize(model->model, request->text, request->n_bytes,
                                   flags_of(request), NULL, 0, n, error);
    }
    return status == KR_E_LIMIT && *n > 0 ? KR_OK : status;
}

void rpc_method_count_tokens(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    tokenize_t request = {.add_special = true};
    rpc_messages_t messages = {0};
    rpc_open(call, &reader, &mistake);
    const char *model_id = rpc_read_model_id(&reader, "model_id");
    read_text(&reader, &request);
    rpc_read_messages(&reader, "messages", &messages);
    if ((request.text != NULL) == (messages.messages != NULL)) {
        json_fail(&reader, "invalid_value", "text", "give either 'text' or 'messages'");
    }
    json_finish(&reader);
    if (!rpc_fail_mistake(call, &mistake)) {
        rpc_model_t *model = rpc_need_model(call, model_id);
        if (model != NULL) {
            size_t n = 0;
            char text[64];
            kr_error_t error;
            kr_error_init(&error);
            const kr_status_t status = count(model, &request, &messages, &n, &error);
            (void)snprintf(text, sizeof text, "{\"count\":%zu}", n);
            if (status == KR_OK) rpc_reply_text(call, text);
            else rpc_fail_status(call, RPC_E_TOKENIZER, status, &error);
        }
        rpc_model_release(model);
    }
    free(messages.messages);
}
