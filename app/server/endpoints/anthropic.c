/* anthropic.c: the conversation of the Messages API. Turns of one role that follow each other count
 * as one turn, as that API has it; many templates demand that roles alternate. Refused by name:
 * blocks that are no text (images, documents, tool use), tools, thinking, and an assistant's turn
 * that the answer is to continue. */
#include "anthropic.h"

#include <string.h>

#include "texts.h"

static void read_block_others(json_reader_t *block) {
    json_read_ignored(block, "cache_control"); /* all prompts are cached, no mark is needed */
    json_read_neutral(block, "citations", "[]");
}

static const char *const text_types[] = {"text", NULL};
static const texts_form_t blocks = {
    .types = text_types, .others = read_block_others, .is_empty_refused = true};

/* Turns [begin, end) as one, with a blank line between. */
static bool join_turns(texts_list_t *list, size_t begin, size_t end, kr_message_t *turn,
                       json_reader_t *reader) {
    size_t total = 2 * (end - begin - 1), at = 0;
    for (size_t i = begin; i < end; i++) total += list->messages[i].content_bytes;
    char *text = job_alloc(list->job, total + 1);
    if (!text) {
        texts_no_memory(reader);
        return false;
    }
    for (size_t i = begin; i < end; i++) {
        const kr_message_t *part = &list->messages[i];
        if (i > begin) at += (size_t)(stpcpy(text + at, "\n\n") - (text + at));
        memcpy(text + at, part->content, part->content_bytes);
        at += part->content_bytes;
    }
    *turn = (kr_message_t){list->messages[begin].role, text, total};
    return true;
}

/* In place: runs of one role become one turn each. */
static bool join_runs(texts_list_t *list, json_reader_t *reader) {
    size_t n = 0;
    for (size_t begin = 0, end; begin < list->n; begin = end, n++) {
        kr_message_t turn = list->messages[begin];
        for (end = begin + 1; end < list->n; end++) {
            if (strcmp(list->messages[end].role, turn.role) != 0) break;
        }
        if (end > begin + 1 && !join_turns(list, begin, end, &turn, reader)) return false;
        list->messages[n] = turn;
    }
    list->n = n;
    return true;
}

static bool read_message(texts_list_t *list, json_reader_t *message) {
    static const char *const roles[] = {"user", "assistant", NULL};
    uint32_t role = 0;
    const char *text = "";
    size_t n_bytes = 0;
    json_require(message, "role");
    json_read_word(message, "role", roles, &role);
    json_require(message, "content");
    texts_read(list->job, message, "content", &blocks, &text, &n_bytes);
    json_finish(message);
    if (message->error->is_set) return false;
    texts_list_add(list, roles[role], text, n_bytes);
    return true;
}

static bool read_conversation(job_t *job, json_reader_t *reader, texts_list_t *list) {
    json_t *array = NULL;
    json_require(reader, "messages");
    if (!json_read_array(reader, "messages", 1, TEXTS_MESSAGES_MAX, &array)) return false;
    const size_t n = json_array_size(array);
    if (!texts_list_init(list, job, n + 1, reader)) return false;
    const char *system = NULL;
    size_t n_bytes = 0;
    if (texts_read(job, reader, "system", &blocks, &system, &n_bytes)) {
        texts_list_add(list, "system", system, n_bytes);
    }
    for (size_t i = 0; i < n && !reader->error->is_set; i++) {
        json_reader_t message;
        texts_open_element(&message, reader, "messages", array, i);
        if (!read_message(list, &message)) return false;
    }
    if (reader->error->is_set) return false;
    if (strcmp(list->messages[list->n - 1].role, "assistant") == 0) {
        json_fail(reader, "unsupported_parameter", "messages",
                  "'messages' must end with role 'user': to continue an answer of the assistant "
                  "(prefill) is not supported");
    }
    return !reader->error->is_set && join_runs(list, reader);
}

bool anthropic_read_prompt(job_t *job, json_reader_t *reader) {
    texts_list_t list = {0};
    job->prompt_name = "messages";
    job->length_name = "max_tokens";
    json_require(reader, "model");
    job_read_fields(job, reader, JOB_FIELD_MODEL);
    if (!read_conversation(job, reader, &list)) return false;
    json_read_neutral(reader, "tools", "[]");
    json_read_neutral(reader, "tool_choice", "{\"type\":\"none\"}");
    json_read_neutral(reader, "thinking", "{\"type\":\"disabled\"}");
    json_read_neutral(reader, "mcp_servers", "[]");
    json_read_neutral(reader, "output_format", NULL);
    json_read_neutral(reader, "output_config", NULL);
    json_read_neutral(reader, "context_management", NULL);
    json_read_neutral(reader, "speed", "\"standard\"");
    json_read_ignored(reader, "cache_control");
    if (reader->error->is_set) return false;
    const job_prompt_t prompt = {.messages = list.messages, .n_messages = list.n};
    return texts_set_prompt(job, reader, &prompt);
}
