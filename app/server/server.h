/* server.h: what the parts of the server share. One server_t per process. */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "call.h"
#include "http/http.h"
#include "kr.h"

#define SERVER_MODELS_MAX 16

typedef struct server_model_s {
    char name[256];        /* as the engine and /v1/models call it */
    char path[4096];
    kr_model_t model;
    kr_model_info_t info;
    kr_session_info_t session; /* n_ctx, n_seqs, kv_dtype, ... as planned */
    int64_t created;       /* wall clock, s, when it was loaded */
} server_model_t;

typedef struct keys_s keys_t;     /* keys.h */
typedef struct clients_s clients_t; /* clients.h */
typedef struct pump_s pump_t;     /* pump.h */
typedef struct counters_s counters_t; /* prometheus.h */
typedef struct logger_s logger_t; /* log.h; NULL in `kr batch` */
typedef struct responses_s responses_t; /* responses_store.h */

typedef struct probe_s probe_t;   /* probe.h; NULL in `kr batch` */

/* What /admin asks the program for. Any thread, while the server is there. */
typedef struct server_control_s {
    /* As SIGTERM. */
    void (*drain)(void);
    /* The device was lost: as SIGTERM, but with an exit code that asks for a new start. */
    void (*lose)(void);
    /* As SIGHUP; appends an object that says what has changed. On an error nothing has. */
    kr_status_t (*reload)(kri_buffer_t *out, kr_error_t *error);
} server_control_t;

/* Read by all threads; what SIGHUP may change is behind `keys` and atomics. */
struct server_s {
    kr_engine_t engine;
    kr_telemetry_t telemetry; /* NULL: --metrics off */
    server_model_t models[SERVER_MODELS_MAX];
    uint32_t n_models;     /* fixed once is_loaded */
    uint32_t deadline_ms;  /* of a request that names none; none may name more */
    http_server_t *http;   /* NULL in `kr batch` */
    pump_t *pump;
    /* On the pump, behind each batch of events, and before it sleeps: says after how many ms it
     * wants to be called again, -1: only behind the next batch. NULL: nothing. */
    int (*on_batch)(void *user);
    void *on_batch_user;
    probe_t *probe;
    const server_control_t *control; /* NULL: none */
    keys_t *keys;
    clients_t *clients;
    counters_t *counters;  /* NULL: --metrics off */
    logger_t *logger;
    responses_t *responses; /* NULL: none are kept */
    /* Access (access.h); the lists are borrowed. */
    char host[64];         /* that is bound, as --host gives it; "" = none */
    bool is_loopback;      /* or a Unix socket */
    bool is_tls;
    const char *const *allowed_hosts;   /* beside the loopback names and the bound address */
    uint32_t n_allowed_hosts;
    const char *const *allowed_origins; /* beside this server's own */
    uint32_t n_allowed_origins;
    uint64_t body_bytes_max;
    uint64_t bodies_bytes_max;   /* of all requests together, read or being read; more: 503 */
    _Atomic uint64_t bodies_bytes;
    _Atomic bool log_prompts;
    _Atomic bool is_loaded;      /* all models can be asked */
    _Atomic bool is_draining;
    _Atomic bool is_lost;        /* a model's device computes no more */
    _Atomic uint64_t token_ns;   /* monotonic: when a token was last produced; 0 = never */
};

/* ---- life (server.c) ------------------------------------------------------------------------- */

/* An engine without models. params NULL = defaults; its telemetry is the server's from now on. */
kr_status_t server_create(const kr_engine_params_t *params, server_t **server,
                          kr_error_t *error);
/* Loads nothing: the model is open, a reference of its own is taken. name: 1..255 bytes of one
 * line, unique. */
kr_status_t server_add_model(server_t *server, const char *name, const char *path,
                             kr_model_t model, const kr_session_params_t *params,
                             kr_error_t *error);
/* Binds and answers from now on, before the models are there: probes truly, all else with 503
 * model_loading. params: on_* and user are filled in. KR_E_IO: cannot bind. */
kr_status_t server_listen(server_t *server, http_params_t *params, kr_error_t *error);
/* All models are there: starts the pump and, with HTTP, the probe. */
kr_status_t server_begin(server_t *server, kr_error_t *error);
/* Ends what is left and frees all but the logger. NULL: a no-op. */
void server_destroy(server_t *server);
/* P10: models are loaded, nothing drains, no device was lost, a token was produced within the last
 * 30 s. */
bool server_is_ready(const server_t *server);
/* A request ended because the device was lost. Any thread, any number of times. */
void server_lose_device(server_t *server);

/* ---- use ------------------------------------------------------------------------------------- */

/* The model of this name; NULL name = the first. NULL when there is none: call_fail with
 * "model_not_found". */
const server_model_t *server_find_model(const server_t *server, const char *name);
/* Answers for one HTTP exchange: access, route, call (route.c). */
void server_on_head(void *user, http_exchange_t *exchange);
void server_on_request(void *user, http_exchange_t *exchange);
void server_on_done(void *user, const http_request_t *request, int status, uint64_t n_bytes);

#endif
