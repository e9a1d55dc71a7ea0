"""/v1/responses with the official OpenAI Python client, unchanged: text, messages, streams with all
their events, conversations by previous_response_id, retrieving and deleting."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import ClientTest, use_python_clients  # noqa: E402

use_python_clients()

import openai  # noqa: E402

QUESTION = "What is the capital of France? Answer in one word."
GREEDY = {"model": "smollm2", "temperature": 0, "max_output_tokens": 16}


class Responses(ClientTest, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = openai.OpenAI(base_url=f"{cls.server.base}/v1", api_key="unused",
                                   max_retries=0)
        cls.addClassCleanup(cls.client.close)

    def ask(self, text=QUESTION, **more):
        return self.client.responses.create(**{**GREEDY, "input": text, **more})

    def test_text_and_messages(self):
        answer = self.ask()
        self.assertTrue(answer.id.startswith("resp_"), answer.id)
        self.assertEqual((answer.object, answer.model), ("response", "smollm2"))
        self.assertIn(answer.status, ("completed", "incomplete"))
        self.assertIn("Paris", answer.output_text)
        message = answer.output[-1]
        self.assertEqual((message.type, message.role), ("message", "assistant"))
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.input_tokens + answer.usage.output_tokens)
        same = self.ask([{"role": "user", "content": QUESTION}])
        parts = self.ask([{"role": "user", "content": [{"type": "input_text",
                                                        "text": QUESTION}]}])
        self.assertEqual(same.output_text, answer.output_text)
        self.assertEqual(parts.output_text, answer.output_text)
        self.assertEqual(parts.usage.input_tokens, answer.usage.input_tokens)

    def test_instructions_are_a_system_message(self):
        told = self.ask("Hello", instructions="Speak like a pirate.")
        same = self.ask([{"role": "system", "content": "Speak like a pirate."},
                         {"role": "user", "content": "Hello"}])
        self.assertEqual(told.output_text, same.output_text)
        self.assertEqual(told.instructions, "Speak like a pirate.")
        self.assertNotEqual(told.usage.input_tokens, self.ask("Hello").usage.input_tokens)

    def test_an_answer_that_is_cut_says_so(self):
        cut = self.ask("Write a very long story.", max_output_tokens=5)
        self.assertEqual((cut.status, cut.incomplete_details.reason),
                         ("incomplete", "max_output_tokens"))
        self.assertEqual(cut.usage.output_tokens, 5)

    def test_stream(self):
        whole = self.ask()
        events = list(self.ask(stream=True))
        kinds = [event.type for event in events]
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        text_kinds = ["response.output_item.added", "response.content_part.added",
                      "response.output_text.delta", "response.output_text.done",
                      "response.content_part.done", "response.output_item.done"]
        self.assertEqual(kinds[0], "response.created")
        self.assertEqual([kind for kind in dict.fromkeys(kinds) if kind in text_kinds], text_kinds)
        self.assertIn(kinds[-1], ("response.completed", "response.incomplete"))
        deltas = "".join(event.delta for event in events if event.type == text_kinds[2])
        done = next(event for event in events if event.type == text_kinds[3])
        final = events[-1].response
        self.assertEqual([deltas, done.text, final.output_text], [whole.output_text] * 3)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertEqual(final.id, events[0].response.id)

    def test_stream_helper(self):
        with self.client.responses.stream(**GREEDY, input=QUESTION) as stream:
            for _ in stream:
                pass
            self.assertIn("Paris", stream.get_final_response().output_text)

    def test_a_conversation(self):
        first = self.ask()
        second = self.ask("And of Italy?", previous_response_id=first.id)
        by_hand = self.ask([{"role": "user", "content": QUESTION},
                            {"role": "assistant", "content": first.output_text},
                            {"role": "user", "content": "And of Italy?"}])
        self.assertEqual(second.previous_response_id, first.id)
        self.assertEqual(second.output_text, by_hand.output_text)
        self.assertEqual(second.usage.input_tokens, by_hand.usage.input_tokens)
        streamed = list(self.ask("And of Italy?", previous_response_id=first.id, stream=True))
        self.assertEqual(streamed[-1].response.output_text, second.output_text)
        third = self.ask("Thanks.", previous_response_id=streamed[-1].response.id)
        self.assertGreater(third.usage.input_tokens, second.usage.input_tokens)

    def test_retrieve_and_delete(self):
        answer = self.ask(metadata={"topic": "capitals"})
        found = self.client.responses.retrieve(answer.id)
        self.assertEqual((found.id, found.output_text, found.metadata),
                         (answer.id, answer.output_text, {"topic": "capitals"}))
        self.client.responses.delete(answer.id)
        for gone in (lambda: self.client.responses.retrieve(answer.id),
                     lambda: self.client.responses.delete(answer.id),
                     lambda: self.ask(previous_response_id=answer.id)):
            with self.assertRaises(openai.NotFoundError):
                gone()

    def test_what_is_not_stored_is_not_found(self):
        answer = self.ask(store=False)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(answer.id)

    def test_refusals_name_the_field(self):
        tool = {"type": "web_search"}
        for more, param in (({"max_output_tokens": 0}, "max_output_tokens"),
                            ({"tools": [tool]}, "tools"), ({"background": True}, "background"),
                            ({"text": []}, "input"), ({"text": 5}, "input"),
                            ({"extra_body": {"frobnicate": 1}}, "frobnicate")):
            with self.subTest(param=param), self.assertRaises(openai.BadRequestError) as caught:
                self.ask(**more)
            self.assertTrue((caught.exception.param or "").startswith(param), caught.exception)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.ask(model="nobody")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_closed_stream(self):
        def leave():
            stream = self.ask("Write a very long story about a dragon and a princess.", stream=True,
                              max_output_tokens=3000, extra_body={"ignore_eos": True})
            next(event for event in stream if event.type == "response.output_text.delta")
            stream.close()
        self.assert_cancels(leave)


if __name__ == "__main__":
    unittest.main()
