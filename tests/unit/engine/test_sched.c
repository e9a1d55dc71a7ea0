/* test_sched.c: each statement of docs/decisions/0007-engine.md about order, admission, preemption,
 * choices and the shape of a step. The simulation (tests/engine) covers their combinations. */
#include "base/alloc.h"
#include "sched_rig.h"

#define STEP_NS (2 * MS)

static rig_t *roomy(void) {
    return rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 512, .n_rows_max = 64, .queue_max = 32,
                                     .max_stall_ms = 100});
}

static rig_t *tight_with_cache(void) {
    return rig_create((rig_params_t){.n_seqs = 4, .n_ctx = 512, .n_rows_max = 64, .queue_max = 32,
                                     .max_stall_ms = 100, .n_pages = 12, .prefix_cache = true});
}

/* ---- the shape of a step -------------------------------------------------------------------- */

TEST(sched_plan_is_empty_without_tasks) {
    rig_t *r = roomy();
    assert_false(rig_plan(r));
    assert_true(kri_sched_wakeup_ns(r->sched) == UINT64_MAX);
    assert_null(kri_sched_expired(r->sched, UINT64_MAX - 1));
    rig_destroy(r);
}

TEST(sched_plan_has_decode_rows_before_prompt_rows) {
    rig_t *r = roomy();
    kri_task_t *a = rig_submit(r, rig_task(r, 20, 10)), *b = rig_submit(r, rig_task(r, 30, 10));
    assert_true(rig_step(r, STEP_NS)); /* 50 rows */
    assert_int_equal(a->n_tokens, 21);
    assert_int_equal(b->n_tokens, 31);
    kri_task_t *c = rig_submit(r, rig_task(r, 40, 10));
    assert_true(rig_plan(r));
    assert_int_equal(r->plan.n_rows_decode, 2);
    assert_int_equal(rig_rows(r, a), 1);
    assert_int_equal(rig_rows(r, b), 1);
    assert_ptr_equal(r->plan.tasks[2], c);
    assert_int_equal(r->plan.step.seqs[2].row_begin, 2);
    assert_true(rig_rows(r, c) >= 16);
    assert_int_equal(r->plan.step.tokens[0], r->plan.tasks[0]->tokens[a == r->plan.tasks[0] ? 20
                                                                                            : 30]);
    rig_commit(r, STEP_NS);
    rig_destroy(r);
}

TEST(sched_prompt_takes_all_rows_without_streams_and_ends_at_pages) {
    rig_t *r = roomy();
    kri_task_t *t = rig_submit(r, rig_task(r, 150, 10));
    assert_true(rig_plan(r));
    assert_int_equal(rig_rows(r, t), 64);
    assert_int_equal(r->plan.step.n_out_rows, 0);
    rig_commit(r, 5000 * MS); /* however long it takes */
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t->n_computed, 128);
    assert_true(rig_plan(r));
    assert_int_equal(rig_rows(r, t), 22);
    assert_int_equal(r->plan.step.n_out_rows, 1);
    assert_int_equal(r->plan.step.out_rows[0], 21);
    assert_ptr_equal(r->plan.out_tasks[0], t);
    rig_commit(r, STEP_NS);
    rig_destroy(r);
}

/* With streams a prompt advances by a page even where the decode rows alone are over the bound. */
TEST(sched_prompt_advances_by_a_page_when_decode_is_over_the_bound) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 512, .n_rows_max = 64,
                                         .queue_max = 32, .max_stall_ms = 10});
    rig_submit(r, rig_task(r, 20, 200));
    for (int i = 0; i < 20; i++) assert_true(rig_step(r, 50 * MS));
    kri_task_t *t = rig_submit(r, rig_task(r, 200, 10));
    for (uint32_t i = 1; i <= 5; i++) {
        assert_true(rig_plan(r));
        assert_int_equal(r->plan.n_rows_decode, 1);
        assert_int_equal(rig_rows(r, t), 16);
        rig_commit(r, 70 * MS);
        assert_int_equal(t->n_computed, 16 * i);
    }
    rig_destroy(r);
}

TEST(sched_rotates_decode_rows_that_do_not_fit) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 512, .n_rows_max = 3,
                                         .queue_max = 32, .max_stall_ms = 100});
    kri_task_t *t[6];
    for (int i = 0; i < 6; i++) t[i] = rig_submit(r, rig_task(r, 2, 400));
    for (int i = 0; i < 200; i++) assert_true(rig_step(r, STEP_NS));
    uint32_t least = UINT32_MAX, most = 0;
    for (int i = 0; i < 6; i++) {
        least = t[i]->n_tokens < least ? t[i]->n_tokens : least;
        most = t[i]->n_tokens > most ? t[i]->n_tokens : most;
    }
    assert_true(least > 80 && most - least < 20);
    rig_destroy(r);
}

TEST(sched_short_prompt_does_not_wait_behind_a_long_one) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 8000, .n_rows_max = 64,
                                         .queue_max = 32, .max_stall_ms = 100});
    kri_task_t *big = rig_submit(r, rig_task(r, 6000, 10));
    assert_true(rig_step(r, STEP_NS));
    kri_task_t *small = rig_submit(r, rig_task(r, 40, 10));
    uint32_t n = 0;
    for (; small->n_tokens == 40; n++) assert_true(rig_step(r, STEP_NS));
    assert_true(n <= 4);
    assert_true(big->n_computed >= 64 + n * 32); /* which goes on meanwhile */
    rig_destroy(r);
}

/* ---- order ---------------------------------------------------------------------------------- */

/* One sequence: the order of admissions is the order of starts. */
static rig_t *one_at_a_time(void) {
    return rig_create((rig_params_t){.n_seqs = 1, .n_ctx = 64, .n_rows_max = 64, .queue_max = 64,
                                     .max_stall_ms = 100});
}

static kri_task_t *next_started(rig_t *r) {
    assert_true(rig_plan(r));
    kri_task_t *t = r->plan.tasks[0];
    rig_commit(r, STEP_NS);
    assert_int_equal(t->state, KRI_TASK_IDLE);
    return t;
}

TEST(sched_admits_by_priority_then_submission) {
    rig_t *r = one_at_a_time();
    static const int32_t priorities[] = {0, -5, 7, 0, 7};
    static const int order[] = {2, 4, 0, 3, 1};
    kri_task_t *t[5];
    for (int i = 0; i < 5; i++) {
        t[i] = rig_task(r, 8, 1);
        t[i]->priority = priorities[i];
        rig_submit(r, t[i]);
    }
    for (int i = 0; i < 5; i++) assert_ptr_equal(next_started(r), t[order[i]]);
    rig_destroy(r);
}

TEST(sched_waiting_makes_up_for_priority) {
    rig_t *r = one_at_a_time();
    kri_task_t *low = rig_task(r, 8, 1);
    low->priority = -3;
    rig_submit(r, low);
    r->now_ns += 9000 * MS;
    kri_task_t *high[30];
    bool is_served = false;
    for (int i = 0; i < 30; i++) { /* without ageing these would go first for ever */
        high[i] = rig_task(r, 8, 1);
        high[i]->priority = 5;
        rig_submit(r, high[i]);
        is_served = is_served || next_started(r) == low;
    }
    assert_true(is_served);
    rig_destroy(r);
}

TEST(sched_flood_of_one_key_does_not_delay_another) {
    rig_t *r = one_at_a_time();
    for (int i = 0; i < 20; i++) {
        kri_task_t *t = rig_task(r, 8, 1);
        t->key = 1;
        rig_submit(r, t);
    }
    for (int i = 0; i < 3; i++) assert_int_equal(next_started(r)->key, 1);
    r->now_ns += 5000 * MS;
    kri_task_t *other = rig_task(r, 8, 1);
    other->key = 2;
    rig_submit(r, other);
    assert_true(next_started(r) == other || next_started(r) == other);
    rig_destroy(r);
}

TEST(sched_keys_share_computing_not_requests) {
    rig_t *r = one_at_a_time();
    uint32_t n_rows[3] = {0};
    for (int i = 0; i < 15; i++) {
        kri_task_t *t = rig_task(r, 40, 1); /* five times the rows of the other key's */
        t->key = 1;
        rig_submit(r, t);
    }
    for (int i = 0; i < 30; i++) {
        kri_task_t *t = rig_task(r, 8, 1);
        t->key = 2;
        rig_submit(r, t);
    }
    for (int i = 0; i < 30; i++) {
        const kri_task_t *t = next_started(r);
        n_rows[t->key] += t->n_prompt;
    }
    assert_in_range(n_rows[1], 120, 240);
    assert_in_range(n_rows[2], 120, 240);
    rig_destroy(r);
}

TEST(sched_remembers_a_bounded_number_of_keys) {
    rig_t *r = one_at_a_time();
    for (uint32_t i = 0; i < 250; i++) { /* more than its table holds */
        kri_task_t *t = rig_task(r, 8, 1);
        t->key = i * UINT64_C(0x100000001);
        rig_submit(r, t);
        assert_ptr_equal(next_started(r), t);
    }
    rig_destroy(r);
}

TEST(sched_create_survives_each_failed_allocation) {
    rig_t *r = one_at_a_time();
    const kri_sched_params_t params = {.kv = r->kv, .n_seqs = 1, .n_ctx = 64, .n_rows_max = 64,
                                       .queue_max = 4, .max_stall_ns = MS};
    kri_sched_t *sched = NULL;
    uint64_t k = 1;
    for (;; k++) {
        kri_alloc_fail(k, false);
        const kr_status_t status = kri_sched_create(&params, &sched);
        kri_alloc_fail(0, false);
        if (status == KR_OK) break;
        assert_status(status, KR_E_NOMEM);
        assert_null(sched);
    }
    assert_true(k > 10);
    kri_sched_destroy(sched);
    rig_destroy(r);
}

TEST(sched_allocates_nothing_after_create) {
    rig_t *r = tight_with_cache();
    kri_alloc_guard_begin("sched");
    for (uint32_t i = 0; i < 12; i++) rig_submit(r, rig_task(r, 40, 30));
    for (uint32_t i = 0; i < 100; i++) rig_step(r, 2 * MS);
    assert_int_equal(kri_alloc_guard_end(), 0);
    rig_destroy(r);
}

/* ---- queue and expiry ----------------------------------------------------------------------- */

TEST(sched_refuses_what_never_fits_and_what_has_no_place) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 2, .n_ctx = 512, .n_rows_max = 64,
                                         .queue_max = 3, .max_stall_ms = 100, .n_pages = 4});
    /* 65 tokens: the last one is never computed, so four pages do. */
    assert_status(kri_sched_submit(r->sched, rig_task(r, 30, 36), 0), KR_E_LIMIT);
    assert_status(kri_sched_submit(r->sched, rig_task(r, 65, 1), 0), KR_E_LIMIT);
    rig_submit(r, rig_task(r, 30, 35));
    rig_submit(r, rig_task(r, 30, 35));
    rig_submit(r, rig_task(r, 30, 35));
    kri_task_t *over = rig_task(r, 3, 3);
    assert_status(kri_sched_submit(r->sched, over, 0), KR_E_BUSY);
    assert_int_equal(over->state, KRI_TASK_IDLE);
    rig_destroy(r);
}

TEST(sched_expires_by_deadline_and_by_queue_wait) {
    rig_t *r = one_at_a_time();
    kri_task_t *runs = rig_task(r, 8, 20), *waits = rig_task(r, 8, 20);
    runs->queue_until_ns = waits->queue_until_ns = 50 * MS;
    runs->deadline_ns = 900 * MS;
    rig_submit(r, runs);
    rig_submit(r, waits);
    assert_int_equal(kri_sched_wakeup_ns(r->sched), 50 * MS);
    assert_true(rig_step(r, STEP_NS));
    assert_null(kri_sched_expired(r->sched, 50 * MS - 1));
    assert_ptr_equal(kri_sched_expired(r->sched, 50 * MS), waits);
    kri_sched_end(r->sched, waits, true);
    assert_null(kri_sched_expired(r->sched, 899 * MS)); /* it ran: the queue wait is over */
    assert_int_equal(kri_sched_wakeup_ns(r->sched), 900 * MS);
    assert_ptr_equal(kri_sched_expired(r->sched, 900 * MS), runs);
    rig_destroy(r);
}

TEST(sched_retry_after_is_the_measured_wait) {
    rig_t *r = one_at_a_time();
    kri_sched_stats_t stats;
    kri_sched_stats(r->sched, &stats);
    assert_int_equal(stats.retry_after_ns, 0);
    for (int i = 0; i < 40; i++) rig_submit(r, rig_task(r, 8, 1));
    for (int i = 0; i < 30; i++) assert_true(rig_step(r, 10 * MS)); /* one each */
    kri_sched_stats(r->sched, &stats);
    assert_int_equal(stats.n_waiting, 10);
    assert_in_range(stats.admit_ns, 9 * MS, 11 * MS);
    assert_in_range(stats.retry_after_ns, 95 * MS, 125 * MS);
    kri_task_t next = r->tasks[39];
    uint32_t position = 0;
    uint64_t ttft_ns = 0;
    kri_sched_predict(r->sched, &next, 0, &position, &ttft_ns);
    assert_int_equal(position, 10);
    assert_in_range(ttft_ns, 80 * MS, 150 * MS);
    rig_destroy(r);
}

/* Long streams cost no more than short ones there: what is predicted must say so too. */
TEST(sched_predict_knows_windows) {
    rig_t *r = roomy();
    kri_sched_destroy(r->sched);
    kri_kv_pool_destroy(r->kv);
    const kri_kv_params_t kv = {.n_groups = 1, .groups = {{1, 1, 4, 32}}, .dtype = KR_DTYPE_F16,
                                .n_seqs = 2, .n_ctx = 4096};
    assert_status(kri_kv_pool_create(&kv, &r->kv), KR_OK);
    const kri_sched_params_t params = {.kv = r->kv, .n_seqs = 2, .n_ctx = 4096, .n_rows_max = 64,
                                       .queue_max = 4, .max_stall_ns = 100 * MS};
    assert_status(kri_sched_create(&params, &r->sched), KR_OK);
    kri_task_t *stream = rig_submit(r, rig_task(r, 8, 3000));
    while (stream->n_tokens < 2900) { /* a step costs by its keys, as far as it sees them */
        assert_true(rig_plan(r));
        const uint32_t n_keys = stream->n_tokens < 32 ? stream->n_tokens : 32;
        rig_commit(r, n_keys * MS / 8);
    }
    uint32_t position = 0;
    uint64_t ttft_ns = 0;
    kri_sched_predict(r->sched, rig_task(r, 1, 1), 0, &position, &ttft_ns);
    assert_int_equal(position, 0);
    assert_in_range(ttft_ns, 3 * MS, 6 * MS); /* a step of the stream takes 4 ms */
    rig_destroy(r);
}

/* ---- ending, credits, failed steps ---------------------------------------------------------- */

static uint64_t used(const rig_t *r) {
    kri_kv_stats_t stats;
    kri_kv_pool_stats(r->kv, &stats);
    return stats.bytes_used;
}

TEST(sched_end_frees_pages_at_return) {
    rig_t *r = roomy();
    kri_task_t *t = rig_submit(r, rig_task(r, 100, 10)), *w = rig_submit(r, rig_task(r, 8, 1));
    assert_true(rig_step(r, STEP_NS));
    assert_true(used(r) > 0);
    kri_sched_end(r->sched, w, true);
    kri_sched_end(r->sched, t, true);
    assert_int_equal(used(r), 0);
    assert_int_equal(t->state, KRI_TASK_IDLE);
    kri_sched_end(r->sched, t, true); /* without effect */
    rig_destroy(r);
}

TEST(sched_end_after_a_numeric_error_keeps_nothing_in_the_cache) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 2, .n_ctx = 512, .n_rows_max = 64,
                                         .queue_max = 8, .max_stall_ms = 100,
                                         .prefix_cache = true});
    for (int keep = 0; keep < 2; keep++) {
        kri_task_t *t = rig_submit(r, rig_task(r, 50, 10));
        assert_true(rig_step(r, STEP_NS));
        kri_sched_end(r->sched, t, keep);
        kri_kv_match_t match;
        kri_kv_pool_match(r->kv, 0, t->tokens, 50, &match);
        assert_int_equal(match.n_cached, keep ? 48 : 0);
    }
    rig_destroy(r);
}

TEST(sched_skips_tasks_without_credits) {
    rig_t *r = roomy();
    kri_task_t *t = rig_task(r, 8, 10), *none = rig_task(r, 8, 10);
    t->has_credits = none->has_credits = true;
    t->credits = 2;
    rig_submit(r, t);
    rig_submit(r, none);
    assert_true(rig_step(r, STEP_NS));
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t->n_tokens, 10);
    assert_int_equal(t->credits, 0);
    assert_false(rig_plan(r));
    assert_int_equal(none->state, KRI_TASK_WAITING);
    kri_sched_add_credits(r->sched, t, 1);
    kri_sched_add_credits(r->sched, none, UINT32_MAX);
    kri_sched_add_credits(r->sched, none, UINT32_MAX); /* saturates */
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t->n_tokens, 11);
    assert_int_equal(none->n_tokens, 9);
    rig_destroy(r);
}

TEST(sched_task_without_credits_gives_its_sequence_to_one_that_waits) {
    rig_t *r = one_at_a_time();
    kri_task_t *stalled = rig_task(r, 8, 10);
    stalled->has_credits = true;
    stalled->credits = 1;
    rig_submit(r, stalled);
    assert_true(rig_step(r, STEP_NS));
    kri_task_t *waits = rig_submit(r, rig_task(r, 8, 2));
    assert_false(rig_plan(r)); /* not at once */
    assert_true(kri_sched_wakeup_ns(r->sched) <= r->now_ns + 1000 * MS);
    r->now_ns += 1100 * MS;
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(stalled->state, KRI_TASK_WAITING);
    assert_int_equal(stalled->n_preempted, 0); /* no step towards pinning */
    assert_int_equal(waits->n_tokens, 9);
    kri_sched_add_credits(r->sched, stalled, 5);
    for (int i = 0; i < 4; i++) assert_true(rig_step(r, STEP_NS));
    assert_true(stalled->n_tokens > 9);
    rig_destroy(r);
}

TEST(sched_abort_leaves_everything_as_before_the_plan) {
    rig_t *r = roomy();
    kri_task_t *a = rig_submit(r, rig_task(r, 17, 40));
    for (int i = 0; i < 16; i++) assert_true(rig_step(r, STEP_NS)); /* 32 computed: next a page */
    kri_task_t *b = rig_submit(r, rig_task(r, 60, 10));
    const uint64_t before = used(r);
    assert_true(rig_plan(r));
    assert_int_equal(a->n_computed, 32);
    assert_true(used(r) > before);
    kri_sched_abort(r->sched, &r->plan);
    assert_true(kri_sched_check(r->sched));
    assert_int_equal(used(r), before);
    assert_int_equal(a->n_computed, 32);
    assert_int_equal(b->n_computed, 0);
    while (b->state != KRI_TASK_IDLE) assert_true(rig_step(r, STEP_NS));
    rig_destroy(r);
}

/* ---- admission and preemption --------------------------------------------------------------- */

static rig_t *tight(uint32_t n_pages, bool cache) {
    return rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 512, .n_rows_max = 256,
                                     .queue_max = 32, .max_stall_ms = 100, .n_pages = n_pages,
                                     .prefix_cache = cache});
}

TEST(sched_admits_only_what_fits_with_room_to_decode) {
    rig_t *r = tight(12, false);
    kri_task_t *a = rig_submit(r, rig_task(r, 100, 40)), *b = rig_submit(r, rig_task(r, 100, 40));
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(a->state, KRI_TASK_RUNNING);
    assert_int_equal(b->state, KRI_TASK_WAITING); /* 7 pages and room, of 12 */
    while (a->state != KRI_TASK_IDLE) assert_true(rig_step(r, STEP_NS));
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(b->state, KRI_TASK_RUNNING);
    assert_int_equal(b->n_preempted, 0);
    rig_destroy(r);
}

/* A pool for n full contexts takes n tasks that fill theirs, whenever they come. */
TEST(sched_admits_full_contexts_into_a_pool_made_for_them) {
    rig_t *r = tight(8, false);
    kri_task_t *t[4];
    for (int i = 0; i < 4; i++) {
        t[i] = rig_submit(r, rig_task(r, 24, 8)); /* 31 tokens: two pages */
        assert_true(rig_step(r, STEP_NS));
        assert_int_equal(t[i]->state, KRI_TASK_RUNNING);
    }
    for (int i = 0; i < 4; i++) assert_int_equal(t[i]->n_preempted, 0);
    rig_destroy(r);
}

TEST(sched_preempts_the_newest_of_the_lowest_priority) {
    rig_t *r = tight(16, false);
    kri_task_t *t[4];
    static const int32_t priorities[] = {-9, 3, 0, 0};
    for (int i = 0; i < 4; i++) {
        t[i] = rig_task(r, 16, 200);
        t[i]->priority = priorities[i];
        rig_submit(r, t[i]);
    }
    while (t[3]->n_preempted == 0) {
        for (int i = 0; i < 3; i++) assert_int_equal(t[i]->n_preempted, 0);
        assert_true(rig_step(r, STEP_NS));
    }
    assert_int_equal(t[3]->state, KRI_TASK_WAITING);
    while (t[2]->n_preempted == 0) assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t[0]->n_preempted, 0); /* the oldest never, however low */
    while (t[0]->state != KRI_TASK_IDLE) assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t[0]->n_preempted, 0);
    assert_int_equal(t[0]->n_tokens, 216);
    rig_destroy(r);
}

TEST(sched_preempted_task_returns_before_all_that_wait) {
    rig_t *r = tight(8, false);
    kri_task_t *a = rig_submit(r, rig_task(r, 16, 100)), *b = rig_submit(r, rig_task(r, 16, 100));
    while (b->n_preempted == 0) assert_true(rig_step(r, STEP_NS));
    kri_task_t *urgent = rig_task(r, 16, 10);
    urgent->priority = 100;
    rig_submit(r, urgent);
    const uint32_t n_tokens = b->n_tokens;
    while (a->state != KRI_TASK_IDLE) {
        assert_true(rig_step(r, STEP_NS));
        assert_true(urgent->start_ns == 0 || b->state == KRI_TASK_RUNNING);
    }
    for (int i = 0; i < 2; i++) assert_true(rig_step(r, STEP_NS));
    assert_true(b->n_tokens > n_tokens); /* computed again, and on from there */
    rig_destroy(r);
}

TEST(sched_preempted_task_is_computed_from_the_cache) {
    rig_t *r = tight(10, true);
    kri_task_t *a = rig_submit(r, rig_task(r, 16, 120)), *b = rig_submit(r, rig_task(r, 16, 120));
    while (b->n_preempted == 0) assert_true(rig_step(r, STEP_NS));
    kri_sched_end(r->sched, a, true);
    kri_kv_match_t match;
    kri_kv_pool_match(r->kv, 0, b->tokens, b->n_tokens, &match);
    assert_true(match.n_cached > 0);
    kri_sched_stats_t before, stats; /* which tell of new tasks only */
    kri_sched_stats(r->sched, &before);
    assert_true(rig_plan(r));
    assert_int_equal(b->n_computed, match.n_cached);
    assert_int_equal(rig_rows(r, b), b->n_tokens - match.n_cached);
    rig_commit(r, STEP_NS);
    kri_sched_stats(r->sched, &stats);
    assert_int_equal(stats.n_tokens_cached, 0);
    assert_int_equal(stats.admit_ns, before.admit_ns);
    assert_int_equal(b->match.n_cached, 0);
    rig_destroy(r);
}

TEST(sched_task_is_pinned_after_four_preemptions) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 8, .n_ctx = 2048, .n_rows_max = 256,
                                         .queue_max = 32, .max_stall_ms = 100, .n_pages = 100});
    kri_task_t *victim = rig_task(r, 16, 1000);
    victim->priority = -100;
    kri_task_t *old = rig_submit(r, rig_task(r, 16, 1500));
    rig_submit(r, victim);
    uint32_t most = 0;
    for (uint32_t i = 0; i < 6000 && victim->state != KRI_TASK_IDLE; i++) {
        kri_sched_stats_t stats;
        kri_sched_stats(r->sched, &stats);
        if (stats.n_waiting < 3) rig_submit(r, rig_task(r, 16, 250));
        assert_true(rig_step(r, STEP_NS));
        if (victim->n_preempted > most) most = victim->n_preempted;
    }
    assert_int_equal(most, 4); /* it would be the first to go every time */
    assert_int_equal(victim->state, KRI_TASK_IDLE);
    assert_int_equal(victim->n_tokens, 1016);
    assert_int_equal(old->n_preempted, 0);
    rig_destroy(r);
}

TEST(sched_resize_preempts_the_newest_until_it_fits) {
    rig_t *r = tight(40, false);
    kri_task_t *a = rig_submit(r, rig_task(r, 100, 10)), *b = rig_submit(r, rig_task(r, 100, 10));
    kri_task_t *c = rig_submit(r, rig_task(r, 20, 10));
    assert_true(rig_step(r, STEP_NS));
    assert_status(kri_sched_resize(r->sched, 6 * RIG_PAGE_BYTES), KR_E_LIMIT); /* for a */
    assert_int_equal(a->state, KRI_TASK_RUNNING);
    assert_int_equal(c->state, KRI_TASK_RUNNING);
    assert_status(kri_sched_resize(r->sched, 9 * RIG_PAGE_BYTES), KR_OK);
    assert_true(kri_sched_check(r->sched));
    assert_int_equal(a->state, KRI_TASK_RUNNING);
    assert_int_equal(b->state, KRI_TASK_WAITING);
    assert_int_equal(c->state, KRI_TASK_WAITING);
    assert_status(kri_sched_submit(r->sched, rig_task(r, 200, 1), r->now_ns), KR_E_LIMIT);
    while (c->state != KRI_TASK_IDLE || b->state != KRI_TASK_IDLE) {
        assert_true(rig_step(r, STEP_NS));
    }
    rig_destroy(r);
}

/* ---- prompts to be embedded ----------------------------------------------------------------- */

static kri_task_t *pooled_task(rig_t *r, uint32_t n_prompt, int32_t pooling) {
    kri_task_t *t = rig_task(r, n_prompt, 0);
    t->pooling = pooling;
    return t;
}

static void assert_hidden(const rig_t *r, uint32_t begin, uint32_t end) {
    const kri_step_t *step = &r->plan.step;
    assert_int_equal(step->n_hidden_rows, end - begin);
    for (uint32_t i = 0; i < end - begin; i++) assert_int_equal(step->hidden_rows[i], begin + i);
}

TEST(sched_pooled_prompts_give_hidden_states_and_no_logits) {
    rig_t *r = roomy(); /* 64 rows a step */
    kri_task_t *stream = rig_submit(r, rig_task(r, 10, 20));
    assert_true(rig_step(r, STEP_NS));
    kri_task_t *mean = rig_submit(r, pooled_task(r, 60, KR_POOLING_MEAN));
    assert_true(rig_plan(r));
    const uint32_t n = rig_rows(r, mean);
    assert_true(n >= 16 && n < 60);
    assert_int_equal(r->plan.step.n_out_rows, 1);
    assert_ptr_equal(r->plan.out_tasks[0], stream);
    assert_hidden(r, 1, 1 + n);
    rig_commit(r, STEP_NS);
    kri_sched_end(r->sched, stream, true);
    assert_true(rig_plan(r));
    assert_int_equal(rig_rows(r, mean), 60 - n);
    assert_int_equal(r->plan.step.n_out_rows, 0);
    assert_hidden(r, 0, 60 - n);
    rig_commit(r, STEP_NS);
    assert_int_equal(mean->n_computed, 60);
    kri_sched_end(r->sched, mean, true);
    kri_task_t *last = rig_submit(r, pooled_task(r, 100, KR_POOLING_LAST));
    assert_true(rig_plan(r));
    assert_int_equal(rig_rows(r, last), 64);
    assert_hidden(r, 0, 0);
    rig_commit(r, STEP_NS);
    assert_true(rig_plan(r));
    assert_int_equal(rig_rows(r, last), 36);
    assert_hidden(r, 35, 36);
    assert_int_equal(r->plan.step.n_out_rows, 0);
    rig_commit(r, STEP_NS);
    rig_destroy(r);
}

TEST(sched_mean_computes_what_the_cache_has_and_leaves_its_pages) {
    rig_t *r = tight(0, true);
    kri_task_t *tasks[4];
    const int32_t poolings[] = {KR_POOLING_MEAN, KR_POOLING_MEAN, KR_POOLING_LAST,
                                KR_POOLING_NONE};
    const uint32_t n_rows[] = {90, 90, 10, 10};
    for (int i = 0; i < 4; i++) {
        tasks[i] = poolings[i] ? pooled_task(r, 90, poolings[i]) : rig_task(r, 90, 1);
        memcpy(tasks[i]->tokens, tasks[0]->tokens, 90 * sizeof(kr_token_t));
        rig_submit(r, tasks[i]);
        assert_true(rig_plan(r));
        assert_int_equal(rig_rows(r, tasks[i]), n_rows[i]);
        assert_int_equal(tasks[i]->match.n_cached, 90 - n_rows[i]);
        assert_int_equal(tasks[i]->match.miss_cached, -1);
        rig_commit(r, STEP_NS);
        kri_sched_end(r->sched, tasks[i], true);
    }
    rig_destroy(r);
}

/* The prompt is the whole context, and its pages the whole pool. */
TEST(sched_pooled_prompt_may_fill_context_and_pool) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 2, .n_ctx = 64, .n_rows_max = 64,
                                         .queue_max = 4, .max_stall_ms = 100, .n_pages = 4});
    kri_task_t *t = rig_submit(r, pooled_task(r, 64, KR_POOLING_MEAN));
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t->n_computed, 64);
    kri_sched_end(r->sched, t, true);
    assert_status(kri_sched_submit(r->sched, pooled_task(r, 65, KR_POOLING_MEAN), r->now_ns),
                  KR_E_LIMIT);
    rig_destroy(r);
}

/* ---- prefix cache and choices --------------------------------------------------------------- */

TEST(sched_second_request_with_the_same_prompt_computes_its_last_page_only) {
    rig_t *r = tight(0, true);
    kri_task_t *a = rig_submit(r, rig_task(r, 90, 1));
    assert_true(rig_step(r, STEP_NS));
    kri_task_t *b = rig_task(r, 90, 1);
    memcpy(b->tokens, a->tokens, 90 * sizeof(kr_token_t));
    rig_submit(r, b);
    kri_task_t *salted = rig_task(r, 90, 1);
    memcpy(salted->tokens, a->tokens, 90 * sizeof(kr_token_t));
    salted->salt = 5;
    rig_submit(r, salted);
    assert_true(rig_plan(r));
    assert_int_equal(b->match.n_cached, 80);
    assert_int_equal(rig_rows(r, b), 10);
    assert_int_equal(rig_rows(r, salted), 90);
    rig_commit(r, STEP_NS);
    kri_sched_stats_t stats;
    kri_sched_stats(r->sched, &stats);
    assert_int_equal(stats.n_tokens_cached, 80);
    rig_destroy(r);
}

static void submit_choices(rig_t *r, kri_task_t **t, uint32_t n, uint32_t n_prompt,
                           uint32_t n_budget) {
    for (uint32_t i = 0; i < n; i++) {
        t[i] = rig_task(r, n_prompt, n_budget);
        memcpy(t[i]->tokens, t[0]->tokens, n_prompt * sizeof(kr_token_t));
        if (i > 0) t[i]->leader = t[0];
        rig_submit(r, t[i]);
    }
}

TEST(sched_choices_share_the_prompt_and_compute_its_last_token) {
    rig_t *r = tight(0, false);
    kri_task_t *t[4];
    submit_choices(r, t, 4, 300, 5);
    assert_true(rig_step(r, STEP_NS));
    assert_int_equal(t[0]->n_computed, 256);
    for (int i = 1; i < 4; i++) assert_int_equal(t[i]->state, KRI_TASK_WAITING);
    assert_true(rig_step(r, STEP_NS));
    for (int i = 1; i < 4; i++) {
        assert_int_equal(t[i]->state, KRI_TASK_RUNNING);
        assert_int_equal(t[i]->n_computed, 299);
    }
    assert_int_equal(used(r), 19 * RIG_PAGE_BYTES); /* one prompt's pages */
    assert_true(rig_plan(r));
    for (int i = 0; i < 4; i++) assert_int_equal(rig_rows(r, t[i]), 1);
    assert_int_equal(r->plan.step.n_rows, 4);
    rig_commit(r, STEP_NS);
    assert_int_equal(used(r), 22 * RIG_PAGE_BYTES); /* and a last page for each */
    for (int i = 1; i < 4; i++) assert_int_equal(t[i]->n_tokens, 301);
    rig_destroy(r);
}

TEST(sched_choices_wait_as_others_do_when_their_leader_ends_or_no_sequence_is_free) {
    rig_t *r = rig_create((rig_params_t){.n_seqs = 2, .n_ctx = 512, .n_rows_max = 64,
                                         .queue_max = 8, .max_stall_ms = 100});
    kri_task_t *t[4], *late;
    submit_choices(r, t, 4, 100, 5);
    assert_true(rig_step(r, STEP_NS));
    kri_sched_end(r->sched, t[0], true);
    assert_true(kri_sched_check(r->sched));
    for (int i = 1; i < 4; i++) assert_null(t[i]->leader);
    assert_true(rig_step(r, STEP_NS));
    assert_true(rig_step(r, STEP_NS));
    late = rig_task(r, 100, 1);
    late->leader = t[0]; /* has ended: an ordinary task */
    rig_submit(r, late);
    for (int i = 0; i < 40; i++) rig_step(r, STEP_NS);
    for (int i = 1; i < 4; i++) assert_int_equal(t[i]->n_tokens, 105);
    assert_int_equal(late->n_tokens, 101);
    submit_choices(r, t, 4, 40, 3); /* two sequences, four choices */
    for (int i = 0; i < 40; i++) rig_step(r, STEP_NS);
    for (int i = 0; i < 4; i++) assert_int_equal(t[i]->n_tokens, 43);
    rig_destroy(r);
}

TEST(sched_choice_submitted_after_its_leaders_prompt_forks_at_once) {
    rig_t *r = tight(0, false);
    kri_task_t *leader = rig_submit(r, rig_task(r, 100, 20)), *t = rig_task(r, 100, 20);
    assert_true(rig_step(r, STEP_NS));
    assert_true(rig_step(r, STEP_NS));
    memcpy(t->tokens, leader->tokens, 100 * sizeof(kr_token_t));
    t->leader = leader;
    rig_submit(r, t);
    assert_int_equal(t->state, KRI_TASK_RUNNING);
    assert_int_equal(t->n_computed, 99);
    rig_destroy(r);
}
