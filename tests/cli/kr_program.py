"""What the tests of the program share: where it is, how it is run, and tiny models."""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("KR_BUILD_DIR", ROOT / "build")).resolve()
KR = BUILD / "kr"
TIMEOUT_S = 120


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        return json.loads(self.out)


def environment(**changes):
    """The caller's, without its options: each has a name there."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith("KR_") or name in ("KR_BUILD_DIR", "KR_MODELS_DIR")}
    env.update({name: str(value) for name, value in changes.items()})
    return env


def kr(*words, stdin=b"", env=None, **more):
    """Runs the program; words may be str, bytes or paths."""
    done = subprocess.run([KR, *words], input=stdin, stdout=more.pop("stdout", subprocess.PIPE),
                          stderr=subprocess.PIPE, timeout=TIMEOUT_S, env=env or environment(),
                          check=False, **more)
    return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


class ProgramTest(unittest.TestCase):
    """A scratch folder with a tiny model, and assertions on how the program fails."""

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        cls.scratch = Path(holder.name)
        cls.model = cls.make_model("llama")

    @classmethod
    def make_model(cls, preset):
        path = cls.scratch / f"{preset}.gguf"
        subprocess.run([BUILD / "tests" / "make_tiny_gguf", preset, path], check=True,
                       stdout=subprocess.DEVNULL)
        return path

    def assert_fails(self, code, pattern, *words, **more):
        """Exit code, exactly one human line that names the trouble, nothing on stdout."""
        result = kr(*words, **more)
        self.assertEqual((result.code, result.out), (code, b""), result.err)
        lines = result.err.splitlines()
        self.assertEqual(len(lines), 1, result.err)
        self.assertTrue(lines[0].startswith("kr: error: "), result.err)
        self.assertRegex(lines[0], pattern)
        return result

    def assert_done(self, *words, **more):
        result = kr(*words, **more)
        self.assertEqual(result.code, 0, result.err)
        return result
