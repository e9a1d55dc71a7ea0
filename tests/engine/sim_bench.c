/* sim_bench.c: the scheduler's own time per step, pool calls included: 256 running sequences that
 * decode and end, prompts that are computed among them, 1024 waiting. The model costs nothing here;
 * its time is made up for the cost model. Time is the thread's CPU time. */
#include <time.h>

#include "sim.h"

#define N_SEQS 256u
#define N_QUEUE 1024u
#define N_CTX 2048u
#define N_STEPS 20000u
#define N_TASKS (N_SEQS + N_QUEUE)

typedef struct bench_s {
    kri_kv_pool_t *kv;
    kri_sched_t *sched;
    kri_task_t tasks[N_TASKS];
    kr_token_t tokens[N_TASKS][N_CTX];
    sim_rng_t rng;
    double us[N_STEPS];
} bench_t;

static uint64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void submit(bench_t *b, kri_task_t *t, uint64_t now_ns) {
    kr_token_t *tokens = b->tokens[t - b->tasks];
    const uint32_t n_prompt = sim_range(&b->rng, 16, 128);
    *t = (kri_task_t){.tokens = tokens, .n_prompt = n_prompt, .n_tokens = n_prompt,
                      .n_tokens_max = n_prompt + sim_range(&b->rng, 512, 1900),
                      .key = sim_range(&b->rng, 0, 63), .deadline_ns = UINT64_MAX,
                      .queue_until_ns = UINT64_MAX};
    for (uint32_t i = 0; i < n_prompt; i++) {
        tokens[i] = (kr_token_t)sim_range(&b->rng, 0, SIM_VOCAB - 1);
    }
    (void)kri_sched_submit(b->sched, t, now_ns);
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run(bench_t *b, uint64_t *n_tasks, uint64_t *n_rows) {
    uint64_t now_ns = 0;
    for (uint32_t i = 0; i < N_TASKS; i++) submit(b, &b->tasks[i], now_ns);
    for (uint32_t step = 0; step < N_STEPS; step++) {
        kri_plan_t plan;
        uint64_t begin = cpu_ns(), spent = 0;
        (void)kri_sched_expired(b->sched, now_ns);
        if (!kri_sched_plan(b->sched, now_ns, &plan)) return;
        const uint64_t step_ns = 1000000 + plan.n_rows_decode * 20000ull +
                                 plan.n_rows_prefill * 50000ull;
        now_ns += step_ns;
        kri_sched_commit(b->sched, &plan, step_ns);
        *n_rows += plan.step.n_rows;
        *n_tasks += plan.step.n_seqs;
        spent = cpu_ns() - begin;
        for (uint32_t i = 0; i < plan.step.n_out_rows; i++) {
            kri_task_t *t = plan.out_tasks[i];
            const kr_token_t token = (kr_token_t)sim_range(&b->rng, 0, SIM_VOCAB - 1);
            begin = t->n_tokens + 1 == t->n_tokens_max ? cpu_ns() : 0;
            kri_sched_append(b->sched, t, token);
            if (begin == 0) continue;
            kri_sched_end(b->sched, t, true);
            spent += cpu_ns() - begin;
            submit(b, t, now_ns);
        }
        b->us[step] = (double)spent / 1e3;
    }
}

int sim_bench(void) {
    static bench_t bench;
    bench_t *b = &bench;
    b->rng.state = 1;
    const kri_kv_params_t kv = {
        .n_groups = 2, .groups = {{1, 1, 16, 0}, {1, 1, 16, 512}}, .dtype = KR_DTYPE_F16,
        .n_seqs = N_SEQS, .n_ctx = N_CTX, .bytes_max = 0, .prefix_cache = true};
    if (kri_kv_pool_create(&kv, &b->kv) != KR_OK) return 1;
    const kri_sched_params_t params = {
        .kv = b->kv, .n_seqs = N_SEQS, .n_ctx = N_CTX, .n_rows_max = 512, .queue_max = N_QUEUE,
        .max_stall_ns = 50000000};
    if (kri_sched_create(&params, &b->sched) != KR_OK) return 1;
    uint64_t n_tasks = 0, n_rows = 0;
    run(b, &n_tasks, &n_rows);
    double sum = 0;
    for (uint32_t i = 0; i < N_STEPS; i++) sum += b->us[i];
    qsort(b->us, N_STEPS, sizeof b->us[0], compare);
    printf("%u steps, %.1f sequences and %.1f rows each: %.1f us mean, %.1f p50, %.1f p99, %.1f "
           "max\n", N_STEPS, (double)n_tasks / N_STEPS, (double)n_rows / N_STEPS, sum / N_STEPS,
           b->us[N_STEPS / 2], b->us[N_STEPS * 99 / 100], b->us[N_STEPS - 1]);
    for (uint32_t i = 0; i < N_TASKS; i++) kri_sched_end(b->sched, &b->tasks[i], true);
    kri_sched_destroy(b->sched);
    kri_kv_pool_destroy(b->kv);
    return 0;
}
