/* telemetry.c: recording into counters, log-linear histograms and gauges, without locks.
 * All memory is taken at create: N_SLOTS copies of everything, and each thread uses the copy that
 * its number selects, so threads rarely touch the same cache line. The updates are relaxed
 * atomics, which keeps them right when there are more threads than slots. */
#include "telemetry/telemetry.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "telemetry/telemetry_impl.h"

/* ---- metrics ------------------------------------------------------------------------------ */

const metric_row_t kri_telemetry_rows[KRI_N_METRICS] = {
#define INDEX_COUNTER(name) 0
#define INDEX_GAUGE(name) 0
#define INDEX_HISTOGRAM(name) HISTOGRAM_##name
#define KR_METRIC(name, kind, alias, unit, help)                                                 \
    {#name, alias, unit, help, KIND_##kind, INDEX_##kind(name)},
#include "telemetry/metrics.def"
};

const char *kr_telemetry_name(uint32_t index) {
    return index < KRI_N_METRICS ? kri_telemetry_rows[index].name : NULL;
}

uint32_t kri_telemetry_find(const char *name) {
    uint32_t metric = 0;
    while (metric < KRI_N_METRICS && strcmp(kri_telemetry_rows[metric].name, name) != 0) metric++;
    return metric;
}

#ifndef KRI_TELEMETRY_OFF

/* ---- recording ---------------------------------------------------------------------------- */

/* The most that one record adds: 104 days. */
#define NS_MAX (UINT64_C(1) << 53)

static _Atomic(kri_gauge_fn) gauge_sources[KRI_N_METRICS];

static void store(_Atomic uint64_t *value, uint64_t next) {
    atomic_store_explicit(value, next, memory_order_relaxed);
}

/* Stays at the greatest value instead of beginning anew: a sum that falls looks like a restart. */
static void add(_Atomic uint64_t *value, uint64_t n) {
    uint64_t seen = kri_telemetry_load(value);
    while (!atomic_compare_exchange_weak_explicit(value, &seen, kri_telemetry_sum(seen, n),
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
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
    KR_ASSERT(metric < KRI_N_METRICS && kri_telemetry_rows[metric].kind == KIND_HISTOGRAM);
    if (ns > NS_MAX) ns = NS_MAX;
    histogram_t *histogram =
        &own_slot(telemetry)->histograms[kri_telemetry_rows[metric].histogram];
    add(&histogram->sum_ns, ns);
    uint64_t seen = kri_telemetry_load(&histogram->min_ns);
    while (ns < seen && !atomic_compare_exchange_weak_explicit(&histogram->min_ns, &seen, ns,
                                                               memory_order_relaxed,
                                                               memory_order_relaxed)) {
    }
    seen = kri_telemetry_load(&histogram->max_ns);
    while (ns > seen && !atomic_compare_exchange_weak_explicit(&histogram->max_ns, &seen, ns,
                                                               memory_order_relaxed,
                                                               memory_order_relaxed)) {
    }
    /* Last, and seen only after the sum: who counts it finds it in the sum too. */
    atomic_fetch_add_explicit(&histogram->buckets[kri_telemetry_bucket(ns)], 1,
                              memory_order_release);
}

void kri_telemetry_add(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t n) {
    if (telemetry == NULL) return;
    KR_ASSERT(metric < KRI_N_METRICS && kri_telemetry_rows[metric].kind == KIND_COUNTER);
    add(&own_slot(telemetry)->counters[metric], n);
}

void kri_telemetry_set_gauge(kr_telemetry_t telemetry, kri_metric_t metric, double value) {
    if (telemetry == NULL) return;
    KR_ASSERT(metric < KRI_N_METRICS && kri_telemetry_rows[metric].kind == KIND_GAUGE);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    store(&telemetry->gauges[metric], bits);
}

void kri_telemetry_gauge_source(kri_metric_t metric, kri_gauge_fn fn) {
    KR_ASSERT(metric < KRI_N_METRICS && kri_telemetry_rows[metric].kind == KIND_GAUGE);
    atomic_store_explicit(&gauge_sources[metric], fn, memory_order_relaxed);
}

double kri_telemetry_gauge(struct kr_telemetry_s *telemetry, uint32_t metric) {
    double value;
    const kri_gauge_fn source = atomic_load_explicit(&gauge_sources[metric], memory_order_relaxed);
    if (source != NULL) {
        value = source();
    } else {
        const uint64_t bits = kri_telemetry_load(&telemetry->gauges[metric]);
        memcpy(&value, &bits, sizeof value);
    }
    return isfinite(value) ? value : 0.0;
}

/* ---- by name ------------------------------------------------------------------------------ */

/* The index of a metric of this kind; KR_E_NOT_FOUND. */
static kr_status_t find_kind(const char *name, kind_t kind, kri_metric_t *metric) {
    const uint32_t found = kri_telemetry_find(name);
    if (found == KRI_N_METRICS || kri_telemetry_rows[found].kind != kind) return KR_E_NOT_FOUND;
    *metric = (kri_metric_t)found;
    return KR_OK;
}

kr_status_t kr_telemetry_record(kr_telemetry_t telemetry, const char *name, double duration_ms) {
    if (telemetry == NULL || name == NULL) return KR_E_INVALID_ARG;
    if (!isfinite(duration_ms) || duration_ms < 0.0) return KR_E_INVALID_ARG;
    kri_metric_t metric;
    KR_TRY(find_kind(name, KIND_HISTOGRAM, &metric));
    const double ns = duration_ms * 1e6 + 0.5;
    kri_telemetry_record_ns(telemetry, metric, ns < (double)NS_MAX ? (uint64_t)ns : NS_MAX);
    return KR_OK;
}

kr_status_t kr_telemetry_count(kr_telemetry_t telemetry, const char *name, uint64_t n) {
    if (telemetry == NULL || name == NULL) return KR_E_INVALID_ARG;
    kri_metric_t metric;
    KR_TRY(find_kind(name, KIND_COUNTER, &metric));
    kri_telemetry_add(telemetry, metric, n);
    return KR_OK;
}

kr_status_t kr_telemetry_set(kr_telemetry_t telemetry, const char *name, double value) {
    if (telemetry == NULL || name == NULL) return KR_E_INVALID_ARG;
    if (!isfinite(value) || value < 0.0) return KR_E_INVALID_ARG;
    kri_metric_t metric;
    KR_TRY(find_kind(name, KIND_GAUGE, &metric));
    kri_telemetry_set_gauge(telemetry, metric, value);
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
    atomic_store(&created->n_refs, 1);
    *telemetry = created;
    return KR_OK;
}

void kri_telemetry_retain(kr_telemetry_t telemetry) {
    if (telemetry != NULL) atomic_fetch_add(&telemetry->n_refs, 1);
}

void kr_telemetry_destroy(kr_telemetry_t telemetry) {
    if (telemetry == NULL || atomic_fetch_sub(&telemetry->n_refs, 1) != 1) return;
    kri_free(telemetry);
}

#else /* KRI_TELEMETRY_OFF: no handle can exist, so a caller's is not one */

kr_status_t kr_telemetry_create(kr_telemetry_t *telemetry) {
    return telemetry == NULL ? KR_E_INVALID_ARG : KR_E_UNSUPPORTED;
}

void kr_telemetry_destroy(kr_telemetry_t telemetry) { (void)telemetry; }

kr_status_t kr_telemetry_reset(kr_telemetry_t telemetry) {
    (void)telemetry;
    return KR_E_INVALID_ARG;
}

kr_status_t kr_telemetry_record(kr_telemetry_t telemetry, const char *name, double duration_ms) {
    (void)telemetry, (void)name, (void)duration_ms;
    return KR_E_INVALID_ARG;
}

kr_status_t kr_telemetry_count(kr_telemetry_t telemetry, const char *name, uint64_t n) {
    (void)telemetry, (void)name, (void)n;
    return KR_E_INVALID_ARG;
}

kr_status_t kr_telemetry_set(kr_telemetry_t telemetry, const char *name, double value) {
    (void)telemetry, (void)name, (void)value;
    return KR_E_INVALID_ARG;
}

double kri_telemetry_gauge(struct kr_telemetry_s *telemetry, uint32_t metric) {
    (void)telemetry, (void)metric;
    return 0.0;
}

#endif
