"""The transport against raw bytes: every probe of probes.py on a route without a body and on one
with. The server is http_echo: nothing above the transport is involved."""
import re
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from probes import WAIT_S, Route, probes, run  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cli"))
from kr_program import BUILD  # noqa: E402


class Echo:
    """A running http_echo; words: its options."""

    def __init__(self, *words):
        self.process = subprocess.Popen([BUILD / "tests" / "http_echo", *map(str, words)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        match = re.match(rb"port (\d+)", line)
        if not match:
            self.close()
            raise AssertionError(f"http_echo did not start: {line!r}")
        self.port = int(match.group(1))

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        code = self.process.wait(WAIT_S)
        if code != 0:
            raise AssertionError(f"http_echo ended with {code}")


class Wire(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.path = str(Path(scratch.name) / "s")
        self.echo = Echo("--connections_per_address", 1000, "--unix", self.path)
        self.addCleanup(self.echo.close)

    def connect_unix(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(WAIT_S)
        connection.connect(self.path)
        return connection

    def run_all(self, route, n_min, connect=None):
        table = list(probes(route))
        n_refused = sum(probe.closes and min(probe.statuses) >= 400 for probe in table)
        self.assertGreaterEqual(n_refused, n_min)
        faults, lock = [], threading.Lock()

        def one(probe):
            fault = run(connect or self.echo.connect, probe)
            if fault:
                with lock:
                    faults.append(f"{probe.name}: {fault}")

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, table))
        self.assertEqual(faults, [], "\n".join(faults))

    def test_a_route_without_a_body(self):
        self.run_all(Route("GET", "/bare"), 300)

    def test_a_route_with_a_body(self):
        self.run_all(Route("POST", "/body", body=b'{"prompt":"hello"}'), 300)

    def test_a_unix_socket(self):
        self.run_all(Route("POST", "/body", body=b'{"prompt":"hello"}'), 300, self.connect_unix)


if __name__ == "__main__":
    unittest.main()
