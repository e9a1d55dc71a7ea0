/* tiny_model.h: small random language models as GGUF files: the keys, tensors and vocabularies of
 * real ones, weights from a counter-based generator seeded by tensor name. Values are small
 * integers times powers of two, so every compiler writes the same bytes, and f16 holds them
 * exactly. Quantised matrices are random blocks with fixed scales: nothing is rounded, the
 * dequantised values are the truth. Header only; used by tests and tools/make_tiny_gguf.c. */
#ifndef KR_TINY_MODEL_H
#define KR_TINY_MODEL_H

#include "gguf_builder.h"

typedef struct tiny_config_s {
    const char *arch; /* "llama", "qwen2", "gemma3"; NULL: unknown preset */
    uint32_t n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx;
    uint32_t window;  /* gemma3 */
    int is_tied;      /* no output.weight */
    int has_template; /* chat template (chatml) */
    uint32_t type;    /* ggml type id of the matrices: 0 f32, 1 f16, 30 bf16, 2 q4_0, ... */
    uint64_t seed;
} tiny_config_t;

/* Presets. llama, qwen2, gemma3: the usual ones; gemma3_chat: with a chat template; llama_gqa4:
 * one KV head for four, own output matrix; wide: rows of 256 for the K types; image: 7 MB, enough
 * to be kept packed; micro_*: as small as a model can be (fuzz seeds). */
static inline tiny_config_t tiny_config(const char *preset) {
    static const struct { const char *name; tiny_config_t config; } presets[] = {
        {"llama", {"llama", 3, 64, 4, 2, 16, 128, 320, 512, 0, 1, 1, 0, 1}},
        {"llama_gqa4", {"llama", 2, 64, 4, 1, 16, 128, 320, 512, 0, 0, 1, 0, 2}},
        {"qwen2", {"qwen2", 3, 64, 4, 2, 16, 128, 320, 512, 0, 0, 1, 0, 3}},
        {"gemma3", {"gemma3", 7, 64, 4, 2, 32, 128, 320, 512, 32, 1, 0, 0, 4}},
        {"gemma3_chat", {"gemma3", 7, 64, 4, 2, 32, 128, 320, 512, 32, 1, 1, 0, 4}},
        {"wide", {"llama", 2, 256, 8, 2, 32, 256, 320, 512, 0, 1, 1, 12, 5}},
        {"image", {"llama", 2, 256, 8, 2, 32, 4096, 320, 512, 0, 1, 1, 8, 9}},
        {"long", {"llama", 1, 32, 2, 1, 16, 32, 320, 2048, 0, 1, 1, 8, 10}},
        {"micro_llama", {"llama", 1, 32, 2, 1, 16, 32, 284, 64, 0, 1, 1, 2, 6}},
        {"micro_qwen2", {"qwen2", 1, 32, 2, 1, 16, 32, 284, 64, 0, 1, 1, 8, 7}},
        {"micro_gemma3", {"gemma3", 2, 32, 2, 1, 16, 32, 320, 64, 8, 1, 0, 6, 8}},
    };
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++)
        if (strcmp(presets[i].name, preset) == 0) return presets[i].config;
    tiny_config_t none;
    memset(&none, 0, sizeof none);
    return none;
}

/* ---- numbers ------------------------------------------------------------------------------ */

/* SplitMix64 of a counter: item i of a stream needs no state. */
static inline uint64_t tiny_random(uint64_t stream, uint64_t i) {
    uint64_t z = stream + (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
static inline uint64_t tiny_stream(uint64_t seed, const char *name) { /* FNV-1a */
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ seed * UINT64_C(0x9e3779b97f4a7c15);
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
    return hash;
}
/* Uniform in [-2^-exponent, 2^-exponent), 12 bits. */
static inline float tiny_uniform(uint64_t stream, uint64_t i, int exponent) {
    float value = (float)((int)(tiny_random(stream, i) >> 52) - 2048) / 2048.0f;
    return value / (float)(1 << exponent);
}
/* Half precision of 2^-exponent, up to the smallest normal number. */
static inline uint16_t tiny_f16_power(int exponent) { return (uint16_t)((15 - exponent) << 10); }
/* Exact for the values of tiny_uniform with exponent <= 3. */
static inline uint16_t tiny_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) == 0) return (uint16_t)(bits >> 16);
    return (uint16_t)((bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 |
                      (bits >> 13 & 0x3ff));
}

/* ---- tensors ------------------------------------------------------------------------------ */

/* Where the scales of a block lie and which powers of two (on top of the amplitude's) they get. */
typedef struct tiny_block_s {
    uint32_t type, n_items, n_bytes;
    int scale_at, scale_exponent, min_at, min_exponent, min_is_negative;
} tiny_block_t;

static inline const tiny_block_t *tiny_block(uint32_t type) {
    static const tiny_block_t blocks[] = {
        {2, 32, 18, 0, 3, -1, 0, 0},     {3, 32, 20, 0, 3, 2, 0, 1},
        {6, 32, 22, 0, 4, -1, 0, 0},     {7, 32, 24, 0, 4, 2, 0, 1},
        {8, 32, 34, 0, 7, -1, 0, 0},     {12, 256, 144, 0, 9, 2, 6, 0},
        {13, 256, 176, 0, 10, 2, 6, 0},  {14, 256, 210, 208, 11, -1, 0, 0},
    };
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        if (blocks[i].type == type) return &blocks[i];
    return NULL;
}

static inline void tiny_put_blocks(gguf_bytes_t *data, const tiny_block_t *block,
                                   uint64_t n_blocks, uint64_t stream, int exponent) {
    uint8_t bytes[256];
    for (uint64_t i = 0; i < n_blocks; i++) {
        for (uint32_t k = 0; k < block->n_bytes; k++)
            bytes[k] = (uint8_t)(tiny_random(stream, i * block->n_bytes + k) >> 56);
        uint16_t scale = tiny_f16_power(exponent + block->scale_exponent);
        bytes[block->scale_at] = (uint8_t)scale;
        bytes[block->scale_at + 1] = (uint8_t)(scale >> 8);
        if (block->min_at >= 0) {
            uint16_t min = tiny_f16_power(exponent + block->min_exponent);
            if (block->min_is_negative) min |= 0x8000;
            bytes[block->min_at] = (uint8_t)min;
            bytes[block->min_at + 1] = (uint8_t)(min >> 8);
        }
        gguf_put(data, bytes, block->n_bytes);
    }
}

/* A matrix [n_out, n_in] of the config's type (f32 where its blocks do not divide the row), with
 * an amplitude that keeps activations near 1. */
static inline void tiny_matrix(gguf_builder_t *b, const tiny_config_t *config, const char *name,
                               uint32_t n_out, uint32_t n_in) {
    const uint64_t dims[] = {n_in, n_out}, stream = tiny_stream(config->seed, name);
    const int exponent = n_in <= 96 ? 2 : 3;
    const tiny_block_t *block = tiny_block(config->type);
    uint32_t type = config->type;
    if (block && n_in % block->n_items != 0) block = NULL;
    if (!block && type != 1 && type != 30) type = 0;
    gguf_bytes_t data = {NULL, 0, 0};
    if (block) {
        tiny_put_blocks(&data, block, (uint64_t)n_in * n_out / block->n_items, stream, exponent);
    } else {
        for (uint64_t i = 0; i < (uint64_t)n_in * n_out; i++) {
            float value = tiny_uniform(stream, i, exponent);
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (type == 0) gguf_put_le(&data, bits, 4);
            else gguf_put_le(&data, type == 1 ? tiny_f16(value) : bits >> 16, 2);
        }
    }
    gguf_tensor(b, name, type, 2, dims, data.data, data.n);
    free(data.data);
}

/* A vector of f32 around `center`. */
static inline void tiny_vector(gguf_builder_t *b, const tiny_config_t *config, const char *name,
                               uint32_t n, float center) {
    const uint64_t dims[] = {n}, stream = tiny_stream(config->seed, name);
    gguf_bytes_t data = {NULL, 0, 0};
    for (uint64_t i = 0; i < n; i++) gguf_put_f32(&data, center + tiny_uniform(stream, i, 2));
    gguf_tensor(b, name, 0, 1, dims, data.data, data.n);
    free(data.data);
}

static inline void tiny_layer(gguf_builder_t *b, const tiny_config_t *c, uint32_t layer) {
    const int is_gemma = strcmp(c->arch, "gemma3") == 0, is_qwen = strcmp(c->arch, "qwen2") == 0;
    const uint32_t n_q = c->n_heads * c->head_dim, n_kv = c->n_kv_heads * c->head_dim;
    const struct { const char *name; uint32_t n_out, n_in; int is_used; } tensors[] = {
        {"attn_norm.weight", c->n_embd, 0, 1},      {"attn_q.weight", n_q, c->n_embd, 1},
        {"attn_q.bias", n_q, 0, is_qwen},           {"attn_k.weight", n_kv, c->n_embd, 1},
        {"attn_k.bias", n_kv, 0, is_qwen},          {"attn_v.weight", n_kv, c->n_embd, 1},
        {"attn_v.bias", n_kv, 0, is_qwen},
        {"attn_q_norm.weight", c->head_dim, 0, is_gemma},
        {"attn_k_norm.weight", c->head_dim, 0, is_gemma},
        {"attn_output.weight", c->n_embd, n_q, 1},
        {"post_attention_norm.weight", c->n_embd, 0, is_gemma},
        {"ffn_norm.weight", c->n_embd, 0, 1},       {"ffn_gate.weight", c->n_ff, c->n_embd, 1},
        {"ffn_up.weight", c->n_ff, c->n_embd, 1},   {"ffn_down.weight", c->n_embd, c->n_ff, 1},
        {"post_ffw_norm.weight", c->n_embd, 0, is_gemma},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        char name[64];
        if (!tensors[i].is_used) continue;
        snprintf(name, sizeof name, "blk.%u.%s", layer, tensors[i].name);
        if (tensors[i].n_in) tiny_matrix(b, c, name, tensors[i].n_out, tensors[i].n_in);
        else tiny_vector(b, c, name, tensors[i].n_out, strstr(name, "bias") ? 0.0f : 1.0f);
    }
}

/* ---- vocabularies ------------------------------------------------------------------------- */

typedef struct tiny_vocab_s { gguf_bytes_t texts, types, scores; uint32_t n; } tiny_vocab_t;

static inline uint32_t tiny_token(tiny_vocab_t *vocab, const char *text, uint32_t type,
                                  float score) {
    gguf_put_str(&vocab->texts, text);
    gguf_put_le(&vocab->types, type, 4);
    gguf_put_f32(&vocab->scores, score);
    return vocab->n++;
}

static inline void tiny_vocab_keys(gguf_builder_t *b, tiny_vocab_t *vocab, int has_scores) {
    gguf_kv_array(b, "tokenizer.ggml.tokens", 8, vocab->n);
    gguf_put(&b->kvs, vocab->texts.data, vocab->texts.n);
    if (has_scores) {
        gguf_kv_array(b, "tokenizer.ggml.scores", 6, vocab->n);
        gguf_put(&b->kvs, vocab->scores.data, vocab->scores.n);
    }
    gguf_kv_array(b, "tokenizer.ggml.token_type", 5, vocab->n);
    gguf_put(&b->kvs, vocab->types.data, vocab->types.n);
    free(vocab->texts.data);
    free(vocab->types.data);
    free(vocab->scores.data);
}

/* The printable stand-in of a byte in byte-level BPE vocabularies: Latin-1 letters stand for
 * themselves, the other 68 bytes take U+0100 and on. */
static inline void tiny_byte_text(uint32_t byte, char text[4]) {
    uint32_t code = byte, n_shifted = 0;
    for (uint32_t i = 0; i <= byte; i++) {
        int is_plain = (i > 32 && i < 127) || (i > 160 && i != 173);
        if (i == byte && !is_plain) code = 256 + n_shifted;
        if (!is_plain) n_shifted++;
    }
    size_t n = 0;
    if (code < 0x80) {
        text[n++] = (char)code;
    } else {
        text[n++] = (char)(0xc0 | code >> 6);
        text[n++] = (char)(0x80 | (code & 0x3f));
    }
    text[n] = 0;
}

static inline void tiny_bpe_keys(gguf_builder_t *b, const tiny_config_t *config) {
#define S "\xc4\xa0" /* U+0120, the stand-in of a space */
    static const char *const merges[] = {
        S " t",   S " a",   "h e",    "i n",   "r e",  "o n",   S "t he", "e r",
        S " s",   "a t",    S " w",   "o r",   S " " S, S S " " S S, "n d", S "a nd",
        "l l",    "o u",    S " o",   S "o f", "in g", "1 2",   "\xc4\x8a \xc4\x8a",
        "\xc3\x83 \xc2\xa4"};
#undef S
    const uint32_t n_merges = sizeof merges / sizeof merges[0];
    const int is_qwen = strcmp(config->arch, "qwen2") == 0;
    tiny_vocab_t vocab;
    memset(&vocab, 0, sizeof vocab);
    for (uint32_t byte = 0; byte < 256; byte++) {
        char text[4];
        tiny_byte_text(byte, text);
        tiny_token(&vocab, text, 1, 0);
    }
    for (uint32_t i = 0; i < n_merges; i++) {
        char text[32];
        const char *space = strchr(merges[i], ' ');
        snprintf(text, sizeof text, "%.*s%s", (int)(space - merges[i]), merges[i], space + 1);
        tiny_token(&vocab, text, 1, 0);
    }
    uint32_t end_of_text = tiny_token(&vocab, "<|endoftext|>", 3, 0);
    uint32_t im_start = tiny_token(&vocab, "<|im_start|>", 3, 0);
    uint32_t im_end = tiny_token(&vocab, "<|im_end|>", 3, 0);
    while (vocab.n < config->n_vocab) {
        char text[24];
        snprintf(text, sizeof text, "[PAD%u]", vocab.n);
        tiny_token(&vocab, text, 5, 0);
    }
    gguf_kv_str(b, "tokenizer.ggml.model", "gpt2");
    gguf_kv_str(b, "tokenizer.ggml.pre", is_qwen ? "qwen2" : "smollm");
    tiny_vocab_keys(b, &vocab, 0);
    gguf_kv_array(b, "tokenizer.ggml.merges", 8, n_merges);
    for (uint32_t i = 0; i < n_merges; i++) gguf_put_str(&b->kvs, merges[i]);
    gguf_kv_u32(b, "tokenizer.ggml.bos_token_id", is_qwen ? end_of_text : im_start);
    gguf_kv_u32(b, "tokenizer.ggml.eos_token_id", im_end);
    gguf_kv_u32(b, "tokenizer.ggml.unknown_token_id", end_of_text);
    gguf_kv_u32(b, "tokenizer.ggml.padding_token_id", end_of_text);
    gguf_kv_bool(b, "tokenizer.ggml.add_bos_token", 0);
    gguf_kv_bool(b, "tokenizer.ggml.add_space_prefix", 0);
}

static inline void tiny_spm_keys(gguf_builder_t *b, const tiny_config_t *config) {
#define S "\xe2\x96\x81" /* U+2581, the stand-in of a space */
    static const char *const pieces[] = {S "t",  "he",  S "the", "in",  "er", S "a", "an", "nd",
                                         S "an", S "and", "on", "re",  S S,  "ing", S "o", "ou"};
    static const char *const specials[] = {"<pad>", "<eos>", "<bos>", "<unk>",
                                           "<start_of_turn>", "<end_of_turn>"};
    char text[24];
    tiny_vocab_t vocab;
    memset(&vocab, 0, sizeof vocab);
    for (size_t i = 0; i < sizeof specials / sizeof specials[0]; i++)
        tiny_token(&vocab, specials[i], 3, -1000.0f);
    tiny_token(&vocab, "[multimodal]", 4, -1000.0f);
    for (uint32_t byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof text, "<0x%02X>", byte);
        tiny_token(&vocab, text, 6, -1000.0f);
    }
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++)
        tiny_token(&vocab, pieces[i], 1, -(float)i);
    tiny_token(&vocab, S, 1, -100.0f);
    for (uint32_t i = 0; i < 26; i++) {
        snprintf(text, sizeof text, "%c", (char)('a' + (int)i));
        tiny_token(&vocab, text, 1, -101.0f - (float)i);
    }
    tiny_token(&vocab, "\n", 1, -200.0f);
    while (vocab.n < config->n_vocab) {
        snprintf(text, sizeof text, "<unused%u>", vocab.n);
        tiny_token(&vocab, text, 3, -1000.0f);
    }
#undef S
    gguf_kv_str(b, "tokenizer.ggml.model", "llama");
    gguf_kv_str(b, "tokenizer.ggml.pre", "default");
    tiny_vocab_keys(b, &vocab, 1);
    gguf_kv_u32(b, "tokenizer.ggml.bos_token_id", 2);
    gguf_kv_u32(b, "tokenizer.ggml.eos_token_id", 1);
    gguf_kv_u32(b, "tokenizer.ggml.unknown_token_id", 3);
    gguf_kv_u32(b, "tokenizer.ggml.padding_token_id", 0);
    gguf_kv_bool(b, "tokenizer.ggml.add_bos_token", 1);
    gguf_kv_bool(b, "tokenizer.ggml.add_eos_token", 0);
    gguf_kv_bool(b, "tokenizer.ggml.add_space_prefix", 0);
}

/* ---- the file ----------------------------------------------------------------------------- */

static inline void tiny_arch_u32(gguf_builder_t *b, const tiny_config_t *config, const char *key,
                                 uint32_t value) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", config->arch, key);
    gguf_kv_u32(b, name, value);
}

static inline void tiny_arch_f32(gguf_builder_t *b, const tiny_config_t *config, const char *key,
                                 float value) {
    char name[64];
    snprintf(name, sizeof name, "%s.%s", config->arch, key);
    gguf_kv_f32(b, name, value);
}

static inline void tiny_keys(gguf_builder_t *b, const tiny_config_t *config) {
    const int is_llama = strcmp(config->arch, "llama") == 0;
    const int is_gemma = strcmp(config->arch, "gemma3") == 0;
    gguf_kv_str(b, "general.architecture", config->arch);
    gguf_kv_str(b, "general.type", "model");
    gguf_kv_str(b, "general.name", "tiny random model");
    tiny_arch_u32(b, config, "block_count", config->n_layers);
    tiny_arch_u32(b, config, "context_length", config->n_ctx);
    tiny_arch_u32(b, config, "embedding_length", config->n_embd);
    tiny_arch_u32(b, config, "feed_forward_length", config->n_ff);
    tiny_arch_u32(b, config, "attention.head_count", config->n_heads);
    tiny_arch_u32(b, config, "attention.head_count_kv", config->n_kv_heads);
    tiny_arch_f32(b, config, "attention.layer_norm_rms_epsilon", is_llama ? 1e-5f : 1e-6f);
    tiny_arch_f32(b, config, "rope.freq_base", is_llama ? 100000.0f : 1000000.0f);
    if (is_llama) {
        tiny_arch_u32(b, config, "vocab_size", config->n_vocab);
        tiny_arch_u32(b, config, "rope.dimension_count", config->head_dim);
    }
    if (is_gemma) {
        tiny_arch_u32(b, config, "attention.key_length", config->head_dim);
        tiny_arch_u32(b, config, "attention.value_length", config->head_dim);
        tiny_arch_u32(b, config, "attention.sliding_window", config->window);
    }
    if (is_gemma) tiny_spm_keys(b, config);
    else tiny_bpe_keys(b, config);
    if (config->has_template)
        gguf_kv_str(b, "tokenizer.chat_template",
                    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
                    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
                    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
    gguf_kv_u32(b, "general.quantization_version", 2);
    gguf_kv_u32(b, "general.file_type", config->type);
}

/* The whole model file; the caller frees the bytes. */
static inline gguf_bytes_t tiny_model(const tiny_config_t *config) {
    gguf_builder_t b;
    gguf_builder_init(&b);
    tiny_keys(&b, config);
    tiny_matrix(&b, config, "token_embd.weight", config->n_vocab, config->n_embd);
    for (uint32_t i = 0; i < config->n_layers; i++) tiny_layer(&b, config, i);
    tiny_vector(&b, config, "output_norm.weight", config->n_embd, 1.0f);
    if (!config->is_tied)
        tiny_matrix(&b, config, "output.weight", config->n_vocab, config->n_embd);
    gguf_bytes_t file = gguf_build(&b);
    gguf_builder_deinit(&b);
    return file;
}

#endif
