/* test_log.c: lines of the server's log and what happens when nobody reads them. */
#include <jansson.h>
#include <signal.h>
#include <unistd.h>

#include "server/log.h"
#include "server/log_line.h"
#include "test.h"

/* Everything that comes out of a pipe until its other end is closed; freed by the caller. */
static char *read_all(int fd, size_t *n_bytes) {
    size_t capacity = 1 << 16, n = 0;
    char *text = malloc(capacity);
    assert_non_null(text);
    for (;;) {
        if (n + 4096 > capacity) text = realloc(text, capacity *= 2);
        assert_non_null(text);
        const ssize_t n_read = read(fd, text + n, 4096);
        assert_true(n_read >= 0);
        if (n_read == 0) break;
        n += (size_t)n_read;
    }
    text[n] = '\0';
    if (n_bytes != NULL) *n_bytes = n;
    return text;
}

static logger_t *open_logger(int ends[2], bool is_json) {
    assert_int_equal(pipe(ends), 0);
    logger_t *logger = logger_create(ends[1], is_json);
    assert_non_null(logger);
    close(ends[1]); /* the logger has its own */
    return logger;
}

static http_request_t a_request(const char *path) {
    http_request_t request;
    memset(&request, 0, sizeof request);
    request.method = (http_text_t){"POST", 4};
    request.path = (http_text_t){path, strlen(path)};
    snprintf(request.peer, sizeof request.peer, "127.0.0.1");
    snprintf(request.id, sizeof request.id, "req-1");
    return request;
}

static size_t count(const char *text, const char *word) {
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at += strlen(word)) n++;
    return n;
}

TEST(log_request_line_names_everything) {
    int ends[2];
    logger_t *logger = open_logger(ends, false);
    http_request_t request = a_request("/v1/completions");
    log_request_t done = {.request = &request, .route = "/v1/completions", .key_name = "alice",
                          .status = 200, .ms = 12.5, .n_bytes = 99, .has_tokens = true,
                          .n_prompt = 7, .n_cached = 3, .n_generated = 5};
    logger_request(logger, &done);
    logger_destroy(logger);
    char *text = read_all(ends[0], NULL);
    assert_non_null(strstr(text, "Z POST /v1/completions 200 ms=12.500 bytes=99 n_prompt=7 "
                                 "n_cached=3 n_generated=5 key=alice peer=127.0.0.1 id=req-1\n"));
    assert_null(strstr(text, "path="));
    free(text);
    close(ends[0]);
}

TEST(log_json_line_is_an_object) {
    int ends[2];
    logger_t *logger = open_logger(ends, true);
    http_request_t request = a_request("/no\"such\\\n\x01");
    log_request_t done = {.request = &request, .status = 404, .ms = 0.25};
    logger_request(logger, &done);
    logger_destroy(logger);
    char *text = read_all(ends[0], NULL);
    json_t *line = json_loads(text, 0, NULL);
    assert_non_null(line);
    assert_string_equal(json_string_value(json_object_get(line, "event")), "request");
    assert_string_equal(json_string_value(json_object_get(line, "level")), "info");
    assert_string_equal(json_string_value(json_object_get(line, "route")), "other");
    assert_string_equal(json_string_value(json_object_get(line, "path")), "/no\"such\\\n\x01");
    assert_int_equal(json_integer_value(json_object_get(line, "status")), 404);
    assert_null(json_object_get(line, "n_prompt"));
    assert_null(json_object_get(line, "key"));
    json_decref(line);
    free(text);
    close(ends[0]);
}

TEST(log_escapes_what_could_forge_a_line) {
    int ends[2];
    logger_t *logger = open_logger(ends, false);
    http_request_t request = a_request("/a\nb\x1b[2J\x7f\xc2\x9b\xff\\\xc3\xa9");
    log_request_t done = {.request = &request, .status = 404};
    logger_request(logger, &done);
    logger_destroy(logger);
    char *text = read_all(ends[0], NULL);
    assert_non_null(strstr(text, "path=/a\\x0ab\\x1b[2J\\x7f\\xc2\\x9b\\xff\\\\\xc3\xa9\n"));
    assert_int_equal(count(text, "\n"), 1);
    free(text);
    close(ends[0]);
}

TEST(log_line_is_cut_at_its_limit_and_stays_valid) {
    static char long_text[3 * LOG_LINE_BYTES_MAX];
    memset(long_text, '"', sizeof long_text); /* two bytes each in JSON */
    for (int is_json = 0; is_json < 2; is_json++) {
        for (size_t n_more = 0; n_more < 12; n_more++) {
            log_line_t line;
            log_line_begin(&line, is_json, KR_LOG_INFO, "prompt");
            log_line_put_text(&line, "pad", "xxxxxxxxxxxx", n_more);
            log_line_put_text(&line, "text", long_text, sizeof long_text);
            log_line_put_text(&line, "id", "req-1", 5);
            log_line_put_value(&line, "n", "12");
            log_line_end(&line);
            assert_true(line.n_bytes <= LOG_LINE_BYTES_MAX);
            assert_true(line.n_bytes > LOG_LINE_BYTES_MAX - 8);
            assert_int_equal(line.data[line.n_bytes - 1], '\n');
            if (!is_json) continue;
            json_t *object = json_loadb(line.data, line.n_bytes, 0, NULL);
            assert_non_null(object);
            assert_non_null(json_object_get(object, "text"));
            json_decref(object);
        }
    }
}

/* Sums "n=..." of the lines that say what was dropped. */
static uint64_t n_said(const char *text) {
    uint64_t n = 0;
    for (const char *at = text; (at = strstr(at, "lines were dropped kind=life n=")) != NULL;) {
        at = strstr(at, "n=") + 2;
        n += strtoull(at, NULL, 10);
    }
    return n;
}

TEST(log_rate_is_limited_and_what_was_dropped_is_said) {
    int ends[2];
    logger_t *logger = open_logger(ends, false);
    enum { N = 1000 }; /* of them a pipe takes all */
    for (int i = 0; i < N; i++) {
        logger_line(logger, LOG_KIND_LIFE, KR_LOG_INFO, "line %d.", i);
    }
    logger_line(logger, LOG_KIND_SERVER, KR_LOG_WARN, "another kind");
    const uint64_t n_dropped = logger_n_dropped(logger);
    assert_true(n_dropped > 0);
    logger_destroy(logger);
    char *text = read_all(ends[0], NULL);
    assert_int_equal(count(text, " line "), N - n_dropped);
    assert_int_equal(n_said(text), n_dropped);
    assert_int_equal(count(text, " warning another kind\n"), 1);
    free(text);
    close(ends[0]);
}

TEST(log_that_nobody_reads_stalls_nobody) {
    int ends[2];
    logger_t *logger = open_logger(ends, false);
    static char long_text[LOG_LINE_BYTES_MAX];
    memset(long_text, 'x', sizeof long_text - 1);
    /* More than pipe and queue take; the rate of one kind alone would not fill them. */
    for (int kind = 0; kind < N_LOG_KINDS; kind++) {
        for (int i = 0; i < LOG_LINES_PER_S; i++) {
            logger_line(logger, (log_kind_t)kind, KR_LOG_INFO, "%s", long_text);
        }
    }
    assert_true(logger_n_dropped(logger) > 0);
    logger_flush(logger, 1);
    logger_destroy(logger); /* gives up after a second; the thread and its memory stay */
    close(ends[0]);
}

TEST(log_without_a_reader_or_descriptor_discards) {
    signal(SIGPIPE, SIG_IGN);
    int ends[2];
    logger_t *logger = open_logger(ends, false);
    close(ends[0]);
    for (int i = 0; i < 100; i++) logger_line(logger, LOG_KIND_LIFE, KR_LOG_INFO, "gone");
    logger_flush(logger, 60000);
    logger_destroy(logger);
    logger = logger_create(ends[0], true); /* closed */
    assert_non_null(logger);
    logger_line(logger, LOG_KIND_LIFE, KR_LOG_INFO, "nowhere");
    logger_prompt(logger, "id", "text", 4);
    logger_destroy(logger);
    logger_line(NULL, LOG_KIND_LIFE, KR_LOG_INFO, "no logger");
    logger_destroy(NULL);
}

TEST(log_prompts_and_library_lines) {
    int ends[2];
    logger_t *logger = open_logger(ends, true);
    logger_prompt(logger, "req-9", "two\nlines", 9);
    logger_on_library(KR_LOG_ERROR, "a \"library\" error", logger);
    logger_set_json(logger, false);
    logger_line(logger, LOG_KIND_LIFE, KR_LOG_INFO, "plain now");
    logger_destroy(logger);
    char *text = read_all(ends[0], NULL);
    assert_non_null(strstr(text, "\"event\":\"prompt\",\"id\":\"req-9\","
                                 "\"text\":\"two\\u000alines\"}\n"));
    assert_non_null(strstr(text, "\"level\":\"error\",\"event\":\"library\","
                                 "\"message\":\"a \\\"library\\\" error\"}\n"));
    assert_non_null(strstr(text, "Z plain now\n"));
    free(text);
    close(ends[0]);
}
