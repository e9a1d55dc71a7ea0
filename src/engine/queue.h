/* queue.h: where tasks of the scheduler wait, and when they expire. All links are inside the tasks;
 * memory is taken once, for the most tasks that can live at a time.
 *
 * Keys    A key has a heap of its waiting tasks, first by priority plus one point per second of
 *         waiting (a fixed order: all age alike), then by submission. Between keys: the first
 *         task's priority plus one point per second since the key was last served, then the least
 *         computing so far, then submission. So a flood of one key delays its own tasks, and
 *         no key and no priority starves.
 * Share   Computing is counted in rows as virtual time; a key that was away begins at the time of
 *         the last one served and cannot save up. The table is bounded: what an absent key had is
 *         forgotten, longest absent first, when a new key needs its place.
 * Expiry  A binary heap over all live tasks. */
#ifndef KRI_ENGINE_QUEUE_H
#define KRI_ENGINE_QUEUE_H

#include "engine/sched.h"

enum {
    KRI_PLACE_NONE,   /* not waiting */
    KRI_PLACE_KEY,    /* in the heap of its key */
    KRI_PLACE_RETURN, /* preempted: before all others */
    KRI_PLACE_PARKED, /* below its leader */
    KRI_PLACE_IDLE    /* no credits */
};

typedef struct kri_queue_key_s {
    uint64_t key, share;   /* rows computed, as virtual time */
    uint64_t served_ns;    /* last admission */
    kri_task_t *root;      /* first waiting task */
    uint32_t n_tasks;      /* live, waiting or not */
    uint32_t hash_next;    /* 1 + the next of the hash; 0 = none */
    uint32_t free_next, free_prev; /* list of keys without tasks, longest absent first */
    uint32_t active_index; /* in active, while root */
} kri_queue_key_t;

typedef struct kri_queue_s {
    kri_queue_key_t *keys; /* [n_keys] */
    uint32_t *buckets;     /* [n_buckets] 1 + first key of each hash; 0 = none */
    uint32_t *active;      /* [n_keys] keys with waiting tasks */
    kri_task_t **expiry;   /* [n_live_max] heap */
    uint32_t n_used;       /* keys from here on were never used, and never written */
    uint32_t n_keys, n_buckets, n_active, n_expiry, n_live_max;
    uint32_t free_first, free_last;
    uint64_t share_now;    /* of the key last served */
} kri_queue_t;

/* KR_E_NOMEM, KR_E_LIMIT (sizes overflow). */
kr_status_t kri_queue_init(kri_queue_t *queue, uint32_t n_live_max);
void kri_queue_deinit(kri_queue_t *queue);

/* A task begins to live, or stops: its key and its expiry. */
void kri_queue_enter(kri_queue_t *queue, kri_task_t *task);
void kri_queue_leave(kri_queue_t *queue, kri_task_t *task);
/* task->expire_ns changed. */
void kri_queue_expiry_moved(kri_queue_t *queue, kri_task_t *task);

void kri_queue_push(kri_queue_t *queue, kri_task_t *task);
void kri_queue_remove(kri_queue_t *queue, kri_task_t *task);
/* The next to be admitted, or NULL; tasks of more than n_tokens_max tokens are passed over, with
 * what waits behind them under their key. */
kri_task_t *kri_queue_first(const kri_queue_t *queue, uint64_t now_ns, uint32_t n_tokens_max);
/* The task's key was served, and is charged. */
void kri_queue_served(kri_queue_t *queue, const kri_task_t *task, uint64_t now_ns);
void kri_queue_charge(kri_queue_t *queue, const kri_task_t *task, uint32_t n_rows);
uint64_t kri_queue_share(const kri_queue_t *queue, const kri_task_t *task);
/* Priority plus one point per second since since_ns. */
int64_t kri_queue_points(const kri_task_t *task, uint64_t since_ns, uint64_t now_ns);
/* Links, heaps and counts; the number of tasks in heaps of keys. For tests; false: broken. */
bool kri_queue_check(const kri_queue_t *queue, uint32_t *n_queued);

#endif
