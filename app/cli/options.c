/* options.c: the command line. Strict on purpose: a number must be the whole word and inside its
 * bounds, an option may be given once, an unknown word is refused with the nearest known one. */
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "config.h"
#include "report.h"

typedef struct later_s {
    const char *name, *what;
} later_t;

static const later_t later_commands[] = {
#define KR_COMMAND_LATER(name, what) {name, what},
#include "commands.def"
};

static const later_t later_options[] = {
#define KR_OPTION_LATER(name, what) {name, what},
#include "options.def"
};

#define N_LATER_COMMANDS (sizeof(later_commands) / sizeof(later_commands[0]))
#define N_LATER_OPTIONS (sizeof(later_options) / sizeof(later_options[0]))

static int report_mistake(const kr_error_t *error) {
    if (error->code == KR_E_NOMEM) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, error);
    return cli_usage(error->param, "%s", error->message);
}

static int parse_value(cli_option_id_t id, const char *name, const char *text,
                       cli_value_t *value) {
    kr_error_t error;
    kr_error_init(&error);
    return cli_option_parse(id, name, text, value, &error) == KR_OK ? 0 : report_mistake(&error);
}

static int apply_presets(cli_options_t *options) {
    kr_error_t error;
    kr_error_init(&error);
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        if (cli_option_reset(options, id, &error) != KR_OK) return report_mistake(&error);
    }
    return 0;
}

/* ---- environment -------------------------------------------------------------------------- */

/* A list in one word: items between commas. */
static int add_environment_items(cli_options_t *options, cli_option_id_t id, const char *name,
                                 const char *text) {
    char *copy = strdup(text);
    void *copies = realloc(options->copies, (options->n_copies + 1) * sizeof *options->copies);
    if (copies != NULL) options->copies = copies;
    if (copy == NULL || copies == NULL) {
        free(copy);
        return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    options->copies[options->n_copies++] = copy;
    for (char *item = copy; item != NULL;) {
        char *comma = strchr(item, ',');
        if (comma != NULL) *comma = '\0';
        if (item[0] == '\0') return cli_usage(name, "%s has an empty item", name);
        if (!cli_option_add_item(options, id, item)) {
            return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
        }
        item = comma != NULL ? comma + 1 : NULL;
    }
    return 0;
}

static int apply_variable(cli_options_t *options, cli_option_id_t id, const char *name,
                          const char *text) {
    cli_value_t *value = &options->values[id];
    int failed = 0;
    value->is_given = true;
    value->source = CLI_SOURCE_ENVIRONMENT;
    if (cli_option_rows[id].kind == CLI_KIND_FLAG) {
        bool is_on = strcmp(text, "1") == 0 || strcmp(text, "true") == 0;
        if (!is_on && strcmp(text, "0") != 0 && strcmp(text, "false") != 0) {
            return cli_usage(name, "%s wants one of 1, true, 0, false, not '%.64s'", name, text);
        }
        value->is_given = is_on;
    } else {
        failed = parse_value(id, name, text, value);
    }
    if (failed == 0 && cli_option_rows[id].kind == CLI_KIND_LIST) {
        failed = add_environment_items(options, id, name, text);
    }
    return failed;
}

static int apply_environment(cli_options_t *options) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        char name[64];
        if (!cli_option_belongs(id, options->command) || options->values[id].is_given ||
            !cli_option_environment(id, options->command, name, sizeof name)) {
            continue;
        }
        const char *text = kri_env(name);
        if (text == NULL) continue;
        int failed = apply_variable(options, id, name, text);
        if (failed != 0) return failed;
    }
    return 0;
}

static int apply_config(cli_options_t *options) {
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = cli_config_read(options, &error);
    if (status == KR_OK) return 0;
    bool is_mistake = status == KR_E_INVALID_ARG || status == KR_E_UNSUPPORTED ||
                      status == KR_E_BAD_FORMAT || status == KR_E_LIMIT;
    return is_mistake ? cli_usage(error.param, "%s", error.message)
                      : cli_report(CLI_PHASE_SETUP, status, &error);
}

/* ---- unknown words ------------------------------------------------------------------------ */

static int refuse_command(const char *word) {
    for (size_t i = 0; i < N_LATER_COMMANDS; i++) {
        if (strcmp(word, later_commands[i].name) != 0) continue;
        return cli_usage("command", "'%s' (%s) is not built in this version", word,
                         later_commands[i].what);
    }
    unsigned best = 3;
    const char *nearest = NULL;
    for (int i = 0; i < CLI_N_COMMANDS; i++) {
        unsigned distance = cli_word_distance(word, cli_commands[i].name);
        if (distance < best) {
            best = distance;
            nearest = cli_commands[i].name;
        }
    }
    if (nearest != NULL) {
        return cli_usage("command", "unknown command '%.64s'; did you mean '%s'?", word, nearest);
    }
    return cli_usage("command", "unknown command '%.64s'; `kr help` lists them", word);
}

static int refuse_option(const cli_options_t *options, const char *name) {
    for (size_t i = 0; i < N_LATER_OPTIONS; i++) {
        if (strcmp(name, later_options[i].name) != 0) continue;
        return cli_usage(name, "%s (%s) is not built in this version", name,
                         later_options[i].what);
    }
    unsigned best = 3;
    const char *nearest = NULL, *command = cli_commands[options->command].name;
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_option_row_t *row = &cli_option_rows[id];
        bool is_same = strcmp(name, row->long_name) == 0 || strcmp(name, row->short_name) == 0;
        if (is_same && !cli_option_belongs(id, options->command)) {
            return cli_usage(name, "`kr %s` does not take %s; see `kr help %s`", command, name,
                             command);
        }
        if (!cli_option_belongs(id, options->command) || row->long_name[0] == '\0') continue;
        unsigned distance = cli_word_distance(name, row->long_name);
        /* "--temperature" for "--temp", "--rep" for "--repeat-penalty" */
        size_t n_name = strlen(name), n_long = strlen(row->long_name);
        size_t n_common = n_name < n_long ? n_name : n_long;
        bool is_prefix = n_common > 4 && strncmp(name, row->long_name, n_common) == 0;
        if (is_prefix && distance > 2) distance = 2;
        if (distance < best) {
            best = distance;
            nearest = row->long_name;
        }
    }
    if (nearest != NULL) {
        return cli_usage(name, "unknown option %.64s; did you mean %s?", name, nearest);
    }
    return cli_usage(name, "unknown option %.64s; see `kr help %s`", name, command);
}

/* ---- the walk over argv ------------------------------------------------------------------- */

static bool find_option(const cli_options_t *options, const char *name, cli_option_id_t *found) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_option_row_t *row = &cli_option_rows[id];
        if (!cli_option_belongs(id, options->command) || row->long_name[0] == '\0') continue;
        if (strcmp(name, row->long_name) == 0 || strcmp(name, row->short_name) == 0) {
            *found = id;
            return true;
        }
    }
    return false;
}

/* One option at argv[*index]; moves *index over its value. */
static int parse_option(cli_options_t *options, int argc, char **argv, int *index) {
    char name[64];
    const char *word = argv[*index];
    const char *equals = word[1] == '-' ? strchr(word, '=') : NULL;
    size_t n_name = equals != NULL ? (size_t)(equals - word) : strlen(word);
    snprintf(name, sizeof name, "%.*s", n_name < sizeof name ? (int)n_name : 63, word);
    cli_option_id_t id;
    if (n_name >= sizeof name || !find_option(options, name, &id)) {
        return refuse_option(options, name);
    }
    const cli_option_row_t *row = &cli_option_rows[id];
    cli_value_t *value = &options->values[id];
    if (value->is_given && row->kind != CLI_KIND_LIST) {
        return cli_usage(name, "%s is given twice", name);
    }
    value->is_given = true;
    value->source = CLI_SOURCE_FLAG;
    if (row->kind == CLI_KIND_FLAG) {
        return equals == NULL ? 0 : cli_usage(name, "%s takes no value", name);
    }
    const char *text = equals != NULL ? equals + 1 : NULL;
    if (text == NULL) {
        if (*index + 1 >= argc) return cli_usage(name, "%s wants a value", name);
        text = argv[++*index];
    }
    int failed = parse_value(id, name, text, value);
    if (failed == 0 && row->kind == CLI_KIND_LIST && !cli_option_add_item(options, id, text)) {
        failed = cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    return failed;
}

static int parse_words(cli_options_t *options, int argc, char **argv) {
    const cli_command_t *command = &cli_commands[options->command];
    bool options_ended = false;
    for (int i = 2; i < argc; i++) {
        const char *word = argv[i];
        if (!options_ended && strcmp(word, "--") == 0) {
            options_ended = true;
        } else if (!options_ended && word[0] == '-' && word[1] != '\0') {
            int failed = parse_option(options, argc, argv, &i);
            if (failed != 0 || cli_given(options, CLI_OPT_help)) return failed;
        } else if (options->n_positional < command->n_positional_max) {
            options->positional[options->n_positional++] = word;
        } else {
            const char *hint = options->command == CLI_COMMAND_run ? " (a prompt goes behind -p)"
                                                                   : "";
            return cli_usage(NULL, "unexpected argument '%.64s'%s; see `kr help %s`", word, hint,
                             command->name);
        }
    }
    return 0;
}

int cli_options_parse(int argc, char **argv, cli_options_t *options) {
    memset(options, 0, sizeof *options);
    const char *word = argc > 1 ? argv[1] : "help";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) word = "help";
    if (strcmp(word, "--version") == 0) word = "version";
    int command = 0;
    while (command < CLI_N_COMMANDS && strcmp(word, cli_commands[command].name) != 0) command++;
    if (command == CLI_N_COMMANDS) return refuse_command(word);
    options->command = (cli_command_id_t)command;
    size_t n_words = (size_t)argc + 1;
    options->positional = calloc(n_words, sizeof *options->positional);
    if (options->positional == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    int failed = apply_presets(options);
    if (failed == 0) failed = parse_words(options, argc, argv);
    if (failed == 0 && !cli_given(options, CLI_OPT_help)) failed = apply_environment(options);
    if (failed == 0 && !cli_given(options, CLI_OPT_help)) failed = apply_config(options);
    return failed;
}
