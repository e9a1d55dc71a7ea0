/* log.h: what the server says on stderr: one line a request and a few about itself, for people or
 * as JSON. No caller ever waits for stderr: lines go through a bounded queue to a thread of their
 * own; what does not fit, and what is more than 100 lines a second of one kind, is dropped and
 * counted. Control bytes are escaped, a line is cut at 8 KiB. Any thread. */
#ifndef SERVER_LOG_H
#define SERVER_LOG_H

#include "http/http.h"
#include "kr.h"

typedef struct logger_s logger_t;

#define LOG_LINE_BYTES_MAX 8192
#define LOG_LINES_PER_S 100

typedef enum log_kind_e {
    LOG_KIND_REQUEST,  /* logger_request */
    LOG_KIND_LIFE,     /* started, draining, reloaded */
    LOG_KIND_ACCESS,   /* refused keys, hosts, origins */
    LOG_KIND_LIBRARY,  /* logger_on_library */
    LOG_KIND_SERVER,   /* other remarks */
    LOG_KIND_PROMPT,   /* --log-prompts */
    N_LOG_KINDS
} log_kind_t;

/* fd is duplicated; one that is closed or broken discards everything. NULL without memory. */
logger_t *logger_create(int fd, bool is_json);
/* Waits at most timeout_ms until all lines are out. */
void logger_flush(logger_t *logger, uint32_t timeout_ms);
/* Flushes for at most a second. NULL: a no-op, here and below. */
void logger_destroy(logger_t *logger);
void logger_set_json(logger_t *logger, bool is_json);
uint64_t logger_n_dropped(const logger_t *logger);

typedef struct log_request_s {
    const http_request_t *request; /* id, method, peer; the path only where route is NULL */
    const char *route;     /* path of the endpoint's row; NULL = none */
    const char *key_name;  /* "" or NULL = none */
    int status;            /* as server_on_done */
    double ms;
    uint64_t n_bytes;      /* of the answer's body */
    bool has_tokens;       /* a generation: */
    uint64_t n_prompt, n_cached, n_generated;
} log_request_t;
void logger_request(logger_t *logger, const log_request_t *request);

/* One line of text; `level` KR_LOG_ERROR, _WARN or _INFO. */
void logger_line(logger_t *logger, log_kind_t kind, kr_log_level_t level, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The text that a client sent, as a line of its own: only with --log-prompts. */
void logger_prompt(logger_t *logger, const char *id, const char *text, size_t n_bytes);
/* For kr_log_set: user is the logger. */
void logger_on_library(kr_log_level_t level, const char *text, void *user);

#endif
