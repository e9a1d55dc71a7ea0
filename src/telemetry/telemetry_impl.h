/* telemetry_impl.h: what recording (telemetry.c), reports (report.c) and JSON (json.c) share:
 * the rows of metrics.def and the layout of the slots. Nothing outside this folder includes it. */
#ifndef KRI_TELEMETRY_TELEMETRY_IMPL_H
#define KRI_TELEMETRY_TELEMETRY_IMPL_H

#include <stdatomic.h>

#include "telemetry/telemetry.h"

typedef enum kind_e { KIND_COUNTER, KIND_HISTOGRAM, KIND_GAUGE } kind_t;

/* Histograms are numbered apart, because only they need buckets. */
enum {
#define NUMBER_COUNTER(name)
#define NUMBER_GAUGE(name)
#define NUMBER_HISTOGRAM(name) HISTOGRAM_##name,
#define KR_METRIC(name, kind, alias, unit, help) NUMBER_##kind(name)
#include "telemetry/metrics.def"
    N_HISTOGRAMS
};

typedef struct metric_row_s {
    const char *name, *alias, *unit, *help;
    kind_t kind;
    uint32_t histogram; /* of KIND_HISTOGRAM */
} metric_row_t;

extern const metric_row_t kri_telemetry_rows[KRI_N_METRICS];

/* KRI_N_METRICS when there is none. */
uint32_t kri_telemetry_find(const char *name);

/* Each power of two is cut into 32 equal buckets, so a bucket is at most 1/32 of its lower end
 * wide; below 32 ns every nanosecond has its own. The last bucket takes all from 2^47 ns
 * (39 hours) on. */
#define SUB_BITS 5
#define N_SUB (1u << SUB_BITS)
#define EXPONENT_END 47
#define N_BUCKETS ((uint32_t)(EXPONENT_END - SUB_BITS + 1) * N_SUB + 1)

static inline uint32_t kri_telemetry_bucket(uint64_t ns) {
    if (ns < N_SUB) return (uint32_t)ns;
    const uint32_t exponent = 63u - (uint32_t)__builtin_clzll(ns);
    if (exponent >= EXPONENT_END) return N_BUCKETS - 1;
    const uint32_t sub = (uint32_t)(ns >> (exponent - SUB_BITS)) & (N_SUB - 1);
    return (exponent - SUB_BITS + 1) * N_SUB + sub;
}

#define N_SLOTS 16u
#define LINE_BYTES 64

typedef struct histogram_s {
    _Alignas(LINE_BYTES) _Atomic uint64_t sum_ns;
    _Atomic uint64_t min_ns; /* UINT64_MAX while empty */
    _Atomic uint64_t max_ns;
    _Atomic uint64_t buckets[N_BUCKETS];
} histogram_t;

typedef struct slot_s {
    histogram_t histograms[N_HISTOGRAMS];
    _Alignas(LINE_BYTES) _Atomic uint64_t counters[KRI_N_METRICS];
} slot_t;

struct kr_telemetry_s {
    slot_t slots[N_SLOTS];
    _Atomic uint64_t gauges[KRI_N_METRICS]; /* bits of a double */
    _Atomic uint64_t start_ns;
    _Atomic uint32_t n_refs; /* the host, engines, sessions */
};

static inline uint64_t kri_telemetry_load(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

/* a + b, at most UINT64_MAX. */
static inline uint64_t kri_telemetry_sum(uint64_t a, uint64_t b) {
    return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

/* What a gauge says now: its source, or what was set last; always finite. */
double kri_telemetry_gauge(struct kr_telemetry_s *telemetry, uint32_t metric);

/* Fills a whole report struct. */
void kri_telemetry_fill(struct kr_telemetry_s *telemetry, uint32_t metric,
                        kr_telemetry_report_t *report);

/* snprintf takes the decimal point from the process's locale, where it may be a comma or several
 * bytes: in place, whatever is no part of a number in C becomes one point. */
void kri_telemetry_plain_number(char *text);

#endif
