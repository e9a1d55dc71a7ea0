#!/usr/bin/env python3
"""Draws results.json of bench/run.py: one panel per figure, one group of bars per model, speeds
relative to kr with the tok/s written on each bar. Run with the peers' environment (matplotlib).

usage: plot.py OUT_DIR    reads OUT_DIR/results.json, writes OUT_DIR/speed.png and speed.svg"""
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SIDES = {"kr": "#1b6ca8", "llama.cpp": "#d98032", "ik_llama.cpp": "#8c6bb1", "mlx-lm": "#7a7a7a"}


def draw(axis, report, figure):
    models = list(report["models"])
    rows = [report["models"][model]["figures"].get(figure, {}) for model in models]
    sides = [side for side in SIDES if any(side in row for row in rows)]
    width = 0.8 / len(sides)
    for i, side in enumerate(sides):
        for x, row in enumerate(rows):
            if side not in row:
                continue
            place = x + (i - (len(sides) - 1) / 2) * width
            height = row[side]["tps"] / row["kr"]["tps"]
            axis.bar(place, height, width * 0.92, color=SIDES[side],
                     label=side if x == 0 else None)
            speed = row[side]["tps"]
            axis.text(place, height, f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}",
                      ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(models)), models)
    axis.set_title(figure, fontsize=10)
    axis.set_ylim(0, max(1.15, axis.get_ylim()[1] * 1.08))
    axis.spines[["top", "right"]].set_visible(False)


def main(folder):
    report = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    figures = list(dict.fromkeys(f for m in report["models"].values() for f in m["figures"]))
    plot, axes = plt.subplots(1, len(figures), figsize=(4.2 * len(figures), 3.6), squeeze=False)
    for axis, figure in zip(axes[0], figures):
        draw(axis, report, figure)
    axes[0][0].set_ylabel("speed relative to kr (tok/s on the bars)")
    axes[0][0].legend(fontsize=8, frameon=False, loc="upper right")
    plot.suptitle(f"{report['machine']['cpu']}, {report['machine']['cores']} cores, "
                  f"{report['isa']}, commit {report['commit']}", fontsize=9)
    plot.tight_layout()
    for kind in ("png", "svg"):
        plot.savefig(folder / f"speed.{kind}", dpi=150)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
