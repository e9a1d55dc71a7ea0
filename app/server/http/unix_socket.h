/* unix_socket.h: a Unix socket to listen on, for the server and the runtime. */
#ifndef SERVER_HTTP_UNIX_SOCKET_H
#define SERVER_HTTP_UNIX_SOCKET_H

#include <stdint.h>

#include "kr.h"

typedef struct unix_socket_s {
    int fd;                    /* -1: none */
    char path[108];
    uint64_t device, inode;    /* of the file it has made */
} unix_socket_t;

/* Binds it: not blocking, mode 0600, not listening yet; a socket on which nobody listens is
 * replaced. param: of errors: KR_E_INVALID_ARG (the path), KR_E_EXISTS (in use, or no socket),
 * KR_E_IO. */
kr_status_t unix_socket_bind(unix_socket_t *one, const char *path, const char *param,
                             kr_error_t *error);
/* Closes it and removes the file, if it is still the same. */
void unix_socket_close(unix_socket_t *one);

#endif
