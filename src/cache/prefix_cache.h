/* prefix_cache.h: the tree of cached prefixes. A node stands for 16 tokens after its parent's,
 * under a salt; it names one page per group that holds their keys and values, or fewer where
 * windowed pages were given up. Nodes are found by a hash and compared in full: serial of the
 * parent (never used twice, so that a node that was recycled is no one's parent), salt, all tokens.
 * What a page is worth and when it goes is the pool's business (kv_pool.c); the tree only links.
 * Threads: one at a time. Nothing allocates after create. */
#ifndef KRI_CACHE_PREFIX_CACHE_H
#define KRI_CACHE_PREFIX_CACHE_H

#include <stdbool.h>

#include "kr.h"
#include "ops/kernels.h"
#include "ops/step.h"

#define KRI_NODE_NONE UINT32_MAX

typedef struct kri_prefix_node_s {
    uint64_t serial;        /* from 1; 0: the node is free */
    uint64_t parent_serial; /* 0: the first page of a prompt */
    uint64_t salt;
    kr_token_t tokens[KRI_PAGE_TOKENS];
    uint32_t pages[KRI_KV_GROUPS_MAX]; /* KRI_NODE_NONE: none; set by the pool */
    uint32_t n_pages;                  /* that are not none; set by the pool */
    uint32_t parent;                   /* valid while its serial is parent_serial */
    uint32_t hash_next, child_first, sibling_next, sibling_prev;
} kri_prefix_node_t;

typedef struct kri_prefix_cache_s kri_prefix_cache_t;

/* n_nodes >= 1. KR_E_LIMIT, KR_E_NOMEM. */
kr_status_t kri_prefix_cache_create(uint32_t n_nodes, kri_prefix_cache_t **cache);
void kri_prefix_cache_destroy(kri_prefix_cache_t *cache);
kri_prefix_node_t *kri_prefix_cache_node(const kri_prefix_cache_t *cache, uint32_t node);
uint32_t kri_prefix_cache_size(const kri_prefix_cache_t *cache); /* nodes in the tree */

/* The child of parent (KRI_NODE_NONE: of the root) with exactly these tokens [16] and this salt;
 * KRI_NODE_NONE when there is none. */
uint32_t kri_prefix_cache_find(const kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                               const kr_token_t *tokens);
/* Adds that child, without pages; it must not be there. KRI_NODE_NONE: all nodes are taken. */
uint32_t kri_prefix_cache_insert(kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                                 const kr_token_t *tokens);
/* Takes a node out. Its children stay as nodes that no search reaches. */
void kri_prefix_cache_remove(kri_prefix_cache_t *cache, uint32_t node);
/* How many of tokens [n_tokens <= 16] the closest of the newest 64 children shares; *token is that
 * child's next token, -1 without a child or when it shares all 16. */
uint32_t kri_prefix_cache_closest(const kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                                  const kr_token_t *tokens, uint32_t n_tokens, kr_token_t *token);
/* Whether all links agree, for tests. Slow. */
bool kri_prefix_cache_check(const kri_prefix_cache_t *cache);

#endif
