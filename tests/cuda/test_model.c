/* test_model.c: sessions and engines on the CUDA device against sessions of the CPU, through kr.h:
 * every weight type and architecture, prompts and decoding, many sequences, forks, saved states. */
#include <math.h>

#include "engine/engine_util.h"

#include "cuda_util.h"

#define N_VOCAB 320u
#define N_TOKENS 150u

/* Few rows: f16 keys on both sides, but a difference in the last bit of an activation can move
 * its 8-bit form. Many rows: bf16 operands, as on the CPU's matrix unit, with the bound that
 * test_tiny.c has for it. Largest difference relative to the largest logit. */
#define NEAR_FLOAT 5e-3
#define NEAR_QUANT 5e-2
#define NEAR_BF16 1e-1

static double distance(const float *a, const float *b, size_t n) {
    double max = 0.0, diff = 0.0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(a[i]) || !isfinite(b[i])) return INFINITY;
        max = fmax(max, fabs((double)b[i]));
        diff = fmax(diff, fabs((double)a[i] - (double)b[i]));
    }
    return diff / max;
}

static void some_tokens(kr_token_t *ids, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) ids[i] = (kr_token_t)((i * 97u + seed * 31u + 5u) % N_VOCAB);
}

/* On the CPU the references: faster levels may round to bf16 too. */
static kr_session_t session_with(kr_model_t model, uint32_t device, uint32_t n_seqs,
                                 kr_dtype_t kv_dtype) {
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.kv_dtype = kv_dtype;
    params.n_seqs = n_seqs;
    params.device = device;
    if (device == KR_DEVICE_CPU) params.isa = "ref";
    return open_session(model, &params);
}

static kr_session_t session_on(kr_model_t model, uint32_t device, uint32_t n_seqs) {
    return session_with(model, device, n_seqs, KR_DTYPE_F16);
}

static void check_config(const tiny_config_t *config, const char *name, double most_alone) {
    static const uint32_t chunks[] = {7, 64, 1, 512};
    const bool is_small = config->type == 0 && config->head_dim <= 32;
    const size_t n_chunks = !is_emulated_cuda() ? 4 : is_small ? 3 : 2;
    const uint32_t n = is_emulated_cuda() ? N_TOKENS / 3 : N_TOKENS;
    static float expected[N_TOKENS * N_VOCAB], actual[N_TOKENS * N_VOCAB];
    kr_token_t ids[N_TOKENS];
    some_tokens(ids, N_TOKENS, 1);
    kr_model_t model = open_tiny_config(config);
    kr_session_t cpu = session_on(model, KR_DEVICE_CPU, 1);
    decode_chunks(cpu, ids, n, 64, 0, N_VOCAB, expected);
    kr_session_destroy(cpu);
    for (size_t c = 0; c < n_chunks; c++) {
        kr_session_t cuda = session_on(model, KR_DEVICE_CUDA, 1);
        decode_chunks(cuda, ids, n, chunks[c], 0, N_VOCAB, actual);
        const double d = distance(actual, expected, (size_t)n * N_VOCAB);
        print_message("%s in chunks of %u: %.2e\n", name, chunks[c], d);
        if (!(d <= (chunks[c] <= 8 ? most_alone : NEAR_BF16))) {
            fail_msg("%s in chunks of %u: distance %g", name, chunks[c], d);
        }
        kr_session_destroy(cuda);
    }
    kr_model_close(model);
}

TEST(model_logits_of_every_architecture_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    static const char *const presets[] = {"llama", "llama_gqa4", "qwen2", "gemma3"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const tiny_config_t config = tiny_config(presets[i]);
        check_config(&config, presets[i], NEAR_FLOAT);
    }
}

TEST(model_logits_of_every_weight_type_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    static const struct { uint32_t type; const char *name; } types[] = {
        {0, "f32"}, {1, "f16"}, {30, "bf16"}, {2, "q4_0"}, {3, "q4_1"}, {6, "q5_0"}, {7, "q5_1"},
        {8, "q8_0"}, {12, "q4_k"}, {13, "q5_k"}, {14, "q6_k"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        tiny_config_t config = tiny_config("wide");
        config.type = types[i].type;
        check_config(&config, types[i].name, i < 3 ? NEAR_FLOAT : NEAR_QUANT);
        if (is_emulated_cuda() && i > 3) continue;
        config.is_tied = 0;
        check_config(&config, types[i].name, i < 3 ? NEAR_FLOAT : NEAR_QUANT);
    }
}

TEST(model_logits_of_every_head_size_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    for (uint32_t head_dim = 64; head_dim <= 256; head_dim *= 2) {
        tiny_config_t config = tiny_config("wide");
        config.type = 1;
        config.n_heads = 3;
        config.n_kv_heads = 1;
        config.head_dim = head_dim;
        config.n_embd = 3 * head_dim; /* llama files name no other head size */
        if (head_dim <= 128 || !is_emulated_cuda())
            check_config(&config, "llama with larger heads", NEAR_FLOAT);
        config = tiny_config("gemma3");
        config.head_dim = head_dim;
        check_config(&config, "gemma3 with larger heads", NEAR_FLOAT);
    }
}

/* Pages of 8 bits: int8 near the CPU's own, and near what f16 gives; fp8 near f16. */
static void check_kv(const char *preset, uint32_t head_dim, uint32_t chunk) {
    enum { N = 60 };
    static const struct { kr_dtype_t dtype, beside; double most; } rows[] = {
        {KR_DTYPE_I8, KR_DTYPE_I8, NEAR_BF16}, {KR_DTYPE_I8, KR_DTYPE_F16, NEAR_BF16},
        {KR_DTYPE_F8, KR_DTYPE_F16, 1.5 * NEAR_BF16}};
    static float expected[N * N_VOCAB], actual[N * N_VOCAB];
    tiny_config_t config = tiny_config(preset);
    kr_token_t ids[N];
    some_tokens(ids, N, 1);
    config.head_dim = head_dim;
    config.n_embd = config.n_heads * head_dim;
    kr_model_t model = open_tiny_config(&config);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kr_session_t cpu = session_with(model, KR_DEVICE_CPU, 1, rows[i].beside);
        kr_session_t cuda = session_with(model, KR_DEVICE_CUDA, 1, rows[i].dtype);
        decode_chunks(cpu, ids, N, 64, 0, N_VOCAB, expected);
        decode_chunks(cuda, ids, N, chunk, 0, N_VOCAB, actual);
        const double d = distance(actual, expected, (size_t)N * N_VOCAB);
        print_message("%s, %s beside %s in chunks of %u: %.2e\n", preset,
                      kr_dtype_name(rows[i].dtype), kr_dtype_name(rows[i].beside), chunk, d);
        assert_true(d > 0 && d <= rows[i].most);
        kr_session_destroy(cpu);
        kr_session_destroy(cuda);
    }
    kr_model_close(model);
}

TEST(model_logits_over_pages_of_8_bits_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    check_kv("llama_gqa4", 64, 1);
    check_kv("qwen2", 16, 7);
    check_kv("gemma3", 64, 40);
}

/* ---- many sequences ------------------------------------------------------------------------- */

#define N_SEQS 12u
#define N_STEPS (is_emulated_cuda() ? 20u : 45u)

/* One step of n_seqs sequences: rows[i] rows of sequence i, logits of each one's last row. */
static void step_all(kr_session_t session, uint32_t n_seqs, const uint32_t *rows,
                     const kr_token_t *tokens, float *logits) {
    kr_batch_seq_t seqs[N_SEQS];
    uint32_t out_rows[N_SEQS];
    kr_batch_t batch;
    kr_error_t error;
    kr_batch_init(&batch);
    kr_error_init(&error);
    for (uint32_t i = 0; i < n_seqs; i++) {
        seqs[i] = (kr_batch_seq_t){i, rows[i]};
        batch.n_rows += rows[i];
        out_rows[i] = batch.n_rows - 1;
    }
    batch.tokens = tokens;
    batch.seqs = seqs;
    batch.n_seqs = batch.n_out_rows = n_seqs;
    batch.out_rows = out_rows;
    if (kr_session_decode(session, &batch, logits, &error) != KR_OK) fail_msg("%s", error.message);
}

static void check_many(const char *preset, uint32_t n_seqs) {
    static float expected[N_SEQS * N_VOCAB], actual[N_SEQS * N_VOCAB];
    uint32_t rows[N_SEQS], ones[N_SEQS];
    kr_token_t tokens[1024];
    const tiny_config_t config = tiny_config(preset);
    kr_model_t model = open_tiny_config(&config);
    kr_session_t cpu = session_on(model, KR_DEVICE_CPU, N_SEQS);
    kr_session_t cuda = session_on(model, KR_DEVICE_CUDA, N_SEQS);
    for (uint32_t i = 0; i < n_seqs; i++) {
        rows[i] = 1 + i * 37 % 60;
        ones[i] = 1;
    }
    some_tokens(tokens, 1024, n_seqs);
    step_all(cpu, n_seqs, rows, tokens, expected);
    step_all(cuda, n_seqs, rows, tokens, actual);
    double worst = distance(actual, expected, (size_t)n_seqs * N_VOCAB);
    for (uint32_t i = 0; i < N_STEPS; i++) { /* pages fill up, splits change, graphs come again */
        some_tokens(tokens, n_seqs, 100 + i);
        step_all(cpu, n_seqs, ones, tokens, expected);
        step_all(cuda, n_seqs, ones, tokens, actual);
        worst = fmax(worst, distance(actual, expected, (size_t)n_seqs * N_VOCAB));
    }
    print_message("%s, %u sequences: %.2e\n", preset, n_seqs, worst);
    assert_true(worst <= NEAR_BF16);
    kr_session_destroy(cpu);
    kr_session_destroy(cuda);
    kr_model_close(model);
}

TEST(model_sequences_in_one_step_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    check_many("wide", 1);
    check_many("wide", 3);
    check_many("gemma3", 8);
    check_many("llama_gqa4", N_SEQS);
}

/* ---- hidden states -------------------------------------------------------------------------- */

#define N_EMBD 256u
#define N_LONG 100u /* hidden states of so many rows come back in pieces: more than 64 of logits */

typedef struct hidden_s {
    kr_session_t session;
    float hidden[(N_LONG + 1) * N_EMBD], logits[2 * N_VOCAB];
} hidden_t;

/* Sequence 0 goes on by n rows and 1 by one row; both give logits. Hidden states of no row (0), of
 * all (1) or of the odd ones (2); returns their number. */
static uint32_t step_hidden(hidden_t *h, const kr_token_t *tokens, uint32_t n, uint32_t which) {
    const kr_batch_seq_t seqs[2] = {{0, n}, {1, 1}};
    const uint32_t out_rows[2] = {n - 1, n};
    uint32_t rows[N_LONG + 1];
    kr_batch_t batch;
    kr_error_t error;
    kr_batch_init(&batch);
    kr_error_init(&error);
    batch.n_rows = n + 1;
    batch.tokens = tokens;
    batch.seqs = seqs;
    batch.n_seqs = batch.n_out_rows = 2;
    batch.out_rows = out_rows;
    for (uint32_t i = 0; i <= n; i++)
        if (which == 1 || (which == 2 && i % 2)) rows[batch.n_hidden_rows++] = i;
    batch.hidden_rows = rows;
    batch.hidden = h->hidden;
    if (kr_session_decode(h->session, &batch, h->logits, &error) != KR_OK) {
        fail_msg("%s", error.message);
    }
    return batch.n_hidden_rows;
}

TEST(model_hidden_states_are_near_the_cpu_on_cuda) {
    NEED_CUDA();
    static hidden_t cpu, cuda;
    static const char *const presets[] = {"wide", "gemma3"};
    kr_token_t tokens[N_LONG + 1];
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++) {
        tiny_config_t config = tiny_config(presets[p]);
        config.n_embd = N_EMBD;
        config.n_heads = N_EMBD / config.head_dim;
        kr_model_t model = open_tiny_config(&config);
        cpu.session = session_on(model, KR_DEVICE_CPU, 2);
        cuda.session = session_on(model, KR_DEVICE_CUDA, 2);
        static const uint32_t which[] = {1, 0, 0, 2, 2, 0, 1}; /* recorded steps between others */
        for (uint32_t i = 0; i < sizeof which / sizeof *which; i++) {
            some_tokens(tokens, N_LONG + 1, i);
            const uint32_t n = i == 0 ? N_LONG : i == 4 ? 5 : 1;
            const size_t n_hidden = step_hidden(&cpu, tokens, n, which[i]);
            (void)step_hidden(&cuda, tokens, n, which[i]);
            const double d =
                n_hidden > 0 ? distance(cuda.hidden, cpu.hidden, n_hidden * N_EMBD) : 0.0;
            const double of_logits = distance(cuda.logits, cpu.logits, 2 * N_VOCAB);
            print_message("%s, step of %u: %.2e, logits %.2e\n", presets[p], n, d, of_logits);
            assert_true(d <= NEAR_BF16 && of_logits <= NEAR_BF16);
        }
        kr_session_destroy(cpu.session);
        kr_session_destroy(cuda.session);
        kr_model_close(model);
    }
}

/* ---- pages ---------------------------------------------------------------------------------- */

/* Logits of one more token of a sequence. */
static void one_more(kr_session_t session, uint32_t seq, kr_token_t token, float *logits) {
    const kr_batch_seq_t one = {seq, 1};
    const uint32_t out = 0;
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = batch.n_seqs = batch.n_out_rows = 1;
    batch.tokens = &token;
    batch.seqs = &one;
    batch.out_rows = &out;
    assert_status(kr_session_decode(session, &batch, logits, NULL), KR_OK);
}

static void check_sequences(kr_dtype_t kv_dtype) {
    static float first[N_VOCAB], other[N_VOCAB], unused[N_VOCAB];
    kr_token_t ids[40];
    some_tokens(ids, 40, 3);
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    kr_session_t a = session_with(model, KR_DEVICE_CUDA, 3, kv_dtype);
    kr_session_t b = session_with(model, KR_DEVICE_CUDA, 1, kv_dtype);
    decode_chunks(a, ids, 40, 40, 39, N_VOCAB, unused);
    assert_status(kr_session_fork(a, 0, 1, 40), KR_OK);
    one_more(a, 1, 7, other); /* its own copy of the last page, which must not touch 0's */
    one_more(a, 1, 9, other);
    one_more(a, 0, 11, first);
    assert_status(kr_session_truncate(a, 1, 40), KR_OK);
    one_more(a, 1, 11, other);
    assert_memory_equal(other, first, sizeof first);

    size_t n_bytes = 0;
    assert_status(kr_session_save(a, 0, NULL, 0, &n_bytes), KR_E_LIMIT);
    void *saved = malloc(n_bytes);
    assert_non_null(saved);
    assert_status(kr_session_save(a, 0, saved, n_bytes, &n_bytes), KR_OK);
    assert_status(kr_session_restore(b, 0, saved, n_bytes, NULL), KR_OK);
    one_more(a, 0, 13, first);
    one_more(b, 0, 13, other);
    assert_memory_equal(other, first, sizeof first);
    free(saved);
    kr_session_destroy(a);
    kr_session_destroy(b);
    kr_model_close(model);
}

TEST(model_forked_truncated_and_restored_sequences_go_on_alike_on_cuda) {
    NEED_CUDA();
    check_sequences(KR_DTYPE_F16);
    check_sequences(KR_DTYPE_I8);
    check_sequences(KR_DTYPE_F8);
}

static void check_state(kr_dtype_t kv_dtype, double most) {
    static float expected[N_VOCAB], actual[N_VOCAB], unused[N_VOCAB];
    kr_token_t ids[70];
    some_tokens(ids, 70, 4);
    const tiny_config_t config = tiny_config("qwen2");
    kr_model_t model = open_tiny_config(&config);
    kr_session_t cpu = session_with(model, KR_DEVICE_CPU, 1, kv_dtype);
    kr_session_t cuda = session_with(model, KR_DEVICE_CUDA, 1, kv_dtype);
    size_t n_bytes = 0;
    decode_chunks(cpu, ids, 70, 70, 69, N_VOCAB, unused);
    assert_status(kr_session_save(cpu, 0, NULL, 0, &n_bytes), KR_E_LIMIT);
    void *saved = malloc(n_bytes);
    assert_non_null(saved);
    assert_status(kr_session_save(cpu, 0, saved, n_bytes, &n_bytes), KR_OK);
    assert_status(kr_session_restore(cuda, 0, saved, n_bytes, NULL), KR_OK);
    one_more(cpu, 0, 13, expected);
    one_more(cuda, 0, 13, actual);
    assert_true(distance(actual, expected, N_VOCAB) <= most);
    free(saved);
    kr_session_destroy(cpu);
    kr_session_destroy(cuda);
    kr_model_close(model);
}

TEST(model_state_of_the_cpu_goes_on_on_cuda) {
    NEED_CUDA();
    check_state(KR_DTYPE_F16, NEAR_FLOAT);
    check_state(KR_DTYPE_I8, NEAR_QUANT);
}

/* ---- engine --------------------------------------------------------------------------------- */

TEST(engine_runs_requests_at_once_on_cuda) {
    NEED_CUDA();
    enum { N_REQUESTS = 6 };
    collector_t c;
    out_t *outs[N_REQUESTS];
    kr_token_t ids[N_REQUESTS][90];
    kr_session_params_t session;
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    collector_init(&c);
    kr_engine_t engine = make_engine(&c, NULL);
    kr_session_params_init(&session);
    session.n_seqs = 4;
    session.n_ctx = 256;
    session.device = KR_DEVICE_CUDA;
    assert_status(kr_engine_add_model(engine, "tiny", model, &session, NULL), KR_OK);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        ask_t ask;
        some_tokens(ids[i], 90, i / 2); /* pairs share their prefix, through the prefix cache */
        ask_init(&ask, ids[i], 60 + 10 * (i % 3), 40);
        outs[i] = submit(&c, &ask);
    }
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        wait_over(outs[i]);
        assert_status(outs[i]->status, KR_OK);
        assert_int_equal(outs[i]->n_tokens, 40);
        out_destroy(outs[i]);
    }
    kr_engine_destroy(engine);
    kr_model_close(model);
}

/* Greedy requests get their tokens from the device, without logits: the largest of those that a
 * session gives. */
TEST(engine_takes_the_largest_logits_on_cuda) {
    NEED_CUDA();
    enum { N_PROMPT = 40, N_MORE = 12 };
    static float logits[N_VOCAB];
    collector_t c;
    ask_t ask;
    kr_token_t ids[N_PROMPT + N_MORE];
    kr_session_params_t params;
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    collector_init(&c);
    kr_engine_t engine = make_engine(&c, NULL);
    kr_session_params_init(&params);
    params.n_seqs = 1;
    params.device = KR_DEVICE_CUDA;
    assert_status(kr_engine_add_model(engine, "tiny", model, &params, NULL), KR_OK);
    some_tokens(ids, N_PROMPT, 9);
    ask_init(&ask, ids, N_PROMPT, N_MORE);
    out_t *out = submit(&c, &ask);
    wait_over(out);
    assert_status(out->status, KR_OK);
    assert_int_equal(out->n_tokens, N_MORE);
    kr_session_t session = session_on(model, KR_DEVICE_CUDA, 1);
    for (uint32_t i = 0; i < N_MORE; i++) {
        const uint32_t n = i == 0 ? N_PROMPT : 1, row = n - 1;
        const kr_batch_seq_t seq = {0, n};
        kr_batch_t batch;
        kr_batch_init(&batch);
        batch.n_rows = n, batch.tokens = ids + (i == 0 ? 0 : N_PROMPT + i - 1);
        batch.n_seqs = batch.n_out_rows = 1, batch.seqs = &seq, batch.out_rows = &row;
        assert_status(kr_session_decode(session, &batch, logits, NULL), KR_OK);
        kr_token_t best = 0;
        for (kr_token_t t = 1; t < (kr_token_t)N_VOCAB; t++)
            if (logits[t] > logits[best]) best = t;
        assert_int_equal(out->choices[0].tokens[i], best);
        ids[N_PROMPT + i] = best;
    }
    out_destroy(out);
    kr_session_destroy(session);
    kr_engine_destroy(engine);
    kr_model_close(model);
}

static void embed_on(uint32_t device, kr_model_t model, const kr_token_t *ids, uint32_t n,
                     kr_status_t wanted, float *embedding, uint32_t n_embd) {
    collector_t c;
    ask_t ask;
    kr_session_params_t session;
    collector_init(&c);
    kr_engine_t engine = make_engine(&c, NULL);
    kr_session_params_init(&session);
    session.n_seqs = 2;
    session.n_ctx = 128;
    session.device = device;
    assert_status(kr_engine_add_model(engine, "tiny", model, &session, NULL), KR_OK);
    ask_init(&ask, ids, n, 0);
    ask.params.sampler = NULL;
    ask.params.ignore_end = 0;
    ask.params.pooling = KR_POOLING_MEAN;
    out_t *out = submit(&c, &ask);
    wait_over(out);
    assert_status(out->status, wanted);
    if (wanted == KR_OK) {
        assert_int_equal(out->n_embd, n_embd);
        memcpy(embedding, out->embedding, n_embd * sizeof(float));
    }
    out_destroy(out);
    kr_engine_destroy(engine);
}

TEST(engine_embeds_prompts_near_the_cpu_on_cuda) {
    NEED_CUDA();
    enum { N_PROMPT = 70, N_SMALL = 64 };
    float expected[N_SMALL], actual[N_SMALL];
    kr_token_t ids[N_PROMPT];
    kr_model_t model = open_with_nan();
    for (int i = 0; i < N_PROMPT; i++) ids[i] = 100 + i;
    embed_on(KR_DEVICE_CPU, model, ids, N_PROMPT, KR_OK, expected, N_SMALL);
    embed_on(KR_DEVICE_CUDA, model, ids, N_PROMPT, KR_OK, actual, N_SMALL);
    assert_true(distance(actual, expected, N_SMALL) <= NEAR_BF16);
    ids[20] = NAN_TOKEN; /* some rows of many: the device has to see it */
    embed_on(KR_DEVICE_CUDA, model, ids, N_PROMPT, KR_E_NUMERIC, NULL, N_SMALL);
    kr_model_close(model);
}

/* ---- refusals ------------------------------------------------------------------------------- */

static void refused(kr_model_t model, const kr_session_params_t *params, const char *param) {
    kr_session_info_t info;
    kr_error_t error;
    kr_session_info_init(&info);
    kr_error_init(&error);
    assert_status(kr_session_plan(model, params, &info, &error), KR_E_UNSUPPORTED);
    assert_string_equal(error.param, param);
    assert_non_null(strstr(error.message, "not built for device cuda"));
}

/* Without a device too: what it cannot do is known before it is looked for. */
TEST(session_refuses_what_is_not_built_for_the_device) {
    kr_session_params_t params;
    const tiny_config_t config = tiny_config("llama");
    kr_model_t model = open_tiny_config(&config);
    kr_session_params_init(&params);
    params.device = KR_DEVICE_CUDA;
    params.kv_dtype = KR_DTYPE_F32;
    refused(model, &params, "kv_dtype");
    params.kv_dtype = KR_DTYPE_F16;
    params.attn_qk = KR_ATTN_QK_INT8;
    refused(model, &params, "attn_qk");
    params.kv_dtype = KR_DTYPE_F8;
    params.attn_qk = KR_ATTN_QK_INT16;
    refused(model, &params, "attn_qk");
    params.kv_dtype = KR_DTYPE_F16;
    params.attn_qk = KR_ATTN_QK_F32;
    params.invariant = KR_INVARIANT_ON;
    refused(model, &params, "invariant");
    params.invariant = KR_INVARIANT_OFF;
    params.isa = "ref";
    refused(model, &params, "isa");
    params.isa = NULL;
    kr_session_info_t info;
    kr_session_info_init(&info);
    assert_status(kr_session_plan(model, &params, &info, NULL), KR_OK);
    assert_int_equal(info.device, KR_DEVICE_CUDA);
    assert_int_equal(info.is_invariant, 0);
    assert_string_equal(info.isa, "sm_90");
    assert_true(info.scratch_bytes > 0 && info.kv_bytes > 0);
    kr_model_close(model);
}

TEST(session_is_refused_by_name_where_there_is_no_device) {
    kr_session_params_t params;
    kr_session_t session = NULL;
    kr_error_t error;
    if (cuda_or_null()) SKIP("there is a CUDA device");
    const tiny_config_t config = tiny_config("llama");
    kr_model_t model = open_tiny_config(&config);
    kr_error_init(&error);
    kr_session_params_init(&params);
    params.device = KR_DEVICE_CUDA;
    const kr_status_t status = kr_session_create(model, &params, &session, &error);
    assert_true(status == KR_E_NOT_FOUND || status == KR_E_UNSUPPORTED);
    assert_string_equal(error.param, "device");
    assert_null(session);
    kr_model_close(model);
}

/* A session without a cache takes no more than its sequences can hold; an engine's cache can fill
 * all that it is given. */
TEST(engine_too_large_for_the_device_says_what_is_needed_on_cuda) {
    NEED_CUDA();
    kr_session_params_t params;
    kr_engine_params_t engine_params;
    kr_session_t session = NULL;
    kr_error_t error;
    const tiny_config_t config = tiny_config("wide");
    kr_model_t model = open_tiny_config(&config);
    kr_error_init(&error);
    kr_session_params_init(&params);
    params.device = KR_DEVICE_CUDA;
    params.kv_bytes_max = UINT64_C(1) << 42;
    kr_engine_params_init(&engine_params);
    engine_params.kv_bytes_max = params.kv_bytes_max;
    kr_engine_t engine = make_engine(NULL, &engine_params);
    assert_status(kr_engine_add_model(engine, "tiny", model, &params, &error), KR_E_DEVICE_NOMEM);
    assert_non_null(strstr(error.message, "MB of device memory are needed"));
    kr_engine_destroy(engine);
    assert_status(kr_session_create(model, &params, &session, &error), KR_OK);
    kr_session_destroy(session);
    kr_model_close(model);
}
