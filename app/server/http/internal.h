/* internal.h: what the parts of the transport share.
 *
 * A connection belongs to the I/O thread alone. An exchange is shared: what its mutex guards is
 * said below; the rest is set before on_head and then read-only. Lock order: exchange, server. No
 * callback runs under a lock.
 *
 * An answer travels so: any thread appends to exchange->out and puts the exchange on the list
 * `written`; http_flush moves the list to `flushed` and wakes the I/O thread, which frames what is
 * there and sends it. While the kernel takes no more, bytes gather in `out`. */
#ifndef SERVER_HTTP_INTERNAL_H
#define SERVER_HTTP_INTERNAL_H

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "base/buffer.h"
#include "server/http/http.h"
#include "server/http/message.h"
#include "server/http/unix_socket.h"

#define HTTP_READ_BYTES 8192u       /* of a head: also the bound of what is read behind a request */
#define HTTP_READ_BODY_BYTES 65536u
#define HTTP_DISCARD_BYTES_MAX 262144u /* of a body that is not wanted; over it: close */
#define HTTP_LINGER_MS 2000u        /* after a last answer, for the client to read it */
#define HTTP_REFUSALS_MAX 64u       /* connections of one address, over its limit, that get a 503 */
#define HTTP_LISTENERS_MAX 3
#define HTTP_WORKERS_MAX 64
#define HTTP_WORKER_STACK_BYTES ((size_t)4 << 20)
#define HTTP_NEVER UINT64_MAX

typedef struct http_conn_s http_conn_t;

/* What epoll's pointer points to. */
typedef enum http_source_e { SOURCE_WAKE, SOURCE_LISTENER, SOURCE_CONN } http_source_t;

/* ---- exchange -------------------------------------------------------------------------------- */

typedef enum http_answer_state_e {
    ANSWER_NONE,   /* nothing yet */
    ANSWER_STREAM, /* begun, more may come */
    ANSWER_ENDED,  /* complete, or cut */
} http_answer_state_t;

struct http_exchange_s {
    atomic_uint n_refs;
    http_request_t request;
    char *text;             /* of the head: request's texts point into it */
    http_field_t *fields;
    kri_buffer_t body;
    uint32_t minor;         /* of the request's HTTP version */
    bool is_head;           /* HEAD: answers have no body */
    bool must_close;        /* the request's own wish, or the last one of a connection */
    bool expects_continue;
    void *user;
    void (*destroy)(void *user);

    /* I/O thread. */
    http_conn_t *conn;      /* NULL once the exchange is over for the connection */
    bool in_on_head, is_accepted;
    uint64_t n_body_max, group;

    pthread_mutex_t mutex;  /* the following */
    pthread_cond_t called;  /* a callback has returned */
    http_server_t *server;  /* NULL: detached, what is written is dropped */
    http_answer_state_t state;
    int status;             /* 0 = none yet */
    bool is_chunked, is_events, is_whole, closes;
    bool is_gone;           /* the client has gone before the end of the answer */
    bool is_flooded;        /* more than stream_bytes wait: the I/O thread shall cut it */
    kri_buffer_t out;       /* n_out_head bytes of head, then payload */
    size_t n_out_head;
    uint64_t n_written, n_taken; /* payload of a stream */
    http_gone_fn gone;
    http_taken_fn taken;
    void *watcher;
    bool is_calling;        /* the I/O thread runs gone or taken */

    /* Under the server's mutex. */
    http_exchange_t *next;
    bool is_listed;         /* on `written` or `flushed`, which then holds a reference */
};

/* Takes the head of `message` over. NULL: no memory. One reference, the connection's. */
http_exchange_t *http_exchange_create(http_server_t *server, http_conn_t *conn,
                                      http_message_t *message);
/* A head that was refused: an exchange without a request to answer on. */
http_exchange_t *http_exchange_create_bare(http_server_t *server, http_conn_t *conn);
/* Ends its part in the connection: later writes are dropped. is_gone: the client went first, the
 * watcher is told. Releases the connection's reference. */
void http_exchange_detach(http_exchange_t *exchange, bool is_gone);
/* Reports payload that the kernel has taken. */
void http_exchange_taken(http_exchange_t *exchange, size_t n_bytes);
/* Answers with the error body of the contract. */
void http_exchange_fail(http_exchange_t *exchange, http_refusal_t refusal, bool closes);

/* answer.c: the head of an answer. n_length UINT64_MAX: a stream. False: no memory. */
bool http_put_head(kri_buffer_t *out, const http_exchange_t *exchange, const http_answer_t *answer,
                   uint64_t n_length, bool closes);
/* The JSON error body. */
bool http_put_error(kri_buffer_t *out, http_refusal_t refusal);

/* ---- connection ------------------------------------------------------------------------------ */

typedef enum http_in_e {
    IN_TLS,     /* handshake */
    IN_HEAD,    /* idle, or reading a head */
    IN_BODY,    /* reading a body for a worker */
    IN_DISCARD, /* reading a body that nobody wants; the answer is under way */
    IN_WAIT,    /* the request is complete, nothing is read before its answer has left */
    IN_LINGER,  /* the last answer has left: reading until the client closes */
    IN_CLOSED,
} http_in_t;

typedef struct http_address_s http_address_t; /* addresses.c */

struct http_conn_s {
    http_source_t source;    /* first: epoll */
    http_server_t *server;
    int fd;
    SSL *ssl;                /* NULL = plain */
    uint32_t events;         /* registered with epoll */
    http_in_t in;
    bool wants_out;          /* a write, or a TLS read, waits for room */
    bool is_answered;        /* the answer has left; only IN_DISCARD goes on after it */
    bool is_refused;         /* the answer leaves whatever the client does with its side */
    bool is_last_answer;     /* the connection ends after this answer */
    bool is_events;          /* the answer is an event stream: heartbeats */
    bool at_event_end;       /* and stands between two events */
    http_message_t message;
    http_exchange_t *exchange;
    char *rest;              /* [n_rest] read behind a request */
    size_t n_rest;
    kri_buffer_t write;      /* framed; write_at bytes of it are taken */
    size_t write_at;
    size_t payload_at, payload_end, payload_told; /* the stream's bytes in `write` */
    bool is_last;            /* `write` holds the end of the answer */
    bool is_cut;             /* and the answer is not whole: no clean end */
    uint64_t n_payload;      /* of the answer, taken */
    uint64_t begin_ns;       /* first byte of the request, or of the connection's idle time */
    uint64_t body_begin_ns, body_last_ns, n_body;
    uint64_t write_ns;       /* last progress of a write, or of the heartbeat's silence */
    uint64_t deadline_ns, timer_ns; /* timer_ns <= deadline_ns: its key in the heap */
    uint32_t timer_at;       /* index in the server's heap + 1; 0 = none */
    uint32_t n_requests;
    http_address_t *address;
    char peer[48];
    uint64_t client;
    http_conn_t *next, *prev; /* of the server */
};

/* conn.c; fd is the connection's from now on. NULL: no memory, fd is closed. */
http_conn_t *http_conn_create(http_server_t *server, int fd, const char *peer,
                              http_address_t *address, bool is_tls);
/* What epoll reports. */
void http_conn_event(http_conn_t *conn, uint32_t events);
void http_conn_timeout(http_conn_t *conn, uint64_t now_ns);
/* Its exchange has something to send. */
void http_conn_send(http_conn_t *conn);
/* Refuses a connection before its first byte. */
void http_conn_refuse(http_conn_t *conn, http_refusal_t refusal);
/* status: what on_done is told when an answer was not complete. The memory goes at the end of the
 * loop's turn. */
void http_conn_close(http_conn_t *conn, int status);
bool http_conn_is_idle(const http_conn_t *conn);

/* ---- the rest -------------------------------------------------------------------------------- */

typedef struct http_listener_s {
    http_source_t source;
    int fd;
    bool is_unix, is_tls;
} http_listener_t;

typedef struct http_timers_s {
    http_conn_t **heap; /* [capacity], the earliest first */
    uint32_t n, capacity;
} http_timers_t;
/* Room for one more connection. */
bool http_timers_reserve(http_timers_t *timers, uint32_t n_conns);
/* HTTP_NEVER takes it out. */
void http_timers_set(http_timers_t *timers, http_conn_t *conn, uint64_t deadline_ns);
/* One whose deadline has passed, taken out; NULL: none. */
http_conn_t *http_timers_due(http_timers_t *timers, uint64_t now_ns);
void http_timers_deinit(http_timers_t *timers);

#define HTTP_ADDRESS_BUCKETS 1024u
typedef struct http_addresses_s { http_address_t *buckets[HTTP_ADDRESS_BUCKETS]; } http_addresses_t;
/* Counts a connection. NULL: no memory. *n_conns: with this one. IPv6: a network of /64 counts as
 * one address. */
http_address_t *http_addresses_add(http_addresses_t *addresses, const struct sockaddr *address,
                                   uint32_t *n_conns);
void http_addresses_remove(http_addresses_t *addresses, http_address_t *address);

typedef struct http_list_s { http_exchange_t *first, *last; } http_list_t;

struct http_server_s {
    http_params_t params;    /* its strings only while starting */
    http_limits_t limits;
    SSL_CTX *tls;
    int epoll_fd, wake_fd;
    http_source_t wake_source;
    http_listener_t listeners[HTTP_LISTENERS_MAX];
    uint32_t n_listeners;
    uint16_t port;
    unix_socket_t unix_socket;
    char id_prefix[12];
    uint64_t id_next;
    pthread_t io_thread;
    bool has_io_thread;

    /* I/O thread. */
    http_conn_t *conns, *closed; /* closed: to be freed after this turn */
    http_timers_t timers;
    http_addresses_t addresses;
    bool is_paused;          /* nothing is accepted */
    bool is_short;           /* of descriptors or memory: retried at retry_ns */
    uint64_t retry_ns;
    bool has_drained;        /* listeners are closed */
    char scratch[HTTP_READ_BODY_BYTES];

    pthread_mutex_t mutex;   /* the lists */
    http_list_t written, flushed;
    atomic_bool is_woken, is_draining, is_stopping;
    atomic_uint n_conns, n_exchanges;
    atomic_ullong n_accepted, n_refused, n_misused, n_turns; /* turns of the loop */

    pthread_t workers[HTTP_WORKERS_MAX];
    uint32_t n_workers;
    pthread_mutex_t queue_mutex;
    pthread_cond_t queue_filled;
    http_exchange_t **queue; /* ring [limits.queue] */
    uint32_t queue_at, n_queued;
    uint64_t running[HTTP_WORKERS_MAX]; /* groups of what the workers run; 0: none */
    uint32_t n_running;
    bool queue_ends;
};

/* loop.c */
void *http_loop_run(void *server);
bool http_loop_is_here(const http_server_t *server); /* on the I/O thread */
void http_loop_wake(http_server_t *server);
/* A connection has gone: accepting may go on. */
void http_loop_resume(http_server_t *server);
/* listen.c */
kr_status_t http_listen(http_server_t *server, kr_error_t *error);
void http_listeners_close(http_server_t *server);
/* workers.c */
kr_status_t http_workers_start(http_server_t *server);
void http_workers_stop(http_server_t *server);
bool http_workers_push(http_server_t *server, http_exchange_t *exchange); /* retains */
/* server.c: the next request id, [65]. I/O thread. */
void http_id_create(http_server_t *server, char *id);
/* An attribute-laden pthread_create: all signals blocked, a stack of this size. */
bool http_thread_start(pthread_t *thread, size_t stack_bytes, void *(*run)(void *), void *context);

/* tls.c */
kr_status_t http_tls_create(const char *cert, const char *key, SSL_CTX **tls, kr_error_t *error);
/* Bytes moved; 0: the peer has closed; -1: not now (*wants_out: until it can be written); -2:
 * broken. */
long http_tls_read(SSL *ssl, void *data, size_t n_bytes, bool *wants_out);
long http_tls_write(SSL *ssl, const void *data, size_t n_bytes, bool *wants_out);
/* 1 done, -1 not now, -2 broken. */
int http_tls_handshake(SSL *ssl, bool *wants_out);
void http_tls_shutdown(SSL *ssl);

#endif
