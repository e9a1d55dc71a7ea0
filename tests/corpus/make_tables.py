#!/usr/bin/env python3
"""make_tables.py: seeds of fuzz_tables: good tables with one field, or a few bytes, changed.
Writes tests/corpus/tables/; the format is that of tests/fuzz/fuzz_tables.c."""
import random
import struct
from pathlib import Path

OUT = Path(__file__).resolve().parent / "tables"
FIELDS = {"magic": 0, "version": 8, "n_tokens": 12, "seed": 16, "is_spm": 24, "control_max": 28,
          "token_max": 32}
SECTIONS = ("decoded", "decoded_offsets", "types", "text", "text_offsets", "index", "index_tags",
            "ranks", "neighbours", "pairs", "pair_tags", "bytes", "control", "control_starts",
            "control_reversed", "user", "user_starts")
HEAD_BYTES = 40


def seed(name, is_spm, changes):
    data = bytes([is_spm]) + b"".join(struct.pack("<HB", at, xor) for at, xor in changes)
    (OUT / name).write_bytes(data)


def main():
    OUT.mkdir(exist_ok=True)
    rng = random.Random(1)
    for is_spm in (0, 1):
        kind = "spm" if is_spm else "bpe"
        seed(f"{kind}_good", is_spm, [])
        for name, at in FIELDS.items():
            seed(f"{kind}_{name}", is_spm, [(at, 0x01)])
        for i, name in enumerate(SECTIONS):
            at = HEAD_BYTES + 16 * i
            seed(f"{kind}_at_{name}", is_spm, [(at, 0x10)])
            seed(f"{kind}_size_{name}", is_spm, [(at + 8, 0x10)])
        for i in range(6):
            changes = [(rng.randrange(0x10000), rng.randrange(1, 256)) for _ in range(1 + i * 8)]
            changes = [(at if at >= 400 else at + 400, xor) for at, xor in changes]
            seed(f"{kind}_bytes_{i}", is_spm, changes)
    (OUT / "raw_magic").write_bytes(b"KRTEXT\0\0" + struct.pack("<II", 1, 1) + bytes(400))


if __name__ == "__main__":
    main()
