"""A server under a crowd: streams, whole answers, clients that go at any moment, while /metrics is
scraped. Afterwards nothing is left. Run under a sanitizer it shows what a calm test cannot:

    KR_BUILD_DIR=build-tsan KR_LOAD_S=60 python3 -m unittest tests/server/test_load.py
"""
import json
import os
import random
import socket
import sys
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve_program import WAIT_S, ServedTest, Server, eventually  # noqa: E402

LOAD_S = float(os.environ.get("KR_LOAD_S", "3"))
N_CLIENTS = 8


def request(path, body):
    data = json.dumps(body).encode()
    return (b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)


def some_body(dice):
    body = {"max_tokens": dice.choice((1, 5, 40, 200)), "stream": dice.random() < 0.7,
            "n": dice.choice((1, 1, 1, 3)), "seed": dice.randrange(1000)}
    if dice.random() < 0.5:
        words = " ".join(dice.choice(("a", "the", "of", "and")) for _ in range(dice.randrange(90)))
        body["messages"] = [{"role": "user", "content": words}]
        if dice.random() < 0.3:
            body.update(logprobs=True, top_logprobs=dice.choice((0, 20)))
        return "/v1/chat/completions", body
    body["prompt"] = [[dice.randrange(300) for _ in range(dice.choice((1, 30, 300)))]
                      for _ in range(dice.choice((1, 1, 4)))]
    if dice.random() < 0.1:
        body["deadline_ms"] = dice.choice((1, 20, 200))
    if dice.random() < 0.1:
        body["temperature"] = 3
    return "/v1/completions", body


class Client(threading.Thread):
    """One connection after the other, some used several times, some left in the middle."""

    def __init__(self, port, seed, end):
        super().__init__()
        self.port, self.dice, self.end = port, random.Random(seed), end
        self.n_whole = self.n_left = self.n_refused = 0
        self.broken = None

    def run(self):
        try:
            begin = time.monotonic()
            while (time.monotonic() < self.end or
                   not self.has_worked and time.monotonic() < begin + WAIT_S):
                self.connection()
        except Exception as error:  # noqa: BLE001 - told by the test
            self.broken = error

    @property
    def has_worked(self):
        return self.n_whole > 0 and self.n_left > 0

    def connection(self):
        with socket.create_connection(("127.0.0.1", self.port), WAIT_S) as sock:
            for _ in range(self.dice.choice((1, 1, 5))):
                if not self.exchange(sock):
                    return

    def exchange(self, sock):
        path, body = some_body(self.dice)
        data = request(path, body)
        if self.dice.random() < 0.1:  # not even a whole request
            sock.sendall(data[:self.dice.randrange(len(data))])
            self.n_left += 1
            return False
        sock.sendall(data)
        if self.dice.random() < 0.3:
            if self.dice.random() < 0.6:
                sock.recv(self.dice.choice((1, 400, 4000)))
            if self.dice.random() < 0.3:
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            self.n_left += 1
            return False
        self.read_answer(sock)
        return True

    def read_answer(self, sock):
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("closed before an answer")
        while b"\r\n\r\n" not in data:
            data += self.more(sock)
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert status in (200, 400, 429, 503, 504), head
        if b"chunked" in head.lower():
            while not rest.endswith(b"0\r\n\r\n"):
                rest += self.more(sock)
            assert (b"[DONE]" in rest) != (b'"error"' in rest), rest[-300:]
        else:
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            while len(rest) < length:
                rest += self.more(sock)
            assert ("error" in json.loads(rest)) == (status != 200), rest[:300]
        if status == 200:
            self.n_whole += 1
        else:
            self.n_refused += 1

    @staticmethod
    def more(sock):
        piece = sock.recv(65536)
        assert piece, "the server has closed within an answer"
        return piece


class Load(ServedTest, unittest.TestCase):
    WORDS = ("-t", 2, "--no-cache", "--parallel", 4, "--queue", 16, "--log-format", "json")

    def figures(self):
        found = {}
        for line in self.server.call("GET", "/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            if not line.startswith("#"):
                found[name] = float(value)
        return found

    def test_a_crowd_leaves_nothing(self):
        end = time.monotonic() + LOAD_S
        clients = [Client(self.server.port, seed, end) for seed in range(N_CLIENTS)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            self.figures()
            time.sleep(0.05)
        for client in clients:
            client.join()
            if client.broken:
                raise client.broken
        self.assertGreater(sum(client.n_whole for client in clients), 0)
        self.assertGreater(sum(client.n_left for client in clients), 0)

        def is_idle():
            now = self.figures()
            return (now["kr_requests_running"] == 0 and now["kr_requests_waiting"] == 0 and
                    now["kr_kv_bytes_used"] == 0 and now["kr_http_connections"] <= 1)

        eventually(is_idle, "an idle server")
        self.assertEqual(self.server.post("/v1/completions", {"prompt": "a"}).status, 200)


class Stop(unittest.TestCase):
    def test_a_stop_amid_a_crowd(self):
        server = Server.of_tiny("-t", 2, "--no-cache", "--parallel", 4, "--queue", 16,
                                "--drain-s", 1)
        clients = [Client(server.port, 100 + seed, time.monotonic() + WAIT_S)
                   for seed in range(N_CLIENTS)]
        for client in clients:
            client.start()
        eventually(lambda: all(client.has_worked or client.broken for client in clients),
                   "a crowd at work")
        self.assertEqual([client.broken for client in clients if client.broken], [])
        self.assertEqual(server.stop(), 0, server.said())
        for client in clients:  # answers are whole to the last; then the server is not there
            client.join()
            self.assertIsInstance(client.broken, OSError, client.broken)


if __name__ == "__main__":
    unittest.main()
