/* test_submit.c: what submit and the other entries refuse: each field out of its range, limits of
 * queue, keys, context and pool, failing allocations. A refused request leaves nothing behind. */
#include <math.h>

#include "base/alloc.h"
#include "engine/engine_impl.h"
#include "engine_util.h"

static const kr_token_t PROMPT[] = {5, 17, 80, 33, 120};

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    gate_t gate;
    ask_t ask;
    kr_error_t error;
} fixture_t;

static void setup_with(fixture_t *f, const kr_engine_params_t *params, const char *preset) {
    memset(f, 0, sizeof *f);
    collector_init(&f->c);
    gate_init(&f->gate);
    f->model = open_tiny(preset);
    f->engine = make_engine(&f->c, params);
    add_model(f->engine, "tiny", f->model, NULL);
    ask_init(&f->ask, PROMPT, 5, 3);
    kr_error_init(&f->error);
}

static void setup(fixture_t *f) { setup_with(f, NULL, "llama"); }

static void teardown(fixture_t *f) {
    kr_engine_destroy(f->engine);
    kr_model_close(f->model);
}

/* Refused by submit and by explain; the handle is untouched. */
static void refuse(fixture_t *f, kr_status_t status, const char *param) {
    kr_request_t request = NULL;
    kr_explain_t explain;
    kr_explain_init(&explain);
    explain.n_prompt = 12345;
    kr_error_init(&f->error);
    assert_status(kr_engine_submit(f->engine, &f->ask.params, &request, &f->error), status);
    assert_string_equal(f->error.param, param);
    assert_true(f->error.message[0] != 0);
    assert_null(request);
    assert_status(kr_engine_explain(f->engine, &f->ask.params, &explain, NULL), status);
    assert_int_equal(explain.n_prompt, 12345);
    ask_init(&f->ask, PROMPT, 5, 3);
}

TEST(submit_refuses_each_bad_field) {
    static const kr_grammar_t no_functions = {NULL, NULL, NULL};
    static const char *const bad_stops[] = {"ok", ""};
    fixture_t f;
    setup(&f);
    f.ask.params.struct_bytes = 5;
    refuse(&f, KR_E_INVALID_ARG, "params");
    f.ask.params.n_segments = 0;
    refuse(&f, KR_E_INVALID_ARG, "n_segments");
    f.ask.params.n_segments = 257;
    refuse(&f, KR_E_INVALID_ARG, "n_segments");
    f.ask.params.segments = NULL;
    refuse(&f, KR_E_INVALID_ARG, "segments");
    f.ask.params.model = "nobody";
    refuse(&f, KR_E_NOT_FOUND, "model");
    f.ask.params.stops = NULL;
    f.ask.params.n_stops = 1;
    refuse(&f, KR_E_INVALID_ARG, "stops");
    f.ask.params.stops = bad_stops;
    f.ask.params.n_stops = 2;
    refuse(&f, KR_E_INVALID_ARG, "stops");
    f.ask.params.stops = bad_stops;
    f.ask.params.n_stops = 17;
    refuse(&f, KR_E_LIMIT, "stops");
    f.ask.params.n_choices = 65;
    refuse(&f, KR_E_INVALID_ARG, "n_choices");
    f.ask.params.ignore_end = 2;
    refuse(&f, KR_E_INVALID_ARG, "ignore_end");
    f.ask.params.priority = 101;
    refuse(&f, KR_E_INVALID_ARG, "priority");
    f.ask.params.priority = -101;
    refuse(&f, KR_E_INVALID_ARG, "priority");
    f.ask.params.priority = INT32_MIN;
    refuse(&f, KR_E_INVALID_ARG, "priority");
    f.ask.params.credits = (1 << 20) + 1;
    refuse(&f, KR_E_INVALID_ARG, "credits");
    f.ask.params.reserved = 1;
    refuse(&f, KR_E_INVALID_ARG, "reserved");
    f.ask.params.grammar = &no_functions;
    refuse(&f, KR_E_INVALID_ARG, "grammar");
    assert_int_equal(engine_stats(f.engine, NULL).n_steps, 0);
    teardown(&f);
}

TEST(submit_refuses_each_bad_segment) {
    static const kr_token_t beyond[] = {3, 320}, negative[] = {-1};
    static const kr_message_t no_role[] = {{NULL, "x", 1}};
    fixture_t f;
    setup(&f);
    f.ask.segment.type = 0;
    refuse(&f, KR_E_INVALID_ARG, "type");
    f.ask.segment.type = 4;
    refuse(&f, KR_E_INVALID_ARG, "type");
    f.ask.segment.flags = 1;
    refuse(&f, KR_E_INVALID_ARG, "flags");
    f.ask.segment.tokens = NULL;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.ask.segment.tokens = beyond;
    f.ask.segment.count = 2;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.ask.segment.tokens = negative;
    f.ask.segment.count = 1;
    refuse(&f, KR_E_INVALID_ARG, "tokens");
    f.ask.segment.count = 0;
    refuse(&f, KR_E_INVALID_ARG, "segments");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .count = 3, .text = NULL};
    refuse(&f, KR_E_INVALID_ARG, "text");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .count = 2, .text = "a\xff"};
    refuse(&f, KR_E_INVALID_ARG, "text");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .flags = 4, .count = 1, .text = "a"};
    refuse(&f, KR_E_INVALID_ARG, "flags");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = NULL};
    refuse(&f, KR_E_INVALID_ARG, "messages");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = no_role};
    refuse(&f, KR_E_INVALID_ARG, "messages");
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .flags = 2, .count = 1,
                                   .messages = no_role};
    refuse(&f, KR_E_INVALID_ARG, "flags");
    teardown(&f);
    setup_with(&f, NULL, "gemma3"); /* has no template */
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = no_role};
    refuse(&f, KR_E_NOT_FOUND, "chat_template");
    teardown(&f);
}

TEST(submit_refuses_each_bad_sampler_field) {
    static const kr_logit_bias_t bias[] = {{320, 1.0f}}, nan_bias[] = {{3, NAN}};
    fixture_t f;
    setup(&f);
    const float bad[] = {NAN, -0.5f, 2.5f, INFINITY};
    for (size_t i = 0; i < 4; i++) {
        f.ask.sampler.temperature = bad[i];
        refuse(&f, KR_E_INVALID_ARG, "temperature");
        f.ask.sampler.top_p = bad[i];
        refuse(&f, KR_E_INVALID_ARG, "top_p");
        f.ask.sampler.min_p = bad[i];
        refuse(&f, KR_E_INVALID_ARG, "min_p");
        f.ask.sampler.typical_p = bad[i];
        refuse(&f, KR_E_INVALID_ARG, "typical_p");
        f.ask.sampler.repeat_penalty = bad[i];
        refuse(&f, KR_E_INVALID_ARG, "repeat_penalty");
        f.ask.sampler.presence_penalty = bad[i] * 5;
        refuse(&f, KR_E_INVALID_ARG, "presence_penalty");
        f.ask.sampler.frequency_penalty = bad[i] * 5;
        refuse(&f, KR_E_INVALID_ARG, "frequency_penalty");
    }
    f.ask.sampler.top_k = -2;
    refuse(&f, KR_E_INVALID_ARG, "top_k");
    f.ask.sampler.n_logprobs = 21;
    refuse(&f, KR_E_INVALID_ARG, "n_logprobs");
    f.ask.sampler.n_penalty_last = (1 << 20) + 1;
    refuse(&f, KR_E_INVALID_ARG, "n_penalty_last");
    f.ask.sampler.n_logit_bias = 1;
    refuse(&f, KR_E_INVALID_ARG, "logit_bias");
    f.ask.sampler.n_logit_bias = 1;
    f.ask.sampler.logit_bias = bias;
    refuse(&f, KR_E_INVALID_ARG, "logit_bias");
    f.ask.sampler.n_logit_bias = 1;
    f.ask.sampler.logit_bias = nan_bias;
    refuse(&f, KR_E_INVALID_ARG, "logit_bias");
    f.ask.sampler.struct_bytes = 0;
    assert_true(kr_engine_submit(f.engine, &f.ask.params, NULL, NULL) == KR_E_INVALID_ARG);
    teardown(&f);
}

/* Text that cannot fit whatever its tokens are is refused without tokenizing it, with a number that
 * is true. */
static void check_passed_over(fixture_t *f) {
    const size_t n_bytes = (size_t)8 << 20;
    char *text = malloc(n_bytes);
    size_t n_tokens = 0;
    assert_non_null(text);
    for (size_t i = 0; i < n_bytes; i++) text[i] = i % 5 == 4 ? ' ' : "hello"[i % 5];
    assert_status(kr_model_tokenize(f->model, text, n_bytes, 0, NULL, 0, &n_tokens, NULL),
                  KR_E_LIMIT);
    f->ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .count = n_bytes, .text = text};
    refuse(f, KR_E_CONTEXT_LENGTH, "segments");
    assert_in_range(f->error.offset, 512, n_tokens);
    assert_non_null(strstr(f->error.message, "at least"));
    const kr_message_t message = {.role = "user", .content = text, .content_bytes = n_bytes};
    f->ask.segment = (kr_segment_t){.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = &message};
    refuse(f, KR_E_CONTEXT_LENGTH, "segments");
    assert_in_range(f->error.offset, 512, n_tokens + 512);
    assert_non_null(strstr(f->error.message, "at least"));
    free(text);
}

TEST(submit_takes_prompts_up_to_the_context) {
    static kr_token_t prompt[600];
    static char text[600];
    fixture_t f;
    setup(&f);
    ask_init(&f.ask, prompt, 511, 0);
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_int_equal(out->n_tokens, 1);
    assert_int_equal(out->choices[0].finish, KR_FINISH_LENGTH);
    out_destroy(out);
    ask_init(&f.ask, prompt, 512, 1);
    refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
    assert_int_equal(f.error.offset, 512);
    ask_init(&f.ask, prompt, 600, 1);
    refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
    assert_int_equal(f.error.offset, 600);
    assert_null(strstr(f.error.message, "at least"));
    memset(text, 'x', sizeof text);
    f.ask.segment = (kr_segment_t){.type = KR_SEGMENT_TEXT, .count = sizeof text, .text = text};
    size_t n_tokens = 0;
    assert_status(kr_model_tokenize(f.model, text, sizeof text, 0, NULL, 0, &n_tokens, NULL),
                  KR_E_LIMIT);
    if (n_tokens >= 512) {
        refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
        assert_int_equal(f.error.offset, n_tokens);
    }
    check_passed_over(&f);
    const kr_segment_t two[] = {{.type = KR_SEGMENT_TOKENS, .count = 300, .tokens = prompt},
                                {.type = KR_SEGMENT_TOKENS, .count = 300, .tokens = prompt}};
    ask_init(&f.ask, prompt, 1, 1);
    f.ask.params.segments = two;
    f.ask.params.n_segments = 2;
    refuse(&f, KR_E_CONTEXT_LENGTH, "segments");
    assert_int_equal(f.error.offset, 600);
    ask_init(&f.ask, prompt, 500, UINT32_MAX); /* the budget is what the context leaves */
    out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_int_equal(out->n_tokens, 12);
    out_destroy(out);
    teardown(&f);
}

/* Segments follow one another; text and messages are tokenized as the model's functions do. */
TEST(submit_joins_segments) {
    static kr_token_t tokens[400];
    const char *text = "hello world";
    const kr_message_t message = {"user", "hi there", 8};
    fixture_t f;
    setup(&f);
    const kr_segment_t parts[] = {
        {.type = KR_SEGMENT_TOKENS, .count = 2, .tokens = PROMPT},
        {.type = KR_SEGMENT_TEXT, .flags = KR_TOKENIZE_PARSE_SPECIAL, .count = 11, .text = text},
        {.type = KR_SEGMENT_MESSAGES, .flags = 1, .count = 1, .messages = &message},
        {.type = KR_SEGMENT_MESSAGES, .count = 1, .messages = &message}};
    size_t n = 2, n_part = 0;
    memcpy(tokens, PROMPT, sizeof PROMPT);
    assert_status(kr_model_tokenize(f.model, text, 11, KR_TOKENIZE_PARSE_SPECIAL, tokens + n, 100,
                                    &n_part, NULL), KR_OK);
    n += n_part;
    for (uint32_t prompted = 0; prompted < 2; prompted++) {
        assert_status(kr_model_chat_tokenize(f.model, &message, 1, prompted, tokens + n, 100,
                                             &n_part, NULL), KR_OK);
        n += n_part;
    }
    ask_init(&f.ask, tokens, (uint32_t)n, 10);
    out_t *joined = submit(&f.c, &f.ask);
    f.ask.params.segments = parts;
    f.ask.params.n_segments = 4;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(joined);
    wait_over(out);
    assert_int_equal(stats_of(out).n_prompt, n);
    assert_same(&out->choices[0], &joined->choices[0]);
    out_destroy(joined);
    out_destroy(out);
    teardown(&f);
}

TEST(submit_bounds_the_queue) {
    fixture_t f;
    kr_engine_params_t params;
    kr_engine_params_init(&params);
    params.queue_max = 3;
    setup_with(&f, &params, "llama");
    ask_init(&f.ask, PROMPT, 5, 4);
    f.ask.params.grammar = &f.gate.grammar;
    out_t *gated = submit(&f.c, &f.ask);
    gate_wait(&f.gate, 1); /* it runs: not in the queue */
    ask_init(&f.ask, PROMPT, 5, 4);
    out_t *outs[3];
    for (int i = 0; i < 3; i++) {
        f.ask.params.n_choices = 1 + (uint32_t)i;
        outs[i] = submit(&f.c, &f.ask);
    }
    f.ask.params.n_choices = 0;
    refuse(&f, KR_E_BUSY, "");
    f.ask.params.n_segments = 0; /* that the prompt is bad is not even seen */
    refuse(&f, KR_E_BUSY, "");
    assert_int_equal(engine_stats(f.engine, NULL).n_waiting, 3);
    gate_open(&f.gate);
    for (int i = 0; i < 3; i++) {
        wait_over(outs[i]);
        assert_status(outs[i]->status, KR_OK);
        out_destroy(outs[i]);
    }
    wait_over(gated);
    out_destroy(gated);
    out_t *again = submit(&f.c, &f.ask);
    wait_over(again);
    out_destroy(again);
    teardown(&f);
}

/* The bound depends on the machine's memory, so it is set here. */
TEST(submit_refuses_a_request_larger_than_all_may_be) {
    fixture_t f;
    setup(&f);
    f.engine->request_bytes_max = (uint64_t)256 << 20;
    f.ask.params.n_choices = 64;
    f.ask.sampler.n_penalty_last = 1u << 20;
    f.ask.sampler.repeat_penalty = 1.1f;
    refuse(&f, KR_E_LIMIT, "n_penalty_last");
    f.engine->request_bytes_max = (uint64_t)256 << 10;
    f.ask.params.n_choices = 64;
    refuse(&f, KR_E_LIMIT, "n_choices");
    f.engine->request_bytes_max = 1;
    refuse(&f, KR_E_LIMIT, "n_tokens_max");
    f.engine->request_bytes_max = (uint64_t)256 << 20;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    out_destroy(out);
    teardown(&f);
}

TEST(submit_says_what_is_full) {
    fixture_t f;
    kr_request_t request = NULL;
    setup(&f);
    kr_engine_t polled = make_engine(NULL, NULL);
    add_model(polled, "tiny", f.model, NULL);
    polled->open_max = 2; /* nobody polls */
    for (int i = 0; i < 2; i++) assert_status(try_submit(polled, &f.ask, NULL), KR_OK);
    assert_status(kr_engine_submit(polled, &f.ask.params, &request, &f.error), KR_E_BUSY);
    assert_non_null(strstr(f.error.message, "events of 2 requests"));
    kr_engine_destroy(polled);
    teardown(&f);
}

TEST(submit_bounds_the_requests_of_a_key) {
    fixture_t f;
    kr_engine_params_t params;
    out_t *outs[8];
    kr_engine_params_init(&params);
    params.key_in_flight_max = 2;
    setup_with(&f, &params, "llama");
    ask_init(&f.ask, PROMPT, 5, 4);
    f.ask.params.grammar = &f.gate.grammar;
    uint32_t n = 0;
    for (uint64_t key = 7; key < 10; key++) {
        f.ask.params.key = key;
        outs[n++] = submit(&f.c, &f.ask);
        outs[n++] = submit(&f.c, &f.ask);
        assert_status(try_submit(f.engine, &f.ask, NULL), KR_E_BUSY);
    }
    f.ask.params.key = 0; /* nobody's: not bounded */
    outs[n++] = submit(&f.c, &f.ask);
    outs[n++] = submit(&f.c, &f.ask);
    gate_open(&f.gate);
    for (uint32_t i = 0; i < n; i++) {
        wait_over(outs[i]);
        out_destroy(outs[i]);
    }
    f.ask.params.key = 7;
    out_t *again = submit(&f.c, &f.ask);
    wait_over(again);
    assert_status(again->status, KR_OK);
    out_destroy(again);
    teardown(&f);
}

TEST(submit_refuses_what_the_pool_can_never_hold) {
    fixture_t f;
    collector_t c;
    kr_session_params_t session;
    static kr_token_t prompt[300];
    setup(&f);
    collector_init(&c);
    kr_session_params_init(&session);
    session.kv_bytes_max = kv_bytes_of(f.model, 128);
    kr_engine_t small = make_engine(&c, NULL);
    add_model(small, "tiny", f.model, &session);
    ask_init(&f.ask, prompt, 100, 29); /* 128 keys: the last token needs none */
    out_t *out = submit(&c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    assert_int_equal(out->n_tokens, 29);
    out_destroy(out);
    f.ask.params.n_tokens_max = 30;
    assert_status(try_submit(small, &f.ask, NULL), KR_E_LIMIT);
    ask_init(&f.ask, prompt, 129, 1);
    assert_status(try_submit(small, &f.ask, NULL), KR_E_LIMIT);
    f.ask.params.n_tokens_max = 0;
    assert_status(try_submit(small, &f.ask, NULL), KR_E_LIMIT);
    ask_init(&f.ask, prompt, 100, 0); /* no wish: as much as the pool holds */
    out = submit(&c, &f.ask);
    wait_over(out);
    assert_int_equal(out->n_tokens, 29);
    out_destroy(out);
    kr_engine_destroy(small);
    teardown(&f);
}

TEST(engine_params_are_checked_by_field) {
    kr_engine_params_t params;
    kr_engine_t engine = NULL;
    kr_error_t error;
    for (int i = 0; i < 3; i++) {
        static const char *const names[] = {"n_threads", "max_stall_ms", "queue_max"};
        kr_engine_params_init(&params);
        kr_error_init(&error);
        if (i == 0) params.n_threads = 257;
        if (i == 1) params.max_stall_ms = 60001;
        if (i == 2) params.queue_max = 65537;
        assert_status(kr_engine_create(&params, &engine, &error), KR_E_INVALID_ARG);
        assert_string_equal(error.param, names[i]);
        assert_null(engine);
    }
    params.struct_bytes = 7;
    assert_status(kr_engine_create(&params, &engine, &error), KR_E_INVALID_ARG);
    struct { kr_engine_params_t p; uint64_t tail; } bigger;
    kr_engine_params_init(&bigger.p);
    bigger.p.struct_bytes = sizeof bigger;
    bigger.tail = 1;
    assert_status(kr_engine_create(&bigger.p, &engine, &error), KR_E_UNSUPPORTED);
    bigger.tail = 0;
    assert_status(kr_engine_create(&bigger.p, &engine, &error), KR_OK);
    kr_engine_destroy(engine);
    engine = NULL;
    params.struct_bytes = 16; /* n_threads, max_stall_ms, queue_max */
    params.n_threads = 1;
    params.queue_max = 0;
    assert_status(kr_engine_create(&params, &engine, &error), KR_OK);
    kr_engine_destroy(engine);
    assert_status(kr_engine_create(NULL, NULL, &error), KR_E_INVALID_ARG);
}

TEST(entries_refuse_null_and_bad_structs) {
    fixture_t f;
    kr_engine_stats_t stats;
    kr_request_stats_t request_stats;
    kr_explain_t explain;
    char name[300];
    setup(&f);
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    kr_engine_stats_init(&stats);
    kr_explain_init(&explain);
    kr_request_stats_init(&request_stats);
    assert_status(kr_engine_drain(NULL, 0), KR_E_INVALID_ARG);
    assert_status(kr_engine_add_model(NULL, "a", f.model, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_add_model(f.engine, NULL, f.model, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_add_model(f.engine, "", f.model, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_add_model(f.engine, name, f.model, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_add_model(f.engine, "a", NULL, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_remove_model(NULL, "a", NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_remove_model(f.engine, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_remove_model(f.engine, "a", NULL), KR_E_NOT_FOUND);
    assert_status(kr_engine_resize_kv(NULL, "a", 1, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_resize_kv(f.engine, "a", 1, NULL), KR_E_NOT_FOUND);
    assert_status(kr_engine_stats(NULL, NULL, &stats), KR_E_INVALID_ARG);
    assert_status(kr_engine_stats(f.engine, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_stats(f.engine, "a", &stats), KR_E_NOT_FOUND);
    stats.struct_bytes = 2;
    assert_status(kr_engine_stats(f.engine, NULL, &stats), KR_E_INVALID_ARG);
    assert_status(kr_engine_submit(NULL, &f.ask.params, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_submit(f.engine, NULL, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_explain(f.engine, &f.ask.params, NULL, NULL), KR_E_INVALID_ARG);
    assert_status(kr_engine_explain(f.engine, NULL, &explain, NULL), KR_E_INVALID_ARG);
    assert_status(kr_request_stats(NULL, &request_stats), KR_E_INVALID_ARG);
    kr_request_release(NULL);
    kr_session_params_t session;
    kr_session_params_init(&session);
    session.n_seqs = 257;
    assert_status(kr_engine_add_model(f.engine, "a", f.model, &session, &f.error),
                  KR_E_INVALID_ARG);
    assert_string_equal(f.error.param, "n_seqs");
    assert_int_equal(engine_stats(f.engine, NULL).n_models, 1);
    /* Without a handle wanted, and without user and collector. */
    f.ask.params.user = NULL;
    assert_status(kr_engine_submit(f.engine, &f.ask.params, NULL, NULL), KR_OK);
    assert_status(kr_engine_drain(f.engine, 120000), KR_OK);
    teardown(&f);
}

/* ---- failing allocations -------------------------------------------------------------------- */

static uint64_t bytes_now(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

TEST(engine_survives_every_failing_allocation) {
    kr_model_t model = open_tiny("llama");
    kr_engine_params_t params;
    kr_engine_params_init(&params);
    const uint64_t before = bytes_now();
    bool is_done = false;
    for (uint64_t k = 1; !is_done; k++) {
        kr_engine_t engine = NULL;
        kri_alloc_fail(k, false);
        kr_status_t status = kr_engine_create(&params, &engine, NULL);
        if (status == KR_OK) status = kr_engine_add_model(engine, "a", model, NULL, NULL);
        kri_alloc_fail(0, false);
        is_done = status == KR_OK;
        if (!is_done) assert_status(status, KR_E_NOMEM);
        if (engine) assert_int_equal(engine_stats(engine, NULL).n_models, is_done);
        if (engine && !is_done) { /* the same again succeeds */
            assert_status(kr_engine_add_model(engine, "a", model, NULL, NULL), KR_OK);
        }
        kr_engine_destroy(engine);
        assert_int_equal(bytes_now(), before);
        if (is_done) assert_true(k > 10);
    }
    kr_model_close(model);
}

/* Allocations of a submit and of its whole run: either submit says so, or the request ends with an
 * ERROR, or nothing was needed. */
TEST(requests_survive_every_failing_allocation) {
    static const char *const stops[] = {"abc"};
    fixture_t f;
    setup(&f);
    uint32_t n_in_a_row = 0;
    const uint64_t before = bytes_now();
    for (uint64_t k = 1; n_in_a_row < 20; k++) {
        out_t *out = out_create(&f.c, 2);
        ask_init(&f.ask, PROMPT, 5, 12);
        f.ask.params.n_choices = 2;
        f.ask.params.stops = stops;
        f.ask.params.n_stops = 1;
        f.ask.sampler.n_logprobs = 2;
        kri_alloc_fail(k, false);
        const kr_status_t status = try_submit(f.engine, &f.ask, out);
        if (status == KR_OK) wait_over(out);
        kri_alloc_fail(0, false);
        if (status != KR_OK) {
            assert_status(status, KR_E_NOMEM);
            assert_null(out->request);
        } else if (out->status != KR_OK) {
            assert_status(out->status, KR_E_NOMEM);
        } else {
            assert_int_equal(out->n_tokens, 24);
        }
        n_in_a_row = status == KR_OK && out->status == KR_OK ? n_in_a_row + 1 : 0;
        out_destroy(out);
        /* The dispatcher lets go of the request after the callback's return. */
        for (uint32_t ms = 0; ms < 120000 && bytes_now() != before; ms++) usleep(1000);
        assert_int_equal(bytes_now(), before);
    }
    teardown(&f);
}
