/* test_memory.c: how much memory is left, on made-up machines; the descriptor that wakes a host. */
#define _GNU_SOURCE
#include <poll.h>
#include <unistd.h>

#include "base/os.h"
#include "base/os_cpu.h"
#include "test.h"

static char root[256];

static void enter_root(void) {
    (void)snprintf(root, sizeof root, "%s/kr-test-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(root));
}

static void leave_root(void) {
    char command[300];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", root);
    assert_int_equal(system(command), 0);
}

/* Writes <root>/<folder>/<name>. */
static void put(const char *where, const char *name, const char *text) {
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s", root, where);
    assert_status(kri_dir_create(path, NULL), KR_OK);
    (void)snprintf(path, sizeof path, "%s/%s/%s", root, where, name);
    assert_status(kri_file_write_atomic(path, text, strlen(text), NULL), KR_OK);
}

#define GIB (UINT64_C(1) << 30)

TEST(memory_available_is_what_the_system_says_without_limits) {
    enter_root();
    assert_int_equal(kri_memory_available_at(root), 0);
    put("proc", "meminfo", "MemTotal:       99 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n");
    assert_int_equal(kri_memory_available_at(root), 4 * GIB);
    put("proc/self", "cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b", "memory.max", "max\n");
    put("sys/fs/cgroup/a/b", "memory.current", "1000\n");
    assert_int_equal(kri_memory_available_at(root), 4 * GIB);
    put("proc", "meminfo", "MemAvailable: 99999999999999999999999 kB\n");
    assert_int_equal(kri_memory_available_at(root), 0);
    leave_root();
}

TEST(memory_available_is_the_least_that_any_group_leaves) {
    enter_root();
    put("proc", "meminfo", "MemAvailable: 4194304 kB\n");
    put("proc/self", "cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b", "memory.max", "3221225472\n");
    put("sys/fs/cgroup/a/b", "memory.current", "1073741824\n");
    assert_int_equal(kri_memory_available_at(root), 2 * GIB);
    put("sys/fs/cgroup/a/b", "memory.stat", "anon 5\ninactive_file 536870912\nfile 7\n");
    assert_int_equal(kri_memory_available_at(root), 2 * GIB + GIB / 2);
    put("sys/fs/cgroup/a", "memory.max", "2147483648\n");
    put("sys/fs/cgroup/a", "memory.current", "1073741824\n");
    assert_int_equal(kri_memory_available_at(root), GIB);
    put("sys/fs/cgroup/a", "memory.current", "3221225472\n"); /* over its limit: nothing is left */
    assert_int_equal(kri_memory_available_at(root), 0);
    leave_root();
}

TEST(memory_available_knows_version_1_groups) {
    enter_root();
    put("proc", "meminfo", "MemAvailable: 4194304 kB\n");
    put("proc/self", "cgroup", "4:cpu:/x\n5:memory:/docker/0123\n");
    put("sys/fs/cgroup/memory", "memory.limit_in_bytes", "2147483648\n");
    put("sys/fs/cgroup/memory", "memory.usage_in_bytes", "1073741824\n");
    put("sys/fs/cgroup/memory", "memory.stat", "total_inactive_file 1073741824\n");
    assert_int_equal(kri_memory_available_at(root), 2 * GIB);
    leave_root();
}

TEST(memory_available_of_this_machine_is_known) { assert_true(kri_memory_available() > 0); }

TEST(event_fd_is_readable_from_set_to_clear) {
    int fd = -1;
    assert_status(kri_event_fd_create(&fd), KR_OK);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    kri_event_fd_clear(fd); /* without a set: does not block */
    for (int i = 0; i < 2; i++) {
        kri_event_fd_set(fd);
        kri_event_fd_set(fd);
        assert_int_equal(poll(&p, 1, 0), 1);
        kri_event_fd_clear(fd);
        assert_int_equal(poll(&p, 1, 0), 0);
    }
    kri_event_fd_destroy(fd);
    kri_event_fd_destroy(-1);
}
