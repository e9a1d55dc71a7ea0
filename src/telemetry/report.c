/* report.c: sums the slots of a metric into a report, or into counts under bounds. A report taken
 * while others record sees each record either wholly or partly; it is exact once they are done.
 * Histograms are merged bucket by bucket, so a report needs no memory of its own. */
#include <math.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/structs.h"
#include "telemetry/telemetry_impl.h"

/* The middle of a bucket: at most 1/64 away from anything in it. */
static double bucket_middle_ns(uint32_t bucket) {
    if (bucket < N_SUB) return bucket;
    const int shift = (int)(bucket / N_SUB) - 1;
    const double low = ldexp((double)(N_SUB + bucket % N_SUB), shift);
    return low + (ldexp(1.0, shift) - 1.0) / 2.0;
}

/* One histogram of the slots that have recorded into it. A record widens its slot's extremes before
 * it is counted, so all that was counted before `merge` lies in the buckets [begin, end): a report
 * reads some dozens of them and not the megabytes of all slots. */
typedef struct merged_s {
    const histogram_t *parts[N_SLOTS];
    uint32_t n_parts, begin, end;
    uint64_t min_ns, max_ns;
} merged_t;

static void merge(struct kr_telemetry_s *telemetry, uint32_t histogram, merged_t *merged) {
    *merged = (merged_t){.min_ns = UINT64_MAX};
    for (uint32_t s = 0; s < N_SLOTS; s++) {
        const histogram_t *part = &telemetry->slots[s].histograms[histogram];
        const uint64_t min_ns = kri_telemetry_load(&part->min_ns);
        const uint64_t max_ns = kri_telemetry_load(&part->max_ns);
        if (min_ns == UINT64_MAX) continue;
        merged->parts[merged->n_parts++] = part;
        if (min_ns < merged->min_ns) merged->min_ns = min_ns;
        if (max_ns > merged->max_ns) merged->max_ns = max_ns;
    }
    /* Of first records that have not raised their maximum yet nothing is counted. */
    if (merged->min_ns > merged->max_ns) return;
    merged->begin = kri_telemetry_bucket(merged->min_ns);
    merged->end = kri_telemetry_bucket(merged->max_ns) + 1;
}

static uint64_t merged_bucket(const merged_t *merged, uint32_t bucket) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < merged->n_parts; i++) {
        n += atomic_load_explicit(&merged->parts[i]->buckets[bucket], memory_order_acquire);
    }
    return n;
}

/* After the counts: what they hold is in it. */
static double merged_sum_ms(const merged_t *merged) {
    double sum_ns = 0.0;
    for (uint32_t i = 0; i < merged->n_parts; i++) {
        sum_ns += (double)kri_telemetry_load(&merged->parts[i]->sum_ns);
    }
    return sum_ns / 1e6;
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
    for (uint32_t bucket = merged->begin; bucket < merged->end && next < 3; bucket++) {
        n_passed += merged_bucket(merged, bucket);
        while (next < 3) {
            if (n_passed == 0 || n_passed < rank_of(report->count, percents[next])) break;
            const double ns =
                bucket == N_BUCKETS - 1 ? (double)merged->max_ns : bucket_middle_ns(bucket);
            *targets[next] = clamp(ns, (double)merged->min_ns, (double)merged->max_ns) / 1e6;
            next++;
        }
    }
}

static void fill_histogram(struct kr_telemetry_s *telemetry, uint32_t histogram,
                           kr_telemetry_report_t *report) {
    merged_t merged;
    merge(telemetry, histogram, &merged);
    for (uint32_t bucket = merged.begin; bucket < merged.end; bucket++) {
        report->count += merged_bucket(&merged, bucket);
    }
    if (report->count == 0) return;
    report->sum_ms = merged_sum_ms(&merged);
    report->min_ms = (double)merged.min_ns / 1e6;
    report->max_ms = (double)merged.max_ns / 1e6;
    fill_percentiles(&merged, report);
}

void kri_telemetry_fill(struct kr_telemetry_s *telemetry, uint32_t metric,
                        kr_telemetry_report_t *report) {
    kr_telemetry_report_init(report);
    switch (kri_telemetry_rows[metric].kind) {
    case KIND_HISTOGRAM:
        fill_histogram(telemetry, kri_telemetry_rows[metric].histogram, report);
        break;
    case KIND_COUNTER:
        for (uint32_t s = 0; s < N_SLOTS; s++) {
            report->count = kri_telemetry_sum(
                report->count, kri_telemetry_load(&telemetry->slots[s].counters[metric]));
        }
        break;
    case KIND_GAUGE: report->value = kri_telemetry_gauge(telemetry, metric); break;
    }
    const uint64_t start_ns = kri_telemetry_load(&telemetry->start_ns);
    const uint64_t now_ns = kri_clock_ns();
    if (now_ns > start_ns) {
        report->throughput_per_s = (double)report->count * 1e9 / (double)(now_ns - start_ns);
    }
}

void kr_telemetry_report_init(kr_telemetry_report_t *report) {
    if (report != NULL) kri_struct_init(report, sizeof *report);
}

kr_status_t kr_telemetry_report(kr_telemetry_t telemetry, const char *name,
                                kr_telemetry_report_t *report) {
    if (telemetry == NULL || name == NULL || report == NULL) return KR_E_INVALID_ARG;
    const uint32_t metric = kri_telemetry_find(name);
    if (metric == KRI_N_METRICS) return KR_E_NOT_FOUND;
    kr_telemetry_report_t filled;
    kri_telemetry_fill(telemetry, metric, &filled);
    return kri_struct_write(report, &filled, sizeof filled);
}

/* ---- counts under bounds ------------------------------------------------------------------- */

/* Nothing in the bucket is longer; the last bucket has no end. */
static double bucket_last_ns(uint32_t bucket) {
    if (bucket < N_SUB) return bucket;
    if (bucket == N_BUCKETS - 1) return INFINITY;
    const int shift = (int)(bucket / N_SUB) - 1;
    return ldexp((double)(N_SUB + bucket % N_SUB) + 1.0, shift) - 1.0;
}

static bool are_ascending(const double *bounds, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(bounds[i]) || bounds[i] < 0.0) return false;
        if (i > 0 && bounds[i] <= bounds[i - 1]) return false;
    }
    return true;
}

kr_status_t kr_telemetry_histogram(kr_telemetry_t telemetry, const char *name,
                                   const double *bounds_ms, uint32_t n_bounds, uint64_t *counts,
                                   uint64_t *count, double *sum_ms) {
    if (telemetry == NULL || name == NULL || count == NULL || sum_ms == NULL) {
        return KR_E_INVALID_ARG;
    }
    if (n_bounds > 0 && (bounds_ms == NULL || counts == NULL)) return KR_E_INVALID_ARG;
    if (!are_ascending(bounds_ms, n_bounds)) return KR_E_INVALID_ARG;
    const uint32_t metric = kri_telemetry_find(name);
    if (metric == KRI_N_METRICS || kri_telemetry_rows[metric].kind != KIND_HISTOGRAM) {
        return KR_E_NOT_FOUND;
    }
    merged_t merged;
    merge(telemetry, kri_telemetry_rows[metric].histogram, &merged);
    uint64_t n_passed = 0;
    uint32_t bound = 0;
    for (uint32_t bucket = merged.begin; bucket < merged.end; bucket++) {
        /* To whole nanoseconds, as durations are recorded: one of exactly a bound is under it. */
        const double last_ns = bucket_last_ns(bucket);
        while (bound < n_bounds && floor(bounds_ms[bound] * 1e6 + 0.5) < last_ns) {
            counts[bound++] = n_passed;
        }
        n_passed += merged_bucket(&merged, bucket);
    }
    while (bound < n_bounds) counts[bound++] = n_passed;
    *count = n_passed;
    *sum_ms = merged_sum_ms(&merged);
    return KR_OK;
}
