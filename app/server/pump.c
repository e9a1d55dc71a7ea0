/* pump.c: poll, dispatch, send, flush. It sleeps in poll(2) on the engine's descriptor and its own;
 * before that it polls the engine until nothing is left, since that also gives back what was
 * consumed. */
#include "pump.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "job_impl.h"

#define EVENTS_MAX 512u

struct pump_s {
    server_t *server;
    pthread_t thread;
    int engine_fd, wake_fd;
    atomic_bool is_stopping;
    job_t *touched;            /* in this batch */
    kr_event_t events[EVENTS_MAX];
};

void pump_touch(pump_t *pump, job_t *job) {
    if (job->run->is_touched) return;
    job->run->is_touched = true;
    atomic_fetch_add(&job->run->n_left, 1); /* the event's request is still counted */
    job->run->touched_next = pump->touched;
    pump->touched = job;
}

static void take_batch(pump_t *pump, uint32_t n_events) {
    const uint64_t begin_ns = kri_clock_ns();
    bool has_token = false;
    for (uint32_t i = 0; i < n_events; i++) {
        has_token = has_token || pump->events[i].type == KR_EVENT_TOKEN;
        pump_user_t *user = pump->events[i].user;
        if (user != NULL) user->take(user, pump, &pump->events[i]);
    }
    if (has_token) atomic_store(&pump->server->token_ns, begin_ns);
    job_t *next = NULL;
    for (job_t *job = pump->touched; job != NULL; job = next) {
        next = job->run->touched_next;
        job->run->is_touched = false;
        job_send(job);
        job_leave(job, 1);
    }
    pump->touched = NULL;
    if (pump->server->http != NULL) http_flush(pump->server->http);
    if (pump->server->telemetry == NULL) return;
    (void)kr_telemetry_record(pump->server->telemetry, "write",
                              (double)(kri_clock_ns() - begin_ns) / 1e6);
}

static void drain_events(pump_t *pump) {
    for (;;) {
        uint32_t n_events = 0;
        for (uint32_t i = 0; i < EVENTS_MAX; i++) {
            pump->events[i].struct_bytes = sizeof pump->events[i];
        }
        const kr_status_t status = kr_engine_poll(pump->server->engine, pump->events, EVENTS_MAX,
                                                  0, &n_events);
        if (status != KR_OK || n_events == 0) return;
        take_batch(pump, n_events);
    }
}

static void *pump_main(void *arg) {
    pump_t *pump = arg;
    struct pollfd fds[2] = {{.fd = pump->engine_fd, .events = POLLIN},
                            {.fd = pump->wake_fd, .events = POLLIN}};
    while (!atomic_load(&pump->is_stopping)) {
        drain_events(pump);
        const int wait_ms = job_open_waiting(kri_clock_ns());
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
    KR_TRY_DONE(kr_engine_event_fd(server->engine, &pump->engine_fd));
    KR_TRY_DONE(kri_event_fd_create(&pump->wake_fd));
    if (pthread_create(&pump->thread, NULL, pump_main, pump) != 0) {
        status = KRI_FAIL(error, KR_E_IO, NULL, "cannot start the thread of events");
        goto done;
    }
    server->pump = pump;
    return KR_OK;
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
    server->pump = NULL;
    kri_event_fd_destroy(pump->wake_fd);
    free(pump);
}
