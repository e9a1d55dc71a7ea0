/* ollama.c: generations of the Ollama API: fields and options of requests, NDJSON answers. Defaults
 * of sampling are that API's (temperature 0.8, top_k 40, top_p 0.9) but for repeat_penalty, which
 * is off: its 1.1 makes small models avoid the words of the question. Options that choose hardware
 * or memory are the operator's and refused here. */
#include "ollama.h"

#include <stdio.h>
#include <time.h>

#include "texts.h"

/* ---- models -------------------------------------------------------------------------------- */

const server_model_t *ollama_find_model(const server_t *server, const char *name) {
    static const char tag[] = ":latest";
    const size_t n_tag = sizeof tag - 1, n = strlen(name);
    const server_model_t *model = server_find_model(server, name);
    char bare[256];
    if (model || n <= n_tag || n - n_tag >= sizeof bare || strcmp(name + n - n_tag, tag) != 0) {
        return model;
    }
    (void)snprintf(bare, sizeof bare, "%.*s", (int)(n - n_tag), name);
    return server_find_model(server, bare);
}

bool ollama_read_model(call_t *call, json_reader_t *reader, const server_model_t **model,
                       const char **shown) {
    json_require(reader, "model");
    if (!json_read_string(reader, "model", 1, 255, shown, NULL)) return false;
    *model = ollama_find_model(call_server(call), *shown);
    if (!*model) {
        json_fail(reader, "model_not_found", "model", "model '%s' not found", *shown);
        return false;
    }
    return true;
}

/* ---- request ------------------------------------------------------------------------------- */

static void read_float(json_reader_t *options, const char *name, double min, double max,
                       float *value) {
    double number = 0.0;
    if (!json_read_number(options, name, min, max, &number)) return;
    *value = (float)number;
}

/* (0, max]: zero is no neutral value of these. */
static void read_float_over_0(json_reader_t *options, const char *name, double max,
                              float *value) {
    double number = 1.0;
    if (!json_read_number(options, name, 0.0, max, &number)) return;
    if (number > 0.0) *value = (float)number;
    else json_fail(options, "invalid_value", name, "'options.%s' must be over 0", name);
}

void ollama_read_num_ctx(json_reader_t *options, const server_model_t *model) {
    int64_t n = 0;
    const uint32_t n_ctx = model->session.n_ctx;
    if (!json_read_integer(options, "num_ctx", 1, INT32_MAX, &n) || n == n_ctx) return;
    json_fail(options, "unsupported_parameter", "num_ctx",
              "unsupported value of 'options.num_ctx': the model runs with %u, which only its "
              "server's options change", n_ctx);
}

static void read_lengths(job_t *job, json_reader_t *options, const server_model_t *model) {
    int64_t n = 0;
    if (json_read_integer(options, "num_predict", -2, INT32_MAX, &n)) {
        if (n == 0) json_fail(options, "invalid_value", "num_predict",
                              "'options.num_predict' must not be 0");
        job->n_tokens_max = n > 0 ? (uint32_t)n : 0; /* -1, -2: what the context leaves */
    }
    ollama_read_num_ctx(options, model);
}

static void read_options(job_t *job, json_reader_t *reader, const server_model_t *model) {
    json_t *object = NULL;
    json_reader_t options;
    kr_sampler_params_t *sampler = &job->sampler;
    int64_t n = 0;
    if (!json_read_object(reader, "options", &object)) return;
    json_open(&options, object, "options", reader->error);
    read_lengths(job, &options, model);
    read_float(&options, "temperature", 0.0, 2.0, &sampler->temperature);
    if (json_read_integer(&options, "top_k", -1, INT32_MAX, &n)) sampler->top_k = (int32_t)n;
    read_float_over_0(&options, "top_p", 1.0, &sampler->top_p);
    read_float(&options, "min_p", 0.0, 1.0, &sampler->min_p);
    read_float_over_0(&options, "typical_p", 1.0, &sampler->typical_p);
    read_float_over_0(&options, "repeat_penalty", 2.0, &sampler->repeat_penalty);
    read_float(&options, "presence_penalty", -2.0, 2.0, &sampler->presence_penalty);
    read_float(&options, "frequency_penalty", -2.0, 2.0, &sampler->frequency_penalty);
    if (json_read_integer(&options, "repeat_last_n", -1, 1 << 20, &n)) {
        const uint32_t n_ctx = model->session.n_ctx; /* -1 = the context */
        sampler->n_penalty_last = n >= 0 ? (uint32_t)n : n_ctx < 1u << 20 ? n_ctx : 1u << 20;
    }
    /* -1 is that API's word for a random one, which the job has already. */
    if (json_read_integer(&options, "seed", INT64_MIN, INT64_MAX, &n) && n != -1) {
        sampler->seed = (uint64_t)n;
    }
    job_read_stop(job, &options, "stop");
    json_read_neutral(&options, "mirostat", "0");
    json_read_neutral(&options, "penalize_newline", "true");
    json_finish(&options);
}

/* "0", "0s", "0m", ...: no digit but zeros. */
static bool is_zero(const json_t *keep_alive) {
    if (json_is_number(keep_alive)) return json_number_value(keep_alive) == 0.0;
    return strpbrk(json_string_value(keep_alive), "123456789") == NULL;
}

bool ollama_read_keep_alive(json_reader_t *reader) {
    json_t *value = NULL;
    if (!json_read_any(reader, "keep_alive", &value)) return false;
    if (json_is_string(value) || json_is_number(value)) return is_zero(value);
    json_fail(reader, "invalid_value", "keep_alive",
              "'keep_alive' must be a duration such as \"5m\" or a number of seconds");
    return false;
}

void ollama_read_fields(job_t *job, json_reader_t *reader, const server_model_t *model) {
    ollama_t *self = job->user;
    job->is_stream = call_can_stream(job->call); /* unless the body says no */
    job_read_fields(job, reader, JOB_FIELD_STREAM | JOB_FIELD_OWN);
    read_options(job, reader, model);
    self->is_unload = ollama_read_keep_alive(reader);
    json_read_neutral(reader, "format", "\"\"");
    json_read_neutral(reader, "think", "false");
    json_read_neutral(reader, "logprobs", "false");
    json_read_neutral(reader, "top_logprobs", "0");
    json_read_neutral(reader, "truncate", "false");
    json_read_neutral(reader, "shift", "false");
}

/* ---- answer -------------------------------------------------------------------------------- */

void ollama_put_time(int64_t seconds, int64_t ns, kri_buffer_t *out) {
    const time_t time = (time_t)seconds;
    struct tm parts;
    char text[32] = "1970-01-01T00:00:00";
    if (gmtime_r(&time, &parts)) (void)strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    (void)kri_buffer_printf(out, "\"%s.%09lldZ\"", text, (long long)ns);
}

void ollama_put_now(kri_buffer_t *out) {
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    ollama_put_time(now.tv_sec, now.tv_nsec, out);
}

unsigned long long ollama_ns(double ms) {
    return ms > 0.0 && ms < 9e12 ? (unsigned long long)(ms * 1e6) : 0;
}

void ollama_reply(call_t *call, kri_buffer_t *out) {
    if (out->status == KR_OK) call_reply_json(call, 200, out);
    else call_fail_status(call, out->status, NULL);
    kri_buffer_deinit(out);
}

/* {"model":...,"created_at":...,"message":{...} or "response":..., up to "done". */
static void put_head(const job_t *job, const char *text, size_t n_bytes, kri_buffer_t *out) {
    const ollama_t *self = job->user;
    texts_put(out, "{\"model\":");
    (void)json_put_string(out, self->shown, strlen(self->shown));
    texts_put(out, ",\"created_at\":");
    ollama_put_now(out);
    texts_put(out, self->is_chat ? ",\"message\":{\"role\":\"assistant\",\"content\":"
                                 : ",\"response\":");
    (void)json_put_string(out, text, n_bytes);
    texts_put(out, self->is_chat ? "}," : ",");
}

/* The rest of the last line. load_duration: models are loaded before the server serves. */
static void put_tail(job_t *job, kri_buffer_t *out) {
    const job_usage_t *usage = &job->usage;
    (void)kri_buffer_printf(
        out,
        "\"done\":true,\"done_reason\":\"%s\",\"total_duration\":%llu,\"load_duration\":0,"
        "\"prompt_eval_count\":%llu,\"prompt_eval_duration\":%llu,\"eval_count\":%llu,"
        "\"eval_duration\":%llu,",
        job_finish_word(job->choices[0].finish), ollama_ns(usage->total_ms),
        (unsigned long long)usage->n_prompt, ollama_ns(usage->prefill_ms),
        (unsigned long long)usage->n_generated, ollama_ns(usage->decode_ms));
    job_put_timings(job, out);
    texts_put(out, "}");
}

static void put_line(const job_t *job, const kr_event_t *event, kri_buffer_t *out) {
    if (event->text_bytes == 0) return;
    put_head(job, event->text, event->text_bytes, out);
    texts_put(out, "\"done\":false}\n");
}

static void token(job_t *job, job_choice_t *choice, const kr_event_t *event, kri_buffer_t *out) {
    (void)choice;
    put_line(job, event, out);
}

static void done(job_t *job, kri_buffer_t *out) {
    put_head(job, "", 0, out);
    put_tail(job, out);
    texts_put(out, "\n");
}

static void failed(job_t *job, kr_status_t status, const kr_error_t *error, kri_buffer_t *out) {
    call_error_body(job->call, status, error, out);
    texts_put(out, "\n");
}

static void whole(job_t *job, kri_buffer_t *out) {
    const kri_buffer_t *text = &job->choices[0].text;
    put_head(job, text->data, text->n_bytes, out);
    put_tail(job, out);
}

static const job_style_t style = {
    .content_type = "application/x-ndjson",
    .drops_body = true,
    .token = token,
    .choice = token,
    .done = done,
    .failed = failed,
    .whole = whole,
};

job_t *ollama_create(call_t *call, json_reader_t *reader, bool is_chat,
                     const server_model_t **model) {
    const char *shown = NULL;
    job_t *job = job_create(call, "", &style);
    if (!job) return NULL;
    ollama_t *self = job_alloc(job, sizeof *self);
    if (!self) texts_no_memory(reader);
    else ollama_read_model(call, reader, model, &shown);
    if (job_refuse_mistake(job, reader->error)) return NULL;
    *self = (ollama_t){.is_chat = is_chat};
    job->user = self;
    job->model = (*model)->name;
    self->shown = texts_copy(job, reader, shown, strlen(shown));
    job->length_name = "options.num_predict";
    job->sampler.temperature = 0.8f;
    job->sampler.top_k = 40;
    job->sampler.top_p = 0.9f;
    return job;
}

void ollama_reply_loaded(job_t *job) {
    const ollama_t *self = job->user;
    kri_buffer_t out;
    if (self->is_unload) {
        call_fail(job->call, "unsupported_parameter", "keep_alive",
                  "unsupported: this server keeps its models loaded ('keep_alive' 0 without a "
                  "prompt asks to unload)");
        job_discard(job);
        return;
    }
    kri_buffer_init(&out, OLLAMA_OUT_BYTES_MAX);
    put_head(job, "", 0, &out);
    texts_put(&out, "\"done\":true,\"done_reason\":\"load\"}");
    ollama_reply(job->call, &out);
    job_discard(job);
}
