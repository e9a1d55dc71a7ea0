/* test_session.c: what a session refuses, and that refusing changes nothing; decoding allocates
 * nothing; bad numbers in the weights never become an answer. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "tiny.h"

#define N_VOCAB 320

typedef struct fixture_s {
    kr_model_t model;
    kr_session_t session;
    kr_token_t tokens[4];
    kr_batch_seq_t seq;
    uint32_t out_row;
    kr_batch_t batch;
    float logits[N_VOCAB];
    kr_error_t error;
} fixture_t;

static void setup(fixture_t *f) {
    memset(f, 0, sizeof(*f));
    f->model = open_tiny("llama");
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.n_ctx = 40;
    params.n_seqs = 2;
    params.n_rows_max = 16;
    params.n_threads = 1;
    f->session = open_session(f->model, &params);
    kr_error_init(&f->error);
    kr_batch_init(&f->batch);
    f->seq = (kr_batch_seq_t){0, 4};
    f->out_row = 3;
    for (int i = 0; i < 4; i++) f->tokens[i] = i + 7;
    f->batch.n_rows = 4;
    f->batch.tokens = f->tokens;
    f->batch.seqs = &f->seq;
    f->batch.n_seqs = 1;
    f->batch.n_out_rows = 1;
    f->batch.out_rows = &f->out_row;
}

static void teardown(fixture_t *f) {
    kr_session_destroy(f->session);
    kr_model_close(f->model);
}

/* The batch is refused, the field named, and the session is as before. */
static void refuse(fixture_t *f, kr_status_t expected, const char *param) {
    uint32_t before = 0, after = 0;
    assert_status(kr_session_length(f->session, 0, &before), KR_OK);
    f->logits[0] = 1234.5f;
    assert_status(kr_session_decode(f->session, &f->batch, f->logits, &f->error), expected);
    assert_string_equal(f->error.param, param);
    assert_true(f->error.message[0] != 0 && strchr(f->error.message, '\n') == NULL);
    assert_status(kr_session_length(f->session, 0, &after), KR_OK);
    assert_int_equal(before, after);
    assert_true(f->logits[0] == 1234.5f);
}

TEST(session_refuses_a_bad_batch_by_field) {
    fixture_t f;
    const int32_t some[16] = {0};
    const float embedding = 0.0f;
    setup(&f);
    f.tokens[2] = N_VOCAB;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.tokens[2] = -1;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.tokens[2] = 9;
    f.batch.tokens = NULL;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.batch.tokens = f.tokens;
    f.seq.seq = 2;
    refuse(&f, KR_E_INVALID_ARG, "seqs");
    f.seq = (kr_batch_seq_t){0, 0};
    refuse(&f, KR_E_INVALID_ARG, "seqs");
    f.seq.n_rows = 3;
    refuse(&f, KR_E_INVALID_ARG, "n_rows");
    f.seq.n_rows = UINT32_MAX;
    refuse(&f, KR_E_CONTEXT_LENGTH, "seqs");
    f.seq.n_rows = 4;
    f.batch.n_rows = 17;
    refuse(&f, KR_E_LIMIT, "n_rows");
    f.batch.n_rows = 0;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.batch.n_rows = 4;
    f.batch.n_seqs = 0;
    refuse(&f, KR_E_INVALID_ARG, "n_seqs");
    f.batch.n_seqs = 3;
    refuse(&f, KR_E_INVALID_ARG, "n_seqs");
    f.batch.n_seqs = 1;
    f.out_row = 4;
    refuse(&f, KR_E_INVALID_ARG, "out_rows");
    f.out_row = 3;
    f.batch.out_rows = NULL;
    refuse(&f, KR_E_INVALID_ARG, "out_rows");
    f.batch.out_rows = &f.out_row;
    f.batch.n_out_rows = 5; /* more than rows: refused without reading out_rows[1] */
    refuse(&f, KR_E_INVALID_ARG, "n_out_rows");
    f.batch.n_out_rows = UINT32_MAX;
    refuse(&f, KR_E_INVALID_ARG, "n_out_rows");
    f.batch.n_out_rows = 1;
    f.batch.positions = some;
    refuse(&f, KR_E_UNSUPPORTED, "positions");
    f.batch.positions = NULL;
    f.batch.embeddings = &embedding;
    refuse(&f, KR_E_UNSUPPORTED, "embeddings");
    f.batch.embeddings = NULL;
    f.batch.adapters = some;
    refuse(&f, KR_E_UNSUPPORTED, "adapters");
    f.batch.adapters = NULL;
    assert_status(kr_session_decode(f.session, &f.batch, NULL, &f.error), KR_E_INVALID_ARG);
    assert_string_equal(f.error.param, "logits");
    assert_status(kr_session_decode(f.session, &f.batch, f.logits, &f.error), KR_OK);
    teardown(&f);
}

TEST(session_refuses_a_sequence_twice_and_rows_out_of_order) {
    fixture_t f;
    const kr_batch_seq_t twice[2] = {{0, 2}, {0, 2}};
    const uint32_t rows[2] = {3, 1};
    setup(&f);
    f.batch.seqs = twice;
    f.batch.n_seqs = 2;
    refuse(&f, KR_E_INVALID_ARG, "seqs");
    f.batch.seqs = &f.seq;
    f.batch.n_seqs = 1;
    f.batch.out_rows = rows;
    f.batch.n_out_rows = 2;
    refuse(&f, KR_E_INVALID_ARG, "out_rows");
    teardown(&f);
}

TEST(session_stops_at_the_end_of_the_context) {
    fixture_t f;
    uint32_t length = 0;
    setup(&f);
    for (int i = 0; i < 10; i++) {
        assert_status(kr_session_decode(f.session, &f.batch, f.logits, &f.error), KR_OK);
    }
    refuse(&f, KR_E_CONTEXT_LENGTH, "seqs");
    assert_status(kr_session_truncate(f.session, 0, 41), KR_E_INVALID_ARG);
    assert_status(kr_session_truncate(f.session, 0, 36), KR_OK);
    assert_status(kr_session_decode(f.session, &f.batch, f.logits, &f.error), KR_OK);
    assert_status(kr_session_length(f.session, 0, &length), KR_OK);
    assert_int_equal(length, 40);
    assert_status(kr_session_length(f.session, 2, &length), KR_E_INVALID_ARG);
    teardown(&f);
}

TEST(session_needs_no_output_rows) {
    fixture_t f;
    uint32_t length = 0;
    setup(&f);
    f.batch.n_out_rows = 0;
    assert_status(kr_session_decode(f.session, &f.batch, NULL, &f.error), KR_OK);
    assert_status(kr_session_length(f.session, 0, &length), KR_OK);
    assert_int_equal(length, 4);
    teardown(&f);
}

TEST(session_refuses_bad_params_by_field) {
    static const struct { const char *param; kr_status_t status; } expected[] = {
        {"n_ctx", KR_E_CONTEXT_LENGTH},  {"n_seqs", KR_E_INVALID_ARG},
        {"n_rows_max", KR_E_INVALID_ARG}, {"n_threads", KR_E_INVALID_ARG},
        {"kv_dtype", KR_E_UNSUPPORTED},  {"invariant", KR_E_INVALID_ARG},
        {"isa", KR_E_INVALID_ARG},       {"attn_qk", KR_E_INVALID_ARG}};
    kr_model_t model = open_tiny("llama");
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        kr_session_params_t params;
        kr_session_t session = NULL;
        kr_error_t error;
        kr_error_init(&error);
        kr_session_params_init(&params);
        switch (i) {
        case 0: params.n_ctx = 513; break;
        case 1: params.n_seqs = 257; break;
        case 2: params.n_rows_max = 4097; break;
        case 3: params.n_threads = 257; break;
        case 4: params.kv_dtype = KR_DTYPE_Q8_0; break;
        case 5: params.invariant = 3; break;
        case 6: params.isa = "sse9"; break;
        default: params.attn_qk = 4; break;
        }
        assert_status(kr_session_create(model, &params, &session, &error), expected[i].status);
        assert_string_equal(error.param, expected[i].param);
        assert_null(session);
    }
    kr_model_close(model);
}

/* Pages of integers have one way to multiply queries with keys; the others are refused by name. */
TEST(session_of_an_integer_cache_refuses_other_scores_and_takes_half_the_bytes) {
    static const struct { int32_t attn_qk; kr_status_t status; const char *name; } rows[] = {
        {KR_ATTN_QK_DEFAULT, KR_OK, ""}, {KR_ATTN_QK_INT16, KR_OK, ""},
        {KR_ATTN_QK_F32, KR_E_UNSUPPORTED, "attn_qk f32"},
        {KR_ATTN_QK_INT8, KR_E_UNSUPPORTED, "attn_qk int8"}};
    kr_model_t model = open_tiny("llama");
    kr_session_params_t params;
    kr_session_info_t f16, i8;
    kr_session_params_init(&params);
    kr_session_info_init(&f16);
    kr_session_info_init(&i8);
    assert_status(kr_session_plan(model, &params, &f16, NULL), KR_OK);
    params.kv_dtype = KR_DTYPE_I8;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kr_error_t error;
        kr_error_init(&error);
        params.attn_qk = rows[i].attn_qk;
        assert_status(kr_session_plan(model, &params, &i8, &error), rows[i].status);
        if (rows[i].status != KR_OK) assert_string_equal(error.param, "attn_qk");
        if (rows[i].status != KR_OK) assert_non_null(strstr(error.message, rows[i].name));
    }
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    /* a token and head: head_dim bytes and a scale of two */
    assert_true(i8.kv_bytes * 2 * info.head_dim == f16.kv_bytes * (info.head_dim + 2));
    assert_int_equal(i8.kv_dtype, KR_DTYPE_I8);
    kr_model_close(model);
}

/* The CPU has no kernels for it, and says so by name. */
TEST(session_refuses_a_cache_of_fp8_on_the_cpu) {
    kr_model_t model = open_tiny("llama");
    kr_session_params_t params;
    kr_session_info_t info;
    kr_error_t error;
    kr_session_params_init(&params);
    kr_session_info_init(&info);
    kr_error_init(&error);
    params.kv_dtype = KR_DTYPE_F8;
    assert_status(kr_session_plan(model, &params, &info, &error), KR_E_UNSUPPORTED);
    assert_string_equal(error.param, "kv_dtype");
    assert_non_null(strstr(error.message, "fp8 is not built for device cpu"));
    kr_model_close(model);
}

static atomic_int cancel_stop;

static void *cancel_all_the_time(void *session) {
    while (!atomic_load(&cancel_stop)) kr_session_cancel((kr_session_t)session);
    return NULL;
}

/* A cancelled step leaves the sequence as it was, and the next step works. */
TEST(session_cancel_from_another_thread_ends_the_step) {
    fixture_t f;
    pthread_t thread;
    uint32_t length = 9;
    setup(&f);
    atomic_store(&cancel_stop, 0);
    assert_int_equal(pthread_create(&thread, NULL, cancel_all_the_time, f.session), 0);
    kr_status_t status = KR_OK;
    for (int i = 0; i < 100000 && status == KR_OK; i++) {
        assert_status(kr_session_truncate(f.session, 0, 0), KR_OK);
        status = kr_session_decode(f.session, &f.batch, f.logits, &f.error);
    }
    atomic_store(&cancel_stop, 1);
    pthread_join(thread, NULL);
    assert_status(status, KR_E_CANCELLED);
    assert_status(kr_session_length(f.session, 0, &length), KR_OK);
    assert_int_equal(length, 0);
    assert_status(kr_session_decode(f.session, &f.batch, f.logits, &f.error), KR_OK);
    teardown(&f);
}

TEST(session_keeps_its_model_alive) {
    float logits[N_VOCAB];
    const kr_token_t token = 5;
    kr_model_t model = open_tiny("qwen2");
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1);
    kr_model_close(model);
    decode_chunks(session, &token, 1, 1, 0, N_VOCAB, logits);
    kr_session_destroy(session);
}

TEST(session_decode_allocates_nothing) {
    fixture_t f;
    setup(&f);
    kri_alloc_guard_begin("decode");
    kr_status_t status = KR_OK;
    for (int i = 0; i < 10 && status == KR_OK; i++) {
        status = kr_session_decode(f.session, &f.batch, f.logits, NULL);
    }
    const uint64_t n = kri_alloc_guard_end();
    assert_status(status, KR_OK);
    assert_int_equal(n, 0);
    teardown(&f);
}

TEST(session_create_survives_every_failing_allocation) {
    kr_model_t model = open_tiny("gemma3");
    kr_memory_usage_t before, after;
    kr_memory_usage_init(&before);
    kr_memory_usage_init(&after);
    assert_status(kr_memory_usage(&before), KR_OK);
    for (uint64_t k = 1;; k++) {
        kr_session_t session = NULL;
        kri_alloc_fail(k, false);
        const kr_status_t status = kr_session_create(model, NULL, &session, NULL);
        kri_alloc_fail(0, false);
        kr_session_destroy(session);
        assert_status(kr_memory_usage(&after), KR_OK);
        assert_int_equal(after.bytes_now, before.bytes_now);
        if (status == KR_OK) {
            assert_true(k > 3);
            break;
        }
        assert_status(status, KR_E_NOMEM);
        assert_null(session);
    }
    kr_model_close(model);
}

TEST(model_open_survives_every_failing_allocation) {
    const tiny_config_t config = tiny_config("llama");
    gguf_bytes_t file = tiny_model(&config);
    kr_model_params_t params;
    kr_memory_usage_t before, after;
    kr_model_params_init(&params);
    kr_memory_usage_init(&before);
    kr_memory_usage_init(&after);
    params.n_threads = 1;
    assert_status(kr_memory_usage(&before), KR_OK);
    for (uint64_t k = 1;; k++) {
        kr_model_t model = NULL;
        kri_alloc_fail(k, false);
        const kr_status_t status = open_bytes(&file, &params, &model, NULL);
        kri_alloc_fail(0, false);
        kr_model_close(model);
        assert_status(kr_memory_usage(&after), KR_OK);
        assert_int_equal(after.bytes_now, before.bytes_now);
        if (status == KR_OK) {
            assert_true(k > 10);
            break;
        }
        assert_status(status, KR_E_NOMEM);
        assert_null(model);
    }
    free(file.data);
}

/* A NaN or infinity in any kind of weight ends as KR_E_NUMERIC, and the session goes on. */
static void check_planted(const char *preset, const char *tensor_mark, float value) {
    const tiny_config_t config = tiny_config(preset);
    gguf_bytes_t file = tiny_model(&config);
    kr_model_params_t params;
    kr_model_t model = NULL;
    kr_model_params_init(&params);
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    kr_tensor_info_t info;
    kr_tensor_info_init(&info);
    uint64_t bytes_after = 0;
    int found = 0;
    /* The data area is the end of the file: count back from there. */
    for (uint32_t i = 0; kr_model_tensor(model, i, &info) == KR_OK; i++) {
        if (found) bytes_after += (info.bytes + 31) / 32 * 32;
        if (!found && strstr(info.name, tensor_mark)) {
            found = 1;
            bytes_after = (info.bytes + 31) / 32 * 32;
        }
    }
    kr_model_close(model);
    assert_true(found && bytes_after <= file.n);
    memcpy(file.data + (file.n + 31) / 32 * 32 - bytes_after, &value, sizeof(value));
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1);
    static float logits[N_VOCAB];
    const kr_token_t tokens[3] = {0, 1, 2};
    const kr_batch_seq_t seq = {0, 3};
    const uint32_t out_row = 2;
    kr_batch_t batch;
    uint32_t length = 9;
    kr_error_t error;
    kr_error_init(&error);
    kr_batch_init(&batch);
    batch.n_rows = 3;
    batch.tokens = tokens;
    batch.seqs = &seq;
    batch.n_seqs = 1;
    batch.n_out_rows = 1;
    batch.out_rows = &out_row;
    assert_status(kr_session_decode(session, &batch, logits, &error), KR_E_NUMERIC);
    assert_status(kr_session_length(session, 0, &length), KR_OK);
    assert_int_equal(length, 0);
    kr_session_destroy(session);
    kr_model_close(model);
    free(file.data);
}

TEST(session_reports_planted_values_as_numeric) {
    static const char *const marks[] = {"attn_norm", "attn_q.weight", "attn_v", "ffn_down",
                                        "output_norm"};
    for (size_t i = 0; i < sizeof(marks) / sizeof(marks[0]); i++) {
        check_planted("llama", marks[i], NAN);
        check_planted("llama", marks[i], INFINITY);
    }
}

/* ---- structs of other versions -------------------------------------------------------------- */

TEST(session_params_of_other_sizes_follow_the_rule) {
    struct { kr_session_params_t p; uint64_t tail; } bigger;
    kr_model_t model = open_tiny("llama");
    kr_session_t session = NULL;
    kr_error_t error;
    kr_error_init(&error);
    kr_session_params_init(&bigger.p);
    bigger.tail = 0;
    bigger.p.struct_bytes = sizeof(bigger);
    assert_status(kr_session_create(model, &bigger.p, &session, &error), KR_OK);
    kr_session_destroy(session);
    session = NULL;
    bigger.tail = 1;
    assert_status(kr_session_create(model, &bigger.p, &session, &error), KR_E_UNSUPPORTED);
    bigger.p.struct_bytes = 16; /* n_ctx, n_seqs, n_rows_max */
    bigger.p.n_ctx = 32;
    assert_status(kr_session_create(model, &bigger.p, &session, &error), KR_OK);
    kr_session_info_t info;
    kr_session_info_init(&info);
    assert_status(kr_session_info(session, &info), KR_OK);
    assert_int_equal(info.n_ctx, 32);
    kr_session_destroy(session);
    session = NULL;
    bigger.p.struct_bytes = 0;
    assert_status(kr_session_create(model, &bigger.p, &session, &error), KR_E_INVALID_ARG);
    kr_model_close(model);
}

TEST(api_refuses_null_handles) {
    kr_error_t error;
    kr_error_init(&error);
    uint32_t n = 0;
    size_t size = 0;
    float logit = 0.0f;
    kr_token_t token = 0;
    kr_model_t model = NULL;
    assert_status(kr_model_open(NULL, NULL, &model, &error), KR_E_INVALID_ARG);
    assert_status(kr_model_open("", NULL, &model, &error), KR_E_INVALID_ARG);
    assert_status(kr_model_open("x", NULL, NULL, &error), KR_E_INVALID_ARG);
    assert_status(kr_model_info(NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_model_tokenize(NULL, "", 0, 0, NULL, 0, &size, &error), KR_E_INVALID_ARG);
    assert_status(kr_session_create(NULL, NULL, NULL, &error), KR_E_INVALID_ARG);
    assert_status(kr_session_decode(NULL, NULL, &logit, &error), KR_E_INVALID_ARG);
    assert_status(kr_session_length(NULL, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_sampler_sample(NULL, &logit, &token), KR_E_INVALID_ARG);
    assert_status(kr_arena_create(0, NULL), KR_E_INVALID_ARG);
    kr_model_close(NULL);
    kr_session_destroy(NULL);
    kr_sampler_destroy(NULL);
    kr_detokenizer_destroy(NULL);
    kr_arena_destroy(NULL);
    kr_telemetry_destroy(NULL);
    kr_session_cancel(NULL);
}
