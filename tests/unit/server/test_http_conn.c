/* test_http_conn.c: requests and whole answers on one connection: what follows what, what is read,
 * what is answered when a body is not wanted. */
#define _GNU_SOURCE
#include "http_rig.h"

#define POST_HEAD "POST / HTTP/1.1\r\nHost: a\r\n"
#define CHUNKED_HEAD POST_HEAD "Transfer-Encoding: chunked\r\n\r\n"

static void start(void) {
    const http_params_t params = rig_params();
    rig_start(&params);
}

static kri_buffer_t new_input(void) {
    kri_buffer_t in;
    kri_buffer_init(&in, (size_t)64 << 20);
    return in;
}

TEST(http_conn_answers_one_request_after_another) {
    start();
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    char head[1024];
    rig_send(fd, "POST /a?q HTTP/1.1\r\nHost: a\r\nX-Request-Id: my.id-1\r\n"
                 "Content-Length: 5\r\n\r\n"
                 "hello");
    assert_int_equal(rig_answer(fd, &in, head, sizeof head), 200);
    assert_string_equal(in.data, "hello");
    assert_non_null(strstr(head, "\r\nX-Request-Id: my.id-1\r\n"));
    assert_non_null(strstr(head, "\r\nContent-Type: text/plain\r\n"));
    assert_non_null(strstr(head, "\r\nDate: "));
    assert_null(strstr(head, "\r\nServer:"));
    assert_null(strstr(head, "\r\nConnection:"));
    rig_send(fd, "GET /b HTTP/1.1\r\nHost: a\r\nX-Request-Id: bad id\r\n\r\n");
    assert_int_equal(rig_answer(fd, &in, head, sizeof head), 200);
    assert_null(strstr(head, "bad id"));
    const rig_done_t first = rig_done_at(0), second = rig_done_at(1);
    assert_string_equal(first.method, "POST");
    assert_string_equal(first.path, "/a");
    assert_string_equal(first.id, "my.id-1");
    assert_int_equal(first.status, 200);
    assert_int_equal(first.n_bytes, 5);
    assert_string_equal(second.path, "/b");
    assert_int_equal(second.n_bytes, 0);
    char id[128];
    (void)snprintf(id, sizeof id, "\r\nX-Request-Id: %s\r\n", second.id);
    assert_non_null(strstr(head, id));
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_conn_gives_bodies_whole_whatever_their_size_and_pieces) {
    start();
    const int fd = rig_connect();
    kri_buffer_t in = new_input(), out = new_input();
    static const size_t sizes[] = {1, 2, 1000, 8191, 8192, 8193, 65536, 200001, 1 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char *body = malloc(sizes[i]);
        assert_non_null(body);
        for (size_t k = 0; k < sizes[i]; k++) body[k] = (char)(k * 7 + k / 251);
        for (int is_chunked = 0; is_chunked < 2; is_chunked++) {
            kri_buffer_clear(&out);
            assert_status(kri_buffer_printf(&out, POST_HEAD), KR_OK);
            if (is_chunked) {
                assert_status(kri_buffer_printf(&out, "Transfer-Encoding: chunked\r\n\r\n"), KR_OK);
                for (size_t at = 0; at < sizes[i];) {
                    const size_t n = sizes[i] - at < 5000 ? sizes[i] - at : 5000;
                    assert_status(kri_buffer_printf(&out, "%zx\r\n", n), KR_OK);
                    assert_status(kri_buffer_append(&out, body + at, n), KR_OK);
                    assert_status(kri_buffer_printf(&out, "\r\n"), KR_OK);
                    at += n;
                }
                assert_status(kri_buffer_printf(&out, "0\r\n\r\n"), KR_OK);
            } else {
                assert_status(kri_buffer_printf(&out, "Content-Length: %zu\r\n\r\n", sizes[i]),
                              KR_OK);
                assert_status(kri_buffer_append(&out, body, sizes[i]), KR_OK);
            }
            rig_send_bytes(fd, out.data, out.n_bytes);
            assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
            assert_int_equal(in.n_bytes, sizes[i]);
            assert_memory_equal(in.data, body, sizes[i]);
        }
        free(body);
    }
    kri_buffer_deinit(&in);
    kri_buffer_deinit(&out);
    (void)close(fd);
    rig_stop();
}

static void answer_at_the_gate(http_exchange_t *exchange) {
    rig_gate_wait();
    rig_reply(exchange, 200, rig_is_path(exchange, "/1") ? "one" : "two", false);
}

TEST(http_conn_takes_up_a_request_only_when_the_last_is_answered) {
    start();
    rig.on_request = answer_at_the_gate;
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, GET("/1") GET("/2"));
    RIG_UNTIL(rig_gate_waiting() == 1);
    assert_int_equal(rig.n_heads, 1);
    rig_gate_open(1);
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
    assert_string_equal(in.data, "one");
    RIG_UNTIL(rig_gate_waiting() == 1);
    assert_int_equal(rig.n_heads, 2);
    rig_gate_open(1);
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
    assert_string_equal(in.data, "two");
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

static void refuse_in_head(http_exchange_t *exchange) { rig_reply(exchange, 404, "no", false); }

TEST(http_conn_goes_on_after_a_short_body_that_nobody_wanted) {
    start();
    rig.on_head = refuse_in_head;
    const int fd = rig_connect();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_ask(fd, POST_HEAD "Content-Length: 5\r\n\r\nhello"), 404);
        assert_int_equal(rig_ask(fd, CHUNKED_HEAD
                                     "5\r\nhello\r\n0\r\n\r\n"), 404);
        /* The answer comes before the body, which is dropped when it comes. */
        assert_int_equal(rig_ask(fd, POST_HEAD "Content-Length: 9\r\n\r\n"), 404);
        rig_send(fd, "012345678");
    }
    assert_int_equal(rig_ask(fd, GET("/")), 404);
    assert_int_equal(rig.n_heads, 10);
    (void)close(fd);
    rig_stop();
}

/* Sends and expects an answer that says it closes, then the end. */
static void expect_last(const char *request, int status) {
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    char head[1024];
    rig_send(fd, request);
    assert_int_equal(rig_answer(fd, &in, head, sizeof head), status);
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    rig_expect_end(fd);
    kri_buffer_deinit(&in);
    (void)close(fd);
}

TEST(http_conn_closes_after_a_long_body_that_nobody_wanted) {
    start();
    rig.on_head = refuse_in_head;
    expect_last(POST_HEAD "Content-Length: 262145\r\n\r\nabc", 404);
    /* With "Expect" it may never come. */
    expect_last(POST_HEAD "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n", 404);
    /* In chunks its size shows only later. */
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, CHUNKED_HEAD "40001\r\n");
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 404);
    rig_expect_end(fd);
    kri_buffer_deinit(&in);
    (void)close(fd);
    assert_int_equal(rig.n_heads, 3);
    rig_stop();
}

static void do_nothing(http_exchange_t *exchange) { (void)exchange; }

TEST(http_conn_answers_500_when_nobody_handles_a_request) {
    start();
    rig.on_head = do_nothing;
    expect_last(GET("/"), 500);
    assert_int_equal(rig_done_at(0).status, 500);
    rig_stop();
}

static void accept_1000(http_exchange_t *exchange) { http_accept(exchange, 1000); }

TEST(http_conn_takes_bodies_up_to_the_size_that_was_accepted) {
    start();
    rig.on_head = accept_1000;
    kri_buffer_t in = new_input();
    char text[256], body[1001];
    memset(body, 'x', sizeof body);
    for (size_t n = 999; n <= 1001; n++) {
        (void)snprintf(text, sizeof text, POST_HEAD "Content-Length: %zu\r\n\r\n", n);
        int fd = rig_connect();
        rig_send(fd, text);
        rig_send_bytes(fd, body, n);
        assert_int_equal(rig_answer(fd, &in, NULL, 0), n <= 1000 ? 200 : 413);
        if (n > 1000) {
            assert_non_null(strstr(in.data, "\"code\":\"body_too_large\""));
            rig_expect_end(fd);
        }
        (void)close(fd);
        fd = rig_connect();
        rig_send(fd, CHUNKED_HEAD "1f4\r\n");
        rig_send_bytes(fd, body, 500);
        (void)snprintf(text, sizeof text, "\r\n%zx\r\n", n - 500);
        rig_send(fd, text);
        rig_send_bytes(fd, body, n - 500);
        rig_send(fd, "\r\n0\r\n\r\n");
        assert_int_equal(rig_answer(fd, &in, NULL, 0), n <= 1000 ? 200 : 413);
        if (n > 1000) rig_expect_end(fd);
        (void)close(fd);
    }
    RIG_UNTIL(atomic_load(&rig.n_requests) == 4);
    kri_buffer_deinit(&in);
    rig_stop();
}

TEST(http_conn_says_100_continue_to_who_waits_for_it) {
    start();
    int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, POST_HEAD "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    rig_read_until(fd, &in, "\r\n\r\n");
    assert_string_equal(in.data, "HTTP/1.1 100 Continue\r\n\r\n");
    rig_send(fd, "hello");
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
    assert_string_equal(in.data, "hello");
    /* Not to who has not waited, has nothing to send, or speaks 1.0; not when it is refused. */
    assert_int_equal(rig_ask(fd, POST_HEAD "Expect: 100-continue\r\n"
                                 "Content-Length: 5\r\n\r\nhello"), 200);
    assert_int_equal(rig_ask(fd, POST_HEAD "Expect: 100-continue\r\n"
                                 "Content-Length: 0\r\n\r\n"), 200);
    (void)close(fd);
    expect_last(POST_HEAD "Expect: 100-continue\r\nContent-Length: 1048577\r\n"
                "\r\n", 413);
    expect_last(POST_HEAD "Expect: 42\r\nContent-Length: 5\r\n\r\n", 417);
    fd = rig_connect();
    rig_send(fd, "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    rig_send(fd, "hello");
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
    (void)close(fd);
    kri_buffer_deinit(&in);
    rig_stop();
}

TEST(http_conn_answers_head_without_a_body) {
    start();
    rig.on_head = refuse_in_head;
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    rig_read_until(fd, &in, "\r\n\r\n");
    assert_non_null(strstr(in.data, "HTTP/1.1 404 "));
    assert_non_null(strstr(in.data, "\r\nContent-Length: 2\r\n"));
    assert_string_equal(strstr(in.data, "\r\n\r\n"), "\r\n\r\n");
    assert_int_equal(rig_ask(fd, GET("/")), 404); /* the next answer begins at once */
    assert_int_equal(rig_done_at(0).n_bytes, 0);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_conn_ends_where_a_side_wants_it) {
    start();
    expect_last("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" GET("/"), 200);
    expect_last("GET / HTTP/1.0\r\n\r\n" GET("/"), 200);
    assert_int_equal(rig.n_heads, 2); /* what stood behind was not looked at */
    int fd = rig_connect();
    kri_buffer_t in = new_input();
    char head[1024];
    for (int i = 0; i < 2; i++) {
        rig_send(fd, "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_int_equal(rig_answer(fd, &in, head, sizeof head), 200);
        assert_non_null(strstr(head, "\r\nConnection: keep-alive\r\n"));
    }
    (void)close(fd);
    kri_buffer_deinit(&in);
    rig_stop();

    http_params_t params = rig_params();
    params.limits.keep_alive_requests = 3;
    rig_start(&params);
    fd = rig_connect();
    for (int i = 0; i < 2; i++) assert_int_equal(rig_ask(fd, GET("/")), 200);
    in = new_input();
    rig_send(fd, GET("/") GET("/"));
    assert_int_equal(rig_answer(fd, &in, head, sizeof head), 200);
    assert_non_null(strstr(head, "\r\nConnection: close\r\n"));
    rig_expect_end(fd);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

static void answer_twice(http_exchange_t *exchange) {
    rig_reply(exchange, 200, "first", false);
    rig_reply(exchange, 500, "second", false);
    http_stream_begin(exchange, 200, "text/plain", NULL, false);
    (void)http_stream_write(exchange, "third", 5);
    http_stream_end(exchange, true);
}

TEST(http_conn_sends_the_first_of_two_answers) {
    start();
    rig.on_head = answer_twice;
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, GET("/"));
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 200);
    assert_string_equal(in.data, "first");
    assert_int_equal(rig_ask(fd, GET("/")), 200);
    http_stats_t stats;
    http_server_stats(rig.server, &stats);
    assert_int_equal(stats.n_misused, 6);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

/* ---- exchanges that are kept ----------------------------------------------------------------- */

static _Atomic(http_exchange_t *) kept;
static atomic_int n_destroyed;

static void keep(http_exchange_t *exchange) {
    http_retain(exchange);
    atomic_store(&kept, exchange);
}

static void count_destroyed(void *user) {
    assert_ptr_equal(user, &n_destroyed);
    atomic_fetch_add(&n_destroyed, 1);
}

TEST(http_conn_lets_any_thread_answer_later) {
    start();
    rig.on_request = keep;
    n_destroyed = 0;
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    rig_send(fd, POST_HEAD "Content-Length: 2\r\n\r\nhi");
    RIG_UNTIL(atomic_load(&kept) != NULL);
    http_exchange_t *exchange = atomic_exchange(&kept, NULL);
    http_set_user(exchange, &n_destroyed, count_destroyed);
    assert_ptr_equal(http_user(exchange), &n_destroyed);
    const http_request_t *request = http_request(exchange);
    assert_string_equal(request->body, "hi");
    assert_int_equal(http_field_count(request, "HOST"), 1);
    assert_memory_equal(http_field(request, "host").data, "a", 1);
    assert_null(http_field(request, "absent").data);
    assert_string_equal(request->peer, "127.0.0.1");
    rig_reply(exchange, 201, "later", false);
    assert_int_equal(rig_answer(fd, &in, NULL, 0), 201);
    assert_string_equal(in.data, "later");
    assert_string_equal(request->body, "hi"); /* as long as it is held */
    assert_int_equal(n_destroyed, 0);
    RIG_UNTIL(atomic_load(&rig.n_requests) == 1);
    (void)rig_done_at(0);
    http_release(exchange);
    RIG_UNTIL(atomic_load(&n_destroyed) == 1);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

static void accept_and_keep(http_exchange_t *exchange) {
    http_accept(exchange, 1000);
    if (rig_is_path(exchange, "/kept")) keep(exchange);
}

TEST(http_conn_drops_the_rest_of_a_body_that_is_answered_before_its_end) {
    static const char inner[] = GET("/of-the-body");
    start();
    rig.on_head = accept_and_keep;
    const int fd = rig_connect();
    kri_buffer_t in = new_input();
    for (int i = 0; i < 4; i++) {
        char head[256];
        (void)snprintf(head, sizeof head, i % 2 ? "POST /kept HTTP/1.1\r\nHost: a\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n%zx\r\n"
                       : "POST /kept HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n\r\n",
                       sizeof inner - 1);
        rig_send(fd, head);
        RIG_UNTIL(atomic_load(&kept) != NULL);
        http_exchange_t *exchange = atomic_exchange(&kept, NULL);
        rig_reply(exchange, 400, "early", false);
        http_release(exchange);
        assert_int_equal(rig_answer(fd, &in, NULL, 0), 400);
        rig_send(fd, inner);
        if (i % 2) rig_send(fd, "\r\n0\r\n\r\n");
        assert_int_equal(rig_ask(fd, GET("/")), 200);
        assert_int_equal(rig.n_heads, 2 * i + 2);
    }
    RIG_UNTIL(atomic_load(&rig.n_requests) == 4);
    kri_buffer_deinit(&in);
    (void)close(fd);
    rig_stop();
}

TEST(http_conn_drops_what_is_written_after_it_has_gone) {
    start();
    rig.on_request = keep;
    http_exchange_t *exchanges[2];
    for (int i = 0; i < 2; i++) {
        const int fd = rig_connect();
        rig_send(fd, GET("/"));
        RIG_UNTIL(atomic_load(&kept) != NULL);
        exchanges[i] = atomic_exchange(&kept, NULL);
        if (i == 0) {
            (void)close(fd);
            assert_int_equal(rig_done_at(0).status, 499);
            http_stream_begin(exchanges[0], 200, "text/plain", NULL, false);
            assert_false(http_stream_write(exchanges[0], "x", 1));
            http_stream_end(exchanges[0], true);
        } else { /* and after the server has */
            rig_stop();
            rig_expect_end(fd);
            (void)close(fd);
            rig_reply(exchanges[1], 200, "x", false);
        }
    }
    assert_int_equal(http_request(exchanges[1])->path.n_bytes, 1);
    for (int i = 0; i < 2; i++) http_release(exchanges[i]);
}
