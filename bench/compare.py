#!/usr/bin/env python3
"""kr beside llama.cpp on the same GGUF files, threads and sizes: A B A B ..., medians, ratios.

llama-bench is built outside this repository (the source package llama-cpp-python 0.3.36 on PyPI
holds all of llama.cpp; native build, its defaults plus -fa 1). A ratio is printed with the spread
of its pairs; a spread over 5 % says that the machine was busy and the row should not be quoted.

usage: compare.py --llama-bench PATH [--kr build/kr] [-p 256] [-n 128] [-t 2] [-r 5]
                  [--isa LEVEL] MODEL.gguf...
Prints a table, and one JSON line a model with --json."""
import argparse
import json
import statistics
import subprocess
import sys


def run(command):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
    return done.stdout


def kr_round(args, model):
    command = [args.kr, "bench", "model", "-m", model, "-p", str(args.p), "-n", str(args.n),
               "-r", "1", "-t", str(args.t), "--json"]
    if args.isa:
        command += ["--isa", args.isa]
    row = json.loads(run(command))
    return row["prefill_tps"], row["decode_tps"], row


def llama_round(args, model):
    rows = json.loads(run([args.llama_bench, "-m", model, "-p", str(args.p), "-n", str(args.n),
                           "-t", str(args.t), "-r", "1", "-fa", "1", "-o", "json"]))
    speed = {("p" if row["n_prompt"] else "n"): row["avg_ts"] for row in rows}
    return speed["p"], speed["n"]


def spread(values):
    return (max(values) - min(values)) / statistics.median(values)


def compare(args, model):
    kr, llama, info = [], [], {}
    for _ in range(args.r):
        prefill, decode, info = kr_round(args, model)
        kr.append((prefill, decode))
        llama.append(llama_round(args, model))
    row = {"model": model, "isa": info["isa"], "commit": info["commit"], "threads": args.t,
           "n_prompt": args.p, "n_generated": args.n, "rounds": args.r,
           "read_gbps": info["read_gbps"], "bytes_per_token": info["bytes_per_token"]}
    for i, name in enumerate(("prefill", "decode")):
        ratios = [k[i] / l[i] for k, l in zip(kr, llama)]
        row[f"kr_{name}_tps"] = statistics.median(k[i] for k in kr)
        row[f"llama_{name}_tps"] = statistics.median(l[i] for l in llama)
        row[f"{name}_ratio"] = statistics.median(ratios)
        row[f"{name}_ratio_spread"] = spread(ratios)
    return row


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--llama-bench", required=True)
    p.add_argument("--kr", default="build/kr")
    p.add_argument("-p", type=int, default=256)
    p.add_argument("-n", type=int, default=128)
    p.add_argument("-t", type=int, default=2)
    p.add_argument("-r", type=int, default=5)
    p.add_argument("--isa")
    p.add_argument("--json", action="store_true")
    p.add_argument("models", nargs="+")
    args = p.parse_args()
    for model in args.models:
        r = compare(args, model)
        print(json.dumps(r) if args.json else
              f"{model} ({r['isa']}, {r['threads']} threads, commit {r['commit']})\n"
              f"  prefill {r['n_prompt']:4}  kr {r['kr_prefill_tps']:8.1f}  llama.cpp "
              f"{r['llama_prefill_tps']:8.1f}  ratio {r['prefill_ratio']:.2f} "
              f"(spread {r['prefill_ratio_spread']:.0%})\n"
              f"  decode  {r['n_generated']:4}  kr {r['kr_decode_tps']:8.1f}  llama.cpp "
              f"{r['llama_decode_tps']:8.1f}  ratio {r['decode_ratio']:.2f} "
              f"(spread {r['decode_ratio_spread']:.0%})  kr reads "
              f"{r['kr_decode_tps'] * r['bytes_per_token'] / 1e9:.1f} of "
              f"{r['read_gbps']:.1f} GB/s", flush=True)


if __name__ == "__main__":
    main()
