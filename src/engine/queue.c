/* queue.c: see queue.h. Heaps of keys are pairing heaps: links only, any task can be taken out. */
#include "engine/queue.h"

#include "base/alloc.h"
#include "base/checked.h"

#define NONE UINT32_MAX
#define POINT_NS INT64_C(1000000000)

/* ---- create --------------------------------------------------------------------------------- */

static void *alloc_raw(size_t count, size_t size, const char *purpose) {
    size_t n_bytes;
    return kri_mul_size(count, size, &n_bytes) ? kri_alloc(n_bytes, purpose) : NULL;
}

kr_status_t kri_queue_init(kri_queue_t *q, uint32_t n_live_max) {
    *q = (kri_queue_t){.n_live_max = n_live_max, .share_now = 0};
    if (n_live_max > UINT32_MAX / 4) return KR_E_LIMIT;
    q->n_keys = n_live_max + 64; /* some absent keys are remembered */
    q->n_buckets = 64;
    while (q->n_buckets < q->n_keys) q->n_buckets *= 2;
    /* Not written before use: a long queue that stays short costs address space only. */
    q->keys = alloc_raw(q->n_keys, sizeof *q->keys, "queue keys");
    q->buckets = kri_calloc(q->n_buckets, sizeof *q->buckets, "queue buckets");
    q->active = alloc_raw(q->n_keys, sizeof *q->active, "queue active");
    q->expiry = alloc_raw(n_live_max, sizeof *q->expiry, "queue expiry");
    if (!q->keys || !q->buckets || !q->active || !q->expiry) {
        kri_queue_deinit(q);
        return KR_E_NOMEM;
    }
    q->free_first = q->free_last = NONE;
    return KR_OK;
}

void kri_queue_deinit(kri_queue_t *q) {
    kri_free(q->keys);
    kri_free(q->buckets);
    kri_free(q->active);
    kri_free(q->expiry);
    *q = (kri_queue_t){0};
}

/* ---- expiry: binary heap by expire_ns ------------------------------------------------------- */

static void expiry_set(kri_queue_t *q, uint32_t at, kri_task_t *task) {
    q->expiry[at] = task;
    task->expire_index = at;
}

static void expiry_up(kri_queue_t *q, uint32_t at) {
    kri_task_t *task = q->expiry[at];
    while (at > 0 && q->expiry[(at - 1) / 2]->expire_ns > task->expire_ns) {
        expiry_set(q, at, q->expiry[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    expiry_set(q, at, task);
}

static void expiry_down(kri_queue_t *q, uint32_t at) {
    kri_task_t *task = q->expiry[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= q->n_expiry) break;
        if (child + 1 < q->n_expiry &&
            q->expiry[child + 1]->expire_ns < q->expiry[child]->expire_ns) {
            child++;
        }
        if (q->expiry[child]->expire_ns >= task->expire_ns) break;
        expiry_set(q, at, q->expiry[child]);
        at = child;
    }
    expiry_set(q, at, task);
}

void kri_queue_expiry_moved(kri_queue_t *q, kri_task_t *task) {
    expiry_up(q, task->expire_index);
    expiry_down(q, task->expire_index);
}

/* ---- keys ----------------------------------------------------------------------------------- */

static uint32_t bucket_of(const kri_queue_t *q, uint64_t key) {
    const uint64_t mixed = (key ^ key >> 31) * UINT64_C(0x9e3779b97f4a7c15);
    return (uint32_t)(mixed >> 32) & (q->n_buckets - 1);
}

static void free_unlink(kri_queue_t *q, uint32_t i) {
    const kri_queue_key_t *k = &q->keys[i];
    if (k->free_prev != NONE) q->keys[k->free_prev].free_next = k->free_next;
    else q->free_first = k->free_next;
    if (k->free_next != NONE) q->keys[k->free_next].free_prev = k->free_prev;
    else q->free_last = k->free_prev;
}

static void bucket_unlink(kri_queue_t *q, uint32_t i) {
    uint32_t *at = &q->buckets[bucket_of(q, q->keys[i].key)];
    while (*at != 0 && *at != i + 1) at = &q->keys[*at - 1].hash_next;
    if (*at != 0) *at = q->keys[i].hash_next;
}

/* There are more keys than live tasks, so one without tasks is always there. */
static uint32_t key_take(kri_queue_t *q, uint64_t key) {
    const uint32_t bucket = bucket_of(q, key);
    uint32_t link = q->buckets[bucket];
    while (link != 0 && q->keys[link - 1].key != key) link = q->keys[link - 1].hash_next;
    uint32_t i = link - 1;
    if (link == 0) {
        if (q->n_used < q->n_keys) {
            i = q->n_used++;
        } else {
            i = q->free_first;
            free_unlink(q, i);
            bucket_unlink(q, i);
        }
        q->keys[i] = (kri_queue_key_t){.key = key, .hash_next = q->buckets[bucket]};
        q->buckets[bucket] = i + 1;
    } else if (q->keys[i].n_tasks == 0) {
        free_unlink(q, i);
    }
    kri_queue_key_t *k = &q->keys[i];
    if (k->n_tasks++ == 0 && k->share < q->share_now) k->share = q->share_now;
    return i;
}

static void key_drop(kri_queue_t *q, uint32_t i) {
    kri_queue_key_t *k = &q->keys[i];
    if (--k->n_tasks > 0) return;
    k->free_prev = q->free_last;
    k->free_next = NONE;
    if (q->free_last != NONE) q->keys[q->free_last].free_next = i;
    else q->free_first = i;
    q->free_last = i;
}

void kri_queue_enter(kri_queue_t *q, kri_task_t *task) {
    task->key_index = key_take(q, task->key);
    q->expiry[q->n_expiry] = task;
    expiry_up(q, q->n_expiry++);
}

void kri_queue_leave(kri_queue_t *q, kri_task_t *task) {
    key_drop(q, task->key_index);
    kri_task_t *last = q->expiry[--q->n_expiry];
    if (last != task) {
        expiry_set(q, task->expire_index, last);
        kri_queue_expiry_moved(q, last);
    }
}

/* ---- pairing heaps: prev is the parent of a first child, the sibling before of the others ---- */

static bool before(const kri_task_t *a, const kri_task_t *b) {
    const int64_t rank_a = (int64_t)a->age_ns - a->priority * POINT_NS;
    const int64_t rank_b = (int64_t)b->age_ns - b->priority * POINT_NS;
    return rank_a != rank_b ? rank_a < rank_b : a->order < b->order;
}

static kri_task_t *meld(kri_task_t *a, kri_task_t *b) {
    if (before(b, a)) {
        kri_task_t *c = a;
        a = b;
        b = c;
    }
    b->prev = a;
    b->next = a->child;
    if (a->child) a->child->prev = b;
    a->child = b;
    return a;
}

static kri_task_t *meld_children(kri_task_t *task) {
    kri_task_t *pairs = NULL, *at = task->child, *root = NULL;
    task->child = NULL;
    while (at) {
        kri_task_t *a = at, *b = at->next;
        at = b ? b->next : NULL;
        a->next = a->prev = NULL;
        if (b) {
            b->next = b->prev = NULL;
            a = meld(a, b);
        }
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        kri_task_t *a = pairs;
        pairs = a->next;
        a->next = NULL;
        root = root ? meld(root, a) : a;
    }
    return root;
}

void kri_queue_push(kri_queue_t *q, kri_task_t *task) {
    kri_queue_key_t *k = &q->keys[task->key_index];
    task->next = task->prev = task->child = NULL;
    task->place = KRI_PLACE_KEY;
    if (!k->root) {
        k->active_index = q->n_active;
        q->active[q->n_active++] = task->key_index;
    }
    k->root = k->root ? meld(k->root, task) : task;
}

void kri_queue_remove(kri_queue_t *q, kri_task_t *task) {
    kri_queue_key_t *k = &q->keys[task->key_index];
    if (k->root == task) {
        k->root = meld_children(task);
    } else {
        if (task->prev->child == task) task->prev->child = task->next;
        else task->prev->next = task->next;
        if (task->next) task->next->prev = task->prev;
        kri_task_t *rest = meld_children(task);
        if (rest) k->root = meld(k->root, rest);
    }
    task->next = task->prev = NULL;
    task->place = KRI_PLACE_NONE;
    if (!k->root) {
        const uint32_t last = q->active[--q->n_active];
        q->active[k->active_index] = last;
        q->keys[last].active_index = k->active_index;
    }
}

/* ---- order between keys --------------------------------------------------------------------- */

int64_t kri_queue_points(const kri_task_t *task, uint64_t since_ns, uint64_t now_ns) {
    const uint64_t waited = now_ns > since_ns ? now_ns - since_ns : 0;
    return task->priority + (int64_t)(waited / (uint64_t)POINT_NS);
}

kri_task_t *kri_queue_first(const kri_queue_t *q, uint64_t now_ns, uint32_t n_tokens_max) {
    const kri_queue_key_t *best = NULL;
    int64_t best_points = 0;
    for (uint32_t i = 0; i < q->n_active; i++) {
        const kri_queue_key_t *k = &q->keys[q->active[i]];
        const kri_task_t *t = k->root;
        if (t->n_tokens > n_tokens_max) continue;
        const uint64_t since = t->age_ns > k->served_ns ? t->age_ns : k->served_ns;
        const int64_t points = kri_queue_points(t, since, now_ns);
        if (!best || points > best_points ||
            (points == best_points &&
             (k->share < best->share ||
              (k->share == best->share && t->order < best->root->order)))) {
            best = k;
            best_points = points;
        }
    }
    return best ? best->root : NULL;
}

void kri_queue_served(kri_queue_t *q, const kri_task_t *task, uint64_t now_ns) {
    kri_queue_key_t *k = &q->keys[task->key_index];
    k->served_ns = now_ns;
    if (k->share > q->share_now) q->share_now = k->share;
}

void kri_queue_charge(kri_queue_t *q, const kri_task_t *task, uint32_t n_rows) {
    q->keys[task->key_index].share += n_rows;
}

uint64_t kri_queue_share(const kri_queue_t *q, const kri_task_t *task) {
    return q->keys[task->key_index].share;
}

/* ---- check ---------------------------------------------------------------------------------- */

/* Walks a heap without recursion: down to the child, else to the next, else up. */
static bool check_heap(const kri_task_t *root, uint32_t key_index, uint32_t n_max, uint32_t *n) {
    if (root->prev || root->next) return false;
    const kri_task_t *at = root;
    while (at) {
        if (++*n > n_max || at->place != KRI_PLACE_KEY || at->key_index != key_index) return false;
        if (at->child) {
            if (at->child->prev != at || before(at->child, at)) return false;
            at = at->child;
            continue;
        }
        while (at && !at->next) {
            while (at->prev && at->prev->child != at) at = at->prev;
            at = at->prev; /* the parent; NULL at the root */
        }
        if (!at) break;
        if (at->next->prev != at) return false;
        at = at->next;
    }
    return true;
}

bool kri_queue_check(const kri_queue_t *q, uint32_t *n_queued) {
    uint32_t n = 0, n_tasks = 0;
    for (uint32_t i = 0; i < q->n_active; i++) {
        const kri_queue_key_t *k = &q->keys[q->active[i]];
        if (!k->root || k->active_index != i) return false;
        if (!check_heap(k->root, q->active[i], q->n_live_max, &n)) return false;
    }
    for (uint32_t i = 0; i < q->n_used; i++) n_tasks += q->keys[i].n_tasks;
    if (n_tasks != q->n_expiry || q->n_expiry > q->n_live_max) return false;
    for (uint32_t i = 0; i < q->n_expiry; i++) {
        if (q->expiry[i]->expire_index != i) return false;
        if (i > 0 && q->expiry[(i - 1) / 2]->expire_ns > q->expiry[i]->expire_ns) return false;
    }
    *n_queued = n;
    return true;
}
