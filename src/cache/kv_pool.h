/* kv_pool.h: paged keys and values: per group one pool of pages, per sequence one page table per
 * group (step.h has the page layout). Pages are counted by references: sequences share the pages of
 * a common prefix, the prefix cache (prefix_cache.h) keeps pages of ended ones, and a page that is
 * shared is copied before it is written. Layers with a sliding window give back the pages that no
 * later row sees.
 *
 * Memory  Address space for every page is taken at create, memory is touched when a page is first
 *         used (a device's memory is taken whole). The ledger is in bytes of pages over all groups
 *         together: used (held by at least one sequence) + cached (held by the prefix cache only)
 *         <= bytes_max, always. Nothing here allocates after create.
 * Threads one at a time. */
#ifndef KRI_CACHE_KV_POOL_H
#define KRI_CACHE_KV_POOL_H

#include <stdbool.h>

#include "kr.h"
#include "ops/step.h"

typedef struct kri_kv_pool_s kri_kv_pool_t;

typedef struct kri_kv_shape_s {
    uint32_t n_layers, n_kv_heads, head_dim, window;
} kri_kv_shape_t;

/* Memory of pages that is not the host's: the pool only copies whole ranges of it. Copies are
 * done, or in order with what a step does, when the calls return. */
typedef struct kri_kv_memory_s {
    void *ctx;
    void *(*alloc)(void *ctx, size_t n_bytes); /* NULL without memory */
    void (*free)(void *ctx, void *ptr, size_t n_bytes);
    void (*copy)(void *ctx, void *to, const void *from, size_t n_bytes);
    void (*read)(void *ctx, void *host, const void *from, size_t n_bytes);
    void (*write)(void *ctx, void *to, const void *host, size_t n_bytes);
} kri_kv_memory_t;

typedef struct kri_kv_params_s {
    uint32_t n_groups;
    kri_kv_shape_t groups[KRI_KV_GROUPS_MAX];
    kr_dtype_t dtype;        /* KR_DTYPE_F16, KR_DTYPE_F32, KR_DTYPE_I8, KR_DTYPE_F8 */
    uint32_t n_seqs, n_ctx;  /* no sequence holds more than n_ctx tokens */
    uint64_t bytes_max;      /* ledger; 0 = every sequence can hold n_ctx tokens */
    bool prefix_cache;
    uint32_t n_rows;         /* most tokens of a sequence in one step: a windowed group holds its
                                window and these; 0 = n_ctx */
    const kri_kv_memory_t *memory; /* copied; NULL = pages of the host */
} kri_kv_params_t;

/* Bytes of a pool in which every sequence can hold n_ctx tokens (or bytes_max, where given);
 * KR_E_LIMIT on overflow. */
kr_status_t kri_kv_pool_bytes(const kri_kv_params_t *params, uint64_t *n_bytes);
/* What a pool with memory of a device takes there: for each group with a window of its own as many
 * pages as fit into those bytes. Errors the same. */
kr_status_t kri_kv_pool_device_bytes(const kri_kv_params_t *params, uint64_t *n_bytes);
/* KR_E_INVALID_ARG (a count of 0, too many groups), KR_E_UNSUPPORTED (dtype), KR_E_LIMIT,
 * KR_E_NOMEM. */
kr_status_t kri_kv_pool_create(const kri_kv_params_t *params, kri_kv_pool_t **pool);
void kri_kv_pool_destroy(kri_kv_pool_t *pool);

/* ---- sequences ------------------------------------------------------------------------------ */

uint32_t kri_kv_pool_length(const kri_kv_pool_t *pool, uint32_t seq);
/* Makes room for n_tokens tokens in total and makes the pages from the length on private; the
 * length does not change. Cached pages are evicted, least recently used first, when no other is
 * free. KR_E_CONTEXT_LENGTH over n_ctx, KR_E_LIMIT without free pages (nothing is taken then). */
kr_status_t kri_kv_pool_reserve(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
/* Truncate always works this far before the longest length, though not before what attach, fork
 * or restore began with. */
#define KRI_KV_UNDO_TOKENS 16u
/* The tokens reserved and computed now count. length <= n_tokens <= what was reserved. Pages that
 * lie before the windows of all rows from n_tokens - KRI_KV_UNDO_TOKENS on are given back; with a
 * prefix cache only once they were published. */
void kri_kv_pool_commit(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
/* Drops tokens from n_tokens on, and reservations past the length; pages that hold none go back.
 * KR_E_UNSUPPORTED when the row at n_tokens would see pages already given back. */
kr_status_t kri_kv_pool_truncate(kri_kv_pool_t *pool, uint32_t seq, uint32_t n_tokens);
/* Empties the sequence: its references go, last page first, so that a cached prefix ages from its
 * end. */
void kri_kv_pool_release(kri_kv_pool_t *pool, uint32_t seq);
/* The empty sequence dst shares the first n_tokens tokens of src. KR_E_INVALID_ARG when dst is not
 * empty or n_tokens is over src's length, KR_E_UNSUPPORTED as truncate. */
kr_status_t kri_kv_pool_fork(kri_kv_pool_t *pool, uint32_t src, uint32_t dst, uint32_t n_tokens);

/* ---- prefix cache --------------------------------------------------------------------------- */

typedef struct kri_kv_match_s {
    uint32_t n_cached;       /* tokens whose pages are there: whole pages, fewer than n_tokens */
    uint32_t miss_position;  /* first token after what the closest cached prefix shares */
    kr_token_t miss_cached;  /* what the cache has at miss_position; -1 = nothing */
} kri_kv_match_t;
/* The longest cached prefix of tokens [n_tokens] under salt. Tokens are compared in full. */
void kri_kv_pool_match(const kri_kv_pool_t *pool, uint64_t salt, const kr_token_t *tokens,
                       uint32_t n_tokens, kri_kv_match_t *match);
/* The same, and the empty sequence seq begins with it (its length becomes n_cached). */
void kri_kv_pool_attach(kri_kv_pool_t *pool, uint32_t seq, uint64_t salt,
                        const kr_token_t *tokens, uint32_t n_tokens, kri_kv_match_t *match);
/* The pages of seq that became full since the last call enter the cache. tokens [length of seq]:
 * all tokens of the sequence. salt as at attach. O(1) for each new page; a no-op without cache. */
void kri_kv_pool_publish(kri_kv_pool_t *pool, uint32_t seq, uint64_t salt,
                         const kr_token_t *tokens);
/* Empties the sequence as release does; what was computed in it is not to be trusted: its pages,
 * those it took from the cache too, are found by no match from now on. */
void kri_kv_pool_discard(kri_kv_pool_t *pool, uint32_t seq);
/* Drops everything that only the cache holds. */
void kri_kv_pool_forget(kri_kv_pool_t *pool);

/* ---- ledger --------------------------------------------------------------------------------- */

typedef struct kri_kv_stats_s {
    uint64_t bytes_max, bytes_used, bytes_cached; /* bytes of pages */
    uint64_t bytes_moved;    /* copied by copy-on-write since create */
    uint64_t n_evicted;      /* pages taken from the cache */
} kri_kv_stats_t;
void kri_kv_pool_stats(const kri_kv_pool_t *pool, kri_kv_stats_t *stats);
/* Bytes that an empty sequence needs for n_tokens tokens when its first n_cached come from the
 * cache. Windowed groups count their window and one step of n_rows rows. */
uint64_t kri_kv_pool_need(const kri_kv_pool_t *pool, uint32_t n_cached, uint32_t n_tokens,
                          uint32_t n_rows);
/* Bytes that reserve could still hand out: free and evictable. */
uint64_t kri_kv_pool_available(const kri_kv_pool_t *pool);
/* Changes bytes_max (0 as at create); evicts cached pages for it. KR_E_LIMIT over the size that
 * create reserved (a full pool; bytes_max where that is more or the memory a device's), KR_E_BUSY
 * while sequences hold more. Memory above the new limit goes back to the system. */
kr_status_t kri_kv_pool_resize(kri_kv_pool_t *pool, uint64_t bytes_max);
/* Checks every invariant (reference counts against tables and cache, ledger, lists); for tests.
 * False: broken. Slow. */
bool kri_kv_pool_check(const kri_kv_pool_t *pool);

/* ---- saved sequences ------------------------------------------------------------------------ */

/* What a sequence holds: of each group the pages from first on that hold its tokens. */
typedef struct kri_kv_extent_s {
    uint32_t n_tokens, first[KRI_KV_GROUPS_MAX];
} kri_kv_extent_t;
void kri_kv_pool_extent(const kri_kv_pool_t *pool, uint32_t seq, kri_kv_extent_t *extent);
/* Bytes of these pages. KR_E_CONTEXT_LENGTH, KR_E_BAD_FORMAT (a window is incomplete). */
kr_status_t kri_kv_pool_extent_bytes(const kri_kv_pool_t *pool, const kri_kv_extent_t *extent,
                                     uint64_t *n_bytes);
/* The pages, group after group; slots past the length are zeros. bytes [kri_kv_pool_extent_bytes
 * of the sequence's extent]. */
void kri_kv_pool_save(const kri_kv_pool_t *pool, uint32_t seq, uint8_t *bytes);
/* The empty sequence seq gets this extent and these bytes. KR_E_INVALID_ARG (not empty), KR_E_LIMIT
 * (no pages), and as kri_kv_pool_extent_bytes; the sequence stays empty then. */
kr_status_t kri_kv_pool_restore(kri_kv_pool_t *pool, uint32_t seq, const kri_kv_extent_t *extent,
                                const uint8_t *bytes);

/* ---- what a step needs ---------------------------------------------------------------------- */

uint32_t kri_kv_pool_n_groups(const kri_kv_pool_t *pool);
const kri_kv_group_t *kri_kv_pool_groups(const kri_kv_pool_t *pool);
const uint32_t *kri_kv_pool_table(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group);

#endif
