/* arena.c: bump allocation in chunks. A reset keeps every chunk for the next phase; memory is only
 * given back by destroy, so an arena is as large as its largest phase. No single object can be
 * freed. Under AddressSanitizer all that is not a live object is poisoned, and objects have a gap
 * between them so that running over the end of one is seen. */
#include <stdint.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/poison.h"
#include "kr.h"

#define ALIGNMENT 64u
#define GAP_BYTES (KRI_ASAN ? 64u : 0u)
/* Smaller chunks would spend more on headers than on objects. */
#define CHUNK_BYTES_MIN 4096u

typedef struct chunk_s {
    struct chunk_s *next;
    char *data;      /* [capacity], 64-aligned, inside the same block as this header */
    size_t capacity;
} chunk_t;

#define HEADER_BYTES 64u
_Static_assert(sizeof(chunk_t) <= HEADER_BYTES, "the chunk header must keep the data aligned");

struct kr_arena_s {
    chunk_t *first;
    chunk_t *current; /* chunks after it are free for reuse */
    size_t used;      /* of current; a multiple of the alignment */
    size_t chunk_bytes;
};

static chunk_t *chunk_create(size_t capacity) {
    size_t n_bytes;
    if (!kri_align_size(capacity, ALIGNMENT, &capacity)) return NULL;
    if (!kri_add_size(capacity, HEADER_BYTES, &n_bytes)) return NULL;
    char *block = kri_alloc(n_bytes, "arena");
    if (block == NULL) return NULL;
    chunk_t *chunk = (chunk_t *)block;
    *chunk = (chunk_t){NULL, block + HEADER_BYTES, capacity};
    KRI_POISON(chunk->data, chunk->capacity);
    return chunk;
}

kr_status_t kr_arena_create(size_t initial_size, kr_arena_t *arena) {
    if (arena == NULL || initial_size == 0) return KR_E_INVALID_ARG;
    struct kr_arena_s *created = kri_calloc(1, sizeof *created, "arena");
    if (created == NULL) return KR_E_NOMEM;
    created->chunk_bytes = initial_size > CHUNK_BYTES_MIN ? initial_size : CHUNK_BYTES_MIN;
    created->first = chunk_create(created->chunk_bytes);
    if (created->first == NULL) {
        kri_free(created);
        return KR_E_NOMEM;
    }
    created->current = created->first;
    *arena = created;
    return KR_OK;
}

/* Makes a chunk with room for n_bytes current: the first kept one that is large enough is moved up
 * (the skipped ones stay usable behind it), else a new one is made. */
static kr_status_t advance(struct kr_arena_s *arena, size_t n_bytes) {
    chunk_t **link = &arena->current->next;
    while (*link != NULL && (*link)->capacity < n_bytes) link = &(*link)->next;
    chunk_t *chunk = *link;
    if (chunk != NULL) {
        *link = chunk->next;
    } else {
        chunk = chunk_create(n_bytes > arena->chunk_bytes ? n_bytes : arena->chunk_bytes);
        if (chunk == NULL) return KR_E_NOMEM;
    }
    chunk->next = arena->current->next;
    arena->current->next = chunk;
    arena->current = chunk;
    arena->used = 0;
    return KR_OK;
}

kr_status_t kr_arena_alloc(kr_arena_t arena, size_t size, void **ptr) {
    if (arena == NULL || ptr == NULL || size == 0) return KR_E_INVALID_ARG;
    size_t n_bytes;
    if (!kri_align_size(size, ALIGNMENT, &n_bytes)) return KR_E_LIMIT;
    if (!kri_add_size(n_bytes, GAP_BYTES, &n_bytes)) return KR_E_LIMIT;
    if (n_bytes > SIZE_MAX - 2 * HEADER_BYTES) return KR_E_LIMIT;
    if (n_bytes > arena->current->capacity - arena->used) {
        const kr_status_t status = advance(arena, n_bytes);
        if (status != KR_OK) return status;
    }
    char *object = arena->current->data + arena->used;
    arena->used += n_bytes;
    KRI_UNPOISON(object, size);
    *ptr = object;
    return KR_OK;
}

kr_status_t kr_arena_reset(kr_arena_t arena) {
    if (arena == NULL) return KR_E_INVALID_ARG;
    for (chunk_t *chunk = arena->first; chunk != NULL; chunk = chunk->next) {
        KRI_POISON(chunk->data, chunk->capacity);
    }
    arena->current = arena->first;
    arena->used = 0;
    return KR_OK;
}

void kr_arena_destroy(kr_arena_t arena) {
    if (arena == NULL) return;
    chunk_t *chunk = arena->first;
    while (chunk != NULL) {
        chunk_t *next = chunk->next;
        KRI_UNPOISON(chunk->data, chunk->capacity);
        kri_free(chunk);
        chunk = next;
    }
    kri_free(arena);
}
