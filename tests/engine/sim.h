/* sim.h: deterministic simulation of scheduler and KV pool. A world is everything of one seed; its
 * own books (prompts, expected tokens, limits) share no memory with what it checks. */
#ifndef TESTS_ENGINE_SIM_H
#define TESTS_ENGINE_SIM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/kv_pool.h"
#include "engine/sched.h"

/* ---- random numbers: splitmix64 ---- */
typedef struct sim_rng_s { uint64_t state; } sim_rng_t;
static inline uint64_t sim_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}
static inline uint64_t sim_next(sim_rng_t *rng) {
    return sim_mix(rng->state += UINT64_C(0x9e3779b97f4a7c15));
}
/* low..high, both included */
static inline uint32_t sim_range(sim_rng_t *rng, uint32_t low, uint32_t high) {
    return low + (uint32_t)(sim_next(rng) % ((uint64_t)high - low + 1));
}
static inline bool sim_chance(sim_rng_t *rng, uint32_t permille) {
    return sim_next(rng) % 1000 < permille;
}

/* ---- the model that both sides compute, each from its own data ---- */
#define SIM_VOCAB 1009u
#define SIM_HASH_START UINT64_C(0x243f6a8885a308d3)
static inline uint64_t sim_hash(uint64_t hash, kr_token_t token) {
    return (hash ^ (uint32_t)token) * UINT64_C(0x9e3779b97f4a7c15) + (hash >> 29);
}
static inline kr_token_t sim_sample(uint64_t hash, uint64_t sampler) {
    return (kr_token_t)(sim_mix(hash ^ sampler) % SIM_VOCAB);
}

/* sim_model.c: writes the step's keys into the pages and reads the history of every sequence's last
 * row back: hashes [n_seqs]. False with a text in error: what a window or a page held was wrong. */
bool sim_model_run(const kri_plan_t *plan, uint64_t *hashes, char *error, size_t error_bytes);

/* What a step leaves behind that was stopped in the middle: rows that mean nothing. */
void sim_model_spoil(const kri_plan_t *plan);

/* ---- one request ---- */
typedef struct sim_request_s {
    kri_task_t task;
    uint64_t sampler;       /* what the choice samples with */
    uint64_t hash;          /* of prompt and tokens so far, from the request's own prompt */
    uint32_t n_goal;        /* ends at so many tokens */
    uint32_t n_appended;
    uint32_t n_pooled;      /* MEAN: rows whose hidden states it has had, from position 0 on */
    uint64_t credits_at_ns; /* next grant, when counted */
    bool is_live;
} sim_request_t;

typedef struct sim_totals_s {
    uint64_t n_requests, n_done, n_cancelled, n_expired, n_numeric, n_refused, n_busy;
    uint64_t n_steps, n_tokens, n_aborted, n_preempted, n_pinned, n_forked, n_cached, n_evicted;
    uint64_t n_resized, n_idle_steps, n_embedded, n_repooled;
} sim_totals_t;

/* sim.c: runs one seed; false with a text in error (when and what). */
bool sim_run(uint64_t seed, bool trace, sim_totals_t *totals, char *error, size_t error_bytes);
/* sim_bench.c: time of plan, commit and append per step; 0 on success. */
int sim_bench(void);

#endif
