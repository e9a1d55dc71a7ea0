#!/usr/bin/env python3
"""Writes tests/golden/logits_<alias>.txt: the truth that kr's logits are held against.

Truth: mlx-lm in float32 on the dequantised weights (directory made by tools/gguf_to_hf.py f32),
driven by token ids. Rival: llama-cpp-python on the GGUF file. Per prompt the rival's tokenizer
gives the ids and its greedy choice the next 24 tokens (teacher forcing for everyone). For each of
these 24 steps the file holds the rival's top-10 tokens with the rival's and the truth's
log-probabilities, and the truth's best token with its lead over the second, all in nats.

usage: make_logits.py ALIAS MODEL.gguf HF_DIR OUT
needs: numpy, llama-cpp-python 0.3.36, mlx-lm with mlx[cpu]

Lines:  prompt N_PROMPT N_TOTAL id...          (24 steps follow)
        step TRUTH_TOP1 TRUTH_GAP (ID RIVAL_LOGPROB TRUTH_LOGPROB) x 10
"""
import sys

import numpy as np

N_STEPS = 24
PROMPTS = [
    "The three laws of thermodynamics can be summarised as follows:",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Question: A train leaves Lyon at 9:40 and reaches Paris at 11:38. How long is the trip?\n"
    "Answer:",
    "Once upon a time, in a village at the foot of a grey mountain, there lived a clockmaker who",
    "北京是中国的首都，它的历史",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "Dear Ms. Okafor,\n\nThank you for your letter of 14 March. We are sorry to hear that",
    "Water boils at 100 °C at sea level, but on a high mountain it boils at a lower temperature "
    "because",
]


def log_softmax(x):
    x = x.astype(np.float64)
    m = x.max(axis=-1, keepdims=True)
    return x - m - np.log(np.exp(x - m).sum(axis=-1, keepdims=True))


def rival_logits(path, texts):
    from llama_cpp import Llama
    llm = Llama(path, n_ctx=512, n_batch=512, logits_all=True, verbose=False, n_threads=2)
    out = []
    for text in texts:
        ids = llm.tokenize(text.encode(), add_bos=True, special=False)
        n_prompt = len(ids)
        llm.reset()
        llm.eval(ids)
        rows = [llm.scores[n_prompt - 1].copy()]
        for _ in range(N_STEPS - 1):
            ids.append(int(rows[-1].argmax()))
            llm.eval(ids[-1:])
            rows.append(llm.scores[len(ids) - 1].copy())
        out.append((n_prompt, ids, log_softmax(np.stack(rows))))
    return out


def truth_logits(hf_dir, runs):
    import mlx.core as mx
    from pathlib import Path
    from mlx_lm.utils import load_model
    model, _ = load_model(Path(hf_dir))
    model.set_dtype(mx.float32)
    out = []
    for n_prompt, ids, _ in runs:
        logits = model(mx.array([ids]))[0, n_prompt - 1:]
        mx.eval(logits)
        out.append(log_softmax(np.array(logits, copy=False)))
    return out


def main(alias, gguf, hf_dir, path):
    runs = rival_logits(gguf, PROMPTS)
    truth = truth_logits(hf_dir, runs)
    distance = []
    with open(path, "w") as f:
        f.write(f"# {alias}: made by make_logits.py\n")
        for (n_prompt, ids, rival), true in zip(runs, truth):
            f.write(f"prompt {n_prompt} {len(ids)} " + " ".join(map(str, ids)) + "\n")
            for r, t in zip(rival, true):
                best = np.argsort(-t)[:2]
                top = np.argsort(-r)[:10]
                distance.append(np.abs(r[top] - t[top]).mean())
                f.write(f"step {best[0]} {t[best[0]] - t[best[1]]:.5f} " +
                        " ".join(f"{i} {r[i]:.5f} {t[i]:.5f}" for i in top) + "\n")
    print(f"{alias}: rival's mean distance from the truth {np.mean(distance):.4f} nat")


if __name__ == "__main__":
    main(*sys.argv[1:5])
