/* batch_file.h: the two files of a batch: lines read with a bound, the set of custom_ids, and OUT
 * as a log. */
#ifndef SERVER_BATCH_FILE_H
#define SERVER_BATCH_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "kr.h"

/* ---- lines ----------------------------------------------------------------------------------- */

typedef struct batch_lines_s {
    int fd;
    uint64_t at;               /* of the next line in the file */
    uint64_t number;           /* of the line that was read last, from 1 */
    size_t line_bytes_max;
    kri_buffer_t buffer;       /* read and not yet given out */
    size_t n_given;
    bool is_end;
} batch_lines_t;
void batch_lines_init(batch_lines_t *lines, int fd, size_t line_bytes_max);
void batch_lines_deinit(batch_lines_t *lines);
/* *text [*n_bytes] without the newline, followed by a NUL once the newline is dropped, valid until
 * the next call; NULL at the end. *is_whole: a newline ended it. KR_E_LIMIT: longer than
 * line_bytes_max. KR_E_IO, KR_E_NOMEM. */
kr_status_t batch_lines_next(batch_lines_t *lines, char **text, size_t *n_bytes, bool *is_whole);
/* Reads [n_bytes] at an offset into text, with a NUL behind. KR_E_TRUNCATED. */
kr_status_t batch_read_at(int fd, uint64_t at, char *text, size_t n_bytes);

/* ---- custom_ids ------------------------------------------------------------------------------ */

typedef struct batch_entry_s {
    uint64_t in_at, number;    /* of the line in IN */
    uint32_t in_bytes;
    uint32_t id_bytes;
    size_t id_at;              /* in the pool of ids */
    bool is_done;
} batch_entry_t;

typedef struct batch_index_s {
    batch_entry_t *entries;    /* [n_entries], in the order of IN */
    uint32_t n_entries, n_entries_max;
    uint32_t *slots;           /* [n_slots] index + 1 of an entry; 0 = empty */
    uint32_t n_slots;          /* power of two, at least twice n_entries */
    kri_buffer_t ids;
} batch_index_t;
void batch_index_init(batch_index_t *index);
void batch_index_deinit(batch_index_t *index);
const char *batch_index_id(const batch_index_t *index, const batch_entry_t *entry);
/* NULL: not there. */
batch_entry_t *batch_index_find(const batch_index_t *index, const char *id, size_t id_bytes);
/* One that is not there. KR_E_LIMIT (BATCH_LINES_MAX), KR_E_NOMEM. */
kr_status_t batch_index_add(batch_index_t *index, const char *id, size_t id_bytes,
                            const batch_entry_t *entry);

/* ---- OUT ------------------------------------------------------------------------------------- */

#define BATCH_ID_PREFIX "batch_req_"

/* The custom_id of a line that batch_run has written, into *id (emptied first). False: it is no
 * such line. */
bool batch_out_read(const char *text, size_t n_bytes, kri_buffer_t *id);
/* Whether this can be the beginning of such a line, cut short by a crash. is_alone: no whole line
 * stands before it, and a few bytes, as "{", do not tell it from a file of somebody else's. */
bool batch_out_is_torn(const char *text, size_t n_bytes, bool is_alone);

typedef struct batch_log_s {
    int fd;
    uint64_t n_bytes;          /* whole lines */
    uint64_t synced_ns;
    bool is_dirty;
} batch_log_t;
/* Opens or creates, and locks. n_bytes is that of the file. KR_E_BUSY, KR_E_INVALID_ARG (no regular
 * file), those of files. */
kr_status_t batch_log_open(const char *path, batch_log_t *log, kr_error_t *error);
/* Drops what is behind n_bytes and appends from there on. */
kr_status_t batch_log_cut(batch_log_t *log, uint64_t n_bytes, kr_error_t *error);
/* One line, with its newline, in one write where the system allows; on an error none of it stays.
 * Syncs when the last time is a second ago. */
kr_status_t batch_log_append(batch_log_t *log, const char *line, size_t n_bytes,
                             kr_error_t *error);
kr_status_t batch_log_sync(batch_log_t *log, kr_error_t *error);
void batch_log_close(batch_log_t *log);

/* The status of an errno, and its text as the message. */
kr_status_t batch_fail_errno(const char *param, const char *path, int number, kr_error_t *error);

#endif
