/* error.h: filling kr_error_t and forwarding statuses.
 * KRI_FAIL sets the error (when the caller gave one) and yields the status; KR_TRY forwards. */
#ifndef KRI_BASE_ERROR_H
#define KRI_BASE_ERROR_H

#include "kr.h"

/* Sets code, param (may be NULL), offset (UINT64_MAX = unknown) and a printf-formatted one-line
 * message; invalid UTF-8 and control bytes in it become '?'. Returns code. `error` may be NULL. */
kr_status_t kri_error_set(kr_error_t *error, kr_status_t code, const char *param,
                          uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

#define KRI_FAIL(error, code, param, ...)                                                        \
    kri_error_set((error), (code), (param), UINT64_MAX, __VA_ARGS__)
#define KRI_FAIL_AT(error, code, param, offset, ...)                                             \
    kri_error_set((error), (code), (param), (offset), __VA_ARGS__)

/* KR_E_INVALID_ARG naming the parameter when value is over max. */
kr_status_t kri_check_max(const char *param, uint32_t value, uint32_t max, kr_error_t *error);

/* Forwards a failing status out of the calling function (nothing to clean up there). */
#define KR_TRY(expr)                                                                             \
    do {                                                                                         \
        kr_status_t kr_try_status = (expr);                                                      \
        if (kr_try_status != KR_OK) return kr_try_status;                                        \
    } while (0)
/* The same for functions with a `done:` label and a local `status`. */
#define KR_TRY_DONE(expr)                                                                        \
    do {                                                                                         \
        status = (expr);                                                                         \
        if (status != KR_OK) goto done;                                                          \
    } while (0)

/* A bug in our own code: aborts in test builds (KR_ASSERTIONS), otherwise compiled out. File
 * bytes, request bytes and model metadata can never reach it. */
#ifdef KR_ASSERTIONS
#define KR_ASSERT(cond) ((cond) ? (void)0 : kri_assert_failed(#cond, __FILE__, __LINE__))
void kri_assert_failed(const char *cond, const char *file, int line) __attribute__((noreturn));
#else
#define KR_ASSERT(cond) ((void)sizeof(cond))
#endif

#endif
