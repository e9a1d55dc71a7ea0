/* http_trace.h: runs bytes through the message layer in given pieces and writes down what it says,
 * so that two ways of cutting the same bytes can be compared. */
#ifndef TESTS_HTTP_TRACE_H
#define TESTS_HTTP_TRACE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "server/http/message.h"

typedef struct http_trace_s {
    http_message_t message;
    http_limits_t limits;
    uint64_t n_body_max;
    kri_buffer_t text;     /* the events so far; DATA of one message in one line */
    size_t n_data;         /* of the message that is being read */
    int n_heads, n_ends;
    bool is_bad;
} http_trace_t;

static inline void http_trace_init(http_trace_t *trace, uint64_t n_body_max) {
    memset(trace, 0, sizeof *trace);
    http_message_init(&trace->message);
    http_limits_init(&trace->limits);
    trace->n_body_max = n_body_max;
    kri_buffer_init(&trace->text, (size_t)1 << 30);
}

static inline void http_trace_deinit(http_trace_t *trace) {
    http_message_reset(&trace->message);
    kri_buffer_deinit(&trace->text);
}

static inline void http_trace_put(http_trace_t *trace, const char *data, size_t n_bytes) {
    if (kri_buffer_append(&trace->text, data, n_bytes) != KR_OK) abort();
}

static inline void http_trace_slice(http_trace_t *trace, const char *name, http_slice_t slice) {
    http_trace_put(trace, name, strlen(name));
    const size_t n_text = trace->message.n_text;
    if (slice.at > n_text || slice.n_bytes > n_text - slice.at) abort();
    http_trace_put(trace, trace->message.text + slice.at, slice.n_bytes);
}

static inline void http_trace_head(http_trace_t *trace) {
    const http_head_t *head = trace->message.head;
    http_trace_slice(trace, "HEAD ", head->method);
    http_trace_slice(trace, " ", head->path);
    http_trace_slice(trace, " ?", head->query);
    if (kri_buffer_printf(&trace->text, " 1.%u%s%s%s %llu\n", head->minor,
                          head->is_keep_alive ? " keep" : "", head->is_chunked ? " chunked" : "",
                          head->expects_continue ? " expects" : "",
                          (unsigned long long)head->body_declared) != KR_OK) {
        abort();
    }
    for (uint32_t i = 0; i < head->n_fields; i++) {
        http_trace_slice(trace, "[", head->fields[i].name);
        http_trace_slice(trace, "]=[", head->fields[i].value);
        http_trace_put(trace, "]\n", 2);
    }
}

static inline void http_trace_bad(http_trace_t *trace) {
    const http_refusal_t refusal = trace->message.refusal;
    if (refusal.message == NULL || refusal.status < 400) abort();
    if (kri_buffer_printf(&trace->text, "%sBAD %d %s\n", trace->n_data > 0 ? "\n" : "",
                          refusal.status, refusal.code) != KR_OK) {
        abort();
    }
    trace->is_bad = true;
}

/* One piece, copied to a block of exactly its size: a sanitizer sees every overrun. */
static inline void http_trace_feed(http_trace_t *trace, const char *bytes, size_t n_bytes) {
    char *copy = malloc(n_bytes > 0 ? n_bytes : 1);
    if (copy == NULL) abort();
    if (n_bytes > 0) memcpy(copy, bytes, n_bytes);
    const char *data = copy;
    while (!trace->is_bad) {
        size_t n_used;
        http_text_t piece;
        const http_event_t event = http_message_feed(&trace->message, &trace->limits, data,
                                                     n_bytes, &n_used, &piece);
        if (n_used > n_bytes) abort();
        data += n_used;
        n_bytes -= n_used;
        if (event == HTTP_EVENT_MORE) {
            if (n_bytes > 0) abort(); /* it must have taken all */
            break;
        }
        if (event == HTTP_EVENT_HEAD) {
            trace->n_heads++;
            http_trace_head(trace);
            if (!http_message_allow(&trace->message, trace->n_body_max)) http_trace_bad(trace);
        } else if (event == HTTP_EVENT_DATA) {
            if (piece.n_bytes == 0) abort();
            if (trace->n_data == 0) http_trace_put(trace, "DATA ", 5);
            http_trace_put(trace, piece.data, piece.n_bytes);
            trace->n_data += piece.n_bytes;
            if (trace->n_data > trace->n_body_max) abort();
        } else if (event == HTTP_EVENT_END) {
            if (trace->n_data > 0) http_trace_put(trace, "\n", 1);
            http_trace_put(trace, "END\n", 4);
            trace->n_ends++;
            trace->n_data = 0;
            http_message_reset(&trace->message);
        } else {
            http_trace_bad(trace);
        }
    }
    free(copy);
}

#endif
