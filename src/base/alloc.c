/* alloc.c: the heap of the C side. A 64-byte header before each block remembers size and tag, so
 * that free needs neither; that is affordable because blocks are few and large here (small objects
 * live in arenas). Counters are relaxed atomics: exact sums, no order between threads. */
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"
#include "base/poison.h"
#include "base/structs.h"

#define ALIGNMENT 64u
/* Nothing of ours is nearly as large (weights and caches are pages), so a larger request comes from
 * a broken size: it fails here, also where sanitizers would end the process instead. */
#define BLOCK_BYTES_MAX ((size_t)1 << 39)
#define MAGIC UINT64_C(0x6b72616c6c6f6331)

typedef struct header_s {
    uint64_t magic; /* cleared by free: catches double frees and foreign pointers in test builds */
    size_t n_total; /* as asked of the allocator, header included */
    const char *purpose;
} header_t;

_Static_assert(sizeof(header_t) <= ALIGNMENT, "the header must fit before the block");

static void *default_alloc(size_t size, const char *purpose, void *user) {
    (void)purpose;
    (void)user;
    size_t rounded; /* aligned_alloc wants a multiple of the alignment */
    if (!kri_align_size(size, ALIGNMENT, &rounded)) return NULL;
    return aligned_alloc(ALIGNMENT, rounded);
}

static void default_free(void *ptr, size_t size, const char *purpose, void *user) {
    (void)size;
    (void)purpose;
    (void)user;
    free(ptr);
}

static kr_allocator_t hook = {sizeof(kr_allocator_t), 0, default_alloc, default_free, NULL};

static _Atomic uint64_t n_live; /* blocks */
static _Atomic uint64_t bytes_now;
static _Atomic uint64_t bytes_peak;
static _Atomic uint64_t n_allocs;
static _Atomic uint64_t fail_left; /* 0: off; 1: the next one fails */
static _Atomic bool fail_forever;
static _Atomic uint64_t fail_hits;
static _Atomic uint32_t guard_depth;
static _Atomic uint64_t guard_hits;
static _Atomic(const char *) guard_phase;
static void (*_Atomic reclaimer)(void);

void kri_alloc_reclaimer(void (*fn)(void)) { atomic_store(&reclaimer, fn); }

kr_status_t kr_allocator_set(const kr_allocator_t *allocator) {
    kr_allocator_t next = {sizeof(kr_allocator_t), 0, default_alloc, default_free, NULL};
    if (allocator != NULL) {
        /* The functions have no useful defaults: a struct without them is refused. */
        next.alloc = NULL;
        next.free = NULL;
        KR_TRY(kri_struct_read(&next, sizeof next, allocator, "allocator", NULL));
        if (next.alloc == NULL || next.free == NULL) return KR_E_INVALID_ARG;
    }
    void (*const reclaim)(void) = atomic_load(&reclaimer);
    if (atomic_load(&n_live) != 0 && reclaim != NULL) reclaim();
    if (atomic_load(&n_live) != 0) return KR_E_BUSY;
    hook = next;
    return KR_OK;
}

void kr_memory_usage_init(kr_memory_usage_t *usage) {
    if (usage != NULL) kri_struct_init(usage, sizeof *usage);
}

kr_status_t kr_memory_usage(kr_memory_usage_t *usage) {
    kr_memory_usage_t filled;
    kr_memory_usage_init(&filled);
    filled.bytes_now = atomic_load_explicit(&bytes_now, memory_order_relaxed);
    filled.bytes_peak = atomic_load_explicit(&bytes_peak, memory_order_relaxed);
    filled.n_allocs = atomic_load_explicit(&n_allocs, memory_order_relaxed);
    return kri_struct_write(usage, &filled, sizeof filled);
}

uint64_t kri_alloc_fail(uint64_t k, bool forever) {
    atomic_store(&fail_left, 0);
    atomic_store(&fail_forever, forever);
    const uint64_t n_failed = atomic_exchange(&fail_hits, 0);
    atomic_store(&fail_left, k);
    return n_failed;
}

static bool injection_hits(void) {
    uint64_t left = atomic_load_explicit(&fail_left, memory_order_relaxed);
    while (left != 0) {
        const bool hit = left == 1;
        const uint64_t next = hit && atomic_load(&fail_forever) ? 1 : left - 1;
        if (!atomic_compare_exchange_weak(&fail_left, &left, next)) continue;
        if (hit) atomic_fetch_add(&fail_hits, 1);
        return hit;
    }
    return false;
}

void kri_alloc_guard_begin(const char *phase) {
    atomic_store(&guard_phase, phase);
    if (atomic_fetch_add(&guard_depth, 1) == 0) atomic_store(&guard_hits, 0);
}

uint64_t kri_alloc_guard_end(void) {
    KR_ASSERT(atomic_load(&guard_depth) > 0);
    const uint64_t n_hits = atomic_load(&guard_hits);
    atomic_fetch_sub(&guard_depth, 1);
    return n_hits;
}

bool kri_alloc_allowed(size_t size, const char *purpose) {
    if (atomic_load_explicit(&guard_depth, memory_order_relaxed) != 0) {
        atomic_fetch_add(&guard_hits, 1);
        const char *phase = atomic_load(&guard_phase);
        kri_log(KR_LOG_ERROR, "allocation of %zu bytes (%s) during %s, which may not allocate",
                size, purpose, phase != NULL ? phase : "a guarded phase");
        return false;
    }
    return !injection_hits();
}

static void count_alloc(size_t n_bytes) {
    atomic_fetch_add_explicit(&n_live, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed);
    const uint64_t now =
        atomic_fetch_add_explicit(&bytes_now, n_bytes, memory_order_relaxed) + n_bytes;
    uint64_t peak = atomic_load_explicit(&bytes_peak, memory_order_relaxed);
    while (now > peak && !atomic_compare_exchange_weak_explicit(
                             &bytes_peak, &peak, now, memory_order_relaxed, memory_order_relaxed)) {
    }
}

static header_t *header_of(void *ptr) { return (header_t *)((char *)ptr - ALIGNMENT); }

void *kri_alloc(size_t size, const char *purpose) {
    if (size == 0 || size > BLOCK_BYTES_MAX) return NULL;
    const size_t n_total = size + ALIGNMENT;
    if (!kri_alloc_allowed(size, purpose)) return NULL;
    char *base = hook.alloc(n_total, purpose, hook.user);
    if (base == NULL) return NULL;
    if ((uintptr_t)base % ALIGNMENT != 0) { /* a host allocator that breaks its contract */
        hook.free(base, n_total, purpose, hook.user);
        return NULL;
    }
    header_t *header = (header_t *)base;
    *header = (header_t){MAGIC, n_total, purpose};
    KRI_POISON(base, ALIGNMENT);
    count_alloc(n_total);
    return base + ALIGNMENT;
}

void *kri_calloc(size_t count, size_t size, const char *purpose) {
    size_t n_bytes;
    if (!kri_mul_size(count, size, &n_bytes)) return NULL;
    void *ptr = kri_alloc(n_bytes, purpose);
    if (ptr != NULL) memset(ptr, 0, n_bytes);
    return ptr;
}

void *kri_realloc(void *ptr, size_t size, const char *purpose) {
    if (ptr == NULL) return kri_alloc(size, purpose);
    void *next = kri_alloc(size, purpose);
    if (next == NULL) return NULL;
    header_t *header = header_of(ptr);
    KRI_UNPOISON(header, ALIGNMENT);
    const size_t n_old = header->n_total - ALIGNMENT;
    memcpy(next, ptr, n_old < size ? n_old : size);
    kri_free(ptr);
    return next;
}

void kri_free(void *ptr) {
    if (ptr == NULL) return;
    header_t *header = header_of(ptr);
    KRI_UNPOISON(header, ALIGNMENT);
    KR_ASSERT(header->magic == MAGIC);
    header->magic = 0;
    const size_t n_total = header->n_total;
    atomic_fetch_sub_explicit(&bytes_now, n_total, memory_order_relaxed);
    hook.free(header, n_total, header->purpose, hook.user);
    /* Last, so that kr_allocator_set sees 0 only when the old hook is done. */
    atomic_fetch_sub(&n_live, 1);
}

char *kri_strndup(const char *text, size_t n, const char *purpose) {
    size_t n_bytes;
    if (!kri_add_size(n, 1, &n_bytes)) return NULL;
    char *copy = kri_alloc(n_bytes, purpose);
    if (copy == NULL) return NULL;
    if (n > 0) memcpy(copy, text, n);
    copy[n] = '\0';
    return copy;
}
