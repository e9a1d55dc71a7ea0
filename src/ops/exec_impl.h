/* exec_impl.h: what exec.c and exec_attention.c share. */
#ifndef KRI_OPS_EXEC_IMPL_H
#define KRI_OPS_EXEC_IMPL_H

#include "ops/exec.h"

/* Below this many elements an op is done before a worker would have woken up. */
#define KRI_EXEC_WORK_MIN 16384u

/* Runs fn on the step's threads, or inline as thread 0 of 1 when `work` elements are few. */
void kri_exec_run(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx);

#endif
