/* log.c: the queue of lines and the thread that writes them. Callers only append to a ring under a
 * mutex; the thread waits for the descriptor with poll and writes no more than a pipe takes in one
 * piece, so a full pipe, a stopped terminal or a broken one delays nobody but this thread. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "log_line.h"

#define RING_BYTES ((size_t)1 << 20)
#define WRITE_BYTES 4096 /* PIPE_BUF: what poll promises room for */
#define NS_PER_S 1000000000u

static const char *const kind_names[N_LOG_KINDS] = {
    [LOG_KIND_REQUEST] = "request", [LOG_KIND_LIFE] = "life",     [LOG_KIND_ACCESS] = "access",
    [LOG_KIND_LIBRARY] = "library", [LOG_KIND_SERVER] = "server", [LOG_KIND_PROMPT] = "prompt"};

typedef struct kind_s {
    uint64_t second;    /* of the monotonic clock, that n_lines counts for */
    uint32_t n_lines;
    uint64_t n_dropped; /* not yet said */
} kind_t;

struct logger_s {
    _Atomic bool is_json;
    _Atomic uint64_t n_dropped;
    int fd; /* -1: discards everything */
    pthread_t thread;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wake;   /* lines have come, or the end */
    pthread_cond_t idle;   /* everything is written */
    size_t begin, n_bytes; /* of the ring */
    kind_t kinds[N_LOG_KINDS];
    bool is_ending, is_broken, has_ended;
    bool is_abandoned; /* the thread frees it */
    char ring[RING_BYTES];
};

/* ---- the queue ---------------------------------------------------------------------------- */

static bool append(logger_t *logger, const log_line_t *line) {
    if (line->n_bytes > RING_BYTES - logger->n_bytes) return false;
    const size_t end = (logger->begin + logger->n_bytes) % RING_BYTES;
    const size_t n_first = RING_BYTES - end < line->n_bytes ? RING_BYTES - end : line->n_bytes;
    memcpy(logger->ring + end, line->data, n_first);
    memcpy(logger->ring, line->data + n_first, line->n_bytes - n_first);
    logger->n_bytes += line->n_bytes;
    return true;
}

/* Says how many lines of a kind were dropped, once there is room to say it. */
static void say_dropped(logger_t *logger, log_kind_t kind) {
    kind_t *state = &logger->kinds[kind];
    if (state->n_dropped == 0) return;
    log_line_t line;
    char text[96], number[32];
    log_line_begin(&line, atomic_load(&logger->is_json), KR_LOG_WARN, "dropped");
    snprintf(text, sizeof text, "lines were dropped");
    snprintf(number, sizeof number, "%llu", (unsigned long long)state->n_dropped);
    log_line_put_text(&line, NULL, text, strlen(text));
    log_line_put_text(&line, "kind", kind_names[kind], strlen(kind_names[kind]));
    log_line_put_value(&line, "n", number);
    log_line_end(&line);
    if (append(logger, &line)) state->n_dropped = 0;
}

static void push(logger_t *logger, log_kind_t kind, const log_line_t *line) {
    const uint64_t second = kri_clock_ns() / NS_PER_S;
    pthread_mutex_lock(&logger->mutex);
    kind_t *state = &logger->kinds[kind];
    if (!logger->is_broken && !logger->is_ending) {
        if (state->second != second) {
            say_dropped(logger, kind);
            state->second = second;
            state->n_lines = 0;
        }
        const bool is_kept = state->n_lines < LOG_LINES_PER_S && append(logger, line);
        state->n_lines += is_kept;
        state->n_dropped += !is_kept;
        if (!is_kept) atomic_fetch_add_explicit(&logger->n_dropped, 1, memory_order_relaxed);
        if (is_kept || state->n_dropped == 1) pthread_cond_signal(&logger->wake);
    }
    pthread_mutex_unlock(&logger->mutex);
}

/* ---- the thread --------------------------------------------------------------------------- */

static void deadline_after(uint64_t ms, struct timespec *deadline) {
    clock_gettime(CLOCK_MONOTONIC, deadline);
    const uint64_t ns = (uint64_t)deadline->tv_nsec + ms % 1000 * 1000000;
    deadline->tv_sec += (time_t)(ms / 1000 + ns / NS_PER_S);
    deadline->tv_nsec = (long)(ns % NS_PER_S);
}

static bool owes_words(const logger_t *logger) {
    for (uint32_t kind = 0; kind < N_LOG_KINDS; kind++) {
        if (logger->kinds[kind].n_dropped > 0) return true;
    }
    return false;
}

static void say_all_dropped(logger_t *logger) {
    for (uint32_t kind = 0; kind < N_LOG_KINDS; kind++) say_dropped(logger, kind);
}

/* Under the mutex: waits until there is something to write; false at the end. What was dropped is
 * said within a second also when no more lines of that kind come. */
static bool wait_for_lines(logger_t *logger) {
    while (logger->n_bytes == 0) {
        if (logger->is_ending) say_all_dropped(logger);
        if (logger->n_bytes > 0) break;
        pthread_cond_broadcast(&logger->idle);
        if (logger->is_ending) return false;
        if (!owes_words(logger)) {
            pthread_cond_wait(&logger->wake, &logger->mutex);
            continue;
        }
        struct timespec deadline;
        deadline_after(1000, &deadline);
        if (pthread_cond_timedwait(&logger->wake, &logger->mutex, &deadline) == ETIMEDOUT) {
            say_all_dropped(logger);
        }
    }
    return true;
}

/* What can be written next, without the mutex while waiting; false: broken for good. */
static bool write_some(int fd, const char *data, size_t n_bytes, size_t *n_written) {
    struct pollfd poller = {.fd = fd, .events = POLLOUT};
    *n_written = 0;
    if (poll(&poller, 1, -1) < 0) return errno == EINTR;
    const ssize_t n = write(fd, data, n_bytes);
    if (n >= 0) *n_written = (size_t)n;
    return n >= 0 || errno == EINTR || errno == EAGAIN;
}

static void dispose(logger_t *logger) {
    if (logger->fd >= 0) close(logger->fd);
    pthread_mutex_destroy(&logger->mutex);
    pthread_cond_destroy(&logger->wake);
    pthread_cond_destroy(&logger->idle);
    free(logger);
}

static void *run(void *user) {
    logger_t *logger = user;
    char chunk[WRITE_BYTES];
    pthread_mutex_lock(&logger->mutex);
    while (!logger->is_broken && wait_for_lines(logger)) {
        size_t n = logger->n_bytes < sizeof chunk ? logger->n_bytes : sizeof chunk;
        if (n > RING_BYTES - logger->begin) n = RING_BYTES - logger->begin;
        memcpy(chunk, logger->ring + logger->begin, n);
        pthread_mutex_unlock(&logger->mutex);
        size_t n_written = 0;
        const bool is_good = write_some(logger->fd, chunk, n, &n_written);
        pthread_mutex_lock(&logger->mutex);
        logger->begin = (logger->begin + n_written) % RING_BYTES;
        logger->n_bytes -= n_written;
        if (!is_good) logger->is_broken = true;
    }
    logger->has_ended = true;
    const bool is_mine = logger->is_abandoned;
    pthread_cond_broadcast(&logger->idle);
    pthread_mutex_unlock(&logger->mutex);
    if (is_mine) dispose(logger);
    return NULL;
}

/* Signals are for others. */
static bool start_thread(logger_t *logger) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    const int failed = pthread_create(&logger->thread, NULL, run, logger);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed == 0;
}

/* ---- life --------------------------------------------------------------------------------- */

logger_t *logger_create(int fd, bool is_json) {
    logger_t *logger = calloc(1, sizeof *logger);
    if (logger == NULL) return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&logger->mutex, NULL);
    pthread_cond_init(&logger->wake, &attributes);
    pthread_cond_init(&logger->idle, &attributes);
    pthread_condattr_destroy(&attributes);
    atomic_store(&logger->is_json, is_json);
    logger->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    logger->is_broken = logger->fd < 0;
    if (start_thread(logger)) return logger;
    dispose(logger);
    return NULL;
}

/* Under the mutex. */
static void wait_until_idle(logger_t *logger, uint32_t timeout_ms) {
    struct timespec deadline;
    deadline_after(timeout_ms, &deadline);
    while (!logger->has_ended && !logger->is_broken &&
           (logger->n_bytes > 0 || logger->is_ending)) {
        if (pthread_cond_timedwait(&logger->idle, &logger->mutex, &deadline) == ETIMEDOUT) return;
    }
}

void logger_flush(logger_t *logger, uint32_t timeout_ms) {
    if (logger == NULL) return;
    pthread_mutex_lock(&logger->mutex);
    wait_until_idle(logger, timeout_ms);
    pthread_mutex_unlock(&logger->mutex);
}

void logger_destroy(logger_t *logger) {
    if (logger == NULL) return;
    pthread_mutex_lock(&logger->mutex);
    logger->is_ending = true;
    pthread_cond_signal(&logger->wake);
    wait_until_idle(logger, 1000);
    const bool has_ended = logger->has_ended;
    logger->is_abandoned = !has_ended; /* it hangs in a descriptor */
    if (!has_ended) pthread_detach(logger->thread);
    pthread_mutex_unlock(&logger->mutex);
    if (!has_ended) return;
    pthread_join(logger->thread, NULL);
    dispose(logger);
}

void logger_set_json(logger_t *logger, bool is_json) {
    if (logger != NULL) atomic_store(&logger->is_json, is_json);
}

uint64_t logger_n_dropped(const logger_t *logger) {
    return logger != NULL ? atomic_load_explicit(&logger->n_dropped, memory_order_relaxed) : 0;
}

/* ---- lines -------------------------------------------------------------------------------- */

static void put_number(log_line_t *line, const char *name, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    log_line_put_value(line, name, text);
}

static void put_c_text(log_line_t *line, const char *name, const char *text) {
    log_line_put_text(line, name, text, strlen(text));
}

void logger_request(logger_t *logger, const log_request_t *done) {
    if (logger == NULL) return;
    const http_request_t *request = done->request;
    log_line_t line;
    char ms[48];
    const kr_log_level_t level = done->status >= 500 ? KR_LOG_WARN : KR_LOG_INFO;
    log_line_begin(&line, atomic_load(&logger->is_json), level, "request");
    const size_t n_method = request->method.n_bytes < 32 ? request->method.n_bytes : 32;
    log_line_put_text(&line, line.is_json ? "method" : NULL, request->method.data, n_method);
    put_c_text(&line, line.is_json ? "route" : NULL, done->route != NULL ? done->route : "other");
    put_number(&line, line.is_json ? "status" : NULL, (uint64_t)done->status);
    snprintf(ms, sizeof ms, "%.3f", done->ms);
    log_line_put_value(&line, "ms", ms);
    put_number(&line, "bytes", done->n_bytes);
    if (done->has_tokens) {
        put_number(&line, "n_prompt", done->n_prompt);
        put_number(&line, "n_cached", done->n_cached);
        put_number(&line, "n_generated", done->n_generated);
    }
    if (done->key_name != NULL && done->key_name[0] != '\0') {
        put_c_text(&line, "key", done->key_name);
    }
    put_c_text(&line, "peer", request->peer);
    put_c_text(&line, "id", request->id);
    if (done->route == NULL && request->path.n_bytes > 0) {
        log_line_put_text(&line, "path", request->path.data, request->path.n_bytes);
    }
    log_line_end(&line);
    push(logger, LOG_KIND_REQUEST, &line);
}

void logger_line(logger_t *logger, log_kind_t kind, kr_log_level_t level, const char *format,
                 ...) {
    if (logger == NULL) return;
    char text[LOG_LINE_BYTES_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_line_t line;
    log_line_begin(&line, atomic_load(&logger->is_json), level, kind_names[kind]);
    put_c_text(&line, NULL, text);
    log_line_end(&line);
    push(logger, kind, &line);
}

void logger_prompt(logger_t *logger, const char *id, const char *text, size_t n_bytes) {
    if (logger == NULL) return;
    log_line_t line;
    log_line_begin(&line, atomic_load(&logger->is_json), KR_LOG_INFO, "prompt");
    put_c_text(&line, "id", id);
    log_line_put_text(&line, line.is_json ? "text" : "prompt", text, n_bytes);
    log_line_end(&line);
    push(logger, LOG_KIND_PROMPT, &line);
}

void logger_on_library(kr_log_level_t level, const char *text, void *user) {
    logger_line(user, LOG_KIND_LIBRARY, level, "%s", text);
}
