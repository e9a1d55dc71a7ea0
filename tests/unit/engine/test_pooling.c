/* test_pooling.c: sums in the order of positions whatever the pieces, prompts that begin anew, the
 * last row, lengths at the ends of the range, and no memory. */
#include "engine/pooling.h"

#include <float.h>
#include <math.h>

#include "base/alloc.h"
#include "test.h"

enum { N = 5, ROWS = 100 };

static void fill(float *hidden) {
    uint64_t state = 5;
    for (uint32_t i = 0; i < ROWS * N; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        /* Of very different sizes, so that another order would be another sum. */
        hidden[i] = ldexpf((float)(int32_t)(state >> 32), (int)(state >> 20 & 63) - 60);
    }
}

static void release(kri_pooling_t *p) {
    kri_pooling_free_work(p);
    kri_pooling_free_embedding(p);
    assert_null(p->sum);
    assert_null(p->embedding);
}

static void add_pieces(kri_pooling_t *p, const float *hidden, uint32_t n, uint32_t piece) {
    for (uint32_t at = 0; at < n; at += piece) {
        kri_pooling_add(p, hidden + at * N, n - at < piece ? n - at : piece, at);
    }
}

TEST(pooling_mean_is_the_same_bits_in_any_pieces_and_after_a_new_beginning) {
    static float hidden[ROWS * N], other[ROWS * N];
    static const uint32_t pieces[] = {ROWS, 1, 7, 16};
    float wanted[N];
    fill(hidden);
    for (uint32_t i = 0; i < ROWS * N; i++) other[i] = 3.0f;
    for (uint32_t i = 0; i < N; i++) {
        double sum = 0.0;
        for (uint32_t r = 0; r < ROWS; r++) sum += (double)hidden[r * N + i];
        wanted[i] = (float)(sum / ROWS);
    }
    for (uint32_t k = 0; k < 4; k++) {
        kri_pooling_t p;
        assert_status(kri_pooling_init(&p, KR_POOLING_MEAN, false, N), KR_OK);
        add_pieces(&p, other, 13 * k, 16); /* preempted in the middle */
        add_pieces(&p, hidden, ROWS, pieces[k]);
        kri_pooling_finish(&p);
        assert_memory_equal(p.embedding, wanted, sizeof wanted);
        release(&p);
    }
}

TEST(pooling_last_is_the_row_that_came_last) {
    const float first[N] = {1, 2, 3, 4, 5}, second[N] = {-1, 0.5f, 0, 7, 9};
    kri_pooling_t p;
    assert_status(kri_pooling_init(&p, KR_POOLING_LAST, false, N), KR_OK);
    assert_null(p.sum);
    kri_pooling_add(&p, first, 1, 41);
    kri_pooling_add(&p, second, 1, 41);
    kri_pooling_finish(&p);
    assert_memory_equal(p.embedding, second, sizeof second);
    release(&p);
}

TEST(pooling_normalises_to_length_one_at_any_size) {
    const float sizes[] = {1.0f, FLT_MAX, FLT_MIN, 1e-44f};
    for (uint32_t kind = KR_POOLING_MEAN; kind <= KR_POOLING_LAST; kind++) {
        for (uint32_t s = 0; s < 4; s++) {
            const float hidden[N] = {sizes[s], -sizes[s], 0, sizes[s], sizes[s]};
            kri_pooling_t p;
            assert_status(kri_pooling_init(&p, (int32_t)kind, true, N), KR_OK);
            kri_pooling_add(&p, hidden, 1, 0);
            kri_pooling_finish(&p);
            const float wanted[N] = {0.5f, -0.5f, 0, 0.5f, 0.5f};
            for (uint32_t i = 0; i < N; i++) assert_true(p.embedding[i] == wanted[i]);
            release(&p);
        }
        const float zeros[N] = {0};
        kri_pooling_t p;
        assert_status(kri_pooling_init(&p, (int32_t)kind, true, N), KR_OK);
        kri_pooling_add(&p, zeros, 1, 0);
        kri_pooling_finish(&p);
        assert_memory_equal(p.embedding, zeros, sizeof zeros);
        release(&p);
    }
}

/* A mean of the greatest values is one, not infinity. */
TEST(pooling_mean_does_not_overflow) {
    static float hidden[ROWS * N];
    for (uint32_t i = 0; i < ROWS * N; i++) hidden[i] = i % 2 ? FLT_MAX : FLT_MAX / 2;
    kri_pooling_t p;
    assert_status(kri_pooling_init(&p, KR_POOLING_MEAN, false, N), KR_OK);
    add_pieces(&p, hidden, ROWS, 16);
    kri_pooling_finish(&p);
    for (uint32_t i = 0; i < N; i++) assert_true(isfinite(p.embedding[i]) && p.embedding[i] > 0);
    release(&p);
}

TEST(pooling_takes_what_it_says_and_survives_failed_allocations) {
    kri_pooling_t p;
    assert_int_equal(kri_pooling_work_bytes(KR_POOLING_NONE, N), 0);
    assert_int_equal(kri_pooling_event_bytes(KR_POOLING_NONE, N), 0);
    assert_int_equal(kri_pooling_work_bytes(KR_POOLING_LAST, N), 0);
    assert_int_equal(kri_pooling_work_bytes(KR_POOLING_MEAN, N), N * 8);
    assert_int_equal(kri_pooling_event_bytes(KR_POOLING_MEAN, N), N * 4);
    assert_int_equal(kri_pooling_event_bytes(KR_POOLING_LAST, N), N * 4);
    assert_status(kri_pooling_init(&p, KR_POOLING_NONE, false, N), KR_OK);
    assert_true(p.sum == NULL && p.embedding == NULL);
    release(&p);
    for (uint64_t k = 1; k <= 2; k++) {
        kri_alloc_fail(k, false);
        assert_status(kri_pooling_init(&p, KR_POOLING_MEAN, false, N), KR_E_NOMEM);
        kri_alloc_fail(0, false);
        release(&p);
    }
}
