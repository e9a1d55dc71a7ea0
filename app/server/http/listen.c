/* listen.c: the sockets that are listened on. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"
#include "server/http/internal.h"

static kr_status_t add(http_server_t *server, int fd, bool is_unix, kr_error_t *error) {
    if (listen(fd, SOMAXCONN) != 0) {
        return KRI_FAIL(error, KR_E_IO, NULL, "cannot listen: %s", strerror(errno));
    }
    server->listeners[server->n_listeners++] = (http_listener_t){
        .source = SOURCE_LISTENER, .fd = fd, .is_unix = is_unix,
        .is_tls = !is_unix && server->tls != NULL};
    return KR_OK;
}

static kr_status_t bind_tcp(http_server_t *server, const struct sockaddr *address,
                            socklen_t n_bytes, const char *host, kr_error_t *error) {
    const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return KRI_FAIL(error, KR_E_IO, "host", "no socket: %s", strerror(errno));
    const int one = 1, zero = 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (address->sa_family == AF_INET6) { /* "::" is all addresses, of both families */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    }
    if (bind(fd, address, n_bytes) != 0) {
        const int why = errno;
        (void)close(fd);
        return KRI_FAIL(error, KR_E_IO, "port", "cannot bind %s port %u: %s", host,
                        (unsigned)server->params.port, strerror(why));
    }
    const kr_status_t status = add(server, fd, false, error);
    if (status != KR_OK) (void)close(fd);
    return status;
}

static uint16_t port_of(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t n_bytes = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &n_bytes) != 0) return 0;
    if (address.ss_family == AF_INET6) {
        return ntohs(((const struct sockaddr_in6 *)(const void *)&address)->sin6_port);
    }
    return ntohs(((const struct sockaddr_in *)(const void *)&address)->sin_port);
}

static kr_status_t listen_tcp(http_server_t *server, kr_error_t *error) {
    const char *host = server->params.host;
    const bool is_local = strcmp(host, "localhost") == 0;
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(server->params.port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(server->params.port)};
    if (inet_pton(AF_INET, is_local ? "127.0.0.1" : host, &four.sin_addr) == 1) {
        KR_TRY(bind_tcp(server, (const struct sockaddr *)&four, sizeof four, host, error));
    } else if (inet_pton(AF_INET6, host, &six.sin6_addr) == 1) {
        KR_TRY(bind_tcp(server, (const struct sockaddr *)&six, sizeof six, host, error));
    } else {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "host",
                        "%s is not a numeric address or \"localhost\"", host);
    }
    server->port = port_of(server->listeners[server->n_listeners - 1].fd);
    if (is_local) { /* also where programs look first; a machine without IPv6 goes without */
        six.sin6_port = htons(server->port);
        six.sin6_addr = in6addr_loopback;
        (void)bind_tcp(server, (const struct sockaddr *)&six, sizeof six, host, NULL);
    }
    return KR_OK;
}

static kr_status_t listen_unix(http_server_t *server, kr_error_t *error) {
    KR_TRY(unix_socket_bind(&server->unix_socket, server->params.unix_path, "unix_path", error));
    return add(server, server->unix_socket.fd, true, error);
}

kr_status_t http_listen(http_server_t *server, kr_error_t *error) {
    if (server->params.host != NULL) KR_TRY(listen_tcp(server, error));
    if (server->params.unix_path != NULL) KR_TRY(listen_unix(server, error));
    for (uint32_t i = 0; i < server->n_listeners; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &server->listeners[i]};
        if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, server->listeners[i].fd, &event) != 0) {
            return KRI_FAIL(error, KR_E_IO, NULL, "epoll: %s", strerror(errno));
        }
    }
    return KR_OK;
}

void http_listeners_close(http_server_t *server) {
    for (uint32_t i = 0; i < server->n_listeners; i++) {
        if (!server->listeners[i].is_unix) (void)close(server->listeners[i].fd);
    }
    server->n_listeners = 0;
    unix_socket_close(&server->unix_socket);
}
