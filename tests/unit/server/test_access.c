/* Host and Origin: which are this server's; which endpoint a path means. */
#include "server/access.h"
#include "server/endpoints.h"
#include "test.h"

static http_text_t text_of(const char *text) { return (http_text_t){text, strlen(text)}; }

/* NULL = no such field. */
static access_answer_t ask(const server_t *server, const char *host, const char *origin) {
    http_field_t fields[2];
    http_request_t request = {.fields = fields};
    if (host != NULL) {
        fields[request.n_fields++] = (http_field_t){text_of("Host"), text_of(host)};
    }
    if (origin != NULL) {
        fields[request.n_fields++] = (http_field_t){text_of("oRiGin"), text_of(origin)};
    }
    return access_check(server, &request);
}

static const char *const good_hosts[] = {
    "localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "127.0.0.1:", "[::1]",
    "[::1]:8080", "localhost:65535",
};
static const char *const bad_hosts[] = {
    "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost.",
    "evil.example:8080", "127.0.0.2", "0.0.0.0", "::1", "[::1", "[]", "[::2]", "[::1]x",
    "localhost:80a", "localhost:808080", "localhost:8080:1", "localhost@evil.example",
    "user@localhost", "[localhost]", " localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]",
};

TEST(access_takes_loopback_hosts_only) {
    const server_t server = {.host = "127.0.0.1", .is_loopback = true};
    for (size_t i = 0; i < sizeof good_hosts / sizeof good_hosts[0]; i++) {
        if (ask(&server, good_hosts[i], NULL) != ACCESS_GRANTED) fail_msg("%s", good_hosts[i]);
    }
    for (size_t i = 0; i < sizeof bad_hosts / sizeof bad_hosts[0]; i++) {
        if (ask(&server, bad_hosts[i], NULL) != ACCESS_HOST) fail_msg("%s", bad_hosts[i]);
    }
    assert_int_equal(ask(&server, NULL, NULL), ACCESS_GRANTED);
}

TEST(access_takes_listed_and_bound_hosts) {
    static const char *const names[] = {"kr.example", "Other"};
    const server_t server = {.host = "127.0.0.5", .is_loopback = true, .allowed_hosts = names,
                             .n_allowed_hosts = 2};
    assert_int_equal(ask(&server, "KR.example:1", NULL), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "other", NULL), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "127.0.0.5:1", NULL), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "kr.example.evil", NULL), ACCESS_HOST);
    assert_int_equal(ask(&server, "[kr.example]", NULL), ACCESS_HOST);
    assert_int_equal(ask(&server, "a.kr.example", NULL), ACCESS_HOST);
}

TEST(access_takes_numeric_hosts_of_a_server_with_keys) {
    const server_t server = {.host = "0.0.0.0", .is_loopback = false};
    assert_int_equal(ask(&server, "10.1.2.3:8080", NULL), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "[fe80::1]", NULL), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "10.1.2.3.evil.example", NULL), ACCESS_HOST);
    assert_int_equal(ask(&server, "10.1.2.256", NULL), ACCESS_HOST);
    assert_int_equal(ask(&server, "evil.example", NULL), ACCESS_HOST);
    assert_int_equal(ask(&server, "[evil]", NULL), ACCESS_HOST);
}

TEST(access_refuses_repeated_fields) {
    const server_t server = {.host = "127.0.0.1", .is_loopback = true};
    http_field_t fields[3] = {{text_of("host"), text_of("localhost")},
                              {text_of("Host"), text_of("localhost")}};
    http_request_t request = {.fields = fields, .n_fields = 2};
    assert_int_equal(access_check(&server, &request), ACCESS_HOST);
    fields[1] = fields[2] = (http_field_t){text_of("origin"), text_of("http://localhost")};
    assert_int_equal(access_check(&server, &request), ACCESS_GRANTED);
    request.n_fields = 3;
    assert_int_equal(access_check(&server, &request), ACCESS_ORIGIN);
}

TEST(access_takes_own_and_listed_origins) {
    static const char *const origins[] = {"https://app.example", "http://localhost:3000"};
    server_t server = {.host = "127.0.0.1", .is_loopback = true, .allowed_origins = origins,
                       .n_allowed_origins = 2};
    static const struct {
        const char *host, *origin;
        bool is_good;
    } cases[] = {
        {"localhost:8080", "http://localhost:8080", true},
        {"127.0.0.1", "http://127.0.0.1", true},
        {"localhost:8080", "https://app.example", true},
        {"localhost:8080", "http://localhost:3000", true},
        {"localhost:8080", "https://localhost:8080", false},
        {"localhost:8080", "http://localhost", false},
        {"localhost:8080", "http://localhost:8081", false},
        {"localhost:8080", "http://127.0.0.1:8080", false},
        {"localhost:8080", "http://localhost:8080/", false},
        {"localhost:8080", "http://evil.example", false},
        {"localhost:8080", "https://app.example.evil", false},
        {"localhost:8080", "https://app.example:443", false},
        {"localhost:8080", "http://app.example", false},
        {"localhost:8080", "null", false},
        {"localhost:8080", "", false},
        {"localhost:8080", "*", false},
        {"localhost:8080", "file://", false},
        {NULL, "http://", false},
        {NULL, "http://localhost", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const access_answer_t wanted = cases[i].is_good ? ACCESS_GRANTED : ACCESS_ORIGIN;
        if (ask(&server, cases[i].host, cases[i].origin) != wanted) {
            fail_msg("%s", cases[i].origin);
        }
    }
    server.is_tls = true;
    assert_int_equal(ask(&server, "localhost:1", "https://localhost:1"), ACCESS_GRANTED);
    assert_int_equal(ask(&server, "localhost:1", "http://localhost:1"), ACCESS_ORIGIN);
}

TEST(access_knows_loopback_and_names) {
    assert_true(access_is_loopback("127.0.0.1") && access_is_loopback("127.9.9.9"));
    assert_true(access_is_loopback("localhost") && access_is_loopback("::1"));
    assert_false(access_is_loopback("0.0.0.0") || access_is_loopback("::"));
    assert_false(access_is_loopback("128.0.0.1") || access_is_loopback("") ||
                 access_is_loopback("::ffff:127.0.0.1") || access_is_loopback("127.1"));
    assert_true(access_is_host_name("a.b-c_d"));
    assert_false(access_is_host_name("") || access_is_host_name("a:1") ||
                 access_is_host_name("*") || access_is_host_name("a b"));
    assert_true(access_is_origin("http://a") && access_is_origin("https://a.b:1") &&
                access_is_origin("http://[::1]:5"));
    assert_false(access_is_origin("*") || access_is_origin("null") || access_is_origin("a") ||
                 access_is_origin("http://") || access_is_origin("http://a/") ||
                 access_is_origin("://a") || access_is_origin("http://a:b") ||
                 access_is_origin("http://*") || access_is_origin("http://[x]"));
}

/* ---- paths --------------------------------------------------------------------------------- */

static endpoint_match_t find(const char *method, const char *path) {
    return endpoint_find(method, strlen(method), path, strlen(path));
}

TEST(endpoints_are_found_by_method_and_path) {
    for (uint32_t i = 0; i < n_endpoints; i++) {
        const endpoint_t *row = &endpoints[i];
        if (strstr(row->path, "{id}") != NULL) continue;
        assert_ptr_equal(find(row->method, row->path).endpoint, row);
        assert_true(strcmp(row->method, "GET") != 0 || !row->has_body);
    }
    assert_string_equal(find("HEAD", "/livez").endpoint->name, "livez");
    assert_string_equal(find("GET", "/v1/models").endpoint->name, "models");
    const endpoint_match_t match = find("GET", "/v1/models/org/name");
    assert_string_equal(match.endpoint->name, "model");
    assert_int_equal(match.tail_bytes, 8);
    assert_memory_equal(match.tail, "org/name", 8);
}

TEST(endpoints_refuse_other_paths_and_methods) {
    static const char *const paths[] = {"/", "", "/livez/", "/livezz", "/live", "/LIVEZ", "/v1",
                                        "/v1/models/", "/v1/modelsx", "/v1/chat/completions/x"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        const endpoint_match_t match = find("GET", paths[i]);
        if (match.endpoint != NULL || match.allow[0] != '\0') fail_msg("found: %s", paths[i]);
    }
    assert_string_equal(find("POST", "/livez").allow, "GET, HEAD");
    assert_null(find("POST", "/livez").endpoint);
    assert_null(find("get", "/livez").endpoint);
    assert_null(find("", "/livez").endpoint);
    assert_string_equal(find("GET", "/v1/chat/completions").allow, "POST");
    assert_null(find("HEAD", "/v1/chat/completions").endpoint);
}
