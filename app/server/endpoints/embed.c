/* embed.c: inputs and vectors of embeddings. */
#include "embed.h"

#include <openssl/evp.h>
#include <stdio.h>

#include "texts.h"

#define FLOAT_CHARS_MAX 16u   /* "-1.23456789e-38," */
#define N_EMBD_MAX ((uint32_t)1 << 20)

/* ---- inputs -------------------------------------------------------------------------------- */

/* Where a mistake is: "input.3" of several, "input" alone. */
typedef struct place_s {
    json_reader_t *reader;
    const char *name;          /* of the field */
    char text[48];             /* what json_fail appends to the reader's path */
} place_t;

static place_t place_of(json_reader_t *reader, const char *name, bool is_one, size_t index) {
    place_t place = {.reader = reader, .name = name};
    if (is_one) (void)snprintf(place.text, sizeof place.text, "%s", name);
    else (void)snprintf(place.text, sizeof place.text, "%s.%zu", name, index);
    return place;
}

static bool check_length(const embed_t *self, const place_t *place, size_t n_tokens) {
    const uint32_t n_ctx = self->model->session.n_ctx;
    if (n_tokens == 0) {
        json_fail(place->reader, "invalid_value", place->text, "'%s' must not be empty",
                  place->text);
    } else if (n_tokens > n_ctx) {
        json_fail(place->reader, "context_length_exceeded", place->text,
                  "'%s' has %zu tokens (n_prompt), the context has %u (n_ctx)", place->text,
                  n_tokens, n_ctx);
    }
    return !place->reader->error->is_set;
}

static void fail_status(const place_t *place, kr_status_t status, const kr_error_t *error) {
    if (status == KR_E_NOMEM) texts_no_memory(place->reader);
    else json_fail(place->reader, "invalid_value", place->text, "'%s': %s", place->text,
                   error->message);
}

/* self->scratch has room for the longest input that is taken: no text is tokenized twice. */
static void read_text(job_t *job, embed_t *self, const place_t *place, const char *text,
                      size_t n_bytes, job_prompt_t *prompt) {
    const uint32_t n_ctx = self->model->session.n_ctx;
    size_t n = 0;
    kr_error_t error;
    kr_error_init(&error);
    if (!self->scratch) self->scratch = job_alloc(job, n_ctx * sizeof *self->scratch);
    if (!self->scratch) {
        texts_no_memory(place->reader);
        return;
    }
    const kr_status_t status =
        n_bytes == 0 ? KR_OK
                     : kr_model_tokenize(self->model->model, text, n_bytes, KR_TOKENIZE_ADD_BOS,
                                         self->scratch, n_ctx, &n, &error);
    if (status != KR_OK && (status != KR_E_LIMIT || n <= n_ctx)) {
        fail_status(place, status, &error);
        return;
    }
    if (!check_length(self, place, n)) return;
    kr_token_t *tokens = job_alloc(job, n * sizeof *tokens);
    if (!tokens) {
        texts_no_memory(place->reader);
        return;
    }
    memcpy(tokens, self->scratch, n * sizeof *tokens);
    *prompt = (job_prompt_t){.tokens = tokens, .n_tokens = n};
    self->n_tokens += n;
}

static void read_tokens(job_t *job, embed_t *self, const place_t *place, const json_t *array,
                        job_prompt_t *prompt) {
    const size_t n = json_array_size(array);
    if (!check_length(self, place, n)) return;
    kr_token_t *tokens = job_alloc(job, n * sizeof *tokens);
    if (!tokens) {
        texts_no_memory(place->reader);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *token = json_array_get(array, i);
        const json_int_t id = json_is_integer(token) ? json_integer_value(token) : -1;
        if (id < 0 || id >= (json_int_t)self->model->info.n_vocab) {
            json_fail(place->reader, "invalid_value", place->text,
                      "'%s.%zu' must be a token id from 0 to %u", place->text, i,
                      self->model->info.n_vocab - 1);
            return;
        }
        tokens[i] = (kr_token_t)id;
    }
    *prompt = (job_prompt_t){.tokens = tokens, .n_tokens = n};
    self->n_tokens += n;
}

/* Room for n inputs. */
static bool take_memory(job_t *job, embed_t *self, json_reader_t *reader, size_t n) {
    job->prompts = job_alloc(job, n * sizeof *job->prompts);
    kri_buffer_t *rows = job_alloc(job, n * sizeof *rows);
    if (!job->prompts || !rows) {
        texts_no_memory(reader);
        return false;
    }
    const size_t row_bytes = (size_t)self->model->info.n_embd * FLOAT_CHARS_MAX + 16;
    for (size_t i = 0; i < n; i++) kri_buffer_init(&rows[i], row_bytes);
    self->rows = rows;
    job->n_prompts = (uint32_t)n;
    return true;
}

static void read_element(job_t *job, embed_t *self, const place_t *place, const json_t *value,
                         bool with_tokens, job_prompt_t *prompt) {
    if (json_is_string(value)) {
        read_text(job, self, place, json_string_value(value), json_string_length(value), prompt);
    } else if (with_tokens && json_is_array(value)) {
        read_tokens(job, self, place, value, prompt);
    } else {
        json_fail(place->reader, "invalid_value", place->text, "'%s' must be a string%s",
                  place->text, with_tokens ? " or an array of token ids" : "");
    }
}

void embed_read(job_t *job, embed_t *self, json_reader_t *reader, const char *name,
                bool with_tokens) {
    json_t *value = NULL;
    json_require(reader, name);
    if (!json_read_any(reader, name, &value)) return;
    const bool is_list = json_is_array(value);
    /* One input of tokens, unless its first element is something else. */
    const bool is_one = !is_list || (with_tokens && json_is_integer(json_array_get(value, 0)));
    const size_t n = is_one ? 1 : json_array_size(value);
    if (n == 0 || n > JOB_INPUTS_MAX) {
        json_fail(reader, "invalid_value", name, "'%s' must have 1 to %u inputs; it has %zu", name,
                  JOB_INPUTS_MAX, n);
        return;
    }
    if (!take_memory(job, self, reader, n)) return;
    for (size_t i = 0; i < n && !reader->error->is_set; i++) {
        const place_t place = place_of(reader, name, is_one, i);
        read_element(job, self, &place, is_one ? value : json_array_get(value, i), with_tokens,
                     &job->prompts[i]);
    }
}

void embed_read_dimensions(const embed_t *self, json_reader_t *reader) {
    int64_t n = 0;
    const uint32_t n_embd = self->model->info.n_embd;
    if (!json_read_integer(reader, "dimensions", 1, INT32_MAX, &n) || n == n_embd) return;
    json_fail(reader, "unsupported_parameter", "dimensions",
              "unsupported value of 'dimensions': the model's vectors have %u", n_embd);
}

/* ---- vectors ------------------------------------------------------------------------------- */

static void put_base64(const float *vector, uint32_t n, kri_buffer_t *row) {
    /* Whole groups of 3 bytes at a time: 3 * 256 floats are 3072 bytes. */
    unsigned char text[4 * 1024 + 1];
    const unsigned char *bytes = (const unsigned char *)vector;
    const size_t n_bytes = (size_t)n * sizeof *vector;
    texts_put(row, "\"");
    for (size_t at = 0; at < n_bytes; at += 3072) {
        const size_t n_part = n_bytes - at < 3072 ? n_bytes - at : 3072;
        const int n_text = EVP_EncodeBlock(text, bytes + at, (int)n_part);
        (void)kri_buffer_append(row, text, (size_t)n_text);
    }
    texts_put(row, "\"");
}

/* Nine digits read back as the same float. */
static void put_floats(const float *vector, uint32_t n, kri_buffer_t *row) {
    char text[32];
    texts_put(row, "[");
    for (uint32_t i = 0; i < n; i++) {
        const int n_text = snprintf(text, sizeof text, i > 0 ? ",%.9g" : "%.9g",
                                    (double)vector[i]);
        (void)kri_buffer_append(row, text, (size_t)n_text);
    }
    texts_put(row, "]");
}

void embed_take(job_t *job, uint32_t prompt, const kr_event_t *event) {
    embed_t *self = job->user;
    kri_buffer_t *row = &self->rows[prompt];
    if (event->n_embd > N_EMBD_MAX) row->status = KR_E_LIMIT;
    else if (self->is_base64) put_base64(event->embedding, event->n_embd, row);
    else put_floats(event->embedding, event->n_embd, row);
}

void embed_put_row(const job_t *job, uint32_t prompt, kri_buffer_t *out) {
    embed_t *self = job->user;
    kri_buffer_t *row = &self->rows[prompt];
    if (row->status != KR_OK || row->n_bytes == 0) {
        out->status = row->status != KR_OK ? row->status : KR_E_INTERNAL;
        return;
    }
    (void)kri_buffer_append(out, row->data, row->n_bytes);
    kri_buffer_deinit(row); /* the answer is not held twice */
}

void embed_destroy(job_t *job) {
    embed_t *self = job->user;
    if (!self || !self->rows) return;
    for (uint32_t i = 0; i < job->n_prompts; i++) kri_buffer_deinit(&self->rows[i]);
}
