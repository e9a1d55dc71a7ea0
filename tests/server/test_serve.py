"""`kr serve`, its start: what it refuses with which exit code, where it listens, what models are
called, and that it is ready only when it is."""
import http.client
import signal
import socket
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import (KR, WAIT_S, Server, TinyTest, environment,  # noqa: E402
                           eventually, make_tiny)

ADDRESS = ("127.0.0.1", 0)


class Refusals(TinyTest):
    def assert_refused(self, code, pattern, *words):
        """Ends by itself, with one line that says why."""
        done = subprocess.run([str(word) for word in (KR, "serve", *words)], env=environment(),
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S,
                              check=False)
        err = done.stderr.decode("utf-8", "replace")
        self.assertEqual((done.returncode, done.stdout), (code, b""), err)
        self.assertRegex(err, pattern)
        self.assertEqual(err.count("error: "), 1, err)

    def test_addresses_that_others_reach_need_keys(self):
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", "::ffff:127.0.0.1", ""):
            self.assert_refused(2, "--api-key-file", "-m", self.model, "--port", 0, "--host", host)

    def test_half_of_tls(self):
        for flag in ("--tls-cert", "--tls-key"):
            self.assert_refused(2, "go together", "-m", self.model, flag, "x")

    def test_tls_files_that_are_none(self):
        bad = self.scratch / "bad.pem"
        bad.write_text("no certificate")
        self.assert_refused(4, "bad.pem", "-m", self.model, "--port", 0, "--tls-cert", bad,
                            "--tls-key", bad)
        self.assert_refused(3, "none.pem", "-m", self.model, "--port", 0, "--tls-cert",
                            self.scratch / "none.pem", "--tls-key", bad)

    def test_names_of_hosts_and_origins(self):
        for name in ("a:1", "*", "", "a/b"):
            self.assert_refused(2, "--allowed-host", "-m", self.model, "--allowed-host", name)
        for name in ("*", "null", "example.org", "http://*", "https://a/"):
            self.assert_refused(2, "--allowed-origin", "-m", self.model, "--allowed-origin", name)
        many = [word for i in range(65) for word in ("--allowed-host", f"h{i}")]
        self.assert_refused(2, "more than 64", "-m", self.model, *many)

    def test_models(self):
        self.assert_refused(2, "which model")
        self.assert_refused(3, "none.gguf", "-m", self.scratch / "none.gguf", "--port", 0)
        self.assert_refused(2, "called 'tiny'", "-m", self.model, "-m", f"tiny={self.model}")
        self.assert_refused(2, "-m wants", "-m", "=x.gguf")
        self.assert_refused(2, "-m wants", "-m", "name=")
        self.assert_refused(2, "at most 16", *[w for i in range(17)
                                               for w in ("-m", f"m{i}={self.model}")])
        bad = self.scratch / "bad.gguf"
        bad.write_bytes(b"GGUF" + bytes(100))
        self.assert_refused(4, "bad.gguf|version", "-m", bad, "--port", 0)

    def test_a_port_that_is_taken(self):
        with socket.create_server(ADDRESS) as taken:
            self.assert_refused(10, "in use", "-m", self.model, "--port", taken.getsockname()[1])

    def test_an_address_of_another_machine(self):
        keys = self.scratch / "keys"
        keys.write_text(f"name {'0' * 64} generate\n")
        self.assert_refused(10, "192.0.2.1", "-m", self.model, "--port", 0, "--host", "192.0.2.1",
                            "--api-key-file", keys)

    def test_a_socket_in_the_place_of_a_file(self):
        path = self.scratch / "file"
        path.write_text("mine")
        self.assert_refused(10, "file", "-m", self.model, "--unix-socket", path)
        self.assertEqual(path.read_text(), "mine")

    def test_more_memory_than_there_is(self):
        self.assert_refused(2, "n_seqs|parallel|sequences", "-m", self.model, "--port", 0,
                            "--parallel", 4096)


class Starts(TinyTest):
    def models(self, server):
        return [row["id"] for row in server.call("GET", "/v1/models").json()["data"]]

    def test_several_models_and_their_names(self):
        other = make_tiny(self.scratch / "other.gguf", "qwen2")
        with Running(self.model, "-m", f"my/model={other}", "-m", other) as server:
            self.assertEqual(self.models(server), ["tiny", "my/model", "other"])
            for name, status in (("my/model", 200), ("other", 200), ("tiny", 200), ("none", 404),
                                 (None, 200)):
                body = {"prompt": "a", "max_tokens": 1, "model": name}
                answer = server.post("/v1/completions", body)
                self.assertEqual(answer.status, status, answer.text)
                if status == 200:
                    self.assertEqual(answer.json()["model"], name or "tiny")

    def test_a_unix_socket(self):
        path = self.scratch / "kr.sock"
        process = subprocess.Popen([KR, "serve", "-m", self.model, "--unix-socket", path],
                                   env=environment(), stderr=subprocess.PIPE,
                                   stdin=subprocess.DEVNULL)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def is_ready():
            self.assertIsNone(process.poll())
            if not path.exists():
                return False
            connection = http.client.HTTPConnection("localhost")
            connection.sock = socket.socket(socket.AF_UNIX)
            try:
                connection.sock.connect(str(path))
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except ConnectionError:
                return False
            finally:
                connection.close()

        eventually(is_ready, "/readyz on the socket")
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(WAIT_S), 0)
        self.assertFalse(path.exists())

    def test_other_loopback_addresses(self):
        with Running(self.model, "--host", "127.0.0.2", waits=False) as server:
            def is_ready():
                connection = http.client.HTTPConnection("127.0.0.2", server.port, timeout=WAIT_S)
                try:
                    connection.request("GET", "/readyz")
                    return connection.getresponse().status == 200
                finally:
                    connection.close()
            eventually(is_ready, "/readyz on 127.0.0.2")

    def test_listens_before_it_is_ready_and_is_truly_ready(self):
        with Running(self.model, waits=False) as server:
            def ready():
                answer = server.call("GET", "/readyz")
                if answer.status == 503:
                    self.assertIn(answer.error()["code"], ("model_loading", "not_ready"))
                    self.assertTrue(answer.headers["Retry-After"])
                return answer.status == 200
            eventually(ready, "/readyz")
            self.assertEqual(server.call("GET", "/livez").status, 200)
            answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
            self.assertEqual(answer.status, 200, answer.text)

    def test_interrupt_ends_it(self):
        server = Server(self.model)
        self.assertEqual(server.stop(signal.SIGINT), 0)

    def test_nothing_is_left_in_the_terminal(self):
        """stdout is for results: a server has none."""
        process = subprocess.Popen([KR, "serve", "-m", self.model, "--port", "0"],
                                   env=environment(), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        line = process.stderr.readline()
        self.assertIn(b"listening on http://127.0.0.1:", line)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=WAIT_S)
        self.assertEqual(out, b"")


class Running(Server):
    """A server for a with statement; SIGTERM must end it well."""

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        code = self.stop()
        if kind is None and code != 0:
            raise AssertionError(f"kr serve ended with {code}:\n{self.said()}")


if __name__ == "__main__":
    unittest.main()
