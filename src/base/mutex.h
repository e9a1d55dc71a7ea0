/* mutex.h: a lock for sections of a few memory accesses. Nothing here waits for a condition: that
 * is what kri_futex_wait (os.h) is for. */
#ifndef KRI_BASE_MUTEX_H
#define KRI_BASE_MUTEX_H

#include <pthread.h>
#include <stdbool.h>

typedef struct kri_mutex_s { pthread_mutex_t mutex; } kri_mutex_t;

static inline bool kri_mutex_init(kri_mutex_t *mutex) {
    return pthread_mutex_init(&mutex->mutex, NULL) == 0;
}
static inline void kri_mutex_deinit(kri_mutex_t *mutex) {
    (void)pthread_mutex_destroy(&mutex->mutex);
}
static inline void kri_mutex_lock(kri_mutex_t *mutex) { (void)pthread_mutex_lock(&mutex->mutex); }
static inline void kri_mutex_unlock(kri_mutex_t *mutex) {
    (void)pthread_mutex_unlock(&mutex->mutex);
}

#endif
