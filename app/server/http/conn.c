/* conn.c: a connection from accept to close: what is read, when, and what follows from it. What is
 * sent: conn_out.c. I/O thread only. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "server/http/conn.h"

#define MS ((uint64_t)1000000)

/* ---- life ------------------------------------------------------------------------------------ */

http_conn_t *http_conn_create(http_server_t *server, int fd, const char *peer,
                              http_address_t *address, bool is_tls) {
    http_conn_t *conn = NULL;
    if (http_timers_reserve(&server->timers, atomic_load(&server->n_conns) + 1)) {
        conn = kri_calloc(1, sizeof *conn, "http connection");
    }
    if (conn != NULL && is_tls) {
        conn->ssl = SSL_new(server->tls);
        if (conn->ssl == NULL || SSL_set_fd(conn->ssl, fd) != 1) {
            SSL_free(conn->ssl);
            kri_free(conn);
            conn = NULL;
        } else {
            SSL_set_accept_state(conn->ssl);
        }
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = conn};
    if (conn != NULL && epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        SSL_free(conn->ssl);
        kri_free(conn);
        conn = NULL;
    }
    if (conn == NULL) {
        (void)close(fd);
        return NULL;
    }
    conn->source = SOURCE_CONN;
    conn->server = server;
    conn->fd = fd;
    conn->events = event.events;
    conn->in = is_tls ? IN_TLS : IN_HEAD;
    conn->begin_ns = conn->write_ns = kri_clock_ns();
    conn->deadline_ns = HTTP_NEVER;
    conn->address = address;
    (void)snprintf(conn->peer, sizeof conn->peer, "%s", peer);
    http_message_init(&conn->message);
    kri_buffer_init(&conn->write, SIZE_MAX);
    conn->next = server->conns;
    if (conn->next != NULL) conn->next->prev = conn;
    server->conns = conn;
    atomic_fetch_add(&server->n_conns, 1);
    http_conn_update(conn);
    return conn;
}

/* A request whose head never came to its end. */
static void report_partial(http_conn_t *conn, int status) {
    http_server_t *server = conn->server;
    if (server->params.on_done == NULL) return;
    http_request_t request = {.method = {"", 0}, .path = {"", 0}, .query = {"", 0}, .body = ""};
    request.begin_ns = conn->begin_ns;
    (void)snprintf(request.peer, sizeof request.peer, "%s", conn->peer);
    http_id_create(server, request.id);
    server->params.on_done(server->params.user, &request, status, 0);
}

void http_conn_report(http_conn_t *conn, int status) {
    http_server_t *server = conn->server;
    if (server->params.on_done == NULL) return;
    server->params.on_done(server->params.user, &conn->exchange->request, status, conn->n_payload);
}

void http_conn_close(http_conn_t *conn, int status) {
    http_server_t *server = conn->server;
    if (conn->in == IN_CLOSED) return;
    const bool is_partial = conn->in == IN_HEAD && !http_message_is_idle(&conn->message);
    conn->in = IN_CLOSED;
    if (conn->exchange != NULL) {
        http_conn_report(conn, status);
        http_exchange_detach(conn->exchange, true);
        conn->exchange = NULL;
    } else if (is_partial) {
        report_partial(conn, status);
    }
    http_timers_set(&server->timers, conn, HTTP_NEVER);
    SSL_free(conn->ssl);
    conn->ssl = NULL;
    (void)close(conn->fd); /* leaves epoll too */
    http_message_reset(&conn->message);
    kri_buffer_deinit(&conn->write);
    kri_free(conn->rest);
    conn->rest = NULL;
    if (conn->address != NULL) http_addresses_remove(&server->addresses, conn->address);
    if (conn->prev != NULL) conn->prev->next = conn->next;
    else server->conns = conn->next;
    if (conn->next != NULL) conn->next->prev = conn->prev;
    conn->prev = NULL;
    conn->next = server->closed;
    server->closed = conn;
    atomic_fetch_sub(&server->n_conns, 1);
    http_loop_resume(server);
}

bool http_conn_is_idle(const http_conn_t *conn) {
    return conn->in == IN_HEAD && http_message_is_idle(&conn->message);
}

/* After the last answer: the client may read it before it sees the end. A close at once would make
 * the kernel send a reset when there is unread input, and the answer would be lost. */
void http_conn_linger(http_conn_t *conn) {
    if (conn->ssl != NULL) http_tls_shutdown(conn->ssl);
    if (shutdown(conn->fd, SHUT_WR) != 0) {
        http_conn_close(conn, 499);
        return;
    }
    conn->in = IN_LINGER;
    conn->begin_ns = kri_clock_ns();
    http_message_reset(&conn->message);
    kri_free(conn->rest);
    conn->rest = NULL;
    conn->n_rest = 0;
}

/* ---- deadlines ------------------------------------------------------------------------------- */

static uint64_t sooner(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* The body's deadline: it may be silent for so long, and after a while be so slow on average. */
static uint64_t body_deadline(const http_conn_t *conn) {
    const http_limits_t *limits = &conn->server->limits;
    const uint64_t idle = conn->body_last_ns + limits->body_idle_ms * MS;
    if (limits->body_rate_bytes == 0) return idle;
    const double paid_s = (double)conn->n_body / (double)limits->body_rate_bytes;
    uint64_t paid_ns = paid_s < 1e9 ? (uint64_t)(paid_s * 1e9) : (uint64_t)1000000000 * 1000000000;
    const uint64_t free_ns = limits->body_rate_after_ms * MS;
    if (paid_ns < free_ns) paid_ns = free_ns;
    return sooner(idle, conn->body_begin_ns + paid_ns);
}

static bool has_unsent(const http_conn_t *conn) { return conn->write_at < conn->write.n_bytes; }

/* A heartbeat is due when an event stream has been silent between two events. */
static bool may_beat(const http_conn_t *conn) {
    return conn->is_events && conn->at_event_end && !has_unsent(conn) && conn->exchange != NULL &&
           conn->server->limits.heartbeat_ms > 0;
}

static uint64_t input_deadline(const http_conn_t *conn) {
    const http_limits_t *limits = &conn->server->limits;
    switch (conn->in) {
    case IN_TLS: return conn->begin_ns + limits->head_ms * MS;
    case IN_HEAD:
        return conn->begin_ns + (http_message_is_idle(&conn->message) ? limits->keep_alive_ms
                                                                      : limits->head_ms) * MS;
    case IN_BODY:
    case IN_DISCARD: return body_deadline(conn);
    case IN_LINGER: return conn->begin_ns + HTTP_LINGER_MS * MS;
    default: return HTTP_NEVER;
    }
}

static uint64_t output_deadline(const http_conn_t *conn) {
    const http_limits_t *limits = &conn->server->limits;
    if (has_unsent(conn)) return conn->write_ns + limits->write_stall_ms * MS;
    return may_beat(conn) ? conn->write_ns + limits->heartbeat_ms * MS : HTTP_NEVER;
}

void http_conn_timeout(http_conn_t *conn, uint64_t now_ns) {
    if (now_ns >= output_deadline(conn)) {
        if (has_unsent(conn)) http_conn_close(conn, 499);
        else http_conn_beat(conn);
    } else if (now_ns >= input_deadline(conn)) {
        static const http_refusal_t head_late = {408, "request_timeout",
                                                 "the request's header did not come in time"};
        static const http_refusal_t body_late = {408, "request_timeout",
                                                 "the request's body did not come in time"};
        if (conn->in == IN_HEAD && !http_message_is_idle(&conn->message)) {
            http_conn_refuse(conn, head_late);
        } else if (conn->in == IN_BODY) {
            http_conn_refuse(conn, body_late);
        } else {
            http_conn_close(conn, 499);
        }
    }
    http_conn_update(conn);
}

void http_conn_update(http_conn_t *conn) {
    if (conn->in == IN_CLOSED) return;
    http_timers_set(&conn->server->timers, conn,
                    sooner(input_deadline(conn), output_deadline(conn)));
    /* In IN_WAIT nothing is read: what the client sends on stays in the kernel. */
    uint32_t events = conn->in == IN_WAIT ? 0 : (uint32_t)EPOLLIN;
    if (conn->in != IN_WAIT || !conn->is_refused) events |= EPOLLRDHUP;
    if (has_unsent(conn) || conn->wants_out) events |= EPOLLOUT;
    if (events == conn->events) return;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(conn->server->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event) != 0) {
        http_conn_close(conn, 499);
        return;
    }
    conn->events = events;
}

/* ---- input ----------------------------------------------------------------------------------- */

void http_conn_refuse(http_conn_t *conn, http_refusal_t refusal) {
    if (conn->exchange == NULL) conn->exchange = http_exchange_create_bare(conn->server, conn);
    if (conn->exchange == NULL) {
        http_conn_close(conn, 0);
        return;
    }
    conn->in = IN_WAIT;
    /* Also when another thread has just answered: where the request ends is not known. */
    conn->is_refused = conn->is_last_answer = true;
    http_exchange_fail(conn->exchange, refusal, true);
}

/* An answer has been given before the body: the rest of the request is read and dropped, if it is
 * short, so that the connection can go on. */
static void discard_body(http_conn_t *conn) {
    if (!http_message_allow(&conn->message, HTTP_DISCARD_BYTES_MAX) || conn->is_last_answer) {
        conn->in = IN_WAIT;
        conn->is_refused = true;
        return;
    }
    conn->in = IN_DISCARD;
}

static void take_head(http_conn_t *conn) {
    http_server_t *server = conn->server;
    http_message_t *message = &conn->message;
    const bool has_body = message->is_chunked || message->n_left > 0;
    http_exchange_t *exchange = http_exchange_create(server, conn, message);
    if (exchange == NULL) {
        http_conn_refuse(conn, (http_refusal_t){503, "overloaded", "out of memory"});
        return;
    }
    conn->exchange = exchange;
    if (conn->n_requests + 1 >= server->limits.keep_alive_requests) exchange->must_close = true;
    /* Without the body's end there is no next request. */
    conn->is_last_answer = has_body && (exchange->expects_continue ||
                                        (!message->is_chunked &&
                                         message->n_left > HTTP_DISCARD_BYTES_MAX));
    conn->n_body = 0;
    conn->body_begin_ns = conn->body_last_ns = kri_clock_ns();
    exchange->closes = conn->is_last_answer;
    exchange->in_on_head = true;
    server->params.on_head(server->params.user, exchange);
    exchange->in_on_head = false;
    pthread_mutex_lock(&exchange->mutex);
    const bool is_answered = exchange->state != ANSWER_NONE;
    if (!is_answered) exchange->closes = false;
    pthread_mutex_unlock(&exchange->mutex);
    if (is_answered) {
        discard_body(conn);
    } else if (!exchange->is_accepted) {
        http_conn_refuse(conn, (http_refusal_t){500, "internal", "the request was not handled"});
    } else if (!http_message_allow(message, exchange->n_body_max)) {
        http_conn_refuse(conn, message->refusal);
    } else {
        kri_buffer_init(&exchange->body, (size_t)exchange->n_body_max);
        conn->is_last_answer = false;
        conn->in = IN_BODY;
    }
}

static void take_data(http_conn_t *conn, http_text_t piece) {
    conn->body_last_ns = kri_clock_ns();
    conn->n_body += piece.n_bytes;
    if (conn->in == IN_DISCARD) return;
    if (kri_buffer_append(&conn->exchange->body, piece.data, piece.n_bytes) != KR_OK) {
        http_conn_refuse(conn, (http_refusal_t){503, "overloaded", "out of memory"});
    }
}

static void take_end(http_conn_t *conn) {
    if (conn->in == IN_DISCARD) {
        conn->in = IN_WAIT;
        if (conn->is_answered) http_conn_next(conn);
        return;
    }
    http_exchange_t *exchange = conn->exchange;
    conn->in = IN_WAIT;
    exchange->request.body = exchange->body.n_bytes > 0 ? exchange->body.data : "";
    exchange->request.body_bytes = exchange->body.n_bytes;
    if (!http_workers_push(conn->server, exchange)) {
        http_exchange_fail(exchange, (http_refusal_t){503, "overloaded", "too many requests wait"},
                           false);
    }
}

static void take_refusal(http_conn_t *conn) {
    const http_refusal_t refusal = conn->message.refusal;
    if (conn->in != IN_DISCARD) {
        http_conn_refuse(conn, refusal);
    } else if (conn->is_answered) {
        http_conn_linger(conn);
    } else { /* the answer is under way */
        conn->in = IN_WAIT;
        conn->is_refused = conn->is_last_answer = true;
    }
}

static bool reads_message(const http_conn_t *conn) {
    return conn->in == IN_HEAD || conn->in == IN_BODY || conn->in == IN_DISCARD;
}

void http_conn_input(http_conn_t *conn, const char *data, size_t n_bytes) {
    while (reads_message(conn)) {
        size_t n_used;
        http_text_t piece;
        if (n_bytes > 0 && http_conn_is_idle(conn)) conn->begin_ns = kri_clock_ns();
        const http_event_t event = http_message_feed(&conn->message, &conn->server->limits, data,
                                                     n_bytes, &n_used, &piece);
        data += n_used;
        n_bytes -= n_used;
        if (event == HTTP_EVENT_MORE && n_bytes == 0) break;
        if (event == HTTP_EVENT_HEAD) take_head(conn);
        else if (event == HTTP_EVENT_DATA) take_data(conn, piece);
        else if (event == HTTP_EVENT_END) take_end(conn);
        else if (event == HTTP_EVENT_BAD) take_refusal(conn);
        if (event == HTTP_EVENT_HEAD && conn->in == IN_BODY && n_bytes == 0) {
            http_conn_continue(conn);
        }
    }
    if (conn->in != IN_WAIT || conn->is_refused || n_bytes == 0) return;
    /* Pipelined: kept for after the answer. */
    conn->rest = kri_alloc(n_bytes, "http rest");
    if (conn->rest == NULL) {
        conn->is_last_answer = true;
        return;
    }
    memcpy(conn->rest, data, n_bytes);
    conn->n_rest = n_bytes;
}

void http_conn_next(http_conn_t *conn) {
    conn->is_answered = false;
    conn->n_requests++;
    http_message_reset(&conn->message);
    if (conn->is_last_answer || atomic_load(&conn->server->is_draining)) {
        http_conn_linger(conn);
        return;
    }
    conn->in = IN_HEAD;
    conn->begin_ns = kri_clock_ns();
}

/* How much may be read at once: not much behind the request. */
static size_t read_size(const http_conn_t *conn) {
    if (conn->in == IN_LINGER) return HTTP_READ_BODY_BYTES;
    if (conn->in == IN_HEAD || conn->message.is_chunked) return HTTP_READ_BYTES;
    return conn->message.n_left < HTTP_READ_BODY_BYTES ? (size_t)conn->message.n_left
                                                       : HTTP_READ_BODY_BYTES;
}

/* As http_tls_read. */
static long receive(http_conn_t *conn, void *data, size_t n_bytes) {
    if (conn->ssl != NULL) return http_tls_read(conn->ssl, data, n_bytes, &conn->wants_out);
    for (;;) {
        const ssize_t n = recv(conn->fd, data, n_bytes, 0);
        if (n >= 0) return n;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return -1;
        if (errno != EINTR) return -2;
    }
}

/* One read; with TLS also what OpenSSL holds of a record, which epoll does not know of. */
void http_conn_read(http_conn_t *conn) {
    char *scratch = conn->server->scratch;
    do {
        const long n = receive(conn, scratch, read_size(conn));
        if (n == -1) return;
        if (n <= 0) {
            http_conn_close(conn, 499);
            return;
        }
        if (conn->in != IN_LINGER) http_conn_input(conn, scratch, (size_t)n);
    } while (conn->ssl != NULL && (reads_message(conn) || conn->in == IN_LINGER) &&
             SSL_pending(conn->ssl) > 0);
}

void http_conn_go_on(http_conn_t *conn) {
    char *rest = conn->rest;
    const size_t n_rest = conn->n_rest;
    conn->rest = NULL;
    conn->n_rest = 0;
    if (rest != NULL) http_conn_input(conn, rest, n_rest);
    kri_free(rest);
    if (conn->ssl != NULL && reads_message(conn) && SSL_pending(conn->ssl) > 0) {
        http_conn_read(conn);
    }
}

static void handshake(http_conn_t *conn) {
    conn->wants_out = false;
    const int done = http_tls_handshake(conn->ssl, &conn->wants_out);
    if (done == -2) {
        http_conn_close(conn, 0);
    } else if (done == 1) {
        conn->in = IN_HEAD;
        conn->begin_ns = kri_clock_ns();
        http_conn_read(conn);
    }
}

void http_conn_event(http_conn_t *conn, uint32_t events) {
    if (conn->in == IN_CLOSED) return;
    if (events & (EPOLLERR | EPOLLHUP)) {
        http_conn_close(conn, 499);
        return;
    }
    if (conn->in == IN_TLS) {
        handshake(conn);
        http_conn_update(conn);
        return;
    }
    if (events & EPOLLOUT) {
        const bool read_waits = conn->wants_out && conn->ssl != NULL;
        conn->wants_out = false;
        http_conn_send(conn);
        if (read_waits && reads_message(conn)) http_conn_read(conn);
    }
    if (events & (EPOLLIN | EPOLLRDHUP)) {
        if (reads_message(conn) || conn->in == IN_LINGER) http_conn_read(conn);
        else if (conn->in == IN_WAIT && (events & EPOLLRDHUP) && !conn->is_refused) {
            http_conn_close(conn, 499);
        }
    }
    http_conn_update(conn);
}
