/* conn_out.c: answers on their way to the kernel. One batch at a time: what an exchange has
 * gathered is framed into conn->write, which leaves in one system call if the kernel takes it; the
 * next batch is fetched when all of it has left. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "server/http/conn.h"

#define KEPT_BYTES 16384u /* capacity that a buffer keeps between two batches */

typedef enum fetch_e { FETCH_NOTHING, FETCH_SOME, FETCH_FAILED } fetch_t;

static bool put(kri_buffer_t *out, const char *data, size_t n_bytes) {
    return n_bytes == 0 || kri_buffer_append(out, data, n_bytes) == KR_OK;
}

/* Head, payload and, where the answer ends, its end. Under the exchange's mutex. */
static bool frame(http_conn_t *conn, http_exchange_t *exchange) {
    kri_buffer_t *out = &exchange->out, *write = &conn->write;
    const size_t n_head = exchange->n_out_head, n_payload = out->n_bytes - n_head;
    if (!exchange->is_chunked) { /* as it is: no copy of a long answer */
        const kri_buffer_t empty = *write;
        *write = *out;
        *out = empty;
        conn->payload_at = n_head;
        conn->payload_end = n_head + n_payload;
        return true;
    }
    bool good = put(write, out->data, n_head);
    if (n_payload > 0) {
        good = good && kri_buffer_printf(write, "%zx\r\n", n_payload) == KR_OK;
        conn->payload_at = write->n_bytes;
        good = good && put(write, out->data + n_head, n_payload);
        conn->payload_end = write->n_bytes;
        good = good && put(write, "\r\n", 2);
    }
    const bool ends = exchange->state == ANSWER_ENDED && exchange->is_whole;
    return good && (!ends || exchange->is_head || put(write, "0\r\n\r\n", 5));
}

/* Where the stream stands after its last bytes: a heartbeat may not break an event. */
static void note_event_end(http_conn_t *conn, const http_exchange_t *exchange) {
    const kri_buffer_t *out = &exchange->out;
    const size_t n_payload = out->n_bytes - exchange->n_out_head;
    conn->is_events = exchange->is_events && !exchange->is_head;
    if (n_payload >= 2) {
        conn->at_event_end = memcmp(out->data + out->n_bytes - 2, "\n\n", 2) == 0;
    } else {
        conn->at_event_end = exchange->n_written == 0 || (n_payload == 0 && conn->at_event_end);
    }
}

/* Moves what the exchange has gathered into the empty conn->write. */
static fetch_t fetch(http_conn_t *conn, size_t *n_dropped) {
    http_exchange_t *exchange = conn->exchange;
    fetch_t result = FETCH_NOTHING;
    pthread_mutex_lock(&exchange->mutex);
    kri_buffer_t *out = &exchange->out;
    const bool ends = exchange->state == ANSWER_ENDED;
    if (exchange->is_flooded) {
        result = FETCH_FAILED;
    } else if (exchange->state != ANSWER_NONE && (out->n_bytes > 0 || ends)) {
        note_event_end(conn, exchange);
        if (exchange->is_head) { /* of a stream; a whole answer has none */
            *n_dropped = out->n_bytes - exchange->n_out_head;
            out->n_bytes = exchange->n_out_head;
        }
        result = frame(conn, exchange) ? FETCH_SOME : FETCH_FAILED;
        if (ends) {
            conn->is_last = true;
            conn->is_last_answer |= exchange->closes;
            conn->is_cut = !exchange->is_whole;
        }
        if (out->capacity > KEPT_BYTES || ends) kri_buffer_deinit(out);
        else kri_buffer_clear(out);
        exchange->n_out_head = 0;
    }
    pthread_mutex_unlock(&exchange->mutex);
    return result;
}

/* As http_tls_write. */
static long transmit(http_conn_t *conn, const char *data, size_t n_bytes) {
    if (conn->ssl != NULL) return http_tls_write(conn->ssl, data, n_bytes, &conn->wants_out);
    for (;;) {
        const ssize_t n = send(conn->fd, data, n_bytes, MSG_NOSIGNAL);
        if (n >= 0) return n;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return -1;
        if (errno != EINTR) return -2;
    }
}

/* Payload between payload_at and payload_end that has left and was not yet reported. */
static void tell_taken(http_conn_t *conn) {
    size_t n_sent = conn->write_at > conn->payload_at ? conn->write_at : conn->payload_at;
    if (n_sent > conn->payload_end) n_sent = conn->payload_end;
    const size_t n_new = n_sent - conn->payload_at - conn->payload_told;
    if (n_new == 0) return;
    conn->payload_told += n_new;
    conn->n_payload += n_new;
    http_exchange_taken(conn->exchange, n_new);
}

/* Sends what is in conn->write. False: the connection is closed, or the kernel takes no more. */
static bool drain(http_conn_t *conn) {
    while (conn->write_at < conn->write.n_bytes) {
        const size_t n_asked = conn->write.n_bytes - conn->write_at;
        const long n = transmit(conn, conn->write.data + conn->write_at, n_asked);
        if (n == -1) return false;
        if (n <= 0) {
            http_conn_close(conn, 499);
            return false;
        }
        conn->write_at += (size_t)n;
        conn->write_ns = kri_clock_ns();
        if (conn->exchange != NULL) tell_taken(conn);
        if (conn->ssl == NULL && (size_t)n < n_asked) return false; /* full: epoll says when */
    }
    if (conn->write.capacity > KEPT_BYTES) kri_buffer_deinit(&conn->write);
    else kri_buffer_clear(&conn->write);
    conn->write_at = conn->payload_at = conn->payload_end = conn->payload_told = 0;
    return true;
}

/* The answer is not whole, and the client must be able to tell: without the last chunk, or, where
 * only the end of the connection ends the body, with a reset. */
static void cut(http_conn_t *conn) {
    http_exchange_t *exchange = conn->exchange;
    if (!exchange->is_chunked) {
        const struct linger reset = {.l_onoff = 1, .l_linger = 0};
        (void)setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    http_conn_report(conn, exchange->status);
    conn->exchange = NULL;
    http_exchange_detach(exchange, false);
    http_conn_close(conn, 0);
}

/* All of an answer has left. */
static void end_answer(http_conn_t *conn) {
    http_exchange_t *exchange = conn->exchange;
    if (conn->is_cut) {
        cut(conn);
        return;
    }
    http_conn_report(conn, exchange->status);
    conn->exchange = NULL;
    conn->is_last = conn->is_events = false;
    conn->n_payload = 0;
    conn->is_answered = true;
    kri_buffer_deinit(&conn->write);
    http_exchange_detach(exchange, false);
    if (conn->is_last_answer) {
        http_conn_linger(conn);
    } else if (conn->in == IN_WAIT) {
        http_conn_next(conn);
        http_conn_go_on(conn);
    }
}

/* One batch: what is written after it was fetched puts the exchange on the list again, and while
 * the kernel takes no more, epoll calls. */
static void send_batch(http_conn_t *conn) {
    if (!drain(conn)) return;
    if (!conn->is_last) {
        size_t n_dropped = 0;
        if (conn->exchange == NULL) return;
        const fetch_t fetched = fetch(conn, &n_dropped);
        if (fetched == FETCH_FAILED) {
            http_conn_close(conn, 499);
            return;
        }
        if (n_dropped > 0) http_exchange_taken(conn->exchange, n_dropped);
        if (fetched == FETCH_NOTHING) return;
        if (conn->in == IN_BODY) conn->in = IN_DISCARD; /* answered before its body had come */
        conn->write_ns = kri_clock_ns();
        if (!drain(conn)) return;
    }
    if (conn->is_last) end_answer(conn);
}

void http_conn_send(http_conn_t *conn) {
    if (conn->in == IN_CLOSED) return;
    send_batch(conn);
    http_conn_update(conn);
}

/* Out of turn, between two batches. */
static void send_now(http_conn_t *conn, const char *text) {
    if (!put(&conn->write, text, strlen(text))) {
        http_conn_close(conn, 499);
        return;
    }
    conn->write_ns = kri_clock_ns();
    http_conn_send(conn);
}

void http_conn_continue(http_conn_t *conn) {
    if (!conn->exchange->expects_continue) return;
    if (!conn->message.is_chunked && conn->message.n_left == 0) return;
    send_now(conn, "HTTP/1.1 100 Continue\r\n\r\n");
}

void http_conn_beat(http_conn_t *conn) {
    send_now(conn, conn->exchange->is_chunked ? "3\r\n:\n\n\r\n" : ":\n\n");
}
