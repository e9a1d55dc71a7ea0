/* message.c: see message.h. */
#include "message.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define LINE_BYTES ((size_t)16 << 20)
#define VALUES_MAX ((size_t)1000000)

/* ---- errors ---------------------------------------------------------------------------------- */

/* Cut at a character. */
static void copy_text(char *out, size_t cap, const char *text) {
    size_t n = strlen(text);
    if (n >= cap) n = cap - 1;
    n = kri_utf8_valid_prefix(text, n);
    memcpy(out, text, n);
    out[n] = '\0';
}

void rpc_error_set(rpc_error_t *error, int code, kr_status_t status, const char *param,
                   const char *format, ...) {
    char text[768];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memset(error, 0, sizeof *error);
    error->code = code;
    error->status = status;
    copy_text(error->param, sizeof error->param, param != NULL ? param : "");
    copy_text(error->message, sizeof error->message, text);
}

void rpc_error_of_mistake(rpc_error_t *error, const json_mistake_t *mistake) {
    if (strcmp(mistake->code, "overloaded") == 0) {
        rpc_error_set(error, RPC_E_RUNTIME, KR_E_NOMEM, mistake->param, "%s", mistake->message);
        return;
    }
    const bool is_unknown = strcmp(mistake->code, "unsupported_parameter") == 0;
    rpc_error_set(error, RPC_E_PARAMS, is_unknown ? KR_E_UNSUPPORTED : KR_E_INVALID_ARG,
                  mistake->param, "%s", mistake->message);
}

static int code_of(int family, kr_status_t status) {
    switch (status) {
    case KR_E_SHUTTING_DOWN:
    case KR_E_BUSY: return RPC_E_SERVER;
    case KR_E_INTERNAL: return RPC_E_INTERNAL;
    case KR_E_INVALID_ARG:
    case KR_E_UNSUPPORTED: return family == RPC_E_LOAD ? family : RPC_E_PARAMS;
    case KR_E_NOMEM:
    case KR_E_DEVICE_NOMEM:
    case KR_E_DEVICE_LOST:
    case KR_E_CHANGED: return family == RPC_E_LOAD ? family : RPC_E_RUNTIME;
    default: return family;
    }
}

void rpc_error_of_status(rpc_error_t *error, int family, kr_status_t status,
                         const kr_error_t *library) {
    const bool has_text = library != NULL && library->message[0] != '\0' &&
                          status != KR_E_INTERNAL;
    rpc_error_set(error, code_of(family, status), status,
                  library != NULL ? library->param : "", "%s",
                  has_text ? library->message : kr_status_text(status));
}

const char *rpc_error_type(const rpc_error_t *error) {
    if (error->status == KR_E_CANCELLED) return "Cancelled";
    if (error->status == KR_E_TIMEOUT) return "Timeout";
    switch (error->code) {
    case RPC_E_PARSE: return "ParseError";
    case RPC_E_REQUEST: return "InvalidRequest";
    case RPC_E_METHOD: return "MethodNotFound";
    case RPC_E_PARAMS: return "InvalidParams";
    case RPC_E_SERVER: return "ServerError";
    case RPC_E_LOAD: return "ModelLoadError";
    case RPC_E_GENERATION: return "GenerationError";
    case RPC_E_TOKENIZER: return "TokenizerError";
    case RPC_E_GUIDANCE: return "GuidanceError";
    case RPC_E_NOT_LOADED: return "ModelNotLoaded";
    case RPC_E_RUNTIME: return "RuntimeError";
    default: return "InternalError";
    }
}

static void put_text(const char *name, const char *text, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, ",\"%s\":", name);
    if (text[0] != '\0') (void)json_put_string(out, text, strlen(text));
    else (void)kri_buffer_append(out, "null", 4);
}

void rpc_error_put(const rpc_error_t *error, kri_buffer_t *out) {
    (void)kri_buffer_printf(out, "{\"code\":%d,\"message\":", error->code);
    (void)json_put_string(out, error->message, strlen(error->message));
    (void)kri_buffer_printf(out, ",\"data\":{\"type\":\"%s\",\"kr_status\":%d",
                            rpc_error_type(error), error->status);
    put_text("param", error->param, out);
    if (error->model_id[0] != '\0') put_text("model_id", error->model_id, out);
    (void)kri_buffer_append(out, "}}", 2);
}

/* ---- lines ----------------------------------------------------------------------------------- */

static bool fail_parse(rpc_error_t *error, const char *text) {
    rpc_error_set(error, RPC_E_PARSE, KR_E_BAD_FORMAT, NULL, "%s", text);
    return false;
}

static bool refuse(rpc_error_t *error, const char *param, const char *text) {
    rpc_error_set(error, RPC_E_REQUEST, KR_E_PROTOCOL, param, "%s", text);
    return false;
}

/* Lines over the ordinary size come only where that was asked for: numbers need no more. */
static size_t values_max(size_t n_bytes) {
    return n_bytes > LINE_BYTES ? n_bytes / 8 : VALUES_MAX;
}

/* What is no object is read as a member of one: that is what json_parse takes. */
static bool parse_value(const char *line, size_t n_bytes, json_t **value, rpc_error_t *error) {
    static const char head[] = "{\"a\":";
    json_mistake_t mistake = {0};
    json_t *object = NULL;
    kri_buffer_t text;
    kri_buffer_init(&text, n_bytes + sizeof head + 1);
    (void)kri_buffer_append(&text, head, sizeof head - 1);
    (void)kri_buffer_append(&text, line, n_bytes);
    (void)kri_buffer_append(&text, "}", 1);
    if (text.status != KR_OK) {
        kri_buffer_deinit(&text);
        rpc_error_set(error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
        return false;
    }
    const bool is_json = json_parse_values(text.data, text.n_bytes, values_max(n_bytes), &object,
                                           &mistake);
    kri_buffer_deinit(&text);
    *value = is_json && json_object_size(object) == 1 ? json_object_get(object, "a") : NULL;
    if (*value != NULL) (void)json_incref(*value);
    json_decref(object);
    if (*value != NULL) return true;
    return fail_parse(error, mistake.is_set ? mistake.message : "this line is not JSON");
}

/* A batch, or what is JSON and no message. */
static bool parse_other(const char *line, size_t n_bytes, json_t **root, rpc_error_t *error) {
    if (!parse_value(line, n_bytes, root, error)) return false;
    const size_t n = json_array_size(*root);
    if (json_is_array(*root) && n >= 1 && n <= RPC_BATCH_MAX) return true;
    if (!json_is_array(*root)) {
        (void)refuse(error, NULL, "a message is an object");
    } else {
        rpc_error_set(error, RPC_E_REQUEST, n < 1 ? KR_E_PROTOCOL : KR_E_LIMIT, NULL,
                      "a batch holds 1 to %u messages, not %zu", RPC_BATCH_MAX, n);
    }
    json_decref(*root);
    *root = NULL;
    return false;
}

bool rpc_line_parse(const char *line, size_t n_bytes, json_t **root, rpc_error_t *error) {
    size_t i = 0;
    while (i < n_bytes && (line[i] == ' ' || line[i] == '\t' || line[i] == '\r')) i++;
    if (i < n_bytes && line[i] != '{') return parse_other(line, n_bytes, root, error);
    json_mistake_t mistake = {0};
    if (json_parse_values(line, n_bytes, values_max(n_bytes), root, &mistake)) return true;
    return fail_parse(error, mistake.message);
}

/* ---- messages -------------------------------------------------------------------------------- */

static bool read_id(const json_t *value, rpc_message_t *message, rpc_error_t *error) {
    message->has_id = value != NULL;
    if (value == NULL) return true;
    const bool is_text = json_is_string(value) && json_string_length(value) <= RPC_ID_BYTES_MAX;
    if (!is_text && !json_is_integer(value) && !json_is_null(value)) {
        return refuse(error, "id", "'id' must be a whole number or a string of at most 256 bytes");
    }
    kri_buffer_t text;
    kri_buffer_init(&text, 8 * RPC_ID_BYTES_MAX);
    if (is_text) (void)json_put_string(&text, json_string_value(value), json_string_length(value));
    else if (json_is_null(value)) (void)kri_buffer_append(&text, "null", 4);
    else (void)kri_buffer_printf(&text, "%lld", (long long)json_integer_value(value));
    message->id = text.status == KR_OK ? strdup(text.data) : NULL;
    kri_buffer_deinit(&text);
    if (message->id != NULL) return true;
    rpc_error_set(error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
    return false;
}

static bool read_params(json_t *value, rpc_message_t *message, rpc_error_t *error) {
    json_t *params = json_object_get(value, "params");
    if (params == NULL || json_is_null(params)) {
        params = json_object();
        if (params == NULL || json_object_set_new(value, "params", params) != 0) {
            rpc_error_set(error, RPC_E_RUNTIME, KR_E_NOMEM, NULL, "no memory for this message");
            return false;
        }
    }
    if (!json_is_object(params)) {
        rpc_error_set(error, RPC_E_PARAMS, KR_E_INVALID_ARG, "params",
                      "'params' must be an object: parameters have names here");
        return false;
    }
    message->params = params;
    return true;
}

bool rpc_message_read(json_t *value, rpc_message_t *message, rpc_error_t *error) {
    static const char *const known[] = {"jsonrpc", "id", "method", "params"};
    memset(message, 0, sizeof *message);
    if (!json_is_object(value)) return refuse(error, NULL, "a message is an object");
    if (!read_id(json_object_get(value, "id"), message, error)) return false;
    const json_t *version = json_object_get(value, "jsonrpc");
    if (!json_is_string(version) || strcmp(json_string_value(version), "2.0") != 0) {
        return refuse(error, "jsonrpc", "'jsonrpc' must be \"2.0\"");
    }
    const json_t *method = json_object_get(value, "method");
    if (!json_is_string(method) || json_string_length(method) > 128 ||
        strlen(json_string_value(method)) != json_string_length(method)) {
        return refuse(error, "method", "'method' must be a string of at most 128 bytes");
    }
    const char *key = NULL;
    json_t *member = NULL;
    json_object_foreach(value, key, member) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
            is_known = is_known || strcmp(key, known[i]) == 0;
        }
        if (is_known) continue;
        rpc_error_set(error, RPC_E_REQUEST, KR_E_PROTOCOL, key,
                      "'%.64s' is no member of a request", key);
        return false;
    }
    message->method = json_string_value(method);
    return read_params(value, message, error);
}

void rpc_message_deinit(rpc_message_t *message) {
    free(message->id);
    message->id = NULL;
}

/* ---- an id without its message --------------------------------------------------------------- */

typedef struct scan_s {
    const char *text;
    size_t n_bytes, at;
} scan_t;

static void skip_space(scan_t *scan) {
    while (scan->at < scan->n_bytes && strchr(" \t\r", scan->text[scan->at]) != NULL) scan->at++;
}

static bool take(scan_t *scan, char byte) {
    skip_space(scan);
    if (scan->at == scan->n_bytes || scan->text[scan->at] != byte) return false;
    scan->at++;
    return true;
}

/* A whole string or number; [*begin, scan->at) with its quotes. */
static bool take_scalar(scan_t *scan, size_t *begin) {
    skip_space(scan);
    *begin = scan->at;
    if (!take(scan, '"')) {
        while (scan->at < scan->n_bytes && (isalnum((unsigned char)scan->text[scan->at]) ||
                                            scan->text[scan->at] == '-')) scan->at++;
        return scan->at > *begin && scan->at < scan->n_bytes;
    }
    while (scan->at < scan->n_bytes && scan->text[scan->at] != '"') {
        scan->at += scan->text[scan->at] == '\\' ? 2 : 1;
    }
    if (scan->at >= scan->n_bytes) return false;
    scan->at++;
    return true;
}

/* Only what json_parse takes as a whole may be said back. */
static bool copy_id(const char *text, size_t n_bytes, char *id, size_t cap) {
    char line[RPC_ID_BYTES_MAX + 16];
    json_t *object = NULL;
    json_mistake_t mistake = {0};
    rpc_message_t message = {0};
    rpc_error_t error;
    const int n = snprintf(line, sizeof line, "{\"id\":%.*s}", (int)n_bytes, text);
    if (n < 0 || (size_t)n >= sizeof line) return false;
    if (!json_parse(line, (size_t)n, &object, &mistake)) return false;
    const bool is_id = read_id(json_object_get(object, "id"), &message, &error) &&
                       message.id != NULL && strlen(message.id) < cap;
    if (is_id) (void)snprintf(id, cap, "%s", message.id);
    rpc_message_deinit(&message);
    json_decref(object);
    return is_id;
}

void rpc_guess_id(const char *prefix, size_t n_bytes, char *id, size_t cap) {
    scan_t scan = {.text = prefix, .n_bytes = n_bytes};
    (void)snprintf(id, cap, "null");
    if (!take(&scan, '{')) return;
    for (;;) { /* members before the id are scalars, or it is not found */
        size_t name = 0, value = 0;
        if (!take_scalar(&scan, &name)) return;
        const bool is_id = scan.at - name == 4 && memcmp(prefix + name, "\"id\"", 4) == 0;
        if (!take(&scan, ':') || !take_scalar(&scan, &value)) return;
        const size_t value_end = scan.at;
        if (is_id && (take(&scan, ',') || take(&scan, '}'))) {
            (void)copy_id(prefix + value, value_end - value, id, cap);
            return;
        }
        if (is_id || !take(&scan, ',')) return;
    }
}
