#!/usr/bin/env python3
"""Writes tests/corpus/bench_baseline: baseline files of `kr bench gate`, whole and broken.

usage: make_baseline.py"""
import copy
import json
from pathlib import Path

OUT = Path(__file__).resolve().parent / "bench_baseline"
GOOD = {"kr_bench_baseline": 1, "machine": {"cpu": "Some CPU", "cores": 2}, "isa": "avx2",
        "threads": 2, "build": {"compiler": "GNU 12.2.0", "type": "Release"}, "commit": "abcdef",
        "model": "smollm2", "n_prompt": 64, "n_generated": 16,
        "stages": [{"name": "op/rms_norm/avx2/2048", "ns": [1.5, 2, 3, 4, 5]},
                   {"name": "model/decode", "ns": [1e6, 1e6, 1.25e6, 1e6, 9e14]}]}


def changed(**fields):
    baseline = copy.deepcopy(GOOD)
    baseline.update(fields)
    return baseline


def stages(*rows):
    return changed(stages=[{"name": name, "ns": ns} for name, ns in rows])


def main():
    times = [1.0] * 5
    files = {
        "ok_two_stages": GOOD, "ok_most_samples": stages(("a", [1.5] * 64)),
        "bad_version": changed(kr_bench_baseline=2), "bad_no_machine": changed(machine=None),
        "bad_cores": changed(machine={"cpu": "x", "cores": 0}), "bad_threads": changed(threads=257),
        "bad_long_text": changed(commit="x" * 200), "bad_zero_byte": changed(isa="avx\x00512"),
        "bad_n_generated": changed(n_generated=1), "bad_no_stages": changed(stages=[]),
        "bad_stage_kind": changed(stages=[1, 2]), "bad_name": stages(("A b", times)),
        "bad_empty_name": stages(("", times)), "bad_twice": stages(("a", times), ("a", times)),
        "bad_few": stages(("a", [1, 2, 3, 4])), "bad_many": stages(("a", [1.5] * 65)),
        "bad_negative": stages(("a", [1, 2, 3, 4, -5])),
        "bad_huge": stages(("a", [1, 2, 3, 4, 1e16])),
        "bad_text_time": stages(("a", [1, 2, 3, 4, "5"])),
        "bad_many_stages": stages(*[(f"s{i}", times) for i in range(129)]),
    }
    OUT.mkdir(exist_ok=True)
    for name, value in files.items():
        (OUT / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    text = json.dumps(GOOD)
    (OUT / "bad_cut.json").write_text(text[:len(text) // 2], encoding="utf-8")
    (OUT / "bad_double_key.json").write_text(text[:-1] + ', "isa": "ref"}', encoding="utf-8")
    (OUT / "bad_deep.json").write_text("[" * 4000, encoding="utf-8")
    (OUT / "bad_number.json").write_text(text.replace("1.5", "1e999"), encoding="utf-8")
    (OUT / "bad_bytes.json").write_bytes(b'{"isa": "\xff\xfe"}')


if __name__ == "__main__":
    main()
