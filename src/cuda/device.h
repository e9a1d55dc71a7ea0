/* device.h: the CUDA device of the process: context, kernels, memory, streams. One device is
 * used (the first one); it is opened by its first user and closed by its last. Threads:
 * kri_cuda_open, kri_cuda_close and memory from any thread, a stream from one at a time. */
#ifndef KRI_CUDA_DEVICE_H
#define KRI_CUDA_DEVICE_H

#include <stdbool.h>

#include "cuda/driver.h"

typedef enum kri_cuda_kernel_e {
#define KR_CUDA_KERNEL(name, image, shared_bytes) KRI_CUDA_##name,
#include "cuda/kernels.def"
    KRI_CUDA_N_KERNELS
} kri_cuda_kernel_t;

typedef struct kri_cuda_s kri_cuda_t;

/* KR_E_NOT_FOUND (no driver, no device), KR_E_UNSUPPORTED (no Hopper, a build without kernels, a
 * kernel missing), KR_E_DEVICE_LOST; the message says which. */
kr_status_t kri_cuda_open(kri_cuda_t **cuda, kr_error_t *error);
void kri_cuda_close(kri_cuda_t *cuda);
uint32_t kri_cuda_processors(const kri_cuda_t *cuda); /* multiprocessors */

/* Memory of the device. KR_E_DEVICE_NOMEM says what was needed and what is free; `what` names it.
 * Contents are whatever was there. */
kr_status_t kri_cuda_alloc(kri_cuda_t *cuda, const char *what, size_t n_bytes, void **ptr,
                           kr_error_t *error);
void kri_cuda_free(kri_cuda_t *cuda, void *ptr, size_t n_bytes);
/* Refuses when n_bytes more would not fit, before anything is taken. */
kr_status_t kri_cuda_check_memory(kri_cuda_t *cuda, const char *what, uint64_t n_bytes,
                                  kr_error_t *error);
uint64_t kri_cuda_bytes_used(const kri_cuda_t *cuda); /* by this process through kri_cuda_alloc */
/* Host memory that the device copies from and to at full speed; NULL without memory. */
void *kri_cuda_pinned_alloc(kri_cuda_t *cuda, size_t n_bytes);
void kri_cuda_pinned_free(kri_cuda_t *cuda, void *ptr);

/* ---- streams --------------------------------------------------------------------------------
 * Work in order. The first error of a stream is kept, later calls do nothing, and
 * kri_cuda_wait reports it. An error of a kernel leaves the whole device unusable for this process
 * (KR_E_DEVICE_LOST from then on, also from kri_cuda_open). */
typedef struct kri_cuda_stream_s {
    kri_cuda_t *cuda;
    void *handle;
    int error; /* the driver's code, 0 = none */
} kri_cuda_stream_t;
kr_status_t kri_cuda_stream_open(kri_cuda_t *cuda, kri_cuda_stream_t *stream, kr_error_t *error);
void kri_cuda_stream_close(kri_cuda_stream_t *stream);
/* Makes the device this thread's; before other calls with a stream on a thread. */
void kri_cuda_use(kri_cuda_stream_t *stream);

typedef struct kri_cuda_grid_s { uint32_t x, y, z, n_threads, shared_bytes; } kri_cuda_grid_t;
/* args: the kernel's struct of args.h, copied. */
void kri_cuda_launch(kri_cuda_stream_t *stream, kri_cuda_kernel_t kernel, kri_cuda_grid_t grid,
                     const void *args);
/* map [16], aligned to 64 bytes, for copies of boxes of [16][64] halves of a tensor [..][dims[2]]
 * [dims[1]][dims[0]] of them by a kernel; strides of the last three dimensions in bytes, multiples
 * of 16 as is the address. Pieces of 16 bytes of a box are swizzled in its rows of 128. */
void kri_cuda_map_halves(kri_cuda_stream_t *stream, const void *address, const uint64_t dims[4],
                         const uint64_t strides[3], uint64_t *map);
void kri_cuda_copy_in(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes);
void kri_cuda_copy_out(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes);
void kri_cuda_copy_within(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes);
void kri_cuda_fill(kri_cuda_stream_t *stream, void *to, int value, size_t n_bytes);
/* Waits until all work is done. KR_E_DEVICE_LOST with the driver's name of what went wrong. */
kr_status_t kri_cuda_wait(kri_cuda_stream_t *stream, kr_error_t *error);

/* Launches between begin and end are recorded, not run. *graph NULL when recording failed (the
 * stream's error). */
void kri_cuda_record_begin(kri_cuda_stream_t *stream);
void kri_cuda_record_end(kri_cuda_stream_t *stream, void **graph);
void kri_cuda_replay(kri_cuda_stream_t *stream, void *graph);
void kri_cuda_graph_free(kri_cuda_t *cuda, void *graph);

#endif
