/* call.c: one call and its one answer: to the client, or into a slot of the call or batch that it
 * belongs to. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "call_impl.h"

/* ---- gathering ------------------------------------------------------------------------------- */

rpc_gather_t *rpc_gather_create(rpc_conn_t *conn, rpc_call_t *parent, uint32_t n_slots) {
    rpc_gather_t *gather = calloc(1, sizeof *gather);
    kri_buffer_t *slots = calloc(n_slots, sizeof *slots);
    if (gather == NULL || slots == NULL || pthread_mutex_init(&gather->mutex, NULL) != 0) {
        free(gather);
        free(slots);
        return NULL;
    }
    gather->conn = conn;
    gather->parent = parent;
    gather->slots = slots;
    gather->n_slots = n_slots;
    gather->n_left = n_slots + 1;
    gather->n_bytes_left = RPC_RESULT_BYTES_MAX;
    for (uint32_t i = 0; i < n_slots; i++) kri_buffer_init(&slots[i], RPC_RESULT_BYTES_MAX);
    rpc_conn_retain(conn);
    return gather;
}

static void put_slots(const rpc_gather_t *gather, kri_buffer_t *out) {
    bool is_first = true;
    for (uint32_t i = 0; i < gather->n_slots; i++) {
        const kri_buffer_t *slot = &gather->slots[i];
        if (slot->n_bytes == 0) continue; /* of a notification */
        if (!is_first) (void)kri_buffer_append(out, ",", 1);
        (void)kri_buffer_append(out, slot->data, slot->n_bytes);
        is_first = false;
    }
}

static void end_gather(rpc_gather_t *gather) {
    kri_buffer_t out;
    kri_buffer_init(&out, 2 * RPC_RESULT_BYTES_MAX);
    if (gather->parent != NULL && gather->is_short) {
        rpc_fail_status(gather->parent, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
    } else if (gather->parent != NULL) {
        (void)kri_buffer_printf(&out, "{\"results\":[");
        put_slots(gather, &out);
        (void)kri_buffer_append(&out, "]}", 2);
        rpc_reply(gather->parent, &out);
    } else {
        (void)kri_buffer_append(&out, "[", 1);
        put_slots(gather, &out);
        (void)kri_buffer_append(&out, "]", 1);
        if (out.n_bytes > 2 && out.status == KR_OK) {
            rpc_conn_put(gather->conn, out.data, out.n_bytes);
        }
    }
    kri_buffer_deinit(&out);
    for (uint32_t i = 0; i < gather->n_slots; i++) kri_buffer_deinit(&gather->slots[i]);
    free(gather->slots);
    (void)pthread_mutex_destroy(&gather->mutex);
    rpc_conn_release(gather->conn);
    free(gather);
}

void rpc_gather_leave(rpc_gather_t *gather) {
    (void)pthread_mutex_lock(&gather->mutex);
    const bool is_last = --gather->n_left == 0;
    (void)pthread_mutex_unlock(&gather->mutex);
    if (is_last) end_gather(gather);
}

void rpc_gather_put(rpc_gather_t *gather, uint32_t slot, kri_buffer_t *text) {
    (void)pthread_mutex_lock(&gather->mutex);
    const bool fits = text->status == KR_OK && text->n_bytes <= gather->n_bytes_left;
    if (fits) gather->n_bytes_left -= text->n_bytes;
    (void)pthread_mutex_unlock(&gather->mutex);
    if (fits) {
        kri_buffer_deinit(&gather->slots[slot]); /* a slot is one call's */
        gather->slots[slot] = *text;
        kri_buffer_init(text, RPC_RESULT_BYTES_MAX);
    }
    rpc_gather_leave(gather);
}

bool rpc_gather_fits(rpc_gather_t *gather, size_t n_bytes) {
    (void)pthread_mutex_lock(&gather->mutex);
    const bool fits = n_bytes <= gather->n_bytes_left;
    (void)pthread_mutex_unlock(&gather->mutex);
    return fits;
}

/* ---- documents ----------------------------------------------------------------------------- */

rpc_doc_t *rpc_doc_create(json_t *root) {
    rpc_doc_t *doc = malloc(sizeof *doc);
    if (doc == NULL) {
        json_decref(root);
        return NULL;
    }
    atomic_init(&doc->n_refs, 1);
    doc->root = root;
    return doc;
}

void rpc_doc_retain(rpc_doc_t *doc) { atomic_fetch_add(&doc->n_refs, 1); }

void rpc_doc_release(rpc_doc_t *doc) {
    if (atomic_fetch_sub(&doc->n_refs, 1) != 1) return;
    json_decref(doc->root);
    free(doc);
}

/* ---- answers --------------------------------------------------------------------------------- */

void rpc_call_stop_generating(rpc_call_t *call) {
    if (!call->is_generating) return;
    call->is_generating = false;
    rpc_conn_t *conn = call->conn;
    (void)pthread_mutex_lock(&conn->lock);
    if (--conn->n_generating == 0) conn->n_early = 0;
    (void)pthread_mutex_unlock(&conn->lock);
}

static void free_call(rpc_call_t *call) {
    rpc_doc_release(call->doc);
    free(call->id);
    rpc_conn_release(call->conn);
    free(call);
}

/* Hands the text over and frees the call. Who has the answer may count on the place that the call
 * had, or on that of the stream which goes on: all of it changes in one. */
static void answer(rpc_call_t *call, kri_buffer_t *text) {
    rpc_conn_t *conn = call->conn;
    if (call->gather != NULL) {
        if (call->answer == RPC_ANSWER_NONE) kri_buffer_clear(text);
        rpc_gather_put(call->gather, call->slot, text);
    }
    rpc_call_stop_generating(call);
    (void)pthread_mutex_lock(&conn->lock);
    if (call->gather == NULL && call->answer == RPC_ANSWER_RESPONSE) {
        rpc_conn_put_locked(conn, text->data, text->n_bytes);
    }
    if (call->answer != RPC_ANSWER_ITEM) conn->n_calls--;
    if (call->stream != NULL) rpc_stream_announce_locked(call->stream);
    const bool is_last = conn->n_calls == 0;
    (void)pthread_mutex_unlock(&conn->lock);
    if (is_last) rpc_loop_wake(conn->rpc); /* it may wait for that to end */
    kri_buffer_deinit(text);
    free_call(call);
}

static void put_head(const rpc_call_t *call, const char *name, kri_buffer_t *text) {
    kri_buffer_init(text, RPC_RESULT_BYTES_MAX + 1024);
    if (call->answer == RPC_ANSWER_ITEM) {
        (void)kri_buffer_printf(text, "{\"success\":%s,\"%s\":",
                                strcmp(name, "result") == 0 ? "true" : "false", name);
    } else {
        (void)kri_buffer_printf(text, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"%s\":",
                                call->id != NULL ? call->id : "null", name);
    }
}

static const char no_memory[] =
    "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32099,\"message\":\"out of memory\","
    "\"data\":{\"type\":\"RuntimeError\",\"kr_status\":9,\"param\":null}}}";

void rpc_fail_error(rpc_call_t *call, const rpc_error_t *error) {
    rpc_t *rpc = call->rpc;
    kri_buffer_t text;
    atomic_fetch_add(&rpc->n_errors, 1);
    if (error->status == KR_E_TIMEOUT) atomic_fetch_add(&rpc->n_timeouts, 1);
    put_head(call, "error", &text);
    rpc_error_put(error, &text);
    (void)kri_buffer_printf(&text, call->answer == RPC_ANSWER_ITEM ? ",\"result\":null}" : "}");
    if (text.status != KR_OK) {
        kri_buffer_clear(&text);
        (void)kri_buffer_append(&text, no_memory, sizeof no_memory - 1);
    }
    answer(call, &text);
}

void rpc_reply(rpc_call_t *call, const kri_buffer_t *result) {
    kri_buffer_t text;
    put_head(call, "result", &text);
    (void)kri_buffer_append(&text, result->data, result->n_bytes);
    (void)kri_buffer_printf(&text, call->answer == RPC_ANSWER_ITEM ? ",\"error\":null}" : "}");
    kr_status_t status = result->status != KR_OK ? result->status : text.status;
    if (status == KR_OK && call->gather != NULL && !rpc_gather_fits(call->gather, text.n_bytes)) {
        status = KR_E_LIMIT;
    }
    if (status == KR_OK) {
        answer(call, &text);
        return;
    }
    kri_buffer_deinit(&text);
    rpc_fail(call, RPC_E_RUNTIME, status, NULL,
             status == KR_E_LIMIT ? "the answer would have more than 256 MiB"
                                  : "no memory for the answer");
}

void rpc_reply_text(rpc_call_t *call, const char *result) {
    kri_buffer_t text;
    kri_buffer_init(&text, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_append(&text, result, strlen(result));
    rpc_reply(call, &text);
    kri_buffer_deinit(&text);
}

void rpc_fail(rpc_call_t *call, int code, kr_status_t status, const char *param,
              const char *format, ...) {
    char message[512];
    rpc_error_t error;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    rpc_error_set(&error, code, status, param, "%s", message);
    rpc_fail_error(call, &error);
}

void rpc_fail_status(rpc_call_t *call, int family, kr_status_t status, const kr_error_t *library) {
    rpc_error_t error;
    rpc_error_of_status(&error, family, status, library);
    rpc_fail_error(call, &error);
}

bool rpc_fail_mistake(rpc_call_t *call, const json_mistake_t *mistake) {
    if (!mistake->is_set) return false;
    rpc_error_t error;
    rpc_error_of_mistake(&error, mistake);
    rpc_fail_error(call, &error);
    return true;
}

void rpc_open(const rpc_call_t *call, json_reader_t *reader, json_mistake_t *mistake) {
    memset(mistake, 0, sizeof *mistake);
    json_open(reader, call->params, call->path, mistake);
}

void rpc_put_error(rpc_conn_t *conn, const char *id, const rpc_error_t *error) {
    kri_buffer_t text;
    kri_buffer_init(&text, 65536);
    (void)kri_buffer_printf(&text, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":",
                            id != NULL ? id : "null");
    rpc_error_put(error, &text);
    (void)kri_buffer_append(&text, "}", 1);
    if (text.status == KR_OK) rpc_conn_put(conn, text.data, text.n_bytes);
    kri_buffer_deinit(&text);
    atomic_fetch_add(&conn->rpc->n_errors, 1);
}

/* ---- requests[] ------------------------------------------------------------------------------ */

static void run_item(rpc_call_t *parent, rpc_gather_t *gather, const rpc_method_t *method,
                     json_t *value, uint32_t index) {
    rpc_call_t *call = calloc(1, sizeof *call);
    if (call == NULL) {
        gather->is_short = true; /* read behind the last rpc_gather_leave, whose lock orders it */
        rpc_gather_leave(gather);
        return;
    }
    call->rpc = parent->rpc;
    call->conn = parent->conn;
    rpc_conn_retain(call->conn);
    call->method = method;
    call->doc = parent->doc;
    rpc_doc_retain(call->doc);
    call->params = value;
    (void)snprintf(call->path, sizeof call->path, "%.10s%srequests.%u", parent->path,
                   parent->path[0] != '\0' ? "." : "", index);
    call->answer = RPC_ANSWER_ITEM;
    call->gather = gather;
    call->slot = index;
    call->begin_ns = kri_clock_ns();
    method->run(call);
}

void rpc_run_requests(rpc_call_t *call, const char *method) {
    json_mistake_t mistake;
    json_reader_t reader;
    json_t *array = NULL;
    rpc_open(call, &reader, &mistake);
    json_require(&reader, "requests");
    (void)json_read_array(&reader, "requests", 1, RPC_BATCH_MAX, &array);
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    const uint32_t n = (uint32_t)json_array_size(array);
    rpc_gather_t *gather = rpc_gather_create(call->conn, call, n);
    if (gather == NULL) {
        rpc_fail_status(call, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
        return;
    }
    const rpc_method_t *row = rpc_method_find(method);
    for (uint32_t i = 0; i < n; i++) run_item(call, gather, row, json_array_get(array, i), i);
    rpc_call_stop_generating(call);
    rpc_gather_leave(gather);
}
