/* hparams.c: from metadata keys to checked hyper-parameters. A key of the architecture's name
 * space that nobody reads could change the computation, so it is refused by name. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "model/model.h"

#define KEY_BYTES_MAX 160

static const kri_arch_t *const archs[] = {
#define KR_ARCH(name) &kri_arch_##name,
#include "model/archs.def"
};

static kr_status_t find_arch(struct kr_model_s *model, kr_error_t *error) {
    kri_str_t name;
    kr_status_t status = kri_gguf_get_str(model->gguf, "general.architecture", &name, error);
    if (status == KR_E_NOT_FOUND) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "general.architecture",
                        "key general.architecture is missing");
    }
    KR_TRY(status);
    for (size_t i = 0; i < sizeof(archs) / sizeof(archs[0]); i++) {
        if (strlen(archs[i]->name) == name.n_bytes &&
            memcmp(archs[i]->name, name.data, name.n_bytes) == 0) {
            model->arch = archs[i];
            return KR_OK;
        }
    }
    return KRI_FAIL(error, KR_E_UNSUPPORTED, "general.architecture",
                    "architecture '%.*s' is not supported",
                    (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.data);
}

static kr_status_t read_row(struct kr_model_s *model, const kri_key_row_t *row,
                            kr_error_t *error) {
    char key[KEY_BYTES_MAX];
    snprintf(key, sizeof(key), "%s.%s", model->arch->name, row->key);
    uint8_t *field = (uint8_t *)&model->hp + row->offset;
    double value = 0.0;
    kr_status_t status;
    if (row->type == KRI_KEY_U32) {
        uint32_t u = 0;
        status = kri_gguf_get_u32(model->gguf, key, &u, error);
        if (status == KR_OK) memcpy(field, &u, sizeof(u));
        value = (double)u;
    } else {
        float f = 0.0f;
        status = kri_gguf_get_f32(model->gguf, key, &f, error);
        if (status == KR_OK) memcpy(field, &f, sizeof(f));
        value = (double)f;
    }
    if (status == KR_E_NOT_FOUND) {
        if (!row->required) return KR_OK;
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "key %s is missing", key);
    }
    KR_TRY(status);
    if (!(value >= row->value_min && value <= row->value_max)) { /* also refuses NaN */
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "key %s is %g, allowed are %g to %g", key,
                        value, row->value_min, row->value_max);
    }
    return KR_OK;
}

/* rope.scaling.*: none and linear are built; anything else would silently change positions. A
 * factor without a type is linear, as the format's other readers have it. */
static kr_status_t read_rope_scaling(struct kr_model_s *model, kr_error_t *error) {
    char key[KEY_BYTES_MAX];
    model->hp.rope_scale = 1.0f;
    snprintf(key, sizeof(key), "%s.rope.scaling.type", model->arch->name);
    kri_str_t type;
    kr_status_t status = kri_gguf_get_str(model->gguf, key, &type, error);
    const bool has_type = status != KR_E_NOT_FOUND;
    if (has_type) KR_TRY(status);
    if (has_type && type.n_bytes == 4 && memcmp(type.data, "none", 4) == 0) return KR_OK;
    if (has_type && (type.n_bytes != 6 || memcmp(type.data, "linear", 6) != 0)) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, key, "rope scaling '%.*s' is not supported",
                        (int)(type.n_bytes < 32 ? type.n_bytes : 32), type.data);
    }
    float factor = 1.0f;
    snprintf(key, sizeof(key), "%s.rope.scaling.factor", model->arch->name);
    status = kri_gguf_get_f32(model->gguf, key, &factor, error);
    if (status == KR_E_NOT_FOUND && !has_type) return KR_OK;
    if (status == KR_E_NOT_FOUND) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "key %s is missing", key);
    }
    KR_TRY(status);
    if (!(factor >= 1e-3f && factor <= 1e6f)) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "key %s is %g, allowed are 0.001 to 1e6",
                        key, (double)factor);
    }
    model->hp.rope_scale = 1.0f / factor;
    return KR_OK;
}

/* Keys that are read elsewhere or say nothing about the computation. */
static const char *const other_keys[] = {
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "tensor_data_layout", "max_position_embeddings",
};

static bool is_known(const kri_arch_t *arch, const char *key) {
    for (uint32_t i = 0; i < arch->n_keys; i++) {
        if (strcmp(arch->keys[i].key, key) == 0) return true;
    }
    for (size_t i = 0; i < sizeof(other_keys) / sizeof(other_keys[0]); i++) {
        if (strcmp(other_keys[i], key) == 0) return true;
    }
    return false;
}

static kr_status_t refuse_unknown_keys(const struct kr_model_s *model, kr_error_t *error) {
    const size_t n_prefix = strlen(model->arch->name);
    const char *key = NULL;
    char value[8];
    for (uint32_t i = 0; kri_gguf_meta(model->gguf, i, &key, value, sizeof(value)) == KR_OK; i++) {
        if (strncmp(key, model->arch->name, n_prefix) != 0 || key[n_prefix] != '.') continue;
        if (is_known(model->arch, key + n_prefix + 1)) continue;
        return KRI_FAIL(error, KR_E_UNSUPPORTED, key,
                        "key %.128s is not supported for architecture %s", key,
                        model->arch->name);
    }
    return KR_OK;
}

static kr_status_t finish(struct kr_model_s *model, kr_error_t *error) {
    kri_hparams_t *hp = &model->hp;
    if (hp->n_kv_heads == 0) hp->n_kv_heads = hp->n_heads;
    if (hp->n_heads % hp->n_kv_heads != 0) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "attention.head_count_kv",
                        "%u heads cannot share %u KV heads", hp->n_heads, hp->n_kv_heads);
    }
    if (hp->head_dim == 0) {
        if (hp->n_embd % hp->n_heads != 0) {
            return KRI_FAIL(error, KR_E_BAD_FORMAT, "attention.head_count",
                            "embedding_length %u is no multiple of %u heads", hp->n_embd,
                            hp->n_heads);
        }
        hp->head_dim = hp->n_embd / hp->n_heads;
    }
    if (hp->value_dim == 0) hp->value_dim = hp->head_dim;
    if (hp->value_dim != hp->head_dim) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "attention.value_length",
                        "attention.value_length %u differs from key_length %u", hp->value_dim,
                        hp->head_dim);
    }
    if (hp->head_dim > KRI_HEAD_DIM_MAX || hp->head_dim % 2 != 0) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "attention.key_length",
                        "head size %u is not even or over %u", hp->head_dim, KRI_HEAD_DIM_MAX);
    }
    if (hp->n_rot == 0) hp->n_rot = hp->head_dim;
    if (hp->n_rot > hp->head_dim || hp->n_rot % 2 != 0) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "rope.dimension_count",
                        "rope.dimension_count %u is odd or over the head size %u", hp->n_rot,
                        hp->head_dim);
    }
    if (hp->rope_base == 0.0f) hp->rope_base = 10000.0f;
    if (hp->rope_base_local == 0.0f) hp->rope_base_local = 10000.0f;
    if (hp->window_period == 0) hp->window_period = 6;
    return KR_OK;
}

kr_status_t kri_model_read_hparams(struct kr_model_s *model, kr_error_t *error) {
    KR_TRY(find_arch(model, error));
    for (uint32_t i = 0; i < model->arch->n_keys; i++) {
        KR_TRY(read_row(model, &model->arch->keys[i], error));
    }
    KR_TRY(read_rope_scaling(model, error));
    KR_TRY(refuse_unknown_keys(model, error));
    return finish(model, error);
}
