#!/usr/bin/env python3
"""warm_start.py: what a start costs when weights must be packed and when the image is mapped.

For each model, interleaved rounds of `kr run` with one prompt token and one generated token:
`cold` with --no-cache (packs), `warm` with the image of an earlier run. Taken from the program's
own clock: open (model and session) and first token (which checks the mapped weights). The page
cache is hot for both, the writing of the image is in neither. One JSON object on stdout; every
figure is a median in milliseconds, `ratio_*` is warm over cold of those medians, `best_*` of the
fastest rounds. CPU time of the whole process stands beside, for machines that are not quiet.

    bench/warm_start.py [--kr build/kr] [--rounds 7] [--threads N] [MODEL...]
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("smollm2", "gemma3", "qwen25")


def run(args, model, *words):
    command = [str(args.kr), "run", "-m", model, "--ids", "1", "-n", "1", "--temp", "0", "-c",
               "512", "--json", *words]
    if args.threads:
        command += ["-t", str(args.threads)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    wall_ms = (time.perf_counter() - start) * 1e3
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3
    if done.returncode != 0:
        sys.exit(done.stderr.decode("utf-8", "replace"))
    report = json.loads(done.stdout)
    return {"open_ms": report["load_ms"], "first_token_ms": report["ttft_ms"],
            "start_ms": report["load_ms"] + report["ttft_ms"], "process_ms": wall_ms,
            "process_cpu_ms": cpu_ms, "peak_rss_mb": report["peak_rss_bytes"] / 1e6}


def middle(rows):
    return {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}


def spread(rows, key):
    values = [row[key] for row in rows]
    return [round(min(values), 2), round(max(values), 2)]


def best(rows, key):
    return min(row[key] for row in rows["warm"]) / min(row[key] for row in rows["cold"])


def measure(args, model, folder):
    words = {"cold": ["--no-cache"], "warm": ["--cache-dir", folder]}
    writing = run(args, model, *words["warm"])  # packs and leaves the image
    run(args, model, *words["warm"])
    rows = {"cold": [], "warm": []}
    for _ in range(args.rounds):
        for kind in rows:
            rows[kind].append(run(args, model, *words[kind]))
    cold, warm = middle(rows["cold"]), middle(rows["warm"])
    return {"model": model, "cold": cold, "warm": warm,
            "open_ms_range": {kind: spread(rows[kind], "open_ms") for kind in rows},
            "first_process_ms": round(writing["process_ms"], 1),
            "ratio_open": round(warm["open_ms"] / cold["open_ms"], 4),
            "ratio_start": round(warm["start_ms"] / cold["start_ms"], 4),
            "ratio_cpu": round(warm["process_cpu_ms"] / cold["process_cpu_ms"], 4),
            "best_open": round(best(rows, "open_ms"), 4),
            "best_start": round(best(rows, "start_ms"), 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kr", type=Path, default=ROOT / "build" / "kr")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("models", nargs="*", default=MODELS)
    args = parser.parse_args()
    if args.rounds < 5:
        parser.error("--rounds: medians want at least 5")
    version = subprocess.run([str(args.kr), "version", "--json"], capture_output=True, check=True)
    with tempfile.TemporaryDirectory(prefix="kr-warm-") as folder:
        results = [measure(args, model, folder) for model in args.models]
    print(json.dumps({"bench": "warm_start", "rounds": args.rounds,
                      "version": json.loads(version.stdout), "results": results}, indent=2))


if __name__ == "__main__":
    main()
