"""Packed weights kept between runs, through the program: options, damage, two processes."""
import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import KR, ProgramTest, environment, kr  # noqa: E402

WORDS = ("run", "--raw", "-p", "The sea", "-n", "4", "--temp", "0")
DATA_OFFSET = 2 << 20


class Cache(ProgramTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = cls.make_model("image")
        cls.n_folders = 0

    def setUp(self):
        Cache.n_folders += 1
        self.folder = self.scratch / f"cache{Cache.n_folders}"
        self.expected = self.assert_done(*WORDS, "-m", self.model, "--no-cache").out

    def run_model(self, *words, env=None):
        """Text is always the same; returns the warnings."""
        result = self.assert_done(*WORDS, "-m", self.model, *words, env=env)
        self.assertEqual(result.out, self.expected)
        return [line for line in result.err.splitlines() if "warning" in line]

    def images(self):
        if not self.folder.exists():
            return []
        return [p for p in self.folder.iterdir() if p.suffix in (".kra", ".kru")
                and p.stat().st_size > DATA_OFFSET]

    def test_a_second_run_uses_the_image_of_the_first(self):
        self.run_model("--cache-dir", self.folder)
        (image,) = self.images()
        before = image.stat()
        self.assertEqual(self.run_model("--cache-dir", self.folder), [])
        (image,) = self.images()
        self.assertEqual(image.stat().st_ino, before.st_ino)  # used, not written again
        self.assertGreater(image.stat().st_mtime_ns, before.st_mtime_ns)

    def test_the_environment_names_the_folder_and_no_cache_wins(self):
        env = environment(KR_CACHE_DIR=self.folder)
        self.run_model("--no-cache", env=env)
        self.assertEqual(self.images(), [])
        self.run_model(env=env)
        self.assertEqual(len(self.images()), 1)

    def test_the_size_bounds_the_folder(self):
        self.run_model("--cache-dir", self.folder, "--cache-size", "1")
        self.assertEqual(self.images(), [])
        self.assert_fails(2, "--cache-size wants a whole number", *WORDS, "-m", self.model,
                          "--cache-size", "0")

    def test_damaged_images_are_reported_once_and_never_used(self):
        def flip(at):
            def change(data):
                data[at] ^= 1
                return data
            return change
        damages = [flip(DATA_OFFSET), flip(-1), flip(0), flip(50), flip(4100),
                   lambda data: data[:-1], lambda data: data[:5000], lambda data: b""]
        self.run_model("--cache-dir", self.folder)
        for damage in damages:
            (image,) = self.images()
            image.write_bytes(damage(bytearray(image.read_bytes())))
            lines = self.run_model("--cache-dir", self.folder)
            self.assertEqual(len(lines), 1, lines)
            self.run_model("--cache-dir", self.folder)
            self.assertEqual(self.run_model("--cache-dir", self.folder), [])

    def test_a_folder_that_cannot_be_used_gives_one_warning(self):
        lines = self.run_model("--cache-dir", self.model)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("artifact cache off", lines[0])

    def test_models_verify_changes_nothing(self):
        env = environment(KR_CACHE_DIR=self.folder, KR_MODELS_DIR=self.scratch)
        files = self.assert_done("models", "verify", "--json", env=env).json()["cache"]
        self.assertEqual(files, [])
        self.assertFalse(self.folder.exists())
        self.folder.write_text("x", encoding="utf-8")
        result = kr("models", "verify", env=env)
        self.assertEqual(result.code, 3)
        self.assertIn("no folder", result.err)

    def test_models_verify_checks_the_images(self):
        env = environment(KR_CACHE_DIR=self.folder, KR_MODELS_DIR=self.scratch / "none")
        self.run_model(env=env)
        good = self.assert_done("models", "verify", "--json", env=env).json()["cache"]
        self.assertEqual([file["state"] for file in good], ["ok", "ok", "ok"])
        self.assertIn("cache", self.assert_done("models", "verify", env=env).out.decode())
        (image,) = self.images()
        data = bytearray(image.read_bytes())
        data[DATA_OFFSET + 3000000] ^= 1
        image.write_bytes(data)
        result = kr("models", "verify", env=env)
        self.assertEqual(result.code, 5)
        self.assertIn(str(image), result.err)
        self.assertIn("checksum", result.out.decode())
        self.assertEqual(self.run_model("--no-cache", env=env), [])

    def test_processes_that_start_together_agree(self):
        words = [str(w) for w in (KR, *WORDS, "-m", self.model, "--cache-dir", self.folder)]
        for _ in range(2):
            runs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                     env=environment()) for _ in range(4)]
            for run in runs:
                out, err = run.communicate(timeout=120)
                self.assertEqual((run.returncode, out), (0, self.expected), err)
                self.assertNotIn(b"warning", err)
        self.assertEqual(len(self.images()), 1)
        self.assertEqual([p for p in os.listdir(self.folder) if p.startswith(".kr-tmp")], [])


if __name__ == "__main__":
    unittest.main()
