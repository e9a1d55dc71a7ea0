/* artifact_cache.c: keeps derived files in one folder; see the header. Locks: a user of a file
 * holds a shared lock on it, which keeps evictors off; writers of one key take one of N_LOCKS lock
 * files, so that two processes do not write the same bytes twice. Eviction lists the folder once
 * per removed file instead of keeping a list: it allocates nothing, because it runs beside a
 * decoding thread that may not see any allocation, and folders hold a handful of files. */
#include "model/artifact_cache.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/log.h"

#define MAGIC "KRARTIF"      /* 8 bytes with its NUL */
#define FORMAT_VERSION 2u
#define SUFFIX ".kra"
#define SUFFIX_UNSETTLED ".kru" /* complete, never fsynced */
#define N_SUFFIX_BYTES 4u
#define N_NAME_BYTES 36u     /* 32 hex digits and the suffix */
#define N_LOCKS 16u          /* write locks are shared by keys so that they do not pile up */
#define PATH_BYTES 4096u
#define N_ENTRIES_MAX 65536u
#define PIECE_BYTES KRI_HUGE_PAGE_BYTES
#define FLUSH_BYTES ((size_t)32 << 20)

/* Offsets of the header's fields; numbers are little-endian, the rest of the page is zero. */
enum { AT_MAGIC = 0, AT_VERSION = 8, AT_INDEX_BYTES = 16, AT_INDEX_HASH = 24, AT_DATA_BYTES = 32,
       AT_HEADER_HASH = 40, AT_KEY = 48 };

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

static void write_header(uint8_t *header, const char *key,
                         const kri_artifact_content_t *content) {
    size_t key_bytes = strlen(key);
    memset(header, 0, KRI_ARTIFACT_HEADER_BYTES);
    memcpy(header + AT_MAGIC, MAGIC, 8);
    put_u64(header + AT_VERSION, FORMAT_VERSION | (uint64_t)key_bytes << 32);
    put_u64(header + AT_INDEX_BYTES, content->index_bytes);
    put_u64(header + AT_INDEX_HASH, XXH3_64bits(content->index, content->index_bytes));
    put_u64(header + AT_DATA_BYTES, content->data_bytes);
    memcpy(header + AT_KEY, key, key_bytes);
    put_u64(header + AT_HEADER_HASH, header_hash(header));
}

/* Data begins behind the index on a huge-page boundary. */
static bool place(uint64_t index_bytes, uint64_t data_bytes, size_t *data_offset,
                  size_t *n_total) {
    size_t end = 0;
    if (index_bytes > SIZE_MAX || data_bytes > SIZE_MAX ||
        !kri_add_size((size_t)index_bytes, KRI_ARTIFACT_HEADER_BYTES, &end)) {
        return false;
    }
    *data_offset = *n_total = end;
    if (data_bytes == 0) return true;
    return kri_align_size(end, KRI_HUGE_PAGE_BYTES, data_offset) &&
           kri_add_size(*data_offset, (size_t)data_bytes, n_total);
}

kr_status_t kri_artifact_verify(const uint8_t *bytes, size_t n_bytes, const char *key,
                                kri_artifact_t *artifact) {
    if (n_bytes < KRI_ARTIFACT_HEADER_BYTES) return KR_E_TRUNCATED;
    if (memcmp(bytes + AT_MAGIC, MAGIC, 8) != 0) return KR_E_BAD_FORMAT;
    if (get_u64(bytes + AT_HEADER_HASH) != header_hash(bytes)) return KR_E_CORRUPT;
    const uint64_t version_and_key = get_u64(bytes + AT_VERSION);
    if ((uint32_t)version_and_key != FORMAT_VERSION) return KR_E_BAD_FORMAT;
    const uint64_t key_bytes = version_and_key >> 32;
    if (key_bytes > KRI_ARTIFACT_KEY_BYTES_MAX) return KR_E_BAD_FORMAT;
    if (key && (strlen(key) != key_bytes || memcmp(bytes + AT_KEY, key, key_bytes) != 0))
        return KR_E_CHANGED;
    size_t data_offset, n_total;
    const uint64_t index_bytes = get_u64(bytes + AT_INDEX_BYTES);
    const uint64_t data_bytes = get_u64(bytes + AT_DATA_BYTES);
    if (!place(index_bytes, data_bytes, &data_offset, &n_total) || n_total != n_bytes)
        return KR_E_TRUNCATED;
    const uint8_t *index = bytes + KRI_ARTIFACT_HEADER_BYTES;
    if (get_u64(bytes + AT_INDEX_HASH) != XXH3_64bits(index, (size_t)index_bytes))
        return KR_E_CORRUPT;
    artifact->index = index;
    artifact->index_bytes = (size_t)index_bytes;
    artifact->data = data_bytes ? bytes + data_offset : NULL;
    artifact->data_bytes = (size_t)data_bytes;
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

static kr_status_t init(kri_artifact_cache_t *cache, const char *dir, uint64_t max_bytes,
                        bool creates) {
    char place_of_dir[PATH_BYTES];
    kr_error_t error;
    kr_error_init(&error);
    memset(cache, 0, sizeof *cache);
    cache->max_bytes = max_bytes ? max_bytes : KRI_ARTIFACT_CACHE_BYTES_DEFAULT;
    if (dir && !dir[0]) return KR_OK;
    if (!dir && !default_dir(place_of_dir, sizeof place_of_dir)) {
        kri_log(KR_LOG_WARN, "artifact cache off: neither XDG_CACHE_HOME nor HOME is set");
        return KR_OK;
    }
    if (!dir) dir = place_of_dir;
    if (strlen(dir) > PATH_BYTES - 64) {
        kri_log(KR_LOG_WARN, "artifact cache off: path over %u bytes", PATH_BYTES - 64);
        return KR_OK;
    }
    if (creates && kri_dir_create(dir, &error) != KR_OK) {
        kri_log(KR_LOG_WARN, "artifact cache off: %s", error.message);
        return KR_OK;
    }
    cache->dir = kri_strndup(dir, strlen(dir), "artifact");
    return cache->dir ? KR_OK : KR_E_NOMEM;
}

kr_status_t kri_artifact_cache_init(kri_artifact_cache_t *cache, const char *dir,
                                    uint64_t max_bytes) {
    return init(cache, dir, max_bytes, true);
}

kr_status_t kri_artifact_cache_look(kri_artifact_cache_t *cache, const char *dir) {
    return init(cache, dir, 0, false);
}

void kri_artifact_cache_deinit(kri_artifact_cache_t *cache) {
    kri_free(cache->dir);
    memset(cache, 0, sizeof *cache);
}

/* Paths fit: init keeps 64 bytes for the names made here and in the listing. */
static void join(const kri_artifact_cache_t *cache, const char *name, char *path) {
    snprintf(path, PATH_BYTES, "%s/%.62s", cache->dir, name);
}

/* The names that belong to one key. */
typedef struct names_s {
    char settled[N_NAME_BYTES + 1], unsettled[N_NAME_BYTES + 1], lock[16];
} names_t;

static void names_of(const char *key, names_t *names) {
    /* The version in the name keeps programs of two versions from fighting over one file. */
    const XXH128_hash_t hash = XXH3_128bits_withSeed(key, strlen(key), FORMAT_VERSION);
    char hex[33];
    snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
    snprintf(names->settled, sizeof names->settled, "%s" SUFFIX, hex);
    snprintf(names->unsettled, sizeof names->unsettled, "%s" SUFFIX_UNSETTLED, hex);
    snprintf(names->lock, sizeof names->lock, "lock-%02u", (unsigned)(hash.low64 % N_LOCKS));
}

static bool is_artifact(const char *name) {
    if (strlen(name) != N_NAME_BYTES) return false;
    const char *suffix = name + N_NAME_BYTES - N_SUFFIX_BYTES;
    return strcmp(suffix, SUFFIX) == 0 || strcmp(suffix, SUFFIX_UNSETTLED) == 0;
}

/* ---- eviction ----------------------------------------------------------------------------- */

typedef struct listing_s {
    const kri_artifact_cache_t *cache;
    const char *keep;              /* never chosen */
    uint64_t after_ns;             /* only files used later than this can be chosen */
    uint64_t n_bytes;              /* of all artifacts */
    char oldest[N_NAME_BYTES + 1]; /* the choice; "" = none */
    uint64_t oldest_ns;
} listing_t;

static int list_entry(const char *name, const kri_file_id_t *id, void *user) {
    listing_t *listing = user;
    if (!is_artifact(name)) return 0;
    listing->n_bytes += id->size;
    if (strncmp(name, listing->keep, N_NAME_BYTES - N_SUFFIX_BYTES) == 0) return 0;
    if (id->mtime_ns <= listing->after_ns) return 0;
    if (listing->oldest[0] && id->mtime_ns >= listing->oldest_ns) return 0;
    memcpy(listing->oldest, name, N_NAME_BYTES + 1);
    listing->oldest_ns = id->mtime_ns;
    return 0;
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

/* Temporary files of killed writers: living ones hold the same lock as users. */
static int sweep_entry(const char *name, const kri_file_id_t *id, void *user) {
    const listing_t *listing = user;
    (void)id;
    if (strncmp(name, KRI_FILE_TEMP_PREFIX, strlen(KRI_FILE_TEMP_PREFIX)) != 0) return 0;
    if (strlen(name) <= 62) (void)remove_unused(listing->cache, name);
    return 0;
}

static void evict(const kri_artifact_cache_t *cache, const char *keep) {
    char path[PATH_BYTES];
    int lock = -1;
    listing_t listing = {.cache = cache, .keep = keep};
    join(cache, "lock-evict", path);
    if (kri_lock_acquire(path, 0, &lock, NULL) != KR_OK) return; /* another process is at it */
    uint64_t after_ns = 0;
    for (uint32_t i = 0; i < N_ENTRIES_MAX; i++) {
        listing = (listing_t){.cache = cache, .keep = keep, .after_ns = after_ns};
        (void)kri_dir_list(cache->dir, list_entry, &listing, NULL);
        if (listing.n_bytes <= cache->max_bytes || !listing.oldest[0]) break;
        if (remove_unused(cache, listing.oldest)) {
            kri_log(KR_LOG_INFO, "artifact cache: evicted %s", listing.oldest);
        } else {
            after_ns = listing.oldest_ns; /* in use: only later ones are left to try */
        }
    }
    (void)kri_dir_list(cache->dir, sweep_entry, &listing, NULL);
    kri_lock_release(lock);
}

/* ---- opening ------------------------------------------------------------------------------ */

/* What no later look can make good. */
static bool is_bad(kr_status_t status) {
    return status == KR_E_TRUNCATED || status == KR_E_BAD_FORMAT || status == KR_E_CORRUPT ||
           status == KR_E_CHANGED;
}

static kr_status_t open_file(const char *path, const char *key, kri_artifact_t *artifact) {
    kri_artifact_t opened = {0};
    int lock = -1;
    kr_status_t status = kri_lock_share(path, &lock, NULL); /* before mapping: keeps evictors off */
    if (status == KR_OK) status = kri_map_open_huge(path, &opened.map, NULL);
    if (status == KR_OK) {
        status = kri_artifact_verify(opened.map.data, opened.map.size, key, &opened);
    }
    if (status == KR_OK) {
        opened.use_lock = lock + 1;
        opened.is_settled = strcmp(path + strlen(path) - N_SUFFIX_BYTES, SUFFIX) == 0;
        *artifact = opened;
        return KR_OK;
    }
    kri_map_close(&opened.map);
    kri_lock_release(lock);
    return status;
}

kr_status_t kri_artifact_open(const kri_artifact_cache_t *cache, const char *key,
                              kri_artifact_t *artifact) {
    char path[PATH_BYTES];
    names_t names;
    if (!cache->dir) return KR_E_NOT_FOUND;
    names_of(key, &names);
    const char *const both[] = {names.settled, names.unsettled};
    kr_status_t status = KR_E_NOT_FOUND;
    for (int i = 0; i < 2 && status == KR_E_NOT_FOUND; i++) {
        join(cache, both[i], path);
        status = open_file(path, key, artifact);
    }
    if (status == KR_OK) {
        (void)kri_file_touch(path); /* fails in a read-only folder, where nothing is evicted */
    } else if (status != KR_E_NOT_FOUND) {
        kri_log(KR_LOG_WARN, "artifact cache: %s is not usable: %s", path, kr_status_text(status));
        /* Else it would hide what a hurried writer leaves. */
        if (is_bad(status)) (void)kri_file_remove(path, NULL);
    }
    return status;
}

void kri_artifact_close(kri_artifact_t *artifact) {
    kri_map_close(&artifact->map);
    if (artifact->use_lock) kri_lock_release(artifact->use_lock - 1);
    memset(artifact, 0, sizeof *artifact);
}

static bool remove_if_there(const kri_artifact_cache_t *cache, const char *name) {
    char path[PATH_BYTES];
    join(cache, name, path);
    const kr_status_t status = kri_file_remove(path, NULL);
    return status == KR_OK || status == KR_E_NOT_FOUND;
}

bool kri_artifact_discard(const kri_artifact_cache_t *cache, const char *key) {
    names_t names;
    if (!cache->dir) return true;
    names_of(key, &names);
    const bool is_gone = remove_if_there(cache, names.settled);
    return remove_if_there(cache, names.unsettled) && is_gone;
}

/* ---- writing ------------------------------------------------------------------------------ */

static bool is_hurried(kri_artifact_pace_t pace) {
    return pace.is_hurried && pace.is_hurried(pace.user);
}

/* Data first, so that what a killed process leaves has no header. */
static kr_status_t put_content(kri_file_writer_t *writer, const char *key,
                               const kri_artifact_content_t *content, size_t data_offset,
                               kri_artifact_pace_t pace, kr_error_t *error) {
    uint8_t header[KRI_ARTIFACT_HEADER_BYTES];
    const uint8_t *data = content->data;
    const size_t n = content->data_bytes;
    for (size_t at = 0; at < n; at += PIECE_BYTES) {
        if (is_hurried(pace)) {
            if (n - at > KRI_ARTIFACT_HURRY_BYTES_MAX) return KR_E_CANCELLED;
        } else if (at >= FLUSH_BYTES && at % FLUSH_BYTES == 0) {
            /* Early, so that dirty memory stays small and the fsync short. */
            kri_file_writer_flush(writer, data_offset + at - FLUSH_BYTES, FLUSH_BYTES, false);
        }
        const size_t n_piece = n - at < PIECE_BYTES ? n - at : PIECE_BYTES;
        KR_TRY(kri_file_writer_put(writer, data + at, n_piece, data_offset + at, error));
    }
    write_header(header, key, content);
    KR_TRY(kri_file_writer_put(writer, content->index, content->index_bytes,
                               KRI_ARTIFACT_HEADER_BYTES, error));
    return kri_file_writer_put(writer, header, sizeof header, 0, error);
}

/* Waits for the disk in steps, because an fsync cannot be hurried; false: hurried. */
static bool drain(const kri_file_writer_t *writer, size_t n_total, kri_artifact_pace_t pace) {
    for (size_t at = 0; at < n_total; at += FLUSH_BYTES) {
        if (is_hurried(pace)) return false;
        kri_file_writer_flush(writer, at, FLUSH_BYTES, true);
    }
    return !is_hurried(pace);
}

/* Under the key's lock. */
static kr_status_t write_file(const kri_artifact_cache_t *cache, const names_t *names,
                              const char *key, const kri_artifact_content_t *content,
                              kri_artifact_pace_t pace, kr_error_t *error) {
    char path[PATH_BYTES];
    size_t data_offset, n_total;
    if (!place(content->index_bytes, content->data_bytes, &data_offset, &n_total) ||
        n_total > cache->max_bytes) {
        return KRI_FAIL(error, KR_E_LIMIT, NULL, "%zu bytes are more than the cache may hold",
                        content->data_bytes);
    }
    kri_file_writer_t writer;
    join(cache, names->settled, path);
    KR_TRY(kri_file_writer_open(path, &writer, error));
    kr_status_t status = put_content(&writer, key, content, data_offset, pace, error);
    if (status == KR_OK) {
        const bool is_settled = drain(&writer, n_total, pace);
        status = kri_file_writer_commit(&writer, is_settled ? names->settled : names->unsettled,
                                        is_settled, error);
        join(cache, names->unsettled, path);
        if (is_settled && status == KR_OK) (void)kri_file_remove(path, NULL);
    }
    kri_file_writer_discard(&writer);
    return status;
}

static kr_status_t lock_key(const kri_artifact_cache_t *cache, const names_t *names, int *lock,
                            kr_error_t *error) {
    char path[PATH_BYTES];
    join(cache, names->lock, path);
    const kr_status_t status = kri_lock_acquire(path, 0, lock, error);
    return status == KR_E_TIMEOUT ? KR_E_BUSY : status;
}

kr_status_t kri_artifact_write(const kri_artifact_cache_t *cache, const char *key,
                               const kri_artifact_content_t *content,
                               kri_artifact_pace_t pace, kr_error_t *error) {
    const size_t key_bytes = strlen(key);
    names_t names;
    int lock = -1;
    if (key_bytes == 0 || key_bytes > KRI_ARTIFACT_KEY_BYTES_MAX) {
        return KRI_FAIL(error, KR_E_INVALID_ARG, "key", "artifact key of %zu bytes (1 to %u)",
                        key_bytes, KRI_ARTIFACT_KEY_BYTES_MAX);
    }
    if (!cache->dir) return KRI_FAIL(error, KR_E_NOT_FOUND, NULL, "the artifact cache is off");
    names_of(key, &names);
    KR_TRY(lock_key(cache, &names, &lock, error));
    const kr_status_t status = write_file(cache, &names, key, content, pace, error);
    kri_lock_release(lock);
    /* Also after a failure for want of room: the next writer is to find some. */
    if (status == KR_OK || status == KR_E_NOSPC || status == KR_E_LIMIT) {
        evict(cache, names.settled);
    }
    return status;
}

kr_status_t kri_artifact_settle(const kri_artifact_cache_t *cache, const char *key,
                                kri_artifact_pace_t pace, kr_error_t *error) {
    char path[PATH_BYTES];
    names_t names;
    kri_file_writer_t writer;
    int lock = -1;
    if (!cache->dir) return KR_OK;
    names_of(key, &names);
    KR_TRY(lock_key(cache, &names, &lock, error));
    join(cache, names.unsettled, path);
    kr_status_t status = kri_file_writer_adopt(path, &writer, error);
    if (status == KR_OK) {
        kri_map_t map = {0};
        status = kri_map_open(path, &map, error); /* for the size */
        const bool is_settled = status == KR_OK && drain(&writer, map.size, pace);
        kri_map_close(&map);
        /* Hurried again: it keeps its name for the next one. */
        status = kri_file_writer_commit(&writer, is_settled ? names.settled : names.unsettled,
                                        is_settled, error);
    } else if (status == KR_E_NOT_FOUND) {
        status = KR_OK; /* settled by another process meanwhile */
    }
    kri_lock_release(lock);
    return status;
}

/* ---- all of them -------------------------------------------------------------------------- */

typedef struct walk_s {
    const kri_artifact_cache_t *cache;
    kri_artifact_fn fn;
    void *user;
} walk_t;

static int visit(const char *name, const kri_file_id_t *id, void *user) {
    const walk_t *walk = user;
    char path[PATH_BYTES];
    kri_artifact_t artifact = {0};
    (void)id;
    if (!is_artifact(name)) return 0;
    join(walk->cache, name, path);
    const kr_status_t status = open_file(path, NULL, &artifact);
    if (status == KR_E_NOT_FOUND) return 0; /* evicted meanwhile */
    const int stop = walk->fn(path, status == KR_OK ? &artifact : NULL, status, walk->user);
    kri_artifact_close(&artifact);
    return stop;
}

kr_status_t kri_artifact_each(const kri_artifact_cache_t *cache, kri_artifact_fn fn, void *user,
                              kr_error_t *error) {
    walk_t walk = {cache, fn, user};
    if (!cache->dir) return KR_OK;
    const kr_status_t status = kri_dir_list(cache->dir, visit, &walk, error);
    return status == KR_E_NOT_FOUND ? KR_OK : status; /* no folder yet: nothing is kept */
}
