/* message.c: head, then body. Input behind a message is never taken: pipelined requests stay with
 * the caller. */
#include "server/http/message.h"

#include <string.h>

#include "base/alloc.h"

enum message_state_e { MESSAGE_IDLE, MESSAGE_HEAD, MESSAGE_ASKED, MESSAGE_BODY, MESSAGE_END,
                       MESSAGE_BAD };

#define TEXT_BYTES_MIN 1024u

void http_message_init(http_message_t *message) { memset(message, 0, sizeof *message); }

void http_message_reset(http_message_t *message) {
    kri_free(message->head);
    kri_free(message->text);
    http_message_init(message);
}

bool http_message_is_idle(const http_message_t *message) {
    return message->state == MESSAGE_IDLE;
}

static http_event_t fail(http_message_t *message, http_refusal_t refusal) {
    message->refusal = refusal;
    message->state = MESSAGE_BAD;
    return HTTP_EVENT_BAD;
}

static http_event_t fail_memory(http_message_t *message) {
    return fail(message, (http_refusal_t){503, "overloaded", "out of memory"});
}

/* Keeps the bytes of the head. Growth by doubling; the parser's limits bound it. */
static bool keep(http_message_t *message, const char *data, size_t n_bytes) {
    if (n_bytes > message->text_capacity - message->n_text) {
        size_t capacity = message->text_capacity > 0 ? message->text_capacity : TEXT_BYTES_MIN;
        while (capacity - message->n_text < n_bytes) capacity *= 2;
        char *text = kri_realloc(message->text, capacity, "http head");
        if (text == NULL) return false;
        message->text = text;
        message->text_capacity = capacity;
    }
    memcpy(message->text + message->n_text, data, n_bytes);
    message->n_text += n_bytes;
    return true;
}

static http_event_t feed_head(http_message_t *message, const http_limits_t *limits,
                              const char *data, size_t n_bytes, size_t *n_used) {
    if (message->head == NULL) {
        message->head = kri_alloc(sizeof *message->head, "http head");
        if (message->head == NULL) return fail_memory(message);
        http_head_init(message->head, limits->line_bytes, limits->head_bytes, limits->fields);
        message->state = MESSAGE_HEAD;
    }
    const http_parse_t parse = http_head_feed(message->head, data, n_bytes, n_used);
    if (parse == HTTP_PARSE_BAD) return fail(message, message->head->refusal);
    if (!keep(message, data, *n_used)) return fail_memory(message);
    if (parse == HTTP_PARSE_MORE) return HTTP_EVENT_MORE;
    if (!http_head_check(message->head, message->text)) {
        return fail(message, message->head->refusal);
    }
    message->is_chunked = message->head->is_chunked;
    message->n_left = message->head->body_declared;
    message->state = MESSAGE_ASKED;
    return HTTP_EVENT_HEAD;
}

static http_event_t feed_chunks(http_message_t *message, const char *data, size_t n_bytes,
                                size_t *n_used, http_text_t *piece) {
    size_t data_at, n_data;
    const http_parse_t parse =
        http_chunked_feed(&message->chunked, data, n_bytes, n_used, &data_at, &n_data);
    if (parse == HTTP_PARSE_BAD) return fail(message, message->chunked.refusal);
    if (parse == HTTP_PARSE_DONE) {
        message->state = MESSAGE_END;
        return HTTP_EVENT_END;
    }
    if (n_data == 0) return HTTP_EVENT_MORE;
    *piece = (http_text_t){data + data_at, n_data};
    return HTTP_EVENT_DATA;
}

static http_event_t feed_length(http_message_t *message, const char *data, size_t n_bytes,
                                size_t *n_used, http_text_t *piece) {
    if (message->n_left == 0) {
        message->state = MESSAGE_END;
        return HTTP_EVENT_END;
    }
    if (n_bytes == 0) return HTTP_EVENT_MORE;
    *n_used = n_bytes < message->n_left ? n_bytes : (size_t)message->n_left;
    message->n_left -= *n_used;
    *piece = (http_text_t){data, *n_used};
    return HTTP_EVENT_DATA;
}

http_event_t http_message_feed(http_message_t *message, const http_limits_t *limits,
                               const char *data, size_t n_bytes, size_t *n_used,
                               http_text_t *piece) {
    *n_used = 0;
    *piece = (http_text_t){NULL, 0};
    switch (message->state) {
    case MESSAGE_IDLE:
    case MESSAGE_HEAD:
        if (n_bytes == 0) return HTTP_EVENT_MORE;
        return feed_head(message, limits, data, n_bytes, n_used);
    case MESSAGE_BODY:
        if (message->is_chunked) return feed_chunks(message, data, n_bytes, n_used, piece);
        return feed_length(message, data, n_bytes, n_used, piece);
    case MESSAGE_END: return HTTP_EVENT_END;
    default: return HTTP_EVENT_BAD;
    }
}

bool http_message_allow(http_message_t *message, uint64_t n_body_max) {
    if (message->state != MESSAGE_ASKED) return false;
    if (!message->is_chunked && message->n_left > n_body_max) {
        (void)fail(message, (http_refusal_t){413, "body_too_large", "the body is too large"});
        return false;
    }
    if (message->is_chunked) http_chunked_init(&message->chunked, n_body_max);
    message->state = MESSAGE_BODY;
    return true;
}

char *http_message_take_text(http_message_t *message) {
    char *text = message->text;
    kri_free(message->head);
    message->head = NULL;
    message->text = NULL;
    message->n_text = message->text_capacity = 0;
    return text;
}
