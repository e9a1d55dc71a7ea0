/* test_cancel.c: a forward pass that nobody wants any more stops between two layers, and leaves
 * nothing behind. A gate in the model's forward function holds a pass, so that a test can cancel in
 * the middle of it. */
#include "engine_util.h"
#include "model/model.h"

#define N_LONG 400
#define ROUNDS 120
static kr_token_t LONG[N_LONG];

/* One for the process: a forward function has no argument of ours. */
static struct pass_s {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    const kri_arch_t *arch; /* whose passes these are */
    kri_arch_t gated;
    bool is_open;           /* passes are not held */
    bool holds_late;        /* behind the last layer instead of before the first */
    uint32_t n_permits, n_arrived, n_complete, n_stopped;
    uint32_t n_seqs;        /* of the pass that arrived last */
} PASS = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void pass_hold(uint32_t n_seqs) {
    pthread_mutex_lock(&PASS.mutex);
    PASS.n_arrived++;
    PASS.n_seqs = n_seqs;
    pthread_cond_broadcast(&PASS.changed);
    while (!PASS.is_open && PASS.n_permits == 0) pthread_cond_wait(&PASS.changed, &PASS.mutex);
    if (!PASS.is_open) PASS.n_permits--;
    pthread_mutex_unlock(&PASS.mutex);
}

static void pass_over(kr_status_t status) {
    pthread_mutex_lock(&PASS.mutex);
    if (status == KR_OK) PASS.n_complete++;
    if (status == KR_E_CANCELLED) PASS.n_stopped++;
    pthread_cond_broadcast(&PASS.changed);
    pthread_mutex_unlock(&PASS.mutex);
}

/* Every thread of the team comes here; thread 0 alone stands at the gate, the others wait for it at
 * the first barrier, or behind the last. */
static kr_status_t gated_forward(const struct kr_model_s *model, const kri_exec_t *exec,
                                 const kri_state_t *state, float *logits) {
    const bool is_first = exec->thread_index == 0;
    if (is_first && !PASS.holds_late) pass_hold(exec->step->n_seqs);
    const kr_status_t status = PASS.arch->forward(model, exec, state, logits);
    if (is_first && PASS.holds_late) pass_hold(exec->step->n_seqs);
    if (is_first) pass_over(status);
    return status;
}

static void pass_permit(uint32_t n) {
    pthread_mutex_lock(&PASS.mutex);
    PASS.n_permits += n;
    pthread_cond_broadcast(&PASS.changed);
    pthread_mutex_unlock(&PASS.mutex);
}

static void pass_open(void) {
    pthread_mutex_lock(&PASS.mutex);
    PASS.is_open = true;
    pthread_cond_broadcast(&PASS.changed);
    pthread_mutex_unlock(&PASS.mutex);
}

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    solo_t solo;
    ask_t ask;
} fixture_t;

static void setup(fixture_t *f, uint32_t n_rows_max, bool holds_late) {
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_rows_max = n_rows_max;
    memset(f, 0, sizeof *f);
    for (int i = 0; i < N_LONG; i++) LONG[i] = (i * 37 + 11) % 320;
    collector_init(&f->c);
    f->model = open_tiny("llama");
    solo_init(&f->solo, f->model, KR_DTYPE_F16);
    PASS.arch = f->model->arch;
    PASS.gated = *PASS.arch;
    PASS.gated.forward = gated_forward;
    PASS.is_open = false;
    PASS.holds_late = holds_late;
    PASS.n_permits = PASS.n_arrived = PASS.n_complete = PASS.n_stopped = 0;
    f->model->arch = &PASS.gated;
    f->engine = make_engine(&f->c, NULL);
    add_model(f->engine, "tiny", f->model, &session);
    ask_init(&f->ask, LONG, N_LONG, 8);
}

static void teardown(fixture_t *f) {
    kr_engine_destroy(f->engine);
    solo_deinit(&f->solo);
    kr_model_close(f->model);
}

static void assert_idle(kr_engine_t engine) {
    const kr_engine_stats_t stats = engine_stats(engine, NULL);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.kv_bytes_used, 0);
}

static void wait_cancelled(out_t *out) {
    wait_over(out);
    assert_status(out->status, KR_E_CANCELLED);
    assert_int_equal(stats_of(out).status, KR_E_CANCELLED);
}

/* The gate is open: the request again gives what it gives alone. */
static void assert_right(fixture_t *f, uint32_t n_cached) {
    out_choice_t alone;
    out_t *out = submit(&f->c, &f->ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    assert_int_equal(stats_of(out).n_cached, n_cached);
    solo_run(&f->solo, &f->ask, 0, &alone);
    assert_same(&out->choices[0], &alone);
    out_destroy(out);
}

TEST(a_prompt_is_cancelled_in_its_pass) {
    fixture_t f;
    kr_explain_t explain;
    setup(&f, 512, false);
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&PASS, PASS.n_arrived == 1);
    kr_request_cancel(out->request);
    pass_permit(1);
    wait_cancelled(out);
    assert_int_equal(out->n_tokens, 0);
    assert_int_equal(PASS.n_stopped, 1);
    assert_int_equal(PASS.n_complete, 0);
    const kr_engine_stats_t stats = engine_stats(f.engine, NULL);
    assert_int_equal(stats.n_rows_prefill, 0);
    assert_int_equal(stats.n_steps, 0);
    assert_int_equal(stats.kv_bytes_cached, 0);
    kr_explain_init(&explain);
    assert_status(kr_engine_explain(f.engine, &f.ask.params, &explain, NULL), KR_OK);
    assert_true(explain.ttft_ms == 0.0); /* nothing was learned from it */
    assert_int_equal(explain.n_cached, 0);
    assert_idle(f.engine);
    pass_open();
    assert_right(&f, 0);
    out_destroy(out);
    teardown(&f);
}

/* What earlier steps computed stays in the cache, the step that was stopped leaves nothing. */
TEST(a_prompt_is_cancelled_in_its_second_pass) {
    fixture_t f;
    setup(&f, 64, false);
    out_t *out = submit(&f.c, &f.ask);
    pass_permit(1);
    WAIT_FOR(&PASS, PASS.n_arrived == 2);
    kr_request_cancel(out->request);
    pass_permit(1);
    wait_cancelled(out);
    assert_int_equal(PASS.n_complete, 1);
    assert_int_equal(PASS.n_stopped, 1);
    const kr_engine_stats_t stats = engine_stats(f.engine, NULL);
    assert_int_equal(stats.n_rows_prefill, 64);
    assert_int_equal(stats.kv_bytes_cached, kv_bytes_of(f.model, 64));
    assert_idle(f.engine);
    pass_open();
    assert_right(&f, 64);
    out_destroy(out);
    teardown(&f);
}

/* A is decoding, B's prompt is in the same pass, which is held on return. */
static void hold_two(fixture_t *f, out_t **a, out_t **b) {
    ask_init(&f->ask, LONG, 20, 30);
    *a = submit(&f->c, &f->ask);
    WAIT_FOR(&PASS, PASS.n_arrived == 1);
    ask_init(&f->ask, LONG + 1, 100, 8);
    *b = submit(&f->c, &f->ask);
    pass_permit(1);
    WAIT_FOR(&PASS, PASS.n_arrived == 2);
    assert_int_equal(PASS.n_seqs, 2);
}

TEST(a_pass_that_another_needs_goes_on) {
    fixture_t f;
    out_t *a, *b;
    out_choice_t alone;
    setup(&f, 512, false);
    hold_two(&f, &a, &b);
    kr_request_cancel(b->request);
    pass_open();
    wait_cancelled(b);
    wait_over(a);
    assert_status(a->status, KR_OK);
    assert_int_equal(PASS.n_stopped, 0);
    assert_true(engine_stats(f.engine, NULL).n_rows_prefill > 20);
    ask_init(&f.ask, LONG, 20, 30);
    solo_run(&f.solo, &f.ask, 0, &alone);
    assert_same(&a->choices[0], &alone);
    assert_idle(f.engine);
    out_destroy(a);
    out_destroy(b);
    teardown(&f);
}

TEST(a_pass_stops_with_the_last_who_needs_it) {
    fixture_t f;
    out_t *a, *b;
    setup(&f, 512, false);
    hold_two(&f, &a, &b);
    kr_request_cancel(a->request);
    kr_request_cancel(a->request);
    kr_request_cancel(b->request);
    pass_open();
    wait_cancelled(a);
    wait_cancelled(b);
    assert_int_equal(a->n_tokens, 1);
    assert_int_equal(PASS.n_stopped, 1);
    assert_int_equal(PASS.n_complete, 1);
    assert_int_equal(engine_stats(f.engine, NULL).n_rows_prefill, 20);
    assert_idle(f.engine);
    assert_right(&f, 0);
    out_destroy(a);
    out_destroy(b);
    teardown(&f);
}

/* A request that comes while a pass is being stopped is not touched by it. */
TEST(a_new_request_runs_after_a_stopped_pass) {
    fixture_t f;
    out_choice_t alone;
    setup(&f, 512, false);
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&PASS, PASS.n_arrived == 1);
    kr_request_cancel(out->request);
    out_t *next = submit(&f.c, &f.ask);
    pass_open();
    wait_cancelled(out);
    wait_over(next);
    assert_status(next->status, KR_OK);
    assert_int_equal(PASS.n_stopped, 1);
    solo_run(&f.solo, &f.ask, 0, &alone);
    assert_same(&next->choices[0], &alone);
    out_destroy(out);
    out_destroy(next);
    teardown(&f);
}

TEST(all_choices_and_embeddings_stop) {
    fixture_t f;
    setup(&f, 512, false);
    f.ask.params.n_choices = 2;
    out_t *out = submit(&f.c, &f.ask);
    pass_permit(2);
    WAIT_FOR(&PASS, PASS.n_arrived == 3);
    assert_int_equal(PASS.n_seqs, 2);
    kr_request_cancel(out->request);
    pass_permit(1);
    wait_cancelled(out);
    assert_int_equal(PASS.n_stopped, 1);
    kr_request_params_init(&f.ask.params);
    f.ask.params.segments = &f.ask.segment;
    f.ask.params.n_segments = 1;
    f.ask.params.pooling = KR_POOLING_MEAN;
    out_t *embedding = submit(&f.c, &f.ask);
    WAIT_FOR(&PASS, PASS.n_arrived == 4);
    kr_request_cancel(embedding->request);
    pass_permit(1);
    wait_cancelled(embedding);
    assert_null(embedding->embedding);
    assert_int_equal(PASS.n_stopped, 2);
    assert_idle(f.engine);
    out_destroy(out);
    out_destroy(embedding);
    teardown(&f);
}

/* Behind the last layer a pass is complete: what it computed counts, and the request ends. */
TEST(a_cancel_behind_the_last_layer_finds_a_complete_pass) {
    fixture_t f;
    setup(&f, 512, true);
    out_t *out = submit(&f.c, &f.ask);
    WAIT_FOR(&PASS, PASS.n_arrived == 1);
    kr_request_cancel(out->request);
    pass_permit(1);
    wait_cancelled(out);
    assert_int_equal(PASS.n_complete, 1);
    assert_int_equal(PASS.n_stopped, 0);
    assert_int_equal(engine_stats(f.engine, NULL).n_rows_prefill, N_LONG);
    assert_idle(f.engine);
    pass_open();
    assert_right(&f, (N_LONG - 1) / 16 * 16);
    out_destroy(out);
    teardown(&f);
}

/* At any moment of a pass, beside another request or alone: others give what they give alone. */
TEST(cancels_race_with_passes) {
    fixture_t f;
    out_choice_t alone;
    setup(&f, 512, false);
    pass_open();
    ask_init(&f.ask, LONG, 30, 12);
    solo_run(&f.solo, &f.ask, 0, &alone);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        out_t *stays = NULL;
        const uint32_t n_arrived = PASS.n_arrived;
        if (round % 3 == 0) {
            ask_init(&f.ask, LONG, 30, 12);
            stays = submit(&f.c, &f.ask);
        }
        ask_init(&f.ask, LONG + round % 7, 300 + round % 50, 4);
        f.ask.params.cache_salt = round;
        out_t *goes = submit(&f.c, &f.ask);
        if (round % 2 == 0) WAIT_FOR(&PASS, PASS.n_arrived > n_arrived);
        kr_request_cancel(goes->request);
        wait_over(goes);
        assert_true(goes->status == KR_OK || goes->status == KR_E_CANCELLED);
        if (stays) {
            wait_over(stays);
            assert_status(stays->status, KR_OK);
            assert_same(&stays->choices[0], &alone);
            out_destroy(stays);
        }
        out_destroy(goes);
        assert_idle(f.engine);
    }
    teardown(&f);
}
