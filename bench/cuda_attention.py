#!/usr/bin/env python3
"""Causal attention of prompts on the GPU: kr (bench_cuda, f16, paged) beside PyTorch's scaled dot
product attention by cuDNN and by its flash kernel (bf16, contiguous), in turns in one run.

TFLOP/s count 4 * batch * heads * tokens^2 * head size / 2 for both. kr's queries, keys and values
are in its pages and the forms that its own ops leave; its result is bf16.

usage: cuda_attention.py [--bench BUILD/bench_cuda] [--rounds 3] [--json]"""
import argparse
import json
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# head size, heads, KV heads, sequences, tokens; the last rows are layers of Llama 8B and 1B shapes
SHAPES = [(64, 32, 32, 2, 8192), (128, 16, 16, 2, 8192), (256, 8, 8, 2, 8192),
          (64, 32, 32, 4, 4096), (128, 16, 16, 4, 4096), (256, 8, 8, 4, 4096),
          (128, 32, 8, 1, 4096), (64, 32, 8, 1, 4096)]
RIVALS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
CALLS, ROUNDS = 20, 7


def rival_ms(backend, shape):
    """Best of several rounds, as bench_cuda's."""
    dim, heads, _, seqs, tokens = shape
    q, k, v = (torch.randn(seqs, heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
               for _ in range(3))
    best = float("inf")
    with sdpa_kernel([backend]):
        for _ in range(ROUNDS + 1):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(CALLS):
                scaled_dot_product_attention(q, k, v, is_causal=True)
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / CALLS)
    return best


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("--bench", default="build/bench_cuda")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    rows = []
    for shape in SHAPES:
        dim, heads, _, seqs, tokens = shape
        flops = 2 * seqs * heads * tokens * tokens * dim
        times = {name: [] for name in ["kr", *RIVALS]}
        for _ in range(args.rounds):
            out = subprocess.run([args.bench, *map(str, shape)], check=True, capture_output=True)
            times["kr"].append(json.loads(out.stdout)["ms"])
            for name, backend in RIVALS.items():
                times[name].append(rival_ms(backend, shape))
        tflops = {name: flops / statistics.median(ms) / 1e9 for name, ms in times.items()}
        ratio = statistics.median(r / k for r, k in zip(times["cudnn"], times["kr"]))
        rows.append({"head_dim": dim, "n_heads": heads, "n_kv_heads": shape[2], "n_seqs": seqs,
                     "n_tokens": tokens, "tflops": tflops, "of_cudnn": ratio})
        if not args.json:
            print(f"head {dim:3}, {heads}/{shape[2]} heads, {seqs} x {tokens}: " + ", ".join(
                f"{name} {value:.0f}" for name, value in tflops.items()) +
                f" TFLOP/s; of cuDNN {ratio:.2f}", flush=True)
    if args.json:
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                          "results": rows}))


if __name__ == "__main__":
    main()
