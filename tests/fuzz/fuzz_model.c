/* fuzz_model.c: corrupt, load, then use what loaded: any bytes that open as a model must also
 * tokenize, render a chat, prefill, decode 16 tokens, sample, turn them into text and go away,
 * with a documented status at each step. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/session.h"
#include "model/model.h"
#include "sample/sampler.h"

#define N_DECODE 16u
#define N_CTX_MAX 64u
/* A tiny file cannot ask for more: larger shapes would only make the fuzzer slow. */
#define LOGITS_MAX (1u << 16)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static uint32_t make_prompt(const struct kr_model_s *model, kr_token_t *tokens, uint32_t max) {
    static const char text[] = "Hello, w\xc3\xb6rld! <|im_start|> 12345\n\n\xf0\x9f\x98\x80 a  b";
    size_t n = 0;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_tokenizer_encode(model->tokenizer, text, sizeof(text) - 1,
                                              KR_TOKENIZE_ADD_BOS, tokens, max, &n, NULL, &error);
    require(status == KR_OK || error.message[0] != 0);
    if (model->chat_template) {
        const kr_message_t message = {"user", text, sizeof(text) - 1};
        kr_token_t chat[256];
        size_t n_chat = 0;
        (void)kri_template_tokenize(model->chat_template, &message, 1, 1, chat, 256, &n_chat,
                                    NULL, &error);
    }
    return status == KR_OK ? (uint32_t)n : 0;
}

static void generate(struct kr_model_s *model, struct kr_session_s *session, float *logits,
                     const kr_token_t *prompt, uint32_t n_prompt) {
    kri_sampler_t *sampler = NULL;
    kri_detok_t *detok = NULL;
    const char *stop = "\n\n";
    kr_error_t error;
    kr_error_init(&error);
    require(kri_sampler_create(NULL, model->hp.n_vocab, &sampler, &error) == KR_OK);
    require(kri_detok_create(model->tokenizer, &stop, 1, &detok, &error) == KR_OK);
    kr_token_t token = 0;
    const kr_token_t *rows = prompt;
    uint32_t n_rows = n_prompt;
    for (uint32_t i = 0; i < N_DECODE; i++) {
        const kr_batch_seq_t seq = {0, n_rows};
        const uint32_t out_row = n_rows - 1;
        const kr_batch_t batch = {.struct_bytes = sizeof(batch), .n_rows = n_rows,
                                  .tokens = rows, .seqs = &seq, .n_seqs = 1, .n_out_rows = 1,
                                  .out_rows = &out_row};
        const char *text = NULL;
        size_t n_text = 0;
        int32_t stopped = 0;
        kr_status_t status = kri_session_decode(session, &batch, logits, &error);
        require(status == KR_OK || status == KR_E_NUMERIC || status == KR_E_CONTEXT_LENGTH);
        if (status != KR_OK) break;
        if (kri_sampler_sample(sampler, logits, &token) != KR_OK) break;
        require(token >= 0 && (uint32_t)token < model->hp.n_vocab);
        require(kri_sampler_accept(sampler, token) == KR_OK);
        require(kri_detok_push(detok, token, &text, &n_text, &stopped) == KR_OK);
        if (stopped) break;
        rows = &token;
        n_rows = 1;
    }
    kri_detok_destroy(detok);
    kri_sampler_destroy(sampler);
}

static void use(struct kr_model_s *model) {
    kr_token_t prompt[N_CTX_MAX * 4];
    const uint32_t n_tokens = make_prompt(model, prompt, sizeof(prompt) / sizeof(prompt[0]));
    const kri_hparams_t *hp = &model->hp;
    kr_session_params_t params = {.struct_bytes = sizeof(params), .n_threads = 1};
    struct kr_session_s *session = NULL;
    kr_error_t error;
    kr_error_init(&error);
    params.n_ctx = hp->n_ctx_train < N_CTX_MAX ? hp->n_ctx_train : N_CTX_MAX;
    params.n_rows_max = params.n_ctx;
    if (n_tokens == 0 || hp->n_vocab > LOGITS_MAX) return;
    float *logits = malloc(hp->n_vocab * sizeof(float));
    require(logits != NULL);
    kr_status_t status = kri_session_create(model, &params, &session, &error);
    require(status == KR_OK || status == KR_E_LIMIT || status == KR_E_NOMEM);
    if (status == KR_OK) {
        const uint32_t n_prompt = n_tokens < params.n_ctx / 2 ? n_tokens : params.n_ctx / 2;
        if (n_prompt > 0) generate(model, session, logits, prompt, n_prompt);
        kri_session_destroy(session);
    }
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    struct kr_model_s *model = NULL;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_model_open_memory(data, n_bytes, &model, &error);
    if (status != KR_OK) {
        require(model == NULL && error.message[0] != 0 && !strchr(error.message, '\n'));
        return 0;
    }
    use(model);
    kri_model_close(model);
    return 0;
}
