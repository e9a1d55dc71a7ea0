/* addon.c: what JavaScript sees:
 *
 *   open(args, callback)   a handle; callback(kind, text): "ready"; "lines" with an array of them;
 *                          "drained"; "closed" with why it could not start, or "", the last one
 *   send(handle, line)     bytes that wait for the runtime to take them; throws when it has ended
 *   end(handle)            what runs is cancelled; "closed" follows
 *   take, give, unlink, sweep   shared memory (segments.c)
 *
 * Nothing here waits, but the end of the environment (a worker, the program): it joins the threads
 * of what was left open. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "js.h"

#define ARGS_MAX 256u
#define TEXT_BYTES_MAX ((size_t)1 << 30)

typedef struct engine_s {
    host_t *host;              /* NULL: it has ended */
    napi_env env;
    napi_threadsafe_function callback;
    uint32_t n_refs;           /* the handle, the callback; the event loop's thread only */
} engine_t;

static const napi_type_tag engine_tag = {0x6b722d656e67696eull, 0x8c1f2a5be0d94713ull};

/* ---- arguments ------------------------------------------------------------------------------- */

napi_value js_throw(napi_env env, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)napi_throw_error(env, NULL, text);
    return NULL;
}

bool js_args(napi_env env, napi_callback_info info, size_t n, napi_value *values) {
    size_t n_given = JS_ARGS_MAX;
    if (napi_get_cb_info(env, info, &n_given, values, NULL, NULL) == napi_ok && n_given == n) {
        return true;
    }
    (void)js_throw(env, "%zu arguments are wanted, not %zu", n, n_given);
    return false;
}

bool js_text(napi_env env, napi_value value, const char *name, char **text, size_t *n_bytes) {
    size_t n = 0;
    if (napi_get_value_string_utf8(env, value, NULL, 0, &n) != napi_ok) {
        (void)js_throw(env, "%s must be a string", name);
        return false;
    }
    *text = n < TEXT_BYTES_MAX ? malloc(n + 1) : NULL;
    if (*text == NULL || napi_get_value_string_utf8(env, value, *text, n + 1, n_bytes) != napi_ok) {
        free(*text);
        (void)js_throw(env, "no memory for %s", name);
        return false;
    }
    return true;
}

bool js_count(napi_env env, napi_value value, const char *name, uint64_t min, uint64_t *count) {
    double number = -1;
    const bool is_number = napi_get_value_double(env, value, &number) == napi_ok;
    if (is_number && number >= (double)min && number <= 9007199254740991.0 &&
        (double)(uint64_t)number == number) {
        *count = (uint64_t)number;
        return true;
    }
    (void)js_throw(env, "%s must be a whole number from %llu", name, (unsigned long long)min);
    return false;
}

bool js_is_null(napi_env env, napi_value value) {
    napi_valuetype type = napi_undefined;
    return napi_typeof(env, value, &type) == napi_ok && type == napi_null;
}

napi_value js_number(napi_env env, double number) {
    napi_value value = NULL;
    (void)napi_create_double(env, number, &value);
    return value;
}

static bool read_engine(napi_env env, napi_value value, engine_t **engine) {
    napi_valuetype type = napi_undefined;
    bool is_engine = false;
    void *data = NULL;
    if (napi_typeof(env, value, &type) == napi_ok && type == napi_object &&
        napi_check_object_type_tag(env, value, &engine_tag, &is_engine) == napi_ok && is_engine &&
        napi_unwrap(env, value, &data) == napi_ok) {
        *engine = data;
        return true;
    }
    (void)js_throw(env, "no handle of open()");
    return false;
}

bool js_host(napi_env env, napi_value value, host_t **host) {
    engine_t *engine = NULL;
    if (!read_engine(env, value, &engine)) return false;
    *host = engine->host;
    return true;
}

/* ---- events ---------------------------------------------------------------------------------- */

static void release(engine_t *engine) {
    if (--engine->n_refs == 0) free(engine);
}

static void on_env_end(void *data) {
    engine_t *engine = data;
    host_free(engine->host); /* waits: its threads call into what is about to go */
    engine->host = NULL;
}

/* The carrier has said its last word. */
static void finish(engine_t *engine) {
    if (engine->host == NULL) return;
    (void)napi_remove_env_cleanup_hook(engine->env, on_env_end, engine);
    host_free(engine->host);
    engine->host = NULL;
    (void)napi_release_threadsafe_function(engine->callback, napi_tsfn_release);
}

static napi_value lines_of(napi_env env, const kri_buffer_t *text) {
    napi_value array = NULL, line = NULL;
    uint32_t index = 0;
    if (napi_create_array(env, &array) != napi_ok) return NULL;
    for (const char *at = text->data, *end = text->data + text->n_bytes; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (stop == NULL) break;
        if (napi_create_string_utf8(env, at, (size_t)(stop - at), &line) != napi_ok ||
            napi_set_element(env, array, index++, line) != napi_ok) return NULL;
        at = stop + 1;
    }
    return array;
}

static void call_js(napi_env env, napi_value callback, void *context, void *data) {
    static const char *const kinds[] = {"ready", "lines", "drained", "closed"};
    engine_t *engine = context;
    host_event_t *event = data;
    napi_value args[2] = {NULL, NULL}, undefined = NULL;
    if (env == NULL || callback == NULL) { /* the environment ends */
        host_event_free(event);
        return;
    }
    bool is_good = napi_create_string_utf8(env, kinds[event->kind], NAPI_AUTO_LENGTH, &args[0]) ==
                   napi_ok;
    if (event->kind == HOST_LINES) {
        args[1] = lines_of(env, &event->text);
        if (engine->host != NULL) host_taken(engine->host, event->text.n_bytes);
    } else if (napi_create_string_utf8(env, event->text.data != NULL ? event->text.data : "",
                                       event->text.n_bytes, &args[1]) != napi_ok) {
        is_good = false;
    }
    if (event->kind == HOST_CLOSED) finish(engine);
    host_event_free(event);
    if (!is_good || args[1] == NULL || napi_get_undefined(env, &undefined) != napi_ok) return;
    /* What it throws is uncaught, as in any event. */
    (void)napi_call_function(env, undefined, callback, 2, args, NULL);
}

static bool post(void *user, host_event_t *event) {
    const engine_t *engine = user;
    return napi_call_threadsafe_function(engine->callback, event, napi_tsfn_nonblocking) ==
           napi_ok;
}

static void on_handle_gone(napi_env env, void *data, void *hint) {
    (void)env;
    (void)hint;
    release(data);
}

/* ---- open ------------------------------------------------------------------------------------ */

static void free_args(char **args, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) free(args[i]);
    free(args);
}

static bool read_args(napi_env env, napi_value value, char ***args, uint32_t *n_args) {
    bool is_array = false;
    uint32_t n = 0;
    if (napi_is_array(env, value, &is_array) != napi_ok || !is_array ||
        napi_get_array_length(env, value, &n) != napi_ok || n > ARGS_MAX) {
        (void)js_throw(env, "args must be an array of at most %u strings", ARGS_MAX);
        return false;
    }
    char **texts = calloc(n + 1, sizeof *texts);
    bool is_done = texts != NULL;
    for (*n_args = 0; is_done && *n_args < n; ++*n_args) {
        napi_value item = NULL;
        size_t n_bytes = 0;
        is_done = napi_get_element(env, value, *n_args, &item) == napi_ok &&
                  js_text(env, item, "an argument", &texts[*n_args], &n_bytes);
        if (is_done && strlen(texts[*n_args]) == n_bytes) continue;
        if (is_done) (void)js_throw(env, "an argument has a NUL character");
        if (is_done) ++*n_args;
        is_done = false;
        break;
    }
    if (is_done) *args = texts;
    else if (texts != NULL) free_args(texts, *n_args);
    return is_done;
}

static engine_t *create_engine(napi_env env, napi_value callback) {
    napi_value name = NULL;
    engine_t *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return NULL;
    engine->env = env;
    engine->n_refs = 1;
    if (napi_create_string_utf8(env, "kr", NAPI_AUTO_LENGTH, &name) == napi_ok &&
        napi_create_threadsafe_function(env, callback, NULL, name, 0, 1, engine, on_handle_gone,
                                        engine, call_js, &engine->callback) == napi_ok) {
        return engine;
    }
    free(engine);
    return NULL;
}

/* The handle takes a reference of its own. */
static napi_value make_handle(napi_env env, engine_t *engine) {
    napi_value handle = NULL;
    if (napi_create_object(env, &handle) != napi_ok ||
        napi_wrap(env, handle, engine, on_handle_gone, NULL, NULL) != napi_ok) return NULL;
    engine->n_refs++;
    return napi_type_tag_object(env, handle, &engine_tag) == napi_ok ? handle : NULL;
}

static napi_value open_engine(napi_env env, napi_callback_info info) {
    napi_value values[JS_ARGS_MAX];
    napi_valuetype type = napi_undefined;
    char **args = NULL;
    uint32_t n_args = 0;
    if (!js_args(env, info, 2, values)) return NULL;
    if (napi_typeof(env, values[1], &type) != napi_ok || type != napi_function) {
        return js_throw(env, "callback must be a function");
    }
    if (!read_args(env, values[0], &args, &n_args)) return NULL;
    engine_t *engine = create_engine(env, values[1]);
    napi_value handle = engine != NULL ? make_handle(env, engine) : NULL;
    if (handle != NULL) {
        const host_params_t params = {.args = (const char *const *)args, .n_args = n_args,
                                      .post = post, .user = engine};
        engine->host = host_create(&params);
    }
    free_args(args, n_args);
    if (engine != NULL && engine->host != NULL) {
        (void)napi_add_env_cleanup_hook(env, on_env_end, engine);
        return handle;
    }
    if (engine != NULL) (void)napi_release_threadsafe_function(engine->callback, napi_tsfn_abort);
    return js_throw(env, "no memory or threads for a runtime");
}

/* ---- send, end ------------------------------------------------------------------------------- */

static napi_value send_line(napi_env env, napi_callback_info info) {
    napi_value values[JS_ARGS_MAX];
    host_t *host = NULL;
    char *line = NULL;
    size_t n_bytes = 0, n_left = 0;
    if (!js_args(env, info, 2, values) || !js_host(env, values[0], &host) ||
        !js_text(env, values[1], "line", &line, &n_bytes)) return NULL;
    const bool is_line = memchr(line, '\n', n_bytes) == NULL;
    const bool is_sent = is_line && host != NULL && host_send(host, line, n_bytes, &n_left);
    free(line);
    if (!is_line) return js_throw(env, "a message is one line");
    if (!is_sent) return js_throw(env, "the runtime has ended, or no memory for this message");
    return js_number(env, (double)n_left);
}

static napi_value end_engine(napi_env env, napi_callback_info info) {
    napi_value values[JS_ARGS_MAX];
    host_t *host = NULL;
    if (!js_args(env, info, 1, values) || !js_host(env, values[0], &host)) return NULL;
    if (host != NULL) host_end(host);
    return NULL;
}

/* ---- the module ------------------------------------------------------------------------------ */

int32_t NODE_API_MODULE_GET_API_VERSION(void); /* the macro below defines it undeclared */

NAPI_MODULE_INIT(/* napi_env env, napi_value exports */) {
    static const struct { const char *name; napi_callback run; } functions[] = {
        {"open", open_engine}, {"send", send_line}, {"end", end_engine},
        {"take", segments_take}, {"give", segments_give}, {"unlink", segments_unlink},
        {"sweep", segments_sweep}};
    napi_value value = NULL;
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        if (napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].run, NULL,
                                 &value) != napi_ok ||
            napi_set_named_property(env, exports, functions[i].name, value) != napi_ok) {
            return NULL;
        }
    }
    if (napi_create_string_utf8(env, kr_version(), NAPI_AUTO_LENGTH, &value) == napi_ok) {
        (void)napi_set_named_property(env, exports, "version", value);
    }
    return exports;
}
