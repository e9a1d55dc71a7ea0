/* config.c: the configuration file. Values are printed back to text and go through the same parser
 * as flags, so bounds and messages are the same; only the JSON types are checked here. */
#include "config.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/os.h"

/* Long enough for "FILE: key"; a longer file name loses its end. */
#define NAME_BYTES 384

typedef struct config_s {
    cli_options_t *options; /* being built */
    const char *file;
    kr_error_t *error;
} config_t;

/* ---- keys --------------------------------------------------------------------------------- */

/* The file cannot name another file. */
static bool has_key(const config_t *config, cli_option_id_t id) {
    return id != CLI_OPT_config && cli_option_is_setting(id) &&
           cli_option_belongs(id, config->options->command);
}

static kr_status_t find_key(const config_t *config, const char *key, cli_option_id_t *found) {
    unsigned best = 3;
    const char *nearest = NULL;
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        if (!has_key(config, id)) continue;
        const char *name = cli_option_rows[id].long_name + 2;
        if (strcmp(name, key) == 0) {
            *found = id;
            return KR_OK;
        }
        unsigned distance = cli_word_distance(key, name);
        if (distance < best) {
            best = distance;
            nearest = name;
        }
    }
    if (nearest != NULL) {
        return KRI_FAIL(config->error, KR_E_UNSUPPORTED, key,
                        "%.300s: unknown key '%.64s'; did you mean '%s'?", config->file, key,
                        nearest);
    }
    return KRI_FAIL(config->error, KR_E_UNSUPPORTED, key, "%.300s: unknown key '%.64s'",
                    config->file, key);
}

/* ---- values ------------------------------------------------------------------------------- */

static kr_status_t wrong_type(const config_t *config, const char *key, const char *wanted) {
    return KRI_FAIL(config->error, KR_E_INVALID_ARG, key, "%.300s: %s wants %s", config->file, key,
                    wanted);
}

/* A number as the text that a flag would have; 2.0 counts as the whole number 2. */
static bool number_text(const json_t *value, bool is_whole, char *text, size_t cap) {
    if (json_is_integer(value)) {
        snprintf(text, cap, "%lld", (long long)json_integer_value(value));
        return true;
    }
    if (!json_is_real(value)) return false;
    double real = json_real_value(value);
    bool is_exact = fabs(real) < 9007199254740992.0 && !(real < floor(real)) &&
                    !(real > floor(real));
    if (is_whole && is_exact) snprintf(text, cap, "%.0f", real);
    else snprintf(text, cap, "%.17g", real);
    return true;
}

static kr_status_t check_text(const config_t *config, const char *key, const json_t *value,
                              const char *wanted) {
    if (!json_is_string(value)) return wrong_type(config, key, wanted);
    if (json_string_length(value) <= CLI_CONFIG_TEXT_BYTES_MAX) return KR_OK;
    return KRI_FAIL(config->error, KR_E_LIMIT, key, "%.300s: %s is longer than %d bytes",
                    config->file, key, CLI_CONFIG_TEXT_BYTES_MAX);
}

static kr_status_t put_list(config_t *config, cli_option_id_t id, const char *key,
                            const json_t *value, bool is_wanted) {
    if (!json_is_array(value)) return wrong_type(config, key, "a list of texts");
    if (json_array_size(value) > CLI_CONFIG_ITEMS_MAX) {
        return KRI_FAIL(config->error, KR_E_LIMIT, key, "%.300s: %s has more than %d items",
                        config->file, key, CLI_CONFIG_ITEMS_MAX);
    }
    size_t index;
    const json_t *item;
    json_array_foreach(value, index, item) {
        KR_TRY(check_text(config, key, item, "a list of texts"));
        if (is_wanted && !cli_option_add_item(config->options, id, json_string_value(item))) {
            return KRI_FAIL(config->error, KR_E_NOMEM, NULL, "no memory for the options");
        }
    }
    return KR_OK;
}

/* The value, which must be good even where a flag or the environment wins over it. */
static kr_status_t put_value(config_t *config, cli_option_id_t id, const char *key,
                             const json_t *value) {
    const cli_option_row_t *row = &cli_option_rows[id];
    cli_value_t parsed = {.is_given = true, .source = CLI_SOURCE_CONFIG};
    bool is_wanted = config->options->values[id].source <= CLI_SOURCE_CONFIG;
    char text[64], name[NAME_BYTES];
    const char *given = text;
    kr_status_t status = KR_OK;
    snprintf(name, sizeof name, "%.300s: %s", config->file, key);
    switch (row->kind) {
    case CLI_KIND_FLAG:
        if (!json_is_boolean(value)) return wrong_type(config, key, "true or false");
        parsed.is_given = json_is_true(value);
        break;
    case CLI_KIND_LIST: status = put_list(config, id, key, value, is_wanted); break;
    case CLI_KIND_INTEGER:
    case CLI_KIND_NUMBER:
    case CLI_KIND_FRACTION:
        if (!number_text(value, row->kind == CLI_KIND_INTEGER, text, sizeof text)) {
            return wrong_type(config, key, "a number");
        }
        status = cli_option_parse(id, name, text, &parsed, config->error);
        break;
    case CLI_KIND_TEXT:
    case CLI_KIND_CHOICE:
        KR_TRY(check_text(config, key, value, "a text"));
        given = json_string_value(value);
        status = cli_option_parse(id, name, given, &parsed, config->error);
        break;
    }
    if (status == KR_OK && is_wanted) config->options->values[id] = parsed;
    if (status != KR_OK && config->error != NULL) {
        snprintf(config->error->param, sizeof config->error->param, "%s", key);
    }
    return status;
}

static kr_status_t put_all(config_t *config, json_t *root) {
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        cli_option_id_t id = CLI_N_OPTIONS;
        KR_TRY(find_key(config, key, &id));
        KR_TRY(put_value(config, id, cli_option_rows[id].long_name + 2, value));
    }
    return KR_OK;
}

/* ---- the whole file ----------------------------------------------------------------------- */

static kr_status_t parse_file(const char *name, const char *text, size_t n_bytes, json_t **root,
                              kr_error_t *error) {
    if (n_bytes > CLI_CONFIG_BYTES_MAX) {
        return KRI_FAIL(error, KR_E_LIMIT, "config", "%.300s is larger than %zu bytes", name,
                        CLI_CONFIG_BYTES_MAX);
    }
    json_error_t found;
    *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &found);
    if (*root == NULL) {
        if (json_error_code(&found) == json_error_out_of_memory) {
            return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for %.300s", name);
        }
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "config", "%.300s line %d: %s", name, found.line,
                        found.text);
    }
    if (json_is_object(*root)) return KR_OK;
    return KRI_FAIL(error, KR_E_BAD_FORMAT, "config", "%.300s holds no JSON object", name);
}

/* Values and items without what an earlier file has said. */
static kr_status_t copy_without_config(const cli_options_t *from, cli_options_t *to,
                                       kr_error_t *error) {
    *to = *from;
    to->items = NULL;
    to->n_items = to->items_capacity = 0;
    for (size_t i = 0; i < from->n_items; i++) {
        const cli_list_item_t *item = &from->items[i];
        if (from->values[item->id].source == CLI_SOURCE_CONFIG) continue;
        if (!cli_option_add_item(to, item->id, item->text)) {
            return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the options");
        }
    }
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        if (from->values[id].source != CLI_SOURCE_CONFIG) continue;
        KR_TRY(cli_option_reset(to, id, error));
    }
    return KR_OK;
}

kr_status_t cli_config_apply(cli_options_t *options, const char *name, const char *text,
                             size_t n_bytes, kr_error_t *error) {
    json_t *root = NULL;
    cli_options_t next = {.items = NULL};
    kr_status_t status = KR_OK;
    KR_TRY_DONE(parse_file(name, text, n_bytes, &root, error));
    KR_TRY_DONE(copy_without_config(options, &next, error));
    config_t config = {&next, name, error};
    KR_TRY_DONE(put_all(&config, root));
    free(options->items);
    json_decref(options->config);
    *options = next;
    options->config = root;
    return KR_OK;
done:
    free(next.items);
    json_decref(root);
    return status;
}

kr_status_t cli_config_read(cli_options_t *options, kr_error_t *error) {
    if (!cli_option_belongs(CLI_OPT_config, options->command)) return KR_OK;
    const char *name = cli_text(options, CLI_OPT_config);
    if (name == NULL) return KR_OK;
    void *text = NULL;
    size_t n_bytes = 0;
    KR_TRY(kri_file_read(name, CLI_CONFIG_BYTES_MAX, &text, &n_bytes, error));
    kr_status_t status = cli_config_apply(options, name, text, n_bytes, error);
    kri_free(text);
    return status;
}

kr_status_t cli_config_read_again(const cli_options_t *options, cli_options_t *fresh,
                                  kr_error_t *error) {
    kr_status_t status = copy_without_config(options, fresh, error);
    /* What is the original's stays its own. */
    fresh->positional = NULL;
    fresh->n_positional = 0;
    fresh->copies = NULL;
    fresh->n_copies = 0;
    fresh->config = NULL;
    return status == KR_OK ? cli_config_read(fresh, error) : status;
}
