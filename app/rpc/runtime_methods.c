/* runtime_methods.c: runtime/info, runtime/state, runtime/telemetry, reload_config, shutdown. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "shared.h"

/* Methods without parameters: answers the mistake when there are some. */
static bool takes_nothing(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    rpc_open(call, &reader, &mistake);
    json_finish(&reader);
    return !rpc_fail_mistake(call, &mistake);
}

/* ---- runtime/info ---------------------------------------------------------------------------- */

static void put_memory(kri_buffer_t *out) {
    unsigned long long n_virtual = 0, n_resident = 0;
    char text[256] = "";
    const int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) (void)close(fd);
    if (n > 0) {
        char *end = text;
        n_virtual = strtoull(text, &end, 10);
        n_resident = strtoull(end, NULL, 10);
    }
    const unsigned long long page = (unsigned long long)sysconf(_SC_PAGESIZE);
    (void)kri_buffer_printf(out, "\"memory\":{\"rss\":%llu,\"vms\":%llu}", n_resident * page,
                            n_virtual * page);
}

static void put_info(rpc_conn_t *conn, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"version\":");
    (void)json_put_string(out, kr_version(), strlen(kr_version()));
    (void)kri_buffer_printf(out, ",\"protocol\":\"json-rpc-2.0\",\"protocol_version\":%d,"
                            "\"pid\":%ld,\"isa\":\"%s\",\"capabilities\":[",
                            RPC_PROTOCOL_VERSION, (long)getpid(), kr_isa_details());
    for (uint32_t i = 0; rpc_method_at(i) != NULL; i++) {
        (void)kri_buffer_printf(out, "%s\"%s\"", i > 0 ? "," : "", rpc_method_at(i)->name);
    }
    (void)kri_buffer_printf(out, "],\"limits\":{\"line_bytes\":%zu,\"in_flight\":%u,"
                            "\"batch_requests\":%u,\"output_bytes\":%zu,\"models\":%u},",
                            conn->rpc->params.line_bytes_max, RPC_IN_FLIGHT_MAX, RPC_BATCH_MAX,
                            RPC_OUT_PAUSE_BYTES, RPC_MODELS_MAX);
    rpc_shared_put_info(conn, out);
    (void)kri_buffer_append(out, ",", 1);
    put_memory(out);
    (void)kri_buffer_append(out, "}", 1);
}

/* {"min_bytes": N}: the client wants shared memory. Without memory for it nothing is refused. */
static void read_shared(json_reader_t *reader, json_t *value, int64_t *min_bytes) {
    json_reader_t inner;
    json_open(&inner, value, "shared_memory", reader->error);
    (void)json_read_integer(&inner, "min_bytes", RPC_SHARED_MIN_BYTES_LEAST,
                            (int64_t)RPC_SHM_BYTES_MAX, min_bytes);
    json_finish(&inner);
}

void rpc_method_info(rpc_call_t *call) {
    json_mistake_t mistake;
    json_reader_t reader;
    json_t *shared = NULL;
    int64_t version = RPC_PROTOCOL_VERSION, min_bytes = RPC_SHARED_MIN_BYTES;
    rpc_open(call, &reader, &mistake);
    if (json_read_integer(&reader, "protocol_version", 1, INT32_MAX, &version) &&
        version != RPC_PROTOCOL_VERSION) {
        json_fail(&reader, "unsupported_parameter", "protocol_version",
                  "this runtime speaks 'protocol_version' %d only", RPC_PROTOCOL_VERSION);
    }
    if (json_read_any(&reader, "shared_memory", &shared)) {
        read_shared(&reader, shared, &min_bytes);
    }
    json_finish(&reader);
    if (rpc_fail_mistake(call, &mistake)) return;
    if (shared != NULL) (void)rpc_shared_enable(call->conn, (size_t)min_bytes);
    kri_buffer_t out;
    kri_buffer_init(&out, 65536);
    put_info(call->conn, &out);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

/* ---- runtime/state --------------------------------------------------------------------------- */

void rpc_method_state(rpc_call_t *call) {
    if (!takes_nothing(call)) return;
    rpc_t *rpc = call->rpc;
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"loaded_models\":[");
    rpc_models_put(rpc, false, &out);
    (void)kri_buffer_printf(&out, "],\"active_streams\":%u,\"clients\":%u,\"uptime_ms\":%llu,"
                            "\"calls\":%llu,\"errors\":%llu,\"bad_lines\":%llu,\"ending\":%s}",
                            atomic_load(&rpc->n_streams), atomic_load(&rpc->n_clients),
                            (unsigned long long)((kri_clock_ns() - rpc->begin_ns) / 1000000),
                            (unsigned long long)atomic_load(&rpc->n_calls),
                            (unsigned long long)atomic_load(&rpc->n_errors),
                            (unsigned long long)atomic_load(&rpc->n_bad_lines),
                            atomic_load(&rpc->is_ending) ? "true" : "false");
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

/* ---- runtime/telemetry ----------------------------------------------------------------------- */

static kr_telemetry_report_t report_of(const rpc_t *rpc, const char *name) {
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    if (rpc->calls != NULL) (void)kr_telemetry_report(rpc->calls, name, &report);
    return report;
}

static void put_latency(const kr_telemetry_report_t *report, kri_buffer_t *out) {
    const double mean = report->count > 0 ? report->sum_ms / (double)report->count : 0;
    (void)kri_buffer_printf(out, "\"calls\":%llu,\"latency_ms\":{\"mean\":%.4f,\"min\":%.4f,"
                            "\"max\":%.4f,\"p50\":%.4f,\"p95\":%.4f,\"p99\":%.4f}",
                            (unsigned long long)report->count, mean, report->min_ms,
                            report->max_ms, report->p50_ms, report->p95_ms, report->p99_ms);
}

static void put_engine(const rpc_t *rpc, kri_buffer_t *out) {
    size_t n_bytes = 0;
    char *text = NULL;
    if (rpc->server->telemetry != NULL) {
        (void)kr_telemetry_json(rpc->server->telemetry, NULL, 0, &n_bytes);
        n_bytes += 4096; /* numbers grow meanwhile */
        text = malloc(n_bytes);
    }
    if (text != NULL &&
        kr_telemetry_json(rpc->server->telemetry, text, n_bytes, &n_bytes) == KR_OK) {
        for (size_t i = 0; i < n_bytes; i++) { /* a message is one line */
            if (text[i] == '\n') text[i] = ' ';
        }
        (void)kri_buffer_append(out, text, n_bytes);
    } else {
        (void)kri_buffer_append(out, "null", 4);
    }
    free(text);
}

static void put_shared(rpc_t *rpc, kri_buffer_t *out) {
    const struct { const char *name; uint64_t value; } rows[] = {
        {"segments_out", atomic_load(&rpc->shared.n_out)},
        {"bytes_out", atomic_load(&rpc->shared.n_bytes_out)},
        {"segments_in", atomic_load(&rpc->shared.n_in)},
        {"bytes_in", atomic_load(&rpc->shared.n_bytes_in)},
        {"copies", atomic_load(&rpc->shared.n_copies)},
        {"fallbacks", atomic_load(&rpc->shared.n_fallbacks)},
        {"refused", atomic_load(&rpc->shared.n_refused)},
        {"swept", atomic_load(&rpc->shared.n_swept)}};
    (void)kri_buffer_printf(out, "\"shared_memory\":{");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        (void)kri_buffer_printf(out, "%s\"%s\":%llu", i > 0 ? "," : "", rows[i].name,
                                (unsigned long long)rows[i].value);
    }
    (void)kri_buffer_append(out, "}", 1);
}

void rpc_method_telemetry(rpc_call_t *call) {
    if (!takes_nothing(call)) return;
    rpc_t *rpc = call->rpc;
    const kr_telemetry_report_t generate = report_of(rpc, "generate");
    const kr_telemetry_report_t tokenize = report_of(rpc, "tokenize");
    const uint64_t n_tokens = atomic_load(&rpc->n_tokens), n_calls = atomic_load(&rpc->n_calls);
    const uint64_t n_errors = atomic_load(&rpc->n_errors);
    const double n_generations = generate.count > 0 ? (double)generate.count : 1;
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"enabled\":%s,\"sampling_rate\":1,\"generation\":{",
                            rpc->calls != NULL ? "true" : "false");
    put_latency(&generate, &out);
    (void)kri_buffer_printf(&out, ",\"total_tokens\":%llu,\"avg_tokens_per_call\":%.3f,"
                            "\"throughput\":{\"tokens_per_second\":%.3f}},\"tokenization\":{",
                            (unsigned long long)n_tokens, (double)n_tokens / n_generations,
                            generate.sum_ms > 0 ? (double)n_tokens / generate.sum_ms * 1e3 : 0);
    put_latency(&tokenize, &out);
    (void)kri_buffer_printf(&out, "},\"errors\":{\"total\":%llu,\"timeouts\":%llu,"
                            "\"error_rate\":%.6f},\"native_optimizations\":{\"isa\":\"%s\"},",
                            (unsigned long long)n_errors,
                            (unsigned long long)atomic_load(&rpc->n_timeouts),
                            n_calls > 0 ? (double)n_errors / (double)n_calls : 0,
                            kr_isa_details());
    put_shared(rpc, &out);
    (void)kri_buffer_printf(&out, ",\"engine\":");
    put_engine(rpc, &out);
    (void)kri_buffer_append(&out, "}", 1);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

/* ---- reload_config, shutdown ----------------------------------------------------------------- */

void rpc_method_reload_config(rpc_call_t *call) {
    if (!takes_nothing(call)) return;
    rpc_t *rpc = call->rpc;
    kri_buffer_t changed, refused, out;
    kri_buffer_init(&changed, 65536);
    kri_buffer_init(&refused, 65536);
    kri_buffer_init(&out, 262144);
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = KR_E_UNSUPPORTED;
    if (rpc->params.reload != NULL) {
        status = rpc->params.reload(rpc->params.user, rpc, &changed, &refused, &error);
    }
    if (status == KR_OK) {
        (void)kri_buffer_printf(&out, "{\"success\":true,\"changed\":%s,\"needs_restart\":%s}",
                                changed.data, refused.data);
        rpc_reply(call, &out);
    } else {
        rpc_fail(call, RPC_E_SERVER, status, error.param, "%s", error.message[0] != '\0'
                 ? error.message : "there is no configuration file: start with --config");
    }
    kri_buffer_deinit(&changed);
    kri_buffer_deinit(&refused);
    kri_buffer_deinit(&out);
}

void rpc_method_shutdown(rpc_call_t *call) {
    if (!takes_nothing(call)) return;
    rpc_t *rpc = call->rpc;
    rpc_reply_text(call, "{\"success\":true}");
    rpc_loop_end(rpc);
}
