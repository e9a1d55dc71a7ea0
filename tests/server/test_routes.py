"""Every route of `kr serve`: Host x Origin x media type, methods, paths, sizes, the form of each
error, raw bytes (probes.py), pages of other origins. What is asked for is read from endpoints.def,
so that a new route is covered when its row is written."""
import itertools
import json
import re
import socket
import sys
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from probes import Route, probes, run  # noqa: E402
from routes import Client, error_of, rows  # noqa: E402
from serve_program import WAIT_S, ServedTest  # noqa: E402

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "BREW")
JSON = ("Content-Type", "application/json")
HOST = ("Host", "localhost")
# What an answer must never speak of: places, addresses, sources.
INSIDE = re.compile(rb"/tmp|/home|/root|/usr|/proc|\.gguf|0x[0-9a-f]{5}|kri_|\.[ch]:|errno|assert",
                    re.I)


class RoutesTest(ServedTest, unittest.TestCase):
    def setUp(self):
        self.client = Client(self.server.port)
        self.addCleanup(self.client.close)

    def ask(self, row, *fields, method=None, path=None, body=...):
        status, headers, content = self.client.ask(
            method or row.method, path or row.path, fields, row.body if body is ... else body)
        self.assertNotRegex(content, INSIDE)
        self.assertTrue(headers["X-Request-Id"], f"{row}: no X-Request-Id")
        return status, headers, content

    def assert_refused(self, row, answer, status, code):
        got, headers, content = answer
        self.assertEqual(got, status, f"{row}: {content!r}")
        self.assertEqual(headers["Content-Type"], "application/json")
        message, _, found = error_of(row.style, content)
        self.assertTrue(message)
        if row.style == "OPENAI":
            self.assertEqual(found, code, f"{row}: {content!r}")


class Access(RoutesTest):
    HOSTS = {"localhost": 200, "127.0.0.1:8080": 200, "[::1]": 200, "evil.example": 403,
             "localhost.evil.example": 403, "10.0.0.1": 403}
    ORIGINS = {None: 200, "http://{host}": 200, "http://evil.example": 403, "null": 403}
    TYPES = {"application/json": 200, "application/json; charset=utf-8": 200, None: 415,
             "text/plain": 415, "application/x-www-form-urlencoded": 415}

    def fields(self, host, origin, kind):
        yield "Host", host
        if origin is not None:
            yield "Origin", origin.format(host=host)
        if kind is not None:
            yield "Content-Type", kind

    def test_matrix(self):
        """The three questions in every combination, on every route: the first no decides."""
        n_refused = 0
        for row in rows():
            kinds = self.TYPES if row.body is not None else {None: 200}
            for host, origin, kind in itertools.product(self.HOSTS, self.ORIGINS, kinds):
                answer = self.ask(row, *self.fields(host, origin, kind))
                what = f"{row} Host {host!r} Origin {origin!r} Content-Type {kind!r}"
                with self.subTest(what):
                    if self.HOSTS[host] == 403:
                        self.assert_refused(row, answer, 403, "host_not_allowed")
                    elif self.ORIGINS[origin] == 403:
                        self.assert_refused(row, answer, 403, "origin_not_allowed")
                    elif row.scope == "ADMIN":
                        self.assert_refused(row, answer, 403, "permission_denied")
                    elif kinds[kind] == 415:
                        self.assert_refused(row, answer, 415, "unsupported_media_type")
                    else:
                        self.assertNotIn(answer[0], (401, 403, 405, 415), what)
                        self.assertLess(answer[0], 500, what)
                        continue
                    n_refused += 1
                    is_own = self.HOSTS[host] == 200 and self.ORIGINS[origin] == 200
                    self.assertEqual("Access-Control-Allow-Origin" in answer[1],
                                     is_own and origin is not None)
        self.assertGreater(n_refused, 500)

    def test_media_types_that_only_look_right(self):
        for kind in ("application/json;charset=latin-1", "application/jsonp", "application/json, x",
                     "json", "application/json; charset=utf-8; boundary=x", "application/ json",
                     "multipart/form-data; boundary=application/json"):
            for row in rows():
                if row.body is not None and row.scope != "ADMIN":
                    self.assert_refused(row, self.ask(row, HOST, ("Content-Type", kind)), 415,
                                        "unsupported_media_type")

    def test_two_media_types(self):
        for row in rows():
            if row.body is not None and row.scope != "ADMIN":
                self.assert_refused(row, self.ask(row, HOST, JSON, JSON), 415,
                                    "unsupported_media_type")

    def test_accept(self):
        for row in rows():
            if row.scope == "ADMIN":
                continue
            kind = [JSON] if row.body is not None else []
            answer = self.ask(row, HOST, *kind, ("Accept", "image/png, audio/*"))
            self.assert_refused(row, answer, 406, "not_acceptable")
            answer = self.ask(row, HOST, *kind, ("Accept", "*/*;q=0"))
            self.assert_refused(row, answer, 406, "not_acceptable")
            for good in ("*/*", "application/json", "image/png, application/*;q=0.1",
                         "text/html,application/xhtml+xml,*/*;q=0.8", "", "*/*;q=0, text/plain"):
                self.assertNotEqual(self.ask(row, HOST, *kind, ("Accept", good))[0], 406, row)

    def test_no_page_may_ask_first(self):
        """Preflights get nothing that a browser would take for a yes."""
        for row in rows():
            for origin in ("http://evil.example", "http://localhost"):
                status, headers, _ = self.ask(
                    row, HOST, ("Origin", origin), ("Access-Control-Request-Method", "PUT"),
                    method="OPTIONS", body=None)
                self.assertEqual(status, 403 if "evil" in origin else 405)
                self.assertNotIn("Access-Control-Allow-Methods", headers)


class Paths(RoutesTest):
    def test_other_methods(self):
        table = rows()
        for row in table:
            have = {other.method for other in table if other.path == row.path}
            have |= {"HEAD"} if "GET" in have else set()
            for method in METHODS:
                if method in have:
                    continue
                answer = self.ask(row, HOST, JSON, method=method, body=None)
                self.assertEqual(set(answer[1]["Allow"].split(", ")), have, f"{method} {row}")
                if method != "HEAD":
                    self.assert_refused(row, answer, 405, "method_not_allowed")
                self.assertEqual(answer[0], 405)

    def test_unknown_paths(self):
        row = rows()[0]
        for path in ("/", "/v1", "/v1/", "/V1/models", "/v1/models/", "/livez/", "/livez%20",
                     "/livez;x", "/favicon.ico", "/v1/chat", "/v1/chat/completions/", "/index.html",
                     "/api", "/.env", "/a" * 1000, "/%E2%82%AC%22%5C"):
            answer = self.ask(row, HOST, path=path)
            self.assert_refused(row, answer, 404, "unknown_route")
            self.assertLess(len(answer[2]), 1024)

    def test_unknown_paths_speak_as_their_family(self):
        for path, style in (("/api/nothing", "OLLAMA"), ("/v1/messages/nothing", "ANTHROPIC")):
            status, _, body = self.client.ask("GET", path, [HOST])
            self.assertEqual(status, 404)
            message, kind, _ = error_of(style, body)
            self.assertIn("unknown route", message)
            self.assertIn(kind, (None, "not_found_error"))

    def test_a_path_is_decoded_once(self):
        for path, status in (("/%6Civez", 200), ("/%256Civez", 404), ("/livez?x=/../..", 200)):
            self.assertEqual(self.client.ask("GET", path, [HOST])[0], status, path)

    def test_head_answers_as_get_without_a_body(self):
        for row in rows():
            if row.method != "GET" or row.scope == "ADMIN":
                continue
            get = self.ask(row, HOST)
            head = self.ask(row, HOST, method="HEAD")
            self.assertEqual((head[0], head[2]), (get[0], b""), row)
            self.assertEqual(head[1]["Content-Type"], get[1]["Content-Type"])

    def test_request_ids(self):
        row = rows()[0]
        for given, is_kept in (("a.B_c-9", True), ("x" * 64, True), ("x" * 65, False),
                               ("a b", False), ("", False), ("a\u00e9", False)):
            headers = self.ask(row, HOST, ("X-Request-Id", given.encode("latin-1")))[1]
            self.assertEqual(headers["X-Request-Id"] == given, is_kept, given)


class Bodies(RoutesTest):
    def rows(self):
        return [row for row in rows() if row.scope != "ADMIN"]

    def test_a_body_where_none_belongs(self):
        for row in self.rows():
            if row.body is None:
                self.assert_refused(row, self.ask(row, HOST, JSON, body=b"{}"), 400,
                                    "invalid_request")

    def test_bodies_that_are_no_json_object(self):
        bad = (b"", b"[]", b"null", b"1", b'"x"', b"{", b'{"a":1,"a":1}', b"\xff", b"{}{}",
               b"\xef\xbb\xbf{}", b'{"a":' * 500, b'{"a":1e999}', b'{"a":"\\ud800"}',
               b'{"a\\u0000":1}', b'{"model":12345678901234567890}')
        for row in self.rows():
            for body in bad if row.body is not None else ():
                self.assert_refused(row, self.ask(row, HOST, JSON, body=body), 400, "invalid_json")

    def test_unknown_fields_are_named(self):
        for row in self.rows():
            if row.body is None:
                continue
            status, _, content = self.ask(row, HOST, JSON, body=b'{"no_such_field":1}')
            self.assertEqual(status, 400, row)
            message = error_of(row.style, content)[0]
            self.assertRegex(message, r"'no_such_field'|missing required parameter|required", row)

    def test_a_declared_size_over_the_limit(self):
        """Refused by the head alone: not a byte of the body is read."""
        for row in self.rows():
            if row.body is None:
                continue
            with socket.create_connection(("127.0.0.1", self.server.port), WAIT_S) as sock:
                sock.sendall(f"{row.method} {row.path} HTTP/1.1\r\nHost: localhost\r\n"
                             "Content-Type: application/json\r\n"
                             f"Content-Length: {(16 << 20) + 1}\r\n\r\n".encode())
                head, _, body = b"".join(iter(lambda s=sock: s.recv(65536), b"")).partition(
                    b"\r\n\r\n")
            self.assertRegex(head, rb"^HTTP/1.1 413 ")
            self.assertRegex(head, rb"(?i)\r\nconnection: close")
            self.assertIn("16777216", error_of(row.style, body)[0])


class Probes(RoutesTest):
    """Every raw probe on every route, against the server's own front."""
    WORDS = ("--max-connections-per-address", "1000", "--log-format", "json")

    def test_every_probe_on_every_route(self):
        faults, lock, n_refused = [], threading.Lock(), 0

        def connect():
            return socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT_S)

        def one(row, probe):
            fault = run(connect, probe)
            if fault:
                with lock:
                    faults.append(f"{row}: {probe.name}: {fault}")

        with ThreadPoolExecutor(16) as pool:
            for row in rows():
                kind = [JSON] if row.body is not None else []
                status = self.ask(row, HOST, *kind)[0]
                table = list(probes(Route(row.method, row.path, body=row.body, ok=(status,))))
                n_refused = sum(probe.closes and min(probe.statuses) >= 400 for probe in table)
                self.assertGreaterEqual(n_refused, 180)
                list(pool.map(lambda probe, r=row: one(r, probe), table))
        self.assertEqual(faults, [], "\n".join(faults[:40]))
        self.assertEqual(self.ask(rows()[0], HOST)[0], 200)


class Origins(RoutesTest):
    """Pages of an origin that is listed."""
    PAGE = "https://app.example"
    WORDS = ("--allowed-origin", PAGE, "--allowed-host", "kr.example")

    def test_a_listed_origin_may_ask(self):
        page = ("Origin", self.PAGE)
        for row in rows():
            status, headers, body = self.ask(
                row, HOST, page, ("Access-Control-Request-Method", row.method),
                ("Access-Control-Request-Headers", "content-type, x-stainless-os"),
                method="OPTIONS", body=None)
            self.assertEqual((status, body), (204, b""), row)
            self.assertEqual(headers["Access-Control-Allow-Origin"], self.PAGE)
            self.assertIn(row.method, headers["Access-Control-Allow-Methods"].split(", "))
            self.assertEqual(headers["Access-Control-Allow-Headers"],
                             "content-type, x-stainless-os")
            kind = [JSON] if row.body is not None else []
            status, headers, _ = self.ask(row, HOST, page, *kind)
            self.assertEqual(headers["Access-Control-Allow-Origin"], self.PAGE, row)
            self.assertEqual(headers["Vary"], "Origin")

    def test_a_listed_origin_sees_why_it_is_refused(self):
        page = ("Origin", self.PAGE)
        for row in rows():
            kind = [JSON] if row.body is not None else []
            if row.scope == "ADMIN":
                status, headers, _ = self.ask(row, HOST, page, *kind)
                self.assertEqual(status, 403)
            else:
                status, headers, _ = self.ask(row, HOST, page, *kind, ("Accept", "image/png"))
                self.assertEqual(status, 406)
            self.assertEqual(headers["Access-Control-Allow-Origin"], self.PAGE, row)

    def test_others_may_not(self):
        for origin in ("https://app.example.evil", "http://app.example", "https://app.example:444",
                       "https://evil.example", "null"):
            for row in rows():
                kind = [JSON] if row.body is not None else []
                answer = self.ask(row, HOST, ("Origin", origin), *kind)
                self.assert_refused(row, answer, 403, "origin_not_allowed")
                self.assertNotIn("Access-Control-Allow-Origin", answer[1])

    def test_listed_hosts(self):
        row = rows()[0]
        self.assertEqual(self.ask(row, ("Host", "KR.example:1"))[0], 200)
        self.assert_refused(row, self.ask(row, ("Host", "x.kr.example")), 403, "host_not_allowed")


class Tools(RoutesTest):
    """/v1/models, /tokenize, /detokenize, /apply-template, /v1/explain."""

    def post(self, path, body):
        status, _, content = self.client.ask("POST", path, [HOST, JSON], json.dumps(body).encode())
        return status, json.loads(content)

    def good(self, path, body):
        status, data = self.post(path, body)
        self.assertEqual(status, 200, data)
        return data

    def bad(self, path, body, status, code, param):
        got, data = self.post(path, body)
        self.assertEqual(got, status, data)
        self.assertEqual((data["error"]["code"], data["error"]["param"]), (code, param))

    def test_models(self):
        listed = json.loads(self.client.ask("GET", "/v1/models", [HOST])[2])
        self.assertEqual(listed["object"], "list")
        model, = listed["data"]
        self.assertEqual([model[k] for k in ("id", "object", "owned_by")],
                         ["llama", "model", "kr"])
        self.assertEqual((model["kr"]["n_ctx"], model["kr"]["kv"]), (512, "f16"))
        self.assertEqual(json.loads(self.client.ask("GET", "/v1/models/llama", [HOST])[2]), model)
        status, _, body = self.client.ask("GET", "/v1/models/org%2Fother", [HOST])
        self.assertEqual((status, error_of("OPENAI", body)[2]), (404, "model_not_found"))

    def test_tokens_and_text_come_back(self):
        for text in ("hi there", "", "\u00e9\u20ac\U0001f600", "a\x00b", "<|im_start|>", " \n\t "):
            tokens = self.good("/tokenize", {"content": text})["tokens"]
            self.assertEqual(self.good("/detokenize", {"tokens": tokens})["content"], text)

    def test_special_tokens_are_text_unless_asked_for(self):
        plain = self.good("/tokenize", {"content": "<|im_start|>"})["tokens"]
        special = self.good("/tokenize", {"content": "<|im_start|>", "parse_special": True})
        self.assertGreater(len(plain), 1)
        self.assertEqual(len(special["tokens"]), 1)

    def test_pieces(self):
        pieces = self.good("/tokenize", {"content": "hi \u20ac", "with_pieces": True})["tokens"]
        raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"])
                       for p in pieces)
        self.assertEqual(raw.decode(), "hi \u20ac")

    def test_tools_refuse_by_name(self):
        self.bad("/tokenize", {}, 400, "missing_required_parameter", "content")
        self.bad("/tokenize", {"content": 1}, 400, "invalid_value", "content")
        self.bad("/tokenize", {"content": "a", "with_pieces": 1}, 400, "invalid_value",
                 "with_pieces")
        self.bad("/tokenize", {"content": "a", "model": "other"}, 404, "model_not_found", "model")
        self.bad("/detokenize", {"tokens": [1, 320]}, 400, "invalid_value", "tokens.1")
        self.bad("/detokenize", {"tokens": [1, "2"]}, 400, "invalid_value", "tokens.1")
        self.bad("/detokenize", {"tokens": "1"}, 400, "invalid_value", "tokens")
        self.bad("/apply-template", {"messages": [{"role": "user"}]}, 400,
                 "missing_required_parameter", "messages.0.content")

    def test_template(self):
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "<|im_end|>"}]
        text = self.good("/apply-template", {"messages": messages})["prompt"]
        self.assertEqual(text, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n<|im_end|>"
                               "<|im_end|>\n<|im_start|>assistant\n")

    def test_explain_says_what_a_request_finds(self):
        prompt = "the cat and the dog and the cat and the dog and the bird and the fish and"
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        before = self.good("/v1/explain", body)["prompts"][0]
        self.assertEqual((before["n_cached"], before["queue_position"]), (0, 0))
        self.assertEqual(before["tokens"], self.good("/tokenize", {"content": prompt})["tokens"])
        self.assertEqual(before["n_prompt"], len(before["tokens"]))
        self.assertGreater(before["kv_bytes"], 0)
        usage = self.good("/v1/completions", body)["usage"]
        self.assertEqual(usage["prompt_tokens"], before["n_prompt"])
        after = self.good("/v1/explain", body)["prompts"][0]
        again = self.good("/v1/completions", body)["usage"]
        cached = again["prompt_tokens_details"]["cached_tokens"]
        self.assertGreaterEqual(cached, 16)
        self.assertEqual(after["n_cached"], cached)
        self.assertLess(after["kv_bytes"], before["kv_bytes"])
        other = self.good("/v1/explain", {**body, "prompt": "the cat but no dog at all"})
        found = other["prompts"][0]["first_difference"]
        self.assertEqual(found["token"]["id"], other["prompts"][0]["tokens"][found["position"]])
        self.assertNotEqual(found["cached_token"], found["token"])

    def test_explain_of_several_prompts_and_of_messages(self):
        found = self.good("/v1/explain", {"prompt": ["a", [1, 2, 3]]})["prompts"]
        self.assertEqual([p["index"] for p in found], [0, 1])
        self.assertEqual(found[1]["tokens"], [1, 2, 3])
        chat = self.good("/v1/explain", {"messages": [{"role": "user", "content": "hi"}]})
        self.assertGreater(chat["prompts"][0]["n_prompt"], 1)
        self.assertEqual((chat["model"], chat["n_ctx"]), ("llama", 512))

    def test_explain_refuses_as_a_request_does(self):
        long = {"prompt": "zq" * 600}
        for body in (long, {"prompt": []}, {"messages": []}, {"prompt": "a", "temperature": 3}, {},
                     {"prompt": "a", "model": "other"}, {"prompt": "a", "x": 1}):
            path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
            self.assertEqual(self.post("/v1/explain", body), self.post(path, body))
        status, data = self.post("/v1/explain", long)
        self.assertEqual((status, data["error"]["code"]), (400, "context_length_exceeded"))
        self.assertRegex(data["error"]["message"], r"1200 .*n_prompt.* 512 .*n_ctx")


if __name__ == "__main__":
    unittest.main()
