/* bench_stages.c: the stages of `kr bench gate`. A stage's name says how to run it:
 *   machine/fma/<isa>       arithmetic without memory: if this one is slower, it is not kr
 *   op/<slot>/<isa>/<shape> a kernel of bench/ops
 *   attention/<config>      a configuration of `kr bench suite`
 *   model/prefill, model/decode
 *   engine/prefill, engine/decode: several requests at once */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench/ops/bench_attn.h"
#include "bench/ops/bench_ops.h"
#include "bench/ops/bench_peak.h"
#include "bench_gate.h"
#include "report.h"
#include "terminal.h"

#define OP_SECONDS 0.03
#define ATTENTION_REPEATS 3

/* Kernels that carry a model, and rows of the suite that take milliseconds. */
static const char *const op_rows[][2] = {
    {"linear_q4_1", "x576/n1"},      {"linear_q4_k", "x2048/n1"},
    {"linear_q4_k", "x2048/n64"},    {"linear_q5_0", "x1536/n1"},
    {"linear_q6_k", "x2048/n1"},     {"linear_q8_0", "x2048/n64"},
    {"linear_f16", "x2048/n64"},     {"quant_q8", "/2048"},
    {"rms_norm", "/2048"},           {"gated_silu", "/8960"},
    {"attention_f16", "r1xh4x64/k2048"}, {"attention_f16", "r16xh4x128/k2048"}};
static const char *const suite_rows[] = {"128x1x32x64", "512x1x32x64", "512x1x32x128"};

typedef enum kind_e {
    KIND_MACHINE, KIND_OP, KIND_ATTENTION, KIND_PREFILL, KIND_DECODE, KIND_ENGINE_PREFILL,
    KIND_ENGINE_DECODE
} kind_t;

typedef struct stage_s {
    kind_t kind;
    kri_isa_t level;        /* KIND_MACHINE */
    kri_bench_case_t *op;
    kri_bench_attn_t *attn;
} stage_t;

struct cli_stages_s {
    stage_t stages[CLI_BASELINE_STAGES_MAX];
    const cli_baseline_t *baseline; /* borrowed */
    uint32_t n_stages;
    kri_bench_op_t *ops;
    size_t n_ops;
    cli_bench_model_run_t *model; /* NULL when no stage needs it */
    cli_bench_engine_run_t *engine; /* the same */
};

/* ---- names ---------------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end) {
    size_t n_text = strlen(text), n_end = strlen(end);
    return n_text >= n_end && strcmp(text + n_text - n_end, end) == 0;
}

static void add_name(cli_baseline_t *baseline, const char *filter, const char *prefix,
                     const char *name) {
    cli_stage_t *stage = &baseline->stages[baseline->n_stages];
    if (baseline->n_stages == CLI_BASELINE_STAGES_MAX) return;
    snprintf(stage->name, sizeof stage->name, "%s%s", prefix, name);
    if (filter == NULL || strstr(stage->name, filter) != NULL) baseline->n_stages++;
}

static kri_bench_op_t *list_ops(const char *isa, size_t *n_ops) {
    kri_bench_op_t *ops = calloc(KRI_BENCH_OPS_MAX, sizeof *ops);
    if (ops == NULL) return NULL;
    *n_ops = kri_bench_ops_list(isa, NULL, ops, KRI_BENCH_OPS_MAX);
    if (*n_ops > KRI_BENCH_OPS_MAX) *n_ops = KRI_BENCH_OPS_MAX;
    return ops;
}

void cli_stages_list(const char *isa, bool with_model, const char *filter,
                     cli_baseline_t *baseline) {
    size_t n_ops = 0;
    kri_bench_op_t *ops = list_ops(isa, &n_ops);
    add_name(baseline, filter, "machine/fma/", isa);
    for (size_t r = 0; r < sizeof op_rows / sizeof op_rows[0]; r++) {
        for (size_t i = 0; ops != NULL && i < n_ops; i++) {
            if (strcmp(ops[i].slot, op_rows[r][0]) != 0 || strcmp(ops[i].isa, isa) != 0) continue;
            if (ends_with(ops[i].name, op_rows[r][1])) add_name(baseline, filter, "op/",
                                                                ops[i].name);
        }
    }
    for (size_t i = 0; i < sizeof suite_rows / sizeof suite_rows[0]; i++) {
        add_name(baseline, filter, "attention/", suite_rows[i]);
    }
    if (with_model) {
        add_name(baseline, filter, "model/", "prefill");
        add_name(baseline, filter, "model/", "decode");
        add_name(baseline, filter, "engine/", "prefill");
        add_name(baseline, filter, "engine/", "decode");
    }
    free(ops);
}

/* ---- opening -------------------------------------------------------------------------------- */

static int unknown_stage(const char *name) {
    return cli_fail(CLI_PHASE_SETUP, KR_E_UNSUPPORTED, "--baseline",
                    "stage %s of the baseline cannot be run by this build on this machine", name);
}

static int no_memory(const char *name, kr_status_t status) {
    return cli_fail(CLI_PHASE_SETUP, status, NULL, "no memory for stage %s", name);
}

static int open_op(cli_stages_t *stages, const char *name, stage_t *stage) {
    for (size_t i = 0; i < stages->n_ops; i++) {
        if (strcmp(stages->ops[i].name, name + strlen("op/")) != 0) continue;
        kr_status_t status = kri_bench_case_create(&stages->ops[i], &stage->op);
        return status == KR_OK ? 0 : no_memory(name, status);
    }
    return unknown_stage(name);
}

static int open_attention(const cli_baseline_t *baseline, const char *name, stage_t *stage) {
    for (size_t i = 0; i < CLI_N_SUITE; i++) {
        char config[48];
        const cli_suite_row_t *row = &cli_suite_rows[i];
        cli_suite_name(row, config, sizeof config);
        if (strcmp(config, name + strlen("attention/")) != 0) continue;
        kri_bench_attn_shape_t shape = {1, row->n_seqs, 0, row->n_rows, row->n_heads,
                                        row->n_heads, row->head_dim, KR_ATTN_QK_DEFAULT,
                                        KR_DTYPE_F16};
        kr_status_t status = kri_bench_attn_create(&shape, baseline->isa, baseline->n_threads,
                                                   false, &stage->attn);
        return status == KR_OK ? 0 : no_memory(name, status);
    }
    return unknown_stage(name);
}

static int open_machine(const char *name, stage_t *stage) {
    kri_bench_peak_t peak = {0, 0, 0};
    if (kri_isa_from_name(name + strlen("machine/fma/"), &stage->level)) {
        kri_bench_peak(stage->level, &peak);
    }
    return peak.fma_gflops > 0 ? 0 : unknown_stage(name);
}

/* The baseline's model and sizes instead of those of the command line. */
static int open_model(const cli_options_t *options, const cli_baseline_t *baseline,
                      bool is_engine, cli_stages_t *stages) {
    cli_options_t as_then = *options;
    bool is_open = is_engine ? stages->engine != NULL : stages->model != NULL;
    if (is_open) return 0; /* by the other stage of the kind */
    as_then.values[CLI_OPT_model].text = baseline->model;
    as_then.values[CLI_OPT_bench_p].integer = baseline->n_prompt;
    as_then.values[CLI_OPT_bench_n].integer = baseline->n_generate;
    as_then.values[CLI_OPT_bench_p].is_given = as_then.values[CLI_OPT_bench_n].is_given = true;
    as_then.values[CLI_OPT_threads].integer = baseline->n_threads;
    as_then.values[CLI_OPT_isa].text = baseline->isa;
    return is_engine ? cli_bench_engine_open(&as_then, &stages->engine)
                     : cli_bench_model_open(&as_then, &stages->model);
}

static int open_stage(const cli_options_t *options, const cli_baseline_t *baseline,
                      cli_stages_t *stages, const char *name, stage_t *stage) {
    static const struct {
        const char *prefix;
        kind_t kind;
    } kinds[] = {{"machine/fma/", KIND_MACHINE}, {"op/", KIND_OP},
                 {"attention/", KIND_ATTENTION}, {"model/prefill", KIND_PREFILL},
                 {"model/decode", KIND_DECODE},
                 {"engine/prefill", KIND_ENGINE_PREFILL}, {"engine/decode", KIND_ENGINE_DECODE}};
    size_t i = 0, n = sizeof kinds / sizeof kinds[0];
    while (i < n && strncmp(name, kinds[i].prefix, strlen(kinds[i].prefix)) != 0) i++;
    if (i == n) return unknown_stage(name);
    stage->kind = kinds[i].kind;
    switch (stage->kind) {
    case KIND_MACHINE: return open_machine(name, stage);
    case KIND_OP: return open_op(stages, name, stage);
    case KIND_ATTENTION: return open_attention(baseline, name, stage);
    case KIND_PREFILL:
    case KIND_DECODE:
    case KIND_ENGINE_PREFILL:
    case KIND_ENGINE_DECODE: break;
    }
    if (strcmp(name, kinds[i].prefix) != 0) return unknown_stage(name);
    bool is_engine = stage->kind == KIND_ENGINE_PREFILL || stage->kind == KIND_ENGINE_DECODE;
    return open_model(options, baseline, is_engine, stages);
}

int cli_stages_open(const cli_options_t *options, const cli_baseline_t *baseline,
                    cli_stages_t **out) {
    cli_stages_t *stages = calloc(1, sizeof *stages);
    if (stages == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    stages->baseline = baseline;
    stages->ops = list_ops(NULL, &stages->n_ops);
    int failed = stages->ops != NULL ? 0 : cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    for (uint32_t i = 0; i < baseline->n_stages && failed == 0; i++) {
        stages->n_stages = i + 1;
        failed = open_stage(options, baseline, stages, baseline->stages[i].name,
                            &stages->stages[i]);
    }
    if (failed == 0) *out = stages;
    else cli_stages_close(stages);
    return failed;
}

void cli_stages_close(cli_stages_t *stages) {
    if (stages == NULL) return;
    for (uint32_t i = 0; i < stages->n_stages; i++) {
        kri_bench_case_destroy(stages->stages[i].op);
        kri_bench_attn_destroy(stages->stages[i].attn);
    }
    cli_bench_model_close(stages->model);
    cli_bench_engine_close(stages->engine);
    free(stages->ops);
    free(stages);
}

/* ---- sampling ------------------------------------------------------------------------------- */

static double sample_attention(kri_bench_attn_t *attn) {
    double best = (double)kri_bench_attn_fused(attn);
    for (int i = 1; i < ATTENTION_REPEATS; i++) {
        double ns = (double)kri_bench_attn_fused(attn);
        if (ns < best) best = ns;
    }
    return best;
}

static double sample_machine(kri_isa_t level) {
    kri_bench_peak_t peak;
    kri_bench_peak(level, &peak);
    return 1000 / peak.fma_gflops; /* nanoseconds of a thousand operations */
}

int cli_stages_sample(cli_stages_t *stages, double *samples) {
    double prefill_ns = 0, decode_ns = 0, engine_prefill_ns = 0, engine_decode_ns = 0;
    int failed = 0;
    if (stages->model != NULL) {
        failed = cli_bench_model_sample(stages->model, &prefill_ns, &decode_ns);
    }
    if (stages->engine != NULL && failed == 0) {
        failed = cli_bench_engine_sample(stages->engine, &engine_prefill_ns, &engine_decode_ns);
    }
    if (failed != 0) return failed;
    for (uint32_t i = 0; i < stages->n_stages; i++) {
        const stage_t *stage = &stages->stages[i];
        if (cli_interrupted()) return cli_report(CLI_PHASE_SETUP, KR_E_CANCELLED, NULL);
        switch (stage->kind) {
        case KIND_MACHINE: samples[i] = sample_machine(stage->level); break;
        case KIND_OP: samples[i] = kri_bench_case_sample(stage->op, OP_SECONDS); break;
        case KIND_ATTENTION: samples[i] = sample_attention(stage->attn); break;
        case KIND_PREFILL: samples[i] = prefill_ns; break;
        case KIND_DECODE: samples[i] = decode_ns; break;
        case KIND_ENGINE_PREFILL: samples[i] = engine_prefill_ns; break;
        case KIND_ENGINE_DECODE: samples[i] = engine_decode_ns; break;
        }
    }
    return 0;
}
