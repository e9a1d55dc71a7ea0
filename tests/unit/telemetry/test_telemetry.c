/* test_telemetry.c: exactness of counts and sums, error of percentiles, and recording from many
 * threads while others report. */
#include "telemetry/telemetry.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "telemetry/telemetry_impl.h"
#include "test.h"

#ifdef KRI_TELEMETRY_OFF

TEST(telemetry_that_is_compiled_out_is_refused_and_recording_goes_nowhere) {
    kr_telemetry_t telemetry = NULL;
    assert_status(kr_telemetry_create(&telemetry), KR_E_UNSUPPORTED);
    assert_null(telemetry);
    assert_status(kr_telemetry_create(NULL), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(NULL, "generate", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_count(NULL, "tokens_prompt", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(NULL, "kv_usage", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_reset(NULL), KR_E_INVALID_ARG);
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    assert_status(kr_telemetry_report(NULL, "generate", &report), KR_E_INVALID_ARG);
    size_t n_bytes = 7;
    assert_status(kr_telemetry_json(NULL, NULL, 0, &n_bytes), KR_E_INVALID_ARG);
    assert_int_equal(n_bytes, 7);
    uint64_t count = 7;
    double sum_ms = 7;
    assert_status(kr_telemetry_histogram(NULL, "generate", NULL, 0, NULL, &count, &sum_ms),
                  KR_E_INVALID_ARG);
    assert_true(count == 7 && sum_ms == 7);
    assert_string_equal(kr_telemetry_name(0), "queue");
    kri_telemetry_record_ns(NULL, KRI_METRIC_decode, 1);
    kri_telemetry_add(NULL, KRI_METRIC_tokens_prompt, 1);
    kri_telemetry_set_gauge(NULL, KRI_METRIC_kv_usage, 1);
    kr_telemetry_destroy(NULL);
}

#else

static kr_telemetry_report_t report_of(kr_telemetry_t telemetry, const char *name) {
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    assert_status(kr_telemetry_report(telemetry, name, &report), KR_OK);
    return report;
}

static kr_telemetry_t create(void) {
    kr_telemetry_t telemetry = NULL;
    assert_status(kr_telemetry_create(&telemetry), KR_OK);
    return telemetry;
}

static void assert_close(double actual, double expected, double tolerance) {
    if (fabs(actual - expected) <= tolerance * fabs(expected)) return;
    fail_msg("%.9g is not within %g of %.9g", actual, tolerance, expected);
}

static uint64_t rng_next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int compare(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a;
    const uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t exact_percentile(const uint64_t *sorted, uint64_t n, uint64_t percent) {
    return sorted[(n * percent + 99) / 100 - 1];
}

TEST(telemetry_percentiles_are_within_a_32nd_of_the_exact_ones) {
    static uint64_t values[20000];
    const uint64_t counts[] = {1, 2, 3, 19, 20, 21, 99, 100, 101, 1000, 20000};
    kr_telemetry_t telemetry = create();
    uint64_t seed = 88172645463325252u;
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const uint64_t n = counts[c];
        assert_status(kr_telemetry_reset(telemetry), KR_OK);
        double sum = 0.0;
        for (uint64_t i = 0; i < n; i++) {
            /* Every magnitude from nanoseconds to hours alike. */
            values[i] = rng_next(&seed) >> (17 + rng_next(&seed) % 46);
            sum += (double)values[i];
            kri_telemetry_record_ns(telemetry, KRI_METRIC_decode, values[i]);
        }
        qsort(values, n, sizeof values[0], compare);
        const kr_telemetry_report_t report = report_of(telemetry, "decode");
        assert_int_equal(report.count, n);
        assert_close(report.sum_ms, sum / 1e6, 1e-12);
        assert_close(report.min_ms, (double)values[0] / 1e6, 1e-12);
        assert_close(report.max_ms, (double)values[n - 1] / 1e6, 1e-12);
        assert_close(report.p50_ms, (double)exact_percentile(values, n, 50) / 1e6, 1.0 / 32);
        assert_close(report.p95_ms, (double)exact_percentile(values, n, 95) / 1e6, 1.0 / 32);
        assert_close(report.p99_ms, (double)exact_percentile(values, n, 99) / 1e6, 1.0 / 32);
    }
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_one_duration_is_its_own_percentile_at_every_bucket_edge) {
    kr_telemetry_t telemetry = create();
    for (uint32_t bit = 0; bit < 53; bit++) {
        for (int64_t step = -1; step <= 1; step++) {
            const uint64_t ns = (UINT64_C(1) << bit) + (uint64_t)step;
            assert_status(kr_telemetry_reset(telemetry), KR_OK);
            kri_telemetry_record_ns(telemetry, KRI_METRIC_load, ns);
            const kr_telemetry_report_t report = report_of(telemetry, "load");
            assert_close(report.p50_ms, (double)ns / 1e6, 1e-12);
            assert_close(report.p99_ms, (double)ns / 1e6, 1e-12);
        }
    }
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_percentile_between_extremes_stays_in_its_bucket) {
    kr_telemetry_t telemetry = create();
    for (uint64_t ns = 1; ns < UINT64_C(1) << 46; ns += ns / 7 + 1) {
        assert_status(kr_telemetry_reset(telemetry), KR_OK);
        kri_telemetry_record_ns(telemetry, KRI_METRIC_load, 0);
        kri_telemetry_record_ns(telemetry, KRI_METRIC_load, ns);
        kri_telemetry_record_ns(telemetry, KRI_METRIC_load, UINT64_C(1) << 47);
        const kr_telemetry_report_t report = report_of(telemetry, "load");
        assert_close(report.p50_ms, (double)ns / 1e6, 1.0 / 32);
        assert_close(report.p99_ms, (double)(UINT64_C(1) << 47) / 1e6, 1e-12);
    }
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_records_milliseconds_by_name) {
    kr_telemetry_t telemetry = create();
    assert_status(kr_telemetry_record(telemetry, "generate", 1.5), KR_OK);
    assert_status(kr_telemetry_record(telemetry, "generate", 2.5), KR_OK);
    assert_status(kr_telemetry_record(telemetry, "generate", 0.0), KR_OK);
    kr_telemetry_report_t report = report_of(telemetry, "generate");
    assert_int_equal(report.count, 3);
    assert_close(report.sum_ms, 4.0, 1e-12);
    assert_close(report.max_ms, 2.5, 1e-12);
    assert_true(report.min_ms == 0.0);
    assert_close(report.p50_ms, 1.5, 1.0 / 32);
    assert_true(report.throughput_per_s > 0.0);
    assert_status(kr_telemetry_record(telemetry, "generate", 1e300), KR_OK);
    report = report_of(telemetry, "generate");
    assert_int_equal(report.count, 4);
    assert_true(isfinite(report.sum_ms) && report.max_ms > 1e9);
    assert_int_equal(report_of(telemetry, "prefill").count, 0);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_counters_add_up_and_reset_to_zero) {
    kr_telemetry_t telemetry = create();
    assert_status(kr_telemetry_count(telemetry, "tokens_generated", 5), KR_OK);
    kri_telemetry_add(telemetry, KRI_METRIC_tokens_generated, 7);
    assert_status(kr_telemetry_count(telemetry, "tokens_prompt", 1), KR_OK);
    const kr_telemetry_report_t report = report_of(telemetry, "tokens_generated");
    assert_int_equal(report.count, 12);
    assert_true(report.sum_ms == 0.0 && report.p99_ms == 0.0);
    assert_true(report.throughput_per_s > 0.0);
    assert_status(kr_telemetry_reset(telemetry), KR_OK);
    assert_int_equal(report_of(telemetry, "tokens_generated").count, 0);
    assert_int_equal(report_of(telemetry, "tokens_prompt").count, 0);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_empty_report_is_all_zero) {
    kr_telemetry_t telemetry = create();
    for (uint32_t i = 0; kr_telemetry_name(i) != NULL; i++) {
        const kr_telemetry_report_t report = report_of(telemetry, kr_telemetry_name(i));
        assert_int_equal(report.count, 0);
        assert_true(report.value == 0.0);
        assert_true(report.min_ms == 0.0 && report.max_ms == 0.0 && report.p50_ms == 0.0);
        assert_true(report.throughput_per_s == 0.0);
    }
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_refuses_bad_arguments) {
    kr_telemetry_t telemetry = create();
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    assert_status(kr_telemetry_create(NULL), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(NULL, "generate", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(telemetry, NULL, 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(telemetry, "generate", -1e-9), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(telemetry, "generate", NAN), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(telemetry, "generate", INFINITY), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_record(telemetry, "nothing", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_record(telemetry, "tokens_prompt", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_count(NULL, "tokens_prompt", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_count(telemetry, NULL, 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_count(telemetry, "nothing", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_count(telemetry, "generate", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_report(NULL, "generate", &report), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_report(telemetry, NULL, &report), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_report(telemetry, "generate", NULL), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_report(telemetry, "nothing", &report), KR_E_NOT_FOUND);
    report.struct_bytes = 0;
    assert_status(kr_telemetry_report(telemetry, "generate", &report), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_reset(NULL), KR_E_INVALID_ARG);
    assert_int_equal(report_of(telemetry, "generate").count, 0);
    kri_telemetry_record_ns(NULL, KRI_METRIC_decode, 1);
    kri_telemetry_add(NULL, KRI_METRIC_tokens_prompt, 1);
    kri_telemetry_set_gauge(NULL, KRI_METRIC_kv_usage, 1);
    assert_status(kr_telemetry_set(NULL, "kv_usage", 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(telemetry, NULL, 1), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(telemetry, "kv_usage", -1e-9), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(telemetry, "kv_usage", NAN), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(telemetry, "kv_usage", INFINITY), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_set(telemetry, "nothing", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_set(telemetry, "generate", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_set(telemetry, "tokens_prompt", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_record(telemetry, "kv_usage", 1), KR_E_NOT_FOUND);
    assert_status(kr_telemetry_count(telemetry, "kv_usage", 1), KR_E_NOT_FOUND);
    assert_true(report_of(telemetry, "kv_usage").value == 0.0);
    kr_telemetry_destroy(telemetry);
    kr_telemetry_destroy(NULL);
}

TEST(telemetry_gauge_is_what_was_set_last_and_outlives_a_reset) {
    kr_telemetry_t telemetry = create();
    assert_status(kr_telemetry_set(telemetry, "kv_bytes_used", 1e15), KR_OK);
    kri_telemetry_set_gauge(telemetry, KRI_METRIC_requests_running, 3);
    assert_status(kr_telemetry_set(telemetry, "requests_running", 2.5), KR_OK);
    assert_true(report_of(telemetry, "kv_bytes_used").value == 1e15);
    kr_telemetry_report_t report = report_of(telemetry, "requests_running");
    assert_true(report.value == 2.5);
    assert_int_equal(report.count, 0);
    assert_true(report.sum_ms == 0.0 && report.throughput_per_s == 0.0);
    assert_status(kr_telemetry_reset(telemetry), KR_OK);
    assert_true(report_of(telemetry, "requests_running").value == 2.5);
    kri_telemetry_set_gauge(telemetry, KRI_METRIC_requests_running, 0);
    assert_true(report_of(telemetry, "requests_running").value == 0.0);
    /* Another telemetry has gauges of its own. */
    kr_telemetry_t other = create();
    assert_true(report_of(other, "kv_bytes_used").value == 0.0);
    kr_telemetry_destroy(other);
    /* From inside the library, nothing can make a report that is no number. */
    kri_telemetry_set_gauge(telemetry, KRI_METRIC_kv_usage, NAN);
    assert_true(report_of(telemetry, "kv_usage").value == 0.0);
    kri_telemetry_set_gauge(telemetry, KRI_METRIC_kv_usage, -INFINITY);
    assert_true(report_of(telemetry, "kv_usage").value == 0.0);
    kr_telemetry_destroy(telemetry);
}

static double seven(void) { return 7.0; }

TEST(telemetry_gauge_of_the_process_is_asked_at_each_report) {
    kr_telemetry_t telemetry = create();
    kri_telemetry_set_gauge(telemetry, KRI_METRIC_tensor_pool_bytes, 1.0);
    kri_telemetry_gauge_source(KRI_METRIC_tensor_pool_bytes, seven);
    assert_true(report_of(telemetry, "tensor_pool_bytes").value == 7.0);
    kri_telemetry_gauge_source(KRI_METRIC_tensor_pool_bytes, NULL);
    assert_true(report_of(telemetry, "tensor_pool_bytes").value == 1.0);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_numbers_do_not_depend_on_the_decimal_point_of_the_locale) {
    static const char *const cases[][2] = {
        {"0,625", "0.625"}, {"1.5e+20", "1.5e+20"}, {"17", "17"}, {"", ""},
        {"1,7976931348623157e+308", "1.7976931348623157e+308"}, {"-2,5e-07", "-2.5e-07"},
        {"3\xd9\xab" "25", "3.25"}, /* U+066B, Arabic decimal separator */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s", cases[i][0]);
        kri_telemetry_plain_number(text);
        assert_string_equal(text, cases[i][1]);
    }
}

TEST(telemetry_short_report_struct_gets_the_fields_it_has) {
    kr_telemetry_t telemetry = create();
    kr_telemetry_report_t report;
    memset(&report, 0x55, sizeof report);
    report.struct_bytes = offsetof(kr_telemetry_report_t, value); /* of a caller from before it */
    assert_status(kr_telemetry_set(telemetry, "kv_usage", 0.5), KR_OK);
    double untouched;
    memset(&untouched, 0x55, sizeof untouched);
    assert_status(kr_telemetry_report(telemetry, "kv_usage", &report), KR_OK);
    assert_true(report.value == untouched);
    assert_true(report.throughput_per_s == 0.0);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_create_fails_cleanly_when_memory_runs_out) {
    kr_telemetry_t telemetry = NULL;
    kri_alloc_fail(1, false);
    assert_status(kr_telemetry_create(&telemetry), KR_E_NOMEM);
    assert_null(telemetry);
}

TEST(telemetry_names_every_metric_once) {
    uint32_t n = 0;
    while (kr_telemetry_name(n) != NULL) n++;
    assert_int_equal(n, KRI_N_METRICS);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < i; k++) {
            assert_string_not_equal(kr_telemetry_name(i), kr_telemetry_name(k));
        }
    }
    assert_null(kr_telemetry_name(UINT32_MAX));
}

/* Every bound: nothing above it counts, and all that is a 32nd below it does. */
TEST(telemetry_histogram_counts_what_is_under_each_bound) {
    static uint64_t values[20000];
    static const double bounds[] = {0.0, 0.000031, 0.000032, 0.0005, 0.001, 0.0025, 0.05, 0.1, 0.3,
                                    1.0, 5.0, 25.0, 100.0, 2500.0, 60000.0, 3.6e6, 1.4e8, 1e300};
    enum { N_BOUNDS = sizeof bounds / sizeof bounds[0], N_VALUES = 20000 };
    kr_telemetry_t telemetry = create();
    uint64_t seed = 88172645463325252u, counts[N_BOUNDS], count = 0;
    double sum = 0.0, sum_ms = 0.0;
    for (uint32_t i = 0; i < N_VALUES; i++) {
        values[i] = rng_next(&seed) >> (16 + rng_next(&seed) % 46);
        sum += (double)values[i];
        kri_telemetry_record_ns(telemetry, KRI_METRIC_decode, values[i]);
    }
    assert_status(kr_telemetry_histogram(telemetry, "decode", bounds, N_BOUNDS, counts, &count,
                                         &sum_ms), KR_OK);
    assert_int_equal(count, N_VALUES);
    assert_close(sum_ms, sum / 1e6, 1e-12);
    for (uint32_t b = 0; b < N_BOUNDS; b++) {
        const double bound_ns = floor(bounds[b] * 1e6 + 0.5);
        uint64_t n_most = 0, n_least = 0;
        for (uint32_t i = 0; i < N_VALUES; i++) {
            const double ns = (double)values[i];
            n_most += ns <= bound_ns && values[i] < UINT64_C(1) << 47;
            n_least += ns * 33.0 / 32.0 <= bound_ns && values[i] < UINT64_C(1) << 47;
        }
        if (counts[b] < n_least || counts[b] > n_most) {
            fail_msg("%llu under %g, wanted %llu to %llu", (unsigned long long)counts[b],
                     bounds[b], (unsigned long long)n_least, (unsigned long long)n_most);
        }
        assert_true(b == 0 || counts[b] >= counts[b - 1]);
    }
    assert_true(counts[N_BOUNDS - 1] < count); /* some were over 39 hours */
    kr_telemetry_destroy(telemetry);
}

/* At every edge of a bucket: its last value as a bound holds it, one less does not. */
TEST(telemetry_histogram_bounds_are_exact_at_every_bucket_edge) {
    kr_telemetry_t telemetry = create();
    for (uint32_t bit = 0; bit < 47; bit++) {
        const uint64_t low = UINT64_C(1) << bit, last = bit < 5 ? low : low + (low >> 5) - 1;
        const double bounds[] = {((double)low - 1.0) / 1e6, ((double)last - 1.0) / 1e6,
                                 (double)last / 1e6, ((double)last + 1.0) / 1e6};
        const uint32_t first = last - 1 > low - 1 ? 0 : 1; /* two may be one */
        uint64_t counts[4] = {9, 9, 9, 9}, count = 0;
        double sum_ms = 0.0;
        assert_status(kr_telemetry_reset(telemetry), KR_OK);
        kri_telemetry_record_ns(telemetry, KRI_METRIC_load, low);
        kri_telemetry_record_ns(telemetry, KRI_METRIC_load, last);
        assert_status(kr_telemetry_histogram(telemetry, "load", bounds + first, 4 - first,
                                             counts + first, &count, &sum_ms), KR_OK);
        assert_int_equal(counts[first], 0);
        assert_int_equal(counts[1], 0);
        assert_int_equal(counts[2], 2);
        assert_int_equal(counts[3], 2);
        assert_int_equal(count, 2);
        assert_close(sum_ms, (double)(low + last) / 1e6, 1e-12);
    }
    /* A duration of exactly a bound, as hosts spell both. */
    static const double bounds[] = {0.000001, 0.00001};
    uint64_t counts[2], count = 0;
    double sum_ms = 0.0;
    assert_status(kr_telemetry_record(telemetry, "queue", 0.00001), KR_OK);
    assert_status(kr_telemetry_histogram(telemetry, "queue", bounds, 2, counts, &count, &sum_ms),
                  KR_OK);
    assert_int_equal(counts[0], 0);
    assert_int_equal(counts[1], 1);
    kr_telemetry_destroy(telemetry);
}

static void histogram_refused(kr_telemetry_t telemetry, const char *name, const double *bounds,
                              uint32_t n_bounds, kr_status_t wanted) {
    uint64_t counts[3] = {7, 7, 7}, count = 7;
    double sum_ms = 7.0;
    assert_status(kr_telemetry_histogram(telemetry, name, bounds, n_bounds, counts, &count,
                                         &sum_ms), wanted);
    assert_true(counts[0] == 7 && counts[1] == 7 && counts[2] == 7 && count == 7);
    assert_true(sum_ms == 7.0);
}

TEST(telemetry_histogram_refuses_bad_arguments) {
    static const double good[] = {1, 2, 3}, equal[] = {1, 2, 2}, falling[] = {1, 3, 2},
                        negative[] = {-1, 2, 3}, nan[] = {1, NAN, 3}, endless[] = {1, 2, INFINITY};
    kr_telemetry_t telemetry = create();
    uint64_t counts[3], count = 7;
    double sum_ms = 7.0;
    histogram_refused(NULL, "decode", good, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, NULL, good, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", NULL, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", equal, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", falling, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", negative, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", nan, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "decode", endless, 3, KR_E_INVALID_ARG);
    histogram_refused(telemetry, "nothing", good, 3, KR_E_NOT_FOUND);
    histogram_refused(telemetry, "tokens_prompt", good, 3, KR_E_NOT_FOUND);
    histogram_refused(telemetry, "kv_usage", good, 3, KR_E_NOT_FOUND);
    assert_status(kr_telemetry_histogram(telemetry, "decode", good, 3, NULL, &count, &sum_ms),
                  KR_E_INVALID_ARG);
    assert_status(kr_telemetry_histogram(telemetry, "decode", good, 3, counts, NULL, &sum_ms),
                  KR_E_INVALID_ARG);
    assert_status(kr_telemetry_histogram(telemetry, "decode", good, 3, counts, &count, NULL),
                  KR_E_INVALID_ARG);
    assert_true(count == 7 && sum_ms == 7.0);
    assert_status(kr_telemetry_histogram(telemetry, "decode", NULL, 0, NULL, &count, &sum_ms),
                  KR_OK);
    assert_true(count == 0 && sum_ms == 0.0);
    kr_telemetry_destroy(telemetry);
}

static void *count_most(void *telemetry) {
    assert_status(kr_telemetry_count(telemetry, "tokens_prompt", UINT64_MAX), KR_OK);
    return NULL;
}

TEST(telemetry_counters_stay_at_their_greatest_value) {
    kr_telemetry_t telemetry = create();
    pthread_t thread;
    assert_status(kr_telemetry_count(telemetry, "tokens_prompt", UINT64_MAX - 1), KR_OK);
    assert_true(report_of(telemetry, "tokens_prompt").count == UINT64_MAX - 1);
    for (int i = 0; i < 3; i++) {
        assert_status(kr_telemetry_count(telemetry, "tokens_prompt", 1), KR_OK);
        assert_true(report_of(telemetry, "tokens_prompt").count == UINT64_MAX);
    }
    /* Another thread has a count of its own: the sum of the two stays there as well. */
    assert_int_equal(pthread_create(&thread, NULL, count_most, telemetry), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(report_of(telemetry, "tokens_prompt").count == UINT64_MAX);
    /* So do sums of durations: 4096 times 104 days are more than 2^64 ns. */
    double last_ms = 0.0;
    for (int i = 0; i < 4096; i++) {
        assert_status(kr_telemetry_record(telemetry, "load", 1e300), KR_OK);
        const double sum_ms = report_of(telemetry, "load").sum_ms;
        assert_true(sum_ms >= last_ms);
        last_ms = sum_ms;
    }
    assert_close(last_ms, ldexp(1.0, 64) / 1e6, 1e-12);
    kr_telemetry_destroy(telemetry);
}

enum { N_WRITERS = 20, N_RECORDS = 5000 };
static _Atomic int writers_left;

static void *write_records(void *arg) {
    kr_telemetry_t telemetry = arg;
    for (uint64_t i = 1; i <= N_RECORDS; i++) {
        kri_telemetry_record_ns(telemetry, KRI_METRIC_decode, i);
        kri_telemetry_add(telemetry, KRI_METRIC_tokens_generated, 2);
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

TEST(telemetry_is_exact_and_allocates_nothing_when_threads_compete) {
    kr_telemetry_t telemetry = create();
    pthread_t threads[N_WRITERS];
    atomic_store(&writers_left, N_WRITERS);
    kri_alloc_guard_begin("recording");
    for (int i = 0; i < N_WRITERS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, write_records, telemetry), 0);
    }
    uint64_t last = 0;
    while (atomic_load(&writers_left) > 0) {
        const kr_telemetry_report_t report = report_of(telemetry, "decode");
        assert_true(report.count >= last);
        assert_true(report.p50_ms <= report.p95_ms && report.p95_ms <= report.p99_ms);
        assert_true(report.p99_ms <= (double)N_RECORDS / 1e6);
        last = report.count;
    }
    for (int i = 0; i < N_WRITERS; i++) pthread_join(threads[i], NULL);
    const kr_telemetry_report_t report = report_of(telemetry, "decode");
    assert_int_equal(kri_alloc_guard_end(), 0);
    assert_int_equal(report.count, N_WRITERS * N_RECORDS);
    assert_close(report.sum_ms, N_WRITERS * (N_RECORDS * (N_RECORDS + 1.0) / 2) / 1e6, 1e-12);
    assert_close(report.min_ms, 1e-6, 1e-12);
    assert_close(report.max_ms, N_RECORDS / 1e6, 1e-12);
    assert_close(report.p50_ms, N_RECORDS / 2 / 1e6, 1.0 / 32);
    assert_int_equal(report_of(telemetry, "tokens_generated").count, 2 * N_WRITERS * N_RECORDS);
    kr_telemetry_destroy(telemetry);
}

typedef struct one_record_s {
    kr_telemetry_t telemetry;
    uint64_t ns;
} one_record_t;

static void *write_one(void *arg) {
    const one_record_t *one = arg;
    kri_telemetry_record_ns(one->telemetry, KRI_METRIC_decode, one->ns);
    return NULL;
}

/* Each thread has a slot of its own, and no two slots have a bucket in common. */
TEST(telemetry_merges_slots_that_lie_far_apart) {
    static const uint64_t values[] = {5000000, 0, UINT64_C(1) << 50, 40};
    static const double bounds[] = {0.0, 0.00004, 5.2, 1.4e8};
    static const uint64_t under[] = {1, 2, 3, 3};
    kr_telemetry_t telemetry = create();
    uint64_t counts[4], count = 0;
    double sum = 0.0, sum_ms = 0.0;
    for (uint32_t i = 0; i < 4; i++) {
        one_record_t one = {telemetry, values[i]};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, write_one, &one), 0);
        pthread_join(thread, NULL);
        sum += (double)values[i];
        assert_int_equal(report_of(telemetry, "decode").count, i + 1);
    }
    assert_status(kr_telemetry_histogram(telemetry, "decode", bounds, 4, counts, &count, &sum_ms),
                  KR_OK);
    assert_int_equal(count, 4);
    for (uint32_t b = 0; b < 4; b++) assert_int_equal(counts[b], under[b]);
    assert_close(sum_ms, sum / 1e6, 1e-12);
    const kr_telemetry_report_t report = report_of(telemetry, "decode");
    assert_true(report.min_ms < 1e-9);
    assert_close(report.max_ms, (double)values[2] / 1e6, 1e-12);
    assert_close(report.p50_ms, 40e-6, 1.0 / 32);
    assert_close(report.p99_ms, report.max_ms, 1e-12);
    kr_telemetry_destroy(telemetry);
}

static void *write_equal_records(void *arg) {
    for (uint64_t i = 1; i <= N_RECORDS; i++) {
        kri_telemetry_record_ns(arg, KRI_METRIC_decode, 1000);
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

TEST(telemetry_histogram_is_of_one_piece_while_threads_record) {
    static const double bounds[] = {0.0009, 0.0011, 1.0};
    kr_telemetry_t telemetry = create();
    pthread_t threads[4];
    uint64_t counts[3], count = 0, last = 0;
    double sum_ms = 0.0, last_ms = 0.0;
    bool is_over = false;
    atomic_store(&writers_left, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, write_equal_records, telemetry), 0);
    }
    while (!is_over) {
        is_over = atomic_load(&writers_left) == 0;
        assert_status(kr_telemetry_histogram(telemetry, "decode", bounds, 3, counts, &count,
                                             &sum_ms), KR_OK);
        assert_true(counts[0] == 0 && counts[1] == count && counts[2] == count);
        assert_true(sum_ms * 1e6 + 0.5 >= (double)count * 1000.0); /* never the reverse */
        assert_true(count >= last && sum_ms >= last_ms);
        last = count;
        last_ms = sum_ms;
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_int_equal(count, 4 * N_RECORDS);
    assert_close(sum_ms, 4 * N_RECORDS / 1e3, 1e-12);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_survives_resets_while_threads_record) {
    kr_telemetry_t telemetry = create();
    pthread_t threads[4];
    atomic_store(&writers_left, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, write_records, telemetry), 0);
    }
    while (atomic_load(&writers_left) > 0) {
        assert_status(kr_telemetry_reset(telemetry), KR_OK);
        const kr_telemetry_report_t report = report_of(telemetry, "decode");
        assert_true(report.min_ms <= report.max_ms);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    assert_status(kr_telemetry_reset(telemetry), KR_OK);
    assert_int_equal(report_of(telemetry, "decode").count, 0);
    kr_telemetry_destroy(telemetry);
}

static void *set_gauges(void *arg) {
    for (uint64_t i = 1; i <= N_RECORDS; i++) {
        kri_telemetry_set_gauge(arg, KRI_METRIC_kv_bytes_used, i % 2 ? 0.1 : 1e300);
    }
    atomic_fetch_sub(&writers_left, 1);
    return NULL;
}

TEST(telemetry_gauge_is_never_half_of_two_values) {
    kr_telemetry_t telemetry = create();
    pthread_t threads[4];
    atomic_store(&writers_left, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, set_gauges, telemetry), 0);
    }
    while (atomic_load(&writers_left) > 0) {
        const double value = report_of(telemetry, "kv_bytes_used").value;
        assert_true(value == 0.0 || value == 0.1 || value == 1e300);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    kr_telemetry_destroy(telemetry);
}

#endif
