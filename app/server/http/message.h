/* message.h: a request's bytes in any pieces -> events. The layer that is fuzzed: no sockets, no
 * clock; the only memory is the head's text. */
#ifndef SERVER_HTTP_MESSAGE_H
#define SERVER_HTTP_MESSAGE_H

#include "server/http/http.h"
#include "server/http/parser.h"

typedef enum http_event_e {
    HTTP_EVENT_MORE, /* all input is used up */
    HTTP_EVENT_HEAD, /* head and text are there: http_message_allow, or another end */
    HTTP_EVENT_DATA, /* more of the body */
    HTTP_EVENT_END,  /* the message is complete: http_message_reset before the next */
    HTTP_EVENT_BAD,  /* refusal says why; nothing more is taken */
} http_event_t;

typedef struct http_message_s {
    uint32_t state;
    http_head_t *head;   /* from the first byte to http_message_drop_head */
    char *text;          /* [n_text] the head as received, the path decoded */
    size_t n_text, text_capacity;
    bool is_chunked;
    uint64_t n_left;     /* of a body with a declared length */
    http_chunked_t chunked;
    http_refusal_t refusal;
} http_message_t;

void http_message_init(http_message_t *message);
void http_message_reset(http_message_t *message); /* also frees */
/* No byte of a request has come yet. */
bool http_message_is_idle(const http_message_t *message);
/* *n_used bytes are taken; *piece points into data. To be called again until MORE, END or BAD, at
 * the end with n_bytes 0 too: a message without a body ends without a byte. */
http_event_t http_message_feed(http_message_t *message, const http_limits_t *limits,
                               const char *data, size_t n_bytes, size_t *n_used,
                               http_text_t *piece);
/* After HEAD: the body may have so many bytes. False: it declares more (refusal is set). */
bool http_message_allow(http_message_t *message, uint64_t n_body_max);
/* Takes the head's text over (kri_free) and frees the rest of the head. */
char *http_message_take_text(http_message_t *message);

#endif
