/* addresses.c: how many connections each address has. */
#include <netinet/in.h>
#include <string.h>

#include "base/alloc.h"
#include "server/http/internal.h"

struct http_address_s {
    unsigned char key[16];
    uint32_t bucket, n_conns;
    http_address_t *next;
};

/* IPv4 as IPv6 writes it; of IPv6 the network of /64, which one client has whole, except for
 * addresses of this machine. */
static void make_key(const struct sockaddr *address, unsigned char key[16]) {
    memset(key, 0, 16);
    if (address->sa_family == AF_INET) {
        key[10] = key[11] = 0xff;
        memcpy(key + 12, &((const struct sockaddr_in *)(const void *)address)->sin_addr, 4);
    } else if (address->sa_family == AF_INET6) {
        memcpy(key, &((const struct sockaddr_in6 *)(const void *)address)->sin6_addr, 16);
        static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
        static const unsigned char loopback[16] = {[15] = 1};
        if (memcmp(key, mapped, 12) != 0 && memcmp(key, loopback, 16) != 0) memset(key + 8, 0, 8);
    }
}

http_address_t *http_addresses_add(http_addresses_t *addresses, const struct sockaddr *address,
                                   uint32_t *n_conns) {
    unsigned char key[16];
    make_key(address, key);
    uint32_t hash = 2166136261u;
    for (int i = 0; i < 16; i++) hash = (hash ^ key[i]) * 16777619u;
    const uint32_t bucket = (hash ^ hash >> 15) % HTTP_ADDRESS_BUCKETS;
    http_address_t *found = addresses->buckets[bucket];
    while (found != NULL && memcmp(found->key, key, 16) != 0) found = found->next;
    if (found == NULL) {
        found = kri_calloc(1, sizeof *found, "http address");
        if (found == NULL) return NULL;
        memcpy(found->key, key, 16);
        found->bucket = bucket;
        found->next = addresses->buckets[bucket];
        addresses->buckets[bucket] = found;
    }
    *n_conns = ++found->n_conns;
    return found;
}

void http_addresses_remove(http_addresses_t *addresses, http_address_t *address) {
    if (--address->n_conns > 0) return;
    http_address_t **at = &addresses->buckets[address->bucket];
    while (*at != address) at = &(*at)->next;
    *at = address->next;
    kri_free(address);
}
