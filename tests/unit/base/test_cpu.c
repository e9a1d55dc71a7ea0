/* test_cpu.c: counting cores and quotas on made-up machines. */
#include "base/os_cpu.h"

#include <sched.h>
#include <unistd.h>

#include "base/os.h"
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

static void put_cpu(unsigned cpu, int package, int die, int core) {
    char where[128], text[16];
    (void)snprintf(where, sizeof where, "sys/devices/system/cpu/cpu%u/topology", cpu);
    (void)snprintf(text, sizeof text, "%d\n", package);
    put(where, "physical_package_id", text);
    (void)snprintf(text, sizeof text, "%d\n", core);
    put(where, "core_id", text);
    if (die < 0) return;
    (void)snprintf(text, sizeof text, "%d\n", die);
    put(where, "die_id", text);
}

TEST(cpu_cores_counts_siblings_once_and_respects_the_mask) {
    enter_root();
    /* Two packages of two cores of two threads; siblings are n and n + 4. */
    for (unsigned cpu = 0; cpu < 8; cpu++) put_cpu(cpu, (int)(cpu / 2 % 2), -1, (int)(cpu % 2));
    const struct { uint64_t mask; uint32_t n_cores; } rows[] = {
        {0xFF, 4}, {0x0F, 4}, {0x11, 1}, {0x13, 2}, {0x33, 2}, {0x80, 1}, {0, 0}, {0xF1, 4},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(kri_cpu_cores(root, &rows[i].mask, 1), rows[i].n_cores);
    }
    leave_root();
}

TEST(cpu_cores_tells_dies_apart) {
    enter_root();
    put_cpu(0, 0, 0, 0);
    put_cpu(1, 0, 1, 0);
    put_cpu(2, 0, 1, 0);
    put_cpu(64, 0, 1, 1);
    const uint64_t mask[2] = {7, 1};
    assert_int_equal(kri_cpu_cores(root, mask, 1), 2);
    assert_int_equal(kri_cpu_cores(root, mask, 2), 3);
    leave_root();
}

TEST(cpu_cores_counts_cpus_without_topology_as_cores) {
    enter_root();
    put_cpu(0, 0, -1, 0);
    put_cpu(1, 0, -1, 0);
    put("sys/devices/system/cpu/cpu2/topology", "core_id", "junk\n");
    const uint64_t mask = 0x0F;
    assert_int_equal(kri_cpu_cores(root, &mask, 1), 3);
    leave_root();
}

TEST(cpu_quota_is_absent_without_cgroups) {
    enter_root();
    assert_int_equal(kri_cpu_quota(root), UINT32_MAX);
    put("proc/self", "cgroup", "0::/a\nnonsense\n\n7:cpu\n");
    assert_int_equal(kri_cpu_quota(root), UINT32_MAX);
    leave_root();
}

TEST(cpu_quota_v2_is_the_least_of_all_parents_rounded_up) {
    enter_root();
    put("proc/self", "cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b", "cpu.max", "max 100000\n");
    assert_int_equal(kri_cpu_quota(root), UINT32_MAX);
    put("sys/fs/cgroup", "cpu.max", "900000 100000\n");
    assert_int_equal(kri_cpu_quota(root), 9);
    put("sys/fs/cgroup/a", "cpu.max", "250001 100000\n");
    assert_int_equal(kri_cpu_quota(root), 3);
    put("sys/fs/cgroup/a/b", "cpu.max", "5000 100000\n");
    assert_int_equal(kri_cpu_quota(root), 1);
    put("sys/fs/cgroup/a/b", "cpu.max", "-1 0\n");
    assert_int_equal(kri_cpu_quota(root), 3);
    leave_root();
}

TEST(cpu_quota_v1_is_found_at_the_mount_when_the_group_is_not_visible) {
    enter_root();
    put("proc/self", "cgroup", "5:memory:/x\n4:cpu,cpuacct:/docker/0123\n3:cpuset:/\n");
    put("sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu", "cpu.cfs_period_us", "100000\n");
    assert_int_equal(kri_cpu_quota(root), UINT32_MAX);
    put("sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "150000\n");
    assert_int_equal(kri_cpu_quota(root), 2);
    put("sys/fs/cgroup/cpu/docker/0123", "cpu.cfs_quota_us", "100000\n");
    put("sys/fs/cgroup/cpu/docker/0123", "cpu.cfs_period_us", "100000\n");
    assert_int_equal(kri_cpu_quota(root), 1);
    put("proc/self", "cgroup", "4:cpuacct,cpuset:/docker/0123\n");
    assert_int_equal(kri_cpu_quota(root), UINT32_MAX);
    leave_root();
}

TEST(cpu_quota_ignores_paths_outside_of_the_namespace) {
    enter_root();
    put("proc/self", "cgroup", "0::/../../other\n");
    put("sys/fs/cgroup", "cpu.max", "400000 100000\n");
    put("other", "cpu.max", "100000 100000\n");
    assert_int_equal(kri_cpu_quota(root), 4);
    leave_root();
}

TEST(cpu_count_of_this_machine_is_between_one_and_its_processors) {
    const uint32_t n = kri_cpu_count();
    assert_in_range(n, 1, sysconf(_SC_NPROCESSORS_CONF));
    assert_in_range(kri_cpu_count_smt(), n, sysconf(_SC_NPROCESSORS_CONF));
}
