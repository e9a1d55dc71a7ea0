/* What routes answer before the models are there, without tokens, and while draining. The transport
 * is real, the engine is not there: nothing here may reach it. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "server/clients.h"
#include "server/endpoints.h"
#include "server/keys.h"
#include "server/server.h"
#include "test.h"

typedef struct fixture_s {
    server_t server;
    uint16_t port;
    char answer[8192];
} fixture_t;

static void begin(fixture_t *f) {
    memset(f, 0, sizeof *f);
    f->server.is_loopback = true;
    f->server.body_bytes_max = 1 << 20;
    (void)snprintf(f->server.host, sizeof f->server.host, "127.0.0.1");
    assert_status(keys_create(NULL, 0, &f->server.keys, NULL), KR_OK);
    assert_status(clients_create(&f->server.clients), KR_OK);
    http_params_t params = {.host = "127.0.0.1", .n_workers = 1};
    http_limits_init(&params.limits);
    assert_status(server_listen(&f->server, &params, NULL), KR_OK);
    f->port = http_server_port(f->server.http);
}

static void end(fixture_t *f) {
    http_server_destroy(f->server.http);
    keys_destroy(f->server.keys);
    clients_destroy(f->server.clients);
}

/* The whole answer. */
static const char *send_text(fixture_t *f, const char *request) {
    const ssize_t n = (ssize_t)strlen(request);
    const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(f->port),
                                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(send(fd, request, (size_t)n, MSG_NOSIGNAL), n);
    size_t at = 0;
    ssize_t got = 1;
    while (got > 0 && at + 1 < sizeof f->answer) {
        got = recv(fd, f->answer + at, sizeof f->answer - 1 - at, 0);
        if (got > 0) at += (size_t)got;
    }
    (void)close(fd);
    f->answer[at] = '\0';
    return f->answer;
}

/* To a request without a body, or with "{}". */
static const char *ask(fixture_t *f, const endpoint_t *row) {
    char request[512];
    const char *id = strstr(row->path, "{id}");
    const int n_path = (int)(id != NULL ? (size_t)(id - row->path) : strlen(row->path));
    (void)snprintf(request, sizeof request,
                   "%s %.*s%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                   "%s\r\n%s",
                   row->method, n_path, row->path, id != NULL ? "x" : "",
                   row->has_body ? "Content-Type: application/json\r\nContent-Length: 2\r\n"
                                 : "",
                   row->has_body ? "{}" : "");
    return send_text(f, request);
}

static const endpoint_t *find(const char *path) {
    const endpoint_t *row = endpoint_find("GET", 3, path, strlen(path)).endpoint;
    assert_non_null(row);
    return row;
}

static void expect(fixture_t *f, const endpoint_t *row, const char *status, const char *part) {
    const char *answer = ask(f, row);
    if (strncmp(answer, "HTTP/1.1 ", 9) != 0 || strncmp(answer + 9, status, 3) != 0 ||
        strstr(answer, part) == NULL) {
        fail_msg("%s %s: expected %s with '%s', got: %s", row->method, row->path, status, part,
                 answer);
    }
}

TEST(route_loading_refuses_all_but_probes) {
    fixture_t f;
    begin(&f);
    uint32_t n_refused = 0;
    for (uint32_t i = 0; i < n_endpoints; i++) {
        const endpoint_t *row = &endpoints[i];
        if (row->scope == SCOPE_NONE || row->scope == SCOPE_ADMIN) continue;
        expect(&f, row, "503", "Retry-After: ");
        assert_non_null(strstr(f.answer, "the model is loading"));
        n_refused++;
    }
    assert_true(n_refused > 5);
    expect(&f, find("/livez"), "200", "\"ok\"");
    expect(&f, find("/readyz"), "503", "model_loading");
    end(&f);
}

TEST(route_readiness_is_a_fresh_token) {
    fixture_t f;
    begin(&f);
    const endpoint_t *readyz = find("/readyz");
    const uint64_t second = 1000000000u;
    atomic_store(&f.server.is_loaded, true);
    expect(&f, readyz, "503", "not_ready");
    assert_non_null(strstr(f.answer, "Retry-After: "));
    atomic_store(&f.server.token_ns, kri_clock_ns());
    expect(&f, readyz, "200", "\"ok\"");
    atomic_store(&f.server.token_ns, kri_clock_ns() + second); /* of another thread, just now */
    expect(&f, readyz, "200", "\"ok\"");
    atomic_store(&f.server.token_ns, kri_clock_ns() - 31 * second);
    expect(&f, readyz, "503", "not_ready");
    atomic_store(&f.server.token_ns, kri_clock_ns());
    atomic_store(&f.server.is_draining, true);
    expect(&f, readyz, "503", "shutting_down");
    expect(&f, find("/livez"), "200", "\"ok\"");
    end(&f);
}

TEST(route_draining_generates_nothing) {
    fixture_t f;
    begin(&f);
    atomic_store(&f.server.is_loaded, true);
    atomic_store(&f.server.is_draining, true);
    for (uint32_t i = 0; i < n_endpoints; i++) {
        if (endpoints[i].scope != SCOPE_GENERATE) continue;
        expect(&f, &endpoints[i], "503", "Retry-After: ");
        assert_non_null(strstr(f.answer, "the server is shutting down"));
    }
    end(&f);
}

/* An answer may be here before its exchange is gone. n_bytes: of others. */
static void wait_for_room(fixture_t *f, uint64_t n_bytes) {
    for (int i = 0; i < 120000 && atomic_load(&f->server.bodies_bytes) > n_bytes; i++) {
        const struct timespec pause = {.tv_nsec = 1000000};
        (void)nanosleep(&pause, NULL);
    }
    assert_int_equal(atomic_load(&f->server.bodies_bytes), n_bytes);
}

static void expect_refusal(fixture_t *f, const char *tail, const char *status, const char *code) {
    char request[512];
    (void)snprintf(request, sizeof request,
                   "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                   "Content-Type: application/json\r\n%s\r\n\r\n", tail);
    const char *answer = send_text(f, request);
    if (strncmp(answer + 9, status, 3) != 0 || strstr(answer, code) == NULL) {
        fail_msg("%s", answer);
    }
    assert_non_null(strstr(answer, "Retry-After: "));
}

TEST(route_bounds_all_bodies_together) {
    fixture_t f;
    begin(&f);
    f.server.bodies_bytes_max = 400;
    f.server.body_bytes_max = 200;
    atomic_store(&f.server.is_loaded, true);
    /* More than a quarter, alone. */
    expect_refusal(&f, "Content-Length: 101", "429", "too_many_requests");
    expect_refusal(&f, "Transfer-Encoding: chunked", "429", "too_many_requests");
    wait_for_room(&f, 0);
    f.server.body_bytes_max = 100;
    atomic_store(&f.server.bodies_bytes, 301);
    expect_refusal(&f, "Content-Length: 100", "503", "overloaded");
    wait_for_room(&f, 301);
    expect_refusal(&f, "Transfer-Encoding: chunked", "503", "overloaded");
    wait_for_room(&f, 301);
    atomic_store(&f.server.bodies_bytes, 0);
    /* What has gone is given back, what fits is read. */
    char request[512], body[101];
    memset(body, ' ', sizeof body);
    body[0] = '[', body[99] = ']', body[100] = '\0';
    (void)snprintf(request, sizeof request,
                   "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                   "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n%s", body);
    for (int i = 0; i < 3; i++) {
        const char *answer = send_text(&f, request);
        if (strstr(answer, "invalid_json") == NULL) fail_msg("%s", answer);
        wait_for_room(&f, 0);
    }
    end(&f);
    assert_int_equal(atomic_load(&f.server.bodies_bytes), 0);
}
