/* life.h: signals, reload, the log and the end of a server. One per process.
 *
 * SIGTERM and the first SIGINT drain: readyz is false at once, nothing new is accepted, what runs
 * goes on for at most --drain-s, then ends with error events; exit 0. A second one ends the process
 * within a second with 143 or 130. SIGHUP reloads. A device that is lost drains too; exit 75.
 * Signals are blocked in all threads and taken by one of life's own (sigwait): no handler runs. */
#ifndef CLI_LIFE_H
#define CLI_LIFE_H

#include "options.h"
#include "server/log.h"
#include "server/server.h"

/* On the main thread before any other thread is started, so that all inherit the mask. Closed
 * standard descriptors are opened on /dev/null, or a socket would take their place. *logger is
 * life's, also the library's lines go there. Until life_serve the first SIGTERM or SIGINT counts as
 * cli_interrupted(), which ends a load. Errors KR_E_NOMEM, KR_E_IO. */
kr_status_t life_begin(const cli_options_t *options, logger_t **logger, kr_error_t *error);

/* Blocks until the server shall end and its exchanges have been answered or ended with errors. The
 * caller then takes it apart. options: as life_begin. Returns the exit code. */
int life_serve(server_t *server);

/* After everything else: stops the threads, frees the logger. A no-op without life_begin. */
void life_end(void);

/* For server->control, before server_listen. */
extern const server_control_t life_control;

#endif
