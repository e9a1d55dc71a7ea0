#!/usr/bin/env python3
"""Writes the seeds of the GGUF reader's fuzz target into tests/corpus/gguf.

Plain Python, no packages, same bytes on every run. Names tell what a file is: ok_* must be
accepted, bad_* must be refused (tests/fuzz/fuzz_gguf.c only demands that neither crashes).
usage: make_gguf.py [OUT_DIR]
"""
import os
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
PACK = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B",
        U64: "<Q", I64: "<q", F64: "<d"}
# name: (ggml type id, items per block, bytes per block)
TENSOR_TYPES = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20),
                "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "q8_0": (8, 32, 34),
                "q4_k": (12, 256, 144), "q5_k": (13, 256, 176), "q6_k": (14, 256, 210),
                "bf16": (30, 1, 2)}


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def value(kind, item):
    return string(item) if kind == STR else struct.pack(PACK[kind], item)


def kv(key, kind, item):
    return string(key) + struct.pack("<I", kind) + value(kind, item)


def array(key, kind, items, count=None):
    head = struct.pack("<IIQ", ARR, kind, len(items) if count is None else count)
    return string(key) + head + b"".join(value(kind, item) for item in items)


def info(name, dims, kind=0, offset=0, n_dims=None):
    n_dims = len(dims) if n_dims is None else n_dims
    return (string(name) + struct.pack("<I", n_dims) +
            b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset))


def build(kvs=(), infos=(), data=b"", version=3, n_kvs=None, n_infos=None, align=32,
          magic=b"GGUF"):
    head = magic + struct.pack("<IQQ", version, len(infos) if n_infos is None else n_infos,
                               len(kvs) if n_kvs is None else n_kvs)
    body = head + b"".join(kvs) + b"".join(infos)
    return body + b"\0" * (-len(body) % align) + data


def valid_files():
    samples = {"u8": (U8, 200), "i8": (I8, -5), "u16": (U16, 65000), "i16": (I16, -300),
               "u32": (U32, 4000000000), "i32": (I32, -7), "f32": (F32, 1.5), "bool": (BOOL, 1),
               "str": (STR, "text"), "u64": (U64, 1 << 40), "i64": (I64, -(1 << 40)),
               "f64": (F64, 0.25)}
    for name, (kind, item) in samples.items():
        yield f"ok_value_{name}", build([kv("k", kind, item)])
        yield f"ok_array_{name}", build([array("k", kind, [item] * 3)])
        yield f"ok_empty_{name}", build([array("k", kind, [])])
    for name, (kind, items, n_bytes) in TENSOR_TYPES.items():
        data = bytes(range(n_bytes % 251 + 1)) * (2 * n_bytes)
        yield f"ok_tensor_{name}", build([], [info("t", [items, 2], kind)], data[:2 * n_bytes])
    yield "ok_empty", build()
    yield "ok_version_2", build([kv("general.architecture", STR, "llama")], version=2)
    yield "ok_alignment_8", build([kv("general.alignment", U32, 8)],
                                  [info("a", [2]), info("b", [2], offset=8)], b"x" * 16, align=8)
    yield "ok_four_dims", build([], [info("t", [2, 3, 1, 2])], b"x" * 48)
    yield "ok_gap_and_order", build([], [info("a", [8], offset=96), info("b", [8])], b"x" * 128)
    yield "ok_model", model()


def model():
    """The skeleton of a language model: the keys and tensor names later stages look for."""
    kvs = [kv("general.architecture", STR, "llama"), kv("general.name", STR, "seed"),
           kv("llama.block_count", U32, 1), kv("llama.context_length", U32, 64),
           kv("llama.embedding_length", U32, 32), kv("llama.feed_forward_length", U32, 32),
           kv("llama.attention.head_count", U32, 2), kv("llama.attention.head_count_kv", U32, 1),
           kv("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
           kv("llama.rope.freq_base", F32, 10000.0), kv("llama.rope.dimension_count", U32, 16),
           kv("tokenizer.ggml.model", STR, "gpt2"), kv("tokenizer.ggml.pre", STR, "smollm"),
           array("tokenizer.ggml.tokens", STR, ["a", "b", "ab", "<end>"]),
           array("tokenizer.ggml.token_type", I32, [1, 1, 1, 3]),
           array("tokenizer.ggml.merges", STR, ["a b"]),
           kv("tokenizer.ggml.bos_token_id", U32, 3), kv("tokenizer.ggml.eos_token_id", U32, 3),
           kv("tokenizer.ggml.add_bos_token", BOOL, 0),
           kv("tokenizer.chat_template", STR, "{{ messages[0].content }}")]
    shapes = {"token_embd.weight": [32, 4], "output_norm.weight": [32],
              "blk.0.attn_norm.weight": [32], "blk.0.attn_q.weight": [32, 32],
              "blk.0.attn_k.weight": [32, 16], "blk.0.attn_v.weight": [32, 16],
              "blk.0.attn_output.weight": [32, 32], "blk.0.ffn_norm.weight": [32],
              "blk.0.ffn_gate.weight": [32, 32], "blk.0.ffn_up.weight": [32, 32],
              "blk.0.ffn_down.weight": [32, 32]}
    infos, data = [], b""
    for number, (name, dims) in enumerate(shapes.items()):
        n = dims[0] * (dims[1] if len(dims) > 1 else 1)
        infos.append(info(name, dims, 0, len(data)))
        data += struct.pack(f"<{n}f", *(((i * 7 + number) % 13 - 6) / 32 for i in range(n)))
    return build(kvs, infos, data)


def broken_files():
    two = [kv("a", U32, 1), kv("b", U32, 2)]
    for name, count in {"31": 1 << 31, "32": 1 << 32, "63": 1 << 63, "64": (1 << 64) - 1}.items():
        yield f"bad_n_kvs_{name}", build(two, n_kvs=count)
        yield f"bad_n_tensors_{name}", build(two, n_infos=count)
        yield f"bad_array_count_{name}", build([array("k", F64, [1.0], count)])
        yield f"bad_strings_count_{name}", build([array("k", STR, ["x"], count)])
        yield f"bad_string_{name}", build([string("k") + struct.pack("<IQ", STR, count)])
        yield f"bad_key_{name}", build([struct.pack("<Q", count) + b"kkkk"])
        yield f"bad_dim_{name}", build([], [info("t", [count, 4])], b"x" * 64)
        yield f"bad_offset_{name}", build([], [info("t", [4], offset=count & ~31)], b"x" * 64)
    yield "bad_magic", build(two, magic=b"GGML")
    yield "bad_big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    for version in (0, 1, 4):
        yield f"bad_version_{version}", build(two, version=version)
    yield "bad_empty_file", b""
    whole = build(two, [info("t", [4])], b"x" * 16)
    for cut in (3, 4, 8, 15, 16, 24, 31, 40, 57, 80, len(whole) - 1):
        yield f"bad_cut_{cut}", whole[:cut]
    yield "bad_duplicate_key", build([two[0], two[1], two[0]])
    yield "bad_duplicate_tensor", build([], [info("t", [8]), info("t", [8], offset=32)],
                                        b"x" * 64)
    yield "bad_overlap", build([], [info("a", [16]), info("b", [16], offset=32)], b"x" * 96)
    yield "bad_same_place", build([], [info("a", [16]), info("b", [16])], b"x" * 96)
    yield "bad_unaligned", build([], [info("a", [4], offset=16)], b"x" * 64)
    nested = string("k") + struct.pack("<IIQIQ", ARR, ARR, 1, ARR, 1)
    yield "bad_nested_array", build([nested + b"\0" * 64])
    yield "bad_value_type", build([string("k") + struct.pack("<I", 13) + b"\0" * 16])
    yield "bad_array_type", build([string("k") + struct.pack("<IIQ", ARR, 77, 1) + b"\0" * 16])
    for align in (0, 1, 3, 4, 48, 131072, (1 << 32) - 1):
        yield f"bad_alignment_{align}", build([kv("general.alignment", U32, align)])
    yield "bad_alignment_text", build([kv("general.alignment", STR, "32")])
    for n_dims in (0, 5, 1 << 31):
        yield f"bad_n_dims_{n_dims}", build([], [info("t", [1, 1, 1, 1], n_dims=n_dims)], b"x" * 64)
    yield "bad_zero_dim", build([], [info("t", [4, 0])], b"x" * 64)
    yield "bad_dims_wrap", build([], [info("t", [1 << 32, 1 << 32])], b"x" * 64)
    for kind in (4, 5, 10, 16, 31, 39, 40, 1 << 31):
        yield f"bad_tensor_type_{kind}", build([], [info("t", [256], kind)], b"x" * 1024)
    yield "bad_row_of_block", build([], [info("t", [16, 2], 2)], b"x" * 64)
    yield "bad_bool", build([kv("k", BOOL, 2)])
    yield "bad_key_control", build([kv("a\nb", U32, 2)])
    yield "bad_key_nul", build([kv("a\0b", U32, 2)])
    yield "bad_key_utf8", build([kv(b"a\xff", U32, 2)])
    yield "bad_key_empty", build([kv("", U32, 2)])
    yield "bad_key_long", build([kv("k" * 65536, U32, 2)])
    yield "bad_name_long", build([], [info("t" * 256, [4])], b"x" * 64)
    yield "bad_name_empty", build([], [info("", [4])], b"x" * 64)
    yield "bad_split_count", build([kv("split.count", U16, 3), kv("split.no", U16, 0)])
    yield "bad_split_no", build([kv("split.count", U16, 3), kv("split.no", U16, 2)])


def main(out):
    os.makedirs(out, exist_ok=True)
    total = 0
    for name, data in list(valid_files()) + list(broken_files()):
        with open(os.path.join(out, name), "wb") as file:
            file.write(data)
        total += len(data)
    print(f"{out}: {total} bytes")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "gguf"))
