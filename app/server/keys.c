/* keys.c: the keys in use. A key that a client shows is hashed and its digest compared with every
 * one that is known, always all of them and without an early end, so that the time says nothing. A
 * reload builds a new table beside the old one and swaps them; keys that have requests in flight
 * keep their slots until the last of them ends. */
#include "keys.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/os.h"

#define IN_FLIGHT_DEFAULT 64
/* Of a key that a client shows; longer ones are wrong without looking. */
#define KEY_BYTES_MAX 512

typedef struct slot_s {
    key_row_t row;
    bool is_listed; /* false: removed by a reload, waits for its requests */
    uint32_t n_in_flight;
} slot_t;

struct keys_s {
    pthread_mutex_t mutex; /* guards what follows; held for a scan of the slots at most */
    slot_t *slots;
    uint32_t n_slots, n_listed;
    uint64_t next_id;
    uint32_t in_flight_max;
    bool is_world_readable;
    pthread_mutex_t reload_mutex; /* one reload at a time */
    char *path;                   /* NULL: no keys are in use */
};

/* ---- loading ------------------------------------------------------------------------------ */

static kr_status_t read_rows(const char *path, key_row_t **rows, uint32_t *n_rows,
                             kr_error_t *error) {
    void *text = NULL;
    size_t n_bytes = 0;
    kr_error_t found;
    kr_error_init(&found);
    KR_TRY(kri_file_read(path, KEYS_FILE_BYTES_MAX, &text, &n_bytes, error));
    kr_status_t status = keys_parse(text, n_bytes, rows, n_rows, &found);
    kri_free(text);
    if (status == KR_OK) return KR_OK;
    return KRI_FAIL(error, status, "api-key-file", "%.200s %s", path, found.message);
}

static slot_t *find_digest(const keys_t *keys, const uint8_t *digest) {
    for (uint32_t i = 0; i < keys->n_slots; i++) {
        slot_t *slot = &keys->slots[i];
        if (memcmp(slot->row.digest, digest, sizeof slot->row.digest) == 0) return slot;
    }
    return NULL;
}

static slot_t *find_id(const keys_t *keys, uint64_t id) {
    for (uint32_t i = 0; i < keys->n_slots; i++) {
        if (keys->slots[i].row.id == id) return &keys->slots[i];
    }
    return NULL;
}

/* Under the mutex. `slots` has room for the rows and all slots there are. */
static void swap_rows(keys_t *keys, const key_row_t *rows, uint32_t n_rows, slot_t *slots) {
    uint32_t n_slots = 0;
    for (uint32_t i = 0; i < n_rows; i++) {
        slot_t *before = find_digest(keys, rows[i].digest);
        slot_t *slot = &slots[n_slots++];
        *slot = (slot_t){.row = rows[i], .is_listed = true};
        slot->row.id = before != NULL ? before->row.id : keys->next_id++;
        if (before == NULL) continue;
        slot->n_in_flight = before->n_in_flight;
        before->n_in_flight = 0; /* has moved */
    }
    for (uint32_t i = 0; i < keys->n_slots; i++) {
        if (keys->slots[i].n_in_flight == 0) continue;
        slots[n_slots] = keys->slots[i];
        slots[n_slots++].is_listed = false;
    }
    free(keys->slots);
    keys->slots = slots;
    keys->n_slots = n_slots;
    keys->n_listed = n_rows;
}

static kr_status_t load(keys_t *keys, kr_error_t *error) {
    key_row_t *rows = NULL;
    uint32_t n_rows = 0;
    struct stat info;
    KR_TRY(read_rows(keys->path, &rows, &n_rows, error));
    const bool is_open = stat(keys->path, &info) == 0 && (info.st_mode & S_IROTH) != 0;
    pthread_mutex_lock(&keys->mutex);
    slot_t *slots = calloc((size_t)n_rows + keys->n_slots + 1, sizeof *slots);
    if (slots != NULL) {
        swap_rows(keys, rows, n_rows, slots);
        keys->is_world_readable = is_open;
    }
    pthread_mutex_unlock(&keys->mutex);
    free(rows);
    return slots != NULL ? KR_OK : KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for keys");
}

kr_status_t keys_reload(keys_t *keys, kr_error_t *error) {
    if (keys->path == NULL) return KR_OK;
    pthread_mutex_lock(&keys->reload_mutex);
    kr_status_t status = load(keys, error);
    pthread_mutex_unlock(&keys->reload_mutex);
    return status;
}

kr_status_t keys_create(const char *path, uint32_t in_flight_max, keys_t **keys,
                        kr_error_t *error) {
    keys_t *made = calloc(1, sizeof *made);
    char *copy = path != NULL ? strdup(path) : NULL;
    if (made == NULL || (path != NULL && copy == NULL)) {
        free(made);
        free(copy);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for keys");
    }
    pthread_mutex_init(&made->mutex, NULL);
    pthread_mutex_init(&made->reload_mutex, NULL);
    made->path = copy;
    made->next_id = 1;
    made->in_flight_max = in_flight_max != 0 ? in_flight_max : IN_FLIGHT_DEFAULT;
    kr_status_t status = keys_reload(made, error);
    if (status == KR_OK) *keys = made;
    else keys_destroy(made);
    return status;
}

void keys_destroy(keys_t *keys) {
    if (keys == NULL) return;
    pthread_mutex_destroy(&keys->mutex);
    pthread_mutex_destroy(&keys->reload_mutex);
    free(keys->slots);
    free(keys->path);
    free(keys);
}

bool keys_in_use(const keys_t *keys) { return keys->path != NULL; }

uint32_t keys_count(keys_t *keys) {
    pthread_mutex_lock(&keys->mutex);
    const uint32_t n = keys->n_listed;
    pthread_mutex_unlock(&keys->mutex);
    return n;
}

bool keys_is_world_readable(keys_t *keys) {
    pthread_mutex_lock(&keys->mutex);
    const bool is_open = keys->is_world_readable;
    pthread_mutex_unlock(&keys->mutex);
    return is_open;
}

/* ---- asking ------------------------------------------------------------------------------- */

/* The key behind "Bearer "; false: another scheme. */
static bool bearer_key(http_text_t value, http_text_t *key) {
    static const char scheme[] = "bearer ";
    const size_t n_scheme = sizeof scheme - 1;
    if (value.n_bytes <= n_scheme || strncasecmp(value.data, scheme, n_scheme) != 0) return false;
    size_t begin = n_scheme;
    while (begin < value.n_bytes && value.data[begin] == ' ') begin++;
    *key = (http_text_t){value.data + begin, value.n_bytes - begin};
    return true;
}

/* Looks a shown key up; the principal is filled when it is known. */
static bool look_up(keys_t *keys, http_text_t key, principal_t *principal) {
    uint8_t digest[SHA256_DIGEST_LENGTH];
    if (key.n_bytes == 0 || key.n_bytes > KEY_BYTES_MAX) return false;
    SHA256((const uint8_t *)key.data, key.n_bytes, digest);
    pthread_mutex_lock(&keys->mutex);
    uint32_t found = 0; /* index + 1 */
    for (uint32_t i = 0; i < keys->n_slots; i++) {
        const slot_t *slot = &keys->slots[i];
        const uint32_t differs = (uint32_t)CRYPTO_memcmp(slot->row.digest, digest, sizeof digest);
        const uint32_t is_same = (uint32_t)((differs | (0u - differs)) >> 31 ^ 1u);
        found |= (0u - (is_same & (uint32_t)slot->is_listed)) & (i + 1);
    }
    if (found != 0) {
        const key_row_t *row = &keys->slots[found - 1].row;
        principal->key_id = row->id;
        principal->scopes = row->scopes;
        memcpy(principal->name, row->name, sizeof principal->name);
    }
    pthread_mutex_unlock(&keys->mutex);
    return found != 0;
}

bool keys_identify(keys_t *keys, const http_request_t *request, principal_t *principal) {
    memset(principal, 0, sizeof *principal);
    if (!keys_in_use(keys)) { /* what clients send as a key then does not matter */
        principal->scopes = SCOPE_GENERATE | SCOPE_METRICS;
        return true;
    }
    const uint32_t n_bearer = http_field_count(request, "authorization");
    const uint32_t n_plain = http_field_count(request, "x-api-key");
    if (n_bearer > 1 || n_plain > 1 || n_bearer + n_plain == 0) return false;
    principal_t found[2];
    uint32_t n_found = 0;
    memset(found, 0, sizeof found);
    http_text_t key = {NULL, 0};
    if (n_bearer == 1) {
        if (!bearer_key(http_field(request, "authorization"), &key)) return false;
        if (!look_up(keys, key, &found[n_found++])) return false;
    }
    if (n_plain == 1) {
        if (!look_up(keys, http_field(request, "x-api-key"), &found[n_found++])) return false;
    }
    if (n_found == 2 && found[0].key_id != found[1].key_id) return false;
    *principal = found[0];
    return true;
}

bool keys_enter(keys_t *keys, uint64_t key_id) {
    if (key_id == 0) return true;
    pthread_mutex_lock(&keys->mutex);
    slot_t *slot = find_id(keys, key_id);
    bool is_free = false;
    if (slot != NULL && slot->is_listed) {
        const uint32_t max = slot->row.in_flight_max != 0 ? slot->row.in_flight_max
                                                          : keys->in_flight_max;
        is_free = slot->n_in_flight < max;
        slot->n_in_flight += is_free;
    }
    pthread_mutex_unlock(&keys->mutex);
    return is_free;
}

void keys_leave(keys_t *keys, uint64_t key_id) {
    if (key_id == 0) return;
    pthread_mutex_lock(&keys->mutex);
    slot_t *slot = find_id(keys, key_id);
    if (slot != NULL && slot->n_in_flight > 0) slot->n_in_flight--;
    pthread_mutex_unlock(&keys->mutex);
}
