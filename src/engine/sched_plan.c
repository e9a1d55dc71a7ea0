/* sched_plan.c: the rows of the next step. Decode rows of all running tasks with credits, then as
 * many prompt rows as the cost model says fit under the stall bound.
 *
 * Progress: the oldest running task with credits is the senior. It gets its pages from anyone, so
 * it computes at least one row in every step. Pinned tasks and those older than one are admitted
 * only when all of them fit to their end, so they never need each other's pages. */
#include "engine/sched_impl.h"

typedef struct planning_s {
    kri_sched_t *s;
    const kri_task_t *senior;
    uint32_t n_tasks;         /* s->plan_tasks, decode rows first */
    uint32_t n_rows, n_decode, n_streams;
    kri_cost_rows_t cost;
    double limit_ns;          /* 0: no stream waits */
} planning_t;

/* ---- who gives way -------------------------------------------------------------------------- */

static const kri_task_t *find_senior(const kri_sched_t *s) {
    const kri_task_t *senior = NULL;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const kri_task_t *t = s->running[i];
        if (kri_task_is_idle(t) || kri_task_pending(t) == 0) continue;
        if (!senior || t->order < senior->order) senior = t;
    }
    return senior;
}

/* Those without credits first, then the newest of the lowest priority; those who were promised to
 * run to their end only for the senior. May be the asker. */
static kri_task_t *find_victim(const planning_t *p, const kri_task_t *asker) {
    kri_task_t *victim = NULL;
    int victim_class = 0;
    const uint64_t newest = kri_sched_newest_pinned(p->s);
    for (uint32_t i = 0; i < p->s->n_running; i++) {
        kri_task_t *t = p->s->running[i];
        const int class = kri_task_is_idle(t) ? 2 : kri_sched_is_promised(t, newest) ? 0 : 1;
        if (t == p->senior || (class == 0 && asker != p->senior)) continue;
        if (!victim || class > victim_class ||
            (class == victim_class && (t->priority < victim->priority ||
                                       (t->priority == victim->priority &&
                                        t->order > victim->order)))) {
            victim = t;
            victim_class = class;
        }
    }
    return victim;
}

/* Pages for n rows more, others' if need be. False: the task has to wait, or was preempted. */
static bool reserve_or_preempt(const planning_t *p, kri_task_t *task, uint32_t n) {
    for (;;) {
        if (kri_kv_pool_reserve(p->s->kv, task->seq, task->n_computed + n) == KR_OK) return true;
        kri_task_t *victim = find_victim(p, task);
        if (!victim) return false;
        kri_sched_preempt(p->s, victim, !kri_task_is_idle(victim));
        if (victim == task) return false;
    }
}

/* ---- what rows read ------------------------------------------------------------------------- */

/* What a window hides is not read. */
double kri_sched_keys_of(const kri_sched_t *s, uint32_t pos, uint32_t n) {
    const kri_kv_group_t *groups = kri_kv_pool_groups(s->kv);
    double keys = 0;
    for (uint32_t g = 0; g < kri_kv_pool_n_groups(s->kv); g++) {
        const uint32_t window = groups[g].window;
        uint32_t n_growing = n; /* rows that still see everything */
        if (window > 0) n_growing = pos >= window ? 0 : min_u32(n, window - pos);
        keys += s->group_weight[g] *
                (n_growing * ((double)pos + 0.5 * (n_growing + 1.0)) +
                 (double)(n - n_growing) * window);
    }
    return keys;
}

static double cost_with(const planning_t *p, const kri_task_t *task, uint32_t n) {
    kri_cost_rows_t rows = p->cost;
    rows.n_prefill += n;
    rows.keys_prefill += kri_sched_keys_of(p->s, task->n_computed, n);
    return kri_cost_predict_ns(&p->s->cost, &rows);
}

/* Most rows of the task, up to n, that keep the step under the limit. */
static uint32_t rows_in_time(const planning_t *p, const kri_task_t *task, uint32_t n) {
    if (p->limit_ns <= 0) return n;
    const uint32_t trusted = kri_cost_trusted_rows(&p->s->cost, KRI_SLICE_MIN);
    if (p->cost.n_prefill >= trusted) return 0;
    uint32_t low = 0, high = min_u32(n, trusted - p->cost.n_prefill);
    if (cost_with(p, task, high) <= p->limit_ns) return high;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (cost_with(p, task, middle) <= p->limit_ns) low = middle;
        else high = middle;
    }
    return low;
}

/* Ends the rows with a page where they do not end with the pending tokens. */
static uint32_t end_with_page(const kri_task_t *task, uint32_t n) {
    if (n >= kri_task_pending(task)) return kri_task_pending(task);
    const uint32_t end = (task->n_computed + n) / 16 * 16;
    return end > task->n_computed ? end - task->n_computed : 0;
}

/* Rows to the end of the page: the least that a prompt advances by. */
static uint32_t rows_least(const kri_sched_t *s, const kri_task_t *task) {
    const uint32_t n = min_u32(KRI_SLICE_MIN - task->n_computed % 16, s->params.n_rows_max);
    return min_u32(n, kri_task_pending(task));
}

/* ---- decode rows ---------------------------------------------------------------------------- */

static void add_task(planning_t *p, kri_task_t *task, uint32_t n) {
    task->n_rows = n;
    p->s->plan_tasks[p->n_tasks++] = task;
    p->n_rows += n;
}

/* Of n_rows_max, what decode rows may take: all, unless there can be so many that prompts would
 * wait for ever. */
static uint32_t decode_rows_max(const kri_sched_t *s, bool any_prompt) {
    const uint32_t n = s->params.n_rows_max;
    if (!any_prompt || s->params.n_seqs <= n) return n;
    if (n == 1) return s->n_steps % 2 == 0;
    return n - min_u32(KRI_SLICE_MIN, n / 2);
}

/* Reserving may preempt tasks that were served before, so rows are added at the end. */
static void plan_decode(planning_t *p, uint32_t n_rows_max) {
    kri_sched_t *s = p->s;
    const uint32_t n = s->n_running;
    uint32_t n_taken = 0;
    if (s->decode_cursor >= n) s->decode_cursor = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = s->decode_cursor + i < n ? s->decode_cursor + i
                                                     : s->decode_cursor + i - n;
        s->scratch[i] = s->running[at];
    }
    uint32_t i = 0;
    for (; i < n && n_taken < n_rows_max; i++) {
        kri_task_t *t = s->scratch[i];
        if (t->state != KRI_TASK_RUNNING || kri_task_is_idle(t) || kri_task_pending(t) != 1) {
            continue;
        }
        if (!reserve_or_preempt(p, t, 1)) continue;
        t->n_rows = 1;
        n_taken++;
    }
    if (i < n) s->decode_cursor += i;
    for (uint32_t j = 0; j < i; j++) {
        kri_task_t *t = s->scratch[j];
        if (t->state != KRI_TASK_RUNNING || t->n_rows == 0 || kri_task_pending(t) != 1) continue;
        add_task(p, t, 1);
        p->n_decode++;
        p->n_streams += t->n_tokens > t->n_prompt;
        p->cost.keys_decode += kri_sched_keys_of(s, t->n_computed, 1);
    }
    p->cost.n_decode = p->n_decode;
}

/* ---- prompt rows ---------------------------------------------------------------------------- */

static uint32_t take(planning_t *p, kri_task_t *task, uint32_t n_max) {
    kri_sched_t *s = p->s;
    const uint32_t budget = min_u32(n_max, s->params.n_rows_max - p->n_rows);
    const bool is_first = p->cost.n_prefill == 0;
    uint32_t n = rows_in_time(p, task, min_u32(budget, kri_task_pending(task)));
    n = end_with_page(task, n);
    const uint32_t least = min_u32(rows_least(s, task), s->params.n_rows_max - p->n_rows);
    if (n < least && is_first) n = least;
    while (n > 0 && kri_kv_pool_reserve(s->kv, task->seq, task->n_computed + n) != KR_OK) {
        n = n > KRI_SLICE_MIN ? end_with_page(task, n / 2 > KRI_SLICE_MIN ? n / 2 : KRI_SLICE_MIN)
            : n > least       ? least
                              : 0;
    }
    if (n == 0) return 0;
    add_task(p, task, n);
    p->cost.n_prefill += n;
    p->cost.keys_prefill += kri_sched_keys_of(s, task->n_computed, n);
    return n;
}

/* Priority and age, then the key's share, then submission. Age counts from the start: what a task
 * of a flooding key waited in the queue gives it no right over the other keys' prompts. */
static bool goes_before(const planning_t *p, const kri_task_t *a, const kri_task_t *b) {
    const uint64_t now = p->s->plan_ns;
    const int64_t points_a = kri_queue_points(a, a->start_ns, now);
    const int64_t points_b = kri_queue_points(b, b->start_ns, now);
    if (points_a != points_b) return points_a > points_b;
    const uint64_t share_a = kri_queue_share(&p->s->queue, a);
    const uint64_t share_b = kri_queue_share(&p->s->queue, b);
    return share_a != share_b ? share_a < share_b : a->order < b->order;
}

/* Running tasks with prompt rows, the first to be served first: the senior, then in order. */
static uint32_t list_prompts(const planning_t *p, kri_task_t **list) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->s->n_running; i++) {
        kri_task_t *t = p->s->running[i];
        if (kri_task_is_idle(t) || kri_task_pending(t) <= 1) continue;
        uint32_t at = n++;
        for (; at > 0; at--) {
            kri_task_t *other = list[at - 1];
            if (other == p->senior || (t != p->senior && !goes_before(p, t, other))) break;
            list[at] = other;
        }
        list[at] = t;
    }
    return n;
}

/* The first task gets most of the slice. A quarter goes to the one with the fewest rows left, so
 * that short prompts do not wait behind a long one: a quarter of each slice, or where that is less
 * than a page, every fourth slice. */
static void plan_prompts(planning_t *p, kri_task_t **list, uint32_t n) {
    const kri_sched_t *s = p->s;
    kri_task_t *shortest = list[0];
    for (uint32_t i = 1; i < n; i++) {
        if (kri_task_pending(list[i]) < kri_task_pending(shortest)) shortest = list[i];
    }
    if (shortest != list[0]) {
        const uint32_t room = s->params.n_rows_max - p->n_rows;
        const uint32_t slice = rows_in_time(p, list[0], min_u32(room, kri_task_pending(list[0])));
        if (slice >= 4 * KRI_SLICE_MIN) take(p, shortest, slice / 4);
        else if (s->n_steps % 4 == 3) take(p, shortest, room);
    }
    for (uint32_t i = 0; i < n && p->n_rows < s->params.n_rows_max; i++) {
        if (list[i]->n_rows == 0) take(p, list[i], UINT32_MAX);
    }
}

/* ---- the step ------------------------------------------------------------------------------- */

/* What the task's rows [begin, end) of the step give: one that generates the logits behind its last
 * token, a mean all hidden states, else the last token's. */
static void fill_wanted(kri_sched_t *s, kri_task_t *t, uint32_t begin, uint32_t end,
                        kri_step_t *step) {
    const bool is_last = t->n_computed + t->n_rows == t->n_tokens;
    if (t->pooling == KR_POOLING_NONE && is_last) {
        s->out_tasks[step->n_out_rows] = t;
        s->out_rows[step->n_out_rows++] = end - 1;
    }
    if (t->pooling == KR_POOLING_NONE || (t->pooling == KR_POOLING_LAST && !is_last)) return;
    if (t->pooling == KR_POOLING_LAST) begin = end - 1;
    for (uint32_t row = begin; row < end; row++) s->hidden_rows[step->n_hidden_rows++] = row;
}

static void fill_task(kri_sched_t *s, uint32_t i, kri_step_t *step) {
    uint32_t row = step->n_rows;
    kri_task_t *t = s->plan_tasks[i];
    kri_step_seq_t *q = &s->step_seqs[i];
    *q = (kri_step_seq_t){.seq = t->seq, .row_begin = row, .n_rows = t->n_rows,
                          .pos_begin = t->n_computed};
    for (uint32_t g = 0; g < kri_kv_pool_n_groups(s->kv); g++) {
        q->page_table[g] = kri_kv_pool_table(s->kv, t->seq, g);
    }
    for (uint32_t r = 0; r < t->n_rows; r++, row++) {
        s->tokens[row] = t->tokens[t->n_computed + r];
        for (uint32_t c = 0; c < KRI_POS_COMPONENTS; c++) {
            s->positions[row * KRI_POS_COMPONENTS + c] = (int32_t)(t->n_computed + r);
        }
    }
    fill_wanted(s, t, step->n_rows, row, step);
    step->n_rows = row;
}

static void fill_plan(planning_t *p, kri_plan_t *plan) {
    kri_sched_t *s = p->s;
    kri_step_t step = {.tokens = s->tokens, .positions = s->positions, .n_seqs = p->n_tasks,
                       .seqs = s->step_seqs, .out_rows = s->out_rows,
                       .hidden_rows = s->hidden_rows, .n_groups = kri_kv_pool_n_groups(s->kv),
                       .groups = kri_kv_pool_groups(s->kv)};
    for (uint32_t i = 0; i < p->n_tasks; i++) fill_task(s, i, &step);
    *plan = (kri_plan_t){
        .step = step, .tasks = s->plan_tasks, .out_tasks = s->out_tasks,
        .n_rows_decode = p->n_decode, .n_rows_prefill = step.n_rows - p->n_decode};
    s->plan_rows = p->cost;
}

bool kri_sched_has_work(const kri_sched_t *s, bool *streams) {
    bool any = s->returning || s->queue.n_active > 0;
    *streams = false;
    for (uint32_t i = 0; i < s->n_running && !*streams; i++) {
        const kri_task_t *t = s->running[i];
        if (kri_task_is_idle(t)) continue;
        any = true;
        *streams = t->n_tokens > t->n_prompt;
    }
    return any;
}

void kri_sched_share(kri_sched_t *s, uint32_t n_shares, bool others_stream, bool was_apart) {
    s->n_shares = n_shares;
    s->others_stream = others_stream;
    if (was_apart) s->was_step = false; /* what went by was the other's step */
}

bool kri_sched_plan(kri_sched_t *s, uint64_t now_ns, kri_plan_t *plan) {
    *plan = (kri_plan_t){0};
    if (s->was_step && now_ns > s->plan_ns + s->step_ns) {
        kri_cost_learn_overhead(&s->cost, now_ns - s->plan_ns - s->step_ns,
                                s->params.max_stall_ns);
    }
    s->was_step = false;
    s->plan_ns = now_ns;
    kri_sched_admit(s, now_ns);
    planning_t p = {.s = s, .senior = find_senior(s)};
    if (!p.senior) return false;
    kri_task_t *senior = s->running[p.senior->index];
    bool any_prompt = false;
    for (uint32_t i = 0; i < s->n_running && !any_prompt; i++) {
        any_prompt = !kri_task_is_idle(s->running[i]) && kri_task_pending(s->running[i]) > 1;
    }
    if (kri_task_pending(senior) > 1) reserve_or_preempt(&p, senior, rows_least(s, senior));
    plan_decode(&p, decode_rows_max(s, any_prompt));
    if (any_prompt && p.n_rows < s->params.n_rows_max) {
        if (p.n_streams > 0 || s->others_stream) {
            p.limit_ns = kri_cost_limit_ns(&s->cost, s->params.max_stall_ns / s->n_shares);
        }
        const uint32_t n = list_prompts(&p, s->scratch);
        if (n > 0) plan_prompts(&p, s->scratch, n);
    }
    if (p.n_tasks == 0) plan_decode(&p, s->params.n_rows_max); /* prompts found no pages */
    if (p.n_tasks == 0) return false;
    fill_plan(&p, plan);
    s->has_plan = true;
    return true;
}
