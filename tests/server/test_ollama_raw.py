"""The endpoints under /api/ over plain HTTP: NDJSON line by line, options, names with a tag,
refusals by name, errors in Ollama's form."""
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from dialect import DialectTest, TINY, N_CTX  # noqa: E402

USER = [{"role": "user", "content": "Hello"}]
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$")
FIGURES = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
           "eval_count", "eval_duration")


class OllamaTest(DialectTest):
    def options(self, **more):
        return {"temperature": 0, "num_predict": 8, **more}

    def chat_body(self, options=None, **more):
        return {"model": TINY, "messages": USER, "ignore_eos": True,
                "options": self.options(**(options or {})), **more}

    def generate_body(self, options=None, **more):
        return {"model": TINY, "prompt": "Hello", "ignore_eos": True,
                "options": self.options(**(options or {})), **more}

    def chat(self, options=None, **more):
        return self.ok("/api/chat", self.chat_body(options, stream=False, **more))

    def generate(self, options=None, **more):
        return self.ok("/api/generate", self.generate_body(options, stream=False, **more))

    def refuse(self, path, body, pattern, status=400):
        answer = self.post(path, body)
        self.assertEqual(answer.status, status, answer.text)
        refused = answer.json()
        self.assertEqual(set(refused), {"error"})
        self.assertRegex(refused["error"], pattern)


class Texts(OllamaTest):
    def check_last(self, last, n_generated, reason):
        self.assertIs(last["done"], True)
        self.assertEqual((last["done_reason"], last["eval_count"]), (reason, n_generated))
        for name in FIGURES:
            self.assertIsInstance(last[name], int)
        self.assertGreater(last["prompt_eval_count"], 0)
        self.assertGreater(last["total_duration"], last["eval_duration"])
        self.assertGreater(last["total_duration"], 1000)  # nanoseconds
        self.assertEqual(last["timings"]["n_generated"], n_generated)

    def test_chat_in_one_piece(self):
        answer = self.chat()
        self.assertEqual(answer["model"], TINY)
        self.assertRegex(answer["created_at"], TIME)
        self.assertEqual(set(answer["message"]), {"role", "content"})
        self.assertEqual(answer["message"]["role"], "assistant")
        self.assertTrue(answer["message"]["content"])
        self.check_last(answer, 8, "length")

    def test_generate_in_one_piece(self):
        answer = self.generate()
        self.assertTrue(answer["response"])
        self.assertNotIn("message", answer)
        self.check_last(answer, 8, "length")

    def test_streams_are_the_default(self):
        whole = self.chat()["message"]["content"]
        for more in ({}, {"stream": True}, {"stream": None}):
            *parts, last = self.lines("/api/chat", self.chat_body(**more))
            for part in parts:
                self.assertEqual(set(part), {"model", "created_at", "message", "done"})
                self.assertIs(part["done"], False)
                self.assertRegex(part["created_at"], TIME)
                self.assertTrue(part["message"]["content"])
            self.assertEqual("".join(part["message"]["content"] for part in parts), whole)
            self.assertEqual(last["message"], {"role": "assistant", "content": ""})
            self.check_last(last, 8, "length")
        whole = self.generate()["response"]
        *parts, last = self.lines("/api/generate", self.generate_body())
        self.assertEqual("".join(part["response"] for part in parts), whole)
        self.assertEqual(last["response"], "")
        self.check_last(last, 8, "length")

    def test_generate_is_a_chat_of_one_message(self):
        self.assertEqual(self.generate()["response"], self.chat()["message"]["content"])
        told = [{"role": "system", "content": "Be brief."}, *USER]
        self.assertEqual(self.generate(system="Be brief.")["response"],
                         self.chat(messages=told)["message"]["content"])
        self.assertEqual(self.generate(system="")["response"], self.generate()["response"])

    def test_raw(self):
        raw, bare = self.generate(raw=True), self.ok("/tokenize", {"content": "Hello"})
        self.assertEqual(raw["prompt_eval_count"], len(bare["tokens"]))
        self.assertLess(raw["prompt_eval_count"], self.generate()["prompt_eval_count"])

    def test_stop(self):
        text = self.generate({"num_predict": 24})["response"]
        stop = text[len(text) // 2:len(text) // 2 + 2]
        for stops in (stop, ["never said", stop]):
            answer = self.generate({"num_predict": 24, "stop": stops})
            self.assertEqual((answer["response"], answer["done_reason"]),
                             (text[:text.index(stop)], "stop"))

    def test_options_reach_the_sampler(self):
        def draw(**options):
            return self.generate({"temperature": 2, "top_k": 0, "top_p": 1, "seed": 5,
                                  "num_predict": 32, **options})["response"]
        drawn = draw()
        self.assertEqual(draw(), drawn)
        self.assertNotEqual(draw(seed=6), drawn)
        greedy = self.generate({"num_predict": 32})["response"]
        self.assertEqual(draw(top_k=1), greedy)
        self.assertEqual(draw(min_p=1), greedy)
        self.assertEqual(draw(top_p=1e-6), greedy)
        self.assertEqual(draw(typical_p=1), drawn)
        self.assertNotEqual(draw(repeat_penalty=2), drawn)
        self.assertEqual(draw(repeat_penalty=2, repeat_last_n=0), draw(repeat_penalty=1))
        self.assertNotEqual(draw(repeat_penalty=1, presence_penalty=2), draw(repeat_penalty=1))
        self.assertNotEqual(draw(repeat_penalty=1, frequency_penalty=2), draw(repeat_penalty=1))
        self.assertEqual(draw(seed=-1, temperature=0), greedy)

    def test_num_predict_and_num_ctx(self):
        for n in (-1, -2):
            answer = self.generate({"num_predict": n, "num_ctx": N_CTX})
            self.assertEqual(answer["prompt_eval_count"] + answer["eval_count"], N_CTX)
        self.refuse("/api/chat", self.chat_body({"num_ctx": N_CTX // 2}), "num_ctx.*" + str(N_CTX))
        self.refuse("/api/chat", self.chat_body({"num_predict": 0}), "num_predict")

    def test_accepted_and_not_used(self):
        plain = self.chat()["message"]["content"]
        for more in ({"keep_alive": "5m"}, {"keep_alive": -1}, {"keep_alive": 0}, {"format": ""},
                     {"think": False}, {"tools": []}, {"truncate": False}, {"priority": 3}):
            with self.subTest(more):
                self.assertEqual(self.chat(**more)["message"]["content"], plain)

    def test_an_empty_prompt_loads(self):
        for path, body in (("/api/chat", {"model": TINY}),
                           ("/api/chat", {"model": TINY, "messages": []}),
                           ("/api/generate", {"model": TINY}),
                           ("/api/generate", {"model": TINY, "prompt": "", "keep_alive": "1h"})):
            answer = self.ok(path, body)
            self.assertEqual((answer["done"], answer["done_reason"]), (True, "load"))
        self.refuse("/api/generate", {"model": TINY, "keep_alive": 0}, "keep_alive")
        self.refuse("/api/chat", {"model": TINY, "keep_alive": "0s"}, "keep_alive")

    def test_late_failure_is_a_line(self):
        lines = self.late_failure("/api/chat", self.chat_body({"num_predict": 400}))
        self.assertEqual(set(lines[-1]), {"error"})
        self.assertFalse(any(line.get("done") for line in lines))


class Lists(OllamaTest):
    def test_tags_show_ps_version(self):
        model, = self.ok("/api/tags")["models"]
        self.assertEqual((model["name"], model["model"]), (f"{TINY}:latest",) * 2)
        self.assertEqual(model["size"], self.model_path.stat().st_size)
        self.assertRegex(model["digest"], "^[0-9a-f]{64}$")
        self.assertRegex(model["modified_at"], TIME)
        details = model["details"]
        self.assertEqual((details["family"], details["families"], details["format"]),
                         ("llama", ["llama"], "gguf"))
        self.assertEqual(details["quantization_level"], "F32")
        self.assertRegex(details["parameter_size"], r"^\d+\.\d\d[KMB]$")
        running, = self.ok("/api/ps")["models"]
        self.assertEqual((running["digest"], running["context_length"], running["size_vram"]),
                         (model["digest"], N_CTX, 0))
        self.assertIn("expires_at", running)
        for name in (TINY, f"{TINY}:latest"):
            shown = self.ok("/api/show", {"model": name, "verbose": True})
            self.assertEqual(shown["details"], details)
            self.assertIn("<|im_start|>", shown["template"])
            self.assertIn("completion", shown["capabilities"])
            info = shown["model_info"]
            self.assertEqual((info["general.architecture"], info["llama.context_length"],
                              info["llama.embedding_length"]), ("llama", 512, 64))
            self.assertNotIn(str(self.model_path.parent), str(shown))
        self.assertRegex(self.ok("/api/version")["version"], r"^\d+\.\d+\.\d+$")

    def test_names_with_a_tag(self):
        body = self.chat_body(stream=False)
        plain = self.ok("/api/chat", body)
        tagged = self.ok("/api/chat", {**body, "model": f"{TINY}:latest"})
        self.assertEqual(tagged["message"], plain["message"])
        self.assertEqual(tagged["model"], f"{TINY}:latest")  # as it was asked for
        for name in (f"{TINY}:7b", ":latest", f"{TINY}:latest:latest", "x" * 255):
            self.refuse("/api/chat", {**body, "model": name}, "not found", 404)


class Refusals(OllamaTest):
    def test_fields_of_both(self):
        for pattern, more in (
                ("frobnicate", {"frobnicate": 1}), ("stream", {"stream": 1}),
                ("format", {"format": "json"}), ("format", {"format": {"type": "object"}}),
                ("think", {"think": True}), ("think", {"think": "high"}),
                ("logprobs", {"logprobs": True}), ("top_logprobs", {"top_logprobs": 2}),
                ("truncate", {"truncate": True}), ("shift", {"shift": True}),
                ("keep_alive", {"keep_alive": []}), ("options", {"options": []}),
                ("model", {"model": ""}), ("model", {"model": 5}), ("model", {"model": None}),
                ("priority", {"priority": 101})):
            for path, body in (("/api/chat", self.chat_body()),
                               ("/api/generate", self.generate_body())):
                with self.subTest(path=path, more=more):
                    self.refuse(path, {**body, **more}, pattern)

    def test_options(self):
        for name, values in (
                ("temperature", (-0.1, 2.1, "1")), ("top_k", (-2, 1.5)), ("top_p", (0, 1.1)),
                ("min_p", (-0.1, 1.1)), ("typical_p", (0, 1.1)), ("repeat_penalty", (0, 2.1)),
                ("presence_penalty", (-2.1, 2.1)), ("frequency_penalty", (-2.1, 2.1)),
                ("repeat_last_n", (-2, 1 << 21)), ("seed", (1.5, "a")), ("num_predict", (-3,)),
                ("num_ctx", (0, 7)), ("stop", ([""], 5, ["a"] * 17)), ("mirostat", (1, 2)),
                ("penalize_newline", (False,)), ("num_gpu", (1,)), ("num_thread", (4,)),
                ("num_batch", (512,)), ("num_keep", (4,)), ("use_mmap", (True,)),
                ("mirostat_tau", (5.0,)), ("frobnicate", (1,))):
            for value in values:
                with self.subTest(name=name, value=value):
                    self.refuse("/api/generate", self.generate_body({name: value}),
                                rf"\b{name}\b")

    def test_messages(self):
        for pattern, message in (
                ("messages.0.images", {"role": "user", "content": "a", "images": ["aGk="]}),
                ("messages.0.tool_calls", {"role": "assistant", "content": "",
                                           "tool_calls": [{"function": {"name": "f"}}]}),
                ("messages.0.role", {"role": "tool", "content": "a"}),
                ("messages.0.role", {"content": "a"}), ("messages.0.content", {"role": "user"}),
                ("messages.0.content", {"role": "user", "content": []}),
                ("messages.0.thinking", {"role": "assistant", "content": "a", "thinking": "b"}),
                ("messages.0.name", {"role": "user", "content": "a", "name": "b"}),
                ("messages.0", "Hello")):
            with self.subTest(pattern=pattern):
                self.refuse("/api/chat", self.chat_body(messages=[message]), pattern)
        tool = {"type": "function", "function": {"name": "f"}}
        self.refuse("/api/chat", self.chat_body(tools=[tool]), "tools")
        self.refuse("/api/chat", self.chat_body(messages=[USER[0]] * 2049), "messages")

    def test_prompts(self):
        for pattern, more in (
                ("images", {"images": ["aGk="]}), ("suffix", {"suffix": "end"}),
                ("template", {"template": "{{ .Prompt }}"}), ("context", {"context": [1, 2]}),
                ("prompt", {"prompt": ["a"]}), ("system", {"system": 5}),
                ("system", {"system": "a", "raw": True}), ("raw", {"raw": "yes"})):
            with self.subTest(pattern=pattern):
                self.refuse("/api/generate", self.generate_body(**more), pattern)

    def test_unknown_model(self):
        for path, more in (("/api/chat", {"messages": USER}), ("/api/generate", {"prompt": "a"}),
                           ("/api/show", {})):
            self.refuse(path, {"model": "nobody", **more}, "nobody", 404)
            self.refuse(path, more, "model")

    def test_show(self):
        self.refuse("/api/show", {"model": TINY, "frobnicate": 1}, "frobnicate")
        self.refuse("/api/show", {"model": TINY, "verbose": 1}, "verbose")

    def test_overlong_prompt_gives_the_numbers(self):
        self.refuse("/api/generate", self.generate_body(prompt="word " * 600),
                    rf"\d{{3,}}.*{N_CTX}")

    def test_methods_and_routes(self):
        for method, path, allowed in (("GET", "/api/chat", "POST"), ("POST", "/api/tags", "GET")):
            answer = self.call(method, path, {} if method == "POST" else None)
            self.assertEqual(answer.status, 405)
            self.assertIn(allowed, answer.headers["Allow"])
            self.assertEqual(set(answer.json()), {"error"})
        for path in ("/api/pull", "/api/create", "/api/delete", "/api/blobs/sha256"):
            answer = self.post(path, {})
            self.assertEqual(answer.status, 404)
            self.assertEqual(set(answer.json()), {"error"})


if __name__ == "__main__":
    unittest.main()
