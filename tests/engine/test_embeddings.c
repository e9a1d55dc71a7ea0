/* test_embeddings.c: requests with pooling: the same bits as hidden states of a session pooled by
 * this file, whatever else runs, from the cache and after preemption; one EMBEDDING, then DONE;
 * each field that means nothing is refused; ends by cancel, deadline and NaN leave the others
 * alone. */
#include <math.h>

#include "engine_util.h"

#define N_PROMPT_MAX 512
static kr_token_t LONG[N_PROMPT_MAX + 1];

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    gate_t gate;
    ask_t ask;
} fixture_t;

static void setup_model(fixture_t *f, kr_model_t model, const kr_engine_params_t *params,
                        const kr_session_params_t *session) {
    memset(f, 0, sizeof *f);
    for (int i = 0; i <= N_PROMPT_MAX; i++) LONG[i] = (i * 37 + 11) % 320;
    collector_init(&f->c);
    gate_init(&f->gate);
    f->model = model;
    f->engine = make_engine(&f->c, params);
    add_model(f->engine, "tiny", f->model, session);
}

static void setup(fixture_t *f, const kr_session_params_t *session) {
    setup_model(f, open_tiny("llama"), NULL, session);
}

static void teardown(fixture_t *f) {
    const kr_engine_stats_t stats = engine_stats(f->engine, NULL);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.kv_bytes_used, 0);
    kr_engine_destroy(f->engine);
    kr_model_close(f->model);
}

static void embed_init(ask_t *ask, const kr_token_t *prompt, uint32_t n_prompt, int32_t pooling) {
    ask_init(ask, prompt, n_prompt, 0);
    ask->params.sampler = NULL;
    ask->params.ignore_end = 0;
    ask->params.pooling = pooling;
}

/* ---- the same alone ------------------------------------------------------------------------- */

typedef struct pooler_s {
    kr_session_t session;
    uint32_t n_embd;
    float *hidden;  /* [N_PROMPT_MAX, n_embd] */
    float *wanted;  /* [n_embd] */
} pooler_t;

static void pooler_init(pooler_t *p, kr_model_t model, kr_dtype_t kv) {
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    p->session = tiny_session(model, kv, NULL, 1, 1);
    p->n_embd = info.n_embd;
    p->hidden = malloc((size_t)N_PROMPT_MAX * info.n_embd * sizeof(float));
    p->wanted = malloc(info.n_embd * sizeof(float));
}

static void pooler_deinit(pooler_t *p) {
    kr_session_destroy(p->session);
    free(p->hidden);
    free(p->wanted);
}

static void pooler_run(pooler_t *p, const ask_t *ask) {
    const uint32_t n = (uint32_t)ask->segment.count, d = p->n_embd;
    uint32_t rows[64];
    assert_status(kr_session_truncate(p->session, 0, 0), KR_OK);
    for (uint32_t i = 0; i < 64; i++) rows[i] = i;
    for (uint32_t at = 0; at < n; at += 64) {
        const kr_batch_seq_t seq = {0, n - at < 64 ? n - at : 64};
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = batch.n_hidden_rows = seq.n_rows;
        batch.tokens = ask->segment.tokens + at;
        batch.seqs = &seq;
        batch.n_seqs = 1;
        batch.hidden_rows = rows;
        batch.hidden = p->hidden + (size_t)at * d;
        assert_status(kr_session_decode(p->session, &batch, NULL, NULL), KR_OK);
    }
    double squares = 0.0;
    for (uint32_t i = 0; i < d; i++) {
        double sum = 0.0;
        for (uint32_t r = 0; r < n; r++) sum += (double)p->hidden[(size_t)r * d + i];
        p->wanted[i] = ask->params.pooling == KR_POOLING_MEAN
                           ? (float)(sum / n) : p->hidden[(size_t)(n - 1) * d + i];
        squares += (double)p->wanted[i] * (double)p->wanted[i];
    }
    for (uint32_t i = 0; i < d && ask->params.normalize; i++) {
        p->wanted[i] = (float)((double)p->wanted[i] / sqrt(squares));
    }
}

static void assert_embedding(pooler_t *p, const ask_t *ask, out_t *out) {
    wait_over(out);
    if (out->status != KR_OK) fail_msg("%s", out->message);
    assert_non_null(out->embedding);
    assert_int_equal(out->n_embd, p->n_embd);
    pooler_run(p, ask);
    assert_memory_equal(out->embedding, p->wanted, p->n_embd * sizeof(float));
}

/* Submits, waits, compares. */
static void same_as_alone(fixture_t *f, pooler_t *p, ask_t *ask) {
    out_t *out = submit(&f->c, ask);
    assert_embedding(p, ask, out);
    out_destroy(out);
}

/* ---- many at once --------------------------------------------------------------------------- */

#define IN_FLIGHT 64

typedef struct trace_s {
    const char *preset;
    kr_dtype_t kv;
    uint32_t n_seqs, n_rows_max, n_threads;
    uint32_t pool_tokens; /* of f16; 0: every sequence can be full */
} trace_t;

typedef struct run_s {
    ask_t ask;
    kr_token_t prompt[160];
    out_t *out;
} run_t;

static uint64_t random_state;

static uint32_t below(uint32_t n) {
    return (uint32_t)(tiny_random(UINT64_C(0xe3bed), random_state++) >> 33) % n;
}

/* Two of three are embeddings; prompts of all kinds share prefixes. */
static void make_request(run_t *run) {
    const uint32_t family = below(4), n_shared = below(110), n_own = 1 + below(40);
    for (uint32_t i = 0; i < n_shared; i++) {
        run->prompt[i] = (kr_token_t)(tiny_random(family, i) % 320);
    }
    for (uint32_t i = 0; i < n_own; i++) run->prompt[n_shared + i] = (kr_token_t)below(320);
    const int32_t pooling = (int32_t)below(3);
    if (pooling == KR_POOLING_NONE) {
        ask_init(&run->ask, run->prompt, n_shared + n_own, 8 + below(50));
        run->ask.params.n_choices = 1 + below(2);
    } else {
        embed_init(&run->ask, run->prompt, n_shared + n_own, pooling);
        run->ask.params.normalize = below(2);
    }
    run->ask.params.key = below(3);
    run->ask.params.priority = (int32_t)below(5) - 2;
}

static void finish(run_t *run, solo_t *solo, pooler_t *pooler) {
    static out_choice_t wanted;
    if (run->ask.params.pooling != KR_POOLING_NONE) {
        assert_embedding(pooler, &run->ask, run->out);
    } else {
        wait_over(run->out);
        if (run->out->status != KR_OK) fail_msg("%s", run->out->message);
        for (uint32_t i = 0; i < run->out->n_choices; i++) {
            solo_run(solo, &run->ask, i, &wanted);
            assert_same(&run->out->choices[i], &wanted);
        }
    }
    out_destroy(run->out);
    run->out = NULL;
}

static void run_trace(const trace_t *trace, uint32_t n) {
    static run_t runs[IN_FLIGHT];
    fixture_t f;
    solo_t solo;
    pooler_t pooler;
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_model_t model = open_tiny(trace->preset);
    kr_engine_params_init(&params);
    params.n_threads = trace->n_threads;
    kr_session_params_init(&session);
    session.n_seqs = trace->n_seqs;
    session.n_rows_max = trace->n_rows_max;
    session.kv_dtype = trace->kv;
    if (trace->pool_tokens) session.kv_bytes_max = kv_bytes_of(model, trace->pool_tokens);
    setup_model(&f, model, &params, &session);
    solo_init(&solo, model, trace->kv);
    pooler_init(&pooler, model, trace->kv);
    for (uint32_t i = 0; i < n; i++) {
        run_t *run = &runs[i % IN_FLIGHT];
        if (run->out) finish(run, &solo, &pooler);
        make_request(run);
        run->out = submit(&f.c, &run->ask);
    }
    for (uint32_t i = 0; i < IN_FLIGHT; i++) {
        if (runs[i].out) finish(&runs[i], &solo, &pooler);
    }
    const kr_engine_stats_t stats = engine_stats(f.engine, "tiny");
    assert_true(stats.n_tokens_cached > 0);
    solo_deinit(&solo);
    pooler_deinit(&pooler);
    teardown(&f);
}

TEST(embeddings_are_what_each_prompt_gives_alone) {
    static const trace_t traces[] = {
        {"llama", KR_DTYPE_F16, 32, 64, 2, 0},
        {"llama_gqa4", KR_DTYPE_F32, 32, 128, 2, 640},
        {"qwen2", KR_DTYPE_F16, 8, 32, 1, 320},
        {"gemma3", KR_DTYPE_F16, 16, 48, 2, 0},
        {"llama", KR_DTYPE_I8, 16, 17, 2, 160},
    };
    for (size_t i = 0; i < sizeof traces / sizeof *traces; i++) run_trace(&traces[i], 100);
}

/* ---- events --------------------------------------------------------------------------------- */

TEST(embedding_comes_once_and_then_done) {
    fixture_t f;
    setup(&f, NULL);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        embed_init(&f.ask, LONG, 40, pooling);
        f.c.n_events = 0;
        out_t *out = submit(&f.c, &f.ask);
        wait_over(out);
        assert_status(out->status, KR_OK);
        assert_int_equal(f.c.n_events, 2);
        assert_int_equal(out->n_embd, 64);
        const kr_request_stats_t stats = stats_of(out);
        assert_true(stats.is_ended && stats.status == KR_OK);
        assert_int_equal(stats.n_prompt, 40);
        assert_int_equal(stats.n_generated, 0);
        assert_true(stats.ttft_ms > 0 && stats.prefill_ms > 0 && stats.decode_ms == 0);
        out_destroy(out);
    }
    teardown(&f);
}

/* What a poll gave is the engine's until the next one; then the request's vector is gone too. */
TEST(embedding_can_be_polled) {
    fixture_t f;
    setup(&f, NULL);
    pooler_t p;
    pooler_init(&p, f.model, KR_DTYPE_F16);
    kr_engine_t engine = make_engine(NULL, NULL);
    add_model(engine, "tiny", f.model, NULL);
    embed_init(&f.ask, LONG, 100, KR_POOLING_MEAN);
    pooler_run(&p, &f.ask);
    assert_status(kr_engine_submit(engine, &f.ask.params, NULL, NULL), KR_OK);
    kr_event_t event = {.struct_bytes = sizeof event};
    uint32_t n = 0;
    assert_status(kr_engine_poll(engine, &event, 1, 120000, &n), KR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(event.type, KR_EVENT_EMBEDDING);
    assert_int_equal(event.n_embd, p.n_embd);
    assert_memory_equal(event.embedding, p.wanted, p.n_embd * sizeof(float));
    assert_status(kr_engine_poll(engine, &event, 1, 120000, &n), KR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(event.type, KR_EVENT_DONE);
    assert_true(event.embedding == NULL && event.n_embd == 0);
    kr_engine_destroy(engine);
    pooler_deinit(&p);
    teardown(&f);
}

TEST(embedding_takes_one_of_the_credits) {
    fixture_t f;
    setup(&f, NULL);
    embed_init(&f.ask, LONG, 40, KR_POOLING_MEAN);
    f.ask.params.credits = 1;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    assert_non_null(out->embedding);
    out_destroy(out);
    teardown(&f);
}

TEST(embedding_is_normalised_when_asked) {
    fixture_t f;
    setup(&f, NULL);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        double length[2] = {0}, product = 0;
        float plain[64];
        for (uint32_t normalize = 0; normalize < 2; normalize++) {
            embed_init(&f.ask, LONG, 50, pooling);
            f.ask.params.normalize = normalize;
            out_t *out = submit(&f.c, &f.ask);
            wait_over(out);
            assert_int_equal(out->n_embd, 64);
            for (int i = 0; i < 64; i++) {
                length[normalize] += (double)out->embedding[i] * (double)out->embedding[i];
                if (normalize) product += (double)out->embedding[i] * (double)plain[i];
                else plain[i] = out->embedding[i];
            }
            out_destroy(out);
        }
        assert_true(fabs(length[1] - 1.0) < 1e-6 && fabs(length[0] - 1.0) > 1e-2);
        assert_true(fabs(product / sqrt(length[0]) - 1.0) < 1e-6); /* the same direction */
    }
    teardown(&f);
}

/* ---- refusals ------------------------------------------------------------------------------- */

static void refuse(fixture_t *f, kr_status_t wanted, const char *param) {
    kr_request_t request = NULL;
    kr_explain_t explain;
    kr_error_t error;
    kr_error_init(&error);
    kr_explain_init(&explain);
    assert_status(kr_engine_submit(f->engine, &f->ask.params, &request, &error), wanted);
    assert_string_equal(error.param, param);
    assert_null(request);
    kr_error_init(&error);
    assert_status(kr_engine_explain(f->engine, &f->ask.params, &explain, &error), wanted);
    assert_string_equal(error.param, param);
}

TEST(pooling_refuses_what_only_generating_has) {
    static const char *const stops[] = {"x"};
    fixture_t f;
    setup(&f, NULL);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.sampler = &f.ask.sampler;
        refuse(&f, KR_E_INVALID_ARG, "sampler");
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.stops = stops;
        f.ask.params.n_stops = 1;
        refuse(&f, KR_E_INVALID_ARG, "stops");
        f.ask.params.stops = NULL;
        refuse(&f, KR_E_INVALID_ARG, "n_stops");
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.n_choices = 2;
        refuse(&f, KR_E_INVALID_ARG, "n_choices");
        f.ask.params.n_choices = 1;
        f.ask.params.n_tokens_max = 1;
        refuse(&f, KR_E_INVALID_ARG, "n_tokens_max");
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.ignore_end = 1;
        refuse(&f, KR_E_INVALID_ARG, "ignore_end");
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.grammar = &f.gate.grammar;
        refuse(&f, KR_E_INVALID_ARG, "grammar");
        embed_init(&f.ask, LONG, 40, pooling);
        f.ask.params.normalize = 2;
        refuse(&f, KR_E_INVALID_ARG, "normalize");
        embed_init(&f.ask, LONG, 0, pooling);
        refuse(&f, KR_E_INVALID_ARG, "segments");
    }
    embed_init(&f.ask, LONG, 40, -1);
    refuse(&f, KR_E_INVALID_ARG, "pooling");
    embed_init(&f.ask, LONG, 40, 3);
    refuse(&f, KR_E_INVALID_ARG, "pooling");
    ask_init(&f.ask, LONG, 40, 3);
    f.ask.params.normalize = 1;
    refuse(&f, KR_E_INVALID_ARG, "normalize");
    teardown(&f);
}

/* The whole context is the prompt's, and no more; a pool that is too small is named. */
TEST(pooling_takes_prompts_up_to_the_context) {
    fixture_t f;
    pooler_t p;
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_ctx = N_PROMPT_MAX;
    session.n_seqs = 2;
    setup(&f, &session);
    pooler_init(&p, f.model, KR_DTYPE_F16);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        for (uint32_t n = N_PROMPT_MAX; n >= 1; n /= 8) {
            embed_init(&f.ask, LONG, n, pooling);
            same_as_alone(&f, &p, &f.ask);
        }
        embed_init(&f.ask, LONG, N_PROMPT_MAX + 1, pooling);
        refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
    }
    ask_init(&f.ask, LONG, N_PROMPT_MAX, 1);
    refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
    assert_status(kr_engine_resize_kv(f.engine, "tiny", kv_bytes_of(f.model, 64), NULL), KR_OK);
    embed_init(&f.ask, LONG, 64, KR_POOLING_MEAN);
    same_as_alone(&f, &p, &f.ask);
    embed_init(&f.ask, LONG, 65, KR_POOLING_MEAN);
    refuse(&f, KR_E_LIMIT, "segments");
    pooler_deinit(&p);
    teardown(&f);
}

/* ---- prefix cache --------------------------------------------------------------------------- */

TEST(mean_computes_every_token_and_leaves_its_pages_to_others) {
    fixture_t f;
    pooler_t p;
    solo_t solo;
    static out_choice_t wanted;
    setup(&f, NULL);
    pooler_init(&p, f.model, KR_DTYPE_F16);
    solo_init(&solo, f.model, KR_DTYPE_F16);
    embed_init(&f.ask, LONG, 100, KR_POOLING_MEAN);
    for (uint32_t round = 1; round <= 2; round++) { /* the second one finds its own pages */
        kr_explain_t explain;
        kr_explain_init(&explain);
        assert_status(kr_engine_explain(f.engine, &f.ask.params, &explain, NULL), KR_OK);
        assert_int_equal(explain.n_prompt, 100);
        assert_int_equal(explain.n_cached, 0);
        assert_int_equal(explain.kv_bytes, kv_bytes_of(f.model, 224) / 2); /* 7 pages */
        out_t *out = submit(&f.c, &f.ask);
        assert_embedding(&p, &f.ask, out);
        assert_int_equal(stats_of(out).n_cached, 0);
        assert_int_equal(engine_stats(f.engine, NULL).n_rows_prefill, round * 100);
        assert_int_equal(engine_stats(f.engine, NULL).n_tokens_cached, 0);
        out_destroy(out);
    }
    /* What it left serves the others: six full pages. */
    embed_init(&f.ask, LONG, 100, KR_POOLING_LAST);
    out_t *out = submit(&f.c, &f.ask);
    assert_embedding(&p, &f.ask, out);
    assert_int_equal(stats_of(out).n_cached, 96);
    out_destroy(out);
    ask_init(&f.ask, LONG, 100, 20);
    out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_int_equal(stats_of(out).n_cached, 96);
    solo_run(&solo, &f.ask, 0, &wanted);
    assert_same(&out->choices[0], &wanted);
    out_destroy(out);
    solo_deinit(&solo);
    pooler_deinit(&p);
    teardown(&f);
}

/* ---- beside streams ------------------------------------------------------------------------- */

static out_t *submit_gated(fixture_t *f, uint32_t n_tokens) {
    ask_t ask;
    ask_init(&ask, LONG + 7, 5, n_tokens);
    ask.params.grammar = &f->gate.grammar;
    return submit(&f->c, &ask);
}

/* A stream gets a token in every step while a prompt is embedded 16 rows at a time. */
TEST(embedding_rides_in_the_steps_of_a_stream) {
    fixture_t f;
    pooler_t p;
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_rows_max = 17;
    setup(&f, &session);
    pooler_init(&p, f.model, KR_DTYPE_F16);
    out_t *gated = submit_gated(&f, 60);
    gate_wait(&f.gate, 1);
    embed_init(&f.ask, LONG, 160, KR_POOLING_MEAN);
    out_t *out = submit(&f.c, &f.ask);
    gate_permit(&f.gate, 10);
    gate_wait(&f.gate, 11); /* in the eleventh step; nine that have ended held rows of both */
    const kr_engine_stats_t stats = engine_stats(f.engine, NULL);
    assert_int_equal(stats.n_rows_decode, 9);
    assert_int_equal(stats.n_rows_prefill, 5 + 9 * 16);
    assert_int_equal(stats.n_running, 2);
    gate_open(&f.gate);
    assert_embedding(&p, &f.ask, out);
    wait_over(gated);
    assert_int_equal(gated->n_tokens, 60);
    out_destroy(out);
    out_destroy(gated);
    pooler_deinit(&p);
    teardown(&f);
}

/* The stream is older and grows by a page every 16 steps, the prompt by one in each: when it has 29
 * of its 30 pages the pool of 32 is full, and the stream's fourth page is taken from it. */
TEST(embedding_begins_anew_after_preemption) {
    fixture_t f;
    pooler_t p;
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_rows_max = 17;
    setup(&f, &session);
    pooler_init(&p, f.model, KR_DTYPE_F16);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", kv_bytes_of(f.model, 512), NULL), KR_OK);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        f.gate.is_open = false;
        f.gate.n_arrived = 0;
        out_t *gated = submit_gated(&f, 100);
        gate_wait(&f.gate, 1);
        embed_init(&f.ask, LONG, 480, pooling);
        f.ask.params.cache_salt = (uint64_t)pooling;
        out_t *out = submit(&f.c, &f.ask);
        gate_open(&f.gate);
        assert_embedding(&p, &f.ask, out);
        assert_true(stats_of(out).n_preempted > 0);
        wait_over(gated);
        assert_int_equal(gated->n_tokens, 100);
        out_destroy(out);
        out_destroy(gated);
    }
    pooler_deinit(&p);
    teardown(&f);
}

TEST(embedding_is_cancelled_in_its_prompt) {
    fixture_t f;
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_rows_max = 17;
    setup(&f, &session);
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        f.gate.is_open = false;
        f.gate.n_arrived = 0;
        const uint64_t n_before = engine_stats(f.engine, NULL).n_rows_prefill;
        out_t *gated = submit_gated(&f, 100);
        gate_wait(&f.gate, 1);
        embed_init(&f.ask, LONG, 400, pooling);
        f.ask.params.cache_salt = (uint64_t)pooling;
        out_t *out = submit(&f.c, &f.ask);
        gate_permit(&f.gate, 3);
        gate_wait(&f.gate, 4);
        kr_request_cancel(out->request);
        gate_open(&f.gate);
        wait_over(out);
        assert_status(out->status, KR_E_CANCELLED);
        assert_null(out->embedding);
        wait_over(gated);
        assert_true(engine_stats(f.engine, NULL).n_rows_prefill - n_before < 400);
        out_destroy(out);
        out_destroy(gated);
    }
    teardown(&f);
}

TEST(embedding_ends_at_its_deadline) {
    fixture_t f;
    setup(&f, NULL);
    out_t *gated = submit_gated(&f, 4);
    gate_wait(&f.gate, 1);
    embed_init(&f.ask, LONG, 400, KR_POOLING_MEAN);
    f.ask.params.deadline_ms = 1;
    out_t *out = submit(&f.c, &f.ask);
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do clock_gettime(CLOCK_MONOTONIC, &now); /* the deadline passes while the step thread waits */
    while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 2);
    gate_open(&f.gate);
    wait_over(out);
    assert_status(out->status, KR_E_TIMEOUT);
    assert_null(out->embedding);
    wait_over(gated);
    out_destroy(out);
    out_destroy(gated);
    teardown(&f);
}

/* ---- numbers that are not finite ------------------------------------------------------------ */

TEST(embedding_of_values_that_are_not_finite_ends_alone) {
    static kr_token_t bad[60], good[60];
    fixture_t f;
    pooler_t p;
    setup_model(&f, open_with_nan(), NULL, NULL);
    pooler_init(&p, f.model, KR_DTYPE_F16);
    for (int i = 0; i < 60; i++) {
        good[i] = 100 + i;
        bad[i] = i == 20 ? NAN_TOKEN : good[i];
    }
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        ask_t lost, kept;
        embed_init(&lost, bad, 60, pooling);
        embed_init(&kept, good, 60, pooling);
        out_t *outs[] = {submit(&f.c, &lost), submit(&f.c, &kept), submit(&f.c, &lost)};
        assert_embedding(&p, &kept, outs[1]);
        for (uint32_t i = 0; i < 3; i++) {
            wait_over(outs[i]);
            if (i != 1) assert_status(outs[i]->status, KR_E_NUMERIC);
            if (i != 1) assert_null(outs[i]->embedding);
            out_destroy(outs[i]);
        }
        /* What the failed ones computed is not cached. */
        kr_explain_t explain;
        kr_explain_init(&explain);
        ask_init(&lost, bad, 60, 1);
        assert_status(kr_engine_explain(f.engine, &lost.params, &explain, NULL), KR_OK);
        assert_true(explain.n_cached <= 16);
    }
    pooler_deinit(&p);
    teardown(&f);
}
