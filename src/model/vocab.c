/* vocab.c: from the file's tokenizer keys to the text library. GGUF keeps strings scattered, each
 * behind its length; here they become the contiguous arrays that kri_vocab_desc_t asks for, unless
 * an earlier run kept the tables that are made from them. */
#include <string.h>

#include "base/alloc.h"
#include "base/checked.h"
#include "base/error.h"
#include "model/model.h"
#include "model/packed_image.h"

typedef struct vocab_s {
    kri_vocab_desc_t desc;
    char *text;
    uint64_t *offsets;
    uint8_t *types;
    float *scores;
    char *merges;
    uint64_t *merge_offsets;
    char pre[64];
} vocab_t;

static void vocab_deinit(vocab_t *v) {
    kri_free(v->merge_offsets);
    kri_free(v->merges);
    kri_free(v->scores);
    kri_free(v->types);
    kri_free(v->offsets);
    kri_free(v->text);
}

/* Joins an array of strings; *text and *offsets are owned by the caller, also on failure. */
static kr_status_t join_strings(const kri_gguf_array_t *array, char **text, uint64_t **offsets,
                                kr_error_t *error) {
    *text = kri_alloc((size_t)array->n_bytes + 1, "vocab");
    *offsets = kri_calloc((size_t)array->n + 1, sizeof(uint64_t), "vocab");
    if (!*text || !*offsets) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for vocabulary");
    uint64_t n = 0, at = 0;
    for (uint64_t i = 0; i < array->n; i++) {
        kri_str_t s;
        if (!kri_gguf_array_next(array, &at, &s)) {
            return KRI_FAIL(error, KR_E_CHANGED, "tokenizer", "the file changed while it was read");
        }
        memcpy(*text + n, s.data, s.n_bytes);
        n += s.n_bytes;
        (*offsets)[i + 1] = n;
    }
    (*text)[n] = 0;
    return KR_OK;
}

static kr_status_t require(kr_status_t status, const char *key, kr_error_t *error) {
    if (status == KR_E_NOT_FOUND) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "key %s is missing", key);
    }
    return status;
}

static kr_status_t find_tokens(const kri_gguf_t *g, vocab_t *v, kri_gguf_array_t *array,
                               kr_error_t *error) {
    KR_TRY(require(kri_gguf_get_array(g, "tokenizer.ggml.tokens", KRI_GGUF_STRING, array, error),
                   "tokenizer.ggml.tokens", error));
    if (array->n == 0 || array->n > (4u << 20)) {
        return KRI_FAIL(error, KR_E_LIMIT, "tokenizer.ggml.tokens",
                        "vocabulary of %llu tokens, allowed are 1 to 4194304",
                        (unsigned long long)array->n);
    }
    v->desc.n_tokens = (uint32_t)array->n;
    return KR_OK;
}

static kr_status_t read_tokens(const kri_gguf_t *g, vocab_t *v, kr_error_t *error) {
    kri_gguf_array_t array;
    KR_TRY(find_tokens(g, v, &array, error));
    const uint64_t n = array.n;
    KR_TRY(join_strings(&array, &v->text, &v->offsets, error));
    v->types = kri_alloc((size_t)n, "vocab");
    if (!v->types) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for vocabulary");
    memset(v->types, KRI_TOKEN_NORMAL, (size_t)n);
    kr_status_t status =
        kri_gguf_get_array(g, "tokenizer.ggml.token_type", KRI_GGUF_I32, &array, error);
    if (status == KR_E_NOT_FOUND) return KR_OK;
    KR_TRY(status);
    if (array.n != n) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "tokenizer.ggml.token_type",
                        "%llu token types for %llu tokens", (unsigned long long)array.n,
                        (unsigned long long)n);
    }
    for (uint64_t i = 0; i < n; i++) {
        const int64_t type = kri_gguf_array_int(&array, i);
        if (type < KRI_TOKEN_NORMAL || type > KRI_TOKEN_BYTE) {
            return KRI_FAIL(error, KR_E_BAD_FORMAT, "tokenizer.ggml.token_type",
                            "token %llu has unknown type %lld", (unsigned long long)i,
                            (long long)type);
        }
        v->types[i] = (uint8_t)type;
    }
    return KR_OK;
}

static kr_status_t read_scores(const kri_gguf_t *g, vocab_t *v, kr_error_t *error) {
    kri_gguf_array_t array;
    KR_TRY(require(kri_gguf_get_array(g, "tokenizer.ggml.scores", KRI_GGUF_F32, &array, error),
                   "tokenizer.ggml.scores", error));
    if (array.n != v->desc.n_tokens) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, "tokenizer.ggml.scores",
                        "%llu scores for %u tokens", (unsigned long long)array.n,
                        v->desc.n_tokens);
    }
    v->scores = kri_calloc((size_t)array.n, sizeof(float), "vocab");
    if (!v->scores) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for vocabulary");
    for (uint64_t i = 0; i < array.n; i++) v->scores[i] = kri_gguf_array_f32(&array, i);
    return KR_OK;
}

/* A special id: absent = -1, present = inside the vocabulary. */
static kr_status_t read_id(const kri_gguf_t *g, const char *key, uint32_t n_tokens,
                           kr_token_t *id, kr_error_t *error) {
    uint32_t value = 0;
    *id = -1;
    kr_status_t status = kri_gguf_get_u32(g, key, &value, error);
    if (status == KR_E_NOT_FOUND) return KR_OK;
    KR_TRY(status);
    if (value >= n_tokens) {
        return KRI_FAIL(error, KR_E_BAD_FORMAT, key, "%s is %u, the vocabulary has %u tokens",
                        key, value, n_tokens);
    }
    *id = (kr_token_t)value;
    return KR_OK;
}

static kr_status_t read_flag(const kri_gguf_t *g, const char *key, int32_t fallback,
                             int32_t *flag, kr_error_t *error) {
    bool value = false;
    kr_status_t status = kri_gguf_get_bool(g, key, &value, error);
    if (status != KR_OK && status != KR_E_NOT_FOUND) return status;
    *flag = status == KR_OK ? (int32_t)value : fallback;
    return KR_OK;
}

static kr_status_t read_kind(const kri_gguf_t *g, vocab_t *v, kr_error_t *error) {
    kri_str_t s;
    KR_TRY(require(kri_gguf_get_str(g, "tokenizer.ggml.model", &s, error), "tokenizer.ggml.model",
                   error));
    if (s.n_bytes == 4 && memcmp(s.data, "gpt2", 4) == 0) v->desc.kind = KRI_VOCAB_BPE;
    else if (s.n_bytes == 5 && memcmp(s.data, "llama", 5) == 0) v->desc.kind = KRI_VOCAB_SPM;
    else {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "tokenizer.ggml.model",
                        "tokenizer '%.*s' is not supported",
                        (int)(s.n_bytes < 32 ? s.n_bytes : 32), s.data);
    }
    kr_status_t status = kri_gguf_get_str(g, "tokenizer.ggml.pre", &s, error);
    if (status == KR_E_NOT_FOUND) s = (kri_str_t){"default", 7};
    else KR_TRY(status);
    if (s.n_bytes >= sizeof(v->pre)) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "tokenizer.ggml.pre",
                        "pre-tokenizer name of %zu bytes", s.n_bytes);
    }
    memcpy(v->pre, s.data, s.n_bytes);
    v->desc.pre = v->pre;
    return KR_OK;
}

static kr_status_t read_merges(const kri_gguf_t *g, vocab_t *v, kr_error_t *error) {
    kri_gguf_array_t array;
    KR_TRY(require(kri_gguf_get_array(g, "tokenizer.ggml.merges", KRI_GGUF_STRING, &array, error),
                   "tokenizer.ggml.merges", error));
    if (array.n > (8u << 20)) {
        return KRI_FAIL(error, KR_E_LIMIT, "tokenizer.ggml.merges",
                        "%llu merges, allowed are 8388608", (unsigned long long)array.n);
    }
    v->desc.n_merges = array.n;
    return join_strings(&array, &v->merges, &v->merge_offsets, error);
}

/* Byte-level vocabularies that begin with BOS although the file does not say so: the default
 * depends on the pre-tokenizer's name. */
static int32_t pre_adds_bos(const char *pre) {
    static const char *const names[] = {"llama-bpe", "llama3", "llama-v3", "falcon3"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(pre, names[i]) == 0) return 1;
    }
    return 0;
}

static kr_status_t read_specials(const kri_gguf_t *g, vocab_t *v, kr_error_t *error) {
    kri_vocab_desc_t *d = &v->desc;
    const int32_t is_spm = d->kind == KRI_VOCAB_SPM;
    int32_t add_eos = 0;
    KR_TRY(read_id(g, "tokenizer.ggml.bos_token_id", d->n_tokens, &d->bos, error));
    KR_TRY(read_id(g, "tokenizer.ggml.eos_token_id", d->n_tokens, &d->eos, error));
    KR_TRY(read_id(g, "tokenizer.ggml.eot_token_id", d->n_tokens, &d->eot, error));
    KR_TRY(read_id(g, "tokenizer.ggml.unknown_token_id", d->n_tokens, &d->unk, error));
    const int32_t bos_default = is_spm || pre_adds_bos(v->pre);
    KR_TRY(read_flag(g, "tokenizer.ggml.add_bos_token", bos_default, &d->add_bos, error));
    KR_TRY(read_flag(g, "tokenizer.ggml.add_eos_token", 0, &add_eos, error));
    KR_TRY(read_flag(g, "tokenizer.ggml.add_space_prefix", is_spm, &d->add_space_prefix, error));
    if (d->bos < 0) d->add_bos = 0;
    if (add_eos) {
        return KRI_FAIL(error, KR_E_UNSUPPORTED, "tokenizer.ggml.add_eos_token",
                        "a tokenizer that ends every text with EOS is not supported");
    }
    return KR_OK;
}

static kr_status_t load_template(struct kr_model_s *model, kr_error_t *error) {
    kri_str_t s;
    kr_status_t status = kri_gguf_get_str(model->gguf, "tokenizer.chat_template", &s, error);
    if (status == KR_E_NOT_FOUND) return KR_OK;
    KR_TRY(status);
    model->chat_template_source = kri_strndup(s.data, s.n_bytes, "template");
    if (!model->chat_template_source) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory");
    /* A bad template spoils chat only: the reason is kept for whoever asks for chat. */
    kr_error_init(&model->chat_template_error);
    status = kri_template_create(s.data, s.n_bytes, model->tokenizer, &model->chat_template,
                                 &model->chat_template_error);
    if (status == KR_E_NOMEM) return KRI_FAIL(error, KR_E_NOMEM, NULL, "no memory for template");
    return KR_OK;
}

/* From the tables of an earlier run; *tokenizer stays NULL where there are none. */
static kr_status_t open_kept(struct kr_model_s *model, const vocab_t *v, kr_error_t *error) {
    size_t n_bytes = 0;
    const uint8_t *tables = kri_image_tables(model, &n_bytes);
    if (!tables) return KR_OK;
    const kr_status_t status =
        kri_tokenizer_open(&v->desc, tables, n_bytes, &model->tokenizer, NULL);
    if (status == KR_E_NOMEM)
        return KRI_FAIL(error, status, NULL, "no memory for the tokenizer");
    if (status != KR_OK) kri_image_drop_tables(model);
    return KR_OK;
}

static kr_status_t build(struct kr_model_s *model, vocab_t *v, kr_error_t *error) {
    const kri_gguf_t *g = model->gguf;
    KR_TRY(read_tokens(g, v, error));
    v->desc.text = v->text;
    v->desc.offsets = v->offsets;
    v->desc.types = v->types;
    if (v->desc.kind == KRI_VOCAB_BPE) {
        KR_TRY(read_merges(g, v, error));
        v->desc.merges = v->merges;
        v->desc.merge_offsets = v->merge_offsets;
    } else {
        KR_TRY(read_scores(g, v, error));
        v->desc.scores = v->scores;
    }
    return kri_tokenizer_create(&v->desc, &model->tokenizer, error);
}

kr_status_t kri_model_load_text(struct kr_model_s *model, kr_error_t *error) {
    const kri_gguf_t *g = model->gguf;
    kri_gguf_array_t tokens;
    vocab_t v = {0};
    kr_status_t status = KR_OK;
    KR_TRY_DONE(read_kind(g, &v, error));
    KR_TRY_DONE(find_tokens(g, &v, &tokens, error));
    KR_TRY_DONE(read_specials(g, &v, error));
    KR_TRY_DONE(open_kept(model, &v, error));
    if (!model->tokenizer) KR_TRY_DONE(build(model, &v, error));
    model->token_bos = v.desc.bos;
    model->token_eos = v.desc.eos;
    model->add_bos = (uint32_t)v.desc.add_bos;
    KR_TRY_DONE(load_template(model, error));
done:
    vocab_deinit(&v);
    return status;
}
