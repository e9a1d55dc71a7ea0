/* test_os.c: files, mappings, folders, locks and pages, each in a folder of its own that the test
 * removes again. */
#define _GNU_SOURCE
#include "base/os.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "test.h"

static char folder[256];
static char path_text[512];

static void enter_folder(void) {
    (void)snprintf(folder, sizeof folder, "%s/kr-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(folder));
}

static const char *in_folder(const char *name) {
    (void)snprintf(path_text, sizeof path_text, "%s/%s", folder, name);
    return path_text;
}

typedef struct listing_s {
    int n_files;
    int n_temps;
    uint64_t n_bytes;
    int stop_after;
} listing_t;

static int list_one(const char *name, const kri_file_id_t *id, void *user) {
    listing_t *listing = user;
    listing->n_files++;
    listing->n_temps += strncmp(name, KRI_FILE_TEMP_PREFIX, strlen(KRI_FILE_TEMP_PREFIX)) == 0;
    listing->n_bytes += id->size;
    return listing->n_files == listing->stop_after;
}

static listing_t list(void) {
    listing_t listing = {0};
    assert_status(kri_dir_list(folder, list_one, &listing, NULL), KR_OK);
    return listing;
}

static void leave_folder(void) {
    char command[300];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(system(command), 0);
}

static void assert_content(const char *path, const char *expected) {
    void *data = NULL;
    size_t n_bytes = 0;
    assert_status(kri_file_read(path, 1 << 20, &data, &n_bytes, NULL), KR_OK);
    assert_int_equal(n_bytes, strlen(expected));
    assert_string_equal((char *)data, expected);
    kri_free(data);
}

TEST(file_write_replaces_the_content_and_leaves_no_other_file) {
    enter_folder();
    const char *path = in_folder("file");
    assert_status(kri_file_write_atomic(path, "one", 3, NULL), KR_OK);
    assert_content(path, "one");
    assert_status(kri_file_write_atomic(path, "another", 7, NULL), KR_OK);
    assert_content(path, "another");
    assert_status(kri_file_write_atomic(path, "", 0, NULL), KR_OK);
    assert_content(path, "");
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(list().n_files, 1);
    leave_folder();
}

TEST(file_write_works_with_a_path_without_folder) {
    enter_folder();
    char before[1024];
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(folder), 0);
    assert_status(kri_file_write_atomic("bare", "x", 1, NULL), KR_OK);
    assert_content("bare", "x");
    assert_int_equal(chdir(before), 0);
    leave_folder();
}

TEST(file_write_fails_cleanly_when_the_folder_is_bad) {
    enter_folder();
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_file_write_atomic(in_folder("none/file"), "x", 1, &error), KR_E_NOT_FOUND);
    assert_non_null(strstr(error.message, "none/file"));
    assert_status(kri_file_write_atomic(in_folder("plain"), "x", 1, NULL), KR_OK);
    assert_status(kri_file_write_atomic(in_folder("plain/file"), "x", 1, NULL), KR_E_NOT_FOUND);
    assert_int_equal(mkdir(in_folder("sub"), 0700), 0);
    assert_status(kri_file_write_atomic(in_folder("sub"), "x", 1, NULL), KR_E_IO);
    assert_status(kri_file_write_atomic(in_folder("sub/"), "x", 1, NULL), KR_E_INVALID_ARG);
    assert_status(kri_file_write_atomic(in_folder("sub/.."), "x", 1, NULL), KR_E_INVALID_ARG);
    char too_long[6000];
    memset(too_long, 'a', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = '\0';
    too_long[5000] = '/';
    assert_status(kri_file_write_atomic(too_long, "x", 1, NULL), KR_E_IO);
    too_long[0] = too_long[4998] = '/';
    assert_status(kri_file_write_atomic(too_long + 4998, "x", 1, NULL), KR_E_NOT_FOUND);
    assert_int_equal(list().n_files, 1);
    leave_folder();
}

TEST(file_write_keeps_the_old_content_when_it_breaks_off) {
    enter_folder();
    const char *path = in_folder("file");
    assert_status(kri_file_write_atomic(path, "old", 3, NULL), KR_OK);
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 1000;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    char big[4000] = "";
    assert_status(kri_file_write_atomic(path, big, sizeof big, NULL), KR_E_IO);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_content(path, "old");
    assert_int_equal(list().n_files, 1);
    leave_folder();
}

TEST(file_write_steps_over_what_a_killed_process_left) {
    enter_folder();
    for (unsigned i = 0; i < 40; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, KRI_FILE_TEMP_PREFIX "%ld-%u", (long)getpid(), i);
        const int fd = open(in_folder(name), O_CREAT | O_EXCL | O_WRONLY, 0600);
        assert_true(fd >= 0);
        close(fd);
    }
    assert_status(kri_file_write_atomic(in_folder("file"), "x", 1, NULL), KR_OK);
    assert_int_equal(list().n_files, 41);
    assert_int_equal(list().n_temps, 40);
    leave_folder();
}

TEST(file_read_keeps_to_its_limit) {
    enter_folder();
    const char *path = in_folder("file");
    void *data = NULL;
    size_t n_bytes = 0;
    assert_status(kri_file_write_atomic(path, "12345", 5, NULL), KR_OK);
    assert_status(kri_file_read(path, 4, &data, &n_bytes, NULL), KR_E_LIMIT);
    kri_alloc_fail(1, false);
    assert_status(kri_file_read(path, 5, &data, &n_bytes, NULL), KR_E_NOMEM);
    assert_null(data);
    assert_status(kri_file_read(path, 5, &data, &n_bytes, NULL), KR_OK);
    assert_int_equal(n_bytes, 5);
    kri_free(data);
    assert_status(kri_file_read(in_folder("none"), 5, &data, &n_bytes, NULL), KR_E_NOT_FOUND);
    leave_folder();
}

/* Each must be refused at once: a test that hangs here is a failure. */
TEST(only_regular_files_are_opened) {
    enter_folder();
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%.90s/socket", folder);
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    char paths[4][300];
    (void)snprintf(paths[0], sizeof paths[0], "%s/fifo", folder);
    (void)snprintf(paths[1], sizeof paths[1], "%s/socket", folder);
    (void)snprintf(paths[2], sizeof paths[2], "%s", folder);
    (void)snprintf(paths[3], sizeof paths[3], "/dev/null");
    for (int i = 0; i < 4; i++) {
        kri_map_t map = {0};
        void *data = NULL;
        size_t n_bytes = 0;
        int lock = -1;
        kr_error_t error;
        kr_error_init(&error);
        assert_status(kri_map_open(paths[i], &map, &error), KR_E_INVALID_ARG);
        assert_non_null(strstr(error.message, "not a regular file"));
        assert_non_null(strstr(error.message, paths[i]));
        assert_null(map.data);
        assert_status(kri_file_read(paths[i], 10, &data, &n_bytes, NULL), KR_E_INVALID_ARG);
        if (i == 1) continue; /* a socket cannot be opened for writing at all */
        assert_status(kri_lock_acquire(paths[i], 0, &lock, NULL), KR_E_INVALID_ARG);
    }
    close(fd);
    leave_folder();
}

TEST(map_shows_the_file_also_after_release) {
    enter_folder();
    const char *path = in_folder("file");
    static char content[300000];
    for (size_t i = 0; i < sizeof content; i++) content[i] = (char)(i * 31 % 251);
    assert_status(kri_file_write_atomic(path, content, sizeof content, NULL), KR_OK);
    kri_map_t map = {0};
    assert_status(kri_map_open(path, &map, NULL), KR_OK);
    assert_int_equal(map.size, sizeof content);
    assert_int_equal(map.id.size, sizeof content);
    assert_memory_equal(map.data, content, sizeof content);
    kri_map_release(&map, 0, sizeof content);
    kri_map_release(&map, 5000, 100000);
    kri_map_release(&map, 1, 2);
    kri_map_release(&map, sizeof content + 5, 2);
    kri_map_release(&map, 100, SIZE_MAX);
    assert_memory_equal(map.data, content, sizeof content);
    kri_map_close(&map);
    assert_null(map.data);
    kri_map_close(&map);
    leave_folder();
}

TEST(map_huge_lies_on_a_huge_page_boundary_and_shows_the_file) {
    enter_folder();
    const char *path = in_folder("file");
    const size_t n_bytes = 2 * KRI_HUGE_PAGE_BYTES + 12345;
    char *content = malloc(n_bytes);
    assert_non_null(content);
    for (size_t i = 0; i < n_bytes; i++) content[i] = (char)(i * 31 % 251);
    assert_status(kri_file_write_atomic(path, content, n_bytes, NULL), KR_OK);
    kri_map_t map = {0};
    assert_status(kri_map_open_huge(path, &map, NULL), KR_OK);
    assert_int_equal((uintptr_t)map.data % KRI_HUGE_PAGE_BYTES, 0);
    assert_int_equal(map.size, n_bytes);
    assert_int_equal(kri_map_huge_bytes(&map, 0, n_bytes), 0); /* nothing was touched */
    assert_memory_equal(map.data, content, n_bytes);
    /* How many depends on the file system. */
    const size_t n_huge = kri_map_huge_bytes(&map, 0, SIZE_MAX);
    assert_true(n_huge % KRI_HUGE_PAGE_BYTES == 0 && n_huge <= 2 * KRI_HUGE_PAGE_BYTES);
    assert_int_equal(kri_map_huge_bytes(&map, n_bytes, 1), 0);
    kri_map_close(&map);
    assert_status(kri_file_write_atomic(path, "", 0, NULL), KR_OK);
    assert_status(kri_map_open_huge(path, &map, NULL), KR_OK);
    assert_null(map.data);
    assert_status(kri_map_open_huge(in_folder("none"), &map, NULL), KR_E_NOT_FOUND);
    free(content);
    leave_folder();
}

TEST(file_writer_gives_the_name_only_at_commit) {
    enter_folder();
    kri_file_writer_t writer;
    const char *path = in_folder("file");
    for (int is_synced = 0; is_synced < 2; is_synced++) {
        assert_status(kri_file_writer_open(path, &writer, NULL), KR_OK);
        assert_status(kri_file_writer_put(&writer, "wor", 3, 2, NULL), KR_OK);
        assert_status(kri_file_writer_put(&writer, "He", 2, 0, NULL), KR_OK);
        kri_file_writer_flush(&writer, 0, 5, true);
        assert_int_equal(access(path, F_OK), -1);
        assert_status(kri_file_writer_commit(&writer, "file", is_synced, NULL), KR_OK);
        kri_file_writer_discard(&writer); /* a no-op now */
        assert_content(path, "Hewor");
        assert_int_equal(list().n_files, 1);
        assert_status(kri_file_remove(path, NULL), KR_OK);
    }
    leave_folder();
}

TEST(file_writer_discard_leaves_nothing) {
    enter_folder();
    kri_file_writer_t writer;
    assert_status(kri_file_writer_open(in_folder("file"), &writer, NULL), KR_OK);
    assert_status(kri_file_writer_put(&writer, "abc", 3, 0, NULL), KR_OK);
    kri_file_writer_discard(&writer);
    assert_int_equal(list().n_files, 0);
    assert_status(kri_file_writer_open(in_folder("none/file"), &writer, NULL), KR_E_NOT_FOUND);
    kri_file_writer_discard(&writer);
    leave_folder();
}

TEST(file_writer_adopts_a_file_under_its_name) {
    enter_folder();
    kri_file_writer_t writer;
    assert_status(kri_file_writer_adopt(in_folder("old"), &writer, NULL), KR_E_NOT_FOUND);
    assert_status(kri_file_write_atomic(in_folder("old"), "abc", 3, NULL), KR_OK);
    assert_status(kri_file_writer_adopt(in_folder("old"), &writer, NULL), KR_OK);
    assert_status(kri_file_writer_commit(&writer, "new", true, NULL), KR_OK);
    assert_content(in_folder("new"), "abc");
    assert_int_equal(access(in_folder("old"), F_OK), -1);
    leave_folder();
}

TEST(map_of_an_empty_file_has_no_data) {
    enter_folder();
    const char *path = in_folder("file");
    assert_status(kri_file_write_atomic(path, "", 0, NULL), KR_OK);
    kri_map_t map = {(const uint8_t *)path, 5, {0, 0, 0, 0}};
    assert_status(kri_map_open(path, &map, NULL), KR_OK);
    assert_null(map.data);
    assert_int_equal(map.size, 0);
    kri_map_release(&map, 0, 10);
    kri_map_close(&map);
    assert_status(kri_map_open(in_folder("none"), &map, NULL), KR_E_NOT_FOUND);
    leave_folder();
}

TEST(map_check_notices_changed_and_missing_files) {
    enter_folder();
    const char *path = in_folder("file");
    kri_map_t map = {0};
    assert_status(kri_file_write_atomic(path, "abc", 3, NULL), KR_OK);
    assert_status(kri_map_open(path, &map, NULL), KR_OK);
    assert_status(kri_map_check(path, &map.id, NULL), KR_OK);
    assert_status(kri_file_write_atomic(path, "abd", 3, NULL), KR_OK);
    assert_status(kri_map_check(path, &map.id, NULL), KR_E_CHANGED);
    assert_memory_equal(map.data, "abc", 3);
    assert_status(kri_file_remove(path, NULL), KR_OK);
    assert_status(kri_map_check(path, &map.id, NULL), KR_E_NOT_FOUND);
    kri_map_close(&map);
    leave_folder();
}

TEST(dir_create_makes_parents_and_accepts_existing_ones) {
    enter_folder();
    const char *path = in_folder("a//b/c/");
    assert_status(kri_dir_create(path, NULL), KR_OK);
    assert_status(kri_dir_create(path, NULL), KR_OK);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700 | (st.st_mode & 07000));
    assert_status(kri_file_write_atomic(in_folder("plain"), "", 0, NULL), KR_OK);
    assert_status(kri_dir_create(in_folder("plain"), NULL), KR_E_EXISTS);
    assert_status(kri_dir_create(in_folder("plain/x"), NULL), KR_E_EXISTS);
    assert_status(kri_dir_create("", NULL), KR_E_NOT_FOUND);
    assert_status(kri_dir_create("/", NULL), KR_OK);
    leave_folder();
}

TEST(dir_list_gives_plain_files_only_and_stops_when_told) {
    enter_folder();
    assert_status(kri_dir_create(in_folder("sub"), NULL), KR_OK);
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    assert_int_equal(symlink("a", in_folder("link")), 0);
    assert_status(kri_file_write_atomic(in_folder("a"), "123", 3, NULL), KR_OK);
    assert_status(kri_file_write_atomic(in_folder("b"), "4567", 4, NULL), KR_OK);
    const listing_t all = list();
    assert_int_equal(all.n_files, 2);
    assert_int_equal(all.n_bytes, 7);
    listing_t first = {.stop_after = 1};
    assert_status(kri_dir_list(folder, list_one, &first, NULL), KR_OK);
    assert_int_equal(first.n_files, 1);
    assert_status(kri_dir_list(in_folder("none"), list_one, &first, NULL), KR_E_NOT_FOUND);
    leave_folder();
}

TEST(file_touch_changes_the_time_and_remove_reports_missing_files) {
    enter_folder();
    const char *path = in_folder("file");
    assert_status(kri_file_write_atomic(path, "x", 1, NULL), KR_OK);
    const struct timespec old[2] = {{1000, 0}, {1000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    assert_status(kri_file_touch(path), KR_OK);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_mtime > 1000);
    assert_status(kri_file_remove(path, NULL), KR_OK);
    assert_status(kri_file_remove(path, NULL), KR_E_NOT_FOUND);
    assert_status(kri_file_touch(path), KR_E_NOT_FOUND);
    leave_folder();
}

TEST(lock_excludes_others_until_released) {
    enter_folder();
    const char *path = in_folder("lock");
    int first = -1;
    int second = -1;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_lock_acquire(path, 0, &first, NULL), KR_OK);
    assert_true(first >= 0);
    assert_status(kri_lock_acquire(path, 0, &second, NULL), KR_E_TIMEOUT);
    assert_status(kri_lock_acquire(path, 30, &second, &error), KR_E_TIMEOUT);
    assert_non_null(strstr(error.message, path));
    assert_int_equal(second, -1);
    kri_lock_release(first);
    assert_status(kri_lock_acquire(path, 0, &second, NULL), KR_OK);
    kri_lock_release(second);
    kri_lock_release(-1);
    assert_status(kri_lock_acquire(in_folder("none/lock"), 0, &second, NULL), KR_E_NOT_FOUND);
    leave_folder();
}

TEST(lock_on_a_removed_file_does_not_exclude_the_new_one) {
    enter_folder();
    const char *path = in_folder("lock");
    int first = -1;
    int second = -1;
    int third = -1;
    assert_status(kri_lock_acquire(path, 0, &first, NULL), KR_OK);
    assert_status(kri_file_remove(path, NULL), KR_OK);
    assert_status(kri_lock_acquire(path, 0, &second, NULL), KR_OK);
    assert_status(kri_lock_acquire(path, 0, &third, NULL), KR_E_TIMEOUT);
    kri_lock_release(first);
    kri_lock_release(second);
    leave_folder();
}

TEST(lock_is_free_again_when_its_process_dies) {
    enter_folder();
    char path[512];
    (void)snprintf(path, sizeof path, "%s", in_folder("lock"));
    const pid_t child = fork();
    if (child == 0) {
        int lock = -1;
        _exit(kri_lock_acquire(path, 0, &lock, NULL) == KR_OK ? 0 : 1);
    }
    int result = -1;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_int_equal(result, 0);
    int lock = -1;
    assert_status(kri_lock_acquire(path, 0, &lock, NULL), KR_OK);
    kri_lock_release(lock);
    leave_folder();
}

typedef struct contest_s {
    char path[512];
    int counter; /* only ever touched under the lock */
    int n_failed;
} contest_t;

static void *contend(void *arg) {
    contest_t *contest = arg;
    for (int i = 0; i < 25; i++) {
        int lock = -1;
        if (kri_lock_acquire(contest->path, 600000, &lock, NULL) != KR_OK) return contest;
        const int seen = __atomic_load_n(&contest->counter, __ATOMIC_RELAXED);
        sched_yield();
        __atomic_store_n(&contest->counter, seen + 1, __ATOMIC_RELAXED);
        kri_lock_release(lock);
    }
    return NULL;
}

TEST(lock_is_exclusive_when_threads_wait_for_it) {
    enter_folder();
    contest_t contest = {.counter = 0};
    (void)snprintf(contest.path, sizeof contest.path, "%s", in_folder("lock"));
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, contend, &contest), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *failed = &contest;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(contest.counter, 75);
    leave_folder();
}

TEST(pages_are_zeroed_aligned_and_writable) {
    const size_t sizes[] = {1, 4096, 4097, (2u << 20) - 1, (4u << 20) + 1, (9u << 20) + 12345};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *pages = kri_pages_alloc(sizes[i]);
        assert_non_null(pages);
        assert_int_equal((uintptr_t)pages % (sizes[i] >= (4u << 20) ? 2u << 20 : 4096), 0);
        for (size_t k = 0; k < sizes[i]; k += 1021) assert_int_equal(pages[k], 0);
        assert_int_equal(pages[sizes[i] - 1], 0);
        memset(pages, 0xFF, sizes[i]);
        kri_pages_free(pages, sizes[i]);
    }
    kri_pages_free(NULL, 100);
}

TEST(pages_fail_when_absurd_injected_or_guarded) {
    assert_null(kri_pages_alloc(0));
    assert_null(kri_pages_alloc(SIZE_MAX));
    assert_null(kri_pages_alloc(SIZE_MAX - (4u << 20)));
    kri_alloc_fail(1, false);
    assert_null(kri_pages_alloc(4096));
    kri_alloc_guard_begin("test");
    assert_null(kri_pages_alloc(4096));
    assert_int_equal(kri_alloc_guard_end(), 1);
}

TEST(env_treats_empty_as_unset) {
    assert_int_equal(unsetenv("KR_TEST_ENV"), 0);
    assert_null(kri_env("KR_TEST_ENV"));
    assert_int_equal(setenv("KR_TEST_ENV", "", 1), 0);
    assert_null(kri_env("KR_TEST_ENV"));
    assert_int_equal(setenv("KR_TEST_ENV", "x", 1), 0);
    assert_string_equal(kri_env("KR_TEST_ENV"), "x");
}

TEST(rss_peak_covers_memory_that_was_touched) {
    const uint64_t before = kri_rss_peak_bytes();
    assert_true(before > 0);
    const size_t n_bytes = 64u << 20;
    unsigned char *pages = kri_pages_alloc(n_bytes);
    memset(pages, 1, n_bytes);
    assert_true(kri_rss_peak_bytes() >= n_bytes);
    kri_pages_free(pages, n_bytes);
    assert_true(kri_rss_peak_bytes() >= before);
}

/* The system's pages wholly inside the range are zeros again, the bytes around them stay. */
TEST(os_pages_discard_forgets_whole_pages_only) {
    const size_t unit = 65536; /* a multiple of the system's page on every machine */
    uint8_t *pages = kri_pages_alloc(4 * unit);
    assert_non_null(pages);
    memset(pages, 5, 4 * unit);
    kri_pages_discard(pages + unit, unit);
    assert_int_equal(pages[unit - 1], 5);
    assert_int_equal(pages[unit], 0);
    assert_int_equal(pages[2 * unit - 1], 0);
    assert_int_equal(pages[2 * unit], 5);
    kri_pages_discard(pages + 2 * unit + 10, 100); /* inside one page: nothing */
    assert_int_equal(pages[2 * unit + 50], 5);
    kri_pages_discard(pages + 3 * unit - 1, unit);
    assert_int_equal(pages[3 * unit - 1], 5);
    assert_int_equal(pages[3 * unit], 0);
    assert_int_equal(pages[4 * unit - 1], 5);
    kri_pages_free(pages, 4 * unit);
}
