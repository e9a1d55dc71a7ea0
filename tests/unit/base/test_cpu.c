/* test_cpu.c: counting cores and quotas on made-up machines. */
#define _GNU_SOURCE
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
        assert_int_equal(kri_cpu_cores(root, &rows[i].mask, 1, NULL, 0), rows[i].n_cores);
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
    assert_int_equal(kri_cpu_cores(root, mask, 1, NULL, 0), 2);
    assert_int_equal(kri_cpu_cores(root, mask, 2, NULL, 0), 3);
    leave_root();
}

TEST(cpu_cores_counts_cpus_without_topology_as_cores) {
    enter_root();
    put_cpu(0, 0, -1, 0);
    put_cpu(1, 0, -1, 0);
    put("sys/devices/system/cpu/cpu2/topology", "core_id", "junk\n");
    const uint64_t mask = 0x0F;
    assert_int_equal(kri_cpu_cores(root, &mask, 1, NULL, 0), 3);
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

TEST(cpu_quota_v1_is_the_least_of_all_parents) {
    enter_root();
    put("proc/self", "cgroup", "4:cpu,cpuacct:/a/b\n0::/elsewhere\n");
    put("sys/fs/cgroup/cpu/a/b", "cpu.cfs_quota_us", "800000\n");
    put("sys/fs/cgroup/cpu/a/b", "cpu.cfs_period_us", "100000\n");
    assert_int_equal(kri_cpu_quota(root), 8);
    put("sys/fs/cgroup/cpu/a", "cpu.cfs_quota_us", "120000\n");
    put("sys/fs/cgroup/cpu/a", "cpu.cfs_period_us", "50000\n");
    assert_int_equal(kri_cpu_quota(root), 3);
    put("sys/fs/cgroup/unified/elsewhere", "cpu.max", "200000 100000\n"); /* hybrid set-up */
    assert_int_equal(kri_cpu_quota(root), 2);
    put("sys/fs/cgroup/cpu/a", "cpu.cfs_period_us", "0\n");
    put("sys/fs/cgroup/cpu/a/b", "cpu.cfs_quota_us", "99999999999999999999\n");
    assert_int_equal(kri_cpu_quota(root), 2);
    leave_root();
}

TEST(cpu_cores_names_the_first_cpu_of_each_core_in_the_mask) {
    enter_root();
    /* Two packages of two cores of two threads; siblings are n and n + 4. */
    for (unsigned cpu = 0; cpu < 8; cpu++) put_cpu(cpu, (int)(cpu / 2 % 2), -1, (int)(cpu % 2));
    uint32_t cpus[4] = {99, 99, 99, 99};
    const uint64_t all = 0xFF, some = 0xF2;
    assert_int_equal(kri_cpu_cores(root, &all, 1, cpus, 4), 4);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(cpus[i], i);
    assert_int_equal(kri_cpu_cores(root, &some, 1, cpus, 3), 4); /* no more than fit */
    assert_int_equal(cpus[0], 1);
    assert_int_equal(cpus[1], 4);
    assert_int_equal(cpus[2], 6);
    assert_int_equal(cpus[3], 3);
    leave_root();
}

TEST(cpu_list_reads_the_kernels_form_and_nothing_else) {
    const struct { const char *text; int valid; uint64_t low, high; } rows[] = {
        {"", 1, 0, 0},          {"\n", 1, 0, 0},         {"0", 1, 1, 0},
        {"0-3\n", 1, 0xF, 0},   {"0,2,65", 1, 5, 2},    {"3,1-2", 1, 0xE, 0},
        {"127", 1, 0, 1ull << 63}, {"0-127", 1, ~0ull, ~0ull}, {"007", 1, 0x80, 0},
        {"128", 0, 0, 0},       {"0-128", 0, 0, 0},      {"3-1", 0, 0, 0},
        {",", 0, 0, 0},         {"1,", 0, 0, 0},         {"1,,2", 0, 0, 0},
        {"-1", 0, 0, 0},        {"1-", 0, 0, 0},         {"1-2-3", 0, 0, 0},
        {" 1", 0, 0, 0},        {"1 ", 0, 0, 0},         {"1\n\n", 0, 0, 0},
        {"0x1", 0, 0, 0},       {"0-7:2/4", 0, 0, 0},    {"4294967296", 0, 0, 0},
        {"99999999999999999999999", 0, 0, 0},            {"a", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t mask[2] = {77, 77};
        const bool valid = kri_cpu_list_parse(rows[i].text, strlen(rows[i].text), mask, 2);
        if (valid != (rows[i].valid != 0)) fail_msg("'%s'", rows[i].text);
        if (!valid) continue;
        assert_true(mask[0] == rows[i].low && mask[1] == rows[i].high);
    }
}

TEST(cpu_mask_is_all_when_it_holds_every_online_cpu) {
    enter_root();
    const uint64_t mask[2] = {0xFF, 1};
    assert_false(kri_cpu_mask_is_all(root, mask, 2)); /* nothing to compare with */
    put("sys/devices/system/cpu", "online", "0-7,64\n");
    assert_true(kri_cpu_mask_is_all(root, mask, 2));
    assert_false(kri_cpu_mask_is_all(root, mask, 1));
    put("sys/devices/system/cpu", "online", "0-8\n");
    assert_false(kri_cpu_mask_is_all(root, mask, 2));
    put("sys/devices/system/cpu", "online", "junk\n");
    assert_false(kri_cpu_mask_is_all(root, mask, 2));
    leave_root();
}

TEST(cpu_nodes_are_those_of_the_mask) {
    enter_root();
    uint64_t nodes[KRI_NODES_MAX / 64];
    const uint64_t all = 0xFF, first = 0x05, last = 0xF0;
    assert_int_equal(kri_cpu_nodes(root, &all, 1, nodes), 0);
    put("sys/devices/system/node", "online", "0-1,3,70\n");
    put("sys/devices/system/node/node0", "cpulist", "0-3\n");
    put("sys/devices/system/node/node1", "cpulist", "4-5\n");
    put("sys/devices/system/node/node2", "cpulist", "6\n");  /* not online */
    put("sys/devices/system/node/node3", "cpulist", "\n");   /* memory only */
    put("sys/devices/system/node/node70", "cpulist", "7,200\n");
    assert_int_equal(kri_cpu_nodes(root, &all, 1, nodes), 3);
    assert_true(nodes[0] == 3 && nodes[1] == 1u << 6);
    assert_int_equal(kri_cpu_nodes(root, &first, 1, nodes), 1);
    assert_true(nodes[0] == 1 && nodes[1] == 0);
    assert_int_equal(kri_cpu_nodes(root, &last, 1, nodes), 2);
    put("sys/devices/system/node/node1", "cpulist", "4-\n"); /* odd: skipped */
    assert_int_equal(kri_cpu_nodes(root, &last, 1, nodes), 1);
    put("sys/devices/system/node", "online", "0-9999999\n");
    assert_int_equal(kri_cpu_nodes(root, &all, 1, nodes), 0);
    leave_root();
}

TEST(pages_stay_usable_when_interleaved) {
    const size_t n_bytes = 1 << 20;
    unsigned char *pages = kri_pages_alloc(n_bytes);
    assert_non_null(pages);
    assert_true(kri_pages_interleave(pages, n_bytes) >= 1);
    memset(pages, 1, n_bytes);
    kri_pages_free(pages, n_bytes);
}

TEST(cpu_places_are_distinct_cpus_of_the_mask) {
    uint32_t cpus[8192];
    cpu_set_t mask;
    const uint32_t n = kri_cpu_places(cpus, 8192);
    assert_true(n >= 1);
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(i == 0 || cpus[i] > cpus[i - 1]);
        if (cpus[i] < CPU_SETSIZE) assert_true(CPU_ISSET(cpus[i], &mask));
    }
    assert_int_equal(kri_cpu_places(cpus, 1), 1);
}

TEST(cpu_count_of_this_machine_is_between_one_and_its_processors) {
    const uint32_t n = kri_cpu_count();
    assert_in_range(n, 1, sysconf(_SC_NPROCESSORS_CONF));
    assert_in_range(kri_cpu_count_smt(), n, sysconf(_SC_NPROCESSORS_CONF));
}
