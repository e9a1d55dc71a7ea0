#!/usr/bin/env python3
"""Writes a Llama-shaped GGUF of random weights: for speed on shapes that no fetched model has.

The tokenizer is copied from another file (only its keys are read, so the first few MiB of a model
do). Random quants, scales that keep the activations near 1; the same seed gives the same file.
Speed does not depend on what a model says, but zeros would be faster: nothing here is zero.

usage: random_model.py --vocab-from MODEL.gguf [--shape 1b] [--type q4_k] [--seed 1] OUT.gguf"""
import argparse
import struct

import numpy as np

# layers, n_embd, n_ff, heads, KV heads
SHAPES = {"1b": (16, 2048, 8192, 32, 8), "3b": (28, 3072, 8192, 24, 8),
          "8b": (32, 4096, 14336, 32, 8), "tiny": (2, 256, 512, 4, 2)}
# ggml type id, items a block, bytes a block
TYPES = {"f32": (0, 1, 4), "q4_0": (2, 32, 18), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144),
         "q6_k": (14, 256, 210), "bf16": (30, 1, 2)}
STRING, ARRAY, U32, F32 = 8, 9, 4, 6
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def half(value, n):
    return np.full(n, value, np.float16).view(np.uint8).reshape(n, 2)


def blocks(rng, kind, n_rows, n_in):
    """Random blocks of a matrix [n_rows, n_in] with standard deviation 1 / sqrt(n_in)."""
    sd = 1 / np.sqrt(n_in)
    _, items, n_bytes = TYPES[kind]
    n = n_rows * n_in // items
    if kind in ("f32", "bf16"):
        values = rng.standard_normal(n, np.float32) * np.float32(sd)
        return values if kind == "f32" else (values.view(np.uint32) >> 16).astype(np.uint16)
    b = rng.integers(0, 256, (n, n_bytes), np.uint8)
    if kind == "q4_k":  # scale and minimum 32 of 63: d * 32 * (q - 7.5), q uniform in 0..15
        d = sd / 32 / 4.61
        b[:, 0:2], b[:, 2:4] = half(d, n), half(7.5 * d, n)
        b[:, 4:12], b[:, 12:16] = 32 | 2 << 6, 0
    elif kind == "q6_k":
        b[:, 192:208], b[:, 208:210] = 32, half(sd / 32 / 18.5, n)
    elif kind == "q8_0":
        b[:, 0:2] = half(sd / 73.9, n)
    else:  # q4_0
        b[:, 0:2] = half(sd / 4.61, n)
    return b


def copied_keys(path):
    """The tokenizer.* entries of a file, as raw bytes, and the length of the vocabulary."""
    with open(path, "rb") as file:
        data = file.read(64 << 20)
    n_keys, = struct.unpack_from("<Q", data, 16)
    pos, entries, n_vocab = 24, [], 0

    def skip(kind, at):
        if kind == STRING:
            return at + 8 + struct.unpack_from("<Q", data, at)[0]
        if kind == ARRAY:
            item, n = struct.unpack_from("<IQ", data, at)
            at += 12
            if item != STRING:
                return at + n * SIZES[item]
            for _ in range(n):
                at = skip(STRING, at)
            return at
        return at + SIZES[kind]

    for _ in range(n_keys):
        begin = pos
        n, = struct.unpack_from("<Q", data, pos)
        name = data[pos + 8:pos + 8 + n].decode()
        kind, = struct.unpack_from("<I", data, pos + 8 + n)
        pos = skip(kind, pos + 12 + n)
        if name.startswith("tokenizer."):
            entries.append(data[begin:pos])
        if name == "tokenizer.ggml.tokens":
            n_vocab, = struct.unpack_from("<Q", data, begin + 8 + n + 8)
    return entries, n_vocab


def key(name, kind, value):
    head = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind)
    if kind == STRING:
        return head + struct.pack("<Q", len(value)) + value.encode()
    return head + struct.pack("<I" if kind == U32 else "<f", value)


def main():
    p = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    p.add_argument("--vocab-from", required=True)
    p.add_argument("--shape", choices=SHAPES, default="1b")
    p.add_argument("--type", choices=TYPES, default="q4_k")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("out")
    args = p.parse_args()
    layers, d, ff, heads, kv_heads = SHAPES[args.shape]
    kv = d // heads * kv_heads
    keys, n_vocab = copied_keys(args.vocab_from)
    keys += [key("general.architecture", STRING, "llama"),
             key("general.name", STRING, f"random {args.shape} {args.type}"),
             key("llama.block_count", U32, layers), key("llama.embedding_length", U32, d),
             key("llama.feed_forward_length", U32, ff), key("llama.context_length", U32, 16384),
             key("llama.attention.head_count", U32, heads),
             key("llama.attention.head_count_kv", U32, kv_heads),
             key("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
             key("llama.rope.dimension_count", U32, d // heads),
             key("llama.rope.freq_base", F32, 10000.0)]
    plan = [("token_embd.weight", args.type, n_vocab, d), ("output_norm.weight", "f32", 0, d)]
    for i in range(layers):
        at = f"blk.{i}."
        plan += [(at + "attn_norm.weight", "f32", 0, d), (at + "attn_q.weight", args.type, d, d),
                 (at + "attn_k.weight", args.type, kv, d), (at + "attn_v.weight", args.type, kv, d),
                 (at + "attn_output.weight", args.type, d, d),
                 (at + "ffn_norm.weight", "f32", 0, d),
                 (at + "ffn_gate.weight", args.type, ff, d),
                 (at + "ffn_up.weight", args.type, ff, d),
                 (at + "ffn_down.weight", args.type, d, ff)]
    table, offset = b"", 0
    for name, kind, n_rows, n_in in plan:
        dims = [n_in, n_rows] if n_rows else [n_in]
        table += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(dims))
        table += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", TYPES[kind][0], offset)
        n_bytes = max(n_rows, 1) * n_in // TYPES[kind][1] * TYPES[kind][2]
        offset += (n_bytes + 31) // 32 * 32
    rng = np.random.default_rng(args.seed)
    with open(args.out, "wb") as file:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(keys)) + b"".join(keys) + table
        file.write(head + b"\0" * (-len(head) % 32))
        for name, kind, n_rows, n_in in plan:
            if n_rows:
                raw = blocks(rng, kind, n_rows, n_in).tobytes()
            else:
                raw = np.ones(n_in, np.float32).tobytes()
            file.write(raw + b"\0" * (-len(raw) % 32))


if __name__ == "__main__":
    main()
