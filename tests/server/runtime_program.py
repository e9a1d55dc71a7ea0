"""What the tests of the runtime share: `kr runtime` with a tiny model, a client that sends calls
and sorts what comes: answers by id, notifications by stream."""
import json
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from serve_program import WAIT_S, Program, eventually, make_tiny


class RpcError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['code']} {error['message']}")
        self.error, self.code, self.data = error, error["code"], error["data"]


class Client:
    """One connection: a pair of files. Reads on a thread of its own until hold_reading()."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.lock, self.changed = threading.Lock(), threading.Condition()
        self.last_id, self.answers, self.streams, self.others = 0, {}, {}, []
        self.is_over, self.n_read = False, 0
        self.may_read = threading.Event()
        self.may_read.set()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def close(self):
        """Of a socket: goes away."""
        self.may_read.set()
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
        self.thread.join(WAIT_S)
        for file in (self.reader, self.writer, self.connection):
            file.close()

    def read(self):
        for line in self.reader:
            self.may_read.wait()
            self.n_read += 1
            message = json.loads(line)
            with self.changed:
                self.take(message)
                self.changed.notify_all()
        with self.changed:
            self.is_over = True
            self.changed.notify_all()

    def take(self, message):
        if isinstance(message, dict) and message.get("jsonrpc") != "2.0":
            raise AssertionError(message)
        if isinstance(message, dict) and "method" in message:
            params = message["params"]
            self.streams.setdefault(params["stream_id"], []).append((message["method"], params))
        elif isinstance(message, dict) and message["id"] is not None:
            self.answers[message["id"]] = message
        else:
            self.others.append(message)

    def send_line(self, line):
        with self.lock:
            self.writer.write(line if isinstance(line, bytes) else line.encode())
            self.writer.flush()

    def send(self, method, **params):
        """Returns the id."""
        with self.lock:
            self.last_id += 1
            number = self.last_id
        self.send_line(json.dumps({"jsonrpc": "2.0", "id": number, "method": method,
                                   "params": params}) + "\n")
        return number

    def notify(self, method, **params):
        self.send_line(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + "\n")

    def wait(self, condition, what):
        end = time.monotonic() + WAIT_S
        with self.changed:
            while True:
                value = condition()
                if value:
                    return value
                if self.is_over or not self.changed.wait(end - time.monotonic()):
                    value = condition()
                    if value:
                        return value
                    raise AssertionError(f"{what}: it did not come (over: {self.is_over})")

    def answer(self, number):
        """The result, or RpcError."""
        message = self.wait(lambda: self.answers.get(number), f"answer {number}")
        if "error" in message:
            raise RpcError(message["error"])
        return message["result"]

    def call(self, method, **params):
        return self.answer(self.send(method, **params))

    def fail(self, method, **params):
        """The error that the call must have."""
        try:
            result = self.call(method, **params)
        except RpcError as error:
            return error.error
        raise AssertionError(f"{method} answered {result}")

    def other(self):
        """The next message without id."""
        self.wait(lambda: self.others, "a message without id")
        return self.others.pop(0)

    def end_of(self, stream):
        """Waits for the stream's last event and returns its notifications."""
        def is_over():
            got = self.streams.get(stream, [])
            return got if got and got[-1][0] == "stream.event" else None
        return self.wait(is_over, f"the end of stream {stream}")


def entries(notifications):
    """The chunks of a stream as single tokens."""
    found = []
    for method, params in notifications:
        if method == "stream.chunk":
            found += params["tokens"] if "tokens" in params else [params]
    return found


def text_of(notifications):
    return "".join(entry["token"] for entry in entries(notifications))


class Runtime(Program):
    """`kr runtime WORDS` over stdio, or with socket=True over a Unix socket (then .connect())."""

    def __init__(self, *words, model="llama", preset="llama", is_socket=False, env=None):
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self.scratch.name)
        self.model = make_tiny(self.folder / "llama.gguf", preset)
        self.socket_path = self.folder / "kr.sock"
        command = ["runtime", "--no-cache", "--parallel", 32, *words]
        if model:
            command += ["-m", f"{model}={self.model}"]
        if is_socket:
            command += ["--socket", self.socket_path]
        self.launch(command, env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        eventually(self.is_ready, "kr runtime ready")
        self.client = None if is_socket else Client(self.process.stdout, self.process.stdin)

    def is_ready(self):
        self.assert_runs()
        return "kr runtime ready" in self.said()

    def connect(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.socket_path))
        client = Client(connection.makefile("rb"), connection.makefile("wb"))
        client.connection = connection
        return client

    def end_input(self):
        self.process.stdin.close()

    def wait(self):
        return self.process.wait(WAIT_S)

    def stop(self):
        """Ends it the ordinary way; returns the exit status."""
        if self.process.poll() is None:
            if self.client:
                self.end_input()
            else:
                self.process.send_signal(signal.SIGTERM)
        status = self.wait()
        self.tidy()
        return status

    def tidy(self):
        self.reader.join()
        if self.client:
            self.client.thread.join()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                file.close()
            except BrokenPipeError:
                pass
        self.scratch.cleanup()


class RuntimeTest:
    """Mixin of unittest.TestCase: one runtime on a tiny model for the class."""
    WORDS = ()
    IS_SOCKET = False

    @classmethod
    def setUpClass(cls):
        cls.runtime = Runtime(*cls.WORDS, is_socket=cls.IS_SOCKET)
        cls.addClassCleanup(cls.runtime.assert_ends)

    @property
    def client(self):
        return self.runtime.client
