/* gguf_meta.c: typed access to the keys of a GGUF file, and their values as text for people. A
 * getter never coerces: the stored type must fit, and an integer must fit the type asked for. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/utf8.h"
#include "model/gguf.h"
#include "model/gguf_impl.h"

typedef struct integer_s { bool is_negative; uint64_t magnitude; } integer_t;

/* Reads any of the eight integer types, or bool; false for the others. */
static bool read_integer(kri_gguf_type_t type, const uint8_t *data, integer_t *value) {
    int64_t number;
    switch (type) {
    case KRI_GGUF_U8: case KRI_GGUF_BOOL: *value = (integer_t){false, data[0]}; return true;
    case KRI_GGUF_U16:
        *value = (integer_t){false, (uint64_t)data[0] | (uint64_t)data[1] << 8};
        return true;
    case KRI_GGUF_U32: *value = (integer_t){false, kri_gguf_le32(data)}; return true;
    case KRI_GGUF_U64: *value = (integer_t){false, kri_gguf_le64(data)}; return true;
    case KRI_GGUF_I8: number = (int8_t)data[0]; break;
    case KRI_GGUF_I16: number = (int16_t)(data[0] | data[1] << 8); break;
    case KRI_GGUF_I32: number = (int32_t)kri_gguf_le32(data); break;
    case KRI_GGUF_I64: number = (int64_t)kri_gguf_le64(data); break;
    default: return false;
    }
    *value = number < 0 ? (integer_t){true, 0 - (uint64_t)number}
                        : (integer_t){false, (uint64_t)number};
    return true;
}

static double read_real(kri_gguf_type_t type, const uint8_t *data) {
    if (type == KRI_GGUF_F32) {
        uint32_t bits = kri_gguf_le32(data);
        float value;
        memcpy(&value, &bits, sizeof value);
        return (double)value;
    }
    uint64_t bits = kri_gguf_le64(data);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static kr_status_t fail_type(const kri_gguf_kv_t *kv, const char *wanted, kr_error_t *error) {
    return KRI_FAIL(error, KR_E_BAD_FORMAT, kv->key, "GGUF %.64s: is %s%s, not %s", kv->key,
                    kri_gguf_type_name(kv->type == KRI_GGUF_ARRAY ? kv->array_type : kv->type),
                    kv->type == KRI_GGUF_ARRAY ? " array" : "", wanted);
}

kr_status_t kri_gguf_part_u32(const kri_gguf_part_t *part, const char *key, uint32_t *value,
                              kr_error_t *error) {
    const kri_gguf_kv_t *kv = kri_gguf_part_find(part, key);
    integer_t number;
    if (!kv) return KR_E_NOT_FOUND;
    if (kv->type == KRI_GGUF_BOOL || !read_integer(kv->type, kv->data, &number))
        return fail_type(kv, "an integer", error);
    if (number.is_negative || number.magnitude > UINT32_MAX)
        return KRI_FAIL(error, KR_E_BAD_FORMAT, kv->key,
                        "GGUF %.64s: %s%" PRIu64 " is out of range (0 to 4294967295)", kv->key,
                        number.is_negative ? "-" : "", number.magnitude);
    *value = (uint32_t)number.magnitude;
    return KR_OK;
}

kr_status_t kri_gguf_get_u32(const kri_gguf_t *gguf, const char *key, uint32_t *value,
                             kr_error_t *error) {
    return kri_gguf_part_u32(&gguf->parts[0], key, value, error);
}

kr_status_t kri_gguf_get_f32(const kri_gguf_t *gguf, const char *key, float *value,
                             kr_error_t *error) {
    const kri_gguf_kv_t *kv = kri_gguf_part_find(&gguf->parts[0], key);
    if (!kv) return KR_E_NOT_FOUND;
    if (kv->type != KRI_GGUF_F32 && kv->type != KRI_GGUF_F64)
        return fail_type(kv, "f32", error);
    double number = read_real(kv->type, kv->data);
    if (isfinite(number) && fabs(number) > 3.4028234663852886e38)
        return KRI_FAIL(error, KR_E_BAD_FORMAT, kv->key, "GGUF %.64s: %g is no f32", kv->key,
                        number);
    *value = (float)number;
    return KR_OK;
}

kr_status_t kri_gguf_get_bool(const kri_gguf_t *gguf, const char *key, bool *value,
                              kr_error_t *error) {
    const kri_gguf_kv_t *kv = kri_gguf_part_find(&gguf->parts[0], key);
    if (!kv) return KR_E_NOT_FOUND;
    if (kv->type != KRI_GGUF_BOOL) return fail_type(kv, "a bool", error);
    *value = kv->data[0] != 0;
    return KR_OK;
}

kr_status_t kri_gguf_get_str(const kri_gguf_t *gguf, const char *key, kri_str_t *value,
                             kr_error_t *error) {
    const kri_gguf_kv_t *kv = kri_gguf_part_find(&gguf->parts[0], key);
    if (!kv) return KR_E_NOT_FOUND;
    if (kv->type != KRI_GGUF_STRING) return fail_type(kv, "a string", error);
    *value = (kri_str_t){(const char *)kv->data, (size_t)kv->n};
    return KR_OK;
}

static kri_gguf_array_t array_of(const kri_gguf_kv_t *kv) {
    return (kri_gguf_array_t){kv->array_type, kv->n, kv->data, kv->n_bytes};
}

kr_status_t kri_gguf_get_array(const kri_gguf_t *gguf, const char *key, kri_gguf_type_t type,
                               kri_gguf_array_t *value, kr_error_t *error) {
    const kri_gguf_kv_t *kv = kri_gguf_part_find(&gguf->parts[0], key);
    if (!kv) return KR_E_NOT_FOUND;
    if (kv->type != KRI_GGUF_ARRAY || kv->array_type != type) {
        char wanted[24];
        snprintf(wanted, sizeof wanted, "%s array", kri_gguf_type_name(type));
        return fail_type(kv, wanted, error);
    }
    *value = array_of(kv);
    return KR_OK;
}

bool kri_gguf_array_next(const kri_gguf_array_t *array, uint64_t *at, kri_str_t *value) {
    KR_ASSERT(array->type == KRI_GGUF_STRING && *at <= array->n_bytes);
    const uint64_t left = array->n_bytes - *at;
    if (left < 8) return false;
    const uint64_t length = kri_gguf_le64(array->data + *at);
    if (length > left - 8) return false;
    *value = (kri_str_t){(const char *)array->data + *at + 8, (size_t)length};
    *at += 8 + length;
    return true;
}

float kri_gguf_array_f32(const kri_gguf_array_t *array, uint64_t index) {
    KR_ASSERT(array->type == KRI_GGUF_F32 || array->type == KRI_GGUF_F64);
    KR_ASSERT(index < array->n);
    return (float)read_real(array->type, array->data + index * kri_gguf_type_bytes(array->type));
}

int64_t kri_gguf_array_int(const kri_gguf_array_t *array, uint64_t index) {
    integer_t value = {false, 0};
    KR_ASSERT(index < array->n);
    read_integer(array->type, array->data + index * kri_gguf_type_bytes(array->type), &value);
    return value.is_negative ? (int64_t)(0 - value.magnitude) : (int64_t)value.magnitude;
}

/* ---- values as text ----------------------------------------------------------------------- */

/* Writes what fits; `is_cut` remembers that something did not. */
typedef struct printer_s { char *buf; size_t cap, n; bool is_cut; } printer_t;

static void print_bytes(printer_t *printer, const char *text, size_t n_bytes) {
    if (printer->is_cut || n_bytes > printer->cap - 1 - printer->n) {
        printer->is_cut = true;
        return;
    }
    memcpy(printer->buf + printer->n, text, n_bytes);
    printer->n += n_bytes;
}

/* Valid UTF-8 is kept, newlines and tabs are escaped, everything else becomes \xNN. */
static void print_text(printer_t *printer, const char *text, size_t n_bytes) {
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; i < n_bytes && !printer->is_cut;) {
        size_t n_left = n_bytes - i < 4 ? n_bytes - i : 4, n = 1;
        unsigned char byte = (unsigned char)text[i];
        uint32_t code_point;
        if (byte >= 0x80)
            for (n = n_left; n > 1 && kri_utf8_valid_prefix(text + i, n) != n;) n--;
        if (byte >= 0x80 && n > 1) {
            n = kri_utf8_decode(text + i, n, &code_point);
            print_bytes(printer, text + i, n);
        } else if (byte == '\n' || byte == '\t' || byte == '\r') {
            print_bytes(printer, byte == '\n' ? "\\n" : byte == '\t' ? "\\t" : "\\r", 2);
        } else if (byte < 0x20 || byte >= 0x7f) {
            char escape[4] = {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
            print_bytes(printer, escape, sizeof escape);
        } else {
            print_bytes(printer, text + i, 1);
        }
        i += n;
    }
}

static void print_number(printer_t *printer, kri_gguf_type_t type, const uint8_t *data) {
    char text[40];
    integer_t number;
    int n;
    if (type == KRI_GGUF_BOOL)
        n = snprintf(text, sizeof text, "%s", data[0] ? "true" : "false");
    else if (read_integer(type, data, &number))
        n = snprintf(text, sizeof text, "%s%" PRIu64, number.is_negative ? "-" : "",
                     number.magnitude);
    else
        n = snprintf(text, sizeof text, type == KRI_GGUF_F32 ? "%.9g" : "%.17g",
                     read_real(type, data));
    print_bytes(printer, text, (size_t)n);
}

static void print_array(printer_t *printer, const kri_gguf_array_t *array) {
    char text[32];
    int n = snprintf(text, sizeof text, "[%" PRIu64 "] ", array->n);
    print_bytes(printer, text, (size_t)n);
    uint64_t at = 0;
    for (uint64_t i = 0; i < array->n && !printer->is_cut; i++) {
        if (i) print_bytes(printer, ", ", 2);
        if (array->type == KRI_GGUF_STRING) {
            kri_str_t item = {"", 0};
            (void)kri_gguf_array_next(array, &at, &item);
            print_text(printer, item.data, item.n_bytes);
        } else {
            print_number(printer, array->type, array->data + i * kri_gguf_type_bytes(array->type));
        }
    }
}

/* Makes room for "..." at the end without splitting a character. */
static void print_end(printer_t *printer) {
    if (printer->is_cut) {
        size_t n_dots = printer->cap > 3 ? 3 : printer->cap - 1, room = printer->cap - 1 - n_dots;
        if (printer->n > room) printer->n = kri_utf8_valid_prefix(printer->buf, room);
        memcpy(printer->buf + printer->n, "...", n_dots);
        printer->n += n_dots;
    }
    printer->buf[printer->n] = 0;
}

kr_status_t kri_gguf_meta(const kri_gguf_t *gguf, uint32_t index, const char **key, char *buf,
                          size_t cap) {
    const kri_gguf_part_t *part = &gguf->parts[0];
    if (index >= part->n_kvs) return KR_E_NOT_FOUND;
    const kri_gguf_kv_t *kv = &part->kvs[index];
    *key = kv->key;
    if (cap == 0) return KR_OK;
    printer_t printer = {buf, cap, 0, false};
    if (kv->type == KRI_GGUF_STRING) {
        print_text(&printer, (const char *)kv->data, (size_t)kv->n);
    } else if (kv->type == KRI_GGUF_ARRAY) {
        kri_gguf_array_t array = array_of(kv);
        print_array(&printer, &array);
    } else {
        print_number(&printer, kv->type, kv->data);
    }
    print_end(&printer);
    return KR_OK;
}
