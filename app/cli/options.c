/* options.c: the command line. Strict on purpose: a number must be the whole word and inside its
 * bounds, an option may be given once, an unknown word is refused with the nearest known one. */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "report.h"

const cli_command_t cli_commands[CLI_N_COMMANDS] = {
#define KR_COMMAND(id, function, usage, n_positional, summary, examples) \
    [CLI_COMMAND_##id] = {#id, function, usage, n_positional, summary, examples},
#include "commands.def"
};

#define C(id) (1u << CLI_COMMAND_##id)
const cli_option_row_t cli_option_rows[CLI_N_OPTIONS] = {
#define KR_OPTION(id, kind, s, l, value, env, min, max, preset, commands, group, help) \
    [CLI_OPT_##id] = {CLI_KIND_##kind, s, l, value, env, (int64_t)(min), (int64_t)(max), \
                      (double)(min), (double)(max), preset, commands, group, help},
#include "options.def"
};
#undef C

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

/* ---- words and numbers -------------------------------------------------------------------- */

#define WORD_BYTES_MAX 40

unsigned cli_word_distance(const char *a, const char *b) {
    size_t n_a = strlen(a), n_b = strlen(b);
    if (n_a > WORD_BYTES_MAX || n_b > WORD_BYTES_MAX) return 99;
    unsigned cost[WORD_BYTES_MAX + 1][WORD_BYTES_MAX + 1];
    for (size_t i = 0; i <= n_a; i++) cost[i][0] = (unsigned)i;
    for (size_t j = 0; j <= n_b; j++) cost[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n_a; i++) {
        for (size_t j = 1; j <= n_b; j++) {
            unsigned best = cost[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (cost[i - 1][j] + 1 < best) best = cost[i - 1][j] + 1;
            if (cost[i][j - 1] + 1 < best) best = cost[i][j - 1] + 1;
            bool is_swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (is_swap && cost[i - 2][j - 2] + 1 < best) best = cost[i - 2][j - 2] + 1;
            cost[i][j] = best;
        }
    }
    return cost[n_a][n_b];
}

bool cli_parse_integer(const char *text, int64_t *value) {
    const char *digits = text + (text[0] == '-');
    if (digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits)) return false;
    errno = 0;
    long long parsed = strtoll(text, NULL, 10);
    if (errno != 0) return false;
    *value = parsed;
    return true;
}

bool cli_parse_number(const char *text, double *value) {
    if (text[0] == '\0' || strspn(text, "0123456789.eE+-") != strlen(text)) return false;
    if (text[0] == '+' || strpbrk(text, "0123456789") == NULL) return false;
    char *end = NULL;
    double parsed = strtod(text, &end);
    if (*end != '\0' || !isfinite(parsed)) return false;
    *value = parsed;
    return true;
}

/* ---- values ------------------------------------------------------------------------------- */

static int parse_integer(const cli_option_row_t *row, const char *name, const char *text,
                         cli_value_t *value) {
    int64_t parsed = 0;
    bool is_number = cli_parse_integer(text, &parsed);
    if (is_number && parsed >= row->min_integer && parsed <= row->max_integer) {
        value->integer = parsed;
        return 0;
    }
    return cli_usage(name, "%s wants a whole number from %lld to %lld, not '%.64s'", name,
                     (long long)row->min_integer, (long long)row->max_integer, text);
}

static int parse_number(const cli_option_row_t *row, const char *name, const char *text,
                        cli_value_t *value) {
    double parsed = 0;
    bool is_open = row->kind == CLI_KIND_FRACTION;
    bool is_number = cli_parse_number(text, &parsed);
    bool is_low = is_open ? parsed <= row->min_number : parsed < row->min_number;
    /* Below float's smallest number a fraction would become the 0 that is excluded. */
    if (is_open && (float)parsed <= (float)row->min_number) is_low = true;
    if (is_number && !is_low && parsed <= row->max_number) {
        value->number = parsed;
        return 0;
    }
    return cli_usage(name, "%s wants a number %s %g to %g, not '%.64s'", name,
                     is_open ? "above" : "from", row->min_number, row->max_number, text);
}

static int parse_choice(const cli_option_row_t *row, const char *name, const char *text,
                        cli_value_t *value) {
    char known[128] = "";
    const char *next = row->value;
    while (*next != '\0') {
        size_t n = strcspn(next, "|");
        bool is_later = next[0] == '!';
        const char *word = next + is_later;
        size_t n_word = n - is_later;
        if (strlen(text) == n_word && memcmp(text, word, n_word) == 0) {
            if (!is_later) {
                value->text = text;
                return 0;
            }
            return cli_usage(name, "%s %s is not built in this version", name, text);
        }
        if (!is_later) {
            size_t n_known = strlen(known);
            snprintf(known + n_known, sizeof known - n_known, "%s%.*s", n_known > 0 ? ", " : "",
                     (int)n_word, word);
        }
        next += n + (next[n] == '|');
    }
    return cli_usage(name, "%s wants one of %s, not '%.64s'", name, known, text);
}

/* `name` is what the user typed: a flag or the name of an environment variable. */
static int parse_value(cli_option_id_t id, const char *name, const char *text,
                       cli_value_t *value) {
    const cli_option_row_t *row = &cli_option_rows[id];
    switch (row->kind) {
    case CLI_KIND_INTEGER: return parse_integer(row, name, text, value);
    case CLI_KIND_NUMBER:
    case CLI_KIND_FRACTION: return parse_number(row, name, text, value);
    case CLI_KIND_CHOICE: return parse_choice(row, name, text, value);
    case CLI_KIND_FLAG:
    case CLI_KIND_TEXT:
    case CLI_KIND_LIST: break;
    }
    value->text = text;
    return 0;
}

static bool belongs(cli_option_id_t id, cli_command_id_t command) {
    return (cli_option_rows[id].commands >> command & 1u) != 0;
}

static int apply_presets(cli_options_t *options) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_option_row_t *row = &cli_option_rows[id];
        if (row->preset[0] == '\0' || !belongs(id, options->command)) continue;
        int failed = parse_value(id, row->long_name, row->preset, &options->values[id]);
        if (failed != 0) return failed;
    }
    return 0;
}

static int apply_environment(cli_options_t *options) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_option_row_t *row = &cli_option_rows[id];
        cli_value_t *value = &options->values[id];
        if (row->environment[0] == '\0' || !belongs(id, options->command) || value->is_given) {
            continue;
        }
        const char *text = kri_env(row->environment);
        if (text == NULL) continue;
        int failed = parse_value(id, row->environment, text, value);
        if (failed != 0) return failed;
        value->is_given = value->is_from_environment = true;
    }
    return 0;
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
        if (is_same && !belongs(id, options->command)) {
            return cli_usage(name, "`kr %s` does not take %s; see `kr help %s`", command, name,
                             command);
        }
        if (!belongs(id, options->command) || row->long_name[0] == '\0') continue;
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
        if (!belongs(id, options->command) || row->long_name[0] == '\0') continue;
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
    if (row->kind == CLI_KIND_FLAG) {
        return equals == NULL ? 0 : cli_usage(name, "%s takes no value", name);
    }
    const char *text = equals != NULL ? equals + 1 : NULL;
    if (text == NULL) {
        if (*index + 1 >= argc) return cli_usage(name, "%s wants a value", name);
        text = argv[++*index];
    }
    int failed = parse_value(id, name, text, value);
    if (failed == 0 && row->kind == CLI_KIND_LIST) {
        options->items[options->n_items++] = (cli_list_item_t){id, text};
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
    options->items = calloc(n_words, sizeof *options->items);
    if (options->positional == NULL || options->items == NULL) {
        return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    }
    int failed = apply_presets(options);
    if (failed == 0) failed = parse_words(options, argc, argv);
    if (failed == 0 && !cli_given(options, CLI_OPT_help)) failed = apply_environment(options);
    return failed;
}

void cli_options_deinit(cli_options_t *options) {
    free(options->positional);
    free(options->items);
}
