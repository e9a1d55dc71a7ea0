"""The contract of the program: options, input rules, exit codes, reports, interrupts. Tiny random
models stand in for real ones, so nothing here depends on what a model says."""
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import KR, TIMEOUT_S, ProgramTest, environment, kr  # noqa: E402

RUN = ("run", "--temp", "0", "-n", "8")


class Options(ProgramTest):
    def test_inspect_takes_one_model(self):
        self.assert_fails(2, "takes one model", "inspect", "-m", self.model, self.model)
        named = self.assert_done("inspect", self.model, env=environment(KR_MODEL="nosuch"))
        self.assertIn(b"llama", named.out)

    def test_no_command_shows_help_on_stderr(self):
        result = kr()
        self.assertEqual((result.code, result.out), (2, b""))
        self.assertIn("Usage: kr COMMAND", result.err)

    def test_help_names_every_option_of_a_command_and_none_that_is_not_built(self):
        text = self.assert_done("help", "run").out.decode()
        for flag in ("-m", "-p", "-f", "-n", "-c", "-t", "--chunk", "--raw", "--ids", "--stop",
                     "--ignore-eos", "--temp", "--top-k", "--top-p", "--min-p", "--typical",
                     "--seed", "--logit-bias", "--repeat-penalty", "--presence-penalty",
                     "--frequency-penalty", "--logprobs", "--json", "--isa", "--device", "--kv",
                     "--attn-qk", "--pin", "--invariant", "--no-cache", "--cache-dir",
                     "--cache-size"):
            self.assertRegex(text, rf"(?m)^ .*{flag}\b")
        for absent in ("--json-schema", "--regex", "--grammar", "neon"):
            self.assertNotIn(absent, text)
        self.assertEqual(self.assert_done("run", "--help").out.decode(), text)
        commands = self.assert_done("--help").out.decode()
        for absent in ("mcp",):
            self.assertNotIn(f"  {absent} ", commands)

    def test_what_is_not_built_is_refused_by_name(self):
        for words in (["mcp"],):
            self.assert_fails(2, f"{words[0]}.*not built", *words)
        for flag, value in (("--json-schema", "x"), ("--regex", "x"), ("--grammar", "x")):
            self.assert_fails(2, f"{flag}.*not built", *RUN, flag, value)
        self.assert_fails(2, "--isa neon is not built", *RUN, "--isa", "neon")
        self.assert_fails(2, "gate. measures the CPU only", "bench", "gate", "-m", "x", "--device",
                          "cuda")

    def test_unknown_words_are_refused_with_the_nearest(self):
        self.assert_fails(2, "unknown command 'rnu'; did you mean 'run'", "rnu")
        self.assert_fails(2, "--tmep; did you mean --temp", *RUN, "--tmep", "1")
        self.assert_fails(2, "--temperature; did you mean --temp", *RUN, "--temperature", "1")
        self.assert_fails(2, "unknown option --zzzzzz", *RUN, "--zzzzzz")
        self.assert_fails(2, "does not take --chunks", *RUN, "--chunks", "1")
        self.assert_fails(2, "unexpected argument 'hi'", *RUN, "hi")

    def test_numbers_are_whole_words_inside_their_bounds(self):
        bad = {"-n": ["0", "-1", "2147483648", "1e3", "0x10", " 1", "1 ", "+1", "", "9" * 30],
               "-c": ["0", "x"], "--chunk": ["0", "4097"], "-t": ["0", "257"],
               "--temp": ["-0.1", "2.1", "nan", "inf", "0x1", "1,5", "", "1e999"],
               "--top-k": ["-2", "1.5"], "--top-p": ["0", "1.01", "1e-60"],
               "--min-p": ["-1", "1.1"], "--typical": ["0", "2"], "--repeat-penalty": ["0", "3"],
               "--presence-penalty": ["-2.1", "3"], "--frequency-penalty": ["2.5"],
               "--seed": ["9223372036854775808", "x"], "--logprobs": ["21", "-1"]}
        for flag, values in bad.items():
            for value in values:
                with self.subTest(flag=flag, value=value):
                    self.assert_fails(2, f"{flag} wants", "run", flag, value)

    def test_bounds_themselves_are_accepted(self):
        for words in (["--temp", "2"], ["--top-k", "-1"], ["--top-p", "1"], ["--min-p", "0"],
                      ["--presence-penalty", "-2"], ["--seed", "-9223372036854775808"],
                      ["--seed=9223372036854775807"], ["--chunk", "1"], ["--chunk", "4096"]):
            with self.subTest(words=words):
                self.assert_done("run", "-m", self.model, "-p", "x", "-n", "2", *words)

    def test_an_option_twice_without_value_or_with_too_much_is_refused(self):
        self.assert_fails(2, "-n is given twice", "run", "-n", "1", "-n", "1")
        self.assert_fails(2, "-n wants a value", "run", "-n")
        self.assert_fails(2, "--raw takes no value", "run", "--raw=1")
        self.assert_fails(2, "exclude", *RUN, "-m", self.model, "-p", "a", "-f", "b")
        self.assert_fails(2, "--logprobs needs --json", *RUN, "-m", self.model, "-p", "a",
                          "--logprobs", "2")
        self.assert_fails(2, "--system needs", *RUN, "-m", self.model, "--raw", "--system", "x")

    def test_stop_strings_and_biases_are_checked(self):
        base = (*RUN, "-m", self.model, "-p", "x")
        self.assert_fails(2, "1 to 256 bytes", *base, "--stop", "")
        self.assert_fails(2, "1 to 256 bytes", *base, "--stop", "x" * 257)
        self.assert_fails(2, "more than 16", *base, *["--stop", "x"] * 17)
        self.assert_done(*base, *["--stop", "zq" * 128] * 16)
        for value in ("5", "5=", "=1", "05=1", "-1=1", "5=101", "5=nan", "a=1"):
            self.assert_fails(2, "--logit-bias wants ID=V", *base, "--logit-bias", value)
        self.assert_fails(2, "outside the vocabulary", *base, "--logit-bias", "99999=1")
        self.assert_fails(2, "given twice", *base, *["--logit-bias", "5=1"] * 2)

    def test_environment_is_used_and_checked_and_the_flag_wins(self):
        env = environment(KR_MODEL=self.model, KR_THREADS="1")
        report = self.assert_done(*RUN, "-p", "x", "--json", env=env).json()
        self.assertEqual(report["threads"], 1)
        report = self.assert_done(*RUN, "-p", "x", "--json", "-t", "2", env=env).json()
        self.assertEqual(report["threads"], 2)
        self.assert_fails(2, "KR_THREADS wants", *RUN, "-p", "x",
                          env=environment(KR_MODEL=self.model, KR_THREADS="two"))
        self.assert_fails(2, "KR_ISA wants", *RUN, "-p", "x",
                          env=environment(KR_MODEL=self.model, KR_ISA="fast"))

    def test_isa_can_be_lowered(self):
        report = self.assert_done(*RUN, "-m", self.model, "-p", "x", "--json", "--isa",
                                  "ref").json()
        self.assertEqual(report["isa"], "ref")

    def test_threads_can_be_pinned_to_cores_but_not_to_more_than_there_are(self):
        words = (*RUN, "-m", self.model, "-p", "x", "--json")
        self.assertEqual(self.assert_done(*words, "--pin", "off").json()["threads_pinned"], 0)
        report = self.assert_done(*words, "--pin", "on").json()
        self.assertEqual(report["threads_pinned"], report["threads"] - 1)
        self.assert_fails(2, "--pin wants", *RUN, "-m", self.model, "-p", "x", "--pin", "maybe")
        if os.cpu_count() < 256:
            self.assertIn("cannot pin 256 threads", kr(*words, "--pin", "on", "-t", "256").err)

    def test_errors_are_also_json_when_asked(self):
        for words, code, kind in (((*RUN, "--temp", "9"), 2, "invalid_request_error"),
                                  (("run", "-m", "nope"), 3, "invalid_request_error"),
                                  ((*RUN, b"--\xff\xfe"), 2, "invalid_request_error")):
            result = kr(*words, "--json")
            self.assertEqual(result.code, code)
            error = result.json()["error"]
            self.assertEqual(sorted(error), ["code", "message", "param", "type"])
            self.assertEqual(error["type"], kind)
            self.assertEqual(result.err, f"kr: error: {error['message']}\n")


class BadInput(ProgramTest):
    def test_model_that_is_missing_or_no_file(self):
        fifo = self.scratch / "fifo"
        os.mkfifo(fifo)
        self.assert_fails(3, "nope.gguf", *RUN, "-p", "x", "-m", "./nope.gguf")
        self.assert_fails(3, "known: smollm2, gemma3, qwen25", *RUN, "-p", "x", "-m", "nope")
        self.assert_fails(3, "regular file", *RUN, "-p", "x", "-m", self.scratch)
        self.assert_fails(3, "regular file", *RUN, "-p", "x", "-m", fifo)
        self.assert_fails(3, "fetch_model.py smollm2", *RUN, "-p", "x", "-m", "smollm2",
                          env=environment(KR_MODELS_DIR=self.scratch))
        self.assert_fails(2, "which model", *RUN, "-p", "x")

    def test_model_that_is_malformed(self):
        whole = self.model.read_bytes()
        bad = self.scratch / "bad.gguf"
        for name, data in (("empty", b""), ("text", b"hello world" * 10), ("magic", whole[:4]),
                           ("half", whole[:len(whole) // 2]), ("short", whole[:-1]),
                           ("counts", whole[:8] + b"\xff" * 16 + whole[24:])):
            with self.subTest(name=name):
                bad.write_bytes(data)
                self.assert_fails(4, ".", *RUN, "-p", "x", "-m", bad)
                self.assert_fails(4, ".", "inspect", bad)

    def test_prompt_that_is_empty_invalid_or_too_long(self):
        base = (*RUN, "-m", self.model)
        self.assert_fails(11, "prompt is empty", *base, "-p", "")
        self.assert_fails(11, "prompt is empty", *base, stdin=b"")
        self.assert_fails(11, "prompt is empty", *base, stdin=b"\n")
        self.assert_fails(11, "prompt is empty", *base, "--ids", "")
        self.assert_fails(11, "offset 2", *base, "-p", b"ab\xff")
        self.assert_fails(11, "offset 4", *base, stdin=b"abcd\xe2\x82")
        self.assert_fails(11, "offset 0", *base, "-p", "x", "--system", b"\xc0\x80")
        self.assert_fails(11, "limit of 16777216 bytes", *base, stdin=b"a" * ((16 << 20) + 1))
        self.assert_fails(11, r"prompt has \d+ tokens, the context holds 8", *base, "-c", "8",
                          stdin=b"word " * 50)

    def test_prompt_file_that_cannot_be_read(self):
        base = (*RUN, "-m", self.model, "-f")
        self.assert_fails(3, "nope", *base, self.scratch / "nope")
        self.assert_fails(3, "regular file", *base, self.scratch)
        bad = self.scratch / "bad.txt"
        bad.write_bytes(b"\x80")
        self.assert_fails(11, "offset 0", *base, bad)

    def test_ids_that_are_no_ids(self):
        base = (*RUN, "-m", self.model, "--ids")
        for value in ("1,,2", "1,x", "-1", "1;2", "1.0", "99999999999", ",", "[1"):
            self.assert_fails(2, "--ids", *base, value)
        self.assert_fails(11, "id 99999 at position 1 is outside", *base, "1,99999")

    def test_context_over_the_models(self):
        self.assert_fails(2, "99999", *RUN, "-m", self.model, "-p", "x", "-c", "99999")

    def test_base_model_needs_raw(self):
        gemma = self.make_model("gemma3")
        self.assert_fails(2, "--raw", *RUN, "-m", gemma, "-p", "x")
        self.assert_fails(2, "--raw", "chat", "-m", gemma)
        self.assert_done(*RUN, "-m", gemma, "-p", "x", "--raw")

    def test_stdout_that_cannot_be_written(self):
        for words in (("run", "-p", "hello", "-n", "4", "--ignore-eos"), ("tokenize", "hello"),
                      ("run", "-p", "hello", "--json")):
            with open("/dev/full", "wb") as full:
                result = kr(*words, "-m", self.model, stdout=full)
            self.assertEqual(result.code, 9, result.err)
            self.assertIn("No space left", result.err)


class Run(ProgramTest):
    def test_report_has_the_fields_of_the_contract(self):
        report = self.assert_done(*RUN, "-m", self.model, "-p", "hello", "--ignore-eos", "--json",
                                  "--logprobs", "3").json()
        for field in ("isa", "threads", "commit", "model_bytes", "bytes_per_token", "read_gbps",
                      "kv_bytes", "n_prompt", "n_generated", "rounds", "prefill_tps", "decode_tps",
                      "ttft_ms", "load_ms", "peak_rss_bytes", "text", "finish_reason", "seed"):
            self.assertIn(field, report)
        self.assertEqual(report["n_generated"], 8)
        self.assertEqual(report["finish_reason"], "length")
        self.assertEqual(report["model_bytes"], self.model.stat().st_size)
        self.assertEqual(len(report["tokens"]), 8)
        for token, step in zip(report["tokens"], report["logprobs"]):
            self.assertEqual((step["id"], len(step["top"])), (token, 3))
            self.assertEqual(step["top"][0]["id"], token)  # greedy
            values = [entry["logprob"] for entry in step["top"]]
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(values[0], 0)

    def test_streamed_text_equals_the_reported_one(self):
        words = (*RUN, "-m", self.model, "-p", "hello", "--ignore-eos")
        streamed = self.assert_done(*words)
        text = self.assert_done(*words, "--json").json()["text"].encode()
        self.assertEqual(streamed.out, text if text.endswith(b"\n") else text + b"\n")
        self.assertIn("tok/s", streamed.err)
        self.assertNotIn(b"\x1b", streamed.out)
        self.assertNotIn("\x1b", streamed.err)

    def test_greedy_tokens_do_not_depend_on_threads_chunk_or_prompt_source(self):
        text = "The quick brown fox jumps over the lazy dog. " * 4
        ids = kr("tokenize", "-m", self.model, text).json()
        base = ("run", "--temp", "0", "-n", "24", "-m", self.model, "--ignore-eos", "--json")
        want = self.assert_done(*base, "--raw", "-p", text).json()["tokens"]
        for words in (["-t", "1"], ["-t", "2"], ["--chunk", "1"], ["--chunk", "7"],
                      ["--chunk", "64"]):
            with self.subTest(words=words):
                got = self.assert_done(*base, "--raw", "-p", text, *words).json()["tokens"]
                self.assertEqual(got, want)
        path = self.scratch / "prompt.txt"
        path.write_text(text + "\n", encoding="utf-8")
        self.assertEqual(self.assert_done(*base, "--raw", "-f", path).json()["tokens"], want)
        by_stdin = self.assert_done(*base, "--raw", stdin=text.encode() + b"\n")
        self.assertEqual(by_stdin.json()["tokens"], want)
        by_ids = self.assert_done(*base, "--ids", json.dumps(ids))
        self.assertEqual(by_ids.json()["tokens"], want)
        self.assertEqual(by_ids.json()["n_prompt"], len(ids))

    def test_same_seed_same_text_and_another_seed_another(self):
        base = ("run", "-m", self.model, "-p", "x", "-n", "16", "--temp", "2", "--json",
                "--ignore-eos", "--top-k", "0", "--top-p", "1")
        first = self.assert_done(*base, "--seed", "7").json()
        again = self.assert_done(*base, "--seed", "7").json()
        other = self.assert_done(*base, "--seed", "8").json()
        self.assertEqual((first["seed"], first["tokens"]), (7, again["tokens"]))
        self.assertNotEqual(first["tokens"], other["tokens"])

    def test_random_seed_is_printed_and_reproduces(self):
        base = ("run", "-m", self.model, "-p", "x", "-n", "16", "--temp", "2", "--ignore-eos")
        first = self.assert_done(*base)
        seed = first.err.rsplit("seed ", 1)[1].split()[0]
        self.assertEqual(self.assert_done(*base, "--seed", seed).out, first.out)

    def test_bias_and_stop_steer_the_generation(self):
        base = (*RUN, "-m", self.model, "--raw", "-p", "x", "--ignore-eos", "--json")
        letter = kr("tokenize", "-m", self.model, "q").json()[-1]
        report = self.assert_done(*base, "--logit-bias", f"{letter}=100").json()
        self.assertEqual(report["tokens"], [letter] * 8)
        text = report["text"]
        report = self.assert_done(*base, "--logit-bias", f"{letter}=100", "--stop", "qqq").json()
        self.assertEqual((report["finish_reason"], report["text"]), ("stop", ""))
        self.assertEqual(len(text.strip()), 8)

    def test_generation_ends_with_the_context(self):
        report = self.assert_done("run", "--temp", "0", "-m", self.model, "--ids", "5,6,7", "-c",
                                  "8", "-n", "100", "--ignore-eos", "--json").json()
        self.assertEqual((report["n_generated"], report["finish_reason"]), (6, "length"))

    def test_reader_that_leaves_early_ends_the_run_quietly(self):
        child = subprocess.Popen([KR, "run", "-m", self.model, "-p", "hello", "-n", "400",
                                  "--ignore-eos"], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=environment())
        child.stdout.read(1)
        child.stdout.close()
        errors = child.stderr.read().decode()
        child.stderr.close()
        self.assertEqual(child.wait(TIMEOUT_S), 0)
        self.assertNotIn("error", errors)


class Interrupts(ProgramTest):
    """A long answer is stopped by signals. The output pipe is not read at first: a full pipe holds
    the program in the middle of its answer, so no test depends on how fast it is."""

    def start(self):
        # The reference kernels: slow enough for a second signal to meet the first one's work.
        return subprocess.Popen([KR, "run", "-m", self.model, "-p", "hello", "-n", "100000",
                                 "--ignore-eos", "-c", "512", "--isa", "ref"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())

    def test_first_interrupt_keeps_the_text_and_ends_well(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            child = self.start()
            first = child.stdout.read(1)
            child.send_signal(number)
            rest, errors = child.communicate(timeout=TIMEOUT_S)
            self.assertEqual(child.returncode, 0, errors)
            self.assertTrue((first + rest).endswith(b"\n"))
            self.assertRegex(errors.decode(), r"generated \d+ \((cancelled|length)\)")

    def test_interrupt_while_waiting_for_a_prompt_has_no_answer(self):
        child = subprocess.Popen([KR, "run", "-m", self.model], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env=environment())
        child.stdin.write(b"he")
        child.stdin.flush()
        self.wait_until_reading(child)
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=TIMEOUT_S)
        self.assertEqual((child.returncode, out), (130, b""), errors)

    def wait_until_reading(self, child):
        """Until it has taken what was written and sleeps in the next read of its pipe."""
        stat = Path(f"/proc/{child.pid}/stat")
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            n_left = fcntl.ioctl(child.stdin, termios.FIONREAD, b"\0" * 4)
            state = stat.read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
            if n_left == b"\0" * 4 and state == "S":
                return
            time.sleep(0.01)
        self.fail("it does not read")


class OtherCommands(ProgramTest):
    def test_tokenize_and_back(self):
        text = "Hello  world\n\tçé 你好 🙂<|im_end|>"
        by_word = self.assert_done("tokenize", "-m", self.model, text).json()
        by_stdin = self.assert_done("tokenize", "-m", self.model, stdin=text.encode()).json()
        path = self.scratch / "t.txt"
        path.write_text(text, encoding="utf-8")
        by_file = self.assert_done("tokenize", "-m", self.model, "-f", path).json()
        self.assertEqual((by_word, by_word), (by_stdin, by_file))
        back = self.assert_done("tokenize", "-m", self.model, "--detokenize",
                                ",".join(map(str, by_word)))
        self.assertEqual(back.out.decode(), text + "\n")
        special = self.assert_done("tokenize", "-m", self.model, "--special", text).json()
        self.assertLess(len(special), len(by_word))
        self.assert_fails(11, "offset 1", "tokenize", "-m", self.model, b"a\xff")
        self.assert_fails(11, "outside", "tokenize", "-m", self.model, "--detokenize", "99999")

    def test_logits_file_is_whole_or_absent(self):
        out = self.scratch / "logits.f32"
        ids = [5, 9, 17, 33]
        base = ("logits", "-m", self.model, "-o", out, "--ids", ",".join(map(str, ids)))
        self.assert_done(*base)
        data = out.read_bytes()
        n_vocab = len(data) // 4 // len(ids)
        self.assertEqual(len(data), 4 * len(ids) * n_vocab)
        rows = [struct.unpack_from(f"<{n_vocab}f", data, 4 * n_vocab * i) for i in range(len(ids))]
        greedy = self.assert_done("run", "--temp", "0", "-n", "1", "-m", self.model, "--json",
                                  "--ignore-eos", "--ids", ",".join(map(str, ids))).json()
        self.assertEqual(max(range(n_vocab), key=rows[-1].__getitem__), greedy["tokens"][0])
        out.unlink()
        self.assert_done(*base, "--chunk", "1")
        self.assertEqual(out.read_bytes(), data)
        out.unlink()
        self.assert_fails(11, "outside", "logits", "-m", self.model, "-o", out, "--ids", "99999")
        self.assert_fails(11, "empty", "logits", "-m", self.model, "-o", out, "--ids", "")
        self.assert_fails(11, "context holds", "logits", "-m", self.model, "-o", out, "--ids",
                          ",".join(["5"] * 1000))
        self.assert_fails(9, "nowhere", "logits", "-m", self.model, "-o",
                          self.scratch / "nowhere" / "x", "--ids", "5")
        self.assert_fails(9, "regular file", "logits", "-m", self.model, "-o", "/dev/null",
                          "--ids", "5")
        self.assert_fails(2, "-o FILE is missing", "logits", "-m", self.model, "--ids", "5")
        self.assertEqual([p.name for p in self.scratch.iterdir() if "logits" in p.name], [])

    def test_attn_qk_moves_logits_a_little(self):
        outs = {}
        for qk in ("f32", "int16", "int8"):
            out = self.scratch / f"{qk}.f32"
            self.assert_done("logits", "-m", self.model, "-o", out, "--ids", "5,6,7,8,9",
                             "--attn-qk", qk)
            outs[qk] = struct.unpack(f"<{out.stat().st_size // 4}f", out.read_bytes())
        for qk, most in (("int16", 0.005), ("int8", 0.1)):
            worst = max(abs(a - b) for a, b in zip(outs["f32"], outs[qk], strict=True))
            self.assertTrue(0 < worst < most, (qk, worst))
        self.assert_fails(2, "--attn-qk", "logits", "-m", self.model, "-o", out, "--ids", "5",
                          "--attn-qk", "int4")

    def test_kv_int8_moves_logits_a_little_and_halves_the_cache(self):
        outs, kv_bytes = {}, {}
        for kv in ("f16", "int8"):
            out = self.scratch / f"kv-{kv}.f32"
            report = self.assert_done("logits", "-m", self.model, "-o", out, "--ids", "5,6,7,8,9",
                                      "--kv", kv, "--json").json()
            self.assertEqual(report["kv"], kv)
            outs[kv] = struct.unpack(f"<{out.stat().st_size // 4}f", out.read_bytes())
            kv_bytes[kv] = report["kv_bytes"]
        worst = max(abs(a - b) for a, b in zip(outs["f16"], outs["int8"], strict=True))
        self.assertTrue(0 < worst < 0.1, worst)
        head = kr("inspect", self.model, "--json").json()["hyper_parameters"]["head_dim"]
        self.assertEqual(kv_bytes["int8"] * 2 * head, kv_bytes["f16"] * (head + 2))
        words = ("run", "-m", self.model, "--ids", "5,6,7", "-n", "8", "--kv", "int8")
        self.assertGreater(len(self.assert_done(*words, "--json").json()["tokens"]), 0)
        self.assert_done(*words, "--attn-qk", "int16")
        for qk in ("f32", "int8"):
            self.assert_fails(2, f"attn_qk {qk} is not built", *words, "--attn-qk", qk)
        self.assert_fails(2, "fp8 is not built for device cpu", "run", "-m", self.model, "--ids",
                          "5,6,7", "--kv", "fp8")

    def test_perplexity_agrees_with_logits(self):
        """The method spelled out again over `kr logits`: chunks, BOS, second halves."""
        import math
        text = self.scratch / "text.txt"
        text.write_text("the cat sat on the mat and the dog ran after it all day. " * 12,
                        encoding="utf-8")
        c = 32
        report = self.assert_done("perplexity", "-m", self.model, "-f", text, "-c", str(c),
                                  "--chunks", "2", "--json").json()
        ids = kr("tokenize", "-m", self.model, text.read_text(encoding="utf-8")).json()
        about = kr("inspect", self.model, "--json").json()["hyper_parameters"]
        nll, n_scored = 0.0, 0
        out = self.scratch / "ppl.f32"
        for chunk in (ids[:c], ids[c:2 * c]):
            if about["add_bos"]:
                chunk[0] = about["token_bos"]
            self.assert_done("logits", "-m", self.model, "-o", out, "--ids",
                             ",".join(map(str, chunk)))
            n_vocab = about["n_vocab"]
            data = struct.unpack(f"<{c * n_vocab}f", out.read_bytes())
            for i in range(c // 2, c - 1):
                row = data[i * n_vocab:(i + 1) * n_vocab]
                top = max(row)
                nll += top + math.log(sum(math.exp(x - top) for x in row)) - row[chunk[i + 1]]
                n_scored += 1
        self.assertEqual((report["n_chunks"], report["n_scored"]), (2, n_scored))
        self.assertAlmostEqual(report["ppl"] / math.exp(nll / n_scored), 1.0, places=4)
        self.assert_fails(11, r"text has \d+ tokens, one chunk takes 512", "perplexity", "-m",
                          self.model, "-f", text)
        self.assert_fails(2, "-f FILE is missing", "perplexity", "-m", self.model)

    def test_inspect_for_people_and_programs(self):
        text = self.assert_done("inspect", self.model).out.decode()
        for word in ("architecture", "KV cache", "Metadata", "token_embd.weight", "Tensors"):
            self.assertIn(word, text)
        report = self.assert_done("inspect", self.model, "--json", "-c", "64").json()
        self.assertEqual(report["arch"], "llama")
        self.assertEqual(report["memory"]["n_ctx"], 64)
        names = [tensor["name"] for tensor in report["tensors"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertIn("general.architecture", report["metadata"])

    def test_bench_reports_the_contract(self):
        report = self.assert_done("bench", "model", "-m", self.model, "-p", "16", "-n", "8", "-r",
                                  "3", "-t", "1", "-d", "4", "--json").json()
        for field in ("isa", "commit", "model_bytes", "bytes_per_token", "kv_bytes", "ttft_ms",
                      "load_ms", "peak_rss_bytes"):
            self.assertIn(field, report)
        self.assertEqual([report[k] for k in ("n_prompt", "n_generated", "rounds", "threads",
                                              "depth")], [16, 8, 3, 1, 4])
        for field in ("read_gbps", "prefill_tps", "decode_tps"):
            self.assertGreater(report[field], 0)
        self.assert_fails(2, "context holds", "bench", "model", "-m", self.model, "-p", "99999")
        windowed = self.assert_done("bench", "model", "-m", self.make_model("gemma3"), "-p", "64",
                                    "-n", "8", "-r", "2", "-t", "1", "-d", "70,90", "--json").json()
        self.assertEqual([r["depth"] for r in windowed], [70, 90])

    def test_models_lists_and_verifies(self):
        env = environment(KR_MODELS_DIR=self.scratch / "models",
                          KR_CACHE_DIR=self.scratch / "cache")
        listed = self.assert_done("models", "--json", env=env).json()["models"]
        self.assertEqual([m["alias"] for m in listed], ["smollm2", "gemma3", "qwen25"])
        self.assertEqual({m["state"] for m in listed}, {"missing"})
        self.assert_done("models", "verify", env=env)
        self.assertEqual(kr("models", "verify", "gemma3", env=env).code, 3)
        (self.scratch / "models").mkdir()
        (self.scratch / "models" / "smollm2.gguf").write_bytes(b"short")
        result = kr("models", "verify", "smollm2", env=env)
        self.assertEqual(result.code, 5)
        self.assertIn("wrong size", result.err)
        with open(self.scratch / "models" / "smollm2.gguf", "wb") as file:
            file.truncate(98362432)  # right size, wrong bytes
        result = kr("models", "verify", "smollm2", env=env)
        self.assertEqual(result.code, 5)
        self.assertIn("digest differs", result.err)
        self.assert_fails(3, "unknown alias 'zebra'", "models", "verify", "zebra", env=env)
        self.assert_fails(2, "list or verify", "models", "fetch", env=env)

    def test_version(self):
        self.assertRegex(self.assert_done("version").out.decode(), r"^kr \d+\.\d+\.\d+ \(")
        self.assertEqual(self.assert_done("--version").out, self.assert_done("version").out)


class Chat(ProgramTest):
    def talk(self, lines, *words, code=0):
        result = kr("chat", "-m", self.model, "--temp", "0", "-n", "6", *words,
                    stdin=lines.encode())
        self.assertEqual(result.code, code, result.err)
        return result

    def test_turns_reuse_the_common_beginning(self):
        result = self.talk("hello\nand again\n/stats\n")
        reused = int(result.err.rsplit("prompt ", 1)[1].split("(")[1].split()[0])
        self.assertGreater(reused, 0)

    def test_reuse_does_not_change_the_answers(self):
        together = self.talk("hello\nand again\n").out
        self.assertTrue(together.startswith(self.talk("hello\n").out))
        chunked = self.talk("hello\nand again\n", "--chunk", "1").out
        self.assertEqual(chunked, together)

    def test_a_window_that_moved_on_is_computed_again(self):
        words = ("chat", "-m", self.make_model("gemma3_chat"), "--temp", "0", "-n", "30")
        line = b"word " * 20 + b"\n"
        once = self.assert_done(*words, stdin=line)
        twice = self.assert_done(*words, stdin=line + b"/reset\n" + line + b"/stats\n")
        self.assertEqual(twice.out, once.out + once.out)
        self.assertIn("(0 reused)", twice.err)

    def test_reset_and_system_change_what_is_rendered(self):
        first = self.talk("hello\n").out
        twice = self.talk("hello\n/reset\nhello\n").out
        self.assertEqual(twice, first + first)
        by_flag = self.talk("/stats\n", "--system", "Be brief.")
        by_command = self.talk("/system Be brief.\n/stats\n")
        self.assertIn("1 messages", by_flag.err)
        self.assertIn("1 messages", by_command.err)
        self.assertIn("0 messages", self.talk("/system x\n/system\n/stats\n").err)

    def test_commands_are_checked(self):
        self.assertIn("/reset", self.talk("/help\n").err)
        self.assertIn("unknown command '/nope'", self.talk("/nope\n", code=2).err)
        self.assertIn("/temp wants", self.talk("/temp 9\n", code=2).err)
        self.assertIn("temperature 1.5", self.talk("/temp 1.5\n/stats\n").err)
        self.assertEqual(self.talk("/exit\nhello\n").out, b"")
        self.assertIn("2 messages", self.talk("//help\n/stats\n").err)

    def test_bad_messages_end_a_piped_chat(self):
        result = kr("chat", "-m", self.model, stdin=b"a\xff\n")
        self.assertEqual((result.code, result.out), (11, b""))
        result = self.talk("word " * 200 + "\n", "-c", "32", code=11)
        self.assertIn("the context holds 32", result.err)

    def test_long_message_over_several_lines(self):
        result = self.talk("one \\\ntwo\n/stats\n")
        self.assertIn("2 messages", result.err)


class Terminal(ProgramTest):
    """With a pseudo-terminal: progress and codes only there, control characters never."""

    def in_terminal(self, words, typed):
        import pty
        leader, follower = pty.openpty()
        child = subprocess.Popen([KR, *words], stdin=follower, stdout=follower, stderr=follower,
                                 env=environment(), start_new_session=True)
        os.close(follower)
        seen = bytearray()

        def read():
            while True:
                try:
                    block = os.read(leader, 4096)
                except OSError:
                    return
                if not block:
                    return
                seen.extend(block)

        reader = threading.Thread(target=read)
        reader.start()
        os.write(leader, typed)
        code = child.wait(TIMEOUT_S)
        reader.join(TIMEOUT_S)
        os.close(leader)
        return code, bytes(seen)

    def test_chat_goes_on_after_a_mistake_and_leaves_on_exit(self):
        code, seen = self.in_terminal(["chat", "-m", self.model, "-n", "4"],
                                      b"/nope\n/temp 9\nhello\n/exit\n")
        self.assertEqual(code, 0, seen)
        self.assertIn(b"unknown command '/nope'", seen)
        self.assertIn(b"/temp wants", seen)
        self.assertIn(b"> ", seen)

    def test_names_from_a_file_cannot_send_terminal_codes(self):
        data = self.model.read_bytes()
        evil = self.scratch / "evil.gguf"
        name = b"general.name"
        at = data.index(name) + len(name) + 4  # behind the type: length, bytes
        length = struct.unpack_from("<Q", data, at)[0]
        evil.write_bytes(data[:at + 8] + b"\x1b" * length + data[at + 8 + length:])
        code, seen = self.in_terminal(["inspect", evil], b"")
        self.assertEqual(code, 0, seen)
        self.assertNotIn(b"\x1b", seen.replace(b"\x1b[K", b""))


if __name__ == "__main__":
    unittest.main()
