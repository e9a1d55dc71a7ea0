/* test_api.c: what the header promises and no other test asks for, through kr.h alone. */
#include <math.h>

#include "tiny.h"

#define N_VOCAB 320

TEST(isa_details_begin_with_the_level) {
    const char *best = kr_isa_best(), *details = kr_isa_details();
    assert_int_equal(strncmp(details, best, strlen(best)), 0);
    if (strcmp(details, best) == 0) return;
    assert_string_equal(best, "avx512");
    assert_string_equal(details, "avx512+bf16");
}

TEST(api_version_names_release_and_commit) {
    assert_non_null(strstr(kr_version(), "0.1.0 ("));
    assert_non_null(strstr(kr_version(), kr_commit()));
    assert_true(kr_threads_default() >= 1);
}

TEST(api_pins_threads_only_to_cores_that_are_there) {
    kr_model_t model = open_tiny("llama");
    kr_session_params_t params;
    kr_session_t session = NULL;
    kr_error_t error;
    kr_session_params_init(&params);
    kr_error_init(&error);
    assert_status(kr_threads_pin(3), KR_E_INVALID_ARG);
    assert_status(kr_threads_pin(-1), KR_E_INVALID_ARG);
    if (kr_threads_default() < 64) {
        assert_status(kr_threads_pin(KR_PIN_ON), KR_OK);
        params.n_threads = 65; /* even if a quota hides cores, so many are rare */
        const kr_status_t status = kr_session_create(model, &params, &session, &error);
        if (status == KR_OK) {
            assert_int_equal(kr_threads_pinned(), 64);
            kr_session_destroy(session);
        } else {
            assert_status(status, KR_E_UNSUPPORTED);
            assert_non_null(strstr(error.message, "cannot pin 65 threads"));
        }
    }
    assert_status(kr_threads_pin(KR_PIN_OFF), KR_OK);
    params.n_threads = 2;
    session = open_session(model, &params);
    assert_int_equal(kr_threads_pinned(), 0);
    kr_session_destroy(session);
    assert_status(kr_threads_pin(KR_PIN_AUTO), KR_OK);
    kr_model_close(model);
}

TEST(api_plan_is_what_create_takes) {
    kr_model_t model = open_tiny("gemma3");
    kr_session_params_t params;
    kr_session_info_t planned, taken;
    kr_session_params_init(&params);
    kr_session_info_init(&planned);
    kr_session_info_init(&taken);
    params.n_ctx = 100;
    params.n_seqs = 3;
    assert_status(kr_session_plan(model, &params, &planned, NULL), KR_OK);
    kr_session_t session = open_session(model, &params);
    assert_status(kr_session_info(session, &taken), KR_OK);
    assert_memory_equal(&planned, &taken, sizeof(taken));
    assert_true(taken.kv_bytes > 0 && taken.scratch_bytes > 0);
    kr_session_destroy(session);
    kr_model_close(model);
}

TEST(api_model_lives_until_the_last_reference) {
    kr_model_t model = open_tiny("llama");
    char value[64];
    const char *key = NULL;
    kr_model_retain(model);
    kr_model_close(model);
    assert_status(kr_model_meta(model, 0, &key, value, sizeof(value)), KR_OK);
    assert_string_equal(key, "general.architecture");
    assert_string_equal(value, "llama");
    assert_status(kr_model_meta(model, UINT32_MAX, &key, value, sizeof(value)), KR_E_NOT_FOUND);
    assert_int_equal(kr_model_token_is_end(model, -1), 0);
    kr_model_close(model);
}

/* Tokens pushed one by one give the text of all of them; a stop string ends it before itself. */
TEST(api_detokenizer_gives_the_text_and_honours_stops) {
    static const char text[] = "one two three";
    kr_model_t model = open_tiny("llama");
    kr_token_t tokens[64];
    size_t n = 0;
    assert_status(kr_model_tokenize(model, text, strlen(text), 0, tokens, 64, &n, NULL), KR_OK);
    for (int with_stop = 0; with_stop < 2; with_stop++) {
        const char *stop = "three";
        kr_detokenizer_t detok = NULL;
        char got[128] = "";
        int32_t stopped = 0;
        const char *part = NULL;
        size_t n_part = 0;
        assert_status(kr_detokenizer_create(model, &stop, (size_t)with_stop, &detok, NULL), KR_OK);
        for (size_t i = 0; i < n && !stopped; i++) {
            assert_status(kr_detokenizer_push(detok, tokens[i], &part, &n_part, &stopped), KR_OK);
            strncat(got, part, n_part);
        }
        assert_status(kr_detokenizer_finish(detok, &part, &n_part), KR_OK);
        strncat(got, part, n_part);
        assert_int_equal(stopped, with_stop);
        assert_string_equal(got, with_stop ? "one two " : text);
        kr_detokenizer_destroy(detok);
    }
    kr_model_close(model);
}

static void render_refused(kr_model_t model, const kr_message_t *messages, size_t n_messages,
                           uint32_t prompt, kr_status_t wanted, const char *param) {
    kr_error_t error;
    size_t n = 77;
    char buf[64] = "";
    kr_error_init(&error);
    assert_status(kr_model_chat_render(model, messages, n_messages, prompt, buf, 64, &n, &error),
                  wanted);
    assert_string_equal(error.param, param);
    assert_true(n == 77 && buf[0] == '\0');
}

/* Any role is the template's, spellings in content stay as they are, sizes as in tokenizing. */
TEST(api_chat_render_gives_the_text_of_the_prompt) {
    static const char wanted[] = "<|im_start|>system\nBe brief.<|im_end|>\n"
                                 "<|im_start|>developer\n<|im_end|><|im_end|>\n"
                                 "<|im_start|>user\n\xc3\xa4<|im_end|>\n"
                                 "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n";
    const kr_message_t messages[] = {{"system", "Be brief.", 9}, {"developer", "<|im_end|>", 10},
                                     {"user", "\xc3\xa4", 2}, {"assistant", NULL, 0}};
    const kr_message_t bad_text = {"user", "\xff", 1}, no_role = {NULL, "x", 1};
    const size_t n_wanted = sizeof wanted - 1;
    kr_model_t model = open_tiny("llama"), base = open_tiny("gemma3");
    char text[512], back[512];
    kr_token_t tokens[512];
    size_t n = 0, n_tokens = 0, n_back = 0;
    memset(text, '#', sizeof text);
    assert_status(kr_model_chat_render(model, messages, 4, 1, text, n_wanted, &n, NULL), KR_OK);
    assert_int_equal(n, n_wanted);
    assert_memory_equal(text, wanted, n_wanted);
    assert_int_equal(text[n_wanted], '#');
    n = 0;
    assert_status(kr_model_chat_render(model, messages, 4, 1, text, n_wanted - 1, &n, NULL),
                  KR_E_LIMIT);
    assert_int_equal(n, n_wanted);
    n = 0;
    assert_status(kr_model_chat_render(model, messages, 4, 0, NULL, 0, &n, NULL), KR_E_LIMIT);
    assert_int_equal(n, n_wanted - strlen("<|im_start|>assistant\n"));
    /* What is tokenized is this text, behind the BOS that the model adds. */
    assert_status(kr_model_chat_tokenize(model, messages, 4, 1, tokens, 512, &n_tokens, NULL),
                  KR_OK);
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    const size_t n_bos = info.add_bos && tokens[0] == info.token_bos;
    assert_status(kr_model_detokenize(model, tokens + n_bos, n_tokens - n_bos,
                                      KR_TOKENIZE_PARSE_SPECIAL, back, 512, &n_back, NULL), KR_OK);
    assert_int_equal(n_back, n_wanted);
    assert_memory_equal(back, wanted, n_wanted);
    render_refused(NULL, messages, 4, 1, KR_E_INVALID_ARG, "model");
    render_refused(base, messages, 4, 1, KR_E_NOT_FOUND, "chat_template");
    render_refused(model, messages, 4, 2, KR_E_INVALID_ARG, "add_generation_prompt");
    render_refused(model, &bad_text, 1, 1, KR_E_INVALID_ARG, "messages");
    render_refused(model, &no_role, 1, 1, KR_E_INVALID_ARG, "messages");
    render_refused(model, NULL, 1, 1, KR_E_INVALID_ARG, "messages");
    render_refused(model, messages, 2049, 1, KR_E_LIMIT, "messages");
    assert_status(kr_model_chat_render(model, messages, 4, 1, NULL, 1, &n, NULL),
                  KR_E_INVALID_ARG);
    assert_status(kr_model_chat_render(model, messages, 4, 1, text, 512, NULL, NULL),
                  KR_E_INVALID_ARG);
    kr_model_close(base);
    kr_model_close(model);
}

TEST(api_sampler_reports_log_probabilities) {
    static const float logits[4] = {0.0f, 2.0f, 1.0f, -1.0f};
    const double sum = 1.0 + exp(2.0) + exp(1.0) + exp(-1.0);
    kr_sampler_params_t params;
    kr_sampler_t sampler = NULL;
    kr_token_t token = -1;
    kr_logprob_t chosen, top[2];
    kr_sampler_params_init(&params);
    params.temperature = 0.0f;
    params.n_logprobs = 2;
    assert_status(kr_sampler_create(&params, 4, &sampler, NULL), KR_OK);
    assert_status(kr_sampler_logprobs(sampler, &chosen, top), KR_E_NOT_FOUND);
    assert_status(kr_sampler_sample(sampler, logits, &token), KR_OK);
    assert_status(kr_sampler_accept(sampler, token), KR_OK);
    assert_status(kr_sampler_logprobs(sampler, &chosen, top), KR_OK);
    assert_int_equal(token, 1);
    assert_int_equal(top[0].token, 1);
    assert_int_equal(top[1].token, 2);
    assert_true(fabs((double)chosen.logprob - (2.0 - log(sum))) < 1e-5);
    assert_true(fabs((double)top[1].logprob - (1.0 - log(sum))) < 1e-5);
    kr_sampler_destroy(sampler);
}

static uint64_t heap_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

TEST(api_session_keeps_its_telemetry) {
    static float logits[N_VOCAB];
    const kr_token_t tokens[2] = {1, 2};
    kr_telemetry_t telemetry = NULL;
    kr_session_params_t params;
    kr_model_t model = open_tiny("llama");
    kr_session_params_init(&params);
    kr_session_destroy(open_session(model, &params)); /* what a first one leaves behind */
    const uint64_t before = heap_bytes();
    assert_status(kr_telemetry_create(&telemetry), KR_OK);
    const uint64_t n_bytes = heap_bytes() - before;
    params.telemetry = telemetry;
    kr_session_t session = open_session(model, &params);
    const uint64_t open_bytes = heap_bytes();
    kr_telemetry_destroy(telemetry);
    assert_int_equal(heap_bytes(), open_bytes);
    decode_chunks(session, tokens, 2, 2, 1, N_VOCAB, logits);
    kr_session_destroy(session);
    assert_true(heap_bytes() < before + n_bytes);
    kr_model_close(model);
}

TEST(api_session_moves_its_metrics) {
    static const struct { const char *name; uint64_t count; } expected[] = {
        {"prefill", 1}, {"decode", 2}, {"tokens_prompt", 5}, {"tokens_generated", 2}};
    static float logits[2 * N_VOCAB]; /* of two steps */
    const kr_token_t tokens[5] = {1, 2, 3, 4, 5};
    kr_telemetry_t telemetry = NULL;
    kr_session_params_t params;
    kr_model_t model = open_tiny("llama");
    assert_status(kr_telemetry_create(&telemetry), KR_OK);
    kr_session_params_init(&params);
    params.telemetry = telemetry;
    kr_session_t session = open_session(model, &params);
    decode_chunks(session, tokens, 5, 5, 4, N_VOCAB, logits);
    decode_chunks(session, tokens, 2, 1, 0, N_VOCAB, logits);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        kr_telemetry_report_t report;
        kr_telemetry_report_init(&report);
        assert_status(kr_telemetry_report(telemetry, expected[i].name, &report), KR_OK);
        assert_int_equal(report.count, expected[i].count);
    }
    kr_session_destroy(session);
    kr_telemetry_destroy(telemetry);
    kr_model_close(model);
}
