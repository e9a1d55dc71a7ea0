/* sched.c: the life of tasks: submit, wait, start, preempt, end; what a step changes in them. The
 * choice of what runs is in sched_admit.c and sched_plan.c. */
#include "engine/sched.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "engine/sched_impl.h"

/* ---- create --------------------------------------------------------------------------------- */

static void init_groups(kri_sched_t *s) {
    const kri_kv_group_t *groups = kri_kv_pool_groups(s->kv);
    const uint32_t n = kri_kv_pool_n_groups(s->kv);
    double sum = 0;
    for (uint32_t g = 0; g < n; g++) {
        s->group_weight[g] = (double)groups[g].n_layers * groups[g].n_kv_heads *
                             groups[g].head_dim;
        sum += s->group_weight[g];
        s->page_bytes_all += groups[g].page_bytes;
    }
    for (uint32_t g = 0; g < n; g++) s->group_weight[g] /= sum;
    kri_kv_stats_t stats;
    kri_kv_pool_stats(s->kv, &stats);
    s->bytes_max = stats.bytes_max;
}

kr_status_t kri_sched_create(const kri_sched_params_t *params, kri_sched_t **sched) {
    kri_sched_t *s = kri_calloc(1, sizeof *s, "sched");
    if (!s) return KR_E_NOMEM;
    s->params = *params;
    s->kv = params->kv;
    const uint32_t n = params->n_seqs;
    s->running = kri_calloc(n, sizeof *s->running, "sched running");
    s->scratch = kri_calloc(n, sizeof *s->scratch, "sched scratch");
    s->seqs_free = kri_calloc(n, sizeof *s->seqs_free, "sched seqs");
    s->step_seqs = kri_calloc(n, sizeof *s->step_seqs, "sched plan");
    s->plan_tasks = kri_calloc(n, sizeof *s->plan_tasks, "sched plan");
    s->out_tasks = kri_calloc(n, sizeof *s->out_tasks, "sched plan");
    s->out_rows = kri_calloc(n, sizeof *s->out_rows, "sched plan");
    s->hidden_rows = kri_calloc(params->n_rows_max, sizeof *s->hidden_rows, "sched rows");
    s->tokens = kri_calloc(params->n_rows_max, sizeof *s->tokens, "sched rows");
    s->positions = kri_calloc(params->n_rows_max, KRI_POS_COMPONENTS * sizeof *s->positions,
                              "sched rows");
    if (!s->running || !s->scratch || !s->seqs_free || !s->step_seqs || !s->plan_tasks ||
        !s->out_tasks || !s->out_rows || !s->hidden_rows || !s->tokens || !s->positions ||
        params->queue_max > UINT32_MAX - n ||
        kri_queue_init(&s->queue, n + params->queue_max) != KR_OK) {
        kri_sched_destroy(s);
        return KR_E_NOMEM;
    }
    for (uint32_t i = 0; i < n; i++) s->seqs_free[s->n_seqs_free++] = n - 1 - i;
    kri_cost_init(&s->cost);
    s->n_shares = 1;
    init_groups(s);
    *sched = s;
    return KR_OK;
}

void kri_sched_destroy(kri_sched_t *s) {
    if (!s) return;
    kri_queue_deinit(&s->queue);
    kri_free(s->running);
    kri_free(s->scratch);
    kri_free(s->seqs_free);
    kri_free(s->step_seqs);
    kri_free(s->plan_tasks);
    kri_free(s->out_tasks);
    kri_free(s->out_rows);
    kri_free(s->hidden_rows);
    kri_free(s->tokens);
    kri_free(s->positions);
    kri_free(s);
}

/* ---- places of waiting tasks ---------------------------------------------------------------- */

static void list_add(kri_task_t **head, kri_task_t *prev, kri_task_t *task) {
    task->prev = prev;
    task->next = prev ? prev->next : *head;
    if (task->next) task->next->prev = task;
    if (prev) prev->next = task;
    else *head = task;
}

static void list_remove(kri_task_t **head, kri_task_t *task) {
    if (task->prev) task->prev->next = task->next;
    else *head = task->next;
    if (task->next) task->next->prev = task->prev;
    task->next = task->prev = NULL;
}

/* Pinned ones first, then in order of submission. */
static void return_task(kri_sched_t *s, kri_task_t *task) {
    kri_task_t *prev = NULL;
    const bool pinned = kri_task_is_pinned(task);
    for (kri_task_t *at = s->returning; at; prev = at, at = at->next) {
        const bool at_pinned = kri_task_is_pinned(at);
        if (at_pinned != pinned ? pinned : task->order < at->order) break;
    }
    list_add(&s->returning, prev, task);
    task->place = KRI_PLACE_RETURN;
}

void kri_sched_place(kri_sched_t *s, kri_task_t *task) {
    if (task->leader) {
        kri_task_t *last = task->leader->followers;
        while (last && last->next) last = last->next;
        list_add(&task->leader->followers, last, task);
        task->place = KRI_PLACE_PARKED;
    } else if (kri_task_is_idle(task)) {
        list_add(&s->idle, NULL, task);
        task->place = KRI_PLACE_IDLE;
    } else if (task->start_ns != 0) {
        return_task(s, task);
    } else {
        kri_queue_push(&s->queue, task);
    }
}

void kri_sched_unplace(kri_sched_t *s, kri_task_t *task) {
    switch (task->place) {
    case KRI_PLACE_KEY: kri_queue_remove(&s->queue, task); break;
    case KRI_PLACE_RETURN: list_remove(&s->returning, task); break;
    case KRI_PLACE_IDLE: list_remove(&s->idle, task); break;
    case KRI_PLACE_PARKED: list_remove(&task->leader->followers, task); break;
    default: break;
    }
    task->place = KRI_PLACE_NONE;
}

/* ---- submit, start, preempt, end ------------------------------------------------------------ */

uint64_t kri_sched_need_full(const kri_sched_t *s, const kri_task_t *task) {
    return kri_kv_pool_need(s->kv, 0, kri_task_kv_tokens(task),
                            min_u32(s->params.n_rows_max, KRI_SLICE_MIN));
}

kr_status_t kri_sched_submit(kri_sched_t *s, kri_task_t *task, uint64_t now_ns) {
    if (kri_sched_need_full(s, task) > s->bytes_max) return KR_E_LIMIT;
    if (s->n_waiting >= s->params.queue_max) return KR_E_BUSY;
    if (s->n_waiting == 0) s->admit_last_ns = now_ns;
    task->state = KRI_TASK_WAITING;
    task->seq = 0;
    task->n_computed = task->n_preempted = task->n_rows = 0;
    task->match = (kri_kv_match_t){.miss_cached = -1};
    task->submit_ns = task->age_ns = now_ns;
    task->start_ns = task->idle_ns = task->slack_wanted = 0;
    task->order = s->n_submitted++;
    task->next = task->prev = task->child = task->followers = NULL;
    task->place = KRI_PLACE_NONE;
    task->expire_ns = task->deadline_ns < task->queue_until_ns ? task->deadline_ns
                                                               : task->queue_until_ns;
    /* A leader that has computed its prompt, or is gone, has nothing to wait for. */
    kri_task_t *leader = task->leader;
    const bool forks = leader && leader->state == KRI_TASK_RUNNING &&
                       leader->n_computed >= leader->n_prompt;
    if (leader && leader->state == KRI_TASK_IDLE) task->leader = NULL;
    kri_queue_enter(&s->queue, task);
    kri_sched_place(s, task);
    s->n_waiting++;
    if (forks) kri_sched_fork_followers(s, leader);
    return KR_OK;
}

static void note_admission(kri_sched_t *s, uint64_t now_ns) {
    const double ns = now_ns > s->admit_last_ns ? (double)(now_ns - s->admit_last_ns) : 0;
    s->admit_ns = s->admit_ns > 0 ? s->admit_ns + 0.1 * (ns - s->admit_ns) : ns;
    s->admit_last_ns = now_ns;
}

void kri_sched_start(kri_sched_t *s, kri_task_t *task, uint32_t seq, uint64_t now_ns) {
    task->state = KRI_TASK_RUNNING;
    task->seq = seq;
    task->leader = NULL;
    task->index = s->n_running;
    task->slack_wanted = 0;
    s->running[s->n_running++] = task;
    s->n_waiting--;
    if (task->start_ns != 0) return;
    note_admission(s, now_ns);
    task->start_ns = now_ns > 0 ? now_ns : 1;
    task->expire_ns = task->deadline_ns;
    kri_queue_expiry_moved(&s->queue, task);
    kri_queue_charge(&s->queue, task, kri_task_pending(task));
    kri_queue_served(&s->queue, task, now_ns);
    s->n_tokens_cached += task->match.n_cached;
}

/* Its sequence and pages are free at return. */
static void stop_running(kri_sched_t *s, kri_task_t *task, bool keep) {
    if (keep) kri_kv_pool_release(s->kv, task->seq);
    else kri_kv_pool_discard(s->kv, task->seq);
    s->seqs_free[s->n_seqs_free++] = task->seq;
    kri_task_t *last = s->running[--s->n_running];
    s->running[task->index] = last;
    last->index = task->index;
    task->n_computed = 0;
    task->n_rows = 0;
    task->idle_ns = 0;
}

void kri_sched_preempt(kri_sched_t *s, kri_task_t *task, bool forced) {
    stop_running(s, task, true);
    task->state = KRI_TASK_WAITING;
    if (forced) task->n_preempted++;
    s->n_preempted++;
    s->n_waiting++;
    kri_sched_place(s, task);
}

void kri_sched_end(kri_sched_t *s, kri_task_t *task, bool keep) {
    if (task->state == KRI_TASK_IDLE) return;
    if (task->state == KRI_TASK_RUNNING) {
        stop_running(s, task, keep);
    } else {
        kri_sched_unplace(s, task);
        s->n_waiting--;
    }
    while (task->followers) {
        kri_task_t *follower = task->followers;
        kri_sched_unplace(s, follower);
        follower->leader = NULL;
        kri_sched_place(s, follower);
    }
    kri_queue_leave(&s->queue, task);
    task->state = KRI_TASK_IDLE;
    task->leader = NULL;
}

void kri_sched_add_credits(kri_sched_t *s, kri_task_t *task, uint32_t n) {
    task->credits = n > UINT32_MAX - task->credits ? UINT32_MAX : task->credits + n;
    if (task->credits == 0) return;
    task->idle_ns = 0;
    if (task->place != KRI_PLACE_IDLE) return;
    kri_sched_unplace(s, task);
    kri_sched_place(s, task);
}

kri_task_t *kri_sched_expired(kri_sched_t *s, uint64_t now_ns) {
    if (s->queue.n_expiry == 0) return NULL;
    kri_task_t *task = s->queue.expiry[0];
    return task->expire_ns <= now_ns ? task : NULL;
}

void kri_sched_waive_queue_wait(kri_sched_t *s, kri_task_t *task) {
    task->expire_ns = task->deadline_ns;
    kri_queue_expiry_moved(&s->queue, task);
}

uint64_t kri_sched_wakeup_ns(const kri_sched_t *s) {
    uint64_t wakeup_ns = s->queue.n_expiry > 0 ? s->queue.expiry[0]->expire_ns : UINT64_MAX;
    if (!s->returning && s->queue.n_active == 0) return wakeup_ns;
    /* When one who waits may have the place of one without credits. */
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        if (!kri_task_is_idle(t) || t->idle_ns == 0) continue;
        if (t->idle_ns + KRI_IDLE_MAX_NS < wakeup_ns) wakeup_ns = t->idle_ns + KRI_IDLE_MAX_NS;
    }
    return wakeup_ns;
}

/* ---- after a step --------------------------------------------------------------------------- */

void kri_sched_commit(kri_sched_t *s, const kri_plan_t *plan, uint64_t step_ns) {
    for (uint32_t i = 0; i < plan->step.n_seqs; i++) {
        kri_task_t *task = plan->tasks[i];
        const uint32_t n = task->n_computed + task->n_rows;
        const bool page_full = n / 16 != task->n_computed / 16;
        kri_kv_pool_commit(s->kv, task->seq, n);
        task->n_computed = n;
        if (page_full) kri_kv_pool_publish(s->kv, task->seq, task->salt, task->tokens);
        if (task->n_tokens > task->n_prompt) kri_queue_charge(&s->queue, task, task->n_rows);
        task->n_rows = 0;
        if (task->followers && n >= task->n_prompt) kri_sched_fork_followers(s, task);
    }
    kri_cost_learn(&s->cost, &s->plan_rows, step_ns);
    s->n_steps++;
    s->n_rows_decode += plan->n_rows_decode;
    s->n_rows_prefill += plan->n_rows_prefill;
    s->has_plan = false;
    s->was_step = true;
    s->step_ns = step_ns;
}

void kri_sched_abort(kri_sched_t *s, const kri_plan_t *plan) {
    for (uint32_t i = 0; i < plan->step.n_seqs; i++) {
        kri_task_t *task = plan->tasks[i];
        kri_kv_pool_truncate(s->kv, task->seq, task->n_computed); /* its length: cannot fail */
        task->n_rows = 0;
    }
    s->has_plan = false;
}

void kri_sched_append(kri_sched_t *s, kri_task_t *task, kr_token_t token) {
    (void)s;
    task->tokens[task->n_tokens++] = token;
    if (task->has_credits && task->credits > 0) task->credits--;
}

/* ---- size ----------------------------------------------------------------------------------- */

/* Of those with an order below the bound. */
static kri_task_t *newest_running(const kri_sched_t *s, uint64_t bound) {
    kri_task_t *newest = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        kri_task_t *task = s->running[i];
        if (task->order < bound && (!newest || task->order > newest->order)) newest = task;
    }
    return newest;
}

kr_status_t kri_sched_resize(kri_sched_t *s, uint64_t kv_bytes) {
    for (uint32_t i = 0; i < s->queue.n_expiry; i++) {
        if (kri_sched_need_full(s, s->queue.expiry[i]) > kv_bytes) return KR_E_LIMIT;
    }
    kr_status_t status = kri_kv_pool_resize(s->kv, kv_bytes);
    while (status == KR_E_BUSY && s->n_running > 0) {
        kri_sched_preempt(s, newest_running(s, UINT64_MAX), false);
        status = kri_kv_pool_resize(s->kv, kv_bytes);
    }
    KR_TRY(status);
    s->bytes_max = kv_bytes;
    while (kri_sched_promised_bytes(s, NULL) > s->bytes_max) {
        kri_sched_preempt(s, newest_running(s, kri_sched_newest_pinned(s)), false);
    }
    return KR_OK;
}

/* ---- statistics ----------------------------------------------------------------------------- */

void kri_sched_stats(const kri_sched_t *s, kri_sched_stats_t *stats) {
    *stats = (kri_sched_stats_t){
        .n_running = s->n_running, .n_waiting = s->n_waiting, .n_steps = s->n_steps,
        .n_preempted = s->n_preempted, .n_rows_prefill = s->n_rows_prefill,
        .n_rows_decode = s->n_rows_decode, .n_tokens_cached = s->n_tokens_cached,
        .retry_after_ns = (uint64_t)(s->admit_ns * (s->n_waiting + 1.0)),
        .admit_ns = (uint64_t)s->admit_ns};
}

void kri_sched_predict(const kri_sched_t *s, const kri_task_t *task, uint32_t n_cached,
                       uint32_t *queue_position, uint64_t *ttft_ns) {
    *queue_position = s->n_waiting;
    *ttft_ns = 0;
    if (s->cost.n_measured == 0) return;
    kri_cost_rows_t decode = {0};
    const uint32_t n_before = n_cached < task->n_prompt ? n_cached : task->n_prompt - 1;
    const uint32_t n_own = task->n_prompt - n_before;
    const double keys_per_row = kri_sched_keys_of(s, n_before, n_own) / n_own;
    double n_rows = n_own;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        if (kri_task_is_idle(t)) continue;
        if (kri_task_pending(t) > 1) {
            n_rows += kri_task_pending(t);
        } else {
            decode.n_decode++;
            decode.keys_decode += kri_sched_keys_of(s, t->n_computed, 1);
        }
    }
    /* Steps of one full slice each, as they would be at half of the prompt. */
    const double limit = kri_cost_limit_ns(&s->cost, s->params.max_stall_ns / s->n_shares);
    kri_cost_rows_t rows = decode;
    uint32_t slice = s->params.n_rows_max;
    for (;; slice /= 2) {
        rows.n_prefill = slice;
        rows.keys_prefill = slice * keys_per_row;
        if (decode.n_decode == 0 || slice <= KRI_SLICE_MIN) break;
        if (kri_cost_predict_ns(&s->cost, &rows) <= limit) break;
    }
    const double step_ns = kri_cost_predict_ns(&s->cost, &rows) + s->cost.overhead_ns;
    const double n_steps = n_rows > slice ? n_rows / slice : 1;
    *ttft_ns = (uint64_t)(n_steps * step_ns + s->admit_ns * s->n_waiting);
}

/* ---- check ---------------------------------------------------------------------------------- */

static bool check_list(const kri_task_t *head, uint8_t place, uint32_t n_max, uint32_t *n) {
    const kri_task_t *prev = NULL;
    for (const kri_task_t *at = head; at; prev = at, at = at->next) {
        if (++*n > n_max || at->prev != prev || at->place != place) return false;
        if (at->state != KRI_TASK_WAITING) return false;
    }
    return true;
}

static bool check_running(const kri_sched_t *s) {
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        if (t->index != i || t->state != KRI_TASK_RUNNING || t->place != KRI_PLACE_NONE) {
            return false;
        }
        if (t->seq >= s->params.n_seqs || t->n_computed > t->n_tokens ||
            t->n_tokens > t->n_tokens_max || t->leader || t->start_ns == 0 ||
            kri_kv_pool_length(s->kv, t->seq) != t->n_computed || (t->n_rows && !s->has_plan)) {
            return false;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (s->running[j]->seq == t->seq) return false;
        }
    }
    return kri_sched_promised_bytes(s, NULL) <= s->bytes_max;
}

bool kri_sched_check(const kri_sched_t *s) {
    uint32_t n_waiting = 0, n_queued = 0;
    const uint32_t n_live = s->queue.n_expiry;
    if (s->n_running + s->n_seqs_free != s->params.n_seqs) return false;
    for (uint32_t i = 0; i < s->n_seqs_free; i++) {
        if (kri_kv_pool_length(s->kv, s->seqs_free[i]) != 0) return false;
    }
    if (!check_running(s) || !kri_queue_check(&s->queue, &n_queued)) return false;
    if (!check_list(s->returning, KRI_PLACE_RETURN, n_live, &n_waiting)) return false;
    if (!check_list(s->idle, KRI_PLACE_IDLE, n_live, &n_waiting)) return false;
    for (uint32_t i = 0; i < n_live; i++) {
        const kri_task_t *t = s->queue.expiry[i];
        if (t->state == KRI_TASK_IDLE) return false;
        if (t->place == KRI_PLACE_KEY && kri_task_is_idle(t)) return false;
        if (t->followers && t->state == KRI_TASK_RUNNING && t->n_computed >= t->n_prompt) {
            return false; /* they should have been forked */
        }
        if (!check_list(t->followers, KRI_PLACE_PARKED, n_live, &n_waiting)) return false;
    }
    return n_waiting + n_queued == s->n_waiting && s->n_waiting + s->n_running == n_live;
}
