/* responses_store.c: a hash table of immutable entries and, for each key, a list of its own by last
 * use, under one lock. An entry is one allocation and reference-counted: readers copy nothing under
 * the lock. Keys are looked for one after the other: there are KEYS_MAX of them, and a put or a use
 * is rare beside the tokens that it took. */
#include "responses_store.h"

#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/mutex.h"

typedef struct owner_s owner_t;
typedef struct entry_s {
    response_t response; /* first: responses_release gets its address */
    _Atomic uint32_t n_refs;
    size_t n_bytes;
    owner_t *owner;
    uint64_t used;                   /* store->n_uses at its last use */
    struct entry_s *chain;           /* next of the bucket */
    struct entry_s *older, *newer;   /* of the owner, by last use */
} entry_t;

/* A key that has entries. */
struct owner_s {
    uint64_t key_id;
    uint32_t n;
    size_t n_bytes;
    entry_t *oldest, *newest;
    owner_t *next;
};

struct responses_s {
    kri_mutex_t mutex;
    uint32_t n_max, n, n_owners;
    size_t bytes_max, n_bytes;
    uint64_t n_uses;
    owner_t *owners;
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
    while (store->owners) {
        owner_t *owner = store->owners;
        store->owners = owner->next;
        for (entry_t *entry = owner->oldest, *newer; entry; entry = newer) {
            newer = entry->newer;
            unref(entry);
        }
        kri_free(owner);
    }
    kri_mutex_deinit(&store->mutex);
    kri_free(store);
}

/* ---- table and lists, under the lock -------------------------------------------------------- */

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

static void list_remove(entry_t *entry) {
    owner_t *owner = entry->owner;
    if (entry->older) entry->older->newer = entry->newer;
    else owner->oldest = entry->newer;
    if (entry->newer) entry->newer->older = entry->older;
    else owner->newest = entry->older;
    entry->older = entry->newer = NULL;
}

static void list_append(responses_t *s, entry_t *entry) {
    owner_t *owner = entry->owner;
    entry->used = ++s->n_uses;
    entry->older = owner->newest;
    if (owner->newest) owner->newest->newer = entry;
    else owner->oldest = entry;
    owner->newest = entry;
}

/* Where the owner with this key hangs, or the end of the list. */
static owner_t **find_owner(responses_t *s, uint64_t key_id) {
    owner_t **at = &s->owners;
    while (*at && (*at)->key_id != key_id) at = &(*at)->next;
    return at;
}

static void drop(responses_t *s, entry_t **at) {
    entry_t *entry = *at;
    owner_t *owner = entry->owner;
    *at = entry->chain;
    list_remove(entry);
    s->n--;
    s->n_bytes -= entry->n_bytes;
    owner->n_bytes -= entry->n_bytes;
    if (--owner->n == 0) {
        *find_owner(s, owner->key_id) = owner->next;
        s->n_owners--;
        kri_free(owner);
    }
    unref(entry);
}

static void add(responses_t *s, owner_t *owner, entry_t *entry) {
    *find(s, entry->response.id) = entry;
    entry->owner = owner;
    list_append(s, entry);
    owner->n++;
    owner->n_bytes += entry->n_bytes;
    s->n++;
    s->n_bytes += entry->n_bytes;
}

/* ---- who goes first, under the lock ---------------------------------------------------------- */

typedef struct plan_s {
    uint64_t key_id;  /* of the entry that is to come */
    size_t n_bytes;   /* of it */
    uint32_t n_owners;
} plan_t;

/* Whether a key has, with what is to come, more than an equal part of what is short. */
static bool is_over(const responses_t *s, const owner_t *owner, const plan_t *plan) {
    const bool is_own = owner->key_id == plan->key_id;
    if (s->n == s->n_max) return owner->n + is_own > s->n_max / plan->n_owners;
    const size_t n_bytes = owner->n_bytes + (is_own ? plan->n_bytes : 0);
    return n_bytes > s->bytes_max / plan->n_owners;
}

static bool is_full(const responses_t *s, const plan_t *plan) {
    return s->n == s->n_max || s->n_bytes > s->bytes_max - plan->n_bytes;
}

/* What has not been used for longest among the entries of keys that have more than their part.
 * False: there are none; the others are left what they have. */
static bool make_room(responses_t *s, plan_t *plan) {
    while (is_full(s, plan)) {
        entry_t *first = NULL;
        plan->n_owners = s->n_owners + (*find_owner(s, plan->key_id) == NULL);
        for (owner_t *owner = s->owners; owner; owner = owner->next) {
            if (!is_over(s, owner, plan)) continue;
            if (!first || owner->oldest->used < first->used) first = owner->oldest;
        }
        if (!first) return false;
        drop(s, find(s, first->response.id));
    }
    return true;
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

/* Under the lock; takes what it keeps out of *owner and *entry. */
static kr_status_t put(responses_t *s, owner_t **owner, entry_t **entry) {
    plan_t plan = {.key_id = (*entry)->response.key_id, .n_bytes = (*entry)->n_bytes};
    if (*find(s, (*entry)->response.id)) return KR_E_EXISTS;
    if (!make_room(s, &plan)) return KR_E_LIMIT;
    owner_t **at = find_owner(s, plan.key_id);
    if (*at == NULL) {
        (*owner)->key_id = plan.key_id;
        *at = *owner;
        *owner = NULL;
        s->n_owners++;
    }
    add(s, *at, *entry);
    *entry = NULL;
    return KR_OK;
}

kr_status_t responses_store_put(responses_t *store, const response_t *response) {
    size_t n_bytes;
    if (!store) return KR_E_LIMIT;
    if (memchr(response->id, '\0', sizeof response->id) == NULL) return KR_E_INVALID_ARG;
    if (!entry_bytes(response, &n_bytes) || n_bytes > store->bytes_max) return KR_E_LIMIT;
    entry_t *entry = entry_create(response, n_bytes);
    owner_t *owner = kri_calloc(1, sizeof *owner, "responses");
    kr_status_t status = KR_E_NOMEM;
    if (entry && owner) {
        kri_mutex_lock(&store->mutex);
        status = put(store, &owner, &entry);
        kri_mutex_unlock(&store->mutex);
    }
    kri_free(owner);
    if (entry) unref(entry);
    return status;
}

const response_t *responses_store_get(responses_t *store, const char *id, uint64_t key_id) {
    if (!store) return NULL;
    kri_mutex_lock(&store->mutex);
    entry_t *entry = *find(store, id);
    if (entry && entry->response.key_id == key_id) {
        list_remove(entry);
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
