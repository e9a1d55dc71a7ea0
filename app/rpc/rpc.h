/* rpc.h: the JSON-RPC runtime: JSON-RPC 2.0, one message a line, over a pair of descriptors or a
 * Unix socket with several clients. Protocol: docs/runtime.md; why it is so:
 * docs/decisions/0011-runtime.md. Several may be in one process; threads of a runtime have SIGINT
 * and SIGTERM blocked, and the one that calls rpc_create until rpc_destroy. */
#ifndef RPC_RPC_H
#define RPC_RPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "kr.h"

#define RPC_MODELS_MAX 16u
#define RPC_LINE_BYTES_DEFAULT ((size_t)16 << 20)

typedef struct rpc_s rpc_t;

typedef struct rpc_params_s {
    kr_engine_params_t engine;
    kr_model_params_t model;      /* of every load; progress is the runtime's */
    kr_session_params_t session;  /* of every model; n_ctx may be given by the request */
    int in_fd, out_fd;            /* the only client; owned from now on, also on an error; the
                                     same for a socket */
    const char *socket_path;      /* or, when not NULL, clients of this socket (mode 0600) */
    size_t line_bytes_max;        /* of a message */
    uint32_t n_workers;           /* 1..64 threads that read messages and tokenize */
    uint32_t deadline_ms;         /* of a generation that names none; none may name more */
    /* The file behind a model's id. */
    kr_status_t (*resolve)(void *user, const char *name, char *path, size_t cap,
                           kr_error_t *error);
    /* Reads the configuration again: appends two JSON arrays of names, what is in effect now and
     * what needs a restart. NULL: there is none. */
    kr_status_t (*reload)(void *user, rpc_t *rpc, kri_buffer_t *changed, kri_buffer_t *refused,
                          kr_error_t *error);
    bool (*is_interrupted)(void); /* looked at when a signal has come; NULL: they are not ours */
    void *user;
    bool may_cut;                 /* the process may end, with status 0, when rpc_destroy has not
                                     come to its end in time */
} rpc_params_t;

/* Starts all threads but that of the clients. Signals that end the process are blocked in them:
 * rpc_run takes them. Errors KR_E_NOMEM, KR_E_IO, KR_E_EXISTS (socket in use), KR_E_INVALID_ARG. */
kr_status_t rpc_create(const rpc_params_t *params, rpc_t **rpc, kr_error_t *error);
/* A model before the first client. path NULL: what resolve says. */
kr_status_t rpc_load(rpc_t *rpc, const char *name, const char *path, kr_error_t *error);
/* Any thread. */
void rpc_set_deadline(rpc_t *rpc, uint32_t deadline_ms);
/* Serves until the only client has gone, `shutdown` was called or a signal has come, and what ran
 * has ended or was cancelled (two seconds at most). */
void rpc_run(rpc_t *rpc);
/* As `shutdown`: what runs is cancelled, rpc_run ends. Any thread, while the runtime is there. */
void rpc_end(rpc_t *rpc);
/* Takes it apart. NULL: a no-op. */
void rpc_destroy(rpc_t *rpc);

#endif
