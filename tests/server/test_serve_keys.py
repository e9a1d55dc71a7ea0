"""Keys: no route without its scope, one constant refusal, what a key may have in flight, and a
reload that leaves running requests alone."""
import re
import signal
import socket
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ops_program import Held, Stream, bearer, key_line, long_server, metric  # noqa: E402
from serve_program import ROOT, Server, eventually  # noqa: E402

SCOPES = ("generate", "metrics", "admin")


def routes():
    """(method, path, scope) of every row of endpoints.def."""
    text = (ROOT / "app" / "server" / "endpoints.def").read_text()
    rows = re.findall(r'^KR_ENDPOINT\(\w+,\s*"(\w+)",\s*"([^"]+)",\s*(\w+)', text, re.M)
    return [(method, path.replace("{id}", "x"), scope.lower()) for method, path, scope in rows]


class Scopes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        keys = Path(scratch.name) / "keys"
        keys.write_text("# one for each scope\n\n" +
                        "".join(key_line(s, f"sk-{s}", s) for s in SCOPES))
        keys.chmod(0o600)
        cls.server = Server.of_tiny("--api-key-file", keys)
        cls.addClassCleanup(cls.server.stop)

    def ask(self, method, path, headers):
        """With a body that no endpoint takes, so that nothing is set going."""
        body = b"[]" if method == "POST" else None
        if path.startswith("/admin"):
            body = b""
        more = {"Content-Type": "application/json"} if body else {}
        return self.server.call(method, path, body, {**headers, **more})

    def test_there_are_routes_of_every_scope(self):
        self.assertEqual({scope for _, _, scope in routes()}, {"none", *SCOPES})

    def test_no_route_without_its_key(self):
        wrong = [{}, bearer("wrong"), bearer(""), {"Authorization": "Basic c2s="},
                 {"Authorization": "sk-generate"}, {"x-api-key": "wrong"},
                 {"x-api-key": "Bearer sk-generate"}, {"Cookie": "sk-generate"},
                 {"x-api-key": "sk-generate", **bearer("sk-admin")}]
        for method, path, scope in routes():
            answers = {(a.status, re.sub(r'"(request_id)":"[^"]*"', r'"\1":""', a.text))
                       for a in (self.ask(method, path, headers) for headers in wrong)}
            with self.subTest(path=path):
                if scope == "none":
                    self.assertNotIn(401, {status for status, _ in answers})
                else:
                    self.assertEqual(len(answers), 1, answers)
                    self.assertEqual(answers.pop()[0], 401)

    def test_a_refusal_says_which_kind_it_is(self):
        error = self.server.call("GET", "/v1/models").error()
        self.assertEqual((error["type"], error["code"]),
                         ("authentication_error", "invalid_api_key"))
        self.assertNotIn("sk-", self.server.call("GET", "/v1/models",
                                                 headers=bearer("sk-secret")).text)

    def test_a_key_opens_the_routes_of_its_scope_only(self):
        for method, path, scope in routes():
            if path.startswith("/admin"):
                continue  # would do it
            for key in SCOPES:
                with self.subTest(path=path, key=key):
                    answer = self.ask(method, path, bearer(f"sk-{key}"))
                    if scope in ("none", key):
                        self.assertNotIn(answer.status, (401, 403))
                    else:
                        self.assertEqual(answer.status, 403)
                        self.assertNotIn("sk-", answer.text)
        for path in ("/admin/drain", "/admin/reload"):
            for key in ("generate", "metrics"):
                self.assertEqual(self.ask("POST", path, bearer(f"sk-{key}")).status, 403)

    def test_both_fields_may_carry_the_key(self):
        for headers in (bearer("sk-generate"), {"x-api-key": "sk-generate"},
                        {"authorization": "bearer sk-generate"},
                        {"x-api-key": "sk-generate", **bearer("sk-generate")}):
            self.assertEqual(self.server.call("GET", "/v1/models", headers=headers).status, 200)

    def test_refusals_are_counted(self):
        def refused(reason):
            return metric(self.server, f'kr_http_refused_total{{reason="{reason}"}}', "sk-metrics")

        before = refused("key"), refused("scope")
        self.server.call("GET", "/v1/models")
        self.server.call("GET", "/v1/models", headers=bearer("sk-admin"))
        self.assertEqual((refused("key"), refused("scope")), (before[0] + 1, before[1] + 1))


class NoKeys(unittest.TestCase):
    def test_loopback_is_open_but_for_administration(self):
        server = Server.of_tiny()
        try:
            self.assertEqual(server.call("GET", "/v1/models").status, 200)
            self.assertEqual(server.call("GET", "/v1/models", headers=bearer("any")).status, 200)
            self.assertEqual(server.call("GET", "/metrics").status, 200)
            self.assertEqual(server.post("/admin/drain", b"").status, 403)
            self.assertEqual(server.post("/admin/reload", b"").status, 403)
        finally:
            self.assertEqual(server.stop(), 0)


class Changes(unittest.TestCase):
    """Each test has a server of its own and rewrites its key file."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)
        self.keys = self.scratch / "keys"

    def write(self, *lines):
        self.keys.write_text("".join(lines))
        self.keys.chmod(0o600)

    def serve(self, *words):
        server = long_server(self.scratch, "--api-key-file", self.keys, *words)
        self.addCleanup(server.stop)
        return server

    def status_of(self, server, key):
        return server.call("GET", "/v1/models", headers=bearer(key)).status

    def test_what_a_key_has_in_flight_is_bounded(self):
        self.write(key_line("a", "sk-a", "generate", "max_in_flight=2"),
                   key_line("b", "sk-b", "generate,metrics"))
        server = self.serve("--key-in-flight", "1")
        held = [Held(server, "sk-a"), Held(server, "sk-a"), Held(server, "sk-b")]

        def n_in_flight():
            return metric(server, "kr_http_requests_in_flight", "sk-b")

        for key in ("sk-a", "sk-b"):
            answer = eventually(lambda key=key: self.refused(server, key), f"429 for {key}")
            self.assertEqual(answer.error()["code"], "too_many_requests")
            self.assertEqual(answer.error()["type"], "rate_limit_error")
            self.assertGreaterEqual(int(answer.headers["Retry-After"]), 1)
        self.assertEqual(held[0].finish(), 200)
        eventually(lambda: self.status_of(server, "sk-a") == 200, "a place for a")
        held[1].close()  # a client that goes gives its place back too
        held[2].close()
        held[0].close()
        eventually(lambda: self.status_of(server, "sk-b") == 200, "a place for b")
        eventually(lambda: n_in_flight() == 1, "only the scrape in flight")

    def test_bodies_of_one_key_leave_room_for_others(self):
        self.write(key_line("a", "sk-a", "generate"), key_line("b", "sk-b", "generate"))
        server = self.serve()
        head = (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-a\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(64)]
        for one in slow:  # fewer than a key may have in flight; each counts as 16 MiB of the 1 GiB
            self.addCleanup(one.close)
            one.sendall(head)

        def ask(key):
            return server.call("POST", "/tokenize", {"content": "hi"}, bearer(key))

        answer = eventually(lambda: (lambda a: a if a.status == 429 else None)(ask("sk-a")),
                            "the share of a is used up")
        self.assertEqual(answer.error()["code"], "too_many_requests")
        self.assertEqual(ask("sk-b").status, 200)
        for one in slow:
            one.close()
        eventually(lambda: ask("sk-a").status == 200, "what a held is given back")

    def test_prompts_of_one_key_leave_room_in_the_queue(self):
        self.write(key_line("a", "sk-a", "generate"), key_line("b", "sk-b", "generate,metrics"))
        path = self.scratch / "socket"
        # 4 at once: 4 + 6 for one key
        server = self.serve("--queue", "8", "--unix-socket", path)
        # Not read, with much to read for each token: so they stay. Each four that run make room.
        for n_prompts, n_run in ((4, 4), (6, 8)):
            crowd = Stream(server, key="sk-a", unix_path=path, prompt=["the"] * n_prompts,
                           logprobs=20)
            self.addCleanup(crowd.close)
            self.assertEqual(crowd.status, 200)
            eventually(lambda n=n_run: metric(server, "kr_requests_running", "sk-b") >= n,
                       f"{n_run} run")
        answer = server.call("POST", "/v1/completions", {"prompt": "the"}, bearer("sk-a"))
        self.assertEqual((answer.status, answer.error()["code"]), (429, "too_many_requests"))
        other = Stream(server, key="sk-b")  # waits in the queue: accepted all the same
        self.addCleanup(other.close)
        self.assertEqual(other.status, 200)

    def refused(self, server, key):
        answer = server.call("GET", "/v1/models", headers=bearer(key))
        return answer if answer.status == 429 else None

    def test_reload_adds_and_removes_keys_while_streams_run(self):
        self.write(key_line("old", "sk-old", "generate"), key_line("m", "sk-m", "metrics"))
        server = self.serve()
        stream = Stream(server, key="sk-old")
        self.assertEqual(stream.status, 200)
        self.assertIsNotNone(stream.event())
        self.assertEqual(self.status_of(server, "sk-new"), 401)
        self.write(key_line("new", "sk-new", "generate"), key_line("m", "sk-m", "metrics"))
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.status_of(server, "sk-new") == 200, "the new key")
        self.assertEqual(self.status_of(server, "sk-old"), 401)
        eventually(lambda: metric(server, "kr_requests_running", "sk-m") == 1,
                   "the stream still is")
        for _ in range(100):
            self.assertNotIn("error", stream.event())
        stream.close()
        eventually(lambda: metric(server, "kr_requests_running", "sk-m") == 0, "its end")

    def test_prefixes_are_shared_within_a_key_only(self):
        self.write(key_line("a", "sk-a", "generate"), key_line("b", "sk-b", "generate"))
        server = self.serve()

        def n_cached(key):
            body = {"prompt": [7] * 100, "max_tokens": 1}
            answer = server.call("POST", "/v1/completions", body, bearer(key))
            return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        self.assertEqual(n_cached("sk-a"), 0)
        self.assertEqual(n_cached("sk-b"), 0)
        self.assertGreaterEqual(n_cached("sk-a"), 96)
        self.assertGreaterEqual(n_cached("sk-b"), 96)
        server.process.send_signal(signal.SIGHUP)  # the same keys keep what they have
        eventually(lambda: "reloaded: keys=2" in server.said(), "a reload")
        self.assertGreaterEqual(n_cached("sk-a"), 96)

    def test_reload_by_the_endpoint_answers_what_it_did(self):
        self.write(key_line("root", "sk-root", "admin"))
        server = self.serve()
        self.write(key_line("root", "sk-root", "admin"), key_line("a", "sk-a", "generate"))
        answer = server.call("POST", "/admin/reload", headers=bearer("sk-root"))
        self.assertEqual((answer.status, answer.json()),
                         (200, {"status": "reloaded", "keys": 2, "changed": [],
                                "needs_restart": []}))
        self.assertEqual(self.status_of(server, "sk-a"), 200)

    def test_a_bad_file_changes_nothing(self):
        self.write(key_line("root", "sk-root", "admin,generate"))
        server = self.serve()
        self.write("root nonsense admin\n")
        answer = server.call("POST", "/admin/reload", headers=bearer("sk-root"))
        self.assertEqual((answer.status, answer.error()["code"]), (400, "invalid_request"))
        self.assertNotIn(str(self.keys.parent), answer.text)  # the path is the log's
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: server.said().count("reload refused") == 2, "two refusals in the log")
        self.assertIn("line 1: behind the name stands the SHA-256", server.said())
        self.assertEqual(self.status_of(server, "sk-root"), 200)
        self.keys.unlink()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: server.said().count("reload refused") == 3, "a third one")
        self.assertEqual(self.status_of(server, "sk-root"), 200)

    def test_an_empty_file_lets_nobody_in_and_says_so(self):
        self.write(key_line("a", "sk-a", "generate"))
        server = self.serve()
        self.write("")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.status_of(server, "sk-a") == 401, "the last key gone")
        eventually(lambda: "holds no keys" in server.said(), "a warning")

    def test_a_file_that_everybody_can_read_is_warned_of(self):
        self.write(key_line("a", "sk-a", "generate"))
        self.keys.chmod(0o644)
        server = self.serve()
        eventually(lambda: "can be read by everybody" in server.said(), "a warning")


if __name__ == "__main__":
    unittest.main()
