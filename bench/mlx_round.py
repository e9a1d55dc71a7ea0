#!/usr/bin/env python3
"""One measurement of mlx-lm on the CPU, in bfloat16, from token ids. Run by bench/run.py with the
interpreter of the peers' environment; prints {"prefill_tps": {N: speed}, "decode_tps": speed}.

usage: mlx_round.py HF_DIR N_PROMPT[,N_PROMPT...] N_GENERATE"""
import json
import sys
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

CHUNK = 512


def prefill(model, cache, ids):
    """Next token after ids."""
    for begin in range(0, len(ids), CHUNK):
        logits = model(mx.array([ids[begin:begin + CHUNK]]), cache=cache)
        mx.eval(logits, [c.state for c in cache])
    return int(mx.argmax(logits[0, -1]).item())


def main(folder, sizes, n_generate):
    mx.set_default_device(mx.cpu)
    model, config = load_model(Path(folder))
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    ids = [(i * 7919 + 13) % config["vocab_size"] for i in range(max(sizes))]
    prefill(model, make_prompt_cache(model), ids[:8])  # warm-up
    speeds = {}
    for n in sizes:
        cache = make_prompt_cache(model)
        begin = time.perf_counter()
        token = prefill(model, cache, ids[:n])
        speeds[n] = n / (time.perf_counter() - begin)
    begin = time.perf_counter()
    for _ in range(n_generate):
        logits = model(mx.array([[token]]), cache=cache)
        token = int(mx.argmax(logits[0, -1]).item())
    decode = n_generate / (time.perf_counter() - begin)
    print(json.dumps({"prefill_tps": speeds, "decode_tps": decode}))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], [int(n) for n in sys.argv[2].split(",")], int(sys.argv[3]))
