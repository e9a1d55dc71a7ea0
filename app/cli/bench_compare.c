/* bench_compare.c: `kr bench compare`: two commands take turns, A B A B ..., and the report gives
 * the median of the rounds' ratios. Each prints a report of `kr bench model --json` or the list of
 * `llama-bench -o json`. What they print is outside data: bounded in size and checked. A process
 * per turn, so that neither finds its memory warmed by the other. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "child.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "terminal.h"

#define ROUNDS 5u
#define OUTPUT_BYTES_MAX ((size_t)4 << 20)
#define N_FIGURES 2u

static const char *const figure_names[N_FIGURES] = {"prefill", "decode"};

/* Tokens a second; 0 = not reported. */
typedef struct speeds_s {
    double values[N_FIGURES];
} speeds_t;

typedef struct side_s {
    const char *name; /* "a" or "b" */
    cli_words_t words;
    double *speeds[N_FIGURES]; /* [n_rounds] */
} side_t;

typedef struct compare_s {
    side_t sides[2];
    double *ratios[N_FIGURES]; /* [n_rounds], a over b; NULL until measured */
    bool has[N_FIGURES];
    uint32_t n_rounds, timeout_s;
} compare_t;

/* ---- what a command prints ------------------------------------------------------------------ */

/* A positive finite number, or -1. */
static double speed(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    double number = json_number_value(value);
    return json_is_number(value) && isfinite(number) && number > 0 ? number : -1;
}

static const char *read_kr(const json_t *report, speeds_t *speeds) {
    for (uint32_t i = 0; i < N_FIGURES; i++) {
        speeds->values[i] = speed(report, i == 0 ? "prefill_tps" : "decode_tps");
        if (speeds->values[i] < 0) return "no prefill_tps and decode_tps in its report";
    }
    return NULL;
}

/* Rows of llama-bench: a prompt alone, or tokens generated alone. */
static const char *read_llama(const json_t *rows, speeds_t *speeds) {
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const json_t *n_prompt = json_object_get(row, "n_prompt");
        const json_t *n_gen = json_object_get(row, "n_gen");
        if (!json_is_integer(n_prompt) || !json_is_integer(n_gen)) {
            return "a row without n_prompt and n_gen (of several depths, give one)";
        }
        bool is_prompt = json_integer_value(n_prompt) > 0, is_gen = json_integer_value(n_gen) > 0;
        if (is_prompt == is_gen) continue; /* both in one test: neither figure */
        double *value = &speeds->values[is_gen ? 1 : 0];
        if (*value > 0) return "more than one size; give one -p and one -n";
        *value = speed(row, "avg_ts");
        if (*value < 0) return "a row without a positive avg_ts";
    }
    return speeds->values[0] > 0 || speeds->values[1] > 0 ? NULL : "no row with a speed";
}

static kr_status_t read_speeds(const kri_buffer_t *out, speeds_t *speeds, const char **why) {
    json_error_t ignored;
    memset(speeds, 0, sizeof *speeds);
    *why = "no JSON";
    json_t *report = out->n_bytes > 0 ? json_loadb(out->data, out->n_bytes, 0, &ignored) : NULL;
    if (json_is_object(report)) *why = read_kr(report, speeds);
    if (json_is_array(report)) *why = read_llama(report, speeds);
    json_decref(report);
    return *why == NULL ? KR_OK : KR_E_BAD_FORMAT;
}

/* ---- rounds --------------------------------------------------------------------------------- */

static int run_side(compare_t *compare, side_t *side, speeds_t *speeds) {
    kri_buffer_t out;
    kr_error_t error;
    const char *why = NULL;
    kr_error_init(&error);
    kri_buffer_init(&out, OUTPUT_BYTES_MAX);
    kr_status_t status = cli_child_run(&side->words, compare->timeout_s, &out, &error);
    int failed = 0;
    if (status == KR_E_CANCELLED) {
        failed = cli_report(CLI_PHASE_SETUP, status, NULL);
    } else if (status != KR_OK) {
        failed = cli_fail(CLI_PHASE_INPUT, status, side->name, "command %s: %s", side->name,
                          error.message);
    } else if (read_speeds(&out, speeds, &why) != KR_OK) {
        failed = cli_fail(CLI_PHASE_INPUT, KR_E_BAD_FORMAT, side->name,
                          "command %s (%s) printed no report that can be read: %s", side->name,
                          side->words.words[0], why);
    }
    kri_buffer_deinit(&out);
    return failed;
}

static int run_round(compare_t *compare, uint32_t round) {
    for (uint32_t s = 0; s < 2; s++) {
        speeds_t speeds;
        int failed = run_side(compare, &compare->sides[s], &speeds);
        if (failed != 0) return failed;
        for (uint32_t f = 0; f < N_FIGURES; f++) {
            bool has = speeds.values[f] > 0;
            if (round == 0 && s == 0) compare->has[f] = has;
            if (round == 0) compare->has[f] = compare->has[f] && has;
            else if (compare->has[f] && !has) {
                return cli_fail(CLI_PHASE_INPUT, KR_E_BAD_FORMAT, compare->sides[s].name,
                                "command %s reported no %s speed this time",
                                compare->sides[s].name, figure_names[f]);
            }
            compare->sides[s].speeds[f][round] = speeds.values[f];
        }
    }
    if (compare->has[0] || compare->has[1]) return 0;
    return cli_fail(CLI_PHASE_INPUT, KR_E_BAD_FORMAT, NULL,
                    "the commands report no figure in common");
}

/* ---- report --------------------------------------------------------------------------------- */

static void take_words(const side_t *side, json_t *object, const char *key) {
    json_t *words = json_array();
    for (size_t i = 0; i < side->words.n_words; i++) {
        const char *word = side->words.words[i];
        json_array_append_new(words, cli_json_text(word, strlen(word)));
    }
    json_object_set_new(object, key, words);
}

static void print_figure(compare_t *compare, uint32_t figure, json_t *report) {
    uint32_t n = compare->n_rounds;
    double *ratios = compare->ratios[figure];
    for (uint32_t i = 0; i < n; i++) {
        ratios[i] = compare->sides[0].speeds[figure][i] / compare->sides[1].speeds[figure][i];
    }
    double spread = cli_bench_spread(ratios, n), ratio = cli_bench_median(ratios, n);
    double a = cli_bench_median(compare->sides[0].speeds[figure], n);
    double b = cli_bench_median(compare->sides[1].speeds[figure], n);
    const char *verdict = cli_bench_verdict(spread, n);
    if (report == NULL) {
        (void)cli_out_printf("%-8s a %10.1f tok/s   b %10.1f tok/s   ratio %.3f   spread %.1f%%"
                             "   %s\n", figure_names[figure], a, b, ratio, 100 * spread, verdict);
        return;
    }
    json_t *object = json_object();
    json_object_set_new(object, "a_tps", cli_json_real(a));
    json_object_set_new(object, "b_tps", cli_json_real(b));
    json_object_set_new(object, "ratio", cli_json_real(ratio));
    json_object_set_new(object, "spread", cli_json_real(spread));
    json_object_set_new(object, "verdict", json_string(verdict));
    json_object_set_new(report, figure_names[figure], object);
}

static void print_compare(const cli_options_t *options, compare_t *compare) {
    json_t *report = NULL;
    if (cli_given(options, CLI_OPT_json)) {
        report = cli_bench_header(cli_text(options, CLI_OPT_isa), cli_bench_threads(options));
        json_object_set_new(report, "rounds", json_integer(compare->n_rounds));
        take_words(&compare->sides[0], report, "a");
        take_words(&compare->sides[1], report, "b");
    }
    for (uint32_t f = 0; f < N_FIGURES; f++) {
        if (compare->has[f]) print_figure(compare, f, report);
    }
    if (report != NULL) (void)cli_out_json(report);
    json_decref(report);
}

/* ---- the two commands ----------------------------------------------------------------------- */

static int split(side_t *side, const char *option, const char *line) {
    kr_status_t status = cli_words_split(&side->words, line);
    if (status == KR_E_LIMIT) {
        return cli_usage(option, "%s is too long: at most %u words in %u bytes", option,
                         CLI_WORDS_MAX, CLI_WORD_BYTES_MAX);
    }
    if (status != KR_OK) return cli_usage(option, "%s has an open quote or ends with \\", option);
    if (side->words.n_words == 0) return cli_usage(option, "%s is empty", option);
    return 0;
}

/* The value of an option as a word of its own; nothing when it is not set. */
static kr_status_t pass(side_t *side, const char *flag, const char *value) {
    if (value == NULL) return KR_OK;
    kr_status_t status = cli_words_add(&side->words, flag);
    return status == KR_OK ? cli_words_add(&side->words, value) : status;
}

static const char *option_number(const cli_options_t *options, cli_option_id_t id, char *text,
                                 size_t cap) {
    snprintf(text, cap, "%u", cli_u32(options, id));
    return text;
}

/* What both sides of a comparison with a rival are told alike. */
static kr_status_t pass_sizes(const cli_options_t *options, const char *model, side_t *side) {
    char p[16], n[16], t[16];
    snprintf(t, sizeof t, "%u", cli_bench_threads(options));
    kr_status_t status = pass(side, "-m", model);
    if (status == KR_OK) {
        status = pass(side, "-p", option_number(options, CLI_OPT_bench_p, p, sizeof p));
    }
    if (status == KR_OK) {
        status = pass(side, "-n", option_number(options, CLI_OPT_bench_n, n, sizeof n));
    }
    if (status == KR_OK) status = pass(side, "-t", t);
    return status == KR_OK ? pass(side, "-r", "1") : status;
}

/* The options of models and sessions that were given for kr; both sides get model and threads
 * by pass_sizes. */
static kr_status_t pass_common(const cli_options_t *options, side_t *side) {
    kr_status_t status = KR_OK;
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS && status == KR_OK; id++) {
        const cli_option_row_t *row = &cli_option_rows[id];
        const cli_value_t *value = &options->values[id];
        bool is_passed = id == CLI_OPT_model || id == CLI_OPT_threads || id == CLI_OPT_json;
        if (!cli_is_typed(value) || is_passed) continue;
        if (!cli_bench_is_common(id)) continue;
        char number[32];
        snprintf(number, sizeof number, "%lld", (long long)value->integer);
        if (row->kind == CLI_KIND_FLAG) status = cli_words_add(&side->words, row->long_name);
        else status = pass(side, row->long_name, value->text != NULL ? value->text : number);
    }
    return status;
}

static int make_rival(const cli_options_t *options, compare_t *compare) {
    char program[4096], model[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) return cli_fail(CLI_PHASE_SETUP, KR_E_IO, NULL, "cannot tell my own path");
    program[n] = '\0';
    int failed = cli_engine_find_model(options, NULL, model, sizeof model);
    if (failed != 0) return failed;
    side_t *a = &compare->sides[0], *b = &compare->sides[1];
    failed = split(b, "--rival", cli_text(options, CLI_OPT_rival));
    if (failed != 0) return failed;
    kr_status_t status = cli_words_add(&a->words, program);
    if (status == KR_OK) status = pass(a, "bench", "model");
    if (status == KR_OK) status = pass_sizes(options, model, a);
    if (status == KR_OK) status = pass_common(options, a);
    if (status == KR_OK) status = cli_words_add(&a->words, "--json");
    if (status == KR_OK) status = pass_sizes(options, model, b);
    if (status == KR_OK) status = pass(b, "-o", "json");
    return status == KR_OK ? 0 : cli_usage("--rival", "--rival is too long");
}

static int make_commands(const cli_options_t *options, compare_t *compare) {
    const char *a = cli_text(options, CLI_OPT_bench_a), *b = cli_text(options, CLI_OPT_bench_b);
    bool has_rival = cli_given(options, CLI_OPT_rival);
    if (has_rival ? a != NULL || b != NULL : a == NULL || b == NULL) {
        return cli_usage("--a", "compare what? give --a CMD and --b CMD, or --rival CMD");
    }
    if (has_rival) return make_rival(options, compare);
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_value_t *value = &options->values[id];
        bool is_size = id == CLI_OPT_bench_p || id == CLI_OPT_bench_n;
        if (!cli_is_typed(value) || id == CLI_OPT_json) continue;
        if (!is_size && !cli_bench_is_common(id)) continue;
        const char *name = cli_option_rows[id].long_name;
        return cli_usage(name, "%s goes into the commands of --a and --b themselves", name);
    }
    int failed = split(&compare->sides[0], "--a", a);
    return failed != 0 ? failed : split(&compare->sides[1], "--b", b);
}

static int take_memory(compare_t *compare) {
    bool has_all = true;
    for (uint32_t f = 0; f < N_FIGURES; f++) {
        compare->ratios[f] = calloc(compare->n_rounds, sizeof(double));
        has_all = has_all && compare->ratios[f] != NULL;
        for (uint32_t s = 0; s < 2; s++) {
            compare->sides[s].speeds[f] = calloc(compare->n_rounds, sizeof(double));
            has_all = has_all && compare->sides[s].speeds[f] != NULL;
        }
    }
    return has_all ? 0 : cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
}

int cli_bench_compare(const cli_options_t *options) {
    compare_t *compare = calloc(1, sizeof *compare);
    if (compare == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    compare->sides[0].name = "a";
    compare->sides[1].name = "b";
    compare->n_rounds = cli_bench_rounds(options, ROUNDS);
    compare->timeout_s = cli_u32(options, CLI_OPT_timeout);
    int failed = make_commands(options, compare);
    if (failed == 0) failed = take_memory(compare);
    for (uint32_t i = 0; i < compare->n_rounds && failed == 0; i++) {
        cli_progress("compare", i, compare->n_rounds);
        failed = run_round(compare, i);
    }
    cli_progress_clear();
    if (failed == 0) print_compare(options, compare);
    for (uint32_t f = 0; f < N_FIGURES; f++) {
        free(compare->ratios[f]);
        for (uint32_t s = 0; s < 2; s++) free(compare->sides[s].speeds[f]);
    }
    free(compare);
    return failed;
}
