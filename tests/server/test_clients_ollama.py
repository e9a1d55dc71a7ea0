"""The official Ollama Python client, unchanged, with another host: chat, generate, their streams,
tags, show, ps, embed, errors, leaving early."""
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import ClientTest, use_python_clients  # noqa: E402

use_python_clients()

import ollama  # noqa: E402

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY = [{"role": "user", "content": "Write a very long story about a dragon and a princess."}]
GREEDY = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 16}


class OllamaTest(ClientTest, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = ollama.Client(host=cls.server.base)

    def chat(self, messages=QUESTION, options=None, **more):
        return self.client.chat(model="smollm2", messages=messages,
                                options={**GREEDY, **(options or {})}, **more)

    def generate(self, prompt, options=None, **more):
        return self.client.generate(model="smollm2", prompt=prompt,
                                    options={**GREEDY, **(options or {})}, **more)


class Texts(OllamaTest):
    def test_chat(self):
        answer = self.chat()
        self.assertEqual((answer.model, answer.message.role, answer.done),
                         ("smollm2", "assistant", True))
        self.assertIn("Paris", answer.message.content)
        self.assertIn(answer.done_reason, ("stop", "length"))
        self.assertGreater(answer.prompt_eval_count, 10)
        self.assertTrue(1 <= answer.eval_count <= 16)
        self.assertGreater(answer.total_duration, answer.eval_duration)

    def test_stream_of_a_chat_says_the_same(self):
        whole = self.chat()
        *body, last = list(self.chat(stream=True))
        text = "".join(part.message.content or "" for part in (*body, last))
        self.assertEqual(text, whole.message.content)
        self.assertFalse(any(part.done for part in body))
        self.assertEqual((last.done, last.done_reason, last.eval_count),
                         (True, whole.done_reason, whole.eval_count))

    def test_generate_and_its_stream(self):
        question = QUESTION[0]["content"]
        whole = self.generate(question)
        self.assertEqual(whole.response, self.chat().message.content)
        parts = list(self.generate(question, stream=True))
        self.assertEqual("".join(part.response for part in parts), whole.response)
        self.assertTrue(parts[-1].done)

    def test_raw_and_system(self):
        raw = self.generate("Hello", raw=True)
        self.assertEqual(raw.prompt_eval_count, 1)
        told = self.generate("Hello", system="Speak like a pirate.")
        self.assertNotEqual(told.prompt_eval_count, self.generate("Hello").prompt_eval_count)

    def test_options(self):
        cut = self.chat(STORY, {"num_predict": 5})
        self.assertEqual((cut.done_reason, cut.eval_count), ("length", 5))
        text = self.chat(STORY).message.content
        stop = text[len(text) // 2:len(text) // 2 + 4]
        stopped = self.chat(STORY, {"stop": [stop]})
        self.assertEqual((stopped.message.content, stopped.done_reason),
                         (text[:text.index(stop)], "stop"))
        drawn = [self.chat(STORY, {"temperature": 1.5, "seed": seed}).message.content
                 for seed in (7, 7, 8)]
        self.assertEqual(drawn[0], drawn[1])
        self.assertNotEqual(drawn[0], drawn[2])


class Lists(OllamaTest):
    def test_tags_show_and_ps(self):
        model, = self.client.list().models
        self.assertTrue(model.model.startswith("smollm2"), model.model)
        self.assertGreater(model.size, 10_000_000)
        self.assertIn("llama", model.details.family)
        shown = self.client.show("smollm2")
        self.assertEqual(shown.modelinfo["general.architecture"], "llama")
        self.assertIn("completion", shown.capabilities)
        running, = self.client.ps().models
        self.assertTrue(running.model.startswith("smollm2"), running.model)

    def test_the_name_with_a_tag(self):
        name = self.client.list().models[0].model
        answer = self.client.chat(model=name, messages=QUESTION, options=GREEDY)
        self.assertIn("Paris", answer.message.content)

    def test_embed(self):
        both = self.client.embed(model="smollm2", input=["The sky is blue.", "Dogs bark."])
        one = self.client.embed(model="smollm2", input="Dogs bark.")
        self.assertEqual([len(row) for row in both.embeddings], [576, 576])
        for a, b in zip(both.embeddings[1], one.embeddings[0]):
            self.assertAlmostEqual(a, b, places=5)
        self.assertNotEqual(both.embeddings[0], both.embeddings[1])
        self.assertGreater(both.prompt_eval_count, 4)


class Errors(OllamaTest):
    def refuse(self, status, pattern, ask):
        with self.assertRaises(ollama.ResponseError) as caught:
            ask()
        self.assertEqual(caught.exception.status_code, status)
        self.assertRegex(caught.exception.error, pattern)

    def test_unknown_model(self):
        for ask in (lambda: self.client.chat(model="nobody", messages=QUESTION),
                    lambda: self.client.generate(model="nobody", prompt="a"),
                    lambda: self.client.embed(model="nobody", input="a"),
                    lambda: self.client.show("nobody")):
            self.refuse(404, "nobody", ask)

    def test_fields_are_named(self):
        self.refuse(400, "temperature", lambda: self.chat(options={"temperature": 5}))
        self.refuse(400, "frobnicate", lambda: self.chat(options={"frobnicate": 1}))
        self.refuse(400, "images", lambda: self.generate("a", images=[b"\xff"]))
        self.refuse(400, "tools", lambda: self.chat(tools=[
            {"type": "function", "function": {"name": "f", "parameters": {}}}]))

    def test_overlong_prompt_gives_the_numbers(self):
        self.refuse(400, r"9\d\d\d", lambda: self.chat(
            [{"role": "user", "content": "word " * 9000}]))


class Leaving(OllamaTest):
    def test_closed_stream(self):
        def leave():
            # Without a client of its own the connection would stay open in the pool.
            client = ollama.Client(host=self.server.base)
            stream = client.generate(model="smollm2", prompt="Once upon a time, there was a dragon",
                                     stream=True, raw=True,
                                     options={"temperature": 0, "num_predict": 3000})
            for _, part in zip(range(5), stream):
                self.assertFalse(part.done)
            stream.close()
        self.assert_cancels(leave)


if __name__ == "__main__":
    unittest.main()
