"""/v1/messages and /v1/messages/count_tokens over plain HTTP: every field, the events of a stream
one by one, refusals by name, errors in Anthropic's form."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dialect import DialectTest, TINY  # noqa: E402

USER = [{"role": "user", "content": "Hello"}]


class AnthropicTest(DialectTest):
    def body(self, **more):
        return {"model": TINY, "max_tokens": 8, "messages": USER, "temperature": 0,
                "ignore_eos": True, **more}

    def ask(self, **more):
        return self.ok("/v1/messages", self.body(**more))

    def refuse(self, status, kind, pattern, body, path="/v1/messages"):
        answer = self.post(path, body)
        self.assertEqual(answer.status, status, answer.text)
        refused = answer.json()
        self.assertEqual(set(refused), {"type", "error", "request_id"})
        self.assertEqual(refused["type"], "error")
        self.assertEqual(refused["error"]["type"], kind)
        self.assertRegex(refused["error"]["message"], pattern)
        self.assertEqual(refused["request_id"], answer.headers["X-Request-Id"])
        self.assertEqual(refused["request_id"], answer.headers["request-id"])

    def count(self, **more):
        return self.ok("/v1/messages/count_tokens",
                       {"model": TINY, "messages": USER, **more})["input_tokens"]


class Answers(AnthropicTest):
    def test_one_piece(self):
        answer = self.ask()
        self.assertRegex(answer["id"], r"^msg_[A-Za-z0-9]{24}$")
        self.assertEqual([answer[name] for name in ("type", "role", "model", "stop_reason",
                                                    "stop_sequence")],
                         ["message", "assistant", TINY, "max_tokens", None])
        block, = answer["content"]
        self.assertEqual(set(block), {"type", "text"})
        self.assertTrue(block["text"])
        usage = answer["usage"]
        self.assertEqual((usage["output_tokens"], usage["cache_creation_input_tokens"]), (8, 0))
        self.assertEqual(answer["timings"]["n_generated"], 8)

    def test_end_turn(self):
        """At a high temperature the end token comes soon; which seed is not for this API."""
        reasons = {self.ask(ignore_eos=False, temperature=1, max_tokens=400)["stop_reason"]
                   for _ in range(12)}
        self.assertIn("end_turn", reasons)

    def test_usage_is_the_prompt(self):
        text = "a prompt that nobody else has " * 6
        first = self.ask(messages=[{"role": "user", "content": text}])["usage"]
        again = self.ask(messages=[{"role": "user", "content": text}])["usage"]
        n = self.count(messages=[{"role": "user", "content": text}])
        self.assertEqual(first["input_tokens"] + first["cache_read_input_tokens"], n)
        self.assertEqual(again["input_tokens"] + again["cache_read_input_tokens"], n)
        self.assertGreater(again["cache_read_input_tokens"], first["cache_read_input_tokens"])
        self.assertGreater(again["input_tokens"], 0)
        fresh = self.ask(messages=[{"role": "user", "content": text}], cache_prompt=False)["usage"]
        self.assertEqual(fresh["cache_read_input_tokens"], 0)

    def test_stop_sequences(self):
        text = self.ask(max_tokens=24)["content"][0]["text"]
        stop = text[len(text) // 2:len(text) // 2 + 2]
        answer = self.ask(max_tokens=24, stop_sequences=["is never said", stop])
        self.assertEqual((answer["stop_reason"], answer["stop_sequence"]),
                         ("stop_sequence", stop))
        self.assertEqual(answer["content"][0]["text"], text[:text.index(stop)])
        self.assertEqual(self.ask(stop_sequences=[])["stop_reason"], "max_tokens")

    def test_system_and_blocks_are_one_prompt(self):
        plain = self.count(system="Be brief.")
        self.assertGreater(plain, self.count())
        block = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
        self.assertEqual(self.count(system=[block]), plain)
        halves = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
        self.assertEqual(self.count(system=halves), plain)
        self.assertEqual(self.count(messages=[{"role": "user", "content": [
            {"type": "text", "text": "Hello"}]}]), self.count())
        whole = self.ask(system="Be brief.")
        self.assertEqual(self.ask(system=halves)["content"], whole["content"])
        self.assertNotEqual(self.ask()["content"], whole["content"])

    def test_turns_of_one_role_are_one_turn(self):
        twice = [{"role": "user", "content": "Hello"}, {"role": "user", "content": "there"}]
        once = [{"role": "user", "content": "Hello\n\nthere"}]
        self.assertEqual(self.count(messages=twice), self.count(messages=once))
        self.assertEqual(self.ask(messages=twice)["content"], self.ask(messages=once)["content"])
        talk = [*twice, {"role": "assistant", "content": "Hi"}, {"role": "assistant",
                                                                  "content": "you"}, *USER]
        same = [*once, {"role": "assistant", "content": "Hi\n\nyou"}, *USER]
        self.assertEqual(self.count(messages=talk), self.count(messages=same))

    def test_accepted_and_not_used(self):
        plain = self.ask()["content"]
        for more in ({"metadata": {"user_id": "me"}}, {"service_tier": "standard_only"},
                     {"tools": []}, {"thinking": {"type": "disabled"}}, {"tool_choice": None},
                     {"top_k": 1}, {"top_p": 0.5}, {"priority": 5}, {"deadline_ms": 60000}):
            with self.subTest(more):
                self.assertEqual(self.ask(**more)["content"], plain)
        self.post("/v1/messages", self.body(), **{"anthropic-version": "2023-06-01",
                                                  "anthropic-beta": "x"})


class Streams(AnthropicTest):
    def test_events_in_their_order(self):
        whole = self.ask()
        events = self.events("/v1/messages", self.body(stream=True))
        for name, data in events:
            self.assertEqual(name, data["type"])
        names = [name for name, _ in events]
        self.assertEqual(names[:3], ["message_start", "content_block_start", "ping"])
        self.assertEqual(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(names[3:-3]), {"content_block_delta"})
        start = events[0][1]["message"]
        self.assertEqual((start["role"], start["content"], start["stop_reason"],
                          start["stop_sequence"], start["model"]),
                         ("assistant", [], None, None, TINY))
        self.assertRegex(start["id"], r"^msg_[A-Za-z0-9]{24}$")
        n_prompt = self.count()
        self.assertEqual(start["usage"]["input_tokens"] +
                         start["usage"]["cache_read_input_tokens"], n_prompt)
        self.assertEqual(events[1][1], {"type": "content_block_start", "index": 0,
                                        "content_block": {"type": "text", "text": ""}})
        self.assertEqual(events[2][1], {"type": "ping"})
        text = ""
        for _, data in events[3:-3]:
            self.assertEqual((data["index"], data["delta"]["type"]), (0, "text_delta"))
            self.assertTrue(data["delta"]["text"])
            text += data["delta"]["text"]
        self.assertEqual(text, whole["content"][0]["text"])
        self.assertEqual(events[-3][1], {"type": "content_block_stop", "index": 0})
        last = events[-2][1]
        self.assertEqual(last["delta"], {"stop_reason": "max_tokens", "stop_sequence": None})
        self.assertEqual(last["usage"]["output_tokens"], 8)
        self.assertEqual(events[-1][1], {"type": "message_stop"})

    def test_stop_sequence(self):
        text = self.ask(max_tokens=24)["content"][0]["text"]
        stop = text[len(text) // 2:len(text) // 2 + 2]
        events = self.events("/v1/messages", self.body(max_tokens=24, stream=True,
                                                       stop_sequences=["never", stop]))
        self.assertEqual(events[-2][1]["delta"],
                         {"stop_reason": "stop_sequence", "stop_sequence": stop})
        said = "".join(data["delta"]["text"] for name, data in events
                       if name == "content_block_delta")
        self.assertEqual(said, text[:text.index(stop)])

    def test_a_refusal_is_no_stream(self):
        self.refuse(400, "invalid_request_error", "n_ctx", self.body(
            stream=True, messages=[{"role": "user", "content": "word " * 600}]))

    def test_late_failure_is_an_error_event(self):
        events = self.late_failure("/v1/messages", self.body(stream=True, max_tokens=400))
        name, data = events[-1]
        self.assertEqual((name, data["type"], data["error"]["type"]),
                         ("error", "error", "timeout_error"))
        self.assertNotIn("message_stop", [name for name, _ in events])


class Refusals(AnthropicTest):
    def test_fields(self):
        text = {"type": "text", "text": "a"}
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png",
                                             "data": ""}}
        tool = {"name": "f", "input_schema": {"type": "object"}}
        for pattern, more in (
                ("frobnicate", {"frobnicate": 1}),
                ("tools", {"tools": [tool]}),
                ("tool_choice", {"tool_choice": {"type": "auto"}}),
                ("thinking", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
                ("mcp_servers", {"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]}),
                ("output_format", {"output_format": {"type": "json_schema"}}),
                ("context_management", {"context_management": {"edits": []}}),
                ("container", {"container": "a"}),
                ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": "8"}),
                ("max_tokens", {"max_tokens": None}), ("max_tokens", {"max_tokens": 1.5}),
                ("temperature", {"temperature": 1.1}), ("temperature", {"temperature": -0.1}),
                ("top_p", {"top_p": 0}), ("top_p", {"top_p": 1.5}), ("top_k", {"top_k": -2}),
                ("stop_sequences", {"stop_sequences": "a"}),
                ("stop_sequences", {"stop_sequences": [""]}),
                ("stop_sequences", {"stop_sequences": ["a"] * 17}),
                ("stop_sequences", {"stop_sequences": ["a" * 257]}),
                ("service_tier", {"service_tier": "priority"}),
                ("stream", {"stream": "yes"}), ("system", {"system": 5}),
                ("system", {"system": ""}), ("system.0.text", {"system": [{"type": "text"}]}),
                ("system.0.type", {"system": [image]}),
                ("messages", {"messages": []}), ("messages", {"messages": None}),
                ("messages", {"messages": [text] * 2049}), ("messages", {"messages": {}}),
                ("messages.0", {"messages": ["Hello"]}),
                ("messages.0.role", {"messages": [{"content": "a"}]}),
                ("messages.0.role", {"messages": [{"role": "system", "content": "a"}]}),
                ("messages.0.content", {"messages": [{"role": "user"}]}),
                ("messages.0.content", {"messages": [{"role": "user", "content": ""}]}),
                ("messages.0.content", {"messages": [{"role": "user", "content": []}]}),
                ("messages.0.content", {"messages": [{"role": "user", "content": [text] * 257}]}),
                ("messages.0.content.1.type",
                 {"messages": [{"role": "user", "content": [text, image]}]}),
                ("messages.0.content.0.text",
                 {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}),
                ("messages.0.content.0.citations", {"messages": [{"role": "user", "content": [
                    {**text, "citations": [{"type": "char_location"}]}]}]}),
                ("messages.0.content.0.extra",
                 {"messages": [{"role": "user", "content": [{**text, "extra": 1}]}]}),
                ("messages.0.name", {"messages": [{"role": "user", "content": "a", "name": "b"}]}),
                ("assistant", {"messages": [*USER, {"role": "assistant", "content": "I am"}]})):
            with self.subTest(pattern=pattern, more=str(more)[:80]):
                self.refuse(400, "invalid_request_error", pattern, self.body(**more))

    def test_required_fields(self):
        for name in ("model", "max_tokens", "messages"):
            body = self.body()
            del body[name]
            self.refuse(400, "invalid_request_error", name, body)
        for name in ("model", "messages"):
            body = {"model": TINY, "messages": USER}
            del body[name]
            self.refuse(400, "invalid_request_error", name, body, "/v1/messages/count_tokens")

    def test_count_tokens_takes_no_generation_fields(self):
        for name, value in (("max_tokens", 8), ("stream", True), ("frobnicate", 1)):
            self.refuse(400, "invalid_request_error", name,
                        {"model": TINY, "messages": USER, name: value},
                        "/v1/messages/count_tokens")

    def test_unknown_model(self):
        for path, body in (("/v1/messages", self.body(model="nobody")),
                           ("/v1/messages/count_tokens", {"model": "nobody", "messages": USER})):
            self.refuse(404, "not_found_error", "nobody", body, path)

    def test_bodies_that_are_no_object(self):
        for raw in (b"", b"[]", b"nonsense", b'{"model":"a","model":"b"}', b'{"a":"\xff"}'):
            self.refuse(400, "invalid_request_error", ".", raw)

    def test_overlong_prompt_gives_the_numbers(self):
        self.refuse(400, "invalid_request_error", r"\d{3,}.*512",
                    self.body(messages=[{"role": "user", "content": "word " * 600}]))

    def test_methods(self):
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = self.call("GET", path)
            self.assertEqual((answer.status, answer.headers["Allow"]), (405, "POST"))
            self.assertEqual(answer.json()["type"], "error")


if __name__ == "__main__":
    unittest.main()
