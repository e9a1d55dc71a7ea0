/* bench.c: `kr bench`: the choice of a subcommand, and what all of them share. A subcommand takes
 * only the options of its own row; the others are refused, never ignored. */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/os.h"
#include "bench/ops/bench_ops.h"
#include "kr.h"
#include "load.h"
#include "report.h"

typedef struct subcommand_s {
    const char *name;
    int (*run)(const cli_options_t *options);
    bool opens_model;             /* takes what other commands take too: -m, --kv, ... */
    bool on_devices;              /* --device other than cpu */
    const cli_option_id_t *takes; /* of bench's own options; ends with CLI_N_OPTIONS */
} subcommand_t;

#define TAKES(...) (const cli_option_id_t[]){__VA_ARGS__, CLI_N_OPTIONS}
#define SIZES CLI_OPT_bench_p, CLI_OPT_bench_n

static const subcommand_t subcommands[] = {
    {"model", cli_bench_model, true, true,
     TAKES(SIZES, CLI_OPT_rounds, CLI_OPT_depth, CLI_OPT_frontiers, CLI_OPT_streams)},
    {"ops", cli_bench_ops, false, false, TAKES(CLI_OPT_filter, CLI_OPT_seconds)},
    {"suite", cli_bench_suite, false, false, TAKES(CLI_OPT_filter, CLI_OPT_runs)},
    {"flash", cli_bench_flash, false, false,
     TAKES(CLI_OPT_filter, CLI_OPT_rounds, CLI_OPT_attn_qk, CLI_OPT_kv)},
    {"compare", cli_bench_compare, true, false,
     TAKES(SIZES, CLI_OPT_rounds, CLI_OPT_bench_a, CLI_OPT_bench_b, CLI_OPT_rival,
           CLI_OPT_timeout)},
    {"engine", cli_bench_engine, true, true,
     TAKES(SIZES, CLI_OPT_rounds, CLI_OPT_bench_mode, CLI_OPT_streams, CLI_OPT_max_stall_ms,
           CLI_OPT_bench_chunk, CLI_OPT_sampling, CLI_OPT_prefix_cache, CLI_OPT_telemetry)},
    {"gate", cli_bench_gate, true, false,
     TAKES(SIZES, CLI_OPT_rounds, CLI_OPT_filter, CLI_OPT_baseline, CLI_OPT_write,
           CLI_OPT_force)},
};
#define N_SUBCOMMANDS (sizeof subcommands / sizeof subcommands[0])

bool cli_bench_is_common(cli_option_id_t id) {
    return (cli_option_rows[id].commands & ~(1u << CLI_COMMAND_bench)) != 0;
}

static bool takes_option(const subcommand_t *subcommand, cli_option_id_t id) {
    if (id == CLI_OPT_json || id == CLI_OPT_threads || id == CLI_OPT_isa || id == CLI_OPT_help) {
        return true;
    }
    if (cli_bench_is_common(id) && subcommand->opens_model) return true;
    const cli_option_id_t *takes = subcommand->takes;
    while (*takes != CLI_N_OPTIONS && *takes != id) takes++;
    return *takes == id;
}

static int check_options(const cli_options_t *options, const subcommand_t *subcommand) {
    for (cli_option_id_t id = 0; id < CLI_N_OPTIONS; id++) {
        const cli_value_t *value = &options->values[id];
        if (!cli_is_typed(value)) continue;
        if (takes_option(subcommand, id)) continue;
        const char *name = cli_option_rows[id].long_name;
        return cli_usage(name, "`kr bench %s` does not take %s", subcommand->name, name);
    }
    const char *device = cli_text(options, CLI_OPT_device);
    if (device != NULL && strcmp(device, "cpu") != 0 && !subcommand->on_devices) {
        return cli_usage("--device", "`kr bench %s` measures the CPU only", subcommand->name);
    }
    return 0;
}

int cli_bench(const cli_options_t *options) {
    if (options->n_positional == 0) {
        return cli_usage("command", "bench what? model, engine, ops, suite, flash, compare or "
                                    "gate: see `kr help bench`");
    }
    const char *what = options->positional[0];
    for (size_t i = 0; i < N_SUBCOMMANDS; i++) {
        if (strcmp(what, subcommands[i].name) != 0) continue;
        int failed = check_options(options, &subcommands[i]);
        return failed != 0 ? failed : subcommands[i].run(options);
    }
    return cli_usage("command", "unknown benchmark '%.32s'; there are model, engine, ops, "
                                "suite, flash, compare and gate", what);
}

/* ---- statistics ----------------------------------------------------------------------------- */

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double cli_bench_median(double *values, size_t n) {
    qsort(values, n, sizeof *values, compare_doubles);
    return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double cli_bench_spread(const double *values, size_t n) {
    double low = values[0], high = values[0];
    double *sorted = malloc(n * sizeof *sorted);
    if (sorted == NULL) return 1;
    for (size_t i = 0; i < n; i++) {
        sorted[i] = values[i];
        if (values[i] < low) low = values[i];
        if (values[i] > high) high = values[i];
    }
    double median = cli_bench_median(sorted, n);
    free(sorted);
    return median > 0 ? (high - low) / median : 1;
}

const char *cli_bench_verdict(double spread, size_t n) {
    return n >= 3 && spread <= CLI_BENCH_SPREAD_MAX ? "steady" : "inconclusive";
}

double cli_bench_percentile(const double *sorted, size_t n, double p) {
    double exact = p / 100 * (double)n;
    size_t rank = (size_t)exact;
    if ((double)rank < exact) rank++;
    return sorted[rank == 0 ? 0 : rank - 1];
}

/* ---- machine and build ---------------------------------------------------------------------- */

/* The processor's own name, or "unknown" where the system does not tell it. */
static void cpu_name(char *name, size_t cap) {
    char line[512];
    snprintf(name, cap, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (file == NULL) return;
    while (fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || colon == NULL) continue;
        const char *begin = colon + 1 + strspn(colon + 1, " \t");
        snprintf(name, cap, "%.*s", (int)strcspn(begin, "\n"), begin);
        break;
    }
    (void)fclose(file);
}

json_t *cli_bench_machine(void) {
    char name[128];
    cpu_name(name, sizeof name);
    long l3_bytes = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    l3_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    json_t *object = json_object();
    json_object_set_new(object, "cpu", cli_json_text(name, strlen(name)));
    json_object_set_new(object, "cores", json_integer(kri_cpu_count()));
    json_object_set_new(object, "l3_bytes", l3_bytes > 0 ? json_integer(l3_bytes) : json_null());
    return object;
}

json_t *cli_bench_build(void) {
    json_t *object = json_object();
    json_object_set_new(object, "compiler", json_string(KR_COMPILER));
    json_object_set_new(object, "type", json_string(KR_BUILD_TYPE));
    return object;
}

json_t *cli_bench_header(const char *isa, uint32_t n_threads) {
    json_t *object = json_object();
    json_object_set_new(object, "machine", cli_bench_machine());
    json_object_set_new(object, "isa", json_string(isa != NULL ? isa : kr_isa_best()));
    json_object_set_new(object, "threads", json_integer(n_threads));
    json_object_set_new(object, "build", cli_bench_build());
    json_object_set_new(object, "commit", json_string(kr_commit()));
    return object;
}

int cli_bench_isa(const cli_options_t *options, const char **isa) {
    const char *wanted = cli_text(options, CLI_OPT_isa);
    char levels[64] = "";
    *isa = kri_bench_level(wanted);
    if (*isa != NULL) return 0;
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
        size_t n = strlen(levels);
        if (kri_bench_level(kri_isa_name(level)) == NULL) break;
        snprintf(levels + n, sizeof levels - n, "%s%s", n > 0 ? ", " : "", kri_isa_name(level));
    }
    return cli_usage("--isa", "isa %s: this machine has %s", wanted, levels);
}

uint32_t cli_bench_threads(const cli_options_t *options) {
    uint32_t n_threads = cli_u32(options, CLI_OPT_threads);
    return n_threads != 0 ? n_threads : kr_threads_default();
}

uint32_t cli_bench_rounds(const cli_options_t *options, uint32_t fallback) {
    return cli_given(options, CLI_OPT_rounds) ? cli_u32(options, CLI_OPT_rounds) : fallback;
}

int cli_bench_stream_counts(const char *text, uint32_t n_max, uint32_t *counts,
                            uint32_t *n_counts) {
    uint32_t n = 0;
    for (const char *next = text;; next++) {
        char word[8] = "";
        int64_t count = 0;
        size_t n_word = strcspn(next, ",");
        if (n_word < sizeof word) memcpy(word, next, n_word);
        bool is_good = cli_parse_integer(word, &count) && count >= 1 && count <= CLI_STREAMS_MAX &&
                       n < n_max && (n == 0 || count > counts[n - 1]);
        if (!is_good) break;
        counts[n++] = (uint32_t)count;
        next += n_word;
        if (*next != '\0') continue;
        *n_counts = n;
        return 0;
    }
    if (n_max == 1) {
        return cli_usage("--streams", "--streams wants a number from 1 to %u here, not '%.64s'",
                         CLI_STREAMS_MAX, text);
    }
    return cli_usage("--streams", "--streams wants up to %u whole numbers from 1 to %u that go up, "
                                  "with commas between them, not '%.64s'", n_max, CLI_STREAMS_MAX,
                     text);
}
