/* conn.c: a client: what it is still to be sent, and when nothing can be sent any more. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "inner.h"
#include "shared.h"

rpc_conn_t *rpc_conn_create(rpc_t *rpc, int in_fd, int out_fd, bool is_socket) {
    rpc_conn_t *conn = calloc(1, sizeof *conn);
    if (conn == NULL || pthread_mutex_init(&conn->lock, NULL) != 0) {
        free(conn);
        return NULL;
    }
    conn->rpc = rpc;
    conn->in_fd = in_fd;
    conn->out_fd = out_fd;
    conn->is_socket = is_socket;
    atomic_init(&conn->n_refs, 1);
    kri_buffer_init(&conn->out, RPC_OUT_BYTES_MAX);
    rpc_frames_init(&conn->frames, rpc->params.line_bytes_max);
    atomic_fetch_add(&rpc->n_clients, 1);
    return conn;
}

void rpc_conn_retain(rpc_conn_t *conn) { atomic_fetch_add(&conn->n_refs, 1); }

void rpc_conn_release(rpc_conn_t *conn) {
    if (conn == NULL || atomic_fetch_sub(&conn->n_refs, 1) != 1) return;
    atomic_fetch_sub(&conn->rpc->n_clients, 1);
    (void)close(conn->in_fd);
    if (conn->out_fd != conn->in_fd) (void)close(conn->out_fd);
    rpc_frames_deinit(&conn->frames);
    kri_buffer_deinit(&conn->out);
    free(conn->early);
    rpc_shared_free(conn);
    (void)pthread_mutex_destroy(&conn->lock);
    free(conn);
}

static void break_locked(rpc_conn_t *conn) {
    if (conn->is_broken) return;
    conn->is_broken = true;
    kri_buffer_deinit(&conn->out);
    kri_buffer_init(&conn->out, RPC_OUT_BYTES_MAX);
    conn->out_at = 0;
    rpc_streams_cancel_locked(conn, KR_E_CANCELLED);
    rpc_shared_end_locked(conn);
    rpc_loop_wake(conn->rpc);
}

void rpc_conn_break(rpc_conn_t *conn) {
    (void)pthread_mutex_lock(&conn->lock);
    break_locked(conn);
    (void)pthread_mutex_unlock(&conn->lock);
}

static size_t pending(const rpc_conn_t *conn) { return conn->out.n_bytes - conn->out_at; }

size_t rpc_conn_pending(rpc_conn_t *conn) {
    (void)pthread_mutex_lock(&conn->lock);
    const size_t n = pending(conn);
    (void)pthread_mutex_unlock(&conn->lock);
    return n;
}

void rpc_conn_put_locked(rpc_conn_t *conn, const char *line, size_t n_bytes) {
    if (conn->is_broken) return;
    /* What was written goes out of the way once it is most of the buffer. */
    if (conn->out_at > conn->out.n_bytes / 2) {
        kri_buffer_consume(&conn->out, conn->out_at);
        conn->out_at = 0;
    }
    const size_t n_before = conn->out.n_bytes;
    kr_status_t status = kri_buffer_append(&conn->out, line, n_bytes);
    if (status == KR_OK) status = kri_buffer_append(&conn->out, "\n", 1);
    if (status == KR_OK) return;
    conn->out.n_bytes = n_before;
    break_locked(conn); /* half a message would be worse than none */
}

void rpc_conn_put(rpc_conn_t *conn, const char *line, size_t n_bytes) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_conn_put_locked(conn, line, n_bytes);
    (void)pthread_mutex_unlock(&conn->lock);
}

/* A socket is never made non-blocking for others that share it. */
static ssize_t write_some(rpc_conn_t *conn, const char *data, size_t n_bytes) {
    if (conn->is_socket) return rpc_shared_send_locked(conn, data, n_bytes);
    return write(conn->out_fd, data, n_bytes);
}

void rpc_conn_flush(rpc_conn_t *conn) {
    (void)pthread_mutex_lock(&conn->lock);
    bool waits = false;
    while (!conn->is_broken && !waits && pending(conn) > 0) {
        const ssize_t n = write_some(conn, conn->out.data + conn->out_at, pending(conn));
        if (n >= 0) conn->out_at += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK) waits = true;
        else if (errno != EINTR) break_locked(conn);
    }
    if (pending(conn) == 0) {
        kri_buffer_clear(&conn->out);
        conn->out_at = 0;
    }
    if (conn->is_congested && pending(conn) <= RPC_SMOOTH_BYTES) {
        conn->is_congested = false;
        rpc_streams_resume_locked(conn);
    }
    (void)pthread_mutex_unlock(&conn->lock);
    if (waits) rpc_loop_wake(conn->rpc);
}

void rpc_conn_touch(rpc_conn_t *conn) {
    if (conn->is_touched) return;
    conn->is_touched = true;
    rpc_conn_retain(conn);
    conn->touched_next = conn->rpc->touched_conns;
    conn->rpc->touched_conns = conn;
}
