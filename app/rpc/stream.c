/* stream.c: a generation behind a call: streamed as notifications, or answered as a whole.
 *
 * Who holds a stream: the starter until it is submitted and announced, and the pump until its last
 * event. The client's list has it in between, under the client's lock; what is rendered belongs to
 * the pump alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "inner.h"
#include "stream_impl.h"

/* ---- life ------------------------------------------------------------------------------------ */

void rpc_stream_release(rpc_stream_t *stream) {
    if (atomic_fetch_sub(&stream->n_refs, 1) != 1) return;
    kr_request_release(stream->handle);
    kr_detokenizer_destroy(stream->detokenizer);
    kri_buffer_deinit(&stream->last_text);
    kri_buffer_deinit(&stream->last_tops);
    kri_buffer_deinit(&stream->entries);
    kri_buffer_deinit(&stream->text);
    kri_buffer_deinit(&stream->held);
    free(stream->stop_tokens);
    rpc_model_end_stream(stream->rpc, stream->model);
    rpc_conn_release(stream->conn);
    free(stream);
}

static rpc_stream_t *create(rpc_call_t *call, rpc_generation_t *generation) {
    rpc_stream_t *stream = calloc(1, sizeof *stream);
    if (stream == NULL) return NULL;
    atomic_init(&stream->n_refs, 1);
    stream->user.take = rpc_stream_take;
    stream->rpc = call->rpc;
    stream->conn = call->conn;
    rpc_conn_retain(stream->conn);
    stream->model = generation->model;
    stream->is_stream = generation->is_stream;
    stream->has_logprobs = generation->has_logprobs;
    stream->n_tops = generation->n_tops;
    stream->stop_tokens = (kr_token_t *)(uintptr_t)generation->stop_tokens;
    stream->n_stop_tokens = generation->n_stop_tokens;
    stream->granted = generation->credits > 0 ? generation->credits : UINT64_MAX / 2;
    stream->given = stream->granted < RPC_WINDOW ? stream->granted : RPC_WINDOW;
    memcpy(stream->id, generation->stream_id, sizeof stream->id);
    kr_error_init(&stream->error);
    kri_buffer_init(&stream->last_text, RPC_TEXT_BYTES_MAX);
    kri_buffer_init(&stream->last_tops, RPC_TEXT_BYTES_MAX);
    kri_buffer_init(&stream->entries, RPC_TEXT_BYTES_MAX);
    kri_buffer_init(&stream->text, RPC_TEXT_BYTES_MAX);
    kri_buffer_init(&stream->held, RPC_TEXT_BYTES_MAX);
    stream->created_ns = kri_clock_ns();
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    stream->started_at = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    return stream;
}

static rpc_stream_t *find_locked(rpc_conn_t *conn, const char *id) {
    for (rpc_stream_t *stream = conn->streams; stream != NULL; stream = stream->next) {
        if (strcmp(stream->id, id) == 0) return stream;
    }
    return NULL;
}

static bool is_early_locked(const rpc_conn_t *conn, const char *id) {
    for (uint32_t i = 0; i < conn->n_early; i++) {
        if (strcmp(conn->early[i], id) == 0) return true;
    }
    return false;
}

static kr_status_t enter(rpc_stream_t *stream, kr_error_t *error) {
    rpc_conn_t *conn = stream->conn;
    kr_status_t status = KR_OK;
    (void)pthread_mutex_lock(&conn->lock);
    if (atomic_load(&stream->rpc->is_ending)) {
        status = KR_E_SHUTTING_DOWN;
    } else if (find_locked(conn, stream->id) != NULL) {
        status = KRI_FAIL(error, KR_E_EXISTS, "stream_id", "stream_id '%.128s' is running",
                          stream->id);
    } else if (conn->n_streams >= RPC_IN_FLIGHT_MAX) {
        status = KRI_FAIL(error, KR_E_BUSY, NULL, "%u generations are in flight: wait for some to "
                          "end", RPC_IN_FLIGHT_MAX);
    } else {
        stream->is_cancelled = conn->is_broken || is_early_locked(conn, stream->id);
        stream->next = conn->streams;
        if (stream->next != NULL) stream->next->prev = stream;
        conn->streams = stream;
        conn->n_streams++;
        atomic_fetch_add(&stream->rpc->n_streams, 1);
    }
    (void)pthread_mutex_unlock(&conn->lock);
    return status;
}

void rpc_stream_leave_locked(rpc_stream_t *stream) {
    rpc_conn_t *conn = stream->conn;
    if (stream->prev != NULL) stream->prev->next = stream->next;
    else conn->streams = stream->next;
    if (stream->next != NULL) stream->next->prev = stream->prev;
    conn->n_streams--;
    if (stream->is_open) conn->n_open--;
    stream->is_open = false;
    atomic_fetch_sub(&stream->rpc->n_streams, 1);
    if (conn->n_streams == 0) rpc_loop_wake(stream->rpc);
}

/* ---- start ----------------------------------------------------------------------------------- */

static void fill_params(const rpc_stream_t *stream, const rpc_generation_t *generation,
                        kr_sampler_params_t *sampler, kr_request_params_t *params) {
    *sampler = generation->sampler;
    if (generation->has_logprobs) sampler->n_logprobs = generation->n_tops > 0 ? generation->n_tops
                                                                              : 1;
    kr_request_params_init(params);
    params->n_segments = 1;
    params->segments = &generation->segment;
    params->model = generation->model->name;
    params->sampler = sampler;
    params->stops = generation->stops;
    params->n_stops = generation->n_stops;
    params->n_choices = 1;
    params->n_tokens_max = generation->n_tokens_max;
    params->ignore_end = generation->ignore_end ? 1 : 0;
    params->priority = generation->priority;
    params->deadline_ms = generation->deadline_ms;
    params->credits = stream->is_stream ? (uint32_t)stream->given : 0;
    if (generation->no_cache) { /* nobody has a prefix under a salt of its own */
        (void)!getrandom(&params->cache_salt, sizeof params->cache_salt, 0);
    }
}

static kr_status_t submit(rpc_stream_t *stream, const rpc_generation_t *generation,
                          kr_error_t *error) {
    kr_sampler_params_t sampler;
    kr_request_params_t params;
    if (stream->n_stop_tokens > 0) {
        KR_TRY(kr_detokenizer_create(stream->model->model, NULL, 0, &stream->detokenizer, error));
    }
    fill_params(stream, generation, &sampler, &params);
    params.user = &stream->user;
    atomic_fetch_add(&stream->n_refs, 1); /* the pump's */
    const kr_status_t status = kr_engine_submit(stream->rpc->server->engine, &params,
                                                &stream->handle, error);
    if (status != KR_OK) atomic_fetch_sub(&stream->n_refs, 1); /* never the last */
    return status;
}

/* The library's names of fields are not those of the request. */
static void rename_param(const char *prompt_name, kr_error_t *error) {
    static const char *const names[][2] = {
        {"stops", "stop_sequences"}, {"n_stops", "stop_sequences"}, {"n_tokens_max", "max_tokens"},
        {"repeat_penalty", "repetition_penalty"}, {"n_logit_bias", "logit_bias"},
        {"deadline_ms", "timeout_ms"}, {"n_logprobs", "top_logprobs"}, {"model", "model_id"}};
    static const char *const prompts[] = {"segments", "tokens", "text", "messages", "type",
                                          "content", "role", "n_segments"};
    const char *name = NULL;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(error->param, names[i][0]) == 0) name = names[i][1];
    }
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
        if (strcmp(error->param, prompts[i]) == 0) name = prompt_name;
    }
    if (name != NULL) (void)snprintf(error->param, sizeof error->param, "%s", name);
}

static void refuse(rpc_call_t *call, const rpc_generation_t *generation, kr_status_t status,
                   kr_error_t *error) {
    rpc_error_t failure;
    /* Unloaded between two looks. */
    const bool is_gone = status == KR_E_NOT_FOUND && strcmp(error->param, "model") == 0;
    rename_param(generation->prompt_name, error);
    rpc_error_of_status(&failure, is_gone ? RPC_E_NOT_LOADED : RPC_E_GENERATION, status, error);
    if (status == KR_E_EXISTS) failure.code = RPC_E_PARAMS;
    (void)snprintf(failure.model_id, sizeof failure.model_id, "%s", generation->model->name);
    rpc_fail_error(call, &failure);
}

static void reply_started(rpc_call_t *call, rpc_stream_t *stream) {
    kri_buffer_t out;
    call->stream = stream;
    kri_buffer_init(&out, 4096);
    (void)kri_buffer_printf(&out, "{\"stream_id\":");
    (void)json_put_string(&out, stream->id, strlen(stream->id));
    (void)kri_buffer_printf(&out, ",\"started_at\":%.6f}", stream->started_at);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

void rpc_stream_announce_locked(rpc_stream_t *stream) {
    rpc_conn_t *conn = stream->conn;
    stream->is_announced = true;
    if (!stream->is_over) {
        stream->is_open = true;
        conn->n_open++;
    }
    if (stream->held.n_bytes > 1) { /* its last newline is put again */
        rpc_conn_put_locked(conn, stream->held.data, stream->held.n_bytes - 1);
    }
}

static void grant_locked(rpc_stream_t *stream) {
    if (!stream->is_submitted || !stream->is_stream) return;
    uint64_t allowed = stream->n_taken + RPC_WINDOW;
    if (allowed > stream->granted) allowed = stream->granted;
    if (allowed <= stream->given) return;
    (void)kr_request_add_credits(stream->handle, (uint32_t)(allowed - stream->given));
    stream->given = allowed;
}

static void mark_submitted(rpc_stream_t *stream) {
    rpc_conn_t *conn = stream->conn;
    (void)pthread_mutex_lock(&conn->lock);
    stream->is_submitted = true;
    if (stream->is_cancelled) kr_request_cancel(stream->handle);
    grant_locked(stream); /* what was taken and allowed since it was submitted */
    (void)pthread_mutex_unlock(&conn->lock);
}

static void take_back(rpc_stream_t *stream) {
    (void)pthread_mutex_lock(&stream->conn->lock);
    rpc_stream_leave_locked(stream);
    (void)pthread_mutex_unlock(&stream->conn->lock);
}

void rpc_stream_start(rpc_call_t *call, rpc_generation_t *generation) {
    kr_error_t error;
    kr_error_init(&error);
    rpc_stream_t *stream = create(call, generation);
    if (stream == NULL) {
        free((void *)(uintptr_t)generation->stop_tokens);
        rpc_model_end_stream(call->rpc, generation->model);
        rpc_fail_status(call, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
        return;
    }
    const bool is_stream = stream->is_stream;
    kr_status_t status = enter(stream, &error);
    rpc_call_stop_generating(call);
    if (status == KR_OK) {
        if (!is_stream) stream->call = call;
        status = submit(stream, generation, &error);
        if (status != KR_OK) take_back(stream);
    }
    if (status != KR_OK) {
        refuse(call, generation, status, &error);
        rpc_stream_release(stream);
        return;
    }
    atomic_fetch_add(&stream->rpc->n_streams_ever, 1);
    mark_submitted(stream);
    if (is_stream) reply_started(call, stream);
    rpc_stream_release(stream);
}

/* ---- while it runs --------------------------------------------------------------------------- */

static void cancel_locked(rpc_stream_t *stream, kr_status_t why) {
    if (!stream->is_cancelled) stream->is_shut_down = why == KR_E_SHUTTING_DOWN;
    stream->is_cancelled = true;
    if (stream->is_submitted) kr_request_cancel(stream->handle);
}

bool rpc_stream_cancel(rpc_conn_t *conn, const char *id) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_stream_t *stream = find_locked(conn, id);
    bool is_there = stream != NULL;
    if (is_there) {
        cancel_locked(stream, KR_E_CANCELLED);
    } else if (conn->n_generating > 0 && conn->n_early < RPC_IN_FLIGHT_MAX) {
        /* Its generate may be on the way still. */
        if (conn->early == NULL) conn->early = calloc(RPC_IN_FLIGHT_MAX, sizeof *conn->early);
        is_there = conn->early != NULL;
        if (is_there) {
            (void)snprintf(conn->early[conn->n_early++], sizeof conn->early[0], "%s", id);
        }
    }
    (void)pthread_mutex_unlock(&conn->lock);
    return is_there;
}

bool rpc_stream_credit(rpc_conn_t *conn, const char *id, uint32_t n) {
    (void)pthread_mutex_lock(&conn->lock);
    rpc_stream_t *stream = find_locked(conn, id);
    if (stream != NULL && stream->granted < UINT64_MAX / 2) {
        stream->granted += n; /* what a process can live to see fits */
        grant_locked(stream);
    }
    (void)pthread_mutex_unlock(&conn->lock);
    return stream != NULL;
}

void rpc_streams_cancel_locked(rpc_conn_t *conn, kr_status_t why) {
    for (rpc_stream_t *stream = conn->streams; stream != NULL; stream = stream->next) {
        cancel_locked(stream, why);
    }
    rpc_embeds_cancel_locked(conn);
}

void rpc_streams_resume_locked(rpc_conn_t *conn) {
    for (rpc_stream_t *stream = conn->streams; stream != NULL; stream = stream->next) {
        stream->n_taken = stream->n_sent;
        grant_locked(stream);
    }
}
