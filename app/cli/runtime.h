/* runtime.h: the runtime of `kr runtime` inside any program: the addon of Node runs it on a thread
 * of its own, with a socket to the same process as its client. */
#ifndef CLI_RUNTIME_H
#define CLI_RUNTIME_H

#include <stdatomic.h>

#include "options.h"
#include "rpc/rpc.h"

typedef struct cli_runtime_s {
    const cli_options_t *options; /* of `kr runtime`; there until rpc_destroy */
    bool is_embedded;          /* signals are not its own, and the process does not end with it */
    _Atomic int64_t deadline_s; /* in effect */
    rpc_t *rpc;
} cli_runtime_t;

/* options and is_embedded are set; the descriptors are owned from now on. Then rpc_run and
 * rpc_destroy. 0, or an exit code that was reported. */
int cli_runtime_create(cli_runtime_t *runtime, int in_fd, int out_fd);
/* The models of the options. */
int cli_runtime_load(const cli_runtime_t *runtime);

#endif
