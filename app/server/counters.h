/* counters.h: what prometheus.c prints of the server's own counting (counters.c). */
#ifndef SERVER_COUNTERS_H
#define SERVER_COUNTERS_H

#include <stdatomic.h>

#include "prometheus.h"

/* Label values of kr_http_requests_total. For a known endpoint the method is its own, HEAD, or
 * "other", so that what clients invent makes no series. */
enum { METHOD_GET, METHOD_HEAD, METHOD_POST, METHOD_DELETE, METHOD_OTHER, N_METHODS };
enum { CLASS_2XX, CLASS_4XX, CLASS_5XX, CLASS_GONE, CLASS_NONE, N_CLASSES };

/* Upper bounds in seconds of the histograms here. */
#define LATENCY_BOUNDS {0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600}
#define N_LATENCY_BOUNDS 11u

typedef struct latency_s {
    _Atomic uint64_t buckets[N_LATENCY_BOUNDS + 1]; /* not cumulative; the last is +Inf */
    _Atomic uint64_t sum_ns;
} latency_t;

typedef struct endpoint_counts_s {
    _Atomic uint64_t requests[N_METHODS][N_CLASSES];
    latency_t duration, first_byte;
} endpoint_counts_t;

struct counters_s {
    double start_s; /* wall clock */
    endpoint_counts_t endpoints[N_ENDPOINTS + 1];
    _Atomic uint64_t bytes_in, bytes_out;
    _Atomic uint64_t refused[N_REFUSALS];
};

extern const double latency_bounds[N_LATENCY_BOUNDS];
extern const char *const endpoint_names[N_ENDPOINTS + 1]; /* the last is "other" */

#endif
