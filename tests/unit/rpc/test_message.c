/* Messages: what is one, ids, batches, errors and their codes, ids of lines that are not there. */
#include "rpc/message.h"
#include "test.h"

static json_t *parse(const char *text) {
    json_t *root = NULL;
    rpc_error_t error;
    assert_true(rpc_line_parse(text, strlen(text), &root, &error));
    return root;
}

static void assert_no_line(const char *text, int code, kr_status_t status) {
    json_t *root = NULL;
    rpc_error_t error;
    assert_false(rpc_line_parse(text, strlen(text), &root, &error));
    assert_int_equal(error.code, code);
    assert_int_equal(error.status, status);
    assert_null(root);
}

/* {"a":[]} of exactly n values. */
static void put_batch(kri_buffer_t *out, size_t n) {
    kri_buffer_clear(out);
    for (size_t i = 0; i < n; i++) (void)kri_buffer_printf(out, i > 0 ? ",{}" : "[{}");
    (void)kri_buffer_append(out, "]", 1);
}

TEST(message_lines) {
    json_t *root = parse(" \t[{},1]\r");
    assert_true(json_is_array(root));
    assert_int_equal(json_array_size(root), 2);
    json_decref(root);
    json_decref(parse("{}"));
    const char *const refused[] = {"", "1 2", "nul", "1,\"b\":2", "7}", "[", "[1", "[1]]", "[1],2",
                                   "[1],\"b\":[2]", "{} {}", "[]}", "{\"a\":1,\"a\":2}",
                                   "[1]{"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        assert_no_line(refused[i], RPC_E_PARSE, KR_E_BAD_FORMAT);
    }
    const char *const others[] = {"[]", "1", "null", "true", " \"x\"\r"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        assert_no_line(others[i], RPC_E_REQUEST, KR_E_PROTOCOL);
    }
    kri_buffer_t text;
    kri_buffer_init(&text, 4096);
    put_batch(&text, RPC_BATCH_MAX);
    json_decref(parse(text.data));
    put_batch(&text, RPC_BATCH_MAX + 1);
    assert_no_line(text.data, RPC_E_REQUEST, KR_E_LIMIT);
    kri_buffer_deinit(&text);
}

/* Reads it as a message; code 0: it is one. */
static void assert_message(const char *text, int code, const char *id) {
    rpc_message_t message;
    rpc_error_t error = {0};
    json_t *root = parse(text);
    const bool is_good = rpc_message_read(root, &message, &error);
    assert_int_equal(error.code, code);
    assert_int_equal(is_good, code == 0);
    if (is_good) assert_true(json_is_object(message.params));
    if (id == NULL) assert_null(message.id);
    else assert_string_equal(message.id, id);
    rpc_message_deinit(&message);
    json_decref(root);
}

TEST(message_members) {
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\"}", 0, NULL);
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":7,\"params\":{}}", 0, "7");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"params\":null,\"id\":null}", 0, "null");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":\"\\u000a\\u20ac\"}", 0,
                   "\"\\n\xe2\x82\xac\"");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":-9223372036854775808}", 0,
                   "-9223372036854775808");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"params\":[],\"id\":1}", RPC_E_PARAMS,
                   "1");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":1.5}", RPC_E_REQUEST, NULL);
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":{}}", RPC_E_REQUEST, NULL);
    assert_message("{\"jsonrpc\":\"2.1\",\"method\":\"a\",\"id\":1}", RPC_E_REQUEST, "1");
    assert_message("{\"method\":\"a\",\"id\":1}", RPC_E_REQUEST, "1");
    assert_message("{\"jsonrpc\":\"2.0\",\"id\":1}", RPC_E_REQUEST, "1");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\\u0000\",\"id\":1}", RPC_E_REQUEST, "1");
    assert_message("{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"id\":1,\"x\":1}", RPC_E_REQUEST, "1");
}

static void assert_guess(const char *prefix, const char *wanted) {
    char id[2048];
    rpc_guess_id(prefix, strlen(prefix), id, sizeof id);
    assert_string_equal(id, wanted);
}

TEST(message_ids_of_lines_that_are_not_there) {
    assert_guess("{\"jsonrpc\":\"2.0\",\"id\":12,\"method\":\"x", "12");
    assert_guess(" { \"id\" : \"a\\\"b\" , ", "\"a\\\"b\"");
    assert_guess("{\"method\":\"x\",\"id\":null,", "null");
    assert_guess("{\"jsonrpc\":\"2.0\",\"params\":{\"id\":5}", "null");
    assert_guess("{\"id\":12", "null"); /* there may be more of it */
    assert_guess("{\"id\":\"ab", "null");
    assert_guess("{\"id\":1.5,", "null");
    assert_guess("{\"id\":[1],", "null");
    assert_guess("{\"id\":99999999999999999999,", "null");
    assert_guess("{\"jd\":1,\"id\":2,", "2");
    assert_guess("", "null");
    assert_guess("[{\"id\":1,", "null");
}

static void assert_code(int family, kr_status_t status, int code, const char *type) {
    rpc_error_t error;
    rpc_error_of_status(&error, family, status, NULL);
    assert_int_equal(error.code, code);
    assert_int_equal(error.status, status);
    assert_string_equal(rpc_error_type(&error), type);
    assert_true(error.message[0] != '\0');
}

TEST(message_codes_of_statuses) {
    assert_code(RPC_E_LOAD, KR_E_TRUNCATED, -32001, "ModelLoadError");
    assert_code(RPC_E_LOAD, KR_E_UNSUPPORTED, -32001, "ModelLoadError");
    assert_code(RPC_E_LOAD, KR_E_NOMEM, -32001, "ModelLoadError");
    assert_code(RPC_E_GENERATION, KR_E_NUMERIC, -32002, "GenerationError");
    assert_code(RPC_E_GENERATION, KR_E_CANCELLED, -32002, "Cancelled");
    assert_code(RPC_E_GENERATION, KR_E_TIMEOUT, -32002, "Timeout");
    assert_code(RPC_E_GENERATION, KR_E_INVALID_ARG, -32602, "InvalidParams");
    assert_code(RPC_E_GENERATION, KR_E_BUSY, -32000, "ServerError");
    assert_code(RPC_E_GENERATION, KR_E_SHUTTING_DOWN, -32000, "ServerError");
    assert_code(RPC_E_GENERATION, KR_E_NOMEM, -32099, "RuntimeError");
    assert_code(RPC_E_TOKENIZER, KR_E_LIMIT, -32003, "TokenizerError");
    assert_code(RPC_E_TOKENIZER, KR_E_INTERNAL, -32603, "InternalError");
}

TEST(message_errors_as_they_are_written) {
    rpc_error_t error;
    kri_buffer_t out;
    kri_buffer_init(&out, 4096);
    rpc_error_set(&error, RPC_E_PARAMS, KR_E_INVALID_ARG, "a.0", "'a.0' is \"%s\"", "x");
    rpc_error_put(&error, &out);
    assert_string_equal(out.data, "{\"code\":-32602,\"message\":\"'a.0' is \\\"x\\\"\",\"data\":{"
                                  "\"type\":\"InvalidParams\",\"kr_status\":1,\"param\":\"a.0\"}}");
    kri_buffer_clear(&out);
    kr_error_t library;
    kr_error_init(&library);
    (void)snprintf(library.message, sizeof library.message, "secret");
    rpc_error_of_status(&error, RPC_E_GENERATION, KR_E_INTERNAL, &library);
    assert_string_equal(error.message, "internal error"); /* what went wrong inside stays there */
    (void)snprintf(error.model_id, sizeof error.model_id, "m");
    rpc_error_put(&error, &out);
    assert_non_null(strstr(out.data, "\"param\":null,\"model_id\":\"m\"}}"));
    kri_buffer_deinit(&out);
}
