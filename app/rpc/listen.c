/* listen.c: see listen.h. */
#define _GNU_SOURCE /* accept4 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

#define BACKLOG 64

/* Removes a socket on which nobody listens. */
static kr_status_t clear_path(const struct sockaddr_un *address, kr_error_t *error) {
    const char *path = address->sun_path;
    struct stat info;
    if (lstat(path, &info) != 0) {
        if (errno == ENOENT) return KR_OK;
        return KRI_FAIL(error, KR_E_IO, "socket", "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(info.st_mode)) {
        return KRI_FAIL(error, KR_E_EXISTS, "socket", "%s exists and is not a socket", path);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return KRI_FAIL(error, KR_E_IO, "socket", "no socket: %s", strerror(errno));
    const int connected = connect(fd, (const struct sockaddr *)address, sizeof *address);
    const int why = errno;
    (void)close(fd);
    if (connected == 0 || why != ECONNREFUSED) {
        return KRI_FAIL(error, KR_E_EXISTS, "socket", "%s is in use", path);
    }
    if (unlink(path) == 0 || errno == ENOENT) return KR_OK;
    return KRI_FAIL(error, KR_E_IO, "socket", "%s: %s", path, strerror(errno));
}

kr_status_t rpc_listener_open(rpc_listener_t *listener, const char *path, kr_error_t *error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof address.sun_path) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "socket",
                        "the socket's path is empty or over %zu bytes",
                        sizeof address.sun_path - 1);
    }
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    KR_TRY(clear_path(&address, error));
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return KRI_FAIL(error, KR_E_IO, "socket", "no socket: %s", strerror(errno));
    struct stat info;
    /* The mode of the descriptor is the file's from its first moment. */
    if (fchmod(fd, 0600) != 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        lstat(path, &info) != 0 || listen(fd, BACKLOG) != 0) {
        const int why = errno;
        (void)close(fd);
        return KRI_FAIL(error, KR_E_IO, "socket", "cannot bind %s: %s", path, strerror(why));
    }
    listener->fd = fd;
    (void)snprintf(listener->path, sizeof listener->path, "%s", path);
    listener->device = info.st_dev;
    listener->inode = info.st_ino;
    return KR_OK;
}

int rpc_listener_accept(const rpc_listener_t *listener) {
    return accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
}

void rpc_listener_close(rpc_listener_t *listener) {
    struct stat info;
    if (listener->fd < 0) return;
    (void)close(listener->fd);
    listener->fd = -1;
    /* Another may have taken the place. */
    if (lstat(listener->path, &info) == 0 && info.st_dev == listener->device &&
        info.st_ino == listener->inode) {
        (void)unlink(listener->path);
    }
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
