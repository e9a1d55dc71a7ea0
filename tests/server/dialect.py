"""What the raw tests of the dialects share: one server on a tiny model, requests over plain HTTP,
event streams and NDJSON taken apart strictly."""
import json
import unittest

from serve_program import ServedTest

TINY = "llama"  # the tiny model's name
N_CTX = 512


def parse_events(text):
    """(event, data) of each block; data is JSON. Anything else in the stream is an error."""
    if not text.endswith("\n\n"):
        raise AssertionError(f"the stream ends within an event: {text[-200:]!r}")
    events = []
    for block in text[:-2].split("\n\n"):
        if block.startswith(":"):  # a heartbeat
            continue
        name, data = block.split("\n")
        if not (name.startswith("event: ") and data.startswith("data: ")):
            raise AssertionError(f"not an event: {block!r}")
        events.append((name[7:], json.loads(data[6:])))
    return events


def parse_lines(text):
    if not text.endswith("\n"):
        raise AssertionError(f"the stream ends within a line: {text[-200:]!r}")
    return [json.loads(line) for line in text[:-1].split("\n")]


class DialectTest(ServedTest, unittest.TestCase):
    @property
    def model_path(self):
        return self.server.model_path

    def call(self, method, path, body=None, **headers):
        if isinstance(body, bytes):
            headers = {"Content-Type": "application/json", **headers}
        return self.server.call(method, path, body, headers)

    def post(self, path, body, **headers):
        return self.call("POST", path, body, **headers)

    def ok(self, path, body=None):
        """The JSON of an answer in one piece."""
        answer = self.call("GET" if body is None else "POST", path, body)
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(answer.headers["Content-Type"], "application/json")
        return answer.json()

    def stream(self, path, body):
        """An answer to a stream's request, or what refused it."""
        answer = self.post(path, body)
        if answer.status != 200:
            return answer.status
        kind = answer.headers["Content-Type"]
        if kind.startswith("text/event-stream"):
            return parse_events(answer.body.decode())
        self.assertEqual(kind, "application/x-ndjson")
        return parse_lines(answer.body.decode())

    def events(self, path, body):
        found = self.stream(path, body)
        self.assertIsInstance(found, list)
        return found

    lines = events

    def late_failure(self, path, body):
        """A stream that its deadline ends after the first token. Too early is a 504, too late no
        failure: the deadline is searched for between the two, from the time that prefill and
        generation take on this machine now."""
        low, high = 1, 60000
        for attempt in range(200):
            deadline = max(1, int((low * high) ** 0.5))
            found = self.stream(path, {**body, "deadline_ms": deadline,
                                       "cache_prompt": attempt % 2 == 0})
            if found == 504:
                low = deadline
            elif isinstance(found, list) and "error" in json.dumps(found[-1]) and self.has_failed(
                    found[-1]):
                return found
            else:
                self.assertIsInstance(found, list)
                high = deadline
            if high - low <= 1:  # the machine is not as fast as it was
                low, high = max(1, low // 4), high * 4
        raise AssertionError("no deadline falls between the first token and the last")

    @staticmethod
    def has_failed(last):
        if isinstance(last, tuple):
            return last[0] in ("error", "response.failed")
        return set(last) == {"error"}
