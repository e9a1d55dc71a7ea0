/* test_faults.c: the memory that a session says it takes and what it takes, and the device's faults
 * through kr.h: no memory, an illegal address at some launch, values that are not finite. Faults
 * are the emulated device's; a device that is lost is whole again once nobody holds it, which a new
 * process stands for. */
#include <dlfcn.h>

#include "engine/engine_util.h"

#include "cuda_util.h"

#define N_VOCAB 320u

/* A function of tests/cuda/emulator/driver.cpp; NULL on a real device. */
static void *emulated(const char *name) {
    void *driver = is_emulated_cuda() ? dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    return driver ? dlsym(driver, name) : NULL;
}

typedef int fail_fn(long n);
typedef int memory_fn(size_t n_bytes);
typedef int used_fn(size_t *n_bytes);

static void fail_launch(long n_before) {
    fail_fn *fn = (fail_fn *)emulated("emu_fail_launch");
    assert_non_null(fn);
    (void)fn(n_before);
}

static void set_memory(size_t n_bytes) {
    memory_fn *fn = (memory_fn *)emulated("emu_memory");
    assert_non_null(fn);
    (void)fn(n_bytes);
}

/* Most bytes in use at a time since the last call. */
static size_t used_most(void) {
    used_fn *fn = (used_fn *)emulated("emu_used_most");
    size_t n_bytes = 0;
    assert_non_null(fn);
    (void)fn(&n_bytes);
    return n_bytes;
}

#define MEMORY_BYTES ((size_t)8 << 30) /* of the emulated device */

#define NEED_EMULATED()                                                                          \
    do {                                                                                         \
        if (!is_emulated_cuda()) SKIP("no CUDA device that can be made to fail");                \
    } while (0)

static void on_cuda(kr_session_params_t *params) {
    kr_session_params_init(params);
    params->device = KR_DEVICE_CUDA;
    params->n_ctx = 128;
}

static kr_session_info_t plan_of(kr_model_t model, const kr_session_params_t *params) {
    kr_session_info_t info;
    kr_session_info_init(&info);
    assert_status(kr_session_plan(model, params, &info, NULL), KR_OK);
    return info;
}

/* Without the workspace of a library that the emulated machine does not have. */
static size_t device_bytes(const kr_session_info_t *info) {
    return info->device_weight_bytes + info->device_kv_bytes + info->scratch_bytes;
}

static kr_status_t decode_one(kr_session_t session, kr_token_t token, float *logits,
                              kr_error_t *error) {
    const kr_batch_seq_t one = {0, 1};
    const uint32_t out = 0;
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = batch.n_seqs = batch.n_out_rows = 1;
    batch.tokens = &token;
    batch.seqs = &one;
    batch.out_rows = &out;
    return kr_session_decode(session, &batch, logits, error);
}

/* ---- the ledger ----------------------------------------------------------------------------- */

static void check_ledger(const char *preset, uint32_t type, const kr_session_params_t *params) {
    static float logits[N_VOCAB];
    kr_session_t session = NULL;
    tiny_config_t config = tiny_config(preset);
    config.type = type;
    kr_model_t model = open_tiny_config(&config);
    const kr_session_info_t plan = plan_of(model, params);
    (void)used_most();
    assert_status(kr_session_create(model, params, &session, NULL), KR_OK);
    assert_int_equal(used_most(), device_bytes(&plan));
    for (int i = 0; i < 4; i++) assert_status(decode_one(session, 5, logits, NULL), KR_OK);
    assert_int_equal(used_most(), device_bytes(&plan));
    kr_session_info_t info;
    kr_session_info_init(&info);
    assert_status(kr_session_info(session, &info), KR_OK);
    assert_int_equal(device_bytes(&info), device_bytes(&plan));
    kr_session_destroy(session);
    assert_int_equal(used_most(), device_bytes(&plan)); /* before the destroy */
    assert_int_equal(used_most(), plan.device_weight_bytes); /* until the model is closed */
    kr_model_close(model);
    (void)used_most();
    assert_int_equal(used_most(), 0);
}

TEST(session_plan_is_what_a_session_takes_on_cuda) {
    NEED_EMULATED();
    static const struct { const char *preset; uint32_t type; } models[] = {
        {"wide", 12}, {"wide", 1}, {"gemma3", 0}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        kr_session_params_t params;
        on_cuda(&params);
        check_ledger(models[i].preset, models[i].type, &params);
        params.n_seqs = 3;
        params.n_rows_max = 64;
        check_ledger(models[i].preset, models[i].type, &params);
        params.kv_bytes_max = 100000; /* less than all: what is taken is less too */
        check_ledger(models[i].preset, models[i].type, &params);
    }
}

/* An engine keeps pages of every kind of layer for its prefix cache. */
TEST(session_plan_with_a_prefix_cache_is_what_an_engine_takes_on_cuda) {
    NEED_EMULATED();
    static const char *const presets[] = {"wide", "gemma3"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        collector_t c;
        kr_session_params_t params;
        const tiny_config_t config = tiny_config(presets[i]);
        kr_model_t model = open_tiny_config(&config);
        on_cuda(&params);
        params.n_seqs = 5;
        params.prefix_cache = KR_PREFIX_CACHE_ON;
        const kr_session_info_t plan = plan_of(model, &params);
        collector_init(&c);
        kr_engine_t engine = make_engine(&c, NULL);
        (void)used_most();
        assert_status(kr_engine_add_model(engine, "tiny", model, &params, NULL), KR_OK);
        assert_int_equal(used_most(), device_bytes(&plan));
        kr_engine_destroy(engine);
        kr_model_close(model);
    }
}

/* ---- no memory ------------------------------------------------------------------------------ */

TEST(session_without_device_memory_says_what_is_needed_and_free_on_cuda) {
    NEED_EMULATED();
    static float logits[N_VOCAB];
    kr_session_params_t params;
    kr_session_t session = NULL;
    kr_error_t error;
    char said[64];
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    on_cuda(&params);
    params.n_seqs = 40;
    const kr_session_info_t plan = plan_of(model, &params);
    const size_t needed = device_bytes(&plan) + plan.device_work_bytes;
    (void)used_most();
    kr_error_init(&error);
    set_memory(needed - 1);
    assert_status(kr_session_create(model, &params, &session, &error), KR_E_DEVICE_NOMEM);
    assert_null(session);
    snprintf(said, sizeof said, "%.1f MB of device memory are needed", (double)needed / 1e6);
    assert_non_null(strstr(error.message, said));
    snprintf(said, sizeof said, "%.1f of", (double)(needed - 1) / 1e6);
    assert_non_null(strstr(error.message, said));
    assert_int_equal(used_most(), 0); /* nothing was taken for it */
    set_memory(needed);
    assert_status(kr_session_create(model, &params, &session, NULL), KR_OK);
    assert_status(decode_one(session, 5, logits, NULL), KR_OK);
    kr_session_destroy(session);
    set_memory(MEMORY_BYTES);
    kr_model_close(model);
}

/* The check at the beginning cannot see what others take meanwhile, nor memory in pieces. */
TEST(session_whose_device_memory_fails_half_way_says_so_on_cuda) {
    NEED_EMULATED();
    kr_session_params_t params;
    fail_fn *fail_alloc = (fail_fn *)emulated("emu_fail_alloc");
    const tiny_config_t config = tiny_config("gemma3");
    kr_status_t status = KR_E_DEVICE_NOMEM;
    long n_failed = -1;
    assert_non_null(fail_alloc);
    on_cuda(&params);
    while (status != KR_OK) {
        kr_session_t session = NULL;
        kr_error_t error;
        kr_model_t model = open_tiny_config(&config);
        kr_error_init(&error);
        (void)fail_alloc(++n_failed);
        status = kr_session_create(model, &params, &session, &error);
        (void)fail_alloc(-1);
        assert_true((status == KR_OK) == (session != NULL));
        if (status != KR_OK) {
            assert_status(status, KR_E_DEVICE_NOMEM);
            assert_non_null(strstr(error.message, "MB of device memory are needed"));
            assert_non_null(strstr(error.message, "MB are free"));
        }
        kr_session_destroy(session);
        kr_model_close(model);
    }
    assert_int_equal(n_failed, 4); /* weights, activations, keys of two kinds of layers */
}

TEST(session_decodes_without_memory_for_a_recording_on_cuda) {
    NEED_EMULATED();
    static float first[N_VOCAB], again[N_VOCAB];
    kr_session_params_t params;
    kr_session_t session = NULL;
    fail_fn *refuse = (fail_fn *)emulated("emu_fail_instantiate");
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    assert_non_null(refuse);
    on_cuda(&params);
    assert_status(kr_session_create(model, &params, &session, NULL), KR_OK);
    for (uint32_t i = 0; i < 5; i++) { /* new, refused, refused, recorded, replayed */
        (void)refuse(i == 1 || i == 2);
        assert_status(kr_session_truncate(session, 0, 0), KR_OK);
        assert_status(decode_one(session, 5, i == 0 ? first : again, NULL), KR_OK);
        if (i > 0) assert_memory_equal(again, first, sizeof first);
    }
    kr_session_destroy(session);
    kr_model_close(model);
}

/* ---- a lost device -------------------------------------------------------------------------- */

TEST(session_of_a_lost_device_fails_for_good_on_cuda) {
    NEED_EMULATED();
    static float logits[N_VOCAB];
    kr_session_params_t params;
    const tiny_config_t config = tiny_config("wide");
    on_cuda(&params);
    for (long n_before = 0; n_before < 40; n_before += 13) { /* alone, and in a recorded step */
        kr_session_t session = NULL, other = NULL;
        kr_error_t error;
        kr_model_t model = open_tiny_config(&config);
        kr_status_t status = KR_OK;
        kr_error_init(&error);
        assert_status(kr_session_create(model, &params, &session, NULL), KR_OK);
        assert_status(decode_one(session, 5, logits, NULL), KR_OK);
        fail_launch(n_before);
        for (uint32_t i = 0; i < 40 && status == KR_OK; i++) {
            status = decode_one(session, 5, logits, &error);
        }
        assert_status(status, KR_E_DEVICE_LOST);
        assert_non_null(strstr(error.message, "CUDA_ERROR_ILLEGAL_ADDRESS"));
        assert_status(decode_one(session, 5, logits, NULL), KR_E_DEVICE_LOST);
        assert_status(kr_session_create(model, &params, &other, &error), KR_E_DEVICE_LOST);
        assert_null(other);
        kr_session_destroy(session);
        kr_model_close(model);
    }
}

TEST(engine_on_a_lost_device_ends_requests_and_refuses_new_ones_on_cuda) {
    NEED_EMULATED();
    enum { N_REQUESTS = 5, N_PROMPT = 20 };
    collector_t c;
    gate_t gate;
    out_t *outs[N_REQUESTS];
    kr_token_t ids[N_PROMPT];
    kr_session_params_t params;
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    for (int i = 0; i < N_PROMPT; i++) ids[i] = 20 + i;
    collector_init(&c);
    gate_init(&gate);
    kr_engine_t engine = make_engine(&c, NULL);
    on_cuda(&params);
    params.n_seqs = 2;
    assert_status(kr_engine_add_model(engine, "tiny", model, &params, NULL), KR_OK);
    ask_t ask;
    for (int i = 0; i < N_REQUESTS; i++) { /* the first holds the step thread, two find no place */
        ask_init(&ask, ids, N_PROMPT, 30);
        if (i == 0) ask.params.grammar = &gate.grammar;
        outs[i] = submit(&c, &ask);
        if (i == 0) gate_wait(&gate, 1);
    }
    fail_launch(0);
    gate_open(&gate);
    for (int i = 0; i < N_REQUESTS; i++) {
        wait_over(outs[i]);
        assert_status(outs[i]->status, KR_E_DEVICE_LOST);
        assert_non_null(strstr(outs[i]->message, "CUDA_ERROR_ILLEGAL_ADDRESS"));
        out_destroy(outs[i]);
    }
    ask_init(&ask, ids, N_PROMPT, 30);
    assert_status(try_submit(engine, &ask, NULL), KR_E_DEVICE_LOST);
    assert_int_equal(engine_stats(engine, NULL).n_running, 0);
    assert_int_equal(engine_stats(engine, NULL).n_waiting, 0);
    kr_engine_destroy(engine);
    kr_model_close(model);
}

/* ---- not finite ----------------------------------------------------------------------------- */

/* With tokens chosen by the device and by the host. */
TEST(engine_fails_only_the_request_with_values_that_are_not_finite_on_cuda) {
    if (!is_emulated_cuda() && !cuda_or_null()) SKIP("no CUDA device");
    enum { N_REQUESTS = 4, N_PROMPT = 12 };
    kr_model_t model = open_with_nan();
    for (int is_drawn = 0; is_drawn < 2; is_drawn++) {
        collector_t c;
        out_t *outs[N_REQUESTS];
        kr_session_params_t params;
        kr_token_t ids[N_REQUESTS][N_PROMPT];
        collector_init(&c);
        kr_engine_t engine = make_engine(&c, NULL);
        on_cuda(&params);
        params.n_seqs = N_REQUESTS;
        assert_status(kr_engine_add_model(engine, "tiny", model, &params, NULL), KR_OK);
        for (int i = 0; i < N_REQUESTS; i++) {
            ask_t ask;
            for (int j = 0; j < N_PROMPT; j++) ids[i][j] = 100 + i + j;
            if (i == 2) ids[i][5] = NAN_TOKEN;
            ask_init(&ask, ids[i], N_PROMPT, 10);
            const kr_logit_bias_t never = {NAN_TOKEN, -100.0f};
            ask.sampler.n_logit_bias = (uint32_t)is_drawn;
            ask.sampler.logit_bias = &never;
            if (is_drawn) ask.sampler.temperature = 0.8f;
            outs[i] = submit(&c, &ask);
        }
        for (int i = 0; i < N_REQUESTS; i++) {
            wait_over(outs[i]);
            /* Greedy ones may come upon the token by themselves, and then fail alone too. */
            if (i == 2) assert_status(outs[i]->status, KR_E_NUMERIC);
            else if (is_drawn) assert_status(outs[i]->status, KR_OK);
            else assert_true(outs[i]->status == KR_OK || outs[i]->n_tokens > 0);
            out_destroy(outs[i]);
        }
        kr_engine_destroy(engine);
    }
    kr_model_close(model);
}
