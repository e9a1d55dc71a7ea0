"""What the tests of the server share: `kr serve` on a free port, ready when constructed; requests
in plain HTTP; waiting for conditions. A model is named after its file: `llama`."""
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cli"))

from kr_program import BUILD, KR, environment  # noqa: E402

WAIT_S = 120  # for anything; a busy machine is slow, not wrong
ADDRESS = re.compile(r"listening on (https?)://(\S+):(\d+)|listening on unix:(.+)")


def eventually(condition, what, seconds=WAIT_S):
    """Waits until condition() is true and returns what it gave."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def make_tiny(path, preset="llama"):
    subprocess.run([BUILD / "tests" / "make_tiny_gguf", preset, path], check=True,
                   stdout=subprocess.DEVNULL)
    return path


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)

    def error(self):
        """OpenAI's error object."""
        return self.json()["error"]


class Program:
    """`kr WORDS`, what it says on stderr read along."""

    def launch(self, words, env=None, **pipes):
        self.words = [str(word) for word in words]
        self.process = subprocess.Popen([KR, *self.words], stderr=subprocess.PIPE,
                                        env=env or environment(), **pipes)
        self.lines = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line.decode("utf-8", "replace"))

    def said(self):
        return "".join(self.lines)

    def assert_runs(self):
        if self.process.poll() is not None:
            self.reader.join()
            raise AssertionError(f"kr {self.words[0]} ended with {self.process.returncode}:\n"
                                 f"{self.said()}")

    def assert_ends(self):
        """stop(), and it must say 0."""
        status = self.stop()
        if status != 0:
            raise AssertionError(f"kr {self.words[0]} ended with {status}:\n{self.said()}")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.tidy()


class Server(Program):
    """`kr serve -m MODEL --port 0 WORDS`. waits: until it is ready, else until it listens."""

    def __init__(self, model, *words, env=None, waits=True):
        self.launch(("serve", "-m", model, "--port", 0, *words), env, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL)
        self.model_path, self.scratch = model, None
        try:
            self.port = int(eventually(self.address, "the server's address on stderr").group(3))
            self.base = f"http://127.0.0.1:{self.port}"
            if waits:
                eventually(self.is_ready, "/readyz")
        except BaseException:
            self.kill()
            raise

    @classmethod
    def of_tiny(cls, *words, preset="llama", **more):
        """On a seeded random model of a scratch folder, called `preset`."""
        scratch = tempfile.TemporaryDirectory()
        try:
            model = make_tiny(Path(scratch.name) / f"{preset}.gguf", preset)
            server = cls(model, *words, **more)
        except BaseException:
            scratch.cleanup()
            raise
        server.scratch = scratch
        return server

    def address(self):
        self.assert_runs()
        return ADDRESS.search(self.said())

    def is_ready(self):
        self.address()
        try:
            return self.call("GET", "/readyz").status == 200
        except OSError:
            return False

    def call(self, method, path, body=None, headers=None):
        """One request on a connection of its own. A body that is not bytes is sent as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def post(self, path, body, **headers):
        return self.call("POST", path, body, headers)

    def stop(self, number=signal.SIGTERM):
        """Signals and returns the exit status. A server that does not end is killed and
        reported."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"a signal did not end kr serve:\n{self.said()}") from None
        self.tidy()
        return self.process.returncode

    def tidy(self):
        self.reader.join()
        self.process.stderr.close()
        if self.scratch:
            self.scratch.cleanup()
            self.scratch = None


class ServedTest:
    """Mixin of unittest.TestCase: one server for the class, on a tiny model, with WORDS."""
    WORDS = ()
    PRESET = "llama"

    @classmethod
    def start(cls):
        return Server.of_tiny(*cls.WORDS, preset=cls.PRESET)

    @classmethod
    def setUpClass(cls):
        cls.server = cls.start()
        cls.addClassCleanup(cls.server.assert_ends)


class TinyTest(unittest.TestCase):
    """A scratch folder with a tiny model in it."""

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.scratch = Path(holder.name)
        cls.model = make_tiny(cls.scratch / "tiny.gguf")
