"""The short form of soak.py: nothing grows, nothing gets lost, on a server with 1000 idle
connections, 200 streams and clients that disconnect. No assertion on speed."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from soak import parse, soak  # noqa: E402


class ShortSoak(unittest.TestCase):
    def test_nothing_grows_while_clients_disconnect(self):
        report = soak(parse(["--seconds", "15", "--calm", "3"]))
        self.assertEqual(report["wrong"], [], report)
        self.assertGreater(report["left"], 100, report)
        self.assertGreater(report["gaps_storm"], 200, report)


if __name__ == "__main__":
    unittest.main()
