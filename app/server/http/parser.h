/* parser.h: the bytes of a request, one pass, resumable at every byte. No sockets, no clock, no
 * allocation. What it accepts is a part of RFC 9112: CRLF only, no folding, one Host, one of
 * Content-Length and "Transfer-Encoding: chunked", origin-form targets.
 *
 * http_head_t keeps positions into the head's text, which its owner collects (message.h). */
#ifndef SERVER_HTTP_PARSER_H
#define SERVER_HTTP_PARSER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_FIELDS_MAX 128   /* hard maximum of http_limits_t.fields */
#define HTTP_METHOD_BYTES_MAX 32
#define HTTP_CHUNK_LINE_BYTES_MAX 256
#define HTTP_EXTENSION_BYTES_MAX 4096 /* of all chunks of a message */
#define HTTP_TRAILERS_MAX 16
#define HTTP_TRAILER_BYTES_MAX 4096   /* with their line ends */

/* Why a request is refused. Static strings; message NULL = it is not. */
typedef struct http_refusal_s {
    int status;
    const char *code;
    const char *message;
} http_refusal_t;

typedef enum http_parse_e { HTTP_PARSE_MORE, HTTP_PARSE_DONE, HTTP_PARSE_BAD } http_parse_t;

typedef struct http_slice_s { uint32_t at, n_bytes; } http_slice_t;

typedef struct http_head_s {
    /* Limits, set by http_head_init. */
    uint32_t line_bytes, head_bytes, n_fields_max;
    /* Where it stands. */
    uint32_t state, at, line_at, block_at;
    /* Found by http_head_feed. */
    http_slice_t method, target;
    uint32_t minor;               /* of HTTP/1.x: 0 or 1 */
    uint32_t n_fields;
    struct { http_slice_t name, value; } fields[HTTP_FIELDS_MAX];
    /* Found by http_head_check. */
    http_slice_t path, query;
    bool is_chunked, is_keep_alive, expects_continue;
    uint64_t body_declared;       /* 0 when chunked */
    http_refusal_t refusal;
} http_head_t;

void http_head_init(http_head_t *head, uint32_t line_bytes, uint32_t head_bytes,
                    uint32_t n_fields_max);
/* Takes more bytes; *n_used of them belong to the head (all of them unless DONE or BAD). */
http_parse_t http_head_feed(http_head_t *head, const char *data, size_t n_bytes, size_t *n_used);
/* After DONE: what the lines mean. text [head->at]: all bytes of the head; the path is decoded in
 * place. False: head->refusal says why. */
bool http_head_check(http_head_t *head, char *text);

/* Helpers of the above that others need. */
bool http_is_token_byte(unsigned char c);
bool http_text_equals(const char *text, size_t n_bytes, const char *word); /* ASCII, no case */

/* The chunked coding, trailers included (checked and dropped). */
typedef struct http_chunked_s {
    uint32_t state;
    uint32_t n_line, n_extensions, n_trailers, n_trailer_bytes;
    uint64_t size;                /* of the current chunk: what is left of it */
    uint64_t n_body, n_body_max;  /* sum of the chunks announced; their bound */
    http_refusal_t refusal;
} http_chunked_t;

void http_chunked_init(http_chunked_t *chunked, uint64_t n_body_max);
/* Takes *n_used bytes. MORE: with *n_data > 0 the body goes on with data[*data_at..+*n_data], and
 * the rest of the input is to be fed again; with 0 all input is used up. DONE: the message ends. */
http_parse_t http_chunked_feed(http_chunked_t *chunked, const char *data, size_t n_bytes,
                               size_t *n_used, size_t *data_at, size_t *n_data);

#endif
