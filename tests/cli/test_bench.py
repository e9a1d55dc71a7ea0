"""`kr bench`: every subcommand through the program, with the smallest settings. No test asserts on
a time; the gate is tested with baselines that were edited."""
import json
import os
import stat
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import KR, ProgramTest, kr  # noqa: E402

HEADER = ("machine", "isa", "threads", "build", "commit")
CORPUS = Path(__file__).resolve().parent.parent / "corpus" / "bench_baseline"
GATE = ("bench", "gate")
# Stages that take milliseconds.
STAGE = ("--filter", "rms_norm")


class BenchTest(ProgramTest):
    def report(self, *words, **more):
        report = self.assert_done("bench", *words, "--json", **more).json()
        for field in HEADER:
            self.assertIn(field, report)
        self.assertEqual(sorted(report["machine"]), ["cores", "cpu", "l3_bytes"])
        self.assertEqual(sorted(report["build"]), ["compiler", "type"])
        self.assertGreater(report["threads"], 0)
        return report


class Words(BenchTest):
    def test_what_to_bench_has_to_be_known(self):
        self.assert_fails(2, "bench what", "bench")
        self.assert_fails(2, "unknown benchmark 'nosuch'", "bench", "nosuch")
        self.assert_fails(2, "unexpected argument", "bench", "ops", "suite")

    def test_options_of_other_subcommands_are_refused(self):
        for words in (["ops", "-m", "x"], ["ops", "--runs", "9"], ["suite", "-r", "3"],
                      ["flash", "-d", "1"], ["model", "--filter", "x"], ["model", "--a", "x"],
                      ["compare", "--force"], ["gate", "--frontiers"], ["suite", "--rival", "x"],
                      ["suite", "--kv", "f32"], ["flash", "--no-cache"]):
            self.assert_fails(2, f"`kr bench {words[0]}` does not take", "bench", *words)

    def test_values_outside_their_bounds_are_refused(self):
        for words in (["ops", "--seconds", "0"], ["ops", "--seconds", "61"],
                      ["suite", "--runs", "4"], ["compare", "--timeout", "0"]):
            self.assert_fails(2, f"{words[1]} wants", "bench", *words)


class Model(BenchTest):
    SIZES = ("-p", "8", "-n", "4", "-r", "1", "-t", "1")

    def bench(self, *words):
        return ("bench", "model", "-m", self.model, *self.SIZES, *words)

    def test_one_depth_is_one_object(self):
        report = self.assert_done(*self.bench("-d", "4", "--json")).json()
        self.assertEqual((report["depth"], report["n_prompt"]), (4, 8))
        for field in ("machine", "build", "commit", "isa", "prefill_tps", "decode_tps"):
            self.assertIn(field, report)

    def test_invariance_is_reported_with_its_cost_where_it_has_one(self):
        """Only the matrix unit computes differently without it."""
        is_amx = self.assert_done("version", "--json").json()["isa"] == "amx"
        words = ("bench", "model", "-m", self.model, "-p", "32", "-n", "4", "-r", "1", "--json")
        report = self.assert_done(*words, "--invariant", "on").json()
        self.assertIs(report["invariant"], True)
        cost = report["prefill_tps_not_invariant"]
        self.assertTrue(cost > 0 if is_amx else cost is None, cost)
        report = self.assert_done(*words).json()
        self.assertIs(report["invariant"], not is_amx)
        self.assertIsNone(report["prefill_tps_not_invariant"])

    def test_depths_are_a_list_of_objects(self):
        reports = self.assert_done(*self.bench("-d", "0,4,16", "--json")).json()
        self.assertEqual([r["depth"] for r in reports], [0, 4, 16])
        for report in reports:
            self.assertGreater(report["decode_tps"], 0)
            self.assertGreater(report["read_gbps"], 0)
        text = self.assert_done(*self.bench("-d", "0,4")).out.decode()
        self.assertEqual(text.count("prefill"), 2)

    def test_frontiers_stop_at_the_context(self):
        reports = self.assert_done(*self.bench("--frontiers", "--json")).json()
        self.assertEqual(reports[0]["depth"], 0)
        self.assertTrue(set(r["depth"] for r in reports) <= {0, 512, 2048, 4096, 8192})

    def test_depths_that_make_no_sense_are_refused(self):
        for depth in ("", ",", "1,", "-1", "x", "1 2", "2,2", "3,1", "9" * 30, "1.5"):
            self.assert_fails(2, "--depth", *self.bench(f"--depth={depth}"))
        self.assert_fails(2, "at most 64 depths", *self.bench("-d", ",".join(map(str, range(65)))))
        self.assert_fails(2, "context holds", *self.bench("-d", "0,99999999"))
        self.assert_fails(2, "exclude each other", *self.bench("-d", "0", "--frontiers"))


    def test_streams_decode_together(self):
        report = self.assert_done(*self.bench("--streams", "3", "--json")).json()
        self.assertEqual((report["streams"], report["n_prompt"], report["n_generated"]), (3, 8, 4))
        for field in ("machine", "build", "commit", "isa", "verdict", "spread"):
            self.assertIn(field, report)
        reports = self.assert_done(*self.bench("--streams", "1,2,5", "--json")).json()
        self.assertEqual([r["streams"] for r in reports], [1, 2, 5])
        for report in reports:
            self.assertGreater(report["decode_tps_total"], 0)
            self.assertGreater(report["prefill_tps_total"], 0)
        text = self.assert_done(*self.bench("--streams", "1,2")).out.decode()
        self.assertEqual(text.count(" streams "), 2)

    def test_streams_that_make_no_sense_are_refused(self):
        for streams in ("", ",", "1,", "0", "-1", "x", "2,2", "3,1", "257", "9" * 30, "1.5"):
            self.assert_fails(2, "--streams", *self.bench(f"--streams={streams}"))
        self.assert_fails(2, "excludes --depth", *self.bench("--streams", "2", "-d", "4"))
        self.assert_fails(2, "context holds", "bench", "model", "-m", self.model, "--streams",
                          "2", "-p", "99999999")
        self.assert_fails(2, "does not take --streams", "bench", "ops", "--streams", "2")


class Ops(BenchTest):
    def test_report_names_ceilings_and_every_family(self):
        report = self.report("ops", "--filter", "/ref/", "--seconds", "0.0001")
        self.assertGreater(report["ceilings"]["read_gbps"], 0)
        self.assertGreater(report["ceilings"]["read_gbps_1_thread"], 0)
        self.assertGreater(report["ceilings"]["levels"]["ref"]["fma_gflops"], 0)
        rows = report["results"]
        root = Path(__file__).resolve().parent.parent.parent
        table = (root / "src" / "ops" / "ops.def").read_text(encoding="utf-8")
        slots = {line[6:].split(",")[0] for line in table.splitlines()
                 if line.startswith("KR_OP(")}
        self.assertEqual({row["op"] for row in rows}, slots)
        for row in rows:
            self.assertEqual(row["isa"], "ref")
            self.assertEqual(row["name"], f"{row['op']}/ref/{row['shape']}")
            self.assertGreater(row["ns"], 0)
            self.assertGreater(row["gbps"], 0)

    def test_levels_of_this_machine_are_measured(self):
        report = self.report("ops", "--filter", "rms_norm", "--seconds", "0.0001")
        best = json.loads(self.assert_done("version", "--json").out)["isa"]
        self.assertEqual({row["isa"] for row in report["results"]},
                         set(report["ceilings"]["levels"]))
        self.assertIn(best, report["ceilings"]["levels"])
        lowered = self.report("ops", "--filter", "rms_norm", "--seconds", "0.0001", "--isa", "ref")
        self.assertEqual({row["isa"] for row in lowered["results"]}, {"ref"})

    def test_text_and_refusals(self):
        text = self.assert_done("bench", "ops", "--filter", "add/ref", "--seconds",
                                "0.0001").out.decode()
        self.assertRegex(text, r"(?m)^ceilings +read [0-9.]+ GB/s")
        self.assertRegex(text, r"(?m)^add/ref/2048 +[0-9]+")
        self.assert_fails(2, "no op, level and shape contains 'nosuch'", "bench", "ops",
                          "--filter", "nosuch")


class Attention(BenchTest):
    def test_suite_reports_percentiles(self):
        report = self.report("suite", "--runs", "5", "--filter", "128x1x32")
        self.assertEqual([row["name"] for row in report["configurations"]],
                         ["128x1x32x64", "128x1x32x128"])
        for row in report["configurations"]:
            self.assertLessEqual(row["p50_ms"], row["p95_ms"])
            self.assertLessEqual(row["p95_ms"], row["p99_ms"])
            self.assertEqual(row["verdict"],
                             "steady" if row["spread"] <= 0.05 else "inconclusive")
            self.assertEqual(row["kv_bytes"], 128 * 32 * row["head_size"] * 2 * 2)
            self.assertGreater(row["bytes"], row["kv_bytes"])
            self.assertGreater(row["gflops"], 0)
        text = self.assert_done("bench", "suite", "--runs", "5", "--filter", "128x1x32x64")
        self.assertIn(b"128x1x32x64", text.out)

    def test_suite_has_the_eleven_configurations(self):
        self.assert_fails(2, "no configuration contains 'x9'", "bench", "suite", "--filter", "x9")
        # Names alone: the first run of each would take minutes on a slow machine.
        source = Path(__file__).resolve().parent.parent.parent / "app" / "cli" / "bench_suite.c"
        text = source.read_text(encoding="utf-8")
        self.assertIn("#define N_SLICES 5u", text)
        self.assertEqual(text.split("= {\n", 1)[1].split("};")[0].count("{"), 11)

    def test_flash_forms_agree_and_are_compared(self):
        name = "smollm2-9:3x64/2048"
        report = self.report("flash", "--filter", name, "-r", "1")
        self.assertEqual([row["name"] for row in report["results"]],
                         [f"prefill/{name}", f"decode/{name}"])
        for row in report["results"]:
            self.assertLess(row["error"], 1e-3)
            self.assertGreater(row["ratio"], 0)
            self.assertIn(row["verdict"], ("steady", "inconclusive"))
        self.assertAlmostEqual(report["prefill_ratio"], report["results"][0]["ratio"])
        text = self.assert_done("bench", "flash", "--filter", f"decode/{name}", "-r", "1",
                                "-t", "1", "--isa", "ref").out
        self.assertIn(b"geometric mean", text)
        report = self.report("flash", "--filter", name, "-r", "1", "--attn-qk", "int16")
        self.assertEqual(report["attn_qk"], "int16")
        report = self.report("flash", "--filter", name, "-r", "1", "--kv", "int8")
        self.assertEqual(report["kv"], "int8")
        for row in report["results"]: # the unfused form has the cache's numbers rounded to f16
            self.assertLess(row["error"], 1e-3)
        self.assert_fails(2, "f16 or int8", "bench", "flash", "--kv", "f32")
        self.assert_fails(2, "one way", "bench", "flash", "--kv", "int8", "--attn-qk", "int16")
        self.assert_fails(2, "no row contains 'x9'", "bench", "flash", "--filter", "x9")


class Compare(BenchTest):
    def script(self, name, body):
        path = self.scratch / name
        path.write_text("#!/bin/sh\n" + body + "\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def fake(self, name, prefill, decode):
        row = json.dumps({"prefill_tps": prefill, "decode_tps": decode})
        return self.script(name, f"echo '{row}'")

    def compare(self, a, b, *words):
        return ("bench", "compare", "--a", str(a), "--b", str(b), *words)

    def test_two_commands_take_turns(self):
        log = self.scratch / "turns"
        for side, speed in (("a", 30), ("b", 20)):
            self.script(f"turn_{side}", f"echo {side} >> '{log}'\n"
                        f"echo '{{\"prefill_tps\": {speed}, \"decode_tps\": 5}}'")
        words = self.compare(self.scratch / "turn_a", self.scratch / "turn_b")
        report = self.assert_done(*words, "--json").json()
        for field in HEADER:
            self.assertIn(field, report)
        self.assertEqual(log.read_text().split(), ["a", "b"] * 5)
        self.assertEqual((report["rounds"], report["prefill"]["ratio"],
                          report["decode"]["ratio"]), (5, 1.5, 1))
        self.assertEqual(report["prefill"]["verdict"], "steady")
        text = self.assert_done(*words, "-r", "1").out.decode()
        self.assertRegex(text, r"prefill +a +30\.0 tok/s +b +20\.0 tok/s +ratio 1\.500")

    def test_a_restless_side_is_inconclusive(self):
        count = self.scratch / "count"
        self.script("restless", f"echo x >> '{count}'\nn=$(wc -l < '{count}')\n"
                    "echo \"{\\\"prefill_tps\\\": $((n * 10)), \\\"decode_tps\\\": 5}\"")
        report = self.assert_done(*self.compare(self.scratch / "restless",
                                                self.fake("steady", 10, 5)), "--json").json()
        self.assertEqual(report["prefill"]["verdict"], "inconclusive")
        self.assertEqual(report["prefill"]["ratio"], 3)

    def test_two_builds_of_kr(self):
        command = f"'{KR}' bench model -m '{self.model}' -p 8 -n 4 -r 1 -t 1 --json"
        report = self.assert_done(*self.compare(command, command, "-r", "1", "--json")).json()
        self.assertGreater(report["decode"]["ratio"], 0)
        self.assertEqual(report["a"][0], str(KR))

    def test_a_rival_gets_the_same_sizes(self):
        rows = json.dumps([{"n_prompt": 8, "n_gen": 0, "avg_ts": 100.0},
                           {"n_prompt": 0, "n_gen": 4, "avg_ts": 10.0},
                           {"n_prompt": 8, "n_gen": 4, "avg_ts": 50.0}])
        seen = self.scratch / "seen"
        rival = self.script("llama-bench", f"echo \"$@\" > '{seen}'\necho '{rows}'")
        report = self.assert_done("bench", "compare", "-m", self.model, "-p", "8", "-n", "4", "-t",
                                  "1", "-r", "1", "--rival", f"'{rival}' -fa 1", "--kv", "f32",
                                  "--no-cache", "--json").json()
        self.assertEqual(report["a"][-4:], ["--kv", "f32", "--no-cache", "--json"])
        self.assertEqual(seen.read_text().split(),
                         ["-fa", "1", "-m", str(self.model), "-p", "8", "-n", "4", "-t", "1", "-r",
                          "1", "-o", "json"])
        self.assertEqual(report["prefill"]["b_tps"], 100)
        self.assertGreater(report["decode"]["a_tps"], 0)

    def test_words_are_split_without_a_shell(self):
        log = self.scratch / "words"
        body = f"for w in \"$@\"; do echo \"[$w]\"; done > '{log}'\n" \
               "echo '{\"prefill_tps\": 1, \"decode_tps\": 1}'"
        path = self.script("words.sh", body)
        line = f"{path}  'a b' \"c \\\" d\" e\\ f 'g\\h' $HOME ; * ''"
        self.assert_done(*self.compare(line, self.fake("other", 1, 1), "-r", "1"))
        self.assertEqual(log.read_text().splitlines(),
                         ["[a b]", "[c \" d]", "[e f]", "[g\\h]", "[$HOME]", "[;]", "[*]", "[]"])
        for bad in ("echo 'a", 'echo "a', "echo \\", "", "  ", "a " * 200, "x" * 9000):
            self.assert_fails(2, "--a (has an open quote|is empty|is too long)",
                              *self.compare(bad, "true"))

    def test_failing_commands_are_named(self):
        good = self.fake("good", 1, 1)
        gone = self.scratch / "nosuch"
        plain = self.scratch / "plain"
        plain.write_text("x", encoding="utf-8")
        cases = [(3, "command a: cannot run .*nosuch", gone, good),
                 (3, "command b: cannot run .*plain", good, plain),
                 (1, "ended with status 3: last words", self.script(
                     "bad", "echo first >&2; echo last words >&2; exit 3"), good),
                 (1, "ended by signal 9", self.script("killed", "kill -9 $$"), good),
                 (12, "took more than 1 second", self.script("slow", "sleep 60"), good),
                 (11, "printed more than 4194304 bytes", self.script("loud", "exec yes"), good),
                 (11, "no JSON", self.script("text", "echo hi"), good),
                 (11, "no JSON", self.script("silent", "true"), good),
                 (11, "no prefill_tps", self.script("empty", "echo '{}'"), good),
                 (11, "no row with a speed", self.script("list", "echo '[]'"), good),
                 (11, "n_prompt and n_gen", self.script("rows", "echo '[{}]'"), good)]
        for code, pattern, a, b in cases:
            with self.subTest(pattern=pattern):
                limit = "1" if "took" in pattern else "60"
                self.assert_fails(code, pattern, *self.compare(a, b, "-r", "1", "--timeout", limit))

    def test_commands_die_with_the_program(self):
        note = self.scratch / "pid"
        slow = self.script("slow", f"echo $$ > '{note}.new'; mv '{note}.new' '{note}'\n"
                                   "exec sleep 60")
        with subprocess.Popen([KR, *self.compare(slow, "true")], stderr=subprocess.DEVNULL) as kr_:
            while not note.exists():
                self.assertIsNone(kr_.poll())
                time.sleep(0.01)
            kr_.kill()
        child = Path(f"/proc/{note.read_text(encoding='utf-8').strip()}/stat")
        try:
            for _ in range(6000):
                if child.read_text(encoding="utf-8").split()[2] == "Z":
                    return  # its new parent has not noticed yet
                time.sleep(0.01)
        except (FileNotFoundError, ProcessLookupError):
            return
        self.fail("the command lives on")

    def test_what_to_compare_has_to_be_clear(self):
        self.assert_fails(2, "compare what", "bench", "compare")
        self.assert_fails(2, "compare what", "bench", "compare", "--a", "true")
        self.assert_fails(2, "compare what", *self.compare("true", "true", "--rival", "true"))
        for flag, value in (("-p", "8"), ("-m", "x"), ("--kv", "f32"), ("-t", "1")):
            self.assert_fails(2, "go.* into the commands",
                              *self.compare("true", "true", flag, value))


class Gate(BenchTest):
    def baseline(self, *words, name="base.json"):
        path = self.scratch / name
        self.assert_done(*GATE, "--write", path, *(words or STAGE), "-r", "5", "-t", "1")
        return path

    def edit(self, path, change):
        baseline = json.loads(path.read_text(encoding="utf-8"))
        change(baseline)
        edited = self.scratch / "edited.json"
        edited.write_text(json.dumps(baseline), encoding="utf-8")
        return edited

    def scaled(self, path, factor):
        def change(baseline):
            for stage in baseline["stages"]:
                stage["ns"] = [ns * factor for ns in stage["ns"]]
        return self.edit(path, change)

    def test_a_slower_stage_is_found_and_named(self):
        base = self.baseline()
        result = kr(*GATE, "--baseline", self.scaled(base, 1e-5), "-r", "5", "--json")
        self.assertEqual(result.code, 13, result.err)
        self.assertRegex(result.err, "slower than the baseline: op/rms_norm/")
        report = result.json()
        for field in HEADER:
            self.assertIn(field, report)
        self.assertEqual((report["losses"], report["stages"][0]["verdict"]), (1, "loss"))
        self.assertAlmostEqual(report["stages"][0]["p"], 1 / 252)  # 5 of 10 in one order

    def test_a_faster_stage_passes(self):
        result = self.assert_done(*GATE, "--baseline", self.scaled(self.baseline(), 1e5), "-r",
                                  "5", "--json").json()
        self.assertEqual((result["losses"], result["stages"][0]["verdict"]), (0, "gain"))
        self.assertAlmostEqual(result["stages"][0]["p"], 1 / 252)

    def test_one_slow_time_of_five_is_no_loss(self):
        def change(baseline):
            stage = baseline["stages"][0]
            stage["ns"] = [1e9] * 2 + [ns / 1000 for ns in stage["ns"][2:]]
        result = self.assert_done(*GATE, "--baseline", self.edit(self.baseline(), change), "-r",
                                  "5")
        self.assertIn(b"same", result.out)

    def test_all_kinds_of_stages(self):
        path = self.baseline("-m", self.model, "-p", "8", "-n", "4", name="all.json")
        baseline = json.loads(path.read_text(encoding="utf-8"))
        names = [stage["name"] for stage in baseline["stages"]]
        for kind in ("machine/fma/", "op/linear_q4_k/", "attention/", "model/prefill",
                     "model/decode", "engine/prefill", "engine/decode"):
            self.assertTrue(any(name.startswith(kind) for name in names), kind)
        self.assertTrue(all(len(stage["ns"]) == 5 for stage in baseline["stages"]))
        for kind in ("machine", "attention/128x1x32x64", "model", "engine"):
            faster = self.scaled(path, 1e5)
            self.assert_done(*GATE, "--baseline", faster, "-r", "5", "--filter", kind)
        elsewhere = self.edit(path, lambda b: b.update(model="/nosuch/model.gguf"))
        words = (*GATE, "--baseline", elsewhere, "-r", "5", "--filter", "model/")
        self.assert_fails(3, "nosuch", *words)
        self.assertIn(kr(*words, "-m", self.model).code, (0, 13))

    def test_another_machine_is_refused_by_name(self):
        base = self.baseline()
        other = self.edit(base, lambda b: b["machine"].update(cpu="Abacus 3000"))
        self.assert_fails(2, "another machine .Abacus 3000", *GATE, "--baseline", other)
        cores = self.edit(base, lambda b: b["machine"].update(cores=999))
        self.assert_fails(2, "another machine .*999 cores", *GATE, "--baseline", cores)
        self.assertIn(kr(*GATE, "--baseline", cores, "--force", "-r", "5").code, (0, 13))
        isa = self.edit(base, lambda b: b.update(isa="mmx"))
        self.assert_fails(2, "instruction set mmx", *GATE, "--baseline", isa)

    def test_unknown_stages_are_refused_by_name(self):
        for name in ("op/nosuch/avx2/1", "nosuch", "attention/1x1x1x1", "model/prefillx",
                     "machine/fma/mmx", "op/"):
            path = self.edit(self.baseline(), lambda b: b["stages"][0].update(name=name))
            self.assert_fails(2, f"stage {name} of the baseline", *GATE, "--baseline", path)

    def test_broken_baselines_are_refused(self):
        broken = sorted(CORPUS.glob("bad_*.json"))
        self.assertGreater(len(broken), 10)
        for path in broken:
            with self.subTest(path=path.name):
                self.assert_fails(11, "is no baseline of kr", *GATE, "--baseline", path)
        big = self.scratch / "big.json"
        big.write_bytes(b" " * ((1 << 20) + 1))
        self.assertEqual(kr(*GATE, "--baseline", big).code, 11)
        self.assert_fails(3, "nosuch", *GATE, "--baseline", self.scratch / "nosuch.json")
        self.assertIn(kr(*GATE, "--baseline", self.scratch).code, (3, 11))

    def test_usage(self):
        self.assert_fails(2, "give --write FILE", *GATE)
        self.assert_fails(2, "give --write FILE", *GATE, "--write", "a", "--baseline", "b")
        self.assert_fails(2, "5 to 64 rounds", *GATE, "--write", "a", "-r", "4")
        self.assert_fails(2, "no stage contains", *GATE, "--write", self.scratch / "x", "--filter",
                          "nosuch")
        base = self.baseline()
        self.assert_fails(2, "what the baseline says", *GATE, "--baseline", base, "-p", "9")
        self.assert_fails(2, "no stage of the baseline", *GATE, "--baseline", base, "--filter",
                          "nosuch")
        gone = self.scratch / "nofolder" / "base.json"
        self.assertEqual(kr(*GATE, "--write", gone, *STAGE, "-r", "5").code, 9)
        self.assertFalse(os.path.exists(gone))


if __name__ == "__main__":
    unittest.main()
