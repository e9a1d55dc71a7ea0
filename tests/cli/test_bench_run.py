"""`make bench` (bench/run.py) with a tiny model and made-up rivals: turns, table and results. The
real rivals are built by `make bench` itself, not by the tests."""
import json
import os
import stat
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import KR, ROOT, ProgramTest, environment  # noqa: E402

RIVAL = """#!/usr/bin/env python3
import json, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join(words) + "\\n")
if {fails!r}:
    sys.exit("no such model type")
rows = [dict(n_prompt=int(n), n_gen=0, avg_ts=100.0)
        for n in words[words.index("-p") + 1].split(",")]
rows.append(dict(n_prompt=0, n_gen=int(words[words.index("-n") + 1]), avg_ts=10.0))
print(json.dumps(rows))
"""


class Run(ProgramTest):
    def rival(self, path, fails=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = self.scratch / f"{path.name}.log"
        log.unlink(missing_ok=True)
        path.write_text(RIVAL.format(log=str(log), fails=fails), encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return log

    def run_bench(self, *words, **env):
        out = self.scratch / "out"
        done = subprocess.run(
            [sys.executable, ROOT / "bench" / "run.py", "--models", "llama", "--quick", "--no-mlx",
             "--no-plot", "--threads", "1", "--kr", KR, "--out", out, *words],
            env=environment(KR_MODELS_DIR=self.scratch, KR_PEERS_DIR=self.scratch / "peers",
                            **env),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=600)
        return done, out

    def test_sides_take_turns_and_fill_the_table(self):
        log = self.rival(self.scratch / "peers" / "llama" / "bin" / "llama-bench")
        ik_log = self.rival(self.scratch / "ik-bench")
        done, out = self.run_bench("--rounds", "2", KR_IK_BENCH=self.scratch / "ik-bench")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((out / "results.json").read_text(encoding="utf-8"))
        figures = report["models"]["llama"]["figures"]
        self.assertEqual(sorted(figures), ["decode", "prefill 256"])
        for by_side in figures.values():
            self.assertEqual(sorted(by_side), ["ik_llama.cpp", "kr", "llama.cpp"])
            self.assertEqual(len(by_side["kr"]["rounds"]), 2)
            self.assertGreater(by_side["llama.cpp"]["kr_ratio"], 0)
        for field in ("machine", "isa", "build", "commit", "threads", "geometric_mean"):
            self.assertTrue(report[field], field)
        self.assertIn("| llama | decode | ", (out / "table.md").read_text(encoding="utf-8"))
        self.assertEqual(len(log.read_text().splitlines()), 2)
        self.assertIn("-fa 1 -rtr 1", ik_log.read_text())
        turns = [line.rsplit(", ", 1)[1] for line in done.stderr.splitlines() if "round" in line]
        self.assertEqual(turns, ["kr", "llama.cpp", "ik_llama.cpp"] * 2)

    def test_a_rival_that_fails_is_left_out_by_name(self):
        self.rival(self.scratch / "peers" / "llama" / "bin" / "llama-bench", fails=True)
        done, out = self.run_bench()
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((out / "results.json").read_text(encoding="utf-8"))
        self.assertIn("no such model type", report["left_out"]["llama.cpp"])
        self.assertIn("llama.cpp is incomplete", (out / "table.md").read_text(encoding="utf-8"))

    def test_a_missing_model_is_named(self):
        done, _ = self.run_bench("--models", "nosuch")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nosuch.gguf", done.stderr)


if __name__ == "__main__":
    os.environ.pop("KR_IK_BENCH", None)
    unittest.main()
