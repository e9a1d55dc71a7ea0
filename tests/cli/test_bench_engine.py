"""`kr bench engine`: every mode through the program with a tiny model, and bench/engine.py with a
made-up rival. No test asserts on a time."""
import json
import stat
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import KR, ROOT, ProgramTest, environment  # noqa: E402

# Of `kr bench model --json` too.
COMMON = ("model", "isa", "invariant", "threads", "commit", "model_bytes", "bytes_per_token", "kv",
          "kv_bytes", "n_ctx", "load_ms", "machine", "build", "n_prompt", "n_generated", "rounds",
          "mode", "streams", "chunk", "sampling")

RIVAL = """#!/usr/bin/env python3
import sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join(words) + "\\n")
def value(flag):
    return words[words.index(flag) + 1]
print("|" + "|".join(f" {{x}} " for x in (value("-npp"), value("-ntg"), value("-npl"), 1, 1.0, 2.0,
                                         3.0, 4.0, 5.0, 6.0)) + "|")
"""


class EngineTest(ProgramTest):
    def bench(self, *words):
        return ("bench", "engine", "-m", self.model, "-t", "2", *words)

    def report(self, *words):
        report = self.assert_done(*self.bench(*words, "--json")).json()
        for field in COMMON:
            self.assertIn(field, report)
        self.assertEqual("telemetry" in report, report["mode"] != "kv")  # kv has no engine
        return report

    def assert_percentiles(self, report, name):
        values = [report[f"{name}_{p}_ms"] for p in ("p50", "p95", "p99", "max")]
        self.assertEqual(values, sorted(values))
        self.assertGreaterEqual(values[0], 0)


class Throughput(EngineTest):
    SIZES = ("-p", "24", "-n", "8", "-r", "2")

    def test_report_has_the_contract(self):
        report = self.report(*self.SIZES, "--streams", "3")
        for field in ("decode_tps_total", "decode_tps", "prefill_tps", "ttft_ms", "read_gbps",
                      "peak_rss_bytes", "kv_bytes_used"):
            self.assertGreater(report[field], 0, field)
        self.assertAlmostEqual(report["decode_tps"] * 3, report["decode_tps_total"])
        self.assertEqual((report["mode"], report["streams"]), ("throughput", 3))
        self.assertEqual((report["n_prompt"], report["n_generated"], report["rounds"]), (24, 8, 2))
        self.assertEqual((report["sampling"], report["prefix_cache"]), ("greedy", True))
        self.assert_percentiles(report, "ttft")
        self.assert_percentiles(report, "gap")
        # Prompts are all different; nothing has to give way.
        self.assertEqual((report["tokens_cached"], report["preempted"]), (0, 0))
        self.assertGreater(report["steps"], 2 * 7)
        self.assertGreaterEqual(report["sched_us"], 0)

    def test_several_numbers_of_streams_are_a_list(self):
        reports = self.assert_done(*self.bench(*self.SIZES, "--streams", "1,4", "--json")).json()
        self.assertEqual([r["streams"] for r in reports], [1, 4])
        text = self.assert_done(*self.bench(*self.SIZES, "--streams", "1,4")).out.decode()
        self.assertEqual(text.count("decode, all streams (tok/s)"), 2)

    def test_options_reach_the_engine(self):
        report = self.report(*self.SIZES, "--streams", "2", "--prefix-cache", "off", "--telemetry",
                             "off", "--sampling", "default", "--chunk", "16", "--kv", "f32",
                             "--max-stall-ms", "7")
        self.assertEqual((report["prefix_cache"], report["telemetry"]), (False, False))
        self.assertEqual((report["sampling"], report["chunk"], report["kv"]),
                         ("default", 16, "f32"))
        self.assertEqual(report["max_stall_ms"], 7)
        half = self.report(*self.SIZES, "--streams", "2")
        self.assertAlmostEqual(report["kv_bytes_per_token"], 2 * half["kv_bytes_per_token"])

    def test_many_streams(self):
        report = self.report("-p", "5", "-n", "3", "-r", "1", "--streams", "256")
        self.assertEqual(report["streams"], 256)
        self.assertGreater(report["decode_tps_total"], 0)


class Modes(EngineTest):
    def test_mixed_compares_with_fixed_chunks(self):
        # Streams are as long as the prompt needs: a machine that stops the program for so long
        # that they end before the prompt comes leaves no gaps. Then again.
        for _ in range(20):
            report = self.report("--mode", "mixed", "-p", "256", "-r", "3", "--streams", "4",
                                 "--max-stall-ms", "40")
            if min(report["gaps"], report["fixed"]["gaps"]) >= 4 * 3:
                break
        self.assertEqual((report["streams"], report["max_stall_ms"]), (4, 40))
        for side in (report, report["fixed"]):
            self.assert_percentiles(side, "gap")
            self.assert_percentiles(side, "quiet_gap")
            self.assertGreater(side["prefill_tps"], 0)
            self.assertGreaterEqual(side["gaps"], 4 * 3)
            self.assertGreaterEqual(side["steps_per_arrival"], 1)
        self.assertEqual((report["fixed"]["chunk"], report["fixed"]["max_stall_ms"]), (512, 60000))
        self.assertGreater(report["prefill_ratio"], 0)
        self.assertAlmostEqual(report["gap_bound_ratio"], report["gap_p99_ms"] / 40)
        self.assertIn(report["prefill_ratio_verdict"], ("steady", "inconclusive"))
        text = self.assert_done(*self.bench("--mode", "mixed", "-p", "64", "-r", "1", "--streams",
                                            "2")).out.decode()
        self.assertIn("fixed chunks of 512 rows", text)

    def test_prefix_finds_whole_pages_of_95_percent(self):
        report = self.report("--mode", "prefix", "-p", "256", "-n", "4", "-r", "3")
        self.assertEqual(report["cached_tokens"], 256 * 95 // 100 // 16 * 16)
        self.assertEqual(report["miss_position"], 256 * 95 // 100)
        for field in ("ttft_cold_ms", "ttft_warm_ms", "ttft_ratio", "tps_cache_on",
                      "tps_cache_off", "tps_ratio"):
            self.assertGreater(report[field], 0, field)
        self.assertEqual(report["tokens_cached"], 3 * report["cached_tokens"])

    def test_growth_shows_every_doubling(self):
        report = self.report("--mode", "growth", "-p", "16", "-n", "200")
        self.assertEqual([point["tokens"] for point in report["points"]], [32, 64, 128, 216])
        used = [point["kv_bytes_used"] for point in report["points"]]
        self.assertEqual(used, sorted(used))
        for point in report["points"]:
            self.assertEqual(point["kv_bytes_moved_per_token"], 0)
        text = self.assert_done(*self.bench("--mode", "growth", "-n", "40")).out.decode()
        self.assertEqual(text.count("bytes moved a token"), 2)

    def test_kv_compares_the_types(self):
        report = self.report("--mode", "kv", "-p", "128", "-n", "4", "-r", "3", "--streams", "3")
        self.assertGreater(report["decode_tps_total_f16"], 0)
        self.assertGreater(report["decode_tps_total_int8"], 0)
        self.assertGreater(report["decode_ratio"], 0)
        self.assertLess(report["kv_bytes_ratio"], 0.7)  # heads of 16: scales weigh more than usual
        self.assertLess(report["kv_bytes_int8"], report["kv_bytes_f16"])


class Slices(EngineTest):
    WORDS = ("--mode", "slices", "-p", "8", "-n", "4", "--streams", "3")

    def test_each_line_is_answered_by_one_slice(self):
        done = self.assert_done(*self.bench(*self.WORDS, "--json"), stdin=b"\nagain\n\nno line")
        *lines, rest = done.out.decode().split("\n", 3)
        for line in lines:
            line = json.loads(line)
            self.assertEqual((line["tokens_prompt"], line["tokens_decode"]), (3 * 8, 3 * 3))
            self.assertGreater(line["prefill_s"], 0)
            self.assertGreater(line["decode_s"], 0)
        report = json.loads(rest)
        for field in COMMON:
            self.assertIn(field, report)
        self.assertEqual((report["mode"], report["slices"]), ("slices", 3))
        self.assertGreater(report["decode_tps_total"], 0)

    def test_without_a_line_there_is_no_slice(self):
        report = json.loads(self.assert_done(*self.bench(*self.WORDS, "--json"), stdin=b"").out)
        self.assertEqual(report["slices"], 0)
        self.assertNotIn("decode_tps_total", report)


class Words(EngineTest):
    def test_options_of_other_modes_are_refused(self):
        for mode, words in (("mixed", ["-n", "4"]), ("mixed", ["--prefix-cache", "on"]),
                            ("prefix", ["--max-stall-ms", "9"]), ("kv", ["--kv", "f16"]),
                            ("kv", ["--sampling", "greedy"]), ("growth", ["--streams", "2"]),
                            ("growth", ["-r", "2"]), ("slices", ["-r", "2"]),
                            ("kv", ["--telemetry", "off"])):
            self.assert_fails(2, f"--mode {mode}` does not take",
                              *self.bench("--mode", mode, *words))
        for words in (["--mode", "nosuch"], ["--max-stall-ms", "0"], ["--chunk", "8"],
                      ["--sampling", "x"], ["--telemetry", "1"]):
            self.assert_fails(2, f"{words[0]} wants", *self.bench(*words))
        self.assert_fails(2, "`kr bench model` does not take --mode", "bench", "model", "-m",
                          self.model, "--mode", "kv")

    def test_streams_that_make_no_sense_are_refused(self):
        for streams in ("", ",", "1,", "0", "-1", "x", "257", "9" * 30, "1.5",
                        ",".join(["1"] * 17)):
            self.assert_fails(2, "--streams", *self.bench(f"--streams={streams}"))
        self.assert_fails(2, "--streams", *self.bench("--mode", "mixed", "--streams", "1,2"))

    def test_contexts_over_the_models_are_refused(self):
        for mode in ("throughput", "mixed", "prefix", "kv", "growth"):
            self.assert_fails(2, "the model's context holds",
                              *self.bench("--mode", mode, "-p", "9999"))
        self.assert_fails(2, "which model", "bench", "engine")


class Script(EngineTest):
    """bench/engine.py; its figure `telemetry` has this program on both sides."""

    def run_script(self, *words):
        rival = self.scratch / "peers" / "llama" / "bin" / "llama-batched-bench"
        rival.parent.mkdir(parents=True, exist_ok=True)
        rival.write_text(RIVAL.format(log=str(self.scratch / "log")), encoding="utf-8")
        rival.chmod(rival.stat().st_mode | stat.S_IXUSR)
        out = self.scratch / "out"
        done = subprocess.run(
            [sys.executable, ROOT / "bench" / "engine.py", *words, "--quick", "--models", "llama",
             "--threads", "2", "--kr", KR, "--out", out],
            env=environment(KR_MODELS_DIR=self.scratch, KR_PEERS_DIR=self.scratch / "peers"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=600)
        return done, out

    def test_every_figure_is_a_line(self):
        figures = ("throughput", "mixed", "kv", "memory", "growth", "prefix", "sched")
        done, out = self.run_script(*figures)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((out / "engine.json").read_text(encoding="utf-8"))
        self.assertEqual(report["failed"], {})
        names = " ".join(line["figure"] for line in report["lines"])
        for part in ("llama.cpp", "p99 gap", "prefill meanwhile", "8k, 1 streams", "bytes of keys",
                     "peak memory", "bytes moved", "95 % cached", "cache on / off",
                     "scheduler"):
            self.assertIn(part, names)
        for line in report["lines"]:
            self.assertIn(line["met"], (True, False))
        self.assertEqual(done.stdout, (out / "engine.md").read_text(encoding="utf-8"))
        self.assertEqual(len((self.scratch / "log").read_text().splitlines()), 1)
        self.assertIn("-npp 32 -ntg 16 -npl 4 -t 2", (self.scratch / "log").read_text())

    def test_telemetry_takes_turns_in_slices(self):
        done, out = self.run_script("telemetry", "--rounds", "8", "--off-kr", KR)
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads((out / "engine.json").read_text(encoding="utf-8"))
        self.assertEqual([line["must"] for line in report["lines"]], ["≥ 0.99", "≥ 0.99"])
        for line in report["lines"]:
            self.assertEqual(len(line["rounds"]), 8)
            self.assertLessEqual(line["low"], line["value"])
            self.assertLessEqual(line["value"], line["high"])
            self.assertEqual(line["met"], line["verdict"] == "reached")
            self.assertEqual(line["met"], line["low"] >= 0.99)

    def test_a_side_that_does_not_run_is_told(self):
        done, _ = self.run_script("telemetry", "--off-kr", "/bin/false")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/bin/false ended", done.stderr)

    def test_an_unknown_figure_is_named(self):
        done, _ = self.run_script("nosuch")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no figure nosuch; there are throughput", done.stderr)


if __name__ == "__main__":
    unittest.main()
