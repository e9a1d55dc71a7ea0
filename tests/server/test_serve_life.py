"""The life of a server: draining, its end, signals, reload of options. Streams run on a model that
can go on for very long, so that what is cut short is seen to be cut."""
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ops_program import Held, Stream, bearer, key_line, long_server, metric  # noqa: E402
from serve_program import KR, WAIT_S, Server, environment, eventually, make_tiny  # noqa: E402


def refuses_connections(server):
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S).close()
        return False
    except ConnectionRefusedError:
        return True


class KeptConnection:
    """Opened before the drain: what is open can still ask."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)

    def get(self, path):
        self.connection.request("GET", path)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def close(self):
        self.connection.close()


class LifeTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def serve(self, *words, **more):
        server = long_server(self.scratch, *words, **more)
        self.addCleanup(self.end, server)
        return server

    def end(self, server):
        if server.process.poll() is None:
            server.kill()

    def assert_ends(self, server, code):
        server.process.wait(WAIT_S)
        server.tidy()
        self.assertEqual(server.process.returncode, code, server.said())


class Drain(LifeTest):
    def test_an_idle_server_ends_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            server = self.serve("--drain-s", "600")
            self.assertEqual(server.stop(number), 0, server.said())
            self.assertIn("draining: requests=", server.said())  # the last probe may still count

    def test_what_runs_is_finished(self):
        server = self.serve("--drain-s", "600")
        stream = Stream(server, n_tokens=3000)
        first = stream.event()
        self.assertIn("choices", first)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.said(), "draining")
        events = stream.rest()
        self.assertEqual(events[-1], "[DONE]")
        self.assertFalse([e for e in events[:-1] if "error" in e])
        reasons = [c["finish_reason"] for e in events[:-1] for c in e["choices"]]
        self.assertEqual([r for r in reasons if r], ["length"])
        stream.close()
        self.assert_ends(server, 0)
        self.assertIn("ended: requests_left=0", server.said())

    def test_nothing_new_is_accepted(self):
        server = self.serve("--drain-s", "600")
        stream = Stream(server)
        self.assertIsNotNone(stream.event())
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.said(), "draining")
        eventually(lambda: refuses_connections(server), "no more connections")
        stream.close()
        self.assert_ends(server, 0)

    def test_a_request_whose_body_is_under_way_is_answered(self):
        server = self.serve("--drain-s", "600")
        held = Held(server)
        eventually(lambda: metric(server, "kr_http_requests_in_flight") == 2, "both in flight")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining: requests=" in server.said(), "draining")
        self.assertEqual(held.finish(), 200)
        held.close()
        self.assert_ends(server, 0)

    def test_when_the_time_is_over_streams_end_with_an_error(self):
        for drain_s in ("0", "1"):
            server = self.serve("--drain-s", drain_s)
            stream = Stream(server)
            self.assertIsNotNone(stream.event())
            server.process.send_signal(signal.SIGTERM)
            events = stream.rest()  # to the end of a body that is whole
            self.assertNotIn("[DONE]", events)
            self.assertEqual(events[-1]["error"]["code"], "shutting_down")
            self.assertEqual(events[-1]["error"]["type"], "server_error")
            for event in events[:-1]:
                self.assertEqual([c["finish_reason"] for c in event["choices"]], [None])
            stream.close()
            self.assert_ends(server, 0)
            self.assertIn("the drain time is over: ending requests=1", server.said())

    def test_when_the_time_is_over_other_answers_are_503(self):
        server = self.serve("--drain-s", "0")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        body = json.dumps({"prompt": "the", "max_tokens": 90000, "ignore_eos": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        eventually(lambda: metric(server, "kr_requests_running") == 1, "it runs")
        server.process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
        self.assertEqual((answer.status, error["code"]), (503, "shutting_down"))
        self.assertGreaterEqual(int(answer.headers["Retry-After"]), 1)
        connection.close()
        self.assert_ends(server, 0)

    def test_a_request_without_its_body_does_not_hold_the_end_up(self):
        server = self.serve("--drain-s", "0")
        held = Held(server)
        eventually(lambda: metric(server, "kr_http_requests_in_flight") == 2, "both in flight")
        server.process.send_signal(signal.SIGTERM)
        self.assert_ends(server, 0)
        held.close()

    def test_by_the_endpoint(self):
        keys = self.scratch / "keys"
        keys.write_text(key_line("root", "sk-root", "admin"))
        server = self.serve("--api-key-file", keys)
        kept = KeptConnection(server)
        self.assertEqual(kept.get("/readyz"), 200)
        answer = server.call("POST", "/admin/drain", headers=bearer("sk-root"))
        self.assertEqual((answer.status, answer.json()), (202, {"status": "draining"}))
        self.assert_ends(server, 0)
        kept.close()


class Readiness(LifeTest):
    def test_readyz_is_false_at_once_and_livez_is_not(self):
        """Asked on a connection on which a request is being answered, which a drain leaves open."""
        server = self.serve("--drain-s", "600")
        stream = Stream(server)
        self.assertIsNotNone(stream.event())
        kept = [KeptConnection(server) for _ in range(8)]
        for connection in kept:
            self.assertEqual(connection.get("/readyz"), 200)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in server.said(), "draining")
        for connection in kept:
            try:  # idle connections are closed by the drain; one that got in before is told
                self.assertEqual(connection.get("/readyz"), 503)
            except (http.client.HTTPException, OSError):
                pass
            connection.close()
        stream.close()
        self.assert_ends(server, 0)


class SecondSignal(LifeTest):
    def test_it_ends_the_process_at_once(self):
        for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            server = self.serve("--drain-s", "600")
            stream = Stream(server)
            self.assertIsNotNone(stream.event())
            server.process.send_signal(number)
            eventually(lambda server=server: "draining" in server.said(), "draining")
            server.process.send_signal(number)
            self.assert_ends(server, code)
            self.assertIn("second signal", server.said())
            stream.close()

    def test_a_signal_while_loading_ends_the_load(self):
        model = make_tiny(self.scratch / "tiny.gguf")
        words = [word for _ in range(15) for word in ("-m", f"m{_}={model}")]
        server = Server(model, *words, waits=False)
        self.addCleanup(self.end, server)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(WAIT_S)  # 143 while it loads; 0 when it was quicker than the signal
        server.tidy()
        self.assertIn(server.process.returncode, (0, 143), server.said())


class Reload(LifeTest):
    def setUp(self):
        super().setUp()
        self.config = self.scratch / "kr.json"

    def write(self, **options):
        self.config.write_text(json.dumps({k.replace("_", "-"): v for k, v in options.items()}))

    def test_what_may_change_changes_and_the_rest_is_named(self):
        self.write(drain_s=600, queue=8)
        server = self.serve("--config", self.config)
        self.write(drain_s=0, queue=9, log_format="json", port=1)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "need a restart: " in server.said(), "what needs a restart")
        line = next(x for x in server.lines if "need a restart" in x)
        self.assertIn("queue", line)
        self.assertNotIn("port", line)  # a flag wins over the file
        done = next(x for x in server.lines if "reloaded: " in x)
        self.assertIn("changed=drain-s, log-format", done)
        self.assertTrue(json.loads(line)["message"])  # JSON from now on
        # The new drain time holds.
        stream = Stream(server)
        self.assertIsNotNone(stream.event())
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(stream.rest()[-1]["error"]["code"], "shutting_down")
        stream.close()
        self.assert_ends(server, 0)

    def test_a_value_that_leaves_the_file_is_the_default_again(self):
        self.write(log_format="json", drain_s=5)
        server = self.serve("--config", self.config)
        self.write(drain_s=5)
        server.process.send_signal(signal.SIGHUP)
        line = eventually(lambda: [x for x in server.lines if "reloaded: " in x], "a reload")[0]
        self.assertIn("changed=log-format", line)
        self.assertFalse(line.startswith("{"))

    def test_a_bad_file_changes_nothing_and_is_named(self):
        self.write(log_format="text")
        server = self.serve("--config", self.config)
        for text, why in (('{"prot": 1}', "unknown key 'prot'"), ('{"drain-s": -1}', "drain-s"),
                          ("", "line 1"), ('{"log-format": "json", "queue": "x"}', "queue")):
            server.lines.clear()
            self.config.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            line = eventually(lambda server=server: [x for x in server.lines if "refused" in x],
                              "a refusal")[0]
            self.assertIn("nothing has changed", line)
            self.assertIn(why, line)
            self.assertFalse(line.startswith("{"))
        self.assertEqual(server.call("GET", "/readyz").status, 200)

    def test_by_the_endpoint(self):
        keys = self.scratch / "keys"
        keys.write_text(key_line("root", "sk-root", "admin"))
        self.write(queue=8)
        server = self.serve("--config", self.config, "--api-key-file", keys)
        self.write(queue=9, log_prompts=True)
        answer = server.call("POST", "/admin/reload", headers=bearer("sk-root"))
        self.assertEqual(answer.json(), {"status": "reloaded", "keys": 1,
                                         "changed": ["log-prompts"], "needs_restart": ["queue"]})
        self.config.write_text("{")
        answer = server.call("POST", "/admin/reload", headers=bearer("sk-root"))
        self.assertEqual(answer.status, 400)
        self.assertEqual(answer.error()["type"], "invalid_request_error")


class Descriptors(LifeTest):
    def test_closed_standard_descriptors_are_not_reused(self):
        model = make_tiny(self.scratch / "tiny.gguf")
        path = self.scratch / "socket"
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', KR, "serve", "-m", model,
             "--unix-socket", path], env=environment())
        self.addCleanup(process.kill)

        def answer(path_asked="/livez"):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(WAIT_S)
            try:
                client.connect(str(path))
                client.sendall(f"GET {path_asked} HTTP/1.1\r\nHost: localhost\r\n"
                               "Connection: close\r\n\r\n".encode())
                data = b""
                while chunk := client.recv(4096):
                    data += chunk
                return data
            except OSError:
                return b""
            finally:
                client.close()

        eventually(lambda: b" 200 " in answer("/readyz")[:16], "readiness")
        for _ in range(20):
            data = eventually(answer, "an answer")
            self.assertTrue(data.startswith(b"HTTP/1.1 200 "), data)
            self.assertTrue(data.endswith(b'{"status":"ok"}'), data)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(WAIT_S), 0)


if __name__ == "__main__":
    unittest.main()
