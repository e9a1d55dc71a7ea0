"""Chat completions and completions over plain HTTP, on a tiny seeded model: streams against whole
answers, log-probabilities, stop strings, refusals by name. The official clients are tested
elsewhere, the ends of requests in test_openai_ends.py."""
import json
import math
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve_program import ServedTest  # noqa: E402

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the end"}]


def events(answer):
    """Payloads of an event stream; what is no event at all is an error."""
    parts = answer.text.split("\n\n")
    assert parts[-1] == "", parts[-1]
    parts = [part for part in parts[:-1] if not part.startswith(":")]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), parts
    return [part[len("data: "):] for part in parts]


def chunks(answer):
    """The chunks of a stream that has ended well."""
    found = events(answer)
    assert found[-1] == "[DONE]" and "[DONE]" not in found[:-1], found[-1]
    return [json.loads(text) for text in found[:-1]]


class Pieces:
    """A stream put together again."""

    def __init__(self, found):
        self.texts, self.reasons, self.entries, self.roles = {}, {}, {}, {}
        self.usage = None
        for chunk in found:
            if chunk.get("usage"):
                assert not chunk["choices"] and chunk is found[-1]
                self.usage = chunk["usage"]
            for choice in chunk["choices"]:
                index = choice["index"]
                assert index not in self.reasons, "a chunk after the end of its choice"
                if "delta" in choice:
                    role = choice["delta"].get("role")
                    assert (index not in self.roles) == (role == "assistant"), "role comes first"
                    self.roles[index] = role
                    text = choice["delta"].get("content", "")
                else:
                    text = choice["text"]
                self.texts[index] = self.texts.get(index, "") + text
                if choice["logprobs"]:
                    self.entries.setdefault(index, []).append(choice["logprobs"])
                if choice["finish_reason"]:
                    self.reasons[index] = choice["finish_reason"]
                    assert chunk["timings"]["n_generated"] > 0


class Base(ServedTest, unittest.TestCase):
    WORDS = ("-t", 1, "--no-cache")

    def good(self, path, **body):
        answer = self.server.post(path, body)
        self.assertEqual(answer.status, 200, answer.text)
        return answer.json()

    def stream(self, path, **body):
        answer = self.server.post(path, dict(body, stream=True))
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(answer.headers["Content-Type"].split(";")[0], "text/event-stream")
        return chunks(answer)

    def refused(self, status, code, param, path, body):
        answer = self.server.post(path, body)
        self.assertEqual(answer.status, status, f"{body}: {answer.text[:300]}")
        error = answer.error()
        self.assertEqual((error["code"], error["param"]), (code, param), error)
        self.assertTrue(error["message"])
        return error


class Streams(Base):
    def both(self, path, **body):
        whole = self.good(path, **body)
        found = self.stream(path, **dict(body, stream_options={"include_usage": True}))
        pieces = Pieces(found)
        self.assertEqual({(c["id"], c["created"], c["model"], c["object"], c["system_fingerprint"])
                          for c in found}.__len__(), 1)
        for choice in whole["choices"]:
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            self.assertEqual(pieces.texts[choice["index"]], text)
            self.assertEqual(pieces.reasons[choice["index"]], choice["finish_reason"])
        self.assertEqual(len(pieces.texts), len(whole["choices"]))
        for usage in (whole["usage"], pieces.usage):
            del usage["prompt_tokens_details"]["cached_tokens"]  # the second one finds the first
        self.assertEqual(pieces.usage, whole["usage"])
        return whole, pieces

    def test_chat(self):
        for more in ({}, {"temperature": 0}, {"top_k": 5, "top_p": 0.5, "min_p": 0.01},
                     {"stop": ["e", " t", "\u00e4"]}, {"presence_penalty": 1.5, "n": 2},
                     {"frequency_penalty": -1, "repeat_penalty": 1.3},
                     {"logit_bias": {"5": 100}}, {"ignore_eos": True}):
            for seed in (1, -7):
                whole, _ = self.both(CHAT, messages=MESSAGES, max_tokens=60, seed=seed, **more)
                self.assertEqual(whole["object"], "chat.completion")
                if "ignore_eos" in more:
                    self.assertEqual(whole["choices"][0]["finish_reason"], "length")
                    self.assertEqual(whole["usage"]["completion_tokens"], 60)
                if "logit_bias" in more:
                    self.assertEqual(set(whole["choices"][0]["message"]["content"]), {"\x05"})

    def test_completions_of_every_form_of_prompt(self):
        for prompt, n in (("the end", 1), (["a", "b and c"], 2), ([5, 6, 7], 1),
                          ([[5, 6], [7], [8, 9, 10]], 3), (["x", [5]], 2)):
            for echo in (False, True):
                whole, _ = self.both(TEXT, prompt=prompt, max_tokens=30, seed=3, n=2, echo=echo)
                self.assertEqual([c["index"] for c in whole["choices"]], list(range(2 * n)))
                if echo and isinstance(prompt, str):
                    for choice in whole["choices"]:
                        self.assertTrue(choice["text"].startswith(prompt))

    def test_usage_only_when_asked(self):
        found = self.stream(CHAT, messages=MESSAGES, max_tokens=5)
        self.assertTrue(all("usage" not in chunk and chunk["choices"] for chunk in found))
        found = self.stream(CHAT, messages=MESSAGES, max_tokens=5,
                            stream_options={"include_usage": True})
        self.assertTrue(all(chunk["usage"] is None for chunk in found[:-1]))
        self.assertEqual(found[-1]["choices"], [])

    def test_defaults(self):
        self.assertEqual(self.good(TEXT, prompt="a", ignore_eos=True)["usage"]
                         ["completion_tokens"], 16)
        answer = self.good(CHAT, messages=MESSAGES, ignore_eos=True)
        self.assertEqual(answer["usage"]["total_tokens"], 512)  # all of the context
        self.assertEqual(answer["model"], "llama")
        seeds = {self.good(TEXT, prompt="a")["choices"][0]["text"] for _ in range(4)}
        self.assertGreater(len(seeds), 1)

    def test_choices_are_those_of_the_next_seeds(self):
        many = self.good(TEXT, prompt="of the", max_tokens=20, n=8, seed=100)
        for i, choice in enumerate(many["choices"]):
            one = self.good(TEXT, prompt="of the", max_tokens=20, seed=100 + i)
            self.assertEqual(choice["text"], one["choices"][0]["text"])

    def test_stop_strings_across_tokens(self):
        free = self.good(TEXT, prompt="a", max_tokens=100, seed=9, ignore_eos=True, logprobs=0)
        text = free["choices"][0]["text"]
        offsets = free["choices"][0]["logprobs"]["text_offset"]
        places = [o for o in offsets
                  if 20 < o < len(text) - 4 and "\ufffd" not in text[o - 2:o + 2]]
        self.assertTrue(places)
        for place in places[:5]:
            stop = text[place - 2:place + 2]
            whole, _ = self.both(TEXT, prompt="a", max_tokens=100, seed=9, ignore_eos=True,
                                 stop=["never there", stop])
            self.assertEqual(whole["choices"][0]["text"], text[:text.index(stop)])
            self.assertEqual(whole["choices"][0]["finish_reason"], "stop")

    def test_cached_tokens(self):
        ids = [(7 * i) % 250 for i in range(100)]
        first = self.good(TEXT, prompt=ids, max_tokens=2)
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        again = self.good(TEXT, prompt=ids, max_tokens=2)
        self.assertEqual(again["usage"]["prompt_tokens_details"]["cached_tokens"], 96)
        self.assertEqual(again["timings"]["n_cached"], 96)
        fresh = self.good(TEXT, prompt=ids, max_tokens=2, cache_prompt=False)
        self.assertEqual(fresh["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        for key in ("queue_ms", "prefill_ms", "ttft_ms", "decode_ms", "total_ms"):
            self.assertGreaterEqual(again["timings"][key], 0)


class LogProbs(Base):
    def check_entry(self, entry, n_tops):
        self.assertLessEqual(entry["logprob"], 0)
        tops = entry["top_logprobs"]
        self.assertEqual(len(tops), n_tops)
        values = [top["logprob"] for top in tops]
        self.assertEqual(values, sorted(values, reverse=True))
        self.assertLessEqual(sum(math.exp(v) for v in values), 1 + 1e-4)
        for top in [entry, *tops]:
            text = bytes(top["bytes"]).decode("utf-8", "replace")
            if "\ufffd" in text:
                spelled = "bytes:" + "".join(f"\\x{byte:02x}" for byte in top["bytes"])
                self.assertIn(top["token"], (spelled, text))
            else:
                self.assertEqual(top["token"], text)
        for top in tops:
            if top["bytes"] == entry["bytes"]:
                self.assertEqual(top["logprob"], entry["logprob"])

    def test_chat(self):
        body = {"messages": MESSAGES, "max_tokens": 30, "seed": 4, "logprobs": True,
                "ignore_eos": True, "logit_bias": {str(i): -100 for i in range(128, 320)}}
        for n_tops in (0, 1, 20):
            whole = self.good(CHAT, top_logprobs=n_tops, **body)["choices"][0]
            entries = whole["logprobs"]["content"]
            self.assertEqual(len(entries), 30)
            for entry in entries:
                self.check_entry(entry, n_tops)
            self.assertEqual(b"".join(bytes(e["bytes"]) for e in entries).decode(),
                             whole["message"]["content"])
            pieces = Pieces(self.stream(CHAT, top_logprobs=n_tops, **body))
            self.assertEqual([entry for part in pieces.entries[0] for entry in part["content"]],
                             entries)
        greedy = self.good(CHAT, **dict(body, temperature=0, top_logprobs=3))
        for entry in greedy["choices"][0]["logprobs"]["content"]:
            self.assertEqual(entry["bytes"], entry["top_logprobs"][0]["bytes"])

    def test_completions(self):
        body = {"prompt": ["a", [5, 6]], "max_tokens": 25, "seed": 4, "ignore_eos": True}
        for n_tops in (0, 2, 20):
            whole = self.good(TEXT, logprobs=n_tops, **body)
            pieces = Pieces(self.stream(TEXT, logprobs=n_tops, **body))
            for choice in whole["choices"]:
                found = choice["logprobs"]
                self.assertEqual({key: len(found[key]) for key in found},
                                 dict.fromkeys(("tokens", "token_logprobs", "top_logprobs",
                                                "text_offset"), 25))
                self.assertEqual(found["text_offset"], sorted(found["text_offset"]))
                self.assertLessEqual(found["text_offset"][-1], len(choice["text"]))
                for tops in found["top_logprobs"]:
                    self.assertLessEqual(len(tops), n_tops)
                    self.assertLessEqual(sum(math.exp(v) for v in tops.values()), 1 + 1e-4)
                joined = {key: [item for part in pieces.entries[choice["index"]]
                                for item in part[key]] for key in found}
                self.assertEqual(joined, found)


class Refusals(Base):
    def test_unknown_fields(self):
        for name in ("grammar", "Temperature", "max_new_tokens", "\u00e4", "" * 3, "x" * 200):
            error = self.refused(400, "unsupported_parameter", (name or None) and name[:127], CHAT,
                                 {"messages": MESSAGES, name: 1})
            self.assertIn(name[:60], error["message"])
        self.refused(400, "unsupported_parameter", "messages.1.weight", CHAT,
                     {"messages": [MESSAGES[0], dict(MESSAGES[1], weight=1)]})
        self.refused(400, "unsupported_parameter", "stream_options.x", CHAT,
                     {"messages": MESSAGES, "stream": True, "stream_options": {"x": 1}})

    def test_known_fields_that_are_not_built(self):
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        for field, neutral, bad in (
                ("tools", [], [tool]), ("functions", [], [{"name": "f"}]),
                ("tool_choice", "none", "required"), ("tool_choice", "auto", tool),
                ("function_call", "none", {"name": "f"}),
                ("response_format", {"type": "text"}, {"type": "json_object"}),
                ("modalities", ["text"], ["text", "audio"]), ("audio", None, {"voice": "x"}),
                ("prediction", None, {"type": "content", "content": "x"}),
                ("reasoning_effort", "none", "high"), ("verbosity", "medium", "low"),
                ("web_search_options", None, {}), ("store", False, True)):
            self.good(CHAT, messages=MESSAGES, max_tokens=1, **{field: neutral})
            self.good(CHAT, messages=MESSAGES, max_tokens=1, **{field: None})
            answer = self.server.post(CHAT, {"messages": MESSAGES, field: bad})
            self.assertEqual(answer.status, 400, field)
            self.assertEqual(answer.error()["param"], field)
            self.assertIn(answer.error()["code"], ("unsupported_parameter", "invalid_value"))
        self.good(CHAT, messages=MESSAGES, max_tokens=1, user="u", metadata={"a": "b"},
                  service_tier="auto", parallel_tool_calls=False, prompt_cache_key="k")
        self.refused(400, "unsupported_parameter", "echo", TEXT,
                     {"prompt": "a", "echo": True, "logprobs": 1})
        self.refused(400, "unsupported_parameter", "best_of", TEXT, {"prompt": "a", "best_of": 3})
        self.refused(400, "unsupported_parameter", "suffix", TEXT, {"prompt": "a", "suffix": "b"})

    def test_bounds(self):
        for field, good, bad in (
                ("temperature", (0, 2, 0.5), (-0.01, 2.01, "1", True, 1e400)),
                ("top_p", (1, 1e-6), (0, -1, 1.1, "x")),
                ("presence_penalty", (-2, 2), (-2.1, 2.1, "0")),
                ("frequency_penalty", (-2, 2), (-2.1, 2.1, [])),
                ("seed", (-2**63, 2**63 - 1, 2.0), (2**63, 1.5, "1")),
                ("n", (1, 8), (0, 9, -1, 2**31, 1.5)),
                ("max_tokens", (1, 2**31 - 1), (0, -1, 2**31, "5")),
                ("stop", ("x", [], ["x"] * 16, "y" * 256),
                 ("", ["x"] * 17, "y" * 257, [5], 5, {}, ["a", ""], "a\0b")),
                ("logit_bias", ({}, {"0": -100, "319": 100}),
                 ({"320": 1}, {"-1": 1}, {"01": 1}, {"x": 1}, {"1": 101}, {"1": "1"}, [],
                  {str(i): 0 for i in range(1025)})),
                ("top_k", (-1, 0, 1), (-2, 2**31)), ("min_p", (0, 1), (-0.1, 1.1)),
                ("typical_p", (0.1, 1), (0, 1.1)), ("repeat_penalty", (0.1, 2), (0, 2.1)),
                ("priority", (-100, 100), (-101, 101)),
                ("deadline_ms", (600000,), (0, -1, 600001)),
                ("ignore_eos", (True, False), (1, "true")), ("stream", (False,), (1, "true")),
                ("cache_prompt", (True, False), (0,)), ("user", ("x",), ()),
                ("metadata", ({"a": "b"},), ({"a": 1}, {str(i): "" for i in range(17)})),
                ("service_tier", ("default",), ("flex", 5)),
                ("model", ("llama", "", None), (5, []))):
            for value in good:
                answer = self.server.post(TEXT, {"prompt": "a", "max_tokens": 1, field: value}
                                          if field != "max_tokens" else
                                          {"prompt": "a", "stop": [" "], field: value})
                self.assertEqual(answer.status, 200, f"{field} {value}: {answer.text[:200]}")
            for value in bad:
                answer = self.server.post(TEXT, {"prompt": "a", field: value})
                self.assertEqual(answer.status, 400, f"{field} {value}: {answer.text[:200]}")
                if value not in (1e400, 2**63):  # no JSON number, no int64: refused by the parser
                    self.assertEqual(answer.error()["param"], field, answer.text)

    def test_prompts(self):
        for prompt in ([], 5, {}, True, [[]], [[5, "a"]], [5, "a"], ["a", 5], [5.5], [-1], [2**31],
                       [True], [[[5]]], ["a"] * 257):
            answer = self.server.post(TEXT, {"prompt": prompt})
            self.assertEqual(answer.status, 400, prompt)
            self.assertTrue(answer.error()["param"].startswith("prompt"), answer.text)
        self.refused(400, "missing_required_parameter", "prompt", TEXT, {})
        self.refused(400, "invalid_value", "prompt", TEXT, {"prompt": [320]})
        self.refused(400, "invalid_value", "prompt.1", TEXT, {"prompt": [[5], [320]]})

    def test_messages(self):
        user = MESSAGES[1]
        for param, messages in (
                ("messages", []), ("messages", "hi"), ("messages", [user] * 2049),
                ("messages.0", ["hi"]), ("messages.0.role", [{"content": "a"}]),
                ("messages.0.role", [{"role": "judge", "content": "a"}]),
                ("messages.1.role", [user, {"role": "tool", "content": "a"}]),
                ("messages.0.content", [{"role": "user"}]),
                ("messages.0.content", [{"role": "user", "content": 5}]),
                ("messages.0.content", [{"role": "user", "content": None}]),
                ("messages.0.content", [{"role": "user", "content": []}]),
                ("messages.0.content.1.type",
                 [{"role": "user", "content": [{"type": "text", "text": "a"},
                                               {"type": "image_url", "image_url": {"url": "x"}}]}]),
                ("messages.0.content.0.text", [{"role": "user", "content": [{"type": "text"}]}]),
                ("messages.0.name", [dict(user, name="bob")]),
                ("messages.0.tool_calls",
                 [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}])):
            answer = self.server.post(CHAT, {"messages": messages})
            self.assertEqual(answer.status, 400, messages)
            self.assertEqual(answer.error()["param"], param, answer.text)
        self.refused(400, "missing_required_parameter", "messages", CHAT, {})
        parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "},
                                                   {"type": "text", "text": "brief."}]},
                 {"role": "user", "content": "the end"},
                 ]
        self.assertEqual(
            self.good(CHAT, messages=parts, seed=1)["choices"][0]["message"]["content"],
            self.good(CHAT, messages=MESSAGES, seed=1)["choices"][0]["message"]["content"])

    def test_rest(self):
        self.refused(404, "model_not_found", "model", CHAT,
                     {"messages": MESSAGES, "model": "gpt-4"})
        self.refused(400, "invalid_value", "top_logprobs", CHAT,
                     {"messages": MESSAGES, "top_logprobs": 2})
        self.refused(400, "invalid_value", "stream_options", CHAT,
                     {"messages": MESSAGES, "stream_options": {"include_usage": True}})
        self.refused(400, "invalid_value", "max_tokens", CHAT,
                     {"messages": MESSAGES, "max_tokens": 5, "max_completion_tokens": 6})
        for stream in (False, True):
            error = self.refused(400, "context_length_exceeded", "prompt", TEXT,
                                 {"prompt": [5] * 600, "stream": stream})
            self.assertIn("600", error["message"])
            self.assertIn("512", error["message"])
            self.assertEqual((error["n_prompt"], error["n_ctx"]), (600, 512))
            error = self.refused(400, "context_length_exceeded", "messages", CHAT,
                                 {"messages": [dict(MESSAGES[1], content="a b " * 400)],
                                  "stream": stream})
            self.assertGreater(error["n_prompt"], 800)
            self.assertNotIn("at least", error["message"])
            huge = "x" * (8 << 20)
            for path, name, body in ((TEXT, "prompt", {"prompt": huge}),
                                     (CHAT, "messages",
                                      {"messages": [{"role": "user", "content": huge}]})):
                error = self.refused(400, "context_length_exceeded", name, path,
                                     {**body, "stream": stream})
                self.assertIn(f"at least {error['n_prompt']} ", error["message"])
                self.assertGreater(error["n_prompt"], 512)
                self.assertLessEqual(error["n_prompt"], len(huge) + 600)


if __name__ == "__main__":
    unittest.main()
