/* workers.c: threads that run on_request, and the bounded queue before them. */
#include "base/alloc.h"
#include "base/error.h"
#include "server/http/internal.h"

static bool has_gone(http_exchange_t *exchange) {
    pthread_mutex_lock(&exchange->mutex);
    const bool gone = exchange->server == NULL;
    pthread_mutex_unlock(&exchange->mutex);
    return gone;
}

/* ---- the queue: under its mutex -------------------------------------------------------------- */

static http_exchange_t **at(http_server_t *server, uint32_t i) {
    return &server->queue[(server->queue_at + i) % server->limits.queue];
}

/* One group, however costly its requests are, leaves a worker for the others. */
static bool may_run(const http_server_t *server, uint64_t group) {
    uint32_t n = 0;
    if (group == 0 || server->params.n_workers == 1) return true;
    for (uint32_t i = 0; i < server->n_running; i++) n += server->running[i] == group;
    return n + 1 < server->params.n_workers;
}

/* The first that may run, taken out. NULL: none. */
static http_exchange_t *take(http_server_t *server) {
    uint32_t i = 0;
    while (i < server->n_queued && !may_run(server, (*at(server, i))->group)) i++;
    if (i == server->n_queued) return NULL;
    http_exchange_t *exchange = *at(server, i);
    for (; i > 0; i--) *at(server, i) = *at(server, i - 1);
    server->queue_at = (server->queue_at + 1) % server->limits.queue;
    server->n_queued--;
    server->running[server->n_running++] = exchange->group;
    return exchange;
}

/* ---- the threads ----------------------------------------------------------------------------- */

/* NULL: the end. The reference is the caller's. */
static http_exchange_t *pop(http_server_t *server) {
    http_exchange_t *exchange = NULL;
    pthread_mutex_lock(&server->queue_mutex);
    while (!server->queue_ends && (exchange = take(server)) == NULL) {
        pthread_cond_wait(&server->queue_filled, &server->queue_mutex);
    }
    pthread_mutex_unlock(&server->queue_mutex);
    return exchange;
}

/* Whoever waits for a place of its group is found by the pop that follows. */
static void end(http_server_t *server, http_exchange_t *exchange) {
    pthread_mutex_lock(&server->queue_mutex);
    uint32_t i = 0;
    while (server->running[i] != exchange->group) i++;
    server->running[i] = server->running[--server->n_running];
    pthread_mutex_unlock(&server->queue_mutex);
    http_release(exchange);
}

static void *run(void *context) {
    http_server_t *server = context;
    http_exchange_t *exchange;
    while ((exchange = pop(server)) != NULL) {
        /* A client that has gone while its request waited costs nothing more. */
        if (!has_gone(exchange)) server->params.on_request(server->params.user, exchange);
        end(server, exchange);
    }
    return NULL;
}

bool http_workers_push(http_server_t *server, http_exchange_t *exchange) {
    pthread_mutex_lock(&server->queue_mutex);
    const bool has_room = server->n_queued < server->limits.queue && !server->queue_ends;
    if (has_room) {
        http_retain(exchange);
        *at(server, server->n_queued++) = exchange;
        pthread_cond_signal(&server->queue_filled);
    }
    pthread_mutex_unlock(&server->queue_mutex);
    return has_room;
}

kr_status_t http_workers_start(http_server_t *server) {
    server->queue = kri_calloc(server->limits.queue, sizeof *server->queue, "http queue");
    if (server->queue == NULL) return KR_E_NOMEM;
    while (server->n_workers < server->params.n_workers) {
        if (!http_thread_start(&server->workers[server->n_workers], HTTP_WORKER_STACK_BYTES, run,
                               server)) {
            break;
        }
        server->n_workers++;
    }
    return server->n_workers > 0 ? KR_OK : KR_E_NOMEM; /* fewer than asked for will do */
}

void http_workers_stop(http_server_t *server) {
    pthread_mutex_lock(&server->queue_mutex);
    server->queue_ends = true;
    pthread_cond_broadcast(&server->queue_filled);
    pthread_mutex_unlock(&server->queue_mutex);
    for (uint32_t i = 0; i < server->n_workers; i++) (void)pthread_join(server->workers[i], NULL);
    server->n_workers = 0;
    for (; server->n_queued > 0; server->n_queued--) {
        http_release(server->queue[server->queue_at]);
        server->queue_at = (server->queue_at + 1) % server->limits.queue;
    }
    kri_free(server->queue);
    server->queue = NULL;
}
