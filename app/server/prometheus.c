/* prometheus.c: /metrics in Prometheus' text format 0.0.4. Names follow its conventions: base units
 * (seconds, bytes), _total on counters. What vLLM calls by a name of its own is there twice, under
 * both names, so that its dashboards work. A scrape reads atomics and takes no lock of the engine
 * but that of kr_engine_stats. */
#include "prometheus.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "counters.h"
#include "keys.h"
#include "log.h"
#include "telemetry/telemetry.h"

#define LABELS_BYTES 1100 /* a model's name, escaped */

/* ---- pieces ------------------------------------------------------------------------------- */

static void put_head(kri_buffer_t *out, const char *name, const char *type, const char *help) {
    (void)kri_buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* labels: "" or "{...}" */
static void put_count(kri_buffer_t *out, const char *name, const char *labels, uint64_t value) {
    (void)kri_buffer_printf(out, "%s%s %llu\n", name, labels, (unsigned long long)value);
}

static void put_value(kri_buffer_t *out, const char *name, const char *labels, double value) {
    (void)kri_buffer_printf(out, "%s%s %.15g\n", name, labels, value);
}

static void put_single(kri_buffer_t *out, const char *name, const char *type, const char *help,
                       double value) {
    put_head(out, name, type, help);
    put_value(out, name, "", value);
}

static void put_single_count(kri_buffer_t *out, const char *name, const char *help,
                             uint64_t value) {
    put_head(out, name, "counter", help);
    put_count(out, name, "", value);
}

/* NAME="text" with the three escapes of the format. */
static void put_label(char *out, size_t cap, const char *name, const char *text) {
    size_t n = (size_t)snprintf(out, cap, "%s=\"", name);
    for (const char *c = text; *c != '\0' && n + 4 < cap; c++) {
        if (*c == '\\' || *c == '"' || *c == '\n') out[n++] = '\\';
        out[n++] = *c == '\n' ? 'n' : *c;
    }
    out[n++] = '"';
    out[n] = '\0';
}

/* labels: without braces, "" for none. counts [n_bounds] cumulative, bounds in seconds. */
typedef struct histogram_s {
    const char *name, *labels;
    const double *bounds;
    const uint64_t *counts;
    uint32_t n_bounds;
    uint64_t count;
    double sum_s;
} histogram_t;

static void put_histogram(kri_buffer_t *out, const histogram_t *h) {
    const char *comma = h->labels[0] != '\0' ? "," : "";
    char braces[LABELS_BYTES + 2] = "";
    if (h->labels[0] != '\0') snprintf(braces, sizeof braces, "{%s}", h->labels);
    for (uint32_t i = 0; i < h->n_bounds; i++) {
        (void)kri_buffer_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", h->name, h->labels, comma,
                                h->bounds[i], (unsigned long long)h->counts[i]);
    }
    (void)kri_buffer_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", h->name, h->labels, comma,
                            (unsigned long long)h->count);
    (void)kri_buffer_printf(out, "%s_sum%s %.15g\n%s_count%s %llu\n", h->name, braces, h->sum_s,
                            h->name, braces, (unsigned long long)h->count);
}

/* ---- the engine's telemetry --------------------------------------------------------------- */

/* Bounds in seconds, by what a stage takes: parts of a request, steps, pieces of a step. */
#define BOUNDS_MAX 20
typedef struct bounds_s {
    uint32_t n;
    double s[BOUNDS_MAX];
} bounds_t;

static const bounds_t request_bounds = {18, {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                             0.5, 1, 2.5, 5, 10, 25, 60, 150, 300, 600}};
static const bounds_t step_bounds = {18, {0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02,
                                          0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 10}};
static const bounds_t piece_bounds = {14, {1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 0.0001, 0.00025,
                                           0.0005, 0.001, 0.005, 0.025, 0.1, 1}};

static const bounds_t *bounds_of(uint32_t metric) {
    switch (metric) {
    case KRI_METRIC_inter_token:
    case KRI_METRIC_prefill:
    case KRI_METRIC_decode: return &step_bounds;
    case KRI_METRIC_template:
    case KRI_METRIC_tokenize:
    case KRI_METRIC_cache_lookup:
    case KRI_METRIC_grammar:
    case KRI_METRIC_sample:
    case KRI_METRIC_detokenize:
    case KRI_METRIC_write: return &piece_bounds;
    default: return &request_bounds;
    }
}

typedef enum kind_e { KIND_HISTOGRAM, KIND_COUNTER, KIND_GAUGE } kind_t;
typedef struct row_s {
    const char *name, *alias, *unit, *help;
    kind_t kind;
} row_t;

static const row_t rows[KRI_N_METRICS] = {
#define KR_METRIC(name, kind, alias, unit, help) {#name, alias, unit, help, KIND_##kind},
#include "telemetry/metrics.def"
};

/* kr_<name> and the suffix that its kind and unit want. */
static void make_name(const row_t *row, char *name, size_t cap) {
    const bool is_ratio = strcmp(row->unit, "1") == 0;
    const char *suffix = row->kind == KIND_HISTOGRAM ? "_seconds"
                         : row->kind == KIND_COUNTER ? "_total"
                         : is_ratio                  ? "_ratio"
                                                     : "";
    snprintf(name, cap, "kr_%s%s", row->name, suffix);
}

/* What one metric says, taken once: both its names say the same. */
typedef struct sample_s {
    uint64_t counts[BOUNDS_MAX], count;
    double sum_s, value;
} sample_t;

static void take_sample(const server_t *server, uint32_t metric, sample_t *sample) {
    const row_t *row = &rows[metric];
    memset(sample, 0, sizeof *sample);
    if (row->kind == KIND_HISTOGRAM) {
        const bounds_t *bounds = bounds_of(metric);
        double bounds_ms[BOUNDS_MAX], sum_ms = 0;
        for (uint32_t i = 0; i < bounds->n; i++) bounds_ms[i] = bounds->s[i] * 1000;
        (void)kr_telemetry_histogram(server->telemetry, row->name, bounds_ms, bounds->n,
                                     sample->counts, &sample->count, &sum_ms);
        sample->sum_s = sum_ms / 1000;
        return;
    }
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    (void)kr_telemetry_report(server->telemetry, row->name, &report);
    sample->count = report.count;
    sample->value = report.value;
}

/* One metric under one name. labels: as for histograms. */
static void put_metric(const sample_t *sample, uint32_t metric, const char *name,
                       const char *labels, kri_buffer_t *out) {
    static const char *const types[] = {"histogram", "counter", "gauge"};
    const row_t *row = &rows[metric];
    put_head(out, name, types[row->kind], row->help);
    if (row->kind == KIND_HISTOGRAM) {
        const bounds_t *bounds = bounds_of(metric);
        const histogram_t h = {name, labels, bounds->s, sample->counts, bounds->n, sample->count,
                               sample->sum_s};
        put_histogram(out, &h);
        return;
    }
    char braces[LABELS_BYTES + 2] = "";
    if (labels[0] != '\0') snprintf(braces, sizeof braces, "{%s}", labels);
    if (row->kind == KIND_COUNTER) put_count(out, name, braces, sample->count);
    else put_value(out, name, braces, sample->value);
}

static void put_telemetry(const server_t *server, kri_buffer_t *out) {
    /* vLLM serves one model and labels everything with it. */
    char model[LABELS_BYTES];
    put_label(model, sizeof model, "model_name",
              server->n_models == 1 ? server->models[0].name : "all");
    for (uint32_t metric = 0; metric < KRI_N_METRICS; metric++) {
        char name[96];
        sample_t sample;
        make_name(&rows[metric], name, sizeof name);
        take_sample(server, metric, &sample);
        put_metric(&sample, metric, name, "", out);
        if (rows[metric].alias[0] != '\0') {
            put_metric(&sample, metric, rows[metric].alias, model, out);
        }
    }
}

/* ---- models ------------------------------------------------------------------------------- */

typedef struct model_metric_s {
    const char *name, *type, *help;
} model_metric_t;

static const model_metric_t model_metrics[] = {
    {"kr_model_requests_running", "gauge", "requests with rows in steps"},
    {"kr_model_requests_waiting", "gauge", "requests in the queue"},
    {"kr_model_kv_used_bytes", "gauge", "KV pages held by running requests"},
    {"kr_model_kv_cached_bytes", "gauge", "KV pages that only the prefix cache holds"},
    {"kr_model_kv_max_bytes", "gauge", "size of the KV pool"},
    {"kr_model_steps_total", "counter", "steps computed"},
};
#define N_MODEL_METRICS (sizeof model_metrics / sizeof model_metrics[0])

static void put_models(const server_t *server, kri_buffer_t *out) {
    uint64_t values[SERVER_MODELS_MAX][N_MODEL_METRICS];
    memset(values, 0, sizeof values);
    for (uint32_t i = 0; i < server->n_models; i++) {
        kr_engine_stats_t stats;
        kr_engine_stats_init(&stats);
        if (kr_engine_stats(server->engine, server->models[i].name, &stats) != KR_OK) continue;
        const uint64_t found[N_MODEL_METRICS] = {stats.n_running,      stats.n_waiting,
                                                 stats.kv_bytes_used,  stats.kv_bytes_cached,
                                                 stats.kv_bytes_max,   stats.n_steps};
        memcpy(values[i], found, sizeof found);
    }
    for (size_t m = 0; m < N_MODEL_METRICS; m++) {
        const model_metric_t *metric = &model_metrics[m];
        put_head(out, metric->name, metric->type, metric->help);
        for (uint32_t i = 0; i < server->n_models; i++) {
            char label[LABELS_BYTES], braces[LABELS_BYTES + 2];
            put_label(label, sizeof label, "model", server->models[i].name);
            snprintf(braces, sizeof braces, "{%s}", label);
            put_count(out, metric->name, braces, values[i][m]);
        }
    }
}

/* ---- HTTP --------------------------------------------------------------------------------- */

static uint64_t load(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void put_requests(const counters_t *counters, kri_buffer_t *out) {
    static const char *const methods[N_METHODS] = {"GET", "HEAD", "POST", "DELETE", "other"};
    static const char *const classes[N_CLASSES] = {"2xx", "4xx", "5xx", "gone", "none"};
    const char *name = "kr_http_requests_total";
    put_head(out, name, "counter",
             "requests that have ended; status gone: the client went first, none: no answer");
    for (uint32_t e = 0; e <= N_ENDPOINTS; e++) {
        for (uint32_t m = 0; m < N_METHODS; m++) {
            for (uint32_t c = 0; c < N_CLASSES; c++) {
                const uint64_t n = load(&counters->endpoints[e].requests[m][c]);
                if (n == 0) continue;
                char labels[160];
                snprintf(labels, sizeof labels, "{endpoint=\"%s\",method=\"%s\",status=\"%s\"}",
                         endpoint_names[e], methods[m], classes[c]);
                put_count(out, name, labels, n);
            }
        }
    }
}

static void put_latency(const latency_t *latency, const char *name, const char *endpoint,
                        kri_buffer_t *out) {
    uint64_t counts[N_LATENCY_BOUNDS], n = 0;
    for (uint32_t i = 0; i < N_LATENCY_BOUNDS; i++) {
        n += load(&latency->buckets[i]);
        counts[i] = n;
    }
    n += load(&latency->buckets[N_LATENCY_BOUNDS]);
    if (n == 0) return;
    char label[96];
    put_label(label, sizeof label, "endpoint", endpoint);
    const histogram_t h = {name, label, latency_bounds, counts, N_LATENCY_BOUNDS, n,
                           (double)load(&latency->sum_ns) / 1e9};
    put_histogram(out, &h);
}

static void put_http(const server_t *server, kri_buffer_t *out) {
    const counters_t *counters = server->counters;
    put_requests(counters, out);
    const char *name = "kr_http_request_duration_seconds";
    put_head(out, name, "histogram", "from a request's first byte to the end of its answer");
    for (uint32_t e = 0; e <= N_ENDPOINTS; e++) {
        put_latency(&counters->endpoints[e].duration, name, endpoint_names[e], out);
    }
    name = "kr_http_first_byte_seconds";
    put_head(out, name, "histogram", "from a request's first byte to the first of its answer");
    for (uint32_t e = 0; e <= N_ENDPOINTS; e++) {
        put_latency(&counters->endpoints[e].first_byte, name, endpoint_names[e], out);
    }
    put_single_count(out, "kr_http_request_bytes_total", "bytes of requests' bodies",
                     load(&counters->bytes_in));
    put_single_count(out, "kr_http_response_bytes_total", "bytes of answers' bodies",
                     load(&counters->bytes_out));
    static const char *const reasons[N_REFUSALS] = {
        [REFUSAL_KEY] = "key", [REFUSAL_SCOPE] = "scope", [REFUSAL_IN_FLIGHT] = "in_flight",
        [REFUSAL_HOST] = "host", [REFUSAL_ORIGIN] = "origin"};
    put_head(out, "kr_http_refused_total", "counter", "requests refused before their endpoint");
    for (uint32_t i = 0; i < N_REFUSALS; i++) {
        char labels[64];
        snprintf(labels, sizeof labels, "{reason=\"%s\"}", reasons[i]);
        put_count(out, "kr_http_refused_total", labels, load(&counters->refused[i]));
    }
    if (server->http == NULL) return;
    http_stats_t stats;
    memset(&stats, 0, sizeof stats);
    http_server_stats(server->http, &stats);
    put_single(out, "kr_http_connections", "gauge", "connections that are open",
               stats.n_connections);
    put_single(out, "kr_http_requests_in_flight", "gauge", "requests without the end of an answer",
               stats.n_exchanges);
    put_single_count(out, "kr_http_connections_accepted_total", "connections accepted",
                     stats.n_accepted);
    put_single_count(out, "kr_http_connections_refused_total", "connections refused",
                     stats.n_refused);
}

/* ---- the process -------------------------------------------------------------------------- */

static uint32_t count_descriptors(void) {
    uint32_t n = 0;
    DIR *folder = opendir("/proc/self/fd");
    if (folder == NULL) return 0;
    while (readdir(folder) != NULL) n++;
    closedir(folder);
    return n > 3 ? n - 3 : 0; /* ".", ".." and the folder itself */
}

static void put_process(const server_t *server, kri_buffer_t *out) {
    unsigned long long n_virtual = 0, n_resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL) {
        if (fscanf(file, "%20llu %20llu", &n_virtual, &n_resident) != 2) n_virtual = n_resident = 0;
        fclose(file);
    }
    const double page_bytes = (double)sysconf(_SC_PAGESIZE);
    struct rusage usage;
    struct rlimit limit = {0, 0};
    memset(&usage, 0, sizeof usage);
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    const double cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    put_single(out, "process_cpu_seconds_total", "counter", "processor time used", cpu_s);
    put_single(out, "process_resident_memory_bytes", "gauge",
               "memory in use, mapped files included", (double)n_resident * page_bytes);
    put_single(out, "process_virtual_memory_bytes", "gauge", "address space in use",
               (double)n_virtual * page_bytes);
    put_single(out, "process_open_fds", "gauge", "open descriptors", count_descriptors());
    put_single(out, "process_max_fds", "gauge", "descriptors that may be open",
               (double)limit.rlim_cur);
    put_single(out, "process_start_time_seconds", "gauge", "when the server began, since 1970",
               server->counters->start_s);
}

static void put_server(const server_t *server, kri_buffer_t *out) {
    char version[64], commit[96], labels[320];
    put_label(version, sizeof version, "version", kr_version());
    put_label(commit, sizeof commit, "commit", kr_commit());
    snprintf(labels, sizeof labels, "{%s,%s,isa=\"%s\"}", version, commit, kr_isa_best());
    put_head(out, "kr_build_info", "gauge", "what is running");
    put_count(out, "kr_build_info", labels, 1);
    put_single(out, "kr_draining", "gauge", "1 while the server ends",
               atomic_load(&server->is_draining));
    put_single(out, "kr_models", "gauge", "models that are served", server->n_models);
    put_single(out, "kr_api_keys", "gauge", "keys that are accepted",
               server->keys != NULL ? keys_count(server->keys) : 0);
    put_single_count(out, "kr_log_dropped_total", "lines that the log had no room for",
                     logger_n_dropped(server->logger));
}

kr_status_t prometheus_put(const server_t *server, kri_buffer_t *out) {
    if (server->telemetry != NULL) put_telemetry(server, out);
    put_models(server, out);
    if (server->counters != NULL) {
        put_http(server, out);
        put_process(server, out);
    }
    put_server(server, out);
    return out->status;
}
