/* server_setup.h: from the options of `kr serve` and `kr batch` to a server with its models. */
#ifndef CLI_SERVER_SETUP_H
#define CLI_SERVER_SETUP_H

#include "options.h"
#include "server/server.h"

/* Checks the -m options without opening anything: names, files, how many. */
int cli_server_check_models(const cli_options_t *options);
/* What one -m means: how the model is called, and its file. */
int cli_server_find_model(const cli_options_t *options, const char *item, char *name,
                          size_t name_cap, char *path, size_t path_cap);
/* An engine of the options, without models. */
int cli_server_create(const cli_options_t *options, server_t **server);
/* Opens all models and adds them. */
int cli_server_load(const cli_options_t *options, server_t *server);

#endif
