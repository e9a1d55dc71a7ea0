/* bench_attn.h: attention of one layer as the engine computes it (kri_op_attention over paged
 * keys and values, on the pool's threads), and the unfused form that exists only to be compared
 * with: scores = Q K^T and out = P V by the float linear kernels over keys and values packed
 * beforehand (not timed), with the whole score matrix [n_rows, n_keys] of a head in memory between
 * them, where mask and softmax go over it. */
#ifndef KRI_BENCH_ATTN_H
#define KRI_BENCH_ATTN_H

#include <stdbool.h>
#include <stdint.h>

#include "kr.h"

/* Every sequence holds n_past tokens and attends with n_rows more; n_past 0 is a whole prefill,
 * n_rows 1 is decode. head_dim is a multiple of 16, at most 512. With several layers each run takes
 * the next one, so that keys and values come from where a model's come from, not from the caches
 * nearest to the core. */
typedef struct kri_bench_attn_shape_s {
    uint32_t n_layers;
    uint32_t n_seqs, n_past, n_rows;
    uint32_t n_heads, n_kv_heads, head_dim;
    int32_t attn_qk;     /* KR_ATTN_QK_*, of the fused form */
    kr_dtype_t kv_dtype; /* KR_DTYPE_F16 or KR_DTYPE_I8, whose integers the unfused form takes as
                          * f16 */
} kri_bench_attn_shape_t;

typedef struct kri_bench_attn_s kri_bench_attn_t;

/* isa NULL: the best level. KR_E_NOMEM, KR_E_LIMIT. with_unfused takes its memory as well. */
kr_status_t kri_bench_attn_create(const kri_bench_attn_shape_t *shape, const char *isa,
                                  uint32_t n_threads, bool with_unfused, kri_bench_attn_t **out);
void kri_bench_attn_destroy(kri_bench_attn_t *attn);
/* One layer once; nanoseconds of the wall clock, with one thread of that thread's CPU clock. */
uint64_t kri_bench_attn_fused(kri_bench_attn_t *attn);
uint64_t kri_bench_attn_unfused(kri_bench_attn_t *attn);
/* Runs both: largest |difference| of their outputs relative to the largest |value|. */
double kri_bench_attn_error(kri_bench_attn_t *attn);

/* Textbook operations of one run: 4 * head_dim for each (query, key that it sees) and head. */
double kri_bench_attn_flops(const kri_bench_attn_shape_t *shape);
/* Bytes held: keys and values, queries and outputs, scratch, and for the unfused form its own. */
uint64_t kri_bench_attn_kv_bytes(const kri_bench_attn_t *attn);
uint64_t kri_bench_attn_fused_bytes(const kri_bench_attn_t *attn);
uint64_t kri_bench_attn_unfused_bytes(const kri_bench_attn_t *attn);

#endif
