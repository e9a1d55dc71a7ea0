/* test_life.c: the ends of requests, models and engines: cancel wherever a request is, deadlines,
 * draining, destruction in flight, models that come and go, pools that change their size. A gate in
 * the step thread (engine_util.h) fixes what has happened when. */
#include "engine_util.h"

#define N_LONG 400
static kr_token_t LONG[N_LONG];

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    gate_t gate;
    ask_t ask;
} fixture_t;

static void setup(fixture_t *f, const kr_engine_params_t *params,
                  const kr_session_params_t *session) {
    memset(f, 0, sizeof *f);
    for (int i = 0; i < N_LONG; i++) LONG[i] = (i * 37 + 11) % 320;
    collector_init(&f->c);
    gate_init(&f->gate);
    f->model = open_tiny("llama");
    f->engine = make_engine(&f->c, params);
    add_model(f->engine, "tiny", f->model, session);
    ask_init(&f->ask, LONG, 20, 30);
}

static void teardown(fixture_t *f) {
    kr_engine_destroy(f->engine);
    kr_model_close(f->model);
}

static out_t *submit_gated(fixture_t *f, uint32_t n_tokens) {
    ask_t ask;
    ask_init(&ask, LONG, 5, n_tokens);
    ask.params.grammar = &f->gate.grammar;
    return submit(&f->c, &ask);
}

static void assert_idle(kr_engine_t engine) {
    const kr_engine_stats_t stats = engine_stats(engine, NULL);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.kv_bytes_used, 0);
}

/* ---- cancel --------------------------------------------------------------------------------- */

TEST(cancel_in_the_queue) {
    fixture_t f;
    setup(&f, NULL, NULL);
    out_t *gated = submit_gated(&f, 4);
    gate_wait(&f.gate, 1);
    out_t *out = submit(&f.c, &f.ask);
    assert_int_equal(engine_stats(f.engine, NULL).n_waiting, 1);
    kr_request_cancel(out->request);
    kr_request_cancel(out->request);
    gate_open(&f.gate);
    wait_over(out);
    assert_status(out->status, KR_E_CANCELLED);
    assert_int_equal(out->n_tokens, 0);
    wait_over(gated);
    assert_int_equal(gated->n_tokens, 4);
    assert_idle(f.engine);
    out_destroy(out);
    out_destroy(gated);
    teardown(&f);
}

/* Prompt rows come 16 at a time; the gate lets one step pass after the other. */
TEST(cancel_in_the_prompt) {
    fixture_t f;
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_rows_max = 17;
    setup(&f, NULL, &session);
    out_t *gated = submit_gated(&f, 100);
    gate_wait(&f.gate, 1);
    ask_init(&f.ask, LONG, N_LONG, 8);
    out_t *out = submit(&f.c, &f.ask);
    gate_permit(&f.gate, 3);
    gate_wait(&f.gate, 4); /* three steps held rows of the prompt, 51 of 400 at most */
    kr_request_cancel(out->request);
    gate_open(&f.gate);
    wait_over(out);
    assert_status(out->status, KR_E_CANCELLED);
    assert_int_equal(out->n_tokens, 0);
    assert_true(engine_stats(f.engine, NULL).n_rows_prefill < N_LONG);
    wait_over(gated);
    assert_int_equal(gated->n_tokens, 100);
    assert_idle(f.engine);
    out_destroy(out);
    out_destroy(gated);
    teardown(&f);
}

TEST(cancel_while_decoding) {
    fixture_t f;
    setup(&f, NULL, NULL);
    f.ask.params.credits = 7;
    f.ask.params.n_choices = 2;
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, out->n_tokens == 7);
    kr_request_cancel(out->request);
    wait_over(out);
    assert_status(out->status, KR_E_CANCELLED);
    assert_int_equal(out->n_tokens, 7);
    assert_idle(f.engine);
    kr_request_cancel(out->request); /* without effect */
    kr_request_cancel(NULL);
    assert_status(stats_of(out).status, KR_E_CANCELLED);
    out_destroy(out);
    teardown(&f);
}

/* Cancels from another thread at any moment: each request ends once, and all pages come back. */
TEST(cancel_at_any_moment) {
    fixture_t f;
    setup(&f, NULL, NULL);
    for (uint32_t round = 0; round < 60; round++) {
        out_t *outs[4];
        for (uint32_t i = 0; i < 4; i++) {
            ask_init(&f.ask, LONG + i, 10 + round * 6, 40);
            outs[i] = submit(&f.c, &f.ask);
        }
        const uint32_t n_events = round * 2;
        WAIT_FOR(&f.c, f.c.n_events >= n_events);
        for (uint32_t i = 0; i < 4; i += 1 + round % 2) kr_request_cancel(outs[i]->request);
        for (uint32_t i = 0; i < 4; i++) {
            wait_over(outs[i]);
            assert_true(outs[i]->status == KR_OK || outs[i]->status == KR_E_CANCELLED);
            if (outs[i]->status == KR_OK) assert_int_equal(outs[i]->n_tokens, 40);
            out_destroy(outs[i]);
        }
        f.c.n_events = 0;
        assert_idle(f.engine);
    }
    teardown(&f);
}

/* ---- time ----------------------------------------------------------------------------------- */

static void pass_ms(uint64_t ms) {
    const struct timespec time = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

TEST(deadline_ends_a_request_wherever_it_is) {
    fixture_t f;
    setup(&f, NULL, NULL);
    out_t *gated = submit_gated(&f, 4);
    gate_wait(&f.gate, 1);
    f.ask.params.deadline_ms = 1;
    out_t *queued = submit(&f.c, &f.ask);
    pass_ms(3);
    gate_open(&f.gate);
    wait_over(queued);
    assert_status(queued->status, KR_E_TIMEOUT);
    assert_int_equal(queued->n_tokens, 0);
    wait_over(gated);
    f.ask.params.credits = 2; /* it runs, and then waits for credits that never come */
    f.ask.params.deadline_ms = 200;
    out_t *running = submit(&f.c, &f.ask);
    wait_over(running);
    assert_status(running->status, KR_E_TIMEOUT);
    assert_true(running->n_tokens <= 2);
    assert_idle(f.engine);
    out_destroy(queued);
    out_destroy(running);
    out_destroy(gated);
    teardown(&f);
}

TEST(queue_wait_is_bounded) {
    fixture_t f;
    kr_engine_params_t params;
    kr_engine_params_init(&params);
    params.queue_wait_ms_max = 1500;
    setup(&f, &params, NULL);
    out_t *gated = submit_gated(&f, 4);
    gate_wait(&f.gate, 1);
    out_t *out = submit(&f.c, &f.ask);
    pass_ms(1600);
    gate_open(&f.gate);
    wait_over(out);
    assert_status(out->status, KR_E_BUSY);
    assert_int_equal(out->n_tokens, 0);
    wait_over(gated);
    out_destroy(out);
    out_destroy(gated);
    teardown(&f);
}

/* One sequence, three choices: two of them wait for longer than the queue allows, but not their
 * request, which runs. */
TEST(queue_wait_is_over_when_the_first_choice_runs) {
    fixture_t f;
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_engine_params_init(&params);
    kr_session_params_init(&session);
    params.queue_wait_ms_max = 1500;
    session.n_seqs = 1;
    setup(&f, &params, &session);
    f.ask.params.n_choices = 3;
    f.ask.params.credits = 1;
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, out->n_tokens == 1 || out->is_over);
    pass_ms(1600);
    assert_status(kr_request_add_credits(out->request, 1000), KR_OK);
    wait_over(out);
    assert_status(out->status, KR_OK);
    assert_int_equal(out->n_tokens, 90);
    out_destroy(out);
    teardown(&f);
}

/* ---- drain and destroy ---------------------------------------------------------------------- */

TEST(drain_refuses_and_waits) {
    fixture_t f;
    setup(&f, NULL, NULL);
    out_t *gated = submit_gated(&f, 10);
    gate_wait(&f.gate, 1);
    assert_status(kr_engine_drain(f.engine, 0), KR_E_TIMEOUT);
    assert_status(kr_engine_drain(f.engine, 2), KR_E_TIMEOUT);
    out_t *refused = out_create(&f.c, 1);
    assert_status(try_submit(f.engine, &f.ask, refused), KR_E_SHUTTING_DOWN);
    assert_null(refused->request);
    assert_status(kr_engine_add_model(f.engine, "late", f.model, NULL, NULL), KR_E_SHUTTING_DOWN);
    assert_int_equal(engine_stats(f.engine, NULL).is_draining, 1);
    gate_open(&f.gate);
    assert_status(kr_engine_drain(f.engine, 120000), KR_OK);
    assert_true(gated->is_over); /* with a callback: delivered, not only computed */
    assert_status(gated->status, KR_OK);
    assert_int_equal(gated->n_tokens, 10);
    out_destroy(gated);
    out_destroy(refused);
    teardown(&f);
}

TEST(destroy_ends_requests_in_flight) {
    for (uint32_t round = 0; round < 12; round++) {
        fixture_t f;
        out_t *outs[20];
        setup(&f, NULL, NULL);
        for (uint32_t i = 0; i < 20; i++) {
            ask_init(&f.ask, LONG, 1 + 17 * i, 100);
            f.ask.params.n_choices = 1 + i % 3;
            outs[i] = submit(&f.c, &f.ask);
        }
        WAIT_FOR(&f.c, f.c.n_events >= round * 25);
        kr_engine_destroy(f.engine);
        for (uint32_t i = 0; i < 20; i++) {
            assert_true(outs[i]->is_over && !outs[i]->broken);
            assert_true(outs[i]->status == KR_OK || outs[i]->status == KR_E_SHUTTING_DOWN);
            assert_status(stats_of(outs[i]).status, outs[i]->status); /* handles outlive it */
            kr_request_cancel(outs[i]->request);
            out_destroy(outs[i]);
        }
        kr_model_close(f.model);
    }
    kr_engine_destroy(NULL);
}

TEST(destroy_of_an_engine_that_never_ran) {
    collector_t c;
    collector_init(&c);
    kr_engine_destroy(make_engine(&c, NULL));
    kr_engine_destroy(make_engine(NULL, NULL));
}

/* ---- models --------------------------------------------------------------------------------- */

TEST(models_come_and_go_while_others_generate) {
    static out_choice_t wanted;
    fixture_t f;
    solo_t solo;
    setup(&f, NULL, NULL);
    kr_model_t other = open_tiny("gemma3");
    solo_init(&solo, other, KR_DTYPE_F16);
    ask_init(&f.ask, LONG, 100, 60);
    out_t *outs[10], *others[10];
    for (uint32_t round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < 10; i++) {
            f.ask.params.model = i % 2 ? "tiny" : NULL;
            outs[i] = submit(&f.c, &f.ask);
        }
        assert_status(kr_engine_add_model(f.engine, "tiny", other, NULL, NULL), KR_E_EXISTS);
        add_model(f.engine, "other", other, NULL);
        f.ask.params.model = "other";
        for (uint32_t i = 0; i < 10; i++) others[i] = submit(&f.c, &f.ask);
        assert_int_equal(engine_stats(f.engine, NULL).n_models, 2);
        if (round == 0) solo_run(&solo, &f.ask, 0, &wanted);
        if (round % 2 == 0) wait_over(others[9]);
        kr_error_t error;
        kr_error_init(&error);
        assert_status(kr_engine_remove_model(f.engine, "other", &error), KR_OK);
        assert_status(kr_engine_remove_model(f.engine, "other", &error), KR_E_NOT_FOUND);
        assert_status(try_submit(f.engine, &f.ask, NULL), KR_E_NOT_FOUND);
        for (uint32_t i = 0; i < 10; i++) {
            wait_over(others[i]);
            if (others[i]->status == KR_OK) assert_same(&others[i]->choices[0], &wanted);
            else assert_status(others[i]->status, KR_E_SHUTTING_DOWN);
            out_destroy(others[i]);
            wait_over(outs[i]);
            assert_status(outs[i]->status, KR_OK);
            assert_same(&outs[i]->choices[0], &outs[0]->choices[0]);
        }
        for (uint32_t i = 0; i < 10; i++) out_destroy(outs[i]);
    }
    solo_deinit(&solo);
    kr_model_close(other);
    teardown(&f);
}

TEST(models_share_one_ledger) {
    fixture_t f;
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_engine_params_init(&params);
    kr_session_params_init(&session);
    kr_model_t model = open_tiny("llama");
    const uint64_t unit = kv_bytes_of(model, 512);
    params.kv_bytes_max = 3 * unit;
    session.n_seqs = 2; /* at most 2 units */
    setup(&f, &params, &session);
    assert_int_equal(engine_stats(f.engine, "tiny").kv_bytes_max, 2 * unit);
    session.kv_bytes_max = unit + unit / 2;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kr_engine_add_model(f.engine, "b", model, &session, &error), KR_E_LIMIT);
    assert_string_equal(error.param, "kv_bytes_max");
    session.kv_bytes_max = 1; /* not one token */
    kr_error_init(&error);
    assert_status(kr_engine_add_model(f.engine, "b", model, &session, &error), KR_E_LIMIT);
    assert_string_equal(error.param, "kv_bytes_max");
    assert_status(kr_engine_resize_kv(f.engine, "tiny", 1, NULL), KR_E_LIMIT);
    session.kv_bytes_max = 0; /* what is left */
    add_model(f.engine, "b", model, &session);
    assert_int_equal(engine_stats(f.engine, "b").kv_bytes_max, unit);
    assert_status(kr_engine_add_model(f.engine, "c", model, &session, NULL), KR_E_LIMIT);
    assert_status(kr_engine_resize_kv(f.engine, "b", unit + unit / 2, NULL), KR_E_LIMIT);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", unit, NULL), KR_OK);
    assert_status(kr_engine_resize_kv(f.engine, "b", 2 * unit, NULL), KR_OK);
    assert_int_equal(engine_stats(f.engine, NULL).kv_bytes_max, 3 * unit);
    assert_status(kr_engine_remove_model(f.engine, "b", NULL), KR_OK);
    assert_status(kr_engine_resize_kv(f.engine, "b", unit, NULL), KR_E_NOT_FOUND);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", 2 * unit, NULL), KR_OK);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", 2 * unit + 1, NULL), KR_E_LIMIT);
    kr_model_close(model);
    teardown(&f);
}

TEST(counters_of_an_engine_outlive_its_models) {
    fixture_t f;
    setup(&f, NULL, NULL);
    f.ask.segment.count = 40;
    f.ask.params.n_tokens_max = 8;
    for (int i = 0; i < 2; i++) { /* the second one finds its prefix in the cache */
        out_t *out = submit(&f.c, &f.ask);
        wait_over(out);
        assert_status(out->status, KR_OK);
        out_destroy(out);
    }
    const kr_engine_stats_t before = engine_stats(f.engine, NULL);
    assert_true(before.n_steps >= 16 && before.n_rows_decode >= 14 && before.n_rows_prefill >= 40);
    assert_true(before.n_tokens_cached > 0);
    assert_status(kr_engine_remove_model(f.engine, "tiny", NULL), KR_OK);
    const kr_engine_stats_t after = engine_stats(f.engine, NULL);
    assert_int_equal(after.n_models, 0);
    assert_int_equal(after.kv_bytes_max, 0);
    assert_int_equal(after.n_steps, before.n_steps);
    assert_int_equal(after.n_rows_prefill, before.n_rows_prefill);
    assert_int_equal(after.n_rows_decode, before.n_rows_decode);
    assert_int_equal(after.n_tokens_cached, before.n_tokens_cached);
    add_model(f.engine, "tiny", f.model, NULL);
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    out_destroy(out);
    assert_true(engine_stats(f.engine, NULL).n_steps >= before.n_steps + 8);
    teardown(&f);
}

TEST(an_engine_has_at_most_16_models) {
    fixture_t f;
    char name[8];
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_seqs = 1;
    session.n_ctx = 32;
    setup(&f, NULL, &session);
    for (int i = 1; i < 16; i++) {
        snprintf(name, sizeof name, "m%d", i);
        add_model(f.engine, name, f.model, &session);
    }
    assert_status(kr_engine_add_model(f.engine, "more", f.model, &session, NULL), KR_E_LIMIT);
    assert_int_equal(engine_stats(f.engine, NULL).n_models, 16);
    f.ask.params.model = "m15";
    f.ask.segment.count = 5;
    f.ask.params.n_tokens_max = 3;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    out_destroy(out);
    teardown(&f);
}

/* ---- resize --------------------------------------------------------------------------------- */

/* A pool that shrinks and grows under running requests changes no token. */
TEST(resize_preempts_and_changes_no_token) {
    static out_choice_t wanted[12];
    fixture_t f;
    solo_t solo;
    setup(&f, NULL, NULL);
    solo_init(&solo, f.model, KR_DTYPE_F16);
    const uint64_t unit = kv_bytes_of(f.model, 256);
    const uint64_t full = engine_stats(f.engine, "tiny").kv_bytes_max;
    ask_t asks[12];
    out_t *outs[12];
    for (uint32_t i = 0; i < 12; i++) {
        ask_init(&asks[i], LONG + i, 20 + i * 10, 100);
        solo_run(&solo, &asks[i], 0, &wanted[i]);
    }
    for (uint32_t round = 0; round < 4; round++) {
        /* All of them run and hold more than the smaller pool has. */
        for (uint32_t i = 0; i < 12; i++) {
            asks[i].params.credits = 20;
            outs[i] = submit(&f.c, &asks[i]);
        }
        for (uint32_t i = 0; i < 12; i++) WAIT_FOR(&f.c, outs[i]->n_tokens == 20);
        assert_status(kr_engine_resize_kv(f.engine, "tiny", unit, NULL), KR_OK);
        assert_true(engine_stats(f.engine, "tiny").n_preempted > round);
        for (uint32_t i = 0; i < 12; i++) {
            assert_status(kr_request_add_credits(outs[i]->request, 80), KR_OK);
        }
        for (uint32_t i = 0; i < 8; i++) {
            pthread_mutex_lock(&f.c.mutex);
            const uint32_t n_events = f.c.n_events + 50;
            pthread_mutex_unlock(&f.c.mutex);
            WAIT_FOR(&f.c, f.c.n_events >= n_events || f.c.n_over == 12);
            assert_status(kr_engine_resize_kv(f.engine, "tiny", i % 2 ? full : unit, NULL), KR_OK);
        }
        for (uint32_t i = 0; i < 12; i++) {
            wait_over(outs[i]);
            assert_status(outs[i]->status, KR_OK);
            assert_same(&outs[i]->choices[0], &wanted[i]);
            out_destroy(outs[i]);
        }
        pthread_mutex_lock(&f.c.mutex);
        f.c.n_over = 0;
        pthread_mutex_unlock(&f.c.mutex);
    }
    assert_idle(f.engine);
    solo_deinit(&solo);
    teardown(&f);
}

TEST(resize_refuses_what_a_running_request_could_not_live_with) {
    fixture_t f;
    setup(&f, NULL, NULL);
    ask_init(&f.ask, LONG, 300, 100);
    f.ask.params.credits = 2;
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, out->n_tokens == 2);
    const uint64_t before = engine_stats(f.engine, "tiny").kv_bytes_max;
    assert_status(kr_engine_resize_kv(f.engine, "tiny", kv_bytes_of(f.model, 256), NULL),
                  KR_E_LIMIT);
    assert_int_equal(engine_stats(f.engine, "tiny").kv_bytes_max, before);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", 0, NULL), KR_E_INVALID_ARG);
    kr_request_cancel(out->request);
    wait_over(out);
    assert_status(kr_engine_resize_kv(f.engine, "tiny", kv_bytes_of(f.model, 256), NULL), KR_OK);
    assert_status(try_submit(f.engine, &f.ask, NULL), KR_E_LIMIT);
    out_destroy(out);
    teardown(&f);
}
