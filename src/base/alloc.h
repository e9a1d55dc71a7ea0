/* alloc.h: heap with purpose tags, failure injection and the allocation guard.
 * Memory is aligned to 64 bytes. Every call goes through the kr_allocator_set hook. */
#ifndef KRI_BASE_ALLOC_H
#define KRI_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

/* NULL on failure, on size 0 or over 2^39, or when injection or the guard says so. `purpose`:
 * static string. */
void *kri_alloc(size_t size, const char *purpose);
void *kri_calloc(size_t count, size_t size, const char *purpose); /* checked multiply, zeroed */
/* Grows or shrinks, keeping min(old, new) bytes; on failure NULL and ptr stays valid. */
void *kri_realloc(void *ptr, size_t size, const char *purpose);
void kri_free(void *ptr); /* NULL is a no-op; size and tag are remembered before the block */
/* Copies exactly n bytes (a NUL among them does not end the copy) and adds a NUL. */
char *kri_strndup(const char *text, size_t n, const char *purpose);

/* Fault injection (tests): the k-th allocation from now on fails (k = 1 is the next one), once or
 * for ever after; k = 0 switches off. Returns how many have failed since the last call. */
uint64_t kri_alloc_fail(uint64_t k, bool forever);
/* For other sources of memory (kri_pages_alloc): counts as an allocation for injection and guard;
 * false means the caller must fail. */
bool kri_alloc_allowed(size_t size, const char *purpose);
/* Whoever keeps memory for later use gives it back when `fn` is called: by kr_allocator_set, which
 * can replace the heap only when nothing is allocated. One for the process; NULL = none. */
void kri_alloc_reclaimer(void (*fn)(void));
/* The guard: between begin and end any allocation of this process fails and is counted; `phase`
 * names it in the log. Returns from end the number of allocations tried. */
void kri_alloc_guard_begin(const char *phase);
uint64_t kri_alloc_guard_end(void);

#endif
