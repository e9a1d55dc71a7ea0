/* kr_model.c: models and their text: arguments checked, then the engine's functions. */
#include <string.h>

#include "base/error.h"
#include "base/structs.h"
#include "base/threads.h"
#include "model/model.h"
#include "model/packed_image.h"

void kr_model_params_init(kr_model_params_t *params) {
    if (params) kri_struct_init(params, sizeof(*params));
}

kr_status_t kr_model_open(const char *path, const kr_model_params_t *params, kr_model_t *model,
                          kr_error_t *error) {
    kr_model_params_t p;
    if (!path || !*path) return KRI_FAIL(error, KR_E_INVALID_ARG, "path", "path is empty");
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    kr_model_params_init(&p);
    KR_TRY(kri_struct_read(&p, sizeof(p), params, "params", error));
    KR_TRY(kri_check_max("n_threads", p.n_threads, KRI_THREADS_MAX, error));
    if (p.vocab_only > 1 || p.reserved) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, p.reserved ? "reserved" : "vocab_only",
                        "vocab_only must be 0 or 1 and reserved 0");
    }
    return kri_model_open(path, &p, model, error);
}

void kr_model_retain(kr_model_t model) {
    if (model) kri_model_retain(model);
}

void kr_model_close(kr_model_t model) { kri_model_close(model); }

kr_status_t kr_cache_verify(const char *dir, kr_cache_fn fn, void *user, kr_error_t *error) {
    if (!fn) return KRI_FAIL(error, KR_E_INVALID_ARG, "fn", "fn is NULL");
    return kri_image_verify_all(dir, fn, user, error);
}

void kr_model_info_init(kr_model_info_t *info) {
    if (info) kri_struct_init(info, sizeof(*info));
}

kr_status_t kr_model_info(kr_model_t model, kr_model_info_t *info) {
    if (!model) return KR_E_INVALID_ARG;
    const kri_hparams_t *hp = &model->hp;
    const kr_model_info_t out = {
        .struct_bytes = sizeof(out), .n_layers = hp->n_layers, .n_embd = hp->n_embd,
        .n_heads = hp->n_heads, .n_kv_heads = hp->n_kv_heads, .head_dim = hp->head_dim,
        .n_ff = hp->n_ff, .n_vocab = hp->n_vocab, .n_ctx_train = hp->n_ctx_train,
        .window = hp->window, .token_bos = model->token_bos, .token_eos = model->token_eos,
        .add_bos = model->add_bos, .has_chat_template = model->chat_template_source != NULL,
        .model_bytes = kri_gguf_file_bytes(model->gguf),
        .bytes_per_token = model->bytes_per_token, .packed_bytes = model->packed_bytes,
        .n_params = model->n_params, .format = "gguf",
        .arch = model->arch ? model->arch->name : "", .name = model->name,
        .chat_template = model->chat_template_source};
    return kri_struct_write(info, &out, sizeof(out));
}

kr_status_t kr_model_meta(kr_model_t model, uint32_t index, const char **key, char *buf,
                          size_t cap) {
    if (!model || !key || !buf || cap < 4) return KR_E_INVALID_ARG;
    return kri_gguf_meta(model->gguf, index, key, buf, cap);
}

void kr_tensor_info_init(kr_tensor_info_t *info) {
    if (info) kri_struct_init(info, sizeof(*info));
}

kr_status_t kr_model_tensor(kr_model_t model, uint32_t index, kr_tensor_info_t *info) {
    if (!model || !info) return KR_E_INVALID_ARG;
    if (index >= kri_gguf_n_tensors(model->gguf)) return KR_E_NOT_FOUND;
    const kri_gguf_tensor_t *t = kri_gguf_tensor(model->gguf, index);
    kr_tensor_info_t out = {.struct_bytes = sizeof(out), .dtype = t->tensor.dtype,
                            .n_dims = t->tensor.n_dims, .bytes = t->tensor.n_bytes,
                            .name = t->name};
    memcpy(out.shape, t->tensor.shape, sizeof(out.shape));
    return kri_struct_write(info, &out, sizeof(out));
}

kr_status_t kr_model_tokenize(kr_model_t model, const char *text, size_t text_bytes,
                              uint32_t flags, kr_token_t *tokens, size_t capacity,
                              size_t *n_tokens, kr_error_t *error) {
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    return kri_tokenizer_encode(model->tokenizer, text, text_bytes, flags, tokens, capacity,
                                n_tokens, NULL, error);
}

kr_status_t kr_model_detokenize(kr_model_t model, const kr_token_t *tokens, size_t n_tokens,
                                uint32_t flags, char *buf, size_t capacity, size_t *n_bytes,
                                kr_error_t *error) {
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    return kri_tokenizer_decode(model->tokenizer, tokens, n_tokens, flags, buf, capacity,
                                n_bytes, error);
}

int32_t kr_model_token_is_end(kr_model_t model, kr_token_t token) {
    return model ? kri_tokenizer_is_end(model->tokenizer, token) : 0;
}

static kr_status_t chat_template(kr_model_t model, uint32_t add_generation_prompt,
                                 const kri_template_t **tmpl, kr_error_t *error) {
    if (!model) return KRI_FAIL(error, KR_E_INVALID_ARG, "model", "model is NULL");
    if (add_generation_prompt > 1) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "add_generation_prompt",
                        "add_generation_prompt is %u, allowed are 0 and 1",
                        add_generation_prompt);
    }
    return kri_model_template(model, tmpl, error);
}

kr_status_t kr_model_chat_tokenize(kr_model_t model, const kr_message_t *messages,
                                   size_t n_messages, uint32_t add_generation_prompt,
                                   kr_token_t *tokens, size_t capacity, size_t *n_tokens,
                                   kr_error_t *error) {
    const kri_template_t *tmpl = NULL;
    KR_TRY(chat_template(model, add_generation_prompt, &tmpl, error));
    return kri_template_tokenize(tmpl, messages, n_messages, add_generation_prompt, tokens,
                                 capacity, n_tokens, NULL, error);
}

kr_status_t kr_model_chat_render(kr_model_t model, const kr_message_t *messages,
                                 size_t n_messages, uint32_t add_generation_prompt, char *buf,
                                 size_t capacity, size_t *n_bytes, kr_error_t *error) {
    const kri_template_t *tmpl = NULL;
    KR_TRY(chat_template(model, add_generation_prompt, &tmpl, error));
    return kri_template_render(tmpl, messages, n_messages, add_generation_prompt, buf, capacity,
                               n_bytes, error);
}
