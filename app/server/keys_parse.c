/* keys_parse.c: the key file. One key a line:
 *
 *     NAME SHA256 SCOPES [max_in_flight=N]      # "#" begins a comment
 *
 * separated by blanks. Strict: what is not understood refuses the whole file with the line's
 * number, because a key file that is half read lets the wrong people in. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "keys.h"

typedef struct parser_s {
    const char *next, *end; /* of the line */
    uint32_t line;
    kr_error_t *error;
} parser_t;

static kr_status_t line_fail(const parser_t *parser, kr_status_t code, const char *what) {
    return KRI_FAIL(parser->error, code, "api-key-file", "line %u: %s", parser->line, what);
}

/* The next word of the line; empty at its end or at a comment. */
static http_text_t next_word(parser_t *parser) {
    while (parser->next < parser->end && (*parser->next == ' ' || *parser->next == '\t')) {
        parser->next++;
    }
    http_text_t word = {parser->next, 0};
    if (parser->next < parser->end && *parser->next == '#') parser->next = parser->end;
    while (parser->next < parser->end && *parser->next != ' ' && *parser->next != '\t') {
        parser->next++;
    }
    if (word.data < parser->end && *word.data == '#') return word;
    word.n_bytes = (size_t)(parser->next - word.data);
    return word;
}

static kr_status_t parse_name(const parser_t *parser, http_text_t word, key_row_t *row) {
    if (word.n_bytes >= sizeof row->name) {
        return line_fail(parser, KR_E_LIMIT, "the name is longer than 63 bytes");
    }
    for (size_t i = 0; i < word.n_bytes; i++) {
        char c = word.data[i];
        bool is_good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        if (!is_good) {
            return line_fail(parser, KR_E_BAD_FORMAT,
                             "a name has only letters, digits, '.', '_' and '-'");
        }
    }
    memcpy(row->name, word.data, word.n_bytes);
    row->name[word.n_bytes] = '\0';
    return KR_OK;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

static kr_status_t parse_digest(const parser_t *parser, http_text_t word, key_row_t *row) {
    bool is_good = word.n_bytes == 2 * sizeof row->digest;
    for (size_t i = 0; is_good && i < sizeof row->digest; i++) {
        int high = hex_digit(word.data[2 * i]), low = hex_digit(word.data[2 * i + 1]);
        is_good = high >= 0 && low >= 0;
        row->digest[i] = (uint8_t)((high & 15) << 4 | (low & 15));
    }
    if (is_good) return KR_OK;
    return line_fail(parser, KR_E_BAD_FORMAT,
                     "behind the name stands the SHA-256 of the key, 64 hexadecimal digits "
                     "(printf %s KEY | sha256sum)");
}

static kr_status_t parse_scopes(const parser_t *parser, http_text_t word, key_row_t *row) {
    static const struct { const char *name; uint32_t bit; } scopes[] = {
        {"generate", SCOPE_GENERATE}, {"metrics", SCOPE_METRICS}, {"admin", SCOPE_ADMIN}};
    size_t begin = 0;
    while (begin <= word.n_bytes) {
        size_t n = 0;
        while (begin + n < word.n_bytes && word.data[begin + n] != ',') n++;
        uint32_t bit = 0;
        for (size_t i = 0; i < sizeof scopes / sizeof scopes[0]; i++) {
            bool is_same = strlen(scopes[i].name) == n &&
                           memcmp(scopes[i].name, word.data + begin, n) == 0;
            if (is_same) bit = scopes[i].bit;
        }
        if (bit == 0) {
            return line_fail(parser, KR_E_BAD_FORMAT,
                             "scopes are generate, metrics and admin, with commas between");
        }
        if ((row->scopes & bit) != 0) {
            return line_fail(parser, KR_E_BAD_FORMAT, "a scope stands there twice");
        }
        row->scopes |= bit;
        begin += n + 1;
    }
    return KR_OK;
}

static kr_status_t parse_setting(const parser_t *parser, http_text_t word, key_row_t *row) {
    static const char prefix[] = "max_in_flight=";
    const size_t n_prefix = sizeof prefix - 1;
    if (word.n_bytes < n_prefix || memcmp(word.data, prefix, n_prefix) != 0) {
        return line_fail(parser, KR_E_UNSUPPORTED,
                         "behind the scopes only max_in_flight=N is known");
    }
    if (row->in_flight_max != 0) {
        return line_fail(parser, KR_E_BAD_FORMAT, "max_in_flight stands there twice");
    }
    uint32_t value = 0;
    bool is_good = word.n_bytes > n_prefix && word.n_bytes <= n_prefix + 5;
    for (size_t i = n_prefix; is_good && i < word.n_bytes; i++) {
        is_good = word.data[i] >= '0' && word.data[i] <= '9';
        value = value * 10 + (uint32_t)(word.data[i] - '0') % 10;
    }
    if (!is_good || value == 0 || value > KEYS_IN_FLIGHT_MAX) {
        return line_fail(parser, KR_E_BAD_FORMAT, "max_in_flight is a number from 1 to 65536");
    }
    row->in_flight_max = value;
    return KR_OK;
}

/* *is_key: the line holds one. */
static kr_status_t parse_line(parser_t *parser, key_row_t *row, bool *is_key) {
    memset(row, 0, sizeof *row);
    for (const char *c = parser->next; c < parser->end; c++) {
        if ((*c < 0x20 && *c != '\t') || *c == 0x7f) {
            return line_fail(parser, KR_E_BAD_FORMAT,
                             "a control byte (lines end with a line feed alone)");
        }
    }
    http_text_t name = next_word(parser);
    *is_key = name.n_bytes > 0;
    if (!*is_key) return KR_OK;
    KR_TRY(parse_name(parser, name, row));
    KR_TRY(parse_digest(parser, next_word(parser), row));
    KR_TRY(parse_scopes(parser, next_word(parser), row));
    for (;;) {
        http_text_t word = next_word(parser);
        if (word.n_bytes == 0) return KR_OK;
        KR_TRY(parse_setting(parser, word, row));
    }
}

static kr_status_t check_unique(const parser_t *parser, const key_row_t *rows, uint32_t n_rows,
                                const key_row_t *row) {
    for (uint32_t i = 0; i < n_rows; i++) {
        if (strcmp(rows[i].name, row->name) == 0) {
            return line_fail(parser, KR_E_BAD_FORMAT, "this name stands there twice");
        }
        if (memcmp(rows[i].digest, row->digest, sizeof row->digest) == 0) {
            return line_fail(parser, KR_E_BAD_FORMAT, "this key stands there twice");
        }
    }
    return KR_OK;
}

static kr_status_t parse_all(const char *text, size_t n_bytes, key_row_t *rows,
                             uint32_t *n_rows, kr_error_t *error) {
    parser_t parser = {text, text, 0, error};
    const char *end = text + n_bytes;
    while (parser.end < end) {
        parser.next = parser.end;
        const char *feed = memchr(parser.next, '\n', (size_t)(end - parser.next));
        const char *after = feed != NULL ? feed + 1 : end;
        parser.end = feed != NULL ? feed : end;
        parser.line++;
        if ((size_t)(parser.end - parser.next) > KEYS_LINE_BYTES_MAX) {
            return line_fail(&parser, KR_E_LIMIT, "longer than 512 bytes");
        }
        key_row_t row;
        bool is_key = false;
        KR_TRY(parse_line(&parser, &row, &is_key));
        if (is_key) {
            KR_TRY(check_unique(&parser, rows, *n_rows, &row));
            if (*n_rows == KEYS_MAX) return line_fail(&parser, KR_E_LIMIT, "more than 1024 keys");
            rows[(*n_rows)++] = row;
        }
        parser.end = after;
    }
    return KR_OK;
}

kr_status_t keys_parse(const char *text, size_t n_bytes, key_row_t **rows, uint32_t *n_rows,
                       kr_error_t *error) {
    if (n_bytes > KEYS_FILE_BYTES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "api-key-file", "larger than %zu bytes",
                        KEYS_FILE_BYTES_MAX);
    }
    key_row_t *found = calloc(KEYS_MAX, sizeof *found);
    uint32_t n_found = 0;
    if (found == NULL) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for keys");
    kr_status_t status = parse_all(text, n_bytes, found, &n_found, error);
    if (status != KR_OK || n_found == 0) {
        free(found);
        found = NULL;
    }
    if (status != KR_OK) return status;
    *rows = found;
    *n_rows = n_found;
    return KR_OK;
}
