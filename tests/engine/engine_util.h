/* engine_util.h: what tests of engines share: a collector that checks the order of events, solo
 * runs through kr_session to compare with, and a grammar that stops the step thread at a gate, so
 * that tests can say what has happened instead of waiting for it. */
#ifndef KR_TEST_ENGINE_UTIL_H
#define KR_TEST_ENGINE_UTIL_H

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "../model/tiny.h"

#define OUT_TOKENS_MAX 512
#define OUT_TEXT_MAX 8192

typedef struct out_choice_s {
    kr_token_t tokens[OUT_TOKENS_MAX];
    float logprobs[OUT_TOKENS_MAX];
    uint32_t n_tokens;
    char text[OUT_TEXT_MAX];
    size_t n_text;
    int32_t finish, stop;
    bool is_over;
} out_choice_t;

/* The `user` of a request. Written by the consumer of events, read after it is over. */
typedef struct out_s {
    uint32_t n_choices;
    out_choice_t *choices;
    kr_request_t request;
    kr_status_t status;
    char message[512];
    const char *broken;     /* what was out of order; NULL = nothing */
    float *embedding;       /* [n_embd] of EMBEDDING; NULL = none came */
    uint32_t n_embd;
    uint32_t n_tokens;      /* all choices */
    bool is_over;
    struct collector_s *collector;
} out_t;

typedef struct collector_s {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t n_over, n_events;
    kr_engine_t engine;
    void (*hook)(struct collector_s *collector, const kr_event_t *event); /* after recording */
    void *hook_user;
} collector_t;

static inline void collector_init(collector_t *c) {
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, NULL);
}

static inline out_t *out_create(collector_t *c, uint32_t n_choices) {
    out_t *out = calloc(1, sizeof *out);
    out->n_choices = n_choices;
    out->choices = calloc(n_choices, sizeof *out->choices);
    out->collector = c;
    return out;
}

static inline void out_destroy(out_t *out) {
    kr_request_release(out->request);
    free(out->embedding);
    free(out->choices);
    free(out);
}

/* It stands for the whole of its only choice. */
static inline const char *out_record_embedding(out_t *out, const kr_event_t *e) {
    if (e->n_embd == 0 || e->text_bytes > 0 || e->token != -1 || e->stop != -1) {
        return "an embedding has fields of other events";
    }
    if (out->n_choices != 1 || out->n_tokens > 0) return "an embedding of what generates";
    out->n_embd = e->n_embd;
    out->embedding = malloc(e->n_embd * sizeof *out->embedding);
    memcpy(out->embedding, e->embedding, e->n_embd * sizeof *out->embedding);
    out->choices[0].is_over = true;
    return NULL;
}

static inline const char *out_record(out_t *out, const kr_event_t *e) {
    if (out->is_over) return "an event after the last";
    if (out->request && e->request != out->request) return "another request's event";
    if (e->type == KR_EVENT_DONE || e->type == KR_EVENT_ERROR) {
        out->is_over = true;
        out->status = e->status;
        if ((e->type == KR_EVENT_DONE) != (e->status == KR_OK)) return "status and type differ";
        if ((e->type == KR_EVENT_ERROR) != (e->error != NULL)) return "error and type differ";
        if (e->error) snprintf(out->message, sizeof out->message, "%s", e->error->message);
        for (uint32_t i = 0; i < out->n_choices && e->type == KR_EVENT_DONE; i++) {
            if (!out->choices[i].is_over) return "DONE before all choices";
        }
        return NULL;
    }
    if (e->choice >= out->n_choices) return "unknown choice";
    out_choice_t *choice = &out->choices[e->choice];
    if (choice->is_over) return "an event of a choice after its CHOICE";
    if ((e->type == KR_EVENT_EMBEDDING) != (e->embedding != NULL)) return "type and vector differ";
    if (e->type == KR_EVENT_EMBEDDING) return out_record_embedding(out, e);
    if (e->text_bytes > 0 && choice->n_text + e->text_bytes < OUT_TEXT_MAX) {
        memcpy(choice->text + choice->n_text, e->text, e->text_bytes);
        choice->n_text += e->text_bytes;
    }
    if (e->type == KR_EVENT_CHOICE) {
        choice->is_over = true;
        choice->finish = e->finish;
        choice->stop = e->stop;
        if ((e->finish == KR_FINISH_STOP) != (e->stop >= 0)) return "finish and stop differ";
        return e->finish == KR_FINISH_NONE ? "CHOICE without a reason" : NULL;
    }
    if (e->type != KR_EVENT_TOKEN) return "unknown type";
    if (e->stop != -1) return "a TOKEN with a stop string";
    if (choice->n_tokens < OUT_TOKENS_MAX) {
        choice->tokens[choice->n_tokens] = e->token;
        choice->logprobs[choice->n_tokens++] = e->logprob;
    }
    out->n_tokens++;
    return NULL;
}

static inline void collect(const kr_event_t *event, void *user) {
    collector_t *c = user;
    out_t *out = event->user;
    pthread_mutex_lock(&c->mutex);
    c->n_events++;
    if (out) {
        const char *broken = out_record(out, event);
        if (broken && !out->broken) out->broken = broken;
        if (event->type == KR_EVENT_DONE || event->type == KR_EVENT_ERROR) c->n_over++;
    }
    pthread_cond_broadcast(&c->changed);
    void (*hook)(collector_t *, const kr_event_t *) = c->hook;
    pthread_mutex_unlock(&c->mutex);
    if (hook) hook(c, event);
}

/* Waits for a condition on the collector's fields; two minutes mean that it never comes. */
#define WAIT_FOR(c, condition)                                                                   \
    do {                                                                                         \
        struct timespec wait_until;                                                              \
        clock_gettime(CLOCK_REALTIME, &wait_until);                                              \
        wait_until.tv_sec += 120;                                                                \
        pthread_mutex_lock(&(c)->mutex);                                                         \
        int wait_failed = 0;                                                                     \
        while (!(condition) && !wait_failed) {                                                   \
            wait_failed = pthread_cond_timedwait(&(c)->changed, &(c)->mutex, &wait_until);       \
        }                                                                                        \
        pthread_mutex_unlock(&(c)->mutex);                                                       \
        if (wait_failed) fail_msg("never: %s", #condition);                                      \
    } while (0)

static inline void wait_over(out_t *out) {
    WAIT_FOR(out->collector, out->is_over);
    if (out->broken) fail_msg("%s", out->broken);
}

/* ---- engines and requests ------------------------------------------------------------------- */

static inline kr_engine_t make_engine(collector_t *c, const kr_engine_params_t *params) {
    kr_engine_params_t p;
    kr_error_t error;
    kr_engine_t engine = NULL;
    kr_engine_params_init(&p);
    if (params) p = *params;
    p.on_event = c ? collect : NULL;
    p.user = c;
    if (p.kv_bytes_max == 0) p.kv_bytes_max = (uint64_t)1 << 30;
    kr_error_init(&error);
    if (kr_engine_create(&p, &engine, &error) != KR_OK) fail_msg("%s", error.message);
    if (c) c->engine = engine;
    return engine;
}

static inline void add_model(kr_engine_t engine, const char *name, kr_model_t model,
                             const kr_session_params_t *params) {
    kr_error_t error;
    kr_session_params_t p;
    kr_session_params_init(&p);
    if (params) p = *params;
    p.invariant = KR_INVARIANT_ON;
    kr_error_init(&error);
    if (kr_engine_add_model(engine, name, model, &p, &error) != KR_OK) {
        fail_msg("%s", error.message);
    }
}

typedef struct ask_s {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    kr_segment_t segment;
} ask_t;

/* Greedy, end tokens ordinary: exactly n_tokens tokens. */
static inline void ask_init(ask_t *ask, const kr_token_t *prompt, uint32_t n_prompt,
                            uint32_t n_tokens) {
    kr_request_params_init(&ask->params);
    kr_sampler_params_init(&ask->sampler);
    ask->sampler.temperature = 0;
    ask->segment = (kr_segment_t){.type = KR_SEGMENT_TOKENS, .count = n_prompt, .tokens = prompt};
    ask->params.n_segments = 1;
    ask->params.segments = &ask->segment;
    ask->params.sampler = &ask->sampler;
    ask->params.n_tokens_max = n_tokens;
    ask->params.ignore_end = 1;
}

static inline kr_status_t try_submit(kr_engine_t engine, ask_t *ask, out_t *out) {
    ask->params.user = out;
    return kr_engine_submit(engine, &ask->params, out ? &out->request : NULL, NULL);
}

static inline out_t *submit(collector_t *c, ask_t *ask) {
    kr_error_t error;
    out_t *out = out_create(c, ask->params.n_choices ? ask->params.n_choices : 1);
    ask->params.user = out;
    kr_error_init(&error);
    if (kr_engine_submit(c->engine, &ask->params, &out->request, &error) != KR_OK) {
        fail_msg("%s: %s", error.param, error.message);
    }
    return out;
}

static inline kr_request_stats_t stats_of(const out_t *out) {
    kr_request_stats_t stats;
    kr_request_stats_init(&stats);
    assert_status(kr_request_stats(out->request, &stats), KR_OK);
    return stats;
}

static inline kr_engine_stats_t engine_stats(kr_engine_t engine, const char *name) {
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    assert_status(kr_engine_stats(engine, name, &stats), KR_OK);
    return stats;
}

/* Bytes of the pages for n tokens (a multiple of 32) of a model without windows. */
static inline uint64_t kv_bytes_of(kr_model_t model, uint32_t n_tokens) {
    kr_session_params_t params;
    kr_session_info_t info;
    kr_session_params_init(&params);
    kr_session_info_init(&info);
    params.n_ctx = 32;
    assert_status(kr_session_plan(model, &params, &info, NULL), KR_OK);
    return info.kv_bytes * (n_tokens / 32);
}

/* ---- the same alone, through kr_session ----------------------------------------------------- */

typedef struct solo_s {
    kr_model_t model;
    kr_session_t session;
    uint32_t n_vocab;
    float *logits;
} solo_t;

static inline void solo_init(solo_t *solo, kr_model_t model, kr_dtype_t kv) {
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    solo->model = model;
    solo->session = tiny_session(model, kv, NULL, 1, 1);
    solo->n_vocab = info.n_vocab;
    solo->logits = malloc(info.n_vocab * sizeof(float));
}

static inline void solo_deinit(solo_t *solo) {
    kr_session_destroy(solo->session);
    free(solo->logits);
}

/* What choice `index` of the request must give. */
static inline void solo_run(solo_t *solo, const ask_t *ask, uint32_t index, out_choice_t *out) {
    const kr_request_params_t *p = &ask->params;
    kr_sampler_params_t sampler_params = ask->sampler;
    kr_sampler_t sampler = NULL;
    kr_detokenizer_t detok = NULL;
    const uint32_t n_prompt = (uint32_t)ask->segment.count;
    const char *text = "";
    size_t n_text = 0;
    int32_t stopped = 0;
    memset(out, 0, sizeof *out);
    sampler_params.seed += index;
    assert_status(kr_sampler_create(&sampler_params, solo->n_vocab, &sampler, NULL), KR_OK);
    assert_status(kr_detokenizer_create(solo->model, p->stops, p->n_stops, &detok, NULL), KR_OK);
    assert_status(kr_session_truncate(solo->session, 0, 0), KR_OK);
    for (uint32_t i = 0; i < n_prompt; i++) {
        assert_status(kr_sampler_accept(sampler, ask->segment.tokens[i]), KR_OK);
    }
    decode_chunks(solo->session, ask->segment.tokens, n_prompt, 100, n_prompt - 1, solo->n_vocab,
                  solo->logits);
    while (out->finish == KR_FINISH_NONE) {
        kr_token_t token;
        kr_logprob_t chosen, top[20];
        assert_status(kr_sampler_sample(sampler, solo->logits, &token), KR_OK);
        if (sampler_params.n_logprobs > 0) {
            assert_status(kr_sampler_logprobs(sampler, &chosen, top), KR_OK);
            out->logprobs[out->n_tokens] = chosen.logprob;
        }
        assert_status(kr_sampler_accept(sampler, token), KR_OK);
        if (!p->ignore_end && kr_model_token_is_end(solo->model, token)) {
            out->finish = KR_FINISH_END;
            break;
        }
        out->tokens[out->n_tokens++] = token;
        assert_status(kr_detokenizer_push(detok, token, &text, &n_text, &stopped), KR_OK);
        memcpy(out->text + out->n_text, text, n_text);
        out->n_text += n_text;
        if (stopped) out->finish = KR_FINISH_STOP;
        else if (out->n_tokens == p->n_tokens_max) out->finish = KR_FINISH_LENGTH;
        else decode_chunks(solo->session, &token, 1, 1, 0, solo->n_vocab, solo->logits);
    }
    assert_status(kr_detokenizer_finish(detok, &text, &n_text), KR_OK);
    memcpy(out->text + out->n_text, text, n_text);
    out->n_text += n_text;
    kr_sampler_destroy(sampler);
    kr_detokenizer_destroy(detok);
}

/* Fails with the place of the first difference. */
static inline void assert_same(const out_choice_t *got, const out_choice_t *wanted) {
    for (uint32_t i = 0; i < got->n_tokens && i < wanted->n_tokens; i++) {
        if (got->tokens[i] == wanted->tokens[i]) continue;
        fail_msg("token %u is %d, alone it is %d", i, got->tokens[i], wanted->tokens[i]);
    }
    assert_int_equal(got->n_tokens, wanted->n_tokens);
    assert_int_equal(got->finish, wanted->finish);
    assert_int_equal(got->n_text, wanted->n_text);
    assert_memory_equal(got->text, wanted->text, wanted->n_text);
}

/* ---- a model that fails ---------------------------------------------------------------------- */

#define NAN_TOKEN 9
/* A NaN in the embedding of one token and a head of its own: only sequences that hold the token are
 * lost. */
static inline kr_model_t open_with_nan(void) {
    const tiny_config_t config = tiny_config("llama_gqa4");
    gguf_bytes_t file = tiny_model(&config);
    kr_model_params_t params;
    kr_model_t model = NULL;
    kr_tensor_info_t info;
    uint64_t from_end = 0, row = 0;
    const float value = NAN;
    kr_model_params_init(&params);
    kr_tensor_info_init(&info);
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    for (uint32_t i = 0; kr_model_tensor(model, i, &info) == KR_OK; i++) {
        if (from_end == 0 && strcmp(info.name, "token_embd.weight") != 0) continue;
        if (from_end == 0) row = info.bytes / 320;
        from_end += (info.bytes + 31) / 32 * 32;
    }
    kr_model_close(model);
    model = NULL;
    memcpy(file.data + (file.n + 31) / 32 * 32 - from_end + NAN_TOKEN * row, &value, sizeof value);
    assert_status(open_bytes(&file, &params, &model, NULL), KR_OK);
    free(file.data);
    return model;
}

/* ---- a gate in the step thread -------------------------------------------------------------- */

/* Each token of a request with this grammar waits for a permit; `n_arrived` counts the masks. */
typedef struct gate_s {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint32_t n_permits, n_arrived;
    bool is_open; /* for ever */
    kr_grammar_t grammar;
} gate_t;

static inline kr_status_t gate_mask(void *user, uint32_t choice, uint32_t *mask, size_t n_words) {
    gate_t *gate = user;
    (void)choice, (void)mask, (void)n_words;
    pthread_mutex_lock(&gate->mutex);
    gate->n_arrived++;
    pthread_cond_broadcast(&gate->changed);
    while (gate->n_permits == 0 && !gate->is_open) {
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    if (!gate->is_open) gate->n_permits--;
    pthread_mutex_unlock(&gate->mutex);
    return KR_OK;
}

static inline kr_status_t gate_accept(void *user, uint32_t choice, kr_token_t token) {
    (void)user, (void)choice, (void)token;
    return KR_OK;
}

static inline void gate_init(gate_t *gate) {
    memset(gate, 0, sizeof *gate);
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
    gate->grammar = (kr_grammar_t){gate_mask, gate_accept, gate};
}

static inline void gate_wait(gate_t *gate, uint32_t n_arrived) {
    WAIT_FOR(gate, gate->n_arrived >= n_arrived);
}

static inline void gate_permit(gate_t *gate, uint32_t n) {
    pthread_mutex_lock(&gate->mutex);
    gate->n_permits += n;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

static inline void gate_open(gate_t *gate) {
    pthread_mutex_lock(&gate->mutex);
    gate->is_open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

#endif
