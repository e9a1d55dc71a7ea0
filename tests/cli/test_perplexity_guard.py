"""No kernel may move a model's perplexity against the scalar references.

The bar is 0.3 % over the ten thousand tokens of bench/perplexity_guard.py, which takes the
references minutes. Here are few tokens: two kernels that differ in the last bit round some
activations to different int8 values, and over n tokens that alone moves SmolLM2's perplexity by
12 % / sqrt(n) (one standard deviation). So the bar is wider here, and catches what is wrong, not
what is imprecise."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import ROOT, kr  # noqa: E402

LEVELS = ("avx2", "avx512", "amx")  # ascending
MOVE_MAX = 0.03
CASES = (("smollm2", "128", "3"), ("gemma3", "128", "1"))
VARIANTS = (("--attn-qk", "f32"), ("--attn-qk", "int16"), ("--attn-qk", "int8"), ("--kv", "int8"))


class PerplexityGuard(unittest.TestCase):
    def perplexity(self, alias, ctx, chunks, *words):
        result = kr("perplexity", "-m", alias, "-f", ROOT / "LICENSE", "-c", ctx, "--chunks",
                    chunks, "--json", *words)
        self.assertEqual(result.code, 0, result.err)
        return result.json()

    def test_every_level_of_this_machine_keeps_the_perplexity_of_the_references(self):
        best = kr("version", "--json").json()["isa"]
        if best not in LEVELS:
            self.skipTest(f"no level above ref that this test knows: {best}")
        levels = LEVELS[:LEVELS.index(best) + 1]
        for case in CASES:
            expected = self.perplexity(*case, "--isa", "ref", "--attn-qk", "f32")
            self.assertEqual(expected["isa"], "ref")
            for level in levels:
                for words in (("--isa", level) + v for v in VARIANTS):
                    with self.subTest(model=case[0], words=words):
                        report = self.perplexity(*case, *words)
                        self.assertEqual(report["isa"], level)
                        self.assertEqual(report["n_scored"], expected["n_scored"])
                        move = abs(report["ppl"] / expected["ppl"] - 1)
                        self.assertLess(move, MOVE_MAX, report["ppl"])


if __name__ == "__main__":
    unittest.main()
