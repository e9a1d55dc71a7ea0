"""Writes ops.bin: small inputs and results of the row-wise ops and of attention, computed here
from the papers' formulas in double precision with numpy, to pin the C reference.

Usage: python3 make_ops.py    (needs numpy; writes beside this file)
Container: as make_dequant.py. All numbers are f32 unless the name says otherwise.
"""

import pathlib
import struct

import numpy as np

SEED = 20240608
out = []


def record(name, array, kind="<f4"):
    data = np.ascontiguousarray(array).astype(kind).tobytes()
    out.append(struct.pack("<24sI", name.encode(), len(data)) + data + b"\0" * (-len(data) % 4))


def f32(rng, *shape, sigma=1.0):
    """Random values that are exact in f32, held as doubles."""
    return (rng.standard_normal(shape) * sigma).astype(np.float32).astype(np.float64)


def rms_norm(rng):
    x, w, eps = f32(rng, 77, sigma=3.0), f32(rng, 77), float(np.float32(1e-5))
    record("norm.x", x)
    record("norm.w", w)
    record("norm.out", x * w / np.sqrt(np.mean(x * x) + eps))


def rope(rng):
    """Two heads of 12 dims, 8 of them rotated, at position 1234 with base 10000."""
    x, n_rot = f32(rng, 2, 12), 8
    angles = 1234.0 * 10000.0 ** (-2.0 * np.arange(n_rot // 2) / n_rot)
    rotation = np.exp(1j * angles)
    record("rope.x", x)
    record("rope.cos_sin", np.stack([rotation.real, rotation.imag], axis=1))
    half, pair = x.copy(), x.copy()
    turned = (x[:, : n_rot // 2] + 1j * x[:, n_rot // 2 : n_rot]) * rotation
    half[:, : n_rot // 2], half[:, n_rot // 2 : n_rot] = turned.real, turned.imag
    turned = (x[:, 0:n_rot:2] + 1j * x[:, 1:n_rot:2]) * rotation
    pair[:, 0:n_rot:2], pair[:, 1:n_rot:2] = turned.real, turned.imag
    record("rope.half", half)
    record("rope.pair", pair)
    # The angle table itself: positions 0, 1, 1234, 100003 with frequency factors and scale 0.25.
    factors = np.float32([1.0, 1.5, 4.0, 8.0]).astype(np.float64)
    table = np.outer([0, 1, 1234, 100003], 0.25 * 10000.0 ** (-np.arange(4) / 4.0) / factors)
    record("rope.table", np.stack([np.cos(table), np.sin(table)], axis=2))


def activations(rng):
    gate, up = f32(rng, 60, sigma=4.0), f32(rng, 60)
    gate[:6] = [0.0, -30.0, 30.0, -90.0, 90.0, 1e-4]
    gate = gate.astype(np.float32).astype(np.float64)
    record("act.gate", gate)
    record("act.up", up)
    record("act.silu", gate / (1.0 + np.exp(-gate)) * up)
    inner = np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)
    record("act.gelu", 0.5 * gate * (1.0 + np.tanh(inner)) * up)
    record("act.softcap", 30.0 * np.tanh(20.0 * gate / 30.0))


def quantise(rng):
    x = f32(rng, 4, 32, sigma=2.0)
    x[1] = 0.0
    x[2] *= 1e-20
    x = x.astype(np.float32)
    amax = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    q = np.rint(x * inverse).astype(np.int8)
    record("quant.x", x)
    record("quant.q.i8", q, "<i1")
    record("quant.d", amax / np.float32(127))
    record("quant.sums.i32", q.reshape(4, 2, 16).astype(np.int32).sum(axis=2), "<i4")


def attention(rng, name, window, softcap):
    """Five rows at positions 30..34; 4 query heads share 1 KV head; 48 key slots in 3 pages."""
    n_rows, n_heads, dim, begin = 5, 4, 16, 30
    q, k, v = f32(rng, n_rows, n_heads, dim), f32(rng, 35, dim), f32(rng, 35, dim)
    scale = 0.25
    result = np.zeros((n_rows, n_heads, dim))
    for r in range(n_rows):
        pos = begin + r
        first = max(0, pos - window + 1) if window else 0
        s = q[r] @ k[first : pos + 1].T * scale
        if softcap:
            s = softcap * np.tanh(s / softcap)
        p = np.exp(s - s.max(axis=1, keepdims=True))
        result[r] = (p / p.sum(axis=1, keepdims=True)) @ v[first : pos + 1]
    for suffix, array in (("q", q), ("k", k), ("v", v), ("out", result)):
        record(f"{name}.{suffix}", array)


def main():
    rng = np.random.default_rng(SEED)
    rms_norm(rng)
    rope(rng)
    activations(rng)
    quantise(rng)
    attention(rng, "attn", 0, 0.0)
    attention(rng, "attn_window", 7, 0.0)
    attention(rng, "attn_softcap", 0, 2.0)
    pathlib.Path(__file__).with_name("ops.bin").write_bytes(b"".join(out))


main()
