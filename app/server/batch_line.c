/* batch_line.c: one line of a batch's input. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "batch.h"
#include "json.h"

static char *copy_text(const char *text, size_t n_bytes) {
    char *copy = malloc(n_bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, text, n_bytes);
    copy[n_bytes] = '\0';
    return copy;
}

/* A string member without a NUL in it; NULL: there is none, or no memory (is_short). */
static char *copy_member(const json_t *root, const char *name, bool *is_short) {
    const json_t *value = json_object_get(root, name);
    const char *text = json_string_value(value);
    if (text == NULL || strlen(text) != json_string_length(value)) return NULL;
    char *copy = copy_text(text, json_string_length(value));
    if (copy == NULL) *is_short = true;
    return copy;
}

/* What an endpoint parses again, with its own limits. */
static bool copy_body(const json_t *root, batch_line_t *line) {
    const json_t *body = json_object_get(root, "body");
    if (!json_is_object(body)) return true;
    line->body = json_dumps(body, JSON_COMPACT | JSON_ENCODE_ANY);
    if (line->body == NULL) return false;
    line->body_bytes = strlen(line->body);
    return true;
}

static kr_status_t check_members(const json_t *root, kr_error_t *error) {
    static const char *const names[] = {"custom_id", "method", "url", "body"};
    const char *key = NULL;
    json_t *value = NULL, *object = (json_t *)(uintptr_t)root;
    json_object_foreach(object, key, value) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            is_known = is_known || strcmp(key, names[i]) == 0;
        }
        if (!is_known) {
            return KRI_FAIL(error, KR_E_BAD_FORMAT, NULL, "\"%.64s\" is not a member of a line",
                            key);
        }
    }
    const json_t *id = json_object_get(root, "custom_id");
    const char *text = json_string_value(id);
    const size_t n_bytes = json_string_length(id);
    if (text == NULL || n_bytes == 0 || n_bytes > BATCH_ID_BYTES_MAX || strlen(text) != n_bytes) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, NULL,
                        "custom_id must be a string of 1 to %u bytes without a NUL",
                        BATCH_ID_BYTES_MAX);
    }
    return KR_OK;
}

kr_status_t batch_line_read(const char *text, size_t n_bytes, batch_line_t *line,
                            kr_error_t *error) {
    json_t *root = NULL;
    json_mistake_t mistake = {0};
    *line = (batch_line_t){0};
    if (!json_parse(text, n_bytes, &root, &mistake)) {
        static const char subject[] = "the body"; /* of a request, says the parser */
        const bool is_same = strncmp(mistake.message, subject, sizeof subject - 1) == 0;
        return KRI_FAIL(error, KR_E_BAD_FORMAT, NULL, "it%s%s", is_same ? "" : ": ",
                        mistake.message + (is_same ? sizeof subject - 1 : 0));
    }
    kr_status_t status = check_members(root, error);
    if (status == KR_OK) {
        bool is_short = false;
        line->custom_id = copy_member(root, "custom_id", &is_short);
        line->method = copy_member(root, "method", &is_short);
        line->url = copy_member(root, "url", &is_short);
        if (is_short || line->custom_id == NULL || !copy_body(root, line)) {
            batch_line_deinit(line);
            status = KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for a line");
        }
    }
    json_decref(root);
    return status;
}

void batch_line_deinit(batch_line_t *line) {
    free(line->custom_id);
    free(line->method);
    free(line->url);
    free(line->body);
    *line = (batch_line_t){0};
}
