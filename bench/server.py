#!/usr/bin/env python3
"""`kr serve` beside llama-server on the same file: every line of the server's table is a word here.

usage: server.py [FIGURE...] [--quick] [--models smollm2,qwen25] [--rounds 5] [--threads N]
                 [--ctx 1024] [--isa LEVEL] [--kr build/kr] [--out bench/out]
Figures (all without arguments):
  total       8 streaming clients: tokens a second of all together, kr / llama-server -np 8
  ttft        first token of an idle server after a new prompt of 512 tokens, kr / llama-server
  turns       second turn of a chat (512 tokens, then at most 32 more): first token, second / first
  metrics     8 clients: with metrics and a scrape a second beside --metrics off, throughput and
              the server's CPU time for a token, in slices (bench/slices.py); CPU time of a scrape
  disconnect  from a client's close until the engine has freed it: in the queue, in prefill, in
              decode, not streamed
  --quick     one model, one round, few tokens: shows that all works, no figures
Servers run side by side and take turns; who is not asked is stopped (SIGSTOP). Prompts are windows
of this repository's text as token ids, no two begin alike. Clients are raw sockets in one thread
(bench/sse.py); `client_cpu` is the part of one core that they took. Figures are medians of the
rounds; a spread of ratios over 5 % is inconclusive.
Environment: KR_PEERS_DIR (bench/peers.py), KR_MODELS_DIR. Writes server.json and server.md."""
import math
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import peers
import slices
from engine import about_threads, parse, parser_of, run_figures
from run import ROOT, Failed, call, say
from sse import Loop, Stream, fetch, request

CLIENTS = 8
START_S = 600
LOCAL = re.compile(rb"http://127\.0\.0\.1:(\d+)")
LIMIT_MS = 100        # of a disconnect, beside one step
SLICE_S = 0.1          # of `metrics`, about
ROUNDS, QUADS = 4, 20  # for each of --rounds; of a round


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server. generate(): the path and body that make it stream tokens of a prompt."""

    def __init__(self, command, health, port=0):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        self.port, end = port, time.monotonic() + START_S
        while not self.is_ready(health):
            if self.process.poll() is not None or time.monotonic() > end:
                said = self.said()[-1000:].decode("utf-8", "replace")
                self.end()
                raise Failed(f"{command[0]} does not start: {said}")
            time.sleep(0.05)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def is_ready(self, health):
        if not self.port:
            found = LOCAL.search(self.said())
            self.port = int(found.group(1)) if found else 0
        try:
            return bool(self.port) and fetch(self.port, "GET", health)[0] == 200
        except OSError:
            return False

    def sleep(self):
        self.process.send_signal(signal.SIGSTOP)

    def wake(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Kr(Server):
    name = "kr"

    def __init__(self, args, model, *words, ctx=None, clients=CLIENTS):
        isa = ["--isa", args.isa] if args.isa else []
        super().__init__([args.kr, "serve", "-m", model, "--port", 0, "-c", ctx or args.ctx,
                          "--parallel", clients, "-t", args.threads, *isa, *words], "/readyz")

    def metrics(self):
        """Sum over the labels of each sample of /metrics."""
        sums = {}
        for line in fetch(self.port, "GET", "/metrics")[1].decode().splitlines():
            if line and not line.startswith("#"):
                name, value = re.match(r"([^{ ]+)(?:\{.*\})? (\S+)", line).groups()
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def body(self, tokens, n):
        return {"prompt": tokens, "max_tokens": n, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}


class Llama(Server):
    """Greedy with the cheapest sampler chain that it has; flash attention, which is faster."""
    name = "llama-server"

    def __init__(self, args, model):
        port = free_port()
        super().__init__([peers.server(), "-m", model, "--host", "127.0.0.1", "--port", port, "-c",
                          args.ctx * CLIENTS, "-np", CLIENTS, "-t", args.threads, "-tb",
                          args.threads, "-fa", "on", "--no-webui", "--log-disable"], "/health",
                         port)

    def body(self, tokens, n):
        return {"prompt": tokens, "max_tokens": n, "temperature": 0, "ignore_eos": True,
                "samplers": ["top_k"], "top_k": 1, "stream": True,
                "stream_options": {"include_usage": True}}


class Prompts:
    """Token windows of this repository's text; no two of them begin alike."""

    def __init__(self, args, model):
        with tempfile.NamedTemporaryFile(suffix=".txt") as text:
            for path in (ROOT / "LICENSE", *sorted((ROOT / "docs").glob("*.md"))):
                text.write(path.read_bytes())
            text.flush()
            self.tokens = call([args.kr, "tokenize", "-m", model, "-f", text.name])
        self.n_given = 0

    def next(self, n):
        begin = self.n_given * 7919 % (len(self.tokens) - n)
        self.n_given += 1
        return self.tokens[begin:begin + n]


def stream_of(server, tokens, n):
    return Stream(server.port, request("POST", "/v1/completions", server.body(tokens, n)))


def checked(stream, server):
    if stream.state != "whole":
        raise Failed(f"{server.name}: a stream was {stream.state}: "
                     f"{stream.tail[-300:].decode('utf-8', 'replace')}")
    return stream


# ---- figures ------------------------------------------------------------------------------------

def eight_clients(server, prompts, n_prompt, n_generate):
    """Tokens a second of all clients from the first request to the last token."""
    loop, cpu, begin = Loop(), time.process_time(), time.monotonic_ns()
    streams = loop.run([stream_of(server, prompts.next(n_prompt), n_generate)
                        for _ in range(CLIENTS)], START_S)
    loop.close()
    end = max(checked(stream, server).last_ns for stream in streams)
    seconds = (end - begin) / 1e9
    n_tokens = sum(stream.usage()["completion_tokens"] for stream in streams)
    window = (end - max(stream.first_ns for stream in streams)) / 1e9
    return {"tps": n_tokens / seconds, "n_tokens": n_tokens, "n_events": sum(
        stream.n_events for stream in streams), "decode_s": window,
        "client_cpu": (time.process_time() - cpu) / seconds}


def sizes(args, model):
    if args.quick:
        return 32, 16
    return (64, 64) if model.stem == "qwen25" else (64, 256)


def in_turns(servers, rounds, measure, what):
    """{name: [measure(server) of every round]}; the others are stopped meanwhile."""
    out = {key: [] for key in servers}
    for server in servers.values():
        server.sleep()
    for turn in range(-1, rounds):  # round -1 warms up and is not counted
        say(f"{what}: {turn + 1} of {rounds}")
        order = list(servers) if turn % 2 else list(reversed(servers))
        for key in order:
            servers[key].wake()
            value = measure(servers[key])
            if turn >= 0:
                out[key].append(value)
            servers[key].sleep()
    for server in servers.values():
        server.wake()
    return out


def total(bench, models):
    args = bench.args
    for model in models:
        prompts, (n_prompt, n_generate) = Prompts(args, model), sizes(args, model)
        with Kr(args, model) as ours, Llama(args, model) as theirs:
            found = in_turns({"kr": ours, "llama": theirs}, args.rounds,
                             lambda server: eight_clients(server, prompts, n_prompt, n_generate),
                             f"total, {model.stem}")
        pick = {key: statistics.median(row["tps"] for row in rows) for key, rows in found.items()}
        bench.reports.append({"figure": "total", "model": model.stem, "rounds": found})
        bench.ratios(f"{CLIENTS} clients / llama-server", model,
                     [a["tps"] / b["tps"] for a, b in zip(found["kr"], found["llama"])], "≥ 1.5",
                     lambda ratio: ratio >= 1.5, kr_tps=pick["kr"], llama_tps=pick["llama"],
                     kr_client_cpu=max(row["client_cpu"] for row in found["kr"]),
                     llama_client_cpu=max(row["client_cpu"] for row in found["llama"]))


def first_token_ms(server, stream):
    loop = Loop()
    loop.run([stream], START_S)
    loop.close()
    return (checked(stream, server).first_ns - stream.sent_ns) / 1e6


def ttft(bench, models):
    args = bench.args
    n_prompt = 64 if args.quick else 512
    for model in models:
        prompts = Prompts(args, model)
        with Kr(args, model) as ours, Llama(args, model) as theirs:
            found = in_turns({"kr": ours, "llama": theirs}, args.rounds, lambda server:
                             first_token_ms(server, stream_of(server, prompts.next(n_prompt), 2)),
                             f"ttft, {model.stem}")
        bench.reports.append({"figure": "ttft", "model": model.stem, "rounds": found})
        bench.ratios(f"first token after {n_prompt} / llama-server", model,
                     [a / b for a, b in zip(found["kr"], found["llama"])], "≤ 0.7",
                     lambda ratio: ratio <= 0.7, kr_ms=statistics.median(found["kr"]),
                     llama_ms=statistics.median(found["llama"]))


def two_turns(server, text):
    """(first turn, second turn) to the first token in ms, and the tokens of both prompts."""
    messages, times, n_prompts = [{"role": "user", "content": text}], [], []
    for _ in range(2):
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}
        stream = Stream(server.port, request("POST", "/v1/chat/completions", body))
        times.append(first_token_ms(server, stream))
        n_prompts.append(stream.usage()["prompt_tokens"])
        said = "".join(choice["delta"].get("content") or "" for event in stream.objects()
                       for choice in event["choices"])
        messages = [*messages, {"role": "assistant", "content": said},
                    {"role": "user", "content": "And in one word?"}]
    return {"first_ms": times[0], "second_ms": times[1], "n_prompts": n_prompts}


def turns(bench, models):
    args = bench.args
    n_prompt = 96 if args.quick else 512
    for model in models:
        prompts = Prompts(args, model)

        def one(server):
            tokens = prompts.next(n_prompt - 32)  # the template and the system message add some
            text = subprocess.run(
                [args.kr, "tokenize", "-m", model, "--detokenize", ",".join(map(str, tokens))],
                stdout=subprocess.PIPE, check=True).stdout.decode("utf-8", "replace")
            return two_turns(server, text)
        with Kr(args, model) as ours, Llama(args, model) as theirs:
            found = in_turns({"kr": ours, "llama": theirs}, args.rounds, one,
                             f"turns, {model.stem}")
        bench.reports.append({"figure": "turns", "model": model.stem, "rounds": found})
        pairs = {key: [row["second_ms"] / row["first_ms"] for row in rows]
                 for key, rows in found.items()}
        added = [row["n_prompts"][1] - row["n_prompts"][0] for row in found["kr"]]
        bench.ratios("first token, second turn / first", model, pairs["kr"], "≤ 0.2",
                     lambda ratio: ratio <= 0.2,
                     first_ms=statistics.median(row["first_ms"] for row in found["kr"]),
                     second_ms=statistics.median(row["second_ms"] for row in found["kr"]),
                     n_prompt=statistics.median(row["n_prompts"][0] for row in found["kr"]),
                     n_added=max(added), llama_ratio=statistics.median(pairs["llama"]))


def short_slice(server, prompts, is_scraped):
    """Tokens a second and CPU seconds for a token; with a scrape while it decodes."""
    answers, cpu = [], slices.cpu_s(server.process)
    scrape = threading.Timer(SLICE_S / 2, lambda: answers.append(
        fetch(server.port, "GET", "/metrics")[0]))
    if is_scraped:
        scrape.start()
    found = eight_clients(server, prompts, 4, 16)
    if is_scraped:
        scrape.join()
        if answers != [200]:
            raise Failed(f"a scrape failed: {answers}")
    return found["tps"], (slices.cpu_s(server.process) - cpu) / found["n_tokens"]


def scrape_cost(bench, model, server):
    """CPU time of the process for a scrape while it does nothing else."""
    n, sizes = 4 if bench.args.quick else 400, []
    cpu = slices.cpu_s(server.process)
    for _ in range(n):
        sizes.append(len(fetch(server.port, "GET", "/metrics")[1]))
    ms = 1000 * (slices.cpu_s(server.process) - cpu) / n
    bench.line("CPU time of one scrape, ms", model, ms, "≤ 10", ms <= 10, n_bytes=max(sizes))


def metrics_round(having, without, prompts, n_quads):
    """Logarithms of (rate with / without, CPU without / with): what counting costs, and the part
    that one scrape a second has of what a scrape in every slice costs."""
    def take(side):
        server, is_scraped = side
        return short_slice(server, prompts, is_scraped)
    for server in (having, without, having, without):
        short_slice(server, prompts, False)  # warms up
    counting = slices.quads(((having, False), (without, False)), take, n_quads)
    begin, n_scraped = time.monotonic(), max(1, n_quads // 10)
    scraping = slices.quads(((having, True), (having, False)), take, n_scraped)
    slice_s = (time.monotonic() - begin) / (4 * n_scraped)
    return [a + b * slice_s for a, b in zip(counting, scraping)], scraping, slice_s


def metrics(bench, models):
    args, model, found = bench.args, models[0], []
    prompts = Prompts(args, model)
    n_rounds, n_quads = (args.rounds, 1) if args.quick else (ROUNDS * args.rounds, QUADS)
    for turn in range(n_rounds):
        say(f"metrics: {turn + 1} of {n_rounds}")
        words = ([], ["--metrics", "off"])[::-1 if turn % 2 else 1]
        with Kr(args, model, *words[0]) as a, Kr(args, model, *words[1]) as b:
            having, without = (b, a) if turn % 2 else (a, b)
            found.append(metrics_round(having, without, prompts, n_quads))
            if turn == 0:
                scrape_cost(bench, model, having)
    bench.reports.append({"figure": "metrics", "model": model.stem, "rounds": found})
    slices.lines(bench, model, [row[0] for row in found], (
        "throughput, metrics scraped each second / off",
        "CPU time for a token, metrics off / scraped each second"),
        scraped_slice=math.exp(statistics.fmean(row[1][0] for row in found)),
        slice_ms=1000 * statistics.fmean(row[2] for row in found))


# ---- disconnects --------------------------------------------------------------------------------

def until(server, condition):
    """The metrics that met the condition, and when they were asked for."""
    end = time.monotonic() + START_S
    while True:
        asked = time.monotonic_ns()
        now = server.metrics()
        if condition(now):
            return asked, now
        if time.monotonic() > end:
            raise Failed(f"{server.name}: the engine does not get where it should")


def mean_step_ms(before, after, kind):
    n = after[f"kr_{kind}_seconds_count"] - before[f"kr_{kind}_seconds_count"]
    spent = after[f"kr_{kind}_seconds_sum"] - before[f"kr_{kind}_seconds_sum"]
    return 1000 * spent / n if n else 0.0


def is_idle(now):
    return now["kr_requests_running"] == 0 and now["kr_requests_waiting"] == 0


def leave(server, stream, is_there, is_freed):
    """Closes the stream once is_there; how long until is_freed, in ms."""
    until(server, is_there)
    begin = time.monotonic_ns()
    stream.close()
    asked, _ = until(server, is_freed)
    return (asked - begin) / 1e6


def disconnect_round(server, prompts, n_long):
    """{place: ms}; at each begin the engine is idle. The server runs one request at a time."""
    found = {}
    _, before = until(server, is_idle)
    n_prefilled = before["kr_tokens_prompt_total"]
    stream = stream_of(server, prompts.next(n_long), 512)
    found["prefill"] = leave(server, stream, lambda now: now["kr_requests_running"] == 1 and
                             now["kr_tokens_prompt_total"] > n_prefilled, is_idle)
    _, after = until(server, is_idle)
    found["prefill_step"] = mean_step_ms(before, after, "prefill")

    n_made = after["kr_tokens_generated_total"]
    stream = stream_of(server, prompts.next(16), 512)
    found["decode"] = leave(server, stream, lambda now:
                            now["kr_tokens_generated_total"] > n_made + 4, is_idle)
    _, end = until(server, is_idle)
    found["decode_step"] = mean_step_ms(after, end, "decode")

    n_made = end["kr_tokens_generated_total"]
    body = {**server.body(prompts.next(16), 512), "stream": False}
    del body["stream_options"]
    stream = Stream(server.port, request("POST", "/v1/completions", body))
    found["not streamed"] = leave(server, stream, lambda now:
                                  now["kr_tokens_generated_total"] > n_made + 4, is_idle)

    n_made = end["kr_tokens_generated_total"]
    running = stream_of(server, prompts.next(16), 900)
    until(server, lambda now: now["kr_requests_running"] == 1)
    waiting = stream_of(server, prompts.next(16), 512)
    found["queue"] = leave(server, waiting, lambda now: now["kr_requests_waiting"] == 1,
                           lambda now: now["kr_requests_waiting"] == 0)
    running.close()
    until(server, is_idle)
    return found


def disconnect(bench, models):
    args = bench.args
    n_long, rounds = 3 * args.ctx - 72, args.rounds if args.quick else 2 * args.rounds
    for model in models:
        prompts = Prompts(args, model)
        with Kr(args, model, ctx=4 * args.ctx, clients=1) as server:
            rows = []
            for turn in range(rounds):
                say(f"disconnect, {model.stem}: {turn + 1} of {rounds}")
                rows.append(disconnect_round(server, prompts, n_long))
        bench.reports.append({"figure": "disconnect", "model": model.stem, "rounds": rows})
        steps = {"prefill": "prefill_step"}
        for place in ("queue", "prefill", "decode", "not streamed"):
            values = [row[place] for row in rows]
            step = max(row[steps.get(place, "decode_step")] for row in rows)
            bench.line(f"stops after a close in {place}, ms", model, max(values),
                       f"≤ {step + LIMIT_MS:.0f}", max(values) <= step + LIMIT_MS,
                       median_ms=statistics.median(values), step_ms=step)


FIGURES = {"total": total, "ttft": ttft, "turns": turns, "metrics": metrics,
           "disconnect": disconnect}


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--ctx", type=int, default=1024)
    run_figures(parse(parser, FIGURES), FIGURES, "server", about_threads)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
