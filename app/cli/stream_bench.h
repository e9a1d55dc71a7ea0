/* stream_bench.h: the read-only memory bandwidth of this machine, the denominator of every decode
 * figure: a decode step reads all weights once, so it can be no faster than such a read. */
#ifndef KR_APP_CLI_STREAM_BENCH_H
#define KR_APP_CLI_STREAM_BENCH_H

#include <stddef.h>

/* Well past any last-level cache of the machines aimed at. */
#define STREAM_BENCH_BYTES ((size_t)256u << 20)
#define STREAM_BENCH_PASSES 7u
#define STREAM_BENCH_THREADS_MAX 1024u

/* Median over n_passes of n_threads threads reading n_bytes once (each its own part, all together,
 * after one pass to touch the memory), in 10^9 bytes per second. 0 for n_bytes or n_passes:
 * the defaults above. Returns 0 when memory or threads cannot be had or n_threads is 0 or above
 * the maximum. */
double stream_bench_read_gbps(unsigned n_threads, size_t n_bytes, unsigned n_passes);

#endif
