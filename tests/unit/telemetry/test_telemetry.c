/* test_telemetry.c: exactness of counts and sums, error of percentiles, and recording from many
 * threads while others report. */
#include "telemetry/telemetry.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

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
