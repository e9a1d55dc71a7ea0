/* clients.h: what each client (principal_t.client) holds of the memory for bodies. Whoever holds
 * nothing is not remembered. Any thread. */
#ifndef SERVER_CLIENTS_H
#define SERVER_CLIENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "kr.h"

typedef struct clients_s clients_t;

/* KR_E_NOMEM. */
kr_status_t clients_create(clients_t **clients);
void clients_destroy(clients_t *clients); /* NULL is a no-op */
/* n_bytes more for this client. False: they would be more than n_bytes_max together, or there is no
 * memory to remember it. */
bool clients_take(clients_t *clients, uint64_t client, uint64_t n_bytes, uint64_t n_bytes_max);
/* No more than was taken. */
void clients_give(clients_t *clients, uint64_t client, uint64_t n_bytes);

#endif
