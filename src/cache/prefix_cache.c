/* prefix_cache.c: see prefix_cache.h. Hash buckets are singly linked: there are at least as many as
 * nodes, so chains are short, and the seed keeps a client from aiming at one of them. Nodes that
 * were never used are not touched, so a large table costs address space only. */
#include "cache/prefix_cache.h"

#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/os.h"

#define N_CHILDREN_LOOKED_AT 64u
#define N_ROOTS 256u /* lists of first pages, by salt */
#define N_BUCKETS_MAX ((size_t)1 << 31)

struct kri_prefix_cache_s {
    kri_prefix_node_t *nodes; /* [n_nodes] */
    uint32_t *buckets;        /* [n_buckets] node + 1; 0 = empty */
    size_t n_buckets;         /* power of two */
    uint32_t n_nodes, n_fresh, n_live; /* nodes from n_fresh on were never used */
    uint32_t free_first;      /* linked by hash_next */
    uint64_t serial, seed;
    uint32_t roots[N_ROOTS];
};

static uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ (h >> 32);
}

static size_t bucket_of(const kri_prefix_cache_t *cache, uint64_t parent_serial, uint64_t salt,
                        const kr_token_t *tokens) {
    uint64_t h = mix(mix(cache->seed, parent_serial), salt);
    for (uint32_t i = 0; i < KRI_PAGE_TOKENS; i += 2) {
        h = mix(h, (uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]);
    }
    return (size_t)mix(h, 0) & (cache->n_buckets - 1);
}

static bool is_same(const kri_prefix_node_t *node, uint64_t parent_serial, uint64_t salt,
                    const kr_token_t *tokens) {
    return node->parent_serial == parent_serial && node->salt == salt &&
           memcmp(node->tokens, tokens, sizeof(node->tokens)) == 0;
}

static uint64_t serial_of(const kri_prefix_cache_t *cache, uint32_t node) {
    return node == KRI_NODE_NONE ? 0 : cache->nodes[node].serial;
}

/* The list that a child of parent stands in. */
static uint32_t *children_of(kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt) {
    if (parent != KRI_NODE_NONE) return &cache->nodes[parent].child_first;
    return &cache->roots[mix(salt, 0) % N_ROOTS];
}

kr_status_t kri_prefix_cache_create(uint32_t n_nodes, kri_prefix_cache_t **out) {
    kr_status_t status = KR_OK;
    size_t n_bytes = 0, n_buckets = 1;
    while (n_buckets < n_nodes && n_buckets < N_BUCKETS_MAX) n_buckets *= 2;
    if (!kri_mul_size(n_nodes, sizeof(kri_prefix_node_t), &n_bytes)) return KR_E_LIMIT;
    kri_prefix_cache_t *cache = kri_calloc(1, sizeof(*cache), "prefix cache");
    if (!cache) return KR_E_NOMEM;
    cache->n_nodes = n_nodes;
    cache->n_buckets = n_buckets;
    cache->free_first = KRI_NODE_NONE;
    cache->seed = mix(kri_clock_ns(), (uint64_t)(uintptr_t)cache);
    for (uint32_t i = 0; i < N_ROOTS; i++) cache->roots[i] = KRI_NODE_NONE;
    cache->nodes = kri_pages_alloc(n_bytes);
    cache->buckets = kri_pages_alloc(n_buckets * sizeof(uint32_t));
    if (!cache->nodes || !cache->buckets) {
        status = KR_E_NOMEM;
        goto done;
    }
    *out = cache;
    cache = NULL;
done:
    kri_prefix_cache_destroy(cache);
    return status;
}

void kri_prefix_cache_destroy(kri_prefix_cache_t *cache) {
    if (!cache) return;
    kri_pages_free(cache->nodes, cache->n_nodes * sizeof(kri_prefix_node_t));
    kri_pages_free(cache->buckets, cache->n_buckets * sizeof(uint32_t));
    kri_free(cache);
}

kri_prefix_node_t *kri_prefix_cache_node(const kri_prefix_cache_t *cache, uint32_t node) {
    return &cache->nodes[node];
}

uint32_t kri_prefix_cache_size(const kri_prefix_cache_t *cache) { return cache->n_live; }

uint32_t kri_prefix_cache_find(const kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                               const kr_token_t *tokens) {
    const uint64_t serial = serial_of(cache, parent);
    uint32_t link = cache->buckets[bucket_of(cache, serial, salt, tokens)];
    while (link != 0) {
        const kri_prefix_node_t *node = &cache->nodes[link - 1];
        if (is_same(node, serial, salt, tokens)) return link - 1;
        link = node->hash_next;
    }
    return KRI_NODE_NONE;
}

static uint32_t take_node(kri_prefix_cache_t *cache) {
    uint32_t id = cache->free_first;
    if (id != KRI_NODE_NONE) {
        cache->free_first = cache->nodes[id].hash_next;
    } else if (cache->n_fresh < cache->n_nodes) {
        id = cache->n_fresh++;
    }
    return id;
}

uint32_t kri_prefix_cache_insert(kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                                 const kr_token_t *tokens) {
    const uint32_t id = take_node(cache);
    if (id == KRI_NODE_NONE) return id;
    kri_prefix_node_t *node = &cache->nodes[id];
    uint32_t *first = children_of(cache, parent, salt);
    uint32_t *bucket = &cache->buckets[bucket_of(cache, serial_of(cache, parent), salt, tokens)];
    *node = (kri_prefix_node_t){
        .serial = ++cache->serial, .parent_serial = serial_of(cache, parent), .salt = salt,
        .parent = parent, .hash_next = *bucket, .child_first = KRI_NODE_NONE,
        .sibling_next = *first, .sibling_prev = KRI_NODE_NONE};
    memcpy(node->tokens, tokens, sizeof(node->tokens));
    for (uint32_t g = 0; g < KRI_KV_GROUPS_MAX; g++) node->pages[g] = KRI_NODE_NONE;
    if (*first != KRI_NODE_NONE) cache->nodes[*first].sibling_prev = id;
    *first = id;
    *bucket = id + 1;
    cache->n_live++;
    return id;
}

/* The list's head points to its first node, unless the parent is gone. */
static uint32_t *head_of(kri_prefix_cache_t *cache, const kri_prefix_node_t *node) {
    if (serial_of(cache, node->parent) != node->parent_serial) return NULL;
    return children_of(cache, node->parent, node->salt);
}

void kri_prefix_cache_remove(kri_prefix_cache_t *cache, uint32_t id) {
    kri_prefix_node_t *node = &cache->nodes[id];
    KR_ASSERT(node->serial != 0);
    uint32_t *link =
        &cache->buckets[bucket_of(cache, node->parent_serial, node->salt, node->tokens)];
    while (*link != id + 1) link = &cache->nodes[*link - 1].hash_next;
    *link = node->hash_next;
    if (node->sibling_next != KRI_NODE_NONE) {
        cache->nodes[node->sibling_next].sibling_prev = node->sibling_prev;
    }
    if (node->sibling_prev != KRI_NODE_NONE) {
        cache->nodes[node->sibling_prev].sibling_next = node->sibling_next;
    } else {
        uint32_t *head = head_of(cache, node);
        if (head) *head = node->sibling_next;
    }
    node->serial = 0;
    node->hash_next = cache->free_first;
    cache->free_first = id;
    cache->n_live--;
}

uint32_t kri_prefix_cache_closest(const kri_prefix_cache_t *cache, uint32_t parent, uint64_t salt,
                                  const kr_token_t *tokens, uint32_t n_tokens, kr_token_t *token) {
    uint32_t best = 0, n = 0;
    uint32_t id = parent != KRI_NODE_NONE ? cache->nodes[parent].child_first
                                          : cache->roots[mix(salt, 0) % N_ROOTS];
    *token = -1;
    for (; id != KRI_NODE_NONE && n < N_CHILDREN_LOOKED_AT; id = cache->nodes[id].sibling_next) {
        const kri_prefix_node_t *node = &cache->nodes[id];
        n++;
        if (node->salt != salt) continue; /* another tenant's */
        uint32_t shared = 0;
        while (shared < n_tokens && node->tokens[shared] == tokens[shared]) shared++;
        if (shared < best || (shared == best && *token >= 0)) continue;
        best = shared;
        *token = shared < KRI_PAGE_TOKENS ? node->tokens[shared] : -1;
    }
    return best;
}

bool kri_prefix_cache_check(const kri_prefix_cache_t *cache) {
    uint32_t n_live = 0, n_linked = 0, n_free = 0;
    for (uint32_t i = 0; i < cache->n_fresh; i++) {
        const kri_prefix_node_t *node = &cache->nodes[i];
        if (node->serial == 0) continue;
        n_live++;
        if (node->serial > cache->serial || node->serial <= node->parent_serial) return false;
        const uint32_t next = node->sibling_next, child = node->child_first;
        if (next != KRI_NODE_NONE && cache->nodes[next].sibling_prev != i) return false;
        if (child != KRI_NODE_NONE && (cache->nodes[child].parent_serial != node->serial ||
                                       cache->nodes[child].sibling_prev != KRI_NODE_NONE)) {
            return false;
        }
    }
    for (size_t b = 0; b < cache->n_buckets; b++) {
        for (uint32_t link = cache->buckets[b]; link != 0;) {
            const kri_prefix_node_t *node = &cache->nodes[link - 1];
            if (node->serial == 0 || ++n_linked > n_live ||
                bucket_of(cache, node->parent_serial, node->salt, node->tokens) != b) {
                return false;
            }
            link = node->hash_next;
        }
    }
    for (uint32_t i = cache->free_first; i != KRI_NODE_NONE; i = cache->nodes[i].hash_next) {
        if (cache->nodes[i].serial != 0 || ++n_free > cache->n_fresh) return false;
    }
    return n_live == cache->n_live && n_linked == n_live && n_free + n_live == cache->n_fresh;
}
