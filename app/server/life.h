/* life.h: signals, reload and the end of a server. One per process.
 *
 * SIGTERM and the first SIGINT drain: readyz is false at once, nothing new is accepted, what runs
 * goes on for at most drain_s, then ends with error events; exit 0. A second one ends the process
 * within a second with 143 or 130. SIGHUP reloads.
 * Signals are blocked in all threads and taken by one of life's own (sigwait): no handler runs. */
#ifndef SERVER_LIFE_H
#define SERVER_LIFE_H

#include "cli/options.h"
#include "log.h"
#include "server.h"

/* On the main thread before any other thread is started, so that all inherit the mask. Until
 * life_serve the first SIGTERM or SIGINT counts as cli_interrupted(), which ends a load. logger may
 * be NULL. Errors KR_E_NOMEM, KR_E_IO. */
kr_status_t life_begin(logger_t *logger, kr_error_t *error);

/* Blocks until the server shall end and its exchanges have been answered or cut. The caller then
 * takes it apart: http_server_destroy, pump, engine, logger. options are those of the command line:
 * a reload reads the config file again and takes over what may change (--drain-s, --log-format,
 * --log-prompts, the keys). Returns the exit code. */
int life_serve(server_t *server, const cli_options_t *options);

/* From any thread, for the endpoints of /admin. Drain: as SIGTERM. Reload: done when it returns; on
 * an error nothing has changed. refused: appended names of options that the file changes but that
 * need a restart, as a JSON array; changed: those taken over. */
void life_drain(void);
kr_status_t life_reload(kri_buffer_t *changed, kri_buffer_t *refused, kr_error_t *error);

/* After everything has been taken apart: stops the signal thread. */
void life_end(void);

#endif
