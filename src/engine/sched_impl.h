/* sched_impl.h: what sched.c (life of tasks) and sched_plan.c (what runs in a step) share. */
#ifndef KRI_ENGINE_SCHED_IMPL_H
#define KRI_ENGINE_SCHED_IMPL_H

#include "engine/cost.h"
#include "engine/queue.h"
#include "engine/sched.h"

#define KRI_SLICE_MIN 16u     /* prompt rows: a page */
#define KRI_PREEMPT_MAX 4u    /* then a task is pinned */
#define KRI_ROOM_TOKENS 32u   /* pages for so many more tokens are asked for at admission */
#define KRI_IDLE_MAX_NS UINT64_C(1000000000) /* then others may have its place */
#define KRI_LONG_PROMPTS_MAX 4u /* at a time, so that short ones get by */

struct kri_sched_s {
    kri_sched_params_t params;
    kri_kv_pool_t *kv;
    kri_queue_t queue;
    kri_cost_t cost;
    kri_task_t **running;  /* [n_seqs] in no order */
    kri_task_t **scratch;  /* [n_seqs] */
    uint32_t *seqs_free;   /* [n_seqs] stack */
    uint32_t n_running, n_seqs_free;
    uint32_t n_waiting;    /* in all places */
    kri_task_t *returning; /* preempted, list: pinned first, then in order of submission */
    kri_task_t *idle;      /* list: waiting without credits */
    uint64_t n_submitted;
    /* Layers weigh keys by their size; a window bounds what a row reads. */
    double group_weight[KRI_KV_GROUPS_MAX];
    uint64_t page_bytes_all; /* one page of every group */
    uint64_t bytes_max;
    /* The plan that is out, or the last one. */
    bool has_plan;         /* between plan and commit or abort */
    bool was_step;         /* the last call was commit: the time until plan is overhead */
    uint32_t n_shares;     /* schedulers that take steps in turns, this one included */
    bool others_stream;    /* one of the others must not wait for long */
    uint64_t plan_ns, step_ns;
    kri_cost_rows_t plan_rows;
    kri_step_seq_t *step_seqs; /* [n_seqs] */
    kri_task_t **plan_tasks;   /* [n_seqs] */
    kri_task_t **out_tasks;    /* [n_seqs] */
    kr_token_t *tokens;        /* [n_rows_max] */
    int32_t *positions;        /* [n_rows_max, 3] */
    uint32_t *out_rows;        /* [n_seqs] */
    uint32_t *hidden_rows;     /* [n_rows_max] */
    uint32_t decode_cursor;    /* rotates when not all decode rows fit */
    /* Statistics. */
    uint64_t n_steps, n_preempted, n_rows_prefill, n_rows_decode, n_tokens_cached;
    uint64_t admit_last_ns;    /* last admission, or since when tasks wait */
    double admit_ns;           /* between admissions while tasks wait */
};

static inline uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static inline bool kri_task_is_idle(const kri_task_t *task) {
    return task->has_credits && task->credits == 0;
}
static inline bool kri_task_is_pinned(const kri_task_t *task) {
    return task->n_preempted >= KRI_PREEMPT_MAX;
}
static inline uint32_t kri_task_pending(const kri_task_t *task) {
    return task->n_tokens - task->n_computed;
}
/* Most that its keys and values can take: the last token is never computed. */
static inline uint32_t kri_task_kv_tokens(const kri_task_t *task) {
    return task->n_tokens_max - 1 > task->n_prompt ? task->n_tokens_max - 1 : task->n_prompt;
}

/* Promises: a pinned task runs to its end, and so does the oldest one, whoever that will be: pinned
 * tasks and those older than a pinned one must all fit together. newest: 1 + order of the newest
 * pinned task that runs, 0 without. */
uint64_t kri_sched_newest_pinned(const kri_sched_t *sched);
static inline bool kri_sched_is_promised(const kri_task_t *task, uint64_t newest) {
    return task->order < newest;
}
/* Bytes that all promised tasks need to their end if task (NULL: none) runs too. */
uint64_t kri_sched_promised_bytes(const kri_sched_t *sched, const kri_task_t *task);
/* Bytes that the task needs alone in the pool, until its end. */
uint64_t kri_sched_need_full(const kri_sched_t *sched, const kri_task_t *task);
/* A waiting task that is in no place: to where it belongs. */
void kri_sched_place(kri_sched_t *sched, kri_task_t *task);
/* Out of the place where it waits. */
void kri_sched_unplace(kri_sched_t *sched, kri_task_t *task);
/* A waiting task that is in no place becomes a running one on a free sequence. */
void kri_sched_start(kri_sched_t *sched, kri_task_t *task, uint32_t seq, uint64_t now_ns);
/* A running task waits again. forced: for want of pages, which counts towards pinning. */
void kri_sched_preempt(kri_sched_t *sched, kri_task_t *task, bool forced);
/* Keys that n rows from position pos on read, as a mean over the layers by their size. */
double kri_sched_keys_of(const kri_sched_t *sched, uint32_t pos, uint32_t n);
/* Admits what fits. */
void kri_sched_admit(kri_sched_t *sched, uint64_t now_ns);
/* Followers of a leader whose prompt is computed: on a fork of its pages, or to the queue. */
void kri_sched_fork_followers(kri_sched_t *sched, kri_task_t *leader);

#endif
