/* listen.h: the Unix socket of the runtime, and what its descriptors are. */
#ifndef RPC_LISTEN_H
#define RPC_LISTEN_H

#include <stdbool.h>
#include <stdint.h>

#include "server/http/unix_socket.h"

/* Errors KR_E_INVALID_ARG, KR_E_EXISTS (in use, or no socket), KR_E_IO. unix_socket_close ends
 * it. */
kr_status_t rpc_listener_open(unix_socket_t *listener, const char *path, kr_error_t *error);
/* A descriptor, or -1. */
int rpc_listener_accept(const unix_socket_t *listener);

bool rpc_is_socket(int fd);
/* Writes to a pipe must not wait: sets O_NONBLOCK for pipes. *flags: what was set before; -1:
 * nothing was changed. */
void rpc_set_nonblocking(int fd, int *flags);

#endif
