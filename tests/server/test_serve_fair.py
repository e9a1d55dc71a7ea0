"""Without keys: no connection and no process takes what others wait for."""
import json
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import WAIT_S, eventually  # noqa: E402
from serving import MeteredServer  # noqa: E402

# Asks over a Unix socket and prints the status.
CHILD = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    one.settimeout(120)
    one.connect(sys.argv[1])
    one.sendall(b"POST /tokenize HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n"
                b"Content-Type: application/json\\r\\nContent-Length: 16\\r\\n\\r\\n"
                b'{"content":"hi"}')
    print(one.recv(4096).split(b" ")[1].decode())
"""


class Fair(unittest.TestCase):
    def serve(self, *words):
        server = MeteredServer.of_tiny(*words)
        self.addCleanup(server.stop)
        return server

    def test_a_connection_with_many_prompts_leaves_others_their_turn(self):
        server = self.serve("--parallel", 1)
        body = json.dumps({"prompt": ["the"] * 250, "max_tokens": 400, "ignore_eos": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as crowd:
            crowd.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                          b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" %
                          (len(body), body))
            eventually(lambda: server.metrics()["kr_requests_waiting"] > 200, "the crowd waits")
            answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
            self.assertEqual(answer.status, 200, answer.text)
            # In the order of their coming it would have been the last.
            self.assertGreater(server.metrics()["kr_requests_waiting"], 0)
        eventually(server.is_idle, "the crowd is gone")

    def test_bodies_of_one_process_leave_room_for_others(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        path = str(Path(scratch.name) / "kr.sock")
        server = self.serve("--host", "127.0.0.1", "--unix-socket", path)
        slow = []

        def open_one():
            one = socket.socket(socket.AF_UNIX)
            self.addCleanup(one.close)
            one.settimeout(WAIT_S)
            one.connect(path)
            one.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            slow.append(one)
            return one

        for _ in range(16):  # each counts as 16 MiB of the 256 that one client may have
            open_one()
        refused = open_one().recv(4096)
        self.assertIn(b" 429 ", refused)
        self.assertIn(b"too_many_requests", refused)
        other = subprocess.run([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE,
                               timeout=WAIT_S, check=True)
        self.assertEqual(other.stdout, b"200\n")
        self.assertEqual(server.post("/tokenize", {"content": "hi"}).status, 200)
        for one in slow:
            one.close()

        def is_let_in():
            one = open_one()
            one.sendall(b"10\r\n" + b'{"content":"hi"}' + b"\r\n0\r\n\r\n")
            return b" 200 " in one.recv(4096)
        eventually(is_let_in, "what was held is given back")


if __name__ == "__main__":
    unittest.main()
