#!/usr/bin/env python3
"""Decode throughput of many sequences in one step: `kr bench model --streams` beside llama.cpp's
llama-batched-bench (and ik_llama.cpp's), on the same file with the same threads.

The programs take turns, round by round; figures are medians of the rounds, a ratio is the median
of the rounds' ratios and above a spread of 5 % called inconclusive; the ratio of the best rounds
stands beside it, for machines that do other work too. Every sequence has a prompt of
its own (nothing is shared on either side); flash attention is on for the rivals, which is faster
for them. kr's time holds the sampling of every token, the rivals' holds none (they decode random
tokens).

usage: batched.py [--models smollm2,qwen25] [--streams 8,32] [--prompt 128] [--n 64]
                  [--threads N] [--rounds 3] [--isa LEVEL] [--kr build/kr] [--no-kr]
                  [--llama PROGRAM] [--json]
Environment: KR_PEERS_DIR (bench/peers.py), KR_MODELS_DIR, KR_IK_BATCHED: llama-batched-bench of
ik_llama.cpp, run with run-time repacking."""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import peers
import run

ROW = re.compile(r"^\|" + r"\s*([0-9.]+)\s*\|" * 10, re.M)  # PP TG B N_KV T_PP S_PP T_TG S_TG ...


def llama_batched(program, model, prompt, n, streams, threads, flags=("-fa", "on")):
    """{number of streams: tokens a second in total} of one run of llama-batched-bench. The table
    is read, not the JSON, since ik_llama.cpp's has no such output."""
    n_ctx = max(streams) * (prompt + n)
    command = [Path(program).resolve(), "-m", model, "-c", n_ctx, "-b", 2048, "-ub", 512, "-npp",
               prompt, "-ntg", n, "-npl", ",".join(map(str, streams)), "-t", threads, *flags]
    try:
        with tempfile.TemporaryDirectory() as folder:  # it leaves a log where it runs
            done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder,
                                  timeout=run.TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise run.Failed(f"{program}: {error}") from error
    text = done.stdout.decode("utf-8", "replace")
    speeds = {int(row[2]): float(row[7]) for row in ROW.findall(text)}
    if done.returncode != 0 or set(speeds) != set(streams):
        raise run.Failed(f"{program}: {(text.strip().splitlines() or ['no output'])[-1]}")
    return speeds


def kr_streams(args, model, streams):
    command = [args.kr, "bench", "model", "-m", model, "-p", args.prompt, "-n", args.n,
               "--streams", ",".join(map(str, streams)), "-r", 1, "-t", args.threads, "--json"]
    reports = run.call(command + (["--isa", args.isa] if args.isa else []))
    reports = reports if isinstance(reports, list) else [reports]
    return {report["streams"]: report["decode_tps_total"] for report in reports}


def sides(args):
    """{name: function of (model, streams) that gives {streams: tok/s}}, kr first."""
    out = {} if args.no_kr else {"kr": lambda model, s: kr_streams(args, model, s)}
    program = args.llama or peers.batched()
    out["llama.cpp"] = lambda model, s: llama_batched(program, model, args.prompt, args.n, s,
                                                      args.threads)
    ik = os.environ.get("KR_IK_BATCHED")
    if ik:
        out["ik_llama.cpp"] = lambda model, s: llama_batched(
            ik, model, args.prompt, args.n, s, args.threads, ("-fa", "on", "-rtr"))
    return out


def summary(rounds, baseline):
    row = run.summary(rounds, baseline)
    row["best_tps"] = max(rounds)
    if "kr_ratio" in row:
        row["kr_best_ratio"] = max(baseline) / max(rounds)
    return row


def measure(args):
    """{model: {streams: {side: summary of its rounds}}}"""
    report = {}
    measured = sides(args)
    for model in run.model_paths(args.models):
        samples = {s: {} for s in args.streams}
        for turn in range(args.rounds):
            for name, speeds in measured.items():
                run.say(f"round {turn + 1} of {args.rounds}: {model.stem}, {name}")
                for s, tps in speeds(model, args.streams).items():
                    samples[s].setdefault(name, []).append(tps)
        report[model.stem] = {
            s: {name: summary(rounds, by_side.get("kr", rounds))
                for name, rounds in by_side.items()}
            for s, by_side in samples.items()}
    return report


def print_table(report):
    for model, by_streams in report.items():
        for streams, by_side in by_streams.items():
            for name, row in by_side.items():
                line = f"{model:10} {streams:4} streams  {name:14} {row['tps']:10.1f} tok/s"
                if "kr_ratio" in row:
                    line += (f"   kr is {row['kr_ratio']:.2f}x of it ({row['verdict']}; best "
                             f"rounds {row['kr_best_ratio']:.2f}x)")
                print(line)


def parse():
    p = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    p.add_argument("--models", default="smollm2,qwen25", type=lambda t: t.split(","))
    p.add_argument("--streams", default=[8, 32], type=lambda t: [int(s) for s in t.split(",")])
    p.add_argument("--prompt", type=int, default=128)
    p.add_argument("--n", type=int, default=64)
    p.add_argument("--threads", type=int)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--isa")
    p.add_argument("--kr", default=run.ROOT / "build" / "kr", type=Path)
    p.add_argument("--no-kr", action="store_true")
    p.add_argument("--llama", type=Path, help="llama-batched-bench; default: bench/peers.py's")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    args.kr = args.kr.resolve()
    args.threads = args.threads or run.call([args.kr, "version", "--json"])["threads"]
    return args


def main():
    args = parse()
    report = measure(args)
    if args.json:
        print(json.dumps({"prompt": args.prompt, "n_generated": args.n, "threads": args.threads,
                          "rounds": args.rounds, "models": report}, indent=1))
    else:
        print_table(report)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except run.Failed as failure:
        sys.exit(f"bench: {failure}")
