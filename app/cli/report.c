/* report.c: the error contract of the program. The table below is the only place where a status
 * becomes an exit code or an error code. */
#include "report.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "terminal.h"

typedef struct status_row_s {
    kr_status_t status;
    int exits[4]; /* by cli_phase_t: model, setup, input, output */
    const char *type, *code;
} status_row_t;

#define REQUEST "invalid_request_error"
#define SERVER "server_error"

static const status_row_t status_rows[] = {
    {KR_E_INVALID_ARG, {3, 2, 11, 9}, REQUEST, "invalid_value"},
    {KR_E_NOT_FOUND, {3, 3, 3, 9}, REQUEST, "not_found"},
    {KR_E_EXISTS, {1, 1, 1, 9}, REQUEST, "already_exists"},
    {KR_E_UNSUPPORTED, {4, 2, 11, 9}, REQUEST, "unsupported_parameter"},
    {KR_E_BAD_FORMAT, {4, 4, 11, 9}, REQUEST, "malformed"},
    {KR_E_TRUNCATED, {4, 4, 11, 9}, SERVER, "truncated"},
    {KR_E_CORRUPT, {5, 5, 5, 9}, SERVER, "digest_mismatch"},
    {KR_E_LIMIT, {4, 2, 11, 9}, REQUEST, "over_limit"},
    {KR_E_NOMEM, {6, 6, 6, 6}, SERVER, "out_of_memory"},
    {KR_E_DEVICE_NOMEM, {7, 7, 7, 7}, SERVER, "out_of_device_memory"},
    {KR_E_DEVICE_LOST, {75, 75, 75, 75}, SERVER, "device_lost"},
    {KR_E_IO, {3, 9, 3, 9}, SERVER, "io_error"},
    {KR_E_NOSPC, {9, 9, 9, 9}, SERVER, "no_space"},
    {KR_E_BUSY, {1, 1, 1, 1}, SERVER, "busy"},
    {KR_E_TIMEOUT, {12, 12, 12, 12}, SERVER, "deadline_exceeded"},
    {KR_E_CANCELLED, {130, 130, 130, 130}, SERVER, "cancelled"},
    {KR_E_SHUTTING_DOWN, {1, 1, 1, 1}, SERVER, "shutting_down"},
    {KR_E_CONTEXT_LENGTH, {4, 2, 11, 11}, REQUEST, "context_length_exceeded"},
    {KR_E_NUMERIC, {4, 4, 4, 4}, SERVER, "numeric_error"},
    {KR_E_BAD_SCHEMA, {11, 11, 11, 11}, REQUEST, "invalid_schema"},
    {KR_E_BAD_TEMPLATE, {4, 4, 4, 4}, REQUEST, "template_error"},
    {KR_E_BAD_IMAGE, {11, 11, 11, 11}, REQUEST, "invalid_image"},
    {KR_E_PROTOCOL, {1, 1, 1, 1}, SERVER, "protocol_error"},
    {KR_E_PERMISSION, {3, 3, 3, 9}, REQUEST, "permission_denied"},
    {KR_E_CHANGED, {4, 4, 4, 9}, SERVER, "model_changed"},
    {KR_E_CHILD_DIED, {1, 1, 1, 1}, SERVER, "child_died"},
    {KR_E_INTERNAL, {70, 70, 70, 70}, SERVER, "internal"},
};

static bool json_wanted;
static _Thread_local char *captured;
static _Thread_local size_t captured_bytes;

void cli_report_capture(char *text, size_t cap) {
    captured = text;
    captured_bytes = cap;
}

void cli_report_set_json(bool json) { json_wanted = json; }

static const status_row_t *find_row(kr_status_t status) {
    size_t n_rows = sizeof(status_rows) / sizeof(status_rows[0]);
    for (size_t i = 0; i < n_rows; i++) {
        if (status_rows[i].status == status) return &status_rows[i];
    }
    return &status_rows[n_rows - 1];
}

static void print_json(const status_row_t *row, const char *param, const char *message) {
    json_t *body = json_object();
    bool has_param = param != NULL && param[0] != '\0';
    char clean[128]; /* an unknown option may be any bytes, JSON wants UTF-8 */
    if (has_param) cli_clean_text(param, strlen(param), clean, sizeof clean);
    json_object_set_new(body, "message", json_string(message));
    json_object_set_new(body, "type", json_string(row->type));
    json_object_set_new(body, "param", has_param ? json_string(clean) : json_null());
    json_object_set_new(body, "code", json_string(row->code));
    json_t *object = json_object();
    json_object_set_new(object, "error", body);
    (void)cli_out_json(object);
    json_decref(object);
}

static int report(const status_row_t *row, int exit_code, const char *param,
                  const char *message) {
    char clean[1024];
    cli_clean_text(message, strlen(message), clean, sizeof clean);
    if (captured != NULL) {
        (void)snprintf(captured, captured_bytes, "%s", clean);
        return exit_code;
    }
    cli_progress_clear();
    fprintf(stderr, "kr: error: %s\n", clean);
    if (json_wanted) print_json(row, param, clean);
    return exit_code;
}

int cli_report(cli_phase_t phase, kr_status_t status, const kr_error_t *error) {
    const status_row_t *row = find_row(status);
    bool has_message = error != NULL && error->message[0] != '\0';
    if (status == KR_E_CANCELLED) {
        return report(row, cli_interrupt_exit(), NULL, "interrupted");
    }
    return report(row, row->exits[phase], has_message ? error->param : NULL,
                  has_message ? error->message : kr_status_text(status));
}

int cli_fail(cli_phase_t phase, kr_status_t status, const char *param, const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    const status_row_t *row = find_row(status);
    return report(row, row->exits[phase], param, message);
}

int cli_usage(const char *param, const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return report(find_row(KR_E_INVALID_ARG), CLI_EXIT_USAGE, param, message);
}

void cli_note(const char *format, ...) {
    char message[1024], clean[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    cli_clean_text(message, strlen(message), clean, sizeof clean);
    cli_progress_clear();
    fprintf(stderr, "kr: %s\n", clean);
}
