/* http_rig.h: a server in this process and clients on sockets. Everything is waited for, with a
 * bound that only a dead server reaches. */
#ifndef TESTS_HTTP_RIG_H
#define TESTS_HTTP_RIG_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "server/http/http.h"
#include "test.h"

#define RIG_WAIT_MS 120000
#define RIG_DONE_MAX 4096

/* Tests say what happens to a request by these; NULL: on_head accepts 1 MiB, on_request echoes. */
typedef void (*rig_fn)(http_exchange_t *exchange);

typedef struct rig_done_s {
    char method[16], path[64], id[65];
    int status;
    uint64_t n_bytes;
} rig_done_t;

static struct {
    http_server_t *server;
    uint16_t port;
    _Atomic(rig_fn) on_head, on_request;
    pthread_mutex_t mutex;
    rig_done_t done[RIG_DONE_MAX];
    atomic_int n_done, n_heads, n_requests;
} rig = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- server ---------------------------------------------------------------------------------- */

static inline void rig_reply(http_exchange_t *exchange, int status, const char *body, bool closes) {
    const http_answer_t answer = {.status = status, .content_type = "text/plain", .body = body,
                                  .body_bytes = strlen(body), .close = closes};
    http_reply(exchange, &answer);
}

static inline bool rig_is_path(http_exchange_t *exchange, const char *path) {
    const http_text_t found = http_request(exchange)->path;
    return found.n_bytes == strlen(path) && memcmp(found.data, path, found.n_bytes) == 0;
}

static inline void rig_on_head(void *user, http_exchange_t *exchange) {
    (void)user;
    atomic_fetch_add(&rig.n_heads, 1);
    const rig_fn fn = atomic_load(&rig.on_head);
    if (fn != NULL) fn(exchange);
    else http_accept(exchange, 1 << 20);
}

static inline void rig_on_request(void *user, http_exchange_t *exchange) {
    (void)user;
    const rig_fn fn = atomic_load(&rig.on_request);
    const http_request_t *request = http_request(exchange);
    const http_answer_t answer = {.status = 200, .content_type = "text/plain",
                                  .body = request->body, .body_bytes = request->body_bytes};
    if (fn != NULL) fn(exchange);
    else http_reply(exchange, &answer);
    atomic_fetch_add(&rig.n_requests, 1);
}

static inline void rig_on_done(void *user, const http_request_t *request, int status,
                               uint64_t n_bytes) {
    (void)user;
    pthread_mutex_lock(&rig.mutex);
    const int at = atomic_load(&rig.n_done);
    if (at < RIG_DONE_MAX) {
        rig_done_t *done = &rig.done[at];
        (void)snprintf(done->method, sizeof done->method, "%.*s", (int)request->method.n_bytes,
                       request->method.data);
        (void)snprintf(done->path, sizeof done->path, "%.*s", (int)request->path.n_bytes,
                       request->path.data);
        (void)snprintf(done->id, sizeof done->id, "%s", request->id);
        done->status = status;
        done->n_bytes = n_bytes;
    }
    atomic_store(&rig.n_done, at + 1);
    pthread_mutex_unlock(&rig.mutex);
}

static inline http_params_t rig_params(void) {
    http_params_t params = {.host = "127.0.0.1", .n_workers = 2, .on_head = rig_on_head,
                            .on_request = rig_on_request, .on_done = rig_on_done};
    http_limits_init(&params.limits);
    params.limits.connections_per_address = 4096;
    return params;
}

static inline void rig_start(const http_params_t *params) {
    kr_error_t error;
    kr_error_init(&error);
    rig.on_head = rig.on_request = NULL;
    rig.n_done = rig.n_heads = rig.n_requests = 0;
    const kr_status_t status = http_server_start(params, &rig.server, &error);
    if (status != KR_OK) fail_msg("%s: %s", kr_status_name(status), error.message);
    rig.port = http_server_port(rig.server);
}

static inline void rig_stop(void) {
    http_server_destroy(rig.server);
    rig.server = NULL;
}

/* Waits until the condition holds. */
#define RIG_UNTIL(condition)                                                                     \
    do {                                                                                         \
        const uint64_t rig_end = kri_clock_ns() + (uint64_t)RIG_WAIT_MS * 1000000;               \
        while (!(condition)) {                                                                   \
            if (kri_clock_ns() > rig_end) fail_msg("not within the time: %s", #condition);       \
            usleep(1000);                                                                        \
        }                                                                                        \
    } while (0)

static inline rig_done_t rig_done_at(int at) {
    RIG_UNTIL(atomic_load(&rig.n_done) > at);
    pthread_mutex_lock(&rig.mutex);
    const rig_done_t done = rig.done[at];
    pthread_mutex_unlock(&rig.mutex);
    return done;
}

/* ---- clients --------------------------------------------------------------------------------- */

static inline int rig_connect(void) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(rig.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_true(fd >= 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        fail_msg("connect: %s", strerror(errno));
    }
    return fd;
}

/* Of which the kernel holds little, whatever the machine's limits for buffers are. */
static inline int rig_connect_small(void) {
    const int fd = rig_connect(), n_bytes = 65536;
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &n_bytes, sizeof n_bytes), 0);
    return fd;
}

static inline void rig_send_bytes(int fd, const void *data, size_t n_bytes) {
    const char *at = data;
    while (n_bytes > 0) {
        const ssize_t n = send(fd, at, n_bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* refused already: what is read tells */
        at += n;
        n_bytes -= (size_t)n;
    }
}

static inline void rig_send(int fd, const char *text) { rig_send_bytes(fd, text, strlen(text)); }

/* Appends what comes; false at the end of the connection. */
static inline bool rig_receive(int fd, kri_buffer_t *in) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    char data[16384];
    if (poll(&poll_fd, 1, RIG_WAIT_MS) != 1) fail_msg("nothing came");
    const ssize_t n = recv(fd, data, sizeof data, 0);
    if (n <= 0) return false;
    assert_status(kri_buffer_append(in, data, (size_t)n), KR_OK);
    return true;
}

static inline bool rig_has(const kri_buffer_t *in, const char *text) {
    return in->data != NULL && memmem(in->data, in->n_bytes, text, strlen(text)) != NULL;
}

/* Until `text` is among what has come. */
static inline void rig_read_until(int fd, kri_buffer_t *in, const char *text) {
    while (!rig_has(in, text)) {
        if (!rig_receive(fd, in)) {
            fail_msg("the connection ended before \"%s\": %s", text, in->data ? in->data : "");
        }
    }
}

static inline void rig_read_all(int fd, kri_buffer_t *in) {
    while (rig_receive(fd, in)) {}
}

/* The connection ends without another byte. */
static inline void rig_expect_end(int fd) {
    kri_buffer_t in;
    kri_buffer_init(&in, 1 << 20);
    while (rig_receive(fd, &in)) {}
    if (in.n_bytes > 0) fail_msg("not the end but: %s", in.data);
    kri_buffer_deinit(&in);
}

/* One answer with Content-Length, nothing behind it; its body is left in `in`, its status is
 * returned. head [n_head]: the head, or NULL. */
static inline int rig_answer(int fd, kri_buffer_t *in, char *head, size_t n_head) {
    kri_buffer_clear(in);
    rig_read_until(fd, in, "\r\n\r\n");
    char *end = memmem(in->data, in->n_bytes, "\r\n\r\n", 4);
    const size_t n_bytes = (size_t)(end - in->data) + 4;
    if (head != NULL) {
        (void)snprintf(head, n_head, "%.*s", (int)n_bytes, in->data);
    }
    int status = 0;
    assert_int_equal(sscanf(in->data, "HTTP/1.1 %d ", &status), 1);
    const char *field = strcasestr(in->data, "Content-Length: ");
    if (field == NULL || field > end) fail_msg("no Content-Length: %s", in->data);
    const size_t n_body = strtoul(field + strlen("Content-Length: "), NULL, 10);
    kri_buffer_consume(in, n_bytes);
    while (in->n_bytes < n_body) assert_true(rig_receive(fd, in));
    if (in->n_bytes > n_body) fail_msg("more than one answer: %s", in->data);
    return status;
}

/* Sends a request and returns the status of its answer. */
static inline int rig_ask(int fd, const char *request) {
    kri_buffer_t in;
    kri_buffer_init(&in, (size_t)64 << 20);
    rig_send(fd, request);
    const int status = rig_answer(fd, &in, NULL, 0);
    kri_buffer_deinit(&in);
    return status;
}

static inline void rig_reset(int fd) {
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    (void)close(fd);
}

/* ---- a gate that handlers wait at ------------------------------------------------------------ */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_waiting, n_open;
} rig_gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};

static inline void rig_gate_wait(void) {
    pthread_mutex_lock(&rig_gate.mutex);
    rig_gate.n_waiting++;
    while (rig_gate.n_open == 0) pthread_cond_wait(&rig_gate.changed, &rig_gate.mutex);
    rig_gate.n_open--;
    rig_gate.n_waiting--;
    pthread_mutex_unlock(&rig_gate.mutex);
}

static inline void rig_gate_open(int n_times) {
    pthread_mutex_lock(&rig_gate.mutex);
    rig_gate.n_open += n_times;
    pthread_cond_broadcast(&rig_gate.changed);
    pthread_mutex_unlock(&rig_gate.mutex);
}

static inline int rig_gate_waiting(void) {
    pthread_mutex_lock(&rig_gate.mutex);
    const int n_waiting = rig_gate.n_waiting;
    pthread_mutex_unlock(&rig_gate.mutex);
    return n_waiting;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"

#endif
