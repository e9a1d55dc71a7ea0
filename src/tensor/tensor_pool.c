/* tensor_pool.c: tensors from size classes, one pool for the process.
 * Four classes to a power of two: a tensor has at most a quarter more than it asked for, and in
 * return the next one of nearly the same shape finds it. What comes back is kept up to 64 MiB; then
 * what has been idle longest is freed, so that a change of shapes does not fill the pool with
 * memory that nobody asks for again. One mutex, held for a few pointers; the heap is called outside
 * of it. Idle blocks hang on static lists and are never freed at exit: leak checkers see them as
 * reachable, and no order of destruction exists. */
#include "tensor/tensor_pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/poison.h"
#include "base/structs.h"
#include "telemetry/telemetry.h"
#include "tensor/dtype.h"

#define ALIGNMENT 64u
#define HEADER_BYTES 128u

/* Class 0 holds up to 2^8 bytes; (2^e, 2^(e+1)] has four classes from e = 8 on. */
#define EXPONENT_MIN 8u
#define EXPONENT_END 26u /* 2^26 = 64 MiB */
#define N_CLASSES (1u + 4u * (EXPONENT_END - EXPONENT_MIN))
#define CLASS_NONE UINT32_MAX /* too large to be kept */

typedef struct links_s {
    struct kr_tensor_s *newer, *older;
} links_t;

struct kr_tensor_s {
    _Atomic uint32_t n_refs;
    uint32_t class; /* or CLASS_NONE */
    size_t n_capacity;
    uint64_t n_bytes;
    kr_dtype_t dtype;
    uint32_t n_dims;
    uint64_t shape[4];
    links_t same, all; /* while idle: among the blocks of the class, among all */
};

_Static_assert(sizeof(struct kr_tensor_s) <= HEADER_BYTES, "the header must fit before the data");

typedef struct idle_list_s {
    struct kr_tensor_s *newest, *oldest;
} idle_list_t;

static struct {
    pthread_mutex_t mutex;
    idle_list_t classes[N_CLASSES];
    idle_list_t all;
    _Atomic uint64_t n_idle_bytes;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

/* ---- size classes ------------------------------------------------------------------------- */

/* The class of a tensor of n_bytes and the bytes that its blocks hold. */
static uint32_t class_of(size_t n_bytes, size_t *n_capacity) {
    if (n_bytes <= (size_t)1 << EXPONENT_MIN) {
        *n_capacity = (size_t)1 << EXPONENT_MIN;
        return 0;
    }
    const uint32_t exponent = 63u - (uint32_t)__builtin_clzll((uint64_t)n_bytes - 1);
    const size_t quarter = (size_t)1 << (exponent - 2);
    const size_t rounded = (n_bytes + quarter - 1) & ~(quarter - 1);
    if (exponent >= EXPONENT_END || HEADER_BYTES + rounded > KRI_TENSOR_IDLE_BYTES_MAX) {
        *n_capacity = n_bytes;
        return CLASS_NONE;
    }
    *n_capacity = rounded;
    return 1 + 4 * (exponent - EXPONENT_MIN) + (uint32_t)(rounded / quarter - 5);
}

static uint64_t block_bytes(const struct kr_tensor_s *block) {
    return HEADER_BYTES + block->n_capacity;
}

static void *data_of(struct kr_tensor_s *block) { return (char *)block + HEADER_BYTES; }

/* ---- the pool ----------------------------------------------------------------------------- */

static void lock_pool(void) { pthread_mutex_lock(&pool.mutex); }
static void unlock_pool(void) { pthread_mutex_unlock(&pool.mutex); }

static double idle_bytes_gauge(void) { return (double)kri_tensor_pool_idle_bytes(); }

/* A fork while another thread holds the mutex must not leave it locked in the child. */
static void prepare_pool(void) {
    pthread_atfork(lock_pool, unlock_pool, unlock_pool);
    kri_alloc_reclaimer(kri_tensor_pool_trim);
    kri_telemetry_gauge_source(KRI_METRIC_tensor_pool_bytes, idle_bytes_gauge);
}

static void add_idle(struct kr_tensor_s *block) {
    idle_list_t *same = &pool.classes[block->class];
    block->same = (links_t){NULL, same->newest};
    block->all = (links_t){NULL, pool.all.newest};
    if (same->newest != NULL) same->newest->same.newer = block;
    if (pool.all.newest != NULL) pool.all.newest->all.newer = block;
    if (same->oldest == NULL) same->oldest = block;
    if (pool.all.oldest == NULL) pool.all.oldest = block;
    same->newest = block;
    pool.all.newest = block;
    atomic_fetch_add_explicit(&pool.n_idle_bytes, block_bytes(block), memory_order_relaxed);
}

static void remove_idle(struct kr_tensor_s *block) {
    idle_list_t *same = &pool.classes[block->class];
    if (block->same.newer != NULL) block->same.newer->same.older = block->same.older;
    if (block->same.older != NULL) block->same.older->same.newer = block->same.newer;
    if (same->newest == block) same->newest = block->same.older;
    if (same->oldest == block) same->oldest = block->same.newer;
    if (block->all.newer != NULL) block->all.newer->all.older = block->all.older;
    if (block->all.older != NULL) block->all.older->all.newer = block->all.newer;
    if (pool.all.newest == block) pool.all.newest = block->all.older;
    if (pool.all.oldest == block) pool.all.oldest = block->all.newer;
    atomic_fetch_sub_explicit(&pool.n_idle_bytes, block_bytes(block), memory_order_relaxed);
}

/* Takes the longest idle blocks out until at most n_bytes are left; returns them as a chain. */
static struct kr_tensor_s *shrink(uint64_t n_bytes) {
    struct kr_tensor_s *chain = NULL;
    while (pool.all.oldest != NULL && kri_tensor_pool_idle_bytes() > n_bytes) {
        struct kr_tensor_s *block = pool.all.oldest;
        remove_idle(block);
        block->all.older = chain;
        chain = block;
    }
    return chain;
}

static void free_block(struct kr_tensor_s *block) {
    KRI_UNPOISON(data_of(block), block->n_capacity);
    kri_free(block);
}

static void free_chain(struct kr_tensor_s *chain) {
    while (chain != NULL) {
        struct kr_tensor_s *next = chain->all.older;
        free_block(chain);
        chain = next;
    }
}

void kri_tensor_pool_trim(void) {
    lock_pool();
    struct kr_tensor_s *chain = shrink(0);
    unlock_pool();
    free_chain(chain);
}

uint64_t kri_tensor_pool_idle_bytes(void) {
    return atomic_load_explicit(&pool.n_idle_bytes, memory_order_relaxed);
}

/* ---- tensors ------------------------------------------------------------------------------ */

static struct kr_tensor_s *take_block(size_t n_bytes) {
    pthread_once(&pool_once, prepare_pool);
    size_t n_capacity;
    const uint32_t class = class_of(n_bytes, &n_capacity);
    if (class != CLASS_NONE) {
        lock_pool();
        struct kr_tensor_s *block = pool.classes[class].newest;
        if (block != NULL) remove_idle(block);
        unlock_pool();
        if (block != NULL) return block;
    }
    struct kr_tensor_s *block = kri_alloc(HEADER_BYTES + n_capacity, "tensor");
    if (block == NULL && kri_tensor_pool_idle_bytes() > 0) {
        kri_tensor_pool_trim();
        block = kri_alloc(HEADER_BYTES + n_capacity, "tensor");
    }
    if (block == NULL) return NULL;
    memset(block, 0, HEADER_BYTES);
    block->class = class;
    block->n_capacity = n_capacity;
    KRI_POISON(data_of(block), n_capacity);
    return block;
}

static uint64_t item_bytes(kr_dtype_t dtype) {
    switch (dtype) {
    case KR_DTYPE_F32:
    case KR_DTYPE_F16:
    case KR_DTYPE_BF16: return kri_dtype_info(dtype)->block_bytes;
    case KR_DTYPE_I8: return 1;
    default: return 0;
    }
}

static kr_status_t check_shape(kr_dtype_t dtype, uint32_t n_dims, const uint64_t *shape,
                               uint64_t *n_bytes, kr_error_t *error) {
    uint64_t total = item_bytes(dtype);
    if (total == 0) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "dtype",
                        "tensors are f32, f16, bf16 or i8, not type %d", (int)dtype);
    }
    if (n_dims < 1 || n_dims > 4) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "n_dims", "n_dims is %u, not 1..4", n_dims);
    }
    bool is_limit = false;
    for (uint32_t d = 0; d < n_dims; d++) {
        if (shape[d] == 0) {
            return KRI_FAIL(error, KR_E_INVALID_ARG, "shape", "dimension %u is 0", d);
        }
        if (!kri_mul_u64(total, shape[d], &total) || total > KRI_TENSOR_BYTES_MAX) {
            is_limit = true;
            total = 1; /* the other dimensions are still to be looked at */
        }
    }
    if (is_limit) return KRI_FAIL(error, KR_E_LIMIT, "shape", "more than 2^39 bytes");
    *n_bytes = total;
    return KR_OK;
}

kr_status_t kr_tensor_acquire(kr_dtype_t dtype, uint32_t n_dims, const uint64_t *shape,
                              kr_tensor_t *tensor, kr_error_t *error) {
    if (tensor == NULL) return KRI_FAIL(error, KR_E_INVALID_ARG, "tensor", "tensor is NULL");
    if (shape == NULL) return KRI_FAIL(error, KR_E_INVALID_ARG, "shape", "shape is NULL");
    uint64_t n_bytes = 0;
    KR_TRY(check_shape(dtype, n_dims, shape, &n_bytes, error));
    struct kr_tensor_s *block = take_block((size_t)n_bytes);
    if (block == NULL) {
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for a tensor of %llu bytes",
                        (unsigned long long)n_bytes);
    }
    /* Not to the end of the block: what lies behind the tensor stays poisoned. */
    KRI_UNPOISON(data_of(block), (size_t)n_bytes);
    block->n_bytes = n_bytes;
    block->dtype = dtype;
    block->n_dims = n_dims;
    memset(block->shape, 0, sizeof block->shape);
    memcpy(block->shape, shape, n_dims * sizeof shape[0]);
    atomic_store_explicit(&block->n_refs, 1, memory_order_relaxed);
    *tensor = block;
    return KR_OK;
}

void kr_tensor_retain(kr_tensor_t tensor) {
    if (tensor == NULL) return;
    const uint32_t n_before = atomic_fetch_add_explicit(&tensor->n_refs, 1, memory_order_relaxed);
    KR_ASSERT(n_before > 0);
    (void)n_before;
}

void kr_tensor_release(kr_tensor_t tensor) {
    if (tensor == NULL) return;
    const uint32_t n_before = atomic_fetch_sub_explicit(&tensor->n_refs, 1, memory_order_acq_rel);
    KR_ASSERT(n_before > 0);
    if (n_before != 1) return;
    if (tensor->class == CLASS_NONE) {
        free_block(tensor);
        return;
    }
    KRI_POISON(data_of(tensor), tensor->n_capacity);
    lock_pool();
    struct kr_tensor_s *chain = shrink(KRI_TENSOR_IDLE_BYTES_MAX - block_bytes(tensor));
    add_idle(tensor);
    unlock_pool();
    free_chain(chain);
}

void kr_tensor_view_init(kr_tensor_view_t *view) {
    if (view != NULL) kri_struct_init(view, sizeof *view);
}

kr_status_t kr_tensor_view(kr_tensor_t tensor, kr_tensor_view_t *view) {
    if (tensor == NULL || view == NULL) return KR_E_INVALID_ARG;
    kr_tensor_view_t filled;
    kr_tensor_view_init(&filled);
    filled.dtype = tensor->dtype;
    filled.n_dims = tensor->n_dims;
    memcpy(filled.shape, tensor->shape, sizeof filled.shape);
    filled.n_bytes = tensor->n_bytes;
    filled.data = data_of(tensor);
    uint64_t stride = item_bytes(tensor->dtype);
    for (uint32_t d = tensor->n_dims; d-- > 0;) {
        filled.strides[d] = stride;
        stride *= tensor->shape[d];
    }
    return kri_struct_write(view, &filled, sizeof filled);
}
