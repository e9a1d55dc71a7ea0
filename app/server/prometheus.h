/* prometheus.h: what the server counts by itself, and /metrics: these, the engine's telemetry
 * (metrics.def) and the process, as Prometheus text 0.0.4. Labels come from closed sets.
 * counters NULL (--metrics off) is allowed everywhere: nothing is counted. Any thread, no locks. */
#ifndef SERVER_PROMETHEUS_H
#define SERVER_PROMETHEUS_H

#include "call.h"
#include "server.h"

/* Rows of endpoints.def by number: the label "endpoint"; N_ENDPOINTS is "other". */
typedef enum endpoint_id_e {
#define KR_ENDPOINT(name, ...) ENDPOINT_##name,
#include "endpoints.def"
    N_ENDPOINTS
} endpoint_id_t;

#define PROMETHEUS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"
#define PROMETHEUS_SERIES_MAX 2000
#define PROMETHEUS_BYTES_MAX ((size_t)1 << 20)

/* NULL without memory. */
counters_t *counters_create(void);
void counters_destroy(counters_t *counters);

/* The first byte of an answer is about to be written: once per request, from the sink. */
void counters_first_byte(counters_t *counters, endpoint_id_t endpoint, uint64_t ns_since_begin);
/* A request has ended (server_on_done). status as there: 499 client gone, 0 nothing answered.
 * n_bytes_in: of its body, n_bytes_out: of the answer's. */
void counters_request(counters_t *counters, endpoint_id_t endpoint, http_text_t method,
                      int status, uint64_t ns_since_begin, uint64_t n_bytes_in,
                      uint64_t n_bytes_out);
/* A key was refused (401), had no scope (403), or had too much in flight (429). */
typedef enum counters_refusal_e {
    REFUSAL_KEY, REFUSAL_SCOPE, REFUSAL_IN_FLIGHT, REFUSAL_HOST, REFUSAL_ORIGIN, N_REFUSALS
} counters_refusal_t;
void counters_refused(counters_t *counters, counters_refusal_t refusal);

/* The whole exposition; out has room for PROMETHEUS_BYTES_MAX. KR_E_NOMEM, KR_E_LIMIT. */
kr_status_t prometheus_put(const server_t *server, kri_buffer_t *out);

#endif
