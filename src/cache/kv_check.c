/* kv_check.c: the pool's invariants, recounted from the tables and the prefix cache; for tests. */
#include "cache/kv_pool_impl.h"

static uint64_t mix(uint64_t id) {
    id = (id + 1) * UINT64_C(0x9e3779b97f4a7c15);
    id = (id ^ id >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return id ^ id >> 32;
}

/* Whether each page is named by as many table entries as it has references. Both sides are summed
 * as hashes, since there is no memory here to count in: equal sums by chance are one in 2^64. */
static bool check_refs(const kri_kv_pool_t *pool, uint32_t group) {
    const kri_kv_pages_t *g = &pool->groups[group];
    uint64_t by_page = 0, by_table = 0;
    for (uint32_t id = 0; id < g->n_fresh; id++) by_page += g->pages[id].refs * mix(id);
    for (uint32_t s = 0; s < pool->n_seqs; s++) {
        const kri_kv_seq_t *seq = &pool->seqs[s];
        const uint32_t *table = kri_kv_table(pool, s, group);
        for (uint32_t i = seq->first[group]; i < seq->n_pages; i++) {
            if (table[i] >= g->n_fresh) return false;
            by_table += mix(table[i]);
        }
    }
    return by_page == by_table;
}

static bool check_seq(const kri_kv_pool_t *pool, const kri_kv_seq_t *s) {
    if (s->length > pool->n_ctx || s->n_pages > pool->pages_per_seq ||
        s->length > s->n_pages * KRI_PAGE_TOKENS ||
        s->n_published > s->length / KRI_PAGE_TOKENS) {
        return false;
    }
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (s->first[g] > kri_kv_first_page(pool, g, s->length)) return false;
    }
    return true;
}

/* Entries of a list by next; UINT32_MAX: it does not end. */
static uint32_t list_length(const kri_kv_pages_t *g, uint32_t first, bool is_lru) {
    uint32_t n = 0, prev = KRI_PAGE_NONE;
    uint64_t stamp = 0;
    for (uint32_t id = first; id != KRI_PAGE_NONE; id = g->pages[id].next) {
        const kri_kv_page_t *page = &g->pages[id];
        if (id >= g->n_fresh || n++ >= g->n_fresh || page->refs > 0) return UINT32_MAX;
        if ((page->node != KRI_NODE_NONE) != is_lru) return UINT32_MAX;
        if (is_lru && (page->prev != prev || page->stamp <= stamp)) return UINT32_MAX;
        stamp = page->stamp;
        prev = id;
    }
    return is_lru && g->lru_last != prev ? UINT32_MAX : n;
}

static bool check_group(const kri_kv_pool_t *pool, uint32_t group, uint64_t *used,
                        uint64_t *cached, uint64_t *touched) {
    const kri_kv_pages_t *g = &pool->groups[group];
    const uint64_t n_bytes = pool->views[group].page_bytes;
    uint32_t n_used = 0, n_cached = 0, n_free = 0;
    if (g->n_fresh > g->n_pages || !check_refs(pool, group)) return false;
    for (uint32_t id = 0; id < g->n_fresh; id++) {
        const kri_kv_page_t *page = &g->pages[id];
        if (page->node != KRI_NODE_NONE &&
            kri_prefix_cache_node(pool->cache, page->node)->pages[group] != id) {
            return false;
        }
        if (page->refs > 0) n_used++;
        else if (page->node != KRI_NODE_NONE) n_cached++;
        else n_free++;
    }
    const uint32_t n_ready = list_length(g, g->free_first, false);
    const uint32_t n_returned = list_length(g, g->returned_first, false);
    if (n_ready > n_free || n_returned != n_free - n_ready) return false;
    if (list_length(g, g->lru_first, true) != n_cached) return false;
    *used += n_used * n_bytes;
    *cached += n_cached * n_bytes;
    *touched += (n_used + n_cached + n_ready) * n_bytes;
    return true;
}

/* Every node names pages that name it, and has those of all groups without window. */
static bool check_nodes(const kri_kv_pool_t *pool) {
    uint32_t n_named = 0;
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        for (uint32_t id = 0; id < pool->groups[g].n_fresh; id++) {
            const uint32_t node_id = pool->groups[g].pages[id].node;
            if (node_id == KRI_NODE_NONE) continue;
            const kri_prefix_node_t *node = kri_prefix_cache_node(pool->cache, node_id);
            uint32_t n = 0, first = KRI_KV_GROUPS_MAX;
            for (uint32_t i = 0; i < pool->n_groups; i++) {
                if (node->pages[i] != KRI_PAGE_NONE) n++;
                if (node->pages[i] != KRI_PAGE_NONE && first > i) first = i;
                if (node->pages[i] == KRI_PAGE_NONE && pool->views[i].window == 0) return false;
            }
            if (node->serial == 0 || n != node->n_pages) return false;
            if (first == g) n_named++; /* count each node once */
        }
    }
    return n_named == kri_prefix_cache_size(pool->cache) && kri_prefix_cache_check(pool->cache);
}

bool kri_kv_pool_check(const kri_kv_pool_t *pool) {
    uint64_t used = 0, cached = 0, touched = 0;
    for (uint32_t s = 0; s < pool->n_seqs; s++) {
        if (!check_seq(pool, &pool->seqs[s])) return false;
    }
    for (uint32_t g = 0; g < pool->n_groups; g++) {
        if (!check_group(pool, g, &used, &cached, &touched)) return false;
    }
    return used == pool->bytes_used && cached == pool->bytes_cached &&
           touched == pool->bytes_touched && used + cached <= pool->bytes_max &&
           touched <= pool->bytes_max && (!pool->cache || check_nodes(pool));
}
