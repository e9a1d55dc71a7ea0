/* models.c: the models that can be asked, by id. Opening and closing is done by one thread at a
 * time, without the lock: others go on meanwhile. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "inner.h"

typedef enum state_e { STATE_NONE = 0, STATE_LOADING, STATE_READY, STATE_UNLOADING } state_t;

typedef struct row_s {
    state_t state;
    char name[256];
    rpc_model_t *model;        /* from READY on: a reference */
} row_t;

struct rpc_models_s {
    pthread_mutex_t mutex;
    row_t rows[RPC_MODELS_MAX];
};

static void lock(rpc_t *rpc) { (void)pthread_mutex_lock(&rpc->models->mutex); }
static void unlock(rpc_t *rpc) { (void)pthread_mutex_unlock(&rpc->models->mutex); }

kr_status_t rpc_models_create(rpc_t *rpc) {
    rpc_models_t *models = calloc(1, sizeof *models);
    if (models == NULL || pthread_mutex_init(&models->mutex, NULL) != 0) {
        free(models);
        return KR_E_NOMEM;
    }
    rpc->models = models;
    return KR_OK;
}

void rpc_model_release(rpc_model_t *model) {
    if (model == NULL || atomic_fetch_sub(&model->n_refs, 1) != 1) return;
    kr_model_close(model->model);
    free(model);
}

void rpc_models_destroy(rpc_t *rpc) {
    if (rpc->models == NULL) return;
    for (uint32_t i = 0; i < RPC_MODELS_MAX; i++) rpc_model_release(rpc->models->rows[i].model);
    (void)pthread_mutex_destroy(&rpc->models->mutex);
    free(rpc->models);
    rpc->models = NULL;
}

/* With the lock. */
static row_t *find(rpc_t *rpc, const char *name) {
    for (uint32_t i = 0; i < RPC_MODELS_MAX; i++) {
        row_t *row = &rpc->models->rows[i];
        if (row->state != STATE_NONE && strcmp(row->name, name) == 0) return row;
    }
    return NULL;
}

/* ---- names ----------------------------------------------------------------------------------- */

const char *rpc_read_model_id(json_reader_t *reader, const char *field) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                  "_-./@:+ ";
    const char *text = NULL;
    json_require(reader, field);
    if (!json_read_string(reader, field, 1, 255, &text, NULL)) return NULL;
    if (text[strspn(text, allowed)] != '\0' || strstr(text, "..") != NULL) {
        json_fail(reader, "invalid_value", field,
                  "'%s' may hold letters, digits and _-./@:+ but not '..'", field);
        return NULL;
    }
    return text;
}

/* ---- loading --------------------------------------------------------------------------------- */

static int32_t on_progress(const char *stage, uint64_t done, uint64_t total, void *user) {
    rpc_t *rpc = user;
    (void)stage, (void)done, (void)total;
    return atomic_load(&rpc->is_ending) ? 1 : 0;
}

/* The type that most bytes of the weights have. */
static const char *find_dtype(kr_model_t model) {
    uint64_t bytes[64] = {0};
    kr_tensor_info_t info;
    kr_dtype_t best = KR_DTYPE_NONE;
    kr_tensor_info_init(&info);
    for (uint32_t i = 0; kr_model_tensor(model, i, &info) == KR_OK; i++) {
        if (info.dtype < 0 || info.dtype >= 64) continue;
        bytes[info.dtype] += info.bytes;
        if (bytes[info.dtype] > bytes[best]) best = info.dtype;
    }
    return kr_dtype_name(best);
}

static kr_status_t open_model(rpc_t *rpc, const rpc_load_t *load, rpc_model_t *model,
                              kr_error_t *error) {
    kr_model_params_t params = rpc->params.model;
    params.progress = on_progress;
    params.progress_user = rpc;
    KR_TRY(kr_model_open(model->path, &params, &model->model, error));
    kr_model_info_init(&model->info);
    KR_TRY(kr_model_info(model->model, &model->info));
    model->dtype = find_dtype(model->model);
    kr_session_params_t session = rpc->params.session;
    if (load->n_ctx > 0) session.n_ctx = load->n_ctx;
    kr_session_params_t planned = session; /* the prefix cache is the engine's */
    planned.prefix_cache = KR_PREFIX_CACHE_DEFAULT;
    kr_session_info_init(&model->session);
    KR_TRY(kr_session_plan(model->model, &planned, &model->session, error));
    return kr_engine_add_model(rpc->server->engine, model->name, model->model, &session, error);
}

static kr_status_t make_model(rpc_t *rpc, const rpc_load_t *load, rpc_model_t **made,
                              kr_error_t *error) {
    const uint64_t begin_ns = kri_clock_ns();
    rpc_model_t *model = calloc(1, sizeof *model);
    if (model == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the model");
    atomic_init(&model->n_refs, 1);
    (void)snprintf(model->name, sizeof model->name, "%s", load->name);
    kr_status_t status = KR_OK;
    if (load->path != NULL) {
        (void)snprintf(model->path, sizeof model->path, "%s", load->path);
    } else {
        status = rpc->params.resolve(rpc->params.user, load->name, model->path,
                                     sizeof model->path, error);
    }
    if (status == KR_OK) status = open_model(rpc, load, model, error);
    if (status != KR_OK) {
        rpc_model_release(model);
        return status;
    }
    model->is_draft = load->is_draft;
    model->n_ctx_asked = load->n_ctx;
    model->load_ms = (double)(kri_clock_ns() - begin_ns) / 1e6;
    *made = model;
    return KR_OK;
}

/* What is there under the name, when it is what is asked for. */
static kr_status_t match(const rpc_model_t *model, const rpc_load_t *load, kr_error_t *error) {
    const bool is_other_file = load->path != NULL && strcmp(load->path, model->path) != 0;
    const bool is_other_ctx = load->n_ctx > 0 && load->n_ctx != model->session.n_ctx;
    if (!is_other_file && !is_other_ctx && load->is_draft == model->is_draft) return KR_OK;
    const char *field = is_other_file ? "local_path" : is_other_ctx ? "context_length" : "draft";
    return KRI_FAIL(error, KR_E_EXISTS, field, "'%.200s' is loaded with another %s: unload it "
                    "first", load->name, field);
}

/* A row for it; *hit: the model that is there already, a reference. */
static kr_status_t reserve(rpc_t *rpc, const rpc_load_t *load, row_t **reserved,
                           rpc_model_t **hit, kr_error_t *error) {
    kr_status_t status = KR_OK;
    lock(rpc);
    row_t *row = find(rpc, load->name);
    if (row != NULL && row->state == STATE_READY) {
        status = match(row->model, load, error);
        if (status == KR_OK) {
            *hit = row->model;
            atomic_fetch_add(&row->model->n_refs, 1);
        }
    } else if (row != NULL) {
        status = KRI_FAIL(error, KR_E_BUSY, "model_id", "'%.200s' is being loaded", load->name);
    } else {
        for (uint32_t i = 0; i < RPC_MODELS_MAX && row == NULL; i++) {
            if (rpc->models->rows[i].state == STATE_NONE) row = &rpc->models->rows[i];
        }
        if (row == NULL) {
            status = KRI_FAIL(error, KR_E_LIMIT, "model_id", "%u models are loaded: unload one",
                              RPC_MODELS_MAX);
        } else {
            row->state = STATE_LOADING;
            (void)snprintf(row->name, sizeof row->name, "%s", load->name);
            *reserved = row;
        }
    }
    unlock(rpc);
    return status;
}

kr_status_t rpc_models_load(rpc_t *rpc, const rpc_load_t *load, rpc_model_t **model,
                            kr_error_t *error) {
    row_t *row = NULL;
    rpc_model_t *made = NULL;
    if (atomic_load(&rpc->is_ending)) return KR_E_SHUTTING_DOWN;
    KR_TRY(reserve(rpc, load, &row, model, error));
    if (row == NULL) return KR_OK;
    const kr_status_t status = make_model(rpc, load, &made, error);
    lock(rpc);
    row->state = status == KR_OK ? STATE_READY : STATE_NONE;
    row->model = made;
    if (made != NULL) atomic_fetch_add(&made->n_refs, 1);
    unlock(rpc);
    if (status == KR_OK) *model = made;
    return status;
}

kr_status_t rpc_models_unload(rpc_t *rpc, const char *name, bool force, bool *was_there,
                              kr_error_t *error) {
    kr_status_t status = KR_OK;
    rpc_model_t *model = NULL;
    lock(rpc);
    row_t *row = find(rpc, name);
    *was_there = row != NULL && row->state == STATE_READY;
    if (*was_there && row->model->n_streams > 0 && !force) {
        status = KRI_FAIL(error, KR_E_BUSY, "force", "'%.200s' has %u generations under way",
                          name, row->model->n_streams);
    } else if (*was_there) {
        row->state = STATE_UNLOADING; /* it gets no more work */
        model = row->model;
    }
    unlock(rpc);
    if (model == NULL) return status;
    status = kr_engine_remove_model(rpc->server->engine, name, error);
    lock(rpc);
    row->state = STATE_NONE;
    row->model = NULL;
    unlock(rpc);
    rpc_model_release(model);
    return status;
}

/* ---- use ------------------------------------------------------------------------------------- */

rpc_model_t *rpc_models_get(rpc_t *rpc, const char *name, bool with_stream, rpc_error_t *error) {
    rpc_model_t *model = NULL;
    lock(rpc);
    const row_t *row = find(rpc, name);
    const state_t state = row != NULL ? row->state : STATE_NONE;
    if (state == STATE_READY) {
        model = row->model;
        atomic_fetch_add(&model->n_refs, 1);
        if (with_stream) model->n_streams++;
    }
    unlock(rpc);
    if (model != NULL) return model;
    rpc_error_set(error, RPC_E_NOT_LOADED, state == STATE_NONE ? KR_E_NOT_FOUND : KR_E_BUSY,
                  "model_id", "model '%.200s' is %s", name,
                  state == STATE_LOADING     ? "still loading"
                  : state == STATE_UNLOADING ? "being unloaded"
                                             : "not loaded");
    (void)snprintf(error->model_id, sizeof error->model_id, "%s", name);
    return NULL;
}

void rpc_model_end_stream(rpc_t *rpc, rpc_model_t *model) {
    lock(rpc);
    model->n_streams--;
    unlock(rpc);
    rpc_model_release(model);
}

rpc_model_t *rpc_need_model(rpc_call_t *call, const char *name) {
    rpc_error_t error;
    rpc_model_t *model = rpc_models_get(call->rpc, name, false, &error);
    if (model == NULL) rpc_fail_error(call, &error);
    return model;
}

/* ---- what they are --------------------------------------------------------------------------- */

static void put_text(const char *name, const char *text, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "\"%s\":", name);
    if (text != NULL) (void)json_put_string(out, text, strlen(text));
    else (void)kri_buffer_append(out, "null", 4);
}

static void put_special(const char *name, kr_token_t token, kri_buffer_t *out) {
    if (token >= 0) (void)kri_buffer_printf(out, "\"%s\":%d", name, token);
    else (void)kri_buffer_printf(out, "\"%s\":null", name);
}

/* Members of load_model's result. */
void rpc_model_put(const rpc_model_t *model, kri_buffer_t *out) {
    const kr_model_info_t *info = &model->info;
    (void)kri_buffer_append(out, "{", 1);
    put_text("model_id", model->name, out);
    (void)kri_buffer_printf(out, ",\"state\":\"ready\",\"type\":\"text\",\"draft\":%s,"
                            "\"context_length\":%u,\"context_length_trained\":%u,"
                            "\"parameter_count\":%llu,\"vocab_size\":%u,\"is_vision_model\":false,",
                            model->is_draft ? "true" : "false", model->session.n_ctx,
                            info->n_ctx_train, (unsigned long long)info->n_params, info->n_vocab);
    put_text("dtype", model->dtype, out);
    (void)kri_buffer_append(out, ",", 1);
    put_text("architecture", info->arch, out);
    (void)kri_buffer_append(out, ",", 1);
    put_text("cached_path", model->path, out);
    (void)kri_buffer_printf(out, ",\"memory_usage\":%llu,\"embedding_length\":%u,"
                            "\"has_chat_template\":%s,",
                            (unsigned long long)(info->packed_bytes + model->session.kv_bytes +
                                                 model->session.scratch_bytes),
                            info->n_embd, info->has_chat_template ? "true" : "false");
    (void)kri_buffer_printf(out, "\"special_tokens\":{");
    put_special("bos", info->token_bos, out);
    (void)kri_buffer_append(out, ",", 1);
    put_special("eos", info->token_eos, out);
    (void)kri_buffer_printf(out, "},\"load_time_ms\":");
    (void)json_put_double(out, round(model->load_ms * 1e3) / 1e3);
    (void)kri_buffer_append(out, "}", 1);
}

void rpc_models_put(rpc_t *rpc, bool with_details, kri_buffer_t *out) {
    bool is_first = true;
    lock(rpc);
    for (uint32_t i = 0; i < RPC_MODELS_MAX; i++) {
        const row_t *row = &rpc->models->rows[i];
        if (row->state == STATE_NONE) continue;
        if (!is_first) (void)kri_buffer_append(out, ",", 1);
        is_first = false;
        if (row->state == STATE_READY && with_details) {
            rpc_model_put(row->model, out);
            continue;
        }
        (void)kri_buffer_append(out, "{", 1);
        put_text("model_id", row->name, out);
        (void)kri_buffer_printf(out, ",\"state\":\"%s\",\"type\":\"text\"}",
                                row->state == STATE_READY     ? "ready"
                                : row->state == STATE_LOADING ? "loading"
                                                              : "unloading");
    }
    unlock(rpc);
}
