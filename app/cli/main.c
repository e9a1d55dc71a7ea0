/* main.c: dispatch of the program `kr`. */
#include <stdio.h>
#include <string.h>

#include "kr.h"
#include "options.h"
#include "report.h"
#include "terminal.h"

const cli_command_t cli_commands[CLI_N_COMMANDS] = {
#define KR_COMMAND(id, function, usage, n_positional, summary, examples) \
    [CLI_COMMAND_##id] = {#id, function, usage, n_positional, summary, examples},
#include "commands.def"
};

static void on_log(kr_log_level_t level, const char *text, void *user) {
    (void)user;
    cli_note("%s: %s", level == KR_LOG_ERROR ? "library error" : "warning", text);
}

/* Known before parsing, because a mistake found while parsing is also reported as JSON. */
static bool wants_json(int argc, char **argv) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0) return true;
    }
    return false;
}

int main(int argc, char **argv) {
    cli_terminal_init();
    kr_log_set(on_log, KR_LOG_WARN, NULL);
    cli_report_set_json(wants_json(argc, argv));
    if (argc < 2) {
        cli_help_print(true);
        return CLI_EXIT_USAGE;
    }
    if (kr_abi_version() != KR_ABI_VERSION) {
        return cli_fail(CLI_PHASE_SETUP, KR_E_INTERNAL, NULL,
                        "libkr has ABI %u, this program wants %u", kr_abi_version(),
                        (unsigned)KR_ABI_VERSION);
    }
    cli_options_t options;
    int exit_code = cli_options_parse(argc, argv, &options);
    if (exit_code == 0 && cli_given(&options, CLI_OPT_help)) {
        cli_help_print_command(options.command);
    } else if (exit_code == 0) {
        exit_code = cli_commands[options.command].run(&options);
    }
    cli_options_deinit(&options);
    return cli_out_finish(exit_code);
}
