/* embed.c: embed, batch_embed: one request of the engine per text; the vectors are printed by a
 * worker, not by the pump, or given in shared memory, where they are put together. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "shared.h"
#include "stream_impl.h"

#define INPUTS_MAX 256u
#define TEXT_BYTES_MAX ((size_t)16 << 20)

typedef struct embed_s embed_t;

typedef struct item_s {
    pump_user_t user;          /* first */
    embed_t *embed;
    const char *text;          /* the JSON's */
    size_t n_bytes;
    kr_request_t handle;
    bool is_submitted;         /* the client's lock */
    kr_status_t status;
    kr_error_t error;
} item_t;

struct embed_s {
    rpc_call_t *call;
    rpc_conn_t *conn;          /* a reference */
    rpc_model_t *model;        /* a counted reference */
    int32_t pooling;
    bool normalize;
    item_t *items;
    uint32_t n_items, n_embd;
    rpc_tensor_t matrix;       /* [n_items, n_embd] f32 */
    atomic_uint n_left;        /* items, and who submits them */
    /* The client's lock. */
    bool is_cancelled;
    struct embed_s *next, *prev;
};

/* ---- the end --------------------------------------------------------------------------------- */

static void leave_conn(embed_t *embed) {
    rpc_conn_t *conn = embed->conn;
    (void)pthread_mutex_lock(&conn->lock);
    if (embed->prev != NULL) embed->prev->next = embed->next;
    else conn->embeds = embed->next;
    if (embed->next != NULL) embed->next->prev = embed->prev;
    (void)pthread_mutex_unlock(&conn->lock);
}

static void free_embed(embed_t *embed) {
    for (uint32_t i = 0; i < embed->n_items; i++) kr_request_release(embed->items[i].handle);
    rpc_tensor_deinit(&embed->matrix);
    free(embed->items);
    rpc_model_end_stream(embed->conn->rpc, embed->model);
    rpc_conn_release(embed->conn);
    free(embed);
}

static void put_rows(const embed_t *embed, kri_buffer_t *out) {
    const float *value = (const float *)(const void *)embed->matrix.data;
    if (value == NULL) out->status = KR_E_NOMEM;
    (void)kri_buffer_append(out, "[", 1);
    for (uint32_t i = 0; i < embed->n_items && out->status == KR_OK; i++) {
        (void)kri_buffer_append(out, i > 0 ? ",[" : "[", i > 0 ? 2 : 1);
        for (uint32_t k = 0; k < embed->n_embd && out->status == KR_OK; k++) {
            if (k > 0) (void)kri_buffer_append(out, ",", 1);
            (void)json_put_float(out, *value++);
        }
        (void)kri_buffer_append(out, "]", 1);
    }
    (void)kri_buffer_append(out, "]", 1);
}

static void put_vectors(embed_t *embed, kri_buffer_t *out) {
    uint64_t n_prompt = 0;
    for (uint32_t i = 0; i < embed->n_items; i++) {
        kr_request_stats_t stats;
        kr_request_stats_init(&stats);
        if (kr_request_stats(embed->items[i].handle, &stats) == KR_OK) n_prompt += stats.n_prompt;
    }
    rpc_tensor_shape(&embed->matrix, RPC_DTYPE_F32, embed->n_items, embed->n_embd);
    (void)kri_buffer_printf(out, "{\"embeddings\":");
    if (!rpc_tensor_give(embed->conn, &embed->matrix, out)) put_rows(embed, out);
    (void)kri_buffer_printf(out, ",\"dimensions\":%u,\"prompt_tokens\":%llu}", embed->n_embd,
                            (unsigned long long)n_prompt);
}

static void fail(embed_t *embed, uint32_t index) {
    rpc_error_t failure;
    item_t *item = &embed->items[index];
    rpc_error_of_status(&failure, RPC_E_GENERATION, item->status, &item->error);
    if (embed->n_items > 1 && failure.param[0] != '\0') {
        (void)snprintf(failure.param, sizeof failure.param, "input.%u", index);
    } else if (failure.param[0] != '\0') {
        (void)snprintf(failure.param, sizeof failure.param, "input");
    }
    memcpy(failure.model_id, embed->model->name, sizeof failure.model_id);
    rpc_fail_error(embed->call, &failure);
}

/* The first that failed of itself is said: the others were cancelled because of it. */
static void answer(rpc_conn_t *conn, void *user) {
    embed_t *embed = user;
    uint32_t worst = embed->n_items;
    (void)conn;
    for (uint32_t i = 0; i < embed->n_items; i++) {
        const kr_status_t status = embed->items[i].status;
        if (status == KR_OK) continue;
        if (worst == embed->n_items || (embed->items[worst].status == KR_E_CANCELLED &&
                                        status != KR_E_CANCELLED)) worst = i;
    }
    if (worst < embed->n_items) {
        fail(embed, worst);
    } else {
        kri_buffer_t out;
        kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
        put_vectors(embed, &out);
        rpc_reply(embed->call, &out);
        kri_buffer_deinit(&out);
    }
    free_embed(embed);
}

static void cancel_locked(embed_t *embed) {
    embed->is_cancelled = true;
    for (uint32_t i = 0; i < embed->n_items; i++) {
        if (embed->items[i].is_submitted) kr_request_cancel(embed->items[i].handle);
    }
}

void rpc_embeds_cancel_locked(rpc_conn_t *conn) {
    for (embed_t *embed = conn->embeds; embed != NULL; embed = embed->next) cancel_locked(embed);
}

static void cancel(embed_t *embed) {
    (void)pthread_mutex_lock(&embed->conn->lock);
    cancel_locked(embed);
    (void)pthread_mutex_unlock(&embed->conn->lock);
}

/* A worker, or the pump where there is none any more. */
static void leave(embed_t *embed) {
    if (atomic_fetch_sub(&embed->n_left, 1) != 1) return;
    leave_conn(embed);
    rpc_conn_t *conn = embed->conn;
    if (!rpc_work_push(conn->rpc, conn, answer, embed)) answer(conn, embed);
}

static void take(pump_user_t *user, pump_t *pump, const kr_event_t *event) {
    item_t *item = (item_t *)(void *)user;
    embed_t *embed = item->embed;
    (void)pump;
    if (event->type == KR_EVENT_EMBEDDING) {
        const size_t row_bytes = embed->n_embd * sizeof(float);
        uint8_t *row = embed->matrix.data + (size_t)(item - embed->items) * row_bytes;
        if (event->n_embd != embed->n_embd) item->status = KR_E_INTERNAL;
        else memcpy(row, event->embedding, row_bytes);
        return;
    }
    if (event->type != KR_EVENT_DONE && event->type != KR_EVENT_ERROR) return;
    if (event->type == KR_EVENT_ERROR) {
        item->status = event->status;
        if (event->error != NULL) item->error = *event->error;
    }
    if (item->status != KR_OK) cancel(embed);
    leave(embed);
}

/* ---- the request ----------------------------------------------------------------------------- */

static bool is_cancelled(embed_t *embed) {
    (void)pthread_mutex_lock(&embed->conn->lock);
    const bool is_over = embed->is_cancelled || embed->conn->is_broken;
    (void)pthread_mutex_unlock(&embed->conn->lock);
    return is_over;
}

static void submit(embed_t *embed, item_t *item, uint32_t deadline_ms) {
    kr_segment_t segment = {.type = KR_SEGMENT_TEXT, .flags = KR_TOKENIZE_ADD_BOS,
                            .count = item->n_bytes, .text = item->text};
    kr_request_params_t params;
    kr_request_params_init(&params);
    params.n_segments = 1;
    params.segments = &segment;
    params.model = embed->model->name;
    params.deadline_ms = deadline_ms;
    params.pooling = embed->pooling;
    params.normalize = embed->normalize ? 1 : 0;
    params.user = &item->user;
    kr_status_t status = KR_E_CANCELLED;
    if (!is_cancelled(embed)) {
        status = kr_engine_submit(embed->conn->rpc->server->engine, &params, &item->handle,
                                  &item->error);
    }
    if (status != KR_OK) {
        item->status = status;
        cancel(embed);
        leave(embed);
        return;
    }
    (void)pthread_mutex_lock(&embed->conn->lock);
    item->is_submitted = true;
    if (embed->is_cancelled) kr_request_cancel(item->handle);
    (void)pthread_mutex_unlock(&embed->conn->lock);
}

/* One text or several. False: a mistake is set. */
static bool read_input(json_reader_t *reader, embed_t *embed) {
    json_t *value = NULL;
    json_require(reader, "input");
    if (!json_read_any(reader, "input", &value)) return false;
    const size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n < 1 || n > INPUTS_MAX) {
        json_fail(reader, "invalid_value", "input", "'input' has %zu texts; allowed: 1 to %u", n,
                  INPUTS_MAX);
        return false;
    }
    embed->items = calloc(n, sizeof *embed->items);
    if (embed->items == NULL) {
        json_fail(reader, "overloaded", "input", "no memory for this request now");
        return false;
    }
    embed->n_items = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_is_array(value) ? json_array_get(value, i) : value;
        item_t *item = &embed->items[i];
        if (!json_is_string(text) || json_string_length(text) == 0) {
            json_fail(reader, "invalid_value", "input", "'input' must be a text that is not empty, "
                      "or an array of 1 to %u of them", INPUTS_MAX);
            return false;
        }
        kr_error_init(&item->error);
        item->user.take = take;
        item->embed = embed;
        item->text = json_string_value(text);
        item->n_bytes = json_string_length(text);
    }
    return true;
}

static void enter(embed_t *embed) {
    rpc_conn_t *conn = embed->conn;
    (void)pthread_mutex_lock(&conn->lock);
    embed->next = conn->embeds;
    if (embed->next != NULL) embed->next->prev = embed;
    conn->embeds = embed;
    (void)pthread_mutex_unlock(&conn->lock);
}

static void run(rpc_call_t *call, embed_t *embed, const char *model_id, uint32_t deadline_ms) {
    rpc_error_t error;
    embed->model = rpc_models_get(call->rpc, model_id, true, &error);
    if (embed->model == NULL) {
        rpc_fail_error(call, &error);
        free(embed->items);
        free(embed);
        return;
    }
    embed->call = call;
    embed->conn = call->conn;
    rpc_conn_retain(embed->conn);
    embed->n_embd = embed->model->info.n_embd;
    if (!rpc_tensor_create(embed->conn, (size_t)embed->n_items * embed->n_embd * sizeof(float),
                           &embed->matrix)) {
        rpc_fail_status(call, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
        free_embed(embed);
        return;
    }
    atomic_init(&embed->n_left, embed->n_items + 1);
    enter(embed);
    for (uint32_t i = 0; i < embed->n_items; i++) submit(embed, &embed->items[i], deadline_ms);
    leave(embed);
}

void rpc_method_embed(rpc_call_t *call) {
    static const char *const poolings[] = {"mean", "last", NULL};
    json_mistake_t mistake;
    json_reader_t reader;
    uint32_t pooling = 0;
    const uint32_t deadline_max_ms = atomic_load(&call->rpc->deadline_ms);
    int64_t deadline_ms = deadline_max_ms;
    embed_t *embed = calloc(1, sizeof *embed);
    if (embed == NULL) {
        rpc_fail_status(call, RPC_E_RUNTIME, KR_E_NOMEM, NULL);
        return;
    }
    embed->normalize = true;
    rpc_open(call, &reader, &mistake);
    const char *model_id = rpc_read_model_id(&reader, "model_id");
    (void)read_input(&reader, embed);
    (void)json_read_word(&reader, "pooling", poolings, &pooling);
    (void)json_read_bool(&reader, "normalize", &embed->normalize);
    (void)json_read_integer(&reader, "timeout_ms", 1, deadline_max_ms, &deadline_ms);
    json_finish(&reader);
    embed->pooling = pooling == 0 ? KR_POOLING_MEAN : KR_POOLING_LAST;
    if (rpc_fail_mistake(call, &mistake)) {
        free(embed->items);
        free(embed);
        return;
    }
    run(call, embed, model_id, (uint32_t)deadline_ms);
}

void rpc_method_batch_embed(rpc_call_t *call) { rpc_run_requests(call, "embed"); }
