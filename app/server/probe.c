/* probe.c: a thread that sleeps until the last token is too old, then asks for one. */
#include "probe.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "endpoints.h"

#define PROBE_DEADLINE_MS 30000u
#define PROBE_AGAIN_MS 1000u /* between two of them at least */

struct probe_s {
    server_t *server;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool is_stopping, is_asked; /* a request is under way */
    uint64_t asked_ns;          /* when the last one began */
    uint32_t next_model;        /* they take turns */
    atomic_uint n_refs;         /* the server's, and that of the request under way */
    char body[1024];            /* of that request */
};

static void release(probe_t *probe) {
    if (atomic_fetch_sub(&probe->n_refs, 1) != 1) return;
    (void)pthread_cond_destroy(&probe->changed);
    (void)pthread_mutex_destroy(&probe->mutex);
    free(probe);
}

/* ---- the sink of the probe's call ------------------------------------------------------------ */

static void on_reply(void *sink, int status, const char *content_type, const char *fields,
                     const char *body, size_t n_bytes) {
    probe_t *probe = sink;
    (void)content_type, (void)fields, (void)body, (void)n_bytes;
    if (status == 200) atomic_store(&probe->server->token_ns, kri_clock_ns());
}

static void on_destroy(void *sink) {
    probe_t *probe = sink;
    pthread_mutex_lock(&probe->mutex);
    probe->is_asked = false;
    pthread_cond_signal(&probe->changed);
    pthread_mutex_unlock(&probe->mutex);
    release(probe);
}

static const call_sink_t probe_sink = {.reply = on_reply, .destroy = on_destroy};

/* ---- the thread ------------------------------------------------------------------------------ */

static void ask(probe_t *probe) {
    static const char path[] = "/v1/completions";
    server_t *server = probe->server;
    const server_model_t *model = &server->models[probe->next_model++ % server->n_models];
    const endpoint_match_t match = endpoint_find("POST", 4, path, sizeof path - 1);
    kri_buffer_t body;
    kri_buffer_init(&body, sizeof probe->body - 1);
    (void)kri_buffer_printf(&body, "{\"prompt\":[%d],\"max_tokens\":1,\"ignore_eos\":true,"
                            "\"temperature\":0,\"priority\":100,\"deadline_ms\":%u,\"model\":",
                            model->info.token_bos >= 0 ? model->info.token_bos : 0,
                            PROBE_DEADLINE_MS);
    (void)json_put_string(&body, model->name, strlen(model->name));
    (void)kri_buffer_append(&body, "}", 1);
    (void)snprintf(probe->body, sizeof probe->body, "%s", body.data != NULL ? body.data : "");
    kri_buffer_deinit(&body);
    const call_params_t params = {.server = server, .endpoint = match.endpoint, .id = "probe",
                                  .principal = {.scopes = SCOPE_GENERATE}, .body = probe->body,
                                  .body_bytes = strlen(probe->body), .tail = "",
                                  .sink = &probe_sink, .sink_user = probe};
    call_t *call = call_create(&params);
    if (call == NULL) return;
    match.endpoint->run(call);
    call_release(call);
}

/* How long something that happened at then_ns (0 = never) is younger than age_ms. */
static uint64_t left_ns(uint64_t then_ns, uint64_t now_ns, uint32_t age_ms) {
    if (then_ns == 0) return 0;
    const uint64_t until_ns = then_ns + age_ms * 1000000ull;
    return until_ns > now_ns ? until_ns - now_ns : 0;
}

/* How long to sleep; 0 = it is time to ask. A probe that fails at once is not repeated at once. */
static uint64_t wait_ns(const probe_t *probe) {
    const uint64_t now_ns = kri_clock_ns();
    const uint64_t fresh_ns = left_ns(atomic_load(&probe->server->token_ns), now_ns, PROBE_IDLE_MS);
    const uint64_t again_ns = left_ns(probe->asked_ns, now_ns, PROBE_AGAIN_MS);
    return fresh_ns > again_ns ? fresh_ns : again_ns;
}

static void *probe_main(void *arg) {
    probe_t *probe = arg;
    pthread_mutex_lock(&probe->mutex);
    while (!probe->is_stopping) {
        const uint64_t ns = wait_ns(probe);
        if (probe->is_asked) {
            pthread_cond_wait(&probe->changed, &probe->mutex);
        } else if (ns > 0) {
            struct timespec until;
            (void)clock_gettime(CLOCK_MONOTONIC, &until);
            const uint64_t end_ns = (uint64_t)until.tv_nsec + ns;
            until.tv_sec += (time_t)(end_ns / 1000000000u);
            until.tv_nsec = (long)(end_ns % 1000000000u);
            (void)pthread_cond_timedwait(&probe->changed, &probe->mutex, &until);
        } else {
            probe->is_asked = true;
            probe->asked_ns = kri_clock_ns();
            atomic_fetch_add(&probe->n_refs, 1);
            pthread_mutex_unlock(&probe->mutex);
            ask(probe);
            pthread_mutex_lock(&probe->mutex);
        }
    }
    pthread_mutex_unlock(&probe->mutex);
    return NULL;
}

kr_status_t probe_start(server_t *server, kr_error_t *error) {
    probe_t *probe = calloc(1, sizeof *probe);
    if (probe == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the probe");
    probe->server = server;
    atomic_init(&probe->n_refs, 1);
    pthread_condattr_t attributes;
    pthread_attr_t stack;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&probe->mutex, NULL);
    (void)pthread_cond_init(&probe->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    (void)pthread_attr_init(&stack);
    (void)pthread_attr_setstacksize(&stack, (size_t)4 << 20); /* kr_engine_submit needs 2 MiB */
    const int failed = pthread_create(&probe->thread, &stack, probe_main, probe);
    (void)pthread_attr_destroy(&stack);
    if (failed != 0) {
        release(probe);
        return KRI_FAIL(error, KR_E_IO, NULL, "cannot start the thread of the probe");
    }
    server->probe = probe;
    return KR_OK;
}

void probe_stop(server_t *server) {
    probe_t *probe = server->probe;
    if (probe == NULL) return;
    pthread_mutex_lock(&probe->mutex);
    probe->is_stopping = true;
    pthread_cond_signal(&probe->changed);
    pthread_mutex_unlock(&probe->mutex);
    (void)pthread_join(probe->thread, NULL);
    server->probe = NULL;
    release(probe);
}
