/* exec_cuda.h: the ops of ops/exec.h on a CUDA stream. Up to KRI_CU_TOKENS rows go through
 * matrix- vector kernels, whose products of quantised weights are those of the CPU (integers,
 * exact); more rows are rounded to bf16, as are the weights, and go through the tensor cores.
 * Keys and values are f16; attention of a prompt rounds queries and weights to f16. */
#ifndef KRI_CUDA_EXEC_CUDA_H
#define KRI_CUDA_EXEC_CUDA_H

#include "cuda/args.h"
#include "cuda/device.h"
#include "cuda/lt.h"
#include "ops/exec.h"

/* kri_exec_t.device. Buffers are the device's; n is the widest input of a linear. */
typedef struct kri_cuda_exec_s {
    kri_cuda_stream_t *stream;
    kri_cuda_lt_t *lt;        /* NULL: products of many rows by kernels/gemm.cu */
    const uint32_t *cancel;   /* host; NULL while a graph is recorded */
    kri_cu_step_t step;
    uint32_t n_decode_rows, n_tiles, n_splits;
    kri_cu_q8_t *q8;          /* [KRI_CU_TOKENS][n / 32] */
    float *f32;               /* [KRI_CU_TOKENS][n] */
    uint16_t *bf16;           /* [n_rows_max][n] */
    float *gate_up;           /* [n_rows_max][2 n_ff] */
    uint16_t *unpacked;       /* [unpacked_items]: weights of a product as bf16 */
    size_t unpacked_items;
    float *partials;          /* [kri_cuda_partial_floats] */
    uint32_t *counters;       /* [KRI_CUDA_COUNTERS(n_processors)] of 0 */
    kri_cu_rotate_t rotate;   /* of the attention to come */
    const float *rounded;     /* the result of attention that is not there but in bf16 */
} kri_cuda_exec_t;

/* Weights on the device: parts of quantised types lie as packed for the CPU (pack.h), parts of
 * float types in rows as in the file. n_in of every matrix is a multiple of KRI_CUDA_N_IN. */
#define KRI_CUDA_N_IN 32u
/* Items of kri_cuda_exec_t.unpacked for these weights and the splits of attention: see there. */
size_t kri_cuda_unpacked_items(size_t n_in_max);
size_t kri_cuda_partial_floats(uint32_t n_processors, uint32_t head_dim);
/* Enough for the rows and heads that split contexts of a device of n_processors at most. */
#define KRI_CUDA_COUNTERS(n_processors) (2u * (n_processors))
/* Parts that the context of a decode row is cut into when n_rows of them attend together over at
 * most n_pages pages each. The number changes by powers of two of n_pages only. */
uint32_t kri_cuda_splits(uint32_t n_processors, uint32_t n_rows, uint32_t n_heads,
                         uint32_t n_kv_heads, uint32_t n_pages);
/* Most rows of a tile in which rows of this head size attend; 0: they go one by one. */
uint32_t kri_cuda_tile_rows(kr_dtype_t kv_dtype, uint32_t head_dim);
/* *flag (device) becomes 1 when one of x [n] is not finite. */
void kri_cuda_finite(kri_cuda_stream_t *stream, const float *x, uint64_t n, uint32_t *flag);

/* The largest of each row of x [n_rows, n]: kri_cu_argmax_t. */
void kri_cuda_argmax(kri_cuda_stream_t *stream, const kri_cu_argmax_t *args, uint32_t n_rows);

extern const kri_exec_ops_t kri_cuda_ops;

#endif
