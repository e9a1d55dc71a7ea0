"""docs/server.md names every route of endpoints.def, and every code of errors.c and of the
transport with its status."""
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_program import ROOT  # noqa: E402

DOC = (ROOT / "docs" / "server.md").read_text()


class Docs(unittest.TestCase):
    def test_routes(self):
        table = (ROOT / "app" / "server" / "endpoints.def").read_text()
        rows = re.findall(r'^KR_ENDPOINT\(\w+, "(\w+)", "([^"]+)"', table, re.M)
        documented = set(re.findall(r"`((?:GET|POST|DELETE) /[^`]+)`", DOC))
        self.assertGreater(len(rows), 10)
        self.assertEqual({f"{m} {p}" for m, p in rows} - documented, set())

    def test_codes(self):
        server = ROOT / "app" / "server"
        rows = re.findall(r'^    \{"(\w+)", (\d+), ', (server / "errors.c").read_text(), re.M)
        for source in (server / "http").glob("*.c"):
            for first, status, code in re.findall(
                    r'(?:\b([45]\d\d) : )?\b([45]\d\d), "([a-z_]+)"', source.read_text()):
                rows += [(code, status)] + ([(code, first)] if first else [])
        documented = set()
        for status, codes in re.findall(r"^\| (\d{3}) \| (.+) \|$", DOC, re.M):
            documented |= {(code, status) for code in re.findall(r"`([a-z_]+)`", codes)}
        self.assertGreater(len(rows), 40)
        self.assertEqual(documented ^ set(rows), set())


if __name__ == "__main__":
    unittest.main()
