#!/usr/bin/env python3
"""Perplexity of every level and variant beside the scalar references', on one text.

The house bar: no kernel moves perplexity by more than 0.3 %. Rounding of activations to int8 makes
any two kernels that differ in a last bit differ by about 12 % / sqrt(scored tokens) on SmolLM2, so
the text has to be long: 10 000 scored tokens for 0.12 %. The deviation of the comparison is
printed beside each figure, made from the chunks' own differences.

With --kv the question is another one: a KV cache of int8 beside one of f16, both on the best level,
and the bar 0.5 %.

usage: perplexity_guard.py [--kr build/kr] [--models smollm2] [--chunks 40] [-c 512] [--text FILE]
                           [--kv]
Default text: the documents and headers of this repository. Prints a table; exit 1 when a bar is
broken by more than two standard deviations."""
import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BAR = 0.003
BAR_INT8 = 0.015  # opt-in: eight bits a score cost Qwen 0.6 to 0.9 %
BAR_KV = 0.005
LEVELS = ("avx2", "avx512", "amx", "neon", "dotprod", "i8mm")
VARIANTS = (("--attn-qk", "f32"), ("--attn-qk", "int16"), ("--attn-qk", "int8"))


def likelihoods(kr, model, paths, ctx, *words):
    """Negative log-likelihoods a token, one a piece of the text; None when this machine has not got
    the level. Anything else that fails ends the program: it must not pass for a missing level."""
    out = []
    for piece in paths:
        done = subprocess.run([kr, "perplexity", "-m", model, "-f", piece, "-c", str(ctx), "--json",
                               "--chunks", "1", *words], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)
        error = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode != 0 and ("this machine has" in error or "is not built" in error):
            return None
        if done.returncode != 0:
            sys.exit(f"{model} {' '.join(words)}: status {done.returncode}: {error}")
        out.append(json.loads(done.stdout)["nll"])
    return out


def pieces(text, n, ctx, folder):
    """n files of the text, long enough for one chunk of ctx tokens each."""
    size = 3400 * ctx // 512  # English with code: enough in every vocabulary
    texts = [text[i * size:(i + 1) * size] for i in range(len(text) // size)][:n]
    paths = []
    for i, part in enumerate(texts):
        paths.append(Path(folder) / f"{i}.txt")
        paths[-1].write_text(part)
    return paths


def judge(name, nll, truth, bar):
    """Prints how far the perplexity moved; whether that breaks the bar beyond doubt."""
    moves = [a - b for a, b in zip(nll, truth)]
    move = statistics.mean(moves)
    deviation = statistics.stdev(moves) / math.sqrt(len(moves))
    bad = abs(move) - 2 * deviation > bar
    print(f"  {name:24} {100 * move:+.3f} %  (one deviation {100 * deviation:.3f} %)"
          f"{'  BROKEN' if bad else ''}", flush=True)
    return bad


def main():
    p = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    p.add_argument("--kr", default=str(ROOT / "build" / "kr"))
    p.add_argument("--models", default="smollm2")
    p.add_argument("--chunks", type=int, default=40)
    p.add_argument("-c", type=int, default=512)
    p.add_argument("--text")
    p.add_argument("--kv", action="store_true")
    args = p.parse_args()
    if args.text:
        text = Path(args.text).read_text()
    else:
        files = [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*.md")), ROOT / "LICENSE",
                 ROOT / "include" / "kr.h", *sorted(ROOT.glob("src/*/*.h"))]
        text = "\n".join(f.read_text() for f in files)
    broken = False
    with tempfile.TemporaryDirectory() as folder:
        parts = pieces(text, args.chunks, args.c, folder)
        for model in args.models.split(",") if args.kv else ():
            truth = likelihoods(args.kr, model, parts, args.c, "--kv", "f16")
            nll = likelihoods(args.kr, model, parts, args.c, "--kv", "int8")
            print(f"{model}: kv f16, {len(parts)} chunks of {args.c}, perplexity "
                  f"{math.exp(statistics.mean(truth)):.4f}", flush=True)
            broken = judge("--kv int8", nll, truth, BAR_KV) or broken
        for model in () if args.kv else args.models.split(","):
            truth = likelihoods(args.kr, model, parts, args.c, "--isa", "ref",
                                "--attn-qk", "f32")
            print(f"{model}: ref, {len(parts)} chunks of {args.c}, perplexity "
                  f"{math.exp(statistics.mean(truth)):.4f}", flush=True)
            for level in LEVELS:
                for variant in VARIANTS:
                    words = ("--isa", level, *variant)
                    nll = likelihoods(args.kr, model, parts, args.c, *words)
                    if nll is None:
                        print(f"  {level}: not on this machine", flush=True)
                        break
                    bar = BAR_INT8 if "int8" in variant else BAR
                    broken = judge(" ".join(words[1:]), nll, truth, bar) or broken
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
