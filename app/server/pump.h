/* pump.h: the one thread that polls the engine's events, hands each to its job and lets every
 * connection's bytes go once per batch: what a step produced leaves in one write. */
#ifndef SERVER_PUMP_H
#define SERVER_PUMP_H

#include "server.h"

/* server->engine is there already and polls its events; sets server->pump. KR_E_NOMEM, KR_E_IO. */
kr_status_t pump_start(server_t *server, kr_error_t *error);
/* Stops the thread once no job is left: after kr_engine_drain, or after job_abort_all. NULL: a
 * no-op. */
void pump_stop(pump_t *pump);

#endif
