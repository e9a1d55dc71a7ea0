"""bench/server.py with a tiny model and a made-up rival: turns, table and results. The real rival
is built by `make bench`, not by the tests; nothing here asserts on a speed."""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import KR, ROOT, environment, make_tiny  # noqa: E402

RIVAL = """#!/usr/bin/env python3
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
words = sys.argv[1:]
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_):
        pass
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def chunk(self, text):
        self.wfile.write(f"{len(text):x}\\r\\n{text}\\r\\n".encode())
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(@LOG@, "a") as log:
            log.write(json.dumps([words, self.path, body]) + "\\n")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        usage = {"prompt_tokens": 100, "completion_tokens": body["max_tokens"]}
        choice = {"text": "a", "delta": {"content": "a"}}
        for _ in range(body["max_tokens"]):
            self.chunk("data: " + json.dumps({"choices": [choice]}) + "\\n\\n")
        self.chunk("data: " + json.dumps({"choices": [], "usage": usage}) + "\\n\\n")
        self.chunk("data: [DONE]\\n\\n")
        self.wfile.write(b"0\\r\\n\\r\\n")
ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


class BenchServer(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.scratch = Path(holder.name)
        make_tiny(self.scratch / "llama.gguf")
        self.log = self.scratch / "log"
        rival = self.scratch / "peers" / "llama" / "bin" / "llama-server"
        rival.parent.mkdir(parents=True)
        rival.write_text(RIVAL.replace("@LOG@", repr(str(self.log))), encoding="utf-8")
        rival.chmod(0o755)

    def run_bench(self, *words):
        return subprocess.run(
            [sys.executable, ROOT / "bench" / "server.py", *words, "--models", "llama", "--quick",
             "--threads", "1", "--ctx", "512", "--kr", KR, "--out", self.scratch / "out"],
            env=environment(KR_MODELS_DIR=self.scratch, KR_PEERS_DIR=self.scratch / "peers"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=600)

    def test_servers_take_turns_and_fill_the_table(self):
        done = self.run_bench("total", "ttft", "turns", "metrics", "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((self.scratch / "out" / "server.json").read_text(encoding="utf-8"))
        self.assertEqual([line["must"] for line in report["lines"]],
                         ["≥ 1.5", "≤ 0.7", "≤ 0.2", "≤ 10", "≥ 0.99", "≥ 0.99"])
        for line in report["lines"]:
            if line["must"] == "≤ 10":
                self.assertGreater(line["n_bytes"], 10000)
            else:
                self.assertEqual(len(line["rounds"]), 2)
            self.assertGreater(line["value"], 0)
        for field in ("machine", "isa", "build", "commit", "threads"):
            self.assertTrue(report[field], field)
        self.assertIn("| 8 clients / llama-server | llama | ",
                      (self.scratch / "out" / "server.md").read_text(encoding="utf-8"))
        asked = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        self.assertEqual(len(asked), 3 * (8 + 1 + 2))  # two rounds and the one that warms up
        self.assertEqual(asked[0][0][asked[0][0].index("-np") + 1], "8")
        prompts = [json.dumps(body["prompt"]) for _, _, body in asked if "prompt" in body]
        self.assertEqual(len(set(prompts)), len(prompts))

    def test_a_figure_that_is_not_there_is_named(self):
        done = self.run_bench("speed")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no figure speed", done.stderr)


if __name__ == "__main__":
    unittest.main()
