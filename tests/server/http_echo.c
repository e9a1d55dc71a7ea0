/* http_echo.c: a server over the transport alone, for tests/server/test_wire.py: fixed routes, no
 * models. Prints "port N" when it listens and ends when its input ends.
 *
 *   http_echo [--LIMIT N]... [--unix PATH] [--tls-cert FILE --tls-key FILE] [--workers N]
 *
 * Routes: GET /bare answered in on_head; POST /body takes a body and answers
 * {"bytes":N,"sum":S}; GET /stream?N sends N events; /slow ends when the client goes;
 * GET /stats tells how many requests were seen, answered, gone. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/http/http.h"

static http_server_t *server;
static atomic_int n_heads, n_requests, n_done, n_gone, n_499, n_taken;

static void reply(http_exchange_t *exchange, int status, const char *text) {
    const http_answer_t answer = {.status = status, .content_type = "application/json",
                                  .body = text, .body_bytes = strlen(text)};
    http_reply(exchange, &answer);
}

static bool is_path(const http_request_t *request, const char *path) {
    return request->path.n_bytes == strlen(path) &&
           memcmp(request->path.data, path, strlen(path)) == 0;
}

static void on_head(void *user, http_exchange_t *exchange) {
    (void)user;
    const http_request_t *request = http_request(exchange);
    atomic_fetch_add(&n_heads, 1);
    if (is_path(request, "/bare")) reply(exchange, 200, "{\"bare\":true}");
    else if (is_path(request, "/stats")) {
        char text[256];
        (void)snprintf(text, sizeof text,
                       "{\"heads\":%d,\"requests\":%d,\"done\":%d,\"gone\":%d,\"499\":%d,"
                       "\"taken\":%d}", n_heads, n_requests, n_done, n_gone, n_499, n_taken);
        reply(exchange, 200, text);
    } else if (is_path(request, "/body") || is_path(request, "/stream") ||
               is_path(request, "/slow")) {
        http_accept(exchange, 1 << 20);
    } else if (!is_path(request, "/nothing")) {
        reply(exchange, 404, "{\"error\":{\"message\":\"no such route\"}}");
    }
}

static void gone(void *user) {
    atomic_fetch_add(&n_gone, 1);
    http_release(user);
}

static void taken(void *user, size_t n_bytes) {
    (void)user;
    atomic_fetch_add(&n_taken, (int)n_bytes);
}

static void on_request(void *user, http_exchange_t *exchange) {
    (void)user;
    const http_request_t *request = http_request(exchange);
    atomic_fetch_add(&n_requests, 1);
    if (is_path(request, "/body")) {
        unsigned long sum = 0;
        for (size_t i = 0; i < request->body_bytes; i++) {
            sum = (sum * 31 + (unsigned char)request->body[i]) % 1000003;
        }
        char text[128];
        (void)snprintf(text, sizeof text, "{\"bytes\":%zu,\"sum\":%lu}", request->body_bytes, sum);
        reply(exchange, 200, text);
    } else if (is_path(request, "/stream")) {
        const int n = request->query.n_bytes > 0 ? atoi(request->query.data) : 3;
        http_watch(exchange, NULL, taken, NULL);
        http_stream_begin(exchange, 200, "text/event-stream", NULL, true);
        for (int i = 0; i < n; i++) {
            char text[64];
            const int n_text = snprintf(text, sizeof text, "data: %d\n\n", i);
            if (!http_stream_write(exchange, text, (size_t)n_text)) break;
            http_flush(server);
        }
        http_stream_end(exchange, true);
    } else { /* /slow */
        http_retain(exchange);
        if (request->query.n_bytes > 0) {
            http_stream_begin(exchange, 200, "text/event-stream", NULL, true);
            http_flush(server);
        }
        http_watch(exchange, gone, taken, exchange);
    }
}

static void on_done(void *user, const http_request_t *request, int status, uint64_t n_bytes) {
    (void)user;
    (void)request;
    (void)n_bytes;
    atomic_fetch_add(&n_done, 1);
    if (status == 499) atomic_fetch_add(&n_499, 1);
}

static bool set_limit(http_limits_t *limits, const char *name, const char *value) {
    const unsigned long number = strtoul(value, NULL, 10);
#define LIMIT(field)                                                                              \
    if (strcmp(name, "--" #field) == 0) {                                                        \
        limits->field = (uint32_t)number;                                                        \
        return true;                                                                             \
    }
    LIMIT(line_bytes) LIMIT(head_bytes) LIMIT(fields) LIMIT(head_ms) LIMIT(body_idle_ms)
    LIMIT(body_rate_bytes) LIMIT(body_rate_after_ms) LIMIT(keep_alive_ms) LIMIT(keep_alive_requests)
    LIMIT(write_stall_ms) LIMIT(heartbeat_ms) LIMIT(connections) LIMIT(connections_per_address)
    LIMIT(descriptors_reserved) LIMIT(queue) LIMIT(stream_bytes)
#undef LIMIT
    return false;
}

int main(int argc, char **argv) {
    http_params_t params = {.host = "127.0.0.1", .n_workers = 2, .on_head = on_head,
                            .on_request = on_request, .on_done = on_done};
    http_limits_init(&params.limits);
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--unix") == 0) params.unix_path = argv[i + 1];
        else if (strcmp(argv[i], "--tls-cert") == 0) params.tls_cert = argv[i + 1];
        else if (strcmp(argv[i], "--tls-key") == 0) params.tls_key = argv[i + 1];
        else if (strcmp(argv[i], "--workers") == 0) params.n_workers = (uint32_t)atoi(argv[i + 1]);
        else if (!set_limit(&params.limits, argv[i], argv[i + 1])) {
            fprintf(stderr, "http_echo: unknown %s\n", argv[i]);
            return 2;
        }
    }
    kr_error_t error;
    kr_error_init(&error);
    if (http_server_start(&params, &server, &error) != KR_OK) {
        fprintf(stderr, "http_echo: %s (%s)\n", error.message, error.param);
        return 1;
    }
    printf("port %u\n", http_server_port(server));
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "drain\n") == 0) http_server_drain(server);
    }
    http_server_destroy(server);
    return 0;
}
