#!/usr/bin/env python3
"""Seeds of fuzz_rpc: sessions of the runtime. The first byte chooses the limit of a line.

    python3 tests/corpus/make_rpc.py tests/corpus/rpc"""
import json
import sys
from pathlib import Path


def call(number, method, **params):
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"


def sessions():
    tokenize = call(1, "tokenize", model_id="m", text="a\u20ac\U0001f600\n")
    yield "handshake", call(1, "runtime/info", protocol_version=1) + call("s", "runtime/state")
    yield "load", call(1, "load_model", model_id="m", local_path="/m.gguf", context_length=512)
    yield "stream", (call(1, "generate", model_id="m", prompt="a", stream_id="s", credits=4,
                          temperature=0.7, top_p=1.0, logit_bias={"5": -100}, seed=2 ** 53) +
                     '{"jsonrpc":"2.0","method":"stream.credit","params":{"stream_id":"s",'
                     '"credits":8}}\n' + call(2, "cancel", stream_id="s"))
    yield "chat", call(1, "chat", model_id="m", messages=[{"role": "user", "content": "hi"}])
    yield "batch_method", call(9, "batch_tokenize", requests=[{"model_id": "m", "text": "a"}] * 3)
    yield "batch", "[" + tokenize.strip() + "," + call("x", "shutdown").strip() + ",5]\n"
    yield "batch_empty", "[]\n[1]\n[[]]\n"
    yield "scalars", '7\nnull\n"x"\n true\n-1.5e3 \n1,"b":2\n7}\n' + tokenize
    yield "batch_65", "[" + ",".join(["{}"] * 65) + "]\n"
    yield "batch_escape", '[1],"b":[2]\n[]}\n{"a":[]}\n'
    yield "ids", "".join('{"jsonrpc":"2.0","id":%s,"method":"x"}\n' % text for text in (
        "0", "-1", "9223372036854775807", "1.5", "null", '""', '"\\u0000\\n\\u20ac"', "true", "[]",
        '"' + "x" * 257 + '"'))
    yield "no_requests", ('{"jsonrpc":"1.0","method":"x"}\n{"jsonrpc":"2.0"}\n'
                          '{"jsonrpc":"2.0","method":5}\n{"jsonrpc":"2.0","method":"x","y":1}\n'
                          '{"jsonrpc":"2.0","method":"x","params":[]}\n{"result":1,"id":1}\n')
    yield "bad", 'x\n{\n}{\n{"a":1,"a":2}\n[1\nnul\n{"a":1e999}\n' + tokenize
    yield "blank", "\n\r\n \t\n\r\n" + tokenize.replace("\n", "\r\n")
    yield "half", tokenize[:-9]
    yield "nested", "[" * 200 + "]" * 200 + "\n" + '{"a":' * 130 + "\n"


def too_long():
    for name, head in (("number", '{"jsonrpc":"2.0","id":7,'),
                       ("string", '{"jsonrpc":"2.0","id":"a\\"b\\u20ac","method":"x",'),
                       ("late", '{"method":"x","params":{"id":3},"id":4,'),
                       ("bad", '{"id":[1],'), ("cut", '{"id":"'), ("real", '{"id":1.5,'),
                       ("exponent", '{"id" : -0 ,')):
        yield name, head + '"p":"' + "y" * 600 + '"}\n{"jsonrpc":"2.0","id":1,"method":"a"}\n'


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in sessions():
        (folder / name).write_bytes(b"\x07" + text.encode("utf-8", "surrogatepass"))
    for name, text in too_long():
        (folder / f"long_{name}").write_bytes(b"\x02" + text.encode())
        (folder / f"short_{name}").write_bytes(b"\x00" + text.encode())
    (folder / "bytes").write_bytes(b"\x07\xff\xfe\n{\"a\":\"\xc3\n\x00\n\xef\xbb\xbf{}\n")


if __name__ == "__main__":
    main(sys.argv[1])
