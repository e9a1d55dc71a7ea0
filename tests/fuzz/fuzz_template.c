/* fuzz_template.c: any text as a chat template, with messages. Input: the source up to the first
 * NUL, then contents of messages, each up to the next NUL. What renders must encode to tokens that
 * spell the same text. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "unit/text/vocab_builder.h"

#define ROOM ((size_t)1 << 20)
#define N_MESSAGES_MAX 8u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static kri_tokenizer_t *tokenizer(void) {
    static kri_tokenizer_t *t;
    static builder_t b;
    if (t) return t;
    builder_init(&b, KRI_VOCAB_BPE);
    builder_add_alphabet(&b);
    builder_add(&b, "<|im_start|>", KRI_TOKEN_CONTROL);
    builder_add(&b, "<|im_end|>", KRI_TOKEN_CONTROL);
    b.desc.bos = builder_add(&b, "<s>", KRI_TOKEN_CONTROL);
    b.desc.eos = builder_add(&b, "</s>", KRI_TOKEN_CONTROL);
    builder_add(&b, "<think>", KRI_TOKEN_USER_DEFINED);
    require(kri_tokenizer_create(&b.desc, &t, NULL) == KR_OK);
    return t;
}

static void use(const kri_template_t *tmpl, const kr_message_t *messages, size_t n_messages,
                bool is_stable) {
    static char rendered[ROOM], spelled[ROOM];
    static kr_token_t ids[ROOM];
    size_t n_rendered = 0, n_ids = 0, n_spelled = 0;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_template_render(tmpl, messages, n_messages, 1, rendered, ROOM,
                                             &n_rendered, &error);
    if (status != KR_OK) {
        require(status == KR_E_BAD_TEMPLATE || status == KR_E_LIMIT || status == KR_E_INVALID_ARG);
        require(error.message[0] != 0 && !strchr(error.message, '\n'));
        return;
    }
    require(kri_utf8_valid_prefix(rendered, n_rendered) == n_rendered);
    status = kri_template_tokenize(tmpl, messages, n_messages, 1, ids, ROOM, &n_ids, NULL, &error);
    if (!is_stable) return;
    require(status == KR_OK);
    require(kri_tokenizer_decode(tokenizer(), ids, n_ids, KR_TOKENIZE_PARSE_SPECIAL, spelled, ROOM,
                                 &n_spelled, NULL) == KR_OK);
    require(n_spelled == n_rendered && memcmp(spelled, rendered, n_rendered) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    char *text = malloc(n_bytes + 1);
    require(text != NULL);
    memcpy(text, data, n_bytes);
    text[n_bytes] = '\0';
    const size_t n_source = strlen(text);
    kr_message_t messages[N_MESSAGES_MAX];
    size_t n_messages = 0;
    for (size_t at = n_source + 1; at < n_bytes && n_messages < N_MESSAGES_MAX;) {
        const size_t n = strlen(text + at);
        messages[n_messages] = (kr_message_t){roles[(n_messages + 1) % 4], text + at, n};
        n_messages++;
        at += n + 1;
    }
    kri_template_t *tmpl = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = kri_template_create(text, n_source, tokenizer(), &tmpl, &error);
    if (status == KR_OK) {
        use(tmpl, messages, n_messages, strstr(text, "strftime_now") == NULL);
    } else {
        require(status == KR_E_BAD_TEMPLATE || status == KR_E_LIMIT);
        require(error.message[0] != 0);
    }
    kri_template_destroy(tmpl);
    free(text);
    return 0;
}
