/* test_prometheus.c: the text of /metrics, without an engine: grammar, names, sums, bounds. */
#include <ctype.h>

#include "server/counters.h"
#include "server/keys.h"
#include "telemetry/telemetry.h"
#include "test.h"

static server_t *make_server(void) {
    server_t *server = calloc(1, sizeof *server);
    assert_non_null(server);
    server->counters = counters_create();
    assert_non_null(server->counters);
    const kr_status_t status = kr_telemetry_create(&server->telemetry);
    if (status == KR_E_UNSUPPORTED) server->telemetry = NULL;
    else assert_status(status, KR_OK);
    return server;
}

static void free_server(server_t *server) {
    counters_destroy(server->counters);
    kr_telemetry_destroy(server->telemetry);
    free(server);
}

static char *expose(const server_t *server) {
    kri_buffer_t out;
    kri_buffer_init(&out, PROMETHEUS_BYTES_MAX);
    assert_status(prometheus_put(server, &out), KR_OK);
    return out.data; /* freed by kri_buffer_deinit of the same block */
}

static void drop(char *text) {
    kri_buffer_t out;
    kri_buffer_init(&out, PROMETHEUS_BYTES_MAX);
    out.data = text;
    kri_buffer_deinit(&out);
}

/* The value of the series that is written like this; fails when it is not there. */
static double value_of(const char *text, const char *series) {
    const size_t n = strlen(series);
    for (const char *at = text; (at = strstr(at, series)) != NULL; at += n) {
        if ((at == text || at[-1] == '\n') && at[n] == ' ') return strtod(at + n + 1, NULL);
    }
    fail_msg("no series %s", series);
    return 0;
}

static size_t name_length(const char *text) {
    size_t n = 0;
    while (isalnum((unsigned char)text[n]) || text[n] == '_' || text[n] == ':') n++;
    return n;
}

/* {name="value",...}; returns its length, 0 when there is none. */
static size_t labels_length(const char *text) {
    if (text[0] != '{') return 0;
    size_t n = 1;
    for (;;) {
        const size_t n_name = name_length(text + n);
        assert_true(n_name > 0);
        n += n_name;
        assert_true(text[n] == '=' && text[n + 1] == '"');
        for (n += 2; text[n] != '"'; n++) {
            assert_true((unsigned char)text[n] >= 0x20);
            if (text[n] == '\\') assert_non_null(strchr("\\\"n", text[++n]));
        }
        n++;
        if (text[n] == '}') return n + 1;
        assert_int_equal(text[n++], ',');
    }
}

/* Whether `name` belongs to the family that the last "# TYPE" line has opened. */
static int is_of_family(const char *name, size_t n, const char *family, const char *type) {
    const size_t n_family = strlen(family);
    if (n < n_family || memcmp(name, family, n_family) != 0) return 0;
    const char *rest = name + n_family;
    const size_t n_rest = n - n_family;
    if (strcmp(type, "histogram") != 0) return n_rest == 0;
    static const char *const ends[] = {"_bucket", "_sum", "_count"};
    for (size_t i = 0; i < 3; i++) {
        if (strlen(ends[i]) == n_rest && memcmp(ends[i], rest, n_rest) == 0) return 1;
    }
    return 0;
}

/* Checks every line; returns how many series there are. */
static size_t check_text(const char *text) {
    char family[128] = "", type[32] = "", helped[128] = "";
    size_t n_series = 0;
    assert_int_equal(text[strlen(text) - 1], '\n');
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1) {
        if (sscanf(line, "# HELP %127s", helped) == 1) {
            char twice[160];
            snprintf(twice, sizeof twice, "# HELP %s ", helped);
            assert_null(strstr(line + 1, twice)); /* one block for each family */
            continue;
        }
        if (sscanf(line, "# TYPE %127s %31s", family, type) == 2) {
            assert_string_equal(family, helped);
            continue;
        }
        const size_t n_name = name_length(line);
        assert_true(n_name > 0 && is_of_family(line, n_name, family, type));
        const size_t n = n_name + labels_length(line + n_name);
        assert_int_equal(line[n], ' ');
        char *end = NULL;
        (void)strtod(line + n + 1, &end);
        assert_true(end != line + n + 1);
        assert_int_equal(*end, '\n');
        char series[2048];
        snprintf(series, sizeof series, "\n%.*s ", (int)n, line);
        assert_null(strstr(line, series)); /* no second time */
        n_series++;
    }
    return n_series;
}

TEST(prometheus_of_a_new_server_is_well_formed) {
    server_t *server = make_server();
    char *text = expose(server);
    assert_true(check_text(text) > 50);
    assert_true(value_of(text, "process_resident_memory_bytes") > 0);
    assert_true(value_of(text, "process_open_fds") >= 3);
    assert_true(value_of(text, "process_max_fds") >= 3);
    assert_true(value_of(text, "process_start_time_seconds") > 1.6e9);
    assert_true(value_of(text, "kr_draining") < 0.5);
    drop(text);
    free_server(server);
}

TEST(prometheus_has_every_row_of_the_telemetry_under_both_names) {
    server_t *server = make_server();
    if (server->telemetry == NULL) {
        free_server(server);
        SKIP("built without telemetry");
    }
    server->n_models = 0;
    char *text = expose(server);
    static const struct { const char *name, *alias, *kind, *unit; } rows[] = {
#define KR_METRIC(name, kind, alias, unit, help) {#name, alias, #kind, unit},
#include "telemetry/metrics.def"
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int is_histogram = strcmp(rows[i].kind, "HISTOGRAM") == 0;
        const char *suffix = is_histogram                           ? "_seconds_count"
                             : strcmp(rows[i].kind, "COUNTER") == 0 ? "_total"
                             : strcmp(rows[i].unit, "1") == 0       ? "_ratio"
                                                                    : "";
        char series[200];
        snprintf(series, sizeof series, "kr_%s%s", rows[i].name, suffix);
        (void)value_of(text, series);
        if (rows[i].alias[0] == '\0') continue;
        snprintf(series, sizeof series, "%s%s{model_name=\"all\"}", rows[i].alias,
                 is_histogram ? "_count" : "");
        (void)value_of(text, series);
    }
    drop(text);
    free_server(server);
}

TEST(prometheus_gives_durations_in_seconds_and_cumulative) {
    server_t *server = make_server();
    if (server->telemetry == NULL) {
        free_server(server);
        SKIP("built without telemetry");
    }
    assert_status(kr_telemetry_record(server->telemetry, "ttft", 20), KR_OK);
    assert_status(kr_telemetry_record(server->telemetry, "ttft", 2000), KR_OK);
    assert_status(kr_telemetry_count(server->telemetry, "tokens_generated", 7), KR_OK);
    assert_status(kr_telemetry_set(server->telemetry, "kv_usage", 0.25), KR_OK);
    char *text = expose(server);
    assert_true(value_of(text, "kr_ttft_seconds_bucket{le=\"0.01\"}") < 0.5);
    assert_float_equal(value_of(text, "kr_ttft_seconds_bucket{le=\"0.05\"}"), 1, 0);
    assert_float_equal(value_of(text, "kr_ttft_seconds_bucket{le=\"2.5\"}"), 2, 0);
    assert_float_equal(value_of(text, "kr_ttft_seconds_bucket{le=\"+Inf\"}"), 2, 0);
    assert_float_equal(value_of(text, "kr_ttft_seconds_sum"), 2.02, 1e-9);
    assert_float_equal(value_of(text, "kr_tokens_generated_total"), 7, 0);
    assert_float_equal(value_of(text, "vllm:generation_tokens_total{model_name=\"all\"}"), 7, 0);
    assert_float_equal(value_of(text, "kr_kv_usage_ratio"), 0.25, 1e-12);
    drop(text);
    free_server(server);
}

TEST(prometheus_counts_requests_in_closed_sets) {
    server_t *server = make_server();
    counters_t *counters = server->counters;
    const http_text_t post = {"POST", 4}, get = {"GET", 3}, head = {"HEAD", 4}, odd = {"BREW", 4};
    counters_request(counters, ENDPOINT_chat_completions, post, 200, 30000000, 100, 900);
    counters_request(counters, ENDPOINT_chat_completions, post, 499, 30000000, 0, 10);
    counters_request(counters, ENDPOINT_chat_completions, get, 405, 1, 0, 0);
    counters_request(counters, ENDPOINT_livez, head, 200, 1, 0, 0);
    counters_request(counters, N_ENDPOINTS, odd, 404, 1, 0, 0);
    counters_request(counters, (endpoint_id_t)12345, get, 0, 1, 0, 0);
    counters_first_byte(counters, ENDPOINT_chat_completions, 2000000);
    counters_refused(counters, REFUSAL_KEY);
    char *text = expose(server);
    (void)check_text(text);
    const char *const ones[] = {
        "kr_http_requests_total{endpoint=\"chat_completions\",method=\"POST\",status=\"2xx\"}",
        "kr_http_requests_total{endpoint=\"chat_completions\",method=\"POST\",status=\"gone\"}",
        "kr_http_requests_total{endpoint=\"chat_completions\",method=\"other\",status=\"4xx\"}",
        "kr_http_requests_total{endpoint=\"livez\",method=\"HEAD\",status=\"2xx\"}",
        "kr_http_requests_total{endpoint=\"other\",method=\"other\",status=\"4xx\"}",
        "kr_http_requests_total{endpoint=\"other\",method=\"GET\",status=\"none\"}",
        "kr_http_first_byte_seconds_bucket{endpoint=\"chat_completions\",le=\"0.005\"}",
        "kr_http_refused_total{reason=\"key\"}"};
    for (size_t i = 0; i < sizeof ones / sizeof ones[0]; i++) {
        assert_float_equal(value_of(text, ones[i]), 1, 0);
    }
    const char *duration = "kr_http_request_duration_seconds_bucket{endpoint="
                           "\"chat_completions\",le=\"0.025\"}";
    assert_float_equal(value_of(text, duration), 1, 0);
    assert_float_equal(value_of(text, "kr_http_request_bytes_total"), 100, 0);
    assert_float_equal(value_of(text, "kr_http_response_bytes_total"), 910, 0);
    drop(text);
    /* Nothing is counted without counters. */
    counters_request(NULL, ENDPOINT_livez, get, 200, 1, 0, 0);
    counters_first_byte(NULL, ENDPOINT_livez, 1);
    counters_refused(NULL, REFUSAL_KEY);
    free_server(server);
}

TEST(prometheus_stays_below_its_most_series) {
    server_t *server = make_server();
    const http_text_t methods[] = {{"GET", 3}, {"HEAD", 4}, {"POST", 4}, {"DELETE", 6},
                                   {"PURGE", 5}};
    const int statuses[] = {0, 200, 302, 404, 499, 503};
    for (uint32_t e = 0; e <= N_ENDPOINTS; e++) {
        counters_first_byte(server->counters, (endpoint_id_t)e, 1);
        for (size_t m = 0; m < 5; m++) {
            for (size_t s = 0; s < 6; s++) {
                counters_request(server->counters, (endpoint_id_t)e, methods[m], statuses[s], 1,
                                 1, 1);
            }
        }
    }
    char *text = expose(server);
    const size_t n_series = check_text(text);
    print_message("%zu series with %d endpoints\n", n_series, N_ENDPOINTS);
    assert_true(n_series + 6 * SERVER_MODELS_MAX <= PROMETHEUS_SERIES_MAX);
    drop(text);
    free_server(server);
}
