/* test_artifact_cache.c: the folder of derived files: hits, damage, hurried writers, eviction,
 * several processes, and what is said about a folder that cannot be used. */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/artifact_cache.h"

#define INDEX_BYTES 100

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

static void close_cache(kri_artifact_cache_t *cache) {
    char command[192];
    kri_artifact_cache_deinit(cache);
    kr_log_set(NULL, KR_LOG_ERROR, NULL);
    snprintf(command, sizeof command, "chmod -R u+w %s && rm -rf %s", dir, dir);
    assert_int_equal(system(command), 0);
}

/* Calls fn for the path of each file that ends in `suffix`; returns how many there are. */
static int each_file(const char *suffix, void (*fn)(const char *path, void *user), void *user) {
    DIR *folder = opendir(dir);
    struct dirent *entry;
    char path[512];
    int n = 0;
    assert_non_null(folder);
    while ((entry = readdir(folder))) {
        size_t length = strlen(entry->d_name);
        if (length < 4 || strcmp(entry->d_name + length - 4, suffix) != 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (fn) fn(path, user);
        n++;
    }
    closedir(folder);
    return n;
}

static kr_status_t put(const kri_artifact_cache_t *cache, const char *key, uint8_t fill,
                       size_t data_bytes, kri_artifact_pace_t pace) {
    uint8_t index[INDEX_BYTES];
    uint8_t *data = malloc(data_bytes + 1);
    assert_non_null(data);
    memset(index, fill, sizeof index);
    memset(data, fill, data_bytes);
    const kri_artifact_content_t content = {index, data, sizeof index, data_bytes};
    const kr_status_t status = kri_artifact_write(cache, key, &content, pace, NULL);
    free(data);
    return status;
}

static const kri_artifact_pace_t calm = {NULL, NULL};

static bool always(void *user) { return user == NULL; }
static const kri_artifact_pace_t hurried = {always, NULL};

static bool is_filled(const kri_artifact_t *artifact, uint8_t fill, size_t data_bytes) {
    bool is_good = artifact->index_bytes == INDEX_BYTES && artifact->data_bytes == data_bytes;
    for (size_t i = 0; i < artifact->index_bytes; i++)
        is_good = is_good && artifact->index[i] == fill;
    for (size_t i = 0; i < artifact->data_bytes; i++)
        is_good = is_good && artifact->data[i] == fill;
    return is_good;
}

/* Opens, checks and closes. */
static kr_status_t get(const kri_artifact_cache_t *cache, const char *key, uint8_t fill,
                       size_t data_bytes) {
    kri_artifact_t artifact;
    const kr_status_t status = kri_artifact_open(cache, key, &artifact);
    if (status != KR_OK) return status;
    assert_true(is_filled(&artifact, fill, data_bytes));
    kri_artifact_close(&artifact);
    return KR_OK;
}

TEST(artifact_is_found_after_it_was_written) {
    kri_artifact_cache_t cache;
    open_cache(&cache, 0);
    assert_status(get(&cache, "key one", 1, 0), KR_E_NOT_FOUND);
    assert_status(put(&cache, "key one", 1, 5000000, calm), KR_OK);
    assert_status(put(&cache, "key two", 2, 0, calm), KR_OK);
    assert_status(get(&cache, "key one", 1, 5000000), KR_OK);
    assert_status(get(&cache, "key two", 2, 0), KR_OK);
    assert_status(get(&cache, "key three", 2, 0), KR_E_NOT_FOUND);
    assert_status(put(&cache, "key two", 7, 10, calm), KR_OK); /* replaced */
    assert_status(get(&cache, "key two", 7, 10), KR_OK);
    kri_artifact_discard(&cache, "key two");
    assert_status(get(&cache, "key two", 7, 10), KR_E_NOT_FOUND);
    assert_int_equal(n_log_lines, 0);
    close_cache(&cache);
}

TEST(artifact_data_is_mapped_on_a_huge_page_boundary) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    open_cache(&cache, 0);
    assert_status(put(&cache, "k", 3, 3 * KRI_HUGE_PAGE_BYTES, calm), KR_OK);
    assert_status(kri_artifact_open(&cache, "k", &artifact), KR_OK);
    assert_int_equal((uintptr_t)artifact.data % KRI_HUGE_PAGE_BYTES, 0);
    assert_true(artifact.is_settled);
    kri_artifact_close(&artifact);
    kri_artifact_close(&artifact); /* zeroed by the first */
    close_cache(&cache);
}

TEST(artifact_hurried_writer_leaves_a_complete_file_that_settles_later) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact;
    open_cache(&cache, 0);
    assert_status(put(&cache, "k", 3, 3000000, hurried), KR_OK);
    assert_int_equal(each_file(".kra", NULL, NULL), 0);
    assert_int_equal(each_file(".kru", NULL, NULL), 1);
    assert_status(kri_artifact_open(&cache, "k", &artifact), KR_OK);
    assert_false(artifact.is_settled);
    assert_true(is_filled(&artifact, 3, 3000000));
    kri_artifact_close(&artifact);
    assert_status(kri_artifact_settle(&cache, "k", hurried, NULL), KR_OK); /* hurried again */
    assert_int_equal(each_file(".kru", NULL, NULL), 1);
    assert_status(kri_artifact_settle(&cache, "k", calm, NULL), KR_OK);
    assert_int_equal(each_file(".kru", NULL, NULL), 0);
    assert_status(get(&cache, "k", 3, 3000000), KR_OK);
    assert_status(kri_artifact_settle(&cache, "k", calm, NULL), KR_OK); /* nothing to do */
    assert_status(get(&cache, "k", 3, 3000000), KR_OK);
    close_cache(&cache);
}

TEST(artifact_key_length_is_limited) {
    kri_artifact_cache_t cache;
    char key[KRI_ARTIFACT_KEY_BYTES_MAX + 2];
    open_cache(&cache, 0);
    memset(key, 'k', sizeof key);
    key[KRI_ARTIFACT_KEY_BYTES_MAX + 1] = 0;
    assert_status(put(&cache, key, 1, 10, calm), KR_E_INVALID_ARG);
    assert_status(put(&cache, "", 1, 10, calm), KR_E_INVALID_ARG);
    key[KRI_ARTIFACT_KEY_BYTES_MAX] = 0;
    assert_status(put(&cache, key, 1, 10, calm), KR_OK);
    assert_status(get(&cache, key, 1, 10), KR_OK);
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

TEST(artifact_damaged_header_or_index_is_refused_with_one_line) {
    static const damage_t damages[] = {
        {0, -1}, {8, -1}, {12, -1}, {16, -1}, {24, -1}, {32, -1}, {40, -1}, {48, -1}, {1000, -1},
        {4095, -1}, {4096, -1}, {4096 + 99, -1}, {0, 0}, {0, 1}, {0, 4095}, {0, 4096},
        {0, 4096 + 99}, {0, 1 << 21}, {0, (1 << 21) + 499}, {0, (1 << 21) + 501}};
    kri_artifact_cache_t cache;
    open_cache(&cache, 0);
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        damage_t damage = damages[i];
        assert_status(put(&cache, "k", 9, 500, calm), KR_OK);
        assert_int_equal(each_file(".kra", damage_file, &damage), 1);
        n_log_lines = 0;
        assert_true(get(&cache, "k", 9, 500) != KR_OK);
        assert_int_equal(n_log_lines, 1);
        assert_non_null(strstr(log_text, "is not usable"));
    }
    close_cache(&cache);
}

static void rename_file(const char *path, void *user) {
    assert_int_equal(rename(path, user), 0);
}
static void take_path(const char *path, void *user) { strcpy(user, path); }

TEST(artifact_of_another_key_is_refused) {
    kri_artifact_cache_t cache;
    char wanted[600];
    open_cache(&cache, 0);
    assert_status(put(&cache, "b", 2, 50, calm), KR_OK);
    each_file(".kra", take_path, wanted);
    assert_int_equal(unlink(wanted), 0);
    assert_status(put(&cache, "a", 1, 50, calm), KR_OK);
    assert_int_equal(each_file(".kra", rename_file, wanted), 1); /* a's file under b's name */
    assert_status(get(&cache, "b", 2, 50), KR_E_CHANGED);
    close_cache(&cache);
}

TEST(artifact_verify_refuses_every_truncation_and_flip) {
    kri_artifact_cache_t cache;
    kri_artifact_t artifact = {0};
    char path[600];
    static uint8_t bytes[KRI_ARTIFACT_HEADER_BYTES + INDEX_BYTES];
    open_cache(&cache, 0);
    assert_status(put(&cache, "k", 7, 0, calm), KR_OK);
    each_file(".kra", take_path, path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes, file), sizeof bytes);
    fclose(file);
    assert_status(kri_artifact_verify(bytes, sizeof bytes, "k", &artifact), KR_OK);
    assert_status(kri_artifact_verify(bytes, sizeof bytes, NULL, &artifact), KR_OK);
    assert_status(kri_artifact_verify(bytes, sizeof bytes, "kk", &artifact), KR_E_CHANGED);
    for (size_t n = 0; n < sizeof bytes; n++)
        assert_true(kri_artifact_verify(bytes, n, "k", &artifact) != KR_OK);
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] ^= 0x40;
        assert_true(kri_artifact_verify(bytes, sizeof bytes, "k", &artifact) != KR_OK);
        bytes[i] ^= 0x40;
    }
    close_cache(&cache);
}

static void set_mtime(const char *path, long seconds) {
    struct timespec times[2] = {{seconds, 0}, {seconds, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}
/* Every file a second later than the one before. */
static void make_old(const char *path, void *user) { set_mtime(path, ++*(long *)user); }

TEST(artifact_eviction_removes_the_least_recently_used) {
    kri_artifact_cache_t cache;
    long old = 1000000;
    open_cache(&cache, 10000); /* files are 4196 bytes */
    assert_status(put(&cache, "a", 1, 0, calm), KR_OK);
    assert_status(put(&cache, "b", 2, 0, calm), KR_OK);
    each_file(".kra", make_old, &old);
    assert_status(get(&cache, "a", 1, 0), KR_OK); /* touches a, so b is the oldest */
    assert_status(put(&cache, "c", 3, 0, calm), KR_OK);
    assert_int_equal(each_file(".kra", NULL, NULL), 2);
    assert_status(get(&cache, "a", 1, 0), KR_OK);
    assert_status(get(&cache, "c", 3, 0), KR_OK);
    assert_status(get(&cache, "b", 2, 0), KR_E_NOT_FOUND);
    close_cache(&cache);
}

TEST(artifact_eviction_spares_files_in_use) {
    kri_artifact_cache_t cache;
    kri_artifact_t held;
    long old = 1000000;
    open_cache(&cache, 6000); /* room for one file */
    assert_status(put(&cache, "a", 1, 0, calm), KR_OK);
    assert_status(kri_artifact_open(&cache, "a", &held), KR_OK);
    each_file(".kra", make_old, &old);
    assert_status(put(&cache, "b", 2, 0, calm), KR_OK);
    assert_int_equal(each_file(".kra", NULL, NULL), 2); /* over the limit rather than unusable */
    assert_true(is_filled(&held, 1, 0));
    kri_artifact_close(&held);
    each_file(".kra", make_old, &old);
    assert_status(put(&cache, "c", 3, 0, calm), KR_OK);
    assert_int_equal(each_file(".kra", NULL, NULL), 1);
    assert_status(get(&cache, "c", 3, 0), KR_OK);
    close_cache(&cache);
}

TEST(artifact_over_the_cache_size_is_not_written) {
    kri_artifact_cache_t cache;
    open_cache(&cache, 20000);
    assert_status(put(&cache, "big", 1, 20000, calm), KR_E_LIMIT);
    assert_int_equal(each_file(".kra", NULL, NULL), 0);
    close_cache(&cache);
}

TEST(artifact_leftovers_of_killed_writers_are_swept) {
    kri_artifact_cache_t cache;
    kri_file_writer_t living;
    char path[128], killed[128];
    open_cache(&cache, 0);
    snprintf(path, sizeof path, "%s/other", dir);
    assert_status(kri_file_writer_open(path, &living, NULL), KR_OK);
    snprintf(killed, sizeof killed, "%s/" KRI_FILE_TEMP_PREFIX "2-1", dir);
    close(open(killed, O_CREAT | O_WRONLY, 0600));
    assert_status(put(&cache, "a", 1, 0, calm), KR_OK);
    assert_int_equal(access(killed, F_OK), -1);
    assert_status(kri_file_writer_commit(&living, "other", false, NULL), KR_OK);
    assert_int_equal(access(path, F_OK), 0);
    close_cache(&cache);
}

TEST(artifact_cache_is_swept_and_shrunk_when_a_file_has_no_room) {
    kri_artifact_cache_t cache;
    char killed[128];
    open_cache(&cache, 0);
    assert_status(put(&cache, "a", 1, 0, calm), KR_OK);
    snprintf(killed, sizeof killed, "%s/" KRI_FILE_TEMP_PREFIX "2-1", dir);
    close(open(killed, O_CREAT | O_WRONLY, 0600));
    cache.max_bytes = 1000;
    assert_status(put(&cache, "big", 1, 20000, calm), KR_E_LIMIT);
    assert_int_equal(access(killed, F_OK), -1);
    assert_int_equal(each_file(".kra", NULL, NULL), 0);
    close_cache(&cache);
}

TEST(artifact_cache_off_finds_and_writes_nothing) {
    kri_artifact_cache_t cache;
    assert_status(kri_artifact_cache_init(&cache, "", 0), KR_OK);
    assert_null(cache.dir);
    assert_status(put(&cache, "k", 1, 10, calm), KR_E_NOT_FOUND);
    assert_status(get(&cache, "k", 1, 10), KR_E_NOT_FOUND);
    kri_artifact_discard(&cache, "k");
    kri_artifact_cache_deinit(&cache);
}

TEST(artifact_cache_switches_itself_off_when_folder_is_impossible) {
    kri_artifact_cache_t cache;
    kri_artifact_cache_t unused;
    char path[128];
    open_cache(&unused, 0);
    snprintf(path, sizeof path, "%s/file", dir);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    snprintf(path, sizeof path, "%s/file/below", dir);
    n_log_lines = 0;
    assert_status(kri_artifact_cache_init(&cache, path, 0), KR_OK);
    assert_null(cache.dir);
    assert_int_equal(n_log_lines, 1);
    assert_non_null(strstr(log_text, "artifact cache off"));
    kri_artifact_cache_deinit(&cache);
    close_cache(&unused);
}

TEST(artifact_cache_default_folder_follows_the_environment) {
    kri_artifact_cache_t cache, fallback;
    char expected[128];
    open_cache(&cache, 0);
    kri_artifact_cache_deinit(&cache);
    assert_int_equal(setenv("XDG_CACHE_HOME", dir, 1), 0);
    assert_status(kri_artifact_cache_init(&cache, NULL, 0), KR_OK);
    snprintf(expected, sizeof expected, "%s/kr", dir);
    assert_string_equal(cache.dir, expected);
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

TEST(artifact_cache_reads_from_a_folder_that_cannot_be_written) {
    kri_artifact_cache_t cache;
    open_cache(&cache, 0);
    assert_status(put(&cache, "a", 1, 10, calm), KR_OK);
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
    assert_status(get(&cache, "a", 1, 10), KR_OK);
    assert_true(put(&cache, "b", 2, 10, calm) != KR_OK);
    assert_int_equal(each_file(".kra", NULL, NULL), 1);
    close_cache(&cache);
}

TEST(artifact_use_and_writing_allocate_nothing) {
    kri_artifact_cache_t cache;
    const uint8_t index[INDEX_BYTES] = {0};
    const kri_artifact_content_t content = {index, index, sizeof index, sizeof index};
    kri_artifact_t artifact;
    open_cache(&cache, 6000);
    kri_alloc_guard_begin("artifact"); /* it runs beside a decoding thread */
    kr_status_t status = kri_artifact_write(&cache, "a", &content, calm, NULL);
    if (status == KR_OK) status = kri_artifact_open(&cache, "a", &artifact);
    assert_int_equal(kri_alloc_guard_end(), 0);
    assert_status(status, KR_E_LIMIT); /* 2 MiB up to the data */
    kri_alloc_guard_begin("artifact");
    cache.max_bytes = 1 << 23;
    status = kri_artifact_write(&cache, "a", &content, calm, NULL);
    if (status == KR_OK) status = kri_artifact_open(&cache, "a", &artifact);
    if (status == KR_OK) kri_artifact_close(&artifact);
    assert_int_equal(kri_alloc_guard_end(), 0);
    assert_status(status, KR_OK);
    close_cache(&cache);
}

typedef struct seen_s { int n, n_good; } seen_t;
static int see(const char *path, const kri_artifact_t *artifact, kr_status_t status, void *user) {
    seen_t *seen = user;
    assert_int_equal(strncmp(path, dir, strlen(dir)), 0);
    assert_int_equal(artifact != NULL, status == KR_OK);
    seen->n++;
    seen->n_good += status == KR_OK;
    return 0;
}

TEST(artifact_each_visits_good_and_damaged_files) {
    kri_artifact_cache_t cache;
    seen_t seen = {0, 0};
    damage_t damage = {4096, -1};
    open_cache(&cache, 0);
    assert_status(put(&cache, "a", 1, 10, calm), KR_OK);
    each_file(".kra", damage_file, &damage);
    assert_status(put(&cache, "b", 2, 10, calm), KR_OK);
    assert_status(put(&cache, "c", 2, 0, calm), KR_OK);
    assert_status(kri_artifact_each(&cache, see, &seen, NULL), KR_OK);
    assert_int_equal(seen.n, 3);
    assert_int_equal(seen.n_good, 2);
    close_cache(&cache);
}

TEST(artifact_processes_with_a_full_cache_still_get_right_bytes) {
    enum { N_CHILDREN = 4 };
    kri_artifact_cache_t cache;
    pid_t children[N_CHILDREN];
    open_cache(&cache, 15000); /* three files */
    for (int i = 0; i < N_CHILDREN; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] == 0) {
            int n_bad = 0;
            for (int n = 0; n < 40; n++) {
                char key[24];
                kri_artifact_t artifact;
                const uint8_t fill = (uint8_t)(n % 7);
                snprintf(key, sizeof key, "k%d", n % 7);
                const kr_status_t written = put(&cache, key, fill, 0, calm);
                n_bad += written != KR_OK && written != KR_E_BUSY;
                const kr_status_t opened = kri_artifact_open(&cache, key, &artifact);
                /* Evicted meanwhile, or an evictor is looking at it. */
                if (opened == KR_E_NOT_FOUND || opened == KR_E_BUSY) continue;
                n_bad += opened != KR_OK || !is_filled(&artifact, fill, 0);
                if (opened == KR_OK) kri_artifact_close(&artifact);
            }
            _exit(n_bad != 0);
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
