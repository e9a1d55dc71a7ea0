/* artifact_cache.h: files derived from a model, kept between runs.
 * A key is a string of facts (kind, layout version, content hash); its xxh3 names the file. A file
 * is a header page (magic, version, key in full, sizes, hashes), an index and data. Header and
 * index are verified when it is opened; data carries no hash of the cache, so that a large file
 * can be opened at once: its owner keeps hashes in the index. A file is written under a temporary
 * name, fsynced and renamed, so a reader sees all of it or nothing; a writer that is told to hurry
 * leaves the complete file under a second name without the fsync (`settle` repeats that part).
 * Bounded by bytes, LRU by mtime; a file in use (by any process) is never evicted.
 * Threads: any (each call opens what it needs). Only init allocates. */
#ifndef KRI_MODEL_ARTIFACT_CACHE_H
#define KRI_MODEL_ARTIFACT_CACHE_H

#include "base/os.h"
#include "kr.h"

#define KRI_ARTIFACT_KEY_BYTES_MAX 1024u
#define KRI_ARTIFACT_HEADER_BYTES 4096u
#define KRI_ARTIFACT_CACHE_BYTES_DEFAULT ((uint64_t)16 << 30)
/* What a writer that was told to hurry still writes; with more left it gives up. */
#define KRI_ARTIFACT_HURRY_BYTES_MAX ((uint64_t)2 << 30)

typedef struct kri_artifact_cache_s {
    char *dir;           /* owned; NULL = caching is off */
    uint64_t max_bytes;  /* total of the folder */
} kri_artifact_cache_t;

typedef struct kri_artifact_s {
    kri_map_t map;        /* of the whole file */
    const uint8_t *index;
    size_t index_bytes;
    const uint8_t *data;  /* on a huge-page boundary; NULL without data */
    size_t data_bytes;
    bool is_settled;      /* false: complete, but never fsynced */
    int use_lock;         /* 0 = none, else the shared lock of the file in use, plus 1 */
} kri_artifact_t;

/* How a writer is to go on, asked before every piece of 2 MiB; it may sleep while others need the
 * machine. True: hurry (see above). NULL function: never. */
typedef struct kri_artifact_pace_s {
    bool (*is_hurried)(void *user);
    void *user;
} kri_artifact_pace_t;

/* What is to be written; all of it borrowed. */
typedef struct kri_artifact_content_s {
    const void *index, *data;
    size_t index_bytes, data_bytes;
} kri_artifact_content_t;

/* dir: C string; NULL = $XDG_CACHE_HOME/kr or ~/.cache/kr; "" = off. A folder that cannot
 * be created switches the cache off with a log line: a cache never makes an open fail.
 * max_bytes 0 = KRI_ARTIFACT_CACHE_BYTES_DEFAULT. Errors: KR_E_NOMEM. */
kr_status_t kri_artifact_cache_init(kri_artifact_cache_t *cache, const char *dir,
                                    uint64_t max_bytes);
/* The same for reading only: creates no folder. Errors: KR_E_NOMEM. */
kr_status_t kri_artifact_cache_look(kri_artifact_cache_t *cache, const char *dir);
void kri_artifact_cache_deinit(kri_artifact_cache_t *cache);

/* Opens the artifact of `key` (C string, 1 to 1024 bytes). KR_E_NOT_FOUND; a file that is there
 * but cannot be used gives another status and one log line, and is removed when it is damaged.
 * *artifact is untouched on failure. */
kr_status_t kri_artifact_open(const kri_artifact_cache_t *cache, const char *key,
                              kri_artifact_t *artifact);
void kri_artifact_close(kri_artifact_t *artifact); /* a zeroed one is a no-op */

/* Writes the artifact of `key`, then evicts (also when there was no room for it). Once hurried it
 * ends soon: the fsync is left out, or with much left to write the file is given up
 * (KR_E_CANCELLED).
 * KR_E_BUSY while another process writes it, KR_E_LIMIT over the cache's size, KR_E_NOSPC,
 * KR_E_PERMISSION, KR_E_IO; nothing is left behind then. Logs nothing. */
kr_status_t kri_artifact_write(const kri_artifact_cache_t *cache, const char *key,
                               const kri_artifact_content_t *content,
                               kri_artifact_pace_t pace, kr_error_t *error);
/* The fsync and the rename that a hurried writer left out; nothing to do is KR_OK. */
kr_status_t kri_artifact_settle(const kri_artifact_cache_t *cache, const char *key,
                                kri_artifact_pace_t pace, kr_error_t *error);
/* Removes the files of a key; false when one of them is still there (a read-only folder). */
bool kri_artifact_discard(const kri_artifact_cache_t *cache, const char *key);

/* Calls fn for each artifact of the folder: opened and verified (artifact NULL: status says why
 * not), path a C string, both borrowed. fn returns non-zero to stop. Errors of listing only. */
typedef int (*kri_artifact_fn)(const char *path, const kri_artifact_t *artifact,
                               kr_status_t status, void *user);
kr_status_t kri_artifact_each(const kri_artifact_cache_t *cache, kri_artifact_fn fn, void *user,
                              kr_error_t *error);

/* Checks the bytes of a cache file and finds its sections (the artifact's map is untouched).
 * key NULL: whatever key it carries. Errors KR_E_TRUNCATED, KR_E_BAD_FORMAT, KR_E_CHANGED
 * (another key), KR_E_CORRUPT. */
kr_status_t kri_artifact_verify(const uint8_t *bytes, size_t n_bytes, const char *key,
                                kri_artifact_t *artifact);

#endif
