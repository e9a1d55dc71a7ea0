/* option_table.c: the rows of options.def and what can be done with one row: parsing a value inside
 * its bounds, its default, its environment name. Knows neither argv nor the commands' functions, so
 * that the parser of configuration files (config.c) can be tested without them. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "options.h"

#define C(id) (1u << CLI_COMMAND_##id)
const cli_option_row_t cli_option_rows[CLI_N_OPTIONS] = {
#define KR_OPTION(id, kind, s, l, value, env, min, max, preset, commands, group, help) \
    [CLI_OPT_##id] = {CLI_KIND_##kind, s, l, value, env, (int64_t)(min), (int64_t)(max), \
                      (double)(min), (double)(max), preset, commands, group, help},
#include "options.def"
};
#undef C

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

static kr_status_t parse_integer(const cli_option_row_t *row, const char *name, const char *text,
                                 cli_value_t *value, kr_error_t *error) {
    int64_t parsed = 0;
    bool is_number = cli_parse_integer(text, &parsed);
    if (is_number && parsed >= row->min_integer && parsed <= row->max_integer) {
        value->integer = parsed;
        return KR_OK;
    }
    return KRI_FAIL(error, KR_E_INVALID_ARG, name,
                    "%s wants a whole number from %lld to %lld, not '%.64s'", name,
                    (long long)row->min_integer, (long long)row->max_integer, text);
}

static kr_status_t parse_number(const cli_option_row_t *row, const char *name, const char *text,
                                cli_value_t *value, kr_error_t *error) {
    double parsed = 0;
    bool is_open = row->kind == CLI_KIND_FRACTION;
    bool is_number = cli_parse_number(text, &parsed);
    bool is_low = is_open ? parsed <= row->min_number : parsed < row->min_number;
    /* Below float's smallest number a fraction would become the 0 that is excluded. */
    if (is_open && (float)parsed <= (float)row->min_number) is_low = true;
    if (is_number && !is_low && parsed <= row->max_number) {
        value->number = parsed;
        return KR_OK;
    }
    return KRI_FAIL(error, KR_E_INVALID_ARG, name, "%s wants a number %s %g to %g, not '%.64s'",
                    name, is_open ? "above" : "from", row->min_number, row->max_number, text);
}

static kr_status_t parse_choice(const cli_option_row_t *row, const char *name, const char *text,
                                cli_value_t *value, kr_error_t *error) {
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
                return KR_OK;
            }
            return KRI_FAIL(error, KR_E_UNSUPPORTED, name, "%s %s is not built in this version",
                            name, text);
        }
        if (!is_later) {
            size_t n_known = strlen(known);
            snprintf(known + n_known, sizeof known - n_known, "%s%.*s", n_known > 0 ? ", " : "",
                     (int)n_word, word);
        }
        next += n + (next[n] == '|');
    }
    return KRI_FAIL(error, KR_E_INVALID_ARG, name, "%s wants one of %s, not '%.64s'", name, known,
                    text);
}

kr_status_t cli_option_parse(cli_option_id_t id, const char *name, const char *text,
                             cli_value_t *value, kr_error_t *error) {
    const cli_option_row_t *row = &cli_option_rows[id];
    switch (row->kind) {
    case CLI_KIND_INTEGER: return parse_integer(row, name, text, value, error);
    case CLI_KIND_NUMBER:
    case CLI_KIND_FRACTION: return parse_number(row, name, text, value, error);
    case CLI_KIND_CHOICE: return parse_choice(row, name, text, value, error);
    case CLI_KIND_FLAG:
    case CLI_KIND_TEXT:
    case CLI_KIND_LIST: break;
    }
    value->text = text;
    return KR_OK;
}

/* ---- options of a command ----------------------------------------------------------------- */

bool cli_option_belongs(cli_option_id_t id, cli_command_id_t command) {
    return (cli_option_rows[id].commands >> command & 1u) != 0;
}

bool cli_option_is_setting(cli_option_id_t id) {
    return cli_option_rows[id].long_name[0] != '\0' && id != CLI_OPT_help && id != CLI_OPT_json;
}

kr_status_t cli_option_reset(cli_options_t *options, cli_option_id_t id, kr_error_t *error) {
    const cli_option_row_t *row = &cli_option_rows[id];
    memset(&options->values[id], 0, sizeof options->values[id]);
    if (row->preset[0] == '\0' || !cli_option_belongs(id, options->command)) return KR_OK;
    return cli_option_parse(id, row->long_name, row->preset, &options->values[id], error);
}

bool cli_option_environment(cli_option_id_t id, cli_command_id_t command, char *name,
                            size_t cap) {
    const cli_option_row_t *row = &cli_option_rows[id];
    if (row->environment[0] != '\0') {
        snprintf(name, cap, "%s", row->environment);
        return true;
    }
    if (!cli_option_belongs(CLI_OPT_config, command) || !cli_option_is_setting(id)) return false;
    snprintf(name, cap, "KR_%s", row->long_name + 2);
    for (char *c = name; *c != '\0'; c++) {
        if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 'a' + 'A');
        if (*c == '-') *c = '_';
    }
    return true;
}

bool cli_option_add_item(cli_options_t *options, cli_option_id_t id, const char *text) {
    if (options->n_items == options->items_capacity) {
        size_t capacity = options->items_capacity == 0 ? 16 : options->items_capacity * 2;
        void *items = realloc(options->items, capacity * sizeof *options->items);
        if (items == NULL) return false;
        options->items = items;
        options->items_capacity = capacity;
    }
    options->items[options->n_items++] = (cli_list_item_t){id, text};
    return true;
}

static bool same_text(const char *a, const char *b) {
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

/* The next item of this option from *index on; NULL past the last. */
static const char *next_item(const cli_options_t *options, cli_option_id_t id, size_t *index) {
    while (*index < options->n_items) {
        const cli_list_item_t *item = &options->items[(*index)++];
        if (item->id == id) return item->text;
    }
    return NULL;
}

bool cli_option_is_same(const cli_options_t *a, const cli_options_t *b, cli_option_id_t id) {
    const cli_value_t *x = &a->values[id], *y = &b->values[id];
    size_t i = 0, j = 0;
    switch (cli_option_rows[id].kind) {
    case CLI_KIND_FLAG: return x->is_given == y->is_given;
    case CLI_KIND_INTEGER: return x->is_given == y->is_given && x->integer == y->integer;
    case CLI_KIND_NUMBER:
    case CLI_KIND_FRACTION:
        return x->is_given == y->is_given && !(x->number < y->number) && !(x->number > y->number);
    case CLI_KIND_CHOICE:
    case CLI_KIND_TEXT: return same_text(x->text, y->text);
    case CLI_KIND_LIST: break;
    }
    for (;;) {
        const char *s = next_item(a, id, &i), *t = next_item(b, id, &j);
        if (s == NULL || t == NULL) return s == t;
        if (strcmp(s, t) != 0) return false;
    }
}

void cli_options_deinit(cli_options_t *options) {
    free(options->positional);
    free(options->items);
    for (size_t i = 0; i < options->n_copies; i++) free(options->copies[i]);
    free(options->copies);
    json_decref(options->config);
}
