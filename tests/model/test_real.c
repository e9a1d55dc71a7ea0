/* test_real.c: the three real models against an independent truth: float32 logits of mlx-lm on
 * the dequantised weights (tests/golden/make_logits.py). kr may be at most 1.1 times as far from
 * the truth as llama.cpp is, and its best token must be the truth's wherever that leads clearly.
 * Then greedy text must not depend on threads, chunking or the ISA level's batch shape. */
#include <math.h>

#include "models.h"

#define N_TOP 10
#define DISTANCE_RATIO_MAX 1.1

static double log_sum_exp(const float *x, size_t n) {
    double max = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < n; i++) max = x[i] > max ? (double)x[i] : max;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    return max + log(sum);
}

static size_t argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++) best = x[i] > x[best] ? i : best;
    return best;
}

typedef struct score_s {
    double kr, rival;               /* sums of |log-probability - truth| */
    unsigned n, n_steps;
    unsigned n_clear, n_clear_bad;  /* truth leads by more than 1.0 nat */
    unsigned n_half, n_half_bad;    /* by more than 0.5 nat */
} score_t;

static void score_step(FILE *f, const float *row, size_t n_vocab, score_t *s) {
    unsigned top1 = 0;
    double gap = 0.0;
    assert_int_equal(fscanf(f, " step %u %lf", &top1, &gap), 2);
    const double lse = log_sum_exp(row, n_vocab);
    const int differs = argmax(row, n_vocab) != top1;
    s->n_clear += gap > 1.0;
    s->n_clear_bad += gap > 1.0 && differs;
    s->n_half += gap > 0.5;
    s->n_half_bad += gap > 0.5 && differs;
    s->n_steps++;
    for (int i = 0; i < N_TOP; i++) {
        unsigned id = 0;
        double rival = 0.0, truth = 0.0;
        assert_int_equal(fscanf(f, "%u %lf %lf", &id, &rival, &truth), 3);
        assert_true(id < n_vocab);
        s->kr += fabs((double)row[id] - lse - truth);
        s->rival += fabs(rival - truth);
        s->n++;
    }
}

static void check_logits(const char *alias, unsigned n_prompts_min) {
    char path[512];
    snprintf(path, sizeof(path), "%s/tests/golden/logits_%s.txt", KR_SOURCE_DIR, alias);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    kr_model_t model = open_model(real_model_path(alias));
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    score_t s = {0};
    unsigned n_prompts = 0, n_prompt = 0, n_total = 0;
    assert_int_equal(fscanf(f, "#%*[^\n]"), 0);
    while (fscanf(f, " prompt %u %u", &n_prompt, &n_total) == 2) {
        kr_token_t ids[1024];
        assert_true(n_prompt > 0 && n_prompt <= n_total && n_total <= 1024);
        for (unsigned i = 0; i < n_total; i++) assert_int_equal(fscanf(f, "%d", &ids[i]), 1);
        const unsigned n_rows = n_total - n_prompt + 1;
        float *logits = malloc((size_t)n_rows * info.n_vocab * sizeof(float));
        kr_session_t session = open_session(model, NULL);
        decode_chunks(session, ids, n_total, 512, n_prompt - 1, info.n_vocab, logits);
        for (unsigned r = 0; r < n_rows; r++) {
            score_step(f, logits + (size_t)r * info.n_vocab, info.n_vocab, &s);
        }
        kr_session_destroy(session);
        free(logits);
        n_prompts++;
    }
    fclose(f);
    kr_model_close(model);
    print_message("%s: distance to the truth %.4f nat, llama.cpp %.4f (ratio %.3f); best token "
                  "differs in %u of %u clear steps, %u of %u half-clear steps\n",
                  alias, s.kr / s.n, s.rival / s.n, s.kr / s.rival, s.n_clear_bad, s.n_clear,
                  s.n_half_bad, s.n_half);
    assert_true(n_prompts >= n_prompts_min);
    assert_true(s.kr <= DISTANCE_RATIO_MAX * s.rival);
    assert_int_equal(s.n_clear_bad, 0);
    assert_true(s.n_half_bad * 50 <= s.n_half);
}

TEST(real_logits_follow_the_truth_for_smollm2) { check_logits("smollm2", 8); }
TEST(real_logits_follow_the_truth_for_gemma3) { check_logits("gemma3", 8); }
TEST(real_logits_follow_the_truth_for_qwen25) { check_logits("qwen25", 8); }

/* Greedy continuation of a prompt; returns the number of tokens. */
static void greedy(kr_model_t model, uint32_t n_threads, uint32_t n_chunk, uint32_t n_vocab,
                   kr_token_t *out, uint32_t n_out) {
    static const char text[] =
        "The lighthouse keeper wrote in his log every evening. On the third of October he noted "
        "the wind, the height of the waves, and the names of two ships that had passed. Then he "
        "closed the book, climbed the stairs once more, and saw something that was not a ship: ";
    kr_token_t ids[256];
    size_t n_ids = 0;
    assert_status(kr_model_tokenize(model, text, sizeof(text) - 1, KR_TOKENIZE_ADD_BOS, ids, 256,
                                    &n_ids, NULL), KR_OK);
    kr_session_params_t params;
    kr_session_params_init(&params);
    params.n_threads = n_threads;
    params.n_ctx = 512;
    kr_session_t session = open_session(model, &params);
    float *logits = malloc(n_vocab * sizeof(float));
    decode_chunks(session, ids, (uint32_t)n_ids, n_chunk, (uint32_t)n_ids - 1, n_vocab, logits);
    for (uint32_t i = 0; i < n_out; i++) {
        out[i] = (kr_token_t)argmax(logits, n_vocab);
        decode_chunks(session, &out[i], 1, 1, 0, n_vocab, logits);
    }
    free(logits);
    kr_session_destroy(session);
}

static void check_greedy(const char *alias, uint32_t n_out) {
    static const uint32_t chunks[] = {1, 7, 64, 512};
    kr_model_t model = open_model(real_model_path(alias));
    kr_model_info_t info;
    kr_model_info_init(&info);
    assert_status(kr_model_info(model, &info), KR_OK);
    kr_token_t expected[64], actual[64];
    greedy(model, 1, 512, info.n_vocab, expected, n_out);
    for (size_t c = 0; c < sizeof(chunks) / sizeof(chunks[0]); c++) {
        greedy(model, 2, chunks[c], info.n_vocab, actual, n_out);
        assert_memory_equal(actual, expected, n_out * sizeof(kr_token_t));
    }
    kr_model_close(model);
}

TEST(real_greedy_text_is_the_same_for_any_threads_and_chunks_smollm2) {
    check_greedy("smollm2", 48);
}
TEST(real_greedy_text_is_the_same_for_any_threads_and_chunks_gemma3) {
    check_greedy("gemma3", 48);
}
TEST(real_greedy_text_is_the_same_for_any_threads_and_chunks_qwen25) {
    check_greedy("qwen25", 16);
}
