"""The official OpenAI Python client, unchanged, with another base URL and nothing else: models,
chat, streams, completions, log-probabilities, embeddings, errors, leaving early. Responses are in
test_clients_responses.py."""
import asyncio
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import ClientTest, eventually, use_python_clients  # noqa: E402

use_python_clients()

import openai  # noqa: E402

HELLO, WORLD = 19556, 905  # SmolLM2's tokens "Hello" and " world"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
STORY = [{"role": "user", "content": "Write a very long story about a dragon and a princess."}]
# Greedy: the same answer every time. Endless: only leaving or the context ends it.
GREEDY = {"model": "smollm2", "temperature": 0}
ENDLESS = {**GREEDY, "messages": STORY, "max_tokens": 3000, "extra_body": {"ignore_eos": True}}


class OpenAITest(ClientTest, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = cls.new_client()
        cls.addClassCleanup(cls.client.close)

    @classmethod
    def new_client(cls, kind=openai.OpenAI, **more):
        return kind(base_url=f"{cls.server.base}/v1", api_key="unused", max_retries=0, **more)

    def chat(self, messages=QUESTION, **more):
        return self.client.chat.completions.create(
            **{**GREEDY, "max_tokens": 16, "messages": messages, **more})


class Models(OpenAITest):
    def test_list_and_retrieve(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], ["smollm2"])
        one = self.client.models.retrieve("smollm2")
        self.assertEqual((one.id, one.object, one.created), ("smollm2", "model",
                                                             models[0].created))
        self.assertGreater(one.created, 1_700_000_000)

    def test_unknown_model_is_not_found(self):
        for ask in (lambda: self.client.models.retrieve("nobody"),
                    lambda: self.client.chat.completions.create(model="nobody",
                                                                messages=QUESTION)):
            with self.assertRaises(openai.NotFoundError) as caught:
                ask()
            self.assertEqual(caught.exception.code, "model_not_found")
            self.assertIn("nobody", caught.exception.message)


class Chat(OpenAITest):
    def test_answer_in_one_piece(self):
        answer = self.chat()
        self.assertTrue(answer.id.startswith("chatcmpl-"), answer.id)
        self.assertEqual((answer.object, answer.model), ("chat.completion", "smollm2"))
        choice, = answer.choices
        self.assertEqual((choice.index, choice.message.role), (0, "assistant"))
        self.assertIn("Paris", choice.message.content)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        usage = answer.usage
        self.assertGreater(usage.prompt_tokens, 10)
        self.assertTrue(1 <= usage.completion_tokens <= 16)
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)

    def test_stream_says_the_same(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        *body, last = chunks
        self.assertEqual({chunk.id for chunk in chunks}, {chunks[0].id})
        self.assertEqual(body[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
        self.assertEqual(text, whole.choices[0].message.content)
        finishes = [chunk.choices[0].finish_reason for chunk in body]
        self.assertEqual([f for f in finishes if f], [whole.choices[0].finish_reason])
        self.assertEqual(finishes[-1], whole.choices[0].finish_reason)
        self.assertEqual(last.choices, [])
        self.assertEqual(last.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(last.usage.prompt_tokens, whole.usage.prompt_tokens)
        self.assertTrue(all(chunk.usage is None for chunk in body))

    def test_stream_helper_collects_the_answer(self):
        with self.client.chat.completions.stream(**GREEDY, max_tokens=16,
                                                 messages=QUESTION) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        self.assertEqual("".join(deltas), final.choices[0].message.content)
        self.assertEqual(final.choices[0].message.content,
                         self.chat().choices[0].message.content)

    def test_length_and_stop(self):
        cut = self.chat(STORY, extra_body={"ignore_eos": True})
        self.assertEqual(cut.choices[0].finish_reason, "length")
        self.assertEqual(cut.usage.completion_tokens, 16)
        text = cut.choices[0].message.content
        stop = text[len(text) // 2:len(text) // 2 + 4]
        stopped = self.chat(STORY, stop=["never said", stop], extra_body={"ignore_eos": True})
        self.assertEqual(stopped.choices[0].finish_reason, "stop")
        self.assertEqual(stopped.choices[0].message.content, text[:text.index(stop)])

    def test_seed_choices_and_bias(self):
        first, second = (self.chat(STORY, n=3, seed=7, temperature=1.5) for _ in range(2))
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual([choice.index for choice in first.choices], [0, 1, 2])
        self.assertEqual(texts, [choice.message.content for choice in second.choices])
        self.assertGreater(len(set(texts)), 1)
        forced = self.chat(logit_bias={str(WORLD): 100}, presence_penalty=0.5,
                           frequency_penalty=0.5)
        self.assertEqual(forced.choices[0].message.content, " world" * 16)

    def test_streamed_choices_are_those_in_one_piece(self):
        ask = {**GREEDY, "n": 2, "seed": 3, "temperature": 1.2, "max_tokens": 12, "messages": STORY}
        whole = self.client.chat.completions.create(**ask)
        texts = ["", ""]
        for chunk in self.client.chat.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, [choice.message.content for choice in whole.choices])

    def test_log_probabilities(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        text = b"".join(bytes(token.bytes) for token in content).decode()
        self.assertTrue(text.startswith(answer.choices[0].message.content))
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            tops = [top.logprob for top in token.top_logprobs]
            self.assertEqual((len(tops), tops), (3, sorted(tops, reverse=True)))
            self.assertEqual(token.top_logprobs[0].token, token.token)  # greedy
        streamed = [token for chunk in self.chat(logprobs=True, top_logprobs=3, stream=True)
                    for choice in chunk.choices if choice.logprobs
                    for token in choice.logprobs.content]
        self.assertEqual(streamed, content)

    def test_conversation_reuses_its_prefix(self):
        turns = [{"role": "system", "content": "Be brief. " * 40}, *QUESTION]
        first = self.chat(turns)
        turns += [{"role": "assistant", "content": first.choices[0].message.content},
                  {"role": "user", "content": "And of Italy?"}]
        second = self.chat(turns)
        self.assertGreater(second.usage.prompt_tokens, first.usage.prompt_tokens)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 64)

    def test_many_at_once_say_what_they_say_alone(self):
        prompts = [[{"role": "user", "content": f"Say the number {i}."}] for i in range(8)]
        alone = [self.chat(prompt).choices[0].message.content for prompt in prompts]

        async def together():
            async with self.new_client(openai.AsyncOpenAI) as client:
                answers = await asyncio.gather(*(client.chat.completions.create(
                    **GREEDY, max_tokens=16, messages=prompt) for prompt in prompts))
            return [answer.choices[0].message.content for answer in answers]
        self.assertEqual(asyncio.run(together()), alone)


class Completions(OpenAITest):
    def test_texts_tokens_and_their_stream(self):
        texts = self.client.completions.create(**GREEDY, prompt=["Hello", "The sky is"],
                                               max_tokens=6)
        self.assertEqual([choice.index for choice in texts.choices], [0, 1])
        self.assertEqual(texts.object, "text_completion")
        tokens = self.client.completions.create(**GREEDY, prompt=[HELLO], max_tokens=6)
        self.assertEqual(tokens.choices[0].text, texts.choices[0].text)
        self.assertEqual(tokens.usage.prompt_tokens, 1)
        stream = self.client.completions.create(**GREEDY, prompt="The sky is", max_tokens=6,
                                                stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in stream if chunk.choices),
                         texts.choices[1].text)

    def test_log_probabilities(self):
        answer = self.client.completions.create(**GREEDY, prompt="The sky is", max_tokens=5,
                                                logprobs=2)
        choice, = answer.choices
        found = choice.logprobs
        n = answer.usage.completion_tokens
        self.assertEqual((len(found.tokens), len(found.token_logprobs), len(found.top_logprobs),
                          len(found.text_offset)), (n, n, n, n))
        self.assertTrue(choice.text.startswith(found.tokens[0]))
        for token, logprob, tops in zip(found.tokens, found.token_logprobs, found.top_logprobs):
            self.assertAlmostEqual(max(tops.values()), logprob)  # greedy
            self.assertIn(token, tops)


class Embeddings(OpenAITest):
    def embed(self, text, **more):
        return self.client.embeddings.create(model="smollm2", input=text, **more)

    def test_base64_and_numbers_are_equal(self):
        both = self.embed(["The sky is blue.", "Dogs bark."])  # the client asks for base64
        numbers = self.embed(["The sky is blue.", "Dogs bark."], encoding_format="float")
        self.assertEqual([item.index for item in both.data], [0, 1])
        self.assertEqual(len(both.data[0].embedding), 576)
        for packed, plain in zip(both.data, numbers.data):
            for a, b in zip(packed.embedding, plain.embedding):
                self.assertAlmostEqual(a, b, places=5)
        self.assertNotEqual(both.data[0].embedding, both.data[1].embedding)
        self.assertEqual(both.usage.prompt_tokens, both.usage.total_tokens)
        self.assertGreater(both.usage.prompt_tokens, 4)

    def test_text_and_its_tokens(self):
        text, tokens = self.embed("Hello world"), self.embed([HELLO, WORLD])
        self.assertEqual(text.data[0].embedding, tokens.data[0].embedding)
        self.assertEqual(tokens.usage.prompt_tokens, 2)

    def test_empty_input_is_refused(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.embed([])
        self.assertEqual(caught.exception.param, "input")


class Errors(OpenAITest):
    def refuse(self, kind=openai.BadRequestError, **more):
        with self.assertRaises(kind) as caught:
            self.chat(**more)
        return caught.exception

    def test_fields_are_named(self):
        for more, param in (({"temperature": 5}, "temperature"), ({"top_p": 0}, "top_p"),
                            ({"n": 0}, "n"), ({"logit_bias": {"99999999": 1}}, "logit_bias"),
                            ({"stop": [""]}, "stop"),
                            ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
                            ({"messages": []}, "messages"),
                            ({"messages": [{"role": "user", "content": 5}]},
                             "messages.0.content")):
            error = self.refuse(**more)
            with self.subTest(param=param):
                self.assertTrue((error.param or "").startswith(param), error)
                self.assertEqual((error.status_code, error.type), (400, "invalid_request_error"))
                self.assertTrue(error.code)
                self.assertTrue(error.request_id)

    def test_overlong_prompt_gives_the_numbers(self):
        error = self.refuse(messages=[{"role": "user", "content": "word " * 9000}])
        self.assertEqual(error.code, "context_length_exceeded")
        self.assertRegex(error.message, r"9\d\d\d")
        self.assertEqual(self.client.models.retrieve("smollm2").id, "smollm2")

    def test_deadline(self):
        late = {**ENDLESS, "extra_body": {"ignore_eos": True, "deadline_ms": 300}}
        with self.assertRaises(openai.InternalServerError) as caught:
            self.client.chat.completions.create(**late)
        self.assertEqual((caught.exception.status_code, caught.exception.code),
                         (504, "deadline_exceeded"))
        with self.assertRaises(openai.APIError) as caught:
            for chunk in self.client.chat.completions.create(**late, stream=True):
                self.assertIsNone(chunk.choices[0].finish_reason)
        self.assertEqual(caught.exception.code, "deadline_exceeded")


class Leaving(OpenAITest):
    def test_closed_stream(self):
        def leave():
            stream = self.client.chat.completions.create(**ENDLESS, stream=True)
            for _, chunk in zip(range(5), stream):
                self.assertTrue(chunk.choices)
            stream.close()
        self.assert_cancels(leave)

    def test_timeout_of_an_answer_in_one_piece(self):
        def leave():
            with self.assertRaises(openai.APITimeoutError):
                self.client.with_options(timeout=0.5).chat.completions.create(**ENDLESS)
        self.assert_cancels(leave)

    def test_cancelled_tasks_of_the_async_client(self):
        async def stream(client, started):
            async for _ in await client.chat.completions.create(**ENDLESS, stream=True):
                started.release()

        async def ask():
            async with self.new_client(openai.AsyncOpenAI) as client:
                started = asyncio.Semaphore(0)
                task = asyncio.create_task(stream(client, started))
                for _ in range(3):
                    await started.acquire()
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                answer = await client.chat.completions.create(**GREEDY, max_tokens=4,
                                                              messages=QUESTION)
                self.assertTrue(answer.choices[0].message.content)
        self.assert_cancels(lambda: asyncio.run(ask()))

    def test_a_client_that_leaves_does_not_disturb_another(self):
        alone = self.chat(STORY).choices[0].message.content
        leaving = self.client.chat.completions.create(**ENDLESS, stream=True)
        next(iter(leaving))
        staying = self.chat(STORY, stream=True)
        first = next(iter(staying))
        leaving.close()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in (first, *staying))
        self.assertEqual(text, alone)
        eventually(self.server.is_idle, "the engine is idle")


if __name__ == "__main__":
    unittest.main()
