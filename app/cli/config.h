/* config.h: the file of --config: one JSON object whose keys are the long names of the command's
 * options without dashes: {"port": 8080, "api-key-file": "keys", "log-prompts": true}. Strict:
 * unknown and repeated keys, wrong types and values out of bounds are refused, naming file and key.
 * A flag wins over the environment, the environment over the file, the file over the default. */
#ifndef CLI_CONFIG_H
#define CLI_CONFIG_H

#include "kr.h"
#include "options.h"

#define CLI_CONFIG_BYTES_MAX ((size_t)1 << 20)
#define CLI_CONFIG_ITEMS_MAX 1024 /* of one list */
#define CLI_CONFIG_TEXT_BYTES_MAX 4095

/* text [n_bytes] is the content of the file `name` (for messages). Options whose value does not
 * come from a flag or the environment are set to the file's, or to their default where the file
 * says nothing. On an error, options are as before.
 * Errors KR_E_BAD_FORMAT (no JSON object), KR_E_INVALID_ARG (param: the key), KR_E_UNSUPPORTED
 * (unknown keys, values that are not built), KR_E_LIMIT, KR_E_NOMEM. */
kr_status_t cli_config_apply(cli_options_t *options, const char *name, const char *text,
                             size_t n_bytes, kr_error_t *error);
/* Reads the file that --config names and applies it; nothing to do where there is none. */
kr_status_t cli_config_read(cli_options_t *options, kr_error_t *error);
/* The same options with the file as it is now; *fresh is independent of `options` but for texts of
 * flags and environment, and ended by cli_options_deinit, also on an error. */
kr_status_t cli_config_read_again(const cli_options_t *options, cli_options_t *fresh,
                                  kr_error_t *error);

#endif
