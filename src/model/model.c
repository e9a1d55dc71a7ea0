/* model.c: opening and closing. The order is cheap checks first: structure of the file, hyper-
 * parameters, vocabulary, tensor shapes, and only then the packing of weights. */
#include "model/model.h"

#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "model/packed_image.h"

static kr_status_t load(struct kr_model_s *m, const kr_model_params_t *params,
                        kr_error_t *error) {
    kri_str_t name = {0};
    kr_status_t status = kri_gguf_get_str(m->gguf, "general.name", &name, error);
    if (status == KR_E_NOT_FOUND) name = (kri_str_t){"", 0};
    else KR_TRY(status);
    m->name = kri_strndup(name.data, name.n_bytes, "model");
    if (!m->name) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the model");
    if (!m->vocab_only) KR_TRY(kri_model_read_hparams(m, error));
    KR_TRY(kri_image_find(m, params, error));
    KR_TRY(kri_model_load_text(m, error));
    if (m->vocab_only) {
        m->hp.n_vocab = kri_tokenizer_n_tokens(m->tokenizer);
        return KR_OK;
    }
    return kri_model_bind(m, params, error);
}

static kr_status_t open_with(kri_gguf_t *gguf, const kr_model_params_t *params,
                             struct kr_model_s **out, kr_error_t *error) {
    struct kr_model_s *m = kri_calloc(1, sizeof(*m), "model");
    if (!m) {
        kri_gguf_close(gguf);
        return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for the model");
    }
    m->n_refs = 1;
    m->gguf = gguf;
    m->vocab_only = params->vocab_only;
    kr_status_t status = load(m, params, error);
    if (status != KR_OK) {
        kri_model_close(m);
        return status;
    }
    *out = m;
    return KR_OK;
}

kr_status_t kri_model_open(const char *path, const kr_model_params_t *params,
                           struct kr_model_s **model, kr_error_t *error) {
    kri_gguf_t *gguf = NULL;
    KR_TRY(kri_gguf_open(path, &gguf, error));
    return open_with(gguf, params, model, error);
}

kr_status_t kri_model_open_memory(const void *data, size_t n_bytes, struct kr_model_s **model,
                                  kr_error_t *error) {
    kri_gguf_t *gguf = NULL;
    kr_model_params_t params = {.struct_bytes = sizeof(params), .n_threads = 1, .cache_dir = ""};
    KR_TRY(kri_gguf_open_memory(data, n_bytes, &gguf, error));
    return open_with(gguf, &params, model, error);
}

kr_status_t kri_model_template(const struct kr_model_s *model, const kri_template_t **tmpl,
                               kr_error_t *error) {
    if (!model->chat_template_source) {
        return KRI_FAIL(error, KR_E_NOT_FOUND, "chat_template",
                        "the model has no chat template (a base model?)");
    }
    if (!model->chat_template) {
        const kr_error_t *why = &model->chat_template_error;
        return KRI_FAIL(error, why->code, "chat_template", "%s", why->message);
    }
    *tmpl = model->chat_template;
    return KR_OK;
}

void kri_model_retain(struct kr_model_s *model) {
    __atomic_fetch_add(&model->n_refs, 1, __ATOMIC_RELAXED);
}

void kri_model_close(struct kr_model_s *model) {
    if (!model) return;
    if (__atomic_sub_fetch(&model->n_refs, 1, __ATOMIC_ACQ_REL) != 0) return;
    if (model->on_device) model->free_on_device(model->on_device);
    kri_image_stop(model); /* first: its thread reads what is freed below */
    kri_template_destroy(model->chat_template);
    kri_tokenizer_destroy(model->tokenizer);
    kri_free(model->chat_template_source);
    kri_free(model->name);
    kri_image_close(model);
    if (model->packed) kri_pages_free(model->packed, model->packed_bytes);
    kri_free(model->packed_tensors);
    kr_arena_destroy(model->arena);
    kri_gguf_close(model->gguf);
    kri_free(model);
}
