/* sched_admit.c: from waiting to running: who is next, whether the pool has room for it, and the
 * choices of one prompt that share their leader's pages. */
#include "engine/sched_impl.h"

typedef struct admission_s {
    uint64_t now_ns;
    uint64_t outstanding; /* bytes that running tasks still need for prompts and a page each */
    uint32_t n_rows_short, n_long; /* prompt rows of running tasks with short prompts, long ones */
} admission_t;

static uint64_t still_needed(const kri_sched_t *s, const kri_task_t *t) {
    const uint32_t pending = kri_task_pending(t);
    const uint32_t n_cached = (t->n_computed + 15) / 16 * 16;
    const uint32_t n = min_u32(t->n_tokens + KRI_ROOM_TOKENS, kri_task_kv_tokens(t));
    if (kri_task_kv_tokens(t) <= n_cached) return 0; /* its last page is there */
    if (pending <= 1 || n <= n_cached) return s->page_bytes_all;
    return kri_kv_pool_need(s->kv, n_cached, n, min_u32(s->params.n_rows_max, pending));
}

static void count_running(const kri_sched_t *s, admission_t *a) {
    a->outstanding = 0;
    a->n_rows_short = a->n_long = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        const uint32_t pending = kri_task_pending(t);
        a->outstanding += still_needed(s, t);
        if (pending > s->params.n_rows_max) a->n_long++;
        else if (pending > 1) a->n_rows_short += pending;
    }
}

/* Someone without credits gives way to those who wait, when he has had none for a while. */
static kri_task_t *find_idle(const kri_sched_t *s, uint64_t now_ns) {
    kri_task_t *victim = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        kri_task_t *t = s->running[i];
        if (!kri_task_is_idle(t) || t->idle_ns == 0 || now_ns < t->idle_ns + KRI_IDLE_MAX_NS) {
            continue;
        }
        if (!victim || t->order > victim->order) victim = t;
    }
    return victim;
}

uint64_t kri_sched_newest_pinned(const kri_sched_t *s) {
    uint64_t newest = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        if (kri_task_is_pinned(t) && t->order >= newest) newest = t->order + 1;
    }
    return newest;
}

uint64_t kri_sched_promised_bytes(const kri_sched_t *s, const kri_task_t *task) {
    uint64_t newest = kri_sched_newest_pinned(s), sum = 0;
    if (task && kri_task_is_pinned(task) && task->order >= newest) newest = task->order + 1;
    for (uint32_t i = 0; i < s->n_running && newest > 0; i++) {
        const kri_task_t *t = s->running[i];
        if (kri_sched_is_promised(t, newest)) sum += kri_sched_need_full(s, t);
    }
    if (task && kri_sched_is_promised(task, newest)) sum += kri_sched_need_full(s, task);
    return sum;
}

/* The cached prefix is taken first: pages that only the cache holds count as available until then.
 * A task that did not fit is looked at again when enough came free, or every 16 steps (the cache
 * may have more of it). Alone in the pool it always fits: submit saw to that. */
static bool try_admit(kri_sched_t *s, kri_task_t *t, admission_t *a) {
    const uint64_t slack = kri_kv_pool_available(s->kv);
    const bool alone = s->n_running == 0;
    if (!alone && slack < t->slack_wanted + a->outstanding && s->n_steps % 16 != 0) return false;
    if (kri_sched_promised_bytes(s, t) > s->bytes_max) return false;
    const uint32_t seq = s->seqs_free[s->n_seqs_free - 1];
    kri_kv_match_t match = {.miss_cached = -1};
    if (kri_task_uses_cache(t)) {
        kri_kv_pool_attach(s->kv, seq, t->salt, t->tokens, t->n_tokens, &match);
    }
    const uint32_t pending = t->n_tokens - match.n_cached;
    const uint64_t need = kri_kv_pool_need(
        s->kv, match.n_cached, min_u32(t->n_tokens + KRI_ROOM_TOKENS, kri_task_kv_tokens(t)),
        min_u32(s->params.n_rows_max, pending));
    const uint64_t left = kri_kv_pool_available(s->kv);
    if (!alone && need + a->outstanding > left) {
        kri_kv_pool_release(s->kv, seq);
        t->slack_wanted = slack - left + need;
        return false;
    }
    s->n_seqs_free--;
    kri_sched_unplace(s, t);
    t->n_computed = match.n_cached;
    if (t->start_ns == 0) t->match = match;
    kri_sched_start(s, t, seq, a->now_ns);
    a->outstanding += still_needed(s, t);
    if (pending > s->params.n_rows_max) a->n_long++;
    else if (pending > 1) a->n_rows_short += pending;
    return true;
}

/* Short prompts are admitted while a step can take their rows, so that the order is decided as
 * late as possible; of long ones a few at a time. */
static kri_task_t *next_task(const kri_sched_t *s, const admission_t *a) {
    if (s->returning) return s->returning;
    if (a->n_rows_short >= s->params.n_rows_max) return NULL;
    return kri_queue_first(&s->queue, a->now_ns,
                           a->n_long < KRI_LONG_PROMPTS_MAX ? UINT32_MAX : s->params.n_rows_max);
}

void kri_sched_admit(kri_sched_t *s, uint64_t now_ns) {
    for (uint32_t i = 0; i < s->n_running; i++) {
        kri_task_t *t = s->running[i];
        if (kri_task_is_idle(t) && t->idle_ns == 0) t->idle_ns = now_ns > 0 ? now_ns : 1;
    }
    if (!s->returning && s->queue.n_active == 0) return;
    admission_t a = {.now_ns = now_ns};
    count_running(s, &a);
    for (;;) {
        /* Before looking at all keys that wait. */
        if (s->n_seqs_free == 0 && !find_idle(s, now_ns)) return;
        kri_task_t *t = next_task(s, &a);
        if (!t) return;
        if (s->n_seqs_free > 0 && try_admit(s, t, &a)) continue;
        kri_task_t *idle = find_idle(s, now_ns);
        if (!idle) return;
        kri_sched_preempt(s, idle, false);
        count_running(s, &a);
    }
}

/* Room for the copy of the last page, and for what decoding adds soon. */
static bool fork_one(kri_sched_t *s, const kri_task_t *leader, kri_task_t *t) {
    if (s->n_seqs_free == 0 || kri_task_is_idle(t)) return false;
    if (kri_sched_promised_bytes(s, t) > s->bytes_max) return false;
    admission_t a;
    count_running(s, &a);
    const uint32_t n = t->n_prompt - 1;
    const uint64_t need = kri_kv_pool_need(
        s->kv, n / 16 * 16, min_u32(t->n_tokens + KRI_ROOM_TOKENS, kri_task_kv_tokens(t)), 1);
    if (need + a.outstanding > kri_kv_pool_available(s->kv)) return false;
    const uint32_t seq = s->seqs_free[s->n_seqs_free - 1];
    if (n > 0 && kri_kv_pool_fork(s->kv, leader->seq, seq, n) != KR_OK) return false;
    s->n_seqs_free--;
    kri_sched_unplace(s, t);
    t->n_computed = n;
    t->match = (kri_kv_match_t){.n_cached = n, .miss_position = n, .miss_cached = -1};
    kri_sched_start(s, t, seq, s->plan_ns);
    return true;
}

void kri_sched_fork_followers(kri_sched_t *s, kri_task_t *leader) {
    while (leader->followers) {
        kri_task_t *t = leader->followers;
        if (fork_one(s, leader, t)) continue;
        kri_sched_unplace(s, t);
        t->leader = NULL;
        kri_sched_place(s, t);
    }
}
