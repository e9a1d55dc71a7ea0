/* http.h: HTTP/1.1 on sockets, strict and bounded (docs/decisions/0009-server.md, docs/limits.md).
 *
 * Threads: one I/O thread (epoll, timers, TLS), `n_workers` workers. For each request `on_head` is
 * called on the I/O thread when the head is parsed, then `on_request` on a worker when the body is
 * there. Any thread may answer, at once or later; an exchange is reference-counted and may outlive
 * its connection: what is written then is dropped.
 *
 * What the parser refuses never reaches a callback of these two: it is answered with the error body
 * of the contract (JSON, OpenAI's form), reported to `on_done`, and the connection is closed. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

typedef struct http_server_s http_server_t;
typedef struct http_exchange_s http_exchange_t;

typedef struct http_text_s {
    const char *data; /* [n_bytes], not NUL-terminated */
    size_t n_bytes;
} http_text_t;

typedef struct http_field_s {
    http_text_t name;  /* as received; http_field compares without regard to case */
    http_text_t value; /* without white space around it */
} http_field_t;

/* Borrowed for as long as the exchange is held. */
typedef struct http_request_s {
    http_text_t method;    /* token, e.g. "POST" */
    http_text_t path;      /* percent-decoded, begins with '/'; valid UTF-8, no control bytes, no
                              "." or ".." segment, no empty one ("//"): refused with 400 */
    http_text_t query;     /* as received, without '?' */
    const http_field_t *fields;
    uint32_t n_fields;
    const char *body;      /* [body_bytes] and a NUL; in on_head NULL */
    size_t body_bytes;
    uint64_t body_declared; /* Content-Length; UINT64_MAX = chunked */
    char peer[48];         /* numeric address, or "unix" */
    uint64_t client;       /* who sends this, as far as can be told: on a Unix socket its process,
                              else the connection, for on loopback all have one address. The
                              upper half is never 0 */
    char id[65];           /* X-Request-Id: the client's where it is [A-Za-z0-9._-]{1,64}, else
                              ours; the transport adds it to every answer */
    uint64_t begin_ns;     /* monotonic: first byte of the request */
    void *user;            /* of http_set_user; NULL before it */
} http_request_t;

typedef struct http_limits_s {
    uint32_t line_bytes;          /* request line, a field line: 8192 each -> 414, 431 */
    uint32_t head_bytes;          /* 32768 -> 431 */
    uint32_t fields;              /* 100 -> 431 */
    uint64_t body_bytes;          /* 16 MiB; what http_accept gives wins */
    uint32_t head_ms;             /* 10 000 from the first byte -> 408 */
    uint32_t body_idle_ms;        /* 30 000 -> 408 */
    uint32_t body_rate_bytes;     /* 1024 a second after body_rate_after_ms (10 000) -> 408 */
    uint32_t body_rate_after_ms;
    uint32_t keep_alive_ms;       /* 75 000 idle, then closed without a word */
    uint32_t keep_alive_requests; /* 1000 */
    uint32_t write_stall_ms;      /* 30 000 without progress: the client counts as gone */
    uint32_t heartbeat_ms;        /* 15 000: a comment line on a silent event stream */
    uint32_t connections;         /* 4096; over it accepting pauses */
    uint32_t connections_per_address; /* 256 -> 503 and close; not for Unix sockets */
    uint32_t descriptors_reserved;    /* 64 below RLIMIT_NOFILE: accepting pauses */
    uint32_t queue;               /* requests waiting for a worker: 1024 -> 503 */
    uint64_t stream_bytes;        /* 1 MiB written and not yet taken by the client: gone */
} http_limits_t;
/* The defaults above. */
void http_limits_init(http_limits_t *limits);

typedef struct http_params_s {
    const char *host;       /* C string, numeric address or "localhost"; NULL = no TCP */
    uint16_t port;          /* 0 = any free one: http_server_port */
    const char *unix_path;  /* C string; NULL = none. Created 0600; a stale socket is replaced, one
                               in use or a file of another kind is KR_E_EXISTS */
    const char *tls_cert, *tls_key; /* C strings, PEM files; both or none */
    http_limits_t limits;
    uint32_t n_workers;     /* 1..64 */
    /* On the I/O thread, must not block. Answers (http_reply), or lets the body come (http_accept);
     * if it does neither the request is answered with 500. */
    void (*on_head)(void *user, http_exchange_t *exchange);
    /* On a worker, with the whole body. The reference of the call ends with it: who answers later
     * holds one (http_retain). */
    void (*on_request)(void *user, http_exchange_t *exchange);
    /* On the I/O thread, once per request that had a first byte, also refused ones, and per
     * connection that got a 503 in its place: for logs and metrics. status: that of the answer,
     * 499 when the client went before its end, 0 when the server ended it. n_bytes: of the answer's
     * body, as far as the kernel has taken it. A head that was refused has empty texts here. */
    void (*on_done)(void *user, const http_request_t *request, int status, uint64_t n_bytes);
    void *user;
} http_params_t;

/* Binds and starts the threads. Errors KR_E_INVALID_ARG (param names the field), KR_E_EXISTS,
 * KR_E_IO (cannot bind: message says why), KR_E_NOT_FOUND (TLS files), KR_E_BAD_FORMAT (TLS files),
 * KR_E_NOMEM. */
kr_status_t http_server_start(const http_params_t *params, http_server_t **server,
                              kr_error_t *error);
uint16_t http_server_port(const http_server_t *server);
/* Stops accepting and closes idle connections; what runs goes on, and every answer begun from now
 * on says Connection: close. Any thread. */
void http_server_drain(http_server_t *server);
typedef struct http_stats_s {
    uint32_t n_connections, n_exchanges; /* now; exchanges: between head and end of the answer */
    uint64_t n_accepted, n_refused;      /* connections since the start */
    uint64_t n_misused;                  /* answers dropped because one had begun: a bug of ours */
} http_stats_t;
void http_server_stats(const http_server_t *server, http_stats_t *stats);
/* Cuts what is left (watchers are told), waits for on_request calls that run, joins the threads,
 * removes the Unix socket. Exchanges that are still held stay valid until released; whoever calls
 * http_flush has to stop before. Not from a callback. NULL is a no-op. */
void http_server_destroy(http_server_t *server);

/* ---- one exchange: any thread ---------------------------------------------------------------- */

const http_request_t *http_request(const http_exchange_t *exchange);
/* First field of this name, without regard to case; {NULL, 0} when absent. */
http_text_t http_field(const http_request_t *request, const char *name);
/* How many there are. */
uint32_t http_field_count(const http_request_t *request, const char *name);
void http_retain(http_exchange_t *exchange);
void http_release(http_exchange_t *exchange);
/* Room for the caller's own per-request pointer. `destroy` is called with the last reference. */
void http_set_user(http_exchange_t *exchange, void *user, void (*destroy)(void *user));
void *http_user(const http_exchange_t *exchange);

/* Only in on_head: the body may come, up to body_bytes_max (over it: 413 and close). Answers an
 * "Expect: 100-continue". */
void http_accept(http_exchange_t *exchange, uint64_t body_bytes_max);
/* Only in on_head: requests of one group together never take the last worker. 0, as at first: no
 * group. */
void http_set_group(http_exchange_t *exchange, uint64_t group);

typedef struct http_answer_s {
    int status;               /* 200..599 */
    const char *content_type; /* C string; NULL = no body */
    const char *fields;       /* C string: more field lines, each ending in CRLF; NULL = none */
    const char *body;         /* [body_bytes]; copied */
    size_t body_bytes;
    bool close;               /* Connection: close; also where the parser's framing is in doubt */
} http_answer_t;
/* The whole answer. HEAD requests get it without the body. A second answer is dropped and
 * counted (n_misused). */
void http_reply(http_exchange_t *exchange, const http_answer_t *answer);

/* An answer in pieces (chunked; closed at the end for HTTP/1.0). Bytes are appended to the
 * connection's buffer and leave at the next http_flush. is_event_stream: heartbeats. */
void http_stream_begin(http_exchange_t *exchange, int status, const char *content_type,
                       const char *fields, bool is_event_stream);
/* False when the client has gone: nothing is kept, and nobody needs to write more. */
bool http_stream_write(http_exchange_t *exchange, const void *data, size_t n_bytes);
/* whole: the last chunk follows. Else the connection is cut without it. */
void http_stream_end(http_exchange_t *exchange, bool whole);
/* Sends what has been written to any exchange since the last flush: one system call per
 * connection. http_reply and http_stream_end do it themselves. */
void http_flush(http_server_t *server);

/* Called once from the I/O thread when the client has gone before the answer's end (closed, reset,
 * stalled, half-closed) or the server is destroyed; at once, on the calling thread, when that has
 * happened already. Never after the answer has ended. `gone` must not block. */
typedef void (*http_gone_fn)(void *user);
/* Called from the I/O thread with the bytes of the stream that the kernel has taken, until the
 * stream's end. It must not block; it may write. */
typedef void (*http_taken_fn)(void *user, size_t n_bytes);
/* Each is held until the exchange's last reference or until replaced; `user` must live as long.
 * Waits for a call of the one it replaces, so hold no lock that gone or taken want. */
void http_watch(http_exchange_t *exchange, http_gone_fn gone, http_taken_fn taken, void *user);

#endif
