#!/usr/bin/env python3
"""The table of the runtime and of the package kr-serve: every line of it is one word here.

usage: serve.py [FIGURE...] [--quick] [--models smollm2] [--rounds 5] [--threads N] [--ctx 1024]
                [--isa LEVEL] [--kr build/kr] [--package bindings/node] [--out bench/out]
Figures (all without arguments):
  roundtrip  p95 of `tokenize` of a word over stdio, beside a bare ping-pong Node <-> C over pipes
             whose lines have the same lengths
  tensor     16 MB there and back in shared memory / as JSON (limit of messages raised), and copies
  batch      100 `tokenize` calls together / awaited one by one: messages, time
  inprocess  token rate of the addon / `kr run`
  child      token rate of the child transport / the addon
  session    50 questions through the package / in one `kr chat` that forgets between them, which is
             how the command line answers many prompts in one process; both from the start of the
             process to its end, one question at a time, greedy, at most 64 tokens
  streams    16 streams x 1000 tokens, half of them left at a random place in one of four ways, 1000
             times: texts, ends, memory, descriptors (a tiny model that says what it is asked to)
  kill       kill -9 of the runtime while 4 streams and 2 calls run, 100 times
  --quick    little work: shows that all works, no figures
Sides take turns; figures are medians of the rounds, a spread of ratios over 5 % is inconclusive.
Needs the built package (npm run build), its addon, build/bench_pipe_echo and make_tiny_gguf.
Environment: KR_MODELS_DIR. Writes serve.json and serve.md."""
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine import about_threads, parse, parser_of, run_figures
from run import ROOT, TIMEOUT_S, Failed, say

FILES = Path(__file__).resolve().parent
MEMORY_SLACK = 8 << 20
ERROR = re.compile(r"\s*\w*Error( \[\w+\])?:")


def node(args, figure, model, *words, **more):
    """What serve.mjs says of a figure."""
    options = {"package": str(args.package), "kr": str(args.kr), "echo": str(args.echo),
               "model": str(model), "threads": args.threads, "ctx": args.ctx,
               "isa": args.isa, "quick": args.quick, "rounds": args.rounds, **more}
    command = ["node", *words, FILES / "serve.mjs", figure, json.dumps(options)]
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT_S,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"node: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        told = [line for line in lines if ERROR.match(line)] or lines[-1:]
        raise Failed(told[0] if told else f"node ended with {done.returncode}")
    return json.loads(done.stdout)


def column(rows, key):
    return [row[key] for row in rows]


# ---- figures ------------------------------------------------------------------------------------

def roundtrip(bench, models):
    found = node(bench.args, "roundtrip", models[0])
    bench.reports.append({"figure": "roundtrip", "report": found})
    rows, model = found["rounds"], models[0]
    p95 = statistics.median(column(rows, "p95"))
    bench.line("round trip over stdio, p95, µs", model, p95, "≤ 200", p95 <= 200, n=found["n"],
               p50_us=statistics.median(column(rows, "p50")),
               p99_us=statistics.median(column(rows, "p99")))
    bench.ratios("round trip, p95 / bare ping-pong", model,
                 [row["p95"] / row["bareP95"] for row in rows], "≤ 4", lambda ratio: ratio <= 4,
                 bare_p95_us=statistics.median(column(rows, "bareP95")),
                 bare_p50_us=statistics.median(column(rows, "bareP50")))


def tensor(bench, models):
    found = node(bench.args, "tensor", models[0])
    bench.reports.append({"figure": "tensor", "report": found})
    rows, model = found["rounds"], models[0]
    bench.ratios(f"{found['bytes'] / 1e6:.0f} MB there and back, JSON / shared memory", model,
                 [row["jsonMs"] / row["sharedMs"] for row in rows], "≥ 20",
                 lambda ratio: ratio >= 20, json_ms=statistics.median(column(rows, "jsonMs")),
                 shared_ms=statistics.median(column(rows, "sharedMs")))
    bench.line("copies of it on the way, each side", model, found["copies"], "≤ 1",
               found["copies"] <= 1)


def batch(bench, models):
    found = node(bench.args, "batch", models[0])
    bench.reports.append({"figure": "batch", "report": found})
    rows, model = found["rounds"], models[0]
    messages = [1 - row["batchedMessages"] / row["singleMessages"] for row in rows]
    bench.line("100 tokenize calls together: messages saved", model, min(messages), "≥ 0.95",
               min(messages) >= 0.95, messages=max(column(rows, "batchedMessages")))
    bench.ratios("100 tokenize calls together / one by one: time", model,
                 [row["batchedMs"] / row["singleMs"] for row in rows], "≤ 0.5",
                 lambda ratio: ratio <= 0.5, single_ms=statistics.median(column(rows, "singleMs")),
                 batched_ms=statistics.median(column(rows, "batchedMs")))


def rates(bench, model, name, side, other, bar):
    found = node(bench.args, "rates", model, sides=[side, other])
    bench.reports.append({"figure": name, "report": found})
    rows = found["rounds"]
    bench.ratios(f"token rate, {side} / {'kr run' if other == 'run' else other}",
                 model, [row[side] / row[other] for row in rows], f"≥ {bar}",
                 lambda ratio: ratio >= bar, n=found["n"],
                 tps=statistics.median(column(rows, side)),
                 other_tps=statistics.median(column(rows, other)))


def inprocess(bench, models):
    rates(bench, models[0], "inprocess", "in-process", "run", 0.98)


def child(bench, models):
    rates(bench, models[0], "child", "child", "in-process", 0.95)


def system_of(index):
    return f"{index + 1} of fifty."


def chat_session(args, model, questions, n_tokens):
    """Seconds of one `kr chat` that answers each question afresh. A system message of its own keeps
    what the chat has computed from being of use: `kr run` would not have it, and the runtime's
    prefix cache counts in pages."""
    words = [args.kr, "chat", "-m", model, "-n", n_tokens, "-c", args.ctx, "--temp", 0,
             "-t", args.threads, *(["--isa", args.isa] if args.isa else [])]
    said = "".join(f"/system {system_of(i)}\n/reset\n{question}\n"
                   for i, question in enumerate(questions))
    begin = time.monotonic()
    done = subprocess.run([str(word) for word in words], input=said.encode(), check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT_S)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        raise Failed(f"kr chat: {done.stderr.decode('utf-8', 'replace')[-300:]}")
    return seconds, done.stdout.decode("utf-8", "replace")


def session(bench, models):
    args = bench.args
    questions = (FILES / "questions.txt").read_text(encoding="utf-8").splitlines()
    questions = questions[:3 if args.quick else 50]
    n_tokens = 8 if args.quick else 64
    rows, n_good, n_same = [], [], []
    for turn in range(args.rounds):
        say(f"session: {turn + 1} of {args.rounds}")
        row = {}
        for side in ("package", "chat") if turn % 2 else ("chat", "package"):
            begin = time.monotonic()
            if side == "package":
                found = node(args, "session", models[0], questions=str(FILES / "questions.txt"),
                             systems=[system_of(i) for i in range(len(questions))],
                             maxTokens=n_tokens)
                row["package"] = time.monotonic() - begin
            else:
                row["chat"], text = chat_session(args, models[0], questions, n_tokens)
        rows.append(row)
        n_good.append(found["nGood"] / found["n"])
        n_same.append(sum(answer.strip() in text for answer in found["answers"]))
    bench.reports.append({"figure": "session", "rounds": rows, "answers": found["answers"]})
    bench.line(f"{len(questions)} questions through the package: answered", models[0],
               min(n_good), "= 1", min(n_good) == 1, same_answers=min(n_same))
    bench.ratios(f"{len(questions)} questions, whole session / one kr chat", models[0],
                 [row["package"] / row["chat"] for row in rows], "≤ 1.05",
                 lambda ratio: ratio <= 1.05, package_s=statistics.median(column(rows, "package")),
                 chat_s=statistics.median(column(rows, "chat")))


def streams(bench, models):
    args = bench.args
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "long.gguf"
        subprocess.run([args.kr.parent / "tests" / "make_tiny_gguf", "long", model], check=True,
                       stdout=subprocess.DEVNULL)
        found = node(args, "streams", model, "--expose-gc", ctx=2048, threads=1,
                     n=40 if args.quick else 1000, rounds=5 if args.quick else 1000)
    bench.reports.append({"figure": "streams", "report": found})
    first, last = found["first"], found["last"]
    bench.line("rounds of 16 streams, texts and ends right", model, found["rounds"], "all", True,
               tokens=found["nTokens"], streams=found["nStreams"])
    grown = {key: last[key] - first[key] for key in first}
    for key, what in (("rss", "runtime"), ("heap", "package's heap")):
        bench.line(f"bytes more behind the last round than behind a fifth: {what}", model,
                   grown[key], f"≤ {MEMORY_SLACK}", grown[key] <= MEMORY_SLACK)
    held = grown["fds"] + grown["ownFds"] + grown["threads"]
    bench.line("descriptors and threads more", model, held, "≤ 0", held <= 0)


def kill(bench, models):
    args = bench.args
    n = 3 if args.quick else 100
    found = node(args, "kill", models[0], n=100 if args.quick else 512, rounds=n)
    bench.reports.append({"figure": "kill", "report": found})
    rows, model = found["rounds"], models[0]
    reject, after = max(column(rows, "rejectMs")), max(column(rows, "nextMs"))
    bench.line(f"kill -9, {n} times: slowest rejection, ms", model, reject, "≤ 100",
               reject <= 100, pending=sum(column(rows, "nPending")),
               median_ms=statistics.median(column(rows, "rejectMs")))
    bench.line("kill -9: slowest next call, ms", model, after, f"≤ {found['loadMs'] + 1000:.0f}",
               after <= found["loadMs"] + 1000, load_ms=found["loadMs"],
               median_ms=statistics.median(column(rows, "nextMs")))
    bench.line("kill -9: segments left", model, found["segments"], "= 0", found["segments"] == 0)


FIGURES = {"roundtrip": roundtrip, "tensor": tensor, "batch": batch, "inprocess": inprocess,
           "child": child, "session": session, "streams": streams, "kill": kill}


def main():
    parser = parser_of(__doc__)
    parser.set_defaults(models="smollm2")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--package", default=ROOT / "bindings" / "node", type=Path)
    args = parse(parser, FIGURES)
    args.package, args.echo = args.package.resolve(), args.kr.parent / "bench_pipe_echo"
    for path, how in ((args.package / "dist" / "index.mjs", "npm run build"),
                      (args.echo, "cmake --build build --target bench_pipe_echo"),
                      (args.kr.parent / "tests" / "make_tiny_gguf",
                       "cmake --build build --target make_tiny_gguf")):
        if not path.is_file():
            parser.error(f"no {path}; `{how}` makes it")
    run_figures(args, FIGURES, "serve", about_threads)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
