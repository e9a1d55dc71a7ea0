/* test_hidden.c: final hidden states through kr_session_decode: against mlx-lm in float32
 * (tests/golden/make_tiny_logits.py), independent of batch, chunks and threads, beside logits and
 * without them, and what is refused. */
#include <math.h>

#include "tiny.h"

#define N_TOKENS 70
#define N_VOCAB 320
#define N_EMBD 64

static double distance(const float *a, const float *b, size_t n) {
    double max = 0.0, diff = 0.0;
    for (size_t i = 0; i < n; i++) {
        max = fmax(max, fabs((double)b[i]));
        diff = fmax(diff, fabs((double)a[i] - (double)b[i]));
    }
    return diff / max;
}

static void read_golden(const char *name, kr_token_t *ids, float *hidden) {
    char path[512], hash[32];
    snprintf(path, sizeof(path), "%s/tests/golden/tiny_%s.txt", KR_SOURCE_DIR, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%31s", hash), 1);
    for (int i = 0; i < N_TOKENS; i++) assert_int_equal(fscanf(f, "%d", &ids[i]), 1);
    fclose(f);
    snprintf(path, sizeof(path), "%s/tests/golden/tiny_%s_hidden.f32", KR_SOURCE_DIR, name);
    f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(hidden, sizeof(float), N_TOKENS * N_EMBD, f), N_TOKENS * N_EMBD);
    fclose(f);
}

/* Appends tokens to a sequence in chunks; hidden states of all rows to hidden [n, N_EMBD] and,
 * where logits is given, the logits of every third row there. */
static void decode_hidden(kr_session_t session, uint32_t seq_id, const kr_token_t *tokens,
                          uint32_t n, uint32_t n_chunk, float *hidden, float *logits) {
    uint32_t rows[512], out_rows[512];
    for (uint32_t at = 0; at < n; at += n_chunk) {
        const uint32_t n_rows = n - at < n_chunk ? n - at : n_chunk;
        const kr_batch_seq_t seq = {seq_id, n_rows};
        kr_batch_t batch;
        kr_error_t error;
        kr_batch_init(&batch);
        kr_error_init(&error);
        batch.n_rows = batch.n_hidden_rows = n_rows;
        batch.tokens = tokens + at;
        batch.seqs = &seq;
        batch.n_seqs = 1;
        batch.hidden_rows = rows;
        batch.hidden = hidden + (size_t)at * N_EMBD;
        batch.out_rows = out_rows;
        for (uint32_t r = 0; r < n_rows; r++) {
            rows[r] = r;
            if (logits && (at + r) % 3 == 0) out_rows[batch.n_out_rows++] = r;
        }
        if (kr_session_decode(session, &batch, logits, &error) != KR_OK) {
            fail_msg("decode at %u: %s", at, error.message);
        }
        if (logits) logits += (size_t)batch.n_out_rows * N_VOCAB;
    }
}

static void check_golden(const char *name) {
    static const struct { kr_dtype_t kv; double max; } cases[] = {{KR_DTYPE_F32, 1e-4},
                                                                   {KR_DTYPE_F16, 2e-3},
                                                                   {KR_DTYPE_I8, 5e-2}};
    static const char *const levels[] = {"ref", "avx2", "avx512", "neon", "dotprod", "i8mm"};
    static float expected[N_TOKENS * N_EMBD], actual[N_TOKENS * N_EMBD];
    kr_token_t ids[N_TOKENS];
    read_golden(name, ids, expected);
    kr_model_t model = open_tiny(name);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
            if (!has_level(levels[l])) continue;
            kr_session_t session = tiny_session(model, cases[i].kv, levels[l], 1, 1);
            decode_hidden(session, 0, ids, N_TOKENS, 32, actual, NULL);
            const double d = distance(actual, expected, N_TOKENS * N_EMBD);
            print_message("%s kv %s on %s: %.2e\n", name, kr_dtype_name(cases[i].kv), levels[l],
                          d);
            assert_true(d <= cases[i].max);
            kr_session_destroy(session);
        }
    }
    kr_model_close(model);
}

TEST(hidden_states_equal_mlx_for_llama) { check_golden("llama"); }
TEST(hidden_states_equal_mlx_for_llama_gqa4) { check_golden("llama_gqa4"); }
TEST(hidden_states_equal_mlx_for_qwen2) { check_golden("qwen2"); }
TEST(hidden_states_equal_mlx_for_gemma3) { check_golden("gemma3"); }

/* ---- invariance ---------------------------------------------------------------------------- */

static const char *const presets[] = {"llama", "llama_gqa4", "qwen2", "gemma3"};

static void some_tokens(kr_token_t *ids, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (kr_token_t)((i * 97u + 36u) % N_VOCAB);
}

/* Nor do logits change by what else is asked. */
TEST(hidden_states_do_not_depend_on_chunks_threads_and_logits) {
    static const uint32_t chunks[] = {512, 1, 7, 33};
    static float expected[N_TOKENS * N_EMBD], actual[N_TOKENS * N_EMBD];
    static float plain[N_TOKENS * N_VOCAB], logits[24 * N_VOCAB];
    kr_token_t ids[N_TOKENS];
    some_tokens(ids, N_TOKENS);
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++) {
        kr_model_t model = open_tiny(presets[p]);
        kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1);
        decode_chunks(session, ids, N_TOKENS, 512, 0, N_VOCAB, plain);
        kr_session_destroy(session);
        for (uint32_t c = 0; c < 4; c++) {
            for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
                const int is_first = c == 0 && n_threads == 1;
                session = tiny_session(model, KR_DTYPE_F16, NULL, 1, n_threads);
                decode_hidden(session, 0, ids, N_TOKENS, chunks[c], is_first ? expected : actual,
                              is_first || c % 2 ? logits : NULL);
                if (!is_first) assert_memory_equal(actual, expected, sizeof(expected));
                for (size_t r = 0; r < 24; r++) {
                    assert_memory_equal(logits + r * N_VOCAB, plain + r * 3 * N_VOCAB,
                                        N_VOCAB * sizeof(float));
                }
                kr_session_destroy(session);
            }
        }
        kr_model_close(model);
    }
}

/* A few rows of several sequences: each is what its sequence alone gives. */
TEST(hidden_states_do_not_depend_on_the_batch) {
    static const kr_batch_seq_t seqs[3] = {{2, 1}, {0, 17}, {1, 40}};
    static const uint32_t rows[4] = {0, 5, 17, 57};
    static float alone[58 * N_EMBD], together[4 * N_EMBD];
    kr_token_t ids[58];
    some_tokens(ids, 58);
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++) {
        kr_model_t model = open_tiny(presets[p]);
        kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 3, 1);
        decode_hidden(session, 0, ids, 1, 512, alone, NULL);
        decode_hidden(session, 1, ids + 1, 17, 512, alone + N_EMBD, NULL);
        decode_hidden(session, 2, ids + 18, 40, 512, alone + 18 * N_EMBD, NULL);
        kr_session_destroy(session);
        session = tiny_session(model, KR_DTYPE_F16, NULL, 3, 2);
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = 58;
        batch.tokens = ids;
        batch.seqs = seqs;
        batch.n_seqs = 3;
        batch.n_hidden_rows = 4;
        batch.hidden_rows = rows;
        batch.hidden = together;
        assert_status(kr_session_decode(session, &batch, NULL, NULL), KR_OK);
        for (size_t i = 0; i < 4; i++) {
            assert_memory_equal(together + i * N_EMBD, alone + rows[i] * N_EMBD,
                                N_EMBD * sizeof(float));
        }
        kr_session_destroy(session);
        kr_model_close(model);
    }
}

/* ---- refusals ------------------------------------------------------------------------------ */

typedef struct fixture_s {
    kr_session_t session;
    kr_batch_t batch;
    float hidden[4 * N_EMBD];
} fixture_t;

static void refuse(fixture_t *f, kr_status_t wanted, const char *param) {
    kr_error_t error;
    uint32_t length = 9;
    kr_error_init(&error);
    f->hidden[0] = 1234.5f;
    assert_status(kr_session_decode(f->session, &f->batch, NULL, &error), wanted);
    assert_string_equal(error.param, param);
    assert_status(kr_session_length(f->session, 0, &length), KR_OK);
    assert_int_equal(length, 0);
    assert_true(f->hidden[0] == 1234.5f);
}

TEST(hidden_rows_are_refused_by_field) {
    static const kr_token_t tokens[4] = {1, 2, 3, 4};
    static const kr_batch_seq_t seq = {0, 4};
    const uint32_t good[2] = {1, 3}, twice[2] = {2, 2}, falling[2] = {3, 1}, beyond[2] = {1, 4};
    kr_model_t model = open_tiny("llama");
    fixture_t f = {.session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1)};
    kr_batch_init(&f.batch);
    f.batch.n_rows = 4;
    f.batch.tokens = tokens;
    f.batch.seqs = &seq;
    f.batch.n_seqs = 1;
    f.batch.n_hidden_rows = 2;
    f.batch.hidden = f.hidden;
    refuse(&f, KR_E_INVALID_ARG, "hidden_rows");
    f.batch.hidden_rows = twice;
    refuse(&f, KR_E_INVALID_ARG, "hidden_rows");
    f.batch.hidden_rows = falling;
    refuse(&f, KR_E_INVALID_ARG, "hidden_rows");
    f.batch.hidden_rows = beyond;
    refuse(&f, KR_E_INVALID_ARG, "hidden_rows");
    f.batch.hidden_rows = good;
    f.batch.n_hidden_rows = 5; /* refused without reading hidden_rows[2] */
    refuse(&f, KR_E_INVALID_ARG, "n_hidden_rows");
    f.batch.n_hidden_rows = UINT32_MAX;
    refuse(&f, KR_E_INVALID_ARG, "n_hidden_rows");
    f.batch.n_hidden_rows = 2;
    f.batch.hidden = NULL;
    refuse(&f, KR_E_INVALID_ARG, "hidden");
    f.batch.hidden = f.hidden;
    f.batch.reserved = 1;
    refuse(&f, KR_E_INVALID_ARG, "reserved");
    f.batch.reserved = 0;
    /* Of a caller who does not know the fields: nothing behind what it has is read or written. */
    f.batch.struct_bytes = offsetof(kr_batch_t, hidden_rows);
    f.hidden[0] = 1234.5f;
    assert_status(kr_session_decode(f.session, &f.batch, NULL, NULL), KR_OK);
    assert_true(f.hidden[0] == 1234.5f);
    assert_status(kr_session_truncate(f.session, 0, 0), KR_OK);
    f.batch.struct_bytes = sizeof f.batch;
    assert_status(kr_session_decode(f.session, &f.batch, NULL, NULL), KR_OK);
    assert_true(f.hidden[0] != 1234.5f && f.hidden[2 * N_EMBD - 1] != 0.0f);
    assert_true(f.hidden[2 * N_EMBD] == 0.0f);
    kr_session_destroy(f.session);
    kr_model_close(model);
}

/* A NaN in the final norm: no logits are asked for, and still it is found. */
TEST(hidden_states_that_are_not_finite_are_refused) {
    const tiny_config_t config = tiny_config("llama");
    gguf_bytes_t file = tiny_model(&config);
    kr_model_params_t params;
    kr_model_t model = NULL;
    kr_tensor_info_t info;
    uint64_t from_end = 0;
    const float value = NAN;
    kr_model_params_init(&params);
    kr_tensor_info_init(&info);
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    for (uint32_t i = 0; kr_model_tensor(model, i, &info) == KR_OK; i++) {
        if (from_end > 0 || strcmp(info.name, "output_norm.weight") == 0) {
            from_end += (info.bytes + 31) / 32 * 32;
        }
    }
    kr_model_close(model);
    assert_true(from_end > 0);
    memcpy(file.data + (file.n + 31) / 32 * 32 - from_end, &value, sizeof value);
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    free(file.data);
    static const kr_token_t tokens[4] = {1, 2, 3, 4};
    static const kr_batch_seq_t seq = {0, 4};
    const uint32_t row = 3;
    fixture_t f = {.session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 2)};
    kr_batch_init(&f.batch);
    f.batch.n_rows = 4;
    f.batch.tokens = tokens;
    f.batch.seqs = &seq;
    f.batch.n_seqs = 1;
    f.batch.n_hidden_rows = 1;
    f.batch.hidden_rows = &row;
    f.batch.hidden = f.hidden;
    refuse(&f, KR_E_NUMERIC, "hidden");
    f.batch.n_hidden_rows = 0;
    assert_status(kr_session_decode(f.session, &f.batch, NULL, NULL), KR_OK);
    kr_session_destroy(f.session);
    kr_model_close(model);
}
