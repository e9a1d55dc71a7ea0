/* bench_gate.c: `kr bench gate`: measures the stages of a baseline file again, in turns, and fails
 * when one is significantly slower: its median by more than 5 % and not by chance (p < 0.01). Both
 * conditions, since a quiet machine finds tiny differences and a noisy one large ones. */
#include "bench_gate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/os.h"
#include "bench.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "terminal.h"

#define ROUNDS 9u
#define LOSS_MIN 0.05
#define P_MAX 0.01

/* ---- the test ------------------------------------------------------------------------------- */

/* Mann & Whitney 1947. The number of orderings with statistic u are the coefficients of the
 * Gaussian binomial, prod (1 - x^(m+i)) / (1 - x^i) for i = 1..n; their low end is exact in
 * doubles, and by symmetry the low end is all that is needed. */
double cli_gate_p(const double *base, uint32_t n_base, const double *now, uint32_t n_now) {
    enum { N = CLI_BASELINE_SAMPLES_MAX };
    static double ways[N * N + 1];
    double below = 0; /* pairs in which `now` is smaller; ties count half */
    for (uint32_t i = 0; i < n_now; i++) {
        for (uint32_t k = 0; k < n_base; k++) {
            if (now[i] < base[k]) below += 1;
            else if (!(now[i] > base[k])) below += 0.5;
        }
    }
    size_t n_max = (size_t)n_base * n_now, last = (size_t)ceil(below);
    memset(ways, 0, sizeof ways);
    ways[0] = 1;
    for (uint32_t i = 1; i <= n_now; i++) {
        for (size_t u = n_max; u >= n_base + i; u--) ways[u] -= ways[u - n_base - i];
        for (size_t u = i; u <= n_max; u++) ways[u] += ways[u - i];
    }
    double sum = 0, total = 1;
    for (size_t u = 0; u <= last; u++) sum += ways[u];
    for (uint32_t i = 1; i <= n_now; i++) total *= (double)(n_base + i) / i;
    return sum < total ? sum / total : 1;
}

typedef struct verdict_s {
    double base_ns, now_ns, change, p; /* change: 0.07 = 7 % slower */
    const char *word;                  /* "same", "loss" or "gain" */
} verdict_t;

static double median_of(const cli_stage_t *stage) {
    double sorted[CLI_BASELINE_SAMPLES_MAX];
    memcpy(sorted, stage->samples, sizeof sorted);
    return cli_bench_median(sorted, stage->n_samples);
}

static void judge(const cli_stage_t *base, const cli_stage_t *now, verdict_t *verdict) {
    double slower = cli_gate_p(base->samples, base->n_samples, now->samples, now->n_samples);
    double faster = cli_gate_p(now->samples, now->n_samples, base->samples, base->n_samples);
    verdict->base_ns = median_of(base);
    verdict->now_ns = median_of(now);
    verdict->change = verdict->now_ns / verdict->base_ns - 1;
    verdict->p = verdict->change > 0 ? slower : faster;
    bool is_real = verdict->p < P_MAX && fabs(verdict->change) > LOSS_MIN;
    verdict->word = !is_real ? "same" : verdict->change > 0 ? "loss" : "gain";
}

/* ---- this machine and build ------------------------------------------------------------------ */

static void copy_text(const json_t *value, char *out) {
    const char *text = json_string_value(value);
    snprintf(out, CLI_BASELINE_TEXT_BYTES, "%s", text != NULL ? text : "");
}

/* Everything but model, sizes and stages. */
static void describe_here(const char *isa, uint32_t n_threads, cli_baseline_t *here) {
    json_t *machine = cli_bench_machine(), *build = cli_bench_build();
    copy_text(json_object_get(machine, "cpu"), here->cpu);
    here->n_cores = (uint32_t)json_integer_value(json_object_get(machine, "cores"));
    here->n_threads = n_threads;
    copy_text(json_object_get(build, "compiler"), here->compiler);
    copy_text(json_object_get(build, "type"), here->build_type);
    snprintf(here->isa, sizeof here->isa, "%s", isa);
    snprintf(here->commit, sizeof here->commit, "%s", kr_commit());
    json_decref(machine);
    json_decref(build);
}

static int check_machine(const cli_options_t *options, const cli_baseline_t *base,
                         const cli_baseline_t *here) {
    if (strcmp(base->build_type, here->build_type) != 0) {
        cli_note("the baseline is of a %s build, this is a %s build", base->build_type,
                 here->build_type);
    }
    if (cli_given(options, CLI_OPT_force)) return 0;
    if (strcmp(base->cpu, here->cpu) != 0 || base->n_cores != here->n_cores) {
        return cli_usage("--baseline", "the baseline is of another machine (%s, %u cores), this "
                                       "is %s, %u cores; --force compares all the same",
                         base->cpu, base->n_cores, here->cpu, here->n_cores);
    }
    if (strcmp(base->isa, here->isa) != 0) {
        return cli_usage("--baseline", "the baseline is of instruction set %s, this run is %s; "
                                       "--force compares all the same", base->isa, here->isa);
    }
    return 0;
}

/* ---- measuring ------------------------------------------------------------------------------ */

/* Rounds of samples for every stage of *plan, into it. */
static int measure(const cli_options_t *options, uint32_t n_rounds, cli_baseline_t *plan) {
    cli_stages_t *stages = NULL;
    double samples[CLI_BASELINE_STAGES_MAX];
    for (uint32_t i = 0; i < plan->n_stages; i++) plan->stages[i].n_samples = 0;
    int failed = cli_stages_open(options, plan, &stages);
    if (failed != 0) return failed;
    failed = cli_stages_sample(stages, samples); /* warm-up */
    for (uint32_t round = 0; round < n_rounds && failed == 0; round++) {
        cli_progress("gate", round, n_rounds);
        failed = cli_stages_sample(stages, samples);
        for (uint32_t i = 0; i < plan->n_stages; i++) {
            cli_stage_t *stage = &plan->stages[i];
            stage->samples[stage->n_samples++] = samples[i];
        }
    }
    cli_progress_clear();
    cli_stages_close(stages);
    return failed;
}

static int write_baseline(const cli_options_t *options, const char *path, uint32_t n_rounds,
                          cli_baseline_t *here) {
    const char *model = cli_text(options, CLI_OPT_model);
    const char *filter = cli_text(options, CLI_OPT_filter);
    if (model != NULL && strlen(model) >= sizeof here->model) {
        return cli_usage("model", "the path of the model is too long");
    }
    snprintf(here->model, sizeof here->model, "%s", model != NULL ? model : "");
    here->n_prompt = cli_u32(options, CLI_OPT_bench_p);
    here->n_generate = cli_u32(options, CLI_OPT_bench_n);
    cli_stages_list(here->isa, model != NULL, filter, here);
    if (here->n_stages == 0) {
        return cli_usage("--filter", "no stage contains '%.64s'", filter != NULL ? filter : "");
    }
    int failed = measure(options, n_rounds, here);
    if (failed != 0) return failed;
    kr_error_t error;
    kr_error_init(&error);
    char *text = cli_baseline_print(here);
    if (text == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    kr_status_t status = kri_file_write_atomic(path, text, strlen(text), &error);
    free(text);
    if (status != KR_OK) return cli_report(CLI_PHASE_OUTPUT, status, &error);
    if (!cli_given(options, CLI_OPT_json)) {
        (void)cli_out_printf("%u stages, %u rounds each: %s\n", here->n_stages, n_rounds, path);
        return 0;
    }
    json_t *report = cli_bench_header(here->isa, here->n_threads);
    json_object_set_new(report, "baseline", cli_json_text(path, strlen(path)));
    json_object_set_new(report, "stages", json_integer(here->n_stages));
    json_object_set_new(report, "rounds", json_integer(n_rounds));
    (void)cli_out_json(report);
    json_decref(report);
    return 0;
}

/* ---- comparing ------------------------------------------------------------------------------ */

static int read_baseline(const char *path, cli_baseline_t *base) {
    void *text = NULL;
    size_t n_bytes = 0;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_file_read(path, CLI_BASELINE_BYTES_MAX, &text, &n_bytes, &error);
    if (status != KR_OK) return cli_report(CLI_PHASE_INPUT, status, &error);
    status = cli_baseline_parse(text, n_bytes, base, &error);
    kri_free(text);
    if (status == KR_OK) return 0;
    return cli_fail(CLI_PHASE_INPUT, status, "--baseline", "%s is no baseline of kr: %s", path,
                    error.message);
}

static json_t *verdict_json(const char *name, const verdict_t *verdict) {
    json_t *row = json_object();
    json_object_set_new(row, "name", json_string(name));
    json_object_set_new(row, "baseline_ns", cli_json_real(verdict->base_ns));
    json_object_set_new(row, "now_ns", cli_json_real(verdict->now_ns));
    json_object_set_new(row, "change", cli_json_real(verdict->change));
    json_object_set_new(row, "p", cli_json_real(verdict->p));
    json_object_set_new(row, "verdict", json_string(verdict->word));
    return row;
}

/* The exit code. The names of the slower stages go to stderr as well. */
static int print_verdicts(const cli_options_t *options, const cli_baseline_t *base,
                          const cli_baseline_t *now) {
    bool is_json = cli_given(options, CLI_OPT_json);
    json_t *report = cli_bench_header(now->isa, now->n_threads), *rows = json_array();
    json_object_set_new(report, "baseline_commit", cli_json_text(base->commit,
                                                                strlen(base->commit)));
    json_object_set_new(report, "stages", rows);
    uint32_t n_losses = 0;
    for (uint32_t i = 0; i < base->n_stages; i++) {
        verdict_t verdict;
        judge(&base->stages[i], &now->stages[i], &verdict);
        const char *name = base->stages[i].name;
        if (strcmp(verdict.word, "loss") == 0) {
            n_losses++;
            cli_note("slower than the baseline: %s by %.1f%% (p = %.4f)", name,
                     100 * verdict.change, verdict.p);
        }
        if (is_json) {
            json_array_append_new(rows, verdict_json(name, &verdict));
        } else {
            (void)cli_out_printf("%-52s %14.1f %14.1f ns %+7.1f%%  p %.4f  %s\n", name,
                                 verdict.base_ns, verdict.now_ns, 100 * verdict.change,
                                 verdict.p, verdict.word);
        }
    }
    json_object_set_new(report, "losses", json_integer(n_losses));
    if (is_json) (void)cli_out_json(report);
    json_decref(report);
    return n_losses == 0 ? 0 : CLI_EXIT_LOSS;
}

/* Of the baseline's stages those that --filter wants, and what they were. */
static int choose_stages(const cli_options_t *options, cli_baseline_t *base) {
    const char *filter = cli_text(options, CLI_OPT_filter);
    uint32_t n = 0;
    for (uint32_t i = 0; i < base->n_stages; i++) {
        if (filter != NULL && strstr(base->stages[i].name, filter) == NULL) continue;
        if (n != i) base->stages[n] = base->stages[i];
        n++;
    }
    base->n_stages = n;
    return n > 0 ? 0 : cli_usage("--filter", "no stage of the baseline contains '%.64s'", filter);
}

static int compare(const cli_options_t *options, const char *path, uint32_t n_rounds,
                   const cli_baseline_t *here) {
    cli_baseline_t *base = calloc(2, sizeof *base), *now = base + 1;
    if (base == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    int failed = read_baseline(path, base);
    if (failed == 0) failed = check_machine(options, base, here);
    if (failed == 0) failed = choose_stages(options, base);
    if (failed == 0) {
        *now = *base; /* the same stages, sizes, threads and level */
        if (cli_given(options, CLI_OPT_model)) {
            snprintf(now->model, sizeof now->model, "%s", cli_text(options, CLI_OPT_model));
        }
        failed = measure(options, n_rounds, now);
    }
    if (failed == 0) failed = print_verdicts(options, base, now);
    free(base);
    return failed;
}

/* What a baseline fixes cannot be given beside it. */
static int check_fixed(const cli_options_t *options) {
    static const cli_option_id_t fixed[] = {CLI_OPT_bench_p, CLI_OPT_bench_n, CLI_OPT_threads};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const cli_value_t *value = &options->values[fixed[i]];
        if (!cli_is_typed(value)) continue;
        const char *name = cli_option_rows[fixed[i]].long_name;
        return cli_usage(name, "%s is what the baseline says; it goes with --write", name);
    }
    return 0;
}

int cli_bench_gate(const cli_options_t *options) {
    const char *isa = NULL, *write_path = cli_text(options, CLI_OPT_write);
    const char *base_path = cli_text(options, CLI_OPT_baseline);
    uint32_t n_rounds = cli_bench_rounds(options, ROUNDS);
    if ((write_path == NULL) == (base_path == NULL)) {
        return cli_usage("--baseline", "give --write FILE to make a baseline or --baseline FILE "
                                       "to compare with one");
    }
    if (n_rounds < CLI_BASELINE_SAMPLES_MIN || n_rounds > CLI_BASELINE_SAMPLES_MAX) {
        return cli_usage("--rounds", "the gate wants %u to %u rounds: fewer cannot be significant",
                         CLI_BASELINE_SAMPLES_MIN, CLI_BASELINE_SAMPLES_MAX);
    }
    int failed = base_path != NULL ? check_fixed(options) : 0;
    if (failed == 0) failed = cli_bench_isa(options, &isa);
    if (failed != 0) return failed;
    cli_baseline_t *here = calloc(1, sizeof *here);
    if (here == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    describe_here(isa, cli_bench_threads(options), here);
    failed = write_path != NULL ? write_baseline(options, write_path, n_rounds, here)
                                : compare(options, base_path, n_rounds, here);
    free(here);
    return failed;
}
