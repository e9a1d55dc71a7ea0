"""Many HTTP clients in one thread, as cheap as Python allows: raw sockets, one epoll, no parsing
beyond counting events. What a measurement must not do is to measure its client.

A Stream sends one request and counts the events of the answer; the events of one recv() came in one
write of the server. Only the last bytes of an answer are kept (usage is there)."""
import json
import select
import socket
import struct
import time

TAIL_BYTES = 8192
RECV_BYTES = 65536
HEAD_BYTES = len("HTTP/1.1 200")
EVENT = b"\ndata: "   # no JSON text holds a line feed, so nothing else looks like this
END = b"\r\n0\r\n\r\n"


def request(method, path, body=None, key=None):
    """The bytes of a request; body is an object or None."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*"]
    data = b""
    if body is not None:
        data = json.dumps(body, separators=(",", ":")).encode()
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


class Stream:
    """state: "open", "whole" (the answer's end was seen), "cut" (the server closed before it),
    "refused" (no 200), "left" (we closed)."""
    __slots__ = ("connection", "state", "sent_ns", "first_ns", "last_ns", "n_events", "tail",
                 "head", "gaps", "leave_ns", "is_leaving")

    def __init__(self, port, data, gaps=None, leave_after_ns=None, by_reset=False):
        """gaps: its append() gets the ns between two reads with events. leave_after_ns: closes that
        long after sending; by_reset: with RST, not FIN."""
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if by_reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                       struct.pack("ii", 1, 0))
        self.state, self.n_events, self.tail, self.head = "open", 0, b"", b""
        self.first_ns, self.last_ns = 0, 0
        self.gaps = gaps
        self.sent_ns = time.monotonic_ns()
        self.is_leaving = leave_after_ns is not None
        self.leave_ns = self.sent_ns + leave_after_ns if self.is_leaving else 0
        self.connection.sendall(data)
        self.connection.setblocking(False)

    def on_readable(self, now_ns):
        try:
            data = self.connection.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.close("cut")
            return
        seen = self.tail[1 - len(EVENT):] + data
        n = seen.count(EVENT)
        if len(self.head) < HEAD_BYTES:
            self.head += data[:HEAD_BYTES - len(self.head)]
        if n:
            if not self.first_ns:
                self.first_ns = now_ns
            elif self.gaps is not None:
                self.gaps.append(now_ns - self.last_ns)
            self.n_events += n
            self.last_ns = now_ns
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        if self.status() not in (0, 200):
            self.close("refused")
        elif self.tail.endswith(END):
            self.close("whole")

    def close(self, state="left"):
        if self.state == "open":
            self.state = state
            self.connection.close()

    def status(self):
        """Of the answer; 0 before it is there."""
        return int(self.head[9:]) if len(self.head) == HEAD_BYTES else 0

    def objects(self):
        """The events that are still in the tail, parsed."""
        found = []
        for part in self.tail.split(EVENT)[1:]:
            text = part.split(b"\n", 1)[0].strip()
            if text.startswith(b"{"):
                found.append(json.loads(text))
        return found

    def usage(self):
        return next((o["usage"] for o in reversed(self.objects()) if o.get("usage")), None)


class Loop:
    """Runs streams until their end. on_end(stream) is called once for each, and may add more."""

    def __init__(self, on_end=None):
        self.poll, self.streams, self.on_end = select.epoll(), {}, on_end
        self.leaving = {}

    def add(self, stream):
        fd = stream.connection.fileno()
        self.streams[fd] = stream
        if stream.is_leaving:
            self.leaving[fd] = stream
        self.poll.register(fd, select.EPOLLIN)
        return stream

    def remove(self, fd):
        stream = self.streams.pop(fd)
        self.leaving.pop(fd, None)
        if self.on_end:
            self.on_end(stream)

    def turn(self, timeout_s):
        """Handles what there is; waits at most timeout_s for it."""
        for fd, _ in self.poll.poll(timeout_s):
            stream = self.streams[fd]
            stream.on_readable(time.monotonic_ns())
            if stream.state != "open":
                self.remove(fd)
        if self.leaving:
            now = time.monotonic_ns()
            for fd, stream in list(self.leaving.items()):
                if stream.leave_ns <= now:
                    stream.close()
                    self.remove(fd)

    def run(self, streams, timeout_s=600):
        """Adds streams and runs until all have ended; returns them."""
        streams = [self.add(stream) for stream in streams]
        end = time.monotonic() + timeout_s
        while any(stream.state == "open" for stream in streams):
            if time.monotonic() > end:
                raise TimeoutError(f"streams did not end within {timeout_s} s")
            self.turn(1)
        return streams

    def close(self):
        for fd, stream in list(self.streams.items()):
            stream.close()
            del self.streams[fd]
        self.leaving.clear()
        self.poll.close()


def fetch(port, method, path, body=None, key=None, timeout_s=600):
    """One plain exchange: (status, body)."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        data = request(method, path, body, key)
        head, rest = data.split(b"\r\n\r\n", 1)
        connection.sendall(head + b"\r\nConnection: close\r\n\r\n" + rest)
        answer = b""
        while True:
            more = connection.recv(RECV_BYTES)
            if not more:
                break
            answer += more
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        plain = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size or b"0", 16)
            plain, rest = plain + rest[:n], rest[n + 2:]
        rest = plain
    return int(head[9:12]), rest


class Gaps:
    """Durations as counts in buckets of 1/32 of a power of two: millions of them, small memory."""

    def __init__(self):
        self.counts, self.n, self.max_ns = {}, 0, 0

    def append(self, ns):
        shift = max(ns.bit_length() - 6, 0)
        key = (ns >> shift) << shift
        self.counts[key] = self.counts.get(key, 0) + 1
        self.n += 1
        self.max_ns = max(self.max_ns, ns)

    def percentile_ms(self, part):
        """The lower end of the bucket that holds it."""
        left = part * self.n
        for key in sorted(self.counts):
            left -= self.counts[key]
            if left < 0:
                return key / 1e6
        return self.max_ns / 1e6
