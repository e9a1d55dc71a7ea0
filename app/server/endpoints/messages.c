/* messages.c: POST /v1/messages of the Anthropic API. One text block per answer. input_tokens are
 * those that had to be computed, cache_read_input_tokens those found in the prefix cache; together
 * they are the prompt. */
#include "anthropic.h"
#include "server/endpoints.h"
#include "texts.h"

/* ---- request ------------------------------------------------------------------------------- */

static void read_stops(job_t *job, json_reader_t *reader) {
    json_t *stops = NULL;
    if (!json_read_array(reader, "stop_sequences", 0, 16, &stops)) return;
    if (json_array_size(stops) > 0) job_read_stop(job, reader, "stop_sequences");
}

static void read_sampling(job_t *job, json_reader_t *reader) {
    static const char *const tiers[] = {"auto", "standard_only", NULL};
    int64_t n = 0;
    double temperature = 1.0;
    uint32_t tier = 0;
    json_require(reader, "max_tokens");
    if (json_read_integer(reader, "max_tokens", 1, INT32_MAX, &n)) {
        job->n_tokens_max = (uint32_t)n;
    }
    json_read_number(reader, "temperature", 0.0, 1.0, &temperature); /* this API's bound */
    job_read_fields(job, reader, JOB_FIELD_SAMPLING | JOB_FIELD_STREAM | JOB_FIELD_OWN);
    read_stops(job, reader);
    json_read_ignored(reader, "metadata");
    json_read_word(reader, "service_tier", tiers, &tier);
}

/* ---- answer -------------------------------------------------------------------------------- */

static void put_usage(const job_t *job, kri_buffer_t *out) {
    const job_usage_t *usage = &job->usage;
    (void)kri_buffer_printf(
        out,
        "\"usage\":{\"input_tokens\":%llu,\"cache_creation_input_tokens\":0,"
        "\"cache_read_input_tokens\":%llu,\"output_tokens\":%llu}",
        (unsigned long long)(usage->n_prompt - usage->n_cached),
        (unsigned long long)usage->n_cached, (unsigned long long)usage->n_generated);
}

/* Up to and with "model". */
static void put_head(const job_t *job, kri_buffer_t *out) {
    (void)kri_buffer_printf(
        out, "\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", job->id);
    (void)json_put_string(out, job->model_name, strlen(job->model_name));
}

/* "stop_reason":...,"stop_sequence":... */
static void put_stop(const job_t *job, kri_buffer_t *out) {
    const job_choice_t *choice = &job->choices[0];
    const char *reason = choice->finish == KR_FINISH_LENGTH ? "max_tokens"
                         : choice->finish == KR_FINISH_STOP ? "stop_sequence" : "end_turn";
    (void)kri_buffer_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":", reason);
    if (choice->stop < 0) {
        texts_put(out, "null");
    } else {
        const char *stop = job->stops[choice->stop];
        (void)json_put_string(out, stop, strlen(stop));
    }
}

static void whole(job_t *job, kri_buffer_t *out) {
    const kri_buffer_t *text = &job->choices[0].text;
    texts_put(out, "{");
    put_head(job, out);
    texts_put(out, ",\"content\":[{\"type\":\"text\",\"text\":");
    (void)json_put_string(out, text->data, text->n_bytes);
    texts_put(out, "}],");
    put_stop(job, out);
    texts_put(out, ",");
    put_usage(job, out);
    texts_put(out, ",");
    job_put_timings(job, out);
    texts_put(out, "}");
}

/* ---- stream -------------------------------------------------------------------------------- */

static void begin(job_t *job, kri_buffer_t *out) {
    texts_put(out, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{");
    put_head(job, out);
    texts_put(out, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,");
    put_usage(job, out);
    texts_put(out, "}}\n\n"
                   "event: content_block_start\n"
                   "data: {\"type\":\"content_block_start\",\"index\":0,"
                   "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
                   "event: ping\ndata: {\"type\":\"ping\"}\n\n");
}

static void put_delta(const kr_event_t *event, kri_buffer_t *out) {
    if (event->text_bytes == 0) return;
    texts_put(out, "event: content_block_delta\n"
                   "data: {\"type\":\"content_block_delta\",\"index\":0,"
                   "\"delta\":{\"type\":\"text_delta\",\"text\":");
    (void)json_put_string(out, event->text, event->text_bytes);
    texts_put(out, "}}\n\n");
}

static void token(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out) {
    (void)job;
    (void)choice;
    put_delta(event, out);
}

static void ended(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out) {
    (void)job;
    (void)choice;
    put_delta(event, out);
    texts_put(out, "event: content_block_stop\n"
                   "data: {\"type\":\"content_block_stop\",\"index\":0}\n\n");
}

static void done(job_t *job, kri_buffer_t *out) {
    texts_put(out, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
    put_stop(job, out);
    texts_put(out, "},");
    put_usage(job, out);
    texts_put(out, ",");
    job_put_timings(job, out);
    texts_put(out, "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

static void failed(job_t *job, kr_status_t status, const kr_error_t *error, kri_buffer_t *out) {
    texts_put(out, "event: error\ndata: ");
    call_error_body(job->call, status, error, out);
    texts_put(out, "\n\n");
}

static const job_style_t style = {
    .content_type = "text/event-stream",
    .drops_body = true,
    .begin = begin,
    .token = token,
    .choice = ended,
    .done = done,
    .failed = failed,
    .whole = whole,
};

void endpoint_messages(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "msg_", &style, 0, &input);
    if (!job) return;
    if (anthropic_read_prompt(job, &input.reader)) read_sampling(job, &input.reader);
    json_finish(&input.reader);
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}
