/* pump.c: poll, dispatch, send, flush. Answers that take long to render go to a thread of their
 * own, one at a time: streams must not wait for them, nor may their bodies pile up. The pump sleeps
 * in poll(2) on the engine's descriptor and its own; before that it polls the engine until nothing
 * is left, since that also gives back what was consumed. */
#include "pump.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "job_impl.h"

#define EVENTS_MAX 32u         /* taken at once; few, since each look touches them all */
#define BATCH_EVENTS_MAX 512u  /* before what they give is sent */

struct pump_s {
    server_t *server;
    pthread_t thread;
    int engine_fd, wake_fd;
    atomic_bool is_stopping;
    job_t *touched;            /* in this batch */
    kr_event_t events[EVENTS_MAX];

    pthread_t finisher;
    pthread_mutex_t mutex;     /* the following */
    pthread_cond_t changed;
    job_t *heavy_first, *heavy_last;
    bool finisher_ends;        /* once nothing is left to do */
};

/* ---- heavy answers --------------------------------------------------------------------------- */

static void hand_over(pump_t *pump, job_t *job) {
    job->run->touched_next = NULL;
    (void)pthread_mutex_lock(&pump->mutex);
    if (pump->heavy_last != NULL) pump->heavy_last->run->touched_next = job;
    else pump->heavy_first = job;
    pump->heavy_last = job;
    (void)pthread_cond_signal(&pump->changed);
    (void)pthread_mutex_unlock(&pump->mutex);
}

static void *finisher_main(void *arg) {
    pump_t *pump = arg;
    (void)pthread_mutex_lock(&pump->mutex);
    for (;;) {
        job_t *job = pump->heavy_first;
        if (job == NULL) {
            if (pump->finisher_ends) break;
            (void)pthread_cond_wait(&pump->changed, &pump->mutex);
            continue;
        }
        pump->heavy_first = job->run->touched_next;
        if (pump->heavy_first == NULL) pump->heavy_last = NULL;
        (void)pthread_mutex_unlock(&pump->mutex);
        job_leave(job, 1);
        (void)pthread_mutex_lock(&pump->mutex);
    }
    (void)pthread_mutex_unlock(&pump->mutex);
    return NULL;
}

static void end_finisher(pump_t *pump) {
    (void)pthread_mutex_lock(&pump->mutex);
    pump->finisher_ends = true;
    (void)pthread_cond_signal(&pump->changed);
    (void)pthread_mutex_unlock(&pump->mutex);
    (void)pthread_join(pump->finisher, NULL);
}

/* ---- events ---------------------------------------------------------------------------------- */

void pump_touch(pump_t *pump, job_t *job) {
    if (job->run->is_touched) return;
    job->run->is_touched = true;
    atomic_fetch_add(&job->run->n_left, 1); /* the event's request is still counted */
    job->run->touched_next = pump->touched;
    pump->touched = job;
}

/* When it wants to be called again at the latest, in ms; -1: with the next batch. */
static int tell_batch(pump_t *pump) {
    server_t *server = pump->server;
    return server->on_batch != NULL ? server->on_batch(server->on_batch_user) : -1;
}

static int sooner(int a_ms, int b_ms) {
    if (a_ms < 0 || b_ms < 0) return a_ms < 0 ? b_ms : a_ms;
    return a_ms < b_ms ? a_ms : b_ms;
}

static void take_events(pump_t *pump, uint32_t n_events) {
    bool has_token = false, is_lost = false;
    for (uint32_t i = 0; i < n_events; i++) {
        has_token = has_token || pump->events[i].type == KR_EVENT_TOKEN;
        is_lost = is_lost || pump->events[i].status == KR_E_DEVICE_LOST;
        pump_user_t *user = pump->events[i].user;
        if (user != NULL) user->take(user, pump, &pump->events[i]);
    }
    if (has_token) atomic_store(&pump->server->token_ns, kri_clock_ns());
    if (is_lost) server_lose_device(pump->server);
}

static void send_batch(pump_t *pump, uint64_t begin_ns) {
    job_t *next = NULL;
    for (job_t *job = pump->touched; job != NULL; job = next) {
        next = job->run->touched_next;
        job->run->is_touched = false;
        if (job_send(job)) hand_over(pump, job);
        else job_leave(job, 1);
    }
    pump->touched = NULL;
    if (pump->server->http != NULL) http_flush(pump->server->http);
    (void)tell_batch(pump);
    if (pump->server->telemetry == NULL) return;
    (void)kr_telemetry_record(pump->server->telemetry, "write",
                              (double)(kri_clock_ns() - begin_ns) / 1e6);
}

static void drain_events(pump_t *pump) {
    uint32_t n_batch = 0;
    uint64_t begin_ns = 0;
    for (;;) {
        uint32_t n_events = 0;
        const kr_status_t status = kr_engine_poll(pump->server->engine, pump->events, EVENTS_MAX,
                                                  0, &n_events);
        const bool is_last = status != KR_OK || n_events == 0;
        if (n_batch == 0) begin_ns = kri_clock_ns();
        if (!is_last) take_events(pump, n_events);
        n_batch += n_events;
        if (n_batch > 0 && (n_events < EVENTS_MAX || n_batch >= BATCH_EVENTS_MAX)) {
            send_batch(pump, begin_ns);
            n_batch = 0;
        }
        if (is_last) return;
    }
}

static void *pump_main(void *arg) {
    pump_t *pump = arg;
    struct pollfd fds[2] = {{.fd = pump->engine_fd, .events = POLLIN},
                            {.fd = pump->wake_fd, .events = POLLIN}};
    while (!atomic_load(&pump->is_stopping)) {
        drain_events(pump);
        const int wait_ms = sooner(job_open_waiting(kri_clock_ns()), tell_batch(pump));
        if (pump->server->http != NULL) http_flush(pump->server->http);
        (void)poll(fds, 2, wait_ms);
        if (fds[1].revents != 0) kri_event_fd_clear(pump->wake_fd);
    }
    drain_events(pump);
    return NULL;
}

void pump_wake(pump_t *pump) { kri_event_fd_set(pump->wake_fd); }

kr_status_t pump_start(server_t *server, kr_error_t *error) {
    kr_status_t status = KR_OK;
    pump_t *pump = calloc(1, sizeof *pump);
    if (pump == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the pump");
    pump->server = server;
    pump->wake_fd = -1;
    for (uint32_t i = 0; i < EVENTS_MAX; i++) {
        pump->events[i].struct_bytes = sizeof pump->events[i];
    }
    KR_TRY_DONE(kr_engine_event_fd(server->engine, &pump->engine_fd));
    KR_TRY_DONE(kri_event_fd_create(&pump->wake_fd));
    (void)pthread_mutex_init(&pump->mutex, NULL);
    (void)pthread_cond_init(&pump->changed, NULL);
    server->pump = pump; /* the thread's events may lead back to it */
    if (pthread_create(&pump->finisher, NULL, finisher_main, pump) == 0) {
        if (pthread_create(&pump->thread, NULL, pump_main, pump) == 0) return KR_OK;
        end_finisher(pump);
    }
    server->pump = NULL;
    status = KRI_FAIL(error, KR_E_IO, NULL, "cannot start the threads of events");
    (void)pthread_cond_destroy(&pump->changed);
    (void)pthread_mutex_destroy(&pump->mutex);
done:
    kri_event_fd_destroy(pump->wake_fd);
    free(pump);
    return status;
}

void pump_stop(server_t *server) {
    pump_t *pump = server->pump;
    if (pump == NULL) return;
    atomic_store(&pump->is_stopping, true);
    pump_wake(pump);
    (void)pthread_join(pump->thread, NULL);
    end_finisher(pump);
    server->pump = NULL;
    (void)pthread_cond_destroy(&pump->changed);
    (void)pthread_mutex_destroy(&pump->mutex);
    kri_event_fd_destroy(pump->wake_fd);
    free(pump);
}
