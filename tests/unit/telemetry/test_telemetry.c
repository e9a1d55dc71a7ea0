/* test_telemetry.c: exactness of counts and sums, error of percentiles, and recording from many
 * threads while others report. */
#include "telemetry/telemetry.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "test.h"

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
    kr_telemetry_destroy(telemetry);
    kr_telemetry_destroy(NULL);
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
