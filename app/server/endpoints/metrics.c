/* metrics.c: GET /metrics. */
#include "server/endpoints.h"
#include "server/prometheus.h"

void endpoint_metrics(call_t *call) {
    const server_t *server = call_server(call);
    if (server->counters == NULL) {
        call_fail(call, "unknown_route", NULL, "metrics are off here (--metrics off)");
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, PROMETHEUS_BYTES_MAX);
    const kr_status_t status = prometheus_put(server, &out);
    if (status == KR_OK) call_reply(call, 200, PROMETHEUS_CONTENT_TYPE, out.data, out.n_bytes);
    else call_fail_status(call, status, NULL);
    kri_buffer_deinit(&out);
}
