"""bench/serve.py --quick on tiny models: each figure runs and has its lines; no assertion on speed.
The package is compiled first; its packages come by tools/setup.sh test."""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import KR, ROOT, environment, make_tiny  # noqa: E402

LINES = {"roundtrip": ["≤ 200", "≤ 4"], "tensor": ["≥ 20", "≤ 1"], "batch": ["≥ 0.95", "≤ 0.5"],
         "inprocess": ["≥ 0.98"], "child": ["≥ 0.95"], "session": ["= 1", "≤ 1.05"],
         "streams": ["all", "≤ 8388608", "≤ 8388608", "≤ 0"], "kill": ["≤ 100", None, "= 0"]}
# What does not depend on how fast the machine is. The size of batches does.
CERTAIN = {"= 1", "all", "≤ 0", "= 0", "≤ 1"}


class BenchServe(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.scratch = Path(holder.name)
        make_tiny(cls.scratch / "llama.gguf")
        subprocess.run(["npm", "run", "--silent", "build"], cwd=ROOT / "bindings" / "node",
                       check=True, stdin=subprocess.DEVNULL)

    def run_bench(self, *words):
        return subprocess.run(
            [sys.executable, ROOT / "bench" / "serve.py", *words, "--models", "llama", "--quick",
             "--threads", "1", "--ctx", "512", "--kr", KR, "--out", self.scratch / "out"],
            env=environment(KR_MODELS_DIR=self.scratch), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, check=False, timeout=600)

    def test_a_figure_that_is_not_there_is_named(self):
        done = self.run_bench("speed")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no figure speed", done.stderr)


def make_test(figure):
    def test(self):
        done = self.run_bench(figure)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((self.scratch / "out" / "serve.json").read_text(encoding="utf-8"))
        lines = report["lines"]
        self.assertEqual(len(lines), len(LINES[figure]), lines)
        for line, must in zip(lines, LINES[figure]):
            self.assertIn(must, (line["must"], None))
            if must in CERTAIN:
                self.assertTrue(line["met"], line)
        table = (self.scratch / "out" / "serve.md").read_text(encoding="utf-8")
        for line in lines:
            self.assertIn(f"| {line['figure']} | ", table)
    return test


for name in LINES:
    setattr(BenchServe, f"test_{name}", make_test(name))

if __name__ == "__main__":
    unittest.main()
