"""The official Anthropic Python client, unchanged, with another base URL: messages, streams, token
counts, models, errors, leaving early."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import ClientTest, use_python_clients  # noqa: E402

use_python_clients()

import anthropic  # noqa: E402

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY = [{"role": "user", "content": "Write a very long story about a dragon and a princess."}]
# This version of the client has no argument for the temperature.
GREEDY = {"model": "smollm2", "max_tokens": 16, "extra_body": {"temperature": 0}}
ENDLESS = {**GREEDY, "messages": STORY, "max_tokens": 3000,
           "extra_body": {"temperature": 0, "ignore_eos": True}}


def n_input(usage):
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


class AnthropicTest(ClientTest, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = anthropic.Anthropic(base_url=cls.server.base, api_key="unused", max_retries=0)
        cls.addClassCleanup(cls.client.close)

    def ask(self, messages=QUESTION, **more):
        return self.client.messages.create(**{**GREEDY, "messages": messages, **more})


class Messages(AnthropicTest):
    def test_answer_in_one_piece(self):
        answer = self.ask()
        self.assertTrue(answer.id.startswith("msg_"), answer.id)
        self.assertEqual((answer.type, answer.role, answer.model),
                         ("message", "assistant", "smollm2"))
        block, = answer.content
        self.assertEqual(block.type, "text")
        self.assertIn("Paris", block.text)
        self.assertIn(answer.stop_reason, ("end_turn", "max_tokens"))
        self.assertTrue(1 <= answer.usage.output_tokens <= 16)

    def test_stream_says_the_same(self):
        whole = self.ask()
        with self.client.messages.stream(**GREEDY, messages=QUESTION) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual([text, final.content[0].text], [whole.content[0].text] * 2)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertEqual(n_input(final.usage), n_input(whole.usage))

    def test_events_of_a_stream(self):
        events = list(self.ask(stream=True))
        kinds = [event.type for event in events if event.type != "ping"]
        self.assertEqual(list(dict.fromkeys(kinds)),
                         ["message_start", "content_block_start", "content_block_delta",
                          "content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(kinds.count("message_start"), 1)
        self.assertEqual(kinds.count("content_block_stop"), 1)
        start = events[0].message
        self.assertEqual((start.role, start.content, start.stop_reason), ("assistant", [], None))

    def test_stop_reasons(self):
        cut = self.ask(STORY)
        self.assertEqual((cut.stop_reason, cut.usage.output_tokens), ("max_tokens", 16))
        text = cut.content[0].text
        stop = text[len(text) // 2:len(text) // 2 + 4]
        stopped = self.ask(STORY, stop_sequences=["never said", stop])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", stop))
        self.assertEqual(stopped.content[0].text, text[:text.index(stop)])

    def test_system_and_parts(self):
        plain = self.ask(system="Speak like a pirate.")
        parts = self.ask([{"role": "user", "content": [
            {"type": "text", "text": QUESTION[0]["content"]}]}],
            system=[{"type": "text", "text": "Speak like a pirate."}])
        self.assertEqual(parts.content[0].text, plain.content[0].text)
        self.assertEqual(n_input(parts.usage), n_input(plain.usage))
        self.assertNotEqual(n_input(plain.usage), n_input(self.ask().usage))

    def test_second_turn_reads_the_cache(self):
        turns = [{"role": "user", "content": "Be brief. " * 60}]
        first = self.ask(turns)
        turns += [{"role": "assistant", "content": first.content[0].text},
                  {"role": "user", "content": "And now?"}]
        self.assertGreater(self.ask(turns).usage.cache_read_input_tokens, 64)

    def test_tokens_are_counted_as_they_are_used(self):
        for more in ({}, {"system": "Speak like a pirate."}):
            counted = self.client.messages.count_tokens(model="smollm2", messages=QUESTION, **more)
            self.assertEqual(counted.input_tokens, n_input(self.ask(**more).usage))

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["smollm2"])
        self.assertEqual(self.client.models.retrieve("smollm2").id, "smollm2")


class Errors(AnthropicTest):
    def test_fields_are_named(self):
        tool = {"name": "f", "input_schema": {"type": "object"}}
        for more, param in (({"extra_body": {"temperature": 5}}, "temperature"),
                            ({"max_tokens": 0}, "max_tokens"),
                            ({"tools": [tool]}, "tools"), ({"messages": []}, "messages"),
                            ({"stop_sequences": [""]}, "stop_sequences"),
                            ({"extra_body": {"frobnicate": 1}}, "frobnicate")):
            with self.subTest(param=param), self.assertRaises(anthropic.BadRequestError) as caught:
                self.ask(**more)
            body = caught.exception.body
            self.assertEqual((body["type"], body["error"]["type"]),
                             ("error", "invalid_request_error"))
            self.assertIn(param, body["error"]["message"])

    def test_unknown_model(self):
        for ask in (lambda: self.ask(model="nobody"),
                    lambda: self.client.messages.count_tokens(model="nobody", messages=QUESTION)):
            with self.assertRaises(anthropic.NotFoundError) as caught:
                ask()
            self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")

    def test_overlong_prompt_gives_the_numbers(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.ask([{"role": "user", "content": "word " * 9000}])
        self.assertRegex(caught.exception.body["error"]["message"], r"9\d\d\d")

    def test_late_failure_is_an_error_event(self):
        late = {**ENDLESS, "extra_body": {**ENDLESS["extra_body"], "deadline_ms": 300}}
        with self.assertRaises(anthropic.APIStatusError) as caught:
            for event in self.client.messages.create(**late, stream=True):
                self.assertNotEqual(event.type, "message_stop")
        self.assertEqual(caught.exception.body["error"]["type"], "timeout_error")


class Leaving(AnthropicTest):
    def test_closed_stream(self):
        def leave():
            with self.client.messages.stream(**ENDLESS) as stream:
                for _, text in zip(range(5), stream.text_stream):
                    self.assertIsInstance(text, str)
        self.assert_cancels(leave)

    def test_timeout_of_an_answer_in_one_piece(self):
        def leave():
            with self.assertRaises(anthropic.APITimeoutError):
                self.client.with_options(timeout=0.5).messages.create(**ENDLESS)
        self.assert_cancels(leave)


if __name__ == "__main__":
    unittest.main()
