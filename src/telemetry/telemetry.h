/* telemetry.h: counters and histograms of metrics.def, by index. The name-based calls of kr.h are
 * thin over these. Each recording thread owns a padded slot; a report sums the slots. */
#ifndef KRI_TELEMETRY_TELEMETRY_H
#define KRI_TELEMETRY_TELEMETRY_H

#include "kr.h"

typedef enum kri_metric_e {
#define KR_METRIC(name, kind, help) KRI_METRIC_##name,
#include "telemetry/metrics.def"
    KRI_N_METRICS
} kri_metric_t;

/* No-ops for a NULL telemetry. */
void kri_telemetry_record_ns(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t ns);
void kri_telemetry_add(kr_telemetry_t telemetry, kri_metric_t metric, uint64_t n);

#endif
