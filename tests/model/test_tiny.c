/* test_tiny.c: tiny random models of each architecture against mlx-lm in float32
 * (tests/golden/make_tiny_logits.py), and against themselves: every weight type, every ISA level,
 * any batch, chunking and thread count. */
#include <math.h>

#include "tiny.h"

#define N_TOKENS 70
#define N_VOCAB 320

/* Largest difference relative to the largest value. */
static double distance(const float *a, const float *b, size_t n) {
    double max = 0.0, diff = 0.0;
    for (size_t i = 0; i < n; i++) {
        max = fmax(max, fabs((double)b[i]));
        diff = fmax(diff, fabs((double)a[i] - (double)b[i]));
    }
    return diff / max;
}

static void read_golden(const char *name, kr_token_t *ids, float *logits) {
    char path[512], hash[32];
    snprintf(path, sizeof(path), "%s/tests/golden/tiny_%s.txt", KR_SOURCE_DIR, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%31s", hash), 1);
    for (int i = 0; i < N_TOKENS; i++) assert_int_equal(fscanf(f, "%d", &ids[i]), 1);
    fclose(f);
    snprintf(path, sizeof(path), "%s/tests/golden/tiny_%s.f32", KR_SOURCE_DIR, name);
    f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(logits, sizeof(float), N_TOKENS * N_VOCAB, f), N_TOKENS * N_VOCAB);
    fclose(f);
}

static void check_golden(const char *name) {
    static const struct { kr_dtype_t kv; double max; } cases[] = {{KR_DTYPE_F32, 1e-4},
                                                                   {KR_DTYPE_F16, 2e-3},
                                                                   {KR_DTYPE_I8, 5e-2}};
    static float expected[N_TOKENS * N_VOCAB], actual[N_TOKENS * N_VOCAB];
    static const char *const levels[] = {"ref", "avx2", "avx512", "neon", "dotprod", "i8mm"};
    kr_token_t ids[N_TOKENS];
    read_golden(name, ids, expected);
    kr_model_t model = open_tiny(name);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
            if (!has_level(levels[l])) continue;
            kr_session_t session = tiny_session(model, cases[i].kv, levels[l], 1, 1);
            decode_chunks(session, ids, N_TOKENS, 32, 0, N_VOCAB, actual);
            const double d = distance(actual, expected, N_TOKENS * N_VOCAB);
            print_message("%s kv %s on %s: %.2e\n", name, kr_dtype_name(cases[i].kv),
                          levels[l], d);
            assert_true(d <= cases[i].max);
            kr_session_destroy(session);
        }
    }
    kr_model_close(model);
}

TEST(tiny_logits_equal_mlx_for_llama) { check_golden("llama"); }
TEST(tiny_logits_equal_mlx_for_llama_gqa4) { check_golden("llama_gqa4"); }
TEST(tiny_logits_equal_mlx_for_qwen2) { check_golden("qwen2"); }
TEST(tiny_logits_equal_mlx_for_gemma3) { check_golden("gemma3"); }

/* ---- invariance ---------------------------------------------------------------------------- */

static const char *const presets[] = {"llama", "llama_gqa4", "qwen2", "gemma3", "wide"};
#define N_PRESETS (sizeof(presets) / sizeof(presets[0]))

static void some_tokens(kr_token_t *ids, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (kr_token_t)((i * 97u + seed * 31u + 5u) % N_VOCAB);
}

static void check_chunks(const tiny_config_t *config, const char *isa) {
    static const uint32_t chunks[] = {1, 7, 64, 512};
    static float expected[N_TOKENS * N_VOCAB], actual[N_TOKENS * N_VOCAB];
    kr_token_t ids[N_TOKENS];
    some_tokens(ids, N_TOKENS, 1);
    kr_model_t model = open_tiny_config(config);
    for (size_t c = 0; c < 4; c++) {
        for (uint32_t n_threads = 1; n_threads <= 3; n_threads++) {
            kr_session_t session = tiny_session(model, KR_DTYPE_F16, isa, 1, n_threads);
            float *out = c == 0 && n_threads == 1 ? expected : actual;
            decode_chunks(session, ids, N_TOKENS, chunks[c], 0, N_VOCAB, out);
            assert_memory_equal(out, expected, sizeof(expected));
            kr_session_destroy(session);
        }
    }
    kr_model_close(model);
}

static void check_chunks_everywhere(const char *isa) {
    static const uint32_t types[] = {0, 1, 30, 2, 3, 6, 7, 8};
    for (size_t p = 0; p < N_PRESETS; p++) {
        tiny_config_t config = tiny_config(presets[p]);
        check_chunks(&config, isa);
    }
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        tiny_config_t config = tiny_config("llama");
        config.type = types[t];
        check_chunks(&config, isa);
    }
    for (uint32_t type = 12; type <= 14; type++) {
        tiny_config_t config = tiny_config("wide");
        config.type = type;
        check_chunks(&config, isa);
    }
}

TEST(tiny_logits_do_not_depend_on_chunks_and_threads_on_ref) { check_chunks_everywhere("ref"); }
TEST(tiny_logits_do_not_depend_on_chunks_and_threads_on_avx2) {
    if (!has_level("avx2")) SKIP("no AVX2");
    check_chunks_everywhere("avx2");
}
TEST(tiny_logits_do_not_depend_on_chunks_and_threads_on_avx512) {
    if (!has_level("avx512")) SKIP("no AVX-512");
    check_chunks_everywhere("avx512");
}
TEST(tiny_logits_do_not_depend_on_chunks_and_threads_on_amx) {
    if (!has_level("amx")) SKIP("no AMX");
    check_chunks_everywhere("amx");
}
TEST(tiny_logits_do_not_depend_on_chunks_and_threads_on_arm) {
    if (!has_level("neon")) SKIP("no NEON");
    check_chunks_everywhere("neon");
    if (has_level("dotprod")) check_chunks_everywhere("dotprod");
    if (has_level("i8mm")) check_chunks_everywhere("i8mm");
}
/* The matrix unit rounds to bf16 and sums in its own order: near the golden logits, not equal. */
TEST(tiny_logits_of_the_matrix_unit_stay_near_the_golden_ones) {
    static float expected[N_TOKENS * N_VOCAB], actual[N_TOKENS * N_VOCAB];
    kr_token_t ids[N_TOKENS];
    if (!has_level("amx")) SKIP("no AMX");
    read_golden("llama", ids, expected);
    kr_model_t model = open_tiny("llama");
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.invariant = KR_INVARIANT_OFF;
    kr_session_t session = open_session(model, &params);
    decode_chunks(session, ids, N_TOKENS, N_TOKENS, 0, N_VOCAB, actual);
    const double d = distance(actual, expected, N_TOKENS * N_VOCAB);
    print_message("llama through tiles: %.2e\n", d);
    assert_true(d <= 0.1 && d > 0);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* Attention's integer scores and an integer cache: near the logits of floats, not the same, and as
 * invariant. */
static void check_integer_scores(const char *preset, const char *isa, kr_dtype_t kv,
                                 int32_t attn_qk, double max) {
    static const uint32_t chunks[] = {512, 1, 7};
    static float plain[N_TOKENS * N_VOCAB], expected[N_TOKENS * N_VOCAB];
    static float actual[N_TOKENS * N_VOCAB];
    kr_token_t ids[N_TOKENS];
    some_tokens(ids, N_TOKENS, 1);
    kr_model_t model = open_tiny(preset);
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.isa = isa;
    params.n_threads = 1;
    params.attn_qk = KR_ATTN_QK_F32;
    kr_session_t session = open_session(model, &params);
    decode_chunks(session, ids, N_TOKENS, 512, 0, N_VOCAB, plain);
    kr_session_destroy(session);
    for (uint32_t c = 0; c < 3; c++) {
        params.n_threads = c + 1;
        params.kv_dtype = kv;
        params.attn_qk = attn_qk;
        params.invariant = KR_INVARIANT_ON;
        session = open_session(model, &params);
        decode_chunks(session, ids, N_TOKENS, chunks[c], 0, N_VOCAB, c ? actual : expected);
        if (c) assert_memory_equal(actual, expected, sizeof(expected));
        kr_session_destroy(session);
    }
    const double d = distance(expected, plain, N_TOKENS * N_VOCAB);
    print_message("%s on %s: kv %s, scores %d move logits by %.2e\n", preset, isa,
                  kr_dtype_name(kv), attn_qk, d);
    assert_true(d > 0 && d < max);
    kr_model_close(model);
}

TEST(tiny_logits_with_integer_scores_are_near_and_do_not_depend_on_chunks_and_threads) {
    static const char *const levels[] = {"ref", "avx2", "avx512", "neon"};
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (!has_level(levels[l])) continue;
        for (size_t p = 0; p < N_PRESETS; p++) {
            check_integer_scores(presets[p], levels[l], KR_DTYPE_F16, KR_ATTN_QK_INT8, 0.1);
            check_integer_scores(presets[p], levels[l], KR_DTYPE_F16, KR_ATTN_QK_INT16, 0.03);
        }
    }
}

TEST(tiny_logits_with_an_integer_cache_are_near_and_do_not_depend_on_chunks_and_threads) {
    static const char *const levels[] = {"ref", "avx2", "avx512", "amx", "neon"};
    for (size_t l = 0; l < sizeof levels / sizeof *levels; l++) {
        if (!has_level(levels[l])) continue;
        for (size_t p = 0; p < N_PRESETS; p++)
            check_integer_scores(presets[p], levels[l], KR_DTYPE_I8, KR_ATTN_QK_DEFAULT, 0.1);
    }
}

/* Three sequences of different lengths in one batch give what each gives alone. */
static void check_batch(kr_dtype_t kv) {
    static const uint32_t n_rows[3] = {1, 17, 40};
    static float alone[58 * N_VOCAB], together[58 * N_VOCAB];
    kr_token_t ids[58];
    some_tokens(ids, 58, 2);
    for (size_t p = 0; p < N_PRESETS; p++) {
        kr_model_t model = open_tiny(presets[p]);
        uint32_t at = 0;
        for (uint32_t s = 0; s < 3; s++) {
            kr_session_t session = tiny_session(model, kv, NULL, 1, 1);
            decode_chunks(session, ids + at, n_rows[s], 512, 0, N_VOCAB, alone + at * N_VOCAB);
            kr_session_destroy(session);
            at += n_rows[s];
        }
        kr_session_t session = tiny_session(model, kv, NULL, 3, 2);
        const kr_batch_seq_t seqs[3] = {{2, 1}, {0, 17}, {1, 40}};
        uint32_t out_rows[58];
        for (uint32_t i = 0; i < 58; i++) out_rows[i] = i;
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = batch.n_out_rows = 58;
        batch.tokens = ids;
        batch.seqs = seqs;
        batch.n_seqs = 3;
        batch.out_rows = out_rows;
        assert_status(kr_session_decode(session, &batch, together, NULL), KR_OK);
        assert_memory_equal(together, alone, sizeof(alone));
        kr_session_destroy(session);
        kr_model_close(model);
    }
}

TEST(tiny_logits_do_not_depend_on_the_batch) {
    check_batch(KR_DTYPE_F16);
    check_batch(KR_DTYPE_I8);
}

/* Dropping tokens and appending others is the same as never having had them. */
static void check_truncate(kr_dtype_t kv) {
    static float expected[20 * N_VOCAB], actual[20 * N_VOCAB];
    kr_token_t ids[64];
    some_tokens(ids, 64, 3);
    for (size_t p = 0; p < N_PRESETS; p++) {
        kr_model_t model = open_tiny(presets[p]);
        kr_session_t session = tiny_session(model, kv, NULL, 1, 1);
        decode_chunks(session, ids, 50, 512, 50, N_VOCAB, NULL);
        assert_status(kr_session_truncate(session, 0, 21), KR_OK);
        decode_chunks(session, ids + 44, 20, 512, 0, N_VOCAB, actual);
        kr_session_t fresh = tiny_session(model, kv, NULL, 1, 1);
        decode_chunks(fresh, ids, 21, 512, 21, N_VOCAB, NULL);
        decode_chunks(fresh, ids + 44, 20, 512, 0, N_VOCAB, expected);
        assert_memory_equal(actual, expected, sizeof(expected));
        kr_session_destroy(fresh);
        kr_session_destroy(session);
        kr_model_close(model);
    }
}

TEST(tiny_truncate_leaves_no_trace) {
    check_truncate(KR_DTYPE_F16);
    check_truncate(KR_DTYPE_I8);
}
