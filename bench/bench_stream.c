/* bench_stream.c: prints the read-only memory bandwidth for 1 .. N threads, one JSON line each.
 * Usage: bench_stream [threads_max [mebibytes [passes]]]; by default all CPUs of the process,
 * 1024 MiB and 7 passes. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* CPU_COUNT */
#endif
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "../app/cli/stream_bench.h"

/* A decimal argument in 1 .. max; fallback when it is absent, 0 when it is not such a number. */
static unsigned long parse(int argc, char **argv, int index, unsigned long max,
                           unsigned long fallback) {
    if (index >= argc) {
        return fallback;
    }
    char *end = NULL;
    const unsigned long value = strtoul(argv[index], &end, 10);
    return *end == '\0' && value <= max ? value : 0;
}

static unsigned long n_cpus(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (unsigned long)CPU_COUNT(&set) : 1u;
}

int main(int argc, char **argv) {
    const unsigned long n_threads_max = parse(argc, argv, 1, STREAM_BENCH_THREADS_MAX, n_cpus());
    const unsigned long mebibytes = parse(argc, argv, 2, 1ul << 20, 1024);
    const unsigned long n_passes = parse(argc, argv, 3, 101, STREAM_BENCH_PASSES);
    if (n_threads_max == 0 || mebibytes == 0 || n_passes == 0) {
        fprintf(stderr, "usage: bench_stream [threads_max [mebibytes [passes]]]\n");
        return 2;
    }
    for (unsigned n = 1; n <= n_threads_max; n++) {
        const double gbps =
            stream_bench_read_gbps(n, (size_t)mebibytes << 20, (unsigned)n_passes);
        if (gbps <= 0.0) {
            fprintf(stderr, "bench_stream: no memory or threads for %u threads\n", n);
            return 1;
        }
        printf("{\"threads\":%u,\"read_gbps\":%.2f}\n", n, gbps);
        fflush(stdout);
    }
    return 0;
}
