/* fuzz_session_state.c: bytes as a saved sequence, restored into a session of a tiny model with a
 * sliding window. Input: a byte that says what follows: even, the saved bytes themselves; odd, how
 * to damage a true one: tokens (u8), bytes cut off or added (i8), then patches {u16 offset, u8
 * value}, after which the hash is made right, so that the checks behind it are reached. Whatever is
 * restored must decode and save again. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/session.h"
#include "model/model.h"
#include "tiny_model.h"

#define N_CTX 64u
#define AT_HASH 16u
#define AT_HASHED 24u
#define HEADER_BYTES 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static struct kr_session_s *session;
static float *logits;

static kr_status_t append(uint32_t seq_id, const kr_token_t *tokens, uint32_t n) {
    const kr_batch_seq_t seq = {seq_id, n};
    const uint32_t out_row = n - 1;
    const kr_batch_t batch = {.struct_bytes = sizeof(batch), .n_rows = n, .tokens = tokens,
                              .seqs = &seq, .n_seqs = 1, .n_out_rows = 1, .out_rows = &out_row};
    return kri_session_decode(session, &batch, logits, NULL);
}

static void open_once(void) {
    if (session) return;
    const tiny_config_t config = tiny_config("micro_gemma3");
    gguf_bytes_t file = tiny_model(&config);
    struct kr_model_s *model = NULL;
    kr_session_params_t params = {.struct_bytes = sizeof(params), .n_ctx = N_CTX, .n_seqs = 2,
                                  .n_rows_max = N_CTX, .n_threads = 1};
    require(kri_model_open_memory(file.data, file.n, &model, NULL) == KR_OK);
    require(kri_session_create(model, &params, &session, NULL) == KR_OK);
    logits = malloc(model->hp.n_vocab * sizeof(float));
    require(logits != NULL);
}

/* A true save of n tokens with room for more behind it; its size goes to *n_bytes. */
static uint8_t *make_save(uint32_t n, size_t n_more, size_t *n_bytes) {
    kr_token_t tokens[N_CTX];
    for (uint32_t i = 0; i < n; i++) tokens[i] = (kr_token_t)(i * 7 % 200);
    if (n > 0) require(append(1, tokens, n) == KR_OK);
    require(kri_session_save(session, 1, NULL, 0, n_bytes) == KR_E_LIMIT);
    uint8_t *bytes = calloc(1, *n_bytes + n_more);
    require(bytes != NULL);
    require(kri_session_save(session, 1, bytes, *n_bytes, n_bytes) == KR_OK);
    require(kri_session_truncate(session, 1, 0) == KR_OK);
    return bytes;
}

static void restore(const uint8_t *bytes, size_t n_bytes) {
    const kr_token_t tokens[2] = {3, 4};
    uint32_t length = 99;
    size_t n_again = 0;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_session_restore(session, 0, bytes, n_bytes, &error);
    require(kri_session_length(session, 0, &length) == KR_OK);
    require(kri_kv_pool_check(kri_session_kv(session)));
    if (status != KR_OK) {
        require(status == KR_E_BAD_FORMAT || status == KR_E_TRUNCATED || status == KR_E_CORRUPT ||
                status == KR_E_UNSUPPORTED || status == KR_E_CONTEXT_LENGTH);
        require(length == 0 && error.message[0] != 0);
        return;
    }
    require(kri_session_save(session, 0, NULL, 0, &n_again) == KR_E_LIMIT && n_again == n_bytes);
    status = append(0, tokens, 2);
    require(status == KR_OK || status == KR_E_NUMERIC || status == KR_E_CONTEXT_LENGTH);
    require(kri_session_truncate(session, 0, 0) == KR_OK);
}

static void restore_damaged(const uint8_t *data, size_t n_data) {
    size_t n = 0;
    if (n_data < 2) return;
    const int cut = (int8_t)data[1];
    uint8_t *bytes = make_save(data[0] % (N_CTX + 1), 128, &n);
    n = cut < 0 && (size_t)-cut > n ? 0 : n + (size_t)cut;
    for (size_t i = 2; i + 3 <= n_data; i += 3) {
        const size_t at = (size_t)data[i] | (size_t)data[i + 1] << 8;
        if (at < n) bytes[at] = data[i + 2];
    }
    if (n > HEADER_BYTES) {
        const uint64_t hash = XXH3_64bits(bytes + AT_HASHED, n - AT_HASHED);
        memcpy(bytes + AT_HASH, &hash, sizeof(hash));
    }
    restore(bytes, n);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    open_once();
    if (n_bytes == 0) return 0;
    if (data[0] % 2) restore_damaged(data + 1, n_bytes - 1);
    else restore(data + 1, n_bytes - 1);
    return 0;
}
