/* embeddings.c: POST /v1/embeddings: one vector of length 1 per input, from the model's last hidden
 * states; "pooling" (our own field) says how: their mean, or the last token's. */
#include "embed.h"
#include "server/endpoints.h"
#include "texts.h"

static void put_entry(job_t *job, uint32_t index, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "%s{\"object\":\"embedding\",\"index\":%u,\"embedding\":",
                            index > 0 ? "," : "", index);
    embed_put_row(job, index, out);
    texts_put(out, "}");
}

static void whole(job_t *job, kri_buffer_t *out) {
    const embed_t *self = job->user;
    texts_put(out, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < job->n_prompts; i++) put_entry(job, i, out);
    texts_put(out, "],\"model\":");
    (void)json_put_string(out, job->model_name, strlen(job->model_name));
    (void)kri_buffer_printf(out, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu},",
                            (unsigned long long)self->n_tokens, (unsigned long long)self->n_tokens);
    job_put_timings(job, out);
    texts_put(out, "}");
}

static const job_style_t style = {
    .drops_body = true, .embedding = embed_take, .whole = whole, .destroy = embed_destroy};

static void read_body(job_t *job, embed_t *self, json_reader_t *reader) {
    static const char *const forms[] = {"float", "base64", NULL};
    static const char *const poolings[] = {"mean", "last", NULL};
    uint32_t form = 0, pooling = 0;
    job_read_fields(job, reader, JOB_FIELD_MODEL | JOB_FIELD_SCHEDULE);
    json_read_word(reader, "encoding_format", forms, &form);
    json_read_word(reader, "pooling", poolings, &pooling);
    json_read_ignored(reader, "user");
    self->is_base64 = form == 1;
    job->pooling = pooling == 1 ? KR_POOLING_LAST : KR_POOLING_MEAN;
    self->model = server_find_model(call_server(job->call), job->model);
    if (!self->model) {
        json_fail(reader, "model_not_found", "model", "there is no model %.200s",
                  job->model ? job->model : "at all");
        return;
    }
    embed_read_dimensions(self, reader);
    embed_read(job, self, reader, "input", true);
    json_finish(reader);
}

void endpoint_embeddings(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "", &style, sizeof(embed_t), &input);
    if (!job) return;
    read_body(job, job->user, &input.reader);
    job->prompt_name = "input";
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}
