/* conn.h: a connection, between conn.c (reading) and conn_out.c (sending). */
#ifndef SERVER_HTTP_CONN_H
#define SERVER_HTTP_CONN_H

#include "server/http/internal.h"

/* Timers and epoll's interest, after anything that changes what is awaited. */
void http_conn_update(http_conn_t *conn);
/* Parses; what is behind a complete request is kept. */
void http_conn_input(http_conn_t *conn, const char *data, size_t n_bytes);
void http_conn_read(http_conn_t *conn);
/* The answer has left: the next request may begin. */
void http_conn_next(http_conn_t *conn);
/* Takes up what was read behind the last request. */
void http_conn_go_on(http_conn_t *conn);
/* No more answers: half-closes and waits for the client to close. */
void http_conn_linger(http_conn_t *conn);
/* Tells on_done about the exchange. */
void http_conn_report(http_conn_t *conn, int status);

/* conn_out.c: "100 Continue", if the client waits for it. */
void http_conn_continue(http_conn_t *conn);
/* A comment on a silent event stream. */
void http_conn_beat(http_conn_t *conn);

#endif
