/* test_log.c: levels, cleaning and cutting of log lines. */
#include "base/log.h"

#include "test.h"

typedef struct sink_s {
    int n_lines;
    kr_log_level_t level;
    char text[4096];
} sink_t;

static void take_line(kr_log_level_t level, const char *text, void *user) {
    sink_t *sink = user;
    sink->n_lines++;
    sink->level = level;
    (void)snprintf(sink->text, sizeof sink->text, "%s", text);
}

TEST(log_passes_lines_up_to_the_level) {
    sink_t sink = {0};
    kr_log_set(take_line, KR_LOG_WARN, &sink);
    kri_log(KR_LOG_INFO, "too detailed");
    assert_int_equal(sink.n_lines, 0);
    kri_log(KR_LOG_WARN, "%s %d", "line", 1);
    assert_int_equal(sink.n_lines, 1);
    assert_int_equal(sink.level, KR_LOG_WARN);
    assert_string_equal(sink.text, "line 1");
    kri_log(KR_LOG_ERROR, "line 2");
    assert_int_equal(sink.n_lines, 2);
    kr_log_set(NULL, KR_LOG_DEBUG, NULL);
    kri_log(KR_LOG_ERROR, "nowhere");
    assert_int_equal(sink.n_lines, 2);
}

TEST(log_lines_are_one_clean_line) {
    sink_t sink = {0};
    kr_log_set(take_line, KR_LOG_DEBUG, &sink);
    kri_log(KR_LOG_DEBUG, "a%sb", "\r\n\xff");
    assert_string_equal(sink.text, "a???b");
    kri_log(KR_LOG_DEBUG, "%3000d", 1);
    assert_in_range(strlen(sink.text), 500, 2999);
    kr_log_set(NULL, 0, NULL);
}
