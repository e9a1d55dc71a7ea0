"""Keys and full servers as the official clients see them: each raises the exception that its own
service would give (401, 403, 429), and goes on when there is room again."""
import hashlib
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from serving import MODEL, MeteredServer, eventually, use_python_clients  # noqa: E402

use_python_clients()

import anthropic  # noqa: E402
import ollama  # noqa: E402
import openai  # noqa: E402

MESSAGES = [{"role": "user", "content": "Write a very long story about a dragon and a princess."}]
ROWS = (("free", "generate,metrics"), ("other", "generate"), ("single", "generate max_in_flight=1"),
        ("watcher", "metrics"))


class KeysTest(unittest.TestCase):
    WORDS = ()

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(holder.cleanup)
        path = Path(holder.name) / "keys"
        path.write_text("".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()} {more}\n"
                                for name, more in ROWS), encoding="ascii")
        path.chmod(0o600)
        cls.server = MeteredServer(MODEL, "--api-key-file", path, *cls.WORDS)
        cls.addClassCleanup(cls.server.stop)

    def openai(self, key):
        client = openai.OpenAI(base_url=f"{self.server.base}/v1", api_key=key, max_retries=0)
        self.addCleanup(client.close)
        return client

    def anthropic(self, key, **more):
        client = anthropic.Anthropic(base_url=self.server.base, api_key=key, max_retries=0, **more)
        self.addCleanup(client.close)
        return client

    def ollama(self, key):
        return ollama.Client(host=self.server.base, headers={"Authorization": f"Bearer {key}"})

    def ask_openai(self, key, **more):
        return self.openai(key).chat.completions.create(
            **{"model": MODEL, "messages": MESSAGES, "max_tokens": 4, **more})

    def ask_anthropic(self, key, **more):
        return self.anthropic(key, **more).messages.create(model=MODEL, messages=MESSAGES,
                                                           max_tokens=4)

    def ask_ollama(self, key):
        return self.ollama(key).chat(model=MODEL, messages=MESSAGES, options={"num_predict": 4})

    def endless(self, key):
        return self.ask_openai(key, max_tokens=3000, stream=True, extra_body={"ignore_eos": True})

    def waits_until_idle(self):
        eventually(lambda: self.server.is_idle("free"), "the engine is idle")


class Keys(KeysTest):
    def test_a_good_key_is_let_in(self):
        self.assertTrue(self.ask_openai("free").choices)
        self.assertTrue(self.ask_anthropic("free").content)
        by_field = anthropic.Anthropic(base_url=self.server.base, api_key=None,
                                       auth_token=None, max_retries=0,
                                       default_headers={"X-Api-Key": "free"})
        self.addCleanup(by_field.close)
        self.assertTrue(by_field.models.list().data)
        self.assertTrue(self.ask_ollama("free").done)

    def test_a_wrong_key_is_401_everywhere(self):
        for key in ("nobody", "Free", "free.", "fre"):
            with self.subTest(key=key):
                with self.assertRaises(openai.AuthenticationError) as caught:
                    self.ask_openai(key)
                self.assertEqual(caught.exception.code, "invalid_api_key")
                with self.assertRaises(openai.AuthenticationError):
                    self.openai(key).models.list()
        with self.assertRaises(anthropic.AuthenticationError) as caught:
            self.ask_anthropic("nobody")
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")
        with self.assertRaises(ollama.ResponseError) as caught:
            ollama.Client(host=self.server.base).list()
        self.assertEqual(caught.exception.status_code, 401)

    def test_a_key_without_the_scope_is_403(self):
        with self.assertRaises(openai.PermissionDeniedError):
            self.ask_openai("watcher")
        with self.assertRaises(anthropic.PermissionDeniedError):
            self.ask_anthropic("watcher")
        with self.assertRaises(ollama.ResponseError) as caught:
            self.ask_ollama("watcher")
        self.assertEqual(caught.exception.status_code, 403)

    def test_a_key_over_its_limit_is_429_until_it_has_room(self):
        stream = self.endless("single")
        next(iter(stream))
        with self.assertRaises(openai.RateLimitError) as caught:
            self.ask_openai("single")
        self.assertEqual((caught.exception.code, caught.exception.type),
                         ("too_many_requests", "rate_limit_error"))
        with self.assertRaises(anthropic.RateLimitError) as caught:
            self.ask_anthropic("single")
        self.assertEqual(caught.exception.body["error"]["type"], "rate_limit_error")
        with self.assertRaises(ollama.ResponseError) as caught:
            self.ask_ollama("single")
        self.assertEqual(caught.exception.status_code, 429)
        self.assertTrue(self.ask_openai("free").choices)  # another key is not touched
        stream.close()

        def is_let_in():
            try:
                return self.ask_openai("single").choices
            except openai.RateLimitError:
                return None
        eventually(is_let_in, "the key has room again")
        self.waits_until_idle()


class Full(KeysTest):
    WORDS = ("--parallel", 1, "--queue", 1)

    def test_a_full_queue_is_429_with_retry_after(self):
        running = self.endless("free")
        next(iter(running))
        found = []

        def wait_in_queue():
            with self.endless("free") as stream:
                found.append(next(iter(stream)))
        thread = threading.Thread(target=wait_in_queue)
        thread.start()
        eventually(lambda: self.server.metrics("free")["kr_requests_waiting"] == 1,
                   "a request waits")
        with self.assertRaises(openai.RateLimitError) as caught:
            self.ask_openai("other")  # "free" itself has all that one key may have
        self.assertEqual(caught.exception.code, "queue_full")
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
        with self.assertRaises(anthropic.RateLimitError) as caught:
            self.ask_anthropic("other")
        self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
        with self.assertRaises(ollama.ResponseError) as caught:
            self.ask_ollama("other")
        self.assertEqual(caught.exception.status_code, 429)
        running.close()
        thread.join(120)
        self.assertEqual(len(found), 1)  # it got its place
        self.waits_until_idle()
        self.assertTrue(self.ask_openai("free").choices)


if __name__ == "__main__":
    unittest.main()
