/* models.h: models known by alias (models.def) and where their files are. */
#ifndef CLI_MODELS_H
#define CLI_MODELS_H

#include <stddef.h>
#include <stdint.h>

#include "options.h"

typedef struct cli_model_row_s {
    const char *alias, *file, *sha256, *title;
    uint64_t bytes;
} cli_model_row_t;

extern const cli_model_row_t cli_model_rows[];
extern const size_t cli_n_model_rows;

const cli_model_row_t *cli_model_find(const char *alias);
/* Path of an alias's file into path [cap]; 0 or a reported exit code. */
int cli_model_path(const cli_options_t *options, const char *alias, char *path, size_t cap);
/* The file that `name` (alias or path) means; checks that an alias's file is here. */
int cli_model_resolve(const cli_options_t *options, const char *name, char *path, size_t cap);

#define CLI_PATH_BYTES_MAX 4096

#endif
