/* http_sink.c: answers of calls as answers of HTTP. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "endpoints.h"
#include "prometheus.h"
#include "visit.h"

#define FIELDS_BYTES_MAX 2048u

/* What goes with every answer of an endpoint, then the visit's and the call's own lines. */
static const char *put_fields(const visit_t *visit, const char *fields, char *out) {
    (void)snprintf(out, FIELDS_BYTES_MAX, "X-Content-Type-Options: nosniff\r\n%s%.1024s",
                   visit->fields, fields != NULL ? fields : "");
    return out;
}

/* The first byte is about to go: the thread that answers, once. */
static void count_first_byte(visit_t *visit) {
    if (visit->has_first_byte) return;
    visit->has_first_byte = true;
    const uint64_t begin_ns = http_request(visit->exchange)->begin_ns, now_ns = kri_clock_ns();
    counters_first_byte(visit->server->counters, (endpoint_id_t)(visit->endpoint - endpoints),
                        now_ns > begin_ns ? now_ns - begin_ns : 0);
}

static void on_reply(void *sink, int status, const char *content_type, const char *fields,
                     const char *body, size_t n_bytes) {
    visit_t *visit = sink;
    char lines[FIELDS_BYTES_MAX];
    const http_answer_t answer = {.status = status, .content_type = content_type, .body = body,
                                  .body_bytes = n_bytes,
                                  .fields = put_fields(visit, fields, lines)};
    count_first_byte(visit);
    http_reply(visit->exchange, &answer);
}

static void on_begin(void *sink, const char *content_type, const char *fields,
                     bool is_event_stream) {
    visit_t *visit = sink;
    char lines[FIELDS_BYTES_MAX], more[512];
    /* Proxies must neither keep nor gather what is streamed. */
    (void)snprintf(more, sizeof more, "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n%.256s",
                   fields != NULL ? fields : "");
    count_first_byte(visit);
    http_stream_begin(visit->exchange, 200, content_type, put_fields(visit, more, lines),
                      is_event_stream);
}

static bool on_write(void *sink, const char *data, size_t n_bytes) {
    visit_t *visit = sink;
    return http_stream_write(visit->exchange, data, n_bytes);
}

static void on_end(void *sink, bool whole) {
    visit_t *visit = sink;
    http_stream_end(visit->exchange, whole);
}

static void on_watch(void *sink, void (*gone)(void *user), void (*taken)(void *user, size_t n),
                     void *user) {
    visit_t *visit = sink;
    http_watch(visit->exchange, gone, taken, user);
}

static void on_note(void *sink, uint64_t n_prompt, uint64_t n_cached, uint64_t n_generated) {
    visit_t *visit = sink;
    atomic_store(&visit->n_prompt, n_prompt);
    atomic_store(&visit->n_cached, n_cached);
    atomic_store(&visit->n_generated, n_generated);
    atomic_store(&visit->has_tokens, true);
}

static void on_destroy(void *sink) {
    visit_t *visit = sink;
    http_release(visit->exchange); /* which frees the visit with the last reference */
}

const call_sink_t http_sink = {
    .reply = on_reply, .begin = on_begin, .write = on_write, .end = on_end, .watch = on_watch,
    .destroy = on_destroy, .can_stream = true, .note = on_note};
