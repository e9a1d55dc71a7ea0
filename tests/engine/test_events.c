/* test_events.c: how events come: by callback and by polling, the descriptor, credits, and what a
 * callback may do. */
#include <poll.h>

#include "engine_util.h"

static const kr_token_t PROMPT[] = {5, 17, 80, 33, 120, 7, 9, 200, 31,
                                    14, 15, 16, 90, 91, 92, 93, 4};
#define N_PROMPT (uint32_t)(sizeof PROMPT / sizeof PROMPT[0])

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    ask_t ask;
} fixture_t;

static void setup(fixture_t *f, bool polls) {
    memset(f, 0, sizeof *f);
    collector_init(&f->c);
    f->model = open_tiny("llama");
    f->engine = make_engine(polls ? NULL : &f->c, NULL);
    f->c.engine = f->engine;
    add_model(f->engine, "tiny", f->model, NULL);
    ask_init(&f->ask, PROMPT, N_PROMPT, 20);
}

static void teardown(fixture_t *f) {
    kr_engine_destroy(f->engine);
    kr_model_close(f->model);
}

/* ---- polling -------------------------------------------------------------------------------- */

#define CAPACITY 8
static uint32_t poll_once(fixture_t *f, uint32_t capacity, uint32_t timeout_ms) {
    kr_event_t events[CAPACITY];
    uint32_t n = 99;
    for (uint32_t i = 0; i < CAPACITY; i++) events[i].struct_bytes = sizeof events[i];
    assert_status(kr_engine_poll(f->engine, events, capacity, timeout_ms, &n), KR_OK);
    assert_true(n <= capacity);
    for (uint32_t i = 0; i < n; i++) collect(&events[i], &f->c);
    return n;
}

static void poll_over(fixture_t *f, const out_t *out, uint32_t capacity) {
    while (!out->is_over) poll_once(f, capacity, UINT32_MAX);
    if (out->broken) fail_msg("%s", out->broken);
}

TEST(poll_gives_the_events_of_a_callback) {
    fixture_t f, g;
    setup(&f, true);
    setup(&g, false);
    for (uint32_t capacity = 1; capacity <= CAPACITY; capacity += 7) {
        out_t *polled = submit(&f.c, &f.ask), *called = submit(&g.c, &g.ask);
        poll_over(&f, polled, capacity);
        wait_over(called);
        assert_same(&polled->choices[0], &called->choices[0]);
        assert_int_equal(polled->n_tokens, 20);
        assert_int_equal(poll_once(&f, 1, 0), 0);
        out_destroy(polled);
        out_destroy(called);
    }
    teardown(&f);
    teardown(&g);
}

TEST(poll_returns_nothing_when_the_time_is_over) {
    fixture_t f;
    setup(&f, true);
    assert_int_equal(poll_once(&f, 4, 0), 0);
    assert_int_equal(poll_once(&f, 4, 3), 0);
    teardown(&f);
}

TEST(poll_refuses_bad_arguments) {
    fixture_t f, g;
    kr_event_t events[2];
    uint32_t n = 7;
    int32_t fd = -5;
    setup(&f, true);
    setup(&g, false);
    events[0].struct_bytes = sizeof events[0];
    events[1].struct_bytes = 3;
    assert_status(kr_engine_poll(NULL, events, 1, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_engine_poll(f.engine, NULL, 1, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_engine_poll(f.engine, events, 0, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_engine_poll(f.engine, events, 1, 0, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_poll(f.engine, events, 2, 0, &n), KR_E_INVALID_ARG);
    assert_status(kr_engine_poll(g.engine, events, 1, 0, &n), KR_E_INVALID_ARG);
    assert_int_equal(n, 7);
    assert_status(kr_engine_event_fd(g.engine, &fd), KR_E_INVALID_ARG);
    assert_status(kr_engine_event_fd(f.engine, NULL), KR_E_INVALID_ARG);
    assert_int_equal(fd, -5);
    events[0].struct_bytes = events[1].struct_bytes = (uint32_t)sizeof(events[0]) - 8;
    assert_status(kr_engine_poll(f.engine, events, 2, 0, &n), KR_E_UNSUPPORTED);
    assert_status(kr_engine_poll(f.engine, events, 1, 0, &n), KR_OK); /* no array, no step */
    teardown(&f);
    teardown(&g);
}

typedef struct poller_s {
    fixture_t *f;
    kr_status_t status;
    atomic_int is_done;
} poller_t;

static void *poll_in_thread(void *arg) {
    poller_t *p = arg;
    kr_event_t event;
    uint32_t n = 0;
    event.struct_bytes = sizeof event;
    p->status = kr_engine_poll(p->f->engine, &event, 1, UINT32_MAX, &n);
    if (p->status == KR_OK && n == 1) collect(&event, &p->f->c);
    atomic_store(&p->is_done, 1);
    return NULL;
}

/* Two threads poll without a time limit: one of them is told that the other does, and that one gets
 * the first event. */
TEST(poll_is_for_one_thread_at_a_time) {
    fixture_t f;
    poller_t pollers[2] = {{.f = &f}, {.f = &f}};
    pthread_t threads[2];
    setup(&f, true);
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, poll_in_thread, &pollers[i]);
    while (!atomic_load(&pollers[0].is_done) && !atomic_load(&pollers[1].is_done)) sched_yield();
    out_t *out = submit(&f.c, &f.ask);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_int_equal((pollers[0].status == KR_OK) + (pollers[1].status == KR_OK), 1);
    assert_int_equal((pollers[0].status == KR_E_BUSY) + (pollers[1].status == KR_E_BUSY), 1);
    poll_over(&f, out, 3);
    assert_int_equal(out->n_tokens, 20);
    out_destroy(out);
    teardown(&f);
}

TEST(event_fd_is_readable_exactly_while_events_wait) {
    fixture_t f;
    int32_t fd = -1;
    setup(&f, true);
    assert_status(kr_engine_event_fd(f.engine, &fd), KR_OK);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    for (int round = 0; round < 2; round++) {
        out_t *out = submit(&f.c, &f.ask);
        while (!out->is_over) {
            assert_int_equal(poll(&p, 1, 120000), 1);
            assert_true(poll_once(&f, CAPACITY, 0) > 0);
        }
        assert_int_equal(poll(&p, 1, 0), 0);
        out_destroy(out);
    }
    teardown(&f);
}

/* Nobody polls: the request stops at its window, others go on, and nothing is lost. */
TEST(events_that_nobody_takes_pause_their_request_alone) {
    fixture_t f;
    setup(&f, true);
    ask_init(&f.ask, PROMPT, N_PROMPT, 400);
    out_t *slow = submit(&f.c, &f.ask);
    while (stats_of(slow).n_generated < 256) sched_yield();
    ask_init(&f.ask, PROMPT, 3, 30);
    out_t *other = submit(&f.c, &f.ask);
    while (!stats_of(other).is_ended) sched_yield();
    assert_int_equal(stats_of(slow).n_generated, 256);
    poll_over(&f, slow, CAPACITY);
    poll_over(&f, other, CAPACITY);
    assert_int_equal(slow->n_tokens, 400);
    assert_int_equal(other->n_tokens, 30);
    out_destroy(slow);
    out_destroy(other);
    teardown(&f);
}

TEST(destroy_frees_events_that_nobody_took) {
    fixture_t f;
    setup(&f, true);
    out_t *taken = submit(&f.c, &f.ask), *left = submit(&f.c, &f.ask), *running;
    poll_once(&f, 1, UINT32_MAX);
    while (!stats_of(left).is_ended) sched_yield();
    ask_init(&f.ask, PROMPT, N_PROMPT, 450);
    running = submit(&f.c, &f.ask);
    kr_engine_destroy(f.engine);
    assert_int_equal(stats_of(running).is_ended, 1);
    assert_status(stats_of(left).status, KR_OK);
    out_destroy(taken);
    out_destroy(left);
    out_destroy(running);
    kr_model_close(f.model);
}

/* Events and handles outlive the model that they came from. */
TEST(events_of_a_removed_model_are_still_there) {
    fixture_t f;
    setup(&f, true);
    out_t *done = submit(&f.c, &f.ask);
    while (!stats_of(done).is_ended) sched_yield();
    f.ask.params.credits = 3; /* still there when the model goes */
    out_t *ended = submit(&f.c, &f.ask);
    while (stats_of(ended).n_generated < 3) sched_yield();
    assert_status(kr_engine_remove_model(f.engine, "tiny", NULL), KR_OK);
    assert_int_equal(engine_stats(f.engine, NULL).n_models, 0);
    poll_over(&f, done, 3);
    poll_over(&f, ended, 3);
    assert_status(done->status, KR_OK);
    assert_int_equal(done->n_tokens, 20);
    assert_status(ended->status, KR_E_SHUTTING_DOWN);
    assert_int_equal(ended->n_tokens, 3);
    assert_status(try_submit(f.engine, &f.ask, NULL), KR_E_NOT_FOUND);
    out_destroy(done);
    out_destroy(ended);
    teardown(&f);
}

/* ---- memory --------------------------------------------------------------------------------- */

static uint64_t allocs_at[2];

static void note_allocs(collector_t *c, const kr_event_t *event) {
    const out_t *out = event->user;
    kr_memory_usage_t usage;
    (void)c;
    kr_memory_usage_init(&usage);
    if (event->type != KR_EVENT_TOKEN || (out->n_tokens != 30 && out->n_tokens != 200)) return;
    if (kr_memory_usage(&usage) == KR_OK) allocs_at[out->n_tokens == 200] = usage.n_allocs;
}

TEST(steps_of_a_running_request_allocate_nothing) {
    fixture_t f;
    setup(&f, false);
    f.c.hook = note_allocs;
    ask_init(&f.ask, PROMPT, N_PROMPT, 220);
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_true(allocs_at[0] > 0);
    assert_int_equal(allocs_at[0], allocs_at[1]);
    out_destroy(out);
    teardown(&f);
}

static uint64_t heap_bytes_now(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

/* 512 places for events with 20 log-probabilities each are over 100 KiB. */
TEST(a_handle_that_is_held_keeps_no_events) {
    fixture_t f;
    setup(&f, false);
    ask_init(&f.ask, PROMPT, N_PROMPT, 300);
    f.ask.sampler.n_logprobs = 20;
    out_t *out = out_create(&f.c, 1);
    const uint64_t before = heap_bytes_now();
    assert_status(try_submit(f.engine, &f.ask, out), KR_OK);
    wait_over(out);
    assert_status(kr_engine_drain(f.engine, 120000), KR_OK);
    assert_true(heap_bytes_now() < before + (8 << 10));
    assert_int_equal(stats_of(out).n_generated, 300);
    out_destroy(out);
    teardown(&f);
}

/* A long text that a stop string held back comes at once, and is freed when nobody takes it. */
TEST(long_texts_are_carried_whole) {
    static out_choice_t wanted;
    fixture_t f, g;
    solo_t solo;
    kr_logit_bias_t bias = {0, 100.0f};
    char stop[101], byte = 0;
    const char *stops[] = {stop};
    setup(&f, false);
    setup(&g, true);
    solo_init(&solo, f.model, KR_DTYPE_F16);
    for (size_t n = 0; bias.token < 320; bias.token++) { /* a token that is one letter */
        if (kr_model_detokenize(f.model, &bias.token, 1, 0, &byte, 1, &n, NULL) == KR_OK &&
            n == 1 && byte >= 'a' && byte <= 'z') break;
    }
    assert_true(bias.token < 320);
    memset(stop, byte, 99);
    stop[99] = '!';
    stop[100] = 0;
    ask_init(&f.ask, PROMPT, N_PROMPT, 90);
    f.ask.params.stops = stops;
    f.ask.params.n_stops = 1;
    f.ask.sampler.logit_bias = &bias;
    f.ask.sampler.n_logit_bias = 1;
    solo_run(&solo, &f.ask, 0, &wanted);
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_same(&out->choices[0], &wanted);
    assert_int_equal(out->choices[0].n_text, 90); /* all of it with the CHOICE */
    out_t *left = submit(&g.c, &f.ask);
    while (!stats_of(left).is_ended) sched_yield();
    out_destroy(out);
    solo_deinit(&solo);
    teardown(&g);
    out_destroy(left);
    teardown(&f);
}

/* ---- credits -------------------------------------------------------------------------------- */

TEST(credits_bound_the_tokens_exactly) {
    fixture_t f;
    setup(&f, false);
    f.ask.params.credits = 3;
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, out->n_tokens == 3);
    ask_init(&f.ask, PROMPT, 4, 40); /* another request runs through meanwhile */
    out_t *other = submit(&f.c, &f.ask);
    wait_over(other);
    assert_int_equal(stats_of(out).n_generated, 3);
    assert_status(kr_request_add_credits(out->request, 5), KR_OK);
    WAIT_FOR(&f.c, out->n_tokens == 8);
    assert_status(kr_request_add_credits(out->request, 1 << 19), KR_OK);
    assert_status(kr_request_add_credits(out->request, 1 << 20), KR_E_INVALID_ARG);
    assert_status(kr_request_add_credits(out->request, UINT32_MAX), KR_E_INVALID_ARG);
    wait_over(out);
    assert_int_equal(out->n_tokens, 20);
    assert_status(kr_request_add_credits(other->request, 1), KR_E_INVALID_ARG);
    assert_status(kr_request_add_credits(NULL, 1), KR_E_INVALID_ARG);
    out_destroy(out);
    out_destroy(other);
    teardown(&f);
}

/* The greatest gap of a request that has a pause of 1.5 s for lack of credits. */
static double gap_beside_a_pause(fixture_t *f) {
    f->ask.params.n_choices = 2;
    f->ask.params.credits = 5;
    out_t *out = submit(&f->c, &f->ask);
    WAIT_FOR(&f->c, out->n_tokens == 5);
    usleep(1500000);
    assert_status(kr_request_add_credits(out->request, 100), KR_OK);
    wait_over(out);
    const kr_request_stats_t stats = stats_of(out);
    assert_int_equal(stats.n_generated, 40);
    assert_true(stats.gap_max_ms > 0);
    assert_true(stats.decode_ms > 1400); /* the pause did happen */
    assert_int_equal(stats.n_stalls > 0, stats.gap_max_ms > 1000);
    out_destroy(out);
    return stats.gap_max_ms;
}

/* The pause is the consumer's own: it is no gap. Steps of the tiny model take far less, unless the
 * machine has stood still: then once more. */
TEST(credits_that_are_missing_count_as_no_stall) {
    fixture_t f;
    kr_engine_params_t params;
    setup(&f, false);
    kr_engine_destroy(f.engine);
    kr_engine_params_init(&params);
    params.max_stall_ms = 1000;
    f.engine = make_engine(&f.c, &params);
    add_model(f.engine, "tiny", f.model, NULL);
    bool is_short = false;
    for (int i = 0; i < 10 && !is_short; i++) is_short = gap_beside_a_pause(&f) < 1000;
    assert_true(is_short);
    teardown(&f);
}

TEST(credits_are_shared_by_choices) {
    fixture_t f;
    setup(&f, false);
    f.ask.params.credits = 5;
    f.ask.params.n_choices = 3;
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, out->n_tokens == 5);
    for (uint32_t n = 6; n <= 60; n++) {
        assert_status(kr_request_add_credits(out->request, 1), KR_OK);
        WAIT_FOR(&f.c, out->n_tokens == n);
    }
    wait_over(out);
    assert_int_equal(out->n_tokens, 60);
    out_destroy(out);
    teardown(&f);
}

/* Of one credit at a time, those that run have it first: nobody waits for a place while others hold
 * one without credits. */
TEST(credits_go_to_the_choices_that_run) {
    fixture_t f;
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.n_seqs = 2;
    setup(&f, false);
    add_model(f.engine, "narrow", f.model, &params);
    f.ask.params.model = "narrow";
    f.ask.params.credits = 1;
    f.ask.params.n_choices = 5;
    out_t *out = submit(&f.c, &f.ask);
    for (uint32_t n = 1; n <= 100; n++) {
        uint32_t n_open = 0;
        WAIT_FOR(&f.c, out->n_tokens == n);
        pthread_mutex_lock(&f.c.mutex);
        for (uint32_t i = 0; i < 5; i++) {
            const out_choice_t *choice = &out->choices[i];
            n_open += choice->n_tokens > 0 && choice->n_tokens < 20;
        }
        pthread_mutex_unlock(&f.c.mutex);
        assert_true(n_open <= 2);
        if (n < 100) assert_status(kr_request_add_credits(out->request, 1), KR_OK);
    }
    wait_over(out);
    out_destroy(out);
    teardown(&f);
}

/* More tokens than a ring holds, several choices, a consumer slower than the engine. */
TEST(events_of_many_choices_pass_through_a_bounded_ring) {
    static out_choice_t wanted;
    fixture_t f;
    solo_t solo;
    setup(&f, false);
    solo_init(&solo, f.model, KR_DTYPE_F16);
    ask_init(&f.ask, PROMPT, N_PROMPT, 100);
    f.ask.params.n_choices = 16;
    f.ask.sampler.temperature = 1.0f;
    f.ask.sampler.seed = 77;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    for (uint32_t i = 0; i < 16; i++) {
        solo_run(&solo, &f.ask, i, &wanted);
        assert_same(&out->choices[i], &wanted);
    }
    assert_true(memcmp(out->choices[0].tokens, out->choices[1].tokens, 400) != 0);
    out_destroy(out);
    solo_deinit(&solo);
    teardown(&f);
}

/* ---- inside callbacks ----------------------------------------------------------------------- */

static out_t *chain[10];
static uint32_t n_chain;

/* Each DONE submits the next request and cancels one that has ended. */
static void submit_next(collector_t *c, const kr_event_t *event) {
    fixture_t *f = c->hook_user;
    if (event->type != KR_EVENT_DONE || n_chain == 10) return;
    kr_request_cancel(event->request);
    out_t *next = out_create(c, 1);
    f->ask.params.user = next;
    if (kr_engine_submit(c->engine, &f->ask.params, &next->request, NULL) == KR_OK) {
        pthread_mutex_lock(&c->mutex);
        chain[n_chain++] = next;
        pthread_mutex_unlock(&c->mutex);
    }
}

TEST(callbacks_may_submit) {
    fixture_t f;
    setup(&f, false);
    n_chain = 0;
    f.c.hook_user = &f;
    f.c.hook = submit_next;
    out_t *first = submit(&f.c, &f.ask);
    WAIT_FOR(&f.c, f.c.n_over == 11);
    wait_over(first);
    for (uint32_t i = 0; i < 10; i++) {
        wait_over(chain[i]);
        assert_same(&chain[i]->choices[0], &first->choices[0]);
        out_destroy(chain[i]);
    }
    out_destroy(first);
    teardown(&f);
}

static void cancel_at_third(collector_t *c, const kr_event_t *event) {
    const out_t *out = event->user;
    (void)c;
    if (event->type == KR_EVENT_TOKEN && out->n_tokens == 3) kr_request_cancel(event->request);
}

TEST(callbacks_may_cancel) {
    fixture_t f;
    setup(&f, false);
    f.c.hook = cancel_at_third;
    ask_init(&f.ask, PROMPT, N_PROMPT, 450); /* over a window: it cannot finish first */
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_E_CANCELLED);
    assert_true(out->n_tokens >= 3 && out->n_tokens < 450);
    assert_status(stats_of(out).status, KR_E_CANCELLED);
    out_destroy(out);
    teardown(&f);
}

static kr_status_t drained, stats_status, removed, added;

static void call_everything(collector_t *c, const kr_event_t *event) {
    fixture_t *f = c->hook_user;
    kr_engine_stats_t stats;
    kr_explain_t explain;
    if (event->type != KR_EVENT_CHOICE) return;
    drained = kr_engine_drain(c->engine, 1000);
    kr_engine_stats_init(&stats);
    kr_explain_init(&explain);
    stats_status = kr_engine_stats(c->engine, NULL, &stats);
    if (stats_status == KR_OK) {
        stats_status = kr_engine_explain(c->engine, &f->ask.params, &explain, NULL);
    }
    added = kr_engine_add_model(c->engine, "second", f->model, NULL, NULL);
    removed = kr_engine_remove_model(c->engine, "second", NULL);
    kr_request_release(event->request); /* the test's handle */
}

TEST(callbacks_may_call_all_but_drain) {
    fixture_t f;
    setup(&f, false);
    f.c.hook_user = &f;
    f.c.hook = call_everything;
    f.ask.params.n_tokens_max = 4;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    out->request = NULL; /* released inside */
    assert_status(drained, KR_E_BUSY);
    assert_status(stats_status, KR_OK);
    assert_status(added, KR_OK);
    assert_status(removed, KR_OK);
    out_destroy(out);
    teardown(&f);
}

static void destroy_inside(collector_t *c, const kr_event_t *event) {
    const out_t *out = event->user;
    if (out->n_tokens != 5 || event->type != KR_EVENT_TOKEN) return;
    c->hook = NULL;
    kr_engine_destroy(c->engine);
}

/* The engine ends behind the callback; every other request still gets its last event. */
TEST(callbacks_may_destroy_the_engine) {
    fixture_t f;
    out_t *outs[6];
    setup(&f, false);
    ask_init(&f.ask, PROMPT, N_PROMPT, 450);
    for (int i = 0; i < 6; i++) outs[i] = submit(&f.c, &f.ask);
    pthread_mutex_lock(&f.c.mutex);
    f.c.hook = destroy_inside;
    pthread_mutex_unlock(&f.c.mutex);
    ask_init(&f.ask, PROMPT, 3, 100);
    out_t *trigger = out_create(&f.c, 1);
    f.ask.params.user = trigger;
    /* Another request may have set it off already: then this one is refused. */
    const kr_status_t status = kr_engine_submit(f.engine, &f.ask.params, NULL, NULL);
    assert_true(status == KR_OK || status == KR_E_SHUTTING_DOWN);
    for (int i = 0; i < 6; i++) {
        wait_over(outs[i]);
        assert_true(outs[i]->status == KR_OK || outs[i]->status == KR_E_SHUTTING_DOWN);
    }
    if (status == KR_OK) wait_over(trigger);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(stats_of(outs[i]).is_ended, 1);
        kr_request_cancel(outs[i]->request);
        out_destroy(outs[i]);
    }
    out_destroy(trigger);
    kr_model_close(f.model);
}
