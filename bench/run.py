#!/usr/bin/env python3
"""`make bench`: kr beside llama.cpp and mlx-lm (and ik_llama.cpp) on the same models in one run.

The engines take turns, round by round, so that a busy moment hits all of them; figures are medians
of the rounds, ratios are medians of the rounds' ratios, and a spread of ratios over 5 % is called
inconclusive. Each side runs with the number of threads that is best for it, tried out first. A
process per turn; the model file is the same for all but mlx-lm, which gets the same weights in
bfloat16 (tools/gguf_to_hf.py) and, being slow, fewer rounds, short prompts and short answers.

usage: run.py [--quick] [--models smollm2,gemma3,qwen25] [--rounds 5] [--mlx-rounds 3] [--no-mlx]
              [--no-llama] [--threads N] [--isa LEVEL] [--kr build/kr] [--out bench/out]
  --quick     smollm2 only, prefill 256, 1 round, few tokens: shows that all works, no figures
Environment: KR_PEERS_DIR (bench/peers.py), KR_MODELS_DIR, KR_IK_BENCH: llama-bench of
ik_llama.cpp, run with run-time repacking.
Writes results.json, table.md, speed.png and speed.svg into --out."""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peers

ROOT = Path(__file__).resolve().parent.parent
SPREAD_MAX = 0.05
ROUNDS_MIN = 3  # of fewer rounds the spread says nothing
TIMEOUT_S = 3600
MLX_SIZES = [256]
MLX_TOKENS = 16


class Failed(Exception):
    pass


def call(command, **env):
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False,
                              env={**os.environ, **env})
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Failed(f"{' '.join(command)}: {lines[-1] if lines else done.returncode}")
    return json.loads(done.stdout)


class Kr:
    """A side: speeds(model, threads, sizes, n) -> {"prefill 256": tok/s, ..., "decode": tok/s}."""
    name = "kr"

    def __init__(self, program, isa):
        self.program, self.isa, self.info = program, isa, {}

    def speeds(self, model, threads, sizes, n):
        out = {}
        for i, size in enumerate(sizes):
            command = [self.program, "bench", "model", "-m", model, "-p", size, "-n",
                       n if i == 0 else 2, "-r", 1, "-t", threads, "--json"]
            report = call(command + (["--isa", self.isa] if self.isa else []))
            out[f"prefill {size}"] = report["prefill_tps"]
            if i == 0:
                out["decode"] = report["decode_tps"]
                self.info[Path(model).stem] = report
        return out


class Llama:
    def __init__(self, name, program, flags):
        self.name, self.program, self.flags = name, program, flags

    def speeds(self, model, threads, sizes, n):
        rows = call([self.program, "-m", model, "-p", ",".join(map(str, sizes)), "-n", n, "-t",
                     threads, "-r", 1, *self.flags, "-o", "json"])
        out = {}
        for row in rows:
            if row["n_gen"] == 0:
                out[f"prefill {row['n_prompt']}"] = row["avg_ts"]
            elif row["n_prompt"] == 0:
                out["decode"] = row["avg_ts"]
        return out


class Mlx:
    name = "mlx-lm"

    def __init__(self):
        self.python = peers.python("mlx")

    def speeds(self, model, threads, sizes, n):
        weights = peers.hf_weights(Path(model).stem, model)
        sizes = [size for size in sizes if size in MLX_SIZES]
        report = call([self.python, ROOT / "bench" / "mlx_round.py", weights,
                       ",".join(map(str, sizes)), min(n, MLX_TOKENS)],
                      OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
        out = {f"prefill {size}": report["prefill_tps"][str(size)] for size in sizes}
        out["decode"] = report["decode_tps"]
        return out


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def model_paths(names):
    home = os.environ.get("KR_MODELS_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) if home else Path(cache) / "kr" / "models"
    paths = [(folder / f"{name}.gguf").absolute() for name in names]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        sys.exit(f"bench: no {gone[0]}; tools/fetch_model.py {' '.join(names)} gets it")
    return paths


def thread_choices(version):
    """Physical cores; with hyper-threads or many cores also all CPUs and half the cores."""
    cores, cpus = version["threads"], len(os.sched_getaffinity(0))
    return sorted({cores, cpus, max(cores // 2, 1)} if cpus > cores or cores > 2 else {cores})


def best_threads(side, model, choices, tokens):
    if len(choices) == 1 or isinstance(side, Mlx):
        return max(choices)
    scores = {}
    for threads in choices:
        speeds = side.speeds(model, threads, [256], tokens)
        scores[threads] = speeds["prefill 256"] * speeds["decode"]
    best = max(scores, key=scores.get)
    say(f"{side.name}, {Path(model).stem}: best with {best} of {choices} threads")
    return best


def summary(samples, baseline):
    """Median, and against kr's samples of the same rounds the ratio kr / this one."""
    row = {"tps": statistics.median(samples), "rounds": samples}
    pairs = [k / s for k, s in zip(baseline, samples)]
    if pairs and samples is not baseline:
        ratio = statistics.median(pairs)
        row["kr_ratio"] = ratio
        row["spread"] = (max(pairs) - min(pairs)) / ratio
        is_steady = len(pairs) >= ROUNDS_MIN and row["spread"] <= SPREAD_MAX
        row["verdict"] = "steady" if is_steady else "inconclusive"
    return row


def measure(args, sides, models):
    """{model: {side: {figure: [speeds]}}}; a side that fails is left out of the rest of the run."""
    version = call([args.kr, "version", "--json"])
    choices = [args.threads] if args.threads else thread_choices(version)
    threads, samples, failed = {}, {}, {}
    for model in models:
        for side in sides:
            try:
                if side.name not in failed:
                    threads[side.name, model.stem] = best_threads(side, model, choices, args.n)
            except Failed as error:
                if side is sides[0]:
                    raise
                say(f"{side.name} is left out: {error}")
                failed[side.name] = str(error)
    for turn in range(args.rounds):
        for model in models:
            for side in sides:
                if side.name in failed or (isinstance(side, Mlx) and turn >= args.mlx_rounds):
                    continue
                say(f"round {turn + 1} of {args.rounds}: {model.stem}, {side.name}")
                try:
                    speeds = side.speeds(model, threads[side.name, model.stem], args.sizes, args.n)
                except Failed as error:
                    if side is sides[0]:
                        sys.exit(f"bench: {error}")
                    say(f"{side.name} is left out: {error}")
                    failed[side.name] = str(error)
                    continue
                for figure, speed in speeds.items():
                    samples.setdefault(model.stem, {}).setdefault(side.name, {}).setdefault(
                        figure, []).append(speed)
    used = {f"{side}/{model}": n for (side, model), n in threads.items()}
    return version, samples, used, failed


def results(args, sides, models):
    begin = time.time()
    version, samples, threads, failed = measure(args, sides, models)
    report = {"machine": None, "isa": version["isa"], "commit": version["commit"],
              "threads": threads, "rounds": args.rounds, "n_generated": args.n,
              "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begin)),
              "minutes": round((time.time() - begin) / 60, 1), "left_out": failed, "models": {}}
    for model, by_side in samples.items():
        info = sides[0].info[model]
        report["machine"], report["build"] = info["machine"], info["build"]
        report["isa"] = info["isa"]
        figures = {}
        for side, by_figure in by_side.items():
            for figure, values in by_figure.items():
                base = by_side["kr"].get(figure, [])
                figures.setdefault(figure, {})[side] = summary(values, base)
        decode = figures["decode"]["kr"]["tps"]
        report["models"][model] = {
            "figures": figures, "read_gbps": info["read_gbps"],
            "bytes_per_token": info["bytes_per_token"],
            "decode_gbps": decode * info["bytes_per_token"] / 1e9}
    report["geometric_mean"] = means(report["models"])
    return report


def means(models):
    """Geometric mean of all ratios kr / side."""
    logs = {}
    for model in models.values():
        for by_side in model["figures"].values():
            for side, row in by_side.items():
                if "kr_ratio" in row:
                    logs.setdefault(side, []).append(math.log(row["kr_ratio"]))
    return {side: math.exp(statistics.mean(values)) for side, values in logs.items()}


def table(report):
    names = [s for s in ("kr", "llama.cpp", "ik_llama.cpp", "mlx-lm")
             if any(s in row for m in report["models"].values() for row in m["figures"].values())]
    lines = [f"{report['date']}, {report['machine']['cpu']}, {report['machine']['cores']} cores, "
             f"{report['isa']}, {report['build']['compiler']} {report['build']['type']}, commit "
             f"{report['commit']}; tok/s, medians of {report['rounds']} rounds in turns; in "
             "brackets kr's ratio to it (median of the rounds' ratios; ? = inconclusive)", "",
             "| model | figure | " + " | ".join(names) + " |",
             "|---|---|" + "---|" * len(names)]
    for model, row in report["models"].items():
        for figure, by_side in row["figures"].items():
            cells = []
            for name in names:
                cell = by_side.get(name)
                text = f"{cell['tps']:.1f}" if cell else "–"
                if cell and "kr_ratio" in cell:
                    mark = "" if cell["verdict"] == "steady" else " ?"
                    text += f" ({cell['kr_ratio']:.2f}×{mark})"
                cells.append(text)
            lines.append(f"| {model} | {figure} | " + " | ".join(cells) + " |")
    lines.append("")
    for model, row in report["models"].items():
        lines.append(f"- {model}: decode reads {row['decode_gbps']:.1f} GB/s of weights, "
                     f"{row['read_gbps']:.1f} GB/s can be read")
    for side, mean in report["geometric_mean"].items():
        lines.append(f"- geometric mean kr / {side}: {mean:.2f}×")
    for side, why in report["left_out"].items():
        lines.append(f"- {side} is incomplete: {why}")
    return "\n".join(lines) + "\n"


def parse():
    p = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    p.add_argument("--quick", action="store_true")
    p.add_argument("--models")
    p.add_argument("--rounds", type=int)
    p.add_argument("--mlx-rounds", type=int, default=3)
    p.add_argument("--no-mlx", action="store_true")
    p.add_argument("--no-llama", action="store_true")
    p.add_argument("--no-plot", action="store_true")
    p.add_argument("--threads", type=int)
    p.add_argument("--isa")
    p.add_argument("--kr", default=ROOT / "build" / "kr", type=Path)
    p.add_argument("--out", default=ROOT / "bench" / "out", type=Path)
    args = p.parse_args()
    args.models = (args.models or ("smollm2" if args.quick else "smollm2,gemma3,qwen25")).split(",")
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.sizes = [256] if args.quick else [256, 2048]
    args.n = 32 if args.quick else 128
    return args


def main():
    args = parse()
    models = model_paths(args.models)
    sides = [Kr(args.kr.resolve(), args.isa)]
    if not args.no_llama:
        sides.append(Llama("llama.cpp", peers.llama(), ["-fa", "1"]))
    if os.environ.get("KR_IK_BENCH"):
        sides.append(Llama("ik_llama.cpp", os.environ["KR_IK_BENCH"], ["-fa", "1", "-rtr", "1"]))
    if not args.no_mlx:
        sides.append(Mlx())
        for model in models:
            peers.hf_weights(model.stem, model)
    report = results(args, sides, models)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = table(report)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")
    if not args.no_plot:
        subprocess.run([peers.python("plot"), ROOT / "bench" / "plot.py", args.out], check=True)
    say(f"results, table and plots are in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Failed as failure:
        sys.exit(f"bench: {failure}")
