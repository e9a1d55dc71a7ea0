/* test_sampler.c: draws, penalties, log-probabilities and parameter checks of the whole sampler
 * against reference.h. Draws are judged by chi-square with fixed seeds, so a run repeats. */
#include "test.h"

#include <float.h>

#include "base/alloc.h"
#include "reference.h"
#include "sample/sampler.h"

static kr_sampler_params_t defaults(void) {
    kr_sampler_params_t p;
    kri_sampler_params_init(&p);
    return p;
}

/* Everything off: the plain softmax. */
static kr_sampler_params_t plain(void) {
    kr_sampler_params_t p = defaults();
    p.temperature = 1.0f;
    p.top_k = 0;
    p.top_p = 1.0f;
    return p;
}

static kri_sampler_t *create(const kr_sampler_params_t *p, uint32_t n_vocab) {
    kri_sampler_t *sampler = NULL;
    assert_status(kri_sampler_create(p, n_vocab, &sampler, NULL), KR_OK);
    return sampler;
}

static kr_token_t sample(kri_sampler_t *sampler, const float *logits) {
    kr_token_t token = -1;
    assert_status(kri_sampler_sample(sampler, logits, &token), KR_OK);
    return token;
}

/* ---- draws -------------------------------------------------------------------------------- */

/* Upper 1e-4 quantile of chi-square (Wilson and Hilferty, 1931). */
static double chi_square_limit(double n_free) {
    double a = 2.0 / (9.0 * n_free);
    return n_free * pow(1.0 - a + 3.719 * sqrt(a), 3.0);
}

/* Draws 12000 times and compares with the reference's survivors and probabilities. */
static void check_draws(const kr_sampler_params_t *p, const float *logits, uint32_t n_vocab) {
    enum { N_DRAWS = 12000 };
    static double wide[REF_VOCAB_MAX];
    static ref_item_t items[REF_VOCAB_MAX];
    static uint32_t counts[REF_VOCAB_MAX];
    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < n_vocab; i++) wide[i] = (double)logits[i];
    ref_penalise(wide, p, NULL, 0, n_vocab);
    size_t n = ref_filter(items, wide, n_vocab, p);
    ref_normalise(items, n, (double)p->temperature);

    kri_sampler_t *sampler = create(p, n_vocab);
    for (int i = 0; i < N_DRAWS; i++) {
        kr_token_t token = sample(sampler, logits);
        assert_true(token >= 0 && (uint32_t)token < n_vocab);
        counts[token]++;
    }
    kri_sampler_destroy(sampler);

    /* Rare tokens share a bin, so that each expects at least 5 draws. */
    double chi = 0.0, rare_expected = 0.0, rare_seen = 0.0, n_bins = 0.0, n_seen = 0.0;
    for (size_t i = 0; i < n; i++) {
        double expected = items[i].p * N_DRAWS, seen = (double)counts[items[i].token];
        n_seen += seen;
        if (expected < 5.0) {
            rare_expected += expected;
            rare_seen += seen;
            continue;
        }
        chi += (seen - expected) * (seen - expected) / expected;
        n_bins += 1.0;
    }
    if (rare_expected >= 5.0) {
        chi += (rare_seen - rare_expected) * (rare_seen - rare_expected) / rare_expected;
        n_bins += 1.0;
    }
    assert_true(n_seen == (double)N_DRAWS); /* nothing outside the survivors was drawn */
    if (n_bins > 1.0) assert_true(chi < chi_square_limit(n_bins - 1.0));
}

/* A peaked row like a language model's: a few likely tokens over a broad floor. */
static void make_logits(float *logits, uint32_t n, uint64_t seed) {
    uint64_t state = seed;
    for (uint32_t i = 0; i < n; i++) logits[i] = (float)(1.5 * ref_normal(&state));
    for (uint32_t i = 0; i < 6 && i < n; i++)
        logits[(i * 37 + 11) % n] = 4.0f + 0.5f * (float)i;
}

static void check_draws_of_sizes(const kr_sampler_params_t *p) {
    static float logits[2000];
    const uint32_t sizes[] = {1, 2, 50, 64, 700, 2000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        make_logits(logits, sizes[i], i + 1);
        check_draws(p, logits, sizes[i]);
    }
}

TEST(sampler_draws_the_softmax_when_no_filter_is_on) {
    kr_sampler_params_t p = plain();
    check_draws_of_sizes(&p);
    p.temperature = 2.0f;
    check_draws_of_sizes(&p);
    p.temperature = 0.3f;
    check_draws_of_sizes(&p);
}

TEST(sampler_draws_as_expected_with_the_default_params) {
    kr_sampler_params_t p = defaults();
    check_draws_of_sizes(&p);
}

TEST(sampler_draws_as_expected_with_top_k) {
    kr_sampler_params_t p = plain();
    const int32_t ks[] = {1, 3, 40, 500, 100000, -1};
    for (size_t i = 0; i < 6; i++) {
        p.top_k = ks[i];
        check_draws_of_sizes(&p);
    }
}

TEST(sampler_draws_as_expected_with_top_p) {
    kr_sampler_params_t p = plain();
    const float ps[] = {1e-6f, 0.3f, 0.8f, 0.99f};
    for (size_t i = 0; i < 4; i++) {
        p.top_p = ps[i];
        check_draws_of_sizes(&p);
    }
}

TEST(sampler_draws_as_expected_with_min_p) {
    kr_sampler_params_t p = plain();
    const float ps[] = {0.001f, 0.1f, 1.0f};
    for (size_t i = 0; i < 3; i++) {
        p.min_p = ps[i];
        check_draws_of_sizes(&p);
    }
}

TEST(sampler_draws_as_expected_with_typical_p) {
    kr_sampler_params_t p = plain();
    const float ps[] = {0.05f, 0.4f, 0.9f};
    for (size_t i = 0; i < 3; i++) {
        p.typical_p = ps[i];
        check_draws_of_sizes(&p);
    }
}

TEST(sampler_draws_as_expected_with_all_filters_and_bias_together) {
    static float logits[2000];
    const kr_logit_bias_t bias[] = {{3, 5.0f}, {11, -100.0f}, {48, 2.5f}};
    for (uint64_t seed = 1; seed <= 8; seed++) {
        kr_sampler_params_t p = defaults();
        p.temperature = 1.3f;
        p.top_k = seed % 2 ? 60 : 0;
        p.typical_p = seed % 3 ? 0.95f : 1.0f;
        p.top_p = 0.9f;
        p.min_p = 0.02f;
        p.seed = seed;
        p.n_logit_bias = 3;
        p.logit_bias = bias;
        make_logits(logits, 2000, seed + 50);
        check_draws(&p, logits, 2000);
    }
}

TEST(sampler_never_draws_an_impossible_token) {
    float logits[300];
    for (uint32_t i = 0; i < 300; i++) logits[i] = -INFINITY;
    logits[5] = 1.0f;
    logits[299] = 2.0f;
    kr_sampler_params_t p = plain();
    check_draws(&p, logits, 300);
    p.top_k = 40;
    check_draws(&p, logits, 300);
    p.top_k = 2;
    p.top_p = 0.99999f;
    check_draws(&p, logits, 300);
    p.top_k = 0;
    p.typical_p = 0.99f;
    check_draws(&p, logits, 300);
}

TEST(sampler_remembers_nothing_of_the_former_row) {
    static float rows[3][1000];
    kr_sampler_params_t p = plain();
    p.top_k = 4;
    for (uint32_t r = 0; r < 3; r++)
        for (uint32_t i = 0; i < 4; i++) rows[r][r * 300 + i * 50] = 9.0f;
    kri_sampler_t *sampler = create(&p, 1000);
    for (uint32_t i = 0; i < 300; i++) {
        const float *row = rows[i % 3];
        assert_true(row[sample(sampler, row)] == 9.0f);
    }
    kri_sampler_destroy(sampler);
}

TEST(sampler_survives_extreme_logits_and_temperatures) {
    float logits[130];
    for (uint32_t i = 0; i < 130; i++) logits[i] = i % 2 ? -FLT_MAX : -1e30f;
    logits[77] = FLT_MAX;
    for (int step = 0; step < 8; step++) {
        kr_sampler_params_t p = plain();
        p.temperature = step % 2 ? 1e-42f : 2.0f;
        p.top_k = step & 2 ? 10 : 0;
        p.typical_p = step & 4 ? 0.5f : 1.0f;
        kri_sampler_t *sampler = create(&p, 130);
        for (int i = 0; i < 20; i++) assert_int_equal(sample(sampler, logits), 77);
        kri_sampler_destroy(sampler);
    }
}

TEST(sampler_repeats_its_draws_when_the_seed_is_the_same) {
    static float logits[5000];
    kr_sampler_params_t p = plain();
    int n_equal = 0;
    make_logits(logits, 5000, 8);
    p.top_p = 0.9f;
    p.seed = UINT64_MAX;
    kri_sampler_t *a = create(&p, 5000), *b = create(&p, 5000);
    p.seed = 12345;
    kri_sampler_t *c = create(&p, 5000);
    for (int i = 0; i < 200; i++) {
        kr_token_t token = sample(a, logits);
        assert_int_equal(token, sample(b, logits));
        n_equal += token == sample(c, logits);
    }
    assert_true(n_equal < 150);
    kri_sampler_destroy(a);
    kri_sampler_destroy(b);
    kri_sampler_destroy(c);
}

TEST(sampler_draws_the_same_whether_or_not_logprobs_are_kept) {
    static float logits[5000];
    kr_sampler_params_t p = defaults();
    make_logits(logits, 5000, 4);
    kri_sampler_t *a = create(&p, 5000);
    p.n_logprobs = 20;
    kri_sampler_t *b = create(&p, 5000);
    for (int i = 0; i < 100; i++) assert_int_equal(sample(a, logits), sample(b, logits));
    kri_sampler_destroy(a);
    kri_sampler_destroy(b);
}

/* ---- greedy ------------------------------------------------------------------------------- */

TEST(sampler_greedy_takes_the_lowest_id_when_logits_tie) {
    static float logits[1000];
    kr_sampler_params_t p = defaults();
    p.temperature = 0.0f;
    kri_sampler_t *sampler = create(&p, 1000);
    assert_int_equal(sample(sampler, logits), 0);
    logits[999] = logits[640] = logits[639] = 1.0f;
    assert_int_equal(sample(sampler, logits), 639);
    logits[64] = 1.0f;
    assert_int_equal(sample(sampler, logits), 64);
    logits[3] = 1.5f;
    assert_int_equal(sample(sampler, logits), 3);
    kri_sampler_destroy(sampler);
}

TEST(sampler_greedy_treats_both_zeros_as_equal) {
    float logits[70];
    for (int i = 0; i < 70; i++) logits[i] = i < 5 ? -1.0f : i < 10 ? -0.0f : 0.0f;
    kr_sampler_params_t p = defaults();
    p.temperature = 0.0f;
    kri_sampler_t *sampler = create(&p, 70);
    assert_int_equal(sample(sampler, logits), 5);
    kri_sampler_destroy(sampler);
}

TEST(sampler_top_k_1_takes_the_lowest_id_when_logits_tie) {
    static float logits[1000];
    kr_sampler_params_t p = defaults();
    p.top_k = 1;
    logits[900] = logits[130] = logits[131] = 2.0f;
    kri_sampler_t *sampler = create(&p, 1000);
    for (int i = 0; i < 10; i++) assert_int_equal(sample(sampler, logits), 130);
    kri_sampler_destroy(sampler);
}

/* ---- penalties and log-probabilities ------------------------------------------------------ */

/* Checks that log-probabilities of the last sample equal the reference's over `wide`. */
static void check_logprobs(kri_sampler_t *sampler, const double *wide, uint32_t n_vocab,
                           uint32_t n_logprobs, kr_token_t chosen) {
    static ref_item_t items[REF_VOCAB_MAX];
    kr_logprob_t got, top[20];
    double max = -HUGE_VAL, total = 0.0;
    for (uint32_t i = 0; i < n_vocab; i++) max = fmax(max, wide[i]);
    for (uint32_t i = 0; i < n_vocab; i++) total += exp(wide[i] - max);
    double log_total = max + log(total);
    assert_status(kri_sampler_logprobs(sampler, &got, top), KR_OK);
    assert_int_equal(got.token, chosen);
    assert_true(fabs((double)got.logprob - (wide[chosen] - log_total)) < 1e-5);
    for (uint32_t i = 0; i < n_vocab; i++)
        items[i] = (ref_item_t){wide[i], 0.0, 0.0, (kr_token_t)i};
    ref_sort_by_logit(items, n_vocab);
    for (uint32_t i = 0; i < n_logprobs; i++) {
        /* Values must agree in rank; ids may swap where f32 rounding made two logits equal. */
        assert_true(fabs((double)top[i].logprob - (items[i].logit - log_total)) < 1e-5);
        assert_true(fabs(wide[top[i].token] - items[i].logit) < 1e-5);
        for (uint32_t j = 0; j < i; j++) assert_int_not_equal(top[i].token, top[j].token);
    }
}

TEST(sampler_logprobs_are_exact_to_1e_5_over_the_full_vocabulary) {
    static float logits[8000];
    static double wide[8000];
    const uint32_t sizes[] = {20, 64, 100, 1000, 8000};
    for (size_t s = 0; s < 5; s++) {
        for (uint64_t seed = 1; seed <= 10; seed++) {
            kr_sampler_params_t p = defaults();
            p.n_logprobs = 20;
            p.temperature = seed % 2 ? 0.0f : 1.7f; /* must not change them */
            p.seed = seed;
            kri_sampler_t *sampler = create(&p, sizes[s]);
            make_logits(logits, sizes[s], seed);
            for (uint32_t i = 0; i < sizes[s]; i++) wide[i] = (double)logits[i];
            check_logprobs(sampler, wide, sizes[s], 20, sample(sampler, logits));
            kri_sampler_destroy(sampler);
        }
    }
}

TEST(sampler_logprobs_fill_up_when_fewer_tokens_are_possible) {
    const float logits[] = {0.0f, -INFINITY, 0.0f, -INFINITY};
    kr_sampler_params_t p = plain();
    kr_logprob_t chosen, top[5];
    p.n_logprobs = 5;
    kri_sampler_t *sampler = create(&p, 4);
    (void)sample(sampler, logits);
    assert_status(kri_sampler_logprobs(sampler, &chosen, top), KR_OK);
    assert_int_equal(top[0].token, 0);
    assert_int_equal(top[1].token, 2);
    assert_true(fabs((double)top[0].logprob + log(2.0)) < 1e-6);
    for (int i = 2; i < 5; i++) {
        assert_int_equal(top[i].token, -1);
        assert_true(isinf(top[i].logprob) && top[i].logprob < 0.0f);
    }
    kri_sampler_destroy(sampler);
}

TEST(sampler_logprobs_are_not_found_before_a_sample_after_a_failed_one_and_when_off) {
    const float good[] = {1.0f, 2.0f}, bad[] = {1.0f, NAN};
    kr_sampler_params_t p = defaults();
    kr_logprob_t chosen, top[1];
    kr_token_t token;
    p.n_logprobs = 1;
    kri_sampler_t *sampler = create(&p, 2);
    assert_status(kri_sampler_logprobs(sampler, &chosen, top), KR_E_NOT_FOUND);
    (void)sample(sampler, good);
    assert_status(kri_sampler_logprobs(sampler, &chosen, top), KR_OK);
    assert_status(kri_sampler_sample(sampler, bad, &token), KR_E_NUMERIC);
    assert_status(kri_sampler_logprobs(sampler, &chosen, top), KR_E_NOT_FOUND);
    kri_sampler_destroy(sampler);
    p.n_logprobs = 0;
    sampler = create(&p, 2);
    (void)sample(sampler, good);
    assert_status(kri_sampler_logprobs(sampler, &chosen, NULL), KR_E_NOT_FOUND);
    kri_sampler_destroy(sampler);
}

/* Accepts random tokens and compares every few of them with the naive recount. */
static void check_history(kr_sampler_params_t p, uint32_t n_vocab, size_t n_accept, size_t every) {
    static float logits[REF_VOCAB_MAX];
    static double wide[REF_VOCAB_MAX];
    static kr_token_t history[20000];
    uint64_t state = 17;
    p.n_logprobs = n_vocab < 20 ? n_vocab : 20;
    p.temperature = 0.0f;
    kri_sampler_t *sampler = create(&p, n_vocab);
    make_logits(logits, n_vocab, 33);
    for (size_t n = 0; n <= n_accept; n++) {
        if (n % every == 0) {
            for (uint32_t i = 0; i < n_vocab; i++) wide[i] = (double)logits[i];
            ref_penalise(wide, &p, history, n, n_vocab);
            check_logprobs(sampler, wide, n_vocab, p.n_logprobs, sample(sampler, logits));
        }
        /* Squared: some tokens come often, most seldom. */
        double u = ref_random(&state);
        history[n] = (kr_token_t)(u * u * n_vocab);
        assert_status(kri_sampler_accept(sampler, history[n]), KR_OK);
    }
    kri_sampler_destroy(sampler);
}

TEST(sampler_penalties_match_a_recount_of_the_history_for_each_window) {
    const uint32_t windows[] = {0, 1, 2, 3, 5, 16, 64, 1000};
    for (size_t i = 0; i < 8; i++) {
        kr_sampler_params_t p = defaults();
        p.n_penalty_last = windows[i];
        p.repeat_penalty = 1.3f;
        check_history(p, 17, 300, 7);
        p.presence_penalty = 0.7f;
        check_history(p, 17, 300, 7);
        p.frequency_penalty = -0.05f;
        check_history(p, 17, 300, 7);
        p.repeat_penalty = 0.8f;
        check_history(p, 300, 300, 7);
    }
}

TEST(sampler_history_stays_exact_over_thousands_of_tokens) {
    kr_sampler_params_t p = defaults();
    p.repeat_penalty = 1.1f;
    p.frequency_penalty = 0.2f;
    p.n_penalty_last = 64;
    check_history(p, 5000, 19999, 501);
    p.n_penalty_last = 1000;
    check_history(p, 700, 19999, 1003);
}

TEST(sampler_bias_comes_before_the_penalties) {
    const kr_logit_bias_t bias[] = {{2, -3.0f}, {0, 1.0f}};
    const float logits[] = {1.0f, 1.5f, 1.0f, 0.5f};
    kr_sampler_params_t p = defaults();
    p.temperature = 0.0f;
    p.repeat_penalty = 2.0f;
    p.n_logprobs = 4;
    p.n_logit_bias = 2;
    p.logit_bias = bias;
    kri_sampler_t *sampler = create(&p, 4);
    assert_status(kri_sampler_accept(sampler, 0), KR_OK);
    assert_status(kri_sampler_accept(sampler, 2), KR_OK);
    /* 0: (1 + 1) / 2 = 1; 2: (1 - 3) * 2 = -4 */
    const double wide[] = {1.0, 1.5, -4.0, 0.5};
    check_logprobs(sampler, wide, 4, 4, sample(sampler, logits));
    kri_sampler_destroy(sampler);
}

TEST(sampler_copies_the_bias_and_leaves_the_logits_alone) {
    kr_logit_bias_t bias[] = {{1, 100.0f}};
    float logits[] = {1.0f, 0.0f, 0.5f}, before[3];
    kr_sampler_params_t p = defaults();
    p.temperature = 0.0f;
    p.repeat_penalty = 1.5f;
    p.n_logit_bias = 1;
    p.logit_bias = bias;
    kri_sampler_t *sampler = create(&p, 3);
    bias[0].token = 2;
    memcpy(before, logits, sizeof logits);
    assert_status(kri_sampler_accept(sampler, 0), KR_OK);
    assert_int_equal(sample(sampler, logits), 1);
    assert_memory_equal(before, logits, sizeof logits);
    kri_sampler_destroy(sampler);
}

TEST(sampler_bias_and_penalties_keep_finite_logits_finite) {
    const kr_logit_bias_t bias[] = {{0, 100.0f}, {1, -100.0f}};
    const float logits[] = {FLT_MAX, -FLT_MAX, 1.0f, -INFINITY};
    kr_sampler_params_t p = defaults();
    p.repeat_penalty = 1e-30f;
    p.n_logit_bias = 2;
    p.logit_bias = bias;
    kri_sampler_t *sampler = create(&p, 4);
    for (kr_token_t i = 0; i < 4; i++) assert_status(kri_sampler_accept(sampler, i), KR_OK);
    assert_int_equal(sample(sampler, logits), 0);
    kri_sampler_destroy(sampler);
}

TEST(sampler_refuses_a_bad_logit_also_under_bias_and_penalty) {
    const kr_logit_bias_t bias[] = {{1, 1.0f}};
    const float bad[] = {NAN, INFINITY};
    kr_sampler_params_t p = defaults();
    p.repeat_penalty = 1.5f;
    p.n_logit_bias = 1;
    p.logit_bias = bias;
    kri_sampler_t *sampler = create(&p, 3);
    assert_status(kri_sampler_accept(sampler, 1), KR_OK);
    for (size_t i = 0; i < 2; i++) {
        const float logits[] = {0.0f, bad[i], 0.0f};
        kr_token_t token = 77;
        assert_status(kri_sampler_sample(sampler, logits, &token), KR_E_NUMERIC);
        assert_int_equal(token, 77);
    }
    const float none[] = {-INFINITY, -INFINITY, -INFINITY};
    kr_token_t token = 77;
    assert_status(kri_sampler_sample(sampler, none, &token), KR_E_NUMERIC);
    assert_int_equal(token, 77);
    kri_sampler_destroy(sampler);
}

/* ---- memory ------------------------------------------------------------------------------- */

static kr_sampler_params_t everything(const kr_logit_bias_t *bias) {
    kr_sampler_params_t p = defaults();
    p.top_k = 0;
    p.typical_p = 0.9f;
    p.min_p = 0.01f;
    p.repeat_penalty = 1.1f;
    p.n_logprobs = 20;
    p.n_logit_bias = 1;
    p.logit_bias = bias;
    return p;
}

TEST(sampler_allocates_nothing_after_create) {
    static float logits[3001];
    const kr_logit_bias_t bias[] = {{3000, 4.0f}};
    kr_sampler_params_t p = everything(bias);
    kri_sampler_t *sampler = create(&p, 3001);
    make_logits(logits, 3001, 6);
    kri_alloc_guard_begin("sample");
    kr_status_t status = KR_OK;
    for (int i = 0; i < 200 && status == KR_OK; i++) {
        kr_token_t token = 0;
        kr_logprob_t chosen, top[20];
        status = kri_sampler_sample(sampler, logits, &token);
        if (status == KR_OK) status = kri_sampler_accept(sampler, token);
        if (status == KR_OK) status = kri_sampler_logprobs(sampler, &chosen, top);
    }
    uint64_t n_tried = kri_alloc_guard_end();
    assert_status(status, KR_OK);
    assert_int_equal(n_tried, 0);
    kri_sampler_destroy(sampler);
}

TEST(sampler_create_leaves_nothing_behind_when_any_allocation_fails) {
    const kr_logit_bias_t bias[] = {{5, 4.0f}};
    kr_sampler_params_t p = everything(bias);
    kr_memory_usage_t before, after;
    uint64_t k = 0;
    kr_status_t status;
    kr_memory_usage_init(&before);
    kr_memory_usage_init(&after);
    assert_status(kr_memory_usage(&before), KR_OK);
    do {
        kri_sampler_t *sampler = NULL;
        kri_alloc_fail(++k, false);
        status = kri_sampler_create(&p, 1000, &sampler, NULL);
        kri_alloc_fail(0, false);
        assert_true(status == KR_OK || status == KR_E_NOMEM);
        assert_int_equal(sampler != NULL, status == KR_OK);
        kri_sampler_destroy(sampler);
        assert_status(kr_memory_usage(&after), KR_OK);
        assert_int_equal(after.bytes_now, before.bytes_now);
    } while (status != KR_OK && k < 100);
    assert_status(status, KR_OK);
    assert_in_range(k, 9, 20); /* the injection did reach the allocations */
}

/* ---- parameters --------------------------------------------------------------------------- */

static void check_refused(const kr_sampler_params_t *p, const char *param) {
    kr_error_t error;
    kri_sampler_t *sampler = (kri_sampler_t *)&error;
    kr_error_init(&error);
    assert_status(kri_sampler_create(p, 100, &sampler, &error), KR_E_INVALID_ARG);
    assert_true(sampler == (kri_sampler_t *)&error);
    assert_status(error.code, KR_E_INVALID_ARG);
    assert_string_equal(error.param, param);
    assert_true(error.message[0] != '\0');
    assert_status(kri_sampler_create(p, 100, &sampler, NULL), KR_E_INVALID_ARG);
}

typedef struct float_case_s {
    const char *name;
    size_t at; /* offset of the field */
    float good[3], bad[4];
} float_case_t;

TEST(sampler_create_refuses_each_float_out_of_range_and_nan) {
    const float_case_t cases[] = {
        {"temperature", offsetof(kr_sampler_params_t, temperature),
         {0.0f, 2.0f, 0.7f}, {-0.001f, 2.001f, NAN, INFINITY}},
        {"top_p", offsetof(kr_sampler_params_t, top_p),
         {1.0f, 1e-9f, 0.5f}, {0.0f, 1.001f, NAN, -0.1f}},
        {"min_p", offsetof(kr_sampler_params_t, min_p),
         {0.0f, 1.0f, 0.5f}, {-0.001f, 1.001f, NAN, -INFINITY}},
        {"typical_p", offsetof(kr_sampler_params_t, typical_p),
         {1.0f, 1e-9f, 0.5f}, {0.0f, 1.001f, NAN, -0.1f}},
        {"repeat_penalty", offsetof(kr_sampler_params_t, repeat_penalty),
         {2.0f, 1e-9f, 1.5f}, {0.0f, 2.001f, NAN, -1.0f}},
        {"presence_penalty", offsetof(kr_sampler_params_t, presence_penalty),
         {-2.0f, 2.0f, 0.0f}, {-2.001f, 2.001f, NAN, INFINITY}},
        {"frequency_penalty", offsetof(kr_sampler_params_t, frequency_penalty),
         {-2.0f, 2.0f, 0.0f}, {-2.001f, 2.001f, NAN, -INFINITY}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (size_t j = 0; j < 3; j++) {
            kr_sampler_params_t p = defaults();
            memcpy((char *)&p + cases[i].at, &cases[i].good[j], sizeof(float));
            kri_sampler_destroy(create(&p, 100));
        }
        for (size_t j = 0; j < 4; j++) {
            kr_sampler_params_t p = defaults();
            memcpy((char *)&p + cases[i].at, &cases[i].bad[j], sizeof(float));
            check_refused(&p, cases[i].name);
        }
    }
}

TEST(sampler_create_refuses_each_integer_out_of_range) {
    kr_sampler_params_t p = defaults();
    p.top_k = -2;
    check_refused(&p, "top_k");
    p = defaults();
    p.n_logprobs = 21;
    check_refused(&p, "n_logprobs");
    p = defaults();
    p.n_penalty_last = (1u << 20) + 1;
    check_refused(&p, "n_penalty_last");
    p.n_penalty_last = UINT32_MAX;
    check_refused(&p, "n_penalty_last");
}

TEST(sampler_create_refuses_a_bad_vocabulary_or_a_null_output) {
    kr_sampler_params_t p = defaults();
    kr_error_t error;
    kri_sampler_t *sampler = NULL;
    kr_error_init(&error);
    assert_status(kri_sampler_create(&p, 0, &sampler, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "n_vocab");
    assert_status(kri_sampler_create(&p, UINT32_MAX, &sampler, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "n_vocab");
    assert_status(kri_sampler_create(&p, 10, NULL, &error), KR_E_INVALID_ARG);
    assert_string_equal(error.param, "sampler");
}

TEST(sampler_create_refuses_a_bad_logit_bias) {
    static kr_logit_bias_t many[1025];
    for (kr_token_t i = 0; i < 1025; i++) many[i].token = i;
    kr_sampler_params_t p = defaults();
    p.n_logit_bias = 1025;
    p.logit_bias = many;
    check_refused(&p, "n_logit_bias");
    p.n_logit_bias = 100;
    kri_sampler_destroy(create(&p, 100));
    p.n_logit_bias = 101; /* token 100 of 100 */
    check_refused(&p, "logit_bias");
    p.n_logit_bias = 1;
    p.logit_bias = NULL;
    check_refused(&p, "logit_bias");
    const kr_logit_bias_t bad[][2] = {
        {{1, 1.0f}, {1, 2.0f}},   {{0, 1.0f}, {-1, 2.0f}},  {{0, 1.0f}, {INT32_MAX, 2.0f}},
        {{0, 1.0f}, {2, NAN}},    {{0, 1.0f}, {2, 100.1f}}, {{0, 1.0f}, {2, -INFINITY}},
    };
    p.n_logit_bias = 2;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        p.logit_bias = bad[i];
        check_refused(&p, "logit_bias");
    }
}

TEST(sampler_create_uses_defaults_for_null_and_for_the_fields_of_a_shorter_struct) {
    static float logits[500];
    kr_sampler_params_t full = defaults(), cut = defaults();
    make_logits(logits, 500, 2);
    cut.struct_bytes = offsetof(kr_sampler_params_t, top_p);
    cut.top_p = NAN; /* not read */
    cut.n_logprobs = 9999;
    kri_sampler_t *a = create(&full, 500), *b = create(&cut, 500), *c = create(NULL, 500);
    for (int i = 0; i < 100; i++) {
        kr_token_t token = sample(a, logits);
        assert_int_equal(token, sample(b, logits));
        assert_int_equal(token, sample(c, logits));
    }
    kri_sampler_destroy(a);
    kri_sampler_destroy(b);
    kri_sampler_destroy(c);
}

TEST(sampler_create_refuses_an_unknown_tail_and_an_uninitialised_struct) {
    struct { kr_sampler_params_t p; uint64_t tail; } longer = {defaults(), 0};
    kr_error_t error;
    kri_sampler_t *sampler = NULL;
    kr_error_init(&error);
    longer.p.struct_bytes = sizeof longer;
    assert_status(kri_sampler_create(&longer.p, 10, &sampler, &error), KR_OK);
    kri_sampler_destroy(sampler);
    longer.tail = 1;
    assert_status(kri_sampler_create(&longer.p, 10, &sampler, &error), KR_E_UNSUPPORTED);
    longer.p.struct_bytes = 0;
    assert_status(kri_sampler_create(&longer.p, 10, &sampler, &error), KR_E_INVALID_ARG);
}

TEST(sampler_calls_refuse_null_and_foreign_tokens) {
    const float logits[4] = {0};
    kr_logprob_t chosen, top[2];
    kr_token_t token;
    kr_sampler_params_t p = defaults();
    p.n_logprobs = 2;
    kri_sampler_t *sampler = create(&p, 4);
    assert_status(kri_sampler_accept(NULL, 0), KR_E_INVALID_ARG);
    assert_status(kri_sampler_accept(sampler, -1), KR_E_INVALID_ARG);
    assert_status(kri_sampler_accept(sampler, 4), KR_E_INVALID_ARG);
    assert_status(kri_sampler_accept(sampler, 3), KR_OK);
    assert_status(kri_sampler_sample(NULL, logits, &token), KR_E_INVALID_ARG);
    assert_status(kri_sampler_sample(sampler, NULL, &token), KR_E_INVALID_ARG);
    assert_status(kri_sampler_sample(sampler, logits, NULL), KR_E_INVALID_ARG);
    (void)sample(sampler, logits);
    assert_status(kri_sampler_logprobs(NULL, &chosen, top), KR_E_INVALID_ARG);
    assert_status(kri_sampler_logprobs(sampler, NULL, top), KR_E_INVALID_ARG);
    assert_status(kri_sampler_logprobs(sampler, &chosen, NULL), KR_E_INVALID_ARG);
    kri_sampler_destroy(sampler);
    kri_sampler_destroy(NULL);
    kri_sampler_params_init(NULL);
}

/* ---- memory --------------------------------------------------------------------------------- */

static uint64_t heap_bytes_now(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

/* A bound that is too loose would refuse requests that fit. */
TEST(sampler_bytes_bound_what_a_sampler_takes) {
    static const uint32_t vocabularies[] = {1, 64, 320, 32000, 151936};
    static kr_logit_bias_t bias[1024];
    for (uint32_t i = 0; i < 5 * 48; i++) {
        const uint32_t n_vocab = vocabularies[i % 5], variant = i / 5;
        kr_sampler_params_t p = variant % 2 ? plain() : defaults();
        if (variant / 2 % 2) p.temperature = 0;
        if (variant / 4 % 2) p.n_logprobs = 20;
        if (variant / 8 % 2) p.top_k = 1000;
        if (variant / 16 == 1) p.n_penalty_last = 1u << 20; /* without a penalty: no history */
        if (variant / 16 == 2) {
            p.n_penalty_last = 5000;
            p.repeat_penalty = 1.1f;
            p.n_logit_bias = n_vocab < 1024 ? n_vocab : 1024;
            for (uint32_t b = 0; b < p.n_logit_bias; b++) bias[b].token = (kr_token_t)b;
            p.logit_bias = bias;
        }
        const uint64_t before = heap_bytes_now();
        kri_sampler_t *sampler = create(&p, n_vocab);
        const uint64_t taken = heap_bytes_now() - before;
        const uint64_t bound = kri_sampler_bytes(&p, n_vocab);
        if (taken > bound || bound > 2 * taken + 1024) {
            fail_msg("variant %u of %u tokens takes %llu, the bound is %llu", variant, n_vocab,
                     (unsigned long long)taken, (unsigned long long)bound);
        }
        kri_sampler_destroy(sampler);
    }
}
