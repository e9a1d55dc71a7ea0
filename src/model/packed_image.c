/* packed_image.c: finding, mapping, checking and writing the image of packed weights, and the
 * tokenizer's tables beside it. The mapping
 * is used in place where the system backs it with huge pages; where it does not, the first use
 * copies the weights into the private block (GEMV loses a quarter of its speed on small pages) and
 * gives the mapped pages back. docs/decisions/0005-packed-image.md says why. */
#include "model/packed_image.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* the state of a hash on the stack */
#include <xxhash.h>
#ifdef KRI_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* the same functions, half as fast again */
#endif

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "model/artifact_cache.h"
#include "model/model.h"
#include "ops/pack.h"

#define BLOCK_BYTES KRI_HUGE_PAGE_BYTES
#define BATCH_BLOCKS 64u /* checked between two looks at the cancel flag */
#define COPY_BLOCKS 8u   /* in memory twice while they leave the mapping */
#define HEAD_BYTES 16u
#define ROW_BYTES 40u
#define SOURCE_STEP_BYTES ((size_t)4 << 20)
#define KEY_BYTES 96
#define CANCEL_MS 20u /* between two looks at it while another session checks */
#define QUIET_NS UINT64_C(50000000) /* longer than the pause between two steps of one text */

enum { UNCHECKED = 0, CHECKING = 1, CHECKED = 2 };

struct kri_image_s {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;   /* the mapped image; zeroed when this process packed */
    kri_artifact_t tables;     /* the mapped tables; zeroed when this process built them */
    char record_key[KEY_BYTES];
    char key[KEY_BYTES], tables_key[KEY_BYTES]; /* "" while the content hash is unknown */
    bool is_recorded;          /* the content hash comes from a record */
    bool is_settled;           /* whatever was found needs no fsync */
    uint8_t *index;            /* what the image's index must be, hashes not filled in */
    size_t table_bytes, index_bytes;
    size_t n_blocks, n_done;   /* blocks of data; checked ones */
    uint8_t *is_bad;           /* [n_blocks] */
    _Atomic uint32_t n_bad;
    _Atomic uint32_t state;    /* of the check at first use */
    _Atomic uint32_t hurry;    /* the model is being closed */
    _Atomic uint32_t n_users;  /* forward passes under way; weights_begin .. weights_end */
    _Atomic uint64_t used_ns;  /* when the last one ended */
    kri_background_t *background;
};

static void put_u32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (8 * i));
}

static void put_u64(uint8_t *at, uint64_t value) {
    put_u32(at, (uint32_t)value);
    put_u32(at + 4, (uint32_t)(value >> 32));
}

static uint64_t get_u64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

/* ---- index -------------------------------------------------------------------------------- */

static void fill_table(const struct kr_model_s *m, uint8_t *index) {
    put_u64(index, m->n_packed_tensors);
    put_u64(index + 8, m->packed_bytes);
    for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m->packed_tensors[i];
        uint8_t *row = index + HEAD_BYTES + (size_t)i * ROW_BYTES;
        put_u64(row, XXH3_64bits(t->source->name, strlen(t->source->name)));
        put_u32(row + 8, (uint32_t)t->part->dtype);
        put_u32(row + 12, t->part->n_out);
        put_u32(row + 16, (uint32_t)t->n_in);
        put_u32(row + 20, 0);
        put_u64(row + 24, t->offset);
        put_u64(row + 32, t->n_bytes);
    }
}

kr_status_t kri_image_index_check(const uint8_t *index, size_t index_bytes, uint64_t data_bytes,
                                  const uint8_t **hashes) {
    size_t table_bytes, total;
    if (index_bytes < HEAD_BYTES || data_bytes == 0) return KR_E_BAD_FORMAT;
    const uint64_t n_tensors = get_u64(index);
    if (get_u64(index + 8) != data_bytes || n_tensors > index_bytes / ROW_BYTES)
        return KR_E_BAD_FORMAT;
    const uint64_t n_blocks = (data_bytes - 1) / BLOCK_BYTES + 1;
    table_bytes = HEAD_BYTES + (size_t)n_tensors * ROW_BYTES;
    if (n_blocks > index_bytes || !kri_add_size(table_bytes, (size_t)n_blocks * 8, &total) ||
        total != index_bytes) {
        return KR_E_BAD_FORMAT;
    }
    uint64_t end = 0;
    for (uint64_t i = 0; i < n_tensors; i++) {
        const uint8_t *row = index + HEAD_BYTES + (size_t)i * ROW_BYTES;
        const uint64_t n_bytes = get_u64(row + 32);
        if (get_u64(row + 24) != end || n_bytes > data_bytes - end) return KR_E_BAD_FORMAT;
        end += n_bytes;
    }
    if (end != data_bytes) return KR_E_BAD_FORMAT;
    *hashes = index + table_bytes;
    return KR_OK;
}

static uint64_t block_hash(const uint8_t *data, size_t data_bytes, size_t block) {
    const size_t begin = block * BLOCK_BYTES, left = data_bytes - begin;
    return XXH3_64bits(data + begin, left < BLOCK_BYTES ? left : BLOCK_BYTES);
}

/* ---- finding ------------------------------------------------------------------------------ */

/* The identity of all parts as a key. */
static void make_record_key(const kri_gguf_t *gguf, char key[KEY_BYTES]) {
    XXH3_state_t state;
    XXH3_128bits_reset(&state);
    const uint32_t n_parts = kri_gguf_n_parts(gguf);
    for (uint32_t i = 0; i < n_parts; i++) {
        const kri_file_id_t *id = &kri_gguf_part_map(gguf, i)->id;
        uint8_t bytes[32];
        put_u64(bytes, id->device);
        put_u64(bytes + 8, id->inode);
        put_u64(bytes + 16, id->size);
        put_u64(bytes + 24, id->mtime_ns);
        XXH3_128bits_update(&state, bytes, sizeof(bytes));
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(&state);
    snprintf(key, KEY_BYTES, "source/1 parts=%u id=%016llx%016llx", n_parts,
             (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

/* content: the canonical bytes of the content hash. */
static void make_keys(kri_image_t *image, const uint8_t content[16]) {
    char hex[33];
    for (size_t i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", content[i]);
    snprintf(image->key, KEY_BYTES, "packed/1 layout=%u content=%s", KRI_PACK_LAYOUT_VERSION, hex);
    snprintf(image->tables_key, KEY_BYTES, "text/1 layout=%u content=%s",
             kri_tokenizer_tables_version(), hex);
}

static void log_foreign(const char *key, bool is_gone) {
    kri_log(KR_LOG_WARN, "packed image: %s is not of this model: %s", key,
            is_gone ? "removed" : "cannot be removed");
}

/* Opens the image and compares its table with the model's. */
static bool open_usable(kri_image_t *image, size_t data_bytes, kri_artifact_t *artifact) {
    const uint8_t *hashes = NULL;
    kri_artifact_t opened = {0};
    if (kri_artifact_open(&image->cache, image->key, &opened) != KR_OK) return false;
    if (opened.index_bytes == image->index_bytes && opened.data_bytes == data_bytes &&
        memcmp(opened.index, image->index, image->table_bytes) == 0 &&
        kri_image_index_check(opened.index, opened.index_bytes, data_bytes, &hashes) == KR_OK) {
        *artifact = opened;
        return true;
    }
    kri_artifact_close(&opened);
    log_foreign(image->key, kri_artifact_discard(&image->cache, image->key));
    return false;
}

/* The background thread works only while nobody computes: a fork-join pool is as slow as its
 * slowest thread, so a busy core beside it would halve the speed of decoding. */
static bool is_hurried(void *user) {
    kri_image_t *image = user;
    for (;;) {
        if (atomic_load(&image->hurry)) return true;
        const bool is_quiet = kri_clock_ns() - atomic_load(&image->used_ns) > QUIET_NS;
        if (atomic_load(&image->n_users) == 0 && is_quiet) return false;
        kri_futex_wait_ms(&image->hurry, 0, QUIET_NS / 1000000);
    }
}

static kri_artifact_pace_t pace_of(kri_image_t *image) {
    return (kri_artifact_pace_t){is_hurried, image};
}

static void destroy(kri_image_t *image) {
    kri_artifact_close(&image->artifact);
    kri_artifact_close(&image->tables);
    kri_artifact_cache_deinit(&image->cache);
    kri_free(image->is_bad);
    kri_free(image->index);
    kri_free(image);
}

kr_status_t kri_image_find(struct kr_model_s *m, const kr_model_params_t *params,
                           kr_error_t *error) {
    if (params->cache_dir && !params->cache_dir[0]) return KR_OK;
    kri_image_t *image = kri_calloc(1, sizeof(*image), "image");
    if (!image || kri_artifact_cache_look(&image->cache, params->cache_dir) != KR_OK) {
        if (image) destroy(image);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory to look for the packed image");
    }
    if (!image->cache.dir) { /* said so in the log */
        destroy(image);
        return KR_OK;
    }
    kri_artifact_t record = {0};
    image->state = CHECKED;
    image->is_settled = true;
    m->image = image;
    make_record_key(m->gguf, image->record_key);
    if (kri_artifact_open(&image->cache, image->record_key, &record) != KR_OK) return KR_OK;
    image->is_recorded = record.index_bytes == 16;
    image->is_settled = record.is_settled;
    if (image->is_recorded) make_keys(image, record.index);
    kri_artifact_close(&record);
    if (image->is_recorded &&
        kri_artifact_open(&image->cache, image->tables_key, &image->tables) == KR_OK) {
        image->is_settled = image->is_settled && image->tables.is_settled;
    }
    return KR_OK;
}

const uint8_t *kri_image_tables(const struct kr_model_s *m, size_t *n_bytes) {
    if (!m->image || !m->image->tables.index) return NULL;
    *n_bytes = m->image->tables.index_bytes;
    return m->image->tables.index;
}

void kri_image_drop_tables(struct kr_model_s *m) {
    kri_image_t *image = m->image;
    kri_artifact_close(&image->tables);
    log_foreign(image->tables_key, kri_artifact_discard(&image->cache, image->tables_key));
}

static bool is_worth_it(const struct kr_model_s *m) {
    return m->packed_bytes >= KRI_IMAGE_BYTES_MIN;
}

kr_status_t kri_image_map(struct kr_model_s *m, kr_error_t *error) {
    kri_image_t *image = m->image;
    if (!image || !is_worth_it(m)) return KR_OK;
    image->n_blocks = kri_ceil_div(m->packed_bytes, BLOCK_BYTES);
    image->table_bytes = HEAD_BYTES + (size_t)m->n_packed_tensors * ROW_BYTES;
    image->index_bytes = image->table_bytes + image->n_blocks * 8;
    image->index = kri_calloc(image->index_bytes, 1, "image");
    image->is_bad = kri_calloc(image->n_blocks, 1, "image");
    if (!image->index || !image->is_bad)
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory to look for the packed image");
    fill_table(m, image->index);
    if (!image->is_recorded || !open_usable(image, m->packed_bytes, &image->artifact))
        return KR_OK;
    image->is_settled = image->is_settled && image->artifact.is_settled;
    for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m->packed_tensors[i];
        t->part->packed = image->artifact.data + t->offset;
    }
    atomic_store(&image->state, UNCHECKED);
    return KR_OK;
}

bool kri_image_is_mapped(const struct kr_model_s *m) {
    return m->image && m->image->artifact.data;
}

void kri_image_stop(struct kr_model_s *m) {
    kri_image_t *image = m->image;
    if (!image) return;
    atomic_store(&image->hurry, 1);
    kri_futex_wake(&image->hurry, 1);
    kri_background_join(image->background);
    image->background = NULL;
}

void kri_image_close(struct kr_model_s *m) {
    kri_image_stop(m);
    if (m->image) destroy(m->image);
    m->image = NULL;
}

/* ---- checking at first use ---------------------------------------------------------------- */

typedef struct blocks_run_s {
    struct kr_model_s *model;
    size_t begin, end; /* blocks, split over the threads */
} blocks_run_t;

static void check_thread(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const blocks_run_t *run = ctx;
    kri_image_t *image = run->model->image;
    const kri_artifact_t *a = &image->artifact;
    const uint8_t *hashes = a->index + image->table_bytes;
    uint64_t begin, end;
    kri_split(run->end - run->begin, 1, thread_index, n_threads, &begin, &end);
    for (size_t b = run->begin + (size_t)begin; b < run->begin + (size_t)end; b++) {
        if (block_hash(a->data, a->data_bytes, b) == get_u64(hashes + b * 8)) continue;
        image->is_bad[b] = 1;
        atomic_fetch_add(&image->n_bad, 1);
    }
}

static void copy_thread(void *ctx, uint32_t thread_index, uint32_t n_threads) {
    const blocks_run_t *run = ctx;
    const kri_artifact_t *a = &run->model->image->artifact;
    uint64_t begin, end;
    kri_split(run->end - run->begin, 1, thread_index, n_threads, &begin, &end);
    const size_t from = (run->begin + (size_t)begin) * BLOCK_BYTES;
    size_t to = (run->begin + (size_t)end) * BLOCK_BYTES;
    if (to > a->data_bytes) to = a->data_bytes;
    if (to > from) memcpy(run->model->packed + from, a->data + from, to - from);
}

/* Everything into the private block; mapped pages are given back batch by batch. */
static void leave_mapping(struct kr_model_s *m, kri_pool_t *pool, uint32_t n_threads) {
    const kri_image_t *image = m->image;
    const kri_artifact_t *a = &image->artifact;
    const size_t data_offset = (size_t)(a->data - a->map.data);
    for (size_t at = 0; at < image->n_blocks; at += COPY_BLOCKS) {
        const size_t end = at + COPY_BLOCKS < image->n_blocks ? at + COPY_BLOCKS
                                                              : image->n_blocks;
        blocks_run_t run = {m, at, end};
        kri_pool_run(pool, n_threads, copy_thread, &run);
        kri_map_release(&a->map, data_offset + at * BLOCK_BYTES, (end - at) * BLOCK_BYTES);
    }
    for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m->packed_tensors[i];
        t->part->packed = m->packed + t->offset;
    }
}

/* Packs the tensors of bad blocks from the model's file, which is the one the record names. */
static void repair(struct kr_model_s *m, kri_pool_t *pool, uint32_t n_threads) {
    const kri_image_t *image = m->image;
    uint32_t n_repaired = 0;
    for (uint32_t i = 0; i < m->n_packed_tensors; i++) {
        const kri_packed_tensor_t *t = &m->packed_tensors[i];
        bool is_bad = false;
        for (size_t b = t->offset / BLOCK_BYTES; b * BLOCK_BYTES < t->offset + t->n_bytes; b++)
            is_bad = is_bad || image->is_bad[b];
        if (!is_bad) continue;
        (void)kri_weights_pack(m, t, pool, n_threads, NULL, NULL); /* cannot be cancelled */
        n_repaired++;
    }
    const bool is_gone = kri_artifact_discard(&image->cache, image->key);
    kri_log(KR_LOG_WARN, "packed image: %u of %zu blocks are damaged: %u of %u tensors packed "
            "anew, file %s", atomic_load(&image->n_bad), image->n_blocks, n_repaired,
            m->n_packed_tensors, is_gone ? "removed" : "cannot be removed");
}

static kr_status_t check(struct kr_model_s *m, kri_pool_t *pool, uint32_t n_threads,
                         const uint32_t *cancel) {
    kri_image_t *image = m->image;
    while (image->n_done < image->n_blocks) {
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED)) return KR_E_CANCELLED;
        const size_t left = image->n_blocks - image->n_done;
        const size_t n = left < BATCH_BLOCKS ? left : BATCH_BLOCKS;
        blocks_run_t run = {m, image->n_done, image->n_done + n};
        kri_pool_run(pool, n_threads, check_thread, &run);
        image->n_done += n;
    }
    const kri_artifact_t *a = &image->artifact;
    const size_t data_offset = (size_t)(a->data - a->map.data);
    /* The rest of a last block has no huge page, and a few small ones may be had for other reasons:
     * what counts is the speed of the whole. */
    const size_t n_huge = kri_map_huge_bytes(&a->map, data_offset, a->data_bytes);
    if (n_huge < a->data_bytes / 8 * 7 - BLOCK_BYTES) leave_mapping(m, pool, n_threads);
    if (atomic_load(&image->n_bad) != 0) repair(m, pool, n_threads);
    return KR_OK;
}

static kr_status_t check_once(struct kr_model_s *m, kri_pool_t *pool, uint32_t n_threads,
                              const uint32_t *cancel) {
    kri_image_t *image = m->image;
    for (;;) {
        uint32_t state = UNCHECKED;
        if (atomic_load_explicit(&image->state, memory_order_acquire) == CHECKED) return KR_OK;
        if (atomic_compare_exchange_strong(&image->state, &state, CHECKING)) break;
        if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED)) return KR_E_CANCELLED;
        if (state == CHECKING) /* another session's; it wakes us, our caller's cancel does not */
            kri_futex_wait_ms(&image->state, CHECKING, CANCEL_MS);
    }
    const kr_status_t status = check(m, pool, n_threads, cancel);
    atomic_store(&image->state, status == KR_OK ? CHECKED : UNCHECKED);
    kri_futex_wake(&image->state, KRI_THREADS_MAX);
    return status;
}

kr_status_t kri_weights_begin(struct kr_model_s *m, kri_pool_t *pool, uint32_t n_threads,
                              const uint32_t *cancel) {
    if (!m->image) return KR_OK;
    atomic_fetch_add(&m->image->n_users, 1);
    const kr_status_t status = check_once(m, pool, n_threads, cancel);
    if (status != KR_OK) kri_weights_end(m);
    return status;
}

void kri_weights_end(struct kr_model_s *m) {
    if (!m->image) return;
    atomic_store_explicit(&m->image->used_ns, kri_clock_ns(), memory_order_relaxed);
    atomic_fetch_sub(&m->image->n_users, 1);
}

/* ---- writing, on the background thread ---------------------------------------------------- */

/* Whether the files are still those that were opened. */
static bool is_unchanged(const struct kr_model_s *m) {
    for (uint32_t i = 0; i < kri_gguf_n_parts(m->gguf); i++) {
        const kri_file_id_t *id = &kri_gguf_part_map(m->gguf, i)->id;
        if (kri_map_check(kri_gguf_part_path(m->gguf, i), id, NULL) != KR_OK) return false;
    }
    return true;
}

/* xxh3 of the bytes of all parts, canonical. False when told to hurry with much left, or when a
 * file is no longer the one that was packed. */
static bool hash_source(const struct kr_model_s *m, kri_image_t *image, uint8_t content[16]) {
    XXH3_state_t state;
    XXH128_canonical_t canonical;
    uint64_t n_left = 0; /* of all parts */
    const uint32_t n_parts = kri_gguf_n_parts(m->gguf);
    XXH3_128bits_reset(&state);
    for (uint32_t i = 0; i < n_parts; i++) n_left += kri_gguf_part_map(m->gguf, i)->size;
    for (uint32_t i = 0; i < n_parts; i++) {
        const kri_map_t *map = kri_gguf_part_map(m->gguf, i);
        for (size_t at = 0; at < map->size; at += SOURCE_STEP_BYTES) {
            const size_t left = map->size - at;
            const size_t n = left < SOURCE_STEP_BYTES ? left : SOURCE_STEP_BYTES;
            if (is_hurried(image) && n_left > KRI_ARTIFACT_HURRY_BYTES_MAX) return false;
            XXH3_128bits_update(&state, map->data + at, n);
            kri_map_release(map, at, n);
            n_left -= n;
        }
    }
    if (!is_unchanged(m)) return false;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
    memcpy(content, canonical.digest, 16);
    return true;
}

static kr_status_t write_image(const struct kr_model_s *m, kri_image_t *image,
                               kr_error_t *error) {
    kri_artifact_t found = {0};
    if (open_usable(image, m->packed_bytes, &found)) { /* of a copy of this file */
        kri_artifact_close(&found);
        return kri_artifact_settle(&image->cache, image->key, pace_of(image), error);
    }
    for (size_t b = 0; b < image->n_blocks; b++) {
        if (is_hurried(image) && m->packed_bytes > KRI_ARTIFACT_HURRY_BYTES_MAX)
            return KR_E_CANCELLED;
        put_u64(image->index + image->table_bytes + b * 8,
                block_hash(m->packed, m->packed_bytes, b));
    }
    const kri_artifact_content_t content = {image->index, m->packed, image->index_bytes,
                                            m->packed_bytes};
    return kri_artifact_write(&image->cache, image->key, &content, pace_of(image), error);
}

static kr_status_t write_tables(const struct kr_model_s *m, kri_image_t *image,
                                kr_error_t *error) {
    kri_artifact_t found = {0};
    if (kri_artifact_open(&image->cache, image->tables_key, &found) == KR_OK) { /* of a copy */
        kri_artifact_close(&found);
        return kri_artifact_settle(&image->cache, image->tables_key, pace_of(image), error);
    }
    kri_artifact_content_t content = {0};
    content.index = kri_tokenizer_tables(m->tokenizer, &content.index_bytes);
    (void)is_hurried(image); /* waits: these bytes are written at once */
    return kri_artifact_write(&image->cache, image->tables_key, &content, pace_of(image), error);
}

/* Whatever is missing; the record last: it promises the rest. */
static kr_status_t write_missing(const struct kr_model_s *m, kri_image_t *image,
                                 kr_error_t *error) {
    uint8_t content[16];
    size_t n_tables;
    if (!image->is_recorded) {
        if (!hash_source(m, image, content)) return KR_E_CANCELLED;
        make_keys(image, content);
    } else if (!is_unchanged(m)) {
        return KR_E_CANCELLED;
    }
    (void)kri_tokenizer_tables(m->tokenizer, &n_tables);
    /* Both or none: one must not push the other out. A block: headers and what is aligned. */
    if (m->packed_bytes + n_tables + BLOCK_BYTES > image->cache.max_bytes)
        return KRI_FAIL(error, KR_E_LIMIT, NULL, "%zu bytes are more than the cache may hold",
                        m->packed_bytes + n_tables);
    if (!image->artifact.data) KR_TRY(write_image(m, image, error));
    if (!image->tables.index) KR_TRY(write_tables(m, image, error));
    if (image->is_recorded) return KR_OK;
    const kri_artifact_content_t record = {content, NULL, sizeof(content), 0};
    return kri_artifact_write(&image->cache, image->record_key, &record, pace_of(image), error);
}

static void write_main(void *ctx) {
    const struct kr_model_s *m = ctx;
    kri_image_t *image = m->image;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = write_missing(m, image, &error);
    /* Busy: another process writes the same. Cancelled: the model was closed too early. */
    if (status != KR_OK && status != KR_E_BUSY && status != KR_E_CANCELLED) {
        /* Over the size that the caller gave the folder is his wish, not trouble. */
        kri_log(status == KR_E_LIMIT ? KR_LOG_INFO : KR_LOG_WARN, "packed image: not kept: %s",
                error.message);
    }
}

static void settle_main(void *ctx) {
    kri_image_t *image = ((const struct kr_model_s *)ctx)->image;
    /* No warning: the next process tries again. */
    (void)kri_artifact_settle(&image->cache, image->key, pace_of(image), NULL);
    (void)kri_artifact_settle(&image->cache, image->tables_key, pace_of(image), NULL);
    (void)kri_artifact_settle(&image->cache, image->record_key, pace_of(image), NULL);
}

void kri_image_write(struct kr_model_s *m, const kr_model_params_t *params) {
    kri_image_t *image = m->image;
    if (!image || !is_worth_it(m)) return;
    const bool is_whole = image->artifact.data && image->tables.index;
    if (is_whole && image->is_settled) return;
    if (!is_whole) {
        /* Until now the folder was only looked into. */
        kri_artifact_cache_deinit(&image->cache);
        const kr_status_t status = kri_artifact_cache_init(&image->cache, params->cache_dir,
                                                           params->cache_bytes_max);
        if (status != KR_OK || !image->cache.dir) return; /* said so in the log */
        atomic_store(&image->used_ns, kri_clock_ns());    /* the first step comes soon */
    }
    const kri_background_fn fn = is_whole ? settle_main : write_main;
    if (kri_background_start(fn, m, &image->background) != KR_OK && !is_whole)
        kri_log(KR_LOG_WARN, "packed image: not kept: cannot start a thread");
}

/* ---- kr_cache_verify ---------------------------------------------------------------------- */

typedef struct verify_s {
    kr_cache_fn fn;
    void *user;
    bool is_stopped;
} verify_t;

static kr_status_t verify_data(const kri_artifact_t *a) {
    const uint8_t *hashes = NULL;
    if (!a->data) return KR_OK; /* the index is all there is, and it was checked */
    KR_TRY(kri_image_index_check(a->index, a->index_bytes, a->data_bytes, &hashes));
    const size_t data_offset = (size_t)(a->data - a->map.data);
    for (size_t b = 0; b * BLOCK_BYTES < a->data_bytes; b++) {
        if (block_hash(a->data, a->data_bytes, b) != get_u64(hashes + b * 8)) return KR_E_CORRUPT;
        kri_map_release(&a->map, data_offset + b * BLOCK_BYTES, BLOCK_BYTES);
    }
    return KR_OK;
}

static int verify_one(const char *path, const kri_artifact_t *artifact, kr_status_t status,
                      void *user) {
    verify_t *verify = user;
    if (artifact) status = verify_data(artifact);
    verify->is_stopped =
        verify->fn(path, artifact ? artifact->map.size : 0, status, verify->user) != 0;
    return verify->is_stopped;
}

kr_status_t kri_image_verify_all(const char *dir, kr_cache_fn fn, void *user,
                                 kr_error_t *error) {
    kri_artifact_cache_t cache;
    verify_t verify = {fn, user, false};
    if (kri_artifact_cache_look(&cache, dir) != KR_OK)
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory to look into the cache");
    kr_status_t status = kri_artifact_each(&cache, verify_one, &verify, error);
    kri_artifact_cache_deinit(&cache);
    if (status == KR_OK && verify.is_stopped)
        status = KRI_FAIL(error, KR_E_CANCELLED, NULL, "checking the cache was stopped");
    return status;
}
