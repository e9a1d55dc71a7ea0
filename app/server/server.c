/* server.c: the parts of a server, put together and taken apart again. */
#include "server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/utf8.h"
#include "clients.h"
#include "job.h"
#include "keys.h"
#include "log.h"
#include "prometheus.h"
#include "probe.h"
#include "pump.h"
#include "responses_store.h"

#define BODIES_BYTES_MAX ((uint64_t)1 << 30)
#define END_MS 10000u /* for jobs to end once they are told to */

kr_status_t server_create(const kr_engine_params_t *params, server_t **server,
                          kr_error_t *error) {
    server_t *made = calloc(1, sizeof *made);
    if (made == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the server");
    kr_engine_params_t defaults;
    kr_engine_params_init(&defaults);
    kr_status_t status = clients_create(&made->clients);
    if (status == KR_OK) {
        status = kr_engine_create(params != NULL ? params : &defaults, &made->engine, error);
    }
    if (status != KR_OK) {
        clients_destroy(made->clients);
        free(made);
        return status;
    }
    made->telemetry = params != NULL ? params->telemetry : NULL;
    made->deadline_ms = 600000;
    made->is_loopback = true;
    made->body_bytes_max = (uint64_t)16 << 20;
    made->bodies_bytes_max = BODIES_BYTES_MAX;
    *server = made;
    return KR_OK;
}

/* ---- models -------------------------------------------------------------------------------- */

static kr_status_t check_name(const server_t *server, const char *name, kr_error_t *error) {
    const size_t n = strlen(name);
    if (n < 1 || n > sizeof server->models[0].name - 1 || kri_utf8_valid_prefix(name, n) != n) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "name", "a model's name has 1 to 255 bytes");
    }
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "name", "a model's name is one line of text");
        }
    }
    if (server_find_model(server, name) != NULL) {
        return KRI_FAIL(error, KR_E_EXISTS, "name", "two models are called '%s'", name);
    }
    if (server->n_models == SERVER_MODELS_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "model", "at most %d models", SERVER_MODELS_MAX);
    }
    return KR_OK;
}

kr_status_t server_add_model(server_t *server, const char *name, const char *path,
                             kr_model_t model, const kr_session_params_t *params,
                             kr_error_t *error) {
    KR_TRY(check_name(server, name, error));
    server_model_t *row = &server->models[server->n_models];
    memset(row, 0, sizeof *row);
    (void)snprintf(row->name, sizeof row->name, "%s", name);
    (void)snprintf(row->path, sizeof row->path, "%s", path);
    kr_model_info_init(&row->info);
    KR_TRY(kr_model_info(model, &row->info));
    kr_session_info_init(&row->session);
    KR_TRY(kr_session_plan(model, params, &row->session, error));
    KR_TRY(kr_engine_add_model(server->engine, name, model, params, error));
    kr_model_retain(model);
    row->model = model;
    row->created = (int64_t)time(NULL);
    server->n_models++;
    return KR_OK;
}

const server_model_t *server_find_model(const server_t *server, const char *name) {
    for (uint32_t i = 0; i < server->n_models; i++) {
        if (name == NULL || strcmp(server->models[i].name, name) == 0) return &server->models[i];
    }
    return NULL;
}

/* ---- life ---------------------------------------------------------------------------------- */

kr_status_t server_listen(server_t *server, http_params_t *params, kr_error_t *error) {
    params->on_head = server_on_head;
    params->on_request = server_on_request;
    params->on_done = server_on_done;
    params->user = server;
    return http_server_start(params, &server->http, error);
}

kr_status_t server_begin(server_t *server, kr_error_t *error) {
    KR_TRY(pump_start(server, error));
    if (server->http != NULL) KR_TRY(probe_start(server, error));
    atomic_store(&server->is_loaded, true);
    return KR_OK;
}

bool server_is_ready(const server_t *server) {
    if (!atomic_load(&server->is_loaded) || atomic_load(&server->is_draining) ||
        atomic_load(&server->is_lost)) {
        return false;
    }
    const uint64_t token_ns = atomic_load(&server->token_ns), now_ns = kri_clock_ns();
    return token_ns != 0 && (now_ns < token_ns || now_ns - token_ns <= PROBE_FRESH_MS * 1000000ull);
}

void server_lose_device(server_t *server) {
    if (atomic_exchange(&server->is_lost, true) || server->control == NULL) return;
    server->control->lose();
}

/* Clients have been cut; what still runs for them ends here. */
static void end_jobs(void) {
    const struct timespec pause = {.tv_nsec = 5000000};
    const uint64_t begin_ns = kri_clock_ns();
    job_abort_all(KR_E_SHUTTING_DOWN);
    while (job_count() > 0 && kri_clock_ns() - begin_ns < END_MS * 1000000ull) {
        (void)nanosleep(&pause, NULL);
    }
}

void server_destroy(server_t *server) {
    if (server == NULL) return;
    atomic_store(&server->is_draining, true);
    probe_stop(server);
    (void)kr_engine_drain(server->engine, 0); /* nothing new is taken */
    if (server->pump != NULL) {
        end_jobs();
        pump_stop(server);
    }
    http_server_destroy(server->http); /* behind the pump, which flushes it */
    kr_engine_destroy(server->engine);
    for (uint32_t i = 0; i < server->n_models; i++) kr_model_close(server->models[i].model);
    kr_telemetry_destroy(server->telemetry);
    counters_destroy(server->counters);
    keys_destroy(server->keys);
    clients_destroy(server->clients);
    responses_store_destroy(server->responses);
    free(server);
}
