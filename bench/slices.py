"""Differences of a percent on a restless machine: two sides, both alive, take turns in short slices
A B B A (a quad), so that what a neighbour takes is taken from both, and a machine that becomes
slower all the time does so for both. Slices of 50 ms tell most: they fit between disturbances, and
there are thousands. A round is new processes and many quads, since where a process has its memory
may be worth a percent by itself.

A round's value is the trimmed mean of its quads (a fifth of them off each end), the figure that of
the rounds, with its 95 % bootstrap interval over rounds: "reached" when the whole interval is above
the bar, "missed" when it is below, "inconclusive" else."""
import math
import random
import statistics
import time

BAR = 0.99
N_BOOTSTRAP = 4000
N_ROUNDS_MIN = 8  # of fewer the interval says nothing


def cpu_s(process):
    """CPU time of another process: its clock has a number of its own (clock_getcpuclockid(3))."""
    return time.clock_gettime(~process.pid << 3 | 2)


def trimmed_mean(values):
    values, n_off = sorted(values), len(values) // 5
    return statistics.fmean(values[n_off:len(values) - n_off])


def interval(values):
    """95 %, of their trimmed mean; the same at each call."""
    chance = random.Random(1)
    means = sorted(trimmed_mean(chance.choices(values, k=len(values)))
                   for _ in range(N_BOOTSTRAP))
    return means[N_BOOTSTRAP // 40], means[-N_BOOTSTRAP // 40]


def quads(pair, take, n):
    """pair: (with, without). take(side): a slice; (tokens a second, CPU seconds for a token).
    The trimmed means of the logarithms of rate with / without and of CPU without / with."""
    rates, cpus = [], []
    for turn in range(n):
        found = ([], [])
        for side in (1, 0, 0, 1) if turn % 2 else (0, 1, 1, 0):
            found[side].append([math.log(value) for value in take(pair[side])])
        rate, cpu = ([statistics.fmean(row[at] for row in rows) for rows in found]
                     for at in (0, 1))
        rates.append(rate[0] - rate[1])
        cpus.append(cpu[1] - cpu[0])
    return trimmed_mean(rates), trimmed_mean(cpus)


def lines(bench, model, rounds, names, **details):
    """rounds: [(of the rate, of the CPU time)], logarithms. names: of their lines."""
    for logs, name in zip(zip(*rounds), names):
        low, high = (math.exp(end) for end in interval(logs))
        verdict = "reached" if low >= BAR else "missed" if high < BAR else "inconclusive"
        if len(rounds) < N_ROUNDS_MIN:
            verdict = "inconclusive"
        bench.line(name, model, math.exp(trimmed_mean(logs)), f"≥ {BAR}", verdict == "reached",
                   low=low, high=high, spread=high - low, verdict=verdict,
                   deviation=statistics.pstdev(logs), rounds=[math.exp(log) for log in logs],
                   **details)
