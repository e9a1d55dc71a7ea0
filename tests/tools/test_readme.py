"""The C programs in the README compile as they stand there and print what they should."""
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("KR_BUILD_DIR", ROOT / "build")).resolve()


class Readme(unittest.TestCase):
    def run_example(self, index):
        sources = re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "example.c").write_text(sources[index])
            subprocess.run([BUILD / "tests" / "make_tiny_gguf", "llama", folder / "model.gguf"],
                           check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["cc", "-Wall", "-Werror", "example.c", f"-I{ROOT}/include",
                            f"-L{BUILD}", "-lkr", f"-Wl,-rpath,{BUILD}", "-o", "example"],
                           cwd=folder, check=True)
            done = subprocess.run(["./example"], cwd=folder, stdout=subprocess.PIPE, text=True,
                                  timeout=120)
        self.assertEqual(done.returncode, 0)
        return done.stdout

    def test_the_session_example_prints_a_token(self):
        self.assertRegex(self.run_example(0), r"^next token: \d+\n$")

    def test_the_engine_example_answers_both_prompts(self):
        self.assertRegex(self.run_example(1), r"^rows decoded: \d+\n$")


if __name__ == "__main__":
    unittest.main()
