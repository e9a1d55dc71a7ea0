/* help.c: help and version, printed from the tables. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "kr.h"
#include "options.h"
#include "report.h"
#include "terminal.h"

#define LINE_BYTES_MAX 4096

/* Helps go to stdout when asked for and to stderr when they answer a mistake. */
static void put(bool to_stderr, const char *text) {
    if (to_stderr) fputs(text, stderr);
    else (void)cli_out_write(text, strlen(text));
}

void cli_help_print(bool to_stderr) {
    char line[LINE_BYTES_MAX];
    put(to_stderr, "kr runs language models on this machine.\n\nUsage: kr COMMAND ...\n\n");
    for (int i = 0; i < CLI_N_COMMANDS; i++) {
        snprintf(line, sizeof line, "  %-11s %s\n", cli_commands[i].name,
                 cli_commands[i].summary);
        put(to_stderr, line);
    }
    put(to_stderr, "\nTry:\n"
                   "  kr run -m smollm2 -p \"Why is the sky blue?\"\n"
                   "  kr chat -m smollm2\n\n"
                   "`kr help COMMAND` shows its options and examples.\n"
                   "Exit codes: 0 done, 1 other failure, 2 usage, 3 not found or unreadable, "
                   "4 bad model,\n5 digest mismatch, 6 out of memory, 9 disk full or I/O, "
                   "10 cannot listen, 11 bad input,\n12 timed out, 13 slower than the baseline, "
                   "70 internal error, 130 interrupted. `run` and `chat`\ntreat the first Ctrl-C "
                   "as \"stop here\": what was generated so far stands and the exit code is\n"
                   "0.\n");
}

static void put_option(cli_option_id_t id, cli_command_id_t command) {
    const cli_option_row_t *row = &cli_option_rows[id];
    char left[96] = "", line[LINE_BYTES_MAX], choices[64] = "", variable[64];
    if (row->kind == CLI_KIND_CHOICE) {
        size_t n = strcspn(row->value, "!");
        if (n > 0 && row->value[n] == '!') n--;
        snprintf(choices, sizeof choices, "%.*s", (int)n, row->value);
    }
    const char *value = choices[0] != '\0' ? choices : row->value;
    if (row->long_name[0] == '\0') {
        snprintf(left, sizeof left, "%s=%s", row->environment, value);
    } else {
        snprintf(left, sizeof left, "%s%s%s%s%s", row->short_name,
                 row->short_name[0] != '\0' ? ", " : "    ", row->long_name,
                 value[0] != '\0' ? " " : "", value);
    }
    size_t n = (size_t)snprintf(line, sizeof line, "  %-28s %s", left, row->help);
    if (row->preset[0] != '\0') {
        n += (size_t)snprintf(line + n, sizeof line - n, " [%s]", row->preset);
    }
    if (row->long_name[0] != '\0' &&
        cli_option_environment(id, command, variable, sizeof variable)) {
        n += (size_t)snprintf(line + n, sizeof line - n, " {%s}", variable);
    }
    snprintf(line + n, sizeof line - n, "\n");
    put(false, line);
}

void cli_help_print_command(cli_command_id_t id) {
    const cli_command_t *command = &cli_commands[id];
    char line[LINE_BYTES_MAX];
    snprintf(line, sizeof line, "kr %s: %s\n\nUsage: kr %s %s\n", command->name,
             command->summary, command->name, command->usage);
    put(false, line);
    const char *group = "";
    for (int i = 0; i < CLI_N_OPTIONS; i++) {
        const cli_option_row_t *row = &cli_option_rows[i];
        if ((row->commands >> id & 1u) == 0) continue;
        if (strcmp(group, row->group) != 0) {
            group = row->group;
            snprintf(line, sizeof line, "\n%s\n", group);
            put(false, line);
        }
        put_option((cli_option_id_t)i, id);
    }
    put(false, "\n[default] {environment}\n");
    if (command->examples[0] == '\0') return;
    put(false, "\nExamples\n");
    put(false, command->examples);
}

int cli_help(const cli_options_t *options) {
    if (options->n_positional == 0) {
        cli_help_print(false);
        return 0;
    }
    for (int i = 0; i < CLI_N_COMMANDS; i++) {
        if (strcmp(options->positional[0], cli_commands[i].name) != 0) continue;
        cli_help_print_command((cli_command_id_t)i);
        return 0;
    }
    return cli_usage("command", "no command '%.64s' to help with; `kr help` lists them",
                     options->positional[0]);
}

int cli_version(const cli_options_t *options) {
    if (!cli_given(options, CLI_OPT_json)) {
        (void)cli_out_printf("kr %s, %s, %u threads\n", kr_version(), kr_isa_best(),
                             kr_threads_default());
        return 0;
    }
    json_t *object = json_object();
    json_object_set_new(object, "version", json_string(kr_version()));
    json_object_set_new(object, "commit", json_string(kr_commit()));
    json_object_set_new(object, "isa", json_string(kr_isa_best()));
    json_object_set_new(object, "isa_details", json_string(kr_isa_details()));
    json_object_set_new(object, "threads", json_integer(kr_threads_default()));
    (void)cli_out_json(object);
    json_decref(object);
    return 0;
}
