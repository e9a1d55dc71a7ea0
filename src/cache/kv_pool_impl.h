/* kv_pool_impl.h: what the files of the pool share. kv_pages.c moves single pages between their
 * states and keeps the ledger; kv_pool.c makes sequences of them; kv_prefix.c joins sequences and
 * the prefix cache; kv_check.c proves the invariants.
 *
 * A page is free, used (refs > 0: tables of sequences name it) or cached (refs 0, a node of the
 * prefix cache names it, it stands in its group's LRU list). A used page may have a node too. */
#ifndef KRI_CACHE_KV_POOL_IMPL_H
#define KRI_CACHE_KV_POOL_IMPL_H

#include "cache/kv_pool.h"
#include "cache/prefix_cache.h"

#define KRI_PAGE_NONE UINT32_MAX

typedef struct kri_kv_page_s {
    uint32_t refs;
    uint32_t node;       /* of the prefix cache, or KRI_NODE_NONE */
    uint32_t prev, next; /* LRU list (cached) or free list (next only) */
    uint64_t stamp;      /* when it became cached */
} kri_kv_page_t;

typedef struct kri_kv_pages_s {
    kri_kv_page_t *pages;    /* [n_pages] */
    uint32_t n_pages;
    uint32_t n_fresh;        /* pages from here on were never used */
    uint32_t free_first;     /* free pages with memory, last freed first */
    uint32_t returned_first; /* free pages whose memory went back to the system */
    uint32_t lru_first, lru_last; /* first = next to go */
    uint32_t *tables;        /* [n_seqs, pages_per_seq]; 0 where nothing is held */
} kri_kv_pages_t;

typedef struct kri_kv_seq_s {
    uint32_t length;      /* tokens */
    uint32_t n_pages;     /* table entries in use: [first[g], n_pages) of each group */
    uint32_t n_published; /* leading pages that entered the prefix cache */
    uint32_t first[KRI_KV_GROUPS_MAX]; /* pages before it were given back */
    bool is_tail_shared;  /* the page at length may be another's too: look before writing */
} kri_kv_seq_t;

struct kri_kv_pool_s {
    kri_kv_memory_t memory;
    bool is_host;             /* free pages can give their memory back */
    uint32_t n_groups, n_seqs, n_ctx, pages_per_seq;
    uint32_t chain_group;     /* a group that keeps the page before a sequence's length */
    kri_kv_group_t views[KRI_KV_GROUPS_MAX];
    kri_kv_pages_t groups[KRI_KV_GROUPS_MAX];
    kri_kv_seq_t *seqs;       /* [n_seqs] */
    kri_prefix_cache_t *cache; /* NULL: none */
    uint64_t bytes_full;      /* every sequence holds n_ctx tokens */
    uint64_t bytes_reserved;  /* what address space was taken for */
    uint64_t bytes_max, bytes_used, bytes_cached;
    uint64_t bytes_touched;   /* used, cached, or free with memory: at most bytes_max */
    uint64_t bytes_moved, n_evicted, clock;
};

/* ---- kv_pages.c ----------------------------------------------------------------------------- */

/* Evicts until n_bytes more fit. The caller has checked that evicting is enough. */
void kri_kv_make_room(kri_kv_pool_t *pool, uint64_t n_bytes);
/* A free page, with one reference; there is room. */
uint32_t kri_kv_page_take(kri_kv_pool_t *pool, uint32_t group);
void kri_kv_page_ref(kri_kv_pool_t *pool, uint32_t group, uint32_t page);
/* The last reference: the page becomes cached, or free when it has no node. */
void kri_kv_page_unref(kri_kv_pool_t *pool, uint32_t group, uint32_t page);
/* The page is no longer its node's; when the node is worth nothing without it, the node goes. */
void kri_kv_page_detach(kri_kv_pool_t *pool, uint32_t group, uint32_t page);
/* Frees the cached page that was released first; false: none is cached. */
bool kri_kv_evict(kri_kv_pool_t *pool);
/* Free pages give their memory back until no more than bytes_max has been touched. */
void kri_kv_trim(kri_kv_pool_t *pool);

/* ---- shared --------------------------------------------------------------------------------- */

static inline uint32_t *kri_kv_table(const kri_kv_pool_t *pool, uint32_t seq, uint32_t group) {
    return pool->groups[group].tables + (size_t)seq * pool->pages_per_seq;
}

/* The first page that a row at position n_tokens sees. */
static inline uint32_t kri_kv_first_page(const kri_kv_pool_t *pool, uint32_t group,
                                         uint32_t n_tokens) {
    return kri_attn_first_key(n_tokens, pool->views[group].window) / KRI_PAGE_TOKENS;
}

/* Windowed groups give back what neither the next row nor one up to KRI_KV_UNDO_TOKENS before it
 * sees; pages that are still to be published stay until then. */
void kri_kv_give_back(kri_kv_pool_t *pool, uint32_t seq);

#endif
