"""The C program in the README compiles as it stands there and prints a token."""
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("KR_BUILD_DIR", ROOT / "build")).resolve()


class Readme(unittest.TestCase):
    def test_the_library_example_compiles_and_runs(self):
        source = re.search(r"```c\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "example.c").write_text(source)
            subprocess.run([BUILD / "tests" / "make_tiny_gguf", "llama", folder / "model.gguf"],
                           check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["cc", "-Wall", "-Werror", "example.c", f"-I{ROOT}/include",
                            f"-L{BUILD}", "-lkr", f"-Wl,-rpath,{BUILD}", "-o", "example"],
                           cwd=folder, check=True)
            done = subprocess.run(["./example"], cwd=folder, stdout=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, r"^next token: \d+\n$")


if __name__ == "__main__":
    unittest.main()
