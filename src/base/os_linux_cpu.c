/* os_linux_cpu.c: how many physical cores this process may use. Threads of one core share its
 * vector units, so a second thread per core only costs here; containers limit CPU time by cgroup
 * quota and not by the affinity mask, so both count. Any file that is missing or odd is skipped:
 * the answer is advice, never an error. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/os.h"
#include "base/os_cpu.h"

#define CPUS_MAX KRI_CPUS_MAX
#define PATH_BYTES KRI_PATH_BYTES

bool kri_os_read_text(const char *path, char *text, size_t capacity) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return false;
    size_t n_bytes = 0;
    while (n_bytes + 1 < capacity) {
        const ssize_t n = read(fd, text + n_bytes, capacity - 1 - n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        n_bytes += (size_t)n;
    }
    close(fd);
    text[n_bytes] = '\0';
    return n_bytes > 0;
}

bool kri_os_read_number(const char *path, long long *value) {
    char text[64];
    if (!kri_os_read_text(path, text, sizeof text)) return false;
    char *end;
    errno = 0;
    const long long parsed = strtoll(text, &end, 10);
    if (end == text || errno != 0) return false;
    *value = parsed;
    return true;
}

/* ---- topology ----------------------------------------------------------------------------- */

static bool topology_number(const char *root, uint32_t cpu, const char *name, long long *value) {
    char path[512];
    const int n = snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%u/topology/%s", root,
                           (unsigned)cpu, name);
    return n > 0 && (size_t)n < sizeof path && kri_os_read_number(path, value);
}

/* One number for the core that a CPU belongs to. */
static uint64_t core_key(const char *root, uint32_t cpu) {
    long long core, package;
    long long die = 0;
    if (!topology_number(root, cpu, "core_id", &core) ||
        !topology_number(root, cpu, "physical_package_id", &package)) {
        return UINT64_C(1) << 63 | cpu;
    }
    (void)topology_number(root, cpu, "die_id", &die); /* core ids may repeat between dies */
    return ((uint64_t)package & 0xFFFF) << 44 | ((uint64_t)die & 0xFFF) << 32 |
           ((uint64_t)core & 0xFFFFFFFF);
}

uint32_t kri_cpu_cores(const char *root, const uint64_t *mask, uint32_t n_words, uint32_t *cpus,
                       uint32_t n_max) {
    /* Open addressing, never more than half full; on the stack because the heap may be hooked. */
    enum { N_SLOTS = 2 * CPUS_MAX };
    uint64_t slots[N_SLOTS]; /* key + 1, 0 = empty: 128 KiB of the 2 MiB that kr.h asks for */
    uint32_t n_cores = 0;
    memset(slots, 0, sizeof slots);
    for (uint32_t cpu = 0; cpu < n_words * 64 && cpu < CPUS_MAX; cpu++) {
        if ((mask[cpu / 64] >> (cpu % 64) & 1) == 0) continue;
        const uint64_t key = core_key(root, cpu) + 1;
        uint32_t at = (uint32_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 32) % N_SLOTS;
        while (slots[at] != 0 && slots[at] != key) at = (at + 1) % N_SLOTS;
        if (slots[at] == key) continue;
        slots[at] = key;
        if (n_cores < n_max) cpus[n_cores] = cpu;
        n_cores++;
    }
    return n_cores;
}

/* ---- lists and nodes ---------------------------------------------------------------------- */

/* A decimal number below `limit` at *at; false when there is none. */
static bool list_number(const char *text, size_t n_bytes, size_t *at, uint32_t limit,
                        uint32_t *value) {
    uint32_t number = 0;
    const size_t begin = *at;
    while (*at < n_bytes && text[*at] >= '0' && text[*at] <= '9') {
        number = number * 10 + (uint32_t)(text[(*at)++] - '0');
        if (number >= limit) return false;
    }
    *value = number;
    return *at > begin;
}

bool kri_cpu_list_parse(const char *text, size_t n_bytes, uint64_t *mask, uint32_t n_words) {
    const uint32_t limit = n_words < CPUS_MAX / 64 ? n_words * 64 : CPUS_MAX;
    size_t at = 0;
    memset(mask, 0, n_words * sizeof *mask);
    if (n_bytes > 0 && text[n_bytes - 1] == '\n') n_bytes--;
    while (at < n_bytes) {
        uint32_t first, last;
        if (!list_number(text, n_bytes, &at, limit, &first)) return false;
        last = first;
        if (at < n_bytes && text[at] == '-') {
            at++;
            if (!list_number(text, n_bytes, &at, limit, &last) || last < first) return false;
        }
        for (uint32_t i = first; i <= last; i++) mask[i / 64] |= UINT64_C(1) << (i % 64);
        if (at == n_bytes) return true;
        if (text[at++] != ',' || at == n_bytes) return false;
    }
    return true;
}

/* The list in a file; false when it is missing, odd or longer than any list in use. */
static bool read_list(const char *path, uint64_t *mask, uint32_t n_words) {
    char text[16384];
    if (!kri_os_read_text(path, text, sizeof text)) return false;
    const size_t n_bytes = strlen(text);
    return n_bytes + 1 < sizeof text && kri_cpu_list_parse(text, n_bytes, mask, n_words);
}

bool kri_cpu_mask_is_all(const char *root, const uint64_t *mask, uint32_t n_words) {
    char path[512];
    uint64_t online[CPUS_MAX / 64];
    const int n = snprintf(path, sizeof path, "%s/sys/devices/system/cpu/online", root);
    if (n <= 0 || (size_t)n >= sizeof path) return false;
    if (!read_list(path, online, CPUS_MAX / 64)) return false;
    for (uint32_t i = 0; i < CPUS_MAX / 64; i++) {
        if (online[i] & ~(i < n_words ? mask[i] : 0)) return false;
    }
    return true;
}

uint32_t kri_cpu_nodes(const char *root, const uint64_t *mask, uint32_t n_words,
                       uint64_t nodes[KRI_NODES_MAX / 64]) {
    char path[512];
    uint64_t online[KRI_NODES_MAX / 64];
    uint32_t n_nodes = 0;
    memset(nodes, 0, KRI_NODES_MAX / 8);
    int n = snprintf(path, sizeof path, "%s/sys/devices/system/node/online", root);
    if (n <= 0 || (size_t)n >= sizeof path) return 0;
    if (!read_list(path, online, KRI_NODES_MAX / 64)) return 0;
    for (uint32_t node = 0; node < KRI_NODES_MAX; node++) {
        uint64_t cpus[CPUS_MAX / 64];
        uint64_t common = 0;
        if ((online[node / 64] >> (node % 64) & 1) == 0) continue;
        n = snprintf(path, sizeof path, "%s/sys/devices/system/node/node%u/cpulist", root,
                     (unsigned)node);
        if (n <= 0 || (size_t)n >= sizeof path) return 0;
        if (!read_list(path, cpus, CPUS_MAX / 64)) continue;
        for (uint32_t i = 0; i < n_words && i < CPUS_MAX / 64; i++) common |= cpus[i] & mask[i];
        if (common == 0) continue;
        nodes[node / 64] |= UINT64_C(1) << (node % 64);
        n_nodes++;
    }
    return n_nodes;
}

/* ---- cgroups ------------------------------------------------------------------------------ */

/* The group and all its parents up to the mount. Inside a container the group's own path may not
 * exist below the mount; the walk upwards then still meets the mount itself. */
static uint64_t least_upwards(const char *root, const char *mount, const char *controller,
                              const char *group, kri_cgroup_fn at) {
    char dir[PATH_BYTES];
    const int n = snprintf(dir, sizeof dir, "%s%s%s%s", root, mount, controller, group);
    if (n <= 0 || (size_t)n >= sizeof dir) return UINT64_MAX;
    const size_t n_mount = strlen(root) + strlen(mount) + strlen(controller);
    size_t length = (size_t)n;
    uint64_t least = UINT64_MAX;
    for (;;) {
        while (length > n_mount && dir[length - 1] == '/') length--;
        dir[length] = '\0';
        const uint64_t value = at(dir);
        if (value < least) least = value;
        if (length <= n_mount) return least;
        while (length > n_mount && dir[length - 1] != '/') length--;
    }
}

static bool has_word(const char *list, const char *word) {
    const size_t n = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',') at++;
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == '\0')) return true;
    }
    return false;
}

/* One line "id:controllers:path" of /proc/self/cgroup. */
static uint64_t least_of_line(const char *root, const char *controller, char *line,
                              const kri_cgroup_fn at[2]) {
    char *controllers = strchr(line, ':');
    if (controllers == NULL) return UINT64_MAX;
    *controllers++ = '\0';
    char *group = strchr(controllers, ':');
    if (group == NULL) return UINT64_MAX;
    *group++ = '\0';
    if (strstr(group, "/..") != NULL) group = ""; /* outside of this namespace's view */
    if (controllers[0] == '\0') {
        const uint64_t unified = least_upwards(root, "/sys/fs/cgroup", "", group, at[0]);
        const uint64_t hybrid = least_upwards(root, "/sys/fs/cgroup/unified", "", group, at[0]);
        return unified < hybrid ? unified : hybrid;
    }
    if (!has_word(controllers, controller)) return UINT64_MAX;
    return least_upwards(root, "/sys/fs/cgroup/", controller, group, at[1]);
}

uint64_t kri_cgroup_least(const char *root, const char *controller, const kri_cgroup_fn at[2]) {
    char path[512];
    char text[8192];
    const int n = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (n <= 0 || (size_t)n >= sizeof path) return UINT64_MAX;
    if (!kri_os_read_text(path, text, sizeof text)) return UINT64_MAX;
    uint64_t least = UINT64_MAX;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        const uint64_t value = least_of_line(root, controller, line, at);
        if (value < least) least = value;
    }
    return least;
}

static uint64_t quota_of(long long quota_us, long long period_us) {
    if (quota_us <= 0 || period_us <= 0) return UINT64_MAX;
    return (uint64_t)(quota_us / period_us + (quota_us % period_us != 0));
}

/* v2: "max 100000" or "50000 100000". */
static uint64_t quota_v2(const char *dir) {
    char path[PATH_BYTES + 32];
    char text[64];
    long long quota_us, period_us;
    (void)snprintf(path, sizeof path, "%s/cpu.max", dir);
    if (!kri_os_read_text(path, text, sizeof text)) return UINT64_MAX;
    if (sscanf(text, "%lld %lld", &quota_us, &period_us) != 2) return UINT64_MAX;
    return quota_of(quota_us, period_us);
}

static uint64_t quota_v1(const char *dir) {
    char path[PATH_BYTES + 32];
    long long quota_us, period_us;
    (void)snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", dir);
    if (!kri_os_read_number(path, &quota_us)) return UINT64_MAX;
    (void)snprintf(path, sizeof path, "%s/cpu.cfs_period_us", dir);
    if (!kri_os_read_number(path, &period_us)) return UINT64_MAX;
    return quota_of(quota_us, period_us);
}

uint32_t kri_cpu_quota(const char *root) {
    static const kri_cgroup_fn quota_at[2] = {quota_v2, quota_v1};
    const uint64_t least = kri_cgroup_least(root, "cpu", quota_at);
    return least < UINT32_MAX ? (uint32_t)least : UINT32_MAX;
}

static bool affinity(uint64_t mask[CPUS_MAX / 64]) {
    memset(mask, 0, CPUS_MAX / 8);
    return sched_getaffinity(0, CPUS_MAX / 8, (cpu_set_t *)(void *)mask) == 0;
}

static uint32_t at_most_quota(uint32_t n) {
    const uint32_t quota = kri_cpu_quota("");
    if (quota < n) n = quota;
    return n > 0 ? n : 1;
}

uint32_t kri_cpu_count(void) {
    uint64_t mask[CPUS_MAX / 64];
    if (!affinity(mask)) return 1;
    return at_most_quota(kri_cpu_cores("", mask, CPUS_MAX / 64, NULL, 0));
}

uint32_t kri_cpu_count_smt(void) {
    uint64_t mask[CPUS_MAX / 64];
    uint32_t n_cpus = 0;
    if (!affinity(mask)) return 1;
    for (uint32_t i = 0; i < CPUS_MAX / 64; i++) n_cpus += (uint32_t)__builtin_popcountll(mask[i]);
    return at_most_quota(n_cpus);
}

uint32_t kri_cpu_places(uint32_t *cpus, uint32_t n_max) {
    uint64_t mask[CPUS_MAX / 64];
    if (!affinity(mask)) return 0;
    const uint32_t n_cores = kri_cpu_cores("", mask, CPUS_MAX / 64, cpus, n_max);
    return n_cores < n_max ? n_cores : n_max;
}

bool kri_cpu_is_unrestricted(void) {
    uint64_t mask[CPUS_MAX / 64];
    return affinity(mask) && kri_cpu_mask_is_all("", mask, CPUS_MAX / 64) &&
           kri_cpu_quota("") == UINT32_MAX;
}

/* linux/mempolicy.h; the C library has no call for it without libnuma. */
#define POLICY_INTERLEAVE 3

uint32_t kri_pages_interleave(void *ptr, size_t n_bytes) {
    uint64_t mask[CPUS_MAX / 64];
    uint64_t nodes[KRI_NODES_MAX / 64];
    if (!affinity(mask)) return 1;
    const uint32_t n_nodes = kri_cpu_nodes("", mask, CPUS_MAX / 64, nodes);
    if (n_nodes <= 1) return 1;
#ifdef SYS_mbind
    /* The kernel takes the number of bits plus one. */
    if (syscall(SYS_mbind, ptr, n_bytes, POLICY_INTERLEAVE, nodes, KRI_NODES_MAX + 1, 0) == 0)
        return n_nodes;
#endif
    return 1;
}

/* ---- matrix registers ---------------------------------------------------------------------- */

#if defined(__x86_64__)
#define REQUEST_XCOMP_PERMISSION 0x1023 /* ARCH_REQ_XCOMP_PERM of arch_prctl(2) */
#define XFEATURE_TILE_DATA 18

bool kri_cpu_permit_tiles(void) {
    static _Atomic int answer; /* 0 = not asked, 1 = no, 2 = yes; asking twice does no harm */
    int known = atomic_load(&answer);
    if (known == 0) {
        known = syscall(SYS_arch_prctl, REQUEST_XCOMP_PERMISSION, XFEATURE_TILE_DATA) == 0 ? 2 : 1;
        atomic_store(&answer, known);
    }
    return known == 2;
}
#else
bool kri_cpu_permit_tiles(void) { return false; }
#endif
