/* responses.c: POST /v1/responses, and the answers that are kept: GET and DELETE
 * /v1/responses/{id}. A response is in the store before its last byte is sent, so that the next
 * request can name it. One that fails late is not kept. */
#include "responses.h"

#include "server/endpoints.h"
#include "server/errors.h"
#include "server/server.h"

#define BODY_BYTES_MAX ((size_t)128 << 20)

/* ---- keeping ------------------------------------------------------------------------------- */

static kr_status_t keep_body(job_t *job, const kri_buffer_t *body) {
    responses_job_t *self = job->user;
    const job_choice_t *choice = &job->choices[0];
    const size_t n_skipped = self->instructions ? 1 : 0;
    texts_list_t *list = &self->list;
    list->messages[list->n] =
        (kr_message_t){.role = "assistant", .content = choice->text.data ? choice->text.data : "",
                       .content_bytes = choice->text.n_bytes};
    response_t response = {
        .key_id = call_principal(job->call)->key_id,
        .messages = list->messages + n_skipped,
        .n_messages = (uint32_t)(list->n + 1 - n_skipped),
        .body = body->data,
        .body_bytes = body->n_bytes,
    };
    memcpy(response.id, job->id, sizeof response.id);
    return responses_store_put(call_server(job->call)->responses, &response);
}

/* What cannot be kept says "store": false. */
static void keep(job_t *job) {
    responses_job_t *self = job->user;
    kri_buffer_t body;
    if (!self->is_stored) return;
    kri_buffer_init(&body, BODY_BYTES_MAX);
    responses_put(job, responses_end_state(job), &body);
    self->is_stored = body.status == KR_OK && keep_body(job, &body) == KR_OK;
    kri_buffer_deinit(&body);
}

/* ---- style --------------------------------------------------------------------------------- */

static void whole(job_t *job, kri_buffer_t *out) {
    keep(job);
    responses_put(job, responses_end_state(job), out);
}

static void token(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out) {
    (void)choice;
    responses_put_delta(job, event, out);
}

static void ended(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out) {
    (void)choice;
    responses_put_delta(job, event, out);
    responses_put_ended(job, out);
}

static void done(job_t *job, kri_buffer_t *out) {
    const responses_state_t state = responses_end_state(job);
    keep(job);
    responses_put_event(job, state == RESPONSES_COMPLETED ? "response.completed"
                                                          : "response.incomplete", state, out);
}

static void failed(job_t *job, kr_status_t status, const kr_error_t *error, kri_buffer_t *out) {
    responses_job_t *self = job->user;
    const error_row_t *row = error_of_status(status);
    self->is_stored = false;
    self->error_code = row->code;
    self->error_message = row->fixed_text ? row->fixed_text : error ? error->message : "";
    responses_put_event(job, "response.failed", RESPONSES_FAILED, out);
}

static void destroy(job_t *job) {
    const responses_job_t *self = job->user;
    if (self) responses_store_release(self->previous);
}

static const job_style_t style = {
    .content_type = "text/event-stream",
    .keeps_text = true,
    .drops_body = true,
    .begin = responses_put_begin,
    .token = token,
    .choice = ended,
    .done = done,
    .failed = failed,
    .whole = whole,
    .destroy = destroy,
};

/* ---- endpoints ----------------------------------------------------------------------------- */

void endpoint_responses(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "resp_", &style, sizeof(responses_job_t), &input);
    if (!job) return;
    responses_read(job, job->user, &input.reader);
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}

static void not_found(call_t *call) {
    call_fail(call, "response_not_found", "response_id", "response with id '%.64s' not found",
              call_tail(call));
}

void endpoint_response(call_t *call) {
    const response_t *response = responses_store_get(call_server(call)->responses, call_tail(call),
                                                     call_principal(call)->key_id);
    if (response) call_reply(call, 200, "application/json", response->body, response->body_bytes);
    else not_found(call);
    responses_store_release(response);
}

void endpoint_response_delete(call_t *call) {
    const bool found = responses_store_delete(call_server(call)->responses, call_tail(call),
                                              call_principal(call)->key_id);
    if (!found) {
        not_found(call);
        return;
    }
    kri_buffer_t out;
    kri_buffer_init(&out, 1024);
    texts_put(&out, "{\"id\":");
    (void)json_put_string(&out, call_tail(call), strlen(call_tail(call)));
    texts_put(&out, ",\"object\":\"response\",\"deleted\":true}");
    if (out.status == KR_OK) call_reply_json(call, 200, &out);
    else call_fail_status(call, out.status, NULL);
    kri_buffer_deinit(&out);
}
