/* json.h: request bodies, read strictly. A reader walks one object: every field is asked for by
 * name, with its type and bounds; what nobody has asked for is refused by json_finish. The first
 * mistake sticks: later calls do nothing, so a parser reads straight down and looks once. No value
 * is coerced: 2.0 counts as the integer 2, "2" does not. null = absent.
 *
 * Bounds of a body (json_parse): valid UTF-8 without BOM, depth 128, 1,000,000 values, 100,000
 * members per object, 64 bytes per number, no duplicate keys, integers in int64, reals finite. */
#ifndef SERVER_JSON_H
#define SERVER_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "base/buffer.h"
#include "kr.h"

/* What is wrong, for an error answer. (json_error_t is the name of jansson.) */
typedef struct json_mistake_s {
    bool is_set;
    const char *code;   /* static: "invalid_json", "invalid_value", "unsupported_parameter",
                           "missing_required_parameter" */
    char param[128];    /* "messages.3.content"; "" = the body as a whole */
    char message[384];
} json_mistake_t;

/* *root is the caller's; an object. False: the mistake is set. Needs no more than 256 KiB of
 * stack. */
bool json_parse(const char *text, size_t n_bytes, json_t **root, json_mistake_t *mistake);
/* The same with another bound of values, for one who lets large texts in knowingly. */
bool json_parse_values(const char *text, size_t n_bytes, size_t n_values_max, json_t **root,
                       json_mistake_t *mistake);

#define JSON_FIELDS_MAX 96
typedef struct json_reader_s {
    json_t *object;      /* borrowed */
    json_mistake_t *error;
    char path[96];       /* of the object: "" or "messages.3" */
    const char *asked[JSON_FIELDS_MAX]; /* static strings */
    uint32_t n_asked;
} json_reader_t;
/* path NULL = the body itself. A value that is no object is an error. */
void json_open(json_reader_t *reader, json_t *value, const char *path, json_mistake_t *mistake);
/* Names the first member that was not asked for: 400 unsupported_parameter. */
void json_finish(json_reader_t *reader);

/* Each returns whether the field is there and good; *value is untouched otherwise. What is returned
 * is borrowed from the body. n_bytes NULL: a string with a NUL character in it is refused. */
bool json_read_string(json_reader_t *reader, const char *name, size_t n_bytes_min,
                      size_t n_bytes_max, const char **text, size_t *n_bytes);
bool json_read_integer(json_reader_t *reader, const char *name, int64_t min, int64_t max,
                       int64_t *value);
bool json_read_number(json_reader_t *reader, const char *name, double min, double max,
                      double *value);
bool json_read_bool(json_reader_t *reader, const char *name, bool *value);
/* Any value but null, to be looked at by the caller. */
bool json_read_any(json_reader_t *reader, const char *name, json_t **value);
bool json_read_array(json_reader_t *reader, const char *name, size_t n_min, size_t n_max,
                     json_t **value);
bool json_read_object(json_reader_t *reader, const char *name, json_t **value);
/* One of `words`, NULL-terminated; *index. */
bool json_read_word(json_reader_t *reader, const char *name, const char *const *words,
                    uint32_t *index);
/* A required field that no call has found: an error naming it. */
void json_require(json_reader_t *reader, const char *name);
/* A known field that is not built: accepted only as null, or as this neutral JSON text ("false",
 * "\"auto\"", "1"); NULL = null alone. */
void json_read_neutral(json_reader_t *reader, const char *name, const char *neutral);
/* Accepted with any value of a JSON type and not used (`user`, `metadata`): documented. */
void json_read_ignored(json_reader_t *reader, const char *name);

/* Sets the error unless one is set. param is joined to the reader's path; the message names the
 * field too, because not every dialect has a place for param. */
void json_fail(json_reader_t *reader, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- writing --------------------------------------------------------------------------------- */

/* A JSON string with its quotes. text [n_bytes] valid UTF-8; bad bytes become U+FFFD. The buffer is
 * append-only here: KR_E_NOMEM and KR_E_LIMIT as kri_buffer_append. */
kr_status_t json_put_string(kri_buffer_t *out, const char *text, size_t n_bytes);
/* Shortest form that reads back as the same float; null for a value that is not finite. */
kr_status_t json_put_float(kri_buffer_t *out, float value);
kr_status_t json_put_double(kri_buffer_t *out, double value);

#endif
