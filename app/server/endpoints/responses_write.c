/* responses_write.c: response objects and the typed events of their streams. One output item, a
 * message with one text part. Item ids are the response's with another prefix. */
#include "responses.h"

static void put_string(const char *text, size_t n_bytes, kri_buffer_t *out) {
    (void)json_put_string(out, text, n_bytes);
}

static void put_item_id(const job_t *job, kri_buffer_t *out) {
    const char *letters = strchr(job->id, '_');
    (void)kri_buffer_printf(out, "\"msg%s\"", letters ? letters : "_");
}

/* ---- the object ---------------------------------------------------------------------------- */

static const char *state_word(responses_state_t state) {
    switch (state) {
    case RESPONSES_COMPLETED: return "completed";
    case RESPONSES_INCOMPLETE: return "incomplete";
    case RESPONSES_FAILED: return "failed";
    case RESPONSES_IN_PROGRESS: break;
    }
    return "in_progress";
}

responses_state_t responses_end_state(const job_t *job) {
    const bool is_cut = job->choices[0].finish == KR_FINISH_LENGTH;
    return is_cut ? RESPONSES_INCOMPLETE : RESPONSES_COMPLETED;
}

static void put_part(const kri_buffer_t *text, kri_buffer_t *out) {
    texts_put(out, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":");
    put_string(text ? text->data : "", text ? text->n_bytes : 0, out);
    texts_put(out, "}");
}

static void put_item(const job_t *job, responses_state_t state, kri_buffer_t *out) {
    texts_put(out, "{\"id\":");
    put_item_id(job, out);
    (void)kri_buffer_printf(out, ",\"type\":\"message\",\"status\":\"%s\",\"role\":\"assistant\","
                                 "\"content\":[", state_word(state));
    if (state != RESPONSES_IN_PROGRESS) put_part(&job->choices[0].text, out);
    texts_put(out, "]}");
}

static void put_usage(const job_t *job, kri_buffer_t *out) {
    const job_usage_t *usage = &job->usage;
    (void)kri_buffer_printf(
        out,
        ",\"usage\":{\"input_tokens\":%llu,\"input_tokens_details\":{\"cached_tokens\":%llu},"
        "\"output_tokens\":%llu,\"output_tokens_details\":{\"reasoning_tokens\":0},"
        "\"total_tokens\":%llu},",
        (unsigned long long)usage->n_prompt, (unsigned long long)usage->n_cached,
        (unsigned long long)usage->n_generated,
        (unsigned long long)(usage->n_prompt + usage->n_generated));
    job_put_timings((job_t *)(uintptr_t)job, out);
}

static void put_error(const responses_job_t *self, responses_state_t state, kri_buffer_t *out) {
    if (state != RESPONSES_FAILED) {
        texts_put(out, ",\"error\":null");
        return;
    }
    (void)kri_buffer_printf(out, ",\"error\":{\"code\":\"%s\",\"message\":", self->error_code);
    put_string(self->error_message, strlen(self->error_message), out);
    texts_put(out, "}");
}

/* What the request said, repeated. */
static void put_settings(const job_t *job, const responses_job_t *self, kri_buffer_t *out) {
    texts_put(out, ",\"instructions\":");
    if (self->instructions) put_string(self->instructions, self->instructions_bytes, out);
    else texts_put(out, "null");
    texts_put(out, ",\"max_output_tokens\":");
    if (job->n_tokens_max) (void)kri_buffer_printf(out, "%u", job->n_tokens_max);
    else texts_put(out, "null");
    texts_put(out, ",\"previous_response_id\":");
    if (self->previous_id) put_string(self->previous_id, strlen(self->previous_id), out);
    else texts_put(out, "null");
    texts_put(out, ",\"temperature\":");
    (void)json_put_float(out, job->sampler.temperature);
    texts_put(out, ",\"top_p\":");
    (void)json_put_float(out, job->sampler.top_p);
    (void)kri_buffer_printf(
        out,
        ",\"metadata\":%s,\"parallel_tool_calls\":%s,\"tool_choice\":\"%s\",\"tools\":[],"
        "\"max_tool_calls\":null,\"text\":{\"format\":{\"type\":\"text\"},"
        "\"verbosity\":\"medium\"},\"reasoning\":{\"effort\":null,\"summary\":null},"
        "\"truncation\":\"disabled\",\"top_logprobs\":0,\"background\":false,"
        "\"service_tier\":\"default\",\"store\":%s",
        self->metadata, self->has_parallel_tools ? "true" : "false", self->tool_choice,
        self->is_stored ? "true" : "false");
}

void responses_put(job_t *job, responses_state_t state, kri_buffer_t *out) {
    const responses_job_t *self = job->user;
    const bool has_ended = state == RESPONSES_COMPLETED || state == RESPONSES_INCOMPLETE;
    (void)kri_buffer_printf(
        out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\","
             "\"model\":", job->id, (long long)job->created, state_word(state));
    put_string(job->model_name, strlen(job->model_name), out);
    put_error(self, state, out);
    texts_put(out, state == RESPONSES_INCOMPLETE
                       ? ",\"incomplete_details\":{\"reason\":\"max_output_tokens\"}"
                       : ",\"incomplete_details\":null");
    put_settings(job, self, out);
    texts_put(out, ",\"output\":[");
    if (has_ended) put_item(job, state, out);
    texts_put(out, "]");
    if (has_ended) put_usage(job, out);
    else texts_put(out, ",\"usage\":null");
    texts_put(out, "}");
}

/* ---- events -------------------------------------------------------------------------------- */

/* Up to and with the number; the rest follows a comma. */
static void put_event_head(job_t *job, const char *type, kri_buffer_t *out) {
    responses_job_t *self = job->user;
    (void)kri_buffer_printf(out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%llu",
                            type, type, (unsigned long long)self->n_events++);
}

/* The same with the place of the text part. */
static void put_part_head(job_t *job, const char *type, kri_buffer_t *out) {
    put_event_head(job, type, out);
    texts_put(out, ",\"item_id\":");
    put_item_id(job, out);
    texts_put(out, ",\"output_index\":0,\"content_index\":0");
}

void responses_put_event(job_t *job, const char *type, responses_state_t state,
                         kri_buffer_t *out) {
    put_event_head(job, type, out);
    texts_put(out, ",\"response\":");
    responses_put(job, state, out);
    texts_put(out, "}\n\n");
}

static void put_item_event(job_t *job, const char *type, responses_state_t state,
                           kri_buffer_t *out) {
    put_event_head(job, type, out);
    texts_put(out, ",\"output_index\":0,\"item\":");
    put_item(job, state, out);
    texts_put(out, "}\n\n");
}

static void put_part_event(job_t *job, const char *type, const kri_buffer_t *text,
                           kri_buffer_t *out) {
    put_part_head(job, type, out);
    texts_put(out, ",\"part\":");
    put_part(text, out);
    texts_put(out, "}\n\n");
}

void responses_put_begin(job_t *job, kri_buffer_t *out) {
    responses_put_event(job, "response.created", RESPONSES_IN_PROGRESS, out);
    responses_put_event(job, "response.in_progress", RESPONSES_IN_PROGRESS, out);
    put_item_event(job, "response.output_item.added", RESPONSES_IN_PROGRESS, out);
    put_part_event(job, "response.content_part.added", NULL, out);
}

void responses_put_delta(job_t *job, const kr_event_t *event, kri_buffer_t *out) {
    if (event->text_bytes == 0) return;
    put_part_head(job, "response.output_text.delta", out);
    texts_put(out, ",\"logprobs\":[],\"delta\":");
    put_string(event->text, event->text_bytes, out);
    texts_put(out, "}\n\n");
}

void responses_put_ended(job_t *job, kri_buffer_t *out) {
    const kri_buffer_t *text = &job->choices[0].text;
    put_part_head(job, "response.output_text.done", out);
    texts_put(out, ",\"logprobs\":[],\"text\":");
    put_string(text->data, text->n_bytes, out);
    texts_put(out, "}\n\n");
    put_part_event(job, "response.content_part.done", text, out);
    put_item_event(job, "response.output_item.done", responses_end_state(job), out);
}
