/* json.c: all metrics as one JSON object, in the order of metrics.def. Written straight into the
 * caller's buffer: whoever scrapes a process that is out of memory still gets an answer. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "telemetry/telemetry_impl.h"

typedef struct writer_s {
    char *buf;
    size_t capacity;
    size_t n; /* bytes wanted so far, also those that did not fit */
} writer_t;

static void put(writer_t *writer, const char *text, size_t n_bytes) {
    if (writer->n < writer->capacity && n_bytes <= writer->capacity - writer->n) {
        memcpy(writer->buf + writer->n, text, n_bytes);
    }
    writer->n += n_bytes;
}

static void put_text(writer_t *writer, const char *text) { put(writer, text, strlen(text)); }

/* Names and help come from metrics.def, which allows nothing that JSON would have to escape. */
static void put_string(writer_t *writer, const char *key, const char *value) {
    put_text(writer, ",\"");
    put_text(writer, key);
    put_text(writer, "\":\"");
    put_text(writer, value);
    put_text(writer, "\"");
}

void kri_telemetry_plain_number(char *text) {
    char *end = text;
    while (*text != '\0') {
        const size_t n_plain = strspn(text, "0123456789+-e");
        memmove(end, text, n_plain);
        end += n_plain;
        text += n_plain;
        if (*text == '\0') break;
        *end++ = '.';
        text += strcspn(text, "0123456789+-e");
    }
    *end = '\0';
}

static void put_number(writer_t *writer, const char *key, double value) {
    char text[64];
    /* 15 digits keep 0.1 short; large values get 17, so that none is rounded out of range. */
    if (fabs(value) >= 0x1p53) snprintf(text, sizeof text, "%.17g", value);
    else snprintf(text, sizeof text, trunc(value) == value ? "%.0f" : "%.15g", value);
    kri_telemetry_plain_number(text);
    put_text(writer, ",\"");
    put_text(writer, key);
    put_text(writer, "\":");
    put_text(writer, text);
}

/* Apart from the doubles, because a counter may be over 2^53. */
static void put_count(writer_t *writer, const char *key, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    put_text(writer, ",\"");
    put_text(writer, key);
    put_text(writer, "\":");
    put_text(writer, text);
}

static void put_metric(writer_t *writer, struct kr_telemetry_s *telemetry, uint32_t metric) {
    static const char *const kinds[] = {"counter", "histogram", "gauge"};
    const metric_row_t *row = &kri_telemetry_rows[metric];
    kr_telemetry_report_t report;
    kri_telemetry_fill(telemetry, metric, &report);
    put_text(writer, metric == 0 ? "\n\"" : ",\n\"");
    put_text(writer, row->name);
    put_text(writer, "\":{\"kind\":\"");
    put_text(writer, kinds[row->kind]);
    put_text(writer, "\"");
    put_string(writer, "help", row->help);
    put_string(writer, "unit", row->unit);
    if (row->alias[0] != '\0') put_string(writer, "alias", row->alias);
    switch (row->kind) {
    case KIND_HISTOGRAM:
        put_count(writer, "count", report.count);
        put_number(writer, "sum", report.sum_ms);
        put_number(writer, "min", report.min_ms);
        put_number(writer, "max", report.max_ms);
        put_number(writer, "p50", report.p50_ms);
        put_number(writer, "p95", report.p95_ms);
        put_number(writer, "p99", report.p99_ms);
        put_number(writer, "per_s", report.throughput_per_s);
        break;
    case KIND_COUNTER:
        put_count(writer, "value", report.count);
        put_number(writer, "per_s", report.throughput_per_s);
        break;
    case KIND_GAUGE: put_number(writer, "value", report.value); break;
    }
    put_text(writer, "}");
}

kr_status_t kr_telemetry_json(kr_telemetry_t telemetry, char *buf, size_t capacity,
                              size_t *n_bytes) {
    if (telemetry == NULL || n_bytes == NULL) return KR_E_INVALID_ARG;
    if (buf == NULL && capacity != 0) return KR_E_INVALID_ARG;
    writer_t writer = {buf, capacity, 0};
    put_text(&writer, "{");
    for (uint32_t metric = 0; metric < KRI_N_METRICS; metric++) {
        put_metric(&writer, telemetry, metric);
    }
    put_text(&writer, "\n}\n");
    *n_bytes = writer.n;
    if (writer.n >= capacity) return KR_E_LIMIT;
    buf[writer.n] = '\0';
    return KR_OK;
}
