"""What the tests of access, life cycle, metrics and logs share: key files, models with room for
long generations, streams that are read event by event."""
import hashlib
import http.client
import json
import socket
import struct
from pathlib import Path

from serve_program import WAIT_S, Server, make_tiny

LONG_CTX = 100000


def key_line(name, key, scopes, more=""):
    return f"{name} {hashlib.sha256(key.encode()).hexdigest()} {scopes} {more}\n"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def make_long(path):
    """A tiny model that says it was trained on a long context: a generation of it takes seconds, if
    it shall, because there is no end token with ignore_eos."""
    make_tiny(path)
    data = bytearray(Path(path).read_bytes())
    key = b"llama.context_length" + struct.pack("<I", 4)
    at = data.index(key) + len(key)
    data[at:at + 4] = struct.pack("<I", LONG_CTX)
    Path(path).write_bytes(data)
    return path


def long_server(scratch, *words, **more):
    model = make_long(Path(scratch) / "long.gguf")
    return Server(model, "-c", LONG_CTX, "--parallel", 4, *words, **more)


class Stream:
    """A streamed completion, read as it comes. unix_path: on that socket, which holds little, so
    that who does not read stops it soon."""

    def __init__(self, server, n_tokens=None, key=None, unix_path=None, **fields):
        body = {"prompt": "the", "stream": True, "temperature": 0, "ignore_eos": True, **fields}
        body["max_tokens"] = n_tokens or LONG_CTX
        headers = {"Content-Type": "application/json", **(bearer(key) if key else {})}
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        if unix_path:
            self.connection.sock = socket.socket(socket.AF_UNIX)
            self.connection.sock.settimeout(WAIT_S)
            self.connection.sock.connect(str(unix_path))
        self.connection.request("POST", "/v1/completions", json.dumps(body), headers)
        self.answer = self.connection.getresponse()
        self.status = self.answer.status

    def event(self):
        """The next event's data, a JSON value or "[DONE]"; None: the stream has ended."""
        while True:
            line = self.answer.readline()
            if not line:
                return None
            if line.startswith(b"data: "):
                data = line[6:].strip()
                return "[DONE]" if data == b"[DONE]" else json.loads(data)

    def rest(self):
        """All events that are left."""
        events = []
        while (event := self.event()) is not None:
            events.append(event)
        return events

    def close(self):
        self.connection.close()


class Held:
    """A request whose body does not come: in flight for as long as the test wants."""

    def __init__(self, server, key=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        self.connection.putrequest("POST", "/v1/completions")
        self.connection.putheader("Content-Type", "application/json")
        self.body = json.dumps({"prompt": "the", "max_tokens": 1}).encode()
        self.connection.putheader("Content-Length", str(len(self.body)))
        if key:
            self.connection.putheader("Authorization", f"Bearer {key}")
        self.connection.endheaders(self.body[:1])

    def finish(self):
        self.connection.send(self.body[1:])
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def close(self):
        self.connection.close()


def metric(server, series, key=None):
    """The value of one series of /metrics, written as it stands there; None: it is not there."""
    text = server.call("GET", "/metrics", headers=bearer(key) if key else {}).text
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    return None
