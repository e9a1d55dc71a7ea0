/* test_session_state.c: sequences that are forked, cut back, saved and restored give the same bits
 * as ones that were computed from the start, also where layers have a sliding window. */
#include "base/alloc.h"
#include "engine/session.h"
#include "tiny.h"

#define N_VOCAB 320u

static const char *const presets[] = {"llama", "qwen2", "gemma3"};
#define N_PRESETS (sizeof(presets) / sizeof(presets[0]))
static const kr_dtype_t dtypes[] = {KR_DTYPE_F16, KR_DTYPE_F32, KR_DTYPE_I8};

static void some_tokens(kr_token_t *ids, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (kr_token_t)((i * 37u + seed * 101u + 11u) % N_VOCAB);
}

/* Appends n tokens to a sequence; all rows give logits [n, N_VOCAB]. */
static kr_status_t append(kr_session_t session, uint32_t seq_id, const kr_token_t *ids, uint32_t n,
                          float *logits) {
    uint32_t rows[128];
    const kr_batch_seq_t seq = {seq_id, n};
    kr_batch_t batch;
    kr_batch_init(&batch);
    for (uint32_t i = 0; i < n; i++) rows[i] = i;
    batch.n_rows = batch.n_out_rows = n;
    batch.tokens = ids;
    batch.seqs = &seq;
    batch.n_seqs = 1;
    batch.out_rows = rows;
    return kr_session_decode(session, &batch, logits, NULL);
}

static uint32_t length_of(kr_session_t session, uint32_t seq) {
    uint32_t n = 0;
    assert_status(kr_session_length(session, seq, &n), KR_OK);
    return n;
}

/* Logits of ids [n] in a new session, computed in one go. */
static void fresh_logits(kr_model_t model, kr_dtype_t dtype, const kr_token_t *ids, uint32_t n,
                         float *logits) {
    kr_session_t session = tiny_session(model, dtype, NULL, 1, 1);
    assert_status(append(session, 0, ids, n, logits), KR_OK);
    kr_session_destroy(session);
}

/* ---- fork ----------------------------------------------------------------------------------- */

/* Both continue after the fork, differently, in turns, from the middle of a page. */
static void check_fork(const char *preset, kr_dtype_t dtype, uint32_t n_shared) {
    static float expected[2][128 * N_VOCAB], actual[8 * N_VOCAB];
    kr_token_t ids[2][128];
    kr_model_t model = open_tiny(preset);
    some_tokens(ids[0], 128, 1);
    memcpy(ids[1], ids[0], sizeof(ids[0]));
    some_tokens(ids[1] + n_shared, 128 - n_shared, 9);
    for (int s = 0; s < 2; s++) fresh_logits(model, dtype, ids[s], n_shared + 40, expected[s]);
    kr_session_t session = tiny_session(model, dtype, NULL, 3, 2);
    assert_status(append(session, 2, ids[0], n_shared, expected[0]), KR_OK);
    assert_status(kr_session_fork(session, 2, 0, n_shared), KR_OK);
    assert_int_equal(length_of(session, 0), n_shared);
    for (uint32_t at = n_shared; at < n_shared + 40; at += 8) {
        for (uint32_t s = 0; s < 2; s++) {
            assert_status(append(session, s ? 0 : 2, ids[s] + at, 8, actual), KR_OK);
            assert_memory_equal(actual, expected[s] + (size_t)at * N_VOCAB, sizeof(actual));
        }
    }
    assert_true(kri_kv_pool_check(kri_session_kv(session)));
    kr_session_destroy(session);
    kr_model_close(model);
}

TEST(session_fork_continues_as_if_computed_alone) {
    static const uint32_t shared[] = {1, 15, 16, 21, 48, 79};
    for (size_t p = 0; p < N_PRESETS; p++) {
        for (size_t i = 0; i < sizeof(shared) / sizeof(shared[0]); i++) {
            check_fork(presets[p], dtypes[i % 3], shared[i]);
        }
    }
}

TEST(session_fork_refuses_bad_arguments) {
    static float logits[64 * N_VOCAB];
    kr_token_t ids[64];
    some_tokens(ids, 64, 1);
    kr_model_t model = open_tiny("llama");
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 3, 1);
    assert_status(append(session, 0, ids, 20, logits), KR_OK);
    assert_status(kr_session_fork(NULL, 0, 1, 1), KR_E_INVALID_ARG);
    assert_status(kr_session_fork(session, 0, 3, 1), KR_E_INVALID_ARG);
    assert_status(kr_session_fork(session, 3, 1, 0), KR_E_INVALID_ARG);
    assert_status(kr_session_fork(session, 0, 1, 21), KR_E_INVALID_ARG);
    assert_status(kr_session_fork(session, 0, 0, 5), KR_E_INVALID_ARG); /* itself is not empty */
    assert_status(kr_session_fork(session, 0, 1, 20), KR_OK);
    assert_status(kr_session_fork(session, 0, 1, 20), KR_E_INVALID_ARG);
    assert_status(kr_session_fork(session, 1, 2, 0), KR_OK);
    assert_int_equal(length_of(session, 2), 0);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* ---- truncate ------------------------------------------------------------------------------- */

/* Draft tokens: k rows with k logits in one step, some are wrong and dropped, others follow. */
TEST(session_verifies_drafts_as_one_by_one) {
    static float expected[110 * N_VOCAB], actual[8 * N_VOCAB];
    kr_token_t ids[128], draft[8];
    for (size_t p = 0; p < N_PRESETS; p++) {
        kr_model_t model = open_tiny(presets[p]);
        some_tokens(ids, 128, (uint32_t)p);
        fresh_logits(model, KR_DTYPE_F16, ids, 110, expected);
        kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1);
        for (uint32_t at = 0, round = 0; at < 102; round++) {
            const uint32_t n_right = 1 + round % 8;
            for (uint32_t i = 0; i < 8; i++) draft[i] = i < n_right ? ids[at + i] : 7;
            assert_status(append(session, 0, draft, 8, actual), KR_OK);
            assert_memory_equal(actual, expected + (size_t)at * N_VOCAB,
                                n_right * N_VOCAB * sizeof(float));
            at += n_right;
            assert_status(kr_session_truncate(session, 0, at), KR_OK); /* also with windows */
        }
        kr_session_destroy(session);
        kr_model_close(model);
    }
}

TEST(session_truncate_is_refused_where_the_window_is_gone) {
    static float logits[128 * N_VOCAB];
    kr_token_t ids[128];
    some_tokens(ids, 128, 4);
    kr_model_t model = open_tiny("gemma3"); /* window 32 */
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 2, 1);
    assert_status(append(session, 0, ids, 120, logits), KR_OK);
    assert_status(kr_session_truncate(session, 0, 60), KR_E_UNSUPPORTED);
    assert_status(kr_session_fork(session, 0, 1, 60), KR_E_UNSUPPORTED);
    assert_int_equal(length_of(session, 0), 120);
    assert_int_equal(length_of(session, 1), 0);
    assert_status(kr_session_truncate(session, 0, 104), KR_OK);
    assert_status(kr_session_truncate(session, 0, 0), KR_OK);
    assert_int_equal(length_of(session, 0), 0);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* A window's layers take pages for the window, not for the context: the ledger allows that. */
TEST(session_kv_bytes_max_bounds_the_pages) {
    static float logits[128 * N_VOCAB];
    kr_token_t ids[128];
    kr_session_params_t params;
    kr_session_info_t info;
    some_tokens(ids, 128, 4);
    kr_session_params_init(&params);
    kr_session_info_init(&info);
    params.n_ctx = 512;
    params.n_threads = 1;
    kr_model_t model = open_tiny("gemma3");
    assert_status(kr_session_plan(model, &params, &info, NULL), KR_OK);
    params.kv_bytes_max = info.kv_bytes / 5; /* 102 tokens in every layer */
    kr_session_t session = open_session(model, &params);
    assert_status(kr_session_info(session, &info), KR_OK);
    assert_int_equal(info.kv_bytes, params.kv_bytes_max);
    uint32_t n = 0;
    kr_status_t status = KR_OK;
    while (status == KR_OK && n < 512) {
        status = append(session, 0, ids + n % 64, 16, logits);
        if (status == KR_OK) n += 16;
        assert_int_equal(length_of(session, 0), n);
    }
    assert_status(status, KR_E_LIMIT);
    assert_true(n > 128);
    assert_status(kr_session_truncate(session, 0, 0), KR_OK);
    assert_status(append(session, 0, ids, 90, logits), KR_OK);
    kr_session_destroy(session);
    kr_model_close(model);
}

TEST(session_kv_bytes_max_holds_a_token_or_is_refused) {
    static const char *const names[] = {"llama", "gemma3"};
    for (size_t i = 0; i < 2; i++) {
        kr_session_params_t params;
        kr_session_info_t info;
        kr_error_t error;
        kr_error_init(&error);
        kr_session_params_init(&params);
        kr_session_info_init(&info);
        kr_model_t model = open_tiny(names[i]);
        params.n_ctx = params.n_rows_max = 1;
        assert_status(kr_session_plan(model, &params, &info, NULL), KR_OK);
        params.n_ctx = params.n_rows_max = 64;
        params.kv_bytes_max = info.kv_bytes;
        kr_session_t session = open_session(model, &params);
        static float logits[N_VOCAB];
        assert_status(append(session, 0, (kr_token_t[]){1}, 1, logits), KR_OK);
        kr_session_destroy(session);
        params.kv_bytes_max--;
        assert_status(kr_session_create(model, &params, &session, &error), KR_E_LIMIT);
        assert_string_equal(error.param, "kv_bytes_max");
        kr_model_close(model);
    }
}

TEST(session_refuses_a_prefix_cache_and_reserved_bits) {
    kr_session_params_t params;
    kr_session_info_t info;
    kr_session_t session = NULL;
    kr_error_t error;
    kr_error_init(&error);
    kr_session_info_init(&info);
    kr_session_params_init(&params);
    kr_model_t model = open_tiny("llama");
    params.prefix_cache = KR_PREFIX_CACHE_ON;
    assert_status(kr_session_create(model, &params, &session, &error), KR_E_UNSUPPORTED);
    assert_string_equal(error.param, "prefix_cache");
    assert_status(kr_session_plan(model, &params, &info, &error), KR_OK); /* an engine's */
    params.prefix_cache = 3;
    assert_status(kr_session_create(model, &params, &session, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "prefix_cache");
    params.prefix_cache = KR_PREFIX_CACHE_OFF;
    params.device = 2;
    assert_status(kr_session_create(model, &params, &session, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "device");
    params.device = KR_DEVICE_CPU;
    assert_status(kr_session_create(model, &params, &session, &error), KR_OK);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* ---- save and restore ----------------------------------------------------------------------- */

static uint8_t *save(kr_session_t session, uint32_t seq, size_t *n_bytes) {
    size_t n_again = 0;
    *n_bytes = 0;
    assert_status(kr_session_save(session, seq, NULL, 0, n_bytes), KR_E_LIMIT);
    uint8_t *bytes = malloc(*n_bytes);
    assert_non_null(bytes);
    assert_status(kr_session_save(session, seq, bytes, *n_bytes - 1, &n_again), KR_E_LIMIT);
    assert_int_equal(n_again, *n_bytes);
    assert_status(kr_session_save(session, seq, bytes, *n_bytes, &n_again), KR_OK);
    return bytes;
}

static void check_round_trip(const char *preset, kr_dtype_t dtype, uint32_t n) {
    static float expected[128 * N_VOCAB], actual[24 * N_VOCAB];
    kr_token_t ids[128];
    size_t n_bytes = 0, n_again = 0;
    some_tokens(ids, 128, n);
    kr_model_t model = open_tiny(preset);
    kr_session_t from = tiny_session(model, dtype, NULL, 2, 1);
    kr_session_t to = tiny_session(model, dtype, NULL, 2, 1);
    fresh_logits(model, dtype, ids, n + 24, expected);
    /* Pages that were used before: what follows the last token must not show. */
    assert_status(append(from, 1, ids + 5, 100, expected), KR_OK);
    assert_status(kr_session_truncate(from, 1, 0), KR_OK);
    fresh_logits(model, dtype, ids, n + 24, expected);
    if (n > 0) assert_status(append(from, 1, ids, n, actual), KR_OK);
    uint8_t *bytes = save(from, 1, &n_bytes);
    assert_status(kr_session_restore(to, 0, bytes, n_bytes, NULL), KR_OK);
    assert_int_equal(length_of(to, 0), n);
    uint8_t *again = save(to, 0, &n_again);
    assert_int_equal(n_again, n_bytes);
    assert_memory_equal(again, bytes, n_bytes);
    free(again);
    if (n > 0) assert_status(append(to, 1, ids, n, actual), KR_OK); /* in pages never used */
    again = save(to, 1, &n_again);
    assert_memory_equal(again, bytes, n_bytes);
    assert_status(append(to, 0, ids + n, 24, actual), KR_OK);
    assert_memory_equal(actual, expected + (size_t)n * N_VOCAB, sizeof(actual));
    assert_true(kri_kv_pool_check(kri_session_kv(to)));
    free(again);
    free(bytes);
    kr_session_destroy(to);
    kr_session_destroy(from);
    kr_model_close(model);
}

TEST(session_saved_and_restored_continues_with_the_same_bits) {
    static const uint32_t lengths[] = {0, 1, 16, 23};
    for (size_t p = 0; p < N_PRESETS; p++) {
        for (size_t i = 0; i < 4; i++) {
            for (size_t d = 0; d < 3; d++) check_round_trip(presets[p], dtypes[d], lengths[i]);
        }
    }
}

TEST(session_saved_after_its_window_moved_restores) {
    static float logits[128 * N_VOCAB], expected[128 * N_VOCAB];
    kr_token_t ids[128];
    size_t n_bytes = 0, n_full = 0;
    some_tokens(ids, 128, 3);
    kr_model_t model = open_tiny("gemma3");
    fresh_logits(model, KR_DTYPE_F16, ids, 124, expected);
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 2, 1);
    assert_status(append(session, 0, ids, 40, logits), KR_OK);
    uint8_t *bytes = save(session, 0, &n_full);
    free(bytes);
    assert_status(append(session, 0, ids + 40, 60, logits), KR_OK);
    bytes = save(session, 0, &n_bytes);
    assert_true(n_bytes < n_full * 100 / 40);
    assert_status(kr_session_restore(session, 1, bytes, n_bytes, NULL), KR_OK);
    for (uint32_t seq = 0; seq < 2; seq++) {
        assert_status(append(session, seq, ids + 100, 24, logits), KR_OK);
        assert_memory_equal(logits, expected + 100 * N_VOCAB, 24 * N_VOCAB * sizeof(float));
    }
    free(bytes);
    kr_session_destroy(session);
    kr_model_close(model);
}

static void refuse(kr_session_t session, const uint8_t *bytes, size_t n_bytes,
                   kr_status_t expected) {
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kr_session_restore(session, 1, bytes, n_bytes, &error), expected);
    assert_int_equal(error.code, expected);
    assert_true(error.message[0] != 0 && strchr(error.message, '\n') == NULL);
    assert_int_equal(length_of(session, 1), 0);
    assert_true(kri_kv_pool_check(kri_session_kv(session)));
}

TEST(session_restore_refuses_damaged_bytes) {
    static float logits[64 * N_VOCAB];
    kr_token_t ids[64];
    size_t n = 0;
    some_tokens(ids, 64, 3);
    kr_model_t model = open_tiny("llama");
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 2, 1);
    assert_status(append(session, 0, ids, 20, logits), KR_OK);
    uint8_t *bytes = save(session, 0, &n);
    uint8_t *bad = malloc(n + 1);
    assert_non_null(bad);
    memcpy(bad, bytes, n);
    bad[n] = 0;
    refuse(session, bad, 0, KR_E_TRUNCATED);
    refuse(session, bad, 7, KR_E_TRUNCATED);
    refuse(session, bad, 63, KR_E_TRUNCATED);
    refuse(session, bad, 64, KR_E_TRUNCATED);
    refuse(session, bad, n - 1, KR_E_TRUNCATED);
    refuse(session, bad, n + 1, KR_E_BAD_FORMAT);
    static const struct { size_t at; kr_status_t status; } flips[] = {
        {0, KR_E_BAD_FORMAT},   {8, KR_E_UNSUPPORTED},  {12, KR_E_UNSUPPORTED},
        {16, KR_E_CORRUPT},     {24, KR_E_UNSUPPORTED}, {32, KR_E_BAD_FORMAT},
        {41, KR_E_CONTEXT_LENGTH}, {43, KR_E_CONTEXT_LENGTH}, {44, KR_E_BAD_FORMAT},
        {48, KR_E_BAD_FORMAT},  {52, KR_E_BAD_FORMAT},  {63, KR_E_BAD_FORMAT},
        {40, KR_E_CORRUPT},     {64, KR_E_CORRUPT}};
    for (size_t i = 0; i < sizeof(flips) / sizeof(flips[0]); i++) {
        bad[flips[i].at] ^= flips[i].at == 41 ? 0x10 : 1; /* at 40: 21 tokens, as many pages */
        refuse(session, bad, n, flips[i].status);
        bad[flips[i].at] = bytes[flips[i].at];
    }
    bad[n - 1] ^= 1;
    refuse(session, bad, n, KR_E_CORRUPT);
    assert_status(kr_session_restore(session, 0, bytes, n, NULL), KR_E_INVALID_ARG); /* not empty */
    assert_status(kr_session_restore(session, 2, bytes, n, NULL), KR_E_INVALID_ARG);
    assert_status(kr_session_restore(session, 1, NULL, n, NULL), KR_E_INVALID_ARG);
    assert_status(kr_session_restore(NULL, 1, bytes, n, NULL), KR_E_INVALID_ARG);
    assert_status(kr_session_save(session, 2, NULL, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_session_save(session, 0, NULL, 5, &n), KR_E_INVALID_ARG);
    assert_status(kr_session_save(session, 0, NULL, 0, NULL), KR_E_INVALID_ARG);
    assert_status(kr_session_save(NULL, 0, NULL, 0, &n), KR_E_INVALID_ARG);
    kri_alloc_guard_begin("restore");
    const kr_status_t status = kr_session_restore(session, 1, bytes, n, NULL);
    assert_int_equal(kri_alloc_guard_end(), 0);
    assert_status(status, KR_OK);
    free(bad);
    free(bytes);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* Other models and settings say so; a smaller session has no room. */
TEST(session_restore_refuses_what_another_session_saved) {
    static float logits[128 * N_VOCAB];
    kr_token_t ids[128];
    size_t n = 0;
    some_tokens(ids, 128, 3);
    kr_model_t model = open_tiny("llama");
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 2, 1);
    assert_status(append(session, 0, ids, 90, logits), KR_OK);
    uint8_t *bytes = save(session, 0, &n);
    kr_session_destroy(session);
    for (int i = 0; i < 6; i++) {
        kr_session_params_t params;
        kr_session_info_t info;
        tiny_config_t config = tiny_config(i == 0 ? "qwen2" : "llama");
        if (i == 1) config.seed = 77; /* the same shape, other weights */
        kr_model_t other = open_tiny_config(&config);
        kr_session_params_init(&params);
        params.n_seqs = 2;
        params.n_threads = 1;
        params.kv_dtype = i == 2 ? KR_DTYPE_F32 : KR_DTYPE_F16;
        params.attn_qk = i == 3 ? KR_ATTN_QK_INT8 : KR_ATTN_QK_F32;
        params.n_ctx = i == 4 ? 64 : 128;
        if (i == 5) {
            params.n_ctx = 64; /* room for 64 of the 90 tokens */
            kr_session_info_init(&info);
            assert_status(kr_session_plan(other, &params, &info, NULL), KR_OK);
            params.kv_bytes_max = info.kv_bytes / 2;
            params.n_ctx = 128;
        }
        session = open_session(other, &params);
        refuse(session, bytes, n, i < 4 ? KR_E_UNSUPPORTED
                                  : i == 4 ? KR_E_CONTEXT_LENGTH : KR_E_LIMIT);
        kr_session_destroy(session);
        kr_model_close(other);
    }
    free(bytes);
    kr_model_close(model);
}

/* ---- for engines ---------------------------------------------------------------------------- */

/* A step that someone else prepared: the same logits, and nothing is committed. */
TEST(session_run_computes_a_prepared_step_only) {
    static float expected[20 * N_VOCAB], actual[2 * N_VOCAB];
    kr_token_t ids[20];
    int32_t positions[20 * KRI_POS_COMPONENTS];
    const uint32_t out_rows[2] = {3, 19};
    some_tokens(ids, 20, 2);
    kr_model_t model = open_tiny("gemma3");
    fresh_logits(model, KR_DTYPE_F16, ids, 20, expected);
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 2, 1);
    kri_kv_pool_t *kv = kri_session_kv(session);
    assert_status(kri_kv_pool_reserve(kv, 1, 20), KR_OK);
    kri_step_seq_t seq = {.seq = 1, .n_rows = 20};
    for (uint32_t g = 0; g < kri_kv_pool_n_groups(kv); g++) {
        seq.page_table[g] = kri_kv_pool_table(kv, 1, g);
    }
    for (uint32_t i = 0; i < 20 * KRI_POS_COMPONENTS; i++) {
        positions[i] = (int32_t)(i / KRI_POS_COMPONENTS);
    }
    const kri_step_t step = {.n_rows = 20, .tokens = ids, .positions = positions, .n_seqs = 1,
                             .seqs = &seq, .n_out_rows = 2, .out_rows = out_rows,
                             .n_groups = kri_kv_pool_n_groups(kv),
                             .groups = kri_kv_pool_groups(kv)};
    for (int i = 0; i < 2; i++) { /* twice: it can be done again */
        assert_status(kri_session_run(session, &step, actual, NULL), KR_OK);
        assert_memory_equal(actual, expected + 3 * N_VOCAB, N_VOCAB * sizeof(float));
        assert_memory_equal(actual + N_VOCAB, expected + 19 * N_VOCAB, N_VOCAB * sizeof(float));
        assert_int_equal(length_of(session, 1), 0);
    }
    kr_session_destroy(session);
    kr_model_close(model);
}

/* A prompt from the prefix cache continues with the same bits as one that was computed. */
TEST(session_with_prefix_cache_gives_the_same_bits_from_cache) {
    static float expected[100 * N_VOCAB], actual[100 * N_VOCAB];
    kr_token_t ids[128];
    some_tokens(ids, 128, 8);
    for (size_t p = 0; p < N_PRESETS; p++) {
        kr_session_params_t params;
        struct kr_session_s *session = NULL;
        kri_kv_match_t match;
        kr_model_t model = open_tiny(presets[p]);
        fresh_logits(model, KR_DTYPE_I8, ids, 100, expected);
        kr_session_params_init(&params);
        params.n_threads = 1;
        params.n_seqs = 2;
        params.kv_dtype = KR_DTYPE_I8;
        params.invariant = KR_INVARIANT_ON;
        params.prefix_cache = KR_PREFIX_CACHE_ON;
        assert_status(kri_session_create(model, &params, &session, NULL), KR_OK);
        kri_kv_pool_t *kv = kri_session_kv(session);
        assert_status(append(session, 0, ids, 60, actual), KR_OK);
        kri_kv_pool_publish(kv, 0, 5, ids);
        kri_kv_pool_release(kv, 0);
        kri_kv_pool_attach(kv, 1, 5, ids, 100, &match);
        assert_int_equal(match.n_cached, 48);
        assert_status(append(session, 1, ids + 48, 52, actual), KR_OK);
        assert_memory_equal(actual, expected + 48 * N_VOCAB, 52 * N_VOCAB * sizeof(float));
        assert_true(kri_kv_pool_check(kv));
        kri_session_destroy(session);
        kr_model_close(model);
    }
}
