/* test_faults.c: T4 for everything below the engine. What a scenario is: faults.h. */
#define _GNU_SOURCE
#include "faults.h"

enum { N_VOCAB = 320, N_PROMPT = 24 };

static const char text_in[] =
    "One two three: \xc3\xa4\xe2\x82\xac and some more words to be split.";

/* ---- opening models ----------------------------------------------------------------------- */

static kr_status_t open_with(world_t *w, const kr_model_params_t *params) {
    kr_model_t model = NULL;
    const kr_status_t status =
        made(w, kr_model_open(w->path, params, &model, error_of(w)), &model);
    if (status != KR_OK) return status;
    kr_model_info_t info;
    kr_model_info_init(&info);
    expect(w, kr_model_info(model, &info) == KR_OK, "an open model tells what it is");
    digest(w, &info.n_params, sizeof info.n_params);
    digest(w, info.arch, strlen(info.arch));
    kr_model_retain(model);
    kr_model_close(model);
    kr_model_close(model);
    return KR_OK;
}

static kr_status_t run_open(world_t *w) {
    kr_model_params_t params;
    params_of(w, &params, false);
    return open_with(w, &params);
}

static kr_status_t run_open_vocab_only(world_t *w) {
    kr_model_params_t params;
    params_of(w, &params, false);
    params.vocab_only = 1;
    return open_with(w, &params);
}

static int32_t cancel_load(const char *stage, uint64_t done, uint64_t total, void *user) {
    (void)stage, (void)total, (void)user;
    return done > 0;
}

static kr_status_t run_open_cancelled(world_t *w) {
    kr_model_params_t params;
    params_of(w, &params, false);
    params.progress = cancel_load;
    return open_with(w, &params);
}

static void cut_file(world_t *w) {
    struct stat st;
    assert_int_equal(stat(w->path, &st), 0);
    assert_int_equal(truncate(w->path, st.st_size / 2), 0);
}

static void lose_file(world_t *w) { assert_int_equal(unlink(w->path), 0); }

static void spoil_file(world_t *w) { /* a type that does not exist, in the first key */
    const int fd = open(w->path, O_RDWR, 0);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, "\xff\xff\xff\x7f", 4, 4), 4); /* the version */
    close(fd);
}

SCENARIO(open_llama, .run = run_open)
SCENARIO(open_qwen2, .preset = "qwen2", .run = run_open)
SCENARIO(open_gemma3, .preset = "gemma3", .run = run_open)
SCENARIO(open_k_quants, .preset = "wide", .run = run_open)
SCENARIO(open_vocab_only, .run = run_open_vocab_only)
SCENARIO(open_cancelled, .run = run_open_cancelled, .clean = KR_E_CANCELLED)
SCENARIO(open_cut_file, .enter = cut_file, .run = run_open, .clean = KR_E_TRUNCATED)
SCENARIO(open_missing_file, .enter = lose_file, .run = run_open, .clean = KR_E_NOT_FOUND)
SCENARIO(open_unknown_version, .enter = spoil_file, .run = run_open, .clean = KR_E_UNSUPPORTED)

/* ---- the cache of packed weights: trouble with it never fails an open --------------------- */

static kr_status_t decode_prompt(world_t *w, kr_session_t session, uint32_t seq, uint32_t n_rows);

/* The whole way, so that weights from a damaged image are packed anew under injection too. */
static kr_status_t run_open_cached(world_t *w) {
    kr_model_params_t params;
    kr_session_params_t session_params;
    kr_model_t model = NULL;
    kr_session_t session = NULL;
    params_of(w, &params, true);
    kr_status_t status = made(w, kr_model_open(w->path, &params, &model, error_of(w)), &model);
    if (status != KR_OK) return status;
    kr_session_params_init(&session_params);
    session_params.n_ctx = 64;
    session_params.n_threads = 2;
    status = made(w, kr_session_create(model, &session_params, &session, error_of(w)), &session);
    if (status == KR_OK) status = decode_prompt(w, session, 0, N_PROMPT);
    kr_session_destroy(session);
    kr_model_close(model);
    return status;
}

static void forget_cache(world_t *w) { remove_tree(w->cache); }

static void fill_cache(world_t *w) {
    kr_model_params_t params;
    kr_model_t model = NULL;
    forget_cache(w);
    params_of(w, &params, true);
    assert_status(kr_model_open(w->path, &params, &model, NULL), KR_OK);
    kr_model_close(model);
}

/* Flips a bit of the image's data: past its first 2 MiB. */
static void damage_cache(world_t *w) {
    fill_cache(w);
    DIR *folder = opendir(w->cache);
    assert_non_null(folder);
    int n_damaged = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[400];
        struct stat st;
        uint8_t byte;
        snprintf(path, sizeof path, "%s/%s", w->cache, entry->d_name);
        if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < (3 << 20)) continue;
        const int fd = open(path, O_RDWR, 0);
        assert_true(fd >= 0);
        assert_int_equal(pread(fd, &byte, 1, (2 << 20) + 77), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, (2 << 20) + 77), 1);
        close(fd);
        n_damaged++;
    }
    closedir(folder);
    assert_int_equal(n_damaged, 1);
}

static void put_file_in_the_way(world_t *w) {
    const int fd = open(w->cache, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
}

SCENARIO(open_cache_cold, .preset = "image", .reset = forget_cache, .run = run_open_cached,
         .degrades = true)
SCENARIO(open_cache_warm, .preset = "image", .enter = fill_cache, .run = run_open_cached,
         .degrades = true)
SCENARIO(open_cache_damaged, .preset = "image", .reset = damage_cache, .run = run_open_cached,
         .degrades = true)
SCENARIO(open_cache_is_no_folder, .preset = "image", .enter = put_file_in_the_way,
         .run = run_open_cached, .degrades = true)

typedef struct found_s { int n_good, n_damaged, n_unreadable; } found_t;

static int32_t count_found(const char *path, uint64_t bytes, kr_status_t status, void *user) {
    (void)path, (void)bytes;
    found_t *found = user;
    switch (status) {
    case KR_OK: found->n_good++; break;
    case KR_E_TRUNCATED:
    case KR_E_BAD_FORMAT:
    case KR_E_CORRUPT: found->n_damaged++; break;
    default: found->n_unreadable++; break;
    }
    return 0;
}

/* A file that cannot be read now is told apart from a damaged one; here it ends the run. */
static kr_status_t run_verify(world_t *w) {
    found_t found = {0, 0, 0};
    const kr_status_t status = kr_cache_verify(w->cache, count_found, &found, error_of(w));
    if (status != KR_OK) expect(w, w->error.code == status, "the error's code is the status");
    if (status == KR_OK && found.n_unreadable > 0) return KR_E_IO;
    if (status == KR_OK) digest(w, &found, sizeof found);
    return status;
}

SCENARIO(cache_verify_good, .preset = "image", .enter = fill_cache, .run = run_verify)
SCENARIO(cache_verify_damaged, .preset = "image", .enter = damage_cache, .run = run_verify)

/* ---- text --------------------------------------------------------------------------------- */

static kr_status_t run_tokenize(world_t *w) {
    kr_token_t tokens[256];
    size_t n_tokens = 0;
    const kr_status_t status =
        kr_model_tokenize(w->model, text_in, sizeof text_in - 1, KR_TOKENIZE_ADD_BOS, tokens, 256,
                          &n_tokens, error_of(w));
    if (status == KR_OK) digest(w, tokens, n_tokens * sizeof tokens[0]);
    else expect(w, n_tokens == 0 && w->error.code == status, "outputs and error of a failed call");
    return status;
}

static kr_status_t run_detokenize(world_t *w) {
    kr_token_t tokens[100];
    char buf[2048];
    size_t n_bytes = 0;
    for (int i = 0; i < 100; i++) tokens[i] = i * 3;
    const kr_status_t status = kr_model_detokenize(w->model, tokens, 100, 0, buf, sizeof buf,
                                                   &n_bytes, error_of(w));
    if (status == KR_OK) digest(w, buf, n_bytes);
    else expect(w, n_bytes == 0 && w->error.code == status, "outputs and error of a failed call");
    return status;
}

static kr_status_t run_chat(world_t *w) {
    static const kr_message_t messages[] = {
        {"system", "Be brief.", 9}, {"user", "Hello <|im_end|> there", 22}, {"assistant", "Hi", 2}};
    kr_token_t tokens[512];
    char text[512];
    size_t n_tokens = 0, n_bytes = 0;
    kr_status_t status =
        kr_model_chat_tokenize(w->model, messages, 3, 1, tokens, 512, &n_tokens, error_of(w));
    if (status == KR_OK) {
        digest(w, tokens, n_tokens * sizeof tokens[0]);
        status = kr_model_chat_render(w->model, messages, 3, 1, text, 512, &n_bytes, error_of(w));
    }
    if (status == KR_OK) digest(w, text, n_bytes);
    else expect(w, w->error.code == status, "the error's code is the status");
    return status;
}

/* As if nothing had been opened before: the template is compiled at its first use. */
static kr_status_t run_chat_of_new_model(world_t *w) {
    kr_model_params_t params;
    kr_model_t model = NULL;
    params_of(w, &params, false);
    params.vocab_only = 1;
    kr_status_t status = made(w, kr_model_open(w->path, &params, &model, error_of(w)), &model);
    if (status != KR_OK) return status;
    world_t of_model = *w;
    of_model.model = model;
    status = run_chat(&of_model);
    w->digest = of_model.digest;
    w->wrong = of_model.wrong;
    kr_model_close(model);
    return status;
}

/* "endfor" of the template becomes a tag that does not exist. */
static void break_template(world_t *w) {
    const int fd = open(w->path, O_RDWR, 0);
    struct stat st;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    char *bytes = malloc((size_t)st.st_size);
    assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    char *at = memmem(bytes, (size_t)st.st_size, "endfor", 6);
    assert_non_null(at);
    assert_int_equal(pwrite(fd, "endfur", 6, at - bytes), 6);
    free(bytes);
    close(fd);
}

static kr_status_t detokenize_with(world_t *w, const char *const *stops, size_t n_stops) {
    kr_detokenizer_t detokenizer = NULL;
    kr_status_t status = made(w, kr_detokenizer_create(w->model, stops, n_stops, &detokenizer,
                                                       error_of(w)), &detokenizer);
    if (status != KR_OK) return status;
    const char *part = NULL;
    size_t n_part = 0;
    int32_t stopped = 0;
    for (kr_token_t token = 3; token < 300 && status == KR_OK && !stopped; token++) {
        status = kr_detokenizer_push(detokenizer, token, &part, &n_part, &stopped);
        if (status == KR_OK) digest(w, part, n_part);
    }
    if (status == KR_OK) status = kr_detokenizer_finish(detokenizer, &part, &n_part);
    if (status == KR_OK) digest(w, part, n_part);
    kr_detokenizer_destroy(detokenizer);
    return status;
}

static kr_status_t run_detokenizer(world_t *w) { return detokenize_with(w, NULL, 0); }

static kr_status_t run_detokenizer_with_stops(world_t *w) {
    static const char *const stops[] = {"never", "to", "be", "found", "\xe2\x82\xac", "a b c d e f",
                                        "0", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"};
    return detokenize_with(w, stops, sizeof stops / sizeof stops[0]);
}

SCENARIO(tokenize, .enter = open_world_model, .run = run_tokenize)
SCENARIO(tokenize_bpe, .preset = "qwen2", .enter = open_world_model, .run = run_tokenize)
SCENARIO(detokenize, .enter = open_world_model, .run = run_detokenize)
SCENARIO(chat_template, .enter = open_world_model, .run = run_chat)
SCENARIO(chat_template_of_new_model, .run = run_chat_of_new_model)
SCENARIO(chat_template_is_broken, .enter = break_template, .run = run_chat_of_new_model,
         .clean = KR_E_BAD_TEMPLATE)
SCENARIO(detokenizer, .enter = open_world_model, .run = run_detokenizer)
SCENARIO(detokenizer_with_stops, .enter = open_world_model, .run = run_detokenizer_with_stops)

/* ---- sampling ----------------------------------------------------------------------------- */

static kr_status_t sample_with(world_t *w, const kr_sampler_params_t *params) {
    kr_sampler_t sampler = NULL;
    float logits[N_VOCAB];
    kr_status_t status =
        made(w, kr_sampler_create(params, N_VOCAB, &sampler, error_of(w)), &sampler);
    if (status != KR_OK) return status;
    for (int step = 0; step < 20 && status == KR_OK; step++) {
        kr_token_t token = -1;
        for (int i = 0; i < N_VOCAB; i++) logits[i] = (float)((i * 37 + step * 11) % 101) / 16.0f;
        status = kr_sampler_sample(sampler, logits, &token);
        if (status == KR_OK) status = kr_sampler_accept(sampler, token);
        digest(w, &token, sizeof token);
        if (status != KR_OK || params->n_logprobs == 0) continue;
        kr_logprob_t chosen, top[20];
        status = kr_sampler_logprobs(sampler, &chosen, top);
        digest(w, top, params->n_logprobs * sizeof top[0]);
    }
    kr_sampler_destroy(sampler);
    return status;
}

static kr_status_t run_sampler(world_t *w) {
    kr_sampler_params_t params;
    kr_sampler_params_init(&params);
    return sample_with(w, &params);
}

static kr_status_t run_sampler_greedy(world_t *w) {
    kr_sampler_params_t params;
    kr_sampler_params_init(&params);
    params.temperature = 0.0f;
    params.n_penalty_last = 0;
    return sample_with(w, &params);
}

static kr_status_t run_sampler_with_everything(world_t *w) {
    kr_logit_bias_t bias[100];
    kr_sampler_params_t params;
    kr_sampler_params_init(&params);
    for (int i = 0; i < 100; i++) bias[i] = (kr_logit_bias_t){i, (float)(i % 7) - 3.0f};
    params.n_logit_bias = 100;
    params.logit_bias = bias;
    params.n_penalty_last = 4096;
    params.repeat_penalty = 1.2f;
    params.presence_penalty = 0.5f;
    params.frequency_penalty = 0.25f;
    params.typical_p = 0.9f;
    params.min_p = 0.01f;
    params.n_logprobs = 20;
    return sample_with(w, &params);
}

SCENARIO(sampler, .run = run_sampler)
SCENARIO(sampler_greedy, .run = run_sampler_greedy)
SCENARIO(sampler_with_everything, .run = run_sampler_with_everything)

/* ---- sessions ----------------------------------------------------------------------------- */

static kr_status_t decode_tokens(world_t *w, kr_session_t session, uint32_t seq,
                                 const kr_token_t *tokens, uint32_t n_rows, kr_token_t *best) {
    float logits[N_VOCAB];
    const kr_batch_seq_t part = {seq, n_rows};
    const uint32_t out_row = n_rows - 1;
    kr_batch_t batch;
    kr_batch_init(&batch);
    batch.n_rows = n_rows;
    batch.tokens = tokens;
    batch.seqs = &part;
    batch.n_seqs = 1;
    batch.n_out_rows = 1;
    batch.out_rows = &out_row;
    const kr_status_t status = kr_session_decode(session, &batch, logits, error_of(w));
    if (status != KR_OK) return status;
    digest(w, logits, sizeof logits);
    if (best) {
        *best = 0;
        for (int i = 1; i < N_VOCAB; i++) {
            if (logits[i] > logits[*best]) *best = i;
        }
    }
    return KR_OK;
}

static kr_status_t decode_prompt(world_t *w, kr_session_t session, uint32_t seq, uint32_t n_rows) {
    kr_token_t tokens[N_PROMPT];
    for (uint32_t i = 0; i < n_rows; i++) tokens[i] = (kr_token_t)(i * 13 % N_VOCAB);
    return decode_tokens(w, session, seq, tokens, n_rows, NULL);
}

static void session_params_of(kr_session_params_t *params, uint32_t n_seqs, uint32_t n_threads) {
    kr_session_params_init(params);
    params->n_ctx = 128;
    params->n_seqs = n_seqs;
    params->n_rows_max = 64;
    params->n_threads = n_threads;
}

static kr_status_t run_plan(world_t *w) {
    kr_session_params_t params;
    kr_session_info_t info;
    session_params_of(&params, 3, 2);
    kr_session_info_init(&info);
    const kr_status_t status = kr_session_plan(w->model, &params, &info, error_of(w));
    if (status == KR_OK) digest(w, &info.kv_bytes, sizeof info.kv_bytes);
    else expect(w, info.kv_bytes == 0, "a failed call leaves its output alone");
    return status;
}

/* Creates a session, decodes a prompt in every sequence, destroys it. */
static kr_status_t use_session(world_t *w, const kr_session_params_t *params) {
    kr_session_t session = NULL;
    kr_status_t status =
        made(w, kr_session_create(w->model, params, &session, error_of(w)), &session);
    for (uint32_t seq = 0; seq < params->n_seqs && status == KR_OK; seq++) {
        status = decode_prompt(w, session, seq, N_PROMPT);
    }
    kr_session_destroy(session);
    return status;
}

static kr_status_t run_session(world_t *w) {
    kr_session_params_t params;
    session_params_of(&params, 1, 1);
    return use_session(w, &params);
}

static kr_status_t run_session_wide(world_t *w) {
    kr_session_params_t params;
    session_params_of(&params, 5, 3);
    params.kv_dtype = KR_DTYPE_F32;
    params.attn_qk = KR_ATTN_QK_F32;
    return use_session(w, &params);
}

static kr_status_t run_session_int16(world_t *w) {
    kr_session_params_t params;
    session_params_of(&params, 2, 2);
    params.attn_qk = KR_ATTN_QK_INT16;
    return use_session(w, &params);
}

static kr_status_t run_session_refused(world_t *w) {
    kr_session_params_t params;
    session_params_of(&params, 1, 1);
    params.n_ctx = 100000;
    return use_session(w, &params);
}

/* Decoding allocates nothing: with no memory left from the creation on, all of it works. */
static void open_world_session(world_t *w) {
    kr_session_params_t params;
    open_world_model(w);
    session_params_of(&params, 2, 2);
    assert_status(kr_session_create(w->model, &params, &w->session, NULL), KR_OK);
}

static kr_status_t run_decode(world_t *w) {
    kr_status_t status = kr_session_truncate(w->session, 0, 0);
    if (status == KR_OK) status = decode_prompt(w, w->session, 0, N_PROMPT);
    if (status == KR_OK) status = kr_session_truncate(w->session, 0, N_PROMPT / 2);
    if (status == KR_OK) status = decode_prompt(w, w->session, 0, 3);
    return status;
}

static kr_status_t run_fork(world_t *w) {
    kr_status_t status = kr_session_truncate(w->session, 0, 0);
    if (status == KR_OK) status = kr_session_truncate(w->session, 1, 0);
    if (status == KR_OK) status = decode_prompt(w, w->session, 0, N_PROMPT);
    if (status == KR_OK) status = kr_session_fork(w->session, 0, 1, N_PROMPT - 3);
    if (status == KR_OK) status = decode_prompt(w, w->session, 1, 5); /* copies a page */
    if (status == KR_OK) status = decode_prompt(w, w->session, 0, 5);
    return status;
}

/* Saves a sequence, restores it into a session of its own and goes on in both. */
static kr_status_t restore_into_new(world_t *w, const void *state, size_t n_bytes) {
    kr_session_params_t params;
    kr_session_t session = NULL;
    session_params_of(&params, 2, 2);
    kr_status_t status =
        made(w, kr_session_create(w->model, &params, &session, error_of(w)), &session);
    if (status == KR_OK) status = kr_session_restore(session, 1, state, n_bytes, error_of(w));
    uint32_t n_tokens = 0;
    if (status == KR_OK) status = kr_session_length(session, 1, &n_tokens);
    expect(w, status != KR_OK || n_tokens == N_PROMPT, "what is restored is as long as the saved");
    if (status == KR_OK) status = decode_prompt(w, session, 1, 4);
    kr_session_destroy(session);
    return status;
}

static kr_status_t run_save_restore(world_t *w) {
    static uint8_t state[1 << 20];
    size_t n_bytes = 0;
    kr_status_t status = kr_session_truncate(w->session, 0, 0);
    if (status == KR_OK) status = decode_prompt(w, w->session, 0, N_PROMPT);
    if (status == KR_OK) status = kr_session_save(w->session, 0, state, sizeof state, &n_bytes);
    if (status == KR_OK) digest(w, state, n_bytes);
    if (status == KR_OK) status = restore_into_new(w, state, n_bytes);
    return status;
}

SCENARIO(session_plan, .enter = open_world_model, .run = run_plan)
SCENARIO(session, .enter = open_world_model, .run = run_session)
SCENARIO(session_of_many, .enter = open_world_model, .run = run_session_wide)
SCENARIO(session_int16_keys, .enter = open_world_model, .run = run_session_int16)
SCENARIO(session_with_windows, .preset = "gemma3", .enter = open_world_model,
         .run = run_session_wide)
SCENARIO(session_refused, .enter = open_world_model, .run = run_session_refused,
         .clean = KR_E_CONTEXT_LENGTH)
SCENARIO(session_decode, .enter = open_world_session, .run = run_decode)
SCENARIO(session_fork, .enter = open_world_session, .run = run_fork)
SCENARIO(session_save_restore, .enter = open_world_session, .run = run_save_restore)
SCENARIO(session_save_restore_windows, .preset = "gemma3", .enter = open_world_session,
         .run = run_save_restore)

/* A program's whole life: open, chat, generate, show, close. */
static kr_status_t generate_text(world_t *w, kr_model_t model, kr_session_t session,
                                 kr_detokenizer_t detokenizer) {
    static const kr_message_t message = {"user", "Tell me.", 8};
    kr_token_t tokens[64];
    size_t n_tokens = 0;
    KR_TRY(kr_model_chat_tokenize(model, &message, 1, 1, tokens, 64, &n_tokens, error_of(w)));
    kr_token_t next = 0;
    KR_TRY(decode_tokens(w, session, 0, tokens, (uint32_t)n_tokens, &next));
    for (int i = 0; i < 8; i++) {
        const char *part = NULL;
        size_t n_part = 0;
        int32_t stopped = 0;
        KR_TRY(kr_detokenizer_push(detokenizer, next, &part, &n_part, &stopped));
        digest(w, part, n_part);
        const kr_token_t last = next;
        KR_TRY(decode_tokens(w, session, 0, &last, 1, &next));
    }
    return KR_OK;
}

static kr_status_t run_program(world_t *w) {
    kr_model_params_t params;
    kr_session_params_t session_params;
    kr_model_t model = NULL;
    kr_session_t session = NULL;
    kr_detokenizer_t detokenizer = NULL;
    params_of(w, &params, false);
    session_params_of(&session_params, 1, 2);
    kr_status_t status = made(w, kr_model_open(w->path, &params, &model, error_of(w)), &model);
    if (status == KR_OK) {
        status = made(w, kr_session_create(model, &session_params, &session, error_of(w)),
                      &session);
    }
    if (status == KR_OK) {
        status = made(w, kr_detokenizer_create(model, NULL, 0, &detokenizer, error_of(w)),
                      &detokenizer);
    }
    kr_model_close(model); /* the others keep it */
    if (status == KR_OK) status = generate_text(w, model, session, detokenizer);
    kr_detokenizer_destroy(detokenizer);
    kr_session_destroy(session);
    return status;
}

SCENARIO(program, .run = run_program)

/* ---- the small nouns ---------------------------------------------------------------------- */

static kr_status_t run_arena(world_t *w) {
    kr_arena_t arena = NULL;
    kr_status_t status = kr_arena_create(100, &arena);
    expect(w, (status == KR_OK) == (arena != NULL), "a handle with KR_OK only");
    for (size_t round = 0; round < 2 && status == KR_OK; round++) {
        for (size_t size = 1; size < 100000 && status == KR_OK; size *= 3) {
            void *ptr = NULL;
            status = kr_arena_alloc(arena, size, &ptr);
            expect(w, (status == KR_OK) == (ptr != NULL), "memory with KR_OK only");
            if (ptr) memset(ptr, 1, size);
        }
        if (status == KR_OK) status = kr_arena_reset(arena);
    }
    kr_arena_destroy(arena);
    return status;
}

static kr_status_t run_tensors(world_t *w) {
    kr_tensor_t tensors[6] = {NULL};
    kr_status_t status = KR_OK;
    for (uint64_t i = 0; i < 6 && status == KR_OK; i++) {
        const uint64_t shape[3] = {i + 1, 100, 1 + i * i * 200};
        status = made(w, kr_tensor_acquire(KR_DTYPE_F16, 3, shape, &tensors[i], error_of(w)),
                      &tensors[i]);
        kr_tensor_view_t view;
        kr_tensor_view_init(&view);
        if (status == KR_OK) status = kr_tensor_view(tensors[i], &view);
        if (status == KR_OK) memset(view.data, 1, view.n_bytes);
        if (i % 2) kr_tensor_release(tensors[i]); /* idle: given up when memory is short */
        if (i % 2) tensors[i] = NULL;
    }
    for (int i = 0; i < 6; i++) kr_tensor_release(tensors[i]);
    return status;
}

static kr_status_t run_telemetry(world_t *w) {
    kr_telemetry_t telemetry = NULL;
    static char json[1 << 16];
    size_t n_bytes = 0;
    kr_status_t status = kr_telemetry_create(&telemetry);
    expect(w, (status == KR_OK) == (telemetry != NULL), "a handle with KR_OK only");
    if (status != KR_OK) return status;
    kr_telemetry_report_t report;
    kr_telemetry_report_init(&report);
    expect(w, kr_telemetry_record(telemetry, "ttft", 1.5) == KR_OK, "recording needs no memory");
    expect(w, kr_telemetry_count(telemetry, "preemptions", 2) == KR_OK, "nor does counting");
    expect(w, kr_telemetry_set(telemetry, "kv_usage", 0.5) == KR_OK, "nor do gauges");
    expect(w, kr_telemetry_report(telemetry, "ttft", &report) == KR_OK, "nor do reports");
    expect(w, kr_telemetry_json(telemetry, json, sizeof json, &n_bytes) == KR_OK, "nor does JSON");
    const double bound_ms = 2.0;
    uint64_t n_under = 0, count = 0;
    double sum_ms = 0.0;
    expect(w, kr_telemetry_histogram(telemetry, "ttft", &bound_ms, 1, &n_under, &count, &sum_ms) ==
                  KR_OK, "nor do histograms");
    expect(w, report.count == 1 && n_bytes > 1000 && n_under == 1 && count == 1 && sum_ms == 1.5,
           "reports hold what was recorded");
    kr_telemetry_destroy(telemetry);
    return KR_OK;
}

/* A host's own allocator, which also fails by itself; nothing else is alive here. */
static void *host_alloc(size_t size, const char *purpose, void *user) {
    (void)purpose;
    return (*(int *)user)++ % 3 == 2 ? NULL : aligned_alloc(64, (size + 63) / 64 * 64);
}

static void host_free(void *ptr, size_t size, const char *purpose, void *user) {
    (void)size, (void)purpose, (void)user;
    free(ptr);
}

static kr_status_t run_allocator(world_t *w) {
    int n_calls = 0;
    const kr_allocator_t allocator = {sizeof allocator, 0, host_alloc, host_free, &n_calls};
    kr_arena_t arena = NULL;
    kr_tensor_t tensor = NULL;
    const uint64_t shape = 100;
    kr_status_t status = kr_allocator_set(&allocator);
    expect(w, status == KR_OK, "nothing is alive between runs");
    if (status == KR_OK) status = kr_arena_create(1, &arena); /* the host's first two */
    if (status == KR_OK) {
        expect(w, kr_allocator_set(NULL) == KR_E_BUSY, "an arena is alive");
        expect(w, kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL) == KR_E_NOMEM,
               "the host's third allocation fails");
        status = kr_tensor_acquire(KR_DTYPE_F32, 1, &shape, &tensor, NULL);
    }
    kr_tensor_release(tensor);
    kr_arena_destroy(arena);
    expect(w, kr_allocator_set(NULL) == KR_OK, "idle tensors keep nobody busy");
    return status;
}

SCENARIO(arena, .run = run_arena)
SCENARIO(tensors, .run = run_tensors, .degrades = true)
SCENARIO(telemetry, .run = run_telemetry)
SCENARIO(allocator, .run = run_allocator)
