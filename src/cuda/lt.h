/* lt.h: products of many rows by cuBLASLt, where its library is on the machine (it is not part
 * of the driver). Without it, and for shapes that it has no algorithm for, kernels/gemm.cu
 * computes. Which of the two a session has is in its level (kr_session_info_t.isa). */
#ifndef KRI_CUDA_LT_H
#define KRI_CUDA_LT_H

#include "cuda/args.h"
#include "cuda/device.h"

typedef struct kri_cuda_lt_s kri_cuda_lt_t;

/* NULL where the library is not found or lacks a function (one log line says so). Takes device
 * memory for workspace; one stream at a time uses it. */
kri_cuda_lt_t *kri_cuda_lt_open(kri_cuda_t *cuda);
void kri_cuda_lt_close(kri_cuda_lt_t *lt);
/* Workspace of one. */
#define KRI_CUDA_LT_BYTES ((size_t)32 << 20)
/* False when it cannot: nothing was done then. bias is not added. */
bool kri_cuda_lt_gemm(kri_cuda_lt_t *lt, kri_cuda_stream_t *stream, const kri_cu_gemm_t *args);

#endif
