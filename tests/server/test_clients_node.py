"""The official OpenAI npm client, unchanged: client.mjs runs its cases, one test here for each."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import CLIENTS, ROOT, ClientTest  # noqa: E402

CASES = ("models", "chat", "stream", "stream_helper", "completions", "logprobs", "embeddings",
         "responses", "errors", "error_event", "leaving_a_loop", "abort_of_a_stream",
         "abort_of_an_answer_in_one_piece")
TIMEOUT_S = 600


class Node(ClientTest, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        done = subprocess.run(
            ["node", ROOT / "tests" / "server" / "client.mjs", cls.server.base,
             CLIENTS / "node" / "node_modules" / "openai"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=TIMEOUT_S, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        cls.results = {row["name"]: row["error"] for row in rows}
        cls.said = f"node ended with {done.returncode}\n{done.stderr}"

    def test_every_case_has_its_test(self):
        self.assertEqual(tuple(self.results), CASES, self.said)


def make_test(name):
    def test(self):
        self.assertIn(name, self.results, self.said)
        self.assertIsNone(self.results[name], self.results[name])
    return test


for case in CASES:
    setattr(Node, f"test_{case}", make_test(case))

if __name__ == "__main__":
    unittest.main()
