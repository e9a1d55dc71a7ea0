#!/usr/bin/env python3
"""Writes the weights of a GGUF file (llama, qwen2, gemma3) as a Hugging Face directory.

config.json and model.safetensors in f32: exactly the values the GGUF file means. That directory
is the ground truth for logits, run by another engine from token ids; no tokenizer is written.
Needs numpy only, and memory for one tensor.
usage: gguf_to_hf.py MODEL.gguf OUT_DIR
"""
import json
import os
import sys

import numpy as np

from gguf_file import Gguf

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
         "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
# Gemma 3 has four norms a layer; the one before the feed-forward part takes over "ffn_norm".
LAYER_GEMMA3 = {"ffn_norm": "pre_feedforward_layernorm",
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm"}
CLASSES = {"llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2"),
           "gemma3": ("Gemma3ForCausalLM", "gemma3_text")}


def hf_name(name, arch):
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    layers = {**LAYER, **LAYER_GEMMA3} if arch == "gemma3" else LAYER
    _, number, part = stem.split(".", 2)
    return f"model.layers.{number}.{layers[part]}.{kind}"


def hf_values(tensor, arch, n_heads, n_kv_heads):
    """f32 values in Hugging Face's conventions."""
    values = tensor.to_f32()
    part = tensor.name.split(".")[-2]
    if arch == "llama" and part in ("attn_q", "attn_k"):
        # GGUF keeps the two halves of each rotated pair next to each other; Hugging Face keeps
        # first halves, then second halves.
        heads = n_heads if part == "attn_q" else n_kv_heads
        half = values.shape[0] // heads // 2
        values = values.reshape(heads, half, 2, -1).transpose(0, 2, 1, 3).reshape(values.shape)
    if arch == "gemma3" and part.endswith("norm"):
        values = values - np.float32(1)  # GGUF stores 1 + w
    return np.ascontiguousarray(values, dtype="<f4")


def config_of(gguf, arch, is_tied):
    get = lambda key, default=None: gguf.keys.get(f"{arch}.{key}", default)
    n_heads = get("attention.head_count")
    head_dim = get("attention.key_length", get("embedding_length") // n_heads)
    architecture, model_type = CLASSES[arch]
    config = {
        "architectures": [architecture], "model_type": model_type,
        "hidden_size": get("embedding_length"), "num_hidden_layers": get("block_count"),
        "intermediate_size": get("feed_forward_length"), "num_attention_heads": n_heads,
        "num_key_value_heads": get("attention.head_count_kv", n_heads), "head_dim": head_dim,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "max_position_embeddings": get("context_length"),
        "vocab_size": len(gguf.keys["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": is_tied, "torch_dtype": "float32",
        "bos_token_id": gguf.keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.keys.get("tokenizer.ggml.eos_token_id")}
    if arch == "gemma3":
        config.update(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=head_dim,
                      sliding_window=get("attention.sliding_window"), sliding_window_pattern=6,
                      rope_local_base_freq=10000.0)
    else:
        config["hidden_act"] = "silu"
    return config


def convert(source, out):
    gguf = Gguf(source)
    arch = gguf.keys["general.architecture"]
    if arch not in CLASSES:
        sys.exit(f"{source}: architecture {arch} is not known here")
    n_heads = gguf.keys[f"{arch}.attention.head_count"]
    n_kv_heads = gguf.keys.get(f"{arch}.attention.head_count_kv", n_heads)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in gguf.tensors:
        n_bytes = 4 * int(np.prod(tensor.shape, dtype=np.int64))
        header[hf_name(tensor.name, arch)] = {"dtype": "F32", "shape": list(tensor.shape),
                                              "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in gguf.tensors:
            file.write(hf_values(tensor, arch, n_heads, n_kv_heads).tobytes())
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config_of(gguf, arch, "lm_head.weight" not in header), file, indent=1)
    return len(gguf.tensors), offset


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    n_tensors, n_bytes = convert(sys.argv[1], sys.argv[2])
    print(f"{sys.argv[2]}: {n_tensors} tensors, {n_bytes / 1e6:.1f} MB")
