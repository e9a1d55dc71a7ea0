/* bench_ops.c: `kr bench ops`: every kernel at every level and shape (bench/ops), one thread, with
 * the ceilings of this machine measured in the same run: how fast memory can be read, and what the
 * arithmetic units of a level do without any memory. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench/ops/bench_ops.h"
#include "bench/ops/bench_peak.h"
#include "kr.h"
#include "load.h"
#include "report.h"
#include "stream_bench.h"
#include "terminal.h"

typedef struct ceilings_s {
    double read_one_gbps, read_all_gbps;
    uint32_t n_threads;
    kri_bench_peak_t peaks[KRI_N_ISA];
} ceilings_t;

static void measure_ceilings(uint32_t n_threads, ceilings_t *ceilings) {
    ceilings->n_threads = n_threads;
    ceilings->read_one_gbps = stream_bench_read_gbps(1, 0, 0);
    ceilings->read_all_gbps = stream_bench_read_gbps(n_threads, 0, 0);
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
        kri_bench_peak(level, &ceilings->peaks[level]);
    }
}

/* What the op's arithmetic could reach, 0 = not known. */
static double op_peak(const ceilings_t *ceilings, const kri_bench_op_t *op) {
    kri_isa_t level = KRI_ISA_REF;
    if (!kri_isa_from_name(op->isa, &level)) return 0;
    const kri_bench_peak_t *peak = &ceilings->peaks[level];
    if (op->is_tiles) return peak->tile_gflops;
    return op->is_int8 ? peak->int8_gops : peak->fma_gflops;
}

static json_t *positive(double value) { return value > 0 ? cli_json_real(value) : json_null(); }

static json_t *ceilings_json(const ceilings_t *ceilings) {
    json_t *object = json_object(), *levels = json_object();
    json_object_set_new(object, "read_gbps_1_thread", positive(ceilings->read_one_gbps));
    json_object_set_new(object, "read_gbps", positive(ceilings->read_all_gbps));
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
        const kri_bench_peak_t *peak = &ceilings->peaks[level];
        if (!(peak->fma_gflops > 0)) continue;
        json_t *row = json_object();
        json_object_set_new(row, "fma_gflops", cli_json_real(peak->fma_gflops));
        json_object_set_new(row, "int8_gops", positive(peak->int8_gops));
        json_object_set_new(row, "tile_gflops", positive(peak->tile_gflops));
        json_object_set_new(levels, kri_isa_name(level), row);
    }
    json_object_set_new(object, "levels", levels);
    return object;
}

static json_t *op_json(const ceilings_t *ceilings, const kri_bench_op_t *op, double ns) {
    double gbps = op->bytes / ns, gflops = op->flops / ns, peak = op_peak(ceilings, op);
    json_t *row = json_object();
    json_object_set_new(row, "name", json_string(op->name));
    json_object_set_new(row, "op", json_string(op->slot));
    json_object_set_new(row, "isa", json_string(op->isa));
    json_object_set_new(row, "shape", json_string(op->shape));
    json_object_set_new(row, "ns", cli_json_real(ns));
    json_object_set_new(row, "gbps", cli_json_real(gbps));
    json_object_set_new(row, "gflops", positive(gflops));
    json_object_set_new(row, "of_read",
                        ceilings->read_one_gbps > 0
                            ? cli_json_real(gbps / ceilings->read_one_gbps)
                            : json_null());
    json_object_set_new(row, "of_peak", peak > 0 && gflops > 0 ? cli_json_real(gflops / peak)
                                                               : json_null());
    return row;
}

static void print_ceilings(const ceilings_t *ceilings) {
    (void)cli_out_printf("ceilings  read %.1f GB/s (1 thread), %.1f GB/s (%u threads)\n",
                         ceilings->read_one_gbps, ceilings->read_all_gbps, ceilings->n_threads);
    for (kri_isa_t level = KRI_ISA_REF; level < KRI_N_ISA; level++) {
        const kri_bench_peak_t *peak = &ceilings->peaks[level];
        if (!(peak->fma_gflops > 0)) continue;
        (void)cli_out_printf("          %-7s f32 %.0f GFLOP/s", kri_isa_name(level),
                             peak->fma_gflops);
        if (peak->int8_gops > 0) (void)cli_out_printf(", int8 %.0f GOP/s", peak->int8_gops);
        if (peak->tile_gflops > 0)
            (void)cli_out_printf(", bf16 tiles %.0f GFLOP/s", peak->tile_gflops);
        (void)cli_out_printf(" (1 thread)\n");
    }
    (void)cli_out_printf("%-44s %12s %9s %6s %10s %6s\n", "op/level/shape", "ns", "GB/s",
                         "of rd", "GFLOP/s", "of pk");
}

static void print_op(const ceilings_t *ceilings, const kri_bench_op_t *op, double ns) {
    double gbps = op->bytes / ns, gflops = op->flops / ns, peak = op_peak(ceilings, op);
    (void)cli_out_printf("%-44s %12.0f %9.2f", op->name, ns, gbps);
    if (ceilings->read_one_gbps > 0) {
        (void)cli_out_printf(" %5.0f%%", 100 * gbps / ceilings->read_one_gbps);
    }
    if (gflops > 0) (void)cli_out_printf(" %10.2f", gflops);
    if (gflops > 0 && peak > 0) (void)cli_out_printf(" %5.0f%%", 100 * gflops / peak);
    (void)cli_out_printf("\n");
}

static int measure_ops(const cli_options_t *options, const ceilings_t *ceilings,
                       const kri_bench_op_t *ops, size_t n_ops, json_t *results) {
    for (size_t i = 0; i < n_ops; i++) {
        kri_bench_case_t *bench = NULL;
        if (cli_interrupted()) return cli_report(CLI_PHASE_SETUP, KR_E_CANCELLED, NULL);
        if (cli_out_is_closed()) return 0; /* nobody reads on */
        kr_status_t status = kri_bench_case_create(&ops[i], &bench);
        if (status != KR_OK) {
            return cli_fail(CLI_PHASE_SETUP, status, NULL, "no memory for the inputs of %s",
                            ops[i].name);
        }
        cli_progress("bench", i, n_ops);
        double ns = kri_bench_case_sample(bench, cli_number(options, CLI_OPT_seconds));
        kri_bench_case_destroy(bench);
        cli_progress_clear();
        if (results != NULL) json_array_append_new(results, op_json(ceilings, &ops[i], ns));
        else print_op(ceilings, &ops[i], ns);
    }
    return 0;
}

int cli_bench_ops(const cli_options_t *options) {
    const char *isa = NULL, *filter = cli_text(options, CLI_OPT_filter);
    int failed = cli_bench_isa(options, &isa);
    if (failed != 0) return failed;
    kri_bench_op_t *ops = calloc(KRI_BENCH_OPS_MAX, sizeof *ops);
    if (ops == NULL) return cli_report(CLI_PHASE_SETUP, KR_E_NOMEM, NULL);
    size_t n_ops = kri_bench_ops_list(isa, filter, ops, KRI_BENCH_OPS_MAX);
    if (n_ops > KRI_BENCH_OPS_MAX) n_ops = KRI_BENCH_OPS_MAX;
    if (n_ops == 0) {
        failed = cli_usage("--filter", "no op, level and shape contains '%.64s'; names look like "
                                       "linear_q4_k/avx2/512x2048/n64", filter);
    }
    if (failed == 0) {
        bool is_json = cli_given(options, CLI_OPT_json);
        ceilings_t ceilings;
        memset(&ceilings, 0, sizeof ceilings);
        measure_ceilings(cli_bench_threads(options), &ceilings);
        json_t *report = cli_bench_header(isa, cli_bench_threads(options));
        json_t *results = json_array();
        json_object_set_new(report, "ceilings", ceilings_json(&ceilings));
        json_object_set_new(report, "results", results);
        if (!is_json) print_ceilings(&ceilings);
        failed = measure_ops(options, &ceilings, ops, n_ops, is_json ? results : NULL);
        if (failed == 0 && is_json) (void)cli_out_json(report);
        json_decref(report);
    }
    free(ops);
    return failed;
}
