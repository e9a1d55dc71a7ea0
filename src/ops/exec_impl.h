/* exec_impl.h: what exec.c and exec_attention.c share. */
#ifndef KRI_OPS_EXEC_IMPL_H
#define KRI_OPS_EXEC_IMPL_H

#include "ops/exec.h"

/* Below this many elements an op is done before a worker would have woken up. */
#define KRI_EXEC_WORK_MIN 16384u

/* Runs fn on the step's threads, or inline as thread 0 of 1 when `work` elements are few. */
void kri_exec_run(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx);

/* True when a linear of n_rows rows should go through the matrix unit, and that linear. */
bool kri_exec_uses_tiles(const kri_exec_t *exec, const kri_weight_t *w, uint32_t n_rows);
void kri_exec_linear_tiles(const kri_exec_t *exec, const kri_weight_t *w, const float *x,
                           uint32_t n_rows, bool accumulate, float *out, size_t out_stride);

#endif
