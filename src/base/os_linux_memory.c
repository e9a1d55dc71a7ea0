/* os_linux_memory.c: how much memory is left for this process. The system's own estimate
 * (MemAvailable) knows nothing of a container's limit, so both count. File pages that a group could
 * drop are counted as free, as MemAvailable does. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/os.h"
#include "base/os_cpu.h"

/* The number behind "<name> " in a file of lines; 0 without it. */
static uint64_t named_number(const char *text, const char *name) {
    const size_t n = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, name, n) != 0) continue;
        char *end;
        errno = 0;
        const unsigned long long value = strtoull(line + n, &end, 10);
        return end == line + n || errno != 0 ? 0 : value;
    }
    return 0;
}

static uint64_t group_left(const char *dir, const char *limit_name, const char *usage_name,
                           const char *file_name) {
    char path[KRI_PATH_BYTES + 64];
    char text[4096];
    long long limit, usage;
    (void)snprintf(path, sizeof path, "%s/%s", dir, limit_name);
    if (!kri_os_read_number(path, &limit) || limit < 0) return UINT64_MAX; /* also "max" */
    (void)snprintf(path, sizeof path, "%s/%s", dir, usage_name);
    if (!kri_os_read_number(path, &usage) || usage < 0) return UINT64_MAX;
    (void)snprintf(path, sizeof path, "%s/memory.stat", dir);
    const uint64_t files =
        kri_os_read_text(path, text, sizeof text) ? named_number(text, file_name) : 0;
    const uint64_t held = (uint64_t)usage > files ? (uint64_t)usage - files : 0;
    return (uint64_t)limit > held ? (uint64_t)limit - held : 0;
}

static uint64_t left_v2(const char *dir) {
    return group_left(dir, "memory.max", "memory.current", "inactive_file ");
}

static uint64_t left_v1(const char *dir) {
    return group_left(dir, "memory.limit_in_bytes", "memory.usage_in_bytes",
                      "total_inactive_file ");
}

uint64_t kri_memory_available_at(const char *root) {
    static const kri_cgroup_fn left_at[2] = {left_v2, left_v1};
    char path[512];
    char text[4096];
    const int n = snprintf(path, sizeof path, "%s/proc/meminfo", root);
    if (n <= 0 || (size_t)n >= sizeof path || !kri_os_read_text(path, text, sizeof text)) return 0;
    const uint64_t system_kib = named_number(text, "MemAvailable:");
    const uint64_t system = system_kib < UINT64_MAX / 1024 ? system_kib * 1024 : 0;
    const uint64_t groups = kri_cgroup_least(root, "memory", left_at);
    return groups < system ? groups : system;
}

uint64_t kri_memory_available(void) { return kri_memory_available_at(""); }
