/* unix_socket.c: see unix_socket.h. */
#define _GNU_SOURCE
#include "server/http/unix_socket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

/* Removes a socket that nobody listens on. */
static kr_status_t clear_path(const struct sockaddr_un *address, const char *param,
                              kr_error_t *error) {
    struct stat info;
    const char *path = address->sun_path;
    if (lstat(path, &info) != 0) {
        if (errno == ENOENT) return KR_OK;
        return KRI_FAIL(error, KR_E_IO, param, "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(info.st_mode)) {
        return KRI_FAIL(error, KR_E_EXISTS, param, "%s exists and is not a socket", path);
    }
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return KRI_FAIL(error, KR_E_IO, param, "no socket: %s", strerror(errno));
    const int connected = connect(fd, (const struct sockaddr *)address, sizeof *address);
    const int why = errno;
    (void)close(fd);
    if (connected == 0 || why != ECONNREFUSED) {
        return KRI_FAIL(error, KR_E_EXISTS, param, "%s is in use", path);
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        return KRI_FAIL(error, KR_E_IO, param, "%s: %s", path, strerror(errno));
    }
    return KR_OK;
}

kr_status_t unix_socket_bind(unix_socket_t *one, const char *path, const char *param,
                             kr_error_t *error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof address.sun_path) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, param,
                        "the socket's path is empty or over %zu bytes",
                        sizeof address.sun_path - 1);
    }
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    KR_TRY(clear_path(&address, param, error));
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return KRI_FAIL(error, KR_E_IO, param, "no socket: %s", strerror(errno));
    struct stat info;
    /* The mode of the descriptor is the file's from its first moment. */
    if (fchmod(fd, 0600) != 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) != 0 ||
        lstat(path, &info) != 0) {
        const int why = errno;
        (void)close(fd);
        return KRI_FAIL(error, KR_E_IO, param, "cannot bind %s: %s", path, strerror(why));
    }
    *one = (unix_socket_t){.fd = fd, .device = info.st_dev, .inode = info.st_ino};
    (void)snprintf(one->path, sizeof one->path, "%s", path);
    return KR_OK;
}

void unix_socket_close(unix_socket_t *one) {
    struct stat info;
    if (one->fd < 0) return;
    (void)close(one->fd);
    one->fd = -1;
    /* Another may have taken the place. */
    if (lstat(one->path, &info) == 0 && info.st_dev == one->device &&
        info.st_ino == one->inode) {
        (void)unlink(one->path);
    }
}
