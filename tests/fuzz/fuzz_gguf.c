/* fuzz_gguf.c: any bytes as a GGUF file: open, and when that works, ask for everything there is.
 * What loads as a model and is used as one: fuzz_model.c. Here each tensor is read at both ends,
 * each key is fetched through every getter, each array item is touched. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/gguf.h"
#include "model/gguf_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static volatile uint64_t sink;

/* A broken promise of the reader is as good as a crash. */
static void require(bool condition) {
    if (!condition) abort();
}

static void use_array(const kri_gguf_array_t *array) {
    const bool is_text = array->type == KRI_GGUF_STRING;
    uint64_t sum = 0, at = 0, step = !is_text && array->n > 4096 ? array->n / 4096 : 1;
    for (uint64_t i = 0; i < array->n; i += step) {
        if (is_text) {
            kri_str_t text = {0};
            require(kri_gguf_array_next(array, &at, &text));
            if (text.n_bytes) sum += (uint8_t)text.data[0] + (uint8_t)text.data[text.n_bytes - 1];
        } else if (array->type == KRI_GGUF_F32 || array->type == KRI_GGUF_F64) {
            sum += kri_gguf_array_f32(array, i) > 0;
        } else {
            sum += (uint64_t)kri_gguf_array_int(array, i);
        }
    }
    require(!is_text || at == array->n_bytes);
    sink += sum;
}

static void use_key(const kri_gguf_t *gguf, const char *key) {
    uint32_t number = 0;
    float real = 0;
    bool flag = false;
    kri_str_t text = {0};
    kri_gguf_array_t array;
    kr_error_t error;
    kr_error_init(&error);
    unsigned n_types = 0;
    kr_status_t status = kri_gguf_get_u32(gguf, key, &number, &error);
    require(status == KR_OK || status == KR_E_BAD_FORMAT);
    (void)kri_gguf_get_f32(gguf, key, &real, &error);
    n_types += kri_gguf_get_bool(gguf, key, &flag, &error) == KR_OK;
    if (kri_gguf_get_str(gguf, key, &text, &error) == KR_OK) {
        n_types++;
        if (text.n_bytes) sink += (uint8_t)text.data[text.n_bytes - 1];
    }
    for (kri_gguf_type_t type = KRI_GGUF_U8; type <= KRI_GGUF_F64; type++)
        if (kri_gguf_get_array(gguf, key, type, &array, &error) == KR_OK) {
            n_types++;
            use_array(&array);
        }
    require(n_types <= 1);
    require(memchr(error.message, 0, sizeof error.message) != NULL);
}

static void use_tensor(const kri_gguf_t *gguf, const kri_gguf_tensor_t *tensor,
                       const uint8_t *data, size_t n_bytes) {
    const uint8_t *begin = tensor->tensor.data;
    uint64_t n_items = 1, n_expected = 0;
    require(kri_gguf_find(gguf, tensor->name) == tensor);
    require(tensor->tensor.n_dims >= 1 && tensor->tensor.n_dims <= 4);
    for (uint32_t i = 0; i < tensor->tensor.n_dims; i++) n_items *= tensor->tensor.shape[i];
    require(kri_dtype_bytes(tensor->tensor.dtype, n_items, &n_expected));
    require(n_expected == tensor->tensor.n_bytes);
    require(tensor->offset <= n_bytes && tensor->tensor.n_bytes <= n_bytes - tensor->offset);
    require(begin == data + tensor->offset);
    sink += begin[0] + begin[tensor->tensor.n_bytes - 1];
    kri_gguf_release(gguf, tensor, 0, SIZE_MAX);
}

static void use_file(const kri_gguf_t *gguf, const uint8_t *data, size_t n_bytes) {
    char wide[512], narrow[7];
    const char *key;
    for (uint32_t i = 0; kri_gguf_meta(gguf, i, &key, wide, sizeof wide) == KR_OK; i++) {
        require(strlen(wide) < sizeof wide);
        require(kri_gguf_meta(gguf, i, &key, narrow, sizeof narrow) == KR_OK);
        require(strlen(narrow) < sizeof narrow);
        use_key(gguf, key);
    }
    for (uint32_t i = 0; i < kri_gguf_n_tensors(gguf); i++)
        use_tensor(gguf, kri_gguf_tensor(gguf, i), data, n_bytes);
    require(kri_gguf_tensor(gguf, kri_gguf_n_tensors(gguf)) == NULL);
    require(kri_gguf_file_bytes(gguf) == n_bytes && kri_gguf_n_parts(gguf) == 1);
    require(kri_gguf_version(gguf) == 2 || kri_gguf_version(gguf) == 3);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    kri_gguf_t *gguf = NULL;
    kr_error_t error;
    kr_error_init(&error);
    kr_status_t status = kri_gguf_open_memory(data, n_bytes, &gguf, &error);
    if (status != KR_OK) {
        require(gguf == NULL && error.code == status && error.message[0] != 0);
        require(strchr(error.message, '\n') == NULL);
        return 0;
    }
    use_file(gguf, data, n_bytes);
    kri_gguf_close(gguf);
    return 0;
}

/* ---- mutation of fields ------------------------------------------------------------------- */

size_t LLVMFuzzerMutate(uint8_t *data, size_t n_bytes, size_t max) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n_bytes, size_t max, unsigned seed);

typedef struct fields_s {
    struct { uint64_t at; uint32_t n_bytes; } item[512];
    uint32_t n;
} fields_t;

static void add_field(fields_t *fields, uint64_t at, uint32_t n_bytes) {
    if (fields->n == sizeof fields->item / sizeof fields->item[0]) return;
    fields->item[fields->n].at = at;
    fields->item[fields->n++].n_bytes = n_bytes;
}

/* Walks as far as the file makes sense and notes where its numbers are. */
static void find_fields(const uint8_t *data, size_t n_bytes, fields_t *fields) {
    kri_gguf_cursor_t cursor = {data, n_bytes, 24, 0, 1, NULL};
    uint64_t n_tensors = kri_gguf_le64(data + 8), n_kvs = kri_gguf_le64(data + 16);
    add_field(fields, 4, 4);
    add_field(fields, 8, 8);
    add_field(fields, 16, 8);
    for (uint64_t i = 0; i < n_kvs; i++) {
        kri_gguf_kv_t kv;
        add_field(fields, cursor.pos, 8);
        if (kri_gguf_read_kv(&cursor, &kv) != KR_OK) return;
        uint64_t type_at = (uint64_t)((const uint8_t *)kv.key - data) + kv.key_bytes;
        uint32_t n_value = kri_gguf_type_bytes(kv.type);
        add_field(fields, type_at, 4);
        add_field(fields, type_at + 4, n_value ? n_value : kv.type == KRI_GGUF_STRING ? 8 : 4);
        if (kv.type == KRI_GGUF_ARRAY) add_field(fields, type_at + 8, 8);
    }
    for (uint64_t i = 0; i < n_tensors; i++) {
        kri_gguf_entry_t entry;
        add_field(fields, cursor.pos, 8);
        if (kri_gguf_read_entry(&cursor, &entry) != KR_OK) return;
        uint64_t at = entry.pos + 8 + entry.name_bytes;
        add_field(fields, at, 4);
        for (uint32_t k = 0; k < entry.n_dims; k++) add_field(fields, at + 4 + 8 * k, 8);
        add_field(fields, at + 4 + 8 * entry.n_dims, 4);
        add_field(fields, at + 8 + 8 * entry.n_dims, 8);
    }
}

/* Half of the time one field becomes a boundary number or its neighbour, otherwise bytes change. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n_bytes, size_t max, unsigned seed) {
    fields_t fields = {.n = 0};
    uint64_t random = seed * 0x9e3779b97f4a7c15u;
    random ^= random >> 29;
    if (n_bytes >= 24 && random % 2) find_fields(data, n_bytes, &fields);
    if (fields.n == 0) return LLVMFuzzerMutate(data, n_bytes, max);
    uint32_t pick = (uint32_t)(random >> 8) % fields.n;
    uint64_t at = fields.item[pick].at, value = 0;
    uint32_t n = fields.item[pick].n_bytes;
    if (at + n > n_bytes) return LLVMFuzzerMutate(data, n_bytes, max);
    for (uint32_t i = 0; i < n; i++) value |= (uint64_t)data[at + i] << (8 * i);
    uint64_t delta = (random >> 40) % 3 - 1;
    switch ((random >> 32) % 4) {
    case 0: value += delta; break;
    case 1: value = (1ull << (random >> 44) % 64) + delta; break;
    case 2: value = (random >> 44) % 48; break;
    default: value = n_bytes + (random >> 44) % 64 - 32; break;
    }
    for (uint32_t i = 0; i < n; i++) data[at + i] = (uint8_t)(value >> (8 * i));
    return n_bytes;
}
