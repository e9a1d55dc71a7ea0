/* serve.c: `kr serve`. */
#include "options.h"
#include "report.h"

int cli_serve(const cli_options_t *options) {
    (void)options;
    return cli_usage("command", "'serve' (the HTTP server) is not built in this version");
}
