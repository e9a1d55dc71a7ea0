/* log_line.h: one line of the log, being built: bounded, for people or as a JSON object. */
#ifndef SERVER_LOG_LINE_H
#define SERVER_LOG_LINE_H

#include <stdbool.h>
#include <stddef.h>

#include "log.h"

typedef struct log_line_s {
    char data[LOG_LINE_BYTES_MAX]; /* with its line feed after log_line_end */
    size_t n_bytes;
    bool is_json;
} log_line_t;

/* Time, and in JSON level and event. */
void log_line_begin(log_line_t *line, bool is_json, kr_log_level_t level, const char *event);
/* A text value: quoted and escaped in JSON; else NAME= (name NULL: nothing) and the text with its
 * control bytes, bytes that are no UTF-8, and backslashes escaped. Cut where the line is full. */
void log_line_put_text(log_line_t *line, const char *name, const char *text, size_t n_bytes);
/* Another value, as it stands: numbers. */
void log_line_put_value(log_line_t *line, const char *name, const char *value);
void log_line_end(log_line_t *line);

#endif
