/* test_http_parser.c: heads, lengths and chunks: what is accepted, what is refused and how, every
 * limit at its edge, and that it never matters where the bytes were cut. */
#include "http_trace.h"
#include "test.h"

#define HOST "Host: a\r\n"

/* All of it at once; the caller frees the trace. */
static void run(http_trace_t *trace, const char *bytes, size_t n_bytes) {
    http_trace_init(trace, 1000);
    http_trace_feed(trace, bytes, n_bytes);
}

static void assert_same(const http_trace_t *a, const http_trace_t *b, const char *how, size_t at) {
    if (a->text.n_bytes == b->text.n_bytes &&
        (a->text.n_bytes == 0 || memcmp(a->text.data, b->text.data, a->text.n_bytes) == 0)) {
        return;
    }
    fail_msg("cut %s %zu:\n%s\nbut whole:\n%s", how, at, b->text.data, a->text.data);
}

/* Cut in two at every place, and into pieces of 1, 2 and 3 bytes. */
static void assert_cuts_do_not_matter(const char *bytes, size_t n_bytes) {
    http_trace_t whole, cut;
    run(&whole, bytes, n_bytes);
    for (size_t at = 0; at <= n_bytes; at++) {
        run(&cut, bytes, at);
        http_trace_feed(&cut, bytes + at, n_bytes - at);
        assert_same(&whole, &cut, "at", at);
        http_trace_deinit(&cut);
    }
    for (size_t size = 1; size <= 3; size++) {
        http_trace_init(&cut, 1000);
        for (size_t at = 0; at < n_bytes; at += size) {
            http_trace_feed(&cut, bytes + at, n_bytes - at < size ? n_bytes - at : size);
        }
        assert_same(&whole, &cut, "into", size);
        http_trace_deinit(&cut);
    }
    http_trace_deinit(&whole);
}

/* expected: the whole trace, or its end when it begins with "...". */
static void assert_trace(const char *bytes, size_t n_bytes, const char *expected) {
    http_trace_t trace;
    run(&trace, bytes, n_bytes);
    const char *text = trace.text.data != NULL ? trace.text.data : "";
    const size_t n_text = strlen(text), n_expected = strlen(expected);
    if (strncmp(expected, "...", 3) == 0) {
        const size_t n_end = n_expected - 3;
        if (n_text < n_end || strcmp(text + n_text - n_end, expected + 3) != 0) {
            fail_msg("%s\ngave:\n%s\nnot at its end:\n%s", bytes, text, expected + 3);
        }
    } else if (strcmp(text, expected) != 0) {
        fail_msg("%s\ngave:\n%s\nexpected:\n%s", bytes, text, expected);
    }
    http_trace_deinit(&trace);
    assert_cuts_do_not_matter(bytes, n_bytes);
}

#define assert_events(bytes, expected) assert_trace(bytes, sizeof(bytes) - 1, expected)

TEST(http_parser_reads_a_request_into_its_parts) {
    assert_events("GET /v1/models?a=b%20c HTTP/1.1\r\nHost: localhost:8080\r\nX-A:  b \t c\t \r\n"
                  "X-Empty:\r\nX-Blank: \t \r\n\r\n",
                  "HEAD GET /v1/models ?a=b%20c 1.1 keep 0\n[Host]=[localhost:8080]\n"
                  "[X-A]=[b \t c]\n[X-Empty]=[]\n[X-Blank]=[]\nEND\n");
    assert_events("POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello",
                  "HEAD POST / ? 1.1 keep 5\n[Host]=[a]\n[Content-Length]=[5]\nDATA hello\nEND\n");
    assert_events("!#$%&'*+-.^_`|~09azAZ / HTTP/1.1\r\n" HOST "\r\n",
                  "HEAD !#$%&'*+-.^_`|~09azAZ / ? 1.1 keep 0\n[Host]=[a]\nEND\n");
    assert_events("\r\nGET / HTTP/1.1\r\n" HOST "\r\n", /* one empty line before it */
                  "HEAD GET / ? 1.1 keep 0\n[Host]=[a]\nEND\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "X: \x80\xff\r\n\r\n",
                  "HEAD GET / ? 1.1 keep 0\n[Host]=[a]\n[X]=[\x80\xff]\nEND\n");
}

TEST(http_parser_reads_requests_that_follow_each_other) {
    assert_events("GET /a HTTP/1.1\r\n" HOST "\r\nPOST /b HTTP/1.1\r\n" HOST
                  "Content-Length: 2\r\n\r\nxyGET /c HTTP/1.0\r\n\r\n",
                  "HEAD GET /a ? 1.1 keep 0\n[Host]=[a]\nEND\n"
                  "HEAD POST /b ? 1.1 keep 2\n[Host]=[a]\n[Content-Length]=[2]\nDATA xy\nEND\n"
                  "HEAD GET /c ? 1.0 0\nEND\n");
}

TEST(http_parser_knows_who_closes_the_connection) {
    assert_events("GET / HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
                  "HEAD GET / ? 1.1 0\n[Host]=[a]\n[Connection]=[close]\nEND\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Connection: x\t,, \t,\tCLOSE\r\n\r\n",
                  "HEAD GET / ? 1.1 0\n[Host]=[a]\n[Connection]=[x\t,, \t,\tCLOSE]\nEND\n");
    assert_events("GET / HTTP/1.1\r\nConnection: Upgrade\r\nConnection: close\r\n" HOST "\r\n",
                  "...[Connection]=[close]\n[Host]=[a]\nEND\n");
    assert_events("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
                  "HEAD GET / ? 1.0 keep 0\n[Connection]=[keep-alive]\nEND\n");
    assert_events("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
                  "HEAD GET / ? 1.0 0\n[Connection]=[keep-alive, close]\nEND\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Connection: \"close\"\r\n\r\n",
                  "BAD 400 invalid_header\n");
}

TEST(http_parser_decodes_paths_once_and_refuses_those_with_two_readings) {
    assert_events("GET /a%2fb%20%C3%A4%25 HTTP/1.1\r\n" HOST "\r\n",
                  "HEAD GET /a/b \xc3\xa4% ? 1.1 keep 0\n[Host]=[a]\nEND\n");
    assert_events("GET /.a/..b HTTP/1.1\r\n" HOST "\r\n",
                  "HEAD GET /.a/..b ? 1.1 keep 0\n[Host]=[a]\nEND\n");
    assert_events("GET /a/? HTTP/1.1\r\n" HOST "\r\n",
                  "HEAD GET /a/ ? 1.1 keep 0\n[Host]=[a]\nEND\n");
    assert_events("GET /...?/../x%zz HTTP/1.1\r\n" HOST "\r\n",
                  "HEAD GET /... ?/../x%zz 1.1 keep 0\n[Host]=[a]\nEND\n");
    static const char *const bad[] = {
        "*", "a", "http://a/b", "//a", "/a//b", "/.", "/..", "/./a", "/a/..", "/a/../b",
        "/%2e", "/%2e%2e/a", "/a%2f%2fb", "/a/%2E./b", "/%", "/%1", "/%zz", "/%00", "/%0a", "/%7f",
        "/%1f", "/a#b", "/a?b#c", "/\"", "/<", "/>", "/\\", "/a\\b", "/^", "/`", "/{", "/|", "/}",
        "/[", "/]", "/?\"", "/?<", "/?\\", "/?{", "/%ff", "/%c0%af", "/%ed%a0%80", "/%c3", "a:80",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[256];
        const int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n" HOST "\r\n", bad[i]);
        assert_trace(text, (size_t)n, "BAD 400 invalid_target\n");
    }
}

TEST(http_parser_refuses_request_lines_that_are_not_exact) {
    static const struct { const char *line, *expected; } rows[] = {
        {"GET  / HTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET /  HTTP/1.1", "BAD 400 unsupported_http_version\n"},
        {" GET / HTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET\t/ HTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET /\tHTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET / HTTP/1.1 ", "BAD 400 invalid_request_line\n"},
        {"GET /", "BAD 400 invalid_request_line\n"},
        {"GET", "BAD 400 invalid_request_line\n"},
        {"G(T / HTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET /\xc3\xa4 HTTP/1.1", "BAD 400 invalid_request_line\n"},
        {"GET / http/1.1", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTP/1.2", "BAD 505 unsupported_http_version\n"},
        {"GET / HTTP/2.0", "BAD 505 unsupported_http_version\n"},
        {"GET / HTTP/0.9", "BAD 505 unsupported_http_version\n"},
        {"GET / HTTP/1.", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTP/1.10", "BAD 400 invalid_request_line\n"},
        {"GET / HTTP/.1", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTP/A.1", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTP/1.A", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTP/11", "BAD 400 unsupported_http_version\n"},
        {"GET / HTTPS/1.1", "BAD 400 unsupported_http_version\n"},
        {"GET / ICY", "BAD 400 unsupported_http_version\n"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[256];
        const int n = snprintf(text, sizeof text, "%s\r\n" HOST "\r\n", rows[i].line);
        assert_trace(text, (size_t)n, rows[i].expected);
    }
    assert_events("\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", "BAD 400 invalid_request_line\n");
    assert_events("\rGET / HTTP/1.1\r\n" HOST "\r\n", "BAD 400 invalid_request_line\n");
    assert_events("\nGET / HTTP/1.1\r\n" HOST "\r\n", "BAD 400 invalid_request_line\n");
    assert_events("GET / HTTP/1.1\n" HOST "\r\n", "BAD 400 invalid_request_line\n");
    assert_events("GET / HTTP/1.1\r" HOST "\r\n", "BAD 400 invalid_request_line\n");
    assert_events("\x16\x03\x01\x02", "BAD 400 invalid_request_line\n");
}

TEST(http_parser_refuses_header_lines_that_are_not_exact) {
    static const char *const bad[] = {
        "A : b", "A\t: b", " A: b", "\tA: b", "A b: c", ": b", "A", "A\x80: b", "A(: b", "A: b\x01",
        "A: \x7f", "A: b\rc", "A: b\n c", "A: b\r\n c: d", "A: b\r\n\tc", "A: b\nB: c", "A\r\nB: c",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[256];
        int n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" HOST "%s\r\n\r\n", bad[i]);
        assert_trace(text, (size_t)n, "BAD 400 invalid_header\n");
        n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\n%s\r\n" HOST "\r\n", bad[i]);
        assert_trace(text, (size_t)n, "BAD 400 invalid_header\n");
    }
    assert_events("GET / HTTP/1.1\r\n" HOST "A: b\0c\r\n\r\n", "BAD 400 invalid_header\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "A\0: b\r\n\r\n", "BAD 400 invalid_header\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "\n", "BAD 400 invalid_header\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "\r\r\n", "BAD 400 invalid_header\n");
}

TEST(http_parser_wants_one_host_of_the_right_form) {
    static const char *const good[] = {
        "a", "localhost", "127.0.0.1:80", "[::1]", "[::1]:65535", "my-host_1.example:0", "A.B",
        "1:1",
    };
    static const char *const bad[] = {
        "", ":80", "a:", "a:x", "a:65536", "a:000001", "a:-1", "a:1 ", "u@a", "a/b", "a b", "a,b",
        "[::1", "[fe80::1%25a]", "a:1234567", "::1", "[]",
        "[::1]x", "[::1]:", "a:1:2", "\xc3\xa4", "a%20", "http://a", "a?",
        "a#",
    };
    char text[256];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        const int n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nhOSt: %s\r\n\r\n", good[i]);
        assert_trace(text, (size_t)n, "...END\n");
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (strcmp(bad[i], "a:1 ") == 0) continue; /* white space around a value is none of it */
        const int n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", bad[i]);
        assert_trace(text, (size_t)n, "BAD 400 invalid_host\n");
    }
    assert_events("GET / HTTP/1.1\r\n\r\n", "BAD 400 invalid_host\n");
    assert_events("GET / HTTP/1.1\r\n" HOST HOST "\r\n", "BAD 400 invalid_host\n");
    assert_events("GET / HTTP/1.0\r\n" HOST "host: b\r\n\r\n", "BAD 400 invalid_host\n");
    assert_events("GET / HTTP/1.0\r\n\r\n", "HEAD GET / ? 1.0 0\nEND\n");
}

TEST(http_parser_reads_lengths_in_one_way_only) {
    static const char *const bad[] = {
        "", "+5", "-5", "5 5", "5,5", "5, 5", "0x5", "5a", "a", "5;", "5.0", "1e1", "\"5\"",
        "12345678901234567890", "00000000000000000005",
    };
    char text[256];
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const int n = snprintf(text, sizeof text,
                               "POST / HTTP/1.1\r\n" HOST "Content-Length: %s\r\n\r\nhello",
                               bad[i]);
        assert_trace(text, (size_t)n, "BAD 400 invalid_framing\n");
    }
    assert_events("POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
                  "BAD 400 invalid_framing\n");
    assert_events("POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                  "BAD 400 invalid_framing\n");
    assert_events("POST / HTTP/1.1\r\n" HOST "Content-Length: 0000000000000000005\r\n\r\nhello",
                  "...DATA hello\nEND\n");
    /* The limit of this harness is 1000; also the neighbours of powers of two. */
    static const struct { unsigned long long n; bool is_good; } rows[] = {
        {999, true}, {1000, true}, {1001, false}, {2147483647, false}, {2147483648, false},
        {2147483649, false}, {4294967295, false}, {4294967296, false}, {4294967297, false},
        {4294968296, false}, {9223372036854775807ull, false}, {9223372036854775808ull, false},
        {9223372036854775809ull, false}, {9999999999999999999ull, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int n = snprintf(text, sizeof text,
                               "POST / HTTP/1.1\r\n" HOST "Content-Length: %llu\r\n\r\n",
                               rows[i].n);
        char expected[256];
        (void)snprintf(expected, sizeof expected,
                       "HEAD POST / ? 1.1 keep %llu\n[Host]=[a]\n[Content-Length]=[%llu]\n%s",
                       rows[i].n, rows[i].n, rows[i].is_good ? "" : "BAD 413 body_too_large\n");
        assert_trace(text, (size_t)n, expected);
    }
}

TEST(http_parser_takes_chunked_alone_or_nothing) {
    static const struct { const char *fields, *expected; } rows[] = {
        {"Transfer-Encoding: Chunked\r\n", "...DATA hello\nEND\n"},
        {"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "BAD 400 invalid_framing\n"},
        {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
         "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked, chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked, gzip\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked,\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: , chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: \"chunked\"\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked;a=b\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: chunked foo\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding:\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: a b, chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: a, b, chunked\r\n", "BAD 400 invalid_framing\n"},
        {"Transfer-Encoding: gzip, chunked\r\n", "BAD 501 unsupported_transfer_coding\n"},
        {"Transfer-Encoding: gzip\r\n", "BAD 501 unsupported_transfer_coding\n"},
        {"Transfer-Encoding: identity\r\n", "BAD 501 unsupported_transfer_coding\n"},
        {"Transfer-Encoding: xchunked\r\n", "BAD 501 unsupported_transfer_coding\n"},
        {"Transfer-Encoding: chunke\r\n", "BAD 501 unsupported_transfer_coding\n"},
        {"Transfer_Encoding: chunked\r\nContent-Length: 0\r\n",
         "...END\nBAD 400 invalid_request_line\n"}, /* another field: what follows is no body */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[256];
        const int n = snprintf(text, sizeof text, "POST / HTTP/1.1\r\n" HOST
                               "%s\r\n5\r\nhello\r\n0\r\n\r\n", rows[i].fields);
        assert_trace(text, (size_t)n, rows[i].expected);
    }
    assert_events("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                  "BAD 400 invalid_framing\n");
}

TEST(http_parser_meets_one_expectation) {
    assert_events("POST / HTTP/1.1\r\n" HOST "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
                  "HEAD POST / ? 1.1 keep expects 1\n[Host]=[a]\n[Expect]=[100-Continue]\n"
                  "[Content-Length]=[1]\nDATA x\nEND\n");
    assert_events("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n",
                  "HEAD POST / ? 1.0 0\n[Expect]=[100-continue]\nEND\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Expect: 200-ok\r\n\r\n",
                  "BAD 417 expectation_failed\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Expect: 100-continue, x\r\n\r\n",
                  "BAD 417 expectation_failed\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Expect:\r\n\r\n", "BAD 417 expectation_failed\n");
    assert_events("GET / HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
                  "BAD 417 expectation_failed\n");
}

#define CHUNKED "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"

TEST(http_parser_reads_chunks) {
    assert_events(CHUNKED "5\r\nhello\r\n0\r\n\r\n", "...DATA hello\nEND\n");
    assert_events(CHUNKED "0\r\n\r\n", "...END\n");
    assert_events(CHUNKED "000\r\n\r\n", "...END\n");
    assert_events(CHUNKED "2\r\nhe\r\n03\r\nllo\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
                  "...DATA hello\nEND\nHEAD GET / ? 1.0 0\nEND\n");
    assert_events(CHUNKED "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n",
                  "...DATA 01234567890123456789\nEND\n");
    assert_events(CHUNKED "2;a;b=c;d=\"e;\\\"\\\\ \xff\"\r\nhe\r\n0;x\r\n\r\n",
                  "...DATA he\nEND\n");
    assert_events(CHUNKED "2\r\nhe\r\n0\r\nA: b\r\nContent-Length: 7\r\n\r\n", "...DATA he\nEND\n");
    assert_events(CHUNKED "2\r\n\r\n\r\n0\r\n\r\n", "...DATA \r\n\nEND\n");
}

TEST(http_parser_refuses_chunks_that_are_not_exact) {
    static const char *const bad[] = {
        "\r\n", "g\r\n", "-1\r\n", "+1\r\n", " 1\r\n", "1 \r\nx", "1 ;a\r\nx", "0x1\r\nx", "1\nx",
        "1\r\nxy\r\n", "1\r\nx\n", "1\r\nx0\r\n\r\n", "1\rx", "1;\r\nx", "1;a b\r\nx", "1;a=\r\nx",
        "1;a=b c\r\nx", "1;a=\"b\r\nx", "1;a=\"b\"c\r\nx", "1;=b\r\nx", "1;a=b=c\r\nx", "1;;\r\nx",
        "1; a\r\nx", "1;a\n", "1;a=\"\x01\"\r\nx", "1;a=\"\\\x7f\"\r\n", "0\r\nA\r\n\r\n",
        "0\r\n A: b\r\n", "0\r\nA : b\r\n", "0\r\n: b\r\n", "0\r\nA: b\n\r\n", "0\r\nA: \x01\r\n",
        "0\r\n\n", "0\r\n\rx", "0\n\r\n", "1\r\nx\r\n\r\n", "1\r\nx\r\r\n", ";a\r\n", "1,\r\nx",
        "0\r\nGET / HTTP/1.1\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[256];
        const int n = snprintf(text, sizeof text, CHUNKED "%s", bad[i]);
        assert_trace(text, (size_t)n, "...BAD 400 invalid_chunk\n");
    }
}

TEST(http_parser_bounds_the_sum_of_chunks) {
    static const struct { const char *chunks; bool is_good; } rows[] = {
        {"3e7\r\n", true}, {"3e8\r\n", true}, {"3e9\r\n", false}, {"7fffffff\r\n", false},
        {"80000000\r\n", false}, {"ffffffff\r\n", false}, {"100000000\r\n", false},
        {"100000001\r\n", false}, {"7fffffffffffffff\r\n", false}, {"8000000000000000\r\n", false},
        {"ffffffffffffffff\r\n", false}, {"10000000000000000\r\n", false},
        {"10000000000000001\r\n", false}, {"fffffffffffffffff\r\n", false},
        {"1\r\nx\r\n3e7\r\n", true}, {"1\r\nx\r\n3e8\r\n", false},
        {"1\r\nx\r\nffffffffffffffff\r\n", false}, {"1\r\nx\r\nfffffffffffffc18\r\n", false},
        {"00000000000000000000000001\r\n", true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[256];
        const int n = snprintf(text, sizeof text, CHUNKED "%s", rows[i].chunks);
        http_trace_t trace;
        run(&trace, text, (size_t)n);
        assert_int_equal(trace.is_bad, !rows[i].is_good);
        if (trace.is_bad) assert_int_equal(trace.message.refusal.status, 413);
        http_trace_deinit(&trace);
        assert_cuts_do_not_matter(text, (size_t)n);
    }
}

/* ---- every byte in every place --------------------------------------------------------------- */

static const char digits_and_letters[] = "0123456789abcdefghijklmnopqrstuvwxyz"
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/* before + byte + after is taken for the bytes of `allowed`, letters and digits, and with is_high
 * for those from 0x80 on; everything else is refused. */
static void assert_bytes(const char *before, const char *after, const char *allowed, bool is_high) {
    for (int byte = 0; byte < 256; byte++) {
        http_trace_t trace;
        const char c = (char)byte;
        http_trace_init(&trace, 1000);
        http_trace_feed(&trace, before, strlen(before));
        http_trace_feed(&trace, &c, 1);
        http_trace_feed(&trace, after, strlen(after));
        const bool is_good = (byte != 0 && strchr(digits_and_letters, byte) != NULL) ||
                             (byte != 0 && strchr(allowed, byte) != NULL) ||
                             (is_high && byte >= 0x80);
        if (trace.is_bad == is_good || (is_good && trace.n_ends != 1)) {
            fail_msg("byte %d in %s", byte, before);
        }
        http_trace_deinit(&trace);
    }
}

TEST(http_parser_takes_exactly_the_bytes_that_the_grammar_allows) {
    static const char token[] = "!#$%&'*+-.^_`|~", path[] = "/-._~!$&'()*+,;=:@?";
    assert_bytes("a", "b / HTTP/1.1\r\n" HOST "\r\n", token, false);
    assert_bytes("GET /a", "b HTTP/1.1\r\n" HOST "\r\n", path, false);
    assert_bytes("GET /?a", "b HTTP/1.1\r\n" HOST "\r\n", "/-._~!$&'()*+,;=:@?%[]", false);
    assert_bytes("GET / HTTP/1.1\r\n" HOST "a", "b: c\r\n\r\n", "!#$%&'*+-.^_`|~:", false);
    assert_bytes("GET / HTTP/1.1\r\n" HOST, "b: c\r\n\r\n", token, false);
    assert_bytes("GET / HTTP/1.1\r\n" HOST "a: b", "c\r\n\r\n",
                 "!#$%&'*+-.^_`|~\t \"(),/:;<=>?@[\\]{}", true);
    assert_bytes("GET / HTTP/1.1\r\nHost: a", "b\r\n\r\n", ".-_", false);
    assert_bytes("GET / HTTP/1.1\r\nHost: [", "]\r\n\r\n", ".:", false);
    assert_bytes("GET / HTTP/1.1\r\n" HOST "Connection: a", "b\r\n\r\n", "!#$%&'*+-.^_`|~,", false);
    assert_bytes(CHUNKED "1;a", "b=c\r\nx\r\n0\r\n\r\n", "!#$%&'*+-.^_`|~;", false);
    assert_bytes(CHUNKED "1;a=b", "c\r\nx\r\n0\r\n\r\n", "!#$%&'*+-.^_`|~;", false);
    assert_bytes(CHUNKED "1;a=\"", "b\"\r\nx\r\n0\r\n\r\n",
                 "!#$%&'*+-.^_`|~\t (),/:;<=>?@[]\\{}", true);
    assert_bytes(CHUNKED "1;a=\"\\", "b\"\r\nx\r\n0\r\n\r\n",
                 "!#$%&'*+-.^_`|~\t \"(),/:;<=>?@[\\]{}", true);
    assert_bytes(CHUNKED "0\r\na", "b: c\r\n\r\n", "!#$%&'*+-.^_`|~:", false);
    assert_bytes(CHUNKED "0\r\na: b", "\r\n\r\n", "!#$%&'*+-.^_`|~\t \"(),/:;<=>?@[\\]{}", true);
}

TEST(http_parser_decodes_every_percent_encoded_byte) {
    static const char *const forms[] = {"GET /a%%%02x HTTP/1.1\r\n" HOST "\r\n",
                                        "GET /a%%%02X HTTP/1.1\r\n" HOST "\r\n"};
    for (int i = 0; i < 512; i++) {
        char text[64], expected[64];
        const int byte = i / 2;
        const int n = snprintf(text, sizeof text, i % 2 ? forms[1] : forms[0], (unsigned)byte);
        (void)snprintf(expected, sizeof expected, "HEAD GET /a%c ? 1.1 keep 0\n[Host]=[a]\nEND\n",
                       byte);
        const bool is_good = byte >= 0x20 && byte < 0x7f; /* alone, a higher one is no UTF-8 */
        assert_trace(text, (size_t)n, is_good ? expected : "BAD 400 invalid_target\n");
    }
    for (int byte = 0; byte < 256; byte++) { /* a second digit that is none, then a first */
        char text[64];
        if (byte == 0 || strchr("0123456789abcdefABCDEF \r\n\t", byte) != NULL) continue;
        int n = snprintf(text, sizeof text, "GET /%%4%c HTTP/1.1\r\n" HOST "\r\n", byte);
        http_trace_t trace;
        run(&trace, text, (size_t)n);
        assert_true(trace.is_bad);
        http_trace_deinit(&trace);
        n = snprintf(text, sizeof text, "GET /%%%c4 HTTP/1.1\r\n" HOST "\r\n", byte);
        run(&trace, text, (size_t)n);
        assert_true(trace.is_bad);
        http_trace_deinit(&trace);
    }
    assert_events("GET /%4 HTTP/1.1\r\n" HOST "\r\n", "BAD 400 invalid_target\n");
}

TEST(http_parser_reads_every_hex_digit_of_a_chunk_size) {
    static const char hex[] = "0123456789abcdef", upper[] = "0123456789ABCDEF";
    static const char data[] = "xxxxxxxxxxxxxxxx";
    for (int byte = 1; byte < 256; byte++) {
        const char *lower_at = strchr(hex, byte), *upper_at = strchr(upper, byte);
        const int size = (int)(lower_at != NULL   ? lower_at - hex
                               : upper_at != NULL ? upper_at - upper : -1);
        if (byte == ';' || byte == '\r') continue;
        char text[sizeof CHUNKED + 64];
        const int n = snprintf(text, sizeof text, CHUNKED "1%c\r\n%s%.*s\r\n0\r\n\r\n", byte, data,
                               size > 0 ? size : 0, data);
        http_trace_t trace;
        run(&trace, text, (size_t)n);
        assert_int_equal(trace.n_ends, size >= 0);
        assert_int_equal(trace.is_bad, size < 0);
        http_trace_deinit(&trace);
    }
}

TEST(http_parser_compares_names_without_case_of_ascii_letters) {
    for (int a = 0; a < 256; a++) {
        for (int b = 1; b < 256; b++) {
            const char text = (char)a, word[2] = {(char)b, '\0'};
            const bool is_pair = (a ^ b) == 0x20 && ((a | 0x20) >= 'a' && (a | 0x20) <= 'z');
            assert_int_equal(http_text_equals(&text, 1, word), a == b || is_pair);
        }
    }
    assert_false(http_text_equals("ab", 2, "a"));
    assert_false(http_text_equals("a", 1, "ab"));
    assert_true(http_text_equals("", 0, ""));
}

TEST(http_parser_knows_no_other_versions_and_ports) {
    static const char other[] = "BAD 505 unsupported_http_version\n";
    for (int digit = 0; digit < 10; digit++) {
        char text[128];
        int n = snprintf(text, sizeof text, "GET / HTTP/1.%d\r\n" HOST "\r\n", digit);
        assert_trace(text, (size_t)n, digit < 2 ? "...END\n" : other);
        n = snprintf(text, sizeof text, "GET / HTTP/%d.1\r\n" HOST "\r\n", digit);
        assert_trace(text, (size_t)n, digit == 1 ? "...END\n" : other);
        n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a:%d\r\n\r\n", digit);
        assert_trace(text, (size_t)n, "...END\n");
        n = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: a:6%d53%d\r\n\r\n", digit, digit);
        assert_trace(text, (size_t)n, digit <= 5 ? "...END\n" : "BAD 400 invalid_host\n");
        n = snprintf(text, sizeof text, "POST / HTTP/1.1\r\n" HOST "Content-Length: %d\r\n\r\n%.*s",
                     digit, digit, "0123456789");
        assert_trace(text, (size_t)n, "...END\n");
    }
}

/* ---- limits at L-1, L, L+1 ------------------------------------------------------------------- */

/* Text with a run of n_fill bytes between two parts; the trace's end. */
static void assert_filled(const char *before, size_t n_fill, char fill, const char *after,
                          const char *expected) {
    http_trace_t trace;
    http_trace_init(&trace, 1000);
    http_trace_feed(&trace, before, strlen(before));
    char *run_of = malloc(n_fill + 1);
    assert_non_null(run_of);
    memset(run_of, fill, n_fill);
    http_trace_feed(&trace, run_of, n_fill);
    http_trace_feed(&trace, after, strlen(after));
    free(run_of);
    const char *text = trace.text.data != NULL ? trace.text.data : "";
    const size_t n_text = strlen(text), n_expected = strlen(expected);
    if (n_text < n_expected || strcmp(text + n_text - n_expected, expected) != 0) {
        fail_msg("%zu bytes: expected %s", n_fill, expected);
    }
    http_trace_deinit(&trace);
}

TEST(http_parser_bounds_the_request_line) {
    const size_t n_rest = strlen("GET / HTTP/1.1"); /* the line's limit counts no CR LF */
    for (size_t n_line = 8191; n_line <= 8193; n_line++) {
        assert_filled("GET /", n_line - n_rest, 'a', " HTTP/1.1\r\n" HOST "\r\n",
                      n_line <= 8192 ? "END\n" : "BAD 414 uri_too_long\n");
        assert_filled("GET /?", n_line - n_rest - 1, 'a', " HTTP/1.1\r\n" HOST "\r\n",
                      n_line <= 8192 ? "END\n" : "BAD 414 uri_too_long\n");
    }
    for (size_t n_method = 31; n_method <= 33; n_method++) {
        assert_filled("", n_method, 'M', " / HTTP/1.1\r\n" HOST "\r\n",
                      n_method <= 32 ? "END\n" : "BAD 400 invalid_request_line\n");
    }
}

TEST(http_parser_bounds_a_header_line) {
    for (size_t n_line = 8191; n_line <= 8193; n_line++) {
        const char *expected = n_line <= 8192 ? "END\n" : "BAD 431 headers_too_large\n";
        assert_filled("GET / HTTP/1.1\r\n" HOST "A: ", n_line - 3, 'b', "\r\n\r\n", expected);
        assert_filled("GET / HTTP/1.1\r\n" HOST, n_line - 3, 'b', ": c\r\n\r\n", expected);
        assert_filled("GET / HTTP/1.1\r\n" HOST "A:", n_line - 3, ' ', "c\r\n\r\n", expected);
    }
}

TEST(http_parser_bounds_all_headers_together) {
    for (size_t n_block = 32767; n_block <= 32769; n_block++) {
        kri_buffer_t text;
        kri_buffer_init(&text, 65536);
        assert_status(kri_buffer_printf(&text, "GET / HTTP/1.1\r\n"), KR_OK);
        const size_t begin = text.n_bytes;
        assert_status(kri_buffer_printf(&text, HOST), KR_OK);
        while (text.n_bytes - begin < n_block) {
            size_t n_line = n_block - (text.n_bytes - begin);
            if (n_line > 4096) n_line = n_line < 4200 ? 2048 : 4096;
            assert_status(kri_buffer_printf(&text, "A:%0*d\r\n", (int)(n_line - 4), 0), KR_OK);
        }
        assert_int_equal(text.n_bytes - begin, n_block);
        assert_status(kri_buffer_printf(&text, "\r\n"), KR_OK);
        http_trace_t trace;
        run(&trace, text.data, text.n_bytes);
        assert_int_equal(trace.is_bad, n_block > 32768);
        assert_int_equal(trace.n_ends, n_block <= 32768);
        if (trace.is_bad) assert_int_equal(trace.message.refusal.status, 431);
        http_trace_deinit(&trace);
        kri_buffer_deinit(&text);
    }
}

TEST(http_parser_bounds_the_number_of_headers) {
    for (int n_fields = 99; n_fields <= 101; n_fields++) {
        kri_buffer_t text;
        kri_buffer_init(&text, 65536);
        assert_status(kri_buffer_printf(&text, "GET / HTTP/1.1\r\n" HOST), KR_OK);
        for (int i = 1; i < n_fields; i++) {
            assert_status(kri_buffer_printf(&text, "A: b\r\n"), KR_OK);
        }
        assert_status(kri_buffer_printf(&text, "\r\n"), KR_OK);
        http_trace_t trace;
        run(&trace, text.data, text.n_bytes);
        assert_int_equal(trace.n_ends, n_fields <= 100);
        if (trace.is_bad) assert_int_equal(trace.message.refusal.status, 431);
        http_trace_deinit(&trace);
        kri_buffer_deinit(&text);
    }
}

TEST(http_parser_bounds_chunk_lines_extensions_and_trailers) {
    for (size_t n_line = 255; n_line <= 257; n_line++) {
        assert_filled(CHUNKED "1;", n_line - 2, 'a', "\r\nx\r\n0\r\n\r\n",
                      n_line <= 256 ? "DATA x\nEND\n" : "BAD 400 invalid_chunk\n");
        assert_filled(CHUNKED, n_line - 1, '0', "1\r\nx\r\n0\r\n\r\n",
                      n_line <= 256 ? "DATA x\nEND\n" : "BAD 400 invalid_chunk\n");
    }
    for (size_t n_extra = 4095; n_extra <= 4097; n_extra++) {
        http_trace_t trace;
        run(&trace, CHUNKED, strlen(CHUNKED));
        for (size_t n_left = n_extra; n_left > 0;) {
            const size_t n_here = n_left > 201 ? 200 : n_left; /* ';' does not count as of a name */
            char line[300];
            const int n = snprintf(line, sizeof line, "1;%0*d\r\nx\r\n", (int)n_here, 0);
            http_trace_feed(&trace, line, (size_t)n);
            n_left -= n_here;
        }
        assert_int_equal(trace.is_bad, n_extra > 4096);
        http_trace_deinit(&trace);
    }
    for (int n_trailers = 15; n_trailers <= 17; n_trailers++) {
        http_trace_t trace;
        run(&trace, CHUNKED "0\r\n", strlen(CHUNKED "0\r\n"));
        for (int i = 0; i < n_trailers; i++) http_trace_feed(&trace, "A: b\r\n", 6);
        http_trace_feed(&trace, "\r\n", 2);
        assert_int_equal(trace.n_ends, n_trailers <= 16);
        http_trace_deinit(&trace);
    }
    for (size_t n_bytes = 4095; n_bytes <= 4097; n_bytes++) {
        assert_filled(CHUNKED "0\r\nA:", n_bytes - 4, 'b', "\r\n\r\n",
                      n_bytes <= 4096 ? "END\n" : "BAD 400 invalid_chunk\n");
        assert_filled(CHUNKED "0\r\nA: b\r\nA: b\r\nA:", n_bytes - 16, 'b', "\r\n\r\n",
                      n_bytes <= 4096 ? "END\n" : "BAD 400 invalid_chunk\n");
    }
}
