/* kernels.c: the table of references and the choice of a linear kernel. */
#include "ops/kernels.h"

void kri_kernels_ref(kri_kernels_t *kernels) {
    kernels->isa = "ref";
#define KR_OP(slot, type, family, tolerance) kernels->slot = kri_##slot##_ref;
#include "ops/ops.def"
}

kri_linear_fn *kri_kernels_linear(const kri_kernels_t *kernels, kr_dtype_t dtype) {
    switch (dtype) {
    case KR_DTYPE_F32: return kernels->linear_f32;
    case KR_DTYPE_F16: return kernels->linear_f16;
    case KR_DTYPE_BF16: return kernels->linear_bf16;
    case KR_DTYPE_Q4_0: return kernels->linear_q4_0;
    case KR_DTYPE_Q4_1: return kernels->linear_q4_1;
    case KR_DTYPE_Q5_0: return kernels->linear_q5_0;
    case KR_DTYPE_Q5_1: return kernels->linear_q5_1;
    case KR_DTYPE_Q8_0: return kernels->linear_q8_0;
    case KR_DTYPE_Q4_K: return kernels->linear_q4_k;
    case KR_DTYPE_Q5_K: return kernels->linear_q5_k;
    case KR_DTYPE_Q6_K: return kernels->linear_q6_k;
    default: return NULL;
    }
}
