/* dispatch.c: from a parsed line to the methods that it names. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "call_impl.h"
#include "shared.h"

#define WORKER RPC_WORKER
#define QUICK RPC_QUICK
#define LOADER RPC_LOADER
#define GENERATES RPC_GENERATES
static const rpc_method_t methods[] = {
#define KR_RPC(id, name, flags) {name, flags, rpc_method_##id},
#include "methods.def"
};
#define N_METHODS (sizeof methods / sizeof methods[0])

static const struct { const char *name, *why; } later[] = {
#define KR_RPC_LATER(name, why) {name, why},
#include "methods.def"
};

const rpc_method_t *rpc_method_at(uint32_t index) {
    return index < N_METHODS ? &methods[index] : NULL;
}

const rpc_method_t *rpc_method_find(const char *name) {
    for (size_t i = 0; i < N_METHODS; i++) {
        if (strcmp(methods[i].name, name) == 0) return &methods[i];
    }
    return NULL;
}

const char *rpc_method_later(const char *name) {
    for (size_t i = 0; i < sizeof later / sizeof later[0]; i++) {
        if (strcmp(later[i].name, name) == 0) return later[i].why;
    }
    return NULL;
}

static void run_task(rpc_conn_t *conn, void *user) {
    rpc_call_t *call = user;
    if (conn != NULL) call->method->run(call);
    else rpc_fail_status(call, RPC_E_SERVER, KR_E_SHUTTING_DOWN, NULL);
}

static void run_call(rpc_call_t *call, bool may_run) {
    const uint32_t flags = call->method->flags;
    bool is_pushed = true;
    /* Short messages may bring much beside them. */
    const bool is_quick = (flags & QUICK) && !rpc_shared_is_in(call->params);
    if (flags & LOADER) {
        is_pushed = rpc_work_push_load(call->rpc, call->conn, run_task, call);
    } else if (may_run || is_quick) {
        call->method->run(call);
    } else {
        is_pushed = rpc_work_push(call->rpc, call->conn, run_task, call);
    }
    if (!is_pushed) rpc_fail_status(call, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
}

/* Counts it among what the client has in flight. */
static bool enter(rpc_call_t *call) {
    rpc_conn_t *conn = call->conn;
    (void)pthread_mutex_lock(&conn->lock);
    const bool has_place = conn->n_calls + conn->n_open < RPC_IN_FLIGHT_MAX ||
                           (call->method != NULL && (call->method->flags & QUICK) != 0);
    conn->n_calls++;
    if (call->method != NULL && (call->method->flags & GENERATES)) {
        call->is_generating = true;
        conn->n_generating++;
    }
    (void)pthread_mutex_unlock(&conn->lock);
    atomic_fetch_add(&conn->rpc->n_calls, 1);
    return has_place;
}

static void refuse_method(rpc_call_t *call, const char *name) {
    const char *why = rpc_method_later(name);
    if (why != NULL) {
        rpc_fail(call, RPC_E_METHOD, KR_E_UNSUPPORTED, "method", "%s: %s", name, why);
    } else {
        rpc_fail(call, RPC_E_METHOD, KR_E_NOT_FOUND, "method", "there is no method '%.64s'", name);
    }
}

static void dispatch_one(rpc_conn_t *conn, rpc_doc_t *doc, json_t *value, rpc_gather_t *gather,
                         uint32_t slot, bool may_run) {
    rpc_message_t message;
    rpc_error_t error;
    rpc_call_t *call = calloc(1, sizeof *call);
    const bool is_good = rpc_message_read(value, &message, &error);
    if (call == NULL) {
        rpc_error_set(&error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
        rpc_put_error(conn, message.id, &error);
        rpc_message_deinit(&message);
        if (gather != NULL) rpc_gather_leave(gather);
        return;
    }
    call->rpc = conn->rpc;
    call->conn = conn;
    rpc_conn_retain(conn);
    call->doc = doc;
    rpc_doc_retain(doc);
    call->params = message.params;
    call->id = message.id;
    /* What is no request is answered too: its sender waits. */
    call->answer = message.has_id || !is_good ? RPC_ANSWER_RESPONSE : RPC_ANSWER_NONE;
    call->gather = gather;
    call->slot = slot;
    call->begin_ns = kri_clock_ns();
    call->method = is_good ? rpc_method_find(message.method) : NULL;
    const bool has_place = enter(call);
    if (!is_good) rpc_fail_error(call, &error);
    else if (call->method == NULL) refuse_method(call, message.method);
    else if (has_place) run_call(call, may_run);
    else rpc_fail(call, RPC_E_SERVER, KR_E_BUSY, NULL, "%u calls and streams are in flight: wait "
                  "for some to end", RPC_IN_FLIGHT_MAX);
}

static void refuse_all(rpc_conn_t *conn) {
    rpc_error_t error;
    rpc_error_set(&error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
    rpc_put_error(conn, NULL, &error);
}

void rpc_dispatch(rpc_conn_t *conn, json_t *root, bool may_run) {
    rpc_doc_t *doc = rpc_doc_create(root);
    if (doc == NULL) {
        refuse_all(conn);
        return;
    }
    if (!json_is_array(root)) {
        dispatch_one(conn, doc, root, NULL, 0, may_run);
        rpc_doc_release(doc);
        return;
    }
    const uint32_t n = (uint32_t)json_array_size(root); /* RPC_BATCH_MAX at most */
    rpc_gather_t *gather = rpc_gather_create(conn, NULL, n);
    if (gather == NULL) refuse_all(conn);
    for (uint32_t i = 0; gather != NULL && i < n; i++) {
        dispatch_one(conn, doc, json_array_get(root, i), gather, i, may_run);
    }
    if (gather != NULL) rpc_gather_leave(gather);
    rpc_doc_release(doc);
}
