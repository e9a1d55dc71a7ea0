/* listen.c: see listen.h. */
#define _GNU_SOURCE /* accept4 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/error.h"

#define BACKLOG 64

kr_status_t rpc_listener_open(unix_socket_t *listener, const char *path, kr_error_t *error) {
    KR_TRY(unix_socket_bind(listener, path, "socket", error));
    if (listen(listener->fd, BACKLOG) == 0) return KR_OK;
    const int why = errno;
    unix_socket_close(listener);
    return KRI_FAIL(error, KR_E_IO, "socket", "cannot listen at %s: %s", path, strerror(why));
}

int rpc_listener_accept(const unix_socket_t *listener) {
    return accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
}

bool rpc_is_socket(int fd) {
    struct stat info;
    return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode);
}

void rpc_set_nonblocking(int fd, int *flags) {
    struct stat info;
    *flags = -1;
    if (fstat(fd, &info) != 0 || !S_ISFIFO(info.st_mode)) return;
    const int before = fcntl(fd, F_GETFL);
    if (before < 0 || (before & O_NONBLOCK)) return;
    if (fcntl(fd, F_SETFL, before | O_NONBLOCK) == 0) *flags = before;
}
