/* sched.h: which rows run in the next step. Policy only, over a KV pool: no thread, no clock (every
 * call is told the time), no model, no text; so that engine.c drives it with the real model and the
 * simulation (tests/engine) with a fake one. docs/decisions/0007-engine.md states the policy.
 *
 * A task is one sequence: one choice of a request. Its owner fills it, submits it, and after each
 * step appends the sampled token or ends it. Nothing here allocates after create.
 * Threads: one at a time. */
#ifndef KRI_ENGINE_SCHED_H
#define KRI_ENGINE_SCHED_H

#include <stdbool.h>

#include "cache/kv_pool.h"
#include "kr.h"
#include "ops/step.h"

typedef struct kri_sched_s kri_sched_t;

typedef enum kri_task_state_e {
    KRI_TASK_IDLE,     /* not submitted, or ended */
    KRI_TASK_WAITING,  /* queued: new, or preempted */
    KRI_TASK_RUNNING   /* holds a sequence of the pool */
} kri_task_state_t;

typedef struct kri_task_s {
    /* Set by the owner before submit. */
    kr_token_t *tokens;      /* [n_tokens_max] prompt, then what was generated */
    uint32_t n_prompt;       /* 1 .. n_ctx - 1 */
    uint32_t n_tokens;       /* = n_prompt at submit */
    uint32_t n_tokens_max;   /* prompt + budget, at most n_ctx */
    int32_t priority;        /* -100..100, higher first */
    uint64_t key;            /* fair share; 0 = nobody's */
    uint64_t salt;           /* of the prefix cache */
    uint64_t deadline_ns;    /* ends it wherever it is */
    uint64_t queue_until_ns; /* ends it while it never ran */
    int32_t pooling;         /* KR_POOLING_*: not NONE: its rows give hidden states, no logits, and
                                nothing is appended; n_prompt = n_tokens_max, up to n_ctx */
    bool has_credits;        /* credits are counted */
    uint32_t credits;        /* tokens it may still append before it is skipped */
    struct kri_task_s *leader; /* another choice of the same prompt whose pages it shares, or NULL;
                                  submitted before it */
    void *owner;
    /* Kept by the scheduler; the owner reads. */
    kri_task_state_t state;
    uint32_t seq;            /* of the pool, while RUNNING */
    uint32_t n_computed;     /* tokens whose keys and values are in the pool */
    uint32_t n_preempted;
    kri_kv_match_t match;    /* prefix cache at the first admission; nothing where none is wanted */
    uint64_t submit_ns, start_ns; /* start: first admission, 0 before */
    /* Private from here on. */
    uint64_t age_ns;         /* since when it waits */
    uint64_t idle_ns;        /* since when it has no credits; 0 = it has */
    uint64_t expire_ns, order; /* order: of submission */
    uint64_t slack_wanted;   /* bytes that were missing when it could not be admitted */
    struct kri_task_s *next, *prev, *child; /* of the place where it waits (queue.h) */
    struct kri_task_s *followers; /* waiting for its prompt */
    uint32_t index, expire_index, key_index; /* of running, of the expiry heap, of its key */
    uint32_t n_rows;         /* of the step being planned */
    uint8_t place;
} kri_task_t;

typedef struct kri_sched_params_s {
    kri_kv_pool_t *kv;       /* borrowed; every sequence is the scheduler's */
    uint32_t n_seqs, n_ctx, n_rows_max;
    uint32_t queue_max;      /* waiting tasks */
    uint64_t max_stall_ns;
} kri_sched_params_t;

/* KR_E_NOMEM. */
kr_status_t kri_sched_create(const kri_sched_params_t *params, kri_sched_t **sched);
/* No task may be queued or running. */
void kri_sched_destroy(kri_sched_t *sched);

/* Whether cached pages are of use: they have keys and values, but no hidden states for a mean. */
static inline bool kri_task_uses_cache(const kri_task_t *task) {
    return task->pooling != KR_POOLING_MEAN;
}

/* Queues a task. KR_E_LIMIT: it could never run (more pages than the whole pool); KR_E_BUSY: the
 * queue is full. */
kr_status_t kri_sched_submit(kri_sched_t *sched, kri_task_t *task, uint64_t now_ns);
/* Takes a task out, wherever it is; its pages are free at return. Not between plan and commit or
 * abort. keep: its full pages may stay in the prefix cache (false after a numeric error). */
void kri_sched_end(kri_sched_t *sched, kri_task_t *task, bool keep);
void kri_sched_add_credits(kri_sched_t *sched, kri_task_t *task, uint32_t n);
/* A task whose deadline or queue wait is over, or NULL; the owner ends it. */
kri_task_t *kri_sched_expired(kri_sched_t *sched, uint64_t now_ns);
/* From now on the task may wait in the queue until its deadline. */
void kri_sched_waive_queue_wait(kri_sched_t *sched, kri_task_t *task);
/* When plan has something to do that it has not now: a task may expire, or give way to one that
 * waits; UINT64_MAX without one. */
uint64_t kri_sched_wakeup_ns(const kri_sched_t *sched);

/* One step. */
typedef struct kri_plan_s {
    kri_step_t step;         /* as kri_forward_run takes it; step.cancel is the caller's to set */
    kri_task_t *const *tasks; /* [step.n_seqs] */
    kri_task_t *const *out_tasks; /* [step.n_out_rows] whose logits row it is; hidden_rows stand in
                                     the order of tasks */
    uint32_t n_rows_decode, n_rows_prefill;
} kri_plan_t;
/* Whether a task waits or has rows to compute; *streams: one that runs has generated. */
bool kri_sched_has_work(const kri_sched_t *sched, bool *streams);
/* Before plan, where schedulers take steps in turns: n_shares of them (at least 1) have work, so
 * each may take that part of the stall bound; others_stream: the bound holds also without streams
 * of its own; was_apart: another's step ran since the last one here. Stays until called again. */
void kri_sched_share(kri_sched_t *sched, uint32_t n_shares, bool others_stream, bool was_apart);
/* Admits, preempts and fills the plan, which stays valid until commit or abort. False: nothing can
 * run now. */
bool kri_sched_plan(kri_sched_t *sched, uint64_t now_ns, kri_plan_t *plan);
/* The step was computed in step_ns: lengths advance, full pages enter the prefix cache, the cost
 * model learns. The owner then calls append or end for each of plan->out_tasks, and end for each
 * task with pooling that has nothing more to compute. */
void kri_sched_commit(kri_sched_t *sched, const kri_plan_t *plan, uint64_t step_ns);
/* The step failed: everything is as before plan, except what was admitted or preempted. */
void kri_sched_abort(kri_sched_t *sched, const kri_plan_t *plan);
/* The token sampled from a task's logits. n_tokens < n_tokens_max. */
void kri_sched_append(kri_sched_t *sched, kri_task_t *task, kr_token_t token);

/* Changes the pool's size; running tasks are preempted, newest first, until it fits. KR_E_LIMIT as
 * kri_kv_pool_resize, and when a task that runs or waits could never run again. */
kr_status_t kri_sched_resize(kri_sched_t *sched, uint64_t kv_bytes);

typedef struct kri_sched_stats_s {
    uint32_t n_running, n_waiting;
    uint64_t n_steps, n_preempted, n_rows_prefill, n_rows_decode, n_tokens_cached;
    uint64_t retry_after_ns; /* time a task now spends in the queue, from the rate of admissions */
    uint64_t admit_ns;       /* time from one admission to the next while tasks wait */
} kri_sched_stats_t;
void kri_sched_stats(const kri_sched_t *sched, kri_sched_stats_t *stats);
/* For a prompt that is not submitted: tasks before it, and the predicted time to its first token
 * (0 = nothing measured). */
void kri_sched_predict(const kri_sched_t *sched, const kri_task_t *task, uint32_t n_cached,
                       uint32_t *queue_position, uint64_t *ttft_ns);
/* Every invariant of tasks, queues and pool; for tests. */
bool kri_sched_check(const kri_sched_t *sched);

#endif
