/* clients.c: see clients.h. A hash table with a list in each bucket: there are no more entries than
 * requests in flight. */
#include "clients.h"

#include "base/alloc.h"
#include "base/mutex.h"

#define N_BUCKETS 1024u /* a power of two */

typedef struct entry_s {
    uint64_t client, n_bytes; /* > 0 */
    struct entry_s *next;
} entry_t;

struct clients_s {
    kri_mutex_t mutex;
    entry_t *buckets[N_BUCKETS];
};

kr_status_t clients_create(clients_t **clients) {
    clients_t *made = kri_calloc(1, sizeof *made, "clients");
    if (made == NULL) return KR_E_NOMEM;
    if (!kri_mutex_init(&made->mutex)) {
        kri_free(made);
        return KR_E_NOMEM;
    }
    *clients = made;
    return KR_OK;
}

void clients_destroy(clients_t *clients) {
    if (clients == NULL) return;
    for (uint32_t i = 0; i < N_BUCKETS; i++) {
        for (entry_t *entry = clients->buckets[i], *next; entry != NULL; entry = next) {
            next = entry->next;
            kri_free(entry);
        }
    }
    kri_mutex_deinit(&clients->mutex);
    kri_free(clients);
}

/* Where the client's entry hangs, or the end of its bucket. Under the mutex. */
static entry_t **find(clients_t *clients, uint64_t client) {
    const uint64_t mixed = (client ^ client >> 31) * UINT64_C(0x9e3779b97f4a7c15);
    entry_t **at = &clients->buckets[(mixed >> 32) & (N_BUCKETS - 1)];
    while (*at != NULL && (*at)->client != client) at = &(*at)->next;
    return at;
}

bool clients_take(clients_t *clients, uint64_t client, uint64_t n_bytes, uint64_t n_bytes_max) {
    if (n_bytes == 0) return true;
    if (n_bytes > n_bytes_max) return false;
    kri_mutex_lock(&clients->mutex);
    entry_t **at = find(clients, client);
    if (*at == NULL && (*at = kri_calloc(1, sizeof **at, "client")) != NULL) {
        (*at)->client = client;
    }
    const bool has_room = *at != NULL && (*at)->n_bytes <= n_bytes_max - n_bytes;
    if (has_room) (*at)->n_bytes += n_bytes;
    kri_mutex_unlock(&clients->mutex);
    return has_room;
}

void clients_give(clients_t *clients, uint64_t client, uint64_t n_bytes) {
    if (n_bytes == 0) return;
    kri_mutex_lock(&clients->mutex);
    entry_t **at = find(clients, client), *entry = *at;
    if (entry != NULL) {
        entry->n_bytes -= n_bytes < entry->n_bytes ? n_bytes : entry->n_bytes;
        if (entry->n_bytes == 0) {
            *at = entry->next;
            kri_free(entry);
        }
    }
    kri_mutex_unlock(&clients->mutex);
}
