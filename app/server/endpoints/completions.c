/* completions.c: POST /v1/completions in OpenAI's form. */
#include <stdlib.h>
#include <string.h>

#include "openai.h"
#include "server/endpoints.h"

#define TOKENS_MAX_DEFAULT 16u
#define ECHO_BYTES_MAX 131072u
#define ECHO_TEXT_BYTES_MAX ((size_t)64 << 20)
#define TOKEN_BYTES 16u /* of text, assumed */

typedef struct echo_s {
    kri_buffer_t text;         /* of a prompt */
    const kr_token_t *tokens;  /* not yet spelled: they need the model; the job's memory */
    size_t n_tokens;
} echo_t;

typedef struct completions_s {
    openai_job_t openai;       /* first */
    bool echo;
    echo_t *echoes;            /* [n_prompts] with echo, else NULL */
} completions_t;

/* ---- answers --------------------------------------------------------------------------------- */

static uint64_t count_chars(const char *text, size_t n_bytes) {
    uint64_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) n += ((unsigned char)text[i] & 0xC0) != 0x80;
    return n;
}

static uint32_t index_of(const job_t *job, const job_choice_t *choice) {
    return choice->prompt * job->n_choices + choice->choice;
}

/* One name of an object can stand only once: the first, more likely one, stays. */
static void put_tops(job_t *job, const kr_logprob_t *tops, uint32_t n_tops, kri_buffer_t *out) {
    kri_buffer_t names[20];
    uint32_t n = 0;
    texts_put(out, "{");
    for (uint32_t i = 0; i < n_tops && i < 20 && tops[i].token >= 0; i++) {
        kri_buffer_t *name = &names[n];
        bool is_new = true;
        kri_buffer_init(name, 65536);
        job_put_token(job, tops[i].token, name);
        if (name->status != KR_OK) out->status = name->status;
        for (uint32_t k = 0; k < n && name->data != NULL; k++) {
            if (strcmp(names[k].data, name->data) == 0) is_new = false;
        }
        if (!is_new || name->data == NULL) {
            kri_buffer_deinit(name);
            continue;
        }
        if (n++ > 0) texts_put(out, ",");
        (void)kri_buffer_append(out, name->data, name->n_bytes);
        texts_put(out, ":");
        openai_put_logprob(tops[i].logprob, out);
    }
    for (uint32_t k = 0; k < n; k++) kri_buffer_deinit(&names[k]);
    texts_put(out, "}");
}

static void put_chunk_head(job_t *job, const job_choice_t *choice, kri_buffer_t *out) {
    openai_put_chunk(job, out);
    (void)kri_buffer_printf(out, "\"choices\":[{\"index\":%u,\"text\":", index_of(job, choice));
}

/* Token ids to the text that echo says. */
static void spell(const job_t *job, echo_t *echo, kri_buffer_t *out) {
    size_t n_bytes = 0;
    if (echo->tokens == NULL) return;
    (void)kr_model_detokenize(job->model_handle, echo->tokens, echo->n_tokens, 0, NULL, 0, &n_bytes,
                              NULL);
    char *text = calloc(1, n_bytes + 1);
    kr_status_t status = text == NULL ? KR_E_NOMEM : KR_OK;
    if (status == KR_OK && n_bytes > 0) {
        status = kr_model_detokenize(job->model_handle, echo->tokens, echo->n_tokens, 0, text,
                                     n_bytes, &n_bytes, NULL);
    }
    if (status == KR_OK) status = kri_buffer_append(&echo->text, text, n_bytes);
    if (status != KR_OK) out->status = status;
    free(text);
    echo->tokens = NULL;
}

static void spell_echoes(job_t *job, kri_buffer_t *out) {
    completions_t *own = job->user;
    for (uint32_t i = 0; own->echoes != NULL && i < job->n_prompts; i++) {
        spell(job, &own->echoes[i], out);
    }
}

/* Keeps what echo will need: the body is gone by then. */
static void keep_echoes(job_t *job, json_reader_t *reader) {
    completions_t *own = job->user;
    if (!own->echo || reader->error->is_set) return;
    own->echoes = job_alloc(job, job->n_prompts * sizeof *own->echoes);
    kr_status_t status = own->echoes == NULL ? KR_E_NOMEM : KR_OK;
    for (uint32_t i = 0; status == KR_OK && i < job->n_prompts; i++) {
        const job_prompt_t *prompt = &job->prompts[i];
        echo_t *echo = &own->echoes[i];
        kri_buffer_init(&echo->text, ECHO_TEXT_BYTES_MAX);
        echo->tokens = prompt->tokens;
        echo->n_tokens = prompt->n_tokens;
        if (prompt->text != NULL) {
            status = kri_buffer_append(&echo->text, prompt->text, prompt->n_bytes);
        }
    }
    if (status != KR_OK) texts_no_memory(reader);
}

static void on_begin(job_t *job, kri_buffer_t *out) {
    const completions_t *own = job->user;
    if (!openai_begin(job, "text_completion", out) || own->echoes == NULL) return;
    spell_echoes(job, out);
    for (uint32_t i = 0; i < job->n_choices_all; i++) {
        const job_choice_t *choice = &job->choices[i];
        const kri_buffer_t *text = &own->echoes[choice->prompt].text;
        put_chunk_head(job, choice, out);
        (void)json_put_string(out, text->data != NULL ? text->data : "", text->n_bytes);
        texts_put(out, ",\"logprobs\":null,\"finish_reason\":null}]");
        openai_put_tail(job, out);
    }
}

static void on_token(job_t *job, job_choice_t *choice, const kr_event_t *event,
                     kri_buffer_t *out) {
    if (event->text_bytes == 0 && job->n_tops < 0) return;
    put_chunk_head(job, choice, out);
    (void)json_put_string(out, event->text, event->text_bytes);
    texts_put(out, ",\"logprobs\":");
    if (job->n_tops < 0) {
        texts_put(out, "null");
    } else {
        const uint32_t n_wanted = (uint32_t)job->n_tops;
        const uint32_t n_tops = event->n_logprobs < n_wanted ? event->n_logprobs : n_wanted;
        const uint64_t offset = choice->n_chars - count_chars(event->text, event->text_bytes);
        texts_put(out, "{\"tokens\":[");
        job_put_token(job, event->token, out);
        texts_put(out, "],\"token_logprobs\":[");
        openai_put_logprob(event->logprob, out);
        texts_put(out, "],\"top_logprobs\":[");
        put_tops(job, event->logprobs, n_tops, out);
        (void)kri_buffer_printf(out, "],\"text_offset\":[%llu]}", (unsigned long long)offset);
    }
    texts_put(out, ",\"finish_reason\":null}]");
    openai_put_tail(job, out);
}

static void on_choice(job_t *job, job_choice_t *choice, const kr_event_t *event,
                      kri_buffer_t *out) {
    put_chunk_head(job, choice, out);
    (void)json_put_string(out, event->text, event->text_bytes);
    (void)kri_buffer_printf(out, ",\"logprobs\":null,\"finish_reason\":\"%s\"}],",
                            job_finish_word(choice->finish));
    job_put_timings(job, out);
    openai_put_tail(job, out);
}

static void put_logprobs(job_t *job, const job_choice_t *choice, kri_buffer_t *out) {
    const uint32_t n = choice->n_tokens, n_tops = (uint32_t)job->n_tops;
    texts_put(out, "{\"tokens\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) texts_put(out, ",");
        job_put_token(job, choice->tokens[i], out);
    }
    texts_put(out, "],\"token_logprobs\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) texts_put(out, ",");
        openai_put_logprob(choice->logprobs[i], out);
    }
    texts_put(out, "],\"top_logprobs\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0) texts_put(out, ",");
        put_tops(job, n_tops > 0 ? choice->tops + (size_t)i * n_tops : NULL, n_tops, out);
    }
    texts_put(out, "],\"text_offset\":[");
    for (uint32_t i = 0; i < n; i++) {
        (void)kri_buffer_printf(out, i > 0 ? ",%llu" : "%llu",
                                (unsigned long long)choice->text_starts[i]);
    }
    texts_put(out, "]}");
}

static void put_choice(job_t *job, const job_choice_t *choice, kri_buffer_t *out) {
    const completions_t *own = job->user;
    kri_buffer_t text;
    kri_buffer_init(&text, (size_t)128 << 20);
    if (own->echoes != NULL) {
        const kri_buffer_t *echo = &own->echoes[choice->prompt].text;
        (void)kri_buffer_append(&text, echo->data, echo->n_bytes);
    }
    (void)kri_buffer_append(&text, choice->text.data, choice->text.n_bytes);
    if (text.status != KR_OK) out->status = text.status;
    (void)kri_buffer_printf(out, "{\"index\":%u,\"text\":", index_of(job, choice));
    (void)json_put_string(out, text.data != NULL ? text.data : "", text.n_bytes);
    kri_buffer_deinit(&text);
    texts_put(out, ",\"logprobs\":");
    if (job->n_tops < 0) texts_put(out, "null");
    else put_logprobs(job, choice, out);
    (void)kri_buffer_printf(out, ",\"finish_reason\":\"%s\"}", job_finish_word(choice->finish));
}

static void on_whole(job_t *job, kri_buffer_t *out) {
    spell_echoes(job, out);
    openai_put_whole(job, "text_completion", put_choice, out);
}

static void on_destroy(job_t *job) {
    const completions_t *own = job->user;
    if (own == NULL) return;
    for (uint32_t i = 0; own->echoes != NULL && i < job->n_prompts; i++) {
        kri_buffer_deinit(&own->echoes[i].text);
    }
    openai_destroy(job);
}

static const job_style_t style = {
    .content_type = "text/event-stream", .drops_body = true, .begin = on_begin, .token = on_token,
    .choice = on_choice, .done = openai_put_done, .failed = openai_put_failed, .whole = on_whole,
    .destroy = on_destroy};

/* ---- requests -------------------------------------------------------------------------------- */

/* An array of token ids. path: what it is called in a message. */
static void read_tokens(job_t *job, json_reader_t *reader, const char *path, json_t *array,
                        job_prompt_t *prompt) {
    const size_t n = json_array_size(array);
    if (n == 0) {
        json_fail(reader, "invalid_value", path, "%s is empty", path);
        return;
    }
    kr_token_t *tokens = job_alloc(job, n * sizeof *tokens);
    if (tokens == NULL) {
        texts_no_memory(reader);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *value = json_array_get(array, i);
        const json_int_t token = json_is_integer(value) ? json_integer_value(value) : -1;
        if (token < 0 || token > INT32_MAX) {
            json_fail(reader, "invalid_value", path, "%s: element %zu is no token id", path, i);
            return;
        }
        tokens[i] = (kr_token_t)token;
    }
    *prompt = (job_prompt_t){.tokens = tokens, .n_tokens = n};
}

static void read_one(job_t *job, json_reader_t *reader, size_t index, json_t *value,
                     job_prompt_t *prompt) {
    char path[32];
    (void)snprintf(path, sizeof path, "prompt.%zu", index);
    if (json_is_string(value)) {
        *prompt = (job_prompt_t){.text = json_string_value(value),
                                 .n_bytes = json_string_length(value)};
    } else if (json_is_array(value)) {
        read_tokens(job, reader, path, value, prompt);
    } else {
        json_fail(reader, "invalid_value", path,
                  "%s must be a string or an array of token ids", path);
    }
}

static void read_prompt(job_t *job, json_reader_t *reader) {
    json_t *value = NULL;
    json_require(reader, "prompt");
    if (!json_read_any(reader, "prompt", &value)) return;
    const bool is_list = json_is_array(value) && !json_is_number(json_array_get(value, 0));
    const size_t n = is_list ? json_array_size(value) : 1;
    if (n == 0 || n > JOB_PROMPTS_MAX) {
        json_fail(reader, "invalid_value", "prompt", "prompt has %zu elements; allowed: 1 to %u", n,
                  JOB_PROMPTS_MAX);
        return;
    }
    job->prompts = job_alloc(job, n * sizeof *job->prompts);
    if (job->prompts == NULL) {
        texts_no_memory(reader);
        return;
    }
    job->n_prompts = (uint32_t)n;
    if (is_list) {
        for (size_t i = 0; i < n && !reader->error->is_set; i++) {
            read_one(job, reader, i, json_array_get(value, i), &job->prompts[i]);
        }
    } else if (json_is_array(value)) {
        read_tokens(job, reader, "prompt", value, &job->prompts[0]);
    } else if (json_is_string(value)) {
        job->prompts[0] = (job_prompt_t){.text = json_string_value(value),
                                         .n_bytes = json_string_length(value)};
    } else {
        json_fail(reader, "invalid_value", "prompt",
                  "prompt must be a string, an array of strings, of token ids, or of arrays of "
                  "token ids");
    }
}

/* A stream's first bytes are all echoes at once: they must fit into what a slow reader may have
 * waiting. */
static void check_echo(const job_t *job, json_reader_t *reader) {
    const completions_t *own = job->user;
    size_t n_bytes = 0;
    if (!own->echo || !job->is_stream || job->prompts == NULL) return;
    for (uint32_t i = 0; i < job->n_prompts; i++) {
        const job_prompt_t *prompt = &job->prompts[i];
        n_bytes += (prompt->n_bytes + prompt->n_tokens * TOKEN_BYTES) * job->n_choices;
    }
    if (n_bytes <= ECHO_BYTES_MAX) return;
    json_fail(reader, "limit_exceeded", "echo",
              "echo with stream: the prompts have %zu bytes, the maximum is %u", n_bytes,
              ECHO_BYTES_MAX);
}

static void read_rest(job_t *job, json_reader_t *reader) {
    completions_t *own = job->user;
    int64_t n = 0;
    job->n_tokens_max = TOKENS_MAX_DEFAULT;
    if (json_read_integer(reader, "max_tokens", 1, INT32_MAX, &n)) job->n_tokens_max = (uint32_t)n;
    if (json_read_integer(reader, "logprobs", 0, 20, &n)) job->n_tops = (int32_t)n;
    if (json_read_integer(reader, "best_of", 1, JOB_CHOICES_MAX, &n) && n != job->n_choices) {
        json_fail(reader, "unsupported_parameter", "best_of",
                  "best_of other than n is not supported");
    }
    json_read_neutral(reader, "suffix", "\"\"");
    (void)json_read_bool(reader, "echo", &own->echo);
    check_echo(job, reader);
    keep_echoes(job, reader);
    if (own->echo && job->n_tops >= 0) {
        json_fail(reader, "unsupported_parameter", "echo",
                  "echo with logprobs is not supported: prompts have no log-probabilities");
    }
}

void endpoint_completions(call_t *call) {
    job_input_t input;
    job_t *job = job_open(call, "cmpl-", &style, sizeof(completions_t), &input);
    if (job == NULL) return;
    job_read_fields(job, &input.reader, JOB_FIELD_OPENAI | JOB_FIELD_OWN);
    read_prompt(job, &input.reader);
    read_rest(job, &input.reader);
    json_finish(&input.reader);
    if (!job_refuse_mistake(job, &input.mistake)) job_run(job);
}
