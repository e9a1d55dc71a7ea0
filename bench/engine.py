#!/usr/bin/env python3
"""The engine's table: every line of it is one word here.

usage: engine.py [FIGURE...] [--quick] [--models smollm2,qwen25] [--rounds 5] [--threads N]
                 [--isa LEVEL] [--kr build/kr] [--out bench/out] [--off-build DIR]
                 [--off-kr PROGRAM]
Figures (all without arguments):
  throughput  total decode of 8 and 32 streams beside llama.cpp's batched bench
  mixed       8 streams while a prompt of 4096 tokens arrives: p99 gap, prefill beside fixed chunks
  kv          decode at 8k context and bytes, INT8 beside f16: SmolLM2 one stream, Qwen 8
  memory      peak memory of the whole process at 8k x 8 streams, INT8 beside f16
  growth      bytes moved per token while one context grows to 8k
  prefix      time to the first token with 95 % of 2048 tokens cached; cost without hits
  sched       the scheduler's time per step with 256 sequences
  telemetry   this build beside one with KR_TELEMETRY=OFF (--off-kr, or made in --off-build):
              throughput of 8 streams and CPU time for a token, in slices (bench/slices.py)
  --quick     small sizes, one model, one round: shows that all works, no figures
Sides take turns, in one process where the question allows it (`kr bench engine`), else process by
process. Figures are medians of the rounds; a spread of ratios over 5 % is inconclusive.
Environment: KR_PEERS_DIR (bench/peers.py), KR_MODELS_DIR. Writes engine.json and engine.md."""
import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peers
import slices
from batched import llama_batched
from run import ROOT, ROUNDS_MIN, SPREAD_MAX, Failed, call, model_paths, say

STALL_MS = {"smollm2": 100, "qwen25": 750}
KV_STREAMS = {"smollm2": 1, "qwen25": 8}
QUADS = 40  # of a round of `telemetry`


def verdict(values):
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / middle if middle > 0 else 1
    is_steady = len(values) >= ROUNDS_MIN and spread <= SPREAD_MAX
    return spread, "steady" if is_steady else "inconclusive"


class Bench:
    """Runs the commands and collects the lines of the table."""

    def __init__(self, args):
        self.args, self.lines, self.reports = args, [], []

    def engine(self, model, *words, program=None):
        command = [program or self.args.kr, "bench", "engine", "-m", model, *words, "--json"]
        if self.args.threads:
            command += ["-t", self.args.threads]
        if self.args.isa:
            command += ["--isa", self.args.isa]
        report = call(command)
        self.reports.append({"command": " ".join(map(str, command)), "report": report})
        return report

    def line(self, figure, model, value, must, is_met, **details):
        """must: the bar in words."""
        row = {"figure": figure, "model": Path(model).stem, "value": value, "must": must,
               "met": bool(is_met), **details}
        self.lines.append(row)
        say(f"{figure}, {row['model']}: {value:.4g} (must be {must})")

    def ratios(self, figure, model, values, must, is_met, **details):
        spread, steadiness = verdict(values)
        value = statistics.median(values)
        self.line(figure, model, value, must, is_met(value), spread=spread, verdict=steadiness,
                  rounds=values, **details)


# ---- figures ------------------------------------------------------------------------------------

def throughput(bench, models):
    args = bench.args
    n_prompt, n_generate = (32, 16) if args.quick else (128, 64)
    for model in models:
        for streams in (4,) if args.quick else (8, 32):
            ours, theirs = [], []
            for turn in range(args.rounds):
                say(f"throughput: {model.stem}, {streams} streams, {turn + 1} of {args.rounds}")
                report = bench.engine(model, "-p", n_prompt, "-n", n_generate, "-r", 1,
                                      "--streams", streams)
                ours.append(report)
                rival = llama_batched(peers.batched(), model, n_prompt, n_generate, [streams],
                                      report["threads"])
                theirs.append(rival[streams])
            bench.ratios(
                f"decode of {streams} streams / llama.cpp", model,
                [a["decode_tps_total"] / b for a, b in zip(ours, theirs)], "≥ 1.5",
                lambda ratio: ratio >= 1.5,
                kr_tps=statistics.median(a["decode_tps_total"] for a in ours),
                llama_tps=statistics.median(theirs),
                kr_prefill_tps=statistics.median(a["prefill_tps"] for a in ours),
                gap_p99_ms=statistics.median(a["gap_p99_ms"] for a in ours))


def mixed(bench, models):
    n_prompt = 256 if bench.args.quick else 4096
    for model in models:
        bound = STALL_MS.get(model.stem, 250)
        report = bench.engine(model, "--mode", "mixed", "-p", n_prompt, "-r", bench.args.rounds,
                              "--streams", 8, "--max-stall-ms", bound)
        bench.line("p99 gap / max_stall_ms", model, report["gap_bound_ratio"], "≤ 1.1",
                   report["gap_bound_ratio"] <= 1.1, max_stall_ms=bound,
                   gap_p99_ms=report["gap_p99_ms"], gap_max_ms=report["gap_max_ms"],
                   gaps=report["gaps"], fixed_gap_p99_ms=report["fixed"]["gap_p99_ms"])
        bench.line("prefill meanwhile / fixed chunks", model, report["prefill_ratio"], "≥ 0.85",
                   report["prefill_ratio"] >= 0.85, spread=report["prefill_ratio_spread"],
                   verdict=report["prefill_ratio_verdict"], kr_tps=report["prefill_tps"],
                   fixed_tps=report["fixed"]["prefill_tps"])


def kv(bench, models):
    n_generate, rounds = (4, 3) if bench.args.quick else (32, 7)
    n_prompt = 128 if bench.args.quick else 8192 - n_generate * (rounds + 1)
    for model in models:
        streams = KV_STREAMS.get(model.stem, 1)
        report = bench.engine(model, "--mode", "kv", "-p", n_prompt, "-n", n_generate, "-r", rounds,
                              "--streams", streams)
        bench.line(f"decode at 8k, {streams} streams, INT8 / f16", model, report["decode_ratio"],
                   "≥ 1.2", report["decode_ratio"] >= 1.2, spread=report["decode_ratio_spread"],
                   verdict=report["decode_ratio_verdict"],
                   int8_tps=report["decode_tps_total_int8"],
                   f16_tps=report["decode_tps_total_f16"])
        bench.line("bytes of keys and values, INT8 / f16", model, report["kv_bytes_ratio"],
                   "≤ 0.53", report["kv_bytes_ratio"] <= 0.53)


def memory(bench, models):
    n_prompt, n_generate = (128, 4) if bench.args.quick else (8128, 8)
    for model in models:
        peaks = {}
        bench.engine(model, "-p", 16, "-n", 2, "-r", 1, "--streams", 1)  # packs the weights
        for kind in ("f16", "int8"):
            say(f"memory: {model.stem}, {kind}")
            report = bench.engine(model, "-p", n_prompt, "-n", n_generate, "-r", 1, "--streams", 8,
                                  "--kv", kind)
            peaks[kind] = report["peak_rss_bytes"]
        ratio = peaks["int8"] / peaks["f16"]
        bench.line("peak memory at 8k x 8, INT8 / f16", model, ratio, "≤ 0.8", ratio <= 0.8,
                   **{f"{kind}_mb": round(peak / 1e6, 1) for kind, peak in peaks.items()})


def growth(bench, models):
    n_prompt, n_generate = (16, 200) if bench.args.quick else (16, 8175)
    model = models[0]
    report = bench.engine(model, "--mode", "growth", "-p", n_prompt, "-n", n_generate)
    moved = [point["kv_bytes_moved_per_token"] for point in report["points"]]
    bench.line("bytes moved per token, most of all doublings", model, max(moved), "constant",
               max(moved) <= 1.1 * min(moved), moved=moved,
               ms_per_token=[point["ms_per_token"] for point in report["points"]])


def prefix(bench, models):
    n_prompt, n_generate = (256, 4) if bench.args.quick else (2048, 32)
    for model in models:
        rounds = bench.args.rounds if bench.args.quick else 2 * bench.args.rounds + 1
        report = bench.engine(model, "--mode", "prefix", "-p", n_prompt, "-n", n_generate, "-r",
                              rounds)
        bench.line("first token, 95 % cached / cold", model, report["ttft_ratio"], "≤ 0.15",
                   report["ttft_ratio"] <= 0.15, spread=report["ttft_ratio_spread"],
                   verdict=report["ttft_ratio_verdict"], cold_ms=report["ttft_cold_ms"],
                   warm_ms=report["ttft_warm_ms"], cached_tokens=report["cached_tokens"])
        bench.line("throughput without hits, cache on / off", model, report["tps_ratio"], "≥ 0.99",
                   report["tps_ratio"] >= 0.99, spread=report["tps_ratio_spread"],
                   verdict=report["tps_ratio_verdict"], on_tps=report["tps_cache_on"],
                   off_tps=report["tps_cache_off"])


def sched(bench, models):
    streams, n_generate = (16, 8) if bench.args.quick else (256, 64)
    model = models[0]
    report = bench.engine(model, "-p", 16, "-n", n_generate, "-r", 3, "--streams", streams)
    bench.line(f"scheduler, us a step at {streams} sequences", model, report["sched_us"], "≤ 50",
               report["sched_us"] <= 50, decode_tps_total=report["decode_tps_total"])


def build_without_telemetry(args):
    """A build folder like that of --kr, with KR_TELEMETRY=OFF."""
    words = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DKR_TELEMETRY=OFF"]
    cache = args.kr.parent / "CMakeCache.txt"
    if cache.is_file():
        words += ["-D" + text.strip() for text in cache.read_text(encoding="utf-8").splitlines()
                  if text.startswith(("KR_CARGO_DIR", "CMAKE_C_COMPILER:"))]
    for command in (["cmake", "-S", ROOT, "-B", args.off_build, *words],
                    ["cmake", "--build", args.off_build, "--target", "kr_cli"]):
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise Failed(done.stdout.decode("utf-8", "replace")[-1500:])
    return args.off_build / "kr"


class Slices:
    """A running `kr bench engine --mode slices`."""

    def __init__(self, args, program, model):
        words = [program, "bench", "engine", "-m", model, "--mode", "slices", "-p", 1, "-n", 9,
                 "--streams", 8, "-t", args.threads, *(["--isa", args.isa] if args.isa else [])]
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def take(self):
        """(tokens a second while all decode, CPU seconds for a token of the whole slice)"""
        cpu = slices.cpu_s(self.process)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            said = self.process.stderr.read().decode("utf-8", "replace").strip()
            raise Failed(f"{self.process.args[0]} ended: {said[-1000:]}")
        found = json.loads(line)
        cpu = slices.cpu_s(self.process) - cpu
        return (found["tokens_decode"] / found["decode_s"],
                cpu / (found["tokens_prompt"] + found["tokens_decode"]))

    def __enter__(self):
        self.take()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def telemetry(bench, models):
    args, model, rounds = bench.args, models[0], []
    if not args.off_kr:
        say(f"telemetry: building {args.off_build}")
    programs = (args.kr, args.off_kr or build_without_telemetry(args))
    about_threads(bench, model)  # packs the weights, too: both sides map the same file
    n_rounds, n_quads = (args.rounds, 1) if args.quick else (5 * args.rounds, QUADS)
    for turn in range(n_rounds):
        say(f"telemetry: {turn + 1} of {n_rounds}")
        first = turn % 2  # to be started
        with Slices(args, programs[first], model) as a, \
                Slices(args, programs[1 - first], model) as b:
            pair = (b, a) if first else (a, b)
            rounds.append(slices.quads(pair, Slices.take, n_quads))
    slices.lines(bench, model, rounds, ("throughput with telemetry / without",
                                        "CPU time for a token without telemetry / with"))


FIGURES = {"throughput": throughput, "mixed": mixed, "kv": kv, "memory": memory, "growth": growth,
           "prefix": prefix, "sched": sched, "telemetry": telemetry}


# ---- report -------------------------------------------------------------------------------------

def table(report):
    lines = [f"{report['date']}, {report['machine']['cpu']}, {report['machine']['cores']} cores, "
             f"{report['isa']}, {report['threads']} threads, {report['build']['compiler']} "
             f"{report['build']['type']}, commit {report['commit']}", "",
             "| figure | model | value | must | met | spread | details |",
             "|---|---|---|---|---|---|---|"]
    for row in report["lines"]:
        spread = f"{row['spread']:.3f}" if "spread" in row else "–"
        if row.get("verdict") == "inconclusive":
            spread += " ?"
        details = ", ".join(f"{key} {value:.4g}" for key, value in row.items()
                            if key not in ("value", "spread", "met") and
                            isinstance(value, (int, float)))
        lines.append(f"| {row['figure']} | {row['model']} | {row['value']:.4g} | {row['must']} | "
                     f"{'yes' if row['met'] else 'NO'} | {spread} | {details} |")
    lines += [f"\n{name} failed: {why}" for name, why in report["failed"].items()]
    return "\n".join(lines) + "\n"


def parser_of(doc):
    """The words that all tables take."""
    p = argparse.ArgumentParser(usage=doc.replace("%", "%%"))
    p.add_argument("figures", nargs="*", metavar="FIGURE")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--models")
    p.add_argument("--rounds", type=int)
    p.add_argument("--threads", type=int)
    p.add_argument("--isa")
    p.add_argument("--kr", default=ROOT / "build" / "kr", type=Path)
    p.add_argument("--out", default=ROOT / "bench" / "out", type=Path)
    return p


def parse(parser, figures):
    args = parser.parse_args()
    args.models = (args.models or ("smollm2" if args.quick else "smollm2,qwen25")).split(",")
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.kr = args.kr.resolve()
    args.figures = args.figures or list(figures)
    unknown = [name for name in args.figures if name not in figures]
    if unknown:
        parser.error(f"no figure {unknown[0]}; there are {', '.join(figures)}")
    return args


def run_figures(args, figures, name, about=None):
    """Measures what args names and writes NAME.json and NAME.md. about(bench, model): a report of
    the engine that says on what; without it the first figure's is taken. Exits."""
    bench, failed = Bench(args), {}
    models, begin = model_paths(args.models), time.time()
    first = about(bench, models[0]) if about else None
    for figure in args.figures:
        try:
            figures[figure](bench, models)
        except Failed as error:
            say(f"{figure}: {error}")
            failed[figure] = str(error)
    if not bench.lines:
        sys.exit("bench: nothing could be measured: " + "; ".join(failed.values()))
    first = first or next(r["report"] for r in bench.reports if "commit" in r["report"])
    report = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begin)),
              "minutes": round((time.time() - begin) / 60, 1), "rounds": args.rounds,
              **{key: first[key] for key in ("machine", "build", "isa", "threads", "commit")},
              "lines": bench.lines, "failed": failed, "reports": bench.reports}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = table(report)
    (args.out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text, end="")
    say(f"results and table are in {args.out}")
    sys.exit(1 if failed else 0)


def about_threads(bench, model):
    """The machine, and as many threads as the engine takes."""
    report = bench.engine(model, "-p", 16, "-n", 2, "-r", 1, "--streams", 1)
    bench.args.threads = report["threads"]
    return report


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--off-build", default=ROOT / "build-telemetry-off", type=Path)
    parser.add_argument("--off-kr", type=Path)
    run_figures(parse(parser, FIGURES), FIGURES, "engine")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
