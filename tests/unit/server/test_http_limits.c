/* test_http_limits.c: time-outs, and bounds on connections, queue, memory and descriptors. Limits
 * are set low; nothing is asserted about how long it takes. */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "base/alloc.h"
#include "http_rig.h"
#include "server/http/internal.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define UNDER_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define UNDER_SANITIZER
#endif
#endif

static kri_buffer_t new_input(void) {
    kri_buffer_t in;
    kri_buffer_init(&in, (size_t)64 << 20);
    return in;
}

/* The answer is this refusal, and the last thing that comes. */
static void expect_refusal(int fd, int status, const char *code) {
    kri_buffer_t in = new_input();
    char head[1024], text[64];
    assert_int_equal(rig_answer(fd, &in, head, sizeof head), status);
    (void)snprintf(text, sizeof text, "\"code\":\"%s\"}}", code);
    if (strstr(in.data, text) == NULL) fail_msg("%s is not in %s", text, in.data);
    assert_non_null(strstr(head, "\r\nContent-Type: application/json\r\n"));
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    assert_non_null(strstr(head, "\r\nX-Request-Id: "));
    if (status == 503) assert_non_null(strstr(head, "\r\nRetry-After: "));
    rig_expect_end(fd);
    kri_buffer_deinit(&in);
}

/* ---- time-outs ------------------------------------------------------------------------------- */

TEST(http_limits_head_must_come_in_time) {
    http_params_t params = rig_params();
    params.limits.head_ms = 30;
    rig_start(&params);
    static const char *const parts[] = {"G", "\r", "GET / HTTP/1.1\r\n",
                                        "GET / HTTP/1.1\r\nHost: a\r\n\r"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const int fd = rig_connect();
        rig_send(fd, parts[i]);
        expect_refusal(fd, 408, "request_timeout");
        (void)close(fd);
        assert_int_equal(rig_done_at((int)i).status, 408);
    }
    /* Bytes that trickle in do not put it off. */
    const int fd = rig_connect();
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    for (int i = 0; i < 100000 && poll(&poll_fd, 1, 1) == 0; i++) {
        rig_send(fd, i == 0 ? "GET / HTTP/1.1\r\nA: " : "b");
    }
    expect_refusal(fd, 408, "request_timeout");
    (void)close(fd);
    assert_int_equal(rig.n_heads, 0);
    rig_stop();
}

/* A connection on which a request was answered, asked for again where it ended before. */
static int answered_connection(void) {
    kri_buffer_t in = new_input();
    int fd = -1;
    while (in.n_bytes == 0) {
        if (fd >= 0) (void)close(fd);
        fd = rig_connect();
        rig_send(fd, GET("/"));
        (void)rig_receive(fd, &in);
    }
    while (!rig_has(&in, "\r\n\r\n")) assert_true(rig_receive(fd, &in));
    assert_memory_equal(in.data, "HTTP/1.1 200 ", 13);
    kri_buffer_deinit(&in);
    return fd;
}

TEST(http_limits_idle_connection_is_closed_without_a_word) {
    http_params_t params = rig_params();
    params.limits.keep_alive_ms = 30;
    rig_start(&params);
    int fd = rig_connect();
    rig_expect_end(fd); /* not one byte came */
    (void)close(fd);
    assert_int_equal(rig.n_done, 0);
    fd = answered_connection();
    rig_expect_end(fd);
    (void)close(fd);
    assert_int_equal(rig_done_at(0).status, 200);
    rig_stop();
    assert_int_equal(rig.n_done, 1);
}

#define POST "POST / HTTP/1.1\r\nHost: a\r\n"
#define POST_5 POST "Content-Length: 5\r\n\r\n"
#define POST_CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"

TEST(http_limits_body_must_come_in_time) {
    http_params_t params = rig_params();
    params.limits.body_idle_ms = 30;
    rig_start(&params);
    static const char *const parts[] = {POST_5, POST_5 "hell", POST_CHUNKED,
                                        POST_CHUNKED "5\r\nhello\r\n0\r\n\r"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const int fd = rig_connect();
        rig_send(fd, parts[i]);
        expect_refusal(fd, 408, "request_timeout");
        (void)close(fd);
        assert_int_equal(rig_done_at((int)i).status, 408);
    }
    assert_int_equal(rig.n_requests, 0);
    rig_stop();
}

TEST(http_limits_body_must_not_trickle) {
    http_params_t params = rig_params();
    params.limits.body_rate_after_ms = 30;
    params.limits.body_rate_bytes = 1000000; /* more than a byte a millisecond */
    rig_start(&params);
    const int fd = rig_connect();
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    rig_send(fd, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    for (int i = 0; i < 100000 && poll(&poll_fd, 1, 1) == 0; i++) rig_send(fd, "b");
    expect_refusal(fd, 408, "request_timeout");
    (void)close(fd);
    rig_stop();
}

static void refuse_in_head(http_exchange_t *exchange) { rig_reply(exchange, 404, "no", false); }

TEST(http_limits_body_that_is_dropped_must_come_in_time_too) {
    http_params_t params = rig_params();
    params.limits.body_idle_ms = 30;
    rig_start(&params);
    rig.on_head = refuse_in_head;
    const int fd = rig_connect();
    assert_int_equal(rig_ask(fd, POST_5 "hell"), 404);
    rig_expect_end(fd);
    (void)close(fd);
    rig_stop();
}

TEST(http_limits_zero_rate_and_heartbeat_mean_none) {
    http_params_t params = rig_params();
    params.limits.body_rate_bytes = params.limits.body_rate_after_ms = 0;
    params.limits.heartbeat_ms = 0;
    rig_start(&params);
    const int fd = rig_connect();
    rig_send(fd, POST_5);
    RIG_UNTIL(atomic_load(&rig.n_heads) == 1);
    assert_int_equal(rig_ask(fd, "hello"), 200);
    (void)close(fd);
    rig_stop();
}

/* ---- connections ----------------------------------------------------------------------------- */

static uint32_t n_connections(void) {
    http_stats_t stats;
    http_server_stats(rig.server, &stats);
    return stats.n_connections;
}

static bool is_silent(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 20) == 0;
}

TEST(http_limits_connections_over_the_limit_wait_for_one_to_close) {
    for (uint32_t n_max = 3; n_max <= 4; n_max++) {
        http_params_t params = rig_params();
        params.limits.connections = n_max;
        rig_start(&params);
        int fds[8];
        for (int i = 0; i < 8; i++) {
            fds[i] = rig_connect(); /* the kernel's queue takes them */
            rig_send(fds[i], GET("/"));
        }
        kri_buffer_t in = new_input();
        for (uint32_t i = 0; i < n_max; i++) {
            assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
        }
        assert_int_equal(n_connections(), n_max);
        assert_true(is_silent(fds[n_max]));
        for (uint32_t i = n_max; i < 8; i++) {
            (void)close(fds[i - n_max]);
            assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
            assert_true(n_connections() <= n_max);
        }
        for (uint32_t i = 8 - n_max; i < 8; i++) (void)close(fds[i]);
        RIG_UNTIL(n_connections() == 0);
        kri_buffer_deinit(&in);
        rig_stop();
    }
}

TEST(http_limits_one_address_gets_so_many_connections_and_then_503) {
    http_params_t params = rig_params();
    params.limits.connections_per_address = 3;
    char path[64];
    (void)snprintf(path, sizeof path, "/tmp/kr_test_http_limits_%d", (int)getpid());
    params.unix_path = path;
    rig_start(&params);
    int fds[3], local[5];
    for (int i = 0; i < 3; i++) {
        fds[i] = rig_connect();
        assert_int_equal(rig_ask(fds[i], GET("/")), 200);
    }
    for (int i = 0; i < 2; i++) {
        const int fd = rig_connect();
        expect_refusal(fd, 503, "too_many_connections");
        (void)close(fd);
    }
    for (int i = 0; i < 5; i++) { /* Unix sockets have no address */
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", params.unix_path);
        local[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(local[i], (struct sockaddr *)&address, sizeof address), 0);
        assert_int_equal(rig_ask(local[i], GET("/")), 200);
    }
    for (int i = 0; i < 5; i++) (void)close(local[i]);
    (void)close(fds[0]);
    RIG_UNTIL(n_connections() == 2);
    fds[0] = rig_connect();
    assert_int_equal(rig_ask(fds[0], GET("/")), 200);
    http_stats_t stats;
    http_server_stats(rig.server, &stats);
    assert_int_equal(stats.n_refused, 2);
    assert_int_equal(stats.n_accepted, 11);
    for (int i = 0; i < 3; i++) (void)close(fds[i]);
    rig_stop();
}

TEST(http_limits_a_flood_of_one_address_is_not_even_refused) {
    http_params_t params = rig_params();
    params.limits.connections_per_address = 1;
    rig_start(&params);
    const int first = rig_connect();
    assert_int_equal(rig_ask(first, GET("/")), 200);
    int fds[HTTP_REFUSALS_MAX + 2];
    for (uint32_t i = 0; i < HTTP_REFUSALS_MAX + 2; i++) fds[i] = rig_connect();
    kri_buffer_t in = new_input();
    for (uint32_t i = 0; i < HTTP_REFUSALS_MAX; i++) {
        assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 503);
    }
    http_stats_t stats;
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_accepted == HTTP_REFUSALS_MAX + 3));
    assert_true(stats.n_connections <= HTTP_REFUSALS_MAX + 1);
    for (uint32_t i = 0; i < HTTP_REFUSALS_MAX + 2; i++) (void)close(fds[i]);
    assert_int_equal(rig_ask(first, GET("/")), 200);
    (void)close(first);
    kri_buffer_deinit(&in);
    rig_stop();
}

/* Whether it accepts is seen by the counter: the clients are this process too, so its own
 * descriptors are opened before. */
TEST(http_limits_descriptors_are_kept_in_reserve_without_spinning) {
    http_params_t params = rig_params();
    params.limits.descriptors_reserved = 40;
    rig_start(&params);
    int fds[8];
    for (int i = 0; i < 8; i++) fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int probe = dup(fds[0]);
    struct rlimit before, lowered;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    lowered = before;
    lowered.rlim_cur = (rlim_t)probe + 1 + 3 + 40; /* three more, then the reserve begins */
    (void)close(probe);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &lowered), 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(rig.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 8; i++) {
        assert_int_equal(connect(fds[i], (struct sockaddr *)&address, sizeof address), 0);
    }
    http_stats_t stats;
    RIG_UNTIL((http_server_stats(rig.server, &stats), stats.n_accepted >= 4));
    const uint64_t n_turns = atomic_load(&rig.server->n_turns);
    /* Some looks of the timer later it still stands, and has done nothing else. */
    RIG_UNTIL(atomic_load(&rig.server->n_turns) >= n_turns + 2);
    http_server_stats(rig.server, &stats);
    assert_in_range(stats.n_accepted, 4, 5);
    const uint64_t n_before = atomic_load(&rig.server->n_turns), begin_ns = kri_clock_ns();
    usleep(20000);
    const uint64_t n_more = atomic_load(&rig.server->n_turns) - n_before;
    /* It may look at its timer, 5 times a second; a spin makes thousands. */
    assert_true(n_more <= 3 + (kri_clock_ns() - begin_ns) / 100000000);
    for (int i = 0; i < 8; i++) { /* those that close make room */
        rig_send(fds[i], GET("/"));
        kri_buffer_t in = new_input();
        assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
        kri_buffer_deinit(&in);
        (void)close(fds[i]);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    rig_stop();
}

/* ---- queue, bodies, memory ------------------------------------------------------------------- */

static void wait_at_the_gate(http_exchange_t *exchange) {
    rig_gate_wait();
    rig_reply(exchange, 200, "", false);
}

TEST(http_limits_requests_over_the_queue_get_503_and_keep_their_connection) {
    for (uint32_t n_queue = 1; n_queue <= 3; n_queue++) {
        http_params_t params = rig_params();
        params.n_workers = 1;
        params.limits.queue = n_queue;
        rig_start(&params);
        rig.on_request = wait_at_the_gate;
        int fds[5];
        fds[0] = rig_connect();
        rig_send(fds[0], GET("/"));
        RIG_UNTIL(rig_gate_waiting() == 1);
        for (uint32_t i = 1; i <= n_queue; i++) {
            fds[i] = rig_connect();
            rig_send(fds[i], GET("/"));
            RIG_UNTIL(atomic_load(&rig.n_heads) == (int)i + 1);
        }
        const int over = rig_connect();
        kri_buffer_t in = new_input();
        char head[1024];
        rig_send(over, GET("/"));
        assert_int_equal(rig_answer(over, &in, head, sizeof head), 503);
        assert_non_null(strstr(in.data, "\"code\":\"overloaded\""));
        assert_non_null(strstr(head, "\r\nRetry-After: "));
        assert_null(strstr(head, "\r\nConnection: close\r\n"));
        rig_gate_open((int)n_queue + 2);
        for (uint32_t i = 0; i <= n_queue; i++) {
            assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
            (void)close(fds[i]);
        }
        assert_int_equal(rig_ask(over, GET("/")), 200);
        (void)close(over);
        kri_buffer_deinit(&in);
        rig_stop();
    }
}

static void accept_in_group(http_exchange_t *exchange) {
    http_set_group(exchange, rig_is_path(exchange, "/crowd") ? 1 : 2);
    http_accept(exchange, 0);
}

static void crowd_waits(http_exchange_t *exchange) {
    if (rig_is_path(exchange, "/crowd")) rig_gate_wait();
    rig_reply(exchange, 200, "", false);
}

TEST(http_limits_one_group_leaves_a_worker_to_the_others) {
    enum { CROWD = 5, WORKERS = 3 };
    http_params_t params = rig_params();
    params.n_workers = WORKERS;
    rig_start(&params);
    rig.on_head = accept_in_group;
    rig.on_request = crowd_waits;
    int fds[CROWD];
    for (int i = 0; i < CROWD; i++) {
        fds[i] = rig_connect();
        rig_send(fds[i], GET("/crowd"));
    }
    RIG_UNTIL(rig_gate_waiting() == WORKERS - 1 && atomic_load(&rig.n_heads) == CROWD);
    const int other = rig_connect();
    for (int i = 0; i < 20; i++) { /* past those that wait in the queue */
        assert_int_equal(rig_ask(other, GET("/other")), 200);
        assert_int_equal(rig_gate_waiting(), WORKERS - 1);
    }
    rig_gate_open(CROWD);
    kri_buffer_t in = new_input();
    for (int i = 0; i < CROWD; i++) { /* each has its turn */
        kri_buffer_clear(&in);
        assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
        (void)close(fds[i]);
    }
    (void)close(other);
    kri_buffer_deinit(&in);
    rig_stop();
}

static uint64_t heap_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

static uint64_t resident_bytes(void) {
    unsigned long n_all, n_resident;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu %lu", &n_all, &n_resident), 2);
    (void)fclose(file);
    return (uint64_t)n_resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

#define MANY 1000

static void raise_descriptors(void) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur >= 2 * MANY + 200) return;
    if (limit.rlim_max < 2 * MANY + 200) fail_msg("RLIMIT_NOFILE cannot be raised enough");
    limit.rlim_cur = 2 * MANY + 200;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(http_limits_idle_and_slow_connections_take_little_memory) {
    static int fds[MANY];
    raise_descriptors();
    const http_params_t params = rig_params();
    rig_start(&params);
    const int warm = rig_connect();
    assert_int_equal(rig_ask(warm, POST_5 "hello"), 200);
    const uint64_t heap = heap_bytes(), resident = resident_bytes();
    static char body[60001];
    for (int i = 0; i < MANY; i++) { /* idle after a request with a body of some size */
        fds[i] = rig_connect();
        kri_buffer_t in = new_input();
        rig_send(fds[i], "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n");
        rig_send_bytes(fds[i], body, 60000);
        assert_int_equal(rig_answer(fds[i], &in, NULL, 0), 200);
        kri_buffer_deinit(&in);
    }
    RIG_UNTIL(n_connections() == MANY + 1 && heap_bytes() < heap + (uint64_t)MANY * 16384);
    const uint64_t idle = (heap_bytes() - heap) / MANY;
    const uint64_t grown = resident_bytes() > resident ? (resident_bytes() - resident) / MANY : 0;
    for (int i = 0; i < MANY; i++) rig_send(fds[i], "GET / HTTP/1.1\r\nHost: a\r\nA: bcdef");
    RIG_UNTIL(heap_bytes() >= heap + MANY * (idle + sizeof(http_head_t)));
    const uint64_t slow = (heap_bytes() - heap) / MANY;
    printf("bytes a connection: idle %llu (resident %llu), in its head %llu\n",
           (unsigned long long)idle, (unsigned long long)grown, (unsigned long long)slow);
    assert_true(idle <= 2048);
#ifndef UNDER_SANITIZER /* which keeps freed memory */
    assert_true(grown <= 16384);
#endif
    assert_true(slow <= 16384);
    for (int i = 0; i < MANY; i++) (void)close(fds[i]);
    RIG_UNTIL(n_connections() == 1);
    (void)close(warm);
    rig_stop();
}

/* A request of each kind while the k-th allocation fails: an answer, a refusal or an end, and
 * afterwards all is as before. */
TEST(http_limits_no_failing_allocation_ends_the_server) {
    const http_params_t params = rig_params();
    rig_start(&params);
    uint64_t n_failed = 1;
    for (uint64_t k = 1; n_failed > 0 && k < 1000; k++) {
        (void)kri_alloc_fail(k, false);
        const int fd = rig_connect();
        rig_send(fd, POST_CHUNKED "5\r\nhello\r\n0\r\n\r\n" GET("/"));
        char data[4096]; /* no buffer of ours: it would take part in the counting */
        size_t n_data = 0;
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        while (n_data < sizeof data - 1) {
            assert_int_equal(poll(&poll_fd, 1, RIG_WAIT_MS), 1);
            const ssize_t n = recv(fd, data + n_data, sizeof data - 1 - n_data, 0);
            if (n <= 0) break;
            n_data += (size_t)n;
            data[n_data] = '\0';
            const char *second = strstr(data, "HTTP/1.1 200 OK");
            if (second != NULL && (second = strstr(second + 1, "HTTP/1.1 200 OK")) != NULL &&
                strstr(second, "\r\n\r\n") != NULL) {
                break;
            }
        }
        (void)close(fd);
        n_failed = kri_alloc_fail(0, false);
        RIG_UNTIL(n_connections() == 0);
        const int good = rig_connect();
        assert_int_equal(rig_ask(good, POST_5 "hello"), 200);
        (void)close(good);
        RIG_UNTIL(n_connections() == 0);
    }
    assert_int_equal(n_failed, 0); /* the last run had none to fail: all were tried */
    rig_stop();
}
