/* driver.cpp: the functions of the CUDA driver that kr uses (src/cuda/driver.def), over emulated
 * kernels: a libcuda.so.1 for machines without a GPU. Memory is the host's, filled with NaN;
 * work is done at once; a recorded graph is a list of launches. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include "cuda/driver.h"
#include "emulated_hopper.h"
#include "emulator.h"

#define EXPORT extern "C" __attribute__((visibility("default"))) int
#define MEMORY_BYTES ((size_t)8 << 30)
#define FILLED_MAX ((size_t)64 << 20)
#define INVALID 1
#define NOT_FOUND 500
#define ILLEGAL_ADDRESS 700

struct launch_t {
    const emu_kernel_t *kernel;
    unsigned grid[3], n_threads, shared_bytes;
    std::vector<uint8_t> args;
};
typedef std::vector<launch_t> graph_t;

static std::unordered_map<uint64_t, size_t> blocks;
static std::unordered_map<const void *, unsigned> shared_most;
static size_t used_bytes;
static graph_t *recording;
static int something;

/* ---- faults ----------------------------------------------------------------------------------
 * What a test asks for, found by dlsym; a program's test names a file in KR_EMULATED_LOST, whose
 * being there is a fault at the next launch. As with a driver, a kernel's error is told by the
 * calls after it, by all of them until the context is gone. */

static size_t memory_bytes = MEMORY_BYTES, used_most;
static long launches_left = -1, allocs_left = -1, instantiates_to_fail;
static int lost;

EXPORT emu_fail_launch(long n_before) { return launches_left = n_before, 0; } /* -1: none */
EXPORT emu_fail_alloc(long n_before) { return allocs_left = n_before, 0; }
EXPORT emu_fail_instantiate(long n) { return instantiates_to_fail = n, 0; }
EXPORT emu_memory(size_t n_bytes) { return memory_bytes = n_bytes, 0; } /* of the device */
EXPORT emu_used_most(size_t *n_bytes) { return *n_bytes = used_most, used_most = used_bytes, 0; }

static bool launch_fails() {
    const char *file = getenv("KR_EMULATED_LOST");
    if (file && access(file, F_OK) == 0) launches_left = 0;
    if (launches_left < 0 || launches_left-- > 0) return false;
    lost = ILLEGAL_ADDRESS;
    return true;
}

#define ALIVE                                                                                    \
    if (lost) return lost

/* ---- the driver ------------------------------------------------------------------------------ */

EXPORT cuInit(unsigned) { return 0; }
EXPORT cuDeviceGetCount(int *count) { return *count = 1, 0; }
EXPORT cuDeviceGet(int *device, int) { return *device = 0, 0; }
EXPORT cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == KRI_CUDA_ATTR_MAJOR ? 9 : attribute == KRI_CUDA_ATTR_MINOR ? 0 : 132;
    return 0;
}
EXPORT cuDevicePrimaryCtxRetain(void **context, int) { return *context = &something, 0; }
EXPORT cuDevicePrimaryCtxRelease_v2(int) { return lost = 0, launches_left = -1, 0; }
EXPORT cuCtxSetCurrent(void *) { return 0; }
EXPORT cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ALIVE;
    *free_bytes = memory_bytes > used_bytes ? memory_bytes - used_bytes : 0;
    *total = memory_bytes;
    return 0;
}
EXPORT cuMemAlloc_v2(uint64_t *address, size_t n_bytes) {
    ALIVE;
    if (allocs_left >= 0 && allocs_left-- == 0) return KRI_CUDA_OUT_OF_MEMORY;
    if (used_bytes + n_bytes > memory_bytes) return KRI_CUDA_OUT_OF_MEMORY;
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return KRI_CUDA_OUT_OF_MEMORY;
    memset(p, 0xff, n_bytes < FILLED_MAX ? n_bytes : FILLED_MAX);
    *address = (uint64_t)(uintptr_t)p;
    blocks[*address] = n_bytes;
    used_bytes += n_bytes;
    if (used_bytes > used_most) used_most = used_bytes;
    return 0;
}
EXPORT cuMemFree_v2(uint64_t address) {
    auto found = blocks.find(address);
    if (found == blocks.end()) return INVALID;
    munmap((void *)(uintptr_t)address, found->second);
    used_bytes -= found->second;
    blocks.erase(found);
    return 0;
}
EXPORT cuMemHostAlloc(void **address, size_t n_bytes, unsigned) {
    return *address = malloc(n_bytes), *address ? 0 : KRI_CUDA_OUT_OF_MEMORY;
}
EXPORT cuMemFreeHost(void *address) { return free(address), 0; }
EXPORT cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n_bytes, void *) {
    ALIVE;
    if (recording) return INVALID;
    memcpy((void *)(uintptr_t)to, from, n_bytes);
    return 0;
}
EXPORT cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n_bytes, void *) {
    ALIVE;
    if (recording) return INVALID;
    memcpy(to, (const void *)(uintptr_t)from, n_bytes);
    return 0;
}
EXPORT cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n_bytes, void *) {
    ALIVE;
    if (recording) return INVALID;
    memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, n_bytes);
    return 0;
}
EXPORT cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *) {
    ALIVE;
    if (recording) return INVALID;
    memset((void *)(uintptr_t)to, value, n);
    return 0;
}
EXPORT cuStreamCreate(void **stream, unsigned) { return *stream = &something, 0; }
EXPORT cuStreamDestroy_v2(void *) { return 0; }
EXPORT cuStreamSynchronize(void *) {
    ALIVE;
    return recording ? INVALID : 0;
}
EXPORT cuStreamBeginCapture_v2(void *, int) {
    ALIVE;
    if (recording) return INVALID;
    recording = new graph_t;
    return 0;
}
EXPORT cuStreamEndCapture(void *, void **graph) {
    if (!recording) return INVALID;
    *graph = recording;
    recording = nullptr;
    return 0;
}
EXPORT cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
    if (instantiates_to_fail > 0) return instantiates_to_fail--, KRI_CUDA_OUT_OF_MEMORY;
    *exec = new graph_t(*(graph_t *)graph);
    return 0;
}
EXPORT cuGraphLaunch(void *exec, void *) {
    ALIVE;
    for (const launch_t &l : *(graph_t *)exec) {
        if (launch_fails()) break;
        emu_run(l.kernel, l.grid, l.n_threads, l.shared_bytes, l.args.data());
    }
    return 0;
}
EXPORT cuGraphExecDestroy(void *exec) { return delete (graph_t *)exec, 0; }
EXPORT cuGraphDestroy(void *graph) { return delete (graph_t *)graph, 0; }
EXPORT cuModuleLoadData(void **module, const void *) { return *module = &something, 0; }
EXPORT cuModuleGetFunction(void **function, void *, const char *name) {
    for (const emu_kernel_t *k = emu_kernels; k->name; k++) {
        if (strcmp(k->name, name) != 0) continue;
        *function = (void *)k;
        return 0;
    }
    return NOT_FOUND;
}
EXPORT cuFuncSetAttribute(void *function, int, int value) {
    shared_most[function] = (unsigned)value;
    return value <= 232448 ? 0 : INVALID;
}
EXPORT cuLaunchKernelEx(const kri_cuda_launch_t *config, void *function, void **args, void **) {
    ALIVE;
    const emu_kernel_t *kernel = (const emu_kernel_t *)function;
    const unsigned most = shared_most.count(function) ? shared_most[function] : 49152;
    if (config->grid[0] == 0 || config->grid[1] == 0 || config->grid[1] > 65535 ||
        config->grid[2] == 0 || config->grid[2] > 65535 || config->block[0] == 0 ||
        config->block[0] > 1024 || config->shared_bytes > most) {
        return INVALID;
    }
    if (!recording) {
        if (launch_fails()) return 0;
        emu_run(kernel, config->grid, config->block[0], config->shared_bytes, args[0]);
        return 0;
    }
    const uint8_t *bytes = (const uint8_t *)args[0];
    recording->push_back({kernel, {config->grid[0], config->grid[1], config->grid[2]},
                          config->block[0], config->shared_bytes,
                          std::vector<uint8_t>(bytes, bytes + kernel->args_bytes)});
    return 0;
}
EXPORT cuTensorMapEncodeTiled(void *map, int type, uint32_t n_dims, void *address,
                              const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                              const uint32_t *steps, int interleave, int swizzle, int, int fill) {
    emu_map_t m = {(const uint8_t *)address, {}, {}};
    if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || type != KRI_CUDA_TENSOR_F16 ||
        n_dims != 4 || interleave || swizzle != KRI_CUDA_TENSOR_SWIZZLE_128 || fill) {
        return INVALID;
    }
    const uint32_t boxes[4] = {64, 16, 1, 1};
    for (int i = 0; i < 4; i++) {
        if (dims[i] == 0 || dims[i] > 1ull << 32 || box[i] != boxes[i] || steps[i] != 1) {
            return INVALID;
        }
        if (i < 3 && (strides[i] % 16 || strides[i] >= 1ull << 40)) return INVALID;
        m.dims[i] = dims[i];
        if (i < 3) m.strides[i] = strides[i];
    }
    memcpy(map, &m, sizeof m);
    return 0;
}
EXPORT cuGetErrorName(int code, const char **name) {
    *name = code == KRI_CUDA_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == ILLEGAL_ADDRESS      ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                           : "CUDA_ERROR_EMULATED";
    return 0;
}
