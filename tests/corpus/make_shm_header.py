#!/usr/bin/env python3
"""Writes the seeds of fuzz_shm_header: good headers with and without their payload, and one for each
way to be bad."""
import struct
import sys
from pathlib import Path

HEAD = struct.Struct("<IIQIIQQQ16s")
MAGIC = 0x4d53524b


def header(magic=MAGIC, version=1, generation=1, dtype=3, n_dims=1, d0=4, d1=0, n_bytes=16,
           tail=bytes(16)):
    return HEAD.pack(magic, version, generation, dtype, n_dims, d0, d1, n_bytes, tail)


SEEDS = {
    "f32": header() + bytes(range(16)),
    "i32-matrix": header(dtype=2, n_dims=2, d0=2, d1=3, n_bytes=24) + bytes(24),
    "u8": header(dtype=1, d0=5, n_bytes=5) + b"hello",
    "alone": header(),
    "short": header()[:63],
    "cut": header() + bytes(15),
    "long": header() + bytes(17),
    "magic": header(magic=1) + bytes(16),
    "version": header(version=2) + bytes(16),
    "generation": header(generation=0) + bytes(16),
    "dtype": header(dtype=4) + bytes(16),
    "no-dims": header(n_dims=0) + bytes(16),
    "three-dims": header(n_dims=3) + bytes(16),
    "hidden-dim": header(d1=1) + bytes(16),
    "empty": header(d0=0, n_bytes=0),
    "overflow": header(n_dims=2, d0=1 << 62, d1=16, n_bytes=0),
    "huge": header(d0=1 << 40, n_bytes=1 << 42),
    "bytes": header(n_bytes=17) + bytes(17),
    "tail": header(tail=bytes(15) + b"x") + bytes(16),
    "name": b"/kr.eff0.1.1.0123456789abcdef0123456789abcdef",
    "name-signs": b"/kr.+eff0.-1. 1.0123456789abcdef0123456789abcdef",
    "name-path": b"/../kr.1.1.1.0123456789abcdef0123456789abcdef",
}


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "shm_header")
    folder.mkdir(exist_ok=True)
    for name, data in SEEDS.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
