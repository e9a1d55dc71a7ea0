"""bench/*.py --help: the text of a script holds percent signs, which argparse reads as formats."""

import subprocess
import sys
import unittest
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
TABLES = ["batched", "engine", "perplexity_guard", "run", "serve", "server", "warm_start"]


class Help(unittest.TestCase):
    def test_each_table_explains_itself(self):
        for name in TABLES:
            with self.subTest(name):
                ran = subprocess.run([sys.executable, BENCH / f"{name}.py", "--help"],
                                     capture_output=True, text=True, timeout=60)
                self.assertEqual(ran.returncode, 0, ran.stderr)
                self.assertTrue(ran.stdout.startswith("usage:"), ran.stdout)


if __name__ == "__main__":
    unittest.main()
