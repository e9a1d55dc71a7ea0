"""docs/runtime.md: its examples are run, its tables name every method, code and refusal."""
import json
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from runtime_program import Runtime, entries  # noqa: E402
from serve_program import ROOT  # noqa: E402

DOC = (ROOT / "docs" / "runtime.md").read_text()
# Members whose value is the same on every machine and model.
FIXED = {"id", "jsonrpc", "method", "stream_id", "protocol", "protocol_version", "limits", "state",
         "type", "success", "code", "kr_status", "param", "event", "finish_reason", "is_final",
         "tokens_generated", "is_vision_model", "message"}


class Docs(unittest.TestCase):
    def assert_like(self, wanted, got, where, is_fixed=False):
        """The same members and types everywhere, the same values where they are fixed."""
        if isinstance(wanted, dict):
            self.assertEqual(sorted(wanted), sorted(got), where)
            for name, value in wanted.items():
                self.assert_like(value, got[name], f"{where}.{name}", name in FIXED)
        elif isinstance(wanted, list):
            self.assertEqual(bool(wanted), bool(got), where)
            for one, other in zip(wanted, got):
                self.assert_like(one, other, where)
        elif isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
            self.assertIsInstance(got, (int, float), where)
            self.assertTrue(not is_fixed or wanted == got, where)
        else:
            self.assertIs(type(wanted), type(got), where)
            if is_fixed and "..." not in str(wanted):
                self.assertEqual(wanted, got, where)

    def received(self, client, wanted):
        if "id" in wanted:
            return client.wait(lambda: client.answers.get(wanted["id"]), wanted)
        stream = wanted["params"]["stream_id"]
        got = client.end_of(stream)
        if wanted["method"] == "stream.chunk":  # a step may give several on a busy machine
            return {"jsonrpc": "2.0", "method": "stream.chunk",
                    "params": {"stream_id": stream, **entries(got)[0]}}
        for method, params in got:
            if method == wanted["method"]:
                return {"jsonrpc": "2.0", "method": method, "params": params}
        raise AssertionError(f"no {wanted}")

    def test_examples(self):
        blocks = re.findall(r"^```rpc\n(.*?)^```$", DOC, re.M | re.S)
        runtime = Runtime(model="smollm2")
        n_checked = 0
        try:
            for line in "".join(blocks).splitlines():
                message = json.loads(line[2:])
                if line.startswith("> "):
                    runtime.client.send_line(line[2:] + "\n")
                else:
                    self.assertTrue(line.startswith("< "), line)
                    got = self.received(runtime.client, message)
                    self.assert_like(message, got, line[:90])
                    n_checked += 1
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime.process.poll() is None:
                runtime.kill()
        self.assertGreater(n_checked, 8)

    def test_tables(self):
        table = (ROOT / "app" / "rpc" / "methods.def").read_text()
        names = re.findall(r'^KR_RPC(?:_LATER)?\((?:\w+, )?"([^"]+)"', table, re.M)
        self.assertGreater(len(names), 20)
        for name in names:
            self.assertIn(f"`{name}`", DOC)
        header = (ROOT / "app" / "rpc" / "message.h").read_text()
        codes = re.findall(r"RPC_E_\w+ = (-\d+)", header)
        self.assertEqual(len(codes), 12)
        self.assertEqual(sorted(codes), sorted(re.findall(r"^\| (-32\d+) \|", DOC, re.M)))
        source = (ROOT / "app" / "rpc" / "message.c").read_text()
        for word in re.findall(r'return "(\w+Error|InvalidRequest|Cancelled|Timeout)"', source):
            self.assertIn(f"`{word}`", DOC)
        fields = (ROOT / "app" / "rpc" / "generate.c").read_text()
        for field in re.findall(r'(?:json_)?read_\w+\(&?reader, "(\w+)"', fields):
            self.assertTrue(f"`{field}`" in DOC or f"`{field}[]`" in DOC, field)


if __name__ == "__main__":
    unittest.main()
