"""`kr runtime` over stdio: every method, its fields and its errors."""
import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from runtime_program import Runtime, RuntimeTest, entries, text_of  # noqa: E402
from serve_program import make_tiny  # noqa: E402

FIXED = {"model_id": "llama", "temperature": 0, "seed": 1, "ignore_eos": True}


class Methods(RuntimeTest, unittest.TestCase):
    def assert_error(self, code, kr_status, param, method, **params):
        error = self.client.fail(method, **params)
        self.assertEqual((error["code"], error["data"]["kr_status"], error["data"]["param"]),
                         (code, kr_status, param), error)
        if code == -32602:
            self.assertIn(param.split(".")[-1], error["message"])
        return error

    # ---- the runtime

    def test_info(self):
        info = self.client.call("runtime/info", protocol_version=1)
        self.assertEqual((info["protocol"], info["protocol_version"], info["pid"]),
                         ("json-rpc-2.0", 1, self.runtime.process.pid))
        self.assertGreater(info["memory"]["vms"], info["memory"]["rss"])
        self.assertGreater(info["memory"]["rss"], 1 << 20)
        for name in ("generate", "batch_tokenize", "batch_check_draft", "batch_generate",
                     "runtime/telemetry", "cancel", "embed", "chat"):
            self.assertIn(name, info["capabilities"])
        self.assert_error(-32602, 4, "protocol_version", "runtime/info", protocol_version=2)
        self.assert_error(-32602, 1, "protocol_version", "runtime/info", protocol_version="1")

    def test_every_capability_is_a_method(self):
        for name in self.client.call("runtime/info")["capabilities"]:
            error = self.client.fail(name, no_such_field=1)
            self.assertNotEqual(error["code"], -32601, name)
            self.assertEqual(error["code"], -32602, error)

    def test_state(self):
        state = self.client.call("runtime/state")
        self.assertEqual(state["loaded_models"],
                         [{"model_id": "llama", "state": "ready", "type": "text"}])
        self.assertEqual((state["active_streams"], state["clients"]), (0, 1))
        self.client.call("generate", **FIXED, prompt="a", stream_id="state", max_tokens=100,
                         credits=1)
        self.assertEqual(self.client.call("runtime/state")["active_streams"], 1)
        self.client.call("cancel", stream_id="state")
        self.client.end_of("state")
        self.assertEqual(self.client.call("runtime/state")["active_streams"], 0)

    def test_telemetry_moves(self):
        before = self.client.call("runtime/telemetry")
        self.client.call("tokenize", model_id="llama", text="hello")
        self.client.call("generate", **FIXED, prompt="a", max_tokens=7, stream=False)
        self.client.fail("tokenize", model_id="none", text="hello")
        self.client.fail("generate", **FIXED, prompt="a", max_tokens=400, timeout_ms=1,
                         stream=False)
        after = self.client.call("runtime/telemetry")
        self.assertTrue(after["enabled"])
        for part, n in (("generation", 1), ("tokenization", 1)):
            self.assertEqual(after[part]["calls"], before[part]["calls"] + n)
            figures = after[part]["latency_ms"]
            self.assertLessEqual(figures["min"], figures["p50"] * 33 / 32)
            self.assertLessEqual(figures["p50"], figures["p99"])
            self.assertGreater(figures["max"], 0)
        # The one that timed out may have given some, too.
        self.assertGreaterEqual(after["generation"]["total_tokens"],
                                before["generation"]["total_tokens"] + 7)
        self.assertEqual(after["errors"]["total"], before["errors"]["total"] + 2)
        self.assertEqual(after["errors"]["timeouts"], before["errors"]["timeouts"] + 1)
        self.assertGreater(after["errors"]["error_rate"], 0)
        self.assertGreater(after["engine"]["tokens_generated"]["value"], 0)

    def test_unknown_and_unbuilt_methods(self):
        error = self.assert_error(-32601, 2, "method", "no/such")
        self.assertEqual(error["data"]["type"], "MethodNotFound")
        for name in ("load_vision_model", "generate_with_image"):
            self.assertIn("vision is not built", self.assert_error(-32601, 4, "method",
                                                                   name)["message"])

        for name, words in (("load_draft_model", "draft true"),
                            ("batch_generate_parallel", "batch_generate"),
                            ("continuous_generate", "use generate"),
                            ("get_batcher_metrics", "runtime/telemetry"),
                            ("get_batcher_health", "runtime/state"),
                            ("get_week4_metrics", "runtime/telemetry")):
            self.assertIn(words, self.assert_error(-32601, 4, "method", name)["message"])

    def test_special_tokens(self):
        model = self.client.call("list_models")["models"][0]
        with_bos = self.client.call("tokenize", model_id="llama", text="a")["tokens"]
        plain = self.client.call("tokenize", model_id="llama", text="a",
                                 add_special_tokens=False)["tokens"]
        self.assertEqual(set(model["special_tokens"]), {"bos", "eos"})
        self.assertLess(model["special_tokens"]["eos"], model["vocab_size"])
        if with_bos != plain:
            self.assertEqual(with_bos, [model["special_tokens"]["bos"], *plain])

    # ---- text

    def test_tokenize_and_back(self):
        got = self.client.call("tokenize", model_id="llama", text="Hello world")
        self.assertEqual("".join(got["token_strings"]), "Hello world")
        self.assertEqual(len(got["tokens"]), len(got["token_strings"]))
        self.assertEqual(self.client.call("detokenize", model_id="llama", tokens=got["tokens"]),
                         {"text": "Hello world"})
        self.assertEqual(self.client.call("count_tokens", model_id="llama", text="Hello world"),
                         {"count": len(got["tokens"])})
        plain = self.client.call("tokenize", model_id="llama", text="Hello world",
                                 token_strings=False)
        self.assertEqual(plain, {"tokens": got["tokens"]})
        self.assertEqual(self.client.call("tokenize", model_id="llama", text="",
                                          add_special_tokens=False)["tokens"], [])
        chat = self.client.call("count_tokens", model_id="llama",
                                messages=[{"role": "user", "content": "Hello world"}])
        self.assertGreater(chat["count"], len(got["tokens"]))

    def test_a_long_text(self):
        text = "word " * 100000  # lesson 1: no limit of 64 KiB anywhere
        got = self.client.call("tokenize", model_id="llama", text=text)
        self.assertEqual("".join(got["token_strings"]), text)

    def test_text_errors(self):
        self.assert_error(-32602, 1, "text", "tokenize", model_id="llama")
        self.assert_error(-32602, 1, "text", "tokenize", model_id="llama", text=1)
        self.assert_error(-32602, 1, "model_id", "tokenize", text="a")
        self.assert_error(-32602, 1, "model_id", "tokenize", model_id="../x", text="a")
        self.assert_error(-32602, 1, "model_id", "tokenize", model_id="", text="a")
        self.assert_error(-32602, 4, "color", "tokenize", model_id="llama", text="a", color=1)
        self.assert_error(-32602, 1, "add_special_tokens", "tokenize", model_id="llama", text="a",
                          add_special_tokens="yes")
        error = self.assert_error(-32005, 2, "model_id", "tokenize", model_id="other", text="a")
        self.assertEqual((error["data"]["type"], error["data"]["model_id"]),
                         ("ModelNotLoaded", "other"))
        self.assert_error(-32602, 1, "tokens.1", "detokenize", model_id="llama", tokens=[1, -1])
        self.assert_error(-32602, 1, "text", "count_tokens", model_id="llama")
        self.assert_error(-32602, 1, "messages.0.role", "count_tokens", model_id="llama",
                          messages=[{"role": "robot", "content": "a"}])
        error = self.client.fail("detokenize", model_id="llama", tokens=[100000])
        self.assertIn(error["code"], (-32003, -32602))

    # ---- generations

    def test_stream(self):
        result = self.client.call("generate", **FIXED, prompt="Hello", max_tokens=20,
                                  stream_id="one")
        self.assertEqual(result["stream_id"], "one")
        self.assertGreater(result["started_at"], 1.6e9)
        got = self.client.end_of("one")
        kinds = [kind for kind, _ in got]
        self.assertEqual(kinds[-2:], ["stream.stats", "stream.event"])
        self.assertEqual(set(kinds[:-2]), {"stream.chunk"})
        tokens = entries(got)
        self.assertEqual([entry["is_final"] for entry in tokens],
                         [False] * (len(tokens) - 1) + [True])
        stats = got[-2][1]
        self.assertEqual(stats["tokens_generated"], 20)
        self.assertEqual(sum("token_id" in entry for entry in tokens), 20)
        self.assertLessEqual(stats["time_to_first_token"], stats["total_time"])
        self.assertGreater(stats["prompt_tokens"], 0)
        self.assertEqual(got[-1][1], {"stream_id": "one", "event": "completed",
                                      "finish_reason": "length", "is_final": True})
        whole = self.client.call("generate", **FIXED, prompt="Hello", max_tokens=20, stream=False)
        self.assertEqual(whole["text"], text_of(got))
        self.assertEqual(whole["finish_reason"], "length")
        self.assertEqual(whole["stats"]["tokens_generated"], 20)

    def test_stream_ids_are_made(self):
        first = self.client.call("generate", **FIXED, prompt="a", max_tokens=1)["stream_id"]
        second = self.client.call("generate", **FIXED, prompt="a", max_tokens=1)["stream_id"]
        self.assertNotEqual(first, second)
        self.assertRegex(first, r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                                r"[0-9a-f]{12}$")
        self.client.end_of(first)
        self.client.end_of(second)

    def test_sampling_fields_count(self):
        """Lesson 16: what is accepted is honoured."""
        base = {"model_id": "llama", "prompt": "Hello there", "max_tokens": 24, "stream": False,
                "seed": 3, "temperature": 1.5, "ignore_eos": True}
        text = self.client.call("generate", **base)["text"]
        self.assertEqual(self.client.call("generate", **base)["text"], text)
        for change in ({"seed": 4}, {"temperature": 0}, {"top_p": 0.1}, {"top_k": 1},
                       {"min_p": 0.9}, {"repetition_penalty": 2}, {"presence_penalty": 2},
                       {"frequency_penalty": 2}, {"typical_p": 0.05},
                       {"logit_bias": {"101": 100}}):
            changed = self.client.call("generate", **{**base, **change})["text"]
            self.assertNotEqual(changed, text, change)
        tokens = self.client.call("tokenize", model_id="llama", text="Hello there")["tokens"]
        by_tokens = {**base, "prompt_tokens": tokens}
        del by_tokens["prompt"]
        self.assertEqual(self.client.call("generate", **by_tokens)["text"], text)

    def test_stop_strings_and_tokens(self):
        base = {**FIXED, "prompt": "Hello", "max_tokens": 60}
        self.client.call("generate", **base, stream_id="free")
        free = self.client.end_of("free")
        text, tokens = text_of(free), entries(free)
        stop = text[len(text) // 2:][:3]
        got = self.client.call("generate", **base, stop_sequences=[stop], stream=False)
        self.assertEqual((got["text"], got["finish_reason"]), (text.split(stop)[0], "stop"))
        ids = [entry["token_id"] for entry in tokens]
        at = next(i for i in range(10, len(ids)) if ids[i] not in ids[:i])
        for stream in (False, True):
            number = self.client.send("generate", **base, stop_token_ids=[ids[at]], stream=stream,
                                      stream_id="stopped")
            result = self.client.answer(number)
            if stream:
                ended = self.client.end_of("stopped")
                self.assertEqual(ended[-1][1]["finish_reason"], "stop")
                self.assertEqual([e["token_id"] for e in entries(ended) if "token_id" in e],
                                 ids[:at])
                self.assertEqual(ended[-2][1]["tokens_generated"], at)
            else:
                self.assertEqual((result["finish_reason"], result["stats"]["tokens_generated"]),
                                 ("stop", at))
                self.assertTrue(text.startswith(result["text"].rstrip("\ufffd")))

    def test_logprobs(self):
        self.client.call("generate", **FIXED, prompt="Hello", max_tokens=5, logprobs=True,
                         top_logprobs=3, stream_id="probs")
        tokens = [e for e in entries(self.client.end_of("probs")) if "token_id" in e]
        self.assertEqual(len(tokens), 5)
        for entry in tokens:
            tops = entry["top_logprobs"]
            self.assertEqual(len(tops), 3)
            self.assertEqual((tops[0]["token_id"], tops[0]["logprob"]),
                             (entry["token_id"], entry["logprob"]))
            self.assertLess(entry["logprob"], 0)
        self.assert_error(-32602, 1, "top_logprobs", "generate", **FIXED, prompt="a",
                          top_logprobs=1)

    def test_chat(self):
        got = self.client.call("chat", **FIXED, messages=[{"role": "user", "content": "Hello"}],
                               max_tokens=10, stream=False)
        plain = self.client.call("generate", **FIXED, prompt="Hello", max_tokens=10, stream=False)
        self.assertGreater(got["stats"]["prompt_tokens"], plain["stats"]["prompt_tokens"])
        self.assert_error(-32602, 1, "messages", "chat", **FIXED)
        self.assert_error(-32602, 1, "messages", "chat", **FIXED, messages=[])
        self.assert_error(-32602, 1, "messages.0.content", "chat", **FIXED,
                          messages=[{"role": "user"}])

    def test_generate_errors(self):
        good = {"model_id": "llama", "prompt": "a"}
        for field, value in (("max_tokens", 0), ("max_tokens", 100001), ("max_tokens", "5"),
                             ("temperature", 2.1), ("temperature", "hot"), ("top_p", 0),
                             ("top_p", 1.5), ("seed", -1), ("stop_sequences", "x"),
                             ("stop_token_ids", "x"), ("stream", 1), ("stream_id", ""),
                             ("stream_id", "x" * 129), ("credits", 0), ("timeout_ms", 0),
                             ("priority", "soon"), ("logit_bias", {"x": 1}), ("min_p", -0.1),
                             ("repetition_penalty", 0), ("presence_penalty", 3), ("top_k", -2)):
            self.assert_error(-32602, 1, field, "generate", **good, **{field: value})
        self.assert_error(-32602, 1, "stop_sequences.0", "generate", **good, stop_sequences=[""])
        self.assert_error(-32602, 1, "prompt", "generate", model_id="llama")
        self.assert_error(-32602, 1, "prompt", "generate", **good, prompt_tokens=[1])
        self.assert_error(-32602, 1, "credits", "generate", **good, credits=1, stream=False)
        for field, value in (("draft_model", "x"), ("n", 2), ("tools", [{}]), ("images", ["x"]),
                             ("no_such", 1)):
            self.assert_error(-32602, 4, field, "generate", **good, **{field: value})
        error = self.client.fail("generate", **good, guidance={"mode": "json_schema"})
        self.assertEqual((error["code"], error["data"]["kr_status"], error["data"]["type"]),
                         (-32004, 4, "GuidanceError"))
        self.assert_error(-32005, 2, "model_id", "generate", model_id="x", prompt="a")
        error = self.client.fail("generate", **good | {"prompt": "word " * 600})
        self.assertEqual((error["code"], error["data"]["kr_status"]), (-32002, 18))
        error = self.client.fail("generate", model_id="llama", prompt_tokens=[5000])
        self.assertEqual((error["code"], error["data"]["param"]), (-32602, "prompt_tokens"))

    def test_a_live_stream_id_is_refused(self):
        self.client.call("generate", **FIXED, prompt="a", stream_id="twice", max_tokens=100,
                         credits=1)
        self.assert_error(-32602, 3, "stream_id", "generate", **FIXED, prompt="a",
                          stream_id="twice")
        self.client.call("cancel", stream_id="twice")
        self.client.end_of("twice")

    def test_timeout(self):
        self.client.call("generate", **FIXED, prompt="a", stream_id="late", max_tokens=100,
                         credits=1, timeout_ms=300)
        event = self.client.end_of("late")[-1][1]
        self.assertEqual((event["event"], event["finish_reason"], event["error"]["data"]["type"]),
                         ("error", "timeout", "Timeout"))

    # ---- embeddings, drafts, batches

    def test_embed(self):
        one = self.client.call("embed", model_id="llama", input="Hello")
        self.assertEqual(len(one["embeddings"]), 1)
        self.assertEqual(len(one["embeddings"][0]), one["dimensions"])
        self.assertAlmostEqual(sum(x * x for x in one["embeddings"][0]), 1, 4)
        two = self.client.call("embed", model_id="llama", input=["Other", "Hello"])
        self.assertEqual(two["embeddings"][1], one["embeddings"][0])
        self.assertGreater(two["prompt_tokens"], one["prompt_tokens"])
        last = self.client.call("embed", model_id="llama", input="Hello", pooling="last",
                                normalize=False)
        self.assertNotEqual(last["embeddings"], one["embeddings"])
        self.assert_error(-32602, 1, "input", "embed", model_id="llama", input=[])
        self.assert_error(-32602, 1, "input", "embed", model_id="llama", input=["a", 1])
        self.assert_error(-32602, 1, "pooling", "embed", model_id="llama", input="a",
                          pooling="max")
        error = self.client.fail("embed", model_id="llama", input=["a", "word " * 600])
        self.assertEqual((error["code"], error["data"]["kr_status"]), (-32002, 18))

    def test_check_draft(self):
        report = self.client.call("check_draft", primary_id="llama", draft_id="llama")
        self.assertEqual((report["compatible"], report["errors"]), (True, []))
        self.assertEqual(report["details"]["performance_estimate"]["size_ratio"], "100.0%")
        self.assertEqual(len(report["warnings"]), 1)
        side = report["details"]["primary_model"]
        self.assertEqual((side["vocab_size"], side["architecture"]), (320, "llama"))
        self.assertGreater(side["parameter_count"], 0)
        self.assert_error(-32005, 2, "model_id", "check_draft", primary_id="llama", draft_id="x")

    def test_batches_keep_order_and_codes(self):
        """Lesson 37: every item has its own code."""
        good = {"model_id": "llama", "text": "Hello"}
        got = self.client.call("batch_tokenize", requests=[
            good, {**good, "model_id": "x"}, {**good, "text": 5}, 7, good])["results"]
        self.assertEqual([item["success"] for item in got], [True, False, False, False, True])
        self.assertEqual(got[0]["result"], self.client.call("tokenize", **good))
        self.assertIsNone(got[0]["error"])
        self.assertIsNone(got[1]["result"])
        self.assertEqual([item["error"]["code"] for item in got[1:4]], [-32005, -32602, -32602])
        self.assertEqual(got[2]["error"]["data"]["param"], "requests.2.text")
        self.assertEqual(got[3]["error"]["data"]["param"], "requests.3")
        drafts = self.client.call("batch_check_draft", requests=[
            {"primary_id": "llama", "draft_id": "llama"}, {"primary_id": "llama"}])["results"]
        self.assertTrue(drafts[0]["result"]["compatible"])
        self.assertEqual(drafts[1]["error"]["code"], -32602)
        vectors = self.client.call("batch_embed", requests=[
            {"model_id": "llama", "input": "a"}, {"model_id": "llama", "input": ""},
            {"model_id": "llama", "input": ["a", "b"]}])["results"]
        self.assertEqual(vectors[0]["result"]["embeddings"][0],
                         vectors[2]["result"]["embeddings"][0])
        self.assertEqual(vectors[1]["error"]["data"]["param"], "requests.1.input")
        for bad in ([], [good] * 65, "x"):
            self.assert_error(-32602, 1, "requests", "batch_tokenize", requests=bad)
        self.assertEqual(len(self.client.call("batch_tokenize",
                                              requests=[good] * 64)["results"]), 64)

    def test_batch_generate(self):
        requests = [{**FIXED, "prompt": f"text {i}", "max_tokens": 12, "stream_id": f"b{i}"}
                    for i in range(6)]
        requests[3] = {**requests[3], "temperature": 9}
        requests[4] = {**requests[4], "stream": False}
        del requests[5]["stream_id"]
        got = self.client.call("batch_generate", requests=requests)["results"]
        self.assertEqual([item["success"] for item in got],
                         [True, True, True, False, True, False])
        self.assertEqual(got[3]["error"]["data"]["param"], "requests.3.temperature")
        self.assertEqual(got[5]["error"]["data"]["param"], "requests.5.stream_id")
        for i in range(3):
            self.assertEqual(got[i]["result"]["stream_id"], f"b{i}")
            alone = self.client.call("generate", **{**requests[i], "stream": False,
                                                    "stream_id": f"alone{i}"})
            self.assertEqual(text_of(self.client.end_of(f"b{i}")), alone["text"])
        self.assertEqual(got[4]["result"]["finish_reason"], "length")

    # ---- models

    def test_load_and_unload(self):
        other = make_tiny(self.runtime.folder / "other.gguf", "qwen2")
        got = self.client.call("load_model", model_id="other", local_path=str(other),
                               context_length=128)
        self.assertEqual((got["model_id"], got["state"], got["context_length"],
                          got["architecture"], got["is_vision_model"]),
                         ("other", "ready", 128, "qwen2", False))
        again = self.client.call("load_model", model_id="other", local_path=str(other))
        self.assertEqual(again, got)
        self.assert_error(-32001, 3, "context_length", "load_model", model_id="other",
                          context_length=64)
        names = [model["model_id"] for model in self.client.call("list_models")["models"]]
        self.assertEqual(sorted(names), ["llama", "other"])
        report = self.client.call("check_draft", primary_id="llama", draft_id="other")
        self.assertIn("the architectures differ", report["warnings"])
        self.client.call("generate", **{**FIXED, "model_id": "other"}, prompt="a",
                         max_tokens=100, credits=1, stream_id="held")
        self.assert_error(-32000, 14, "force", "unload_model", model_id="other")
        self.assertEqual(self.client.call("unload_model", model_id="other", force=True),
                         {"success": True, "unloaded": True})
        event = self.client.end_of("held")[-1][1]
        self.assertEqual((event["finish_reason"], event["error"]["code"]), ("shutdown", -32000))
        self.assertEqual(self.client.call("unload_model", model_id="other"),
                         {"success": True, "unloaded": False})
        self.assert_error(-32005, 2, "model_id", "tokenize", model_id="other", text="a")

    def test_load_errors(self):
        path = self.runtime.folder / "broken.gguf"
        path.write_bytes(self.runtime.model.read_bytes()[:5000])
        for local_path, status in ((path, 6), (self.runtime.folder / "none.gguf", 2)):
            error = self.client.fail("load_model", model_id="b", local_path=str(local_path))
            self.assertEqual((error["code"], error["data"]["kr_status"],
                              error["data"]["type"], error["data"]["model_id"]),
                             (-32001, status, "ModelLoadError", "b"))
        self.assert_error(-32602, 1, "local_path", "load_model", model_id="b", local_path="a/../b")
        self.assert_error(-32602, 1, "local_path", "load_model", model_id="b", local_path="~/b")
        for field, value in (("quantization", "int4"), ("revision", "v2"),
                             ("trust_remote_code", True), ("lazy", True)):
            self.assert_error(-32602, 4, field, "load_model", model_id="b", **{field: value})
        self.client.call("load_model", model_id="llama", revision="main", quantization="none",
                         trust_remote_code=False)

    # ---- messages

    def test_notifications_are_not_answered(self):
        before = len(self.client.answers)
        self.client.notify("tokenize", model_id="llama", text="a")
        self.client.notify("no/such")
        self.client.notify("generate", **FIXED, prompt="a", stream_id="quiet", max_tokens=3)
        self.assertEqual(self.client.end_of("quiet")[-1][1]["event"], "completed")
        self.client.call("runtime/state")
        self.assertEqual(len(self.client.answers), before + 1)
        self.assertEqual(self.client.others, [])

    def test_json_rpc_batches(self):
        calls = [{"jsonrpc": "2.0", "id": "a", "method": "count_tokens",
                  "params": {"model_id": "llama", "text": "x"}},
                 {"jsonrpc": "2.0", "method": "runtime/state"},
                 {"jsonrpc": "2.0", "id": "b", "method": "generate",
                  "params": {**FIXED, "prompt": "a", "max_tokens": 4, "stream": False}},
                 {"jsonrpc": "2.0", "id": "c", "method": "nope"}, 5]
        self.client.send_line(json.dumps(calls) + "\n")
        got = self.client.other()
        self.assertEqual([item["id"] for item in got], ["a", "b", "c", None])
        self.assertEqual(got[0]["result"]["count"] > 0, True)
        self.assertEqual(got[1]["result"]["finish_reason"], "length")
        self.assertEqual([item["error"]["code"] for item in got[2:]], [-32601, -32600])
        for bad in ([], [calls[0]] * 65):
            self.client.send_line(json.dumps(bad) + "\n")
            self.assertEqual(self.client.other()["error"]["code"], -32600)


class NoModel(unittest.TestCase):
    def test_starts_empty_and_loads(self):
        runtime = Runtime(model=None)
        try:
            client = runtime.client
            self.assertEqual(client.call("list_models"), {"models": []})
            # Lesson 6: while it loads others are answered.
            numbers = [client.send("load_model", model_id="m", local_path=str(runtime.model))]
            numbers += [client.send("runtime/state") for _ in range(20)]
            for number in reversed(numbers):
                client.answer(number)
            got = client.call("generate", model_id="m", prompt="a", max_tokens=3, stream=False)
            self.assertIn(got["finish_reason"], ("length", "eos"))
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime.process.poll() is None:
                runtime.kill()


if __name__ == "__main__":
    unittest.main()
