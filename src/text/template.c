/* template.c: chat templates. Jinja runs in the Rust library; this side checks the messages and
 * knows the tokenizer's BOS and EOS. Rendering recurses: 2 MiB of stack. */
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "text/tokenizer.h"

#define MESSAGES_MAX 2048u

struct kri_template_s {
    krt_template_t *compiled;
    const kri_tokenizer_t *tokenizer; /* borrowed: outlives the template */
};

/* Spelling of a token, "" for none. */
static const char *spelling(const kri_tokenizer_t *tokenizer, kr_token_t token, size_t *n_bytes) {
    int is_special;
    return kri_tokenizer_token(tokenizer, token, n_bytes, &is_special);
}

kr_status_t kri_template_create(const char *source, size_t n_bytes,
                                const kri_tokenizer_t *tokenizer, kri_template_t **tmpl,
                                kr_error_t *error) {
    if ((!source && n_bytes) || !tokenizer || !tmpl) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "chat_template", "NULL argument");
    }
    kri_template_t *t = kri_calloc(1, sizeof *t, "template");
    if (!t) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the chat template");
    size_t bos_bytes, eos_bytes;
    const char *bos = spelling(tokenizer, tokenizer->bos, &bos_bytes);
    const char *eos = spelling(tokenizer, tokenizer->eos, &eos_bytes);
    krt_error_t failure;
    const int32_t status = krt_template_create(source, n_bytes, bos, bos_bytes, eos, eos_bytes,
                                               &t->compiled, &failure);
    if (status != KR_OK) {
        kri_free(t);
        return kri_text_fail(status, &failure, "chat_template", error);
    }
    t->tokenizer = tokenizer;
    *tmpl = t;
    return KR_OK;
}

void kri_template_destroy(kri_template_t *tmpl) {
    if (!tmpl) return;
    krt_template_destroy(tmpl->compiled);
    kri_free(tmpl);
}

/* *list is the caller's to free. */
static kr_status_t convert(const kr_message_t *messages, size_t n_messages, krt_message_t **list,
                           kr_error_t *error) {
    *list = NULL;
    if (!messages && n_messages) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "messages", "NULL argument");
    }
    if (n_messages > MESSAGES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "messages", "%zu messages, allowed are %u", n_messages,
                        MESSAGES_MAX);
    }
    if (n_messages == 0) return KR_OK;
    krt_message_t *converted = kri_calloc(n_messages, sizeof *converted, "messages");
    if (!converted) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the messages");
    for (size_t i = 0; i < n_messages; i++) {
        const kr_message_t *m = &messages[i];
        if (!m->role || (!m->content && m->content_bytes)) {
            kri_free(converted);
            return KRI_FAIL(error, KR_E_INVALID_ARG, "messages", "message %zu is incomplete", i);
        }
        converted[i] = (krt_message_t){m->role, strlen(m->role), m->content, m->content_bytes};
    }
    *list = converted;
    return KR_OK;
}

kr_status_t kri_template_tokenize(const kri_template_t *tmpl, const kr_message_t *messages,
                                  size_t n_messages, uint32_t add_generation_prompt,
                                  kr_token_t *tokens, size_t capacity, size_t *n_tokens,
                                  int32_t *is_least, kr_error_t *error) {
    if (!tmpl || !n_tokens || (!tokens && capacity)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "tokens", "NULL argument");
    }
    krt_message_t *list;
    KR_TRY(convert(messages, n_messages, &list, error));
    const kri_tokenizer_t *tokenizer = tmpl->tokenizer;
    krt_error_t failure;
    const int32_t status = krt_template_encode(
        tmpl->compiled, tokenizer->encoder, list, n_messages, add_generation_prompt != 0,
        tokenizer->add_bos ? tokenizer->bos : -1, tokens, capacity, n_tokens, is_least,
        &failure);
    kri_free(list);
    return status == KR_OK ? KR_OK : kri_text_fail(status, &failure, "messages", error);
}

kr_status_t kri_template_render(const kri_template_t *tmpl, const kr_message_t *messages,
                                size_t n_messages, uint32_t add_generation_prompt, char *buf,
                                size_t capacity, size_t *n_bytes, kr_error_t *error) {
    if (!tmpl || !n_bytes || (!buf && capacity)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "buf", "NULL argument");
    }
    krt_message_t *list;
    KR_TRY(convert(messages, n_messages, &list, error));
    krt_error_t failure;
    const int32_t status =
        krt_template_render(tmpl->compiled, tmpl->tokenizer->encoder, list, n_messages,
                            add_generation_prompt != 0, buf, capacity, n_bytes, &failure);
    kri_free(list);
    return status == KR_OK ? KR_OK : kri_text_fail(status, &failure, "messages", error);
}
