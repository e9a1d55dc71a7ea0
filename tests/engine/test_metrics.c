/* test_metrics.c: every row of metrics.def is moved by an engine at work (`load` by its host), so a
 * row that nobody feeds fails here; counts of tokens are exact also when prompts and streams share
 * steps. */
#include "engine_util.h"

#define N_VOCAB 320u

typedef struct metrics_s {
    collector_t c;
    kr_model_t model;
    kr_telemetry_t telemetry;
    kr_token_t prompt[400];
} metrics_t;

static kr_telemetry_report_t report_of(kr_telemetry_t telemetry, const char *name) {
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    assert_status(kr_telemetry_report(telemetry, name, &report), KR_OK);
    return report;
}

/* False in a build without telemetry. */
static bool setup(metrics_t *m, uint32_t n_seqs, uint32_t n_kv_tokens) {
    memset(m, 0, sizeof *m);
    if (kr_telemetry_create(&m->telemetry) == KR_E_UNSUPPORTED) return false;
    for (uint32_t i = 0; i < 400; i++) m->prompt[i] = (kr_token_t)((i * 53 + 7) % N_VOCAB);
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_engine_params_init(&params);
    kr_session_params_init(&session);
    collector_init(&m->c);
    params.telemetry = m->telemetry;
    m->model = open_tiny("llama");
    session.n_ctx = 256;
    session.n_seqs = n_seqs;
    session.n_rows_max = 64;
    if (n_kv_tokens > 0) session.kv_bytes_max = kv_bytes_of(m->model, n_kv_tokens);
    m->c.engine = make_engine(&m->c, &params);
    add_model(m->c.engine, "tiny", m->model, &session);
    return true;
}

static void teardown(metrics_t *m) {
    kr_engine_destroy(m->c.engine);
    kr_model_close(m->model);
    kr_telemetry_destroy(m->telemetry);
}

/* Waits until a gauge is or is not 0; it is set a little after the events of its step. */
static void wait_gauge(metrics_t *m, const char *name, bool is_zero) {
    for (int ms = 0; (report_of(m->telemetry, name).value == 0.0) != is_zero; ms++) {
        if (ms == 120000) fail_msg("%s stays %s0", name, is_zero ? "over " : "");
        usleep(1000);
    }
}

static kr_status_t refuse_mask(void *user, uint32_t choice, uint32_t *mask, size_t n_words) {
    (void)user, (void)choice, (void)mask, (void)n_words;
    return KR_E_BAD_SCHEMA;
}

static kr_status_t allow_all(void *user, uint32_t choice, uint32_t *mask, size_t n_words) {
    (void)user, (void)choice, (void)mask, (void)n_words;
    return KR_OK;
}

static kr_status_t accept_any(void *user, uint32_t choice, kr_token_t token) {
    (void)user, (void)choice, (void)token;
    return KR_OK;
}

static out_t *submit_messages(metrics_t *m) {
    static const kr_message_t message = {"user", "Say something.", 14};
    ask_t ask;
    ask_init(&ask, m->prompt, 1, 5);
    ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = &message};
    return submit(&m->c, &ask);
}

static out_t *submit_text(metrics_t *m) {
    ask_t ask;
    ask_init(&ask, m->prompt, 1, 5);
    ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .count = 11, .text = "hello world"};
    return submit(&m->c, &ask);
}

static out_t *submit_embedding(metrics_t *m, int32_t pooling) {
    ask_t ask;
    ask_init(&ask, m->prompt, 40, 0);
    ask.params.sampler = NULL;
    ask.params.ignore_end = 0;
    ask.params.pooling = pooling;
    return submit(&m->c, &ask);
}

static void run_all_kinds(metrics_t *m) {
    const kr_grammar_t refusing = {refuse_mask, accept_any, NULL};
    const kr_grammar_t allowing = {allow_all, accept_any, NULL};
    ask_t ask;
    out_t *outs[9];
    uint32_t n = 0;
    gate_t gate;
    gate_init(&gate);
    /* Two have the sequences, so a third one has to queue. The first one is held at its second
     * token: all three are seen by then. */
    ask_init(&ask, m->prompt, 40, 20);
    ask.params.credits = 2;
    for (int i = 0; i < 3; i++) {
        ask.params.grammar = i == 0 ? &gate.grammar : NULL;
        outs[n++] = submit(&m->c, &ask);
        if (i == 0) gate_wait(&gate, 1);
    }
    gate_permit(&gate, 1);
    gate_wait(&gate, 2);
    wait_gauge(m, "requests_running", false);
    wait_gauge(m, "requests_waiting", false);
    wait_gauge(m, "kv_bytes_used", false);
    wait_gauge(m, "kv_usage", false);
    assert_true(report_of(m->telemetry, "kv_usage").value <= 1.0);
    gate_open(&gate);
    kr_request_cancel(outs[0]->request);
    for (int i = 1; i < 3; i++) assert_status(kr_request_add_credits(outs[i]->request, 100), KR_OK);
    for (uint32_t i = 0; i < n; i++) wait_over(outs[i]);
    ask_init(&ask, m->prompt, 40, 5); /* its prefix is cached by now */
    outs[n++] = submit(&m->c, &ask);
    ask.params.grammar = &refusing;
    outs[n++] = submit(&m->c, &ask);
    ask.params.grammar = &allowing;
    outs[n++] = submit(&m->c, &ask);
    outs[n++] = submit_messages(m);
    outs[n++] = submit_text(m);
    outs[n++] = submit_embedding(m, KR_POOLING_MEAN);
    for (uint32_t i = 0; i < n; i++) wait_over(outs[i]);
    for (uint32_t i = 0; i < n; i++) out_destroy(outs[i]);
}

/* Two that would grow to 250 tokens each in a pool for 320. Credits hold both after their first
 * tokens, so however late the second one is submitted, the first cannot have ended before. */
static void run_preempted(metrics_t *m) {
    ask_t ask;
    out_t *outs[2];
    for (int i = 0; i < 2; i++) {
        ask_init(&ask, m->prompt + 100 + i * 50, 100, 150);
        ask.params.credits = 1;
        outs[i] = submit(&m->c, &ask);
    }
    for (int i = 0; i < 2; i++) WAIT_FOR(&m->c, outs[i]->n_tokens > 0);
    for (int i = 0; i < 2; i++) {
        assert_status(kr_request_add_credits(outs[i]->request, 149), KR_OK);
    }
    for (int i = 0; i < 2; i++) wait_over(outs[i]);
    for (int i = 0; i < 2; i++) out_destroy(outs[i]);
}

TEST(metrics_all_move) {
    metrics_t m;
    if (!setup(&m, 2, 320)) SKIP("built with KR_TELEMETRY=OFF");
    run_all_kinds(&m);
    run_preempted(&m);
    assert_status(kr_telemetry_record(m.telemetry, "load", 1.0), KR_OK); /* the host's */
    const uint64_t shape = 1000;
    kr_tensor_t tensor = NULL;
    assert_status(kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL), KR_OK);
    kr_tensor_release(tensor);
    assert_status(kr_engine_drain(m.c.engine, 120000), KR_OK);
    /* Seen above while requests were held; now nothing runs. */
    static const char *const idle[] = {"requests_running", "requests_waiting", "kv_bytes_used",
                                       "kv_usage"};
    for (size_t k = 0; k < 4; k++) wait_gauge(&m, idle[k], true);
    for (uint32_t i = 0; kr_telemetry_name(i) != NULL; i++) {
        const char *name = kr_telemetry_name(i);
        const kr_telemetry_report_t report = report_of(m.telemetry, name);
        bool is_idle = false;
        for (size_t k = 0; k < 4; k++) is_idle |= strcmp(name, idle[k]) == 0;
        if (!is_idle && report.count == 0 && report.value == 0.0) fail_msg("%s stays 0", name);
    }
    assert_int_equal(report_of(m.telemetry, "requests_cancelled").count, 1);
    assert_int_equal(report_of(m.telemetry, "requests_failed").count, 1);
    assert_int_equal(report_of(m.telemetry, "requests_finished").count, 9);
    assert_int_equal(report_of(m.telemetry, "requests_started").count, 11);
    teardown(&m);
}

/* A stream is held at its second token while 40 requests come in: they are taken 16 at a time, with
 * a step of the stream between. */
TEST(metrics_show_that_a_flood_is_taken_in_parts_while_streams_run) {
    enum { N = 40 };
    metrics_t m;
    if (!setup(&m, 4, 0)) SKIP("built with KR_TELEMETRY=OFF");
    gate_t gate;
    gate_init(&gate);
    ask_t ask;
    ask_init(&ask, m.prompt, 5, 20);
    ask.params.grammar = &gate.grammar;
    out_t *stream = submit(&m.c, &ask), *outs[N];
    gate_wait(&gate, 1);
    gate_permit(&gate, 1);
    gate_wait(&gate, 2);
    for (uint32_t i = 0; i < N; i++) {
        ask_init(&ask, m.prompt + i, 17, 3);
        outs[i] = submit(&m.c, &ask);
    }
    static const uint32_t n_taken[] = {1, 17, 33, 41};
    for (uint32_t i = 0; i < 4; i++) {
        gate_wait(&gate, 2 + i);
        assert_int_equal(report_of(m.telemetry, "cache_lookup").count, n_taken[i]);
        gate_permit(&gate, 1);
    }
    gate_open(&gate);
    wait_over(stream);
    out_destroy(stream);
    for (uint32_t i = 0; i < N; i++) {
        wait_over(outs[i]);
        assert_status(outs[i]->status, KR_OK);
        out_destroy(outs[i]);
    }
    teardown(&m);
}

/* Short streams beside long prompts: most steps hold rows of both kinds. */
TEST(metrics_count_tokens_exactly_when_steps_are_mixed) {
    enum { N = 12 };
    metrics_t m;
    if (!setup(&m, 4, 0)) SKIP("built with KR_TELEMETRY=OFF");
    ask_t ask;
    out_t *outs[N];
    uint64_t n_generated = 0, n_computed = 0;
    for (uint32_t i = 0; i < N; i++) {
        ask_init(&ask, m.prompt + i, 17 + i * 15, 10 + i);
        ask.params.cache_salt = i + 1; /* nothing is shared */
        outs[i] = submit(&m.c, &ask);
    }
    for (uint32_t i = 0; i < N; i++) {
        wait_over(outs[i]);
        assert_status(outs[i]->status, KR_OK);
        assert_int_equal(outs[i]->n_tokens, 10 + i);
        n_generated += 10 + i;
        n_computed += 17 + i * 15;
        out_destroy(outs[i]);
    }
    assert_int_equal(report_of(m.telemetry, "tokens_generated").count, n_generated);
    assert_int_equal(report_of(m.telemetry, "tokens_prompt").count, n_computed);
    assert_int_equal(report_of(m.telemetry, "tokens_looked_up").count, n_computed);
    assert_int_equal(report_of(m.telemetry, "tokens_cached").count, 0);
    assert_int_equal(report_of(m.telemetry, "inter_token").count, n_generated - N);
    assert_int_equal(report_of(m.telemetry, "ttft").count, N);
    teardown(&m);
}

/* An embedding is no generation: its rows count, and only a lookup that was made. */
TEST(metrics_of_embeddings) {
    metrics_t m;
    if (!setup(&m, 4, 0)) SKIP("built with KR_TELEMETRY=OFF");
    for (int32_t pooling = KR_POOLING_MEAN; pooling <= KR_POOLING_LAST; pooling++) {
        out_t *out = submit_embedding(&m, pooling);
        wait_over(out);
        assert_status(out->status, KR_OK);
        out_destroy(out);
    }
    assert_int_equal(report_of(m.telemetry, "embed").count, 2);
    assert_true(report_of(m.telemetry, "embed").max_ms > 0);
    assert_int_equal(report_of(m.telemetry, "requests_finished").count, 2);
    assert_int_equal(report_of(m.telemetry, "queue").count, 2);
    assert_int_equal(report_of(m.telemetry, "tokens_prompt").count, 40 + 8);
    assert_int_equal(report_of(m.telemetry, "tokens_looked_up").count, 40);
    assert_int_equal(report_of(m.telemetry, "tokens_cached").count, 32);
    assert_int_equal(report_of(m.telemetry, "cache_lookup").count, 1);
    static const char *const others[] = {"generate", "ttft", "request_prefill", "request_decode",
                                         "inter_token", "sample", "tokens_generated"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_int_equal(report_of(m.telemetry, others[i]).count, 0);
    }
    teardown(&m);
}

/* ---- life ----------------------------------------------------------------------------------- */

static uint64_t heap_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

static void destroy_both(collector_t *c, const kr_event_t *event) {
    if (event->type != KR_EVENT_TOKEN) return;
    c->hook = NULL;
    kr_engine_destroy(c->engine);
    kr_telemetry_destroy(c->hook_user);
}

/* The engine still records while it ends behind the callback; its memory and that of the telemetry
 * are given back after that. Who reads freed memory is caught by the build with a sanitizer. */
TEST(metrics_outlive_their_owner_until_the_engine_is_gone) {
    const uint64_t before = heap_bytes();
    kr_telemetry_t other = NULL;
    if (kr_telemetry_create(&other) != KR_OK) SKIP("built with KR_TELEMETRY=OFF");
    const uint64_t n_bytes = heap_bytes() - before;
    kr_telemetry_destroy(other);
    assert_int_equal(heap_bytes(), before);
    metrics_t m;
    ask_t ask;
    assert_true(setup(&m, 2, 0));
    m.c.hook_user = m.telemetry;
    m.c.hook = destroy_both;
    ask_init(&ask, m.prompt, 40, 100);
    out_t *out = submit(&m.c, &ask);
    wait_over(out);
    assert_true(out->status == KR_OK || out->status == KR_E_SHUTTING_DOWN);
    out_destroy(out);
    kr_model_close(m.model);
    for (int ms = 0; heap_bytes() > before + n_bytes / 2; ms++) {
        if (ms == 120000) fail_msg("%llu bytes are left",
                                   (unsigned long long)(heap_bytes() - before));
        usleep(1000);
    }
}
