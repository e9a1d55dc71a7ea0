/* rpc.c: the parts of the runtime, put together and taken apart again. */
#define _GNU_SOURCE /* ppoll */
#include "rpc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "inner.h"
#include "listen.h"
#include "shm.h"

#define DRAIN_MS 1000u
#define END_MS 1950u   /* from the end of input, or what else has begun the end */
#define LAST_MS 100u   /* for the parts to be taken apart, at least */

typedef struct full_s {
    rpc_t rpc;
    sigset_t mask_before;
    int flags_before;          /* of out_fd; -1: as they were */
    int flags_fd;              /* a copy of it, to set them again */
    int done_fd;               /* the loop has ended */
    pthread_t loop_thread;
    pthread_t watch;           /* ends the process when taking apart lasts too long */
    bool has_watch, is_taken_apart;
    pthread_mutex_t mutex;     /* is_taken_apart */
    pthread_cond_t changed;
} full_t;

static full_t *full_of(rpc_t *rpc) { return (full_t *)(void *)rpc; }

/* ---- signals --------------------------------------------------------------------------------- */

static void block_signals(sigset_t *before) {
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &signals, before);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void init_cond(pthread_cond_t *cond) {
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

static kr_status_t create(full_t *full, kr_error_t *error) {
    rpc_t *rpc = &full->rpc;
    KR_TRY(rpc_models_create(rpc));
    KR_TRY(server_create(&rpc->params.engine, &rpc->server, error));
    rpc->params.engine.telemetry = NULL; /* the server's now */
    rpc->server->on_batch = rpc_streams_on_batch;
    rpc->server->on_batch_user = rpc;
    const kr_status_t status = kr_telemetry_create(&rpc->calls);
    if (status != KR_OK && status != KR_E_UNSUPPORTED) return status;
    KR_TRY(pump_start(rpc->server, error));
    KR_TRY(rpc_work_start(rpc, error));
    KR_TRY(kri_event_fd_create(&full->done_fd));
    if (rpc->params.socket_path == NULL) {
        full->flags_fd = fcntl(rpc->params.out_fd, F_DUPFD_CLOEXEC, 3);
        rpc_set_nonblocking(rpc->params.out_fd, &full->flags_before);
    }
    return rpc_loop_create(rpc, error);
}

static void close_client(const rpc_params_t *params) {
    (void)close(params->in_fd);
    if (params->out_fd != params->in_fd) (void)close(params->out_fd);
}

kr_status_t rpc_create(const rpc_params_t *params, rpc_t **rpc, kr_error_t *error) {
    full_t *full = calloc(1, sizeof *full);
    if (full == NULL) {
        if (params->socket_path == NULL) {
            close_client(params);
        }
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the runtime");
    }
    full->rpc.params = *params;
    full->rpc.begin_ns = kri_clock_ns();
    full->flags_before = full->flags_fd = full->done_fd = -1;
    atomic_init(&full->rpc.deadline_ms, params->deadline_ms);
    atomic_init(&full->rpc.shared.n_swept, rpc_shm_sweep());
    (void)pthread_mutex_init(&full->mutex, NULL);
    init_cond(&full->changed);
    block_signals(&full->mask_before);
    const kr_status_t status = create(full, error);
    if (status != KR_OK) {
        rpc_destroy(&full->rpc);
        return status;
    }
    *rpc = &full->rpc;
    return KR_OK;
}

kr_status_t rpc_load(rpc_t *rpc, const char *name, const char *path, kr_error_t *error) {
    const rpc_load_t load = {.name = name, .path = path};
    rpc_model_t *model = NULL;
    (void)pthread_sigmask(SIG_SETMASK, &full_of(rpc)->mask_before, NULL); /* they end a load */
    const kr_status_t status = rpc_models_load(rpc, &load, &model, error);
    block_signals(&full_of(rpc)->mask_before);
    rpc_model_release(model);
    return status;
}

void rpc_set_deadline(rpc_t *rpc, uint32_t deadline_ms) {
    atomic_store(&rpc->deadline_ms, deadline_ms);
}

void rpc_end(rpc_t *rpc) {
    atomic_store(&rpc->is_ending, true); /* a load before rpc_run stops, too */
    rpc_loop_end(rpc);
}

static void *loop_main(void *user) {
    full_t *full = user;
    rpc_loop_run(&full->rpc);
    kri_event_fd_set(full->done_fd);
    return NULL;
}

void rpc_run(rpc_t *rpc) {
    full_t *full = full_of(rpc);
    if (!rpc_thread_start(&full->loop_thread, loop_main, full)) return;
    struct pollfd done = {.fd = full->done_fd, .events = POLLIN};
    bool is_told = false;
    const sigset_t *mask = rpc->params.is_interrupted != NULL ? &full->mask_before : NULL;
    while (ppoll(&done, 1, NULL, is_told ? NULL : mask) <= 0) {
        if (is_told || mask == NULL || !rpc->params.is_interrupted()) continue;
        is_told = true;
        rpc_loop_end(rpc);
    }
    (void)pthread_join(full->loop_thread, NULL);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void *watch_main(void *user) {
    full_t *full = user;
    const uint64_t now_ns = kri_clock_ns(), end_ns = atomic_load(&full->rpc.end_ns);
    uint64_t until_ns = (end_ns > 0 ? end_ns : now_ns) + END_MS * 1000000ull;
    if (until_ns < now_ns + LAST_MS * 1000000ull) until_ns = now_ns + LAST_MS * 1000000ull;
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until_ns = until_ns - now_ns + (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(until_ns / 1000000000);
    until.tv_nsec = (long)(until_ns % 1000000000);
    (void)pthread_mutex_lock(&full->mutex);
    int failed = 0;
    while (!full->is_taken_apart && failed == 0) {
        failed = pthread_cond_timedwait(&full->changed, &full->mutex, &until);
    }
    const bool is_late = !full->is_taken_apart;
    (void)pthread_mutex_unlock(&full->mutex);
    if (is_late) _exit(0);
    return NULL;
}

static void stop_watch(full_t *full) {
    (void)pthread_mutex_lock(&full->mutex);
    full->is_taken_apart = true;
    (void)pthread_cond_broadcast(&full->changed);
    (void)pthread_mutex_unlock(&full->mutex);
    if (full->has_watch) (void)pthread_join(full->watch, NULL);
}

void rpc_destroy(rpc_t *rpc) {
    if (rpc == NULL) return;
    full_t *full = full_of(rpc);
    atomic_store(&rpc->is_ending, true);
    if (rpc->params.may_cut) {
        full->has_watch = pthread_create(&full->watch, NULL, watch_main, full) == 0;
    }
    /* What the clients had is cancelled by now; nothing new is taken. */
    if (rpc->server != NULL) (void)kr_engine_drain(rpc->server->engine, DRAIN_MS);
    rpc_work_stop(rpc);
    server_destroy(rpc->server); /* the pump takes the last events */
    rpc_work_destroy(rpc);
    rpc_models_destroy(rpc);
    rpc_loop_destroy(rpc);
    kr_telemetry_destroy(rpc->calls);
    kr_telemetry_destroy(rpc->params.engine.telemetry);
    if (rpc->params.socket_path == NULL && rpc->params.in_fd >= 0) {
        close_client(&rpc->params);
    }
    if (full->flags_before >= 0) (void)fcntl(full->flags_fd, F_SETFL, full->flags_before);
    if (full->flags_fd >= 0) (void)close(full->flags_fd);
    kri_event_fd_destroy(full->done_fd);
    stop_watch(full);
    (void)pthread_sigmask(SIG_SETMASK, &full->mask_before, NULL);
    (void)pthread_cond_destroy(&full->changed);
    (void)pthread_mutex_destroy(&full->mutex);
    free(full);
}
