/* Calls: exactly one answer whatever an endpoint does, errors in the three styles, the table. */
#include "server/call.h"
#include "server/errors.h"
#include "test.h"

typedef struct fake_s {
    int n_replies, status, n_begun, n_written, n_ended, n_destroyed;
    bool ended_whole;
    char body[4096], fields[256], content_type[64];
} fake_t;

static void on_reply(void *sink, int status, const char *content_type, const char *fields,
                     const char *body, size_t n_bytes) {
    fake_t *f = sink;
    f->n_replies++;
    f->status = status;
    (void)snprintf(f->body, sizeof f->body, "%.*s", (int)n_bytes, body);
    (void)snprintf(f->fields, sizeof f->fields, "%s", fields != NULL ? fields : "");
    (void)snprintf(f->content_type, sizeof f->content_type, "%s", content_type);
}
static void on_begin(void *sink, const char *content_type, const char *fields, bool is_events) {
    (void)content_type, (void)fields, (void)is_events;
    ((fake_t *)sink)->n_begun++;
}
static bool on_write(void *sink, const char *data, size_t n_bytes) {
    (void)data, (void)n_bytes;
    ((fake_t *)sink)->n_written++;
    return true;
}
static void on_end(void *sink, bool whole) {
    ((fake_t *)sink)->n_ended++;
    ((fake_t *)sink)->ended_whole = whole;
}
static void on_watch(void *sink, void (*gone)(void *user), void (*taken)(void *user, size_t n),
                     void *user) {
    (void)sink, (void)gone, (void)taken, (void)user;
}
static void on_destroy(void *sink) { ((fake_t *)sink)->n_destroyed++; }

static const call_sink_t fake_sink = {
    .reply = on_reply, .begin = on_begin, .write = on_write, .end = on_end, .watch = on_watch,
    .destroy = on_destroy, .can_stream = true};

static uint64_t key_id; /* of the calls that are made */

static call_t *make(fake_t *f, call_style_t style, const char *body) {
    static endpoint_t endpoints[3];
    memset(f, 0, sizeof *f);
    endpoint_t *endpoint = &endpoints[style];
    endpoint->name = "test";
    endpoint->style = style;
    call_params_t params = {.endpoint = endpoint, .id = "id-1", .body = body,
                            .principal = {.key_id = key_id},
                            .body_bytes = strlen(body), .tail = "abcdef", .tail_bytes = 3,
                            .sink = &fake_sink, .sink_user = f};
    call_t *call = call_create(&params);
    assert_non_null(call);
    return call;
}

static void expect_end(const fake_t *f, int status, const char *body) {
    assert_int_equal(f->n_replies, 1);
    assert_int_equal(f->n_destroyed, 1);
    assert_int_equal(f->status, status);
    assert_string_equal(f->body, body);
}

TEST(call_answers_once) {
    fake_t f;
    call_t *call = make(&f, STYLE_OPENAI, "{\"a\":1}");
    assert_string_equal(call_tail(call), "abc");
    json_t *body = call_body(call);
    assert_non_null(body);
    assert_ptr_equal(body, call_body(call));
    call_retain(call);
    call_reply(call, 200, "text/plain", "hello", 5);
    call_reply(call, 200, "text/plain", "again", 5);
    call_fail(call, "internal", NULL, "late");
    call_begin(call, "text/plain", false);
    assert_false(call_write(call, "x", 1));
    call_end(call, true);
    call_release(call);
    assert_int_equal(f.n_destroyed, 0);
    call_release(call);
    expect_end(&f, 200, "hello");
    assert_int_equal(f.n_begun + f.n_written + f.n_ended, 0);
}

TEST(call_streams_once) {
    fake_t f;
    call_t *call = make(&f, STYLE_OPENAI, "");
    assert_false(call_write(call, "x", 1));
    call_begin(call, "text/event-stream", true);
    call_begin(call, "text/event-stream", true);
    assert_true(call_write(call, "x", 1));
    call_reply(call, 200, "text/plain", "no", 2);
    call_end(call, true);
    call_end(call, false);
    assert_false(call_write(call, "x", 1));
    call_release(call);
    assert_int_equal(f.n_begun, 1);
    assert_int_equal(f.n_written, 1);
    assert_int_equal(f.n_ended, 1);
    assert_true(f.ended_whole);
    assert_int_equal(f.n_replies, 0);
    assert_int_equal(f.n_destroyed, 1);
}

TEST(call_released_without_an_end_is_ended) {
    fake_t f;
    call_t *call = make(&f, STYLE_OLLAMA, "");
    call_release(call);
    expect_end(&f, 500, "{\"error\":\"internal error\"}");
    call = make(&f, STYLE_OPENAI, "");
    call_begin(call, "text/event-stream", true);
    call_release(call);
    assert_int_equal(f.n_ended, 1);
    assert_false(f.ended_whole);
}

TEST(call_refuses_bad_bodies_in_its_style) {
    fake_t f;
    call_t *call = make(&f, STYLE_OPENAI, "[]");
    assert_null(call_body(call));
    call_release(call);
    expect_end(&f, 400,
               "{\"error\":{\"message\":\"the body must be a JSON object, not an array\","
               "\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"invalid_json\"}}");
    call = make(&f, STYLE_ANTHROPIC, "1");
    assert_null(call_body(call));
    call_release(call);
    expect_end(&f, 400,
               "{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":"
               "\"the body must be a JSON object, not a whole number\"},\"request_id\":\"id-1\"}");
    call = make(&f, STYLE_OLLAMA, "");
    assert_null(call_body(call));
    call_release(call);
    expect_end(&f, 400, "{\"error\":\"the body is empty; a JSON object is wanted\"}");
    assert_string_equal(f.content_type, "application/json");
}

TEST(call_maps_statuses_and_hides_the_inside) {
    static const struct {
        kr_status_t status;
        int http;
        const char *code;
    } wanted[] = {
        {KR_E_INVALID_ARG, 400, "invalid_value"}, {KR_E_NOT_FOUND, 404, "not_found"},
        {KR_E_EXISTS, 409, "already_exists"}, {KR_E_UNSUPPORTED, 400, "unsupported_parameter"},
        {KR_E_BAD_FORMAT, 400, "invalid_value"}, {KR_E_TRUNCATED, 500, "internal"},
        {KR_E_CORRUPT, 500, "internal"}, {KR_E_LIMIT, 400, "limit_exceeded"},
        {KR_E_NOMEM, 503, "overloaded"}, {KR_E_DEVICE_NOMEM, 503, "overloaded"},
        {KR_E_DEVICE_LOST, 503, "device_lost"}, {KR_E_IO, 500, "internal"},
        {KR_E_NOSPC, 500, "internal"}, {KR_E_BUSY, 429, "queue_full"},
        {KR_E_TIMEOUT, 504, "deadline_exceeded"}, {KR_E_CANCELLED, 499, "cancelled"},
        {KR_E_SHUTTING_DOWN, 503, "shutting_down"},
        {KR_E_CONTEXT_LENGTH, 400, "context_length_exceeded"},
        {KR_E_NUMERIC, 500, "numeric_error"}, {KR_E_BAD_SCHEMA, 400, "invalid_schema"},
        {KR_E_BAD_TEMPLATE, 400, "template_error"}, {KR_E_BAD_IMAGE, 400, "invalid_image"},
        {KR_E_PROTOCOL, 400, "invalid_request"}, {KR_E_PERMISSION, 403, "permission_denied"},
        {KR_E_CHANGED, 503, "model_changed"}, {KR_E_CHILD_DIED, 503, "runtime_died"},
        {KR_E_INTERNAL, 500, "internal"}, {KR_OK, 500, "internal"}, {-1, 500, "internal"},
        {28, 500, "internal"}, {INT32_MAX, 500, "internal"}, {INT32_MIN, 500, "internal"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        fake_t f;
        call_t *call = make(&f, STYLE_OPENAI, "");
        kr_error_t error;
        kr_error_init(&error);
        (void)snprintf(error.message, sizeof error.message, "SECRET /path");
        (void)snprintf(error.param, sizeof error.param, "field");
        call_fail_status(call, wanted[i].status, &error);
        call_release(call);
        assert_int_equal(f.status, wanted[i].http);
        char code[64];
        (void)snprintf(code, sizeof code, "\"code\":\"%s\"", wanted[i].code);
        assert_non_null(strstr(f.body, code));
        /* What the server is to blame for says nothing about it. */
        const bool is_told = wanted[i].http < 499 && wanted[i].http != 429;
        if (wanted[i].http >= 499) assert_null(strstr(f.body, "SECRET"));
        if (is_told) assert_non_null(strstr(f.body, "\"param\":\"field\""));
        assert_int_equal(strstr(f.fields, "Retry-After: 1\r\n") != NULL,
                         wanted[i].http == 429 || wanted[i].http == 503);
    }
}

static void never(void *user) { (void)user; }

TEST(call_to_a_sink_without_streams_gets_one_answer) {
    static const call_sink_t plain = {.reply = on_reply, .destroy = on_destroy};
    static const endpoint_t endpoint = {.name = "test"};
    fake_t f = {0};
    const call_params_t params = {.endpoint = &endpoint, .id = "id-1", .body = "", .tail = "",
                                  .sink = &plain, .sink_user = &f};
    call_t *call = call_create(&params);
    assert_non_null(call);
    assert_false(call_can_stream(call));
    call_watch(call, never, NULL, NULL);
    call_begin(call, "text/event-stream", true);
    assert_false(call_write(call, "data", 4));
    call_end(call, true);
    call_release(call);
    expect_end(&f, 500, f.body);
    assert_non_null(strstr(f.body, "\"internal\""));
}

TEST(call_tells_busy_keys_from_a_full_queue) {
    fake_t f;
    kr_error_t error;
    kr_error_init(&error);
    (void)snprintf(error.param, sizeof error.param, "key");
    call_t *call = make(&f, STYLE_OPENAI, "");
    call_fail_status(call, KR_E_BUSY, &error);
    call_release(call);
    /* Without keys there is none to speak of. */
    assert_non_null(strstr(f.body, "\"code\":\"queue_full\""));
    assert_non_null(strstr(f.body, "this client"));
    key_id = 7;
    call = make(&f, STYLE_OPENAI, "");
    key_id = 0;
    call_fail_status(call, KR_E_BUSY, &error);
    kri_buffer_t late;
    kri_buffer_init(&late, 4096);
    call_error_body(call, KR_E_BUSY, NULL, &late);
    assert_non_null(strstr(late.data, "\"code\":\"overloaded\""));
    kri_buffer_deinit(&late);
    call_release(call);
    assert_non_null(strstr(f.body, "\"code\":\"too_many_requests\""));
}

TEST(errors_table_is_whole) {
    for (uint32_t i = 0; error_at(i) != NULL; i++) {
        const error_row_t *row = error_at(i);
        assert_ptr_equal(error_find(row->code), row);
        assert_true(row->status >= 400 && row->status < 600);
        assert_true(strspn(row->code, "abcdefghijklmnopqrstuvwxyz_") == strlen(row->code));
        /* The kind follows from the status, as clients' exception classes do. */
        const char *type = row->status == 401   ? "authentication_error"
                           : row->status == 403 ? "permission_error"
                           : row->status == 429 ? "rate_limit_error"
                           : row->status >= 500 && row->status != 501 ? "server_error"
                                                                      : "invalid_request_error";
        assert_string_equal(row->type, type);
    }
    assert_string_equal(error_find("no such code")->code, "internal");
}

TEST(errors_bodies_fit_or_fail) {
    static const call_style_t styles[] = {STYLE_OPENAI, STYLE_ANTHROPIC, STYLE_OLLAMA};
    for (size_t i = 0; i < 3; i++) {
        kr_status_t status = KR_E_LIMIT;
        for (size_t max = 0; status == KR_E_LIMIT; max++) {
            kri_buffer_t out;
            assert_true(max < 256);
            kri_buffer_init(&out, max);
            status = error_put_body(styles[i], error_find("invalid_value"), "n", "bad \xff", "id",
                                    &out);
            if (status == KR_OK) {
                json_t *root = json_loadb(out.data, out.n_bytes, 0, NULL);
                assert_non_null(root);
                json_decref(root);
            }
            kri_buffer_deinit(&out);
        }
        assert_status(status, KR_OK);
    }
}

TEST(errors_anthropic_types_follow_the_status) {
    static const char *const types[][2] = {
        {"invalid_json", "invalid_request_error"}, {"invalid_api_key", "authentication_error"},
        {"host_not_allowed", "permission_error"}, {"model_not_found", "not_found_error"},
        {"body_too_large", "request_too_large"}, {"queue_full", "rate_limit_error"},
        {"internal", "api_error"}, {"overloaded", "overloaded_error"},
        {"deadline_exceeded", "timeout_error"}, {"method_not_allowed", "invalid_request_error"}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        kri_buffer_t out;
        char wanted[64];
        kri_buffer_init(&out, 4096);
        assert_status(error_put_body(STYLE_ANTHROPIC, error_find(types[i][0]), NULL, "m", NULL,
                                     &out), KR_OK);
        (void)snprintf(wanted, sizeof wanted, "\"error\":{\"type\":\"%s\"", types[i][1]);
        if (strstr(out.data, wanted) == NULL) fail_msg("no %s in %s", wanted, out.data);
        kri_buffer_deinit(&out);
    }
}

TEST(errors_style_follows_the_path) {
    assert_int_equal(error_style_of_path("/api/chat", 9), STYLE_OLLAMA);
    assert_int_equal(error_style_of_path("/api", 4), STYLE_OPENAI);
    assert_int_equal(error_style_of_path("/v1/messages", 12), STYLE_ANTHROPIC);
    assert_int_equal(error_style_of_path("/v1/models", 10), STYLE_OPENAI);
    assert_int_equal(error_style_of_path("", 0), STYLE_OPENAI);
}
