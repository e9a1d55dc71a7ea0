/* kv_pages.c: single pages between free, used and cached, and the ledger (kv_pool_impl.h). Every
 * move is O(1). Free pages are handed out last freed first, so that a short conversation touches
 * little memory; when the groups' shares shift, a free page of one group gives its memory back
 * before another group touches more, so the memory of all groups stays within bytes_max too. */
#include "base/error.h"
#include "base/os.h"
#include "cache/kv_pool_impl.h"

static void lru_push(kri_kv_pool_t *pool, kri_kv_pages_t *g, uint32_t id) {
    kri_kv_page_t *page = &g->pages[id];
    page->stamp = ++pool->clock;
    page->prev = g->lru_last;
    page->next = KRI_PAGE_NONE;
    if (g->lru_last != KRI_PAGE_NONE) g->pages[g->lru_last].next = id;
    else g->lru_first = id;
    g->lru_last = id;
}

static void lru_remove(kri_kv_pages_t *g, uint32_t id) {
    const kri_kv_page_t *page = &g->pages[id];
    if (page->prev != KRI_PAGE_NONE) g->pages[page->prev].next = page->next;
    else g->lru_first = page->next;
    if (page->next != KRI_PAGE_NONE) g->pages[page->next].prev = page->prev;
    else g->lru_last = page->prev;
}

static uint32_t pop(kri_kv_pages_t *g, uint32_t *first) {
    const uint32_t id = *first;
    if (id != KRI_PAGE_NONE) *first = g->pages[id].next;
    return id;
}

static void push(kri_kv_pages_t *g, uint32_t *first, uint32_t id) {
    g->pages[id].next = *first;
    *first = id;
}

/* One free page gives its memory back; false: no free page has any. */
static bool return_memory(kri_kv_pool_t *pool) {
    for (uint32_t i = 0; i < pool->n_groups; i++) {
        kri_kv_pages_t *g = &pool->groups[i];
        const kri_kv_group_t *view = &pool->views[i];
        const uint32_t id = pop(g, &g->free_first);
        if (id == KRI_PAGE_NONE) continue;
        if (pool->is_host)
            kri_pages_discard(view->pool + (size_t)id * view->page_bytes, view->page_bytes);
        push(g, &g->returned_first, id);
        pool->bytes_touched -= view->page_bytes;
        return true;
    }
    return false;
}

void kri_kv_trim(kri_kv_pool_t *pool) {
    while (pool->bytes_touched > pool->bytes_max && return_memory(pool)) {}
}

uint32_t kri_kv_page_take(kri_kv_pool_t *pool, uint32_t group) {
    kri_kv_pages_t *g = &pool->groups[group];
    const uint64_t n_bytes = pool->views[group].page_bytes;
    uint32_t id = pop(g, &g->free_first);
    if (id == KRI_PAGE_NONE) {
        while (pool->bytes_touched + n_bytes > pool->bytes_max && return_memory(pool)) {}
        id = pop(g, &g->returned_first);
        if (id == KRI_PAGE_NONE) id = g->n_fresh++;
        pool->bytes_touched += n_bytes;
    }
    KR_ASSERT(id < g->n_pages);
    g->pages[id] = (kri_kv_page_t){.refs = 1, .node = KRI_NODE_NONE};
    pool->bytes_used += n_bytes;
    KR_ASSERT(pool->bytes_used + pool->bytes_cached <= pool->bytes_max);
    return id;
}

void kri_kv_page_ref(kri_kv_pool_t *pool, uint32_t group, uint32_t id) {
    kri_kv_pages_t *g = &pool->groups[group];
    if (g->pages[id].refs++ > 0) return;
    lru_remove(g, id);
    pool->bytes_cached -= pool->views[group].page_bytes;
    pool->bytes_used += pool->views[group].page_bytes;
}

void kri_kv_page_unref(kri_kv_pool_t *pool, uint32_t group, uint32_t id) {
    kri_kv_pages_t *g = &pool->groups[group];
    KR_ASSERT(g->pages[id].refs > 0);
    if (--g->pages[id].refs > 0) return;
    pool->bytes_used -= pool->views[group].page_bytes;
    if (g->pages[id].node == KRI_NODE_NONE) {
        push(g, &g->free_first, id);
        return;
    }
    pool->bytes_cached += pool->views[group].page_bytes;
    lru_push(pool, g, id);
}

/* Takes the page from its node; a page that only the node held is free then. */
static void cut(kri_kv_pool_t *pool, kri_prefix_node_t *node, uint32_t group) {
    kri_kv_pages_t *g = &pool->groups[group];
    const uint32_t id = node->pages[group];
    node->pages[group] = KRI_PAGE_NONE;
    node->n_pages--;
    g->pages[id].node = KRI_NODE_NONE;
    if (g->pages[id].refs > 0) return;
    lru_remove(g, id);
    pool->bytes_cached -= pool->views[group].page_bytes;
    pool->n_evicted++;
    push(g, &g->free_first, id);
}

void kri_kv_page_detach(kri_kv_pool_t *pool, uint32_t group, uint32_t id) {
    const uint32_t node_id = pool->groups[group].pages[id].node;
    kri_prefix_node_t *node = kri_prefix_cache_node(pool->cache, node_id);
    cut(pool, node, group);
    /* A prefix needs every page of a group without window: the rest is worth nothing. */
    if (pool->views[group].window == 0) {
        for (uint32_t g = 0; g < pool->n_groups; g++) {
            if (node->pages[g] != KRI_PAGE_NONE) cut(pool, node, g);
        }
    }
    if (node->n_pages == 0) kri_prefix_cache_remove(pool->cache, node_id);
}

bool kri_kv_evict(kri_kv_pool_t *pool) {
    uint32_t oldest = KRI_KV_GROUPS_MAX;
    uint64_t stamp = UINT64_MAX;
    for (uint32_t i = 0; i < pool->n_groups; i++) {
        const kri_kv_pages_t *g = &pool->groups[i];
        if (g->lru_first == KRI_PAGE_NONE || g->pages[g->lru_first].stamp >= stamp) continue;
        stamp = g->pages[g->lru_first].stamp;
        oldest = i;
    }
    if (oldest == KRI_KV_GROUPS_MAX) return false;
    kri_kv_page_detach(pool, oldest, pool->groups[oldest].lru_first);
    return true;
}

void kri_kv_make_room(kri_kv_pool_t *pool, uint64_t n_bytes) {
    while (pool->bytes_used + pool->bytes_cached + n_bytes > pool->bytes_max &&
           kri_kv_evict(pool)) {}
}
