/* js.h: arguments and errors at the border to JavaScript. Each reader throws what is wrong and
 * returns false; a function that sees false returns NULL. */
#ifndef ADDON_JS_H
#define ADDON_JS_H

#define NAPI_VERSION 9
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host.h"

#define JS_ARGS_MAX 8

/* Exactly n arguments into values [JS_ARGS_MAX]. */
bool js_args(napi_env env, napi_callback_info info, size_t n, napi_value *values);
/* A copy, to be freed; *n_bytes without its NUL. */
bool js_text(napi_env env, napi_value value, const char *name, char **text, size_t *n_bytes);
/* A whole number of [min, 2^53 - 1]. */
bool js_count(napi_env env, napi_value value, const char *name, uint64_t min, uint64_t *count);
bool js_is_null(napi_env env, napi_value value);
napi_value js_throw(napi_env env, const char *format, ...) __attribute__((format(printf, 2, 3)));
napi_value js_number(napi_env env, double number);
/* The host behind a handle of open(); it may have closed: then *host is NULL. */
bool js_host(napi_env env, napi_value value, host_t **host);

/* segments.c: the functions of shared memory. */
napi_value segments_take(napi_env env, napi_callback_info info);
napi_value segments_give(napi_env env, napi_callback_info info);
napi_value segments_unlink(napi_env env, napi_callback_info info);
napi_value segments_sweep(napi_env env, napi_callback_info info);

#endif
