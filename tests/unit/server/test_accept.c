/* Which Accept lines let a request through. */
#include "server/accept.h"
#include "test.h"

static bool welcome(const char *first, const char *second) {
    const http_field_t fields[] = {
        {{"Host", 4}, {"localhost", 9}},
        {{"ACCEPT", 6}, {first, strlen(first)}},
        {{"accept", 6}, {second != NULL ? second : "", second != NULL ? strlen(second) : 0}}};
    const http_request_t request = {.fields = fields, .n_fields = second != NULL ? 3 : 2};
    return accept_answers(&request);
}

TEST(accept_without_a_wish_takes_all) {
    const http_request_t request = {.n_fields = 0};
    assert_true(accept_answers(&request));
    assert_true(welcome("", NULL));
    assert_true(welcome(" , ,\t", ""));
}

TEST(accept_ranges_are_welcome) {
    static const char *const good[] = {
        "*/*", "application/json", "APPLICATION/Json", "application/*", "text/*", "text/plain",
        "text/event-stream", "application/x-ndjson", "image/png, */*;q=0.1",
        "text/html,application/xhtml+xml,*/*;q=0.8", "application/json;charset=utf-8",
        "application/json ; charset=\"a,b;q=0\" ; q=0.5", "*/*;q=1", "*/*;Q=1.000", "*/*;q=0.001",
        "application/json;q=0, */*", "*/*;q=0, text/event-stream", "text/*;q=0, application/json",
        "*/*;q=nonsense, text/plain",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        if (!welcome(good[i], NULL)) fail_msg("refused: %s", good[i]);
    }
    assert_true(welcome("image/png", "application/json"));
}

TEST(accept_weight_of_zero_refuses) {
    static const char *const bad[] = {
        "image/png", "image/png, audio/*", "*/*;q=0", "*/*; q=0.000", "*/*;Q=0.0",
        "application/*;q=0, text/*;q=0", "application/json;q=0", "application/json;a=b;q=0",
        "application/*;q=0, text/*;q=0, */*",
        /* no ranges, or no weights */
        "*", "json", "application", "application/", "*/json", "*/*;q=", "*/*;q=1.1", "*/*;q=2",
        "*/*;q=0.0001", "*/*;q=-1", "*/*;q=.5", "application/jsonx", "\"*/*"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (welcome(bad[i], NULL)) fail_msg("welcome: %s", bad[i]);
    }
    assert_false(welcome("*/*;q=0", "image/png"));
    assert_false(welcome("image/png", "*/*;q=0"));
}
