/* test_http_faults.c: system calls of the I/O thread interrupted, short, too early, and failing.
 * As long as none fails for good, clients see exactly what they would without. */
#define _GNU_SOURCE
#include <sys/epoll.h>

#include "http_rig.h"
#include "server/http/internal.h"

static atomic_uint seed, per_mille_odd, per_mille_broken, n_sends;

/* One in a thousand, so many times; and a number for how. */
static bool draws(unsigned per_mille, unsigned *how) {
    unsigned x = atomic_fetch_add(&seed, 0x9e3779b9u) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    x ^= x >> 16;
    *how = x / 1000;
    return x % 1000 < per_mille;
}

/* 0: go on; else errno. Only in the I/O thread: the clients' calls are not touched. */
static int fault(unsigned *how) {
    /* Set only while there is a server: before that rig.server is not to be looked at. */
    if (atomic_load(&per_mille_odd) == 0 && atomic_load(&per_mille_broken) == 0) return 0;
    if (!http_loop_is_here(rig.server)) return 0;
    if (draws(atomic_load(&per_mille_broken), how)) return *how % 2 ? ECONNRESET : EPIPE;
    if (!draws(atomic_load(&per_mille_odd), how)) return 0;
    return *how % 3 == 0 ? EINTR : *how % 3 == 1 ? EAGAIN : -1;
}

ssize_t __real_recv(int fd, void *data, size_t n_bytes, int flags);
ssize_t __real_send(int fd, const void *data, size_t n_bytes, int flags);
int __real_accept4(int fd, struct sockaddr *address, socklen_t *n_bytes, int flags);
int __real_epoll_wait(int fd, struct epoll_event *events, int n_events, int timeout);
ssize_t __wrap_recv(int fd, void *data, size_t n_bytes, int flags);
ssize_t __wrap_send(int fd, const void *data, size_t n_bytes, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *n_bytes, int flags);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int n_events, int timeout);

ssize_t __wrap_recv(int fd, void *data, size_t n_bytes, int flags) {
    unsigned how;
    const int why = fault(&how);
    if (why < 0) return __real_recv(fd, data, 1 + how % 7 < n_bytes ? 1 + how % 7 : n_bytes, flags);
    if (why == 0) return __real_recv(fd, data, n_bytes, flags);
    errno = why == EPIPE ? ECONNRESET : why;
    return -1;
}

ssize_t __wrap_send(int fd, const void *data, size_t n_bytes, int flags) {
    unsigned how;
    atomic_fetch_add(&n_sends, 1);
    const int why = fault(&how);
    if (why < 0) return __real_send(fd, data, 1 + how % 7 < n_bytes ? 1 + how % 7 : n_bytes, flags);
    if (why == 0) return __real_send(fd, data, n_bytes, flags);
    errno = why;
    return -1;
}

int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *n_bytes, int flags) {
    unsigned how;
    const int why = fault(&how);
    static const int reasons[] = {EMFILE, ENFILE, ENOBUFS, ENOMEM, ECONNABORTED, EPROTO};
    if (why == 0) return __real_accept4(fd, address, n_bytes, flags);
    errno = why == EINTR || why == EAGAIN ? why : reasons[how % 6];
    return -1;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int n_events, int timeout) {
    unsigned how;
    const int why = fault(&how);
    if (why == EINTR) {
        errno = EINTR;
        return -1;
    }
    if (why == EAGAIN) return 0;          /* woken for nothing */
    if (why < 0) n_events = 1;            /* one at a time */
    return __real_epoll_wait(fd, events, n_events, timeout);
}

static void answer(http_exchange_t *exchange) {
    const http_request_t *request = http_request(exchange);
    if (!rig_is_path(exchange, "/stream")) {
        const http_answer_t whole = {.status = 200, .content_type = "text/plain",
                                     .body = request->body, .body_bytes = request->body_bytes};
        http_reply(exchange, &whole);
        return;
    }
    http_stream_begin(exchange, 200, "text/event-stream", NULL, true);
    for (int i = 0; i < 50; i++) {
        if (!http_stream_write(exchange, "data: x\n\n", 9)) break;
        http_flush(rig.server);
    }
    http_stream_end(exchange, true);
}

static const char talk[] = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world"
                           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                           "5\r\nHELLO\r\n6\r\n WORLD\r\n0\r\n\r\n"
                           "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"
                           "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

static void check_answers(const kri_buffer_t *in) {
    const char *at = in->data;
    assert_non_null(at);
    assert_non_null(at = strstr(at, "\r\n\r\nhello worldHTTP/1.1 200 OK\r\n"));
    assert_non_null(at = strstr(at, "\r\n\r\nHELLO WORLDHTTP/1.1 200 OK\r\n"));
    int n_events = 0;
    const char *end = strstr(at, "0\r\n\r\nHTTP/1.1 200 OK\r\n");
    assert_non_null(end);
    for (; (at = strstr(at, "data: x\n\n")) != NULL && at < end; at++) n_events++;
    assert_int_equal(n_events, 50);
    assert_non_null(strstr(end, "\r\nConnection: close\r\n"));
}

static void start(void) {
    const http_params_t params = rig_params();
    atomic_store(&per_mille_odd, 0);
    atomic_store(&per_mille_broken, 0);
    rig_start(&params);
    rig.on_request = answer;
}

static uint32_t n_connections(void) {
    http_stats_t stats;
    http_server_stats(rig.server, &stats);
    return stats.n_connections;
}

TEST(http_faults_calls_that_are_short_or_interrupted_change_nothing) {
    start();
    atomic_store(&per_mille_odd, 500);
    for (unsigned run = 0; run < 60; run++) {
        atomic_store(&seed, run * 7919);
        kri_buffer_t in;
        kri_buffer_init(&in, 1 << 20);
        const int fd = rig_connect();
        rig_send(fd, talk);
        rig_read_all(fd, &in);
        check_answers(&in);
        kri_buffer_deinit(&in);
        (void)close(fd);
    }
    atomic_store(&per_mille_odd, 0);
    RIG_UNTIL(n_connections() == 0);
    assert_int_equal(rig.n_done, 240);
    rig_stop();
}

TEST(http_faults_connections_that_break_leave_nothing_behind) {
    start();
    atomic_store(&per_mille_odd, 200);
    for (unsigned run = 0; run < 60; run++) {
        atomic_store(&seed, run * 104729);
        atomic_store(&per_mille_broken, 30);
        kri_buffer_t in;
        kri_buffer_init(&in, 1 << 20);
        const int fd = rig_connect();
        rig_send(fd, talk);
        rig_read_all(fd, &in); /* ends, whatever came */
        kri_buffer_deinit(&in);
        (void)close(fd);
    }
    atomic_store(&per_mille_broken, 0);
    atomic_store(&per_mille_odd, 0);
    RIG_UNTIL(n_connections() == 0);
    http_stats_t stats;
    http_server_stats(rig.server, &stats);
    assert_int_equal(stats.n_exchanges, 0);
    kri_buffer_t in;
    kri_buffer_init(&in, 1 << 20);
    const int fd = rig_connect();
    rig_send(fd, talk);
    rig_read_all(fd, &in);
    check_answers(&in);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

static _Atomic(http_exchange_t *) kept;
static void keep(http_exchange_t *exchange) {
    http_retain(exchange);
    atomic_store(&kept, exchange);
}

TEST(http_faults_a_flush_is_one_send_for_each_connection) {
    start();
    rig.on_request = keep;
    int fds[3];
    http_exchange_t *exchanges[3];
    kri_buffer_t in;
    kri_buffer_init(&in, 1 << 20);
    for (int i = 0; i < 3; i++) {
        fds[i] = rig_connect();
        rig_send(fds[i], GET("/"));
        RIG_UNTIL(atomic_load(&kept) != NULL);
        exchanges[i] = atomic_exchange(&kept, NULL);
        http_stream_begin(exchanges[i], 200, "text/event-stream", NULL, true);
    }
    for (int round = 0; round < 5; round++) {
        const unsigned before = atomic_load(&n_sends);
        for (int i = 0; i < 3; i++) {
            for (int k = 0; k < 10; k++) {
                assert_true(http_stream_write(exchanges[i], "data: x\n\n", 9));
            }
        }
        http_flush(rig.server);
        for (int i = 0; i < 3; i++) { /* with the head in the first round */
            kri_buffer_clear(&in);
            rig_read_until(fds[i], &in, "data: x\n\n\r\n");
        }
        assert_int_equal(atomic_load(&n_sends) - before, 3);
    }
    const unsigned before = atomic_load(&n_sends);
    for (int i = 0; i < 3; i++) {
        assert_true(http_stream_write(exchanges[i], "data: end\n\n", 11));
        http_stream_end(exchanges[i], true); /* the last event and the last chunk together */
        kri_buffer_clear(&in);
        rig_read_until(fds[i], &in, "data: end\n\n\r\n0\r\n\r\n");
        http_release(exchanges[i]);
    }
    assert_int_equal(atomic_load(&n_sends) - before, 3);
    for (int i = 0; i < 3; i++) { /* head and body of a whole answer */
        rig_send(fds[i], GET("/"));
        RIG_UNTIL(atomic_load(&kept) != NULL);
        http_exchange_t *exchange = atomic_exchange(&kept, NULL);
        const unsigned n_before = atomic_load(&n_sends);
        rig_reply(exchange, 200, "whole", false);
        kri_buffer_clear(&in);
        rig_read_until(fds[i], &in, "whole");
        assert_int_equal(atomic_load(&n_sends) - n_before, 1);
        http_release(exchange);
        (void)close(fds[i]);
    }
    kri_buffer_deinit(&in);
    rig_stop();
}
