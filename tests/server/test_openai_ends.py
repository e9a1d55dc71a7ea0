"""The ends of generations over HTTP: clients that go, full queues, deadlines. /metrics tells what
the engine holds."""
import json
import socket
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve_program import WAIT_S, ServedTest, eventually  # noqa: E402


class Ends(ServedTest, unittest.TestCase):
    """What happens to work when its client goes, or its time."""
    # More than a Unix socket's buffer holds: whoever does not read it stops it for ever. A TCP
    # socket's may grow to any size.
    HUGE = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "n": 8, "logprobs": 20,
            "stream": True}

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.path = str(Path(holder.name) / "socket")
        cls.WORDS = ("-t", 1, "--no-cache", "--parallel", 2, "--queue", 4, "--unix-socket",
                     cls.path)
        super().setUpClass()

    def figure(self, name):
        for line in self.server.call("GET", "/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no {name} in /metrics")

    def open(self, body, path="/v1/completions"):
        """A connection that has sent its request and reads little."""
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(WAIT_S)
        sock.connect(self.path)
        data = json.dumps(body).encode()
        sock.sendall(b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
        return sock

    def wait_idle(self):
        for name in ("requests_running", "requests_waiting", "kv_bytes_used"):
            eventually(lambda n=name: self.figure(f"kr_{n}") == 0, f"no {name}")

    def ended(self):
        return {how: self.figure(f"kr_requests_{how}_total") for how in
                ("finished", "failed", "cancelled")}

    def test_disconnect_while_decoding(self):
        before = self.ended()
        for close in (socket.socket.close, lambda s: s.shutdown(socket.SHUT_RDWR),
                      lambda s: s.shutdown(socket.SHUT_WR)):
            sock = self.open(self.HUGE)
            self.assertIn(b"200 OK", sock.recv(4096))
            close(sock)
        eventually(lambda: self.ended()["cancelled"] == before["cancelled"] + 3, "three cancels")
        self.wait_idle()
        self.assertEqual(self.ended()["finished"], before["finished"])

    def test_disconnect_in_the_queue_and_without_a_stream(self):
        """Whoever streams to nobody gives way, and what does not stream needs no reader: it may
        have ended before its client goes. Until it has not."""
        def all_are_cancelled():
            before = self.ended()
            held = [self.open(self.HUGE) for _ in range(2)]
            for sock in held:
                sock.recv(16)
            waiting = [self.open(dict(self.HUGE, stream=stream, n=4)) for stream in (True, False)]
            for sock in (*waiting, *held):
                sock.close()
            self.wait_idle()
            return self.ended()["finished"] == before["finished"]

        eventually(all_are_cancelled, "requests that are all cancelled")
        self.assertEqual(self.server.post("/v1/completions", {"prompt": "a"}).status, 200)

    def test_a_full_queue_says_when_to_come_back(self):
        """Two run, four wait. Whoever is not read gives way to others, but not at once."""
        held = []

        def refused():
            burst = [self.open(self.HUGE) for _ in range(12)]
            held.extend(burst)
            heads = [sock.recv(2048) for sock in burst]
            return next((head for head in heads if b"200 OK" not in head), None)

        head = eventually(refused, "a full queue").decode()
        self.assertIn(" 429 ", head)
        self.assertRegex(head, r"Retry-After: [1-9]\d*\r\n")
        self.assertIn('"code":"queue_full"', head)
        for sock in held:
            sock.close()
        self.wait_idle()

    def test_a_late_error_is_one_event_without_done(self):
        before = self.figure("kr_requests_failed_total")
        for deadline_s in (1, 4, 16, 64):  # too short for the first token: 504, a longer one
            sock = self.open(dict(self.HUGE, deadline_ms=deadline_s * 1000))
            data = sock.recv(2048)
            if b"200 OK" in data:
                break
            self.assertIn(b" 504 ", data)
            before += 1
        eventually(lambda: self.figure("kr_requests_failed_total") > before, "the deadline")
        while not data.endswith(b"0\r\n\r\n"):
            piece = sock.recv(1 << 20)
            self.assertTrue(piece, "the body is not ended cleanly")
            data += piece
        last = [line for line in data.split(b"\n") if line.startswith(b"data: ")][-1]
        error = json.loads(last[len("data: "):])["error"]
        self.assertEqual((error["code"], error["type"]), ("deadline_exceeded", "server_error"))
        self.assertNotIn(b"[DONE]", data)
        self.assertEqual(data.count(b'"error"'), 1)
        self.assertNotIn(b'"finish_reason":"', data)
        self.wait_idle()

    def test_an_error_before_the_first_byte_is_a_status(self):
        held = [self.open(dict(self.HUGE, deadline_ms=600000)) for _ in range(2)]
        for sock in held:
            sock.recv(16)
        for stream in (False, True):
            answer = self.server.post("/v1/completions",
                                      {"prompt": [5] * 500, "max_tokens": 10, "n": 8,
                                       "deadline_ms": 1, "ignore_eos": True, "stream": stream})
            self.assertEqual(answer.status, 504, answer.text)
            self.assertEqual(answer.error()["code"], "deadline_exceeded")
        for sock in held:
            sock.close()
        self.wait_idle()


if __name__ == "__main__":
    unittest.main()
