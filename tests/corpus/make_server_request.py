#!/usr/bin/env python3
"""Seeds of fuzz_server_request: for each endpoint with a body, bodies that are good and bodies that
are wrong in one place.

    python3 tests/corpus/make_server_request.py tests/corpus/server_request"""
import json
import sys
from pathlib import Path

HELLO = [{"role": "user", "content": "hello"}]
PARTS = [{"role": "system", "content": "s"},
         {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "assistant", "content": "c"}, {"role": "user", "content": ""}]
COMMON = {"temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": ["a", "\n\n"], "n": 2,
          "logit_bias": {"3": -100, "5": 1.5}, "presence_penalty": 1, "frequency_penalty": -2,
          "stream": True, "stream_options": {"include_usage": True}, "user": "u",
          "metadata": {"k": "v"}, "store": False, "top_k": 4, "min_p": 0.1, "typical_p": 0.9,
          "repeat_penalty": 1.1, "priority": 5, "deadline_ms": 1000, "ignore_eos": True,
          "cache_prompt": False, "model": "tiny"}
BODIES = {
    "/v1/chat/completions": [
        {"messages": HELLO}, {"messages": PARTS, "max_tokens": 5, "logprobs": True,
                              "top_logprobs": 3, **COMMON},
        {"messages": HELLO, "tools": [], "response_format": {"type": "text"}},
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "tool", "content": "x"}]}, {"messages": []},
        {"messages": HELLO, "max_tokens": 0}, {"messages": HELLO, "temperature": 2.1}],
    "/v1/completions": [
        {"prompt": "a"}, {"prompt": ["a", [1, 2], "b"], "echo": True, **COMMON},
        {"prompt": [1, 2, 3], "logprobs": 5, "best_of": 1, "suffix": None}, {"prompt": [[]]},
        {"prompt": [5000000000]}, {"prompt": "a" * 300}],
    "/v1/explain": [{"prompt": "hello"}, {"messages": PARTS}, {"prompt": ["a", "b"]}, {}],
    "/apply-template": [{"messages": PARTS}, {"messages": HELLO, "model": "other"}],
    "/tokenize": [{"content": "hello", "with_pieces": True, "add_special": True},
                  {"content": "\u20ac\u0000", "parse_special": True}, {"content": 1}],
    "/detokenize": [{"tokens": [1, 2, 200]}, {"tokens": [-1]}, {"tokens": []}],
    "/v1/embeddings": [{"input": "a", "model": "tiny"}, {"input": ["a", "b"]},
                       {"input": [1, 2], "encoding_format": "base64", "dimensions": 4}],
    "/v1/responses": [
        {"input": "a"}, {"input": HELLO, "instructions": "i", "store": False, "stream": True},
        {"input": "a", "previous_response_id": "resp_x"},
        {"input": [{"type": "message", "role": "user",
                    "content": [{"type": "input_text", "text": "t"}]}], "max_output_tokens": 16}],
    "/v1/messages": [
        {"model": "tiny", "max_tokens": 8, "messages": HELLO},
        {"model": "tiny", "max_tokens": 8, "system": [{"type": "text", "text": "s"}],
         "messages": PARTS[1:3] + HELLO, "stop_sequences": ["x"], "temperature": 1, "top_k": 3,
         "stream": True, "metadata": {"user_id": "u"}},
        {"model": "tiny", "messages": HELLO}],
    "/v1/messages/count_tokens": [{"model": "tiny", "messages": HELLO}],
    "/api/chat": [{"model": "tiny", "messages": HELLO, "stream": False,
                   "options": {"temperature": 0, "num_predict": 5, "stop": ["a"]}},
                  {"model": "tiny", "messages": []}],
    "/api/generate": [{"model": "tiny", "prompt": "a", "system": "s", "raw": False},
                      {"model": "tiny", "prompt": "a", "raw": True, "options": {"seed": 1}},
                      {"model": "tiny", "prompt": "a", "context": [1, 2]}],
    "/api/show": [{"model": "tiny"}, {"name": "tiny", "verbose": True}],
    "/api/embed": [{"model": "tiny", "input": ["a", "b"]}],
}


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path, bodies in BODIES.items():
        name = path.strip("/").replace("/", "_").replace("-", "_")
        for index, body in enumerate(bodies):
            text = f"{path}\n{json.dumps(body, ensure_ascii=False)}"
            (folder / f"{name}_{index}").write_bytes(text.encode("utf-8"))
    (folder / "bad_json").write_bytes(b'/v1/completions\n{"prompt":')
    (folder / "bad_path").write_bytes(b"/nothing\n{}")


if __name__ == "__main__":
    main(sys.argv[1])
