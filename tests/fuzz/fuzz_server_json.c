/* fuzz_server_json.c: any bytes as a request body: parse, print with our writer, parse again: the
 * same value. What is refused has a code and a message of one line. A reader that walks it never
 * gives what it was not asked for. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "server/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static void require(bool condition) {
    if (!condition) abort();
}

static void put(kri_buffer_t *out, const char *text) {
    require(kri_buffer_append(out, text, strlen(text)) == KR_OK);
}

static void print(kri_buffer_t *out, json_t *value) {
    const char *key;
    json_t *member;
    size_t index;
    const char *comma = "";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        put(out, "{");
        json_object_foreach(value, key, member) {
            put(out, comma);
            require(json_put_string(out, key, strlen(key)) == KR_OK);
            put(out, ":");
            print(out, member);
            comma = ",";
        }
        put(out, "}");
        return;
    case JSON_ARRAY:
        put(out, "[");
        json_array_foreach(value, index, member) {
            put(out, comma);
            print(out, member);
            comma = ",";
        }
        put(out, "]");
        return;
    case JSON_STRING:
        require(json_put_string(out, json_string_value(value), json_string_length(value)) == KR_OK);
        return;
    case JSON_INTEGER:
        require(kri_buffer_printf(out, "%lld", (long long)json_integer_value(value)) == KR_OK);
        return;
    case JSON_REAL: {
        const size_t n = out->n_bytes;
        require(json_put_double(out, json_real_value(value)) == KR_OK);
        /* A whole real prints as an integer, which is the same number and another type. */
        if (strpbrk(out->data + n, ".e") == NULL) put(out, ".0");
        return;
    }
    case JSON_TRUE: put(out, "true"); return;
    case JSON_FALSE: put(out, "false"); return;
    case JSON_NULL: put(out, "null"); return;
    }
}

static bool is_line(const char *text) {
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) return false;
    }
    return kri_utf8_valid_prefix(text, strlen(text)) == strlen(text);
}

/* One field read as each type: at most one mistake, never two values. */
static void read_fields(json_t *root) {
    static const char *const names[] = {"a", "b", "messages", "n", "stop"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        json_mistake_t mistake = {0};
        json_reader_t reader;
        int64_t integer = 7;
        const char *text = NULL;
        size_t n = 0;
        json_open(&reader, root, NULL, &mistake);
        const bool is_integer = json_read_integer(&reader, names[i], 0, 5, &integer);
        require(is_integer ? integer >= 0 && integer <= 5 : integer == 7);
        if (json_read_string(&reader, names[i], 1, 9, &text, &n)) require(n >= 1 && n <= 9);
        json_require(&reader, names[i]);
        json_finish(&reader);
        if (!mistake.is_set) continue;
        require(mistake.code != NULL && mistake.message[0] != '\0' && is_line(mistake.message));
        require(kri_utf8_valid_prefix(mistake.param, strlen(mistake.param)) ==
                strlen(mistake.param));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    char *copy = malloc(n_bytes + 1); /* of exact size, so that a read past the end is seen */
    require(copy != NULL);
    memcpy(copy, data, n_bytes);
    json_mistake_t mistake = {0};
    json_t *first = NULL, *second = NULL;
    const bool is_good = json_parse(copy, n_bytes, &first, &mistake);
    free(copy);
    if (!is_good) {
        require(first == NULL && mistake.is_set && strcmp(mistake.code, "invalid_json") == 0);
        require(mistake.message[0] != '\0' && is_line(mistake.message));
        return 0;
    }
    require(json_is_object(first) && !mistake.is_set);
    kri_buffer_t text;
    kri_buffer_init(&text, SIZE_MAX);
    print(&text, first);
    require(json_parse(text.data, text.n_bytes, &second, &mistake));
    require(json_equal(first, second));
    kri_buffer_deinit(&text);
    json_decref(second);
    read_fields(first);
    json_decref(first);
    return 0;
}
