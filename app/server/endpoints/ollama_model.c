/* ollama_model.c: how the Ollama API describes a model. Its digest there is that of a manifest in a
 * registry; here it is one of what the file's header says (keys, values, names, types and shapes of
 * tensors): the same model has the same digest, and the file need not be read for it. */
#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>

#include "ollama.h"
#include "texts.h"

#define VALUE_BYTES_MAX 256u

static void hash_header(EVP_MD_CTX *hash, kr_model_t model) {
    const char *key = NULL;
    char value[VALUE_BYTES_MAX];
    for (uint32_t i = 0; kr_model_meta(model, i, &key, value, sizeof value) == KR_OK; i++) {
        EVP_DigestUpdate(hash, key, strlen(key) + 1);
        EVP_DigestUpdate(hash, value, strlen(value) + 1);
    }
    kr_tensor_info_t tensor;
    kr_tensor_info_init(&tensor);
    for (uint32_t i = 0; kr_model_tensor(model, i, &tensor) == KR_OK; i++) {
        EVP_DigestUpdate(hash, tensor.name, strlen(tensor.name) + 1);
        EVP_DigestUpdate(hash, &tensor.dtype, sizeof tensor.dtype);
        EVP_DigestUpdate(hash, tensor.shape, sizeof tensor.shape);
    }
}

static void put_digest(const server_model_t *model, kri_buffer_t *out) {
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    unsigned n_bytes = 32;
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    if (!hash || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1) {
        out->status = KR_E_NOMEM;
    } else {
        hash_header(hash, model->model);
        EVP_DigestFinal_ex(hash, digest, &n_bytes);
    }
    EVP_MD_CTX_free(hash);
    texts_put(out, "\"digest\":\"");
    for (unsigned i = 0; i < n_bytes; i++) (void)kri_buffer_printf(out, "%02x", digest[i]);
    texts_put(out, "\"");
}

/* The element type that most of the weights' bytes have, as "Q4_K". */
static void put_quantization(const server_model_t *model, kri_buffer_t *out) {
    uint64_t bytes[64] = {0};
    kr_dtype_t most = KR_DTYPE_NONE;
    kr_tensor_info_t tensor;
    kr_tensor_info_init(&tensor);
    for (uint32_t i = 0; kr_model_tensor(model->model, i, &tensor) == KR_OK; i++) {
        if (tensor.dtype <= 0 || tensor.dtype >= 64) continue;
        bytes[tensor.dtype] += tensor.bytes;
        if (bytes[tensor.dtype] > bytes[most]) most = tensor.dtype;
    }
    char name[32];
    (void)snprintf(name, sizeof name, "%s", most ? kr_dtype_name(most) : "unknown");
    for (char *c = name; most && *c; c++) *c = (char)toupper((unsigned char)*c);
    (void)json_put_string(out, name, strlen(name));
}

/* "134.52M", "1.54B". */
static void put_parameters(uint64_t n, kri_buffer_t *out) {
    if (n >= 1000000000u) (void)kri_buffer_printf(out, "\"%.2fB\"", (double)n / 1e9);
    else if (n >= 1000000u) (void)kri_buffer_printf(out, "\"%.2fM\"", (double)n / 1e6);
    else (void)kri_buffer_printf(out, "\"%.2fK\"", (double)n / 1e3);
}

static void put_text(const char *text, kri_buffer_t *out) {
    (void)json_put_string(out, text ? text : "", text ? strlen(text) : 0);
}

void ollama_put_details(const server_model_t *model, kri_buffer_t *out) {
    texts_put(out, "{\"parent_model\":\"\",\"format\":");
    put_text(model->info.format, out);
    texts_put(out, ",\"family\":");
    put_text(model->info.arch, out);
    texts_put(out, ",\"families\":[");
    put_text(model->info.arch, out);
    texts_put(out, "],\"parameter_size\":");
    put_parameters(model->info.n_params, out);
    texts_put(out, ",\"quantization_level\":");
    put_quantization(model, out);
    texts_put(out, "}");
}

/* With the tag that names carry there, which requests need not repeat. */
static void put_name(const server_model_t *model, kri_buffer_t *out) {
    char name[sizeof model->name + 8];
    const bool has_tag = strchr(model->name, ':') != NULL;
    (void)snprintf(name, sizeof name, "%s%s", model->name, has_tag ? "" : ":latest");
    put_text(name, out);
}

void ollama_put_model(const server_model_t *model, bool with_time, kri_buffer_t *out) {
    texts_put(out, "\"name\":");
    put_name(model, out);
    texts_put(out, ",\"model\":");
    put_name(model, out);
    if (with_time) {
        texts_put(out, ",\"modified_at\":");
        ollama_put_time(model->created, 0, out);
    }
    (void)kri_buffer_printf(out, ",\"size\":%llu,", (unsigned long long)model->info.model_bytes);
    put_digest(model, out);
    texts_put(out, ",\"details\":");
    ollama_put_details(model, out);
}
