/* loop.c: the thread of the clients: polls, reads, cuts lines, answers what is quick, writes what
 * was left over, and ends all of it in time. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"
#include "inner.h"
#include "listen.h"
#include "shared.h"

#define CHUNK_BYTES 65536u
#define MS_NS 1000000ull
#define FINISH_MS 1000u  /* a client that has ended its input: what runs may finish */
#define END_MS 1800u     /* then it is cut */
#define FDS_MAX (2 + 2 * RPC_CLIENTS_MAX)

struct rpc_loop_s {
    int wake_fd;
    unix_socket_t listener;   /* fd -1: none */
    rpc_conn_t *conns;
    uint32_t n_conns;
    atomic_bool wants_end;
    uint64_t end_ns;           /* when the end has begun; 0 = it has not */
    char chunk[CHUNK_BYTES];
    struct pollfd fds[FDS_MAX];
    uint32_t n_fds;
};

/* The loop whose events this thread takes: it looks at everything before it sleeps again. */
static _Thread_local const rpc_loop_t *awake;

void rpc_loop_wake(rpc_t *rpc) {
    if (rpc->loop != NULL && rpc->loop != awake) kri_event_fd_set(rpc->loop->wake_fd);
}

void rpc_loop_end(rpc_t *rpc) {
    atomic_store(&rpc->loop->wants_end, true);
    rpc_loop_wake(rpc);
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void take_parsed(rpc_conn_t *conn, const char *line, size_t n_bytes, bool may_run) {
    json_t *root = NULL;
    rpc_error_t error;
    if (rpc_line_parse(line, n_bytes, &root, &error)) {
        rpc_dispatch(conn, root, may_run);
        return;
    }
    atomic_fetch_add(&conn->rpc->n_bad_lines, 1);
    rpc_put_error(conn, NULL, &error);
}

typedef struct long_line_s {
    rpc_conn_t *conn;
    kri_buffer_t text;
} long_line_t;

static void take_long(rpc_conn_t *conn, void *user) {
    long_line_t *line = user;
    const size_t n_bytes = line->text.n_bytes;
    if (conn != NULL) take_parsed(conn, line->text.data, n_bytes, true);
    conn = line->conn; /* referenced by the task */
    kri_buffer_deinit(&line->text);
    free(line);
    (void)pthread_mutex_lock(&conn->lock);
    conn->n_lines--;
    conn->line_bytes -= n_bytes;
    if (--conn->n_generating == 0) conn->n_early = 0;
    (void)pthread_mutex_unlock(&conn->lock);
    rpc_loop_wake(conn->rpc);
}

/* Longer than what may be parsed here: a worker's. */
static void push_long(rpc_conn_t *conn, kri_buffer_t *text) {
    long_line_t *line = malloc(sizeof *line);
    if (line != NULL) {
        *line = (long_line_t){.conn = conn, .text = *text};
        (void)pthread_mutex_lock(&conn->lock);
        conn->n_lines++;
        conn->line_bytes += text->n_bytes;
        conn->n_generating++; /* it may be a generate */
        (void)pthread_mutex_unlock(&conn->lock);
        kri_buffer_init(text, conn->rpc->params.line_bytes_max);
        if (rpc_work_push(conn->rpc, conn, take_long, line)) return;
        take_long(NULL, line);
    }
    rpc_error_t error;
    rpc_error_set(&error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
    rpc_put_error(conn, NULL, &error);
}

static void on_line(void *user, kri_buffer_t *line) {
    rpc_conn_t *conn = user;
    if (line->n_bytes <= RPC_QUICK_BYTES_MAX) take_parsed(conn, line->data, line->n_bytes, false);
    else push_long(conn, line);
}

static void on_too_long(void *user, const char *prefix, size_t n_bytes) {
    rpc_conn_t *conn = user;
    char id[8 * RPC_ID_BYTES_MAX];
    rpc_error_t error;
    rpc_guess_id(prefix, n_bytes, id, sizeof id);
    rpc_error_set(&error, RPC_E_REQUEST, KR_E_LIMIT, NULL, "a line of more than %zu bytes",
                  conn->rpc->params.line_bytes_max);
    atomic_fetch_add(&conn->rpc->n_bad_lines, 1);
    rpc_put_error(conn, id, &error);
}

/* ---- clients --------------------------------------------------------------------------------- */

static void add_conn(rpc_loop_t *loop, rpc_conn_t *conn) {
    conn->next = loop->conns;
    loop->conns = conn;
    loop->n_conns++;
}

static void end_input(rpc_conn_t *conn, uint64_t now_ns) {
    if (conn->is_ended) return;
    conn->is_ended = true;
    conn->end_ns = now_ns;
    if (conn->rpc->loop->listener.fd < 0) atomic_store(&conn->rpc->end_ns, now_ns);
}

static void read_conn(rpc_loop_t *loop, rpc_conn_t *conn) {
    const rpc_frame_sink_t sink = {.line = on_line, .too_long = on_too_long, .user = conn};
    /* Something is there. Only what may bring descriptors is read as a socket. */
    const ssize_t n = rpc_shared_kind(conn) == RPC_SHM_MEMFD
                          ? rpc_shared_receive(conn, loop->chunk, sizeof loop->chunk)
                          : read(conn->in_fd, loop->chunk, sizeof loop->chunk);
    if (n > 0) {
        rpc_frames_feed(&conn->frames, loop->chunk, (size_t)n, &sink);
        rpc_conn_flush(conn);
    } else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
        end_input(conn, kri_clock_ns()); /* half a line is dropped */
    }
}

typedef struct look_s {
    bool is_broken, is_idle, is_paused, wants_write;
} look_t;

static look_t look_at(rpc_conn_t *conn) {
    (void)pthread_mutex_lock(&conn->lock);
    const size_t n_pending = conn->out.n_bytes - conn->out_at;
    const look_t look = {
        .is_broken = conn->is_broken,
        .is_idle = conn->n_calls == 0 && conn->streams == NULL && conn->embeds == NULL &&
                   conn->n_lines == 0 && n_pending == 0,
        .is_paused = n_pending > RPC_OUT_PAUSE_BYTES || conn->n_lines >= RPC_LINES_PAUSE ||
                     conn->line_bytes > RPC_LINES_PAUSE_BYTES,
        .wants_write = n_pending > 0};
    (void)pthread_mutex_unlock(&conn->lock);
    return look;
}

static void cancel_streams(rpc_conn_t *conn, kr_status_t why) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_streams_cancel_locked(conn, why);
    (void)pthread_mutex_unlock(&conn->lock);
}

/* False: there is nothing left to do for it. */
static bool keep_conn(rpc_t *rpc, rpc_conn_t *conn, uint64_t now_ns) {
    const look_t look = look_at(conn);
    if (look.is_broken) return false;
    if (!conn->is_ended) return true;
    if (look.is_idle) return false;
    const uint64_t age_ns = now_ns - conn->end_ns;
    if (age_ns >= FINISH_MS * MS_NS && !conn->is_told) {
        conn->is_told = true;
        cancel_streams(conn, KR_E_CANCELLED);
        if (rpc->loop->listener.fd < 0) atomic_store(&rpc->is_ending, true); /* a load ends too */
    }
    if (age_ns < END_MS * MS_NS) return true;
    rpc_conn_break(conn);
    return false;
}

static void sweep(rpc_t *rpc, uint64_t now_ns) {
    rpc_loop_t *loop = rpc->loop;
    for (rpc_conn_t **link = &loop->conns; *link != NULL;) {
        rpc_conn_t *conn = *link;
        if (keep_conn(rpc, conn, now_ns)) {
            link = &conn->next;
            continue;
        }
        *link = conn->next;
        loop->n_conns--;
        rpc_conn_break(conn); /* whatever still works for it ends */
        rpc_conn_release(conn);
    }
}

static void accept_one(rpc_t *rpc) {
    const int fd = rpc_listener_accept(&rpc->loop->listener);
    if (fd < 0) return;
    rpc_conn_t *conn = rpc_conn_create(rpc, fd, fd, true);
    if (conn != NULL) add_conn(rpc->loop, conn);
    else (void)close(fd);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void begin_end(rpc_t *rpc, uint64_t now_ns) {
    rpc_loop_t *loop = rpc->loop;
    if (loop->end_ns != 0 || !atomic_load(&loop->wants_end)) return;
    loop->end_ns = now_ns;
    atomic_store(&rpc->end_ns, now_ns);
    atomic_store(&rpc->is_ending, true);
    for (rpc_conn_t *conn = loop->conns; conn != NULL; conn = conn->next) {
        end_input(conn, now_ns);
        conn->is_told = true;
        cancel_streams(conn, KR_E_SHUTTING_DOWN);
    }
}

static bool is_over(const rpc_t *rpc) {
    const rpc_loop_t *loop = rpc->loop;
    return loop->n_conns == 0 && (loop->listener.fd < 0 || loop->end_ns != 0);
}

/* ---- polling --------------------------------------------------------------------------------- */

static void add_fd(rpc_loop_t *loop, int fd, short events) {
    loop->fds[loop->n_fds++] = (struct pollfd){.fd = fd, .events = events};
}

/* The order of take_events. */
static void gather_fds(rpc_t *rpc) {
    rpc_loop_t *loop = rpc->loop;
    const bool accepts = loop->end_ns == 0 && loop->n_conns < RPC_CLIENTS_MAX;
    loop->n_fds = 0;
    add_fd(loop, loop->wake_fd, POLLIN);
    add_fd(loop, accepts ? loop->listener.fd : -1, POLLIN);
    for (rpc_conn_t *conn = loop->conns; conn != NULL; conn = conn->next) {
        const look_t look = look_at(conn);
        const bool reads = !conn->is_ended && !look.is_paused;
        const short out = look.wants_write ? POLLOUT : 0;
        if (conn->is_socket && conn->in_fd == conn->out_fd) {
            add_fd(loop, conn->in_fd, (short)((reads ? POLLIN : 0) | out));
            add_fd(loop, -1, 0);
        } else {
            add_fd(loop, reads ? conn->in_fd : -1, POLLIN);
            add_fd(loop, conn->out_fd, out);
        }
    }
}

static int wait_ms(const rpc_loop_t *loop, uint64_t now_ns) {
    uint64_t next_ns = UINT64_MAX;
    for (const rpc_conn_t *conn = loop->conns; conn != NULL; conn = conn->next) {
        if (!conn->is_ended) continue;
        const uint64_t due_ns = conn->end_ns + (conn->is_told ? END_MS : FINISH_MS) * MS_NS;
        if (due_ns < next_ns) next_ns = due_ns;
    }
    if (next_ns == UINT64_MAX) return -1;
    return next_ns > now_ns ? (int)((next_ns - now_ns) / MS_NS) + 1 : 0;
}

static void take_conn_events(rpc_loop_t *loop, rpc_conn_t *conn, const struct pollfd *in,
                             const struct pollfd *out) {
    const bool is_one = out->fd < 0 && conn->in_fd == conn->out_fd;
    const short written = is_one ? in->revents : out->revents;
    /* Nobody is there to read any more; what has come from it is of no use. */
    if (written & (conn->is_socket ? POLLHUP | POLLERR | POLLNVAL : POLLERR | POLLNVAL)) {
        rpc_conn_break(conn);
        return;
    }
    if (written & POLLOUT) rpc_conn_flush(conn);
    if (in->fd >= 0 && (in->events & POLLIN) && (in->revents & (POLLIN | POLLHUP | POLLERR |
                                                                POLLNVAL))) {
        read_conn(loop, conn);
    }
}

static void take_events(rpc_t *rpc) {
    rpc_loop_t *loop = rpc->loop;
    uint32_t i = 2;
    if (loop->fds[0].revents != 0) kri_event_fd_clear(loop->wake_fd);
    for (rpc_conn_t *conn = loop->conns; conn != NULL; conn = conn->next, i += 2) {
        take_conn_events(loop, conn, &loop->fds[i], &loop->fds[i + 1]);
    }
    if (loop->fds[1].revents != 0) accept_one(rpc);
}

void rpc_loop_run(rpc_t *rpc) {
    rpc_loop_t *loop = rpc->loop;
    for (;;) {
        const uint64_t now_ns = kri_clock_ns();
        begin_end(rpc, now_ns);
        sweep(rpc, now_ns);
        if (is_over(rpc)) return;
        gather_fds(rpc);
        const int n = poll(loop->fds, loop->n_fds, wait_ms(loop, now_ns));
        awake = loop;
        if (n > 0) take_events(rpc);
        awake = NULL;
    }
}

kr_status_t rpc_loop_create(rpc_t *rpc, kr_error_t *error) {
    rpc_loop_t *loop = calloc(1, sizeof *loop);
    const rpc_params_t *params = &rpc->params;
    if (loop == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the loop");
    loop->listener.fd = loop->wake_fd = -1;
    rpc->loop = loop;
    KR_TRY(kri_event_fd_create(&loop->wake_fd));
    if (params->socket_path != NULL) {
        return rpc_listener_open(&loop->listener, params->socket_path, error);
    }
    rpc_conn_t *conn = rpc_conn_create(rpc, params->in_fd, params->out_fd,
                                       rpc_is_socket(params->out_fd));
    if (conn == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the client");
    rpc->params.in_fd = rpc->params.out_fd = -1; /* the client's now */
    add_conn(loop, conn);
    return KR_OK;
}

void rpc_loop_destroy(rpc_t *rpc) {
    rpc_loop_t *loop = rpc->loop;
    if (loop == NULL) return;
    for (rpc_conn_t *conn = loop->conns, *next = NULL; conn != NULL; conn = next) {
        next = conn->next;
        rpc_conn_release(conn);
    }
    unix_socket_close(&loop->listener);
    rpc->loop = NULL;
    kri_event_fd_destroy(loop->wake_fd);
    free(loop);
}
