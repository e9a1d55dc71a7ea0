/* engine_loop.c: the step thread. One turn: take what was asked, end what is overdue, run one step
 * of one model, publish. Everything that others see of a turn is published in one section under the
 * mutex, so that its cost does not depend on the number of rows that changed several times. */
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "engine/engine_impl.h"

#define SLEEP_MS_MAX 60000u
/* New requests that one turn takes while streams run: each looks its prompt up in the cache. */
#define NEW_PER_TURN 16u

/* ---- publication ---------------------------------------------------------------------------- */

void kri_engine_publish_model(kri_engine_model_t *em) {
    kri_sched_stats_t sched;
    kri_kv_stats_t kv;
    kri_sched_stats(em->sched, &sched);
    kri_kv_pool_stats(em->kv, &kv);
    em->stats = (kr_engine_stats_t){
        .struct_bytes = sizeof em->stats, .n_models = 1, .n_running = em->n_running,
        .n_waiting = em->n_waiting, .kv_bytes_max = kv.bytes_max, .kv_bytes_used = kv.bytes_used,
        .kv_bytes_cached = kv.bytes_cached, .kv_bytes_moved = kv.bytes_moved,
        .n_steps = sched.n_steps, .n_preempted = sched.n_preempted,
        .n_rows_prefill = sched.n_rows_prefill, .n_rows_decode = sched.n_rows_decode,
        .n_tokens_cached = sched.n_tokens_cached,
        .retry_after_ms = (double)(sched.admit_ns ? sched.admit_ns : sched.retry_after_ns) / 1e6,
        .sched_us = (double)em->sched_ns_mean / 1e3};
    kri_telemetry_add(em->engine->params.telemetry, KRI_METRIC_preemptions,
                      sched.n_preempted - em->n_preempted);
    em->n_preempted = sched.n_preempted;
}

static void publish_gauges(kr_engine_t e) {
    kr_telemetry_t t = e->params.telemetry;
    kr_engine_stats_t sum = {0};
    if (!t) return;
    (void)kri_engine_stats(e, NULL, &sum);
    kri_telemetry_set_gauge(t, KRI_METRIC_requests_running, (double)sum.n_running);
    kri_telemetry_set_gauge(t, KRI_METRIC_requests_waiting, (double)sum.n_waiting);
    kri_telemetry_set_gauge(t, KRI_METRIC_kv_bytes_used, (double)sum.kv_bytes_used);
    kri_telemetry_set_gauge(t, KRI_METRIC_kv_bytes_cached, (double)sum.kv_bytes_cached);
    kri_telemetry_set_gauge(t, KRI_METRIC_kv_bytes_max, (double)sum.kv_bytes_max);
    if (sum.kv_bytes_max > 0) {
        kri_telemetry_set_gauge(t, KRI_METRIC_kv_usage,
                                (double)sum.kv_bytes_used / (double)sum.kv_bytes_max);
    }
}

/* With the mutex held. */
static void publish_request(kr_engine_t e, kr_request_t r, bool *has_events) {
    r->stats = r->live;
    if ((r->is_started || r->is_ended) && !r->has_left_queue) {
        r->has_left_queue = true;
        e->n_waiting--;
    }
    if (r->ring.n_written != r->ring.n_published) {
        r->ring.n_published = r->ring.n_written;
        kri_events_ready(e, r);
        *has_events = true;
    }
    if (!r->is_ended) return;
    e->n_active--;
    e->n_tasks -= r->n_choices;
    e->request_bytes -= r->work_bytes;
    if (r->key != 0) kri_keys_remove(&e->keys, r->key);
}

void kri_engine_publish(kr_engine_t e) {
    kr_request_t ended = NULL;
    bool has_events = false, is_idle = false;
    for (kr_request_t r = e->touched; r; r = r->touched_next) kri_request_refresh(r);
    kri_mutex_lock(&e->mutex);
    for (kr_request_t r = e->touched, next; r; r = next) {
        next = r->touched_next;
        r->is_touched = false;
        publish_request(e, r, &has_events);
        if (!r->is_ended) continue;
        r->touched_next = ended;
        ended = r;
        is_idle |= e->n_active == 0;
    }
    e->touched = NULL;
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (e->models[i] && e->models[i]->is_ready) kri_engine_publish_model(e->models[i]);
    }
    kri_mutex_unlock(&e->mutex);
    if (has_events) kri_events_wake(e);
    if (is_idle) kri_engine_idle_changed(e);
    for (kr_request_t r = ended, next; r; r = next) {
        next = r->touched_next;
        kri_request_unref(r);
    }
    publish_gauges(e);
}

/* ---- what was asked ------------------------------------------------------------------------- */

typedef struct turn_s {
    kr_request_t requests;
    kri_ask_t *asks;
    kri_engine_model_t *models[KRI_MODELS_MAX];
    uint32_t n_models;
    bool is_stopping;
} turn_t;

static void take(kr_engine_t e, turn_t *turn) {
    kri_mutex_lock(&e->mutex);
    turn->requests = e->asks_head;
    turn->asks = e->ask_head;
    e->asks_head = e->asks_tail = NULL;
    e->ask_head = e->ask_tail = NULL;
    turn->n_models = 0;
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (e->models[i] && e->models[i]->is_ready) turn->models[turn->n_models++] = e->models[i];
    }
    turn->is_stopping = e->is_stopping;
    kri_mutex_unlock(&e->mutex);
}

/* The asker's stack may be gone as soon as it sees is_done; a wake-up of memory that is no futex
 * any more does no harm. */
static void answer(kri_ask_t *asks, bool is_stopping) {
    for (kri_ask_t *ask = asks, *next; ask; ask = next) {
        next = ask->next;
        if (is_stopping) ask->status = KR_E_SHUTTING_DOWN;
        atomic_store(&ask->is_done, 1);
        kri_futex_wake(&ask->is_done, 1);
    }
}

/* The list's own reference keeps a request until it was looked at. */
static void look_at(kr_engine_t e, kr_request_t requests) {
    for (kr_request_t r = requests, next; r; r = next) {
        kri_mutex_lock(&e->mutex);
        next = r->asks_next;
        r->is_asking = false;
        kri_mutex_unlock(&e->mutex);
        kri_request_look(r);
        kri_request_unref(r);
    }
}

static bool any_streams(const turn_t *turn) {
    bool streams = false;
    for (uint32_t i = 0; i < turn->n_models && !streams; i++) {
        (void)kri_sched_has_work(turn->models[i]->sched, &streams);
    }
    return streams;
}

/* At most n_max of those that no turn has looked at; true when others are left. */
static bool look_at_new(kr_engine_t e, uint32_t n_max) {
    kri_mutex_lock(&e->mutex);
    kr_request_t first = e->new_head, last = first;
    for (uint32_t n = 1; last && last != e->new_tail && n < n_max; n++) last = last->asks_next;
    if (last) {
        e->new_head = last->asks_next;
        if (!e->new_head) e->new_tail = NULL;
        last->asks_next = NULL;
    }
    const bool any_left = e->new_head != NULL;
    kri_mutex_unlock(&e->mutex);
    look_at(e, first);
    return any_left;
}

/* The wait in the queue is a request's: once it runs, its other choices wait until its deadline. */
static void end_overdue(kri_engine_model_t *em, uint64_t now_ns) {
    for (kri_task_t *task; (task = kri_sched_expired(em->sched, now_ns)) != NULL;) {
        const kri_choice_t *choice = task->owner;
        if (now_ns >= task->deadline_ns) {
            kri_request_end(choice->request, KR_E_TIMEOUT, "the deadline is over", true);
        } else if (choice->request->is_started) {
            kri_sched_waive_queue_wait(em->sched, task);
        } else {
            kri_request_end(choice->request, KR_E_BUSY, "it waited too long in the queue", true);
        }
    }
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* Everything ends; from now on asks are refused where they are made. */
static void shut_down(kr_engine_t e) {
    turn_t turn;
    kri_mutex_lock(&e->mutex);
    e->is_stopped = true;
    kri_mutex_unlock(&e->mutex);
    take(e, &turn);
    (void)look_at_new(e, UINT32_MAX);
    look_at(e, turn.requests);
    kri_mutex_lock(&e->mutex);
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) turn.models[i] = e->models[i];
    kri_mutex_unlock(&e->mutex);
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        while (turn.models[i] && turn.models[i]->requests) {
            kri_request_end(turn.models[i]->requests, KR_E_SHUTTING_DOWN,
                            "the engine is shutting down", true);
        }
    }
    kri_engine_publish(e);
    kri_mutex_lock(&e->mutex);
    e->step_is_over = true;
    kri_mutex_unlock(&e->mutex);
    kri_events_wake(e);
    answer(turn.asks, true);
}

static void sleep_until(kr_engine_t e, const turn_t *turn, uint32_t seen, uint64_t now_ns) {
    uint64_t wakeup_ns = UINT64_MAX;
    for (uint32_t i = 0; i < turn->n_models; i++) {
        const uint64_t at_ns = kri_sched_wakeup_ns(turn->models[i]->sched);
        if (at_ns < wakeup_ns) wakeup_ns = at_ns;
    }
    if (wakeup_ns <= now_ns) return;
    const uint64_t left_ms = (wakeup_ns - now_ns) / 1000000 + 1;
    atomic_store(&e->step_sleeps, 1);
    kri_futex_wait_ms(&e->step_word, seen,
                      left_ms < SLEEP_MS_MAX ? (uint32_t)left_ms : SLEEP_MS_MAX);
    atomic_store(&e->step_sleeps, 0);
}

/* Between two steps of a model each other one with work has one: all of them share the bound. */
static void share_bound(kr_engine_t e, const turn_t *turn) {
    uint32_t n_shares = 0, n_streaming = 0;
    bool streams[KRI_MODELS_MAX];
    for (uint32_t i = 0; i < turn->n_models; i++) {
        n_shares += kri_sched_has_work(turn->models[i]->sched, &streams[i]);
        n_streaming += streams[i];
    }
    if (n_shares == 0) return;
    for (uint32_t i = 0; i < turn->n_models; i++) {
        const kri_engine_model_t *em = turn->models[i];
        kri_sched_share(em->sched, n_shares, n_streaming > streams[i],
                        em->last_turn != e->n_turns);
    }
}

static bool run_step(kr_engine_t e, const turn_t *turn) {
    share_bound(e, turn);
    for (uint32_t i = 0; i < turn->n_models; i++) {
        e->turn = (e->turn + 1) % turn->n_models;
        kri_engine_model_t *em = turn->models[e->turn];
        if (!kri_engine_step(em)) continue;
        em->last_turn = ++e->n_turns;
        return true;
    }
    return false;
}

void kri_engine_step_main(void *engine) {
    kr_engine_t e = engine;
    turn_t turn;
    for (;;) {
        const uint32_t seen = atomic_load(&e->step_word);
        take(e, &turn);
        if (turn.is_stopping) {
            (void)look_at_new(e, UINT32_MAX);
            look_at(e, turn.requests);
            kri_engine_publish(e);
            answer(turn.asks, true);
            break;
        }
        /* Who asks may rely on all that was submitted before. */
        const bool is_bounded = !turn.asks && any_streams(&turn);
        const bool any_left = look_at_new(e, is_bounded ? NEW_PER_TURN : UINT32_MAX);
        look_at(e, turn.requests);
        for (kri_ask_t *ask = turn.asks; ask; ask = ask->next) ask->status = ask->fn(ask);
        const uint64_t now_ns = kri_clock_ns();
        for (uint32_t i = 0; i < turn.n_models; i++) end_overdue(turn.models[i], now_ns);
        /* Others wait for the answers: first those, then the step. */
        if (e->touched || turn.asks) kri_engine_publish(e);
        answer(turn.asks, false);
        const bool has_run = run_step(e, &turn);
        if (e->touched || has_run) kri_engine_publish(e);
        if (!has_run && !any_left) sleep_until(e, &turn, seen, now_ns);
    }
    shut_down(e);
}
