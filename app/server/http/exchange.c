/* exchange.c: the side of a request that every thread may use. */
#include "server/http/internal.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

/* Called on the I/O thread while the watcher is told something. */
static _Thread_local const http_exchange_t *calling;

/* ---- life ------------------------------------------------------------------------------------ */

static http_exchange_t *create(http_server_t *server, http_conn_t *conn) {
    http_exchange_t *exchange = kri_calloc(1, sizeof *exchange, "http exchange");
    if (exchange == NULL) return NULL;
    if (pthread_mutex_init(&exchange->mutex, NULL) != 0) goto no_mutex;
    if (pthread_cond_init(&exchange->called, NULL) != 0) goto no_cond;
    atomic_init(&exchange->n_refs, 1);
    exchange->server = server;
    exchange->conn = conn;
    exchange->minor = 1;
    exchange->request.begin_ns = conn->begin_ns;
    (void)snprintf(exchange->request.peer, sizeof exchange->request.peer, "%s", conn->peer);
    exchange->request.client = conn->client;
    http_id_create(server, exchange->request.id);
    kri_buffer_init(&exchange->body, 0);
    kri_buffer_init(&exchange->out, SIZE_MAX);
    atomic_fetch_add(&server->n_exchanges, 1);
    return exchange;
no_cond:
    (void)pthread_mutex_destroy(&exchange->mutex);
no_mutex:
    kri_free(exchange);
    return NULL;
}

http_exchange_t *http_exchange_create_bare(http_server_t *server, http_conn_t *conn) {
    http_exchange_t *exchange = create(server, conn);
    if (exchange != NULL) exchange->must_close = true;
    return exchange;
}

static bool is_id(http_text_t id) {
    if (id.n_bytes < 1 || id.n_bytes > 64) return false;
    for (size_t i = 0; i < id.n_bytes; i++) {
        const char c = id.data[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '.' || c == '_' || c == '-')) {
            return false;
        }
    }
    return true;
}

static http_text_t text_of(const http_exchange_t *exchange, http_slice_t slice) {
    return (http_text_t){exchange->text + slice.at, slice.n_bytes};
}

http_exchange_t *http_exchange_create(http_server_t *server, http_conn_t *conn,
                                      http_message_t *message) {
    const http_head_t *head = message->head;
    http_exchange_t *exchange = create(server, conn);
    if (exchange == NULL) return NULL;
    http_request_t *request = &exchange->request;
    if (head->n_fields > 0) {
        exchange->fields = kri_calloc(head->n_fields, sizeof *exchange->fields, "http fields");
        if (exchange->fields == NULL) {
            atomic_fetch_sub(&server->n_exchanges, 1);
            exchange->server = NULL;
            http_release(exchange);
            return NULL;
        }
    }
    exchange->text = message->text; /* head's positions are into it */
    for (uint32_t i = 0; i < head->n_fields; i++) {
        exchange->fields[i].name = text_of(exchange, head->fields[i].name);
        exchange->fields[i].value = text_of(exchange, head->fields[i].value);
    }
    request->method = text_of(exchange, head->method);
    request->path = text_of(exchange, head->path);
    request->query = text_of(exchange, head->query);
    request->fields = exchange->fields;
    request->n_fields = head->n_fields;
    request->body_declared = head->is_chunked ? UINT64_MAX : head->body_declared;
    const http_text_t id = http_field(request, "x-request-id");
    if (is_id(id)) {
        (void)snprintf(request->id, sizeof request->id, "%.*s", (int)id.n_bytes, id.data);
    }
    exchange->minor = head->minor;
    exchange->is_head = http_text_equals(request->method.data, request->method.n_bytes, "HEAD") &&
                        memcmp(request->method.data, "HEAD", 4) == 0;
    exchange->must_close = !head->is_keep_alive;
    exchange->expects_continue = head->expects_continue;
    (void)http_message_take_text(message);
    return exchange;
}

void http_retain(http_exchange_t *exchange) {
    atomic_fetch_add_explicit(&exchange->n_refs, 1, memory_order_relaxed);
}

void http_release(http_exchange_t *exchange) {
    if (exchange == NULL) return;
    if (atomic_fetch_sub_explicit(&exchange->n_refs, 1, memory_order_acq_rel) != 1) return;
    if (exchange->destroy != NULL) exchange->destroy(exchange->user);
    kri_buffer_deinit(&exchange->body);
    kri_buffer_deinit(&exchange->out);
    kri_free(exchange->text);
    kri_free(exchange->fields);
    (void)pthread_cond_destroy(&exchange->called);
    (void)pthread_mutex_destroy(&exchange->mutex);
    kri_free(exchange);
}

const http_request_t *http_request(const http_exchange_t *exchange) { return &exchange->request; }

http_text_t http_field(const http_request_t *request, const char *name) {
    for (uint32_t i = 0; i < request->n_fields; i++) {
        const http_text_t found = request->fields[i].name;
        if (http_text_equals(found.data, found.n_bytes, name)) return request->fields[i].value;
    }
    return (http_text_t){NULL, 0};
}

uint32_t http_field_count(const http_request_t *request, const char *name) {
    uint32_t n_found = 0;
    for (uint32_t i = 0; i < request->n_fields; i++) {
        const http_text_t found = request->fields[i].name;
        if (http_text_equals(found.data, found.n_bytes, name)) n_found++;
    }
    return n_found;
}

void http_set_user(http_exchange_t *exchange, void *user, void (*destroy)(void *user)) {
    exchange->user = exchange->request.user = user;
    exchange->destroy = destroy;
}

void *http_user(const http_exchange_t *exchange) { return exchange->user; }

void http_accept(http_exchange_t *exchange, uint64_t body_bytes_max) {
    if (!exchange->in_on_head) return;
    exchange->is_accepted = true;
    exchange->n_body_max = body_bytes_max;
}

void http_set_group(http_exchange_t *exchange, uint64_t group) {
    if (exchange->in_on_head) exchange->group = group;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Appends the exchange to a list, which holds a reference. Under the server's mutex. */
static void list_add(http_list_t *list, http_exchange_t *exchange) {
    exchange->next = NULL;
    if (list->last != NULL) list->last->next = exchange;
    else list->first = exchange;
    list->last = exchange;
}

/* Under the exchange's mutex: there is something to send. */
static void list_written(http_exchange_t *exchange) {
    http_server_t *server = exchange->server;
    pthread_mutex_lock(&server->mutex);
    if (!exchange->is_listed) {
        exchange->is_listed = true;
        http_retain(exchange);
        list_add(&server->written, exchange);
    }
    pthread_mutex_unlock(&server->mutex);
}

void http_flush(http_server_t *server) {
    pthread_mutex_lock(&server->mutex);
    const bool has_some = server->written.first != NULL;
    if (has_some) {
        if (server->flushed.last != NULL) server->flushed.last->next = server->written.first;
        else server->flushed.first = server->written.first;
        server->flushed.last = server->written.last;
        server->written = (http_list_t){NULL, NULL};
    }
    pthread_mutex_unlock(&server->mutex);
    if (has_some) http_loop_wake(server);
}

/* Under the exchange's mutex: http_flush, if there is still a server. */
static void flush_locked(http_exchange_t *exchange) {
    if (exchange->server != NULL) http_flush(exchange->server);
}

/* Under the mutex: may an answer begin? Counts a second one. */
static bool may_begin(http_exchange_t *exchange) {
    if (exchange->server == NULL || exchange->is_gone) return false;
    if (exchange->state == ANSWER_NONE) return true;
    atomic_fetch_add(&exchange->server->n_misused, 1);
    return false;
}

/* Under the mutex: without memory for an answer the connection is cut. */
static void cut(http_exchange_t *exchange) {
    kri_buffer_clear(&exchange->out);
    exchange->n_out_head = 0;
    exchange->state = ANSWER_ENDED;
    exchange->is_whole = false;
    exchange->closes = true;
}

void http_reply(http_exchange_t *exchange, const http_answer_t *answer) {
    pthread_mutex_lock(&exchange->mutex);
    if (may_begin(exchange)) {
        const size_t n_body = answer->content_type != NULL ? answer->body_bytes : 0;
        exchange->status = answer->status;
        exchange->closes = exchange->closes || answer->close || exchange->must_close ||
                           atomic_load(&exchange->server->is_draining);
        exchange->is_whole = true;
        exchange->state = ANSWER_ENDED;
        bool good = http_put_head(&exchange->out, exchange, answer, n_body, exchange->closes);
        exchange->n_out_head = exchange->out.n_bytes;
        if (!exchange->is_head && n_body > 0) {
            good = good && kri_buffer_append(&exchange->out, answer->body, n_body) == KR_OK;
        }
        if (!good) cut(exchange);
        list_written(exchange);
        flush_locked(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
}

void http_exchange_fail(http_exchange_t *exchange, http_refusal_t refusal, bool closes) {
    kri_buffer_t body;
    kri_buffer_init(&body, 4096);
    http_answer_t answer = {.status = refusal.status, .content_type = "application/json",
                            .close = closes};
    if (refusal.status == 503) answer.fields = "Retry-After: 1\r\n";
    if (http_put_error(&body, refusal)) {
        answer.body = body.data;
        answer.body_bytes = body.n_bytes;
    }
    http_reply(exchange, &answer);
    kri_buffer_deinit(&body);
}

void http_stream_begin(http_exchange_t *exchange, int status, const char *content_type,
                       const char *fields, bool is_event_stream) {
    const http_answer_t answer = {.status = status, .content_type = content_type, .fields = fields};
    pthread_mutex_lock(&exchange->mutex);
    if (may_begin(exchange)) {
        exchange->status = status;
        exchange->closes = exchange->closes || exchange->must_close || exchange->minor == 0 ||
                           atomic_load(&exchange->server->is_draining);
        exchange->is_chunked = exchange->minor == 1;
        exchange->is_events = is_event_stream;
        exchange->state = ANSWER_STREAM;
        if (!http_put_head(&exchange->out, exchange, &answer, UINT64_MAX, exchange->closes)) {
            cut(exchange);
        }
        exchange->n_out_head = exchange->out.n_bytes;
        list_written(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
}

bool http_stream_write(http_exchange_t *exchange, const void *data, size_t n_bytes) {
    pthread_mutex_lock(&exchange->mutex);
    bool is_here = exchange->server != NULL && !exchange->is_gone && !exchange->is_flooded &&
                   exchange->state == ANSWER_STREAM;
    if (is_here && n_bytes > 0) {
        const uint64_t n_waiting = exchange->n_written - exchange->n_taken;
        const uint64_t n_max = exchange->server->limits.stream_bytes;
        if (n_waiting > n_max || n_bytes > n_max - n_waiting ||
            kri_buffer_append(&exchange->out, data, n_bytes) != KR_OK) {
            exchange->is_flooded = true;
            is_here = false;
        } else {
            exchange->n_written += n_bytes;
        }
        list_written(exchange);
        if (!is_here) flush_locked(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
    return is_here;
}

void http_stream_end(http_exchange_t *exchange, bool whole) {
    pthread_mutex_lock(&exchange->mutex);
    if (exchange->server != NULL && !exchange->is_gone) {
        if (exchange->state == ANSWER_STREAM) {
            exchange->state = ANSWER_ENDED;
            exchange->is_whole = whole;
            list_written(exchange);
            flush_locked(exchange);
        } else {
            atomic_fetch_add(&exchange->server->n_misused, 1);
        }
    }
    pthread_mutex_unlock(&exchange->mutex);
}

/* ---- the watcher ----------------------------------------------------------------------------- */

void http_watch(http_exchange_t *exchange, http_gone_fn gone, http_taken_fn taken, void *user) {
    pthread_mutex_lock(&exchange->mutex);
    /* Whoever replaces a watcher may free it afterwards. */
    while (exchange->is_calling && calling != exchange) {
        pthread_cond_wait(&exchange->called, &exchange->mutex);
    }
    const bool has_gone = exchange->is_gone;
    exchange->gone = has_gone ? NULL : gone;
    exchange->taken = taken;
    exchange->watcher = user;
    pthread_mutex_unlock(&exchange->mutex);
    if (has_gone && gone != NULL) gone(user);
}

/* Under the mutex, which is free while the watcher runs. */
static void begin_call(http_exchange_t *exchange) {
    exchange->is_calling = true;
    calling = exchange;
    pthread_mutex_unlock(&exchange->mutex);
}

static void end_call(http_exchange_t *exchange) {
    pthread_mutex_lock(&exchange->mutex);
    calling = NULL;
    exchange->is_calling = false;
    pthread_cond_broadcast(&exchange->called);
}

void http_exchange_taken(http_exchange_t *exchange, size_t n_bytes) {
    pthread_mutex_lock(&exchange->mutex);
    exchange->n_taken += n_bytes;
    const http_taken_fn taken = exchange->state == ANSWER_STREAM ? exchange->taken : NULL;
    if (taken != NULL && n_bytes > 0) {
        void *user = exchange->watcher;
        begin_call(exchange);
        taken(user, n_bytes);
        end_call(exchange);
    }
    pthread_mutex_unlock(&exchange->mutex);
}

void http_exchange_detach(http_exchange_t *exchange, bool is_gone) {
    pthread_mutex_lock(&exchange->mutex);
    http_server_t *server = exchange->server;
    exchange->server = NULL;
    exchange->conn = NULL;
    if (is_gone && exchange->state != ANSWER_ENDED) {
        const http_gone_fn gone = exchange->gone;
        void *user = exchange->watcher;
        exchange->is_gone = true;
        exchange->gone = NULL;
        if (gone != NULL) {
            begin_call(exchange);
            gone(user);
            end_call(exchange);
        }
    }
    kri_buffer_deinit(&exchange->out);
    pthread_mutex_unlock(&exchange->mutex);
    atomic_fetch_sub(&server->n_exchanges, 1);
    http_release(exchange);
}
