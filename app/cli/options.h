/* options.h: commands and options of one invocation, parsed strictly from the tables. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

typedef enum cli_command_id_e {
#define KR_COMMAND(id, ...) CLI_COMMAND_##id,
#include "commands.def"
    CLI_N_COMMANDS
} cli_command_id_t;

typedef enum cli_option_id_e {
#define KR_OPTION(id, ...) CLI_OPT_##id,
#include "options.def"
    CLI_N_OPTIONS
} cli_option_id_t;

typedef enum cli_kind_e {
    CLI_KIND_FLAG,
    CLI_KIND_INTEGER,
    CLI_KIND_NUMBER,
    CLI_KIND_FRACTION,
    CLI_KIND_TEXT,
    CLI_KIND_LIST,
    CLI_KIND_CHOICE
} cli_kind_t;

typedef struct cli_option_row_s {
    cli_kind_t kind;
    const char *short_name, *long_name, *value, *environment;
    int64_t min_integer, max_integer;
    double min_number, max_number;
    const char *preset;
    uint32_t commands; /* bits of cli_command_id_t */
    const char *group, *help;
} cli_option_row_t;

typedef struct cli_options_s cli_options_t;

typedef struct cli_command_s {
    const char *name;
    int (*run)(const cli_options_t *options);
    const char *usage;
    uint32_t n_positional_max;
    const char *summary, *examples;
} cli_command_t;

/* Who has said it; the later one in this list wins. */
typedef enum cli_source_e {
    CLI_SOURCE_PRESET,
    CLI_SOURCE_CONFIG, /* the file of --config */
    CLI_SOURCE_ENVIRONMENT,
    CLI_SOURCE_FLAG
} cli_source_t;

typedef struct cli_value_s {
    bool is_given; /* by flag, environment or file; of a FLAG: it is on */
    cli_source_t source;
    int64_t integer;
    double number;
    const char *text;
} cli_value_t;

typedef struct cli_list_item_s {
    cli_option_id_t id;
    const char *text;
} cli_list_item_t;

struct cli_options_s {
    cli_command_id_t command;
    cli_value_t values[CLI_N_OPTIONS];
    const char **positional;
    size_t n_positional;
    cli_list_item_t *items; /* values of LIST options in the order given */
    size_t n_items, items_capacity;
    char **copies; /* of lists in the environment, cut at their commas */
    size_t n_copies;
    struct json_t *config; /* of the file; holds the texts that come from it */
};

extern const cli_command_t cli_commands[CLI_N_COMMANDS]; /* main.c; in the addon of Node host.c */
extern const cli_option_row_t cli_option_rows[CLI_N_OPTIONS];

/* Parses argv[1..]; the command is the first word. Returns 0 or an exit code already reported. */
int cli_options_parse(int argc, char **argv, cli_options_t *options);
void cli_options_deinit(cli_options_t *options);

static inline bool cli_given(const cli_options_t *options, cli_option_id_t id) {
    return options->values[id].is_given;
}
static inline int64_t cli_integer(const cli_options_t *options, cli_option_id_t id) {
    return options->values[id].integer;
}
/* For options whose bounds fit 32 bits. */
static inline uint32_t cli_u32(const cli_options_t *options, cli_option_id_t id) {
    return (uint32_t)options->values[id].integer;
}
static inline double cli_number(const cli_options_t *options, cli_option_id_t id) {
    return options->values[id].number;
}
/* NULL when not set and without default. */
static inline const char *cli_text(const cli_options_t *options, cli_option_id_t id) {
    return options->values[id].text;
}

/* Asked for by this invocation; what stands in the environment holds for all. */
static inline bool cli_is_typed(const cli_value_t *value) {
    return value->is_given && value->source != CLI_SOURCE_ENVIRONMENT;
}

/* ---- option_table.c ---- */

bool cli_option_belongs(cli_option_id_t id, cli_command_id_t command);
/* Parses a value within its bounds. `name` is what the user wrote: a flag, a variable, a key. */
kr_status_t cli_option_parse(cli_option_id_t id, const char *name, const char *text,
                             cli_value_t *value, kr_error_t *error);
/* Can stand in the environment and, but for --config, in its file: everything with a long name that
 * is not asked of one invocation only (--help, --json). */
bool cli_option_is_setting(cli_option_id_t id);
/* Back to the default. */
kr_status_t cli_option_reset(cli_options_t *options, cli_option_id_t id, kr_error_t *error);
/* The variable that sets this option; false: none does. Commands with --config have one for each
 * option: KR_ and the long name. */
bool cli_option_environment(cli_option_id_t id, cli_command_id_t command, char *name, size_t cap);
bool cli_option_add_item(cli_options_t *options, cli_option_id_t id, const char *text);
bool cli_option_is_same(const cli_options_t *a, const cli_options_t *b, cli_option_id_t id);

/* Whole-string decimal numbers without white space, '+', hexadecimal, NaN or infinity. */
bool cli_parse_integer(const char *text, int64_t *value);
bool cli_parse_number(const char *text, double *value);
/* Number of edits (insert, delete, replace, swap) between two short words; 99 when long. */
unsigned cli_word_distance(const char *a, const char *b);

/* ---- help.c ---- */
void cli_help_print(bool to_stderr);
void cli_help_print_command(cli_command_id_t command);

/* ---- the commands ---- */
#define KR_COMMAND(id, function, ...) int function(const cli_options_t *options);
#include "commands.def"

#endif
