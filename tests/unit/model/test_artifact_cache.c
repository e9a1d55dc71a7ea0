/* test_artifact_cache.c: the folder of derived files: hits, damage, eviction, two processes, and
 * that no trouble with the folder ever fails a call. */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"
#include "model/artifact_cache.h"

typedef struct maker_s { size_t n_bytes; uint8_t fill; int n_calls; kr_status_t status; } maker_t;

static kr_status_t make(void *ctx, void **data, size_t *n_bytes, kr_error_t *error) {
    maker_t *maker = ctx;
    maker->n_calls++;
    if (maker->status != KR_OK) return KRI_FAIL(error, maker->status, "maker", "cannot make it");
    uint8_t *bytes = kri_alloc(maker->n_bytes, "test");
    if (!bytes) return KR_E_NOMEM;
    memset(bytes, maker->fill, maker->n_bytes);
    *data = bytes;
    *n_bytes = maker->n_bytes;
    return KR_OK;
}

static char dir[64];
static int n_log_lines;
static char log_text[1024];

static void count_log(kr_log_level_t level, const char *text, void *user) {
    (void)level;
    (void)user;
    n_log_lines++;
    snprintf(log_text, sizeof log_text, "%s", text);
}

static void open_cache(kri_artifact_cache_t *cache, uint64_t max_bytes) {
    strcpy(dir, "/tmp/kr-cache-XXXXXX");
    assert_non_null(mkdtemp(dir));
    n_log_lines = 0;
    log_text[0] = 0;
    kr_log_set(count_log, KR_LOG_DEBUG, NULL);
    assert_status(kri_artifact_cache_init(cache, dir, max_bytes), KR_OK);
    assert_string_equal(cache->dir, dir);
}

/* Calls fn for the path of each artifact; returns how many there are. */
static int each_artifact(void (*fn)(const char *path, void *user), void *user) {
    DIR *folder = opendir(dir);
    struct dirent *entry;
    char path[512];
    int n = 0;
    assert_non_null(folder);
    while ((entry = readdir(folder))) {
        size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 4, ".kra") != 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (fn) fn(path, user);
        n++;
    }
    closedir(folder);
    return n;
}

static void close_cache(kri_artifact_cache_t *cache) {
    char command[192];
    kri_artifact_cache_deinit(cache);
    kr_log_set(NULL, KR_LOG_ERROR, NULL);
    snprintf(command, sizeof command, "chmod -R u+w %s && rm -rf %s", dir, dir);
    assert_int_equal(system(command), 0);
}

/* One get and close; checks the payload; returns *built. */
static bool get(const kri_artifact_cache_t *cache, const char *key, maker_t *maker) {
    kri_artifact_t artifact;
    bool built = false;
    assert_status(kri_artifact_get(cache, key, make, maker, &artifact, &built, NULL), KR_OK);
    assert_int_equal(artifact.n_bytes, maker->n_bytes);
    for (size_t i = 0; i < artifact.n_bytes; i++)
        assert_int_equal(artifact.data[i], maker->fill);
    kri_artifact_close(&artifact);
    return built;
}

TEST(artifact_is_built_once_and_found_afterwards) {
    kri_artifact_cache_t cache;
    maker_t one = {10000, 1, 0, KR_OK}, two = {5, 2, 0, KR_OK};
    open_cache(&cache, 0);
    assert_true(get(&cache, "key one", &one));
    assert_false(get(&cache, "key one", &one));
    assert_true(get(&cache, "key two", &two));
    assert_false(get(&cache, "key one", &one));
    assert_false(get(&cache, "key two", &two));
    assert_int_equal(one.n_calls, 1);
    assert_int_equal(two.n_calls, 1);
    assert_int_equal(n_log_lines, 0);
    close_cache(&cache);
}

TEST(artifact_payload_is_mapped_page_aligned) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    bool built;
    maker_t maker = {100, 3, 0, KR_OK};
    open_cache(&cache, 0);
    assert_status(kri_artifact_get(&cache, "k", make, &maker, &artifact, &built, NULL), KR_OK);
    assert_non_null(artifact.map.data);
    assert_null(artifact.owned);
    assert_int_equal((uintptr_t)artifact.data % KRI_ARTIFACT_HEADER_BYTES, 0);
    kri_artifact_close(&artifact);
    kri_artifact_close(&artifact); /* zeroed by the first */
    close_cache(&cache);
}

TEST(artifact_builder_failure_is_passed_on) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    bool built = false;
    kr_error_t error;
    maker_t maker = {100, 3, 0, KR_E_LIMIT};
    kr_error_init(&error);
    open_cache(&cache, 0);
    memset(&artifact, 0x5a, sizeof artifact);
    kri_artifact_t before = artifact;
    assert_status(kri_artifact_get(&cache, "k", make, &maker, &artifact, &built, &error),
                  KR_E_LIMIT);
    assert_string_equal(error.message, "cannot make it");
    assert_memory_equal(&artifact, &before, sizeof artifact);
    assert_false(built);
    assert_int_equal(each_artifact(NULL, NULL), 0);
    maker.status = KR_OK;
    assert_true(get(&cache, "k", &maker));
    close_cache(&cache);
}

TEST(artifact_key_length_is_limited) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    bool built;
    char key[KRI_ARTIFACT_KEY_BYTES_MAX + 2];
    maker_t maker = {7, 3, 0, KR_OK};
    open_cache(&cache, 0);
    memset(key, 'k', sizeof key);
    key[KRI_ARTIFACT_KEY_BYTES_MAX + 1] = 0;
    assert_status(kri_artifact_get(&cache, key, make, &maker, &artifact, &built, NULL),
                  KR_E_INVALID_ARG);
    assert_status(kri_artifact_get(&cache, "", make, &maker, &artifact, &built, NULL),
                  KR_E_INVALID_ARG);
    key[KRI_ARTIFACT_KEY_BYTES_MAX] = 0;
    assert_true(get(&cache, key, &maker));
    assert_false(get(&cache, key, &maker));
    close_cache(&cache);
}

typedef struct damage_s { off_t at; off_t cut; } damage_t;

/* Flips a byte, or cuts the file to `cut` bytes. */
static void damage_file(const char *path, void *user) {
    const damage_t *damage = user;
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    if (damage->cut >= 0) {
        assert_int_equal(ftruncate(fd, damage->cut), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, damage->at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, damage->at), 1);
    }
    close(fd);
}

TEST(artifact_damaged_file_is_rebuilt) {
    static const damage_t damages[] = {
        {0, -1}, {8, -1}, {12, -1}, {16, -1}, {24, -1}, {32, -1}, {40, -1}, {1000, -1},
        {4095, -1}, {4096, -1}, {4096 + 499, -1}, {0, 0}, {0, 1}, {0, 4095}, {0, 4096},
        {0, 4096 + 499}};
    kri_artifact_cache_t cache;
    maker_t maker = {500, 9, 0, KR_OK};
    open_cache(&cache, 0);
    assert_true(get(&cache, "k", &maker));
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        damage_t damage = damages[i];
        assert_int_equal(each_artifact(damage_file, &damage), 1);
        n_log_lines = 0;
        assert_true(get(&cache, "k", &maker));
        assert_true(n_log_lines > 0);
        assert_non_null(strstr(log_text, "is not usable"));
        assert_false(get(&cache, "k", &maker));
    }
    close_cache(&cache);
}

static void rename_file(const char *path, void *user) {
    assert_int_equal(rename(path, user), 0);
}
static void take_path(const char *path, void *user) { strcpy(user, path); }

TEST(artifact_of_another_key_is_refused) {
    kri_artifact_cache_t cache;
    char kept[600], wanted[600];
    maker_t a = {50, 1, 0, KR_OK}, b = {50, 2, 0, KR_OK};
    open_cache(&cache, 0);
    assert_true(get(&cache, "b", &b));
    each_artifact(take_path, wanted);
    assert_int_equal(unlink(wanted), 0);
    assert_true(get(&cache, "a", &a));
    snprintf(kept, sizeof kept, "%s", wanted);
    assert_int_equal(each_artifact(rename_file, kept), 1); /* a's file under b's name */
    assert_true(get(&cache, "b", &b));
    assert_false(get(&cache, "b", &b));
    close_cache(&cache);
}

TEST(artifact_verify_refuses_every_truncation_and_flip) {
    kri_artifact_cache_t cache;
    char path[600];
    static uint8_t bytes[KRI_ARTIFACT_HEADER_BYTES + 40];
    maker_t maker = {40, 7, 0, KR_OK};
    open_cache(&cache, 0);
    assert_true(get(&cache, "k", &maker));
    each_artifact(take_path, path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    fclose(file);
    assert_status(kri_artifact_verify(bytes, sizeof bytes, "k"), KR_OK);
    assert_status(kri_artifact_verify(bytes, sizeof bytes, "kk"), KR_E_CHANGED);
    for (size_t n = 0; n < sizeof bytes; n++)
        assert_true(kri_artifact_verify(bytes, n, "k") != KR_OK);
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] ^= 0x40;
        assert_true(kri_artifact_verify(bytes, sizeof bytes, "k") != KR_OK);
        bytes[i] ^= 0x40;
    }
    close_cache(&cache);
}

static void set_mtime(const char *path, long seconds) {
    struct timespec times[2] = {{seconds, 0}, {seconds, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}
static void make_old(const char *path, void *user) { set_mtime(path, *(const long *)user); }

TEST(artifact_eviction_removes_the_least_recently_used) {
    kri_artifact_cache_t cache;
    long old = 1000000;
    maker_t maker = {KRI_ARTIFACT_HEADER_BYTES, 1, 0, KR_OK}; /* files of 8 KiB */
    open_cache(&cache, 20000);
    assert_true(get(&cache, "a", &maker));
    assert_true(get(&cache, "b", &maker));
    each_artifact(make_old, &old);
    assert_false(get(&cache, "a", &maker)); /* touches a, so b is the oldest */
    assert_true(get(&cache, "c", &maker));
    assert_int_equal(each_artifact(NULL, NULL), 2);
    assert_false(get(&cache, "a", &maker));
    assert_false(get(&cache, "c", &maker));
    assert_true(get(&cache, "b", &maker));
    close_cache(&cache);
}

TEST(artifact_eviction_spares_files_in_use) {
    kri_artifact_cache_t cache;
    kri_artifact_t held;
    bool built;
    long old = 1000000;
    maker_t maker = {KRI_ARTIFACT_HEADER_BYTES, 1, 0, KR_OK};
    open_cache(&cache, 10000); /* room for one file */
    assert_status(kri_artifact_get(&cache, "a", make, &maker, &held, &built, NULL), KR_OK);
    each_artifact(make_old, &old);
    assert_true(get(&cache, "b", &maker));
    assert_int_equal(each_artifact(NULL, NULL), 2); /* over the limit rather than unusable */
    assert_false(get(&cache, "a", &maker));
    kri_artifact_close(&held);
    each_artifact(make_old, &old);
    assert_true(get(&cache, "c", &maker));
    assert_int_equal(each_artifact(NULL, NULL), 1);
    assert_false(get(&cache, "c", &maker));
    close_cache(&cache);
}

TEST(artifact_over_the_cache_size_is_not_written) {
    kri_artifact_cache_t cache;
    maker_t big = {20000, 1, 0, KR_OK};
    open_cache(&cache, 20000);
    assert_true(get(&cache, "big", &big));
    assert_true(get(&cache, "big", &big));
    assert_int_equal(each_artifact(NULL, NULL), 0);
    close_cache(&cache);
}

TEST(artifact_leftovers_of_killed_writers_are_swept) {
    kri_artifact_cache_t cache;
    char fresh[128], stale[128];
    maker_t maker = {10, 1, 0, KR_OK};
    open_cache(&cache, 0);
    snprintf(fresh, sizeof fresh, "%s/" KRI_FILE_TEMP_PREFIX "1-1", dir);
    snprintf(stale, sizeof stale, "%s/" KRI_FILE_TEMP_PREFIX "2-1", dir);
    close(open(fresh, O_CREAT | O_WRONLY, 0600));
    close(open(stale, O_CREAT | O_WRONLY, 0600));
    set_mtime(stale, 1000000);
    assert_true(get(&cache, "a", &maker));
    assert_int_equal(access(fresh, F_OK), 0);
    assert_int_equal(access(stale, F_OK), -1);
    close_cache(&cache);
}

TEST(artifact_cache_off_builds_each_time) {
    kri_artifact_cache_t cache;
    maker_t maker = {64, 4, 0, KR_OK};
    assert_status(kri_artifact_cache_init(&cache, "", 0), KR_OK);
    assert_null(cache.dir);
    assert_true(get(&cache, "k", &maker));
    assert_true(get(&cache, "k", &maker));
    assert_int_equal(maker.n_calls, 2);
    kri_artifact_cache_deinit(&cache);
}

TEST(artifact_cache_switches_itself_off_when_folder_is_impossible) {
    kri_artifact_cache_t cache;
    kri_artifact_cache_t unused;
    char path[128];
    maker_t maker = {64, 4, 0, KR_OK};
    open_cache(&unused, 0);
    snprintf(path, sizeof path, "%s/file", dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    snprintf(path, sizeof path, "%s/file/below", dir);
    n_log_lines = 0;
    assert_status(kri_artifact_cache_init(&cache, path, 0), KR_OK);
    assert_null(cache.dir);
    assert_int_equal(n_log_lines, 1);
    assert_non_null(strstr(log_text, "artifact cache off"));
    assert_true(get(&cache, "k", &maker));
    kri_artifact_cache_deinit(&cache);
    close_cache(&unused);
}

TEST(artifact_cache_default_folder_follows_the_environment) {
    kri_artifact_cache_t cache, fallback;
    char expected[128];
    maker_t maker = {64, 4, 0, KR_OK};
    open_cache(&cache, 0);
    kri_artifact_cache_deinit(&cache);
    assert_int_equal(setenv("XDG_CACHE_HOME", dir, 1), 0);
    assert_status(kri_artifact_cache_init(&cache, NULL, 0), KR_OK);
    snprintf(expected, sizeof expected, "%s/kr", dir);
    assert_string_equal(cache.dir, expected);
    assert_true(get(&cache, "k", &maker));
    assert_false(get(&cache, "k", &maker));
    assert_int_equal(unsetenv("XDG_CACHE_HOME"), 0);
    assert_int_equal(setenv("HOME", dir, 1), 0);
    assert_status(kri_artifact_cache_init(&fallback, NULL, 0), KR_OK);
    snprintf(expected, sizeof expected, "%s/.cache/kr", dir);
    assert_string_equal(fallback.dir, expected);
    kri_artifact_cache_deinit(&fallback);
    assert_int_equal(unsetenv("HOME"), 0);
    assert_status(kri_artifact_cache_init(&fallback, NULL, 0), KR_OK);
    assert_null(fallback.dir);
    close_cache(&cache);
}

TEST(artifact_cache_works_in_a_folder_that_cannot_be_written) {
    kri_artifact_cache_t cache;
    maker_t a = {64, 4, 0, KR_OK}, b = {64, 5, 0, KR_OK};
    open_cache(&cache, 0);
    assert_true(get(&cache, "a", &a));
    if (geteuid() == 0) { /* root may write anywhere: take the lock files' place instead */
        char path[128];
        for (int i = 0; i < 16; i++) {
            snprintf(path, sizeof path, "%s/lock-%02d", dir, i);
            unlink(path);
            assert_int_equal(mkdir(path, 0700), 0);
        }
    } else {
        assert_int_equal(chmod(dir, 0500), 0);
    }
    assert_false(get(&cache, "a", &a));
    n_log_lines = 0;
    assert_true(get(&cache, "b", &b));
    assert_true(get(&cache, "b", &b));
    assert_true(n_log_lines >= 1);
    assert_non_null(strstr(log_text, "artifact cache: not"));
    assert_int_equal(each_artifact(NULL, NULL), 1);
    close_cache(&cache);
}

TEST(artifact_survives_every_failing_allocation) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    bool built;
    maker_t maker = {64, 4, 0, KR_OK};
    open_cache(&cache, 0);
    for (uint64_t k = 1; k < 12; k++) {
        char key[24];
        snprintf(key, sizeof key, "k%u", (unsigned)k);
        kri_alloc_fail(k, false);
        kr_status_t status =
            kri_artifact_get(&cache, key, make, &maker, &artifact, &built, NULL);
        kri_alloc_fail(0, false);
        assert_status(status, k == 1 ? KR_E_NOMEM : KR_OK); /* only the builder's own failure */
        if (status == KR_OK) kri_artifact_close(&artifact);
    }
    close_cache(&cache);
}

/* Says with its exit code whether it built the artifact. */
static int child_get(const kri_artifact_cache_t *cache, const char *key, maker_t *maker) {
    kri_artifact_t artifact;
    bool built = false;
    kr_status_t status = kri_artifact_get(cache, key, make, maker, &artifact, &built, NULL);
    if (status != KR_OK || artifact.n_bytes != maker->n_bytes) return 9;
    for (size_t i = 0; i < artifact.n_bytes; i++)
        if (artifact.data[i] != maker->fill) return 9;
    kri_artifact_close(&artifact);
    return built ? 1 : 0;
}

TEST(artifact_is_built_once_by_several_processes) {
    enum { N_CHILDREN = 6, N_KEYS = 5 };
    kri_artifact_cache_t cache;
    pid_t children[N_CHILDREN];
    open_cache(&cache, 0);
    for (int k = 0; k < N_KEYS; k++) {
        char key[24];
        int n_built = 0;
        snprintf(key, sizeof key, "shared %u", (unsigned)k % 100);
        for (int i = 0; i < N_CHILDREN; i++) {
            children[i] = fork();
            assert_true(children[i] >= 0);
            if (children[i] == 0) {
                maker_t maker = {300000, (uint8_t)k, 0, KR_OK};
                _exit(child_get(&cache, key, &maker));
            }
        }
        for (int i = 0; i < N_CHILDREN; i++) {
            int result;
            assert_int_equal(waitpid(children[i], &result, 0), children[i]);
            assert_true(WIFEXITED(result) && WEXITSTATUS(result) < 2);
            n_built += WEXITSTATUS(result);
        }
        assert_int_equal(n_built, 1);
    }
    assert_int_equal(each_artifact(NULL, NULL), N_KEYS);
    close_cache(&cache);
}

TEST(artifact_processes_with_a_full_cache_still_get_right_bytes) {
    enum { N_CHILDREN = 4 };
    kri_artifact_cache_t cache;
    pid_t children[N_CHILDREN];
    open_cache(&cache, 3 * 2 * KRI_ARTIFACT_HEADER_BYTES); /* three files */
    for (int i = 0; i < N_CHILDREN; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            int result = 0;
            for (int n = 0; n < 40 && result < 2; n++) {
                char key[24];
                maker_t maker = {KRI_ARTIFACT_HEADER_BYTES, (uint8_t)(n % 7), 0, KR_OK};
                snprintf(key, sizeof key, "k%d", n % 7);
                result = child_get(&cache, key, &maker);
            }
            _exit(result < 2 ? 0 : 9);
        }
    }
    for (int i = 0; i < N_CHILDREN; i++) {
        int result;
        assert_int_equal(waitpid(children[i], &result, 0), children[i]);
        assert_true(WIFEXITED(result));
        assert_int_equal(WEXITSTATUS(result), 0);
    }
    close_cache(&cache);
}
