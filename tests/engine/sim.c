/* sim.c: one seed: requests with shared prefixes, salts, keys, priorities, deadlines, credits,
 * choices arrive at random, on a pool of 1 to 3 times the largest request; steps fail, are slow or
 * give numeric errors; requests are cancelled; the pool is resized; the clock jumps. After every
 * step all invariants are checked. No wall clock, no other source of chance than the seed. */
#include "sim.h"

#define SLOTS 320u
#define TOKENS_MAX 640u
#define PREFIXES 4u
#define TURNS 8u
#define MS UINT64_C(1000000)
#define FOREVER (UINT64_C(1) << 60) /* most never expire: what does not end is stuck */
#define ITERATIONS_MAX 100000u

typedef struct world_s {
    sim_rng_t rng;
    uint64_t seed, now_ns, bytes_max, bytes_first;
    kri_kv_pool_t *kv;
    kri_sched_t *sched;
    kri_sched_params_t params;
    uint32_t n_target, n_accepted, n_live, fault; /* fault: permille, scales all faults */
    uint32_t prompt_max, budget_max;
    bool is_storm; /* short prompts, long answers, a pool for one of them: preemption throughout */
    bool is_crawl; /* many prompts to be embedded, by a few rows a step, beside answers that grow */
    kr_token_t prefixes[PREFIXES][TOKENS_MAX];
    kr_token_t turns[TURNS][TOKENS_MAX]; /* finished requests that the next turn repeats */
    uint32_t turn_lengths[TURNS];
    sim_request_t requests[SLOTS];
    kr_token_t tokens[SLOTS][TOKENS_MAX];
    sim_totals_t *totals;
    bool is_trace, is_failed;
    char *error;
    size_t error_bytes;
} world_t;

static void fail(world_t *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(world_t *w, const char *format, ...) {
    if (w->is_failed) return;
    w->is_failed = true;
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(w->error, w->error_bytes, "seed %llu at %.3f ms: %s", (unsigned long long)w->seed,
             (double)w->now_ns / 1e6, text);
}

#define TRACE(w, ...)                                                                            \
    do {                                                                                         \
        if ((w)->is_trace) {                                                                     \
            printf("%12.3f  ", (double)(w)->now_ns / 1e6);                                       \
            printf(__VA_ARGS__);                                                                 \
            printf("\n");                                                                        \
        }                                                                                        \
    } while (0)

static uint32_t slot_of(const world_t *w, const kri_task_t *task) {
    return (uint32_t)((const sim_request_t *)task->owner - w->requests);
}

/* ---- requests ------------------------------------------------------------------------------- */

static uint64_t need_of(const world_t *w, uint32_t n_prompt, uint32_t n_tokens_max) {
    const uint32_t n = n_tokens_max - 1 > n_prompt ? n_tokens_max - 1 : n_prompt;
    return kri_kv_pool_need(w->kv, 0, n, w->params.n_rows_max < 16 ? w->params.n_rows_max : 16);
}

/* A prefix that many share, or an earlier conversation, then tokens of its own. */
static uint32_t make_prompt(world_t *w, kr_token_t *tokens) {
    const uint32_t n = sim_range(&w->rng, 1, w->prompt_max);
    uint32_t n_shared = 0;
    const kr_token_t *shared = NULL;
    const uint32_t kind = sim_range(&w->rng, 0, 9);
    if (kind < 5) {
        shared = w->prefixes[sim_range(&w->rng, 0, PREFIXES - 1)];
        n_shared = sim_range(&w->rng, 0, n);
        if (sim_chance(&w->rng, 200)) n_shared = n;
    } else if (kind < 8) {
        const uint32_t turn = sim_range(&w->rng, 0, TURNS - 1);
        shared = w->turns[turn];
        n_shared = w->turn_lengths[turn] < n ? w->turn_lengths[turn] : n;
    }
    if (n_shared > 0) memcpy(tokens, shared, n_shared * sizeof *tokens);
    for (uint32_t i = n_shared; i < n; i++) {
        tokens[i] = (kr_token_t)sim_range(&w->rng, 0, SIM_VOCAB - 1);
    }
    return n;
}

static sim_request_t *free_slot(world_t *w) {
    const uint32_t begin = sim_range(&w->rng, 0, SLOTS - 1);
    for (uint32_t i = 0; i < SLOTS; i++) {
        sim_request_t *r = &w->requests[(begin + i) % SLOTS];
        if (!r->is_live) return r;
    }
    return NULL;
}

static void ended(world_t *w, sim_request_t *r, const char *how, uint64_t *counter) {
    TRACE(w, "%-9s %3u  tokens %u of %u, computed %u, preempted %u", how,
          slot_of(w, &r->task), r->task.n_tokens, r->n_goal, r->task.n_computed,
          r->task.n_preempted);
    if (!r->is_live) fail(w, "request %u ended twice", slot_of(w, &r->task));
    w->totals->n_pinned += r->task.n_preempted >= 4;
    if (r->task.state != KRI_TASK_IDLE) fail(w, "task is not idle after end");
    r->is_live = false;
    w->n_live--;
    (*counter)++;
}

static void end(world_t *w, sim_request_t *r, bool keep, const char *how, uint64_t *counter) {
    if (keep && r->task.n_tokens > 2 && sim_chance(&w->rng, 300)) {
        const uint32_t turn = sim_range(&w->rng, 0, TURNS - 1);
        w->turn_lengths[turn] = r->task.n_tokens;
        memcpy(w->turns[turn], r->task.tokens, r->task.n_tokens * sizeof(kr_token_t));
    }
    kri_sched_end(w->sched, &r->task, keep);
    ended(w, r, how, counter);
}

static void fill_request(world_t *w, sim_request_t *r, const sim_request_t *leader) {
    const uint32_t slot = (uint32_t)(r - w->requests);
    kr_token_t *tokens = w->tokens[slot];
    *r = (sim_request_t){.sampler = sim_next(&w->rng)};
    kri_task_t *t = &r->task;
    if (leader) {
        *t = (kri_task_t){.n_prompt = leader->task.n_prompt, .n_tokens = leader->task.n_prompt,
                          .n_tokens_max = leader->task.n_tokens_max, .key = leader->task.key,
                          .priority = leader->task.priority, .salt = leader->task.salt,
                          .deadline_ns = leader->task.deadline_ns,
                          .queue_until_ns = leader->task.queue_until_ns};
        t->leader = &w->requests[leader - w->requests].task;
        memcpy(tokens, leader->task.tokens, t->n_prompt * sizeof *tokens);
    } else {
        t->n_prompt = t->n_tokens = make_prompt(w, tokens);
        const uint32_t left = w->params.n_ctx - t->n_prompt;
        const uint32_t budget = sim_range(&w->rng, 1 + w->budget_max / 4, w->budget_max);
        t->n_tokens_max = t->n_prompt + (budget < left ? budget : left);
        if (sim_chance(&w->rng, w->is_crawl ? 500 : 80)) {
            t->pooling = sim_chance(&w->rng, 600) ? KR_POOLING_MEAN : KR_POOLING_LAST;
            t->n_tokens_max = t->n_prompt;
        }
        t->key = sim_range(&w->rng, 0, sim_chance(&w->rng, 200) ? 400 : 4);
        t->salt = sim_chance(&w->rng, 700) ? 0 : sim_range(&w->rng, 1, 2);
        t->priority = sim_chance(&w->rng, 300) ? (int32_t)sim_range(&w->rng, 0, 200) - 100 : 0;
        t->deadline_ns = w->now_ns + (sim_chance(&w->rng, w->fault * 4)
                                          ? sim_range(&w->rng, 1, 20000) * MS : FOREVER);
        t->queue_until_ns = w->now_ns + (sim_chance(&w->rng, w->fault * 2)
                                             ? sim_range(&w->rng, 1, 5000) * MS : FOREVER);
    }
    t->tokens = tokens;
    t->owner = r;
    r->n_goal = t->n_tokens_max;
    if (t->pooling == KR_POOLING_NONE && sim_chance(&w->rng, w->is_storm ? 100 : 500)) {
        r->n_goal = sim_range(&w->rng, t->n_prompt + 1, t->n_tokens_max);
    }
    if (sim_chance(&w->rng, w->fault * 3)) {
        t->has_credits = true;
        t->credits = sim_range(&w->rng, 0, 6);
        r->credits_at_ns = w->now_ns + sim_range(&w->rng, 1, 3000) * MS;
    }
    r->hash = SIM_HASH_START;
    for (uint32_t i = 0; i < t->n_prompt; i++) r->hash = sim_hash(r->hash, tokens[i]);
}

static bool submit_one(world_t *w, sim_request_t *r) {
    kri_task_t *t = &r->task;
    kri_sched_stats_t stats;
    kri_sched_stats(w->sched, &stats);
    const bool fits = need_of(w, t->n_prompt, t->n_tokens_max) <= w->bytes_max;
    const bool has_place = stats.n_waiting < w->params.queue_max;
    const kr_status_t status = kri_sched_submit(w->sched, t, w->now_ns);
    const kr_status_t expected = !fits ? KR_E_LIMIT : has_place ? KR_OK : KR_E_BUSY;
    TRACE(w, "submit    %3u  prompt %u, up to %u tokens, pooling %d, key %u, salt %u, "
             "priority %d%s: %s",
          slot_of(w, t), t->n_prompt, t->n_tokens_max, t->pooling, (unsigned)t->key,
          (unsigned)t->salt, t->priority, t->has_credits ? ", credits" : "",
          kr_status_name(status));
    if (status != expected) {
        fail(w, "submit: %s, expected %s", kr_status_name(status), kr_status_name(expected));
    }
    w->totals->n_refused += status == KR_E_LIMIT;
    w->totals->n_busy += status == KR_E_BUSY;
    if (status != KR_OK) return false;
    r->is_live = true;
    w->n_live++;
    w->n_accepted++;
    w->totals->n_requests++;
    return true;
}

static void submit(world_t *w) {
    sim_request_t *leader = free_slot(w);
    if (!leader) return;
    fill_request(w, leader, NULL);
    if (!submit_one(w, leader) || leader->task.pooling != KR_POOLING_NONE) return;
    const uint32_t n_choices = sim_chance(&w->rng, 150) ? sim_range(&w->rng, 2, 8) : 1;
    for (uint32_t i = 1; i < n_choices; i++) {
        sim_request_t *r = free_slot(w);
        if (!r) return;
        fill_request(w, r, leader);
        if (!submit_one(w, r)) return;
    }
}

/* ---- what happens between steps ------------------------------------------------------------- */

static sim_request_t *any_live(world_t *w) {
    const uint32_t begin = sim_range(&w->rng, 0, SLOTS - 1);
    for (uint32_t i = 0; i < SLOTS; i++) {
        sim_request_t *r = &w->requests[(begin + i) % SLOTS];
        if (r->is_live) return r;
    }
    return NULL;
}

static void resize(world_t *w) {
    uint64_t need = 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const kri_task_t *t = &w->requests[i].task;
        if (!w->requests[i].is_live) continue;
        const uint64_t n = need_of(w, t->n_prompt, t->n_tokens_max);
        if (n > need) need = n;
    }
    const uint64_t bytes = w->bytes_first * sim_range(&w->rng, 30, 100) / 100;
    const kr_status_t status = kri_sched_resize(w->sched, bytes);
    TRACE(w, "resize         %llu bytes: %s", (unsigned long long)bytes, kr_status_name(status));
    if (status != (need > bytes ? KR_E_LIMIT : KR_OK)) {
        fail(w, "resize to %llu: %s, live tasks need %llu", (unsigned long long)bytes,
             kr_status_name(status), (unsigned long long)need);
    }
    if (status != KR_OK) return;
    w->bytes_max = bytes;
    w->totals->n_resized++;
}

static void grant_credits(world_t *w) {
    for (uint32_t i = 0; i < SLOTS; i++) {
        sim_request_t *r = &w->requests[i];
        if (!r->is_live || r->credits_at_ns == 0 || r->credits_at_ns > w->now_ns) continue;
        kri_sched_add_credits(w->sched, &r->task, sim_range(&w->rng, 1, 8));
        r->credits_at_ns = w->now_ns + sim_range(&w->rng, 1, sim_chance(&w->rng, 50) ? 20000 : 300)
                                           * MS;
    }
}

static void expire(world_t *w) {
    uint64_t first = UINT64_MAX;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const kri_task_t *t = &w->requests[i].task;
        if (!w->requests[i].is_live) continue;
        if (t->deadline_ns < first) first = t->deadline_ns;
        if (t->start_ns == 0 && t->queue_until_ns < first) first = t->queue_until_ns;
    }
    if (kri_sched_wakeup_ns(w->sched) > first) fail(w, "wakeup is after the first to expire");
    for (;;) {
        kri_task_t *t = kri_sched_expired(w->sched, w->now_ns);
        if (!t) break;
        const bool is_due = t->deadline_ns <= w->now_ns ||
                            (t->start_ns == 0 && t->queue_until_ns <= w->now_ns);
        if (!is_due) fail(w, "expired before its time");
        end(w, t->owner, true, "expired", &w->totals->n_expired);
        if (w->is_failed) return;
    }
    for (uint32_t i = 0; i < SLOTS && first <= w->now_ns; i++) {
        const kri_task_t *t = &w->requests[i].task;
        if (w->requests[i].is_live && t->deadline_ns <= w->now_ns) {
            fail(w, "a task outlives its deadline");
        }
    }
}

static void disturb(world_t *w) {
    if (w->n_accepted < w->n_target) {
        if (sim_chance(&w->rng, 15)) {
            uint32_t n = sim_range(&w->rng, 1, w->params.queue_max + 4);
            while (n-- > 0) submit(w);
        } else if (w->n_live == 0 || sim_chance(&w->rng, 150)) {
            submit(w);
        }
    }
    if (sim_chance(&w->rng, w->fault / 4)) {
        sim_request_t *r = any_live(w);
        if (r) end(w, r, true, "cancelled", &w->totals->n_cancelled);
    }
    if (sim_chance(&w->rng, w->fault / 10)) resize(w);
    if (sim_chance(&w->rng, w->fault / 20)) {
        w->now_ns += sim_range(&w->rng, 1, 30000) * MS;
        TRACE(w, "clock jumps");
    }
    grant_credits(w);
    expire(w);
}

/* ---- a step --------------------------------------------------------------------------------- */

/* What sequence i gives: out and hidden count what those before it gave. */
static void check_wanted(world_t *w, const kri_plan_t *plan, uint32_t i, uint32_t *out,
                         uint32_t *hidden) {
    const kri_step_t *step = &plan->step;
    const kri_step_seq_t *q = &step->seqs[i];
    const kri_task_t *t = plan->tasks[i];
    const uint32_t end = q->row_begin + q->n_rows;
    const bool is_last = q->pos_begin + q->n_rows == t->n_tokens;
    if (t->pooling == KR_POOLING_NONE && is_last) {
        if (*out >= step->n_out_rows || step->out_rows[*out] != end - 1 ||
            plan->out_tasks[*out] != t) {
            fail(w, "output rows do not match the tasks");
        }
        (*out)++;
    }
    if (t->pooling == KR_POOLING_NONE || (t->pooling == KR_POOLING_LAST && !is_last)) return;
    for (uint32_t row = t->pooling == KR_POOLING_LAST ? end - 1 : q->row_begin; row < end; row++) {
        if (*hidden >= step->n_hidden_rows || step->hidden_rows[*hidden] != row) {
            fail(w, "hidden rows do not match the tasks");
            return;
        }
        (*hidden)++;
    }
    if (t->pooling == KR_POOLING_MEAN && t->match.n_cached > 0) fail(w, "a mean of cached rows");
}

static void check_plan(world_t *w, const kri_plan_t *plan) {
    const kri_step_t *step = &plan->step;
    uint32_t row = 0, out = 0, hidden = 0;
    uint64_t seen = 0;
    if (step->n_rows == 0 || step->n_rows > w->params.n_rows_max ||
        plan->n_rows_decode + plan->n_rows_prefill != step->n_rows) {
        fail(w, "plan of %u rows", step->n_rows);
    }
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const kri_step_seq_t *q = &step->seqs[i];
        const kri_task_t *t = plan->tasks[i];
        if (q->seq >= w->params.n_seqs || seen >> q->seq & 1) fail(w, "sequence %u twice", q->seq);
        seen |= UINT64_C(1) << q->seq;
        if (t->state != KRI_TASK_RUNNING || t->seq != q->seq || q->row_begin != row ||
            q->n_rows == 0 || q->pos_begin != t->n_computed ||
            q->pos_begin != kri_kv_pool_length(w->kv, q->seq) ||
            q->pos_begin + q->n_rows > t->n_tokens) {
            fail(w, "plan's sequence %u does not match its task", i);
            return;
        }
        if (t->has_credits && t->credits == 0) fail(w, "a task without credits runs");
        for (uint32_t r = 0; r < q->n_rows; r++, row++) {
            if (step->tokens[row] != t->tokens[q->pos_begin + r] ||
                step->positions[row * 3] != (int32_t)(q->pos_begin + r)) {
                fail(w, "row %u has the wrong token or position", row);
            }
        }
        check_wanted(w, plan, i, &out, &hidden);
        if (w->is_failed) return;
    }
    if (row != step->n_rows || out != step->n_out_rows || hidden != step->n_hidden_rows) {
        fail(w, "rows do not add up");
    }
}

static void check_all(world_t *w) {
    if (!kri_sched_check(w->sched)) fail(w, "kri_sched_check");
    if (w->totals->n_steps % 8 == 0 && !kri_kv_pool_check(w->kv)) fail(w, "kri_kv_pool_check");
    kri_kv_stats_t kv;
    kri_kv_pool_stats(w->kv, &kv);
    if (kv.bytes_used + kv.bytes_cached > kv.bytes_max || kv.bytes_max != w->bytes_max) {
        fail(w, "ledger: %llu used, %llu cached of %llu", (unsigned long long)kv.bytes_used,
             (unsigned long long)kv.bytes_cached, (unsigned long long)kv.bytes_max);
    }
    kri_sched_stats_t stats;
    kri_sched_stats(w->sched, &stats);
    if (stats.n_running + stats.n_waiting != w->n_live) fail(w, "a task was lost");
}

/* Of the running tasks with credits, the one that no one may preempt. */
static const kri_task_t *senior(const world_t *w) {
    const kri_task_t *first = NULL;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const kri_task_t *t = &w->requests[i].task;
        if (!w->requests[i].is_live || t->state != KRI_TASK_RUNNING) continue;
        if (t->has_credits && t->credits == 0) continue;
        if (!first || t->order < first->order) first = t;
    }
    return first;
}

static void finish_token(world_t *w, kri_task_t *t, uint64_t hash) {
    sim_request_t *r = t->owner;
    const kr_token_t token = sim_sample(hash, r->sampler);
    kri_sched_append(w->sched, t, token);
    r->hash = sim_hash(r->hash, token);
    r->n_appended++;
    w->totals->n_tokens++;
    if (t->n_tokens != t->n_prompt + r->n_appended) fail(w, "token count");
    if (t->n_tokens == r->n_goal) end(w, r, true, "done", &w->totals->n_done);
}

/* A mean has had every position once and in order; a preempted one begins anew. */
static void pool_rows(world_t *w, const kri_task_t *t, const kri_step_seq_t *q) {
    sim_request_t *r = t->owner;
    if (t->pooling != KR_POOLING_MEAN) return;
    if (q->pos_begin == 0 && r->n_pooled > 0) {
        w->totals->n_repooled++;
        r->n_pooled = 0;
    }
    if (q->pos_begin != r->n_pooled) {
        fail(w, "request %u: hidden states from %u on, had %u", slot_of(w, t), q->pos_begin,
             r->n_pooled);
    }
    r->n_pooled += q->n_rows;
}

static void finish_rows(world_t *w, const kri_plan_t *plan, const uint64_t *hashes) {
    for (uint32_t i = 0; i < plan->step.n_seqs && !w->is_failed; i++) {
        const kri_step_seq_t *q = &plan->step.seqs[i];
        kri_task_t *t = plan->tasks[i];
        sim_request_t *r = t->owner;
        const bool is_last = q->pos_begin + q->n_rows == t->n_tokens;
        pool_rows(w, t, q);
        if (!is_last && t->pooling == KR_POOLING_NONE) continue;
        if (is_last && hashes[i] != r->hash) {
            fail(w, "wrong output: request %u at token %u", slot_of(w, t), t->n_tokens);
        }
        if (sim_chance(&w->rng, w->fault / 20)) {
            end(w, r, false, "numeric", &w->totals->n_numeric);
        } else if (t->pooling == KR_POOLING_NONE) {
            finish_token(w, t, hashes[i]);
        } else if (is_last) {
            w->totals->n_embedded++;
            end(w, r, true, "embedded", &w->totals->n_done);
        }
    }
}

/* The step was stopped in the middle: what its rows wrote means nothing. They run again, or end:
 * all cancelled, then what was computed before may stay cached, or failed. */
static void abort_step(world_t *w, const kri_plan_t *plan) {
    sim_request_t *hit[64];
    const uint32_t n = plan->step.n_seqs;
    for (uint32_t i = 0; i < n; i++) hit[i] = plan->tasks[i]->owner;
    sim_model_spoil(plan);
    kri_sched_abort(w->sched, plan);
    w->totals->n_aborted++;
    TRACE(w, "abort          %u sequences", n);
    if (sim_chance(&w->rng, 600)) return;
    const bool keep = sim_chance(&w->rng, 500);
    for (uint32_t i = 0; i < n; i++) {
        if (keep) end(w, hit[i], true, "dropped", &w->totals->n_cancelled);
        else end(w, hit[i], false, "failed", &w->totals->n_numeric);
    }
}

static void count_forks(world_t *w, uint32_t *n_parked) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const sim_request_t *r = &w->requests[i];
        n += r->is_live && r->task.state == KRI_TASK_RUNNING &&
             r->task.match.n_cached + 1 == r->task.n_prompt && r->task.n_preempted == 0;
        if (r->is_live && r->task.n_preempted > 4) fail(w, "a pinned task was preempted");
    }
    *n_parked = n;
}

static void run_step(world_t *w, const kri_plan_t *plan, const kri_task_t *first) {
    static uint64_t hashes[64];
    TRACE(w, "step           %u decode, %u prefill", plan->n_rows_decode, plan->n_rows_prefill);
    check_plan(w, plan);
    if (first && first->state != KRI_TASK_RUNNING) fail(w, "the senior task was preempted");
    if (w->is_failed) return;
    char error[300] = "output rows";
    const bool is_right = sim_model_run(plan, hashes, error, sizeof error);
    if (!is_right) {
        fail(w, "%s", error);
        return;
    }
    uint64_t step_ns = MS / 5 + plan->step.n_rows * (MS / 10);
    step_ns += step_ns / 100 * sim_range(&w->rng, 0, 20);
    if (sim_chance(&w->rng, w->fault / 10)) step_ns *= 30;
    w->now_ns += step_ns;
    w->totals->n_steps++;
    if (sim_chance(&w->rng, w->fault / 10)) {
        abort_step(w, plan);
        return;
    }
    uint32_t before, after;
    count_forks(w, &before);
    kri_sched_commit(w->sched, plan, step_ns);
    count_forks(w, &after);
    w->totals->n_forked += after - before;
    finish_rows(w, plan, hashes);
}

/* Nothing ran: allowed only while everyone waits for credits, or for pages and sequences of those
 * who do. Time goes on to the next event. */
static void idle_step(world_t *w) {
    uint64_t next = kri_sched_wakeup_ns(w->sched);
    bool is_held = false, is_wanted = false, is_given = false;
    w->totals->n_idle_steps++;
    for (uint32_t i = 0; i < SLOTS; i++) {
        const sim_request_t *r = &w->requests[i];
        if (!r->is_live) continue;
        const bool is_idle = r->task.has_credits && r->task.credits == 0;
        is_held = is_held || is_idle;
        is_wanted |= !is_idle && r->task.state == KRI_TASK_WAITING && !r->task.leader;
        is_given |= is_idle && r->task.state == KRI_TASK_RUNNING;
        if (!is_idle && r->task.state == KRI_TASK_RUNNING) fail(w, "a runnable task does not run");
        if (r->credits_at_ns > w->now_ns && r->credits_at_ns < next) next = r->credits_at_ns;
    }
    if (w->n_live > 0 && !is_held) fail(w, "nothing runs, %u tasks live", w->n_live);
    /* Who waits must not sleep on when those without credits may give way. */
    if (is_wanted && is_given && kri_sched_wakeup_ns(w->sched) > w->now_ns + 1000 * MS) {
        fail(w, "sleeps too long");
    }
    const uint64_t most = w->now_ns + 100 * MS;
    w->now_ns = next < most ? next : most;
}

/* ---- a seed --------------------------------------------------------------------------------- */

static bool make_pool(world_t *w) {
    static const uint32_t windows[] = {16, 20, 32, 48, 64};
    kri_kv_params_t kv = {.n_groups = sim_range(&w->rng, 1, 3), .dtype = KR_DTYPE_F32,
                          .n_seqs = w->params.n_seqs, .n_ctx = w->params.n_ctx,
                          .prefix_cache = sim_chance(&w->rng, 850)};
    for (uint32_t g = 0; g < kv.n_groups; g++) {
        kv.groups[g] = (kri_kv_shape_t){.n_layers = sim_range(&w->rng, 1, 2), .n_kv_heads = 1,
                                        .head_dim = 4,
                                        .window = g > 0 ? windows[sim_range(&w->rng, 0, 4)] : 0};
    }
    if (kri_kv_pool_create(&kv, &w->kv) != KR_OK) return false;
    if (w->is_storm || w->is_crawl || sim_chance(&w->rng, 900)) {
        const uint32_t n = w->prompt_max + w->budget_max < w->params.n_ctx
                               ? w->prompt_max + w->budget_max : w->params.n_ctx;
        const uint32_t percent =
            sim_range(&w->rng, 100, w->is_storm || w->is_crawl ? 130 : 300);
        const uint64_t bytes = need_of(w, n, n) * percent / 100;
        /* A full pool may be less than what windows ask for in one step. */
        (void)kri_kv_pool_resize(w->kv, bytes);
    }
    kri_kv_stats_t stats;
    kri_kv_pool_stats(w->kv, &stats);
    w->bytes_max = w->bytes_first = stats.bytes_max;
    return true;
}

/* Of three pages in any order, so that equal pages stand at many places and after many others. */
static void make_prefixes(world_t *w) {
    kr_token_t pages[3][16];
    for (uint32_t i = 0; i < 48; i++) {
        pages[i / 16][i % 16] = (kr_token_t)sim_range(&w->rng, 0, SIM_VOCAB - 1);
    }
    for (uint32_t i = 0; i < PREFIXES; i++) {
        for (uint32_t j = 0; j < TOKENS_MAX; j += 16) {
            memcpy(&w->prefixes[i][j], pages[sim_range(&w->rng, 0, 2)], sizeof pages[0]);
        }
    }
}

static bool make_world(world_t *w, uint64_t seed) {
    static const uint32_t rows[] = {1, 3, 16, 32, 64, 128, 200};
    static const uint32_t contexts[] = {33, 64, 128, 256, 512};
    w->seed = seed;
    w->rng.state = sim_mix(seed + 1);
    w->now_ns = sim_range(&w->rng, 0, 5000) * MS;
    w->params = (kri_sched_params_t){
        .n_seqs = sim_range(&w->rng, 1, 12), .n_ctx = contexts[sim_range(&w->rng, 0, 4)],
        .n_rows_max = rows[sim_range(&w->rng, 0, 6)], .queue_max = sim_range(&w->rng, 2, 40),
        .max_stall_ns = sim_range(&w->rng, 1, 50) * MS};
    w->fault = sim_chance(&w->rng, 100) ? 0 : sim_range(&w->rng, 1, 100);
    w->n_target = 110 + sim_range(&w->rng, 0, 20);
    w->prompt_max = sim_range(&w->rng, 1, w->params.n_ctx - 2);
    if (w->prompt_max > 150) w->prompt_max = 150 + w->prompt_max / 10;
    w->budget_max = sim_chance(&w->rng, 600) ? sim_range(&w->rng, 1, 48)
                                             : sim_range(&w->rng, 48, 300);
    w->is_storm = sim_chance(&w->rng, 150);
    if (w->is_storm) {
        w->params.n_seqs = sim_range(&w->rng, 6, 16);
        w->params.n_ctx = 256;
        w->prompt_max = 12;
        w->budget_max = sim_range(&w->rng, 150, 240);
        w->fault = sim_range(&w->rng, 0, 12);
    }
    w->is_crawl = !w->is_storm && sim_chance(&w->rng, 150);
    if (w->is_crawl) {
        w->params.n_seqs = sim_range(&w->rng, 3, 8);
        w->params.n_ctx = 512;
        w->params.n_rows_max = rows[sim_range(&w->rng, 1, 2)];
        w->prompt_max = 120;
        w->budget_max = 240;
    }
    make_prefixes(w);
    if (!make_pool(w)) return false;
    w->params.kv = w->kv;
    return kri_sched_create(&w->params, &w->sched) == KR_OK;
}

static void check_idle_pool(world_t *w) {
    kri_kv_stats_t kv;
    kri_kv_pool_stats(w->kv, &kv);
    w->totals->n_evicted += kv.n_evicted;
    if (kv.bytes_used != 0) fail(w, "%llu bytes leaked", (unsigned long long)kv.bytes_used);
    kri_kv_pool_forget(w->kv);
    kri_kv_pool_stats(w->kv, &kv);
    if (kv.bytes_cached != 0) fail(w, "cached bytes stay after forget");
    if (!kri_kv_pool_check(w->kv)) fail(w, "kri_kv_pool_check at the end");
}

bool sim_run(uint64_t seed, bool trace, sim_totals_t *totals, char *error, size_t error_bytes) {
    static world_t world;
    world_t *w = &world;
    memset(w, 0, offsetof(world_t, tokens));
    *w = (world_t){.totals = totals, .is_trace = trace, .error = error,
                   .error_bytes = error_bytes};
    if (!make_world(w, seed)) fail(w, "create");
    for (uint32_t i = 0; !w->is_failed && (w->n_accepted < w->n_target || w->n_live > 0); i++) {
        if (i == ITERATIONS_MAX) fail(w, "stuck: %u live after %u iterations", w->n_live, i);
        disturb(w);
        if (w->is_failed) break;
        const kri_task_t *first = senior(w);
        kri_plan_t plan;
        if (kri_sched_plan(w->sched, w->now_ns, &plan)) run_step(w, &plan, first);
        else idle_step(w);
        if (!w->is_failed) check_all(w);
    }
    if (!w->is_failed) {
        kri_sched_stats_t stats;
        kri_sched_stats(w->sched, &stats);
        totals->n_preempted += stats.n_preempted;
        totals->n_cached += stats.n_tokens_cached;
        check_idle_pool(w);
    }
    kri_sched_destroy(w->sched);
    kri_kv_pool_destroy(w->kv);
    return !w->is_failed;
}
