"""bench/sse.py: what a client counts must not depend on how the bytes are cut."""
import json
import select
import socket
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))
from sse import Gaps, Stream, request  # noqa: E402


def chunk(text):
    return f"{len(text):x}\r\n{text}\r\n".encode()


EVENTS = ('data: {"choices":[{"text":"a\\ndata: b"}]}\n\n', ": a comment\n\n",
          'data: {"choices":[{"text":"c"}]}\n\ndata: {"choices":[],"usage":{"n":3}}\n\n',
          "data: [DONE]\n\n")
ANSWER = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
          b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n")


class Client(unittest.TestCase):
    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)

    def feed(self, parts, **more):
        """A stream that has read each part by itself, at times 1, 2, ..."""
        stream = Stream(self.listener.getsockname()[1], b"x", **more)
        peer, _ = self.listener.accept()
        with peer:
            for now, part in enumerate(parts, 1):
                peer.sendall(part)
                n_seen = 0
                while n_seen < len(part) and stream.state == "open":
                    select.select([stream.connection], [], [])
                    before = len(stream.tail)
                    stream.on_readable(now)
                    n_seen += len(stream.tail) - before
        return stream

    def test_any_cut_gives_the_same_counts(self):
        for cut in range(1, len(ANSWER)):
            stream = self.feed((ANSWER[:cut], ANSWER[cut:]))
            self.assertEqual((stream.state, stream.n_events, stream.status(), stream.usage()),
                             ("whole", 4, 200, {"n": 3}), cut)

    def test_gaps_lie_between_reads_with_events(self):
        cuts = [ANSWER.index(b": a comment"), ANSWER.index(b'data: {"choices":[{"text":"c"')]
        gaps = Gaps()
        stream = self.feed((ANSWER[:cuts[0]], ANSWER[cuts[0]:cuts[1]], ANSWER[cuts[1]:]), gaps=gaps)
        self.assertEqual((stream.first_ns, stream.last_ns, gaps.counts), (1, 3, {2: 1}))

    def test_errors_and_cut_answers(self):
        refused = self.feed((b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}",))
        self.assertEqual((refused.state, refused.status()), ("refused", 429))
        cut = self.feed((ANSWER[:-5],))
        cut.on_readable(9)
        self.assertEqual((cut.state, cut.n_events), ("cut", 4))

    def test_a_request_is_one_plain_message(self):
        head, _, body = request("POST", "/x", {"a": "ä"}, key="k").partition(b"\r\n\r\n")
        self.assertEqual(json.loads(body), {"a": "ä"})
        self.assertIn(f"Content-Length: {len(body)}".encode(), head)
        self.assertIn(b"Authorization: Bearer k", head)


class Percentiles(unittest.TestCase):
    def test_a_bucket_is_a_thirty_second_wide(self):
        gaps = Gaps()
        for ns in range(1, 100_001):
            gaps.append(ns * 1000)
        self.assertEqual(gaps.n, 100_000)
        for part in (0.5, 0.9, 0.99):
            self.assertAlmostEqual(gaps.percentile_ms(part) / (part * 100), 1, delta=1 / 32)


if __name__ == "__main__":
    unittest.main()
