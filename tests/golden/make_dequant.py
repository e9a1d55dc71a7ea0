"""Writes dequant.bin: random file blocks of every quantised type and the values that the `gguf`
Python package (an implementation independent of ours) decodes from them.

Usage: python3 make_dequant.py    (needs numpy and gguf; writes beside this file)
Container, little-endian: records of name[24] (zero-padded), u32 n_bytes, bytes padded to 4.
"""

import pathlib
import struct

import numpy as np
import gguf

SEED = 20240607
TYPES = {  # name: (block bytes, blocks, offsets of the half-precision scales)
    "F16": (2, 512, None),
    "BF16": (2, 512, None),
    "Q4_0": (18, 12, [0]),
    "Q4_1": (20, 12, [0, 2]),
    "Q5_0": (22, 12, [0]),
    "Q5_1": (24, 12, [0, 2]),
    "Q8_0": (34, 12, [0]),
    "Q4_K": (144, 3, [0, 2]),
    "Q5_K": (176, 3, [0, 2]),
    "Q6_K": (210, 3, [208]),
}


def record(name, data):
    data = bytes(data)
    return struct.pack("<24sI", name.encode(), len(data)) + data + b"\0" * (-len(data) % 4)


def finite_halves(rng, n):
    """Half-precision bit patterns without NaN and infinity; subnormals and signs included."""
    bits = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    return np.where((bits & 0x7C00) == 0x7C00, bits & 0x8FFF, bits).astype("<u2")


def main():
    rng = np.random.default_rng(SEED)
    out = b""
    for name, (block_bytes, n_blocks, scales) in TYPES.items():
        blocks = rng.integers(0, 256, (n_blocks, block_bytes), dtype=np.uint8)
        if name == "F16":
            blocks = finite_halves(rng, n_blocks).view(np.uint8).reshape(n_blocks, 2)
        elif name == "BF16":
            bits = rng.integers(0, 1 << 16, n_blocks, dtype=np.uint16)
            bits = np.where((bits & 0x7F80) == 0x7F80, bits & 0xBFFF, bits).astype("<u2")
            blocks = bits.view(np.uint8).reshape(n_blocks, 2)
        for offset in scales or []:
            halves = finite_halves(rng, n_blocks).view(np.uint8).reshape(n_blocks, 2)
            blocks[:, offset : offset + 2] = halves
        kind = gguf.GGMLQuantizationType[name]
        values = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4").reshape(-1)
        out += record(name.lower() + ".blocks", blocks.tobytes())
        out += record(name.lower() + ".values", values.tobytes())
    pathlib.Path(__file__).with_name("dequant.bin").write_bytes(out)


main()
