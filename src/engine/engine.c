/* engine.c: the engine's threads and how others talk to them. All computing belongs to the step
 * thread, so that the scheduler, the pools and the sessions need no locks; what others may see of
 * it is copied under a mutex once a step (publication), which makes figures at most a step old. */
#include "engine/engine.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "engine/engine_impl.h"

#define QUEUE_DEFAULT 1024u
#define QUEUE_MAX 65536u
#define QUEUE_WAIT_MS_DEFAULT 60000u
#define KEY_IN_FLIGHT_DEFAULT 64u
#define STALL_MS_DEFAULT 250u
#define STALL_MS_MAX 60000u
/* Where the system does not say how much memory there is. */
#define KV_BYTES_UNKNOWN ((uint64_t)1 << 30)
/* Requests beyond the queue whose events are not consumed yet. */
#define OPEN_EXTRA 8192u
/* Tasks (choices of requests) that have not ended: waiting ones, and beyond them those of requests
 * that run. */
#define TASKS_MAX (1u << 20)
#define TASKS_EXTRA 8192u
#define REQUEST_BYTES_MIN ((uint64_t)256 << 20)

static kr_status_t complete_params(kr_engine_params_t *p, kr_error_t *error) {
    KR_TRY(kri_check_max("n_threads", p->n_threads, KRI_THREADS_MAX, error));
    KR_TRY(kri_check_max("max_stall_ms", p->max_stall_ms, STALL_MS_MAX, error));
    KR_TRY(kri_check_max("queue_max", p->queue_max, QUEUE_MAX, error));
    if (p->n_threads == 0) p->n_threads = kri_cpu_count();
    if (p->max_stall_ms == 0) p->max_stall_ms = STALL_MS_DEFAULT;
    if (p->queue_max == 0) p->queue_max = QUEUE_DEFAULT;
    if (p->queue_wait_ms_max == 0) p->queue_wait_ms_max = QUEUE_WAIT_MS_DEFAULT;
    if (p->key_in_flight_max == 0) p->key_in_flight_max = KEY_IN_FLIGHT_DEFAULT;
    if (p->kv_bytes_max == 0) p->kv_bytes_max = kri_memory_available() / 2;
    if (p->kv_bytes_max == 0) p->kv_bytes_max = KV_BYTES_UNKNOWN;
    return KR_OK;
}

kr_status_t kri_engine_create(const kr_engine_params_t *params, kr_engine_t *engine,
                              kr_error_t *error) {
    kr_engine_params_t p = *params;
    KR_TRY(complete_params(&p, error));
    kr_engine_t e = kri_calloc(1, sizeof *e, "engine");
    if (!e) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the engine");
    kr_status_t status = KR_OK;
    e->params = p;
    e->event_fd = -1;
    e->open_max = p.queue_max + OPEN_EXTRA;
    e->n_tasks_max = TASKS_EXTRA + (p.queue_max < TASKS_MAX / KRI_CHOICES_MAX
                                        ? p.queue_max * KRI_CHOICES_MAX : TASKS_MAX);
    const uint64_t quarter = kri_memory_available() / 4;
    e->request_bytes_max = quarter > REQUEST_BYTES_MIN ? quarter : REQUEST_BYTES_MIN;
    atomic_store(&e->n_refs, 1);
    if (!kri_mutex_init(&e->mutex) || !kri_mutex_init(&e->admin_mutex)) {
        kri_free(e);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for a mutex");
    }
    kri_telemetry_retain(p.telemetry);
    KR_TRY_DONE(kri_keys_init(&e->keys, e->open_max));
    if (!p.on_event) KR_TRY_DONE(kri_event_fd_create(&e->event_fd));
    KR_TRY_DONE(kri_background_start(kri_engine_step_main, e, &e->step_thread));
    if (p.on_event) KR_TRY_DONE(kri_background_start(kri_dispatch_main, e, &e->dispatcher));
    *engine = e;
    return KR_OK;
done:
    kri_engine_stop(e);
    kri_engine_teardown(e, false);
    return KRI_FAIL(error, status, NULL, "cannot start the engine: %s", kr_status_text(status));
}

/* ---- end ------------------------------------------------------------------------------------ */

void kri_engine_retain(kr_engine_t e) { atomic_fetch_add(&e->n_refs, 1); }

void kri_engine_unref(kr_engine_t e) {
    if (atomic_fetch_sub(&e->n_refs, 1) != 1) return;
    kri_mutex_deinit(&e->mutex);
    kri_mutex_deinit(&e->admin_mutex);
    kr_telemetry_destroy(e->params.telemetry);
    kri_free(e);
}

void kri_engine_stop(kr_engine_t e) {
    kri_mutex_lock(&e->mutex);
    e->is_draining = e->is_stopping = true;
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (!e->models[i]) continue;
        __atomic_fetch_or(&e->models[i]->cancel, KRI_CANCEL_ALL, __ATOMIC_RELAXED);
    }
    kri_mutex_unlock(&e->mutex);
    kri_engine_wake(e);
}

void kri_engine_teardown(kr_engine_t e, bool is_dispatcher) {
    uint32_t n_published;
    kr_request_t request;
    kri_background_join(e->step_thread);
    if (is_dispatcher) kri_background_detach(e->dispatcher);
    else kri_background_join(e->dispatcher);
    /* What no poll will take. */
    kri_events_release_held(e);
    for (;;) {
        kri_mutex_lock(&e->mutex);
        request = kri_events_pop(e, &n_published);
        kri_mutex_unlock(&e->mutex);
        if (!request) break;
        kri_request_unref(request);
    }
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (!e->models[i]) continue;
        kri_engine_model_close(e->models[i]);
        kri_engine_model_unref(e->models[i]);
    }
    kri_keys_deinit(&e->keys);
    kri_event_fd_destroy(e->event_fd);
    kri_engine_unref(e);
}

void kri_engine_destroy(kr_engine_t e) {
    if (!e) return;
    if (kri_dispatch_is_inside(e)) {
        e->destroy_asked = true;
        return;
    }
    kri_engine_stop(e);
    kri_engine_teardown(e, false);
}

void kri_engine_idle_changed(kr_engine_t e) {
    atomic_fetch_add(&e->idle_word, 1);
    kri_futex_wake(&e->idle_word, UINT32_MAX);
}

kr_status_t kri_engine_drain(kr_engine_t e, uint32_t timeout_ms) {
    if (kri_dispatch_is_inside(e)) return KR_E_BUSY;
    const uint64_t until_ns = kri_clock_ns() + (uint64_t)timeout_ms * 1000000;
    for (;;) {
        const uint32_t seen = atomic_load(&e->idle_word);
        kri_mutex_lock(&e->mutex);
        e->is_draining = true;
        /* With a callback, a request has ended when its last event was delivered; who polls may be
         * this very thread. */
        const uint32_t n_left = e->params.on_event ? e->n_undelivered : e->n_active;
        kri_mutex_unlock(&e->mutex);
        if (n_left == 0) return KR_OK;
        const uint64_t now_ns = kri_clock_ns();
        if (now_ns >= until_ns) return KR_E_TIMEOUT;
        const uint64_t left_ms = (until_ns - now_ns + 999999) / 1000000;
        kri_futex_wait_ms(&e->idle_word, seen, left_ms < 1000 ? (uint32_t)left_ms : 1000);
    }
}

/* ---- asking the step thread ----------------------------------------------------------------- */

/* The thread looks at the lists, then says that it sleeps, then compares the word again in the
 * futex: either it sees the change or we see that it sleeps. */
void kri_engine_wake(kr_engine_t e) {
    atomic_fetch_add(&e->step_word, 1);
    if (atomic_load(&e->step_sleeps)) kri_futex_wake(&e->step_word, 1);
}

kr_status_t kri_engine_ask(kr_engine_t e, kri_ask_t *ask) {
    kri_mutex_lock(&e->mutex);
    const bool is_stopped = e->is_stopped;
    if (!is_stopped) {
        ask->next = NULL;
        if (e->ask_tail) e->ask_tail->next = ask;
        else e->ask_head = ask;
        e->ask_tail = ask;
    }
    kri_mutex_unlock(&e->mutex);
    if (is_stopped) return KR_E_SHUTTING_DOWN;
    kri_engine_wake(e);
    while (atomic_load(&ask->is_done) == 0) kri_futex_wait(&ask->is_done, 0);
    return ask->status;
}

/* ---- figures -------------------------------------------------------------------------------- */

void kri_engine_add_counters(kr_engine_stats_t *sum, const kr_engine_stats_t *one) {
    sum->kv_bytes_moved += one->kv_bytes_moved;
    sum->n_steps += one->n_steps;
    sum->n_preempted += one->n_preempted;
    sum->n_rows_prefill += one->n_rows_prefill;
    sum->n_rows_decode += one->n_rows_decode;
    sum->n_tokens_cached += one->n_tokens_cached;
}

static void add_stats(kr_engine_stats_t *sum, const kr_engine_stats_t *one) {
    sum->n_running += one->n_running;
    sum->n_waiting += one->n_waiting;
    sum->kv_bytes_max += one->kv_bytes_max;
    sum->kv_bytes_used += one->kv_bytes_used;
    sum->kv_bytes_cached += one->kv_bytes_cached;
    kri_engine_add_counters(sum, one);
    if (one->retry_after_ms > sum->retry_after_ms) sum->retry_after_ms = one->retry_after_ms;
    if (one->sched_us > sum->sched_us) sum->sched_us = one->sched_us;
}

kr_status_t kri_engine_stats(kr_engine_t e, const char *name, kr_engine_stats_t *stats) {
    kr_status_t status = KR_OK;
    kri_mutex_lock(&e->mutex);
    if (name) {
        kri_engine_model_t *em = kri_engine_find(e, name);
        if (em) add_stats(stats, &em->stats);
        if (em) kri_engine_model_unref(em); /* never the last: the table holds one */
        stats->n_models = em != NULL;
        status = em ? KR_OK : KR_E_NOT_FOUND;
    } else {
        for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
            const kri_engine_model_t *em = e->models[i];
            if (em && em->is_ready) add_stats(stats, &em->stats);
            else if (em) kri_engine_add_counters(stats, &em->stats); /* is being removed */
            stats->n_models += em && em->is_ready;
        }
        kri_engine_add_counters(stats, &e->removed);
        stats->n_waiting = e->n_waiting; /* also those that the step thread has not seen */
    }
    stats->is_draining = e->is_draining;
    kri_mutex_unlock(&e->mutex);
    return status;
}
