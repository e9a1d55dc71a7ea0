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
typedef struct pump_s pump_t;     /* pump.h */
typedef struct counters_s counters_t; /* prometheus.h */
typedef struct logger_s logger_t; /* log.h; NULL in `kr batch` */
typedef struct responses_s responses_t; /* responses_store.h */

/* Read by all threads; what SIGHUP may change is behind `keys` and atomics. */
struct server_s {
    kr_engine_t engine;
    kr_telemetry_t telemetry;
    server_model_t models[SERVER_MODELS_MAX];
    uint32_t n_models;     /* fixed once serving */
    http_server_t *http;   /* NULL in `kr batch` */
    pump_t *pump;
    keys_t *keys;
    counters_t *counters; /* NULL: --metrics off */
    logger_t *logger;
    responses_t *responses;
    /* Access (access.c). */
    bool is_loopback;
    const char *const *allowed_hosts;   /* beside the loopback names and the bound address */
    uint32_t n_allowed_hosts;
    const char *const *allowed_origins; /* none = requests with an Origin are refused unless it is
                                           this server's own */
    uint32_t n_allowed_origins;
    _Atomic bool log_prompts;
    _Atomic bool is_ready;    /* models are loaded, the probe has passed */
    _Atomic bool is_draining;
};

/* The model of this name; NULL name = the first. NULL when there is none: call_fail with
 * "model_not_found". */
const server_model_t *server_find_model(const server_t *server, const char *name);
/* Answers for one HTTP exchange: access, route, call (route.c). */
void server_on_head(void *user, http_exchange_t *exchange);
void server_on_request(void *user, http_exchange_t *exchange);
void server_on_done(void *user, const http_request_t *request, int status, uint64_t n_bytes);

#endif
