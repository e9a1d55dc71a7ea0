/* test_gguf.c: the GGUF reader on files built in memory: what a good file gives back, and that
 * every broken one is refused with the right status, the name of what is wrong, and no leak. */
#include "gguf_builder.h"
#include "test.h"

#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/gguf.h"
#include "model/gguf_impl.h"

static uint64_t live_bytes(void) {
    kr_memory_usage_t usage;
    kr_memory_usage_init(&usage);
    assert_status(kr_memory_usage(&usage), KR_OK);
    return usage.bytes_now;
}

/* A small file with every value type, strings, arrays and three tensors. */
static gguf_bytes_t build_sample(void) {
    static const uint64_t dims_a[] = {4, 2}, dims_b[] = {32}, dims_c[] = {2, 1, 1, 3};
    static const char *const strings[] = {"one", "", "t\xc3\xa4g"};
    uint8_t data[64];
    gguf_builder_t b;
    gguf_builder_init(&b);
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)i;
    gguf_kv(&b, "v.u8", 0, 200, 1);
    gguf_kv(&b, "v.i8", 1, (uint64_t)-5, 1);
    gguf_kv(&b, "v.u16", 2, 65000, 2);
    gguf_kv(&b, "v.i16", 3, (uint64_t)-300, 2);
    gguf_kv_u32(&b, "v.u32", 4000000000u);
    gguf_kv(&b, "v.i32", 5, 77, 4);
    gguf_kv_f32(&b, "v.f32", 1.5f);
    gguf_kv_bool(&b, "v.bool", 1);
    gguf_kv_str(&b, "v.str", "a line\nwith \x01 and \xc3\xa4");
    gguf_kv_array(&b, "v.strings", KRI_GGUF_STRING, 3);
    for (int i = 0; i < 3; i++) gguf_put_str(&b.kvs, strings[i]);
    gguf_kv_array(&b, "v.ints", KRI_GGUF_I32, 4);
    for (int i = 0; i < 4; i++) gguf_put_le(&b.kvs, (uint64_t)(i - 2), 4);
    gguf_kv_array(&b, "v.floats", KRI_GGUF_F32, 2);
    gguf_put_f32(&b.kvs, 0.25f);
    gguf_put_f32(&b.kvs, -2.0f);
    gguf_kv_array(&b, "v.none", KRI_GGUF_STRING, 0);
    gguf_kv(&b, "v.u64", 10, 1ull << 40, 8);
    gguf_kv(&b, "v.i64", 11, (uint64_t)-9, 8);
    gguf_kv(&b, "v.f64", 12, 0x3fe0000000000000u, 8); /* 0.5 */
    gguf_tensor(&b, "a", 0, 2, dims_a, data, 32);
    gguf_tensor(&b, "b", 8, 1, dims_b, data, 34);
    gguf_tensor(&b, "c", 1, 4, dims_c, data, 12);
    gguf_bytes_t file = gguf_build(&b);
    gguf_builder_deinit(&b);
    return file;
}

/* Opens bytes copied to a block of exactly their size, so that ASan sees any overrun. */
static kr_status_t open_copy(const uint8_t *data, size_t n, kr_error_t *error) {
    uint8_t *copy = malloc(n ? n : 1);
    kri_gguf_t *gguf = NULL;
    assert_non_null(copy);
    if (n) memcpy(copy, data, n);
    uint64_t before = live_bytes();
    kr_error_init(error);
    kr_status_t status = kri_gguf_open_memory(copy, n, &gguf, error);
    if (status == KR_OK) {
        char text[64];
        const char *key;
        for (uint32_t i = 0; kri_gguf_meta(gguf, i, &key, text, sizeof text) == KR_OK; i++)
            assert_true(strlen(text) < sizeof text);
        for (uint32_t i = 0; i < kri_gguf_n_tensors(gguf); i++) {
            const kri_gguf_tensor_t *tensor = kri_gguf_tensor(gguf, i);
            const uint8_t *begin = tensor->tensor.data;
            assert_ptr_equal(kri_gguf_find(gguf, tensor->name), tensor);
            assert_true(begin >= copy && tensor->tensor.n_bytes <= (size_t)(copy + n - begin));
        }
        kri_gguf_close(gguf);
    } else {
        assert_null(gguf);
        assert_int_equal(error->code, status);
        assert_true(error->message[0] != 0);
        assert_null(strchr(error->message, '\n'));
    }
    assert_int_equal(live_bytes(), before);
    free(copy);
    return status;
}

/* Builds, frees the builder, opens: expects a status and a word in the message. */
static void expect_refused(gguf_builder_t *b, kr_status_t expected, const char *word) {
    kr_error_t error;
    gguf_bytes_t file = gguf_build(b);
    kr_status_t status = open_copy(file.data, file.n, &error);
    if (status != expected || !strstr(error.message, word))
        print_message("message: %s, wanted: %s\n", error.message, word);
    assert_status(status, expected);
    assert_non_null(strstr(error.message, word));
    free(file.data);
    gguf_builder_deinit(b);
}

static void expect_accepted(gguf_builder_t *b) {
    kr_error_t error;
    gguf_bytes_t file = gguf_build(b);
    kr_status_t status = open_copy(file.data, file.n, &error);
    if (status != KR_OK) print_message("message: %s\n", error.message);
    assert_status(status, KR_OK);
    free(file.data);
    gguf_builder_deinit(b);
}

static kri_gguf_t *open_sample(gguf_bytes_t *file) {
    kri_gguf_t *gguf = NULL;
    *file = build_sample();
    assert_status(kri_gguf_open_memory(file->data, file->n, &gguf, NULL), KR_OK);
    return gguf;
}

TEST(gguf_integers_are_read_from_any_integer_type) {
    static const struct { const char *key; uint32_t value; } cases[] = {
        {"v.u8", 200}, {"v.u16", 65000}, {"v.u32", 4000000000u}, {"v.i32", 77}};
    gguf_bytes_t file;
    kri_gguf_t *gguf = open_sample(&file);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t value = 0;
        assert_status(kri_gguf_get_u32(gguf, cases[i].key, &value, NULL), KR_OK);
        assert_int_equal(value, cases[i].value);
    }
    kri_gguf_close(gguf);
    free(file.data);
}

TEST(gguf_integer_getter_refuses_when_value_does_not_fit) {
    static const char *const keys[] = {"v.i8",  "v.i16",  "v.i64", "v.u64",    "v.f32",
                                       "v.str", "v.bool", "v.f64", "v.strings"};
    gguf_bytes_t file;
    kri_gguf_t *gguf = open_sample(&file);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t value = 123;
        kr_error_t error;
        kr_error_init(&error);
        assert_status(kri_gguf_get_u32(gguf, keys[i], &value, &error), KR_E_BAD_FORMAT);
        assert_string_equal(error.param, keys[i]);
        assert_int_equal(value, 123);
    }
    uint32_t value = 123;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_gguf_get_u32(gguf, "absent", &value, &error), KR_E_NOT_FOUND);
    assert_string_equal(error.message, "");
    kri_gguf_close(gguf);
    free(file.data);
}

TEST(gguf_other_getters_return_values_and_refuse_other_types) {
    gguf_bytes_t file;
    kri_gguf_t *gguf = open_sample(&file);
    float real = 0;
    bool flag = false;
    kri_str_t text;
    assert_status(kri_gguf_get_f32(gguf, "v.f32", &real, NULL), KR_OK);
    assert_true(real == 1.5f);
    assert_status(kri_gguf_get_f32(gguf, "v.f64", &real, NULL), KR_OK);
    assert_true(real == 0.5f);
    assert_status(kri_gguf_get_f32(gguf, "v.u32", &real, NULL), KR_E_BAD_FORMAT);
    assert_status(kri_gguf_get_f32(gguf, "nope", &real, NULL), KR_E_NOT_FOUND);
    assert_status(kri_gguf_get_bool(gguf, "v.bool", &flag, NULL), KR_OK);
    assert_true(flag);
    assert_status(kri_gguf_get_bool(gguf, "v.u8", &flag, NULL), KR_E_BAD_FORMAT);
    assert_status(kri_gguf_get_bool(gguf, "nope", &flag, NULL), KR_E_NOT_FOUND);
    assert_status(kri_gguf_get_str(gguf, "v.str", &text, NULL), KR_OK);
    assert_int_equal(text.n_bytes, strlen("a line\nwith \x01 and \xc3\xa4"));
    assert_status(kri_gguf_get_str(gguf, "v.strings", &text, NULL), KR_E_BAD_FORMAT);
    assert_status(kri_gguf_get_str(gguf, "nope", &text, NULL), KR_E_NOT_FOUND);
    kri_gguf_close(gguf);
    free(file.data);
}

TEST(gguf_arrays_are_typed) {
    gguf_bytes_t file;
    kri_gguf_t *gguf = open_sample(&file);
    kri_gguf_array_t array;
    assert_status(kri_gguf_get_array(gguf, "v.strings", KRI_GGUF_STRING, &array, NULL), KR_OK);
    assert_int_equal(array.n, 3);
    kri_str_t items[3], none;
    uint64_t at = 0;
    for (int i = 0; i < 3; i++) assert_true(kri_gguf_array_next(&array, &at, &items[i]));
    assert_false(kri_gguf_array_next(&array, &at, &none));
    assert_int_equal(at, array.n_bytes);
    assert_int_equal(items[1].n_bytes, 0);
    assert_int_equal(items[2].n_bytes, 4);
    assert_memory_equal(items[2].data, "t\xc3\xa4g", 4);
    assert_status(kri_gguf_get_array(gguf, "v.ints", KRI_GGUF_I32, &array, NULL), KR_OK);
    for (int i = 0; i < 4; i++) assert_int_equal(kri_gguf_array_int(&array, (uint64_t)i), i - 2);
    assert_status(kri_gguf_get_array(gguf, "v.floats", KRI_GGUF_F32, &array, NULL), KR_OK);
    assert_true(kri_gguf_array_f32(&array, 1) == -2.0f);
    assert_status(kri_gguf_get_array(gguf, "v.none", KRI_GGUF_STRING, &array, NULL), KR_OK);
    assert_int_equal(array.n, 0);
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_gguf_get_array(gguf, "v.ints", KRI_GGUF_F32, &array, &error),
                  KR_E_BAD_FORMAT);
    assert_non_null(strstr(error.message, "is i32 array, not f32 array"));
    assert_status(kri_gguf_get_array(gguf, "v.u8", KRI_GGUF_U8, &array, NULL), KR_E_BAD_FORMAT);
    assert_status(kri_gguf_get_array(gguf, "x", KRI_GGUF_U8, &array, NULL), KR_E_NOT_FOUND);
    kri_gguf_close(gguf);
    free(file.data);
}

static const char *meta_text(kri_gguf_t *gguf, const char *wanted, char *buf, size_t cap) {
    const char *key;
    for (uint32_t i = 0; kri_gguf_meta(gguf, i, &key, buf, cap) == KR_OK; i++)
        if (strcmp(key, wanted) == 0) return buf;
    return NULL;
}

TEST(gguf_meta_prints_values_on_one_line) {
    gguf_bytes_t file;
    char buf[80];
    kri_gguf_t *gguf = open_sample(&file);
    assert_string_equal(meta_text(gguf, "v.i8", buf, sizeof buf), "-5");
    assert_string_equal(meta_text(gguf, "v.i64", buf, sizeof buf), "-9");
    assert_string_equal(meta_text(gguf, "v.bool", buf, sizeof buf), "true");
    assert_string_equal(meta_text(gguf, "v.f32", buf, sizeof buf), "1.5");
    assert_string_equal(meta_text(gguf, "v.f64", buf, sizeof buf), "0.5");
    assert_string_equal(meta_text(gguf, "v.str", buf, sizeof buf),
                        "a line\\nwith \\x01 and \xc3\xa4");
    assert_string_equal(meta_text(gguf, "v.strings", buf, sizeof buf),
                        "[3] one, , t\xc3\xa4g");
    assert_string_equal(meta_text(gguf, "v.ints", buf, sizeof buf), "[4] -2, -1, 0, 1");
    assert_string_equal(meta_text(gguf, "v.none", buf, sizeof buf), "[0] ");
    assert_string_equal(meta_text(gguf, "v.ints", buf, 12), "[4] -2, ...");
    assert_string_equal(meta_text(gguf, "v.ints", buf, 3), "..");
    assert_string_equal(meta_text(gguf, "v.ints", buf, 1), "");
    assert_null(meta_text(gguf, "absent", buf, sizeof buf));
    kri_gguf_close(gguf);
    free(file.data);
}

TEST(gguf_meta_never_cuts_a_character) {
    gguf_builder_t b;
    char buf[32];
    gguf_builder_init(&b);
    gguf_kv_str(&b, "k", "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xff");
    gguf_bytes_t file = gguf_build(&b);
    kri_gguf_t *gguf = NULL;
    assert_status(kri_gguf_open_memory(file.data, file.n, &gguf, NULL), KR_OK);
    assert_string_equal(meta_text(gguf, "k", buf, 11), "\xe2\x82\xac\xe2\x82\xac...");
    assert_string_equal(meta_text(gguf, "k", buf, sizeof buf),
                        "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac\\xff");
    kri_gguf_close(gguf);
    free(file.data);
    gguf_builder_deinit(&b);
}

TEST(gguf_tensors_have_shape_outermost_first_and_their_bytes) {
    gguf_bytes_t file;
    kri_gguf_t *gguf = open_sample(&file);
    assert_int_equal(kri_gguf_n_tensors(gguf), 3);
    assert_int_equal(kri_gguf_version(gguf), 3);
    assert_int_equal(kri_gguf_file_bytes(gguf), file.n);
    assert_string_equal(kri_gguf_part_path(gguf, 0), "");
    const kri_gguf_tensor_t *a = kri_gguf_find(gguf, "a");
    assert_non_null(a);
    assert_int_equal(a->tensor.n_dims, 2);
    assert_int_equal(a->tensor.shape[0], 2);
    assert_int_equal(a->tensor.shape[1], 4);
    assert_int_equal(a->tensor.dtype, KR_DTYPE_F32);
    const kri_gguf_tensor_t *b = kri_gguf_tensor(gguf, 1);
    assert_string_equal(b->name, "b");
    assert_int_equal(b->tensor.n_bytes, 34);
    assert_int_equal(b->offset - a->offset, 32);
    assert_memory_equal(b->tensor.data, file.data + b->offset, 34);
    const kri_gguf_tensor_t *c = kri_gguf_find(gguf, "c");
    assert_int_equal(c->tensor.shape[0], 3);
    assert_int_equal(c->tensor.shape[3], 2);
    assert_null(kri_gguf_find(gguf, "d"));
    assert_null(kri_gguf_tensor(gguf, 3));
    kri_gguf_release(gguf, a, 0, SIZE_MAX); /* memory is borrowed: must not touch it */
    kri_gguf_close(gguf);
    free(file.data);
}

TEST(gguf_open_reads_a_mapped_file) {
    char path[] = "/tmp/kr-gguf-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    gguf_bytes_t file = build_sample();
    assert_int_equal(gguf_write(&file, path), 0);
    kri_gguf_t *gguf = NULL;
    assert_status(kri_gguf_open(path, &gguf, NULL), KR_OK);
    assert_string_equal(kri_gguf_part_path(gguf, 0), path);
    assert_int_equal(kri_gguf_part_map(gguf, 0)->size, file.n);
    assert_null(kri_gguf_part_map(gguf, 1));
    const kri_gguf_tensor_t *b = kri_gguf_find(gguf, "b");
    kri_gguf_release(gguf, b, 0, SIZE_MAX);
    assert_memory_equal(b->tensor.data, file.data + b->offset, 34); /* comes back from the file */
    kri_gguf_close(gguf);
    unlink(path);
    free(file.data);
}

TEST(gguf_open_refuses_what_is_no_file) {
    kri_gguf_t *gguf = NULL;
    kr_error_t error;
    kr_error_init(&error);
    assert_status(kri_gguf_open("/nonexistent/x.gguf", &gguf, &error), KR_E_NOT_FOUND);
    assert_non_null(strstr(error.message, "/nonexistent/x.gguf"));
    assert_status(kri_gguf_open("/tmp", &gguf, &error), KR_E_INVALID_ARG);
    char path[64];
    snprintf(path, sizeof path, "/tmp/kr-fifo-%ld", (long)getpid());
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_status(kri_gguf_open(path, &gguf, &error), KR_E_INVALID_ARG);
    unlink(path);
    assert_null(gguf);
}

TEST(gguf_refuses_every_truncation) {
    gguf_bytes_t file = build_sample();
    kr_error_t error;
    kri_gguf_t *gguf = NULL;
    assert_status(kri_gguf_open_memory(file.data, file.n, &gguf, NULL), KR_OK);
    const kri_gguf_tensor_t *last = kri_gguf_find(gguf, "c");
    size_t n_needed = (size_t)(last->offset + last->tensor.n_bytes);
    kri_gguf_close(gguf);
    for (size_t n = 0; n < n_needed; n++)
        assert_status(open_copy(file.data, n, &error), KR_E_TRUNCATED);
    assert_status(open_copy(file.data, n_needed, &error), KR_OK); /* only padding is missing */
    free(file.data);
}

TEST(gguf_survives_every_bit_flip_of_the_header) {
    gguf_bytes_t file = build_sample();
    kr_error_t error;
    kri_gguf_t *gguf = NULL;
    assert_status(kri_gguf_open_memory(file.data, file.n, &gguf, NULL), KR_OK);
    size_t n_header = (size_t)kri_gguf_tensor(gguf, 0)->offset;
    size_t n_refused = 0;
    kri_gguf_close(gguf);
    for (size_t i = 0; i < n_header; i++)
        for (int bit = 0; bit < 8; bit++) {
            file.data[i] = (uint8_t)(file.data[i] ^ 1u << bit);
            if (open_copy(file.data, file.n, &error) != KR_OK) n_refused++;
            file.data[i] = (uint8_t)(file.data[i] ^ 1u << bit);
        }
    assert_true(n_refused > n_header); /* most of the header is structure */
    assert_status(open_copy(file.data, file.n, &error), KR_OK);
    free(file.data);
}

TEST(gguf_survives_boundary_numbers_in_every_field) {
    static const uint64_t values[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
                                      0x7fffffffffffffff, 0x8000000000000000, UINT64_MAX};
    gguf_bytes_t file = build_sample();
    kr_error_t error;
    uint8_t *copy = malloc(file.n);
    assert_non_null(copy);
    for (size_t i = 0; i + 8 <= file.n; i++)
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            memcpy(copy, file.data, file.n);
            for (size_t k = 0; k < 8; k++) copy[i + k] = (uint8_t)(values[v] >> (8 * k));
            (void)open_copy(copy, file.n, &error); /* checks memory and the error inside */
        }
    assert_status(open_copy(file.data, file.n, &error), KR_OK);
    free(copy);
    free(file.data);
}

TEST(gguf_refuses_wrong_magic_and_versions) {
    static const struct { uint32_t version; kr_status_t status; } cases[] = {
        {0, KR_E_UNSUPPORTED}, {1, KR_E_UNSUPPORTED}, {2, KR_OK}, {3, KR_OK},
        {4, KR_E_UNSUPPORTED}, {0x03000000, KR_E_UNSUPPORTED}, {UINT32_MAX, KR_E_UNSUPPORTED}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        b.version = cases[i].version;
        if (cases[i].status == KR_OK) expect_accepted(&b);
        else expect_refused(&b, cases[i].status, "version");
    }
    kr_error_t error;
    gguf_bytes_t file = build_sample();
    file.data[3] = 'X';
    assert_status(open_copy(file.data, file.n, &error), KR_E_BAD_FORMAT);
    assert_non_null(strstr(error.message, "not a GGUF file"));
    free(file.data);
}

TEST(gguf_refuses_hostile_counts) {
    static const uint64_t counts[] = {100, 65537, 1u << 18, 1ull << 31, 1ull << 32, 1ull << 63,
                                      UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        gguf_kv_u32(&b, "k", 1);
        b.n_kvs = counts[i];
        expect_refused(&b, KR_E_TRUNCATED, "metadata_kv_count");
        gguf_builder_init(&b);
        b.n_tensors = counts[i];
        expect_refused(&b, KR_E_TRUNCATED, "tensor_count");
        gguf_builder_init(&b);
        gguf_kv_array(&b, "k", KRI_GGUF_U16, counts[i]);
        expect_refused(&b, KR_E_TRUNCATED, "k: array items");
        gguf_builder_init(&b);
        gguf_kv_array(&b, "k", KRI_GGUF_STRING, counts[i]);
        gguf_put_le(&b.kvs, 1, 8);
        expect_refused(&b, KR_E_TRUNCATED, "GGUF k: ");
        gguf_builder_init(&b);
        gguf_key(&b, "k", KRI_GGUF_STRING);
        gguf_put_le(&b.kvs, counts[i] + 62, 8);
        expect_refused(&b, KR_E_TRUNCATED, "GGUF k: string of");
    }
}

TEST(gguf_refuses_bad_keys) {
    gguf_builder_t b;
    gguf_builder_init(&b);
    gguf_kv_u32(&b, "same", 1);
    gguf_kv_u32(&b, "other", 1);
    gguf_kv_u32(&b, "same", 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "same: key appears twice");
    gguf_builder_init(&b);
    gguf_kv_u32(&b, "", 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "key: empty");
    gguf_builder_init(&b);
    gguf_kv_u32(&b, "a\nb", 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "control bytes");
    gguf_builder_init(&b);
    gguf_kv_u32(&b, "a\xff", 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "UTF-8");
    gguf_builder_init(&b);
    gguf_kv_u32(&b, "nul?byte", 1);
    b.kvs.data[8 + 3] = 0;
    expect_refused(&b, KR_E_BAD_FORMAT, "control bytes");
    gguf_builder_init(&b);
    gguf_kv(&b, "k", 13, 0, 4);
    expect_refused(&b, KR_E_BAD_FORMAT, "k: unknown value type 13");
    gguf_builder_init(&b);
    gguf_kv(&b, "k", 7, 2, 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "k: bool that is neither");
    gguf_builder_init(&b);
    gguf_kv_array(&b, "k", KRI_GGUF_BOOL, 2);
    gguf_put_le(&b.kvs, 0x0301, 2);
    expect_refused(&b, KR_E_BAD_FORMAT, "k: bool that is neither");
    gguf_builder_init(&b);
    gguf_kv_array(&b, "k", KRI_GGUF_ARRAY, 1);
    expect_refused(&b, KR_E_UNSUPPORTED, "k: array of arrays");
    gguf_builder_init(&b);
    gguf_kv_array(&b, "k", 99, 1);
    expect_refused(&b, KR_E_BAD_FORMAT, "k: unknown array element type 99");
}

/* A key of n bytes. */
static void long_key(gguf_builder_t *b, size_t n) {
    char *key = malloc(n + 1);
    assert_non_null(key);
    memset(key, 'k', n);
    key[n] = 0;
    gguf_builder_init(b);
    gguf_kv_u32(b, key, 1);
    free(key);
}

TEST(gguf_key_and_name_lengths_are_limited) {
    gguf_builder_t b;
    static const uint64_t dims[] = {1};
    long_key(&b, KRI_GGUF_KEY_BYTES_MAX);
    expect_accepted(&b);
    long_key(&b, KRI_GGUF_KEY_BYTES_MAX + 1);
    expect_refused(&b, KR_E_LIMIT, "over the limit of 65535");
    char name[KRI_GGUF_NAME_BYTES_MAX + 2];
    memset(name, 'n', sizeof name);
    name[KRI_GGUF_NAME_BYTES_MAX + 1] = 0;
    gguf_builder_init(&b);
    gguf_tensor(&b, name, 0, 1, dims, "1234", 4);
    expect_refused(&b, KR_E_LIMIT, "tensor name: length 256");
    name[KRI_GGUF_NAME_BYTES_MAX] = 0;
    gguf_builder_init(&b);
    gguf_tensor(&b, name, 0, 1, dims, "1234", 4);
    expect_accepted(&b);
}

TEST(gguf_number_of_keys_is_limited) {
    for (uint32_t n = KRI_GGUF_KEYS_MAX; n <= KRI_GGUF_KEYS_MAX + 1; n++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        for (uint32_t i = 0; i < n; i++) {
            char key[16];
            snprintf(key, sizeof key, "k%u", i);
            gguf_kv_u32(&b, key, i);
        }
        if (n == KRI_GGUF_KEYS_MAX) expect_accepted(&b);
        else expect_refused(&b, KR_E_LIMIT, "65537 is over the limit of 65536");
    }
}

TEST(gguf_number_of_tensors_is_limited) {
    static const uint64_t dims[] = {1};
    for (uint32_t n = KRI_GGUF_TENSORS_MAX; n <= KRI_GGUF_TENSORS_MAX + 1; n++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        for (uint32_t i = 0; i < n; i++) { /* backwards, so that the sweep has to sort */
            char name[16];
            snprintf(name, sizeof name, "t%u", i);
            gguf_info(&b, name, 0, 1, dims, (uint64_t)(n - 1 - i) * 32);
        }
        uint8_t zeros[4096] = {0};
        for (size_t i = 0; i < (size_t)n * 32 / sizeof zeros + 1; i++)
            gguf_put(&b.data, zeros, sizeof zeros);
        if (n == KRI_GGUF_TENSORS_MAX) expect_accepted(&b);
        else expect_refused(&b, KR_E_LIMIT, "tensor_count: 262145 is over the limit of 262144");
    }
}

TEST(gguf_strings_and_arrays_are_limited) {
    gguf_builder_t b;
    size_t n = (size_t)KRI_GGUF_ARRAY_ITEMS_MAX + 2;
    uint8_t *zeros = calloc(n, 1);
    assert_non_null(zeros);
    gguf_builder_init(&b);
    gguf_key(&b, "k", KRI_GGUF_STRING);
    gguf_put_le(&b.kvs, KRI_GGUF_STRING_BYTES_MAX + 1, 8);
    gguf_put(&b.kvs, zeros, (size_t)KRI_GGUF_STRING_BYTES_MAX + 1);
    expect_refused(&b, KR_E_LIMIT, "k: string over 16 MiB");
    gguf_builder_init(&b);
    gguf_key(&b, "k", KRI_GGUF_STRING);
    gguf_put_le(&b.kvs, KRI_GGUF_STRING_BYTES_MAX, 8);
    gguf_put(&b.kvs, zeros, (size_t)KRI_GGUF_STRING_BYTES_MAX);
    expect_accepted(&b);
    gguf_builder_init(&b);
    gguf_kv_array(&b, "k", KRI_GGUF_U8, KRI_GGUF_ARRAY_ITEMS_MAX + 1);
    gguf_put(&b.kvs, zeros, (size_t)KRI_GGUF_ARRAY_ITEMS_MAX + 1);
    expect_refused(&b, KR_E_LIMIT, "k: array over 67108864 items");
    free(zeros);
}

TEST(gguf_alignment_is_a_power_of_two_in_range) {
    static const uint32_t good[] = {8, 16, 64, 65536}, bad[] = {0, 1, 4, 24, 33, 131072};
    static const uint64_t dims[] = {1};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        b.alignment = good[i];
        gguf_kv_u32(&b, "general.alignment", good[i]);
        gguf_tensor(&b, "t", 0, 1, dims, "1234", 4);
        gguf_tensor(&b, "u", 0, 1, dims, "1234", 4);
        expect_accepted(&b);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        gguf_kv_u32(&b, "general.alignment", bad[i]);
        expect_refused(&b, KR_E_BAD_FORMAT, "general.alignment");
    }
    gguf_builder_t b;
    gguf_builder_init(&b);
    gguf_kv_str(&b, "general.alignment", "32");
    expect_refused(&b, KR_E_BAD_FORMAT, "general.alignment: is string, not an integer");
}

TEST(gguf_refuses_bad_tensors) {
    static const struct {
        uint32_t type, n_dims;
        uint64_t dims[4], offset;
        kr_status_t status;
        const char *word;
    } cases[] = {
        {0, 0, {1}, 0, KR_E_BAD_FORMAT, "t: tensor has 0 dimensions"},
        {0, 5, {1, 1, 1, 1}, 0, KR_E_BAD_FORMAT, "t: tensor has 5 dimensions"},
        {0, 2, {4, 0}, 0, KR_E_BAD_FORMAT, "t: tensor dimension is 0"},
        {0, 2, {1ull << 32, 1ull << 32}, 0, KR_E_LIMIT, "t: tensor has over 2^64 elements"},
        {0, 1, {1ull << 62}, 0, KR_E_LIMIT, "t: tensor has over 2^64 bytes"},
        {0, 1, {1ull << 61}, 0, KR_E_TRUNCATED, "t: tensor of 9223372036854775808 bytes"},
        {0, 1, {8}, 0, KR_OK, ""},
        {0, 1, {9}, 0, KR_E_TRUNCATED, "ends after the file"},
        {0, 1, {8}, 32, KR_E_TRUNCATED, "ends after the file"},
        {0, 1, {8}, UINT64_MAX - 31, KR_E_TRUNCATED, "ends after the file"},
        {0, 1, {1}, 16, KR_E_BAD_FORMAT, "no multiple of the alignment"},
        {2, 2, {16, 2}, 0, KR_E_BAD_FORMAT, "no multiple of the 32 of a q4_0 block"},
        {12, 1, {128}, 0, KR_E_BAD_FORMAT, "no multiple of the 256 of a q4_k block"},
        {16, 1, {256}, 0, KR_E_UNSUPPORTED, "t: tensor type iq2_xxs (16)"},
        {4, 1, {32}, 0, KR_E_UNSUPPORTED, "t: tensor type"},
        {4096, 1, {32}, 0, KR_E_UNSUPPORTED, "(4096) is not supported"},
        {UINT32_MAX, 1, {32}, 0, KR_E_UNSUPPORTED, "is not supported"},
    };
    uint8_t data[32] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gguf_builder_t b;
        gguf_builder_init(&b);
        gguf_info(&b, "t", cases[i].type, cases[i].n_dims < 5 ? cases[i].n_dims : 4,
                  cases[i].dims, cases[i].offset);
        if (cases[i].n_dims > 4) b.infos.data[9] = (uint8_t)cases[i].n_dims;
        gguf_put(&b.data, data, sizeof data);
        if (cases[i].status == KR_OK) expect_accepted(&b);
        else expect_refused(&b, cases[i].status, cases[i].word);
    }
}

TEST(gguf_refuses_overlapping_and_repeated_tensors) {
    static const uint64_t dims[] = {16}; /* 64 bytes */
    uint8_t data[256] = {0};
    gguf_builder_t b;
    gguf_builder_init(&b);
    gguf_info(&b, "a", 0, 1, dims, 0);
    gguf_info(&b, "b", 0, 1, dims, 32);
    gguf_put(&b.data, data, sizeof data);
    expect_refused(&b, KR_E_BAD_FORMAT, "b: tensor data overlaps that of a");
    gguf_builder_init(&b);
    gguf_info(&b, "a", 0, 1, dims, 128);
    gguf_info(&b, "b", 0, 1, dims, 0);
    gguf_info(&b, "c", 0, 1, dims, 128);
    gguf_put(&b.data, data, sizeof data);
    expect_refused(&b, KR_E_BAD_FORMAT, "c: tensor data overlaps that of a");
    gguf_builder_init(&b); /* out of order and with a gap: fine */
    gguf_info(&b, "a", 0, 1, dims, 192);
    gguf_info(&b, "b", 0, 1, dims, 0);
    gguf_info(&b, "c", 0, 1, dims, 64);
    gguf_put(&b.data, data, sizeof data);
    expect_accepted(&b);
    gguf_builder_init(&b);
    gguf_info(&b, "a", 0, 1, dims, 0);
    gguf_info(&b, "a", 0, 1, dims, 64);
    gguf_put(&b.data, data, sizeof data);
    expect_refused(&b, KR_E_BAD_FORMAT, "a: tensor appears twice");
}

TEST(gguf_overlap_sweep_sorts_any_order) {
    enum { N = 300 };
    static const uint64_t dims[] = {8};
    static uint8_t data[N * 32];
    for (int overlap = 0; overlap < 2; overlap++) {
        gguf_builder_t b;
        uint32_t seed = 7;
        uint64_t offsets[N];
        gguf_builder_init(&b);
        for (uint32_t i = 0; i < N; i++) offsets[i] = (uint64_t)i * 32;
        for (uint32_t i = N - 1; i > 0; i--) {
            seed = seed * 1664525 + 1013904223;
            uint32_t k = (seed >> 8) % (i + 1);
            uint64_t swap = offsets[i];
            offsets[i] = offsets[k];
            offsets[k] = swap;
        }
        if (overlap) offsets[17] = offsets[211];
        for (uint32_t i = 0; i < N; i++) {
            char name[8];
            snprintf(name, sizeof name, "t%u", i);
            gguf_info(&b, name, 0, 1, dims, offsets[i]);
        }
        gguf_put(&b.data, data, sizeof data);
        if (overlap) expect_refused(&b, KR_E_BAD_FORMAT, "t211: tensor data overlaps that of t17");
        else expect_accepted(&b);
    }
}

TEST(gguf_open_survives_every_failing_allocation) {
    gguf_bytes_t file = build_sample();
    uint64_t before = live_bytes();
    uint64_t k = 1;
    for (;; k++) {
        kri_gguf_t *gguf = NULL;
        kri_alloc_fail(k, false);
        kr_status_t status = kri_gguf_open_memory(file.data, file.n, &gguf, NULL);
        kri_alloc_fail(0, false);
        if (status == KR_OK) {
            kri_gguf_close(gguf);
            break;
        }
        assert_status(status, KR_E_NOMEM);
        assert_int_equal(live_bytes(), before);
    }
    assert_true(k > 5);
    free(file.data);
}

/* ---- split sets --------------------------------------------------------------------------- */

typedef struct split_s { uint32_t no, count, tensors, n_here; const char *prefix; } split_t;

static void write_part(const char *path, const split_t *split) {
    static const uint64_t dims[] = {4};
    gguf_builder_t b;
    char name[16], data[16] = "0123456789abcde";
    gguf_builder_init(&b);
    gguf_kv(&b, "split.no", KRI_GGUF_U16, split->no, 2);
    gguf_kv(&b, "split.count", KRI_GGUF_U16, split->count, 2);
    gguf_kv(&b, "split.tensors.count", KRI_GGUF_I32, split->tensors, 4);
    for (uint32_t i = 0; i < split->n_here; i++) {
        snprintf(name, sizeof name, "%s%u", split->prefix, i);
        gguf_tensor(&b, name, 0, 1, dims, data, sizeof data);
    }
    gguf_bytes_t file = gguf_build(&b);
    assert_int_equal(gguf_write(&file, path), 0);
    free(file.data);
    gguf_builder_deinit(&b);
}

/* Writes three parts (those with count 0 are left out) and opens the first. */
static kr_status_t open_split(const split_t splits[3], kr_error_t *error, uint32_t *n_tensors) {
    char dir[] = "/tmp/kr-split-XXXXXX", paths[3][64];
    assert_non_null(mkdtemp(dir));
    for (uint32_t i = 0; i < 3; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/m-%05u-of-00003.gguf", dir, i + 1);
        if (splits[i].count) write_part(paths[i], &splits[i]);
    }
    kri_gguf_t *gguf = NULL;
    uint64_t before = live_bytes();
    kr_error_init(error);
    kr_status_t status = kri_gguf_open(paths[0], &gguf, error);
    if (status == KR_OK) {
        *n_tensors = kri_gguf_n_tensors(gguf);
        assert_int_equal(kri_gguf_n_parts(gguf), 3);
        const kri_gguf_tensor_t *tensor = kri_gguf_find(gguf, "c0");
        assert_non_null(tensor);
        assert_int_equal(tensor->part, 2);
        assert_memory_equal(tensor->tensor.data, "0123456789abcde", 16);
        assert_string_equal(kri_gguf_part_path(gguf, 2), paths[2]);
        kri_gguf_close(gguf);
    }
    assert_int_equal(live_bytes(), before);
    for (uint32_t i = 0; i < 3; i++) unlink(paths[i]);
    rmdir(dir);
    return status;
}

TEST(gguf_split_set_opens_all_parts) {
    static const split_t splits[3] = {{0, 3, 4, 1, "a"}, {1, 3, 4, 2, "b"}, {2, 3, 4, 1, "c"}};
    kr_error_t error;
    uint32_t n_tensors = 0;
    assert_status(open_split(splits, &error, &n_tensors), KR_OK);
    assert_int_equal(n_tensors, 4);
}

TEST(gguf_split_set_refuses_parts_that_do_not_match) {
    static const struct { split_t splits[3]; kr_status_t status; const char *word; } cases[] = {
        {{{0, 3, 3, 1, "a"}, {1, 3, 3, 1, "b"}, {1, 3, 3, 1, "c"}}, KR_E_BAD_FORMAT,
         "part 3: split.no: is 1 where 2 belongs"},
        {{{0, 3, 3, 1, "a"}, {1, 2, 3, 1, "b"}, {2, 3, 3, 1, "c"}}, KR_E_BAD_FORMAT,
         "part 2: split.count: is 2"},
        {{{0, 3, 3, 1, "a"}, {1, 3, 4, 1, "b"}, {2, 3, 3, 1, "c"}}, KR_E_BAD_FORMAT,
         "part 2: split.tensors.count: is 4"},
        {{{0, 3, 5, 1, "a"}, {1, 3, 5, 1, "b"}, {2, 3, 5, 1, "c"}}, KR_E_BAD_FORMAT,
         "split.tensors.count: is 5, the parts hold 3"},
        {{{0, 3, 3, 1, "a"}, {1, 3, 3, 1, "a"}, {2, 3, 3, 1, "c"}}, KR_E_BAD_FORMAT,
         "part 2: a0: tensor appears twice"},
        {{{0, 3, 3, 1, "a"}, {1, 3, 3, 1, "b"}, {2, 0, 3, 1, "c"}}, KR_E_NOT_FOUND,
         "m-00003-of-00003.gguf"},
        {{{1, 3, 3, 1, "a"}, {1, 3, 3, 1, "b"}, {2, 3, 3, 1, "c"}}, KR_E_INVALID_ARG,
         "this is part 2 of a set"},
        {{{0, 4, 3, 1, "a"}, {1, 3, 3, 1, "b"}, {2, 3, 3, 1, "c"}}, KR_E_BAD_FORMAT,
         "does not end in -00001-of-00004.gguf"},
        {{{0, 2000, 3, 1, "a"}, {1, 3, 3, 1, "b"}, {2, 3, 3, 1, "c"}}, KR_E_LIMIT,
         "split.count: 2000 is over the limit of 1024"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kr_error_t error;
        uint32_t n_tensors;
        kr_status_t status = open_split(cases[i].splits, &error, &n_tensors);
        if (!strstr(error.message, cases[i].word)) print_message("got: %s\n", error.message);
        assert_status(status, cases[i].status);
        assert_non_null(strstr(error.message, cases[i].word));
    }
}

TEST(gguf_split_set_is_refused_from_memory) {
    gguf_builder_t b;
    gguf_builder_init(&b);
    gguf_kv(&b, "split.count", KRI_GGUF_U16, 2, 2);
    expect_refused(&b, KR_E_UNSUPPORTED, "cannot be read from memory");
}
