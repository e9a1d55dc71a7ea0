/* emulator.h: the table of emulated kernels and the running of one. */
#ifndef KR_TESTS_EMULATOR_H
#define KR_TESTS_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

typedef struct emu_kernel_s {
    const char *name;
    void (*call)(const void *args);
    size_t args_bytes;
} emu_kernel_t;
extern const emu_kernel_t emu_kernels[]; /* ends with a NULL name */

/* All blocks, one after the other. */
void emu_run(const emu_kernel_t *kernel, const unsigned grid[3], unsigned n_threads,
             unsigned shared_bytes, const void *args);

#endif
