/* device.c: see device.h. */
#include "cuda/device.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/mutex.h"
#include "cuda/args.h"
#include "cuda/images.h"

struct kri_cuda_s {
    kri_cuda_driver_t driver;
    uint32_t n_refs;
    int device, n_processors, lost; /* lost: the driver's code, atomic; 0 = none */
    void *context, *modules[KRI_CUDA_N_IMAGES], *functions[KRI_CUDA_N_KERNELS];
    uint64_t bytes_used; /* atomic */
};

typedef struct row_s {
    const char *name;
    kri_cuda_image_t image;
    int shared_bytes;
} row_t;

static const row_t rows[KRI_CUDA_N_KERNELS] = {
#define KR_CUDA_KERNEL(name, image, shared_bytes)                                                \
    {"kri_" #name, KRI_CUDA_IMAGE_##image, shared_bytes},
#include "cuda/kernels.def"
};

/* The device of the process, made under the mutex. */
static kri_mutex_t mutex = {PTHREAD_MUTEX_INITIALIZER};
static kri_cuda_t *shared;

static kr_status_t fail(const kri_cuda_t *cuda, int code, const char *what, kr_error_t *error) {
    const kr_status_t status =
        code == KRI_CUDA_OUT_OF_MEMORY ? KR_E_DEVICE_NOMEM : KR_E_DEVICE_LOST;
    return KRI_FAIL(error, status, "device", "the CUDA device cannot %s: %s", what,
                    kri_cuda_error_name(&cuda->driver, code));
}

/* ---- open ----------------------------------------------------------------------------------- */

static kr_status_t find_device(kri_cuda_t *c, kr_error_t *error) {
    int count = 0, major = 0, minor = 0, code = c->driver.init(0);
    if (code == KRI_CUDA_SUCCESS) code = c->driver.device_count(&count);
    if (code == KRI_CUDA_NO_DEVICE || (code == KRI_CUDA_SUCCESS && count == 0)) {
        return KRI_FAIL(error, KR_E_NOT_FOUND, "device", "this machine has no CUDA device");
    }
    if (code == KRI_CUDA_SUCCESS) code = c->driver.device_get(&c->device, 0);
    if (code == KRI_CUDA_SUCCESS) {
        code = c->driver.device_attribute(&major, KRI_CUDA_ATTR_MAJOR, c->device);
    }
    if (code == KRI_CUDA_SUCCESS) {
        code = c->driver.device_attribute(&minor, KRI_CUDA_ATTR_MINOR, c->device);
    }
    if (code == KRI_CUDA_SUCCESS) {
        code = c->driver.device_attribute(&c->n_processors, KRI_CUDA_ATTR_PROCESSORS, c->device);
    }
    if (code != KRI_CUDA_SUCCESS) return fail(c, code, "be opened", error);
    if (major == 9 && minor == 0) return KR_OK;
    return KRI_FAIL(error, KR_E_UNSUPPORTED, "device",
                    "the CUDA device is sm_%d%d: kernels are built for sm_90 (Hopper) only", major,
                    minor);
}

static kr_status_t load_kernels(kri_cuda_t *c, kr_error_t *error) {
    for (int i = 0; i < KRI_CUDA_N_IMAGES; i++) {
        const void *image = kri_cuda_image((kri_cuda_image_t)i);
        if (!image) {
            return KRI_FAIL(error, KR_E_UNSUPPORTED, "device",
                            "this build has no CUDA kernels (it was made without nvcc)");
        }
        const int code = c->driver.module_load(&c->modules[i], image);
        if (code == KRI_CUDA_SUCCESS) continue;
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "device", "the CUDA driver refuses kernels %s: %s",
                        kri_cuda_image_name((kri_cuda_image_t)i),
                        kri_cuda_error_name(&c->driver, code));
    }
    for (int i = 0; i < KRI_CUDA_N_KERNELS; i++) {
        int code =
            c->driver.module_function(&c->functions[i], c->modules[rows[i].image], rows[i].name);
        if (code == KRI_CUDA_SUCCESS && rows[i].shared_bytes > 0) {
            code = c->driver.function_attribute(c->functions[i], KRI_CUDA_FUNCTION_SHARED_BYTES,
                                                rows[i].shared_bytes);
        }
        if (code == KRI_CUDA_SUCCESS) continue;
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "device", "no kernel %s: %s", rows[i].name,
                        kri_cuda_error_name(&c->driver, code));
    }
    return KR_OK;
}

static void destroy(kri_cuda_t *c) {
    if (!c) return;
    if (c->context) (void)c->driver.context_release(c->device); /* its modules go with it */
    kri_free(c);
}

static kr_status_t create(kri_cuda_t **out, kr_error_t *error) {
    kri_cuda_t *c = kri_calloc(1, sizeof *c, "cuda");
    if (!c) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the CUDA device");
    kr_status_t status = KR_OK;
    c->n_refs = 1;
    KR_TRY_DONE(kri_cuda_driver_open(&c->driver, error));
    KR_TRY_DONE(find_device(c, error));
    int code = c->driver.context_retain(&c->context, c->device);
    if (code == KRI_CUDA_SUCCESS) code = c->driver.context_set(c->context);
    if (code != KRI_CUDA_SUCCESS) {
        status = fail(c, code, "be opened", error);
        goto done;
    }
    KR_TRY_DONE(load_kernels(c, error));
    *out = c;
    c = NULL;
done:
    destroy(c);
    return status;
}

kr_status_t kri_cuda_open(kri_cuda_t **cuda, kr_error_t *error) {
    kr_status_t status = KR_OK;
    kri_mutex_lock(&mutex);
    if (!shared) {
        status = create(&shared, error);
    } else {
        const int lost = __atomic_load_n(&shared->lost, __ATOMIC_RELAXED);
        if (lost) status = fail(shared, lost, "be used any more", error);
        else shared->n_refs++;
    }
    if (status == KR_OK) *cuda = shared;
    kri_mutex_unlock(&mutex);
    return status;
}

void kri_cuda_close(kri_cuda_t *cuda) {
    if (!cuda) return;
    kri_mutex_lock(&mutex);
    if (--cuda->n_refs == 0) {
        destroy(cuda);
        shared = NULL;
    }
    kri_mutex_unlock(&mutex);
}

uint32_t kri_cuda_processors(const kri_cuda_t *cuda) { return (uint32_t)cuda->n_processors; }

/* ---- memory --------------------------------------------------------------------------------- */

static double megabytes(uint64_t n_bytes) { return (double)n_bytes / 1e6; }

kr_status_t kri_cuda_check_memory(kri_cuda_t *c, const char *what, uint64_t n_bytes,
                                  kr_error_t *error) {
    size_t free_bytes = 0, total = 0;
    int code = c->driver.context_set(c->context);
    if (code == KRI_CUDA_SUCCESS) code = c->driver.memory_info(&free_bytes, &total);
    if (code != KRI_CUDA_SUCCESS) return fail(c, code, "tell its memory", error);
    if (n_bytes <= free_bytes) return KR_OK;
    return KRI_FAIL(error, KR_E_DEVICE_NOMEM, "device",
                    "%s: %.1f MB of device memory are needed, %.1f of %.1f MB are free", what,
                    megabytes(n_bytes), megabytes(free_bytes), megabytes(total));
}

kr_status_t kri_cuda_alloc(kri_cuda_t *c, const char *what, size_t n_bytes, void **ptr,
                           kr_error_t *error) {
    uint64_t address = 0;
    if (!kri_alloc_allowed(n_bytes, "cuda")) {
        return KRI_FAIL(error, KR_E_DEVICE_NOMEM, "device", "no device memory for %s", what);
    }
    int code = c->driver.context_set(c->context);
    if (code == KRI_CUDA_SUCCESS) code = c->driver.memory_alloc(&address, n_bytes ? n_bytes : 1);
    if (code == KRI_CUDA_OUT_OF_MEMORY) {
        size_t free_bytes = 0, total = 0;
        KR_TRY(kri_cuda_check_memory(c, what, n_bytes, error));
        (void)c->driver.memory_info(&free_bytes, &total);
        return KRI_FAIL(error, KR_E_DEVICE_NOMEM, "device",
                        "%s: %.1f MB of device memory are needed in one piece, %.1f MB are free, "
                        "not in one", what, megabytes(n_bytes), megabytes(free_bytes));
    }
    if (code != KRI_CUDA_SUCCESS) return fail(c, code, "give memory", error);
    __atomic_fetch_add(&c->bytes_used, n_bytes, __ATOMIC_RELAXED);
    *ptr = (void *)(uintptr_t)address;
    return KR_OK;
}

void kri_cuda_free(kri_cuda_t *c, void *ptr, size_t n_bytes) {
    if (!ptr) return;
    (void)c->driver.context_set(c->context);
    (void)c->driver.memory_free((uint64_t)(uintptr_t)ptr);
    __atomic_fetch_sub(&c->bytes_used, n_bytes, __ATOMIC_RELAXED);
}

uint64_t kri_cuda_bytes_used(const kri_cuda_t *c) {
    return __atomic_load_n(&c->bytes_used, __ATOMIC_RELAXED);
}

void *kri_cuda_pinned_alloc(kri_cuda_t *c, size_t n_bytes) {
    void *ptr = NULL;
    if (!kri_alloc_allowed(n_bytes, "cuda pinned")) return NULL;
    (void)c->driver.context_set(c->context);
    return c->driver.pinned_alloc(&ptr, n_bytes, 0) == KRI_CUDA_SUCCESS ? ptr : NULL;
}

void kri_cuda_pinned_free(kri_cuda_t *c, void *ptr) {
    if (!ptr) return;
    (void)c->driver.context_set(c->context);
    (void)c->driver.pinned_free(ptr);
}

/* ---- streams -------------------------------------------------------------------------------- */

static void keep_error(kri_cuda_stream_t *s, int code) {
    if (code != KRI_CUDA_SUCCESS && s->error == KRI_CUDA_SUCCESS) s->error = code;
}

kr_status_t kri_cuda_stream_open(kri_cuda_t *c, kri_cuda_stream_t *stream, kr_error_t *error) {
    *stream = (kri_cuda_stream_t){.cuda = c};
    int code = c->driver.context_set(c->context);
    if (code == KRI_CUDA_SUCCESS) {
        code = c->driver.stream_create(&stream->handle, KRI_CUDA_STREAM_NON_BLOCKING);
    }
    return code == KRI_CUDA_SUCCESS ? KR_OK : fail(c, code, "make a stream", error);
}

void kri_cuda_stream_close(kri_cuda_stream_t *stream) {
    if (!stream->handle) return;
    kri_cuda_use(stream);
    (void)stream->cuda->driver.stream_wait(stream->handle);
    (void)stream->cuda->driver.stream_destroy(stream->handle);
    stream->handle = NULL;
}

void kri_cuda_use(kri_cuda_stream_t *stream) {
    const kri_cuda_t *c = stream->cuda;
    keep_error(stream, __atomic_load_n(&c->lost, __ATOMIC_RELAXED));
    keep_error(stream, c->driver.context_set(c->context));
}

void kri_cuda_launch(kri_cuda_stream_t *stream, kri_cuda_kernel_t kernel, kri_cuda_grid_t grid,
                     const void *args) {
    kri_cuda_attribute_t dependent = {.id = KRI_CUDA_LAUNCH_DEPENDENT, .value = {.value = 1}};
    const kri_cuda_launch_t config = {
        .grid = {grid.x, grid.y ? grid.y : 1, grid.z ? grid.z : 1},
        .block = {grid.n_threads, 1, 1}, .shared_bytes = grid.shared_bytes,
        .stream = stream->handle, .attributes = &dependent, .n_attributes = 1};
    union { const void *in; void *out; } first = {.in = args}; /* the driver only reads it */
    void *params[] = {first.out};
    if (stream->error != KRI_CUDA_SUCCESS) return;
    keep_error(stream, stream->cuda->driver.launch(&config, stream->cuda->functions[kernel],
                                                   params, NULL));
}

void kri_cuda_map_halves(kri_cuda_stream_t *stream, const void *address, const uint64_t dims[4],
                         const uint64_t strides[3], uint64_t *map) {
    static const uint32_t box[4] = {64, 16, 1, 1}, steps[4] = {1, 1, 1, 1};
    union { const void *in; void *out; } p = {.in = address}; /* the driver only keeps it */
    if (stream->error != KRI_CUDA_SUCCESS) return;
    keep_error(stream, stream->cuda->driver.tensor_map(
                           map, KRI_CUDA_TENSOR_F16, 4, p.out, dims, strides, box, steps, 0,
                           KRI_CUDA_TENSOR_SWIZZLE_128, KRI_CUDA_TENSOR_L2_256, 0));
}

void kri_cuda_copy_in(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes) {
    if (stream->error != KRI_CUDA_SUCCESS || n_bytes == 0) return;
    keep_error(stream, stream->cuda->driver.copy_in((uint64_t)(uintptr_t)to, from, n_bytes,
                                                    stream->handle));
}

void kri_cuda_copy_out(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes) {
    if (stream->error != KRI_CUDA_SUCCESS || n_bytes == 0) return;
    keep_error(stream, stream->cuda->driver.copy_out(to, (uint64_t)(uintptr_t)from, n_bytes,
                                                     stream->handle));
}

void kri_cuda_copy_within(kri_cuda_stream_t *stream, void *to, const void *from, size_t n_bytes) {
    if (stream->error != KRI_CUDA_SUCCESS || n_bytes == 0) return;
    keep_error(stream,
               stream->cuda->driver.copy_within((uint64_t)(uintptr_t)to,
                                                (uint64_t)(uintptr_t)from, n_bytes,
                                                stream->handle));
}

void kri_cuda_fill(kri_cuda_stream_t *stream, void *to, int value, size_t n_bytes) {
    if (stream->error != KRI_CUDA_SUCCESS || n_bytes == 0) return;
    keep_error(stream, stream->cuda->driver.fill((uint64_t)(uintptr_t)to, (unsigned char)value,
                                                 n_bytes, stream->handle));
}

kr_status_t kri_cuda_wait(kri_cuda_stream_t *stream, kr_error_t *error) {
    kri_cuda_t *c = stream->cuda;
    if (stream->error == KRI_CUDA_SUCCESS) {
        keep_error(stream, c->driver.stream_wait(stream->handle));
    }
    const int code = stream->error;
    if (code == KRI_CUDA_SUCCESS) return KR_OK;
    if (code == KRI_CUDA_OUT_OF_MEMORY) { /* of this step only: the context is whole */
        stream->error = c->driver.stream_wait(stream->handle);
        if (stream->error == KRI_CUDA_SUCCESS) return fail(c, code, "compute", error);
    }
    __atomic_store_n(&c->lost, stream->error, __ATOMIC_RELAXED);
    return fail(c, stream->error, "compute", error);
}

/* ---- graphs --------------------------------------------------------------------------------- */

void kri_cuda_record_begin(kri_cuda_stream_t *stream) {
    if (stream->error != KRI_CUDA_SUCCESS) return;
    keep_error(stream, stream->cuda->driver.capture_begin(stream->handle,
                                                          KRI_CUDA_CAPTURE_RELAXED));
}

void kri_cuda_record_end(kri_cuda_stream_t *stream, void **graph) {
    const kri_cuda_driver_t *driver = &stream->cuda->driver;
    void *recorded = NULL;
    *graph = NULL;
    keep_error(stream, driver->capture_end(stream->handle, &recorded));
    if (!recorded) return;
    if (stream->error == KRI_CUDA_SUCCESS) {
        const int code = driver->graph_instantiate(graph, recorded, 0);
        if (code == KRI_CUDA_OUT_OF_MEMORY) *graph = NULL; /* it can do without */
        else keep_error(stream, code);
    }
    (void)driver->graph_destroy(recorded);
}

void kri_cuda_replay(kri_cuda_stream_t *stream, void *graph) {
    if (stream->error != KRI_CUDA_SUCCESS) return;
    keep_error(stream, stream->cuda->driver.graph_launch(graph, stream->handle));
}

void kri_cuda_graph_free(kri_cuda_t *c, void *graph) {
    if (graph) (void)c->driver.graph_exec_destroy(graph);
}
