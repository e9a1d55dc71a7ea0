/* Lines out of bytes: every cut, the limit and next to it, what follows a line that is too long. */
#include "rpc/frame.h"
#include "test.h"

typedef struct seen_s {
    char text[4096];
    size_t n;
    bool keeps; /* takes the buffers */
} seen_t;

static void put(seen_t *seen, char mark, const char *text, size_t n_bytes) {
    const int n = snprintf(seen->text + seen->n, sizeof seen->text - seen->n, "%c%.*s|", mark,
                           (int)n_bytes, text);
    assert_true(n > 0 && (size_t)n < sizeof seen->text - seen->n);
    seen->n += (size_t)n;
}

static void on_line(void *user, kri_buffer_t *line) {
    seen_t *seen = user;
    put(seen, 'L', line->data, line->n_bytes);
    if (!seen->keeps) return;
    kri_buffer_deinit(line);
    kri_buffer_init(line, 1);
}

static void on_too_long(void *user, const char *prefix, size_t n_bytes) {
    put(user, 'T', prefix, n_bytes);
}

static void feed_parts(const char *text, size_t n_part, bool keeps, seen_t *seen) {
    const rpc_frame_sink_t sink = {.line = on_line, .too_long = on_too_long, .user = seen};
    rpc_frames_t frames;
    memset(seen, 0, sizeof *seen);
    seen->keeps = keeps;
    rpc_frames_init(&frames, 8);
    for (size_t at = 0, n = strlen(text); at < n; at += n_part) {
        rpc_frames_feed(&frames, text + at, n - at < n_part ? n - at : n_part, &sink);
    }
    rpc_frames_deinit(&frames);
}

static void assert_lines(const char *text, const char *wanted) {
    seen_t seen;
    for (size_t n_part = 1; n_part <= strlen(text); n_part++) {
        for (int keeps = 0; keeps < 2; keeps++) {
            feed_parts(text, n_part, keeps != 0, &seen);
            assert_string_equal(seen.text, wanted);
        }
    }
}

TEST(frame_lines_whatever_the_cut) {
    assert_lines("a\nbb\n", "La|Lbb|");
    assert_lines("\n \n\t\r\n\r\na\r\n", "La\r|");
    assert_lines("half", "");
    assert_lines("a\nhalf", "La|");
}

TEST(frame_the_limit_and_next_to_it) {
    assert_lines("12345678\n", "L12345678|");
    assert_lines("1234567\n12345678\n", "L1234567|L12345678|");
    assert_lines("123456789\n", "T12345678|");
    assert_lines("123456789012345678901234567890\nx\n", "T12345678|Lx|");
    assert_lines("        9\nx\n", "T        |Lx|");
    assert_lines("x\n123456789", "Lx|T12345678|");
    assert_lines("123456789\n\n123456789\nx\n", "T12345678|T12345678|Lx|");
}
