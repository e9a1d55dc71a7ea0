/* telemetry.h: counters, histograms and gauges of metrics.def, by index. The name-based calls of
 * kr.h are thin over these. Each recording thread uses a padded slot; a report sums the slots. A
 * gauge is one cell, because what is now cannot be summed. With KR_TELEMETRY=OFF (CMake) recording
 * is compiled out and kr_telemetry_create returns KR_E_UNSUPPORTED. */
#ifndef KRI_TELEMETRY_TELEMETRY_H
#define KRI_TELEMETRY_TELEMETRY_H

#include <stdint.h>

#include "kr.h"

typedef enum kri_metric_e {
#define KR_METRIC(name, kind, alias, unit, help) KRI_METRIC_##name,
#include "telemetry/metrics.def"
    KRI_N_METRICS
} kri_metric_t;

/* A gauge that the process knows better than any caller: asked at each report. Any thread. */
typedef double (*kri_gauge_fn)(void);

#ifdef KRI_TELEMETRY_OFF
static inline void kri_telemetry_record_ns(kr_telemetry_t telemetry, kri_metric_t metric,
                                           uint64_t ns) {
    (void)telemetry, (void)metric, (void)ns;
}
static inline void kri_telemetry_add(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t n) {
    (void)telemetry, (void)metric, (void)n;
}
static inline void kri_telemetry_set_gauge(kr_telemetry_t telemetry, kri_metric_t metric,
                                           double value) {
    (void)telemetry, (void)metric, (void)value;
}
static inline void kri_telemetry_gauge_source(kri_metric_t metric, kri_gauge_fn fn) {
    (void)metric, (void)fn;
}
static inline void kri_telemetry_retain(kr_telemetry_t telemetry) { (void)telemetry; }
#else
/* No-ops for a NULL telemetry; no lock, no allocation. A gauge keeps its value over a reset; a
 * value that is not finite counts as 0. */
void kri_telemetry_record_ns(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t ns);
void kri_telemetry_add(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t n);
void kri_telemetry_set_gauge(kr_telemetry_t telemetry, kri_metric_t metric, double value);
/* From now on reports of every telemetry ask `fn` for this gauge and ignore what was set. */
void kri_telemetry_gauge_source(kri_metric_t metric, kri_gauge_fn fn);
/* One reference more (NULL: none), given back by kr_telemetry_destroy. Any thread. */
void kri_telemetry_retain(kr_telemetry_t telemetry);
#endif

#endif
