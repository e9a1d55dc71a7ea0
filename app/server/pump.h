/* pump.h: the one thread that polls the engine's events, hands each to its consumer and lets every
 * connection's bytes go once per batch: what a step produced leaves in one write. */
#ifndef SERVER_PUMP_H
#define SERVER_PUMP_H

#include "job.h"
#include "server.h"

/* Consumer of a request's events: kr_request_params_t.user of every request of the engine points to
 * one. `take` is called on the pump thread and must not block; the consumer may free itself with
 * the last event (DONE or ERROR). */
typedef struct pump_user_s pump_user_t;
struct pump_user_s {
    void (*take)(pump_user_t *user, pump_t *pump, const kr_event_t *event);
};

/* server->engine is there already and has no callback; sets server->pump. KR_E_NOMEM, KR_E_IO. */
kr_status_t pump_start(server_t *server, kr_error_t *error);
/* Stops the thread: after all jobs have ended (kr_engine_drain, or job_abort_all and it). Sets
 * server->pump to NULL; a no-op when it is. */
void pump_stop(server_t *server);
/* For job.c: this job's bytes are sent at the end of the batch. In `take` only. */
void pump_touch(pump_t *pump, job_t *job);
/* For job.c: looks at what waits (job_open_waiting) soon. Any thread. */
void pump_wake(pump_t *pump);

#endif
