/* test_sampling.c: what comes out of a request: text and stop strings, log-probabilities, grammars,
 * choices, numbers that are not finite, what the prefix cache shares and with whom, figures. */
#include <math.h>

#include "engine_util.h"

#define N_VOCAB 320
static kr_token_t PROMPT[200];

typedef struct fixture_s {
    collector_t c;
    kr_model_t model;
    kr_engine_t engine;
    solo_t solo;
    ask_t ask;
} fixture_t;

static void setup_model(fixture_t *f, kr_model_t model, const kr_engine_params_t *params) {
    memset(f, 0, sizeof *f);
    for (int i = 0; i < 200; i++) PROMPT[i] = (i * 53 + 7) % N_VOCAB;
    collector_init(&f->c);
    f->model = model;
    f->engine = make_engine(&f->c, params);
    add_model(f->engine, "tiny", f->model, NULL);
    solo_init(&f->solo, f->model, KR_DTYPE_F16);
    ask_init(&f->ask, PROMPT, 40, 50);
}

static void setup(fixture_t *f) { setup_model(f, open_tiny("llama"), NULL); }

static void teardown(fixture_t *f) {
    kr_engine_destroy(f->engine);
    solo_deinit(&f->solo);
    kr_model_close(f->model);
}

/* *stop receives the stop string that ended the last choice, if one is wanted. */
static void same_as_alone_stop(fixture_t *f, int32_t *stop) {
    static out_choice_t wanted;
    out_t *out = submit(&f->c, &f->ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    for (uint32_t i = 0; i < out->n_choices; i++) {
        solo_run(&f->solo, &f->ask, i, &wanted);
        assert_same(&out->choices[i], &wanted);
        assert_memory_equal(out->choices[i].logprobs, wanted.logprobs, sizeof wanted.logprobs);
        if (stop) *stop = out->choices[i].stop;
    }
    out_destroy(out);
}

static void same_as_alone(fixture_t *f) { same_as_alone_stop(f, NULL); }

/* ---- text ----------------------------------------------------------------------------------- */

/* Stop strings are taken from the text that the model gives, at any place, also across tokens. */
TEST(stop_strings_end_the_text_as_alone) {
    static out_choice_t free_run;
    fixture_t f;
    setup(&f);
    char stop[2][32];
    for (uint64_t seed = 0; seed < 8; seed++) {
        ask_init(&f.ask, PROMPT, 40, 60);
        f.ask.sampler.temperature = 1.2f;
        f.ask.sampler.seed = seed;
        solo_run(&f.solo, &f.ask, 0, &free_run);
        for (size_t at = 0; at + 9 < free_run.n_text; at += 5) {
            const size_t n = 1 + at % 6;
            /* Pieces that are no UTF-8 by themselves are refused, as they are alone. */
            memcpy(stop[0], free_run.text + at, n);
            stop[0][n] = 0;
            snprintf(stop[1], sizeof stop[1], "zq%zu", at);
            kr_detokenizer_t probe = NULL;
            /* The one that comes stands at either place. */
            const int32_t place = (int32_t)(at / 5 % 2);
            int32_t found = -1;
            const char *stops[2] = {stop[place], stop[1 - place]};
            f.ask.params.stops = stops;
            f.ask.params.n_stops = 2;
            if (kr_detokenizer_create(f.model, stops, 2, &probe, NULL) != KR_OK) continue;
            kr_detokenizer_destroy(probe);
            same_as_alone_stop(&f, &found);
            assert_int_equal(found, place);
        }
    }
    teardown(&f);
}

TEST(end_tokens_end_a_choice_without_a_token_event) {
    fixture_t f;
    setup(&f);
    uint32_t n_ended = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        static out_choice_t wanted;
        f.ask.params.ignore_end = 0;
        f.ask.params.n_tokens_max = 200;
        f.ask.sampler.temperature = 2.0f;
        f.ask.sampler.top_k = 0;
        f.ask.sampler.top_p = 1.0f;
        f.ask.sampler.seed = seed;
        solo_run(&f.solo, &f.ask, 0, &wanted);
        n_ended += wanted.finish == KR_FINISH_END;
        same_as_alone(&f);
    }
    assert_true(n_ended > 0);
    teardown(&f);
}

TEST(logprobs_are_those_of_the_sampler) {
    fixture_t f;
    setup(&f);
    f.ask.sampler.n_logprobs = 5;
    f.ask.sampler.temperature = 0.7f;
    f.ask.sampler.repeat_penalty = 1.3f;
    f.ask.sampler.frequency_penalty = 0.4f;
    f.ask.params.n_choices = 3;
    same_as_alone(&f);
    teardown(&f);
}

static _Atomic uint32_t n_checked, n_wrong;

static void check_lists(collector_t *c, const kr_event_t *e) {
    (void)c;
    if (e->type != KR_EVENT_TOKEN) {
        n_wrong += e->n_logprobs != 0 || e->logprobs != NULL;
        return;
    }
    n_checked++;
    n_wrong += e->n_logprobs != 20 || e->logprobs[0].token != e->token ||
               !(e->logprobs[0].logprob == e->logprob) || !(e->logprob <= 0.0f);
    for (uint32_t i = 1; i < e->n_logprobs; i++) {
        n_wrong += !(e->logprobs[i].logprob <= e->logprobs[i - 1].logprob);
    }
}

TEST(logprob_lists_descend_from_the_greedy_token) {
    fixture_t f;
    setup(&f);
    f.c.hook = check_lists;
    f.ask.sampler.n_logprobs = 20;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_int_equal(n_checked, 50);
    assert_int_equal(n_wrong, 0);
    out_destroy(out);
    teardown(&f);
}

TEST(choices_draw_with_seeds_of_their_own) {
    fixture_t f;
    setup(&f);
    f.ask.sampler.temperature = 1.0f;
    f.ask.sampler.seed = UINT64_MAX - 3; /* seed + i wraps */
    f.ask.params.n_choices = 64;
    f.ask.params.n_tokens_max = 12;
    same_as_alone(&f);
    teardown(&f);
}

/* ---- grammars ------------------------------------------------------------------------------- */

typedef struct list_s {
    uint32_t n_accepted;
    uint32_t fail_at;      /* token at which `with` is returned by the mask or accept */
    kr_status_t mask_fails, accept_fails;
    bool is_empty;
    bool order_broken;
} list_t;

/* Multiples of 7 only. */
static kr_status_t list_mask(void *user, uint32_t choice, uint32_t *mask, size_t n_words) {
    list_t *list = user;
    (void)choice;
    if (n_words != N_VOCAB / 32 || mask[0] != UINT32_MAX || mask[n_words - 1] != UINT32_MAX) {
        return KR_E_PROTOCOL;
    }
    if (list->mask_fails && list->n_accepted == list->fail_at) return list->mask_fails;
    memset(mask, 0, n_words * sizeof *mask);
    if (list->is_empty && list->n_accepted == list->fail_at) return KR_OK;
    for (uint32_t t = 0; t < N_VOCAB; t += 7) mask[t / 32] |= 1u << (t % 32);
    return KR_OK;
}

static kr_status_t list_accept(void *user, uint32_t choice, kr_token_t token) {
    list_t *list = user;
    (void)choice;
    if (list->accept_fails && list->n_accepted == list->fail_at) return list->accept_fails;
    list->order_broken |= token % 7 != 0;
    list->n_accepted++;
    return KR_OK;
}

static void run_list(fixture_t *f, list_t *list, kr_status_t status, uint32_t n_tokens) {
    const kr_grammar_t grammar = {list_mask, list_accept, list};
    ask_init(&f->ask, PROMPT, 40, 50);
    f->ask.params.grammar = &grammar;
    f->ask.sampler.temperature = 1.0f;
    out_t *out = submit(&f->c, &f->ask);
    ask_init(&f->ask, PROMPT, 60, 30); /* a neighbour without a grammar */
    same_as_alone(f);
    wait_over(out);
    assert_status(out->status, status);
    assert_int_equal(out->n_tokens, n_tokens);
    for (uint32_t i = 0; i < out->n_tokens; i++) {
        assert_int_equal(out->choices[0].tokens[i] % 7, 0);
    }
    assert_false(list->order_broken);
    out_destroy(out);
}

TEST(grammar_restricts_what_is_sampled) {
    fixture_t f;
    setup(&f);
    run_list(&f, &(list_t){0}, KR_OK, 50);
    teardown(&f);
}

TEST(grammar_that_fails_ends_its_request_alone) {
    fixture_t f;
    setup(&f);
    run_list(&f, &(list_t){.fail_at = 4, .mask_fails = KR_E_BAD_SCHEMA}, KR_E_BAD_SCHEMA, 4);
    run_list(&f, &(list_t){.fail_at = 2, .accept_fails = KR_E_LIMIT}, KR_E_LIMIT, 2);
    run_list(&f, &(list_t){.fail_at = 3, .is_empty = true}, KR_E_INTERNAL, 3);
    run_list(&f, &(list_t){.fail_at = 0, .is_empty = true}, KR_E_INTERNAL, 0);
    teardown(&f);
}

/* ---- numbers that are not finite ------------------------------------------------------------ */

TEST(numeric_failure_ends_its_request_alone) {
    fixture_t f;
    setup_model(&f, open_with_nan(), NULL);
    static kr_token_t bad[60], other[60];
    for (int i = 0; i < 60; i++) other[i] = 200 + i;
    ask_init(&f.ask, other, 60, 1);
    same_as_alone(&f);
    for (int round = 0; round < 5; round++) {
        /* NAN_TOKEN in the second of three pages: the first page is clean, later ones are not. */
        for (int i = 0; i < 60; i++) bad[i] = i == 20 ? NAN_TOKEN : 100 + i;
        ask_init(&f.ask, bad, 60, 10);
        f.ask.params.n_choices = 1 + (uint32_t)round % 2;
        out_t *lost = submit(&f.c, &f.ask);
        ask_init(&f.ask, bad, 20, 40);
        f.ask.sampler.logit_bias = &(kr_logit_bias_t){NAN_TOKEN, -100.0f};
        f.ask.sampler.n_logit_bias = 1;
        same_as_alone(&f);
        wait_over(lost);
        assert_status(lost->status, KR_E_NUMERIC);
        assert_int_equal(lost->n_tokens, 0);
        /* What the failed request computed is not cached. */
        ask_init(&f.ask, bad, 60, 10);
        kr_explain_t explain;
        kr_explain_init(&explain);
        assert_status(kr_engine_explain(f.engine, &f.ask.params, &explain, NULL), KR_OK);
        assert_true(explain.n_cached <= 16);
        ask_init(&f.ask, other, 60, 1); /* another prompt's pages are not lost with it */
        kr_explain_init(&explain);
        assert_status(kr_engine_explain(f.engine, &f.ask.params, &explain, NULL), KR_OK);
        assert_int_equal(explain.n_cached, 48);
        out_destroy(lost);
    }
    /* The token comes up while decoding: what came before stays good. */
    ask_init(&f.ask, bad, 20, 10);
    f.ask.sampler.logit_bias = &(kr_logit_bias_t){NAN_TOKEN, 100.0f};
    f.ask.sampler.n_logit_bias = 1;
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(out->status, KR_E_NUMERIC);
    assert_int_equal(out->n_tokens, 1);
    assert_int_equal(out->choices[0].tokens[0], NAN_TOKEN);
    out_destroy(out);
    teardown(&f);
}

/* ---- prefix cache --------------------------------------------------------------------------- */

static void run_salted(fixture_t *f, uint64_t salt, uint32_t n_prompt, kr_request_stats_t *stats) {
    ask_init(&f->ask, PROMPT, n_prompt, 4);
    f->ask.params.cache_salt = salt;
    out_t *out = submit(&f->c, &f->ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    *stats = stats_of(out);
    out_destroy(out);
}

TEST(prefixes_are_shared_among_equal_salts_only) {
    fixture_t f;
    kr_request_stats_t stats;
    setup(&f);
    run_salted(&f, 1, 100, &stats);
    assert_int_equal(stats.n_cached, 0);
    assert_int_equal(stats.miss_position, 0);
    assert_int_equal(stats.miss_cached, -1);
    run_salted(&f, 2, 100, &stats);
    assert_int_equal(stats.n_cached, 0);
    run_salted(&f, 1, 100, &stats);
    assert_int_equal(stats.n_cached, 96); /* whole pages of 16, and one token to compute */
    run_salted(&f, 2, 96, &stats);
    assert_int_equal(stats.n_cached, 80);
    run_salted(&f, 0, 96, &stats);
    assert_int_equal(stats.n_cached, 0);
    assert_true(engine_stats(f.engine, NULL).n_tokens_cached == 96 + 80);
    teardown(&f);
}

TEST(the_first_token_that_differs_is_reported) {
    fixture_t f;
    kr_request_stats_t stats;
    kr_explain_t explain;
    setup(&f);
    run_salted(&f, 0, 100, &stats);
    const kr_token_t before = PROMPT[53];
    PROMPT[53] = before + 1;
    ask_init(&f.ask, PROMPT, 100, 4);
    kr_explain_init(&explain);
    assert_status(kr_engine_explain(f.engine, &f.ask.params, &explain, NULL), KR_OK);
    assert_int_equal(explain.n_prompt, 100);
    assert_int_equal(explain.n_cached, 48);
    assert_int_equal(explain.miss_position, 53);
    assert_int_equal(explain.miss_cached, before);
    assert_true(explain.kv_bytes > 0 && explain.ttft_ms > 0);
    assert_int_equal(explain.queue_position, 0);
    run_salted(&f, 0, 100, &stats);
    assert_int_equal(stats.n_cached, 48);
    assert_int_equal(stats.miss_position, 53);
    assert_int_equal(stats.miss_cached, before);
    assert_int_equal(engine_stats(f.engine, NULL).n_tokens_cached, 48);
    teardown(&f);
}

TEST(explain_submits_nothing_and_foretells_the_pages) {
    fixture_t f;
    kr_explain_t one, four;
    setup(&f);
    kr_explain_init(&one);
    kr_explain_init(&four);
    ask_init(&f.ask, PROMPT, 33, 16);
    assert_status(kr_engine_explain(f.engine, &f.ask.params, &one, NULL), KR_OK);
    assert_int_equal(one.kv_bytes, kv_bytes_of(f.model, 64) * 3 / 4); /* 48 keys */
    assert_true(one.ttft_ms == 0);                                     /* nothing measured yet */
    f.ask.params.n_choices = 4;
    assert_status(kr_engine_explain(f.engine, &f.ask.params, &four, NULL), KR_OK);
    assert_int_equal(four.kv_bytes, kv_bytes_of(f.model, 32) * 3);    /* 3 pages + 3 of 1 */
    assert_int_equal(engine_stats(f.engine, NULL).n_steps, 0);
    same_as_alone(&f);
    assert_status(kr_engine_explain(f.engine, &f.ask.params, &four, NULL), KR_OK);
    assert_int_equal(four.n_cached, 32);
    teardown(&f);
}

/* ---- figures -------------------------------------------------------------------------------- */

TEST(stats_count_what_was_done) {
    fixture_t f;
    kr_engine_params_t params;
    kr_telemetry_t telemetry = NULL;
    kr_telemetry_report_t report;
    if (kr_telemetry_create(&telemetry) != KR_OK) SKIP("built without telemetry");
    kr_engine_params_init(&params);
    params.telemetry = telemetry;
    setup_model(&f, open_tiny("llama"), &params);
    ask_init(&f.ask, PROMPT, 100, 30);
    out_t *out = submit(&f.c, &f.ask);
    wait_over(out);
    assert_status(kr_engine_drain(f.engine, 120000), KR_OK);
    const kr_request_stats_t r = stats_of(out);
    assert_int_equal(r.is_ended, 1);
    assert_int_equal(r.n_prompt, 100);
    assert_int_equal(r.n_generated, 30);
    assert_int_equal(r.n_preempted, 0);
    assert_true(r.ttft_ms > 0 && r.prefill_ms > 0 && r.decode_ms > 0 && r.queue_ms >= 0);
    assert_true(r.gap_max_ms > 0 && r.gap_max_ms <= r.decode_ms);
    assert_true(r.ttft_ms >= r.prefill_ms);
    const kr_engine_stats_t s = engine_stats(f.engine, "tiny");
    assert_int_equal(s.n_rows_prefill, 100);
    assert_int_equal(s.n_rows_decode, 29); /* the last token is not computed */
    assert_true(s.n_steps >= 30 && s.sched_us > 0);
    assert_int_equal(s.kv_bytes_used, 0);
    assert_true(s.kv_bytes_cached > 0 && s.kv_bytes_cached <= s.kv_bytes_max);
    static const struct { const char *name; uint64_t count; } expected[] = {
        {"requests_started", 1}, {"requests_finished", 1}, {"requests_failed", 0},
        {"tokens_looked_up", 100}, {"tokens_cached", 0}, {"ttft", 1}, {"inter_token", 29},
        {"generate", 1}, {"queue", 1}, {"sample", 30}, {"detokenize", 30}, {"cache_lookup", 1},
        {"request_prefill", 1}, {"request_decode", 1}, {"tokens_prompt", 100},
        {"tokens_generated", 30}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        kr_telemetry_report_init(&report);
        assert_status(kr_telemetry_report(telemetry, expected[i].name, &report), KR_OK);
        if (report.count != expected[i].count) {
            fail_msg("%s: %llu", expected[i].name, (unsigned long long)report.count);
        }
    }
    out_destroy(out);
    teardown(&f);
    kr_telemetry_destroy(telemetry);
}
