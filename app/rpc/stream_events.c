/* stream_events.c: from events to lines, on the pump's thread. All that a batch of events gives to
 * a client leaves in one write. A message costs the client's program more than the token in it, on
 * the cores that compute: where several tokens come within RPC_HOLD_NS, they leave together. */
#include <string.h>

#include "base/clock.h"
#include "stream_impl.h"

/* ---- entries --------------------------------------------------------------------------------- */

static void put_tops(rpc_stream_t *stream, const kr_event_t *event) {
    kri_buffer_t *out = &stream->last_tops;
    kri_buffer_clear(out);
    if (stream->n_tops == 0) return;
    (void)kri_buffer_printf(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < event->n_logprobs && i < stream->n_tops; i++) {
        if (event->logprobs[i].token < 0) break;
        (void)kri_buffer_printf(out, "%s{\"token_id\":%d,\"logprob\":", i > 0 ? "," : "",
                                event->logprobs[i].token);
        (void)json_put_float(out, event->logprobs[i].logprob);
        (void)kri_buffer_append(out, "}", 1);
    }
    (void)kri_buffer_append(out, "]", 1);
}

static void put_last(rpc_stream_t *stream, bool is_final) {
    if (!stream->has_last) return;
    stream->has_last = false;
    kri_buffer_t *out = &stream->entries;
    (void)kri_buffer_printf(out, stream->n_entries > 0 ? ",{\"token\":" : "{\"token\":");
    (void)json_put_string(out, stream->last_text.data, stream->last_text.n_bytes);
    (void)kri_buffer_printf(out, ",\"token_id\":%d", stream->last_token);
    if (stream->has_logprobs) {
        (void)kri_buffer_printf(out, ",\"logprob\":");
        (void)json_put_float(out, stream->last_logprob);
        (void)kri_buffer_append(out, stream->last_tops.data, stream->last_tops.n_bytes);
    }
    (void)kri_buffer_printf(out, ",\"is_final\":%s}", is_final ? "true" : "false");
    stream->n_entries++;
}

/* Text that was held back until the end, with the last token if that has not left yet. */
static void put_tail(rpc_stream_t *stream, const char *text, size_t n_bytes) {
    if (!stream->is_stream) {
        (void)kri_buffer_append(&stream->text, text, n_bytes);
    } else if (stream->has_last) {
        (void)kri_buffer_append(&stream->last_text, text, n_bytes);
        put_last(stream, true);
    } else if (n_bytes > 0 || stream->n_tokens > 0) {
        kri_buffer_t *out = &stream->entries;
        (void)kri_buffer_printf(out, stream->n_entries > 0 ? ",{\"token\":" : "{\"token\":");
        (void)json_put_string(out, text, n_bytes);
        (void)kri_buffer_printf(out, ",\"is_final\":true}");
        stream->n_entries++;
    }
}

/* ---- events ---------------------------------------------------------------------------------- */

static bool is_stop_token(const rpc_stream_t *stream, kr_token_t token) {
    for (uint32_t i = 0; i < stream->n_stop_tokens; i++) {
        if (stream->stop_tokens[i] == token) return true;
    }
    return false;
}

/* The engine knows no such tokens: what comes after one is not looked at. */
static void stop_at_token(rpc_stream_t *stream) {
    const char *text = "";
    size_t n_bytes = 0;
    (void)kr_detokenizer_finish(stream->detokenizer, &text, &n_bytes);
    stream->finish = "stop";
    put_tail(stream, text, n_bytes);
    kr_request_cancel(stream->handle);
}

static void take_token(rpc_stream_t *stream, const kr_event_t *event) {
    if (is_stop_token(stream, event->token)) {
        stop_at_token(stream);
        return;
    }
    if (stream->detokenizer != NULL) {
        const char *text = NULL;
        size_t n_bytes = 0;
        int32_t stopped = 0;
        (void)kr_detokenizer_push(stream->detokenizer, event->token, &text, &n_bytes, &stopped);
    }
    if (stream->n_tokens++ == 0) stream->first_ns = kri_clock_ns();
    if (!stream->is_stream) {
        (void)kri_buffer_append(&stream->text, event->text, event->text_bytes);
        return;
    }
    put_last(stream, false);
    kri_buffer_clear(&stream->last_text);
    (void)kri_buffer_append(&stream->last_text, event->text, event->text_bytes);
    put_tops(stream, event);
    stream->last_token = event->token;
    stream->last_logprob = event->logprob;
    stream->has_last = true;
}

static const char *finish_word(int32_t finish) {
    if (finish == KR_FINISH_LENGTH) return "length";
    return finish == KR_FINISH_STOP ? "stop" : "eos";
}

static void take_end(rpc_stream_t *stream, const kr_event_t *event) {
    stream->is_ended = true;
    if (event->type == KR_EVENT_DONE || stream->finish != NULL) return;
    if (stream->status == KR_OK) {
        stream->status = event->status;
        if (event->error != NULL) stream->error = *event->error;
    }
}

/* What could not be kept or rendered ends the generation. */
static void check_memory(rpc_stream_t *stream) {
    const kri_buffer_t *const buffers[] = {&stream->last_text, &stream->last_tops,
                                           &stream->entries, &stream->text};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        if (buffers[i]->status == KR_OK || stream->status != KR_OK) continue;
        stream->status = buffers[i]->status;
        stream->finish = NULL;
        kr_request_cancel(stream->handle);
    }
}

void rpc_stream_take(pump_user_t *user, pump_t *pump, const kr_event_t *event) {
    (void)pump;
    rpc_stream_t *stream = (rpc_stream_t *)(void *)user;
    const bool is_wanted = stream->finish == NULL && stream->status == KR_OK;
    switch (event->type) {
    case KR_EVENT_TOKEN:
        if (is_wanted) take_token(stream, event);
        break;
    case KR_EVENT_CHOICE:
        if (!is_wanted) break;
        stream->finish = finish_word(event->finish);
        put_tail(stream, event->text, event->text_bytes);
        break;
    default: take_end(stream, event); break;
    }
    check_memory(stream);
    if (stream->is_touched || (!stream->is_stream && !stream->is_ended)) return;
    stream->is_touched = true;
    stream->rpc->has_news = true;
    stream->touched_next = stream->rpc->touched;
    stream->rpc->touched = stream;
}

/* ---- lines ----------------------------------------------------------------------------------- */

static void put_head(const rpc_stream_t *stream, const char *method, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"jsonrpc\":\"2.0\",\"method\":\"%s\",\"params\":{"
                            "\"stream_id\":", method);
    (void)json_put_string(out, stream->id, strlen(stream->id));
}

static void put_chunk(rpc_stream_t *stream, kri_buffer_t *out) {
    if (stream->n_entries == 0) return;
    put_head(stream, "stream.chunk", out);
    const kri_buffer_t *entries = &stream->entries;
    if (stream->n_entries == 1) {
        (void)kri_buffer_append(out, ",", 1);
        (void)kri_buffer_append(out, entries->data + 1, entries->n_bytes - 1);
    } else {
        (void)kri_buffer_printf(out, ",\"tokens\":[");
        (void)kri_buffer_append(out, entries->data, entries->n_bytes);
        (void)kri_buffer_printf(out, "],\"batch_size\":%u,\"is_batch\":true}", stream->n_entries);
    }
    (void)kri_buffer_append(out, "}\n", 2);
    kri_buffer_clear(&stream->entries);
    stream->n_entries = 0;
}

typedef struct figures_s {
    double total_s, ttft_s, per_s;
    uint32_t n_prompt, n_cached;
} figures_t;

static figures_t measure(const rpc_stream_t *stream) {
    const uint64_t now_ns = kri_clock_ns();
    figures_t figures = {.total_s = (double)(now_ns - stream->created_ns) / 1e9};
    figures.ttft_s = stream->first_ns > 0
                         ? (double)(stream->first_ns - stream->created_ns) / 1e9
                         : figures.total_s;
    const double decode_s = figures.total_s - figures.ttft_s;
    if (decode_s > 0) figures.per_s = (double)stream->n_tokens / decode_s;
    kr_request_stats_t stats;
    kr_request_stats_init(&stats);
    if (kr_request_stats(stream->handle, &stats) == KR_OK) {
        figures.n_prompt = stats.n_prompt;
        figures.n_cached = stats.n_cached;
    }
    return figures;
}

static void put_figures(const rpc_stream_t *stream, const figures_t *figures, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "\"tokens_generated\":%llu,\"tokens_per_second\":%.3f,"
                            "\"time_to_first_token\":%.6f,\"total_time\":%.6f,"
                            "\"prompt_tokens\":%u,\"cached_tokens\":%u",
                            (unsigned long long)stream->n_tokens, figures->per_s, figures->ttft_s,
                            figures->total_s, figures->n_prompt, figures->n_cached);
}

static const char *failure_word(kr_status_t status) {
    switch (status) {
    case KR_E_CANCELLED: return "cancelled";
    case KR_E_TIMEOUT: return "timeout";
    case KR_E_SHUTTING_DOWN: return "shutdown";
    default: return "error";
    }
}

static void name_failure(const rpc_stream_t *stream, rpc_error_t *error) {
    rpc_error_of_status(error, RPC_E_GENERATION, stream->status, &stream->error);
    if (stream->status == KR_E_BUSY) {
        rpc_error_set(error, RPC_E_SERVER, KR_E_BUSY, NULL, "it has waited too long for its turn");
    }
    memcpy(error->model_id, stream->model->name, sizeof error->model_id);
}

static void put_end(rpc_stream_t *stream, const figures_t *figures, kri_buffer_t *out) {
    put_head(stream, "stream.stats", out);
    (void)kri_buffer_append(out, ",", 1);
    put_figures(stream, figures, out);
    (void)kri_buffer_append(out, "}}\n", 3);
    put_head(stream, "stream.event", out);
    if (stream->status == KR_OK) {
        (void)kri_buffer_printf(out, ",\"event\":\"completed\",\"finish_reason\":\"%s\"",
                                stream->finish != NULL ? stream->finish : "eos");
    } else {
        rpc_error_t error;
        name_failure(stream, &error);
        (void)kri_buffer_printf(out, ",\"event\":\"error\",\"finish_reason\":\"%s\",\"error\":",
                                failure_word(stream->status));
        rpc_error_put(&error, out);
    }
    (void)kri_buffer_append(out, ",\"is_final\":true}}\n", 19);
}

static void answer_whole(rpc_stream_t *stream, const figures_t *figures) {
    rpc_call_t *call = stream->call;
    stream->call = NULL;
    if (stream->status != KR_OK) {
        rpc_error_t error;
        name_failure(stream, &error);
        rpc_fail_error(call, &error);
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, RPC_RESULT_BYTES_MAX);
    (void)kri_buffer_printf(&out, "{\"stream_id\":");
    (void)json_put_string(&out, stream->id, strlen(stream->id));
    (void)kri_buffer_printf(&out, ",\"started_at\":%.6f,\"text\":", stream->started_at);
    (void)json_put_string(&out, stream->text.data, stream->text.n_bytes);
    (void)kri_buffer_printf(&out, ",\"finish_reason\":\"%s\",\"stats\":{",
                            stream->finish != NULL ? stream->finish : "eos");
    put_figures(stream, figures, &out);
    (void)kri_buffer_append(&out, "}}", 2);
    rpc_reply(call, &out);
    kri_buffer_deinit(&out);
}

/* ---- the end of a batch ---------------------------------------------------------------------- */

static void count_end(rpc_stream_t *stream, const figures_t *figures) {
    rpc_t *rpc = stream->rpc;
    atomic_fetch_add(&rpc->n_tokens, stream->n_tokens);
    if (stream->status == KR_OK && rpc->calls != NULL) {
        (void)kr_telemetry_record(rpc->calls, "generate", figures->total_s * 1e3);
    }
    if (stream->status == KR_OK || stream->status == KR_E_CANCELLED || !stream->is_stream) return;
    atomic_fetch_add(&rpc->n_errors, 1);
    if (stream->status == KR_E_TIMEOUT) atomic_fetch_add(&rpc->n_timeouts, 1);
}

/* lines: whole ones, each with its newline. */
static void send_lines(rpc_stream_t *stream, const kri_buffer_t *lines) {
    rpc_conn_t *conn = stream->conn;
    (void)pthread_mutex_lock(&conn->lock);
    kr_status_t status = lines->status;
    if (status == KR_OK && lines->n_bytes > 1 && stream->is_announced) {
        rpc_conn_put_locked(conn, lines->data, lines->n_bytes - 1);
    } else if (status == KR_OK) {
        status = kri_buffer_append(&stream->held, lines->data, lines->n_bytes);
    }
    stream->n_sent = stream->n_tokens;
    conn->is_congested = true; /* until the flush says otherwise */
    if (stream->is_ended) {
        stream->is_over = true;
        rpc_stream_leave_locked(stream);
    }
    (void)pthread_mutex_unlock(&conn->lock);
    if (status != KR_OK) rpc_conn_break(conn); /* it must not wait for what cannot be said */
}

static void send_stream(rpc_stream_t *stream) {
    kri_buffer_t lines;
    figures_t figures = {0};
    kri_buffer_init(&lines, RPC_TEXT_BYTES_MAX);
    put_last(stream, false);
    put_chunk(stream, &lines);
    if (stream->is_ended) {
        (void)pthread_mutex_lock(&stream->conn->lock);
        if (stream->status == KR_E_CANCELLED && stream->is_shut_down) {
            stream->status = KR_E_SHUTTING_DOWN;
        }
        (void)pthread_mutex_unlock(&stream->conn->lock);
        figures = measure(stream);
        count_end(stream, &figures);
        if (stream->is_stream) put_end(stream, &figures, &lines);
    }
    send_lines(stream, &lines);
    kri_buffer_deinit(&lines);
    if (!stream->is_ended) return;
    if (!stream->is_stream) answer_whole(stream, &figures);
    rpc_stream_release(stream);
}

/* Nobody who waits for it would gain by more: its first token, its end, and what keeps it from
 * going on. */
static bool is_urgent(rpc_stream_t *stream) {
    if (stream->is_ended || stream->status != KR_OK || stream->finish != NULL) return true;
    (void)pthread_mutex_lock(&stream->conn->lock);
    const bool is_urgent = stream->n_sent == 0 || stream->n_tokens >= stream->given ||
                           stream->n_tokens - stream->n_taken >= RPC_WINDOW / 2;
    (void)pthread_mutex_unlock(&stream->conn->lock);
    return is_urgent;
}

/* Whether what was touched goes now: the next tokens are expected after the time is over. */
static bool is_due(rpc_t *rpc, uint64_t now_ns) {
    if (rpc->has_news) {
        rpc->step_ns = now_ns - rpc->token_ns;
        rpc->token_ns = now_ns;
        rpc->has_news = false;
    }
    if (now_ns + rpc->step_ns >= rpc->sent_ns + RPC_HOLD_NS) return true;
    for (rpc_stream_t *stream = rpc->touched; stream != NULL; stream = stream->touched_next) {
        if (is_urgent(stream)) return true;
    }
    return false;
}

static void send_touched(rpc_t *rpc) {
    for (rpc_stream_t *stream = rpc->touched, *next = NULL; stream != NULL; stream = next) {
        next = stream->touched_next;
        stream->is_touched = false;
        rpc_conn_touch(stream->conn);
        send_stream(stream);
    }
    rpc->touched = NULL;
    for (rpc_conn_t *conn = rpc->touched_conns, *next = NULL; conn != NULL; conn = next) {
        next = conn->touched_next;
        conn->is_touched = false;
        rpc_conn_flush(conn);
        rpc_conn_release(conn);
    }
    rpc->touched_conns = NULL;
}

int rpc_streams_on_batch(void *user) {
    rpc_t *rpc = user;
    if (rpc->touched == NULL) return -1;
    const uint64_t now_ns = kri_clock_ns();
    if (!is_due(rpc, now_ns)) {
        return (int)((rpc->sent_ns + RPC_HOLD_NS - now_ns) / 1000000u) + 1;
    }
    rpc->sent_ns = now_ns;
    send_touched(rpc);
    return -1;
}
