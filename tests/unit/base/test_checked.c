/* test_checked.c: the arithmetic at its edges. */
#include "base/checked.h"

#include "base/clock.h"
#include "test.h"

TEST(checked_arithmetic_fails_and_leaves_the_output_when_it_overflows) {
    uint64_t u = 5;
    size_t s = 5;
    assert_false(kri_mul_u64(UINT64_MAX, 2, &u));
    assert_false(kri_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &u));
    assert_false(kri_add_u64(UINT64_MAX, 1, &u));
    assert_false(kri_mul_size(SIZE_MAX / 2, 3, &s));
    assert_false(kri_add_size(SIZE_MAX, 1, &s));
    assert_false(kri_align_size(SIZE_MAX - 62, 64, &s));
    assert_false(kri_align_u64(UINT64_MAX, 2, &u));
    assert_int_equal(u, 5);
    assert_int_equal(s, 5);
}

TEST(checked_arithmetic_is_exact_when_it_fits) {
    uint64_t u;
    size_t s;
    assert_true(kri_mul_u64(UINT64_C(0xFFFFFFFF), UINT64_C(0x100000001), &u));
    assert_true(u == UINT64_MAX);
    assert_true(kri_add_u64(UINT64_MAX - 1, 1, &u));
    assert_true(u == UINT64_MAX);
    assert_true(kri_align_size(SIZE_MAX - 63, 64, &s));
    assert_true(s == SIZE_MAX - 63);
    assert_true(kri_align_size(65, 64, &s));
    assert_int_equal(s, 128);
    assert_true(kri_align_u64(0, 4096, &u));
    assert_int_equal(u, 0);
    assert_int_equal(kri_ceil_div(0, 7), 0);
    assert_int_equal(kri_ceil_div(7, 7), 1);
    assert_int_equal(kri_ceil_div(8, 7), 2);
    assert_true(kri_ceil_div(SIZE_MAX, 1) == SIZE_MAX);
}

TEST(clock_never_runs_backwards) {
    uint64_t last = kri_clock_ns();
    assert_true(last > 0);
    for (int i = 0; i < 100000; i++) {
        const uint64_t now = kri_clock_ns();
        assert_true(now >= last);
        last = now;
    }
}
