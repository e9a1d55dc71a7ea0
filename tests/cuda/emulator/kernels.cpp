/* kernels.cpp: the kernels as C++, each file in a namespace of its own, and their table. */
#include "emulator.h"

#include "emulated_hopper.h"

#define KRI_CUDA_PRIMITIVES_CUH /* emulated.h has them, */
#define KRI_CUDA_HOPPER_CUH     /* emulated_hopper.h these */
#include "cuda/kernels/common.cuh"
/* Once for all: their guards know no namespaces. */
#include "cuda/kernels/acts.cuh"
#include "cuda/kernels/items.cuh"
#include "cuda/kernels/kv8.cuh"
#include "cuda/kernels/quant.cuh"
#include "cuda/kernels/rotate.cuh"
#include "cuda/kernels/row.cuh"

namespace rows {
#include "cuda/kernels/rows.cu"
}
namespace row_quant {
#include "cuda/kernels/row_quant.cu"
}
#undef SETS
#undef ROW
namespace row_float {
#include "cuda/kernels/row_float.cu"
}
#undef ROWS
#undef SETS
namespace matvec_quant {
#include "cuda/kernels/matvec_quant.cu"
}
#undef MATVEC
#undef MATVECS
namespace matvec_float {
#include "cuda/kernels/matvec_float.cu"
}
namespace gemm {
#include "cuda/kernels/gemm.cu"
}
namespace attn_rows {
#include "cuda/kernels/attn_rows.cu"
}
#undef WARPS
namespace attn_decode {
#include "cuda/kernels/attn_decode.cu"
}
#undef HEADS
#undef WARPS
#undef LEVELS
namespace attn_prefill {
#include "cuda/kernels/attn_prefill.cu"
}
#undef ROWS
#undef THREADS
#undef PREFILL
namespace attn_prefill8 {
#include "cuda/kernels/attn_prefill8.cu"
}

namespace {
template <typename A> constexpr size_t args_bytes(void (*)(A)) { return sizeof(A); }
template <typename A> void call(void (*kernel)(A), const void *args) {
    A copy;
    memcpy((void *)&copy, args, sizeof copy);
    kernel(copy);
}
} // namespace

const emu_kernel_t emu_kernels[] = {
#define KR_CUDA_KERNEL(name, image, shared_bytes)                                                \
    {"kri_" #name, [](const void *args) { call(image::kri_##name, args); },                      \
     args_bytes(image::kri_##name)},
#include "cuda/kernels.def"
    {nullptr, nullptr, 0},
};
