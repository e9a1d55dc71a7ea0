/* exec_impl.h: what the files exec*.c share. */
#ifndef KRI_OPS_EXEC_IMPL_H
#define KRI_OPS_EXEC_IMPL_H

#include "ops/exec.h"

/* Below this many elements an op is done before a worker would have woken up. */
#define KRI_EXEC_WORK_MIN 16384u
/* The same for a team, whose threads are awake and will meet anyway. */
#define KRI_EXEC_TEAM_WORK_MIN 1024u

/* Runs fn on the step's threads, or as thread 0 of 1 when `work` elements are few. All threads of
 * a team get thread 0's ctx, so fn may write to it (with atomics); it must come from the stack of
 * the caller or live as long. */
void kri_exec_run(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx);
/* The same for a ctx that is equal on all threads and only read: nothing is handed around. */
void kri_exec_split(const kri_exec_t *exec, uint64_t work, kri_pool_fn fn, void *ctx);

/* ---- linear, in two steps ------------------------------------------------------------------ */

/* Rows as the weights of a linear read them; a form that no part reads may be NULL. */
typedef struct kri_acts_s {
    const float *f32;          /* [n_rows][n_in] */
    const kri_q8_block_t *q8;  /* [n_rows][n_in / 32] */
} kri_acts_t;

/* What the rows are made from. */
typedef struct kri_acts_source_s {
    const float *x;
    const float *norm;    /* RMSNorm weights, or NULL: x as it is */
    float eps;
    const uint32_t *rows; /* only with norm: rows of x to read; NULL = the first ones */
} kri_acts_source_t;

typedef struct kri_linear_job_s {
    const kri_exec_t *exec;
    const kri_weight_t *w;
    kri_acts_t acts;
    uint32_t n_rows, accumulate;
    float *out;
    size_t out_stride;
} kri_linear_job_t;

bool kri_is_quantised(kr_dtype_t dtype);
/* Makes the forms that w reads. Few rows are made by each thread for itself, without a barrier. */
kri_acts_t kri_acts_prepare(const kri_exec_t *exec, const kri_weight_t *w,
                            const kri_acts_source_t *source, uint32_t n_rows);
/* Tokens whose activations stay in a core's second-level cache. */
size_t kri_linear_tile(const kri_weight_t *w);
/* Groups [begin, end) of one part for tokens [token, token + n_tokens); out: place of the first
 * token's first row. */
void kri_linear_part(const kri_linear_job_t *job, const kri_weight_part_t *part, size_t begin,
                     size_t end, size_t token, size_t n_tokens, float *out, size_t out_stride);
/* All parts for all rows of job->acts. */
void kri_linear_run(kri_linear_job_t *job);

/* ---- linear on the matrix unit (exec_tile.c) ------------------------------------------------ */

/* True when a linear of n_rows rows should go there: a prompt, and weights it can take. */
bool kri_exec_uses_tiles(const kri_exec_t *exec, const kri_weight_t *w, uint32_t n_rows);
/* kri_op_linear and kri_op_norm_linear, and kri_op_ffn when both of its matrices can. */
void kri_linear_tiles(const kri_exec_t *exec, const kri_weight_t *w,
                      const kri_acts_source_t *source, uint32_t n_rows, bool accumulate,
                      float *out, size_t out_stride);
void kri_ffn_tiles(const kri_exec_t *exec, const kri_ffn_desc_t *desc, const float *x,
                   uint32_t n_rows, bool accumulate, float *out);

#endif
