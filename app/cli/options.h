/* options.h: commands and options of one invocation, parsed strictly from the tables. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

typedef struct cli_value_s {
    bool is_given; /* by flag or environment */
    bool is_from_environment;
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
    size_t n_items;
};

extern const cli_command_t cli_commands[CLI_N_COMMANDS];
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
