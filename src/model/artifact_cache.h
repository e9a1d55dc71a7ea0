/* artifact_cache.h: files derived from a model, kept between runs.
 * A key is a string of facts (source identity, kind, layout version); its xxh3 names the file.
 * Each file carries a header (magic, version, key in full, payload size, xxh3 of the payload) and
 * is written under a temporary name, fsynced and renamed, under a lock, so that two processes
 * can build the same artifact at once; a damaged file is rebuilt. Bounded by bytes, LRU by mtime;
 * a file in use (by any process) is never evicted.
 * Threads: any (each call opens what it needs). */
#ifndef KRI_MODEL_ARTIFACT_CACHE_H
#define KRI_MODEL_ARTIFACT_CACHE_H

#include "base/os.h"
#include "kr.h"

#define KRI_ARTIFACT_KEY_BYTES_MAX 1024u
/* The payload begins on a page of its own, so that a mapping of it is page-aligned. */
#define KRI_ARTIFACT_HEADER_BYTES 4096u
#define KRI_ARTIFACT_CACHE_BYTES_DEFAULT ((uint64_t)16 << 30)

typedef struct kri_artifact_cache_s {
    char *dir;           /* owned; NULL = caching is off */
    uint64_t max_bytes;  /* total of the folder */
} kri_artifact_cache_t;

typedef struct kri_artifact_s {
    kri_map_t map;       /* mapping of the file, or empty when built in memory */
    void *owned;         /* kri_alloc'd payload when not mapped */
    const uint8_t *data; /* payload */
    size_t n_bytes;
    int use_lock;        /* 0 = none, else the shared lock of the file in use, plus 1 */
} kri_artifact_t;

/* Builds the payload: kri_alloc'd, ownership passes to the cache. */
typedef kr_status_t (*kri_artifact_build_fn)(void *ctx, void **data, size_t *n_bytes,
                                             kr_error_t *error);

/* dir: C string; NULL = $XDG_CACHE_HOME/kr or ~/.cache/kr; "" = off. A folder that cannot
 * be created switches the cache off with a log line: a cache never makes an open fail.
 * max_bytes 0 = KRI_ARTIFACT_CACHE_BYTES_DEFAULT. Errors: KR_E_NOMEM. */
kr_status_t kri_artifact_cache_init(kri_artifact_cache_t *cache, const char *dir,
                                    uint64_t max_bytes);
void kri_artifact_cache_deinit(kri_artifact_cache_t *cache);
/* Finds or builds the artifact of `key` (C string, at most 1024 bytes); *built says which. The
 * artifact is written whole and untouched on failure. Errors: build's, KR_E_INVALID_ARG (key). */
kr_status_t kri_artifact_get(const kri_artifact_cache_t *cache, const char *key,
                             kri_artifact_build_fn build, void *ctx, kri_artifact_t *artifact,
                             bool *built, kr_error_t *error);
void kri_artifact_close(kri_artifact_t *artifact); /* a zeroed one is a no-op */

/* Checks the bytes of a cache file against a key; on KR_OK the payload follows the header.
 * Errors KR_E_TRUNCATED, KR_E_BAD_FORMAT, KR_E_CHANGED (another key), KR_E_CORRUPT. */
kr_status_t kri_artifact_verify(const uint8_t *data, size_t n_bytes, const char *key);

#endif
