/* test_telemetry.c: kr_telemetry_json read by another parser: names, order and kinds, values
 * against the reports, sizes, and no memory. */
#include <jansson.h>
#include <math.h>
#include <strings.h>

#include "base/alloc.h"
#include "kr.h"
#include "telemetry/telemetry.h"
#include "test.h"

enum { JSON_BYTES_MAX = 1 << 16 };

static const struct {
    const char *name, *kind, *alias, *unit, *help;
} rows[] = {
#define KR_METRIC(name, kind, alias, unit, help) {#name, #kind, alias, unit, help},
#include "telemetry/metrics.def"
};
enum { N_ROWS = sizeof rows / sizeof rows[0] };

static kr_telemetry_t create(void) {
    kr_telemetry_t telemetry = NULL;
    if (kr_telemetry_create(&telemetry) == KR_E_UNSUPPORTED) return NULL;
    assert_non_null(telemetry);
    return telemetry;
}

#define CREATE(telemetry)                                                                        \
    kr_telemetry_t telemetry = create();                                                         \
    if (telemetry == NULL) SKIP("built with KR_TELEMETRY=OFF")

/* jansson refuses duplicate names here, and keeps the order of names. */
static json_t *json_of(kr_telemetry_t telemetry) {
    static char buf[JSON_BYTES_MAX];
    size_t n_bytes = 0;
    assert_status(kr_telemetry_json(telemetry, buf, sizeof buf, &n_bytes), KR_OK);
    assert_int_equal(strlen(buf), n_bytes);
    json_error_t error;
    json_t *root = json_loadb(buf, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) fail_msg("line %d: %s", error.line, error.text);
    return root;
}

static double number_of(json_t *root, const char *metric, const char *key) {
    json_t *value = json_object_get(json_object_get(root, metric), key);
    assert_true(json_is_number(value));
    assert_true(isfinite(json_number_value(value)));
    return json_number_value(value);
}

TEST(telemetry_json_has_every_metric_in_order_with_its_row) {
    CREATE(telemetry);
    json_t *root = json_of(telemetry);
    assert_int_equal(json_object_size(root), N_ROWS);
    size_t at = 0;
    const char *name;
    json_t *metric;
    json_object_foreach(root, name, metric) {
        assert_string_equal(name, rows[at].name);
        assert_string_equal(name, kr_telemetry_name((uint32_t)at));
        const char *kind = json_string_value(json_object_get(metric, "kind"));
        assert_true(strcasecmp(kind, rows[at].kind) == 0);
        assert_string_equal(json_string_value(json_object_get(metric, "unit")), rows[at].unit);
        assert_string_equal(json_string_value(json_object_get(metric, "help")), rows[at].help);
        const char *alias = json_string_value(json_object_get(metric, "alias"));
        if (rows[at].alias[0] == '\0') assert_null(alias);
        else assert_string_equal(alias, rows[at].alias);
        static const char *const keys[] = {"count", "sum", "min", "max",
                                           "p50",   "p95", "p99", "per_s"};
        for (size_t k = 0; k < 8 && strcmp(kind, "histogram") == 0; k++) {
            assert_true(number_of(root, name, keys[k]) == 0.0);
        }
        if (strcmp(kind, "histogram") != 0) assert_true(number_of(root, name, "value") == 0.0);
        at++;
    }
    assert_int_equal(at, N_ROWS);
    json_decref(root);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_json_moves_with_every_metric) {
    CREATE(telemetry);
    for (size_t i = 0; i < N_ROWS; i++) {
        const double x = 1.0 + (double)i;
        if (strcmp(rows[i].kind, "HISTOGRAM") == 0) {
            assert_status(kr_telemetry_record(telemetry, rows[i].name, x), KR_OK);
            assert_status(kr_telemetry_record(telemetry, rows[i].name, x + 0.25), KR_OK);
        } else if (strcmp(rows[i].kind, "COUNTER") == 0) {
            assert_status(kr_telemetry_count(telemetry, rows[i].name, i + 1), KR_OK);
        } else {
            assert_status(kr_telemetry_set(telemetry, rows[i].name, x + 0.125), KR_OK);
        }
    }
    json_t *root = json_of(telemetry);
    for (size_t i = 0; i < N_ROWS; i++) {
        const double x = 1.0 + (double)i;
        if (strcmp(rows[i].kind, "HISTOGRAM") == 0) {
            kr_telemetry_report_t report;
            kr_telemetry_report_init(&report);
            assert_status(kr_telemetry_report(telemetry, rows[i].name, &report), KR_OK);
            assert_true(number_of(root, rows[i].name, "count") == 2.0);
            assert_true(fabs(number_of(root, rows[i].name, "sum") - (2 * x + 0.25)) < 1e-9);
            assert_true(number_of(root, rows[i].name, "min") == report.min_ms);
            assert_true(number_of(root, rows[i].name, "max") == report.max_ms);
            assert_true(fabs(number_of(root, rows[i].name, "p50") - report.p50_ms) < 1e-9);
            assert_true(fabs(number_of(root, rows[i].name, "p99") - report.p99_ms) < 1e-9);
            assert_true(number_of(root, rows[i].name, "per_s") > 0.0);
        } else if (strcmp(rows[i].kind, "COUNTER") == 0) {
            assert_true(number_of(root, rows[i].name, "value") == x);
            assert_true(number_of(root, rows[i].name, "per_s") > 0.0);
        } else {
            assert_true(number_of(root, rows[i].name, "value") == x + 0.125);
        }
    }
    json_decref(root);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_json_stays_json_at_the_ends_of_the_number_range) {
    CREATE(telemetry);
    static const double values[] = {0.0, 5e-324, 1e-7, 0.1, 9007199254740991.0, 1e16,
                                    1.7976931348623157e308};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        assert_status(kr_telemetry_set(telemetry, "kv_usage", values[i]), KR_OK);
        json_t *root = json_of(telemetry);
        const double read = number_of(root, "kv_usage", "value");
        assert_true(fabs(read - values[i]) <= 1e-14 * values[i] || values[i] < 1e-300);
        json_decref(root);
    }
    assert_status(kr_telemetry_count(telemetry, "tokens_prompt", INT64_MAX), KR_OK);
    assert_status(kr_telemetry_record(telemetry, "generate", 1e300), KR_OK);
    assert_status(kr_telemetry_record(telemetry, "generate", 1e-300), KR_OK);
    json_t *root = json_of(telemetry);
    json_t *count = json_object_get(json_object_get(root, "tokens_prompt"), "value");
    assert_true(json_is_integer(count) && json_integer_value(count) == INT64_MAX);
    assert_true(number_of(root, "generate", "max") > 1e9);
    json_decref(root);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_json_tells_its_size_and_never_writes_past_the_buffer) {
    CREATE(telemetry);
    size_t n_bytes = 0;
    assert_status(kr_telemetry_json(telemetry, NULL, 0, &n_bytes), KR_E_LIMIT);
    assert_true(n_bytes > 1000 && n_bytes < JSON_BYTES_MAX);
    /* Nothing was recorded, so the text is the same each time. */
    size_t step = 0;
    for (size_t capacity = 0; capacity <= n_bytes + 2; capacity += step) {
        step = capacity + 100 < n_bytes ? 97 : 1;
        char *buf = malloc(capacity + 8);
        memset(buf, 0x5a, capacity + 8);
        size_t n_written = 0;
        const kr_status_t status = kr_telemetry_json(telemetry, buf, capacity, &n_written);
        assert_status(status, capacity > n_bytes ? KR_OK : KR_E_LIMIT);
        assert_int_equal(n_written, n_bytes);
        if (status == KR_OK) assert_int_equal(strlen(buf), n_bytes);
        for (size_t i = capacity; i < capacity + 8; i++) assert_int_equal(buf[i], 0x5a);
        free(buf);
    }
    n_bytes = 7;
    char buf[1];
    assert_status(kr_telemetry_json(NULL, buf, 1, &n_bytes), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_json(telemetry, buf, 1, NULL), KR_E_INVALID_ARG);
    assert_status(kr_telemetry_json(telemetry, NULL, 1, &n_bytes), KR_E_INVALID_ARG);
    assert_int_equal(n_bytes, 7);
    kr_telemetry_destroy(telemetry);
}

TEST(telemetry_json_allocates_nothing) {
    CREATE(telemetry);
    static char buf[JSON_BYTES_MAX];
    size_t n_bytes = 0;
    kri_alloc_guard_begin("telemetry json");
    assert_status(kr_telemetry_json(telemetry, buf, sizeof buf, &n_bytes), KR_OK);
    assert_int_equal(kri_alloc_guard_end(), 0);
    kr_telemetry_destroy(telemetry);
}
