#!/usr/bin/env python3
"""Soak of `kr serve` on a tiny seeded model: idle connections, streams that are always there, and
clients that disconnect at any moment (waiting, in prefill, in decode; streamed or not; by FIN or
RST). Memory, descriptors and KV pages must not grow, all others must get whole answers.

usage: soak.py [--seconds 600] [--calm 120] [--idle 1000] [--streams 200] [--leavers 50] [--json]
  --calm     seconds without disconnects before, for the gaps between tokens
  --seconds  seconds with them; --leavers: how many a second

Raised limits: --parallel 256, --max-connections-per-address 4096 (256), --keep-alive-s 3600 (75),
--key-in-flight is of no matter without keys; RLIMIT_NOFILE at least 4096. Exit status 1 when
something grew, got lost, or p99 of the gaps was over twice that of the calm part.
Everything runs on this machine; test_soak.py is the short form, which asserts on no speed."""
import argparse
import json
import os
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from serve_program import ROOT, eventually, make_tiny
from serving import MeteredServer

sys.path.insert(0, str(ROOT / "bench"))

from sse import Gaps, Loop, Stream, fetch, request  # noqa: E402

FLAGS = ("-c", 512, "--parallel", 256, "--max-connections-per-address", 4096,
         "--keep-alive-s", 3600)
FILES_MIN = 4096
GROWTH_BYTES = 16 << 20
GROWTH_PART = 0.01
WARM_S = 120          # at most, until cached prefixes fill the pool: its pages take memory once
STREAM_TOKENS = 400


def raise_file_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES_MIN:
        raise SystemExit(f"soak: RLIMIT_NOFILE is at most {hard} here, {FILES_MIN} are needed")
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MIN, hard))


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no VmRSS")


def n_descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Soak:
    def __init__(self, server, args):
        self.server, self.args = server, args
        self.random = random.Random(1)
        self.loop = Loop(self.on_end)
        self.gaps, self.is_over = None, False
        self.ends = {"whole": 0, "cut": 0, "refused": 0}
        self.n_left, self.n_late, self.idle, self.samples = 0, 0, [], []
        self.wrong = []

    # ---- clients

    def body(self, n_prompt, n_tokens, is_stream=True):
        body = {"prompt": [self.random.randrange(256) for _ in range(n_prompt)],
                "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
        return {**body, "stream": True} if is_stream else body

    def start_stream(self):
        body = self.body(self.random.randrange(16, 64), STREAM_TOKENS)
        self.loop.add(Stream(self.server.port, request("POST", "/v1/completions", body),
                             gaps=self))

    def append(self, ns):
        """A gap of any stream, into the part of the run that it belongs to."""
        if self.gaps is not None:
            self.gaps.append(ns)

    def start_leaver(self):
        body = self.body(self.random.randrange(16, 256), STREAM_TOKENS // 2,
                         self.random.random() < 0.7)
        self.loop.add(Stream(self.server.port, request("POST", "/v1/completions", body),
                             leave_after_ns=int(self.random.uniform(0, 0.3) * 1e9),
                             by_reset=self.random.random() < 0.5))

    def on_end(self, stream):
        if stream.is_leaving:
            self.n_left += 1
            if stream.state in ("cut", "refused"):
                self.wrong.append(f"a leaving client was {stream.state}: {stream.tail[-200:]!r}")
            return
        if stream.state in self.ends:
            self.ends[stream.state] += 1
        if stream.state in ("cut", "refused"):
            self.wrong.append(f"a stream was {stream.state}: {stream.tail[-200:]!r}")
        if not self.is_over:
            self.start_stream()

    def open_idle(self):
        """Half of them have had an answer, half have sent nothing yet."""
        for i in range(self.args.idle):
            connection = socket.create_connection(("127.0.0.1", self.server.port))
            if i % 2:
                self.ask_live(connection)
            self.idle.append(connection)

    def ask_live(self, connection):
        connection.settimeout(120)
        connection.sendall(request("GET", "/livez"))
        if b" 200 " not in connection.recv(4096)[:16]:
            self.wrong.append("an idle connection got no answer")

    # ---- parts of the run

    def run(self, seconds, leavers, until=None, gaps=None):
        """Turns for that long, or until until(); samples once a second."""
        self.gaps = gaps
        begin = time.monotonic()
        n_started, next_sample = 0, begin + 1
        while True:
            now = time.monotonic()
            if now >= begin + seconds or (until and until()):
                break
            due = int((now - begin) * leavers)
            self.n_late += max(due - n_started - leavers, 0)  # over a second behind: given up
            n_started = max(n_started, due - leavers)
            while n_started < due:
                self.start_leaver()
                n_started += 1
            if now >= next_sample:
                self.samples.append((resident_bytes(self.server.process.pid),
                                     n_descriptors(self.server.process.pid)))
                next_sample += 1
            self.loop.turn(0.01)
        self.gaps = None

    def pool_is_full(self):
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + 0.5
        now = self.server.metrics()
        return now["kr_kv_bytes_used"] + now["kr_kv_bytes_cached"] > 0.9 * now["kr_kv_bytes_max"]

    def all_parts(self):
        pid = self.server.process.pid
        fetch(self.server.port, "GET", "/livez")
        n_before = n_descriptors(pid)
        self.open_idle()
        for _ in range(self.args.streams):
            self.start_stream()
        self.next_look = 0
        self.run(WARM_S, self.args.leavers, self.pool_is_full)
        calm, storm = Gaps(), Gaps()
        self.run(self.args.calm, 0, gaps=calm)
        self.samples.clear()
        n_left = self.n_left
        self.run(self.args.seconds, self.args.leavers, gaps=storm)
        n_left = self.n_left - n_left
        self.is_over = True
        self.loop.close()
        for connection in self.idle:
            self.ask_live(connection)
            connection.close()
        eventually(self.server.is_idle, "the engine is idle at the end")
        eventually(lambda: n_descriptors(pid) <= n_before, f"{n_before} descriptors at the end")
        return self.report(calm, storm, n_left)

    def report(self, calm, storm, n_left):
        part = max(len(self.samples) // 5, 1)
        first, last = self.samples[:part], self.samples[-part:]
        memory = [statistics.median(row[0] for row in rows) for rows in (first, last)]
        files = [statistics.median(row[1] for row in rows) for rows in (first, last)]
        metrics = self.server.metrics()
        if memory[1] - memory[0] > max(GROWTH_BYTES, GROWTH_PART * memory[0]):
            self.wrong.append(f"memory grew from {memory[0]:.0f} to {memory[1]:.0f} bytes")
        if files[1] - files[0] > 0.1 * (self.args.streams + self.args.leavers):
            self.wrong.append(f"descriptors grew from {files[0]} to {files[1]}")
        if metrics["kr_kv_bytes_used"] != 0:
            self.wrong.append(f"{metrics['kr_kv_bytes_used']:.0f} bytes of KV pages are held")
        return {"seconds": self.args.seconds, "calm_seconds": self.args.calm,
                "idle": self.args.idle, "streams": self.args.streams,
                "leavers_per_second": self.args.leavers, "left": n_left,
                "left_out": self.n_late, "streams_whole": self.ends["whole"],
                "rss_first": memory[0], "rss_last": memory[1], "descriptors_first": files[0],
                "descriptors_last": files[1], "kv_bytes_cached": metrics["kr_kv_bytes_cached"],
                "kv_bytes_max": metrics["kr_kv_bytes_max"],
                "gaps_calm": calm.n, "gaps_storm": storm.n,
                "gap_p50_calm_ms": calm.percentile_ms(0.5),
                "gap_p50_storm_ms": storm.percentile_ms(0.5),
                "gap_p99_calm_ms": calm.percentile_ms(0.99),
                "gap_p99_storm_ms": storm.percentile_ms(0.99), "wrong": self.wrong[:20]}


def soak(args):
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        server = MeteredServer(make_tiny(Path(folder) / "tiny.gguf", "image"), *FLAGS)
        try:
            report = Soak(server, args).all_parts()
            status = server.stop()
        except BaseException:
            server.kill()
            raise
        if status != 0:
            report["wrong"].append(f"kr serve ended with {status}: {server.said()[-500:]}")
        return report


def parse(words=None):
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--seconds", type=int, default=600)
    p.add_argument("--calm", type=int, default=120)
    p.add_argument("--idle", type=int, default=1000)
    p.add_argument("--streams", type=int, default=200)
    p.add_argument("--leavers", type=int, default=50)
    p.add_argument("--json", action="store_true")
    return p.parse_args(words)


def main():
    args = parse()
    report = soak(args)
    if report["gap_p99_storm_ms"] > 2 * report["gap_p99_calm_ms"]:
        report["wrong"].append("p99 of the gaps more than doubled")
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for name, value in report.items():
            print(f"{name:20} {value}")
    sys.exit(1 if report["wrong"] else 0)


if __name__ == "__main__":
    main()
