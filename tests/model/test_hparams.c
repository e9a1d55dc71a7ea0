/* test_hparams.c: hostile hyper-parameters, each key of each architecture at and beyond its bounds.
 * A tiny model's metadata is edited in memory: a key that exists is overwritten in place, a new
 * one is put in front together with a filler that keeps the data aligned. */
#include <math.h>

#include "tiny.h"

enum { TYPE_U32 = 4, TYPE_F32 = 6, TYPE_STR = 8 };

static uint8_t *find(gguf_bytes_t *file, const char *key) {
    const size_t n = strlen(key);
    for (size_t i = 24; i + n + 16 < file->n; i++) {
        if (file->data[i - 8] == n && memcmp(file->data + i - 7, "\0\0\0\0\0\0\0", 7) == 0 &&
            memcmp(file->data + i, key, n) == 0) {
            return file->data + i + n;
        }
    }
    return NULL;
}

static void insert(gguf_bytes_t *file, const gguf_builder_t *b, size_t n_keys) {
    gguf_bytes_t out = {NULL, 0, 0};
    gguf_put(&out, file->data, 24);
    out.data[16] = (uint8_t)(out.data[16] + n_keys); /* tiny models have far fewer than 256 */
    gguf_put(&out, b->kvs.data, b->kvs.n);
    gguf_put(&out, file->data + 24, file->n - 24);
    free(file->data);
    *file = out;
}

/* A scalar of 4 bytes, or the text when that is not NULL. */
static void set_key(gguf_bytes_t *file, const char *key, uint32_t type, uint32_t bits,
                    const char *text) {
    uint8_t *at = text ? NULL : find(file, key);
    if (at) {
        for (size_t i = 0; i < 4; i++) at[i] = (uint8_t)(type >> (8 * i));
        for (size_t i = 0; i < 4; i++) at[4 + i] = (uint8_t)(bits >> (8 * i));
        return;
    }
    gguf_builder_t b;
    gguf_builder_init(&b);
    if (text) gguf_kv_str(&b, key, text);
    else gguf_kv(&b, key, type, bits, 4);
    char filler[33] = "", name[96];
    snprintf(name, sizeof(name), "filler.%s", key);
    const size_t n = b.kvs.n + 8 + strlen(name) + 4 + 8;
    memset(filler, 'x', (32 - n % 32) % 32);
    gguf_kv_str(&b, name, filler);
    assert_int_equal(b.kvs.n % 32, 0);
    insert(file, &b, 2);
    gguf_builder_deinit(&b);
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* Opens the preset with one key changed; whatever loads must also be able to compute. */
static kr_status_t open_with_key(const char *preset, const char *key, uint32_t type,
                                 uint32_t bits, kr_error_t *error) {
    const tiny_config_t config = tiny_config(preset);
    gguf_bytes_t file = tiny_model(&config);
    char full[96];
    kr_model_t model = NULL;
    snprintf(full, sizeof(full), "%s.%s", config.arch, key);
    set_key(&file, strncmp(key, "tokenizer.", 10) == 0 ? key : full, type, bits, NULL);
    kr_error_init(error);
    const kr_status_t status = open_bytes(&file, NULL, &model, error);
    free(file.data);
    if (status != KR_OK) {
        assert_null(model);
        assert_true(error->message[0] != '\0');
        return status;
    }
    kr_session_t session = tiny_session(model, KR_DTYPE_F16, NULL, 1, 1);
    static float logits[2048];
    const kr_token_t token = 1;
    decode_chunks(session, &token, 1, 1, 0, config.n_vocab, logits);
    kr_session_destroy(session);
    kr_model_close(model);
    return status;
}

static const char *const presets[] = {"micro_llama", "micro_qwen2", "micro_gemma3"};

TEST(hparams_integers_over_their_bounds_are_refused) {
    static const struct { const char *key; uint32_t max; } keys[] = {
        {"block_count", 1024}, {"embedding_length", 1 << 20},
        {"feed_forward_length", 1 << 22}, {"context_length", 1 << 30},
        {"attention.head_count", 1024}, {"attention.head_count_kv", 1024},
        {"attention.key_length", 1024}, {"attention.value_length", 1024},
        {"rope.dimension_count", 1024}, {"vocab_size", 4 << 20}};
    kr_error_t error;
    for (size_t p = 0; p < 3; p++) {
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            const uint32_t bad[] = {0, keys[i].max + 1, UINT32_C(1) << 31, UINT32_MAX};
            for (size_t k = 0; k < 4; k++) {
                assert_status(open_with_key(presets[p], keys[i].key, TYPE_U32, bad[k], &error),
                              KR_E_BAD_FORMAT);
                assert_non_null(strstr(error.param, keys[i].key));
            }
        }
    }
}

/* Legal numbers that contradict the tensors, or each other. */
TEST(hparams_that_contradict_the_tensors_are_refused) {
    static const struct { const char *key; uint32_t value; } wrong[] = {
        {"block_count", 3}, {"block_count", 1024}, {"embedding_length", 1},
        {"embedding_length", 64}, {"embedding_length", 1 << 20}, {"feed_forward_length", 1},
        {"feed_forward_length", 1 << 22}, {"attention.head_count", 1},
        {"attention.head_count", 3}, {"attention.head_count", 1024},
        {"attention.head_count_kv", 2}, {"attention.head_count_kv", 3},
        {"attention.key_length", 15}, {"attention.key_length", 14},
        {"attention.value_length", 14}, {"rope.dimension_count", 3},
        {"rope.dimension_count", 18}, {"vocab_size", 1}, {"vocab_size", 4 << 20}};
    kr_error_t error;
    for (size_t p = 0; p < 3; p++) {
        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
            const kr_status_t status =
                open_with_key(presets[p], wrong[i].key, TYPE_U32, wrong[i].value, &error);
            if (status != KR_E_BAD_FORMAT && status != KR_E_UNSUPPORTED) {
                fail_msg("%s %s = %u: %s", presets[p], wrong[i].key, wrong[i].value,
                         kr_status_name(status));
            }
        }
    }
}

TEST(hparams_reals_out_of_range_are_refused) {
    static const char *const keys[] = {"attention.layer_norm_rms_epsilon", "rope.freq_base",
                                       "rope.scaling.factor"};
    const float bad[] = {0.0f, -1.0f, 1e-45f, 3.4e38f, INFINITY, -INFINITY, NAN};
    kr_error_t error;
    for (size_t p = 0; p < 3; p++) {
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
                assert_status(open_with_key(presets[p], keys[i], TYPE_F32, bits_of(bad[k]),
                                            &error), KR_E_BAD_FORMAT);
                assert_non_null(strstr(error.param, keys[i]));
            }
        }
    }
}

TEST(hparams_special_ids_outside_the_vocabulary_are_refused) {
    static const char *const keys[] = {
        "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id", "tokenizer.ggml.unknown_token_id"};
    kr_error_t error;
    for (size_t p = 0; p < 3; p++) {
        const uint32_t n_vocab = tiny_config(presets[p]).n_vocab;
        const uint32_t bad[] = {n_vocab, UINT32_C(1) << 31, UINT32_MAX};
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            for (size_t k = 0; k < 3; k++) {
                assert_status(open_with_key(presets[p], keys[i], TYPE_U32, bad[k], &error),
                              KR_E_BAD_FORMAT);
                assert_string_equal(error.param, keys[i]);
            }
            assert_status(open_with_key(presets[p], keys[i], TYPE_U32, n_vocab - 1, &error),
                          KR_OK);
        }
    }
}

TEST(hparams_key_that_nobody_reads_is_refused_by_name) {
    kr_error_t error;
    for (size_t p = 0; p < 3; p++) {
        assert_status(open_with_key(presets[p], "attention.scale", TYPE_F32, bits_of(0.5f),
                                    &error), KR_E_UNSUPPORTED);
        assert_non_null(strstr(error.param, "attention.scale"));
    }
}

/* Logits of three tokens with a rope.scaling.type (NULL: no such key) and a factor (0: none). */
static void scaled_logits(const char *type, float factor, float logits[3 * 320]) {
    const tiny_config_t config = tiny_config("llama");
    const kr_token_t tokens[3] = {5, 6, 7};
    gguf_bytes_t file = tiny_model(&config);
    kr_model_t model = NULL;
    if (type) set_key(&file, "llama.rope.scaling.type", TYPE_STR, 0, type);
    if (factor > 0) set_key(&file, "llama.rope.scaling.factor", TYPE_F32, bits_of(factor), NULL);
    assert_status(open_bytes(&file, NULL, &model, NULL), KR_OK);
    free(file.data);
    kr_session_t session = tiny_session(model, KR_DTYPE_F32, NULL, 1, 1);
    decode_chunks(session, tokens, 3, 3, 0, config.n_vocab, logits);
    kr_session_destroy(session);
    kr_model_close(model);
}

/* The factor alone means linear scaling: ignoring it would silently compute another model. */
TEST(hparams_rope_factor_without_a_type_is_linear) {
    static float none[3 * 320], linear[3 * 320], untyped[3 * 320], off[3 * 320];
    scaled_logits(NULL, 0, none);
    scaled_logits("linear", 4, linear);
    scaled_logits(NULL, 4, untyped);
    scaled_logits("none", 4, off);
    assert_memory_equal(untyped, linear, sizeof(linear));
    assert_memory_equal(off, none, sizeof(none));
    assert_memory_not_equal(linear, none, sizeof(none));
}
