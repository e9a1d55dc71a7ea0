#!/usr/bin/env python3
"""Runs commands and draws them with their real output as a terminal picture.

usage: terminal_svg.py OUT.svg COMMAND...      (each COMMAND one string, run by the shell)
The README's picture:  python3 tools/terminal_svg.py docs/kr-terminal.svg \\
    'build/kr run -m smollm2 -p "Why is the sky blue?" --temp 0 -n 60' \\
    'build/kr tokenize -m smollm2 "Hello world"' 'build/kr models'"""
import html
import subprocess
import sys
import textwrap

COLUMNS, CHAR_W, LINE_H, MARGIN = 92, 8.43, 19, 18


def lines_of(command):
    done = subprocess.run(command, shell=True, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    rows = [("prompt", "$ " + command)]
    for line in done.stdout.splitlines():
        kind = "note" if line.startswith("kr: ") else "text"
        for row in textwrap.wrap(line, COLUMNS) or [""]:
            rows.append((kind, row))
    return rows + [("text", "")]


def main(out, commands):
    rows = [row for command in commands for row in lines_of(command)][:-1]
    width, height = COLUMNS * CHAR_W + 2 * MARGIN, len(rows) * LINE_H + 2 * MARGIN
    colors = {"prompt": "#7ee787", "note": "#8b949e", "text": "#e6edf3"}
    body = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE_H * (i + 0.75):.0f}" fill="{colors[kind]}" '
        f'xml:space="preserve">{html.escape(text)}</text>' for i, (kind, text) in enumerate(rows))
    with open(out, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
                f'height="{height:.0f}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" '
                f'font-size="14">\n<rect width="100%" height="100%" rx="8" fill="#0d1117"/>\n'
                f"{body}\n</svg>\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
