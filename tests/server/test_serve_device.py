"""`kr serve` and `kr batch` with --device cuda: refused by name where there is no device and where
an option is not built for it; answers on the emulated device of tests/cuda/emulator, where that is
built."""
import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import BUILD, KR, WAIT_S, Server, TinyTest, environment  # noqa: E402

EMULATED = BUILD / "tests" / "emulated"
COMPLETION = {"prompt": [1, 2, 3, 4, 5], "max_tokens": 4, "temperature": 0}


class Device(TinyTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source = cls.scratch / "in.jsonl"
        cls.source.write_text(json.dumps({"custom_id": "a", "method": "POST",
                                          "url": "/v1/completions", "body": COMPLETION}) + "\n")

    def run_on_device(self, *words, env=None):
        done = subprocess.run([str(word) for word in (KR, *words, "-m", self.model, "--no-cache",
                                                      "--device", "cuda")],
                              env=env or environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=WAIT_S, check=False)
        return done.returncode, done.stderr.decode("utf-8", "replace")

    def assert_refused(self, code, pattern, *words):
        got, err = self.run_on_device(*words)
        self.assertEqual(got, code, err)
        self.assertRegex(err, pattern)
        self.assertEqual(err.count("error: "), 1, err)

    def test_a_machine_without_a_device_says_so(self):
        if os.path.exists("/dev/nvidiactl"):
            return  # the message is for machines that have none
        target = self.scratch / "refused.jsonl"
        self.assert_refused(3, "CUDA", "serve", "--port", 0)
        self.assert_refused(3, "CUDA", "batch", self.source, target)
        self.assertFalse(target.exists() and target.read_bytes())

    def test_what_is_not_built_for_the_device_is_refused_by_name(self):
        self.assert_refused(2, "attn_qk of integers is not built for device cuda", "serve",
                            "--port", 0, "--attn-qk", "int8")
        self.assert_refused(2, "invariant on is not built for device cuda", "serve", "--port", 0,
                            "--invariant", "on")

    def test_answers_come_from_the_device(self):
        if not EMULATED.exists():
            return  # built without nvcc; tools/run_tests.py refuses that in CI
        env = environment(LD_LIBRARY_PATH=EMULATED)
        server = Server(self.model, "--device", "cuda", "--no-cache", env=env)
        try:
            card = server.call("GET", "/v1/models").json()["data"][0]
            self.assertRegex(card["kr"]["isa"], "^sm_90")
            answer = server.post("/v1/completions", COMPLETION)
            self.assertEqual((answer.status, answer.json()["usage"]["completion_tokens"]),
                             (200, 4), answer.text)
            answer = server.post("/v1/embeddings", {"input": "Hello there", "model": "tiny"})
            self.assertEqual(answer.status, 200, answer.text)
            vector = answer.json()["data"][0]["embedding"]
            self.assertAlmostEqual(sum(x * x for x in vector), 1.0, places=3)
        finally:
            status = server.stop()
        self.assertEqual(status, 0)
        target = self.scratch / "out.jsonl"
        code, err = self.run_on_device("batch", self.source, target, env=env)
        self.assertEqual(code, 0, err)
        self.assertEqual(json.loads(target.read_text())["response"]["status_code"], 200)

    def test_a_lost_device_fails_requests_and_asks_for_a_new_start(self):
        if not EMULATED.exists():
            return
        fault = self.scratch / "fault"
        server = Server(self.model, "--device", "cuda", "--no-cache",
                        env=environment(LD_LIBRARY_PATH=EMULATED, KR_EMULATED_LOST=fault))
        try:
            self.assertEqual(server.post("/v1/completions", COMPLETION).status, 200)
            fault.write_bytes(b"")
            answer = server.post("/v1/completions", COMPLETION)
            self.assertEqual((answer.status, answer.error()["code"]), (503, "device_lost"),
                             answer.text)
            try:
                self.assertEqual(server.call("GET", "/readyz").status, 503)
            except OSError:
                pass  # it does not listen any more
            self.assertEqual(server.process.wait(WAIT_S), 75)
            server.reader.join(WAIT_S)
            self.assertRegex(server.said(), "model tiny: .*CUDA_ERROR_ILLEGAL_ADDRESS")
            self.assertRegex(server.said(), "the device was lost.*exit code 75")
        finally:
            server.kill()

    def test_inspect_says_what_the_device_would_hold(self):
        for words in ((), ("--parallel", 8, "-c", 64), ("--chunk", 32)):
            done = subprocess.run([str(word) for word in (KR, "inspect", self.model, "--no-cache",
                                                          "--device", "cuda", "--json", *words)],
                                  env=environment(), capture_output=True, check=True)
            memory = json.loads(done.stdout)["memory"]
            self.assertEqual(memory["device"], "cuda")
            parts = [memory[f"{part}_bytes"] for part in ("device_weight", "device_kv", "scratch",
                                                          "device_work")]
            self.assertTrue(all(part > 0 for part in parts), memory)
            self.assertEqual(memory["total_bytes"], sum(parts))
            self.assertEqual(memory["n_seqs"], 8 if "--parallel" in words else 1)
        text = subprocess.run([KR, "inspect", self.model, "--no-cache", "--device", "cuda"],
                              env=environment(), capture_output=True, check=True).stdout.decode()
        self.assertIn("Memory of the CUDA device", text)


if __name__ == "__main__":
    unittest.main()
