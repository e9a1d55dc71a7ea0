/* loop.c: the I/O thread: epoll, accepting, timers, answers on their way out. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/os.h"
#include "server/http/internal.h"

#define EVENTS_MAX 256
#define ACCEPTS_MAX 64 /* in one turn */
#define RETRY_NS ((uint64_t)200000000)

static _Thread_local const http_server_t *running;

bool http_loop_is_here(const http_server_t *server) { return running == server; }

void http_loop_wake(http_server_t *server) {
    if (http_loop_is_here(server)) return; /* it looks before it sleeps */
    if (!atomic_exchange(&server->is_woken, true)) kri_event_fd_set(server->wake_fd);
}

/* ---- accepting ------------------------------------------------------------------------------- */

static void pause_accepting(http_server_t *server, bool pauses) {
    if (server->is_paused == pauses) return;
    server->is_paused = pauses;
    for (uint32_t i = 0; i < server->n_listeners; i++) {
        struct epoll_event event = {.events = pauses ? 0 : EPOLLIN,
                                    .data.ptr = &server->listeners[i]};
        (void)epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, server->listeners[i].fd, &event);
    }
}

void http_loop_resume(http_server_t *server) {
    if (server->is_paused && atomic_load(&server->n_conns) < server->limits.connections) {
        server->is_short = false;
        pause_accepting(server, false);
    }
}

/* Out of something: waits for a connection to close, or a moment. */
static void run_short(http_server_t *server) {
    server->is_short = true;
    server->retry_ns = kri_clock_ns() + RETRY_NS;
    pause_accepting(server, true);
}

/* The kernel gives the lowest free number, so a high one says how many are in use. */
static bool is_reserved(const http_server_t *server, int fd) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
    return (rlim_t)fd + 1 + server->limits.descriptors_reserved > limit.rlim_cur;
}

static void retry(http_server_t *server) {
    const int fd = fcntl(server->wake_fd, F_DUPFD_CLOEXEC, 0); /* the lowest that is free */
    const bool is_free = fd >= 0 && !is_reserved(server, fd);
    if (fd >= 0) (void)close(fd);
    server->retry_ns = kri_clock_ns() + RETRY_NS;
    if (is_free) http_loop_resume(server);
}

static void format_peer(const struct sockaddr *address, char *peer, socklen_t n_bytes) {
    const struct sockaddr_in *four = (const struct sockaddr_in *)(const void *)address;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)(const void *)address;
    const bool is_six = address->sa_family == AF_INET6;
    const void *at = is_six ? (const void *)&six->sin6_addr : (const void *)&four->sin_addr;
    if (inet_ntop(address->sa_family, at, peer, n_bytes) == NULL) peer[0] = '\0';
}

static void set_options(int fd) {
    const int one = 1, idle_s = 60, interval_s = 15, n_probes = 4;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* A client whose machine is gone does not say so. */
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &n_probes, sizeof n_probes);
}

/* See http_request_t. A process is known by its number only: who comes after it with the same one
 * is taken for it. */
static uint64_t client_of(const http_server_t *server, const http_listener_t *listener, int fd) {
    struct ucred peer = {.pid = 0};
    socklen_t n_bytes = sizeof peer;
    if (listener->is_unix && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n_bytes) == 0 &&
        peer.pid > 0) {
        return (uint64_t)1 << 62 | (uint32_t)peer.pid;
    }
    return (uint64_t)1 << 63 | atomic_load(&server->n_accepted);
}

static void admit(http_server_t *server, const http_listener_t *listener, int fd,
                  const struct sockaddr *from) {
    char peer[48] = "unix";
    http_address_t *address = NULL;
    uint32_t n_conns = 0;
    atomic_fetch_add(&server->n_accepted, 1);
    if (!listener->is_unix) {
        set_options(fd);
        format_peer(from, peer, sizeof peer);
        address = http_addresses_add(&server->addresses, from, &n_conns);
        if (address == NULL) {
            (void)close(fd);
            atomic_fetch_add(&server->n_refused, 1);
            return;
        }
    }
    const uint32_t n_max = server->limits.connections_per_address;
    const bool is_over = n_conns > n_max;
    /* No handshake only to refuse, and no flood of refusals. */
    const bool is_dropped = is_over && (listener->is_tls || n_conns - n_max > HTTP_REFUSALS_MAX);
    http_conn_t *conn =
        is_dropped ? NULL : http_conn_create(server, fd, peer, address, listener->is_tls);
    if (is_over || conn == NULL) atomic_fetch_add(&server->n_refused, 1);
    if (conn != NULL) conn->client = client_of(server, listener, fd);
    if (conn == NULL) {
        if (is_dropped) (void)close(fd);
        if (address != NULL) http_addresses_remove(&server->addresses, address);
    } else if (is_over) {
        http_conn_refuse(conn, (http_refusal_t){503, "too_many_connections",
                                                "too many connections from this address"});
    }
}

static void accept_some(http_server_t *server, const http_listener_t *listener) {
    for (int i = 0; i < ACCEPTS_MAX && !server->is_paused; i++) {
        struct sockaddr_storage from = {0};
        socklen_t n_bytes = sizeof from;
        const int fd = accept4(listener->fd, (struct sockaddr *)&from, &n_bytes,
                               SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return;
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                run_short(server);
            }
            continue; /* of one connection: the next may be better */
        }
        admit(server, listener, fd, (const struct sockaddr *)&from);
        if (is_reserved(server, fd)) run_short(server);
        if (atomic_load(&server->n_conns) >= server->limits.connections) {
            pause_accepting(server, true);
        }
    }
}

/* ---- turns ----------------------------------------------------------------------------------- */

/* Answers that have been flushed; what is flushed meanwhile waits for the next turn. */
static void send_flushed(http_server_t *server) {
    pthread_mutex_lock(&server->mutex);
    http_exchange_t *next = server->flushed.first;
    server->flushed = (http_list_t){NULL, NULL};
    pthread_mutex_unlock(&server->mutex);
    while (next != NULL) {
        http_exchange_t *exchange = next;
        pthread_mutex_lock(&server->mutex);
        next = exchange->next;
        exchange->is_listed = false;
        pthread_mutex_unlock(&server->mutex);
        if (exchange->conn != NULL) http_conn_send(exchange->conn);
        http_release(exchange);
    }
}

static bool has_flushed(http_server_t *server) {
    pthread_mutex_lock(&server->mutex);
    const bool has_some = server->flushed.first != NULL;
    pthread_mutex_unlock(&server->mutex);
    return has_some;
}

static int sleep_ms(http_server_t *server) {
    if (has_flushed(server)) return 0;
    uint64_t until = server->timers.n > 0 ? server->timers.heap[0]->timer_ns : HTTP_NEVER;
    if (server->is_short && server->retry_ns < until) until = server->retry_ns;
    if (until == HTTP_NEVER) return -1;
    const uint64_t now = kri_clock_ns();
    if (until <= now) return 0;
    const uint64_t ms = (until - now) / 1000000 + 1;
    return ms < 60000 ? (int)ms : 60000;
}

static void handle(http_server_t *server, const struct epoll_event *event) {
    http_source_t *source = event->data.ptr;
    if (*source == SOURCE_WAKE) {
        kri_event_fd_clear(server->wake_fd);
        atomic_store(&server->is_woken, false);
    } else if (*source == SOURCE_LISTENER) {
        if (!server->has_drained) accept_some(server, (const http_listener_t *)source);
    } else {
        http_conn_event((http_conn_t *)source, event->events);
    }
}

static void drain(http_server_t *server) {
    if (server->has_drained || !atomic_load(&server->is_draining)) return;
    server->has_drained = true;
    http_listeners_close(server);
    for (http_conn_t *conn = server->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        if (http_conn_is_idle(conn) || conn->in == IN_TLS) http_conn_close(conn, 0);
    }
}

static void free_closed(http_server_t *server) {
    while (server->closed != NULL) {
        http_conn_t *conn = server->closed;
        server->closed = conn->next;
        kri_free(conn);
    }
}

static void turn(http_server_t *server) {
    struct epoll_event events[EVENTS_MAX];
    atomic_fetch_add_explicit(&server->n_turns, 1, memory_order_relaxed);
    const int n = epoll_wait(server->epoll_fd, events, EVENTS_MAX, sleep_ms(server));
    for (int i = 0; i < n; i++) handle(server, &events[i]);
    send_flushed(server);
    drain(server);
    const uint64_t now = kri_clock_ns();
    http_conn_t *due;
    while ((due = http_timers_due(&server->timers, now)) != NULL) http_conn_timeout(due, now);
    if (server->is_short && now >= server->retry_ns) retry(server);
    free_closed(server);
}

void *http_loop_run(void *context) {
    http_server_t *server = context;
    running = server;
    while (!atomic_load(&server->is_stopping)) turn(server);
    while (server->conns != NULL) http_conn_close(server->conns, 0);
    free_closed(server);
    running = NULL;
    return NULL;
}
