/* A runtime inside the process (bindings/node/addon/host.h): lines there and back, segments, more
 * than one, and every moment to end it. */
#define _GNU_SOURCE /* memfd_create */
#include "host.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

typedef struct seen_s {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char *text;                /* of all lines */
    size_t n_bytes, n_taken;   /* n_taken: said to be dealt with */
    char why[1024];
    bool is_ready, is_drained, is_closed, is_deaf;
    uint32_t n_after;          /* events behind CLOSED */
} seen_t;

static void seen_init(seen_t *seen) {
    memset(seen, 0, sizeof *seen);
    (void)pthread_mutex_init(&seen->mutex, NULL);
    (void)pthread_cond_init(&seen->changed, NULL);
    seen->text = calloc(1, 1);
}

static void seen_deinit(seen_t *seen) {
    assert_int_equal(seen->n_after, 0);
    free(seen->text);
    (void)pthread_cond_destroy(&seen->changed);
    (void)pthread_mutex_destroy(&seen->mutex);
}

static bool post(void *user, host_event_t *event) {
    seen_t *seen = user;
    (void)pthread_mutex_lock(&seen->mutex);
    const bool is_heard = !seen->is_deaf;
    if (is_heard) {
        if (seen->is_closed) seen->n_after++;
        if (event->kind == HOST_READY) seen->is_ready = true;
        if (event->kind == HOST_DRAINED) seen->is_drained = true;
        if (event->kind == HOST_CLOSED) {
            seen->is_closed = true;
            if (event->text.data != NULL) {
                (void)snprintf(seen->why, sizeof seen->why, "%s", event->text.data);
            }
        }
        if (event->kind == HOST_LINES) {
            assert_int_equal(event->text.data[event->text.n_bytes - 1], '\n');
            seen->text = realloc(seen->text, seen->n_bytes + event->text.n_bytes + 1);
            memcpy(seen->text + seen->n_bytes, event->text.data, event->text.n_bytes);
            seen->n_bytes += event->text.n_bytes;
            seen->text[seen->n_bytes] = '\0';
        }
        host_event_free(event);
        (void)pthread_cond_broadcast(&seen->changed);
    }
    (void)pthread_mutex_unlock(&seen->mutex);
    return is_heard;
}

static host_t *start(seen_t *seen, const char *const *args, size_t n_args) {
    const host_params_t params = {.args = args, .n_args = n_args, .post = post, .user = seen};
    seen_init(seen);
    host_t *host = host_create(&params);
    assert_non_null(host);
    return host;
}

typedef bool (*test_t)(const seen_t *seen, const char *text);
static bool is_ready(const seen_t *seen, const char *text) { (void)text; return seen->is_ready; }
static bool is_closed(const seen_t *seen, const char *text) { (void)text; return seen->is_closed; }
static bool is_drained(const seen_t *seen, const char *text) {
    (void)text;
    return seen->is_drained;
}
static bool has_text(const seen_t *seen, const char *text) {
    return strstr(seen->text, text) != NULL;
}

static void wait_for(seen_t *seen, host_t *host, test_t test, const char *text) {
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 100;
    (void)pthread_mutex_lock(&seen->mutex);
    int failed = 0;
    while (!test(seen, text) && failed == 0) {
        const size_t n = seen->n_bytes - seen->n_taken;
        seen->n_taken = seen->n_bytes;
        (void)pthread_mutex_unlock(&seen->mutex);
        host_taken(host, n);
        (void)pthread_mutex_lock(&seen->mutex);
        if (seen->n_bytes > seen->n_taken || test(seen, text)) continue;
        failed = pthread_cond_timedwait(&seen->changed, &seen->mutex, &until);
    }
    (void)pthread_mutex_unlock(&seen->mutex);
    assert_int_equal(failed, 0);
}

static void say(host_t *host, const char *line) {
    size_t n_left = 0;
    assert_true(host_send(host, line, strlen(line), &n_left));
}

static uint32_t count_fds(void) {
    uint32_t n = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder) != NULL) n++;
    (void)closedir(folder);
    return n;
}

#define INFO "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"runtime/info\"%s}"
#define SHARED ",\"params\":{\"shared_memory\":{\"min_bytes\":4096}}"

static void ask(host_t *host, seen_t *seen, int id) {
    char line[256], answer[64];
    (void)snprintf(line, sizeof line, INFO, id, "");
    (void)snprintf(answer, sizeof answer, "\"id\":%d,\"result\"", id);
    say(host, line);
    wait_for(seen, host, has_text, answer);
}

TEST(host_answers_and_ends) {
    seen_t seen;
    size_t n_left = 0;
    const uint32_t n_fds = count_fds();
    host_t *host = start(&seen, NULL, 0);
    wait_for(&seen, host, is_ready, NULL);
    ask(host, &seen, 1);
    host_end(host);
    wait_for(&seen, host, is_closed, NULL);
    assert_string_equal(seen.why, "");
    assert_false(host_send(host, "{}", 2, &n_left));
    host_free(host);
    seen_deinit(&seen);
    assert_int_equal(count_fds(), n_fds);
}

TEST(host_ends_by_the_protocol) {
    seen_t seen;
    host_t *host = start(&seen, NULL, 0);
    say(host, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"shutdown\"}"); /* before it is ready */
    wait_for(&seen, host, is_closed, NULL);
    assert_true(has_text(&seen, "\"success\":true"));
    host_free(host);
    seen_deinit(&seen);
}

TEST(host_says_why_it_does_not_start) {
    static const char *const bad[][2] = {
        {"--no-such-option", "x"}, {"--threads", "many"}, {"-m", "/no/such.gguf"},
        {"--socket", "/tmp/x"}, {"--config", "/no/such.json"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        seen_t seen;
        host_t *host = start(&seen, bad[i], 2);
        wait_for(&seen, host, is_closed, NULL);
        assert_true(seen.why[0] != '\0');
        assert_false(seen.is_ready);
        host_free(host);
        seen_deinit(&seen);
    }
}

TEST(host_ends_at_any_moment) {
    for (int i = 0; i < 40; i++) {
        seen_t seen;
        host_t *host = start(&seen, NULL, 0);
        if (i % 4 > 0) say(host, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"runtime/telemetry\"}");
        if (i % 4 > 1) wait_for(&seen, host, is_ready, NULL);
        if (i % 4 > 2) host_end(host);
        host_free(host);
        seen_deinit(&seen);
    }
}

TEST(host_ends_when_nobody_listens) {
    seen_t seen;
    host_t *host = start(&seen, NULL, 0);
    (void)pthread_mutex_lock(&seen.mutex);
    seen.is_deaf = true;
    (void)pthread_mutex_unlock(&seen.mutex);
    say(host, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"runtime/telemetry\"}");
    host_free(host);
    seen_deinit(&seen);
}

TEST(host_several_at_once) {
    enum { N = 4 };
    seen_t seen[N];
    host_t *hosts[N];
    for (int i = 0; i < N; i++) hosts[i] = start(&seen[i], NULL, 0);
    for (int id = 1; id < 20; id++) {
        for (int i = 0; i < N; i++) ask(hosts[i], &seen[i], id * 10 + i);
    }
    for (int i = 0; i < N; i++) {
        host_free(hosts[i]);
        seen_deinit(&seen[i]);
    }
}

/* More than a socket holds in both directions, and more than is handed on ahead. */
TEST(host_large_messages) {
    enum { N = 3000000 };
    seen_t seen;
    host_t *host = start(&seen, NULL, 0);
    char *line = malloc(2 * N + 512);
    size_t n_left = 0;
    int n = sprintf(line, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"no/such\",\"params\":"
                    "{\"text\":\"");
    memset(line + n, 'x', N);
    n += N;
    n += sprintf(line + n, "\"}}");
    bool waited = false;
    for (int i = 0; i < 6; i++) {
        assert_true(host_send(host, line, (size_t)n, &n_left));
        waited = waited || n_left > 0;
    }
    assert_true(waited);
    wait_for(&seen, host, is_drained, NULL);
    ask(host, &seen, 8);
    n = sprintf(line, "{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"runtime/echo\",\"params\":"
                "{\"tensor\":{\"dtype\":\"u8\",\"shape\":[900000],\"data\":[");
    for (int i = 0; i < 900000; i++) n += sprintf(line + n, i > 0 ? ",%d" : "%d", i % 10);
    n += sprintf(line + n, "]}}}");
    for (int i = 0; i < 5; i++) say(host, line);
    ask(host, &seen, 10);
    for (size_t n_bytes = 0; n_bytes < 5 * 1800000;) { /* answers come in any order */
        (void)pthread_mutex_lock(&seen.mutex);
        n_bytes = seen.n_bytes;
        (void)pthread_mutex_unlock(&seen.mutex);
        ask(host, &seen, (int)(100 + n_bytes % 1000000));
    }
    free(line);
    host_free(host);
    seen_deinit(&seen);
}

TEST(host_segments) {
    seen_t seen;
    char line[512];
    uint8_t out[5000];
    rpc_shm_t shm;
    rpc_shm_head_t head = {.generation = 1, .dtype = RPC_DTYPE_U8, .n_dims = 1, .dims = {5000},
                           .n_bytes = 5000};
    const uint32_t n_fds = count_fds();
    host_t *host = start(&seen, NULL, 0);
    (void)snprintf(line, sizeof line, INFO, 1, SHARED);
    say(host, line);
    wait_for(&seen, host, has_text, "\"kind\":\"memfd\"");
    assert_int_equal(rpc_shm_create(RPC_SHM_MEMFD, 5000, &shm), KR_OK);
    memset(shm.data, 7, 5000);
    assert_int_equal(rpc_shm_seal(&shm, &head), KR_OK);
    assert_true(host_give(host, shm.fd));
    say(host, "{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"runtime/echo\",\"params\":{\"tensor\":"
              "{\"kind\":\"memfd\",\"generation\":1,\"dtype\":\"u8\",\"shape\":[5000],"
              "\"bytes\":5000}}}");
    wait_for(&seen, host, has_text, "\"id\":2,\"result\"");
    const int fd = host_take(host, 1);
    assert_true(fd >= 0);
    assert_int_equal(host_take(host, 1), -1);
    assert_null(rpc_shm_load_head(fd, &head));
    assert_true(rpc_shm_load(fd, &head, out));
    assert_int_equal(out[0] + out[4999], 14);
    (void)close(fd);
    host_free(host);
    seen_deinit(&seen);
    assert_int_equal(count_fds(), n_fds);
}
