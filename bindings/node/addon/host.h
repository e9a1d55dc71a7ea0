/* host.h: a runtime inside this process. Its client is one end of a socket pair, whose other end
 * the runtime serves as it serves a Unix socket; so both transports run the same code. Knows
 * nothing of Node.
 *
 * Threads. One runs the runtime from its options to its end. One, the carrier, reads lines and
 * hands them on in batches, and writes what the socket did not take at once. Every function here
 * returns without waiting, but host_free, which joins both. */
#ifndef ADDON_HOST_H
#define ADDON_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "rpc/shm.h"

typedef struct host_s host_t;

typedef enum host_event_kind_e {
    HOST_READY,                /* it reads messages */
    HOST_LINES,                /* some lines */
    HOST_DRAINED,              /* what was queued has been written */
    HOST_CLOSED                /* the last one; text: why it could not start, or empty */
} host_event_kind_t;

typedef struct host_event_s {
    host_event_kind_t kind;
    kri_buffer_t text;         /* LINES: each with its newline */
} host_event_t;
void host_event_free(host_event_t *event);

typedef struct host_params_s {
    const char *const *args;   /* [n_args], of `kr runtime`; copied */
    size_t n_args;
    /* The carrier's; takes the event. False: nobody listens any more. */
    bool (*post)(void *user, host_event_t *event);
    void *user;
} host_params_t;

/* NULL: no memory, threads or descriptors. */
host_t *host_create(const host_params_t *params);
/* The end begins: what runs is cancelled, CLOSED follows. */
void host_end(host_t *host);
/* Ends it and waits (two seconds at most, by the runtime's own rules); no event comes any more. */
void host_free(host_t *host);

/* A line without its newline. *n_left: bytes that wait, DRAINED follows when it was not 0. False:
 * it has ended, or no memory. */
bool host_send(host_t *host, const char *line, size_t n_bytes, size_t *n_left);
/* An event of LINES has been dealt with: reading goes on when too much of it was waiting. */
void host_taken(host_t *host, size_t n_bytes);

/* A sealed segment goes to the runtime with the next line; fd is taken over. */
bool host_give(host_t *host, int fd);
/* The descriptor that came with this generation, or -1. */
int host_take(host_t *host, uint64_t generation);

#endif
