/* batch_file.c: see batch_file.h. */
#include "batch_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "batch.h"

#define READ_BYTES 65536u
#define SYNC_NS 1000000000ull

kr_status_t batch_fail_errno(const char *param, const char *path, int number, kr_error_t *error) {
    kr_status_t status = KR_E_IO;
    if (number == ENOENT) status = KR_E_NOT_FOUND;
    if (number == EACCES || number == EPERM || number == EROFS) status = KR_E_PERMISSION;
    if (number == ENOSPC || number == EDQUOT || number == EFBIG) status = KR_E_NOSPC;
    if (number == ENOMEM) status = KR_E_NOMEM;
    return KRI_FAIL(error, status, param, "%s: %s", path, strerror(number));
}

/* ---- lines ----------------------------------------------------------------------------------- */

void batch_lines_init(batch_lines_t *lines, int fd, size_t line_bytes_max) {
    *lines = (batch_lines_t){.fd = fd, .line_bytes_max = line_bytes_max};
    kri_buffer_init(&lines->buffer, line_bytes_max + READ_BYTES + 1);
}

void batch_lines_deinit(batch_lines_t *lines) { kri_buffer_deinit(&lines->buffer); }

/* More of the file behind what is there. */
static kr_status_t read_more(batch_lines_t *lines) {
    char piece[READ_BYTES];
    ssize_t n = 0;
    do {
        n = pread(lines->fd, piece, sizeof piece, (off_t)(lines->at + lines->buffer.n_bytes));
    } while (n < 0 && errno == EINTR);
    if (n < 0) return KR_E_IO;
    if (n == 0) lines->is_end = true;
    return kri_buffer_append(&lines->buffer, piece, (size_t)n);
}

kr_status_t batch_lines_next(batch_lines_t *lines, char **text, size_t *n_bytes, bool *is_whole) {
    kri_buffer_t *buffer = &lines->buffer;
    kri_buffer_consume(buffer, lines->n_given);
    lines->at += lines->n_given;
    lines->n_given = 0;
    *text = NULL;
    *n_bytes = 0;
    *is_whole = false;
    size_t n_seen = 0;
    for (;;) {
        char *newline = buffer->n_bytes > n_seen
            ? memchr(buffer->data + n_seen, '\n', buffer->n_bytes - n_seen) : NULL;
        if (newline != NULL) {
            *n_bytes = (size_t)(newline - buffer->data);
            *newline = '\0';
            *is_whole = true;
            break;
        }
        n_seen = buffer->n_bytes;
        if (n_seen > lines->line_bytes_max) return KR_E_LIMIT;
        if (lines->is_end) {
            if (n_seen == 0) return KR_OK;
            *n_bytes = n_seen;
            break;
        }
        KR_TRY(read_more(lines));
    }
    if (*n_bytes > lines->line_bytes_max) return KR_E_LIMIT;
    lines->n_given = *n_bytes + (*is_whole ? 1 : 0);
    lines->number++;
    *text = buffer->data;
    return KR_OK;
}

kr_status_t batch_read_at(int fd, uint64_t at, char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < n_bytes) {
        const ssize_t got = pread(fd, text + n, n_bytes - n, (off_t)(at + n));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return KR_E_IO;
        if (got == 0) return KR_E_TRUNCATED;
        n += (size_t)got;
    }
    text[n_bytes] = '\0';
    return KR_OK;
}

/* ---- custom_ids ------------------------------------------------------------------------------ */

void batch_index_init(batch_index_t *index) {
    *index = (batch_index_t){0};
    kri_buffer_init(&index->ids, (size_t)BATCH_LINES_MAX * (BATCH_ID_BYTES_MAX + 1));
}

void batch_index_deinit(batch_index_t *index) {
    free(index->entries);
    free(index->slots);
    kri_buffer_deinit(&index->ids);
    batch_index_init(index);
}

const char *batch_index_id(const batch_index_t *index, const batch_entry_t *entry) {
    return index->ids.data + entry->id_at;
}

static uint64_t hash_of(const char *id, size_t n_bytes) { /* FNV-1a, and a last mix */
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n_bytes; i++) hash = (hash ^ (unsigned char)id[i]) * 0x100000001b3u;
    return hash ^ hash >> 29;
}

/* The slot of an id, or the empty one where it would be. */
static uint32_t slot_of(const batch_index_t *index, const char *id, size_t id_bytes) {
    uint32_t at = (uint32_t)hash_of(id, id_bytes) & (index->n_slots - 1);
    for (; index->slots[at] != 0; at = (at + 1) & (index->n_slots - 1)) {
        const batch_entry_t *entry = &index->entries[index->slots[at] - 1];
        if (entry->id_bytes == id_bytes &&
            memcmp(batch_index_id(index, entry), id, id_bytes) == 0) {
            break;
        }
    }
    return at;
}

batch_entry_t *batch_index_find(const batch_index_t *index, const char *id, size_t id_bytes) {
    if (index->n_slots == 0) return NULL;
    const uint32_t found = index->slots[slot_of(index, id, id_bytes)];
    return found != 0 ? &index->entries[found - 1] : NULL;
}

static kr_status_t grow(batch_index_t *index) {
    const uint32_t n_max = index->n_entries_max ? index->n_entries_max * 2 : 256;
    batch_entry_t *entries = realloc(index->entries, n_max * sizeof *entries);
    if (entries == NULL) return KR_E_NOMEM;
    index->entries = entries;
    uint32_t *slots = calloc(n_max * 2, sizeof *slots);
    if (slots == NULL) return KR_E_NOMEM;
    free(index->slots);
    index->slots = slots;
    index->n_slots = n_max * 2;
    index->n_entries_max = n_max;
    for (uint32_t i = 0; i < index->n_entries; i++) {
        const batch_entry_t *entry = &entries[i];
        slots[slot_of(index, batch_index_id(index, entry), entry->id_bytes)] = i + 1;
    }
    return KR_OK;
}

kr_status_t batch_index_add(batch_index_t *index, const char *id, size_t id_bytes,
                            const batch_entry_t *entry) {
    if (index->n_entries >= BATCH_LINES_MAX) return KR_E_LIMIT;
    if (index->n_entries == index->n_entries_max) KR_TRY(grow(index));
    const size_t at = index->ids.n_bytes;
    KR_TRY(kri_buffer_append(&index->ids, id, id_bytes));
    KR_TRY(kri_buffer_append(&index->ids, "", 1));
    batch_entry_t *added = &index->entries[index->n_entries];
    *added = *entry;
    added->id_at = at;
    added->id_bytes = (uint32_t)id_bytes;
    index->slots[slot_of(index, id, id_bytes)] = ++index->n_entries;
    return KR_OK;
}

/* ---- lines of OUT ---------------------------------------------------------------------------- */

static const char line_begin[] = "{\"id\":\"" BATCH_ID_PREFIX;
#define ID_LETTERS 24u
static const char line_next[] = "\",\"custom_id\":\"";
#define BEGIN_BYTES (sizeof line_begin - 1)
#define NEXT_BYTES (sizeof line_next - 1)

bool batch_out_is_torn(const char *text, size_t n_bytes, bool is_alone) {
    const size_t n = n_bytes < BEGIN_BYTES ? n_bytes : BEGIN_BYTES;
    if (memcmp(text, line_begin, n) == 0) return n == BEGIN_BYTES || !is_alone;
    /* A file that grew before its data reached the disk reads as zeros. */
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] != '\0') return false;
    }
    return true;
}

/* The end of a JSON string that begins behind `at`: where its closing quote stands. */
static size_t string_end(const char *text, size_t at, size_t n_bytes) {
    while (at < n_bytes && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
    return at;
}

bool batch_out_read(const char *text, size_t n_bytes, kri_buffer_t *id) {
    const size_t n_head = BEGIN_BYTES + ID_LETTERS + NEXT_BYTES;
    static const char response[] = "\",\"response\":";
    kri_buffer_clear(id);
    if (n_bytes <= n_head || text[n_bytes - 1] != '}') return false;
    if (memcmp(text, line_begin, BEGIN_BYTES) != 0) return false;
    if (memcmp(text + BEGIN_BYTES + ID_LETTERS, line_next, NEXT_BYTES) != 0) return false;
    const size_t end = string_end(text, n_head, n_bytes);
    if (end >= n_bytes || n_bytes - end < sizeof response) return false;
    if (memcmp(text + end, response, sizeof response - 1) != 0) return false;
    json_t *value = json_loadb(text + n_head - 1, end - n_head + 2, JSON_DECODE_ANY, NULL);
    bool is_good = json_is_string(value) && json_string_length(value) > 0;
    is_good = is_good && kri_buffer_append(id, json_string_value(value),
                                           json_string_length(value)) == KR_OK;
    json_decref(value);
    return is_good;
}

/* ---- OUT as a log ---------------------------------------------------------------------------- */

/* The name of a new file must survive a power loss too. */
static void sync_folder(const char *path) {
    char folder[4096];
    const char *slash = strrchr(path, '/');
    const size_t n = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    if (n >= sizeof folder) return;
    memcpy(folder, path, n);
    folder[n] = '\0';
    const int fd = open(n > 0 ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    (void)close(fd);
}

kr_status_t batch_log_open(const char *path, batch_log_t *log, kr_error_t *error) {
    struct stat facts;
    *log = (batch_log_t){.fd = -1, .synced_ns = kri_clock_ns()};
    /* O_NONBLOCK: a FIFO must not hold us before we see that it is one. */
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0644);
    if (fd < 0) return batch_fail_errno("OUT", path, errno, error);
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        (void)close(fd);
        return KRI_FAIL(error, KR_E_INVALID_ARG, "OUT", "%s is not a regular file", path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        (void)close(fd);
        return KRI_FAIL(error, KR_E_BUSY, "OUT", "another process writes %s", path);
    }
    log->fd = fd;
    log->n_bytes = (uint64_t)facts.st_size;
    if (log->n_bytes == 0) sync_folder(path);
    return KR_OK;
}

kr_status_t batch_log_cut(batch_log_t *log, uint64_t n_bytes, kr_error_t *error) {
    if (n_bytes < log->n_bytes && ftruncate(log->fd, (off_t)n_bytes) != 0) {
        return batch_fail_errno("OUT", "OUT", errno, error);
    }
    log->n_bytes = n_bytes;
    return KR_OK;
}

kr_status_t batch_log_append(batch_log_t *log, const char *line, size_t n_bytes,
                             kr_error_t *error) {
    size_t n = 0;
    while (n < n_bytes) {
        const ssize_t done = pwrite(log->fd, line + n, n_bytes - n, (off_t)(log->n_bytes + n));
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            const int number = done < 0 ? errno : ENOSPC;
            (void)!ftruncate(log->fd, (off_t)log->n_bytes);
            return batch_fail_errno("OUT", "writing OUT", number, error);
        }
        n += (size_t)done;
    }
    log->n_bytes += n_bytes;
    log->is_dirty = true;
    return kri_clock_ns() - log->synced_ns >= SYNC_NS ? batch_log_sync(log, error) : KR_OK;
}

kr_status_t batch_log_sync(batch_log_t *log, kr_error_t *error) {
    if (!log->is_dirty) return KR_OK;
    if (fdatasync(log->fd) != 0) return batch_fail_errno("OUT", "writing OUT", errno, error);
    log->is_dirty = false;
    log->synced_ns = kri_clock_ns();
    return KR_OK;
}

void batch_log_close(batch_log_t *log) {
    if (log->fd >= 0) (void)close(log->fd);
    log->fd = -1;
}
