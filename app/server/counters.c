/* counters.c: counting requests. Relaxed atomics: most of it happens on the I/O thread alone. */
#include "counters.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

const double latency_bounds[N_LATENCY_BOUNDS] = LATENCY_BOUNDS;

const char *const endpoint_names[N_ENDPOINTS + 1] = {
#define KR_ENDPOINT(name, ...) #name,
#include "endpoints.def"
    "other"};

static const char *const endpoint_methods[N_ENDPOINTS + 1] = {
#define KR_ENDPOINT(name, method, ...) method,
#include "endpoints.def"
    ""};

counters_t *counters_create(void) {
    counters_t *counters = calloc(1, sizeof *counters);
    if (counters == NULL) return NULL;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    counters->start_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    return counters;
}

void counters_destroy(counters_t *counters) { free(counters); }

static void add(_Atomic uint64_t *value, uint64_t n) {
    atomic_fetch_add_explicit(value, n, memory_order_relaxed);
}

static void observe(latency_t *latency, uint64_t ns) {
    uint32_t bucket = 0;
    while (bucket < N_LATENCY_BOUNDS && (double)ns > latency_bounds[bucket] * 1e9) bucket++;
    add(&latency->buckets[bucket], 1);
    add(&latency->sum_ns, ns);
}

static uint32_t method_index(endpoint_id_t endpoint, http_text_t method) {
    static const char *const names[METHOD_OTHER] = {
        [METHOD_GET] = "GET", [METHOD_HEAD] = "HEAD", [METHOD_POST] = "POST",
        [METHOD_DELETE] = "DELETE"};
    const char *own = endpoint_methods[endpoint];
    for (uint32_t i = 0; i < METHOD_OTHER; i++) {
        if (strlen(names[i]) != method.n_bytes ||
            memcmp(names[i], method.data, method.n_bytes) != 0) {
            continue;
        }
        const bool is_head = i == METHOD_HEAD && strcmp(own, "GET") == 0;
        return strcmp(names[i], own) == 0 || is_head || endpoint == N_ENDPOINTS ? i : METHOD_OTHER;
    }
    return METHOD_OTHER;
}

static uint32_t class_index(int status) {
    if (status == 499) return CLASS_GONE;
    if (status >= 500) return CLASS_5XX;
    if (status >= 400) return CLASS_4XX;
    return status >= 200 ? CLASS_2XX : CLASS_NONE;
}

static endpoint_id_t known(endpoint_id_t endpoint) {
    return (uint32_t)endpoint < N_ENDPOINTS ? endpoint : N_ENDPOINTS;
}

void counters_first_byte(counters_t *counters, endpoint_id_t endpoint, uint64_t ns_since_begin) {
    if (counters == NULL) return;
    observe(&counters->endpoints[known(endpoint)].first_byte, ns_since_begin);
}

void counters_request(counters_t *counters, endpoint_id_t endpoint, http_text_t method,
                      int status, uint64_t ns_since_begin, uint64_t n_bytes_in,
                      uint64_t n_bytes_out) {
    if (counters == NULL) return;
    const endpoint_id_t id = known(endpoint);
    endpoint_counts_t *counts = &counters->endpoints[id];
    add(&counts->requests[method_index(id, method)][class_index(status)], 1);
    observe(&counts->duration, ns_since_begin);
    add(&counters->bytes_in, n_bytes_in);
    add(&counters->bytes_out, n_bytes_out);
}

void counters_refused(counters_t *counters, counters_refusal_t refusal) {
    if (counters != NULL) add(&counters->refused[refusal], 1);
}
