/* artifact_cache.c: keeps derived files in one folder. Every trouble with the folder (missing,
 * read-only, full, damaged files, a lock nobody gives back) ends in building the artifact in
 * memory and one log line; only the builder itself can fail a call. The price of the single
 * atomic write is that header and payload are joined in memory once, when an artifact is new. */
#include "model/artifact_cache.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"

#define MAGIC "KRARTIF"      /* 8 bytes with its NUL */
#define FORMAT_VERSION 1u
#define SUFFIX ".kra"
#define N_NAME_BYTES 36u     /* 32 hex digits and the suffix */
#define N_LOCKS 16u          /* build locks are shared by keys so that they do not pile up */
#define BUILD_LOCK_MS 120000u
#define PATH_BYTES 4096u
#define N_ENTRIES_MAX 65536u
#define TEMP_AGE_NS UINT64_C(3600000000000)

/* Offsets of the header's fields; numbers are little-endian, the rest of the page is zero. */
enum { AT_MAGIC = 0, AT_VERSION = 8, AT_KEY_BYTES = 12, AT_N_BYTES = 16, AT_PAYLOAD_HASH = 24,
       AT_HEADER_HASH = 32, AT_KEY = 40 };

static void put_u64(uint8_t *at, uint64_t value) {
    for (int i = 0; i < 8; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get_u64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

/* The header's hash covers the whole page except itself. */
static uint64_t header_hash(const uint8_t *header) {
    uint64_t front = XXH3_64bits(header, AT_HEADER_HASH);
    return XXH3_64bits_withSeed(header + AT_KEY, KRI_ARTIFACT_HEADER_BYTES - AT_KEY, front);
}

static void write_header(uint8_t *header, const char *key, const uint8_t *payload,
                         size_t n_bytes) {
    size_t key_bytes = strlen(key);
    memset(header, 0, KRI_ARTIFACT_HEADER_BYTES);
    memcpy(header + AT_MAGIC, MAGIC, 8);
    put_u64(header + AT_VERSION, FORMAT_VERSION | (uint64_t)key_bytes << 32);
    put_u64(header + AT_N_BYTES, n_bytes);
    put_u64(header + AT_PAYLOAD_HASH, XXH3_64bits(payload, n_bytes));
    memcpy(header + AT_KEY, key, key_bytes);
    put_u64(header + AT_HEADER_HASH, header_hash(header));
}

kr_status_t kri_artifact_verify(const uint8_t *data, size_t n_bytes, const char *key) {
    size_t key_bytes = strlen(key);
    if (n_bytes < KRI_ARTIFACT_HEADER_BYTES) return KR_E_TRUNCATED;
    if (memcmp(data + AT_MAGIC, MAGIC, 8) != 0) return KR_E_BAD_FORMAT;
    if (get_u64(data + AT_HEADER_HASH) != header_hash(data)) return KR_E_CORRUPT;
    uint64_t version_and_key = get_u64(data + AT_VERSION);
    if ((uint32_t)version_and_key != FORMAT_VERSION) return KR_E_BAD_FORMAT;
    if (key_bytes > KRI_ARTIFACT_KEY_BYTES_MAX || version_and_key >> 32 != key_bytes ||
        memcmp(data + AT_KEY, key, key_bytes) != 0)
        return KR_E_CHANGED;
    size_t n_payload = n_bytes - KRI_ARTIFACT_HEADER_BYTES;
    if (get_u64(data + AT_N_BYTES) != n_payload) return KR_E_TRUNCATED;
    if (get_u64(data + AT_PAYLOAD_HASH) != XXH3_64bits(data + KRI_ARTIFACT_HEADER_BYTES, n_payload))
        return KR_E_CORRUPT;
    return KR_OK;
}

/* ---- the folder --------------------------------------------------------------------------- */

/* The default place; false when the environment names none. */
static bool default_dir(char *path, size_t cap) {
    const char *cache = kri_env("XDG_CACHE_HOME"), *home = kri_env("HOME");
    int n = -1;
    if (cache && cache[0] == '/') n = snprintf(path, cap, "%s/kr", cache);
    else if (home) n = snprintf(path, cap, "%s/.cache/kr", home);
    return n > 0 && (size_t)n < cap;
}

kr_status_t kri_artifact_cache_init(kri_artifact_cache_t *cache, const char *dir,
                                    uint64_t max_bytes) {
    char place[PATH_BYTES];
    kr_error_t error;
    kr_error_init(&error);
    memset(cache, 0, sizeof *cache);
    cache->max_bytes = max_bytes ? max_bytes : KRI_ARTIFACT_CACHE_BYTES_DEFAULT;
    if (dir && !dir[0]) return KR_OK;
    if (!dir && !default_dir(place, sizeof place)) {
        kri_log(KR_LOG_WARN, "artifact cache off: neither XDG_CACHE_HOME nor HOME is set");
        return KR_OK;
    }
    if (!dir) dir = place;
    if (strlen(dir) > PATH_BYTES - 64) {
        kri_log(KR_LOG_WARN, "artifact cache off: path over %u bytes", PATH_BYTES - 64);
        return KR_OK;
    }
    if (kri_dir_create(dir, &error) != KR_OK) {
        kri_log(KR_LOG_WARN, "artifact cache off: %s", error.message);
        return KR_OK;
    }
    cache->dir = kri_strndup(dir, strlen(dir), "artifact");
    return cache->dir ? KR_OK : KR_E_NOMEM;
}

void kri_artifact_cache_deinit(kri_artifact_cache_t *cache) {
    kri_free(cache->dir);
    memset(cache, 0, sizeof *cache);
}

/* Paths fit: init keeps 64 bytes for the names made here and in the listing. */
static void join(const kri_artifact_cache_t *cache, const char *name, char *path) {
    snprintf(path, PATH_BYTES, "%s/%.62s", cache->dir, name);
}

/* ---- eviction ----------------------------------------------------------------------------- */

typedef struct entry_s { char name[N_NAME_BYTES + 1]; uint64_t n_bytes, mtime_ns; } entry_t;

typedef struct listing_s {
    const kri_artifact_cache_t *cache;
    entry_t *entries;
    size_t n, capacity;
    uint64_t n_bytes, newest_ns;
    bool is_sweep; /* second listing: removes temporary files of killed processes */
} listing_t;

static int list_entry(const char *name, const kri_file_id_t *id, void *user) {
    listing_t *listing = user;
    size_t n = strlen(name), n_prefix = strlen(KRI_FILE_TEMP_PREFIX);
    if (listing->is_sweep) {
        char path[PATH_BYTES];
        if (strncmp(name, KRI_FILE_TEMP_PREFIX, n_prefix) != 0 || n > 62) return 0;
        if (listing->newest_ns < TEMP_AGE_NS || id->mtime_ns > listing->newest_ns - TEMP_AGE_NS)
            return 0;
        join(listing->cache, name, path);
        (void)kri_file_remove(path, NULL);
        return 0;
    }
    if (n != N_NAME_BYTES || strcmp(name + n - strlen(SUFFIX), SUFFIX) != 0) return 0;
    if (listing->n == listing->capacity) {
        size_t capacity = listing->capacity ? 2 * listing->capacity : 64;
        if (capacity > N_ENTRIES_MAX) return 1;
        entry_t *grown = kri_realloc(listing->entries, capacity * sizeof *grown, "artifact");
        if (!grown) return 1;
        listing->entries = grown;
        listing->capacity = capacity;
    }
    entry_t *entry = &listing->entries[listing->n++];
    memcpy(entry->name, name, n + 1);
    entry->n_bytes = id->size;
    entry->mtime_ns = id->mtime_ns;
    listing->n_bytes += id->size;
    if (id->mtime_ns > listing->newest_ns) listing->newest_ns = id->mtime_ns;
    return 0;
}

/* The least recently used file that is not `keep`; files given up on have no name. */
static entry_t *find_oldest(listing_t *listing, const char *keep) {
    entry_t *oldest = NULL;
    for (size_t i = 0; i < listing->n; i++) {
        entry_t *entry = &listing->entries[i];
        if (!entry->name[0] || strcmp(entry->name, keep) == 0) continue;
        if (!oldest || entry->mtime_ns < oldest->mtime_ns) oldest = entry;
    }
    return oldest;
}

/* Users hold a shared lock on their file, so an exclusive one that comes at once means unused. */
static bool remove_unused(const kri_artifact_cache_t *cache, const char *name) {
    char path[PATH_BYTES];
    int lock = -1;
    join(cache, name, path);
    if (kri_lock_acquire(path, 0, &lock, NULL) != KR_OK) return false;
    bool is_removed = kri_file_remove(path, NULL) == KR_OK;
    kri_lock_release(lock);
    return is_removed;
}

static void evict(const kri_artifact_cache_t *cache, const char *keep) {
    char path[PATH_BYTES];
    int lock = -1;
    listing_t listing = {.cache = cache};
    join(cache, "lock-evict", path);
    if (kri_lock_acquire(path, 0, &lock, NULL) != KR_OK) return; /* another process is at it */
    (void)kri_dir_list(cache->dir, list_entry, &listing, NULL);
    while (listing.n_bytes > cache->max_bytes) {
        entry_t *entry = find_oldest(&listing, keep);
        if (!entry) break;
        if (remove_unused(cache, entry->name)) {
            listing.n_bytes -= entry->n_bytes;
            kri_log(KR_LOG_INFO, "artifact cache: evicted %s", entry->name);
        }
        entry->name[0] = 0;
    }
    listing.is_sweep = true;
    (void)kri_dir_list(cache->dir, list_entry, &listing, NULL);
    kri_free(listing.entries);
    kri_lock_release(lock);
}

/* ---- finding and building ----------------------------------------------------------------- */

/* Opens and verifies a file; KR_E_NOT_FOUND quietly, anything else with a log line. */
static kr_status_t open_file(const char *path, const char *key, kri_artifact_t *artifact) {
    kri_map_t map = {0};
    int lock = -1;
    kr_status_t status = kri_lock_share(path, &lock, NULL); /* before mapping: keeps evictors off */
    if (status == KR_OK) status = kri_map_open(path, &map, NULL);
    if (status == KR_OK) status = kri_artifact_verify(map.data, map.size, key);
    if (status == KR_OK) {
        (void)kri_file_touch(path); /* fails in a read-only folder, where nothing is evicted */
        *artifact = (kri_artifact_t){map, NULL, map.data + KRI_ARTIFACT_HEADER_BYTES,
                                     map.size - KRI_ARTIFACT_HEADER_BYTES, lock + 1};
        return KR_OK;
    }
    if (status != KR_E_NOT_FOUND)
        kri_log(KR_LOG_WARN, "artifact cache: %s is not usable: %s", path, kr_status_text(status));
    kri_map_close(&map);
    kri_lock_release(lock);
    return status;
}

static kr_status_t build_in_memory(kri_artifact_build_fn build, void *ctx,
                                   kri_artifact_t *artifact, kr_error_t *error) {
    void *data = NULL;
    size_t n_bytes = 0;
    KR_TRY(build(ctx, &data, &n_bytes, error));
    *artifact = (kri_artifact_t){{0}, data, data, n_bytes, 0};
    return KR_OK;
}

static kr_status_t write_file(const kri_artifact_cache_t *cache, const char *path,
                              const char *key, const kri_artifact_t *artifact) {
    kr_error_t error;
    size_t n_total;
    kr_error_init(&error);
    if (!kri_add_size(artifact->n_bytes, KRI_ARTIFACT_HEADER_BYTES, &n_total) ||
        n_total > cache->max_bytes) {
        kri_log(KR_LOG_INFO, "artifact cache: %zu bytes are more than the cache may hold",
                artifact->n_bytes);
        return KR_E_LIMIT;
    }
    uint8_t *file = kri_alloc(n_total, "artifact");
    if (!file) {
        kri_log(KR_LOG_WARN, "artifact cache: no memory to write %zu bytes", n_total);
        return KR_E_NOMEM;
    }
    if (artifact->n_bytes)
        memcpy(file + KRI_ARTIFACT_HEADER_BYTES, artifact->data, artifact->n_bytes);
    write_header(file, key, file + KRI_ARTIFACT_HEADER_BYTES, artifact->n_bytes);
    kr_status_t status = kri_file_write_atomic(path, file, n_total, &error);
    kri_free(file);
    if (status != KR_OK) kri_log(KR_LOG_WARN, "artifact cache: not written: %s", error.message);
    return status;
}

/* Builds under the key's lock, unless another process has built it while we waited. */
static kr_status_t build_locked(const kri_artifact_cache_t *cache, const char *name,
                                const char *path, const char *key, kri_artifact_build_fn build,
                                void *ctx, kri_artifact_t *artifact, bool *built,
                                kr_error_t *error) {
    kri_artifact_t mapped;
    *built = false;
    if (open_file(path, key, artifact) == KR_OK) return KR_OK;
    *built = true;
    KR_TRY(build_in_memory(build, ctx, artifact, error));
    if (write_file(cache, path, key, artifact) != KR_OK) return KR_OK;
    if (open_file(path, key, &mapped) == KR_OK) { /* shared pages instead of private ones */
        kri_free(artifact->owned);
        *artifact = mapped;
    }
    evict(cache, name);
    return KR_OK;
}

kr_status_t kri_artifact_get(const kri_artifact_cache_t *cache, const char *key,
                             kri_artifact_build_fn build, void *ctx, kri_artifact_t *artifact,
                             bool *built, kr_error_t *error) {
    char name[N_NAME_BYTES + 1], lock_name[16], path[PATH_BYTES], lock_path[PATH_BYTES];
    size_t key_bytes = strlen(key);
    kri_artifact_t found;
    bool is_built = true;
    int lock = -1;
    kr_error_t lock_error;
    kr_status_t status;
    if (key_bytes == 0 || key_bytes > KRI_ARTIFACT_KEY_BYTES_MAX)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "key", "artifact key of %zu bytes (1 to %u)",
                        key_bytes, KRI_ARTIFACT_KEY_BYTES_MAX);
    if (!cache->dir) {
        status = build_in_memory(build, ctx, &found, error);
        goto done;
    }
    XXH128_hash_t hash = XXH3_128bits(key, key_bytes);
    snprintf(name, sizeof name, "%016llx%016llx" SUFFIX, (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    snprintf(lock_name, sizeof lock_name, "lock-%02u", (unsigned)(hash.low64 % N_LOCKS));
    join(cache, name, path);
    join(cache, lock_name, lock_path);
    is_built = false;
    status = open_file(path, key, &found);
    if (status == KR_OK) goto done;
    kr_error_init(&lock_error);
    if (kri_lock_acquire(lock_path, BUILD_LOCK_MS, &lock, &lock_error) != KR_OK) {
        kri_log(KR_LOG_WARN, "artifact cache: not used: %s", lock_error.message);
        is_built = true;
        status = build_in_memory(build, ctx, &found, error);
        goto done;
    }
    status = build_locked(cache, name, path, key, build, ctx, &found, &is_built, error);
    kri_lock_release(lock);
done:
    if (status != KR_OK) return status;
    *artifact = found;
    *built = is_built;
    return KR_OK;
}

void kri_artifact_close(kri_artifact_t *artifact) {
    kri_map_close(&artifact->map);
    kri_free(artifact->owned);
    if (artifact->use_lock) kri_lock_release(artifact->use_lock - 1);
    memset(artifact, 0, sizeof *artifact);
}
