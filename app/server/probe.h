/* probe.h: /readyz tells the truth: when no client has made the server produce a token for a while,
 * the probe does, with a request of one token through endpoint, job, engine and pump. */
#ifndef SERVER_PROBE_H
#define SERVER_PROBE_H

#include "server.h"

#define PROBE_FRESH_MS 30000u  /* readyz is false when the last token is older */
#define PROBE_IDLE_MS 20000u   /* a probe goes out when it is older than this */

/* The pump runs already. Sets server->probe. KR_E_NOMEM, KR_E_IO. */
kr_status_t probe_start(server_t *server, kr_error_t *error);
/* Stops the thread. A probe that is under way is left to end by itself. No-op without a probe. */
void probe_stop(server_t *server);

#endif
