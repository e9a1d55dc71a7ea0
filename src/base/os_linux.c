/* os_linux.c: files, mappings, locks, sleeping and memory of Linux. Every open is non-blocking
 * and checked to be a regular file afterwards, so that a FIFO or a device given as a path is
 * refused instead of waited for. CPU counting is in os_linux_cpu.c. */
#define _GNU_SOURCE
#include "base/os.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"

#define PATH_BYTES 4096
/* The kernel moves at most 2 GiB per call; smaller pieces keep signals prompt. */
#define IO_PIECE_BYTES ((size_t)64 << 20)

static kr_status_t status_of(int os_error) {
    switch (os_error) {
    case ENOENT: return KR_E_NOT_FOUND;
    case ENOTDIR: return KR_E_NOT_FOUND;
    case EACCES: return KR_E_PERMISSION;
    case EPERM: return KR_E_PERMISSION;
    case EROFS: return KR_E_PERMISSION;
    case ENOSPC: return KR_E_NOSPC;
    case EDQUOT: return KR_E_NOSPC;
    case ENOMEM: return KR_E_NOMEM;
    default: return KR_E_IO;
    }
}

static kr_status_t fail_os(kr_error_t *error, int os_error, const char *what, const char *path) {
    char text[128];
    /* The GNU strerror_r: thread-safe and always a string. */
    const char *reason = strerror_r(os_error, text, sizeof text);
    return KRI_FAIL(error, status_of(os_error), "path", "%s: cannot %s: %s", path, what, reason);
}

static kr_status_t fail_not_regular(kr_error_t *error, const char *path) {
    return KRI_FAIL(error, KR_E_INVALID_ARG, "path", "%s: not a regular file", path);
}

static kri_file_id_t id_of(const struct stat *st) {
    const uint64_t ns = (uint64_t)st->st_mtim.tv_sec * UINT64_C(1000000000);
    return (kri_file_id_t){(uint64_t)st->st_dev, (uint64_t)st->st_ino, (uint64_t)st->st_size,
                           ns + (uint64_t)st->st_mtim.tv_nsec};
}

static kr_status_t open_regular(const char *path, int *fd, struct stat *st, kr_error_t *error) {
    int opened;
    do {
        opened = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    } while (opened < 0 && errno == EINTR);
    if (opened < 0 && errno == ENXIO) return fail_not_regular(error, path); /* a socket */
    if (opened < 0) return fail_os(error, errno, "open it", path);
    kr_status_t status = KR_OK;
    if (fstat(opened, st) != 0) status = fail_os(error, errno, "look at it", path);
    if (status == KR_OK && !S_ISREG(st->st_mode)) status = fail_not_regular(error, path);
    if (status != KR_OK) {
        close(opened);
        return status;
    }
    *fd = opened;
    return KR_OK;
}

/* ---- mappings ----------------------------------------------------------------------------- */

static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* Maps the file on a huge-page boundary: the kernel uses huge pages of its cache only where file
 * offset and address agree. NULL on failure. */
static void *map_aligned(int fd, size_t n_bytes) {
    size_t n_mapped;
    if (!kri_align_size(n_bytes, page_bytes(), &n_bytes) ||
        !kri_add_size(n_bytes, KRI_HUGE_PAGE_BYTES, &n_mapped)) {
        return MAP_FAILED;
    }
    char *base = mmap(NULL, n_mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return base;
    const size_t past = (uintptr_t)base % KRI_HUGE_PAGE_BYTES;
    const size_t n_before = past == 0 ? 0 : KRI_HUGE_PAGE_BYTES - past;
    if (n_before > 0) munmap(base, n_before);
    base += n_before;
    munmap(base + n_bytes, KRI_HUGE_PAGE_BYTES - n_before);
    void *data = mmap(base, n_bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    if (data == MAP_FAILED) munmap(base, n_bytes);
    else (void)madvise(data, n_bytes, MADV_HUGEPAGE);
    return data;
}

static kr_status_t map_file(const char *path, bool is_huge, kri_map_t *map, kr_error_t *error) {
    int fd;
    struct stat st;
    KR_TRY(open_regular(path, &fd, &st, error));
    kri_map_t opened = {NULL, (size_t)st.st_size, id_of(&st)};
    kr_status_t status = KR_OK;
    if (opened.size > 0) {
        void *data = is_huge ? map_aligned(fd, opened.size)
                             : mmap(NULL, opened.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            status = fail_os(error, errno, "map it", path);
        } else {
            opened.data = data;
        }
    }
    close(fd); /* the mapping keeps the file */
    if (status == KR_OK) *map = opened;
    return status;
}

kr_status_t kri_map_open(const char *path, kri_map_t *map, kr_error_t *error) {
    return map_file(path, false, map, error);
}

kr_status_t kri_map_open_huge(const char *path, kri_map_t *map, kr_error_t *error) {
    return map_file(path, true, map, error);
}

void kri_map_close(kri_map_t *map) {
    if (map->data != NULL) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}

/* Clips a range to the mapping; false when nothing is left. */
static bool clip(const kri_map_t *map, size_t offset, size_t *n_bytes) {
    if (map->data == NULL || offset >= map->size) return false;
    if (*n_bytes > map->size - offset) *n_bytes = map->size - offset;
    return *n_bytes > 0;
}

void kri_map_release(const kri_map_t *map, size_t offset, size_t n_bytes) {
    if (!clip(map, offset, &n_bytes)) return;
    const size_t page = page_bytes();
    /* Only whole pages: what shares a page with the range may still be in use. */
    const size_t begin = kri_ceil_div(offset, page) * page;
    size_t end = offset + n_bytes;
    if (end < map->size) end -= end % page;
    if (begin >= end) return;
    (void)madvise((void *)(uintptr_t)(map->data + begin), end - begin, MADV_DONTNEED);
}

/* The interface of PAGEMAP_SCAN (Linux 6.7), which older headers lack; see the kernel's
 * Documentation/admin-guide/mm/pagemap.rst. */
typedef struct page_region_s { uint64_t start, end, categories; } page_region_t;
typedef struct page_scan_s {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
} page_scan_t;
#define PAGE_SCAN_HUGE (UINT64_C(1) << 6)
#define PAGE_SCAN_IOCTL _IOWR('f', 16, page_scan_t)

size_t kri_map_huge_bytes(const kri_map_t *map, size_t offset, size_t n_bytes) {
    page_region_t regions[64];
    size_t n_huge = 0;
    if (!clip(map, offset, &n_bytes)) return 0;
    const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    const uint64_t page = page_bytes(), begin = (uint64_t)(uintptr_t)map->data + offset;
    page_scan_t scan = {.size = sizeof scan, .start = begin - begin % page,
                        .end = kri_ceil_div(begin + n_bytes, page) * page,
                        .vec = (uint64_t)(uintptr_t)regions,
                        .vec_len = sizeof regions / sizeof regions[0],
                        .category_mask = PAGE_SCAN_HUGE, .return_mask = PAGE_SCAN_HUGE};
    while (scan.start < scan.end) {
        const int n = ioctl(fd, PAGE_SCAN_IOCTL, &scan);
        if (n < 0 || scan.walk_end <= scan.start) break;
        for (int i = 0; i < n; i++) n_huge += (size_t)(regions[i].end - regions[i].start);
        scan.start = scan.walk_end;
    }
    close(fd);
    return n_huge;
}

kr_status_t kri_map_check(const char *path, const kri_file_id_t *id, kr_error_t *error) {
    struct stat st;
    if (stat(path, &st) != 0) return fail_os(error, errno, "look at it", path);
    const kri_file_id_t now = id_of(&st);
    if (now.device == id->device && now.inode == id->inode && now.size == id->size &&
        now.mtime_ns == id->mtime_ns) {
        return KR_OK;
    }
    return KRI_FAIL(error, KR_E_CHANGED, "path", "%s: the file was changed or replaced", path);
}

void *kri_pages_alloc(size_t n_bytes) {
    size_t n_total, n_mapped;
    if (n_bytes == 0 || !kri_align_size(n_bytes, page_bytes(), &n_total)) return NULL;
    if (!kri_alloc_allowed(n_bytes, "pages")) return NULL;
    /* Older kernels do not align large mappings for huge pages: map more and cut the ends off. */
    const size_t slack = n_total >= 2 * KRI_HUGE_PAGE_BYTES ? KRI_HUGE_PAGE_BYTES : 0;
    if (!kri_add_size(n_total, slack, &n_mapped)) return NULL;
    char *base = mmap(NULL, n_mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    if (slack > 0) {
        const size_t past = (uintptr_t)base % KRI_HUGE_PAGE_BYTES;
        const size_t n_before = past == 0 ? 0 : KRI_HUGE_PAGE_BYTES - past;
        if (n_before > 0) munmap(base, n_before);
        base += n_before;
        if (slack > n_before) munmap(base + n_total, slack - n_before);
        (void)madvise(base, n_total, MADV_HUGEPAGE);
    }
    return base;
}

void kri_pages_free(void *ptr, size_t n_bytes) {
    size_t n_total;
    if (ptr == NULL || !kri_align_size(n_bytes, page_bytes(), &n_total)) return;
    munmap(ptr, n_total);
}

void kri_pages_discard(void *ptr, size_t n_bytes) {
    const size_t unit = page_bytes();
    const size_t skip = (unit - (uintptr_t)ptr % unit) % unit;
    if (n_bytes <= skip) return;
    const size_t n_whole = (n_bytes - skip) / unit * unit;
    if (n_whole > 0) (void)madvise((char *)ptr + skip, n_whole, MADV_DONTNEED);
}

/* ---- files -------------------------------------------------------------------------------- */

/* Reads until n_bytes or the end of the file. */
static kr_status_t read_all(int fd, char *data, size_t n_bytes, size_t *n_read) {
    *n_read = 0;
    while (*n_read < n_bytes) {
        const size_t left = n_bytes - *n_read;
        const ssize_t n = read(fd, data + *n_read, left < IO_PIECE_BYTES ? left : IO_PIECE_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return status_of(errno);
        if (n == 0) break;
        *n_read += (size_t)n;
    }
    return KR_OK;
}

kr_status_t kri_file_read(const char *path, size_t n_bytes_max, void **data, size_t *n_bytes,
                          kr_error_t *error) {
    int fd = -1;
    struct stat st;
    char *block = NULL;
    size_t n_read = 0;
    kr_status_t status;
    KR_TRY(open_regular(path, &fd, &st, error));
    if ((uint64_t)st.st_size > n_bytes_max || (uint64_t)st.st_size >= SIZE_MAX) {
        status = KRI_FAIL(error, KR_E_LIMIT, "path", "%s: %lld bytes, at most %zu are read", path,
                          (long long)st.st_size, n_bytes_max);
        goto done;
    }
    block = kri_alloc((size_t)st.st_size + 1, "file");
    if (block == NULL) {
        status = KRI_FAIL(error, KR_E_NOMEM, "path", "%s: no memory to read it", path);
        goto done;
    }
    status = read_all(fd, block, (size_t)st.st_size, &n_read);
    if (status != KR_OK) {
        status = fail_os(error, errno, "read it", path);
        goto done;
    }
    block[n_read] = '\0';
    *data = block;
    *n_bytes = n_read;
    block = NULL;
done:
    kri_free(block);
    close(fd);
    return status;
}

static int write_all(int fd, const char *data, size_t n_bytes, off_t offset) {
    while (n_bytes > 0) {
        const ssize_t n = pwrite(fd, data, n_bytes < IO_PIECE_BYTES ? n_bytes : IO_PIECE_BYTES,
                                 offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        data += n;
        offset += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

/* Opens the folder that holds path (fd) and points *name at the last part of path. */
static kr_status_t open_parent(const char *path, int *fd, const char **name, kr_error_t *error) {
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    const size_t n_dir = (size_t)(base - path); /* with the slash, so that "/x" gives "/" */
    char dir[PATH_BYTES];
    if (n_dir >= sizeof dir) return fail_os(error, ENAMETOOLONG, "write it", path);
    memcpy(dir, n_dir > 0 ? path : ".", n_dir > 0 ? n_dir : 1);
    dir[n_dir > 0 ? n_dir : 1] = '\0';
    if (base[0] == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0) {
        return fail_not_regular(error, path);
    }
    *fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0) return fail_os(error, errno, "open its folder", path);
    *name = base;
    return KR_OK;
}

/* A new file in the folder; the number makes names differ between threads, the process id between
 * processes, and what a killed process of the same id left is stepped over. Its shared lock tells
 * cache cleaners that the writer lives; where the file system has no locks there is none. */
static int open_temp(int dir, char name[64]) {
    static _Atomic uint32_t next;
    int fd = -1;
    for (int attempt = 0; attempt < 1000; attempt++) {
        (void)snprintf(name, 64, KRI_FILE_TEMP_PREFIX "%ld-%u", (long)getpid(),
                       (unsigned)atomic_fetch_add(&next, 1));
        fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 && errno != EEXIST && errno != EINTR) break;
        struct stat st;
        if (fd < 0) continue;
        /* A cleaner that holds it will remove it, or has. */
        const bool is_cleaned = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
        if (!is_cleaned && (fstat(fd, &st) != 0 || st.st_nlink > 0)) break;
        close(fd);
        fd = -1;
        errno = EEXIST;
    }
    return fd;
}

kr_status_t kri_file_writer_open(const char *path, kri_file_writer_t *writer,
                                 kr_error_t *error) {
    const char *name = NULL;
    writer->dir = writer->fd = -1;
    writer->temp[0] = '\0';
    KR_TRY(open_parent(path, &writer->dir, &name, error));
    (void)snprintf(writer->path, sizeof writer->path, "%s", path);
    writer->fd = open_temp(writer->dir, writer->temp);
    if (writer->fd >= 0) return KR_OK;
    const int os_error = errno;
    writer->temp[0] = '\0';
    kri_file_writer_discard(writer);
    return fail_os(error, os_error, "create a file beside it", path);
}

kr_status_t kri_file_writer_adopt(const char *path, kri_file_writer_t *writer,
                                  kr_error_t *error) {
    const char *name = NULL;
    writer->dir = writer->fd = -1;
    writer->temp[0] = '\0';
    KR_TRY(open_parent(path, &writer->dir, &name, error));
    (void)snprintf(writer->path, sizeof writer->path, "%s", path);
    int os_error = strlen(name) < sizeof writer->temp ? 0 : ENAMETOOLONG;
    if (os_error == 0) {
        writer->fd = openat(writer->dir, name, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
        if (writer->fd < 0) os_error = errno;
    }
    if (os_error == 0) {
        memcpy(writer->temp, name, strlen(name) + 1);
        return KR_OK;
    }
    kri_file_writer_discard(writer);
    return fail_os(error, os_error, "open it", path);
}

kr_status_t kri_file_writer_put(kri_file_writer_t *writer, const void *data, size_t n_bytes,
                                uint64_t offset, kr_error_t *error) {
    const int os_error = write_all(writer->fd, data, n_bytes, (off_t)offset);
    return os_error == 0 ? KR_OK : fail_os(error, os_error, "write it", writer->path);
}

void kri_file_writer_flush(const kri_file_writer_t *writer, uint64_t offset, uint64_t n_bytes,
                           bool waits) {
    unsigned flags = SYNC_FILE_RANGE_WRITE;
    if (waits) flags |= SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER;
    /* Only a hint: commit's fsync is what counts and what reports errors. */
    (void)sync_file_range(writer->fd, (off_t)offset, (off_t)n_bytes, flags);
}

kr_status_t kri_file_writer_commit(kri_file_writer_t *writer, const char *name, bool is_synced,
                                   kr_error_t *error) {
    const char *what = "write it";
    int os_error = is_synced && fsync(writer->fd) != 0 ? errno : 0;
    const int lock = fcntl(writer->fd, F_DUPFD_CLOEXEC, 0); /* no cleaner before the rename */
    if (close(writer->fd) != 0 && os_error == 0) os_error = errno; /* NFS reports here */
    writer->fd = -1;
    if (os_error == 0 && renameat(writer->dir, writer->temp, writer->dir, name) != 0) {
        os_error = errno;
        what = "replace it";
    }
    if (lock >= 0) close(lock);
    if (os_error == 0) {
        writer->temp[0] = '\0';
        /* The content is complete and in place; some file systems cannot sync a folder. */
        if (is_synced && fsync(writer->dir) != 0 && errno != EINVAL && errno != ENOTSUP) {
            os_error = errno;
        }
    }
    kri_file_writer_discard(writer);
    return os_error == 0 ? KR_OK : fail_os(error, os_error, what, writer->path);
}

void kri_file_writer_discard(kri_file_writer_t *writer) {
    if (writer->fd >= 0) close(writer->fd);
    if (writer->temp[0] != '\0') unlinkat(writer->dir, writer->temp, 0);
    if (writer->dir >= 0) close(writer->dir);
    writer->dir = writer->fd = -1;
    writer->temp[0] = '\0';
}

kr_status_t kri_file_write_atomic(const char *path, const void *data, size_t n_bytes,
                                  kr_error_t *error) {
    kri_file_writer_t writer;
    KR_TRY(kri_file_writer_open(path, &writer, error));
    const char *slash = strrchr(path, '/');
    kr_status_t status = kri_file_writer_put(&writer, data, n_bytes, 0, error);
    if (status == KR_OK) {
        status = kri_file_writer_commit(&writer, slash != NULL ? slash + 1 : path, true, error);
    }
    kri_file_writer_discard(&writer);
    return status;
}

kr_status_t kri_dir_create(const char *path, kr_error_t *error) {
    char part[PATH_BYTES];
    const size_t n_bytes = strlen(path);
    if (n_bytes == 0) return fail_os(error, ENOENT, "create it", path);
    if (n_bytes >= sizeof part) return fail_os(error, ENAMETOOLONG, "create it", "(long path)");
    for (size_t i = 1; i <= n_bytes; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0700) == 0) continue;
        /* What exists already may answer EEXIST, but also EROFS or EACCES. */
        const int os_error = errno;
        struct stat st;
        if (stat(part, &st) != 0) return fail_os(error, os_error, "create it", part);
        if (!S_ISDIR(st.st_mode)) {
            return KRI_FAIL(error, KR_E_EXISTS, "path", "%s: exists and is no folder", part);
        }
    }
    return KR_OK;
}

kr_status_t kri_file_remove(const char *path, kr_error_t *error) {
    return unlink(path) == 0 ? KR_OK : fail_os(error, errno, "remove it", path);
}

kr_status_t kri_file_touch(const char *path) {
    return utimensat(AT_FDCWD, path, NULL, 0) == 0 ? KR_OK : status_of(errno);
}

kr_status_t kri_dir_list(const char *path, kri_dir_fn fn, void *user, kr_error_t *error) {
    DIR *dir = opendir(path);
    if (dir == NULL && errno == ENOTDIR)
        return KRI_FAIL(error, KR_E_INVALID_ARG, "path", "%s: no folder", path);
    if (dir == NULL) return fail_os(error, errno, "list it", path);
    kr_status_t status = KR_OK;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            if (errno != 0) status = fail_os(error, errno, "list it", path);
            break;
        }
        struct stat st;
        /* An entry may be gone again; that is no error of the listing. */
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (!S_ISREG(st.st_mode)) continue;
        const kri_file_id_t id = id_of(&st);
        if (fn(entry->d_name, &id, user) != 0) break;
    }
    closedir(dir);
    return status;
}

/* ---- locks -------------------------------------------------------------------------------- */

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, (ms % 1000) * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &time, &time) == EINTR) {
    }
}

/* 1: locked; 0: held by another, or the file was removed meanwhile; -1: *os_error is set. */
static int try_lock(const char *path, int *lock, int *os_error) {
    const int fd = open(path, O_RDWR | O_CREAT | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0600);
    struct stat ours, theirs;
    int result = -1;
    if (fd < 0) {
        *os_error = errno;
        return *os_error == EINTR ? 0 : -1;
    }
    if (fstat(fd, &ours) != 0) {
        *os_error = errno;
    } else if (!S_ISREG(ours.st_mode)) {
        *os_error = EINVAL;
    } else if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        *os_error = errno;
        result = *os_error == EWOULDBLOCK || *os_error == EINTR ? 0 : -1;
    } else if (stat(path, &theirs) != 0 || theirs.st_ino != ours.st_ino ||
               theirs.st_dev != ours.st_dev) {
        result = 0; /* removed between open and lock: a lock on it excludes nobody */
    } else {
        *lock = fd;
        return 1;
    }
    close(fd);
    return result;
}

kr_status_t kri_lock_acquire(const char *path, uint32_t timeout_ms, int *lock, kr_error_t *error) {
    const uint64_t start_ns = kri_clock_ns();
    long pause_ms = 1;
    for (;;) {
        int os_error = 0;
        const int result = try_lock(path, lock, &os_error);
        if (result > 0) return KR_OK;
        if (result < 0 && os_error == EINVAL) return fail_not_regular(error, path);
        if (result < 0 && os_error == EISDIR) return fail_not_regular(error, path);
        if (result < 0) return fail_os(error, os_error, "lock it", path);
        const uint64_t waited_ms = (kri_clock_ns() - start_ns) / 1000000;
        if (waited_ms >= timeout_ms) {
            return KRI_FAIL(error, KR_E_TIMEOUT, "path", "%s: locked by another for %u ms", path,
                            (unsigned)timeout_ms);
        }
        const long left_ms = (long)(timeout_ms - waited_ms);
        sleep_ms(pause_ms < left_ms ? pause_ms : left_ms);
        if (pause_ms < 20) pause_ms *= 2;
    }
}

kr_status_t kri_lock_share(const char *path, int *lock, kr_error_t *error) {
    int fd = -1;
    struct stat st;
    KR_TRY(open_regular(path, &fd, &st, error));
    if (flock(fd, LOCK_SH | LOCK_NB) == 0) {
        *lock = fd;
        return KR_OK;
    }
    const int os_error = errno;
    close(fd);
    if (os_error == EWOULDBLOCK)
        return KRI_FAIL(error, KR_E_BUSY, "path", "%s: locked by another", path);
    return fail_os(error, os_error, "lock it", path);
}

void kri_lock_release(int lock) {
    if (lock < 0) return;
    (void)flock(lock, LOCK_UN); /* also when a child process still holds the descriptor */
    close(lock);
}

/* ---- process ------------------------------------------------------------------------------ */

const char *kri_env(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

uint64_t kri_rss_peak_bytes(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
    return (uint64_t)usage.ru_maxrss * 1024;
}

uint64_t kri_process_id(void) { return (uint64_t)getpid(); }

void kri_futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

void kri_futex_wait_ms(_Atomic uint32_t *word, uint32_t expected, uint32_t timeout_ms) {
    const struct timespec time = {timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &time, NULL, 0);
}

void kri_futex_wake(_Atomic uint32_t *word, uint32_t n_threads) {
    const uint32_t n = n_threads < INT32_MAX ? n_threads : INT32_MAX;
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

#ifdef KR_ASSERTIONS
void kri_panic(const char *text) {
    const struct iovec parts[] = {{(void *)(uintptr_t)text, strlen(text)}, {"\n", 1}};
    (void)!writev(STDERR_FILENO, parts, 2);
    abort();
}
#endif
