#!/usr/bin/env python3
"""Golden logits and hidden states of the tiny random models, by mlx-lm in float32.

For each model: make_tiny_gguf writes the GGUF file, tools/gguf_to_hf.py its exact weights, mlx-lm
evaluates N_TOKENS seeded ids in one pass. Written beside this script:
  tiny_<model>.f32          float32 little-endian [n_tokens, n_vocab]
  tiny_<model>_hidden.f32   what the head reads, after the final norm: [n_tokens, n_embd]
  tiny_<model>.txt          line 1: FNV-1a 64 of the GGUF file in hex; line 2: the token ids
The hash lets a test notice that the generator and the golden file have parted.
usage: make_tiny_logits.py MAKE_TINY_GGUF [MODEL...]     (needs numpy, mlx and mlx-lm)
"""
import os
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tools"))
from gguf_to_hf import convert  # noqa: E402

MODELS = ["llama", "llama_gqa4", "qwen2", "gemma3"]
N_TOKENS, N_VOCAB, N_EMBD = 70, 320, 64  # more tokens than two windows of gemma3


def fnv1a(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & (1 << 64) - 1
    return value


def token_ids(model):
    rng = np.random.Generator(np.random.PCG64(sum(model.encode())))
    return [int(i) for i in rng.integers(0, N_VOCAB, N_TOKENS)]


def make(program, model):
    with tempfile.TemporaryDirectory() as folder:
        gguf, hf = os.path.join(folder, "m.gguf"), os.path.join(folder, "hf")
        subprocess.run([program, model, gguf], check=True, stdout=subprocess.DEVNULL)
        with open(gguf, "rb") as file:
            digest = fnv1a(file.read())
        convert(gguf, hf)
        net, _ = load_model(Path(hf))
        net.set_dtype(mx.float32)
        ids = token_ids(model)
        logits = np.array(net(mx.array([ids])).astype(mx.float32))[0]
        hidden = np.array(net.model(mx.array([ids])).astype(mx.float32))[0]
    assert hidden.shape == (N_TOKENS, N_EMBD) and np.isfinite(hidden).all()
    assert logits.shape == (N_TOKENS, N_VOCAB) and np.isfinite(logits).all()
    logits.astype("<f4").tofile(os.path.join(HERE, f"tiny_{model}.f32"))
    hidden.astype("<f4").tofile(os.path.join(HERE, f"tiny_{model}_hidden.f32"))
    with open(os.path.join(HERE, f"tiny_{model}.txt"), "w") as file:
        file.write(f"{digest:016x}\n{' '.join(map(str, ids))}\n")
    print(f"{model}: logits std {logits.std():.3f}, max |x| {np.abs(logits).max():.3f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[2:] or MODELS:
        make(sys.argv[1], name)
