/* request.c: submit: everything is checked and allocated on the caller's thread, then the finished
 * request goes to the step thread in one section under the mutex, where the bounded queue has its
 * places counted. After that only the model's numbers, time or a grammar can fail a request. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/sched_impl.h"
#include "sample/params.h"

#define PRIORITY_MAX 100
#define DEADLINE_MS_DEFAULT 600000u
/* What a detokenizer with all its stop strings takes. */
#define DETOK_BYTES ((uint64_t)16 << 10)

/* ---- checks that need no model -------------------------------------------------------------- */

/* What says how to generate means nothing where nothing is generated. */
static kr_status_t check_pooled(const kr_request_params_t *p, kr_error_t *error) {
    const char *field = p->n_choices > 1      ? "n_choices"
                        : p->sampler          ? "sampler"
                        : p->stops            ? "stops"
                        : p->n_stops > 0      ? "n_stops"
                        : p->n_tokens_max > 0 ? "n_tokens_max"
                        : p->ignore_end       ? "ignore_end"
                        : p->grammar          ? "grammar"
                                              : NULL;
    if (!field) return KR_OK;
    return KRI_FAIL(error, KR_E_INVALID_ARG, field,
                    "%s has no meaning with pooling, which generates nothing", field);
}

kr_status_t kri_request_check(const kr_request_params_t *p, kr_error_t *error) {
    KR_TRY(kri_check_max("n_choices", p->n_choices, KRI_CHOICES_MAX, error));
    if (p->ignore_end > 1) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "ignore_end", "ignore_end is %u, not 0 or 1",
                        p->ignore_end);
    }
    if (p->priority < -PRIORITY_MAX || p->priority > PRIORITY_MAX) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "priority",
                        "priority is %d, allowed are -100 to 100", p->priority);
    }
    KR_TRY(kri_check_max("credits", p->credits, KRI_CREDITS_MAX, error));
    if (p->reserved) return KRI_FAIL(error, KR_E_INVALID_ARG, "reserved", "reserved is not 0");
    if (p->pooling < KR_POOLING_NONE || p->pooling > KR_POOLING_LAST) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "pooling", "pooling is %d, allowed are 0 to %d",
                        p->pooling, KR_POOLING_LAST);
    }
    if (p->normalize > (p->pooling != KR_POOLING_NONE)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "normalize", "normalize is %u, not 0%s",
                        p->normalize, p->pooling != KR_POOLING_NONE ? " or 1" : " without pooling");
    }
    if (p->pooling != KR_POOLING_NONE) return check_pooled(p, error);
    if (p->n_stops > 0 && !p->stops) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "stops", "stops is NULL, n_stops is %u",
                        p->n_stops);
    }
    if (p->grammar && (!p->grammar->mask || !p->grammar->accept)) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "grammar", "mask or accept is NULL");
    }
    return KR_OK;
}

/* ---- memory --------------------------------------------------------------------------------- */

void kri_request_free_work(kr_request_t r) {
    for (uint32_t i = 0; i < r->n_choices && r->choices; i++) {
        kri_sampler_destroy(r->choices[i].sampler);
        kri_detok_destroy(r->choices[i].detok);
        r->choices[i].sampler = NULL;
        r->choices[i].detok = NULL;
    }
    kri_free(r->tokens);
    r->tokens = NULL;
    kri_pooling_free_work(&r->pooling);
}

void kri_request_free_events(kr_request_t r) {
    for (uint32_t i = 0; r->ring.slots && i < r->ring.capacity; i++) {
        kri_free(r->ring.slots[i].text_heap);
    }
    kri_free(r->ring.slots);
    kri_free(r->ring.logprobs);
    r->ring.slots = NULL;
    r->ring.logprobs = NULL;
    kri_pooling_free_embedding(&r->pooling);
}

void kri_request_unref(kr_request_t r) {
    if (atomic_fetch_sub(&r->n_refs, 1) != 1) return;
    kr_engine_t e = r->engine;
    kri_request_free_events(r);
    kri_request_free_work(r);
    kri_free(r->choices);
    kri_free(r);
    kri_engine_unref(e);
}

static void plan_ring(kr_request_t r, uint32_t n_budget, uint32_t n_logprobs) {
    const uint64_t n_tokens = (uint64_t)n_budget * r->n_choices;
    const uint32_t n_window = n_tokens < KRI_WINDOW ? (uint32_t)n_tokens : KRI_WINDOW;
    uint32_t capacity = 1;
    r->ring.n_max = n_window + r->n_choices + 1; /* the ends of the choices and of all */
    while (capacity < r->ring.n_max) capacity *= 2;
    r->ring.capacity = capacity;
    r->ring.n_logprobs = n_logprobs;
    r->event_bytes = capacity * (sizeof *r->ring.slots + n_logprobs * sizeof *r->ring.logprobs) +
                     kri_pooling_event_bytes(r->pooling.kind, r->em->n_embd);
}

static kr_status_t make_ring(kri_ring_t *ring) {
    ring->slots = kri_calloc(ring->capacity, sizeof *ring->slots, "request");
    if (ring->n_logprobs > 0) {
        ring->logprobs = kri_calloc((size_t)ring->capacity * ring->n_logprobs,
                                    sizeof *ring->logprobs, "request");
    }
    return ring->slots && (ring->logprobs || ring->n_logprobs == 0) ? KR_OK : KR_E_NOMEM;
}

/* The penalties look at the prompt too, and remember n_penalty_last tokens of it. */
static kr_status_t make_generating(kri_choice_t *choice, const kr_request_params_t *p,
                                   const kr_sampler_params_t *sampler, const kr_token_t *prompt,
                                   kr_error_t *error) {
    const kr_request_t r = choice->request;
    const uint32_t n_prompt = r->live.n_prompt;
    kr_sampler_params_t own = *sampler;
    own.seed += choice->index;
    KR_TRY(kri_sampler_create(&own, r->em->n_vocab, &choice->sampler, error));
    KR_TRY(kri_detok_create(r->em->model->tokenizer, p->stops, p->n_stops, &choice->detok,
                            error));
    const uint32_t n_seen = own.n_penalty_last < n_prompt ? own.n_penalty_last : n_prompt;
    for (uint32_t i = n_prompt - n_seen; i < n_prompt; i++) {
        KR_TRY(kri_sampler_accept(choice->sampler, prompt[i]));
    }
    return KR_OK;
}

static kr_status_t make_choice(kr_request_t r, uint32_t index, const kr_request_params_t *p,
                               const kr_sampler_params_t *sampler, const kr_token_t *prompt,
                               kr_error_t *error) {
    kri_choice_t *choice = &r->choices[index];
    const uint32_t n_prompt = r->live.n_prompt;
    choice->request = r;
    choice->index = index;
    if (p->pooling == KR_POOLING_NONE) {
        KR_TRY(make_generating(choice, p, sampler, prompt, error));
    }
    const uint64_t deadline_ms = p->deadline_ms ? p->deadline_ms : DEADLINE_MS_DEFAULT;
    const uint64_t queue_ms = r->engine->params.queue_wait_ms_max;
    kr_token_t *tokens = r->tokens + (size_t)index * r->n_tokens_max;
    memcpy(tokens, prompt, n_prompt * sizeof *tokens);
    choice->task = (kri_task_t){
        .tokens = tokens, .n_prompt = n_prompt, .n_tokens = n_prompt,
        .n_tokens_max = r->n_tokens_max, .priority = p->priority, .key = p->key,
        .salt = p->cache_salt, .deadline_ns = r->submit_ns + deadline_ms * 1000000,
        .queue_until_ns = r->submit_ns + queue_ms * 1000000, .pooling = p->pooling,
        .has_credits = true, .match = {.miss_cached = -1}, .owner = choice};
    return KR_OK;
}

/* Heap that the request takes until it ends, at most. */
static uint64_t work_bytes(const kr_request_t r, const kr_sampler_params_t *sampler) {
    const uint64_t own = r->pooling.kind == KR_POOLING_NONE
                             ? kri_sampler_bytes(sampler, r->em->n_vocab) + DETOK_BYTES
                             : kri_pooling_work_bytes(r->pooling.kind, r->em->n_embd);
    return r->n_choices *
           (sizeof *r->choices + (uint64_t)r->n_tokens_max * sizeof *r->tokens + own);
}

/* More than all requests together may hold: what would have to be smaller. */
static kr_status_t refuse_size(const kr_request_t r, const kr_sampler_params_t *sampler,
                               kr_error_t *error) {
    const uint64_t n_max = r->engine->request_bytes_max;
    kr_sampler_params_t no_window = *sampler;
    no_window.n_penalty_last = 0;
    const char *param = r->n_choices > 1 ? "n_choices" : "n_tokens_max";
    if (r->pooling.kind != KR_POOLING_NONE) param = "segments";
    else if (work_bytes(r, &no_window) + r->event_bytes <= n_max) param = "n_penalty_last";
    return KRI_FAIL(error, KR_E_LIMIT, param,
                    "the request needs %llu bytes, all together may hold %llu",
                    (unsigned long long)(r->work_bytes + r->event_bytes),
                    (unsigned long long)n_max);
}

/* How large it will be; nothing of that is allocated yet. */
static kr_status_t plan_memory(kr_request_t r, const kr_request_params_t *p,
                               kr_sampler_params_t *sampler, kr_error_t *error) {
    KR_TRY(kri_sampler_params_read(sampler, p->sampler, r->em->n_vocab, error));
    if (p->pooling != KR_POOLING_NONE) plan_ring(r, 1, 0); /* EMBEDDING goes where a token would */
    else plan_ring(r, r->n_tokens_max - r->live.n_prompt, sampler->n_logprobs);
    r->work_bytes = work_bytes(r, sampler);
    if (r->work_bytes + r->event_bytes <= r->engine->request_bytes_max) return KR_OK;
    return refuse_size(r, sampler, error);
}

static kr_status_t build(kr_request_t r, const kr_request_params_t *p,
                         const kr_sampler_params_t *sampler, const kr_token_t *prompt,
                         kr_error_t *error) {
    r->user = p->user;
    r->has_explicit_credits = p->credits > 0;
    r->ignore_end = p->ignore_end != 0;
    r->has_grammar = p->grammar != NULL;
    if (p->grammar) r->grammar = *p->grammar;
    atomic_store(&r->credits, p->credits);
    kr_error_init(&r->error);
    r->choices = kri_calloc(r->n_choices, sizeof *r->choices, "request");
    r->tokens = kri_calloc((size_t)r->n_choices * r->n_tokens_max, sizeof *r->tokens, "request");
    if (!r->choices || !r->tokens || make_ring(&r->ring) != KR_OK ||
        kri_pooling_init(&r->pooling, p->pooling, p->normalize != 0, r->em->n_embd) != KR_OK) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the request");
    }
    for (uint32_t i = 0; i < r->n_choices; i++) {
        KR_TRY(make_choice(r, i, p, sampler, prompt, error));
    }
    return KR_OK;
}

/* ---- a place in the engine ------------------------------------------------------------------ */

static kr_status_t refuse_draining(kr_error_t *error) {
    return KRI_FAIL(error, KR_E_SHUTTING_DOWN, NULL, "the engine is shutting down");
}

/* Where the scheduler draws the line. The shape of the pool never changes. With the mutex held and
 * the model ready. */
static bool fits(const kri_engine_model_t *em, uint32_t n_prompt, uint32_t n_tokens_max) {
    const kri_task_t task = {.n_prompt = n_prompt, .n_tokens_max = n_tokens_max};
    return kri_sched_need_full(em->sched, &task) <= em->stats.kv_bytes_max;
}

/* Prompt and budget: what was asked, at most what the context leaves; without a wish also what the
 * pool can hold. With pooling the prompt alone. */
static kr_status_t choose_budget(kr_engine_t e, kri_engine_model_t *em,
                                 const kr_request_params_t *p, uint32_t n_prompt,
                                 uint32_t *n_tokens_max, kr_error_t *error) {
    const bool is_pooled = p->pooling != KR_POOLING_NONE;
    const uint32_t n_ctx = em->info.n_ctx, n_wanted = p->n_tokens_max;
    uint32_t low = n_prompt + 1, high = n_ctx;
    if (n_wanted > 0 && n_wanted < n_ctx - n_prompt) high = n_prompt + n_wanted;
    if (is_pooled) low = high = n_prompt;
    kri_mutex_lock(&e->mutex);
    const bool is_ready = em->is_ready;
    bool fits_low = is_ready && fits(em, n_prompt, low);
    bool fits_high = is_ready && fits(em, n_prompt, high);
    if (n_wanted == 0 && fits_low && !fits_high) {
        while (high - low > 1) {
            const uint32_t middle = low + (high - low) / 2;
            if (fits(em, n_prompt, middle)) low = middle;
            else high = middle;
        }
        high = low;
        fits_high = true;
    }
    kri_mutex_unlock(&e->mutex);
    if (!is_ready) return KRI_FAIL(error, KR_E_NOT_FOUND, "model", "the model was removed");
    if (!fits_high) {
        return KRI_FAIL(error, KR_E_LIMIT, is_pooled ? "segments" : "n_tokens_max",
                        "%u tokens need more pages than the whole pool", high);
    }
    *n_tokens_max = high;
    return KR_OK;
}

/* What is full is named: it says who has to act. With the mutex held. */
static kr_status_t check_places(kr_engine_t e, const kri_engine_model_t *em, uint64_t key,
                                uint32_t n_choices, uint64_t bytes, kr_error_t *error) {
    if (e->is_draining) return refuse_draining(error);
    if (!em->is_ready) return KRI_FAIL(error, KR_E_NOT_FOUND, "model", "the model was removed");
    if (em->is_lost) {
        return KRI_FAIL(error, KR_E_DEVICE_LOST, "model", "the model's device was lost");
    }
    if (key != 0 && kri_keys_count(&e->keys, key) >= e->params.key_in_flight_max) {
        return KRI_FAIL(error, KR_E_BUSY, "key", "the key has %u requests in flight already",
                        e->params.key_in_flight_max);
    }
    if (e->n_waiting >= e->params.queue_max) {
        return KRI_FAIL(error, KR_E_BUSY, NULL, "the queue is full: %u requests wait",
                        e->n_waiting);
    }
    if (e->n_undelivered >= e->open_max) {
        return KRI_FAIL(error, KR_E_BUSY, NULL,
                        "the events of %u requests are not consumed to the end",
                        e->n_undelivered);
    }
    if (n_choices > e->n_tasks_max - e->n_tasks) {
        return KRI_FAIL(error, KR_E_BUSY, NULL, "%u choices of requests have not ended",
                        e->n_tasks);
    }
    if (e->request_bytes + bytes > e->request_bytes_max) { /* alone it would fit: plan_memory */
        return KRI_FAIL(error, KR_E_BUSY, NULL, "the requests hold %llu bytes of at most %llu",
                        (unsigned long long)e->request_bytes,
                        (unsigned long long)e->request_bytes_max);
    }
    return KR_OK;
}

static uint32_t count_choices(const kr_request_params_t *p) {
    return p->n_choices ? p->n_choices : 1;
}

/* The model, with a reference. Where there is no place, that is found before a prompt is rendered:
 * who is refused because of too much work must not make more. */
static kr_status_t find_model(kr_engine_t e, const kr_request_params_t *p,
                              kri_engine_model_t **em, kr_error_t *error) {
    kr_status_t status = KR_OK;
    kri_mutex_lock(&e->mutex);
    const bool is_draining = e->is_draining;
    kri_engine_model_t *found = is_draining ? NULL : kri_engine_find(e, p->model);
    if (found) status = check_places(e, found, p->key, count_choices(p), 0, error);
    kri_mutex_unlock(&e->mutex);
    if (is_draining) return refuse_draining(error);
    if (!found) {
        return KRI_FAIL(error, KR_E_NOT_FOUND, "model", "there is no model %s",
                        p->model ? p->model : "at all");
    }
    if (status == KR_OK) *em = found;
    else kri_engine_model_unref(found);
    return status;
}

/* To the end of a list of what the step thread must look at. With the mutex held. */
static void ask_locked(kr_request_t r, kr_request_t *head, kr_request_t *tail) {
    if (r->is_asking || r->engine->is_stopped) return;
    atomic_fetch_add(&r->n_refs, 1);
    r->is_asking = true;
    r->asks_next = NULL;
    if (*tail) (*tail)->asks_next = r;
    else *head = r;
    *tail = r;
}

void kri_request_ask(kr_request_t r) {
    kri_mutex_lock(&r->engine->mutex);
    ask_locked(r, &r->engine->asks_head, &r->engine->asks_tail);
    kri_mutex_unlock(&r->engine->mutex);
    kri_engine_wake(r->engine);
}

/* Before its memory is taken: a request that is refused must not cost what an accepted one does. */
static kr_status_t check_memory(kr_engine_t e, kr_request_t r, kr_error_t *error) {
    kri_mutex_lock(&e->mutex);
    const kr_status_t status = check_places(e, r->em, r->key, r->n_choices,
                                            r->work_bytes + r->event_bytes, error);
    kri_mutex_unlock(&e->mutex);
    return status;
}

/* The handle is set before the step thread can know of the request. */
static kr_status_t enqueue(kr_engine_t e, kr_request_t r, kr_request_t *handle,
                           kr_error_t *error) {
    const uint64_t bytes = r->work_bytes + r->event_bytes;
    kri_mutex_lock(&e->mutex);
    const kr_status_t status = check_places(e, r->em, r->key, r->n_choices, bytes, error);
    if (status == KR_OK) {
        /* One of the step thread, one of the events, one of the handle. */
        atomic_store(&r->n_refs, handle ? 3 : 2);
        e->n_waiting++;
        e->n_active++;
        e->n_tasks += r->n_choices;
        e->n_undelivered++;
        e->request_bytes += bytes;
        if (r->key != 0) kri_keys_add(&e->keys, r->key);
        r->stats = r->live;
        if (handle) *handle = r;
        ask_locked(r, &e->new_head, &e->new_tail);
    }
    kri_mutex_unlock(&e->mutex);
    return status;
}

kr_status_t kri_engine_submit(kr_engine_t e, const kr_request_params_t *p, kr_request_t *request,
                              kr_error_t *error) {
    const uint64_t submit_ns = kri_clock_ns();
    kri_engine_model_t *em = NULL;
    kr_token_t *prompt = NULL;
    kr_sampler_params_t sampler;
    kr_status_t status = KR_OK;
    KR_TRY(kri_request_check(p, error));
    KR_TRY(find_model(e, p, &em, error));
    kr_request_t r = kri_calloc(1, sizeof *r, "request");
    if (!r) {
        kri_engine_model_unref(em);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the request");
    }
    atomic_store(&r->n_refs, 1);
    kri_engine_retain(e);
    kri_engine_retain(e); /* until the return: the first callback may already destroy the engine */
    r->engine = e;
    r->em = em;
    r->submit_ns = submit_ns;
    r->key = p->key;
    r->n_choices = count_choices(p);
    r->pooling.kind = p->pooling;
    r->live = (kr_request_stats_t){.struct_bytes = sizeof r->live, .miss_cached = -1};
    KR_TRY_DONE(kri_request_prompt(em, p, &prompt, &r->live.n_prompt, &r->live, error));
    KR_TRY_DONE(choose_budget(e, em, p, r->live.n_prompt, &r->n_tokens_max, error));
    KR_TRY_DONE(plan_memory(r, p, &sampler, error));
    KR_TRY_DONE(check_memory(e, r, error));
    KR_TRY_DONE(build(r, p, &sampler, prompt, error));
    KR_TRY_DONE(enqueue(e, r, request, error));
    kri_engine_wake(e);
done:
    kri_free(prompt);
    if (status != KR_OK) {
        kri_request_unref(r);
        kri_engine_model_unref(em);
    }
    kri_engine_unref(e);
    return status;
}

/* ---- explain -------------------------------------------------------------------------------- */

typedef struct explain_args_s {
    const kri_task_t *task;
    uint32_t n_choices;
    kr_explain_t *out;
} explain_args_t;

static kr_status_t explain(kri_ask_t *ask) {
    const explain_args_t *args = ask->args;
    const kri_task_t *task = args->task;
    const uint32_t n_rows = ask->em->info.n_rows_max, n_tokens = kri_task_kv_tokens(task);
    const uint32_t n_shared = (task->n_prompt - 1) / 16 * 16;
    kr_explain_t *out = args->out;
    kri_kv_match_t match = {.miss_cached = -1};
    uint64_t ttft_ns = 0;
    kri_mutex_lock(&ask->em->engine->mutex);
    const bool is_ready = ask->em->is_ready; /* then it is not closed before we return */
    kri_mutex_unlock(&ask->em->engine->mutex);
    if (!is_ready) return KR_E_NOT_FOUND;
    if (kri_task_uses_cache(task)) {
        kri_kv_pool_match(ask->em->kv, task->salt, task->tokens, task->n_prompt, &match);
    }
    kri_sched_predict(ask->em->sched, task, match.n_cached, &out->queue_position, &ttft_ns);
    out->n_prompt = task->n_prompt;
    out->n_cached = match.n_cached;
    out->miss_position = match.miss_position;
    out->miss_cached = match.miss_cached;
    out->ttft_ms = (double)ttft_ns / 1e6;
    /* Further choices share the full pages of the prompt. */
    out->kv_bytes = kri_kv_pool_need(ask->em->kv, match.n_cached, n_tokens, n_rows) +
                    (args->n_choices - 1) *
                        kri_kv_pool_need(ask->em->kv, n_shared, n_tokens, n_rows);
    return KR_OK;
}

kr_status_t kri_engine_explain(kr_engine_t e, const kr_request_params_t *p, kr_explain_t *out,
                               kr_error_t *error) {
    kri_engine_model_t *em = NULL;
    kr_token_t *prompt = NULL;
    kr_request_stats_t stats = {0};
    kr_sampler_params_t sampler;
    kri_detok_t *detok = NULL;
    kri_task_t task = {.priority = p->priority, .key = p->key, .salt = p->cache_salt,
                       .pooling = p->pooling};
    struct kr_request_s shape = {.engine = e, .n_choices = count_choices(p),
                                 .pooling.kind = p->pooling};
    kr_status_t status = KR_OK;
    KR_TRY(kri_request_check(p, error));
    KR_TRY(find_model(e, p, &em, error));
    KR_TRY_DONE(kri_request_prompt(em, p, &prompt, &task.n_prompt, &stats, error));
    KR_TRY_DONE(choose_budget(e, em, p, task.n_prompt, &task.n_tokens_max, error));
    shape.em = em;
    shape.live.n_prompt = task.n_prompt;
    shape.n_tokens_max = task.n_tokens_max;
    KR_TRY_DONE(plan_memory(&shape, p, &sampler, error));
    KR_TRY_DONE(kri_detok_create(em->model->tokenizer, p->stops, p->n_stops, &detok, error));
    task.tokens = prompt;
    task.n_tokens = task.n_prompt;
    explain_args_t args = {.task = &task, .n_choices = shape.n_choices, .out = out};
    kri_ask_t ask = {.fn = explain, .em = em, .args = &args};
    status = kri_engine_ask(e, &ask);
    if (status == KR_E_SHUTTING_DOWN) (void)refuse_draining(error);
    else if (status != KR_OK) (void)KRI_FAIL(error, status, "model", "the model was removed");
done:
    kri_detok_destroy(detok);
    kri_free(prompt);
    kri_engine_model_unref(em);
    return status;
}

/* ---- handles -------------------------------------------------------------------------------- */

void kri_request_cancel(kr_request_t r) {
    kr_engine_t e = r->engine;
    kri_mutex_lock(&e->mutex);
    const bool is_first = atomic_exchange(&r->cancel_asked, 1) == 0;
    if (is_first) {
        ask_locked(r, &e->asks_head, &e->asks_tail);
        kri_engine_stop_unwanted(e);
    }
    kri_mutex_unlock(&e->mutex);
    if (is_first) kri_engine_wake(e);
}

kr_status_t kri_request_add_credits(kr_request_t r, uint32_t n) {
    if (!r->has_explicit_credits) return KR_E_INVALID_ARG;
    uint32_t held = atomic_load(&r->credits);
    do {
        if (n > KRI_CREDITS_MAX || held + n > KRI_CREDITS_MAX) return KR_E_INVALID_ARG;
    } while (!atomic_compare_exchange_weak(&r->credits, &held, held + n));
    if (atomic_exchange(&r->is_starved, 0)) kri_request_ask(r);
    return KR_OK;
}

void kri_request_release(kr_request_t r) {
    if (r) kri_request_unref(r);
}

void kri_request_stats(kr_request_t r, kr_request_stats_t *stats) {
    kri_mutex_lock(&r->engine->mutex);
    *stats = r->stats;
    const bool has_left = r->has_left_queue;
    kri_mutex_unlock(&r->engine->mutex);
    if (!has_left) stats->queue_ms = (double)(kri_clock_ns() - r->submit_ns) / 1e6;
}
