/* ollama_embed.c: POST /api/embed: vectors of length 1, mean pooling. Inputs that are too long are
 * refused, never cut: "truncate" is accepted as false. */
#include "embed.h"
#include "ollama.h"
#include "server/endpoints.h"
#include "texts.h"

typedef struct ollama_embed_s {
    embed_t embed;             /* first: embed_take */
    const char *shown;         /* model as asked for */
} ollama_embed_t;

static void whole(job_t *job, kri_buffer_t *out) {
    const ollama_embed_t *self = job->user;
    texts_put(out, "{\"model\":");
    (void)json_put_string(out, self->shown, strlen(self->shown));
    texts_put(out, ",\"embeddings\":[");
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        if (i > 0) texts_put(out, ",");
        embed_put_row(job, i, out);
    }
    (void)kri_buffer_printf(
        out, "],\"total_duration\":%llu,\"load_duration\":0,\"prompt_eval_count\":%llu,",
        ollama_ns(job->usage.total_ms), (unsigned long long)self->embed.n_tokens);
    job_put_timings(job, out);
    texts_put(out, "}");
}

static const job_style_t style = {
    .drops_body = true, .embedding = embed_take, .whole = whole, .destroy = embed_destroy};

/* Of all options only the context's length means something here. */
static void read_options(const embed_t *self, json_reader_t *reader) {
    json_t *object = NULL;
    json_reader_t options;
    if (!json_read_object(reader, "options", &object)) return;
    json_open(&options, object, "options", reader->error);
    ollama_read_num_ctx(&options, self->model);
    json_finish(&options);
}

static void read_body(job_t *job, ollama_embed_t *self, json_reader_t *reader) {
    embed_t *embed = &self->embed;
    const char *shown = NULL;
    if (!ollama_read_model(job->call, reader, &embed->model, &shown)) return;
    self->shown = texts_copy(job, reader, shown, strlen(shown));
    job->model = embed->model->name;
    job->pooling = KR_POOLING_MEAN;
    job_read_fields(job, reader, JOB_FIELD_SCHEDULE);
    read_options(embed, reader);
    (void)ollama_read_keep_alive(reader);
    json_read_neutral(reader, "truncate", "false");
    embed_read_dimensions(embed, reader);
    embed_read(job, embed, reader, "input", false);
    json_finish(reader);
}

void endpoint_ollama_embed(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "", &style, sizeof(ollama_embed_t), &input);
    if (!job) return;
    read_body(job, job->user, &input.reader);
    job->prompt_name = "input";
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}
