/* access.h: which Host and Origin a request may have. The server may be reached by pages of the
 * operator's browser: a page must neither rebind a name of its own to this address (Host) nor send
 * requests from elsewhere (Origin).
 *
 * Host: "localhost", "127.0.0.1", "[::1]", the address that is bound, names of --allowed-host; any
 * port. A server that is not bound to loopback (it has keys) takes every numeric address: those
 * cannot be rebound. A request without Host (HTTP/1.0) comes from no browser.
 * Origin: none, the server's own (scheme and Host of this request), those of --allowed-origin. */
#ifndef SERVER_ACCESS_H
#define SERVER_ACCESS_H

#include "server.h"

/* Whether `host` (of --host) is of this machine alone. */
bool access_is_loopback(const char *host);
/* Checks the names of the options: a host name without port, an origin "scheme://host[:port]". */
bool access_is_host_name(const char *name);
bool access_is_origin(const char *origin);

typedef enum access_answer_e { ACCESS_GRANTED, ACCESS_HOST, ACCESS_ORIGIN } access_answer_t;
access_answer_t access_check(const server_t *server, const http_request_t *request);

#endif
