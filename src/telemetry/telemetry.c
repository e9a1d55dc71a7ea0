/* telemetry.c: counters and log-linear histograms, recorded without locks.
 * All memory is taken at create: N_SLOTS copies of everything, and each thread uses the copy that
 * its number selects, so threads rarely touch the same cache line. The updates are relaxed
 * atomics, which keeps them right when there are more threads than slots. A report taken while
 * others record sees each record either wholly or partly; it is exact once they are done. */
#include "telemetry/telemetry.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/structs.h"

/* ---- metrics ------------------------------------------------------------------------------ */

typedef enum kind_e { KIND_COUNTER, KIND_HISTOGRAM } kind_t;

/* Histograms are numbered apart, because only they need buckets. */
enum {
#define NUMBER_COUNTER(name)
#define NUMBER_HISTOGRAM(name) HISTOGRAM_##name,
#define KR_METRIC(name, kind, help) NUMBER_##kind(name)
#include "telemetry/metrics.def"
    N_HISTOGRAMS
};

typedef struct metric_row_s {
    const char *name;
    kind_t kind;
    uint32_t histogram; /* of KIND_HISTOGRAM */
} metric_row_t;

static const metric_row_t metric_rows[KRI_N_METRICS] = {
#define ROW_COUNTER(name) {#name, KIND_COUNTER, 0},
#define ROW_HISTOGRAM(name) {#name, KIND_HISTOGRAM, HISTOGRAM_##name},
#define KR_METRIC(name, kind, help) ROW_##kind(name)
#include "telemetry/metrics.def"
};

const char *kr_telemetry_name(uint32_t index) {
    return index < KRI_N_METRICS ? metric_rows[index].name : NULL;
}

/* KRI_N_METRICS when there is none. */
static uint32_t find_metric(const char *name) {
    uint32_t metric = 0;
    while (metric < KRI_N_METRICS && strcmp(metric_rows[metric].name, name) != 0) metric++;
    return metric;
}

/* ---- buckets ------------------------------------------------------------------------------ */

/* Each power of two is cut into 32 equal buckets, so a bucket is at most 1/32 of its lower end
 * wide; below 32 ns every nanosecond has its own. The last bucket takes all from 2^47 ns
 * (39 hours) on. */
#define SUB_BITS 5
#define N_SUB (1u << SUB_BITS)
#define EXPONENT_END 47
#define N_BUCKETS ((uint32_t)(EXPONENT_END - SUB_BITS + 1) * N_SUB + 1)

static uint32_t bucket_of(uint64_t ns) {
    if (ns < N_SUB) return (uint32_t)ns;
    const uint32_t exponent = 63u - (uint32_t)__builtin_clzll(ns);
    if (exponent >= EXPONENT_END) return N_BUCKETS - 1;
    const uint32_t sub = (uint32_t)(ns >> (exponent - SUB_BITS)) & (N_SUB - 1);
    return (exponent - SUB_BITS + 1) * N_SUB + sub;
}

/* The middle of a bucket: at most 1/64 away from anything in it. */
static double bucket_middle_ns(uint32_t bucket) {
    if (bucket < N_SUB) return bucket;
    const int shift = (int)(bucket / N_SUB) - 1;
    const double low = ldexp((double)(N_SUB + bucket % N_SUB), shift);
    return low + (ldexp(1.0, shift) - 1.0) / 2.0;
}

/* ---- recording ---------------------------------------------------------------------------- */

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
    _Atomic uint64_t start_ns;
};

/* Sums of durations must not overflow: 2^53 ns are 104 days. */
#define NS_MAX (UINT64_C(1) << 53)

static uint64_t load(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void store(_Atomic uint64_t *value, uint64_t next) {
    atomic_store_explicit(value, next, memory_order_relaxed);
}

static void add(_Atomic uint64_t *value, uint64_t n) {
    atomic_fetch_add_explicit(value, n, memory_order_relaxed);
}

static slot_t *own_slot(struct kr_telemetry_s *telemetry) {
    static _Atomic uint32_t next_thread;
    static _Thread_local uint32_t thread_number; /* from 1; 0 = not given yet */
    if (thread_number == 0) {
        thread_number = atomic_fetch_add_explicit(&next_thread, 1, memory_order_relaxed) + 1;
        if (thread_number == 0) thread_number = 1;
    }
    return &telemetry->slots[(thread_number - 1) % N_SLOTS];
}

void kri_telemetry_record_ns(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t ns) {
    if (telemetry == NULL) return;
    KR_ASSERT(metric < KRI_N_METRICS && metric_rows[metric].kind == KIND_HISTOGRAM);
    if (ns > NS_MAX) ns = NS_MAX;
    histogram_t *histogram =
        &own_slot(telemetry)->histograms[metric_rows[metric].histogram];
    add(&histogram->sum_ns, ns);
    uint64_t seen = load(&histogram->min_ns);
    while (ns < seen && !atomic_compare_exchange_weak_explicit(&histogram->min_ns, &seen, ns,
                                                               memory_order_relaxed,
                                                               memory_order_relaxed)) {
    }
    seen = load(&histogram->max_ns);
    while (ns > seen && !atomic_compare_exchange_weak_explicit(&histogram->max_ns, &seen, ns,
                                                               memory_order_relaxed,
                                                               memory_order_relaxed)) {
    }
    add(&histogram->buckets[bucket_of(ns)], 1);
}

void kri_telemetry_add(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t n) {
    if (telemetry == NULL) return;
    KR_ASSERT(metric < KRI_N_METRICS && metric_rows[metric].kind == KIND_COUNTER);
    add(&own_slot(telemetry)->counters[metric], n);
}

kr_status_t kr_telemetry_record(kr_telemetry_t telemetry, const char *name, double duration_ms) {
    if (telemetry == NULL || name == NULL) return KR_E_INVALID_ARG;
    if (!isfinite(duration_ms) || duration_ms < 0.0) return KR_E_INVALID_ARG;
    const uint32_t metric = find_metric(name);
    if (metric == KRI_N_METRICS || metric_rows[metric].kind != KIND_HISTOGRAM) {
        return KR_E_NOT_FOUND;
    }
    const double ns = duration_ms * 1e6 + 0.5;
    kri_telemetry_record_ns(telemetry, (kri_metric_t)metric,
                            ns < (double)NS_MAX ? (uint64_t)ns : NS_MAX);
    return KR_OK;
}

kr_status_t kr_telemetry_count(kr_telemetry_t telemetry, const char *name, uint64_t n) {
    if (telemetry == NULL || name == NULL) return KR_E_INVALID_ARG;
    const uint32_t metric = find_metric(name);
    if (metric == KRI_N_METRICS || metric_rows[metric].kind != KIND_COUNTER) {
        return KR_E_NOT_FOUND;
    }
    kri_telemetry_add(telemetry, (kri_metric_t)metric, n);
    return KR_OK;
}

/* ---- life --------------------------------------------------------------------------------- */

kr_status_t kr_telemetry_reset(kr_telemetry_t telemetry) {
    if (telemetry == NULL) return KR_E_INVALID_ARG;
    for (uint32_t s = 0; s < N_SLOTS; s++) {
        slot_t *slot = &telemetry->slots[s];
        for (uint32_t h = 0; h < N_HISTOGRAMS; h++) {
            histogram_t *histogram = &slot->histograms[h];
            store(&histogram->sum_ns, 0);
            store(&histogram->min_ns, UINT64_MAX);
            store(&histogram->max_ns, 0);
            for (uint32_t b = 0; b < N_BUCKETS; b++) store(&histogram->buckets[b], 0);
        }
        for (uint32_t c = 0; c < KRI_N_METRICS; c++) store(&slot->counters[c], 0);
    }
    store(&telemetry->start_ns, kri_clock_ns());
    return KR_OK;
}

kr_status_t kr_telemetry_create(kr_telemetry_t *telemetry) {
    if (telemetry == NULL) return KR_E_INVALID_ARG;
    kr_telemetry_t created = kri_calloc(1, sizeof(struct kr_telemetry_s), "telemetry");
    if (created == NULL) return KR_E_NOMEM;
    KR_TRY(kr_telemetry_reset(created));
    *telemetry = created;
    return KR_OK;
}

void kr_telemetry_destroy(kr_telemetry_t telemetry) { kri_free(telemetry); }

/* ---- reports ------------------------------------------------------------------------------ */

/* One histogram of all slots; merged bucket by bucket, so nothing large is needed. */
typedef struct merged_s {
    struct kr_telemetry_s *telemetry;
    uint32_t histogram;
    uint64_t count, min_ns, max_ns;
} merged_t;

static uint64_t merged_bucket(const merged_t *merged, uint32_t bucket) {
    uint64_t n = 0;
    for (uint32_t s = 0; s < N_SLOTS; s++) {
        n += load(&merged->telemetry->slots[s].histograms[merged->histogram].buckets[bucket]);
    }
    return n;
}

static double clamp(double value, double low, double high) {
    if (value > high) value = high;
    return value < low ? low : value;
}

/* Nearest rank: the smallest recorded duration that is not exceeded by `percent` of all; in
 * integers, because 0.95 * n rounded the wrong way is another rank. */
static uint64_t rank_of(uint64_t count, uint32_t percent) {
    return count / 100 * percent + (count % 100 * percent + 99) / 100;
}

static void fill_percentiles(const merged_t *merged, kr_telemetry_report_t *report) {
    const uint32_t percents[] = {50, 95, 99};
    double *const targets[] = {&report->p50_ms, &report->p95_ms, &report->p99_ms};
    uint64_t n_passed = 0;
    uint32_t next = 0;
    for (uint32_t bucket = 0; bucket < N_BUCKETS && next < 3; bucket++) {
        n_passed += merged_bucket(merged, bucket);
        while (next < 3) {
            if (n_passed == 0 || n_passed < rank_of(merged->count, percents[next])) break;
            const double ns =
                bucket == N_BUCKETS - 1 ? (double)merged->max_ns : bucket_middle_ns(bucket);
            *targets[next] = clamp(ns, (double)merged->min_ns, (double)merged->max_ns) / 1e6;
            next++;
        }
    }
}

static void fill_histogram(struct kr_telemetry_s *telemetry, uint32_t histogram,
                           kr_telemetry_report_t *report) {
    merged_t merged = {telemetry, histogram, 0, UINT64_MAX, 0};
    double sum_ns = 0.0;
    for (uint32_t bucket = 0; bucket < N_BUCKETS; bucket++) {
        merged.count += merged_bucket(&merged, bucket);
    }
    if (merged.count == 0) return;
    for (uint32_t s = 0; s < N_SLOTS; s++) {
        const histogram_t *part = &telemetry->slots[s].histograms[histogram];
        const uint64_t min_ns = load(&part->min_ns);
        const uint64_t max_ns = load(&part->max_ns);
        sum_ns += (double)load(&part->sum_ns);
        if (min_ns < merged.min_ns) merged.min_ns = min_ns;
        if (max_ns > merged.max_ns) merged.max_ns = max_ns;
    }
    /* A reset during this report can empty the minimum after the count was taken. */
    if (merged.min_ns > merged.max_ns) merged.min_ns = merged.max_ns;
    report->count = merged.count;
    report->sum_ms = sum_ns / 1e6;
    report->min_ms = (double)merged.min_ns / 1e6;
    report->max_ms = (double)merged.max_ns / 1e6;
    fill_percentiles(&merged, report);
}

void kr_telemetry_report_init(kr_telemetry_report_t *report) {
    if (report != NULL) kri_struct_init(report, sizeof *report);
}

kr_status_t kr_telemetry_report(kr_telemetry_t telemetry, const char *name,
                                kr_telemetry_report_t *report) {
    if (telemetry == NULL || name == NULL || report == NULL) return KR_E_INVALID_ARG;
    const uint32_t metric = find_metric(name);
    if (metric == KRI_N_METRICS) return KR_E_NOT_FOUND;
    kr_telemetry_report_t filled;
    kr_telemetry_report_init(&filled);
    if (metric_rows[metric].kind == KIND_HISTOGRAM) {
        fill_histogram(telemetry, metric_rows[metric].histogram, &filled);
    } else {
        for (uint32_t s = 0; s < N_SLOTS; s++) {
            filled.count += load(&telemetry->slots[s].counters[metric]);
        }
    }
    const uint64_t start_ns = load(&telemetry->start_ns);
    const uint64_t now_ns = kri_clock_ns();
    if (now_ns > start_ns) {
        filled.throughput_per_s = (double)filled.count * 1e9 / (double)(now_ns - start_ns);
    }
    return kri_struct_write(report, &filled, sizeof filled);
}
