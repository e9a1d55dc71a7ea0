"""/v1/embeddings and /api/embed over plain HTTP: forms of input and output, lengths, order, both
poolings, refusals by name."""
import base64
import math
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dialect import DialectTest, TINY, N_CTX  # noqa: E402

N_EMBD, N_VOCAB = 64, 320


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


class EmbeddingsTest(DialectTest):
    def body(self, text="Hello there", **more):
        return {"model": TINY, "input": text, **more}

    def embed(self, text="Hello there", **more):
        answer = self.ok("/v1/embeddings", self.body(text, **more))
        self.assertEqual([entry["index"] for entry in answer["data"]],
                         list(range(len(answer["data"]))))
        return [entry["embedding"] for entry in answer["data"]]

    def refuse(self, pattern, code, status=400, **more):
        answer = self.post("/v1/embeddings", {**self.body(), **more})
        self.assertEqual(answer.status, status, answer.text)
        error = answer.json()["error"]
        self.assertEqual((error["type"], error["code"]), ("invalid_request_error", code))
        self.assertRegex(error["param"], "^" + pattern + "$")
        return error["message"]


class OpenAI(EmbeddingsTest):
    def test_object(self):
        answer = self.ok("/v1/embeddings", self.body(["Hello there", "a"], user="me"))
        self.assertEqual((answer["object"], answer["model"]), ("list", TINY))
        first, second = answer["data"]
        self.assertEqual((first["object"], first["index"], second["index"]), ("embedding", 0, 1))
        for entry in answer["data"]:
            self.assertEqual(len(entry["embedding"]), N_EMBD)
            self.assertAlmostEqual(length(entry["embedding"]), 1, places=5)
        usage = answer["usage"]
        self.assertEqual(usage["prompt_tokens"], usage["total_tokens"])
        one, = self.ok("/v1/embeddings", self.body("a"))["data"]
        self.assertEqual(one["embedding"], second["embedding"])
        self.assertNotEqual(first["embedding"], second["embedding"])
        counts = [self.ok("/v1/embeddings", self.body(text))["usage"]["prompt_tokens"]
                  for text in ("Hello there", "a")]
        self.assertEqual(usage["prompt_tokens"], sum(counts))

    def test_base64_is_the_same_numbers(self):
        texts = ["Hello there", "a", "b c d"]
        plain = self.embed(texts)
        packed = self.embed(texts, encoding_format="base64")
        for text, vector in zip(packed, plain):
            raw = base64.b64decode(text, validate=True)
            self.assertEqual(list(struct.unpack(f"<{N_EMBD}f", raw)),
                             list(struct.unpack(f"<{N_EMBD}f", struct.pack(f"<{N_EMBD}f",
                                                                           *vector))))

    def test_token_ids(self):
        ids = [5, 6, 7, 300]
        one, = self.embed(ids)
        self.assertEqual(self.embed([ids]), [one])
        both = self.embed([[5], ids])
        self.assertEqual(both[1], one)
        self.assertEqual(self.embed([5]), [both[0]])
        usage = self.ok("/v1/embeddings", self.body([[5], ids]))["usage"]
        self.assertEqual(usage["prompt_tokens"], 5)

    def test_pooling(self):
        mean, = self.embed(pooling="mean")
        last, = self.embed(pooling="last")
        self.assertEqual(self.embed(), [mean])
        self.assertNotEqual(mean, last)
        self.assertAlmostEqual(length(last), 1, places=5)
        self.assertEqual(self.embed([7], pooling="mean"), self.embed([7], pooling="last"))

    def test_a_vector_does_not_depend_on_its_neighbours(self):
        texts = [("word " * (1 + i * 7 % 90)) + str(i) for i in range(300)]
        together = self.embed(texts)
        for i in (0, 1, 150, 299):
            self.assertEqual(self.embed(texts[i]), [together[i]])
        self.assertEqual(self.embed(texts[::-1]), together[::-1])

    def test_2048_inputs(self):
        vectors = self.embed([[1 + i % 300] for i in range(2048)])
        self.assertEqual(len(vectors), 2048)
        self.assertEqual(vectors[:10], vectors[300:310])
        self.assertNotEqual(vectors[0], vectors[1])

    def test_a_whole_context(self):
        vector, = self.embed([9] * N_CTX)
        self.assertAlmostEqual(length(vector), 1, places=5)
        message = self.refuse("input", "context_length_exceeded", input=[9] * (N_CTX + 1))
        self.assertRegex(message, rf"{N_CTX + 1}.*{N_CTX}")
        self.refuse("input.1", "context_length_exceeded", input=["a", "word " * N_CTX])

    def test_dimensions(self):
        self.assertEqual(self.embed(dimensions=N_EMBD), self.embed())
        message = self.refuse("dimensions", "unsupported_parameter", dimensions=N_EMBD // 2)
        self.assertIn(str(N_EMBD), message)

    def test_refusals(self):
        for pattern, value in (
                ("input", []), ("input", ""), ("input", 5), ("input", {}), ("input", ["a"] * 2049),
                ("input.1", ["a", ""]), ("input.0", [[]]), ("input.1", ["a", 5]),
                ("input.0", [None]), ("input.0", [True]), ("input.0", [1.5]),
                ("input", [5, "a"]), ("input", [5, -1]), ("input", [N_VOCAB]),
                ("input.1", [[5], [N_VOCAB]]), ("input.0", [["a"]]), ("input.0", [{}])):
            with self.subTest(value=str(value)[:40]):
                self.refuse(pattern, "invalid_value", input=value)
        self.refuse("input", "missing_required_parameter", input=None)
        for pattern, code, more in (
                ("encoding_format", "invalid_value", {"encoding_format": "int8"}),
                ("pooling", "invalid_value", {"pooling": "cls"}),
                ("dimensions", "invalid_value", {"dimensions": 0}),
                ("priority", "invalid_value", {"priority": 1000}),
                ("stream", "unsupported_parameter", {"stream": True}),
                ("temperature", "unsupported_parameter", {"temperature": 0}),
                ("frobnicate", "unsupported_parameter", {"frobnicate": 1})):
            with self.subTest(pattern=pattern):
                self.refuse(pattern, code, **more)
        self.refuse("model", "model_not_found", 404, model="nobody")


class Ollama(EmbeddingsTest):
    def refuse_line(self, pattern, status=400, **more):
        answer = self.post("/api/embed", {**self.body(), **more})
        self.assertEqual(answer.status, status, answer.text)
        self.assertEqual(set(answer.json()), {"error"})
        self.assertRegex(answer.json()["error"], pattern)

    def test_same_vectors(self):
        texts = ["Hello there", "a"]
        answer = self.ok("/api/embed", self.body(texts, truncate=False, keep_alive="1m",
                                                 options={"num_ctx": N_CTX}))
        self.assertEqual(answer["embeddings"], self.embed(texts))
        self.assertEqual((answer["model"], answer["load_duration"]), (TINY, 0))
        self.assertGreater(answer["total_duration"], 1000)
        usage = self.ok("/v1/embeddings", self.body(texts))["usage"]
        self.assertEqual(answer["prompt_eval_count"], usage["prompt_tokens"])
        one = self.ok("/api/embed", {**self.body("a"), "model": f"{TINY}:latest"})
        self.assertEqual(one["embeddings"], answer["embeddings"][1:])
        self.assertEqual(one["model"], f"{TINY}:latest")

    def test_refusals(self):
        for pattern, more in (
                ("input", {"input": []}), ("input.0", {"input": [""]}), ("input", {"input": ""}),
                ("input.0", {"input": [5]}), ("input.0", {"input": [[5]]}),
                ("truncate", {"truncate": True}), ("options.num_ctx", {"options": {"num_ctx": 8}}),
                ("options.temperature", {"options": {"temperature": 1}}),
                ("dimensions", {"dimensions": 3}), ("frobnicate", {"frobnicate": 1})):
            with self.subTest(pattern=pattern):
                self.refuse_line(pattern, **more)
        self.refuse_line("nobody", 404, model="nobody")
        self.refuse_line(rf"\d{{3,}}.*{N_CTX}", input="word " * N_CTX)


if __name__ == "__main__":
    unittest.main()
