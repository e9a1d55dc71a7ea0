#!/usr/bin/env python3
"""Seeds of fuzz_dialect_request: bodies that are good and bodies that are nearly so.

usage: make_dialect_requests.py [FOLDER]    (default tests/corpus/dialect_request)"""
import json
import sys
from pathlib import Path

MESSAGES, COUNT, RESPONSES, EMBEDDINGS, CHAT, GENERATE, EMBED, SHOW = range(8)
STREAM = 8
USER = [{"role": "user", "content": "hi"}]
TALK = [*USER, {"role": "user", "content": [{"type": "text", "text": "a"},
                                            {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "ho"}, {"role": "user", "content": "so?"}]
PART = {"type": "input_text", "text": "hi"}
SEEDS = {
    "messages": (MESSAGES, {"model": "m", "max_tokens": 5, "messages": TALK, "system": "s",
                            "stop_sequences": ["a", "b"], "temperature": 1, "top_k": 3,
                            "top_p": 0.5, "metadata": {"user_id": "u"}, "tools": [],
                            "thinking": {"type": "disabled"}}),
    "messages_stream": (MESSAGES | STREAM, {"model": "m", "max_tokens": 5, "messages": USER,
                                            "stream": True, "priority": 1, "deadline_ms": 5}),
    "messages_system_blocks": (MESSAGES, {"model": "m", "max_tokens": 1, "messages": USER, "system": [
        {"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]}),
    "messages_prefill": (MESSAGES, {"model": "m", "max_tokens": 1, "messages": TALK[:3]}),
    "messages_image": (MESSAGES, {"model": "m", "max_tokens": 1, "messages": [
        {"role": "user", "content": [{"type": "image", "source": {}}]}]}),
    "count": (COUNT, {"model": "m", "messages": TALK, "system": "s"}),
    "count_nobody": (COUNT, {"model": "nobody", "messages": USER}),
    "responses": (RESPONSES, {"model": "m", "input": "hi", "instructions": "s", "store": True,
                              "metadata": {"a": "b"}, "text": {"format": {"type": "text"}},
                              "max_output_tokens": 4, "truncation": "disabled", "seed": 3}),
    "responses_items": (RESPONSES | STREAM, {"model": "m", "stream": True, "input": [
        {"role": "developer", "content": [PART, PART]},
        {"type": "message", "role": "assistant", "id": "msg_a", "status": "completed",
         "content": [{"type": "output_text", "text": "ho", "annotations": [], "logprobs": []}]}]}),
    "responses_previous": (RESPONSES, {"input": "hi", "previous_response_id": "resp_a"}),
    "responses_gone": (RESPONSES, {"input": "hi", "previous_response_id": "resp_b"}),
    "embeddings": (EMBEDDINGS, {"model": "m", "input": ["a", "b c"], "pooling": "last",
                                "encoding_format": "base64", "dimensions": 32}),
    "embeddings_tokens": (EMBEDDINGS, {"model": "m", "input": [1, 2, 3]}),
    "embeddings_lists": (EMBEDDINGS, {"model": "m", "input": [[1], [2, 283]]}),
    "embeddings_long": (EMBEDDINGS, {"model": "m", "input": "word " * 70}),
    "chat": (CHAT, {"model": "m:latest", "stream": False, "keep_alive": "5m", "messages": USER,
                    "options": {"num_predict": 4, "temperature": 0, "top_k": 4, "top_p": 0.9,
                                "min_p": 0.1, "typical_p": 1, "seed": -1, "stop": ["a"],
                                "repeat_penalty": 1.1, "repeat_last_n": -1, "num_ctx": 64,
                                "presence_penalty": 0, "frequency_penalty": 0}}),
    "chat_stream": (CHAT | STREAM, {"model": "m", "messages": USER, "format": ""}),
    "chat_load": (CHAT, {"model": "m"}),
    "generate": (GENERATE, {"model": "m", "prompt": "hi", "system": "s", "think": False}),
    "generate_raw": (GENERATE | STREAM, {"model": "m", "prompt": "hi", "raw": True}),
    "generate_unload": (GENERATE, {"model": "m", "keep_alive": 0}),
    "embed": (EMBED, {"model": "m", "input": ["a", "b"], "truncate": False, "options": {}}),
    "show": (SHOW, {"model": "m", "verbose": True}),
}


def main(arguments):
    folder = Path(arguments[0]) if arguments else Path(__file__).parent / "dialect_request"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (head, body) in SEEDS.items():
        (folder / name).write_bytes(bytes([head]) + json.dumps(body).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
