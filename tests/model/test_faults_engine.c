/* test_faults_engine.c: T4 for engines and requests. Most scenarios share one engine over all their
 * runs, so that each failure is also followed by proof that the engine goes on. A request that was
 * accepted must end with exactly one DONE or ERROR, whatever fails. */
#define _GNU_SOURCE
#include <poll.h>

#define FAULTS_SPARE_PROBES
#include "faults.h"

enum { N_CHOICES_MAX = 4, N_TOKENS_MAX = 12, N_REQUESTS_MAX = 4, N_EMBD = 64, WAIT_MS = 60000 };

/* ---- requests and their events ------------------------------------------------------------ */

typedef struct record_s {
    world_t *world;
    uint32_t n_choices;
    kr_token_t tokens[N_CHOICES_MAX][N_TOKENS_MAX];
    uint32_t n_tokens[N_CHOICES_MAX];
    float embedding[N_EMBD];
    bool is_finished[N_CHOICES_MAX];
    kr_status_t status;   /* of ERROR */
    _Atomic bool has_ended;
} record_t;

static void on_record(record_t *record, const kr_event_t *event) {
    world_t *w = record->world;
    expect(w, !atomic_load(&record->has_ended), "no event after the last one");
    expect(w, event->choice < record->n_choices, "an event of a choice that exists");
    const uint32_t c = event->choice % N_CHOICES_MAX;
    switch (event->type) {
    case KR_EVENT_TOKEN:
        expect(w, !record->is_finished[c], "no token after the end of its choice");
        expect(w, record->n_tokens[c] < N_TOKENS_MAX, "no more tokens than asked for");
        if (record->n_tokens[c] < N_TOKENS_MAX) {
            record->tokens[c][record->n_tokens[c]++] = event->token;
        }
        break;
    case KR_EVENT_EMBEDDING:
        expect(w, !record->is_finished[c], "an embedding comes once");
        expect(w, event->n_embd == N_EMBD && event->embedding != NULL, "all of it");
        if (event->embedding) memcpy(record->embedding, event->embedding, sizeof record->embedding);
        record->is_finished[c] = true;
        break;
    case KR_EVENT_CHOICE:
        expect(w, !record->is_finished[c], "a choice ends once");
        expect(w, event->finish != KR_FINISH_NONE, "a choice ends for a reason");
        record->is_finished[c] = true;
        break;
    case KR_EVENT_DONE:
        for (uint32_t i = 0; i < record->n_choices; i++) {
            expect(w, record->is_finished[i], "done means that every choice has ended");
        }
        atomic_store(&record->has_ended, true);
        break;
    case KR_EVENT_ERROR:
        expect(w, event->status != KR_OK, "an error event says why");
        expect(w, event->error != NULL && event->error->code == event->status,
               "an error event has its details");
        record->status = event->status;
        atomic_store(&record->has_ended, true);
        break;
    default: expect(w, false, "an event of a known type"); break;
    }
}

static void on_event(const kr_event_t *event, void *user) {
    (void)user;
    on_record(event->user, event);
}

typedef struct flow_s {
    kr_engine_t engine;
    bool is_polled;
    uint32_t n;
    record_t records[N_REQUESTS_MAX];
    kr_request_t requests[N_REQUESTS_MAX]; /* NULL: refused */
    kr_status_t status;                    /* first refusal or error */
} flow_t;

static void note_status(flow_t *flow, kr_status_t status) {
    if (flow->status == KR_OK) flow->status = status;
}

static kr_status_t submit(world_t *w, flow_t *flow, const kr_request_params_t *params) {
    const uint32_t i = flow->n++;
    record_t *record = &flow->records[i];
    *record = (record_t){.world = w, .n_choices = params->n_choices ? params->n_choices : 1};
    kr_request_params_t own = *params;
    own.user = record;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = kr_engine_submit(flow->engine, &own, &flow->requests[i], &error);
    if (status == KR_OK) {
        expect(w, flow->requests[i] != NULL, "an accepted request has a handle");
    } else {
        expect(w, error.code == status && error.message[0] != '\0', "a refusal says why");
        expect(w, flow->requests[i] == NULL, "a refused request has no handle");
        atomic_store(&record->has_ended, true);
        note_status(flow, status);
    }
    return status;
}

static bool all_ended(const flow_t *flow) {
    for (uint32_t i = 0; i < flow->n; i++) {
        if (!atomic_load(&flow->records[i].has_ended)) return false;
    }
    return true;
}

static uint32_t poll_events(flow_t *flow, uint32_t timeout_ms) {
    kr_event_t events[8];
    uint32_t n_events = 0;
    for (int i = 0; i < 8; i++) {
        memset(&events[i], 0, sizeof events[i]);
        events[i].struct_bytes = sizeof events[i];
    }
    const kr_status_t status = kr_engine_poll(flow->engine, events, 8, timeout_ms, &n_events);
    if (status != KR_OK) fail_msg("kr_engine_poll: %s", kr_status_name(status));
    for (uint32_t i = 0; i < n_events; i++) on_record(events[i].user, &events[i]);
    return n_events;
}

/* Until every accepted request has had its last event. */
static void wait_for_end(flow_t *flow) {
    for (int ms = 0; !all_ended(flow); ms++) {
        if (flow->is_polled ? poll_events(flow, WAIT_MS) == 0 : ms > WAIT_MS) {
            fail_msg("a request does not end");
        }
        if (!flow->is_polled) usleep(1000);
    }
    /* What a poll gave is the engine's until the next one. */
    if (flow->is_polled && poll_events(flow, 0) != 0) fail_msg("an event after the last one");
    for (uint32_t i = 0; i < flow->n; i++) {
        if (flow->records[i].status != KR_OK) note_status(flow, flow->records[i].status);
    }
}

/* Waits, digests what came and gives the handles back. */
static kr_status_t finish(world_t *w, flow_t *flow) {
    wait_for_end(flow);
    for (uint32_t i = 0; i < flow->n; i++) {
        const record_t *record = &flow->records[i];
        for (uint32_t c = 0; c < record->n_choices; c++) {
            digest(w, record->tokens[c], record->n_tokens[c] * sizeof(kr_token_t));
        }
        digest(w, record->embedding, sizeof record->embedding);
        if (flow->requests[i] == NULL) continue;
        kr_request_stats_t stats;
        kr_request_stats_init(&stats);
        expect(w, kr_request_stats(flow->requests[i], &stats) == KR_OK, "ended requests tell");
        expect(w, stats.is_ended && stats.status == record->status, "how they ended");
        kr_request_release(flow->requests[i]);
    }
    return flow->status;
}

/* ---- engines ------------------------------------------------------------------------------ */

typedef struct own_s {
    kr_engine_t engine;
    kr_telemetry_t telemetry;
    kr_event_fn on_event;
} own_t;

static void engine_params_of(kr_engine_params_t *params, kr_event_fn fn) {
    kr_engine_params_init(params);
    params->n_threads = 2;
    params->kv_bytes_max = 64 << 20;
    params->on_event = fn;
}

static void model_params_of(kr_session_params_t *params) {
    kr_session_params_init(params);
    params->n_ctx = 128;
    params->n_seqs = 4;
    params->n_rows_max = 64;
}

static own_t *own_of(const world_t *w) { return w->own; }

static void enter_engine(world_t *w, kr_event_fn fn, bool has_telemetry) {
    kr_engine_params_t params;
    kr_session_params_t model_params;
    own_t *own = calloc(1, sizeof *own);
    w->own = own;
    own->on_event = fn;
    open_world_model(w);
    engine_params_of(&params, fn);
    if (has_telemetry) {
        const kr_status_t status = kr_telemetry_create(&own->telemetry);
        assert_true(status == KR_OK || status == KR_E_UNSUPPORTED);
    }
    params.telemetry = own->telemetry;
    assert_status(kr_engine_create(&params, &own->engine, NULL), KR_OK);
    model_params_of(&model_params);
    kr_error_t error;
    kr_error_init(&error);
    if (kr_engine_add_model(own->engine, "tiny", w->model, &model_params, &error) != KR_OK) {
        fail_msg("%s", error.message);
    }
}

static void enter_polled(world_t *w) { enter_engine(w, NULL, false); }
static void enter_called(world_t *w) { enter_engine(w, on_event, false); }
static void enter_measured(world_t *w) { enter_engine(w, NULL, true); }

static void leave_engine(world_t *w) {
    own_t *own = own_of(w);
    kr_engine_destroy(own->engine);
    kr_telemetry_destroy(own->telemetry);
    free(own);
}

static void enter_model(world_t *w) { open_world_model(w); }

static flow_t flow_of(const world_t *w) {
    return (flow_t){.engine = own_of(w)->engine, .is_polled = own_of(w)->on_event == NULL};
}

/* An engine of a run's own. */
static kr_status_t open_engine(world_t *w, kr_event_fn fn, flow_t *flow) {
    kr_engine_params_t params;
    engine_params_of(&params, fn);
    *flow = (flow_t){.is_polled = fn == NULL};
    return made(w, kr_engine_create(&params, &flow->engine, error_of(w)), &flow->engine);
}

static kr_status_t add_model(world_t *w, kr_engine_t engine, const char *name) {
    kr_session_params_t params;
    model_params_of(&params);
    const kr_status_t status = kr_engine_add_model(engine, name, w->model, &params, error_of(w));
    expect(w, status == w->error.code, "the error's code is the status");
    return status;
}

/* ---- prompts ------------------------------------------------------------------------------ */

static const kr_token_t prompt_tokens[40] = {
    1,  7,  12, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46,
    47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66};
static const kr_message_t messages[] = {{"system", "Be brief.", 9}, {"user", "Say something.", 14}};
static const kr_segment_t tokens_segment = {.type = KR_SEGMENT_TOKENS, .count = 40,
                                            .tokens = prompt_tokens};
static const kr_segment_t text_segment = {.type = KR_SEGMENT_TEXT, .count = 17,
                                          .text = "once upon a time."};
static const kr_segment_t messages_segment = {.type = KR_SEGMENT_MESSAGES, .count = 2,
                                              .messages = messages};

/* A greedy request whose tokens are the same in every run. */
static void request_of(kr_request_params_t *params, kr_sampler_params_t *sampler,
                       const kr_segment_t *segment) {
    kr_sampler_params_init(sampler);
    sampler->temperature = 0.0f;
    kr_request_params_init(params);
    params->n_segments = 1;
    params->segments = segment;
    params->sampler = sampler;
    params->n_tokens_max = N_TOKENS_MAX;
    params->ignore_end = 1;
}

static kr_status_t run_one(world_t *w, const kr_segment_t *segment) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, segment);
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

static kr_status_t run_tokens(world_t *w) { return run_one(w, &tokens_segment); }
static kr_status_t run_text(world_t *w) { return run_one(w, &text_segment); }
static kr_status_t run_messages(world_t *w) { return run_one(w, &messages_segment); }

static kr_status_t run_segments(world_t *w) {
    const kr_segment_t segments[3] = {text_segment, tokens_segment, text_segment};
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, segments);
    params.n_segments = 3;
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

/* Both kinds, and one that generates beside them. */
static kr_status_t run_embeddings(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    for (int32_t pooling = KR_POOLING_NONE; pooling <= KR_POOLING_LAST; pooling++) {
        request_of(&params, &sampler, pooling == KR_POOLING_MEAN ? &tokens_segment
                                                                : &text_segment);
        if (pooling != KR_POOLING_NONE) {
            params.sampler = NULL;
            params.n_tokens_max = params.ignore_end = 0;
            params.pooling = pooling;
            params.normalize = pooling == KR_POOLING_LAST;
        }
        (void)submit(w, &flow, &params);
    }
    return finish(w, &flow);
}

static kr_status_t run_choices(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &tokens_segment);
    sampler.temperature = 1.0f;
    sampler.seed = 5;
    params.n_choices = N_CHOICES_MAX;
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

/* Everything that a request may carry and that takes memory. */
static kr_status_t run_rich(world_t *w) {
    static const char *const stops[] = {"never", "to be seen", "\xe2\x82\xac\xe2\x82\xac"};
    kr_logit_bias_t bias[50];
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &text_segment);
    for (int i = 0; i < 50; i++) bias[i] = (kr_logit_bias_t){i, -1.0f};
    sampler.n_logit_bias = 50;
    sampler.logit_bias = bias;
    sampler.repeat_penalty = 1.1f;
    sampler.n_logprobs = 5;
    params.stops = stops;
    params.n_stops = 3;
    params.n_choices = 2;
    params.key = 9;
    params.cache_salt = 77;
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

static kr_status_t allow_some(void *user, uint32_t choice, uint32_t *mask, size_t n_words) {
    (void)user, (void)choice;
    for (size_t i = 0; i < n_words; i++) mask[i] &= 0x55555555u;
    return KR_OK;
}

static kr_status_t accept_any(void *user, uint32_t choice, kr_token_t token) {
    (void)choice;
    expect(user, token % 2 == 0, "only what the grammar allows is sampled");
    return KR_OK;
}

static kr_status_t run_grammar(world_t *w) {
    const kr_grammar_t grammar = {allow_some, accept_any, w};
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &tokens_segment);
    params.grammar = &grammar;
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

/* One prompt of four is refused: the others must not notice. */
static kr_status_t run_many(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    for (uint32_t i = 0; i < N_REQUESTS_MAX; i++) {
        request_of(&params, &sampler, i % 2 ? &tokens_segment : &messages_segment);
        params.n_tokens_max = 4 + i;
        params.priority = (int32_t)i;
        (void)submit(w, &flow, &params);
    }
    return finish(w, &flow);
}

static kr_status_t run_credits(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &tokens_segment);
    params.credits = 2;
    if (submit(w, &flow, &params) == KR_OK) {
        expect(w, kr_request_add_credits(flow.requests[0], 100) == KR_OK,
               "granting needs no memory");
    }
    return finish(w, &flow);
}

/* Ended by us or, when the engine was faster, done: both are right. */
static kr_status_t end_or(flow_t *flow, kr_status_t expected) {
    wait_for_end(flow);
    for (uint32_t i = 0; i < flow->n; i++) kr_request_release(flow->requests[i]);
    return flow->status == expected ? KR_OK : flow->status;
}

static kr_status_t run_cancel(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &tokens_segment);
    params.n_choices = 2;
    if (submit(w, &flow, &params) == KR_OK) kr_request_cancel(flow.requests[0]);
    return end_or(&flow, KR_E_CANCELLED);
}

static kr_status_t run_refused(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow = flow_of(w);
    request_of(&params, &sampler, &tokens_segment);
    params.model = "unknown";
    (void)submit(w, &flow, &params);
    return finish(w, &flow);
}

static kr_status_t run_explain(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    kr_explain_t explain;
    kr_explain_init(&explain);
    request_of(&params, &sampler, &messages_segment);
    const kr_status_t status =
        kr_engine_explain(own_of(w)->engine, &params, &explain, error_of(w));
    expect(w, status == w->error.code, "the error's code is the status");
    if (status == KR_OK) digest(w, &explain.n_prompt, sizeof explain.n_prompt);
    else expect(w, explain.n_prompt == 0, "a failed call leaves its output alone");
    return status;
}

SCENARIO(engine_tokens, .enter = enter_polled, .run = run_tokens, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_text, .enter = enter_polled, .run = run_text, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_messages, .enter = enter_polled, .run = run_messages, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_segments, .enter = enter_polled, .run = run_segments, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_windows, .preset = "gemma3", .enter = enter_polled, .run = run_tokens,
         .leave = leave_engine, .degrades = true)
SCENARIO(engine_embeddings, .enter = enter_polled, .run = run_embeddings, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_embeddings_called, .enter = enter_called, .run = run_embeddings,
         .leave = leave_engine, .degrades = true)
SCENARIO(engine_choices, .enter = enter_polled, .run = run_choices, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_rich_request, .enter = enter_polled, .run = run_rich, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_grammar, .enter = enter_polled, .run = run_grammar, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_many, .enter = enter_polled, .run = run_many, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_callback, .enter = enter_called, .run = run_many, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_measured, .enter = enter_measured, .run = run_many, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_credits, .enter = enter_polled, .run = run_credits, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_cancel, .enter = enter_polled, .run = run_cancel, .leave = leave_engine,
         .degrades = true)
SCENARIO(engine_refused, .enter = enter_polled, .run = run_refused, .leave = leave_engine,
         .clean = KR_E_NOT_FOUND)
SCENARIO(engine_explain, .enter = enter_polled, .run = run_explain, .leave = leave_engine)

/* ---- the life of engines and models ------------------------------------------------------- */

static kr_status_t run_create(world_t *w) {
    flow_t flow;
    int32_t fd = -1;
    kr_status_t status = open_engine(w, on_event, &flow);
    if (status != KR_OK) return status;
    expect(w, kr_engine_event_fd(flow.engine, &fd) == KR_E_INVALID_ARG, "callbacks have no fd");
    kr_engine_destroy(flow.engine);
    return KR_OK;
}

static kr_status_t run_create_polled(world_t *w) {
    flow_t flow;
    int32_t fd = -1;
    kr_status_t status = open_engine(w, NULL, &flow);
    if (status != KR_OK) return status;
    expect(w, kr_engine_event_fd(flow.engine, &fd) == KR_OK && fd >= 0, "polled engines have");
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    expect(w, poll(&entry, 1, 0) == 0, "nothing waits in a new engine");
    kr_engine_destroy(flow.engine);
    return KR_OK;
}

static kr_status_t run_add_models(world_t *w) {
    flow_t flow;
    KR_TRY(open_engine(w, NULL, &flow));
    kr_status_t status = add_model(w, flow.engine, "one");
    if (status == KR_OK) status = add_model(w, flow.engine, "two");
    if (status == KR_OK) status = add_model(w, flow.engine, "two");
    if (status == KR_E_EXISTS) status = KR_OK;
    else if (status == KR_OK) expect(w, false, "names are unique");
    if (status == KR_OK) status = kr_engine_remove_model(flow.engine, "one", error_of(w));
    if (status == KR_OK) status = add_model(w, flow.engine, "one");
    kr_engine_destroy(flow.engine);
    return status;
}

static kr_status_t run_two_models(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow;
    KR_TRY(open_engine(w, on_event, &flow));
    kr_status_t status = add_model(w, flow.engine, "one");
    if (status == KR_OK) status = add_model(w, flow.engine, "two");
    request_of(&params, &sampler, &tokens_segment);
    for (int i = 0; i < N_REQUESTS_MAX && status == KR_OK; i++) {
        params.model = i % 2 ? "one" : "two";
        status = submit(w, &flow, &params);
    }
    if (flow.n > 0) status = finish(w, &flow);
    kr_engine_destroy(flow.engine);
    return status;
}

/* Requests that are still running when `end` is called on their engine. */
static kr_status_t run_in_flight(world_t *w, kr_event_fn fn,
                                 kr_status_t (*end)(world_t *w, kr_engine_t engine)) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow;
    KR_TRY(open_engine(w, fn, &flow));
    kr_status_t status = add_model(w, flow.engine, "one");
    request_of(&params, &sampler, &tokens_segment);
    params.n_choices = 2;
    for (int i = 0; i < N_REQUESTS_MAX && status == KR_OK; i++) {
        status = submit(w, &flow, &params);
    }
    if (flow.n > 0) {
        const kr_status_t ended = end(w, flow.engine);
        status = end_or(&flow, KR_E_SHUTTING_DOWN);
        if (status == KR_OK) status = ended;
    }
    kr_engine_destroy(flow.engine);
    return status;
}

static kr_status_t remove_one(world_t *w, kr_engine_t engine) {
    return kr_engine_remove_model(engine, "one", error_of(w));
}

static kr_status_t drain_all(world_t *w, kr_engine_t engine) {
    (void)w;
    return kr_engine_drain(engine, WAIT_MS);
}

static kr_status_t shrink_one(world_t *w, kr_engine_t engine) {
    kr_engine_stats_t stats;
    kr_engine_stats_init(&stats);
    expect(w, kr_engine_stats(engine, "one", &stats) == KR_OK, "a model tells its sizes");
    const kr_status_t status =
        kr_engine_resize_kv(engine, "one", stats.kv_bytes_max * 3 / 4, error_of(w));
    expect(w, status == w->error.code, "the error's code is the status");
    return status == KR_E_LIMIT ? KR_OK : status; /* too small for what runs: said so */
}

static kr_status_t run_remove_in_flight(world_t *w) { return run_in_flight(w, NULL, remove_one); }
static kr_status_t run_drain(world_t *w) { return run_in_flight(w, on_event, drain_all); }
static kr_status_t run_resize(world_t *w) { return run_in_flight(w, NULL, shrink_one); }

/* Handles outlive their engine; with a callback every request still has its last event. */
static kr_status_t run_destroy_in_flight(world_t *w) {
    kr_request_params_t params;
    kr_sampler_params_t sampler;
    flow_t flow;
    KR_TRY(open_engine(w, on_event, &flow));
    kr_status_t status = add_model(w, flow.engine, "one");
    request_of(&params, &sampler, &tokens_segment);
    for (int i = 0; i < N_REQUESTS_MAX && status == KR_OK; i++) {
        status = submit(w, &flow, &params);
    }
    kr_engine_destroy(flow.engine);
    expect(w, all_ended(&flow), "destroying ends what is left");
    if (flow.n == 0) return status;
    return end_or(&flow, KR_E_SHUTTING_DOWN);
}

SCENARIO(engine_create, .enter = enter_model, .run = run_create)
SCENARIO(engine_create_polled, .enter = enter_model, .run = run_create_polled)
SCENARIO(engine_add_models, .enter = enter_model, .run = run_add_models)
SCENARIO(engine_two_models, .enter = enter_model, .run = run_two_models, .degrades = true)
SCENARIO(engine_remove_in_flight, .enter = enter_model, .run = run_remove_in_flight,
         .degrades = true)
SCENARIO(engine_drain, .enter = enter_model, .run = run_drain, .degrades = true)
SCENARIO(engine_resize, .enter = enter_model, .run = run_resize, .degrades = true)
SCENARIO(engine_destroy_in_flight, .enter = enter_model, .run = run_destroy_in_flight,
         .degrades = true)
