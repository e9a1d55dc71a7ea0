/* engine_models.c: the models of an engine. A model is made on the thread that adds it, while
 * others generate; its name and its part of the memory ledger are taken first, so that two adds at
 * once cannot both succeed. The step thread sees it from its next turn on. */
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "engine/engine_impl.h"

#define N_SEQS_DEFAULT 32u
#define MASK_UNIT 16u /* words of a cache line */

kri_engine_model_t *kri_engine_find(kr_engine_t e, const char *name) {
    kri_engine_model_t *found = NULL;
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        kri_engine_model_t *em = e->models[i];
        if (!em || !em->is_ready) continue;
        if (name ? strcmp(em->name, name) == 0 : !found || em->order < found->order) found = em;
    }
    if (found) atomic_fetch_add(&found->n_refs, 1);
    return found;
}

void kri_engine_model_unref(kri_engine_model_t *em) {
    if (atomic_fetch_sub(&em->n_refs, 1) != 1) return;
    kri_model_close(em->model);
    kr_telemetry_destroy(em->telemetry);
    kri_free(em);
}

/* What computing needs; the rest stays for requests and submits that still hold the model. */
void kri_engine_model_close(kri_engine_model_t *em) {
    kri_sched_destroy(em->sched);
    kri_session_destroy(em->session);
    kr_tensor_release(em->logits_tensor);
    kri_free(em->masks);
    kri_free(em->rows);
    kri_free(em->argmax);
    em->sched = NULL;
    em->session = NULL;
    em->kv = NULL;
    em->logits_tensor = NULL;
    em->logits = NULL;
    em->masks = NULL;
    em->rows = NULL;
    em->argmax = NULL;
}

/* ---- add ------------------------------------------------------------------------------------ */

/* For every sequence one row, so that no step has to take memory. */
static kr_status_t take_logits(kri_engine_model_t *em, kr_error_t *error) {
    const uint64_t shape[] = {em->info.n_seqs, em->n_vocab};
    kr_tensor_view_t view;
    kr_tensor_view_init(&view);
    KR_TRY(kr_tensor_acquire(KR_DTYPE_F32, 2, shape, &em->logits_tensor, error));
    KR_TRY(kr_tensor_view(em->logits_tensor, &view));
    em->logits = view.data;
    return KR_OK;
}

static kr_status_t open_work(kri_engine_model_t *em, const kr_session_params_t *params,
                             kr_error_t *error) {
    const kr_engine_params_t *p = &em->engine->params;
    kr_status_t status = kri_session_create(em->model, params, &em->session, error);
    if (status != KR_OK) return status;
    kri_session_info(em->session, &em->info);
    em->kv = kri_session_kv(em->session);
    status = kri_pool_shared(em->info.n_threads, &em->pool);
    if (status != KR_OK) {
        return KRI_FAIL(error, status, "n_threads", "cannot start %u threads",
                        em->info.n_threads);
    }
    const kri_sched_params_t sched = {
        .kv = em->kv, .n_seqs = em->info.n_seqs, .n_ctx = em->info.n_ctx,
        .n_rows_max = em->info.n_rows_max,
        .queue_max = em->engine->n_tasks_max, /* all may wait at once: none finds no place */
        .max_stall_ns = (uint64_t)p->max_stall_ms * 1000000};
    status = kri_sched_create(&sched, &em->sched);
    em->n_words = (uint32_t)kri_ceil_div(kri_ceil_div(em->n_vocab, 32), MASK_UNIT) * MASK_UNIT;
    KR_TRY(take_logits(em, error));
    em->masks = kri_calloc((size_t)em->info.n_threads * em->n_words, sizeof *em->masks, "engine");
    em->rows = kri_calloc(em->info.n_seqs, sizeof *em->rows, "engine");
    const bool has_argmax = kri_session_has_argmax(em->session);
    if (has_argmax) em->argmax = kri_calloc(em->info.n_seqs, sizeof *em->argmax, "engine");
    if (status != KR_OK || !em->masks || !em->rows || (has_argmax && !em->argmax)) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the steps of %s", em->name);
    }
    /* Mapped weights are checked at first use: let that be here, and not in a step, for which the
     * streams of other models would wait. */
    if (kri_weights_begin(em->model, em->pool, em->info.n_threads, &em->cancel) != KR_OK) {
        return KRI_FAIL(error, KR_E_SHUTTING_DOWN, NULL, "the engine is shutting down");
    }
    kri_weights_end(em->model);
    return KR_OK;
}

/* The name and kv_bytes of the ledger are taken. With the mutex held. */
static kr_status_t reserve(kr_engine_t e, kri_engine_model_t *em, uint64_t full_bytes,
                           uint64_t wanted_bytes, kr_error_t *error) {
    uint32_t slot = KRI_MODELS_MAX;
    if (e->is_draining) {
        return KRI_FAIL(error, KR_E_SHUTTING_DOWN, NULL, "the engine is shutting down");
    }
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (!e->models[i]) {
            if (slot == KRI_MODELS_MAX) slot = i;
        } else if (strcmp(e->models[i]->name, em->name) == 0) {
            return KRI_FAIL(error, KR_E_EXISTS, "name", "there is already a model %s", em->name);
        }
    }
    if (slot == KRI_MODELS_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "name", "an engine has at most %u models",
                        KRI_MODELS_MAX);
    }
    const uint64_t left = e->params.kv_bytes_max - e->kv_bytes_reserved;
    em->kv_bytes = wanted_bytes ? wanted_bytes : full_bytes < left ? full_bytes : left;
    if (em->kv_bytes > left || em->kv_bytes == 0) {
        return KRI_FAIL(error, KR_E_LIMIT, "kv_bytes_max",
                        "%llu bytes for keys and values, the engine has %llu left",
                        (unsigned long long)wanted_bytes, (unsigned long long)left);
    }
    e->kv_bytes_reserved += em->kv_bytes;
    em->order = e->n_models_added++;
    e->models[slot] = em;
    return KR_OK;
}

/* Out of the table; its bytes go back to the ledger. With the mutex held. */
static void unreserve(kr_engine_t e, kri_engine_model_t *em) {
    for (uint32_t i = 0; i < KRI_MODELS_MAX; i++) {
        if (e->models[i] == em) e->models[i] = NULL;
    }
    e->kv_bytes_reserved -= em->kv_bytes;
}

kr_status_t kri_engine_add_model(kr_engine_t e, const char *name, kr_model_t model,
                                 const kr_session_params_t *params, kr_error_t *error) {
    kr_session_params_t p = *params;
    kr_session_info_t plan;
    if (p.n_seqs == 0) p.n_seqs = N_SEQS_DEFAULT;
    if (p.n_threads == 0) p.n_threads = e->params.n_threads;
    if (!p.telemetry) p.telemetry = e->params.telemetry;
    if (p.prefix_cache == KR_PREFIX_CACHE_DEFAULT) p.prefix_cache = KR_PREFIX_CACHE_ON;
    KR_TRY(kri_session_plan(model, &p, &plan, error));
    kri_engine_model_t *em = kri_calloc(1, sizeof *em, "engine");
    if (!em) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the model");
    atomic_store(&em->n_refs, 1);
    memcpy(em->name, name, strlen(name));
    em->engine = e;
    em->model = model;
    em->n_vocab = model->hp.n_vocab;
    em->n_embd = model->hp.n_embd;
    kri_model_retain(model);
    kri_mutex_lock(&e->mutex);
    kr_status_t status = reserve(e, em, plan.kv_bytes, p.kv_bytes_max, error);
    kri_mutex_unlock(&e->mutex);
    if (status != KR_OK) {
        kri_engine_model_unref(em);
        return status;
    }
    if (p.kv_bytes_max == 0 && em->kv_bytes < plan.kv_bytes) p.kv_bytes_max = em->kv_bytes;
    kri_telemetry_retain(p.telemetry);
    em->telemetry = p.telemetry;
    p.telemetry = NULL; /* a step of an engine may hold both kinds of rows: engine_step.c counts */
    status = open_work(em, &p, error);
    kri_mutex_lock(&e->mutex);
    if (status == KR_OK && e->is_draining) {
        status = KRI_FAIL(error, KR_E_SHUTTING_DOWN, NULL, "the engine is shutting down");
    }
    if (status == KR_OK) {
        kri_kv_stats_t kv;
        kri_kv_pool_stats(em->kv, &kv);
        em->stats.kv_bytes_max = kv.bytes_max;
        em->is_ready = true;
    } else {
        unreserve(e, em);
    }
    kri_mutex_unlock(&e->mutex);
    if (status != KR_OK) {
        kri_engine_model_close(em);
        kri_engine_model_unref(em);
    }
    return status;
}

/* ---- remove and resize ---------------------------------------------------------------------- */

static kri_engine_model_t *find_named(kr_engine_t e, const char *name, kr_error_t *error) {
    kri_mutex_lock(&e->mutex);
    kri_engine_model_t *em = kri_engine_find(e, name);
    kri_mutex_unlock(&e->mutex);
    if (!em) (void)KRI_FAIL(error, KR_E_NOT_FOUND, "name", "there is no model %s", name);
    return em;
}

/* On the step thread: no request of the model is left, and it has no further turn. */
static kr_status_t end_requests(kri_ask_t *ask) {
    kri_engine_model_t *em = ask->em;
    while (em->requests) {
        kri_request_end(em->requests, KR_E_SHUTTING_DOWN, "the model is being removed", true);
    }
    kri_mutex_lock(&em->engine->mutex);
    kri_engine_publish_model(em); /* its last figures: it is published no more */
    kri_mutex_unlock(&em->engine->mutex);
    return KR_OK;
}

kr_status_t kri_engine_remove_model(kr_engine_t e, const char *name, kr_error_t *error) {
    kri_engine_model_t *em = find_named(e, name, error);
    if (!em) return KR_E_NOT_FOUND;
    kri_mutex_lock(&e->admin_mutex);
    kri_mutex_lock(&e->mutex);
    const bool is_mine = em->is_ready; /* of two removes at once, one finds nothing */
    em->is_ready = false;
    __atomic_fetch_or(&em->cancel, KRI_CANCEL_ALL, __ATOMIC_RELAXED);
    kri_mutex_unlock(&e->mutex);
    kr_status_t status = is_mine ? KR_OK : KR_E_NOT_FOUND;
    if (is_mine) {
        kri_ask_t ask = {.fn = end_requests, .em = em};
        status = kri_engine_ask(e, &ask);
    } else {
        (void)KRI_FAIL(error, status, "name", "there is no model %s", name);
    }
    if (status == KR_OK) {
        kri_engine_model_close(em);
        kri_mutex_lock(&e->mutex);
        kri_engine_add_counters(&e->removed, &em->stats);
        unreserve(e, em);
        kri_mutex_unlock(&e->mutex);
        kri_engine_model_unref(em); /* the table's */
    } else if (is_mine) {
        (void)KRI_FAIL(error, status, NULL, "the engine is shutting down");
    }
    kri_mutex_unlock(&e->admin_mutex);
    kri_engine_model_unref(em);
    return status;
}

static kr_status_t resize(kri_ask_t *ask) {
    const uint64_t kv_bytes = *(const uint64_t *)ask->args;
    if (kv_bytes < kri_kv_pool_need(ask->em->kv, 0, 1, 1)) return KR_E_LIMIT;
    return kri_sched_resize(ask->em->sched, kv_bytes);
}

/* A larger size is taken from the ledger before, a smaller one given back after. */
kr_status_t kri_engine_resize_kv(kr_engine_t e, const char *name, uint64_t kv_bytes,
                                 kr_error_t *error) {
    kri_engine_model_t *em = find_named(e, name, error);
    if (!em) return KR_E_NOT_FOUND;
    kr_status_t status = KR_OK;
    kri_mutex_lock(&e->admin_mutex); /* so that the size before is still true after */
    kri_mutex_lock(&e->mutex);
    const uint64_t before = em->kv_bytes;
    const uint64_t left = e->params.kv_bytes_max - e->kv_bytes_reserved;
    const uint64_t more = kv_bytes > before ? kv_bytes - before : 0;
    if (!em->is_ready) status = KR_E_NOT_FOUND;
    else if (more > left) status = KR_E_LIMIT;
    if (status == KR_OK) {
        e->kv_bytes_reserved += more;
        em->kv_bytes += more;
    }
    kri_mutex_unlock(&e->mutex);
    if (status == KR_OK) {
        kri_ask_t ask = {.fn = resize, .em = em, .args = &kv_bytes};
        status = kri_engine_ask(e, &ask);
        kri_mutex_lock(&e->mutex);
        const uint64_t after = status == KR_OK ? kv_bytes : before;
        e->kv_bytes_reserved -= em->kv_bytes - after;
        em->kv_bytes = after;
        kri_mutex_unlock(&e->mutex);
    }
    kri_mutex_unlock(&e->admin_mutex);
    kri_engine_model_unref(em);
    if (status == KR_OK) return KR_OK;
    return KRI_FAIL(error, status, status == KR_E_LIMIT ? "kv_bytes" : "name",
                    "cannot give %llu bytes to the keys and values of %s",
                    (unsigned long long)kv_bytes, name);
}
