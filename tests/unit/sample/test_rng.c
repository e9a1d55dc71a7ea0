/* test_rng.c: the generator against its published numbers, so that seeds keep their meaning. */
#include "test.h"

#include "sample/rng.h"

TEST(rng_gives_the_published_sequence_for_seed_42_and_stream_54) {
    /* Output of the demonstration program that accompanies the PCG paper. */
    const uint32_t expected[] = {0xa15c02b7, 0x7b47f409, 0xba1d3330,
                                 0x83d2f293, 0xbfa4784b, 0xcbed606e};
    kri_rng_t rng;
    kri_rng_seed(&rng, 42, 54);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++)
        assert_int_equal(kri_rng_u32(&rng), expected[i]);
}

TEST(rng_unit_is_in_range_and_even_over_ten_bins) {
    uint32_t bins[10] = {0};
    double sum = 0.0;
    kri_rng_t rng;
    kri_rng_seed(&rng, 7, 0);
    for (int i = 0; i < 100000; i++) {
        double u = kri_rng_unit(&rng);
        assert_true(u >= 0.0 && u < 1.0);
        bins[(size_t)(u * 10.0)]++;
        sum += u;
    }
    assert_true(sum / 100000.0 > 0.495 && sum / 100000.0 < 0.505);
    for (size_t i = 0; i < 10; i++) assert_in_range(bins[i], 9600, 10400);
}

TEST(rng_below_stays_below_and_reaches_every_value) {
    uint32_t seen = 0;
    kri_rng_t rng;
    kri_rng_seed(&rng, 1, 1);
    for (int i = 0; i < 1000; i++) {
        uint32_t n = kri_rng_below(&rng, 7);
        assert_in_range(n, 0, 6);
        seen |= 1u << n;
    }
    assert_int_equal(seen, 0x7F);
    for (int i = 0; i < 10; i++) assert_int_equal(kri_rng_below(&rng, 1), 0);
}

TEST(rng_sequences_differ_when_seed_or_stream_differs) {
    kri_rng_t a, b, c;
    kri_rng_seed(&a, 1, 0);
    kri_rng_seed(&b, 2, 0);
    kri_rng_seed(&c, 1, 1);
    uint32_t x = kri_rng_u32(&a), y = kri_rng_u32(&b), z = kri_rng_u32(&c);
    assert_true(x != y && x != z && y != z);
}
