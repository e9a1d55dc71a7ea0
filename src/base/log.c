/* log.c: formats a line on the stack and hands it to the host's callback. Nothing is kept and
 * nothing is allocated, so that failing allocations can be logged too. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"

/* Longer lines are cut. */
#define LINE_BYTES 1024

/* kr_log_set comes before other threads; the atomics only keep a host that breaks this rule from
 * calling through a torn pointer. */
static _Atomic(kr_log_fn) log_fn;
static _Atomic(void *) log_user;
static _Atomic int32_t log_level_max;

void kr_log_set(kr_log_fn fn, kr_log_level_t level_max, void *user) {
    atomic_store_explicit(&log_level_max, level_max, memory_order_relaxed);
    atomic_store_explicit(&log_user, user, memory_order_relaxed);
    atomic_store_explicit(&log_fn, fn, memory_order_release);
}

void kri_log(kr_log_level_t level, const char *format, ...) {
    const kr_log_fn fn = atomic_load_explicit(&log_fn, memory_order_acquire);
    if (fn == NULL || level > atomic_load_explicit(&log_level_max, memory_order_relaxed)) return;
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    const int n_chars = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (n_chars < 0) return;
    kri_utf8_clean_line(line, strlen(line));
    fn(level, line, atomic_load_explicit(&log_user, memory_order_relaxed));
}
