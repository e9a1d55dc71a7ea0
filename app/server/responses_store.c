/* responses_store.c: a hash table of immutable entries and a list of them by last use, under one
 * lock. An entry is one allocation and reference-counted: readers copy nothing under the lock. */
#include "responses_store.h"

#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/mutex.h"

typedef struct entry_s {
    response_t response; /* first: responses_release gets its address */
    _Atomic uint32_t n_refs;
    size_t n_bytes;
    struct entry_s *chain;           /* next of the bucket */
    struct entry_s *older, *newer;   /* by last use */
} entry_t;

struct responses_s {
    kri_mutex_t mutex;
    uint32_t n_max, n;
    size_t bytes_max, n_bytes;
    entry_t *oldest, *newest;
    uint32_t n_buckets;              /* a power of two */
    entry_t *buckets[];
};

kr_status_t responses_store_create(uint32_t n_max, size_t bytes_max, responses_t **store) {
    if (n_max == 0 || n_max > 1u << 24 || bytes_max == 0 || !store) return KR_E_INVALID_ARG;
    uint32_t n_buckets = 1;
    while (n_buckets < n_max) n_buckets *= 2;
    responses_t *s = kri_calloc(1, sizeof *s + n_buckets * sizeof s->buckets[0], "responses");
    if (!s) return KR_E_NOMEM;
    if (!kri_mutex_init(&s->mutex)) {
        kri_free(s);
        return KR_E_NOMEM;
    }
    s->n_max = n_max;
    s->bytes_max = bytes_max;
    s->n_buckets = n_buckets;
    *store = s;
    return KR_OK;
}

static void unref(entry_t *entry) {
    if (atomic_fetch_sub(&entry->n_refs, 1) == 1) kri_free(entry);
}

void responses_store_destroy(responses_t *store) {
    if (!store) return;
    for (entry_t *entry = store->oldest, *newer; entry; entry = newer) {
        newer = entry->newer;
        unref(entry);
    }
    kri_mutex_deinit(&store->mutex);
    kri_free(store);
}

/* ---- table and list, under the lock ---------------------------------------------------------- */

/* FNV-1a. Ids in the table are this server's own, so chains cannot be made long on purpose. */
static entry_t **bucket_of(responses_t *s, const char *id) {
    uint32_t hash = 2166136261u;
    for (; *id; id++) hash = (hash ^ (unsigned char)*id) * 16777619u;
    return &s->buckets[hash & (s->n_buckets - 1)];
}

/* Where the entry of this id hangs, or the end of its chain. */
static entry_t **find(responses_t *s, const char *id) {
    entry_t **at = bucket_of(s, id);
    while (*at && strcmp((*at)->response.id, id) != 0) at = &(*at)->chain;
    return at;
}

static void list_remove(responses_t *s, entry_t *entry) {
    if (entry->older) entry->older->newer = entry->newer;
    else s->oldest = entry->newer;
    if (entry->newer) entry->newer->older = entry->older;
    else s->newest = entry->older;
    entry->older = entry->newer = NULL;
}

static void list_append(responses_t *s, entry_t *entry) {
    entry->older = s->newest;
    if (s->newest) s->newest->newer = entry;
    else s->oldest = entry;
    s->newest = entry;
}

static void drop(responses_t *s, entry_t **at) {
    entry_t *entry = *at;
    *at = entry->chain;
    list_remove(s, entry);
    s->n--;
    s->n_bytes -= entry->n_bytes;
    unref(entry);
}

/* ---- entries --------------------------------------------------------------------------------- */

static bool entry_bytes(const response_t *r, size_t *n_bytes) {
    size_t n = sizeof(entry_t), table;
    if (!kri_mul_size(r->n_messages, sizeof(kr_message_t), &table) ||
        !kri_add_size(n, table, &n) || !kri_add_size(n, r->body_bytes, &n)) {
        return false;
    }
    for (uint32_t i = 0; i < r->n_messages; i++) {
        if (!kri_add_size(n, r->messages[i].content_bytes, &n) ||
            !kri_add_size(n, strlen(r->messages[i].role) + 1, &n)) {
            return false;
        }
    }
    *n_bytes = n;
    return true;
}

static char *put_bytes(char **at, const char *from, size_t n_bytes) {
    char *to = *at;
    if (n_bytes) memcpy(to, from, n_bytes);
    *at += n_bytes;
    return to;
}

static entry_t *entry_create(const response_t *r, size_t n_bytes) {
    entry_t *entry = kri_alloc(n_bytes, "response");
    if (!entry) return NULL;
    kr_message_t *messages = (kr_message_t *)(entry + 1);
    char *at = (char *)(messages + r->n_messages);
    memset(entry, 0, sizeof *entry);
    for (uint32_t i = 0; i < r->n_messages; i++) {
        const kr_message_t *m = &r->messages[i];
        messages[i].content = put_bytes(&at, m->content, m->content_bytes);
        messages[i].content_bytes = m->content_bytes;
        messages[i].role = put_bytes(&at, m->role, strlen(m->role) + 1);
    }
    entry->response = *r;
    entry->response.messages = messages;
    entry->response.body = put_bytes(&at, r->body, r->body_bytes);
    entry->n_bytes = n_bytes;
    atomic_init(&entry->n_refs, 1);
    return entry;
}

/* ---- what others call ------------------------------------------------------------------------ */

kr_status_t responses_store_put(responses_t *store, const response_t *response) {
    size_t n_bytes;
    if (!store) return KR_E_LIMIT;
    if (memchr(response->id, '\0', sizeof response->id) == NULL) return KR_E_INVALID_ARG;
    if (!entry_bytes(response, &n_bytes) || n_bytes > store->bytes_max) return KR_E_LIMIT;
    entry_t *entry = entry_create(response, n_bytes);
    if (!entry) return KR_E_NOMEM;
    kri_mutex_lock(&store->mutex);
    if (*find(store, response->id)) {
        kri_mutex_unlock(&store->mutex);
        unref(entry);
        return KR_E_EXISTS;
    }
    while (store->n == store->n_max || store->n_bytes > store->bytes_max - n_bytes) {
        drop(store, find(store, store->oldest->response.id));
    }
    *find(store, entry->response.id) = entry; /* the chain has changed since */
    list_append(store, entry);
    store->n++;
    store->n_bytes += n_bytes;
    kri_mutex_unlock(&store->mutex);
    return KR_OK;
}

const response_t *responses_store_get(responses_t *store, const char *id, uint64_t key_id) {
    if (!store) return NULL;
    kri_mutex_lock(&store->mutex);
    entry_t *entry = *find(store, id);
    if (entry && entry->response.key_id == key_id) {
        list_remove(store, entry);
        list_append(store, entry);
        atomic_fetch_add(&entry->n_refs, 1);
    } else {
        entry = NULL;
    }
    kri_mutex_unlock(&store->mutex);
    return entry ? &entry->response : NULL;
}

void responses_store_release(const response_t *response) {
    if (response) unref((entry_t *)(uintptr_t)response);
}

bool responses_store_delete(responses_t *store, const char *id, uint64_t key_id) {
    if (!store) return false;
    kri_mutex_lock(&store->mutex);
    entry_t **at = find(store, id);
    const bool found = *at && (*at)->response.key_id == key_id;
    if (found) drop(store, at);
    kri_mutex_unlock(&store->mutex);
    return found;
}

responses_stats_t responses_stats(responses_t *store) {
    kri_mutex_lock(&store->mutex);
    const responses_stats_t stats = {store->n, store->n_bytes};
    kri_mutex_unlock(&store->mutex);
    return stats;
}
