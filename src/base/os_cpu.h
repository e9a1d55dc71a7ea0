/* os_cpu.h: the parts of kri_cpu_count, apart so that tests can give them a made-up machine. */
#ifndef KRI_BASE_OS_CPU_H
#define KRI_BASE_OS_CPU_H

#include <stdint.h>

/* Distinct physical cores among the CPUs set in mask [n_words], 64 CPUs a word, by the topology
 * files under `root` (a C string before "/sys/..."; "" is the machine itself). A CPU without
 * topology files counts as a core of its own. */
uint32_t kri_cpu_cores(const char *root, const uint64_t *mask, uint32_t n_words);
/* CPUs that the cgroups of this process (v2 and v1, with all their parents) allow, rounded up;
 * UINT32_MAX without a quota. */
uint32_t kri_cpu_quota(const char *root);

#endif
