/* listen.h: the Unix socket of the runtime, and what its descriptors are. */
#ifndef RPC_LISTEN_H
#define RPC_LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "kr.h"

typedef struct rpc_listener_s {
    int fd;                    /* -1: none */
    char path[108];
    uint64_t device, inode;    /* of the file it has made */
} rpc_listener_t;

/* Mode 0600; a socket on which nobody listens is replaced. Errors KR_E_INVALID_ARG, KR_E_EXISTS (in
 * use, or no socket), KR_E_IO. */
kr_status_t rpc_listener_open(rpc_listener_t *listener, const char *path, kr_error_t *error);
/* A descriptor, or -1. */
int rpc_listener_accept(const rpc_listener_t *listener);
/* Removes the file if it is still the same. */
void rpc_listener_close(rpc_listener_t *listener);

bool rpc_is_socket(int fd);
/* Writes to a pipe must not wait: sets O_NONBLOCK for pipes. *flags: what was set before; -1:
 * nothing was changed. */
void rpc_set_nonblocking(int fd, int *flags);

#endif
