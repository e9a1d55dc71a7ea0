/* kv_prefix.c: sequences and the prefix cache. Publishing hangs a sequence's full pages under the
 * node of the page before; where the same tokens were published by another sequence meanwhile, the
 * sequence takes that page and frees its own, so equal prefixes are held once. */
#include "base/error.h"
#include "cache/kv_pool_impl.h"

/* Whether all rows after n_pages cached pages find their windows; begins [n_groups]: from where on
 * the pages of a group are all there. */
static bool is_complete(const kri_kv_pool_t *pool, const uint32_t *begins, uint32_t n_pages) {
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (begins[g] > kri_kv_first_page(pool, g, n_pages * KRI_PAGE_TOKENS)) return false;
    }
    return true;
}

/* Follows tokens through the tree; returns how many whole pages can be used. has_seq: the tables of
 * seq receive the pages on the way, also of nodes that cannot be used. */
static uint32_t walk(const kri_kv_pool_t *pool, uint64_t salt, const kr_token_t *tokens,
                     uint32_t n_tokens, bool has_seq, uint32_t seq, kri_kv_match_t *match) {
    uint32_t begins[KRI_KV_GROUPS_MAX] = {0};
    uint32_t parent = KRI_NODE_NONE, n_pages = 0, n_usable = 0;
    uint32_t n_full = n_tokens / KRI_PAGE_TOKENS;
    if (n_full > pool->pages_per_seq) n_full = pool->pages_per_seq;
    while (n_pages < n_full) {
        const uint32_t next = kri_prefix_cache_find(pool->cache, parent, salt,
                                                    tokens + (size_t)n_pages * KRI_PAGE_TOKENS);
        if (next == KRI_NODE_NONE) break;
        const kri_prefix_node_t *node = kri_prefix_cache_node(pool->cache, next);
        for (uint32_t g = 0; g < pool->n_groups; g++) {
            if (node->pages[g] == KRI_PAGE_NONE) begins[g] = n_pages + 1;
            else if (has_seq) kri_kv_table(pool, seq, g)[n_pages] = node->pages[g];
        }
        parent = next;
        n_pages++;
        if (n_pages * KRI_PAGE_TOKENS < n_tokens && is_complete(pool, begins, n_pages)) {
            n_usable = n_pages;
        }
    }
    const uint32_t n_same = n_pages * KRI_PAGE_TOKENS;
    uint32_t n_left = n_tokens - n_same, n_more = 0;
    *match = (kri_kv_match_t){.n_cached = n_usable * KRI_PAGE_TOKENS, .miss_position = n_tokens,
                              .miss_cached = -1};
    if (n_left > KRI_PAGE_TOKENS) n_left = KRI_PAGE_TOKENS;
    if (n_left > 0) {
        kr_token_t token;
        n_more = kri_prefix_cache_closest(pool->cache, parent, salt, tokens + n_same, n_left,
                                          &token);
        match->miss_position = n_same + n_more;
        if (match->miss_position < n_tokens) match->miss_cached = token;
    }
    return n_usable;
}

static void no_match(kri_kv_match_t *match) {
    *match = (kri_kv_match_t){.miss_cached = -1};
}

void kri_kv_pool_match(const kri_kv_pool_t *pool, uint64_t salt, const kr_token_t *tokens,
                       uint32_t n_tokens, kri_kv_match_t *match) {
    if (!pool->cache) no_match(match);
    else (void)walk(pool, salt, tokens, n_tokens, false, 0, match);
}

void kri_kv_pool_attach(kri_kv_pool_t *pool, uint32_t seq, uint64_t salt,
                        const kr_token_t *tokens, uint32_t n_tokens, kri_kv_match_t *match) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    KR_ASSERT(s->length == 0 && s->n_pages == 0);
    if (!pool->cache) {
        no_match(match);
        return;
    }
    const uint32_t n_pages = walk(pool, salt, tokens, n_tokens, true, seq, match);
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        uint32_t *table = kri_kv_table(pool, seq, g);
        s->first[g] = kri_kv_first_page(pool, g, match->n_cached);
        for (uint32_t i = 0; i < s->first[g]; i++) table[i] = 0;
        for (uint32_t i = s->first[g]; i < n_pages; i++) kri_kv_page_ref(pool, g, table[i]);
    }
    s->length = match->n_cached;
    s->n_pages = s->n_published = n_pages;
}

/* Whether the sequence holds a page at index, and those it holds (a restored sequence lacks what
 * lay before its windows) belong to no node but this one (KRI_NODE_NONE: to none). */
static bool can_join(const kri_kv_pool_t *pool, uint32_t seq, uint32_t index, uint32_t node) {
    uint32_t n_held = 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (index < pool->seqs[seq].first[g]) continue;
        const uint32_t owner = pool->groups[g].pages[kri_kv_table(pool, seq, g)[index]].node;
        if (owner != KRI_NODE_NONE && owner != node) return false;
        n_held++;
    }
    return n_held > 0;
}

/* Returns the node of the page, KRI_NODE_NONE when it cannot enter the cache. */
static uint32_t publish_page(kri_kv_pool_t *pool, uint32_t seq, uint32_t index, uint32_t parent,
                             uint64_t salt, const kr_token_t *tokens) {
    uint32_t id = kri_prefix_cache_find(pool->cache, parent, salt, tokens);
    if (!can_join(pool, seq, index, id)) return KRI_NODE_NONE;
    if (id == KRI_NODE_NONE) id = kri_prefix_cache_insert(pool->cache, parent, salt, tokens);
    if (id == KRI_NODE_NONE) return id;
    kri_prefix_node_t *node = kri_prefix_cache_node(pool->cache, id);
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        uint32_t *own = &kri_kv_table(pool, seq, g)[index];
        if (index < pool->seqs[seq].first[g]) continue;
        if (node->pages[g] == KRI_PAGE_NONE) {
            node->pages[g] = *own;
            node->n_pages++;
            pool->groups[g].pages[*own].node = id;
        } else if (node->pages[g] != *own) {
            kri_kv_page_ref(pool, g, node->pages[g]);
            kri_kv_page_unref(pool, g, *own);
            *own = node->pages[g];
        }
    }
    return id;
}

void kri_kv_pool_publish(kri_kv_pool_t *pool, uint32_t seq, uint64_t salt,
                         const kr_token_t *tokens) {
    kri_kv_seq_t *s = &pool->seqs[seq];
    const uint32_t n_full = s->length / KRI_PAGE_TOKENS;
    uint32_t i = s->n_published, node = KRI_NODE_NONE;
    if (!pool->cache || i >= n_full) return;
    if (i > s->first[pool->chain_group]) {
        const uint32_t before = kri_kv_table(pool, seq, pool->chain_group)[i - 1];
        node = pool->groups[pool->chain_group].pages[before].node;
    }
    if (i == 0 || node != KRI_NODE_NONE) {
        do {
            node = publish_page(pool, seq, i, node, salt, tokens + (size_t)i * KRI_PAGE_TOKENS);
        } while (node != KRI_NODE_NONE && ++i < n_full);
    }
    /* Where the chain is broken, nothing after it could be found: those pages stay private. */
    s->n_published = n_full;
    kri_kv_give_back(pool, seq);
}

/* From the last published page up to the root; a node without pages is gone. */
static void drop_chain(kri_kv_pool_t *pool, uint32_t id) {
    while (id != KRI_NODE_NONE) {
        const kri_prefix_node_t *node = kri_prefix_cache_node(pool->cache, id);
        const uint64_t parent_serial = node->parent_serial;
        const uint32_t parent = node->parent;
        for (uint32_t g = 0; g < pool->n_groups; g++) {
            if (node->pages[g] != KRI_PAGE_NONE) kri_kv_page_detach(pool, g, node->pages[g]);
        }
        if (parent_serial == 0) return;
        id = kri_prefix_cache_node(pool->cache, parent)->serial == parent_serial ? parent
                                                                                 : KRI_NODE_NONE;
    }
}

void kri_kv_pool_discard(kri_kv_pool_t *pool, uint32_t seq) {
    const kri_kv_seq_t *s = &pool->seqs[seq];
    if (pool->cache && s->n_published > s->first[pool->chain_group]) {
        const uint32_t last = kri_kv_table(pool, seq, pool->chain_group)[s->n_published - 1];
        drop_chain(pool, pool->groups[pool->chain_group].pages[last].node);
    }
    kri_kv_pool_release(pool, seq);
}

void kri_kv_pool_forget(kri_kv_pool_t *pool) {
    while (pool->cache && kri_kv_evict(pool)) {}
}
