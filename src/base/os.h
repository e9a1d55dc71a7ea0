/* os.h: the only door to the operating system; implemented by os_<name>.c.
 * File errors are mapped: ENOENT -> KR_E_NOT_FOUND, EACCES -> KR_E_PERMISSION, ENOSPC ->
 * KR_E_NOSPC, ENOMEM -> KR_E_NOMEM, the rest KR_E_IO. Messages name the path. */
#ifndef KRI_BASE_OS_H
#define KRI_BASE_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kr.h"

typedef struct kri_file_id_s { uint64_t device, inode, size, mtime_ns; } kri_file_id_t;

typedef struct kri_map_s {
    const uint8_t *data; /* read-only, private mapping; NULL when size is 0 */
    size_t size;
    kri_file_id_t id;
} kri_map_t;

/* Maps a regular file. Folders, FIFOs, devices: KR_E_INVALID_ARG ("not a regular file"), without
 * blocking. Empty file: KR_OK with size 0. */
kr_status_t kri_map_open(const char *path, kri_map_t *map, kr_error_t *error);
void kri_map_close(kri_map_t *map);
/* Tells the system that this range of the mapping is not needed in memory now. */
void kri_map_release(const kri_map_t *map, size_t offset, size_t n_bytes);
/* As kri_map_open, at an address and with advice that let the system use huge pages. */
kr_status_t kri_map_open_huge(const char *path, kri_map_t *map, kr_error_t *error);
/* Bytes of this range that stand in this process's tables as huge pages; pages not yet touched do
 * not count. 0 where the system cannot tell (before Linux 6.7). */
#define KRI_HUGE_PAGE_BYTES ((size_t)2 << 20)
size_t kri_map_huge_bytes(const kri_map_t *map, size_t offset, size_t n_bytes);
/* KR_E_CHANGED if the file behind path no longer has this identity. */
kr_status_t kri_map_check(const char *path, const kri_file_id_t *id, kr_error_t *error);

/* Zeroed anonymous memory, page-aligned, huge pages asked for; not part of kr_memory_usage, but
 * the guard and failure injection apply. NULL on failure and on size 0. */
void *kri_pages_alloc(size_t n_bytes);
void kri_pages_free(void *ptr, size_t n_bytes);
/* Gives the memory of a range of kri_pages_alloc back; the range stays, and what lies wholly inside
 * it reads as zeros (the system's pages at both ends may keep their content). */
void kri_pages_discard(void *ptr, size_t n_bytes);

/* Whole small file read into a kri_alloc'd block (n_bytes_max bounds it: KR_E_LIMIT). A NUL that
 * n_bytes does not count follows the data, also when the file is empty. */
kr_status_t kri_file_read(const char *path, size_t n_bytes_max, void **data, size_t *n_bytes,
                          kr_error_t *error);
/* Writes path atomically: temporary name in the same folder (0600, O_EXCL), write, fsync, rename,
 * fsync of the folder; nothing is left behind on failure. Creates no folders. A killed process
 * can leave a file whose name begins with KRI_FILE_TEMP_PREFIX: cache cleaners remove those that
 * kri_lock_acquire gets at once, since a living writer holds a shared lock. */
#define KRI_FILE_TEMP_PREFIX ".kr-tmp-"
kr_status_t kri_file_write_atomic(const char *path, const void *data, size_t n_bytes,
                                  kr_error_t *error);
/* The same for files too large for one call. Pieces of KRI_HUGE_PAGE_BYTES at multiples of it let
 * the file system keep them as huge pages; what no piece covers is a hole of zeros. After an
 * error and after commit only discard may follow (a no-op then). */
typedef struct kri_file_writer_s {
    int dir, fd;
    char path[4096], temp[64]; /* path: for messages; temp: "" once it is gone */
} kri_file_writer_t;
kr_status_t kri_file_writer_open(const char *path, kri_file_writer_t *writer, kr_error_t *error);
kr_status_t kri_file_writer_put(kri_file_writer_t *writer, const void *data, size_t n_bytes,
                                uint64_t offset, kr_error_t *error);
/* fsync (when asked), then the rename to `name`, a file of the same folder. */
kr_status_t kri_file_writer_commit(kri_file_writer_t *writer, const char *name, bool is_synced,
                                   kr_error_t *error);
void kri_file_writer_discard(kri_file_writer_t *writer);
/* Sends a range of a file being written to the disk, and waits for it when asked. */
void kri_file_writer_flush(const kri_file_writer_t *writer, uint64_t offset, uint64_t n_bytes,
                           bool waits);
/* The writer of a file that is already there under `path`: for a later flush and commit. */
kr_status_t kri_file_writer_adopt(const char *path, kri_file_writer_t *writer, kr_error_t *error);
kr_status_t kri_dir_create(const char *path, kr_error_t *error); /* with parents, 0700 */
kr_status_t kri_file_remove(const char *path, kr_error_t *error);
kr_status_t kri_file_touch(const char *path);                    /* mtime = now */
/* Calls fn for each plain file of a folder (not recursive); fn returns non-zero to stop. */
typedef int (*kri_dir_fn)(const char *name, const kri_file_id_t *id, void *user);
kr_status_t kri_dir_list(const char *path, kri_dir_fn fn, void *user, kr_error_t *error);
/* Advisory exclusive lock on a file (created 0600); blocks at most timeout_ms (KR_E_TIMEOUT).
 * *lock >= 0 is released by kri_lock_release or by the death of the process. */
kr_status_t kri_lock_acquire(const char *path, uint32_t timeout_ms, int *lock, kr_error_t *error);
/* Shared lock on an existing file (opened for reading), without waiting: KR_E_BUSY while another
 * holds the exclusive one. Released like the exclusive lock. */
kr_status_t kri_lock_share(const char *path, int *lock, kr_error_t *error);
void kri_lock_release(int lock);

/* Environment: NULL when unset or empty. */
const char *kri_env(const char *name);
/* Physical cores this process may use: affinity mask, SMT siblings counted once, cgroup quota
 * rounded up; at least 1. */
uint32_t kri_cpu_count(void);
/* The same with every SMT sibling counted: how many threads can run at once. */
uint32_t kri_cpu_count_smt(void);
/* Asks the system once for the matrix registers (AMX) of all threads of this process; false when it
 * refuses or knows none. Later calls repeat the answer. */
bool kri_cpu_permit_tiles(void);
/* One CPU of each physical core in the calling thread's affinity mask, ascending; how many. */
uint32_t kri_cpu_places(uint32_t *cpus, uint32_t n_max);
/* Neither an affinity mask nor a CPU quota limits this thread. */
bool kri_cpu_is_unrestricted(void);
/* Spreads pages (of kri_pages_alloc, not yet touched) over the memory nodes that the calling
 * thread may run on. Returns the number of nodes: 1 = nothing was done. */
uint32_t kri_pages_interleave(void *ptr, size_t n_bytes);
uint64_t kri_rss_peak_bytes(void);
/* Bytes that this process may still take without swapping: what the system has available, and what
 * the memory limits of its cgroups leave. 0 when that cannot be read. */
uint64_t kri_memory_available(void);

uint64_t kri_process_id(void);
/* Sleeps at most timeout_ms while *word == expected (may wake early). */
void kri_futex_wait_ms(_Atomic uint32_t *word, uint32_t expected, uint32_t timeout_ms);

/* Futex: sleeps while *word == expected (may wake early) / wakes at most n_threads sleepers. */
void kri_futex_wait(_Atomic uint32_t *word, uint32_t expected);
void kri_futex_wake(_Atomic uint32_t *word, uint32_t n_threads);

/* A descriptor that is readable from set to clear; a second set changes nothing before a clear.
 * KR_E_IO, KR_E_NOMEM. */
kr_status_t kri_event_fd_create(int *fd);
void kri_event_fd_set(int fd);
void kri_event_fd_clear(int fd);
void kri_event_fd_destroy(int fd); /* negative: a no-op */

#ifdef KR_ASSERTIONS
/* Test builds only: writes one line to the error descriptor and aborts. */
void kri_panic(const char *text) __attribute__((noreturn));
#endif

/* A shared library of the system by its file name, or NULL; stays open for ever. */
void *kri_library_open(const char *name);
/* NULL where it has no such symbol. */
void *kri_library_symbol(void *library, const char *name);

#endif
