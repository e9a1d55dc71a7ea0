"""/v1/responses over plain HTTP: the object field by field, every event of a stream,
conversations, what is kept and for whom, refusals by name."""
import hashlib
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dialect import DialectTest, TINY  # noqa: E402

PART_EVENTS = ["response.output_text.done", "response.content_part.done",
               "response.output_item.done"]
BEGIN_EVENTS = ["response.created", "response.in_progress", "response.output_item.added",
                "response.content_part.added"]


def message(text, role="user", **more):
    return {"role": role, "content": text, **more}


class ResponsesTest(DialectTest):
    def body(self, **more):
        return {"model": TINY, "input": "Hello", "temperature": 0, "max_output_tokens": 8,
                "ignore_eos": True, **more}

    def ask(self, **more):
        return self.ok("/v1/responses", self.body(**more))

    def text(self, answer):
        item, = answer["output"]
        part, = item["content"]
        return part["text"]

    def refuse(self, pattern, code, status=400, **more):
        answer = self.post("/v1/responses", self.body(**more))
        self.assertEqual(answer.status, status, answer.text)
        error = answer.json()["error"]
        self.assertEqual(set(error) - {"n_prompt", "n_ctx"}, {"message", "type", "param", "code"})
        self.assertEqual((error["type"], error["code"]), ("invalid_request_error", code))
        self.assertRegex(error["param"], "^" + pattern)


class Answers(ResponsesTest):
    def test_object(self):
        answer = self.ask(metadata={"a": "b"}, ignore_eos=True)
        self.assertRegex(answer["id"], r"^resp_[A-Za-z0-9]{24}$")
        item, = answer["output"]
        self.assertEqual(item["id"], answer["id"].replace("resp_", "msg_"))
        self.assertEqual((item["type"], item["role"], item["status"]),
                         ("message", "assistant", "incomplete"))
        part, = item["content"]
        self.assertEqual(set(part), {"type", "text", "annotations", "logprobs"})
        self.assertTrue(part["text"])
        usage = answer["usage"]
        self.assertEqual(usage["output_tokens"], 8)
        self.assertEqual(usage["total_tokens"], usage["input_tokens"] + 8)
        self.assertLess(usage["input_tokens_details"]["cached_tokens"], usage["input_tokens"])
        expected = {"object": "response", "status": "incomplete", "model": TINY, "error": None,
                    "incomplete_details": {"reason": "max_output_tokens"}, "instructions": None,
                    "max_output_tokens": 8, "previous_response_id": None, "temperature": 0,
                    "top_p": 1, "metadata": {"a": "b"}, "parallel_tool_calls": True,
                    "tool_choice": "auto", "tools": [], "truncation": "disabled",
                    "background": False, "store": True, "top_logprobs": 0,
                    "text": {"format": {"type": "text"}, "verbosity": "medium"}}
        self.assertEqual({name: answer[name] for name in expected}, expected)
        self.assertIsInstance(answer["created_at"], int)
        self.assertEqual(answer["timings"]["n_generated"], 8)

    def test_completed(self):
        for seed in range(40):
            answer = self.ask(ignore_eos=False, temperature=1.5, max_output_tokens=400, seed=seed)
            if answer["status"] == "completed":
                break
        self.assertEqual((answer["status"], answer["incomplete_details"]), ("completed", None))
        self.assertEqual(answer["output"][0]["status"], "completed")

    def test_forms_of_input(self):
        plain = self.ask()
        for items in ([message("Hello")], [message("Hello", type="message")],
                      [message([{"type": "input_text", "text": "Hello"}])],
                      [message([{"type": "input_text", "text": "Hel"},
                                {"type": "input_text", "text": "lo"}])]):
            with self.subTest(items):
                same = self.ask(input=items)
                self.assertEqual(self.text(same), self.text(plain))
                self.assertEqual(same["usage"]["input_tokens"], plain["usage"]["input_tokens"])
        told = self.ask(instructions="Be brief.")
        self.assertEqual(told["instructions"], "Be brief.")
        self.assertNotEqual(self.text(told), self.text(plain))
        for role in ("system", "developer"):
            same = self.ask(input=[message("Be brief.", role), message("Hello")])
            self.assertEqual(self.text(same), self.text(told))

    def test_accepted_and_not_used(self):
        plain = self.text(self.ask())
        for more in ({"user": "me"}, {"safety_identifier": "me"}, {"prompt_cache_key": "k"},
                     {"service_tier": "auto"}, {"tools": []}, {"tool_choice": "none"},
                     {"parallel_tool_calls": False}, {"truncation": "disabled"}, {"include": []},
                     {"reasoning": None}, {"text": {"format": {"type": "text"}}},
                     {"background": False}, {"top_logprobs": 0}, {"top_k": 1}, {"top_p": 0.5},
                     {"priority": 7}, {"stream": False},
                     {"stream_options": {"include_obfuscation": False}}):
            with self.subTest(more):
                self.assertEqual(self.text(self.ask(**more)), plain)

    def test_seed(self):
        drawn = [self.text(self.ask(temperature=1.5, seed=seed, max_output_tokens=24))
                 for seed in (1, 1, 2)]
        self.assertEqual(drawn[0], drawn[1])
        self.assertNotEqual(drawn[0], drawn[2])


class Streams(ResponsesTest):
    def test_events(self):
        whole = self.ask()
        events = self.events("/v1/responses", self.body(stream=True))
        names = [name for name, _ in events]
        for i, (name, data) in enumerate(events):
            self.assertEqual((data["type"], data["sequence_number"]), (name, i))
        self.assertEqual(names[:4], BEGIN_EVENTS)
        self.assertEqual(names[-4:], [*PART_EVENTS, "response.incomplete"])
        self.assertEqual(set(names[4:-4]), {"response.output_text.delta"})
        data = [data for _, data in events]
        for begun in (data[0]["response"], data[1]["response"]):
            self.assertEqual((begun["status"], begun["output"], begun["usage"]),
                             ("in_progress", [], None))
        item_id = data[2]["item"]["id"]
        self.assertEqual(data[2]["item"], {"id": item_id, "type": "message", "role": "assistant",
                                           "status": "in_progress", "content": []})
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.assertEqual(data[3]["part"], empty)
        for entry in data[3:-2]:
            self.assertEqual((entry["item_id"], entry["output_index"], entry["content_index"]),
                             (item_id, 0, 0))
        text = "".join(entry["delta"] for entry in data[4:-4])
        self.assertEqual(text, self.text(whole))
        self.assertEqual(data[-4]["text"], text)
        self.assertEqual(data[-3]["part"], {**empty, "text": text})
        final = data[-1]["response"]
        self.assertEqual(data[-2]["item"], final["output"][0])
        self.assertEqual((final["id"], self.text(final)), (data[0]["response"]["id"], text))
        self.assertEqual(final["usage"]["output_tokens"], 8)
        self.assertEqual(self.ok("/v1/responses/" + final["id"]), final)

    def test_late_failure(self):
        events = self.late_failure("/v1/responses", self.body(stream=True, max_output_tokens=400))
        name, data = events[-1]
        self.assertEqual(name, "response.failed")
        failed = data["response"]
        self.assertEqual((failed["status"], failed["error"]["code"], failed["store"]),
                         ("failed", "deadline_exceeded", False))
        self.assertEqual(self.call("GET", "/v1/responses/" + failed["id"]).status, 404)

    def test_a_refusal_is_no_stream(self):
        self.refuse("input", "context_length_exceeded", stream=True, input="word " * 600)


class Conversations(ResponsesTest):
    def test_previous_response(self):
        first = self.ask()
        second = self.ask(input="And?", previous_response_id=first["id"])
        by_hand = self.ask(input=[message("Hello"), message(self.text(first), "assistant"),
                                  message("And?")])
        self.assertEqual(second["previous_response_id"], first["id"])
        self.assertEqual(self.text(second), self.text(by_hand))
        self.assertEqual(second["usage"]["input_tokens"], by_hand["usage"]["input_tokens"])
        third = self.ask(input="So?", previous_response_id=second["id"])
        by_hand = self.ask(input=[message("Hello"), message(self.text(first), "assistant"),
                                  message("And?"), message(self.text(second), "assistant"),
                                  message("So?")])
        self.assertEqual(self.text(third), self.text(by_hand))
        # A later response does not need the earlier ones.
        self.delete(first["id"])
        self.assertEqual(self.text(self.ask(input="So?", previous_response_id=second["id"])),
                         self.text(third))

    def test_output_items_can_be_handed_back(self):
        first = self.ask()
        by_id = self.ask(input="And?", previous_response_id=first["id"])
        by_hand = self.ask(input=[message("Hello"), *first["output"], message("And?")])
        self.assertEqual(self.text(by_hand), self.text(by_id))

    def test_instructions_are_not_kept(self):
        first = self.ask(instructions="Be brief.")
        second = self.ask(input="And?", previous_response_id=first["id"])
        self.assertIsNone(second["instructions"])
        by_hand = self.ask(input=[message("Hello"), message(self.text(first), "assistant"),
                                  message("And?")])
        self.assertEqual(self.text(second), self.text(by_hand))

    def test_the_next_turn_reads_the_cache(self):
        first = self.ask(input="a long question " * 5)
        second = self.ask(input="And?", previous_response_id=first["id"])
        self.assertGreaterEqual(second["usage"]["input_tokens_details"]["cached_tokens"],
                                first["usage"]["input_tokens"] // 16 * 16)

    def delete(self, response_id):
        answer = self.call("DELETE", "/v1/responses/" + response_id)
        self.assertEqual(answer.status, 200, answer.text)
        self.assertEqual(answer.json(), {"id": response_id, "object": "response",
                                         "deleted": True})

    def test_get_and_delete(self):
        answer = self.ask()
        path = "/v1/responses/" + answer["id"]
        self.assertEqual(self.ok(path), answer)
        self.delete(answer["id"])
        for method in ("GET", "DELETE"):
            gone = self.call(method, path)
            self.assertEqual((gone.status, gone.json()["error"]["code"]),
                             (404, "response_not_found"))
        self.refuse("previous_response_id", "previous_response_not_found", 404,
                    previous_response_id=answer["id"])

    def test_not_stored(self):
        answer = self.ask(store=False)
        self.assertIs(answer["store"], False)
        self.assertEqual(self.call("GET", "/v1/responses/" + answer["id"]).status, 404)


class Bounds(ResponsesTest):
    WORDS = ("--responses-max", 3)

    def is_kept(self, response_id):
        return self.call("GET", "/v1/responses/" + response_id).status == 200

    def test_what_was_not_used_for_longest_goes(self):
        first, second, third = (self.ask(max_output_tokens=1)["id"] for _ in range(3))
        self.assertTrue(self.is_kept(first))
        fourth = self.ask(max_output_tokens=1)["id"]
        self.assertFalse(self.is_kept(second))
        for response_id in (first, third, fourth):
            self.assertTrue(self.is_kept(response_id))


class KeepsNothing(ResponsesTest):
    WORDS = ("--responses-max", 0)

    def test_it_says_so(self):
        answer = self.ask()
        self.assertIs(answer["store"], False)
        events = self.events("/v1/responses", self.body(stream=True))
        self.assertIs(events[-1][1]["response"]["store"], False)
        self.refuse("previous_response_id", "previous_response_not_found", 404,
                    previous_response_id=answer["id"])
        for method in ("GET", "DELETE"):
            self.assertEqual(self.call(method, "/v1/responses/" + answer["id"]).status, 404)


class Keys(ResponsesTest):
    """A response is its key's alone."""
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        path = Path(folder.name) / "keys"
        path.write_text("".join(f"{key} {hashlib.sha256(key.encode()).hexdigest()} generate\n"
                                for key in ("alice", "bob")))
        path.chmod(0o600)
        cls.WORDS = ("--api-key-file", path)
        super().setUpClass()

    def as_key(self, key, method, path, body=None):
        return self.call(method, path, body, Authorization=f"Bearer {key}")

    def test_other_keys_find_nothing(self):
        made = self.as_key("alice", "POST", "/v1/responses", self.body())
        self.assertEqual(made.status, 200, made.text)
        path = "/v1/responses/" + made.json()["id"]
        more = self.body(previous_response_id=made.json()["id"])
        self.assertEqual(self.as_key("bob", "GET", path).status, 404)
        self.assertEqual(self.as_key("bob", "DELETE", path).status, 404)
        self.assertEqual(self.as_key("bob", "POST", "/v1/responses", more).status, 404)
        self.assertEqual(self.as_key("alice", "GET", path).json(), made.json())
        self.assertEqual(self.as_key("alice", "POST", "/v1/responses", more).status, 200)
        self.assertEqual(self.as_key("alice", "DELETE", path).status, 200)

    def test_every_route_wants_a_key(self):
        for method, path in (("POST", "/v1/responses"), ("GET", "/v1/responses/resp_a"),
                             ("DELETE", "/v1/responses/resp_a"), ("POST", "/v1/messages"),
                             ("POST", "/v1/messages/count_tokens"), ("POST", "/api/chat"),
                             ("POST", "/api/generate"), ("GET", "/api/tags"),
                             ("POST", "/api/show"), ("GET", "/api/ps"), ("GET", "/api/version")):
            with self.subTest(path=path):
                self.assertEqual(self.call(method, path, b"{}").status, 401)

    def test_anthropic_clients_show_theirs_otherwise(self):
        body = {"model": TINY, "max_tokens": 1, "messages": [message("Hello")]}
        self.assertEqual(self.post("/v1/messages", body, **{"x-api-key": "alice"}).status, 200)
        refused = self.post("/v1/messages", body, **{"x-api-key": "nobody"})
        self.assertEqual((refused.status, refused.json()["error"]["type"]),
                         (401, "authentication_error"))


class Refusals(ResponsesTest):
    def test_unsupported(self):
        tool = {"type": "function", "name": "f", "parameters": {}}
        for pattern, more in (
                ("frobnicate", {"frobnicate": 1}), ("tools", {"tools": [tool]}),
                ("background", {"background": True}), ("conversation", {"conversation": "c"}),
                ("prompt", {"prompt": {"id": "p"}}),
                ("reasoning", {"reasoning": {"effort": "low"}}),
                ("include", {"include": ["message.output_text.logprobs"]}),
                ("top_logprobs", {"top_logprobs": 3}), ("max_tool_calls", {"max_tool_calls": 1}),
                ("truncation", {"truncation": "auto"}),
                ("text.format", {"text": {"format": {"type": "json_object"}}}),
                ("text.verbosity", {"text": {"verbosity": "low"}}),
                ("text.frobnicate", {"text": {"frobnicate": 1}}),
                ("stream_options", {"stream": True,
                                    "stream_options": {"include_obfuscation": True}}),
                ("n", {"n": 2}), ("stop", {"stop": "a"}), ("messages", {"messages": []})):
            with self.subTest(pattern=pattern):
                self.refuse(pattern, "unsupported_parameter", **more)

    def test_wrong_values(self):
        for pattern, more in (
                ("temperature", {"temperature": 2.5}), ("top_p", {"top_p": 0}),
                ("max_output_tokens", {"max_output_tokens": 0}), ("store", {"store": 1}),
                ("stream", {"stream": "a"}), ("metadata", {"metadata": {"a": 1}}),
                ("metadata", {"metadata": {"a": "b" * 513}}),
                ("metadata", {"metadata": {"a" * 65: "b"}}),
                ("metadata", {"metadata": {str(i): "" for i in range(17)}}),
                ("instructions", {"instructions": []}),
                ("tool_choice", {"tool_choice": "required"}),
                ("service_tier", {"service_tier": "flex"}), ("text", {"text": "a"}),
                ("previous_response_id", {"previous_response_id": 5}),
                ("input", {"input": ""}), ("input", {"input": []}), ("input", {"input": 5}),
                ("input", {"input": [message("a")] * 2049}),
                ("input.0", {"input": ["Hello"]}),
                ("input.0.type", {"input": [{"type": "function_call", "call_id": "c"}]}),
                ("input.0.type", {"input": [{"type": "item_reference", "id": "c"}]}),
                ("input.0.role", {"input": [message("a", "tool")]}),
                ("input.0.status", {"input": [message("a", status="done")]}),
                ("input.0.content", {"input": [message(5)]}),
                ("input.0.content", {"input": [message([])]}),
                ("input.0.content.0.type", {"input": [message([{"type": "input_image"}])]}),
                ("input.0.content.0.type", {"input": [message([{"type": "text", "text": "a"}])]})):
            with self.subTest(pattern=pattern):
                self.refuse(pattern, "invalid_value", **more)

    def test_missing(self):
        for pattern, more in (("input", {"input": None}),
                              ("input.0.role", {"input": [{"content": "a"}]}),
                              ("input.0.content", {"input": [{"role": "user"}]}),
                              ("input.0.content.0.text",
                               {"input": [message([{"type": "input_text"}])]})):
            with self.subTest(pattern=pattern):
                self.refuse(pattern, "missing_required_parameter", **more)
        self.refuse("input.0.name", "unsupported_parameter", input=[message("a", name="b")])

    def test_unknown(self):
        self.refuse("model", "model_not_found", 404, model="nobody")
        self.refuse("previous_response_id", "previous_response_not_found", 404,
                    previous_response_id="resp_" + "a" * 24)
        for method in ("GET", "DELETE"):
            for tail in ("resp_" + "a" * 24, "x" * 300, "%C3%A4"):
                answer = self.call(method, "/v1/responses/" + tail)
                self.assertEqual(answer.status, 404, answer.text)
        answer = self.call("PUT", "/v1/responses/resp_a")
        self.assertEqual((answer.status, sorted(answer.headers["Allow"].split(", "))),
                         (405, ["DELETE", "GET", "HEAD"]))

    def test_overlong_prompts_give_the_numbers(self):
        answer = self.post("/v1/responses", self.body(input="word " * 600))
        error = answer.json()["error"]
        self.assertEqual((answer.status, error["code"], error["param"]),
                         (400, "context_length_exceeded", "input"))
        self.assertRegex(error["message"], r"\d{3,}.*512")
        self.assertEqual(error["n_ctx"], 512)
        self.assertGreater(error["n_prompt"], 512)


if __name__ == "__main__":
    unittest.main()
