/* texts.c: strings and blocks of text become one string. */
#include "texts.h"

#include <stdio.h>
#include <string.h>

void texts_no_memory(json_reader_t *reader) {
    json_fail(reader, "overloaded", "", "no memory for this request now");
}

void texts_open_element(json_reader_t *element, const json_reader_t *reader, const char *name,
                        json_t *array, size_t index) {
    char path[sizeof reader->path];
    const char *dot = reader->path[0] != '\0' ? "." : "";
    (void)snprintf(path, sizeof path, "%.48s%s%.24s.%zu", reader->path, dot, name, index);
    json_open(element, json_array_get(array, index), path, reader->error);
}

/* One block, checked whole. */
static bool read_block(json_reader_t *block, const texts_form_t *form, const char **text,
                       size_t *n_bytes) {
    uint32_t type = 0;
    json_require(block, "type");
    json_read_word(block, "type", form->types, &type);
    *text = "";
    *n_bytes = 0;
    json_require(block, "text");
    json_read_string(block, "text", form->is_empty_refused, SIZE_MAX, text, n_bytes);
    if (form->others) form->others(block);
    json_finish(block);
    return !block->error->is_set;
}

static bool read_blocks(job_t *job, json_reader_t *reader, const char *name,
                        const texts_form_t *form, const char **text, size_t *n_bytes) {
    json_t *array = NULL;
    if (!json_read_array(reader, name, 1, TEXTS_BLOCKS_MAX, &array)) return false;
    const char *texts[TEXTS_BLOCKS_MAX];
    size_t sizes[TEXTS_BLOCKS_MAX], total = 0;
    const size_t n_blocks = json_array_size(array);
    for (size_t i = 0; i < n_blocks; i++) {
        json_reader_t block;
        texts_open_element(&block, reader, name, array, i);
        if (!read_block(&block, form, &texts[i], &sizes[i])) return false;
        total += sizes[i]; /* no more than the body */
    }
    if (n_blocks == 1) {
        *text = texts[0];
        *n_bytes = sizes[0];
        return true;
    }
    char *joined = job_alloc(job, total + 1);
    if (!joined) {
        texts_no_memory(reader);
        return false;
    }
    for (size_t i = 0, at = 0; i < n_blocks; at += sizes[i], i++) {
        memcpy(joined + at, texts[i], sizes[i]);
    }
    *text = joined;
    *n_bytes = total;
    return true;
}

bool texts_read(job_t *job, json_reader_t *reader, const char *name, const texts_form_t *form,
                const char **text, size_t *n_bytes) {
    json_t *value = NULL;
    if (!json_read_any(reader, name, &value)) return false;
    if (json_is_array(value)) return read_blocks(job, reader, name, form, text, n_bytes);
    if (json_is_string(value)) {
        return json_read_string(reader, name, form->is_empty_refused, SIZE_MAX, text, n_bytes);
    }
    json_fail(reader, "invalid_value", name, "'%s%s%s' must be a string or an array of blocks",
              reader->path, reader->path[0] != '\0' ? "." : "", name);
    return false;
}

bool texts_list_init(texts_list_t *list, job_t *job, size_t n_max, json_reader_t *reader) {
    *list = (texts_list_t){.job = job, .n_max = n_max};
    list->messages = job_alloc(job, (n_max ? n_max : 1) * sizeof *list->messages);
    if (!list->messages) texts_no_memory(reader);
    return list->messages != NULL;
}

void texts_list_add(texts_list_t *list, const char *role, const char *text, size_t n_bytes) {
    if (list->n == list->n_max) return;
    list->messages[list->n++] =
        (kr_message_t){.role = role, .content = text, .content_bytes = n_bytes};
}

char *texts_copy(job_t *job, json_reader_t *reader, const char *text, size_t n_bytes) {
    char *copy = job_alloc(job, n_bytes + 1); /* zeroed */
    if (copy) memcpy(copy, text, n_bytes);
    else texts_no_memory(reader);
    return copy;
}

bool texts_set_prompt(job_t *job, json_reader_t *reader, const job_prompt_t *prompt) {
    job->prompts = job_alloc(job, sizeof *prompt);
    if (!job->prompts) {
        texts_no_memory(reader);
        return false;
    }
    job->prompts[0] = *prompt;
    job->n_prompts = 1;
    return true;
}
