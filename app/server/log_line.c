/* log_line.c: lines of the log. What comes from outside is escaped, so that nobody can forge a line
 * or move a terminal's cursor; a JSON line stays one valid object also when it is cut. */
#include "log_line.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"

/* Kept free for what ends a line: a quote, a brace, a line feed. */
#define TAIL_BYTES 4
#define ROOM (LOG_LINE_BYTES_MAX - TAIL_BYTES)

static bool put(log_line_t *line, const char *text, size_t n_bytes) {
    if (line->n_bytes > ROOM || n_bytes > ROOM - line->n_bytes) return false;
    memcpy(line->data + line->n_bytes, text, n_bytes);
    line->n_bytes += n_bytes;
    return true;
}

static void put_time(char *text, size_t cap) {
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    snprintf(text, cap, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", parts.tm_year + 1900,
             parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
             (int)(now.tv_nsec / 1000000));
}

static const char *level_word(kr_log_level_t level) {
    return level == KR_LOG_ERROR ? "error" : level == KR_LOG_WARN ? "warning" : "info";
}

void log_line_begin(log_line_t *line, bool is_json, kr_log_level_t level, const char *event) {
    char begin[160], now[80];
    put_time(now, sizeof now);
    line->n_bytes = 0;
    line->is_json = is_json;
    if (is_json) {
        snprintf(begin, sizeof begin, "{\"time\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"", now,
                 level_word(level), event);
    } else {
        snprintf(begin, sizeof begin, "%s%s%s", now, level < KR_LOG_INFO ? " " : "",
                 level < KR_LOG_INFO ? level_word(level) : "");
    }
    (void)put(line, begin, strlen(begin));
}

/* "\xNN" for each byte; out has room for four of them. */
static size_t put_hex(char *out, const char *text, size_t n_bytes) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char byte = (unsigned char)text[i];
        out[4 * i] = '\\';
        out[4 * i + 1] = 'x';
        out[4 * i + 2] = digits[byte >> 4];
        out[4 * i + 3] = digits[byte & 15];
    }
    return 4 * n_bytes;
}

/* The escaped form of the character at text; returns how many bytes of text it stands for. */
static size_t escape(const char *text, size_t n_bytes, bool is_json, char out[16],
                     size_t *n_out) {
    uint32_t code = 0;
    const size_t n = kri_utf8_decode(text, n_bytes, &code);
    const char byte = text[0];
    const bool is_bad = code == 0xfffd && n == 1;
    const bool is_control = code < 0x20 || (code >= 0x7f && code < 0xa0);
    if (is_json && is_bad) {
        memcpy(out, "\xef\xbf\xbd", 3);
        *n_out = 3;
    } else if (is_json && is_control) {
        *n_out = (size_t)snprintf(out, 16, "\\u%04x", (unsigned)code);
    } else if (is_bad || is_control) {
        *n_out = put_hex(out, text, n);
    } else if (byte == '\\' || (byte == '"' && is_json)) {
        out[0] = '\\';
        out[1] = byte;
        *n_out = 2;
    } else {
        memcpy(out, text, n);
        *n_out = n;
    }
    return n;
}

static void put_escaped(log_line_t *line, const char *text, size_t n_bytes) {
    while (n_bytes > 0) {
        char out[16];
        size_t n_out = 0;
        const size_t n = escape(text, n_bytes, line->is_json, out, &n_out);
        if (n == 0 || !put(line, out, n_out)) return;
        text += n;
        n_bytes -= n;
    }
}

/* What stands before a value; false: the line is full. */
static bool put_name(log_line_t *line, const char *name, bool is_text) {
    char begin[64];
    if (line->is_json) {
        snprintf(begin, sizeof begin, ",\"%s\":%s", name != NULL ? name : "message",
                 is_text ? "\"" : "");
    } else {
        snprintf(begin, sizeof begin, " %s%s", name != NULL ? name : "", name != NULL ? "=" : "");
    }
    return put(line, begin, strlen(begin));
}

void log_line_put_text(log_line_t *line, const char *name, const char *text, size_t n_bytes) {
    if (!put_name(line, name, true)) return;
    put_escaped(line, text, n_bytes);
    if (line->is_json) line->data[line->n_bytes++] = '"'; /* into the tail, if need be */
}

void log_line_put_value(log_line_t *line, const char *name, const char *value) {
    const size_t before = line->n_bytes;
    if (!put_name(line, name, false)) return;
    if (!put(line, value, strlen(value))) line->n_bytes = before;
}

void log_line_end(log_line_t *line) {
    if (line->is_json) line->data[line->n_bytes++] = '}';
    line->data[line->n_bytes++] = '\n';
}
