/* fuzz_config.c: any bytes as a configuration file of `kr serve`. What is accepted keeps the bounds
 * of options.def and never overrules a flag; what is refused says why in one line and leaves the
 * options as they were. The first byte picks which options flags have given. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cli/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static void give_flags(cli_options_t *options, uint8_t bits) {
    if ((bits & 1) != 0) {
        options->values[CLI_OPT_port] =
            (cli_value_t){.is_given = true, .source = CLI_SOURCE_FLAG, .integer = 9};
    }
    if ((bits & 2) != 0) {
        options->values[CLI_OPT_allowed_host] =
            (cli_value_t){.is_given = true, .source = CLI_SOURCE_FLAG};
        require(cli_option_add_item(options, CLI_OPT_allowed_host, "flag"));
    }
    if ((bits & 4) != 0) { /* an environment that says "off" */
        options->values[CLI_OPT_log_prompts].source = CLI_SOURCE_ENVIRONMENT;
    }
}

static void check_value(const cli_option_row_t *row, const cli_value_t *value) {
    if (!value->is_given) return;
    if (row->kind == CLI_KIND_INTEGER) {
        require(value->integer >= row->min_integer && value->integer <= row->max_integer);
    } else if (row->kind == CLI_KIND_NUMBER || row->kind == CLI_KIND_FRACTION) {
        require(value->number >= row->min_number && value->number <= row->max_number);
    } else if (row->kind == CLI_KIND_TEXT || row->kind == CLI_KIND_CHOICE) {
        require(value->text != NULL && strlen(value->text) <= CLI_CONFIG_TEXT_BYTES_MAX);
    }
}

static void check(const cli_options_t *options, uint8_t bits) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_value_t *value = &options->values[id];
        if (value->source == CLI_SOURCE_CONFIG) {
            require(cli_option_belongs(id, CLI_COMMAND_serve));
            require(id != CLI_OPT_config && id != CLI_OPT_help);
        }
        check_value(&cli_option_rows[id], value);
    }
    if ((bits & 1) != 0) require(options->values[CLI_OPT_port].integer == 9);
    if ((bits & 4) != 0) require(!options->values[CLI_OPT_log_prompts].is_given);
    size_t n_flag = 0;
    for (size_t i = 0; i < options->n_items; i++) {
        const cli_list_item_t *item = &options->items[i];
        bool is_flag = item->id == CLI_OPT_allowed_host && (bits & 2) != 0;
        require(!is_flag || strcmp(item->text, "flag") == 0);
        n_flag += is_flag;
    }
    require(n_flag == ((bits & 2) != 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) return 0;
    static cli_options_t options, before;
    memset(&options, 0, sizeof options);
    options.command = CLI_COMMAND_serve;
    kr_error_t error;
    kr_error_init(&error);
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        require(cli_option_reset(&options, id, &error) == KR_OK);
    }
    const uint8_t bits = data[0];
    give_flags(&options, bits);
    memcpy(&before, &options, sizeof before);
    char *copy = malloc(n_bytes - 1 + (n_bytes == 1)); /* exact, so that a read past it is seen */
    require(copy != NULL);
    memcpy(copy, data + 1, n_bytes - 1);
    kr_status_t status = cli_config_apply(&options, "kr.json", copy, n_bytes - 1, &error);
    if (status != KR_OK) {
        require(status != KR_E_INTERNAL && error.code == status);
        require(error.message[0] != '\0' && strchr(error.message, '\n') == NULL);
        require(memcmp(&before, &options, sizeof before) == 0);
    } else {
        check(&options, bits);
        /* An empty file takes everything back that the first one has said. The items that were
         * there have been freed by then: flags give at most one. */
        cli_list_item_t item = {CLI_OPT_allowed_host, "flag"};
        before.items = &item;
        require(cli_config_apply(&options, "kr.json", "{}", 2, &error) == KR_OK);
        for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
            require(cli_option_is_same(&before, &options, id));
        }
    }
    free(copy);
    cli_options_deinit(&options);
    return 0;
}
