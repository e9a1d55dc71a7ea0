/* server.c: parameters, start, end. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/os.h"
#include "server/http/internal.h"

#define DESCRIPTORS_MIN 32u /* beside the reserve: a server that can serve */
#define IO_STACK_BYTES ((size_t)1 << 20)

void http_limits_init(http_limits_t *limits) {
    *limits = (http_limits_t){
        .line_bytes = 8192, .head_bytes = 32768, .fields = 100, .body_bytes = (uint64_t)16 << 20,
        .head_ms = 10000, .body_idle_ms = 30000, .body_rate_bytes = 1024,
        .body_rate_after_ms = 10000, .keep_alive_ms = 75000, .keep_alive_requests = 1000,
        .write_stall_ms = 30000, .heartbeat_ms = 15000, .connections = 4096,
        .connections_per_address = 256, .descriptors_reserved = 64, .queue = 1024,
        .stream_bytes = (uint64_t)1 << 20,
    };
}

typedef struct limit_row_s {
    const char *name;
    uint64_t value, min, max;
} limit_row_t;

static kr_status_t check_limits(const http_limits_t *l, kr_error_t *error) {
    const limit_row_t rows[] = {
        {"line_bytes", l->line_bytes, 64, 65536},
        {"head_bytes", l->head_bytes, 64, 262144},
        {"fields", l->fields, 1, HTTP_FIELDS_MAX},
        {"body_bytes", l->body_bytes, 0, (uint64_t)256 << 20},
        {"head_ms", l->head_ms, 1, 3600000},
        {"body_idle_ms", l->body_idle_ms, 1, 3600000},
        {"body_rate_bytes", l->body_rate_bytes, 0, UINT32_MAX},
        {"body_rate_after_ms", l->body_rate_after_ms, 0, 3600000},
        {"keep_alive_ms", l->keep_alive_ms, 1, 3600000},
        {"keep_alive_requests", l->keep_alive_requests, 1, UINT32_MAX},
        {"write_stall_ms", l->write_stall_ms, 1, 3600000},
        {"heartbeat_ms", l->heartbeat_ms, 0, 3600000},
        {"connections", l->connections, 1, 1000000},
        {"connections_per_address", l->connections_per_address, 1, UINT32_MAX},
        {"descriptors_reserved", l->descriptors_reserved, 0, 1000000},
        {"queue", l->queue, 1, 1000000},
        {"stream_bytes", l->stream_bytes, 1, (uint64_t)1 << 30},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].value >= rows[i].min && rows[i].value <= rows[i].max) continue;
        return KRI_FAIL(error, KR_E_INVALID_ARG, rows[i].name, "%s must be %llu to %llu",
                        rows[i].name, (unsigned long long)rows[i].min,
                        (unsigned long long)rows[i].max);
    }
    return KR_OK;
}

static kr_status_t check_params(const http_params_t *params, kr_error_t *error) {
    if (params->host == NULL && params->unix_path == NULL) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "host", "neither a host nor a Unix socket");
    }
    if ((params->tls_cert == NULL) != (params->tls_key == NULL)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, params->tls_key == NULL ? "tls_key" : "tls_cert",
                        "TLS needs a certificate and a key");
    }
    if (params->n_workers < 1 || params->n_workers > HTTP_WORKERS_MAX) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_workers", "n_workers must be 1 to 64");
    }
    if (params->on_head == NULL || params->on_request == NULL) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "on_head", "on_head and on_request are required");
    }
    KR_TRY(check_limits(&params->limits, error));
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 &&
        files.rlim_cur < (rlim_t)params->limits.descriptors_reserved + DESCRIPTORS_MIN) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "descriptors_reserved",
                        "the limit of open files (ulimit -n) is %llu; at least %u are needed",
                        (unsigned long long)files.rlim_cur,
                        (unsigned)params->limits.descriptors_reserved + DESCRIPTORS_MIN);
    }
    return KR_OK;
}

bool http_thread_start(pthread_t *thread, size_t stack_bytes, void *(*run)(void *), void *context) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    /* Signals are the program's: none is taken here, and a broken pipe is an error code. Those that
     * an instruction raises must stay open, or the kernel ends the process without a handler. */
    static const int raised[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t all, before;
    (void)sigfillset(&all);
    for (size_t i = 0; i < sizeof raised / sizeof raised[0]; i++) (void)sigdelset(&all, raised[i]);
    const bool is_masked = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
    const bool good = pthread_attr_setstacksize(&attributes, stack_bytes) == 0 &&
                      pthread_create(thread, &attributes, run, context) == 0;
    if (is_masked) (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    (void)pthread_attr_destroy(&attributes);
    return good;
}

void http_id_create(http_server_t *server, char *id) {
    (void)snprintf(id, 65, "%s%012llx", server->id_prefix, (unsigned long long)server->id_next++);
}

static bool make_id_prefix(http_server_t *server) {
    unsigned char random[4];
    ssize_t n;
    do n = getrandom(random, sizeof random, 0);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof random) return false;
    (void)snprintf(server->id_prefix, sizeof server->id_prefix, "%02x%02x%02x%02x-", random[0],
                   random[1], random[2], random[3]);
    return true;
}

static kr_status_t open_server(http_server_t *server, kr_error_t *error) {
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (server->epoll_fd < 0 || kri_event_fd_create(&server->wake_fd) != KR_OK ||
        !make_id_prefix(server)) {
        return KRI_FAIL(error, KR_E_IO, NULL, "no descriptors for the server: %s", strerror(errno));
    }
    server->wake_source = SOURCE_WAKE;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &server->wake_source};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->wake_fd, &event) != 0) {
        return KRI_FAIL(error, KR_E_IO, NULL, "epoll: %s", strerror(errno));
    }
    if (server->params.tls_cert != NULL) {
        KR_TRY(http_tls_create(server->params.tls_cert, server->params.tls_key, &server->tls,
                               error));
    }
    KR_TRY(http_listen(server, error));
    if (http_workers_start(server) != KR_OK ||
        !http_thread_start(&server->io_thread, IO_STACK_BYTES, http_loop_run, server)) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory or no threads for the server");
    }
    server->has_io_thread = true;
    return KR_OK;
}

kr_status_t http_server_start(const http_params_t *params, http_server_t **server,
                              kr_error_t *error) {
    KR_TRY(check_params(params, error));
    http_server_t *made = kri_calloc(1, sizeof *made, "http server");
    if (made == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the server");
    made->params = *params;
    made->limits = params->limits;
    made->epoll_fd = made->wake_fd = made->unix_socket.fd = -1;
    (void)pthread_mutex_init(&made->mutex, NULL);
    (void)pthread_mutex_init(&made->queue_mutex, NULL);
    (void)pthread_cond_init(&made->queue_filled, NULL);
    const kr_status_t status = open_server(made, error);
    if (status != KR_OK) {
        http_server_destroy(made);
        return status;
    }
    *server = made;
    return KR_OK;
}

uint16_t http_server_port(const http_server_t *server) { return server->port; }

void http_server_drain(http_server_t *server) {
    atomic_store(&server->is_draining, true);
    http_loop_wake(server);
}

void http_server_stats(const http_server_t *server, http_stats_t *stats) {
    stats->n_connections = atomic_load(&server->n_conns);
    stats->n_exchanges = atomic_load(&server->n_exchanges);
    stats->n_accepted = atomic_load(&server->n_accepted);
    stats->n_refused = atomic_load(&server->n_refused);
    stats->n_misused = atomic_load(&server->n_misused);
}

static void release_list(http_list_t *list) {
    for (http_exchange_t *next = list->first; next != NULL;) {
        http_exchange_t *exchange = next;
        next = exchange->next;
        http_release(exchange);
    }
    *list = (http_list_t){NULL, NULL};
}

void http_server_destroy(http_server_t *server) {
    if (server == NULL) return;
    atomic_store(&server->is_stopping, true);
    if (server->has_io_thread) {
        http_loop_wake(server);
        (void)pthread_join(server->io_thread, NULL);
    }
    http_workers_stop(server);
    http_listeners_close(server);
    release_list(&server->written);
    release_list(&server->flushed);
    http_timers_deinit(&server->timers);
    SSL_CTX_free(server->tls);
    kri_event_fd_destroy(server->wake_fd);
    if (server->epoll_fd >= 0) (void)close(server->epoll_fd);
    (void)pthread_cond_destroy(&server->queue_filled);
    (void)pthread_mutex_destroy(&server->queue_mutex);
    (void)pthread_mutex_destroy(&server->mutex);
    kri_free(server);
}
