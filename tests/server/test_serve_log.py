"""The log: one line a request, for people or as JSON; what is in it and what never is; a stderr
that nobody reads stalls nobody."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ops_program import Stream, bearer, key_line, long_server  # noqa: E402
from serve_program import (KR, WAIT_S, ServedTest, Server, environment,  # noqa: E402
                           eventually, make_tiny)

SECRET = "a secret of the client"


class JsonLines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        keys = Path(scratch.name) / "keys"
        keys.write_text(key_line("alice", "sk-alice", "generate"))
        keys.chmod(0o600)
        cls.server = Server.of_tiny("--log-format", "json", "--api-key-file", keys)
        cls.addClassCleanup(cls.server.stop)

    def line(self, request_id):
        """The one line of a request, when it has come."""
        return eventually(lambda: [x for x in map(json.loads, list(self.server.lines))
                                   if x.get("id") == request_id], f"a line of {request_id}")[0]

    def test_a_generation(self):
        body = {"prompt": [5] * 20, "max_tokens": 6, "ignore_eos": True}
        answer = self.server.post("/v1/completions", body, **bearer("sk-alice"),
                                  **{"X-Request-Id": "generation-1"})
        usage = answer.json()["usage"]
        line = self.line("generation-1")
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertGreater(line.pop("ms"), 0)
        self.assertEqual(line, {
            "level": "info", "event": "request", "method": "POST", "route": "/v1/completions",
            "status": 200, "bytes": len(answer.body), "n_prompt": usage["prompt_tokens"],
            "n_cached": 0, "n_generated": 6, "key": "alice", "peer": "127.0.0.1",
            "id": "generation-1"})

    def test_a_stream(self):
        body = {"prompt": [6] * 20, "max_tokens": 6, "ignore_eos": True, "stream": True}
        answer = self.server.post("/v1/completions", body, **bearer("sk-alice"),
                                  **{"X-Request-Id": "stream-1"})
        self.assertTrue(answer.text.rstrip().endswith("[DONE]"))
        line = self.line("stream-1")
        self.assertEqual((line["status"], line["n_generated"]), (200, 6))

    def test_refusals(self):
        cases = (("GET", "/nosuch/\x7f?key=sk-1", 404, "other"), ("GET", "/v1/models", 401, None),
                 ("DELETE", "/v1/models", 405, "other"))
        for i, (method, path, status, route) in enumerate(cases):
            path = path.replace("\x7f", "%C2%9B")
            answer = self.server.call(method, path, headers={"X-Request-Id": f"refusal-{i}"})
            self.assertEqual(answer.status, status)
            line = self.line(f"refusal-{i}")
            self.assertEqual((line["status"], line["method"]), (status, method))
            if route:
                self.assertEqual(line["route"], route)
            self.assertNotIn("key", line)
            self.assertNotIn("sk-1", json.dumps(line))  # no query, no key
        self.assertEqual(self.line("refusal-0")["path"], "/nosuch/\x9b")

    def test_what_the_parser_refuses_is_logged_too(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=WAIT_S) as client:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
            while client.recv(4096):
                pass
        eventually(lambda: [x for x in map(json.loads, list(self.server.lines))
                            if x.get("status") == 400], "a line with 400")

    def test_every_line_is_one_object_and_nothing_said_is_in_it(self):
        body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
        self.server.post("/v1/chat/completions", body, **bearer("sk-alice"),
                         **{"X-Request-Id": "chat-1"})
        self.line("chat-1")
        for line in list(self.server.lines):
            self.assertIsInstance(json.loads(line), dict)
        self.assertNotIn(SECRET, self.server.said())
        self.assertNotIn("sk-alice", self.server.said())


class Gone(unittest.TestCase):
    def test_a_client_that_goes_is_499_with_what_it_got(self):
        with tempfile.TemporaryDirectory() as scratch:
            server = long_server(scratch, "--log-format", "json")
            try:
                stream = Stream(server)
                for _ in range(50):
                    self.assertIsNotNone(stream.event())
                stream.close()
                line = eventually(lambda: [x for x in map(json.loads, list(server.lines))
                                           if x.get("route") == "/v1/completions"], "a line")[0]
                self.assertEqual(line["status"], 499)
                self.assertGreaterEqual(line["n_generated"], 50)
                self.assertGreater(line["n_prompt"], 0)
            finally:
                self.assertEqual(server.stop(), 0)


class TextLines(ServedTest, unittest.TestCase):
    WORDS = ("--log-prompts",)

    def test_a_request(self):
        self.server.post("/v1/completions", {"prompt": [7] * 20, "max_tokens": 3,
                                             "ignore_eos": True}, **{"X-Request-Id": "text-1"})
        line = eventually(lambda: [x for x in self.server.lines if "id=text-1" in x and
                                   " ms=" in x], "a line")[0]
        self.assertRegex(line, r"^\S+Z POST /v1/completions 200 ms=[\d.]+ bytes=\d+ n_prompt=20 "
                               r"n_cached=\d+ n_generated=3 peer=127.0.0.1 id=text-1\n$")

    def test_prompts_only_when_asked_for_and_on_one_line(self):
        text = SECRET + "\nforged: line\x1b[2J"
        self.server.post("/v1/completions", {"prompt": text, "max_tokens": 1},
                         **{"X-Request-Id": "prompt-1"})
        line = eventually(lambda: [x for x in self.server.lines if "id=prompt-1 prompt=" in x],
                          "a prompt")[0]
        self.assertIn(SECRET, line)
        self.assertFalse([x for x in self.server.lines if x.startswith("forged")])
        self.assertNotIn("\x1b", self.server.said())

    def test_a_long_prompt_is_cut(self):
        self.server.post("/v1/completions", {"prompt": "the " * 20000, "max_tokens": 1},
                         **{"X-Request-Id": "prompt-2"})
        line = eventually(lambda: [x for x in self.server.lines if "id=prompt-2 prompt=" in x],
                          "a prompt")[0]
        self.assertLessEqual(len(line.encode()), 8192)
        self.assertTrue(line.endswith("\n"))


class Flood(ServedTest, unittest.TestCase):
    """On a server of its own: lines of other tests in the same second would be dropped."""

    def test_it_is_cut_down_and_counted(self):
        for _ in range(400):
            self.server.call("GET", "/livez")

        def seen():
            said = self.server.said()
            lines = len(re.findall(r" GET /livez 200 ", said))
            return lines + sum(map(int, re.findall(r"dropped kind=request n=(\d+)", said)))

        eventually(lambda: seen() >= 400, "400 requests, written or counted")


class NobodyReads(unittest.TestCase):
    def test_a_blocked_stderr_stalls_nobody(self):
        with tempfile.TemporaryDirectory() as scratch:
            model = make_tiny(Path(scratch) / "tiny.gguf")
            read_end, write_end = os.pipe()
            os.set_blocking(write_end, False)
            try:
                while True:  # full before it starts
                    os.write(write_end, b"x" * 4096)
            except BlockingIOError:
                pass
            os.set_blocking(write_end, True)
            socket_path = Path(scratch) / "socket"
            process = subprocess.Popen([KR, "serve", "-m", model, "--unix-socket", socket_path,
                                        "--log-prompts", "--log-format", "json"],
                                       stderr=write_end, env=environment())
            os.close(write_end)
            try:
                self.ask_often(socket_path)
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(WAIT_S), 0)
            finally:
                process.kill()
                process.wait()
                os.close(read_end)

    def ask_often(self, path):
        def ask(request):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(WAIT_S)
                client.connect(str(path))
                client.sendall(request)
                data = b""
                while chunk := client.recv(65536):
                    data += chunk
                return data

        def is_ready():
            try:
                return b" 200 " in ask(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n"
                                       b"Connection: close\r\n\r\n")[:16]
            except OSError:
                return False

        eventually(is_ready, "readiness")
        body = json.dumps({"prompt": "the " * 100, "max_tokens": 1}).encode()
        head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
        for _ in range(300):
            self.assertEqual(ask(head + body)[:13], b"HTTP/1.1 200 ")


if __name__ == "__main__":
    unittest.main()
