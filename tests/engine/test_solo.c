/* test_solo.c: many requests at once give, token by token, what each gives alone. Prompts share
 * prefixes, some requests have several choices, pools are so small that tasks are preempted.
 * KR_ENGINE_REQUESTS=N runs N requests instead of 500. */
#include "engine_util.h"

#define IN_FLIGHT 256
#define FAMILIES 8
#define PROMPT_MAX 160

typedef struct trace_s {
    const char *preset;
    kr_dtype_t kv;
    uint32_t n_seqs, n_rows_max, n_threads;
    uint32_t pool_tokens; /* of f16; 0: every sequence can be full */
    bool expect_preemption;
} trace_t;

typedef struct run_s {
    ask_t ask;
    kr_token_t prompt[PROMPT_MAX];
    out_t *out;
} run_t;

static uint64_t random_state;

static uint32_t below(uint32_t n) {
    return (uint32_t)(tiny_random(UINT64_C(0x5010), random_state++) >> 33) % n;
}

static uint32_t n_requests(void) {
    const char *text = getenv("KR_ENGINE_REQUESTS");
    const long n = text ? strtol(text, NULL, 10) : 0;
    return n > 0 && n <= 1000000 ? (uint32_t)n : 500;
}

/* A prefix of one of the families' common prompts, then tokens of its own. */
static void make_request(run_t *run, uint32_t n_vocab) {
    const uint32_t family = below(FAMILIES), n_shared = below(110), n_own = 1 + below(40);
    for (uint32_t i = 0; i < n_shared; i++) {
        run->prompt[i] = (kr_token_t)(tiny_random(family, i) % n_vocab);
    }
    for (uint32_t i = 0; i < n_own; i++) run->prompt[n_shared + i] = (kr_token_t)below(n_vocab);
    ask_init(&run->ask, run->prompt, n_shared + n_own, 16 + below(49));
    run->ask.params.ignore_end = below(4) != 0;
    run->ask.params.n_choices = below(8) == 0 ? 2 + below(3) : 1;
    run->ask.params.key = below(3);
    run->ask.params.priority = (int32_t)below(5) - 2;
    if (below(4) == 0) { /* what a preempted request must not forget */
        run->ask.sampler.repeat_penalty = 1.3f;
        run->ask.sampler.frequency_penalty = 0.2f;
        run->ask.sampler.n_penalty_last = 1 + below(200);
    }
    if (below(8) == 0) {
        static const char *const stops[] = {"e", "qu"};
        run->ask.params.stops = stops;
        run->ask.params.n_stops = 2;
    }
    if (run->ask.params.n_choices > 1) {
        run->ask.sampler.temperature = 0.9f;
        run->ask.sampler.seed = below(1000);
    }
}

static void finish(run_t *run, solo_t *solo) {
    static out_choice_t wanted;
    wait_over(run->out);
    if (run->out->status != KR_OK) fail_msg("%s", run->out->message);
    for (uint32_t i = 0; i < run->out->n_choices; i++) {
        solo_run(solo, &run->ask, i, &wanted);
        assert_same(&run->out->choices[i], &wanted);
    }
    out_destroy(run->out);
    run->out = NULL;
}

static void run_trace(const trace_t *trace, uint32_t n) {
    static run_t runs[IN_FLIGHT];
    collector_t c;
    solo_t solo;
    kr_engine_params_t params;
    kr_session_params_t session;
    kr_model_t model = open_tiny(trace->preset);
    collector_init(&c);
    solo_init(&solo, model, trace->kv);
    kr_engine_params_init(&params);
    params.n_threads = trace->n_threads;
    params.key_in_flight_max = IN_FLIGHT;
    kr_session_params_init(&session);
    session.n_seqs = trace->n_seqs;
    session.n_rows_max = trace->n_rows_max;
    session.kv_dtype = trace->kv;
    if (trace->pool_tokens) session.kv_bytes_max = kv_bytes_of(model, trace->pool_tokens);
    kr_engine_t engine = make_engine(&c, &params);
    add_model(engine, "tiny", model, &session);
    for (uint32_t i = 0; i < n; i++) {
        run_t *run = &runs[i % IN_FLIGHT];
        if (run->out) finish(run, &solo);
        make_request(run, solo.n_vocab);
        run->out = submit(&c, &run->ask);
    }
    for (uint32_t i = 0; i < IN_FLIGHT; i++) {
        if (runs[i].out) finish(&runs[i], &solo);
    }
    const kr_engine_stats_t stats = engine_stats(engine, "tiny");
    assert_true(stats.n_tokens_cached > 0);
    if (trace->expect_preemption && n >= 100) assert_true(stats.n_preempted > 0);
    assert_int_equal(stats.kv_bytes_used, 0);
    assert_int_equal(stats.n_running, 0);
    assert_int_equal(stats.n_waiting, 0);
    kr_engine_destroy(engine);
    solo_deinit(&solo);
    kr_model_close(model);
}

/* A request takes at most 213 tokens: pools of 1, 1.5 and 3 of the longest. */
TEST(engine_gives_each_request_what_it_gives_alone) {
    static const trace_t traces[] = {
        {"llama", KR_DTYPE_F16, 32, 64, 2, 0, false},
        {"llama_gqa4", KR_DTYPE_F32, 64, 128, 2, 640, true},
        {"qwen2", KR_DTYPE_F16, 8, 32, 1, 320, true},
        {"gemma3", KR_DTYPE_F16, 16, 48, 2, 0, false},
        {"llama", KR_DTYPE_F16, 16, 512, 2, 224, true},
        {"llama_gqa4", KR_DTYPE_I8, 16, 64, 2, 160, true},
    };
    const uint32_t n_traces = sizeof traces / sizeof traces[0];
    const uint32_t n = n_requests();
    for (uint32_t i = 0; i < n_traces; i++) {
        run_trace(&traces[i], n / n_traces + (i < n % n_traces));
    }
}
