/* faults.h: T4, fault injection. A scenario is an operation through kr.h that cleans up after
 * itself. It runs with the k-th call of a family failing, once and from then on, for k = 1, 2, ...
 * until a run meets no failure. Each run must end in a documented status with a filled error and
 * untouched outputs, leave heap, mappings, descriptors and temporary files as they were, never give
 * a wrong answer with KR_OK, and succeed when it is simply done again.
 *
 * Two families: HEAP (kri_alloc_fail: every allocation of the C side and every request for pages)
 * and SYSTEM (calls of the operating system, wrapped by the linker: --wrap in cmake/tests.cmake).
 * Background threads take part, so the k-th call is not the same one in every run; that is why
 * only documented outcomes are asked for and not a fixed one for each k. Allocations of the text
 * library (Rust) are out of reach: they end the process (docs/decisions/0002). */
#ifndef KR_TEST_FAULTS_H
#define KR_TEST_FAULTS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "tensor/tensor_pool.h"
#include "tiny.h"

/* ---- the system calls --------------------------------------------------------------------- */

static _Atomic uint64_t system_left; /* 0: off; 1: the next one fails */
static _Atomic bool system_forever;
static _Atomic uint64_t system_hits;
static _Atomic int64_t mapped_bytes; /* by all mmap and munmap of this program's own code */

static inline bool system_fails(int code) {
    uint64_t left = atomic_load(&system_left);
    while (left != 0) {
        const uint64_t next = left == 1 && atomic_load(&system_forever) ? 1 : left - 1;
        if (!atomic_compare_exchange_weak(&system_left, &left, next)) continue;
        if (left != 1) return false;
        atomic_fetch_add(&system_hits, 1);
        errno = code;
        return true;
    }
    return false;
}

static inline int64_t in_pages(size_t n_bytes) { return (int64_t)((n_bytes + 4095) / 4096 * 4096); }

/* Counting the cores opens dozens of files whose failure means a default. Where that would be most
 * of all points, FAULTS_SPARE_PROBES leaves /sys and /proc alone. */
#ifdef FAULTS_SPARE_PROBES
#define PROBES_ARE_SPARED true
#else
#define PROBES_ARE_SPARED false
#endif
enum { FDS_MAX = 1024 };
static _Atomic bool is_probe[FDS_MAX]; /* descriptors of such files */

static inline int mark_probe(int fd, bool value) {
    if (fd >= 0 && fd < FDS_MAX) atomic_store(&is_probe[fd], value);
    return fd;
}

#define WRAPPED(type, name, params, args, code, failure)                                         \
    type __real_##name params;                                                                   \
    type __wrap_##name params;                                                                   \
    type __wrap_##name params { return system_fails(code) ? (failure) : __real_##name args; }

WRAPPED(ssize_t, pwrite, (int fd, const void *buf, size_t n, off_t at), (fd, buf, n, at), ENOSPC,
        -1)
WRAPPED(int, fsync, (int fd), (fd), EIO, -1)
WRAPPED(int, flock, (int fd, int how), (fd, how), ENOLCK, -1)
WRAPPED(int, fstat, (int fd, struct stat *st), (fd, st), EIO, -1)
WRAPPED(int, stat, (const char *path, struct stat *st), (path, st), EACCES, -1)
WRAPPED(int, mkdir, (const char *path, mode_t mode), (path, mode), ENOSPC, -1)
WRAPPED(int, renameat, (int from, const char *old, int to, const char *name),
        (from, old, to, name), EIO, -1)
WRAPPED(DIR *, opendir, (const char *path), (path), EMFILE, NULL)
int __real_eventfd(unsigned count, int flags);
int __wrap_eventfd(unsigned count, int flags);
int __wrap_eventfd(unsigned count, int flags) {
    if (system_fails(EMFILE)) return -1;
    return mark_probe(__real_eventfd(count, flags), false);
}
WRAPPED(int, pthread_create,
        (pthread_t * thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg),
        (thread, attr, fn, arg), EAGAIN, EAGAIN)

int __real_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, mode_t mode) {
    const bool is_spared = PROBES_ARE_SPARED && (strncmp(path, "/sys/", 5) == 0 ||
                                                 strncmp(path, "/proc/", 6) == 0);
    if (!is_spared && system_fails(EMFILE)) return -1;
    return mark_probe(__real_open(path, flags, mode), is_spared);
}
ssize_t __real_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n) {
    const bool is_spared = fd >= 0 && fd < FDS_MAX && atomic_load(&is_probe[fd]);
    return !is_spared && system_fails(EIO) ? -1 : __real_read(fd, buf, n);
}
int __real_openat(int dir, const char *path, int flags, mode_t mode);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode);
int __wrap_openat(int dir, const char *path, int flags, mode_t mode) {
    if (system_fails(EMFILE)) return -1;
    return mark_probe(__real_openat(dir, path, flags, mode), false);
}
void *__real_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
    if (system_fails(ENOMEM)) return MAP_FAILED;
    void *ptr = __real_mmap(at, n, prot, flags, fd, offset);
    /* MAP_FIXED replaces what was counted already. */
    if (ptr != MAP_FAILED && !(flags & MAP_FIXED)) atomic_fetch_add(&mapped_bytes, in_pages(n));
    return ptr;
}
int __real_munmap(void *ptr, size_t n);
int __wrap_munmap(void *ptr, size_t n);
int __wrap_munmap(void *ptr, size_t n) {
    const int result = __real_munmap(ptr, n);
    if (result == 0) atomic_fetch_sub(&mapped_bytes, in_pages(n));
    return result;
}

/* ---- the world of a scenario -------------------------------------------------------------- */

typedef struct world_s {
    char dir[64], path[96], cache[96];
    kr_model_t model;
    kr_session_t session;
    kr_error_t error;
    uint64_t digest;     /* of what a run gave out */
    const char *wrong;   /* first expectation that a run did not meet */
    void *own;           /* of the scenario */
} world_t;

typedef struct scenario_s {
    const char *preset;            /* tiny model written to world.path */
    void (*enter)(world_t *w);     /* once */
    void (*reset)(world_t *w);     /* before each run but not before the one that is done again */
    kr_status_t (*run)(world_t *w);
    void (*leave)(world_t *w);
    kr_status_t clean;             /* how an untouched run ends */
    bool degrades;                 /* a failure may be got over: `clean` is documented then too */
} scenario_t;

static inline void expect(world_t *w, bool holds, const char *what) {
    if (!holds && w->wrong == NULL) w->wrong = what;
}

static inline void digest(world_t *w, const void *data, size_t n_bytes) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n_bytes; i++) {
        w->digest = (w->digest ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
}

/* A fresh error for a call. */
static inline kr_error_t *error_of(world_t *w) {
    kr_error_init(&w->error);
    return &w->error;
}

/* After a call that takes error_of(w) and makes the handle that `at` points to. */
static inline kr_status_t made(world_t *w, kr_status_t status, const void *at) {
    const void *handle;
    memcpy(&handle, at, sizeof handle);
    if (status != KR_OK) {
        expect(w, w->error.code == status, "the error's code is the status");
        expect(w, w->error.message[0] != '\0', "the error has a message");
        expect(w, handle == NULL, "a failed call leaves its output alone");
    } else {
        expect(w, handle != NULL, "a successful call gives a handle");
        expect(w, w->error.code == KR_OK, "a successful call sets no error");
    }
    return status;
}

static inline void remove_tree(const char *path) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf %s", path);
    assert_int_equal(system(command), 0);
}

static inline void write_tiny(const world_t *w, const char *preset) {
    const tiny_config_t config = tiny_config(preset);
    gguf_bytes_t file = tiny_model(&config);
    assert_int_equal(gguf_write(&file, w->path), 0);
    free(file.data);
}

static inline void params_of(const world_t *w, kr_model_params_t *params, bool is_cached) {
    kr_model_params_init(params);
    params->n_threads = 2;
    params->cache_dir = is_cached ? w->cache : "";
}

/* For enter: the model of a scenario that is not about opening. */
static inline void open_world_model(world_t *w) {
    kr_model_params_t params;
    params_of(w, &params, false);
    if (kr_model_open(w->path, &params, &w->model, error_of(w)) != KR_OK) {
        fail_msg("%s", w->error.message);
    }
}

/* ---- what may not leak -------------------------------------------------------------------- */

typedef struct holdings_s {
    uint64_t heap_bytes;
    int64_t mapped;
    int n_fds, n_temps;
} holdings_t;

static inline int count_entries(const char *path, const char *prefix) {
    int n = 0;
    DIR *folder = opendir(path);
    if (folder == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        n += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    }
    closedir(folder);
    return n;
}

static inline holdings_t holdings_of(const world_t *w) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    kri_tensor_pool_trim();
    assert_status(kr_memory_usage(&usage), KR_OK);
    return (holdings_t){usage.bytes_now, atomic_load(&mapped_bytes),
                        count_entries("/proc/self/fd", ""),
                        count_entries(w->cache, ".kr-tmp-") + count_entries(w->dir, ".kr-tmp-")};
}

/* ---- the loop ----------------------------------------------------------------------------- */

typedef enum family_e { HEAP, SYSTEM, N_FAMILIES } family_t;

static inline void arm(family_t family, uint64_t k, bool forever) {
    if (family == HEAP) {
        (void)kri_alloc_fail(k, forever);
        return;
    }
    atomic_store(&system_hits, 0);
    atomic_store(&system_forever, forever);
    atomic_store(&system_left, k);
}

/* How many calls failed. */
static inline uint64_t disarm(family_t family) {
    if (family == HEAP) return kri_alloc_fail(0, false);
    atomic_store(&system_left, 0);
    return atomic_load(&system_hits);
}

static inline bool is_documented(const scenario_t *scenario, family_t family, kr_status_t status) {
    /* Of the system much is advice: counting cores, asking for huge pages, keeping files. */
    if (status == scenario->clean) return scenario->degrades || family == SYSTEM;
    if (status == KR_E_NOMEM) return true;
    return family == SYSTEM && (status == KR_E_IO || status == KR_E_NOSPC ||
                                status == KR_E_PERMISSION || status == KR_E_LIMIT);
}

typedef struct torture_s {
    world_t *world;
    const scenario_t *scenario;
    family_t family;
    bool forever;
    uint64_t k;
    uint64_t digest; /* of a clean run */
    holdings_t before;
} torture_t;

static inline void complain(const torture_t *t, const char *when, const char *what) {
    static const char *const families[] = {"allocation", "system call"};
    fail_msg("%s, with %s %llu failing %s: %s", when, families[t->family],
             (unsigned long long)t->k, t->forever ? "from then on" : "once", what);
}

static inline kr_status_t run_once(torture_t *t) {
    t->world->digest = UINT64_C(0xcbf29ce484222325);
    t->world->wrong = NULL;
    return t->scenario->run(t->world);
}

/* Compares with what was held before, once it has settled: the last event of a request comes a
 * little before its memory goes. For the same reason the first measurement may be too high. */
static inline void check_holdings(torture_t *t, const char *when) {
    holdings_t now = holdings_of(t->world);
    for (int i = 0; i < 60000 && memcmp(&now, &t->before, sizeof now) != 0; i++) {
        usleep(1000);
        now = holdings_of(t->world);
        if (i < 100 || now.heap_bytes > t->before.heap_bytes) continue;
        t->before.heap_bytes = now.heap_bytes;
    }
    if (memcmp(&now, &t->before, sizeof now) == 0) return;
    char text[200];
    snprintf(text, sizeof text,
             "left behind: %lld bytes, %lld mapped, %d descriptors, %d temporary files",
             (long long)(now.heap_bytes - t->before.heap_bytes),
             (long long)(now.mapped - t->before.mapped), now.n_fds - t->before.n_fds,
             now.n_temps - t->before.n_temps);
    complain(t, when, text);
}

static inline void check_run(torture_t *t, const char *when, kr_status_t status) {
    if (t->world->wrong != NULL) complain(t, when, t->world->wrong);
    if (status == t->scenario->clean && t->world->digest != t->digest) {
        complain(t, when, "a wrong answer");
    }
    check_holdings(t, when);
}

/* False when no call failed: the end of the loop. */
static inline bool torture_at(torture_t *t) {
    if (t->scenario->reset) t->scenario->reset(t->world);
    arm(t->family, t->k, t->forever);
    const kr_status_t status = run_once(t);
    const uint64_t n_hits = disarm(t->family);
    check_run(t, "under injection", status);
    if (n_hits == 0 ? status != t->scenario->clean
                    : !is_documented(t->scenario, t->family, status)) {
        complain(t, "under injection", kr_status_name(status));
    }
    if (n_hits == 0) return false;
    const kr_status_t again = run_once(t);
    if (again != t->scenario->clean) complain(t, "done again after it", kr_status_name(again));
    check_run(t, "done again after it", again);
    return true;
}

static inline uint64_t torture_family(torture_t *t) {
    uint64_t n_points = 0;
    for (int forever = 0; forever < 2; forever++) {
        t->forever = forever != 0;
        for (t->k = 1; torture_at(t); t->k++) {
            n_points++;
            assert_true(t->k < 20000);
        }
    }
    return n_points;
}

static inline void torture(const char *name, const scenario_t *scenario) {
    world_t world = {.dir = "/tmp/kr-faults-XXXXXX"};
    assert_non_null(mkdtemp(world.dir));
    snprintf(world.path, sizeof world.path, "%s/model.gguf", world.dir);
    snprintf(world.cache, sizeof world.cache, "%s/cache", world.dir);
    write_tiny(&world, scenario->preset ? scenario->preset : "llama");
    if (scenario->enter) scenario->enter(&world);
    torture_t t = {.world = &world, .scenario = scenario};
    /* The first run starts what stays for the life of the process, such as worker threads. */
    for (int i = 0; i < 2; i++) {
        if (scenario->reset) scenario->reset(&world);
        t.before = holdings_of(&world);
        const kr_status_t status = run_once(&t);
        t.digest = world.digest;
        if (status != scenario->clean) complain(&t, "untouched", kr_status_name(status));
        if (world.wrong != NULL) complain(&t, "untouched", world.wrong);
    }
    check_run(&t, "untouched", scenario->clean);
    uint64_t n_points[N_FAMILIES];
    for (t.family = 0; t.family < N_FAMILIES; t.family++) n_points[t.family] = torture_family(&t);
    print_message("%s: %llu points in the heap, %llu in the system\n", name,
                  (unsigned long long)n_points[HEAP], (unsigned long long)n_points[SYSTEM]);
    if (scenario->leave) scenario->leave(&world);
    kr_session_destroy(world.session);
    kr_model_close(world.model);
    remove_tree(world.dir);
}

/* SCENARIO(name, .run = ..., ...): a test of that name. */
#define SCENARIO(name, ...)                                                                      \
    TEST(faults_##name) {                                                                        \
        static const scenario_t scenario = {__VA_ARGS__};                                        \
        torture(#name, &scenario);                                                               \
    }

#endif
