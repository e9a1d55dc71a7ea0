"""What the tests with foreign clients and the soak add to serve_program.py: SmolLM2 behind the
server, its metrics, and the clients' packages (tools/client_packages.py)."""
import os
import re
import sys
import time

from serve_program import ROOT, ServedTest, Server, eventually

CLIENTS = ROOT / "build" / "clients"
MODEL = "smollm2"


def use_python_clients():
    """Makes the pinned packages importable. None there is an error, not a reason to skip."""
    folder = CLIENTS / "python"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: tools/setup.sh test makes it")
    sys.path.insert(0, str(folder))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"


class MeteredServer(Server):
    def metrics(self, key=None):
        """Sum over the labels of every sample of /metrics, by name."""
        answer = self.call("GET", "/metrics", headers={"Authorization": f"Bearer {key}"} if key
                           else None)
        if answer.status != 200:
            raise AssertionError(f"/metrics: {answer.status} {answer.text}")
        sums = {}
        for line in answer.text.splitlines():
            if line and not line.startswith("#"):
                name, value = re.match(r"([^{ ]+)(?:\{.*\})? (\S+)", line).groups()
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def is_idle(self, key=None):
        now = self.metrics(key)
        return now["kr_requests_running"] == 0 and now["kr_requests_waiting"] == 0


class ClientTest(ServedTest):
    """Mixin of unittest.TestCase: the server is on SmolLM2. Texts are compared with what was said
    alone: a token may not depend on its neighbours, on AMX either."""
    WORDS = ("--invariant", "on")

    @classmethod
    def start(cls):
        return MeteredServer(MODEL, *cls.WORDS)

    def cancelled(self):
        return self.server.metrics()["kr_requests_cancelled_total"]

    def assert_cancels(self, leave):
        """leave() starts something long and gives it up: the engine must cancel it and be idle. On
        a busy machine it may have gone before the engine had it: then once more."""
        before = self.cancelled()

        def is_counted():
            leave()
            end = time.monotonic() + 10
            while self.cancelled() <= before and time.monotonic() < end:
                time.sleep(0.01)
            return self.cancelled() > before
        eventually(is_counted, "the cancelled request is counted")
        eventually(self.server.is_idle, "the engine is idle after the cancel")
