/* sched_rig.h: a scheduler over a small pool with a clock that the test moves, tasks that are made
 * in a line, and steps whose time is a formula. */
#ifndef TESTS_UNIT_ENGINE_SCHED_RIG_H
#define TESTS_UNIT_ENGINE_SCHED_RIG_H

#include "test.h"

#include "engine/cost.h"
#include "engine/sched.h"

#define RIG_TASKS 256
#define RIG_TOKENS 8192
#define MS UINT64_C(1000000)

typedef struct rig_s {
    kri_kv_pool_t *kv;
    kri_sched_t *sched;
    kri_task_t tasks[RIG_TASKS];
    kr_token_t tokens[RIG_TASKS][RIG_TOKENS];
    uint32_t n_tasks;
    uint64_t now_ns;
    kri_plan_t plan;
} rig_t;

typedef struct rig_params_s {
    uint32_t n_seqs, n_ctx, n_rows_max, queue_max, max_stall_ms, n_pages; /* n_pages 0 = all */
    bool prefix_cache;
} rig_params_t;

static rig_t rig_memory;

/* A page is 16 tokens of one group: 16 * 2 * 4 * 2 bytes. */
#define RIG_PAGE_BYTES 256u

static rig_t *rig_create_at(rig_t *r, rig_params_t p) {
    memset(r, 0, sizeof *r);
    const kri_kv_params_t kv = {.n_groups = 1, .groups = {{1, 1, 4, 0}}, .dtype = KR_DTYPE_F16,
                                .n_seqs = p.n_seqs, .n_ctx = p.n_ctx,
                                .bytes_max = (uint64_t)p.n_pages * RIG_PAGE_BYTES,
                                .prefix_cache = p.prefix_cache};
    assert_status(kri_kv_pool_create(&kv, &r->kv), KR_OK);
    const kri_sched_params_t sched = {
        .kv = r->kv, .n_seqs = p.n_seqs, .n_ctx = p.n_ctx, .n_rows_max = p.n_rows_max,
        .queue_max = p.queue_max, .max_stall_ns = p.max_stall_ms * MS};
    assert_status(kri_sched_create(&sched, &r->sched), KR_OK);
    return r;
}

static inline rig_t *rig_create(rig_params_t p) { return rig_create_at(&rig_memory, p); }

static void rig_destroy(rig_t *r) {
    for (uint32_t i = 0; i < r->n_tasks; i++) kri_sched_end(r->sched, &r->tasks[i], true);
    assert_true(kri_sched_check(r->sched));
    kri_kv_stats_t stats;
    kri_kv_pool_stats(r->kv, &stats);
    assert_int_equal(stats.bytes_used, 0);
    kri_sched_destroy(r->sched);
    kri_kv_pool_destroy(r->kv);
}

/* A task with a prompt of its own, not submitted yet. */
static kri_task_t *rig_task(rig_t *r, uint32_t n_prompt, uint32_t n_budget) {
    assert_true(r->n_tasks < RIG_TASKS && n_prompt + n_budget <= RIG_TOKENS);
    const uint32_t i = r->n_tasks++;
    for (uint32_t j = 0; j < n_prompt; j++) r->tokens[i][j] = (kr_token_t)(1000 * (i + 1) + j % 97);
    r->tasks[i] = (kri_task_t){.tokens = r->tokens[i], .n_prompt = n_prompt, .n_tokens = n_prompt,
                               .n_tokens_max = n_prompt + n_budget, .deadline_ns = UINT64_MAX,
                               .queue_until_ns = UINT64_MAX};
    return &r->tasks[i];
}

static kri_task_t *rig_submit(rig_t *r, kri_task_t *task) {
    assert_status(kri_sched_submit(r->sched, task, r->now_ns), KR_OK);
    assert_true(kri_sched_check(r->sched));
    return task;
}

static bool rig_plan(rig_t *r) {
    const bool any = kri_sched_plan(r->sched, r->now_ns, &r->plan);
    assert_true(kri_sched_check(r->sched));
    return any;
}

/* Rows of the task in the plan. */
static inline uint32_t rig_rows(const rig_t *r, const kri_task_t *task) {
    for (uint32_t i = 0; i < r->plan.step.n_seqs; i++) {
        if (r->plan.tasks[i] == task) return r->plan.step.seqs[i].n_rows;
    }
    return 0;
}

/* Commits the plan; every output gets a token, and a task that is full ends. */
static void rig_commit(rig_t *r, uint64_t step_ns) {
    kri_sched_commit(r->sched, &r->plan, step_ns);
    r->now_ns += step_ns;
    for (uint32_t i = 0; i < r->plan.step.n_out_rows; i++) {
        kri_task_t *t = r->plan.out_tasks[i];
        kri_sched_append(r->sched, t, (kr_token_t)(7 + t->n_tokens));
        if (t->n_tokens == t->n_tokens_max) kri_sched_end(r->sched, t, true);
    }
    assert_true(kri_sched_check(r->sched));
    assert_true(kri_kv_pool_check(r->kv));
}

static inline bool rig_step(rig_t *r, uint64_t step_ns) {
    if (!rig_plan(r)) return false;
    rig_commit(r, step_ns);
    return true;
}

#endif
