"""The program with --device cuda: on the emulated device of tests/cuda/emulator where that is
built, and where there is no device at all."""
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import BUILD, ProgramTest, environment, kr  # noqa: E402

EMULATED = BUILD / "tests" / "emulated"
IDS = "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20"


class DeviceTest(ProgramTest):
    def run_on(self, device, *words):
        env = environment(LD_LIBRARY_PATH=EMULATED) if device == "cuda" else environment()
        result = kr(*words, "--device", device, "--no-cache", "--json", env=env)
        self.assertEqual(result.code, 0, result.err)
        return result.json()

    def test_a_machine_without_a_device_says_so(self):
        if os.path.exists("/dev/nvidiactl"):
            return  # the message is for machines that have none
        self.assert_fails(3, "CUDA", "run", "-m", self.model, "--ids", "1", "--device", "cuda")

    def test_run_generates_on_the_device(self):
        if not EMULATED.exists():
            return  # built without nvcc; tools/run_tests.py refuses that in CI
        words = ("run", "-m", self.model, "--ids", IDS, "-n", "6", "--temp", "0", "--ignore-eos")
        report = self.run_on("cuda", *words)
        self.assertEqual((report["device"], report["n_generated"]), ("cuda", 6))
        self.assertRegex(report["isa"], "^sm_90")
        self.assertFalse(report["invariant"])

    def test_perplexity_is_that_of_the_cpu(self):
        if not EMULATED.exists():
            return
        text = self.scratch / "text"
        text.write_text("the quick brown fox jumps over the lazy dog " * 20)
        words = ("perplexity", "-m", self.model, "-f", text, "-c", "64", "--chunks", "2")
        cpu, cuda = self.run_on("cpu", *words), self.run_on("cuda", *words)
        self.assertLess(abs(cuda["ppl"] / cpu["ppl"] - 1), 0.005)


if __name__ == "__main__":
    unittest.main()
