/* os_cpu.h: the parts of kri_cpu_count and of placing threads and memory, apart so that tests can
 * give them a made-up machine: `root` is a C string before "/sys/..."; "" is the machine itself.
 * Masks have 64 CPUs a word. */
#ifndef KRI_BASE_OS_CPU_H
#define KRI_BASE_OS_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KRI_PATH_BYTES 4096

#define KRI_CPUS_MAX 8192u
#define KRI_NODES_MAX 1024u

/* Distinct physical cores among the CPUs set in mask [n_words], by the topology files. A CPU
 * without topology files counts as a core of its own. cpus [n_max]: the first CPU of each core,
 * ascending, as many as fit; may be NULL with n_max 0. */
uint32_t kri_cpu_cores(const char *root, const uint64_t *mask, uint32_t n_words, uint32_t *cpus,
                       uint32_t n_max);
/* CPUs that the cgroups of this process (v2 and v1, with all their parents) allow, rounded up;
 * UINT32_MAX without a quota. */
uint32_t kri_cpu_quota(const char *root);
/* A kernel list "0-3,8,10-11" (n_bytes of text; it may end with a line feed) as a mask of
 * n_words words. False for anything else, a number past the mask, a range downwards; the mask is
 * then undefined. The empty list is valid. */
bool kri_cpu_list_parse(const char *text, size_t n_bytes, uint64_t *mask, uint32_t n_words);
/* Whether mask [n_words] holds all CPUs that are online. False when that cannot be read. */
bool kri_cpu_mask_is_all(const char *root, const uint64_t *mask, uint32_t n_words);
/* Memory nodes that the CPUs of mask [n_words] belong to, as a mask of KRI_NODES_MAX bits;
 * returns how many, 0 when they cannot be read. */
uint32_t kri_cpu_nodes(const char *root, const uint64_t *mask, uint32_t n_words,
                       uint64_t nodes[KRI_NODES_MAX / 64]);

/* First bytes of a small kernel file as a C string; false when it cannot be read. */
bool kri_os_read_text(const char *path, char *text, size_t capacity);
bool kri_os_read_number(const char *path, long long *value);
/* The least of `at(folder)` over the cgroups of this process that the controller ("cpu", "memory")
 * knows, with all their parents up to the mount: at[0] for version 2, at[1] for version 1.
 * UINT64_MAX without any. */
typedef uint64_t (*kri_cgroup_fn)(const char *dir);
uint64_t kri_cgroup_least(const char *root, const char *controller, const kri_cgroup_fn at[2]);
/* kri_memory_available of the machine under root. */
uint64_t kri_memory_available_at(const char *root);

#endif
