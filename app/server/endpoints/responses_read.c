/* responses_read.c: the request of POST /v1/responses. Instructions stand before the conversation
 * and are not kept with it, as that API has it. Role developer is the templates' system. Refused by
 * name: items and parts that are no text, tools, reasoning, background, other truncation. */
#include <stdlib.h>

#include "responses.h"
#include "server/server.h"

#define METADATA_MAX 16u
#define METADATA_KEY_BYTES_MAX 64u
#define METADATA_VALUE_BYTES_MAX 512u

/* ---- conversation -------------------------------------------------------------------------- */

static void read_part_others(json_reader_t *part) {
    json_read_ignored(part, "annotations"); /* of an answer that is handed back */
    json_read_ignored(part, "logprobs");
}

static const char *const part_types[] = {"input_text", "output_text", NULL};
static const texts_form_t parts = {.types = part_types, .others = read_part_others};

static bool read_item(texts_list_t *list, json_reader_t *item) {
    static const char *const types[] = {"message", NULL};
    static const char *const roles[] = {"user", "assistant", "system", "developer", NULL};
    static const char *const states[] = {"in_progress", "completed", "incomplete", NULL};
    uint32_t type = 0, role = 0, state = 0;
    const char *text = "";
    size_t n_bytes = 0;
    json_read_word(item, "type", types, &type);
    json_require(item, "role");
    json_read_word(item, "role", roles, &role);
    json_require(item, "content");
    texts_read(list->job, item, "content", &parts, &text, &n_bytes);
    json_read_ignored(item, "id");
    json_read_word(item, "status", states, &state);
    json_finish(item);
    texts_list_add(list, role == 3 ? "system" : roles[role], text, n_bytes);
    return !item->error->is_set;
}

static void read_items(texts_list_t *list, json_reader_t *reader, json_t *array) {
    for (size_t i = 0; i < json_array_size(array); i++) {
        json_reader_t item;
        texts_open_element(&item, reader, "input", array, i);
        if (!read_item(list, &item)) return;
    }
}

/* Instructions, then what an earlier response kept. */
static void begin_list(job_t *job, responses_job_t *self, json_reader_t *reader, size_t n_items) {
    const size_t n_before = self->previous ? self->previous->n_messages : 0;
    if (n_before + n_items > RESPONSES_MESSAGES_MAX) {
        json_fail(reader, "limit_exceeded", "input",
                  "the conversation would have more than %u messages", RESPONSES_MESSAGES_MAX);
        return;
    }
    /* One for the instructions, one for the answer. */
    if (!texts_list_init(&self->list, job, n_before + n_items + 2, reader)) return;
    if (self->instructions) {
        texts_list_add(&self->list, "system", self->instructions, self->instructions_bytes);
    }
    for (size_t i = 0; i < n_before; i++) {
        const kr_message_t *m = &self->previous->messages[i];
        texts_list_add(&self->list, m->role, m->content, m->content_bytes);
    }
}

static void read_input(job_t *job, responses_job_t *self, json_reader_t *reader) {
    json_t *input = NULL;
    const char *text = NULL;
    size_t n_bytes = 0;
    json_require(reader, "input");
    if (!json_read_any(reader, "input", &input)) return;
    if (json_is_array(input)) {
        if (!json_read_array(reader, "input", 1, TEXTS_MESSAGES_MAX, &input)) return;
        begin_list(job, self, reader, json_array_size(input));
        if (!reader->error->is_set) read_items(&self->list, reader, input);
    } else if (!json_is_string(input)) {
        json_fail(reader, "invalid_value", "input",
                  "'input' must be a string or an array of items");
    } else if (json_read_string(reader, "input", 1, SIZE_MAX, &text, &n_bytes)) {
        begin_list(job, self, reader, 1);
        if (!reader->error->is_set) texts_list_add(&self->list, "user", text, n_bytes);
    }
}

static void find_previous(job_t *job, responses_job_t *self, json_reader_t *reader) {
    if (!json_read_string(reader, "previous_response_id", 1, 255, &self->previous_id, NULL)) return;
    self->previous = responses_store_get(call_server(job->call)->responses, self->previous_id,
                                   call_principal(job->call)->key_id);
    if (!self->previous) {
        json_fail(reader, "previous_response_not_found", "previous_response_id",
                  "previous response with id '%.64s' not found", self->previous_id);
    }
}

/* ---- fields -------------------------------------------------------------------------------- */

static void read_metadata(job_t *job, responses_job_t *self, json_reader_t *reader) {
    json_t *metadata = NULL, *value;
    const char *key;
    self->metadata = "{}";
    if (!json_read_object(reader, "metadata", &metadata)) return;
    bool is_good = json_object_size(metadata) <= METADATA_MAX;
    json_object_foreach(metadata, key, value) {
        is_good = is_good && strlen(key) <= METADATA_KEY_BYTES_MAX && json_is_string(value) &&
                  json_string_length(value) <= METADATA_VALUE_BYTES_MAX;
    }
    if (!is_good) {
        json_fail(reader, "invalid_value", "metadata",
                  "'metadata' must be an object of at most %u strings of at most %u bytes, with "
                  "names of at most %u", METADATA_MAX, METADATA_VALUE_BYTES_MAX,
                  METADATA_KEY_BYTES_MAX);
        return;
    }
    char *dumped = json_dumps(metadata, JSON_COMPACT);
    if (dumped) self->metadata = texts_copy(job, reader, dumped, strlen(dumped));
    else texts_no_memory(reader);
    free(dumped);
}

static void read_text(json_reader_t *reader) {
    json_t *object = NULL;
    json_reader_t text;
    if (!json_read_object(reader, "text", &object)) return;
    json_open(&text, object, "text", reader->error);
    json_read_neutral(&text, "format", "{\"type\":\"text\"}");
    json_read_neutral(&text, "verbosity", "\"medium\"");
    json_finish(&text);
}

static void read_repeated(responses_job_t *self, json_reader_t *reader) {
    static const char *const tiers[] = {"auto", "default", NULL};
    static const char *const choices[] = {"auto", "none", NULL};
    uint32_t index = 0;
    json_read_word(reader, "service_tier", tiers, &index);
    index = 0;
    json_read_word(reader, "tool_choice", choices, &index);
    self->tool_choice = choices[index];
    self->has_parallel_tools = true;
    json_read_bool(reader, "parallel_tool_calls", &self->has_parallel_tools);
    self->is_stored = true;
    json_read_bool(reader, "store", &self->is_stored);
}

static void read_refused(json_reader_t *reader) {
    json_read_neutral(reader, "tools", "[]");
    json_read_neutral(reader, "max_tool_calls", NULL);
    json_read_neutral(reader, "include", "[]");
    json_read_neutral(reader, "top_logprobs", "0");
    json_read_neutral(reader, "background", "false");
    json_read_neutral(reader, "conversation", NULL);
    json_read_neutral(reader, "prompt", NULL);
    json_read_neutral(reader, "reasoning", "{}");
    json_read_neutral(reader, "stream_options", "{\"include_obfuscation\":false}");
    json_read_neutral(reader, "truncation", "\"disabled\"");
    json_read_neutral(reader, "context_management", "[]");
    json_read_ignored(reader, "user");
    json_read_ignored(reader, "safety_identifier");
    json_read_ignored(reader, "prompt_cache_key");
    json_read_ignored(reader, "prompt_cache_retention");
}

/* What the answer repeats and the store keeps is the job's own: the body may go. The last check, on
 * success only. */
static void own_texts(job_t *job, responses_job_t *self, json_reader_t *reader) {
    const size_t n_before = self->previous ? self->previous->n_messages : 0;
    const size_t n_skipped = n_before + (self->instructions ? 1 : 0);
    texts_list_t *list = &self->list;
    if (self->instructions) {
        self->instructions = texts_copy(job, reader, self->instructions, self->instructions_bytes);
    }
    if (self->previous_id) {
        self->previous_id = texts_copy(job, reader, self->previous_id, strlen(self->previous_id));
    }
    for (size_t i = n_skipped; self->is_stored && i < list->n; i++) {
        kr_message_t *m = &list->messages[i];
        m->content = texts_copy(job, reader, m->content, m->content_bytes);
    }
}

void responses_read(job_t *job, responses_job_t *self, json_reader_t *reader) {
    int64_t n = 0;
    job->prompt_name = "input";
    job->length_name = "max_output_tokens";
    job_read_fields(job, reader, JOB_FIELD_MODEL | JOB_FIELD_SAMPLING | JOB_FIELD_SEED |
                                     JOB_FIELD_STREAM | JOB_FIELD_OWN);
    if (json_read_integer(reader, "max_output_tokens", 1, INT32_MAX, &n)) {
        job->n_tokens_max = (uint32_t)n;
    }
    json_read_string(reader, "instructions", 0, SIZE_MAX, &self->instructions,
                     &self->instructions_bytes);
    read_metadata(job, self, reader);
    read_text(reader);
    read_repeated(self, reader);
    read_refused(reader);
    find_previous(job, self, reader);
    read_input(job, self, reader);
    json_finish(reader);
    if (reader->error->is_set) return;
    own_texts(job, self, reader);
    texts_set_prompt(job, reader, &(job_prompt_t){.messages = self->list.messages,
                                                  .n_messages = self->list.n});
}
