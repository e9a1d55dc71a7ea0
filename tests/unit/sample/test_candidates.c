/* test_candidates.c: rows, selection and filters against full sorts (reference.h), over sizes
 * round the block length, flat, peaked and tied rows. */
#include "test.h"

#include <float.h>

#include "reference.h"
#include "sample/candidates.h"
#include "sample/sampler.h"

static float row_data[REF_VOCAB_MAX];
static double row_wide[REF_VOCAB_MAX];
static ref_item_t items[REF_VOCAB_MAX];

enum { SHAPE_NORMAL, SHAPE_FLAT, SHAPE_PEAKED, SHAPE_TIES, SHAPE_EQUAL, SHAPE_MASKED,
       SHAPE_SORTED, N_SHAPES };

static void make_row(int shape, uint32_t n, uint64_t seed) {
    uint64_t state = seed * 7919 + 1;
    for (uint32_t i = 0; i < n; i++) {
        double g = ref_normal(&state);
        switch (shape) {
        case SHAPE_NORMAL: g *= 3.0; break;
        case SHAPE_FLAT: g *= 0.05; break;
        case SHAPE_PEAKED: g = ref_random(&state) < 0.01 ? 15.0 + g : g; break;
        case SHAPE_TIES: g = floor(g * 2.0); break;
        case SHAPE_EQUAL: g = 1.5; break;
        case SHAPE_MASKED: g = ref_random(&state) < 0.98 && i != n / 2 ? -HUGE_VAL : g; break;
        default: g = -0.001 * (double)i; break;
        }
        row_data[i] = (float)g;
        row_wide[i] = (double)row_data[i];
    }
}

/* The candidates are exactly items [n], whatever the order. */
static void assert_same_set(const kri_candidates_t *c, size_t n) {
    static uint8_t seen[REF_VOCAB_MAX];
    memset(seen, 0, sizeof seen);
    assert_int_equal(c->n, n);
    for (uint32_t i = 0; i < c->n; i++) {
        kr_token_t token = c->items[i].token;
        assert_true(token >= 0 && token < REF_VOCAB_MAX);
        assert_true(c->items[i].logit == row_data[token]);
        assert_int_equal(seen[token], 0);
        seen[token] = 1;
    }
    for (size_t i = 0; i < n; i++) assert_int_equal(seen[items[i].token], 1);
}

static const uint32_t SIZES[] = {1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 5003};
#define N_SIZES (sizeof SIZES / sizeof SIZES[0])

TEST(row_scan_and_argmax_match_a_plain_loop) {
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            kri_row_t row;
            uint32_t n = SIZES[s], best = 0;
            make_row(shape, n, s);
            for (uint32_t i = 1; i < n; i++)
                if (row_data[i] > row_data[best]) best = i;
            assert_status(kri_row_init(&row, n, 0), KR_OK);
            kri_row_begin(&row, row_data);
            assert_status(kri_row_scan(&row), KR_OK);
            assert_true(row.max == row_data[best]);
            assert_int_equal(kri_row_argmax(&row), best);
            kri_row_deinit(&row);
        }
    }
}

TEST(row_scan_refuses_a_bad_value_when_it_is_at_any_place) {
    const float bad[] = {NAN, -NAN, INFINITY};
    kri_row_t row;
    for (size_t s = 0; s < N_SIZES; s++) {
        uint32_t n = SIZES[s];
        assert_status(kri_row_init(&row, n, 0), KR_OK);
        make_row(SHAPE_NORMAL, n, s);
        for (uint32_t at = 0; at < n; at += n > 200 ? 41 : 1) {
            for (size_t b = 0; b < 3; b++) {
                float keep = row_data[at];
                row_data[at] = bad[b];
                kri_row_begin(&row, row_data);
                assert_status(kri_row_scan(&row), KR_E_NUMERIC);
                row_data[at] = keep;
            }
        }
        kri_row_begin(&row, row_data);
        assert_status(kri_row_scan(&row), KR_OK);
        for (uint32_t i = 0; i < n; i++) row_data[i] = -INFINITY;
        kri_row_begin(&row, row_data);
        assert_status(kri_row_scan(&row), KR_E_NUMERIC);
        kri_row_deinit(&row);
    }
}

TEST(row_exp_is_within_3e_7_of_the_library_and_0_below_its_limit) {
    float x[KRI_ROW_BLOCK], e[KRI_ROW_BLOCK];
    uint64_t random = 3;
    double worst = 0.0;
    for (int round = 0; round < 20000; round++) {
        for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) x[i] = (float)(-87.0 * ref_random(&random));
        kri_row_exp(x, 0.0f, 1.0f, e);
        for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++)
            worst = fmax(worst, fabs((double)e[i] / exp((double)x[i]) - 1.0));
    }
    assert_true(worst < 3e-7);
    const float edge[] = {0.0f, -0.0f, -86.99f, -87.0f, -87.1f, -1e30f, -FLT_MAX, -INFINITY};
    for (uint32_t i = 0; i < KRI_ROW_BLOCK; i++) x[i] = edge[i % 8];
    kri_row_exp(x, 0.0f, FLT_MAX, e);
    assert_true(e[0] == 1.0f && e[1] == 1.0f && e[2] == 0.0f);
    kri_row_exp(x, 0.0f, 1.0f, e);
    assert_true(e[0] == 1.0f && e[1] == 1.0f && e[2] > 0.0f);
    for (uint32_t i = 3; i < 8; i++) assert_true(e[i] == 0.0f);
}

TEST(row_sum_exp_matches_doubles) {
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            kri_row_t row;
            double total = 0.0;
            make_row(shape, SIZES[s], s + 100);
            assert_status(kri_row_init(&row, SIZES[s], 0), KR_OK);
            kri_row_begin(&row, row_data);
            assert_status(kri_row_scan(&row), KR_OK);
            for (uint32_t i = 0; i < SIZES[s]; i++)
                total += exp((row_wide[i] - (double)row.max) * 0.75);
            assert_true(fabs(kri_row_sum_exp(&row, 0.75f) / total - 1.0) < 1e-6);
            kri_row_deinit(&row);
        }
    }
}

TEST(row_edits_are_seen_by_every_reader_and_forgotten_by_the_next_row) {
    kri_row_t row;
    make_row(SHAPE_NORMAL, 1000, 9);
    assert_status(kri_row_init(&row, 1000, 3), KR_OK);
    kri_row_begin(&row, row_data);
    *kri_row_edit(&row, 999) = 50.0f;
    *kri_row_edit(&row, 0) = 60.0f;
    *kri_row_edit(&row, 1) = 70.0f;
    assert_status(kri_row_scan(&row), KR_OK);
    assert_int_equal(kri_row_argmax(&row), 1);
    assert_true(kri_row_get(&row, 999) == 50.0f && kri_row_get(&row, 0) == 60.0f);
    assert_true(kri_row_get(&row, 2) == row_data[2]);
    kri_row_begin(&row, row_data);
    for (kr_token_t i = 0; i < 1000; i++) assert_true(kri_row_get(&row, i) == row_data[i]);
    kri_row_deinit(&row);
}

TEST(candidates_top_matches_a_full_sort_for_every_shape_size_and_k) {
    const uint32_t ks[] = {1, 2, 5, 20, 40, 63, 64, 65, 100, 1000, 4999};
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            make_row(shape, SIZES[s], s + 200);
            for (size_t j = 0; j < sizeof ks / sizeof ks[0]; j++) {
                kr_sampler_params_t p;
                kri_row_t row;
                kri_candidates_t c;
                if (ks[j] > SIZES[s]) continue;
                kri_sampler_params_init(&p);
                p.top_k = (int32_t)ks[j];
                p.top_p = 1.0f;
                assert_status(kri_row_init(&row, SIZES[s], 0), KR_OK);
                assert_status(kri_candidates_init(&c, SIZES[s],
                                                  kri_candidates_capacity(SIZES[s], ks[j])),
                              KR_OK);
                kri_row_begin(&row, row_data);
                assert_status(kri_row_scan(&row), KR_OK);
                kri_candidates_top(&c, &row, ks[j]);
                assert_same_set(&c, ref_filter(items, row_wide, SIZES[s], &p));
                kri_candidates_deinit(&c);
                kri_row_deinit(&row);
            }
        }
    }
}

TEST(candidates_top_takes_the_lowest_ids_when_zeros_of_both_signs_tie) {
    kri_row_t row;
    kri_candidates_t c;
    for (uint32_t i = 0; i < 130; i++) row_data[i] = i % 2 ? 0.0f : -0.0f;
    assert_status(kri_row_init(&row, 130, 0), KR_OK);
    assert_status(kri_candidates_init(&c, 130, kri_candidates_capacity(130, 5)), KR_OK);
    kri_row_begin(&row, row_data);
    assert_status(kri_row_scan(&row), KR_OK);
    for (uint32_t k = 1; k <= 5; k++) { /* below, at and above the number of blocks */
        kri_candidates_top(&c, &row, k);
        assert_int_equal(c.n, k);
        for (uint32_t i = 0; i < k; i++) assert_in_range(c.items[i].token, 0, k - 1);
    }
    kri_candidates_deinit(&c);
    kri_row_deinit(&row);
}

TEST(candidates_keep_mass_matches_a_full_sort) {
    const float masses[] = {1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f};
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            /* Equal logits put k / n on the very edge of a mass; the sum's rounding decides. */
            if (shape == SHAPE_EQUAL) continue;
            make_row(shape, SIZES[s], s + 300);
            for (size_t j = 0; j < sizeof masses / sizeof masses[0]; j++) {
                kr_sampler_params_t p;
                kri_row_t row;
                kri_candidates_t c;
                kri_sampler_params_init(&p);
                p.top_k = 0;
                p.top_p = masses[j];
                assert_status(kri_row_init(&row, SIZES[s], 0), KR_OK);
                assert_status(kri_candidates_init(&c, SIZES[s], SIZES[s]), KR_OK);
                kri_row_begin(&row, row_data);
                assert_status(kri_row_scan(&row), KR_OK);
                kri_candidates_above(&c, &row, -INFINITY);
                double total = kri_candidates_weigh(&c, row.max, 1.0f);
                kri_candidates_keep_mass(&c, (double)masses[j] * total);
                assert_same_set(&c, ref_filter(items, row_wide, SIZES[s], &p));
                kri_candidates_deinit(&c);
                kri_row_deinit(&row);
            }
        }
    }
}

TEST(candidates_keep_typical_and_min_p_match_a_full_sort) {
    const float typical[] = {0.05f, 0.2f, 0.5f, 0.9f, 1.0f};
    const float min_p[] = {0.0f, 0.01f, 0.3f, 1.0f};
    for (size_t s = 0; s < N_SIZES; s++) {
        for (int shape = 0; shape < N_SHAPES; shape++) {
            if (shape == SHAPE_EQUAL || shape == SHAPE_SORTED) continue; /* edges everywhere */
            make_row(shape, SIZES[s], s + 400);
            for (size_t j = 0; j < 20; j++) {
                kr_sampler_params_t p;
                kri_row_t row;
                kri_candidates_t c;
                kri_sampler_params_init(&p);
                p.top_k = 0;
                p.top_p = 1.0f;
                p.typical_p = typical[j / 4];
                p.min_p = min_p[j % 4];
                assert_status(kri_row_init(&row, SIZES[s], 0), KR_OK);
                assert_status(kri_candidates_init(&c, SIZES[s], SIZES[s]), KR_OK);
                kri_row_begin(&row, row_data);
                assert_status(kri_row_scan(&row), KR_OK);
                kri_candidates_above(&c, &row, row.max + KRI_ROW_EXP_MIN);
                double total = kri_candidates_weigh(&c, row.max, 1.0f);
                if (p.typical_p < 1.0f)
                    kri_candidates_keep_typical(&c, row.max, total, p.typical_p);
                if (p.min_p > 0.0f) kri_candidates_keep_min_p(&c, p.min_p);
                assert_same_set(&c, ref_filter(items, row_wide, SIZES[s], &p));
                kri_candidates_deinit(&c);
                kri_row_deinit(&row);
            }
        }
    }
}

TEST(candidates_sort_few_orders_by_logit_then_id) {
    kri_row_t row;
    kri_candidates_t c;
    make_row(SHAPE_TIES, 1000, 5);
    assert_status(kri_row_init(&row, 1000, 0), KR_OK);
    assert_status(kri_candidates_init(&c, 1000, kri_candidates_capacity(1000, 20)), KR_OK);
    kri_row_begin(&row, row_data);
    assert_status(kri_row_scan(&row), KR_OK);
    kri_candidates_top(&c, &row, 20);
    kri_candidates_sort_few(&c);
    assert_int_equal(c.n, 20);
    for (uint32_t i = 1; i < c.n; i++) {
        const kri_candidate_t *a = &c.items[i - 1], *b = &c.items[i];
        assert_true(a->logit > b->logit || (a->logit == b->logit && a->token < b->token));
    }
    kri_candidates_deinit(&c);
    kri_row_deinit(&row);
}

TEST(candidates_draw_walks_the_survivors_in_order_of_id) {
    kri_row_t row;
    kri_candidates_t c;
    const double edges[] = {0.0, 0.25, 0.5, 0.75};
    for (uint32_t i = 0; i < 200; i++) row_data[i] = -3.0f;
    row_data[190] = row_data[7] = row_data[64] = row_data[63] = 2.0f;
    const kr_token_t expected[] = {7, 63, 64, 190};
    assert_status(kri_row_init(&row, 200, 0), KR_OK);
    assert_status(kri_candidates_init(&c, 200, kri_candidates_capacity(200, 4)), KR_OK);
    for (size_t i = 0; i < 4; i++) {
        kri_row_begin(&row, row_data);
        assert_status(kri_row_scan(&row), KR_OK);
        kri_candidates_top(&c, &row, 4);
        assert_int_equal(kri_candidates_draw(&c, &row, 1.25f, edges[i] + 0.001), expected[i]);
        kri_candidates_top(&c, &row, 4);
        assert_int_equal(kri_candidates_draw(&c, &row, 1.25f, edges[i] + 0.249), expected[i]);
    }
    kri_candidates_top(&c, &row, 4);
    assert_int_equal(kri_candidates_draw(&c, &row, 1.25f, 1.0), 190); /* rounding at the end */
    kri_candidates_deinit(&c);
    kri_row_deinit(&row);
}
