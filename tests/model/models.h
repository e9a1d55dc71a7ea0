/* models.h: real and tiny models for tests, through the public API. */
#ifndef KR_TEST_MODELS_H
#define KR_TEST_MODELS_H

#include "kr.h"
#include "test.h"

/* Path of a real model: $KR_MODELS_DIR or the default place, <alias>.gguf; static buffer. */
static inline const char *real_model_path(const char *alias) {
    static char path[1024];
    const char *dir = getenv("KR_MODELS_DIR"), *cache = getenv("XDG_CACHE_HOME");
    if (dir && *dir) snprintf(path, sizeof(path), "%s/%s.gguf", dir, alias);
    else if (cache && *cache) snprintf(path, sizeof(path), "%s/kr/models/%s.gguf", cache, alias);
    else snprintf(path, sizeof(path), "%s/.cache/kr/models/%s.gguf", getenv("HOME"), alias);
    return path;
}

static inline kr_model_t open_model(const char *path) {
    kr_model_t model = NULL;
    kr_error_t error;
    kr_error_init(&error);
    if (kr_model_open(path, NULL, &model, &error) != KR_OK) {
        fail_msg("%s: %s", path, error.message);
    }
    return model;
}

static inline kr_session_t open_session(kr_model_t model, const kr_session_params_t *params) {
    kr_session_t session = NULL;
    kr_error_t error;
    kr_error_init(&error);
    if (kr_session_create(model, params, &session, &error) != KR_OK) fail_msg("%s", error.message);
    return session;
}

/* Appends tokens to sequence 0 in chunks of n_chunk; logits of the rows from first_out on go to
 * logits [n - first_out, n_vocab]. */
static inline void decode_chunks(kr_session_t session, const kr_token_t *tokens, uint32_t n,
                                 uint32_t n_chunk, uint32_t first_out, uint32_t n_vocab,
                                 float *logits) {
    uint32_t out_rows[4096];
    for (uint32_t at = 0; at < n; at += n_chunk) {
        const uint32_t rows = n - at < n_chunk ? n - at : n_chunk;
        const kr_batch_seq_t seq = {0, rows};
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = rows;
        batch.tokens = tokens + at;
        batch.seqs = &seq;
        batch.n_seqs = 1;
        batch.out_rows = out_rows;
        for (uint32_t r = 0; r < rows; r++) {
            if (at + r >= first_out) out_rows[batch.n_out_rows++] = r;
        }
        float *dst = batch.n_out_rows
                         ? logits + (size_t)(at + out_rows[0] - first_out) * n_vocab : logits;
        kr_error_t error;
        kr_error_init(&error);
        if (kr_session_decode(session, &batch, dst, &error) != KR_OK) {
            fail_msg("decode at %u: %s", at, error.message);
        }
    }
}

#endif
