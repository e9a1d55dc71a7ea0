/* visit.h: one HTTP exchange on its way through the server: made when its head has come, gone with
 * the exchange. */
#ifndef SERVER_VISIT_H
#define SERVER_VISIT_H

#include "server.h"

typedef struct visit_s {
    server_t *server;
    http_exchange_t *exchange;
    const endpoint_t *endpoint;
    const char *tail;      /* [tail_bytes], of the request's path */
    size_t tail_bytes;
    principal_t principal;
    bool is_entered;       /* counted among what its key has in flight */
    uint64_t body_bytes;   /* counted in server->bodies_bytes */
    bool has_first_byte;   /* of the answer has been counted */
    atomic_bool has_tokens; /* of a generation; may be written while the client goes */
    _Atomic uint64_t n_prompt, n_cached, n_generated;
    char fields[768];      /* lines that every answer gets: its id, CORS of an allowed origin */
} visit_t;

/* Where the answer of a call goes: the exchange (http_sink.c). The sink holds a reference of it. */
extern const call_sink_t http_sink;

#endif
