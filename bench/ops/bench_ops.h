/* bench_ops.h: every kernel of ops.def at every ISA level of this machine and at representative
 * shapes, each as a case that can be prepared once and timed as often as wanted. One thread: a
 * kernel is what one thread runs; threads are measured with whole ops and models. */
#ifndef KRI_BENCH_OPS_H
#define KRI_BENCH_OPS_H

#include <stdbool.h>
#include <stddef.h>

#include "cpu/cpu.h"

#define KRI_BENCH_OPS_MAX 2048u
#define KRI_BENCH_NAME_BYTES 96u

/* What to measure. bytes and flops are those of one call: bytes of memory that have to move
 * (linear: the weights), flops as textbooks count them (a multiply-add is two; an exponential or
 * tanh is counted as ten). */
typedef struct kri_bench_op_s {
    char name[KRI_BENCH_NAME_BYTES]; /* "linear_q4_k/avx512/512x2048/n64" */
    const char *slot;                /* static */
    const char *isa;                 /* static */
    const char *shape;               /* inside name */
    uint32_t row;                    /* of ops.def */
    size_t dims[4];                  /* their meaning is the family's */
    double bytes, flops;
    bool is_int8;                    /* flops are those of byte dot products */
    bool is_tiles;                   /* flops are those of the matrix unit */
} kri_bench_op_t;

typedef struct kri_bench_case_s kri_bench_case_t;

/* The static name of a level (NULL: the best of this machine); NULL for one that this machine has
 * not got. */
const char *kri_bench_level(const char *isa);

/* All of them in a fixed order, levels up to isa_max (NULL: all this machine has), slots whose
 * name contains filter (NULL: all). Writes at most cap rows; returns how many there are.
 * A name's shape pointer is into ops itself: do not move the rows. */
size_t kri_bench_ops_list(const char *isa_max, const char *filter, kri_bench_op_t *ops,
                          size_t cap);
/* Inputs of fixed random numbers. KR_E_NOMEM. */
kr_status_t kri_bench_case_create(const kri_bench_op_t *op, kri_bench_case_t **out);
void kri_bench_case_destroy(kri_bench_case_t *bench);
/* Best time of one call in nanoseconds over at least three bursts and `seconds`; the time the
 * thread ran, so that other programs on the machine count as little as can be. */
double kri_bench_case_sample(kri_bench_case_t *bench, double seconds);

#endif
