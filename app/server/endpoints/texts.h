/* texts.h: what the dialects' readers of conversations share: texts that come as a string or as an
 * array of typed blocks, and lists of messages under way. */
#ifndef SERVER_ENDPOINTS_TEXTS_H
#define SERVER_ENDPOINTS_TEXTS_H

#include <string.h>

#include "server/job.h"

#define TEXTS_MESSAGES_MAX 2048u /* in a request */
#define TEXTS_BLOCKS_MAX 256u    /* in a message */

/* How one dialect writes a block of text. */
typedef struct texts_form_s {
    const char *const *types;             /* NULL-terminated: values of "type" that carry "text" */
    void (*others)(json_reader_t *block); /* reads the fields beside type and text; may be NULL */
    bool is_empty_refused;                /* of strings and blocks */
} texts_form_t;

/* Field `name` of reader: a string, or an array of 1..256 blocks, which are joined as they stand. A
 * type that is not in the form is refused by name. *text is the body's or the job's. False: absent
 * or wrong. */
bool texts_read(job_t *job, json_reader_t *reader, const char *name, const texts_form_t *form,
                const char **text, size_t *n_bytes);

/* A list of messages with room for n_max of them; job memory. */
typedef struct texts_list_s {
    job_t *job;
    kr_message_t *messages;
    size_t n, n_max;
} texts_list_t;
/* False: without memory; the reader has the error. */
bool texts_list_init(texts_list_t *list, job_t *job, size_t n_max, json_reader_t *reader);
/* role: a static C string. Past n_max nothing is added (the caller has counted). */
void texts_list_add(texts_list_t *list, const char *role, const char *text, size_t n_bytes);

/* A copy that lives as long as the job, for what is looked at after the body is gone; with a NUL
 * behind it. NULL: without memory; the reader has the error. */
char *texts_copy(job_t *job, json_reader_t *reader, const char *text, size_t n_bytes);

/* The job's only prompt. */
bool texts_set_prompt(job_t *job, json_reader_t *reader, const job_prompt_t *prompt);

/* Opens element `index` of array field `name`, path and all. */
void texts_open_element(json_reader_t *element, const json_reader_t *reader, const char *name,
                        json_t *array, size_t index);
void texts_no_memory(json_reader_t *reader);

/* Appends a C string; the buffer remembers failures. */
static inline void texts_put(kri_buffer_t *out, const char *text) {
    (void)kri_buffer_append(out, text, strlen(text));
}

#endif
