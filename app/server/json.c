/* json.c: strict reading of request bodies. jansson parses; what it does not bound (depth of ours,
 * nodes, members, length of numbers) is measured before by one pass over the bytes, which allocates
 * nothing and does not care whether the text is JSON: what is no JSON is jansson's to say. */
#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"

#define DEPTH_MAX 128u
#define NODES_MAX ((size_t)1000000)
#define MEMBERS_MAX 100000u
#define NUMBER_BYTES_MAX 64u

/* ---- mistakes ----------------------------------------------------------------------------- */

/* Copies a C string into out [cap], cut at a character. */
static void copy_text(char *out, size_t cap, const char *text) {
    size_t n = strlen(text);
    if (n >= cap) n = cap - 1;
    n = kri_utf8_valid_prefix(text, n);
    memcpy(out, text, n);
    out[n] = '\0';
}

/* Sets the message from `text`: one line of valid UTF-8. */
static void set_mistake(json_mistake_t *mistake, const char *code, const char *param,
                        const char *text) {
    if (mistake->is_set) return;
    mistake->is_set = true;
    mistake->code = code;
    copy_text(mistake->param, sizeof mistake->param, param);
    copy_text(mistake->message, sizeof mistake->message, text);
    kri_utf8_clean_line(mistake->message, strlen(mistake->message));
}

/* "messages.3" and "content" -> "messages.3.content". */
static void join_path(const char *path, const char *name, char *out, size_t cap) {
    const char *dot = path[0] != '\0' && name[0] != '\0' ? "." : "";
    (void)snprintf(out, cap, "%s%s%.256s", path, dot, name);
}

void json_fail(json_reader_t *reader, const char *code, const char *param, const char *format,
               ...) {
    if (reader->error->is_set) return;
    char path[512], text[768];
    join_path(reader->path, param != NULL ? param : "", path, sizeof path);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    set_mistake(reader->error, code, path, text);
}

static const char *type_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "a whole number";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: break;
    }
    return "null";
}

/* "'messages.3.content' must be <wanted>": the name is in the text, because not every dialect has a
 * field for it. */
static void fail_field(json_reader_t *reader, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void fail_field(json_reader_t *reader, const char *name, const char *format, ...) {
    if (reader->error->is_set) return;
    char path[512], wanted[384];
    join_path(reader->path, name, path, sizeof path);
    va_list args;
    va_start(args, format);
    (void)vsnprintf(wanted, sizeof wanted, format, args);
    va_end(args);
    json_fail(reader, "invalid_value", name, "'%s' must be %s", path[0] != '\0' ? path : "the body",
              wanted);
}

/* ---- the pass before parsing --------------------------------------------------------------- */

typedef struct scan_s {
    const char *text;
    size_t n_bytes, at;
    uint32_t depth;
    uint32_t n_nodes;
    bool wants_key;                   /* the next string is a key */
    bool is_object[DEPTH_MAX];
    uint32_t n_members[DEPTH_MAX];
} scan_t;

static const char *open_container(scan_t *scan, bool is_object) {
    if (scan->depth == DEPTH_MAX) return "nested deeper than 128";
    scan->is_object[scan->depth] = is_object;
    scan->n_members[scan->depth] = 0;
    scan->depth++;
    scan->wants_key = is_object;
    scan->n_nodes++;
    return NULL;
}

static void close_container(scan_t *scan) {
    if (scan->depth > 0) scan->depth--;
    scan->wants_key = false;
}

static const char *skip_string(scan_t *scan) {
    const char *wrong = NULL;
    if (scan->wants_key && scan->depth > 0) {
        if (++scan->n_members[scan->depth - 1] > MEMBERS_MAX) {
            wrong = "an object of more than 100000 members";
        }
    } else {
        scan->n_nodes++;
    }
    scan->wants_key = false;
    scan->at++;
    while (scan->at < scan->n_bytes && scan->text[scan->at] != '"') {
        scan->at += scan->text[scan->at] == '\\' ? 2 : 1;
    }
    if (scan->at < scan->n_bytes) scan->at++;
    return wrong;
}

/* A number or a literal: whatever stands up to the next mark. */
static const char *skip_word(scan_t *scan) {
    const size_t begin = scan->at;
    const char first = scan->text[begin];
    while (scan->at < scan->n_bytes && strchr("{}[],:\" \t\r\n", scan->text[scan->at]) == NULL) {
        scan->at++;
    }
    if (scan->at == begin) scan->at++; /* a NUL byte, which strchr finds */
    scan->n_nodes++;
    const bool is_number = first == '-' || (first >= '0' && first <= '9');
    if (is_number && scan->at - begin > NUMBER_BYTES_MAX) return "a number of more than 64 bytes";
    return NULL;
}

static const char too_many[] = "too many values";

/* NULL, or which bound is broken. */
static const char *find_excess(const char *text, size_t n_bytes, size_t n_nodes_max) {
    scan_t scan = {.text = text, .n_bytes = n_bytes};
    const char *wrong = NULL;
    while (scan.at < n_bytes && wrong == NULL) {
        const char byte = text[scan.at];
        switch (byte) {
        case '{':
        case '[': wrong = open_container(&scan, byte == '{'); break;
        case '}':
        case ']': close_container(&scan); break;
        case ',': scan.wants_key = scan.depth > 0 && scan.is_object[scan.depth - 1]; break;
        case '"': wrong = skip_string(&scan); continue;
        case ':':
        case ' ':
        case '\t':
        case '\r':
        case '\n': break;
        default: wrong = skip_word(&scan); continue;
        }
        scan.at++;
        if (scan.n_nodes > n_nodes_max && wrong == NULL) wrong = too_many;
    }
    if (scan.n_nodes > n_nodes_max && wrong == NULL) wrong = too_many;
    return wrong;
}

bool json_parse(const char *text, size_t n_bytes, json_t **root, json_mistake_t *mistake) {
    return json_parse_values(text, n_bytes, NODES_MAX, root, mistake);
}

bool json_parse_values(const char *text, size_t n_bytes, size_t n_values_max, json_t **root,
                       json_mistake_t *mistake) {
    char line[384];
    if (n_bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        set_mistake(mistake, "invalid_json", "", "the body begins with a byte order mark");
        return false;
    }
    const char *excess = find_excess(text, n_bytes, n_values_max);
    if (excess == too_many) {
        (void)snprintf(line, sizeof line, "the body has more than %zu values", n_values_max);
        set_mistake(mistake, "invalid_json", "", line);
        return false;
    }
    if (excess != NULL) {
        (void)snprintf(line, sizeof line, "the body has %s", excess);
        if (strncmp(excess, "nested", 6) == 0) {
            (void)snprintf(line, sizeof line, "the body is %s", excess);
        }
        set_mistake(mistake, "invalid_json", "", line);
        return false;
    }
    json_error_t found;
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_t *value = json_loadb(text, n_bytes, flags, &found);
    if (value == NULL) {
        if (n_bytes == 0) {
            (void)snprintf(line, sizeof line, "the body is empty; a JSON object is wanted");
        } else {
            (void)snprintf(line, sizeof line, "the body is no valid JSON: line %d, column %d: %s",
                           found.line, found.column, found.text);
        }
        kri_utf8_clean_line(line, strlen(line));
        set_mistake(mistake, "invalid_json", "", line);
        return false;
    }
    if (!json_is_object(value)) {
        (void)snprintf(line, sizeof line, "the body must be a JSON object, not %s",
                       type_name(value));
        set_mistake(mistake, "invalid_json", "", line);
        json_decref(value);
        return false;
    }
    *root = value;
    return true;
}

/* ---- reading ------------------------------------------------------------------------------- */

void json_open(json_reader_t *reader, json_t *value, const char *path, json_mistake_t *mistake) {
    memset(reader, 0, sizeof *reader);
    reader->error = mistake;
    copy_text(reader->path, sizeof reader->path, path != NULL ? path : "");
    if (json_is_object(value)) {
        reader->object = value;
    } else {
        fail_field(reader, "", "an object, not %s", value != NULL ? type_name(value) : "missing");
    }
}

static bool was_asked(const json_reader_t *reader, const char *name) {
    for (uint32_t i = 0; i < reader->n_asked; i++) {
        if (strcmp(reader->asked[i], name) == 0) return true;
    }
    return false;
}

/* The member, NULL when absent, null, or nothing is to be read any more. */
static json_t *ask(json_reader_t *reader, const char *name) {
    if (reader->error->is_set || reader->object == NULL) return NULL;
    if (!was_asked(reader, name)) {
        KR_ASSERT(reader->n_asked < JSON_FIELDS_MAX);
        if (reader->n_asked < JSON_FIELDS_MAX) reader->asked[reader->n_asked++] = name;
    }
    json_t *value = json_object_get(reader->object, name);
    return json_is_null(value) ? NULL : value;
}

void json_finish(json_reader_t *reader) {
    if (reader->error->is_set || reader->object == NULL) return;
    const char *key;
    json_t *value;
    json_object_foreach(reader->object, key, value) {
        if (was_asked(reader, key)) continue;
        char path[512];
        join_path(reader->path, key, path, sizeof path);
        json_fail(reader, "unsupported_parameter", key, "unsupported parameter: '%s'", path);
        return;
    }
}

bool json_read_string(json_reader_t *reader, const char *name, size_t n_bytes_min,
                      size_t n_bytes_max, const char **text, size_t *n_bytes) {
    json_t *value = ask(reader, name);
    if (value == NULL) return false;
    if (!json_is_string(value)) {
        fail_field(reader, name, "a string, not %s", type_name(value));
        return false;
    }
    const size_t n = json_string_length(value);
    if (n < n_bytes_min || n > n_bytes_max) {
        if (n == 0) fail_field(reader, name, "a string that is not empty");
        else fail_field(reader, name, "a string of %zu to %zu bytes; it has %zu", n_bytes_min,
                        n_bytes_max, n);
        return false;
    }
    if (n_bytes == NULL && memchr(json_string_value(value), '\0', n) != NULL) {
        fail_field(reader, name, "a string without NUL characters");
        return false;
    }
    *text = json_string_value(value);
    if (n_bytes != NULL) *n_bytes = n;
    return true;
}

/* 2.0 is the integer 2. */
static bool to_integer(const json_t *value, int64_t *out) {
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    if (!json_is_real(value)) return false;
    const double real = json_real_value(value);
    /* 2^63 is the first double that int64 does not hold. */
    if (!(real >= -9223372036854775808.0 && real < 9223372036854775808.0)) return false;
    if (real != floor(real)) return false;
    *out = (int64_t)real;
    return true;
}

bool json_read_integer(json_reader_t *reader, const char *name, int64_t min, int64_t max,
                       int64_t *value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    int64_t integer = 0;
    const bool is_integer = to_integer(found, &integer);
    if (is_integer && integer >= min && integer <= max) {
        *value = integer;
        return true;
    }
    char got[48] = "";
    if (is_integer) {
        (void)snprintf(got, sizeof got, "%lld", (long long)integer);
    } else if (json_is_real(found)) {
        (void)snprintf(got, sizeof got, "%.17g", json_real_value(found));
    } else {
        (void)snprintf(got, sizeof got, "%s", type_name(found));
    }
    fail_field(reader, name, "a whole number from %lld to %lld, not %s", (long long)min,
               (long long)max, got);
    return false;
}

bool json_read_number(json_reader_t *reader, const char *name, double min, double max,
                      double *value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    if (!json_is_number(found)) {
        fail_field(reader, name, "a number, not %s", type_name(found));
        return false;
    }
    const double number = json_number_value(found);
    if (!(number >= min && number <= max)) {
        fail_field(reader, name, "a number from %g to %g, not %g", min, max, number);
        return false;
    }
    *value = number;
    return true;
}

bool json_read_bool(json_reader_t *reader, const char *name, bool *value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    if (!json_is_boolean(found)) {
        fail_field(reader, name, "true or false, not %s", type_name(found));
        return false;
    }
    *value = json_is_true(found);
    return true;
}

bool json_read_any(json_reader_t *reader, const char *name, json_t **value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    *value = found;
    return true;
}

bool json_read_array(json_reader_t *reader, const char *name, size_t n_min, size_t n_max,
                     json_t **value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    if (!json_is_array(found)) {
        fail_field(reader, name, "an array, not %s", type_name(found));
        return false;
    }
    const size_t n = json_array_size(found);
    if (n < n_min || n > n_max) {
        if (n == 0) fail_field(reader, name, "an array that is not empty");
        else fail_field(reader, name, "an array of %zu to %zu elements; it has %zu", n_min, n_max,
                        n);
        return false;
    }
    *value = found;
    return true;
}

bool json_read_object(json_reader_t *reader, const char *name, json_t **value) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    if (!json_is_object(found)) {
        fail_field(reader, name, "an object, not %s", type_name(found));
        return false;
    }
    *value = found;
    return true;
}

bool json_read_word(json_reader_t *reader, const char *name, const char *const *words,
                    uint32_t *index) {
    json_t *found = ask(reader, name);
    if (found == NULL) return false;
    const size_t n = json_is_string(found) ? json_string_length(found) : 0;
    char known[256] = "";
    for (uint32_t i = 0; words[i] != NULL; i++) {
        if (json_is_string(found) && strlen(words[i]) == n
            && memcmp(words[i], json_string_value(found), n) == 0) {
            *index = i;
            return true;
        }
        const size_t n_known = strlen(known);
        (void)snprintf(known + n_known, sizeof known - n_known, "%s'%s'", i > 0 ? ", " : "",
                       words[i]);
    }
    if (json_is_string(found)) {
        fail_field(reader, name, "one of %s, not '%.64s'", known, json_string_value(found));
    } else {
        fail_field(reader, name, "one of %s, not %s", known, type_name(found));
    }
    return false;
}

void json_require(json_reader_t *reader, const char *name) {
    if (reader->error->is_set || ask(reader, name) != NULL) return;
    char path[512];
    join_path(reader->path, name, path, sizeof path);
    json_fail(reader, "missing_required_parameter", name, "missing required parameter: '%s'", path);
}

static bool is_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) {
        return json_number_value(a) == json_number_value(b);
    }
    return json_equal(a, b);
}

void json_read_neutral(json_reader_t *reader, const char *name, const char *neutral) {
    json_t *found = ask(reader, name);
    if (found == NULL) return;
    bool is_neutral = false;
    if (neutral != NULL) {
        json_t *wanted = json_loads(neutral, JSON_DECODE_ANY, NULL);
        is_neutral = wanted != NULL && is_equal(found, wanted);
        json_decref(wanted);
    }
    if (is_neutral) return;
    char path[512];
    join_path(reader->path, name, path, sizeof path);
    json_fail(reader, "unsupported_parameter", name,
              "unsupported value of '%s': only %s%sis accepted by this server", path,
              neutral != NULL ? neutral : "", neutral != NULL ? " or null " : "null ");
}

void json_read_ignored(json_reader_t *reader, const char *name) { (void)ask(reader, name); }

/* ---- writing ------------------------------------------------------------------------------- */

/* Bytes of text that stand for themselves within a JSON string. */
static size_t plain_prefix(const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes && (unsigned char)text[n] >= 0x20 && text[n] != '"' && text[n] != '\\') n++;
    return n;
}

static kr_status_t put_escape(kri_buffer_t *out, char byte) {
    static const char marks[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *mark = byte != '\0' ? strchr(marks, byte) : NULL;
    if (mark == NULL) return kri_buffer_printf(out, "\\u%04x", (unsigned)(unsigned char)byte);
    const char escape[2] = {'\\', letters[mark - marks]};
    return kri_buffer_append(out, escape, 2);
}

/* text [n_bytes] of valid UTF-8, without the quotes. */
static kr_status_t put_valid(kri_buffer_t *out, const char *text, size_t n_bytes) {
    while (n_bytes > 0) {
        const size_t n = plain_prefix(text, n_bytes);
        KR_TRY(kri_buffer_append(out, text, n));
        text += n;
        n_bytes -= n;
        if (n_bytes == 0) break;
        KR_TRY(put_escape(out, *text));
        text++;
        n_bytes--;
    }
    return KR_OK;
}

kr_status_t json_put_string(kri_buffer_t *out, const char *text, size_t n_bytes) {
    KR_TRY(kri_buffer_append(out, "\"", 1));
    while (n_bytes > 0) {
        const size_t n = kri_utf8_valid_prefix(text, n_bytes);
        KR_TRY(put_valid(out, text, n));
        text += n;
        n_bytes -= n;
        if (n_bytes == 0) break;
        KR_TRY(kri_buffer_append(out, "\xef\xbf\xbd", 3));
        text++;
        n_bytes--;
    }
    return kri_buffer_append(out, "\"", 1);
}

/* One 17-digit form always reads back as the same number; a shorter one often does. */
static kr_status_t put_number(kri_buffer_t *out, double value, int digits_min, int digits_max,
                              bool is_float) {
    if (!isfinite(value)) return kri_buffer_append(out, "null", 4);
    char text[40];
    for (int digits = digits_min; digits <= digits_max; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, value);
        const bool is_same = is_float ? strtof(text, NULL) == (float)value
                                      : strtod(text, NULL) == value;
        if (is_same) break;
    }
    return kri_buffer_append(out, text, strlen(text));
}

kr_status_t json_put_float(kri_buffer_t *out, float value) {
    return put_number(out, (double)value, 6, 9, true);
}

kr_status_t json_put_double(kri_buffer_t *out, double value) {
    return put_number(out, value, 15, 17, false);
}
