/* test_tiny_model.c: the tiny random models are files the reader accepts, and are byte for byte
 * those the golden logits were made from. */
#include "test.h"
#include "tiny_model.h"

#include "model/gguf.h"

static uint64_t fnv1a(const gguf_bytes_t *bytes) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < bytes->n; i++) hash = (hash ^ bytes->data[i]) * UINT64_C(0x100000001b3);
    return hash;
}

TEST(tiny_models_equal_those_of_the_golden_files) {
    static const char *const presets[] = {"llama", "llama_gqa4", "qwen2", "gemma3"};
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        char path[512];
        unsigned long long expected = 0;
        tiny_config_t config = tiny_config(presets[i]);
        gguf_bytes_t file = tiny_model(&config);
        snprintf(path, sizeof path, "%s/tests/golden/tiny_%s.txt", KR_SOURCE_DIR, presets[i]);
        FILE *golden = fopen(path, "r");
        assert_non_null(golden);
        assert_int_equal(fscanf(golden, "%llx", &expected), 1);
        fclose(golden);
        assert_true(expected == fnv1a(&file));
        free(file.data);
    }
}

TEST(tiny_models_open_in_every_type) {
    static const uint32_t types[] = {0, 1, 30, 2, 3, 6, 7, 8, 12, 13, 14};
    static const char *const presets[] = {"llama", "qwen2", "gemma3", "wide"};
    for (size_t i = 0; i < 4; i++)
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            tiny_config_t config = tiny_config(presets[i]);
            kri_gguf_t *gguf = NULL;
            kri_str_t arch;
            config.type = types[t];
            gguf_bytes_t file = tiny_model(&config);
            assert_status(kri_gguf_open_memory(file.data, file.n, &gguf, NULL), KR_OK);
            assert_status(kri_gguf_get_str(gguf, "general.architecture", &arch, NULL), KR_OK);
            assert_memory_equal(arch.data, config.arch, arch.n_bytes);
            const kri_gguf_tensor_t *embd = kri_gguf_find(gguf, "token_embd.weight");
            assert_non_null(embd);
            assert_int_equal(embd->tensor.shape[0], config.n_vocab);
            assert_int_equal(embd->tensor.shape[1], config.n_embd);
            kr_dtype_t dtype = kri_dtype_from_ggml(types[t]);
            if (config.n_embd % kri_dtype_info(dtype)->block_items) dtype = KR_DTYPE_F32;
            assert_int_equal(embd->tensor.dtype, dtype);
            kri_gguf_close(gguf);
            free(file.data);
        }
}
