"""Shared memory of `kr runtime`: named segments over stdio, descriptors over its Unix socket; bad
ones, and what is left when a side is killed."""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import shm_segments as shm  # noqa: E402
from runtime_program import Runtime, RuntimeTest  # noqa: E402
from serve_program import KR, WAIT_S, environment, eventually  # noqa: E402

LEAST = 4096
TEXT = "the quick brown fox jumps over the lazy dog. " * 400


class Named(RuntimeTest, unittest.TestCase):
    def setUp(self):
        info = self.client.call("runtime/info", shared_memory={"min_bytes": LEAST})
        self.assertEqual({**info["shared_memory"]},
                         {"enabled": True, "kind": "posix", "version": 1, "min_bytes": LEAST,
                          "segment_bytes": 256 << 20, "segments": 64})

    def tearDown(self):
        self.assertEqual(shm.left(self.runtime.process.pid), [])
        self.assertEqual(shm.left(os.getpid()), [])

    generation = 0

    @classmethod
    def make(cls, dtype, values, shape=None, name=None, **changes):
        cls.generation += 1
        descriptor, payload = shm.describe(dtype, values, cls.generation, shape)
        return shm.make_named(descriptor, payload, name, **changes)

    def counts(self):
        return self.client.call("runtime/telemetry")["shared_memory"]

    def test_handshake(self):
        for bad, param in ((True, "shared_memory"), ({"min_bytes": 1}, "shared_memory.min_bytes"),
                           ({"min_bytes": "1"}, "shared_memory.min_bytes"),
                           ({"size": 1}, "shared_memory.size")):
            error = self.client.fail("runtime/info", shared_memory=bad)
            self.assertEqual((error["code"], error["data"]["param"]), (-32602, param))

    def test_a_tensor_there_and_back(self):
        before = self.counts()
        values = [i / 8 for i in range(500000)]
        sent = self.make("f32", values, [1000, 500])
        tensor = self.client.call("runtime/echo", tensor=sent)["tensor"]
        self.assertFalse(os.path.exists(shm.FOLDER + sent["name"]))
        self.assertEqual((tensor["dtype"], tensor["shape"], tensor["bytes"]),
                         ("f32", [1000, 500], 2000000))
        self.assertEqual(shm.take_named(tensor).tolist(), values)
        after = self.counts()
        moved = {name: after[name] - before[name] for name in after}
        self.assertEqual(moved, {"segments_out": 1, "bytes_out": 2000000, "segments_in": 1,
                                 "bytes_in": 2000000, "copies": 1, "fallbacks": 0, "refused": 0,
                                 "swept": 0})

    def test_every_type_and_the_same_as_json(self):
        for dtype, values in (("u8", [0, 255] * 3000), ("i32", [-2**31, 2**31 - 1] * 3000),
                              ("f32", [0.5, -1e30] * 3000)):
            whole = {"dtype": dtype, "shape": [2, 3000], "data": values}
            given = self.client.call("runtime/echo", tensor=whole)["tensor"]
            taken = shm.take_named(given)
            again = self.client.call(
                "runtime/echo", tensor=self.make(dtype, taken, [2, 3000]))["tensor"]
            self.assertEqual(shm.take_named(again), taken)
            self.assertEqual(list(taken), list(shm.array.array(shm.DTYPES[dtype][1], values)))
        small = {"dtype": "f32", "shape": [3], "data": [0.5, 1, 2]}
        self.assertEqual(self.client.call("runtime/echo", tensor=small)["tensor"], small)
        for change, param in (({"dtype": "f64"}, "tensor.dtype"), ({"shape": [2]}, "tensor.shape"),
                              ({"shape": [3, 0]}, "tensor.shape"),
                              ({"data": [1, 2]}, "tensor.shape"),
                              ({"data": [1, 2, "3"]}, "tensor.data"), ({"data": []}, "tensor.data"),
                              ({"dtype": "u8"}, "tensor.data")):
            error = self.client.fail("runtime/echo", tensor={**small, **change})
            self.assertEqual((error["code"], error["data"]["param"]), (-32602, param), change)

    def test_tokens_of_a_long_text(self):
        given = self.client.call("tokenize", model_id="llama", text=TEXT)
        tokens = shm.take_named(given["tokens"]).tolist()
        self.assertEqual(len(given["token_strings"]), len(tokens))
        half = len(TEXT) // 2
        short = self.client.call("count_tokens", model_id="llama", text=TEXT)["count"]
        self.assertEqual(len(tokens), short)
        text = self.client.call("detokenize", model_id="llama", skip_special_tokens=True,
                                tokens=self.make("i32", tokens))["text"]
        self.assertEqual(text[-half:], TEXT[-half:])
        self.assertEqual(text, self.client.call("detokenize", model_id="llama", tokens=tokens,
                                                skip_special_tokens=True)["text"])
        given = self.client.call("batch_tokenize", requests=[
            {"model_id": "llama", "text": TEXT, "token_strings": False},
            {"model_id": "llama", "text": "a", "token_strings": False}])["results"]
        self.assertEqual(shm.take_named(given[0]["result"]["tokens"]).tolist(), tokens)
        self.assertIsInstance(given[1]["result"]["tokens"], list)

    def test_embeddings(self):
        texts = [f"text {i}" for i in range(64)]
        given = self.client.call("embed", model_id="llama", input=texts)
        matrix = shm.take_named(given["embeddings"]).tolist()
        n = given["dimensions"]
        self.assertEqual(given["embeddings"]["shape"], [64, n])
        for i in (0, 1, 63):
            one = self.client.call("embed", model_id="llama", input=texts[i])["embeddings"][0]
            row = matrix[i * n:(i + 1) * n]
            self.assertLess(max(abs(a - b) for a, b in zip(one, row)), 1e-5)

    def test_prompt_tokens(self):
        words = {"model_id": "llama", "temperature": 0, "ignore_eos": True, "max_tokens": 5,
                 "stream": False}
        tokens = [5 + i % 90 for i in range(40)]
        plain = self.client.call("generate", prompt_tokens=tokens, **words)["text"]
        given = self.client.call("generate", prompt_tokens=self.make("i32", tokens), **words)
        self.assertEqual(given["text"], plain)

    # ---- fallbacks

    def test_json_when_nothing_is_taken(self):
        before = self.counts()
        request = {"tensor": {"dtype": "u8", "shape": [LEAST], "data": [7] * LEAST}}
        tensors = [self.client.call("runtime/echo", **request)["tensor"] for _ in range(64)]
        self.assertTrue(all("name" in tensor for tensor in tensors))
        self.assertEqual(len(shm.left(self.runtime.process.pid)), 64)
        self.assertEqual(self.client.call("runtime/echo", **request), request)
        self.assertEqual(self.counts()["fallbacks"], before["fallbacks"] + 1)
        for tensor in tensors:
            self.assertEqual(set(shm.take_named(tensor)), {7})
        tensor = self.client.call("runtime/echo", **request)["tensor"]
        self.assertEqual(set(shm.take_named(tensor)), {7})
        self.assertEqual(self.counts()["fallbacks"], before["fallbacks"] + 1)

    # ---- bad descriptors

    def refuse(self, tensor, param="tensor", code=-32602, **changes):
        before = self.counts()["refused"]
        error = self.client.fail("runtime/echo", tensor={**tensor, **changes})
        self.assertEqual((error["code"], error["data"]["param"]), (code, param), error)
        return self.counts()["refused"] - before

    def test_what_is_no_descriptor(self):
        tensor = self.make("i32", range(2000))
        for field, value in (("kind", "memfd"), ("kind", 1), ("name", ""), ("name", None),
                             ("name", "x" * 128), ("generation", 0), ("generation", -1),
                             ("generation", 1.5), ("dtype", "f64"), ("shape", []), ("shape", [0]),
                             ("shape", ["2000"]), ("shape", [1, 2, 3]), ("shape", [2001]),
                             ("shape", [2**62, 2**62]), ("bytes", 8001), ("bytes", 0),
                             ("bytes", 1 << 29), ("more", 1)):
            changed = {**tensor, field: value}
            error = self.client.fail("runtime/echo", tensor=changed)
            self.assertEqual(error["code"], -32602, changed)
            self.assertTrue(error["data"]["param"].startswith("tensor"), error)
        self.assertEqual(shm.take_named(
            self.client.call("runtime/echo", tensor=tensor)["tensor"])[1999], 1999)

    def test_names_that_are_none(self):
        tensor = self.make("u8", range(10))
        name = tensor["name"]
        space = name.split(".")[1]
        for bad in (name[1:], "/../shm" + name, "/" + name, name + "x", name[:-1], name + "/",
                    f"/kr.{space}.1.1.{'g' * 32}", f"/kr.{space}.+1.1.{'a' * 32}",
                    f"/kr.{space}. 1.1.{'a' * 32}", f"/kr.0{space}.1.1.{'a' * 32}",
                    f"/kr.{space}.1.1.{'a' * 32}", "/kr.", "/", "/passwd"):
            self.assertEqual(self.refuse(tensor, name=bad), 1, bad)
        folder = shm.new_name()
        os.mkdir(shm.FOLDER + folder)
        self.assertEqual(self.refuse(tensor, name=folder), 1)
        os.rmdir(shm.FOLDER + folder)
        link = shm.new_name()
        os.symlink(shm.FOLDER + name, shm.FOLDER + link)
        self.assertEqual(self.refuse(tensor, name=link), 1)
        os.unlink(shm.FOLDER + link)
        pipe = shm.new_name()
        os.mkfifo(shm.FOLDER + pipe)
        self.assertEqual(self.refuse(tensor, name=pipe), 1)
        os.unlink(shm.FOLDER + pipe)
        self.client.call("runtime/echo", tensor=tensor)

    def test_headers_that_lie(self):
        for changes in ({"magic": 1}, {"version": 2}, {"generation": 2**40}, {"type": 1},
                        {"type": 9}, {"n_dims": 2}, {"n_dims": 0}, {"d0": 1999}, {"d1": 1},
                        {"bytes": 7996}, {"bytes": 2**63}, {"tail": b"x" + bytes(15)}):
            self.assertEqual(self.refuse(self.make("i32", range(2000), **changes)), 1, changes)
        tensor = self.make("i32", range(2000))
        os.truncate(shm.FOLDER + tensor["name"], 63)
        self.assertEqual(self.refuse(tensor), 1)
        tensor = self.make("i32", range(2000))
        os.truncate(shm.FOLDER + tensor["name"], 8063)
        self.assertEqual(self.refuse(tensor), 1)
        tensor = self.make("i32", range(2000))
        os.truncate(shm.FOLDER + tensor["name"], 8065)
        self.assertEqual(self.refuse(tensor), 1)

    def test_a_generation_counts_once(self):
        tensor = self.make("i32", range(2000))
        shm.take_named(self.client.call("runtime/echo", tensor=tensor)["tensor"])
        descriptor, payload = shm.describe("i32", range(2000), tensor["generation"])
        self.assertEqual(self.refuse(shm.make_named(descriptor, payload)), 1)
        ahead = self.generation + 1500
        for generation, n in ((ahead, 0), (ahead, 1), (ahead - 1, 0), (ahead - 1023, 0),
                              (ahead - 1024, 1), (tensor["generation"], 1)):
            descriptor, payload = shm.describe("u8", range(9), generation)
            tensor = shm.make_named(descriptor, payload)
            if n:
                self.assertEqual(self.refuse(tensor), 1, generation)
            else:
                self.client.call("runtime/echo", tensor=tensor)
        type(self).generation = ahead

    def test_tokens_that_are_none(self):
        for dtype, values, param in (("i32", [1, -1, 2], "tokens.1"), ("f32", [1, 2], "tokens"),
                                     ("u8", [1, 2], "tokens")):
            error = self.client.fail("detokenize", model_id="llama",
                                     tokens=self.make(dtype, values))
            self.assertEqual((error["code"], error["data"]["param"]), (-32602, param))
        error = self.client.fail("detokenize", model_id="llama",
                                 tokens=self.make("i32", [1, 2, 3, 4], [2, 2]))
        self.assertEqual(error["data"]["param"], "tokens")

    def test_cut_while_it_is_read(self):
        """Whatever comes first, an answer comes, and the runtime goes on."""
        for _ in range(40):
            tensor = self.make("u8", bytes(1 << 20))
            fd = os.open(shm.FOLDER + tensor["name"], os.O_RDWR)
            number = self.client.send("runtime/echo", tensor=tensor)
            os.ftruncate(fd, 64)
            os.close(fd)
            answer = self.client.wait(lambda n=number: self.client.answers.get(n), "an answer")
            if "error" in answer:
                self.assertEqual(answer["error"]["data"]["param"], "tensor")
            else:
                shm.take_named(answer["result"]["tensor"])


class NotAgreed(RuntimeTest, unittest.TestCase):
    WORDS = ("--message-size", 64)

    def test_json_and_counted(self):
        info = self.client.call("runtime/info")
        self.assertEqual(info["limits"]["line_bytes"], 64 << 20)
        self.assertFalse(info["shared_memory"]["enabled"])
        small = {"dtype": "u8", "shape": [999999], "data": [1] * 999999}
        large = {"dtype": "u8", "shape": [1000000], "data": [1] * 1000000}
        for tensor, n in ((small, 0), (large, 1)):
            before = self.client.call("runtime/telemetry")["shared_memory"]["fallbacks"]
            line = json.dumps({"jsonrpc": "2.0", "id": f"n{n}", "method": "runtime/echo",
                               "params": {"tensor": tensor}})
            # Over a million values only in lines over the ordinary size.
            self.client.send_line(line + " " * (17 << 20) + "\n")
            self.assertEqual(self.client.answer(f"n{n}"), {"tensor": tensor})
            after = self.client.call("runtime/telemetry")["shared_memory"]
            self.assertEqual(after["fallbacks"], before + n)
            self.assertEqual(after["segments_out"], 0)
        descriptor, payload = shm.describe("u8", range(9), 1)
        tensor = shm.make_named(descriptor, payload)
        error = self.client.fail("runtime/echo", tensor=tensor)
        self.assertEqual((error["code"], error["data"]["param"]), (-32602, "tensor"))
        os.unlink(shm.FOLDER + tensor["name"])


# A client that makes segments, takes none of those it is given, and waits to be killed.
VICTIM = """
import json, subprocess, sys
sys.path.insert(0, sys.argv[1])
import shm_segments as shm
runtime = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def call(number, method, **params):
    runtime.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method,
                                    "params": params}).encode() + b"\\n")
    runtime.stdin.flush()
    return json.loads(runtime.stdout.readline())["result"]
call(1, "runtime/info", shared_memory={"min_bytes": 4096})
for i in range(4):
    shm.make_named(*shm.describe("u8", bytes(100000), i + 1))
    call(i + 2, "runtime/echo", tensor={"dtype": "u8", "shape": [5000], "data": [1] * 5000})
print(runtime.pid, flush=True)
sys.stdin.read()
"""


class Killed(unittest.TestCase):
    def sweeps(self):
        """Whether the next one has found what a killed one left: another may have been first."""
        runtime = Runtime(model=None)
        pid = runtime.process.pid
        runtime.client.call("runtime/info", shared_memory={"min_bytes": LEAST})
        for _ in range(3):
            runtime.client.call("runtime/echo", tensor={"dtype": "u8", "shape": [LEAST],
                                                        "data": [1] * LEAST})
        self.assertEqual(len(shm.left(pid)), 3)
        runtime.kill()
        again = Runtime(model=None)
        self.assertEqual(shm.left(pid), [])
        swept = again.client.call("runtime/telemetry")["shared_memory"]["swept"]
        self.assertEqual(again.stop(), 0)
        return swept >= 3

    def test_the_runtime(self):
        eventually(self.sweeps, "three segments are swept and counted")

    def test_the_client(self):
        here = str(Path(__file__).resolve().parent)
        with subprocess.Popen([sys.executable, "-c", VICTIM, here, str(KR), "runtime"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=environment()) as victim:
            pid = int(victim.stdout.readline())
            self.assertEqual((len(shm.left(pid)), len(shm.left(victim.pid))), (4, 4))
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait(WAIT_S)
        eventually(lambda: shm.left(pid) + shm.left(victim.pid) == [], "no segments")

    def test_living_and_foreign_ones_stay(self):
        mine = shm.make_named(*shm.describe("u8", range(9), 1))
        other = shm.new_name().replace(".", ".f", 1) # another space of process ids
        os.close(os.open(shm.FOLDER + other, os.O_CREAT | os.O_EXCL, 0o600))
        try:
            self.assertEqual(Runtime(model=None).stop(), 0)
            self.assertTrue(os.path.exists(shm.FOLDER + mine["name"]))
            self.assertTrue(os.path.exists(shm.FOLDER + other))
        finally:
            os.unlink(shm.FOLDER + mine["name"])
            os.unlink(shm.FOLDER + other)

    def test_a_client_that_leaves(self):
        runtime = Runtime(model=None)
        pid = runtime.process.pid
        runtime.client.call("runtime/info", shared_memory={"min_bytes": LEAST})
        runtime.client.call("runtime/echo", tensor={"dtype": "u8", "shape": [LEAST],
                                                    "data": [1] * LEAST})
        self.assertEqual(len(shm.left(pid)), 1)
        self.assertEqual(runtime.stop(), 0)
        self.assertEqual(shm.left(pid), [])


class Descriptors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.runtime = Runtime(is_socket=True)
        cls.addClassCleanup(cls.runtime.stop)
        cls.n_alone = cls.count_fds()

    def setUp(self):
        self.client = shm.FdClient(self.runtime.socket_path)
        info = self.client.call("runtime/info", shared_memory={"min_bytes": LEAST})["result"]
        self.assertEqual((info["shared_memory"]["enabled"], info["shared_memory"]["kind"]),
                         (True, "memfd"))
        self.n_fds = self.n_alone + 1
        self.assert_fds(self.n_fds) # the clients of other tests have gone

    def tearDown(self):
        self.client.close()

    @classmethod
    def count_fds(cls):
        return len(os.listdir(f"/proc/{cls.runtime.process.pid}/fd"))

    def assert_fds(self, n):
        """What was sent is closed behind the answer."""
        eventually(lambda: self.count_fds() == n, f"{n} descriptors")

    def make(self, dtype, values, shape=None, **changes):
        descriptor, payload = shm.describe(dtype, values, self.client.next_generation(), shape)
        return shm.make_memfd(descriptor, payload, **changes)

    def refused(self):
        return self.client.call("runtime/telemetry")["result"]["shared_memory"]["refused"]

    def refuse(self, fds, tensor):
        answer = self.client.call("runtime/echo", fds=fds, tensor=tensor)
        for fd in fds:
            os.close(fd)
        self.assertEqual((answer["error"]["code"], answer["error"]["data"]["param"]),
                         (-32602, "tensor"), answer)
        self.assert_fds(self.n_fds)

    def test_a_tensor_there_and_back(self):
        values = [i / 8 for i in range(500000)]
        fd, tensor = self.make("f32", values, [500, 1000])
        answer = self.client.call("runtime/echo", fds=[fd], tensor=tensor)["result"]["tensor"]
        os.close(fd)
        self.assertEqual(self.client.take(answer).tolist(), values)
        # It can be mapped without fear: nobody can change or cut it.
        for change in (lambda fd: os.ftruncate(fd, 10), lambda fd: os.pwrite(fd, b"x", 100)):
            with self.assertRaises(PermissionError):
                change(self.client.taken)
        os.close(self.client.taken)
        self.assertEqual(self.client.fds, [])
        self.assert_fds(self.n_fds)

    def test_many_in_a_row(self):
        """More than may wait at once: each is taken before the next comes."""
        for i in range(150):
            fd, tensor = self.make("i32", [i] * 1024)
            given = self.client.call("runtime/echo", fds=[fd], tensor=tensor)["result"]["tensor"]
            os.close(fd)
            self.assertEqual(given.get("kind"), "memfd", i)
            self.assertEqual(set(self.client.take(given)), {i})
            os.close(self.client.taken)
        self.assert_fds(self.n_fds)

    def test_several_with_one_line(self):
        made = [self.make("i32", [5 + i] * 1200) for i in range(3)]
        answer = self.client.call("batch_generate", fds=[fd for fd, _ in made], requests=[
            {"model_id": "llama", "prompt_tokens": {**tensor, "shape": [1200]}, "stream": False,
             "max_tokens": 1} for _, tensor in made])
        for fd, _ in made:
            os.close(fd)
        self.assertEqual(len(answer["result"]["results"]), 3)
        for item in answer["result"]["results"]: # longer than the tiny model's context, or not
            if not item["success"]:
                self.assertEqual(item["error"]["data"]["param"], "prompt_tokens", item)
        self.assert_fds(self.n_fds)

    def test_descriptors_of_other_things(self):
        _, tensor = self.make("u8", range(100))
        reader, writer = os.pipe()
        pair = socket.socketpair()
        for fd in (os.open("/dev/null", os.O_RDWR), os.open("/dev/zero", os.O_RDONLY),
                   os.open("/", os.O_RDONLY), os.open(__file__, os.O_RDONLY), os.dup(reader),
                   os.dup(pair[0].fileno()), os.memfd_create("empty")):
            self.refuse([fd], tensor)
        os.close(reader)
        os.close(writer)
        pair[0].close()
        pair[1].close()
        self.refuse([], tensor)

    def test_headers_that_lie(self):
        for changes in ({"magic": 1}, {"generation": 2**40}, {"d0": 99}, {"bytes": 99},
                        {"bytes": 101}):
            fd, tensor = self.make("u8", range(100), **changes)
            answer = self.client.call("runtime/echo", fds=[fd], tensor=tensor)
            os.close(fd)
            self.assertEqual(answer["error"]["code"], -32602, changes)
        self.n_fds += 1 # one with a good header of its own waits to be asked for
        self.assert_fds(self.n_fds)
        fd, tensor = self.make("u8", range(100))
        os.ftruncate(fd, 100)
        self.refuse([fd], tensor)

    def test_cut_after_it_was_sent(self):
        for _ in range(40):
            fd, tensor = self.make("u8", bytes(1 << 20))
            cut = threading.Thread(target=os.ftruncate, args=(fd, 64))
            cut.start()
            answer = self.client.call("runtime/echo", fds=[fd], tensor=tensor)
            cut.join()
            os.close(fd)
            if "error" in answer:
                self.assertEqual(answer["error"]["data"]["param"], "tensor")
            else:
                self.client.take(answer["result"]["tensor"])
                os.close(self.client.taken)

    def test_a_generation_counts_once(self):
        fd, tensor = self.make("u8", range(100))
        self.assertIn("result", self.client.call("runtime/echo", fds=[fd], tensor=tensor))
        self.refuse([fd], tensor)

    def test_unused_ones_are_bounded(self):
        made = [self.make("u8", range(100))[0] for _ in range(50)]
        for _ in range(3): # those of a generation that waits already are closed
            self.client.call("runtime/state", fds=made)
        self.assert_fds(self.n_fds + 50)
        more = [self.make("u8", range(100))[0] for _ in range(50)]
        self.client.call("runtime/state", fds=more)
        self.assert_fds(self.n_fds + 64)
        for fd in made + more:
            os.close(fd)
        self.client.close()
        eventually(lambda: self.count_fds() < self.n_fds, "all closed")

    def test_a_client_that_has_not_asked(self):
        with tempfile.TemporaryFile() as file:
            other = shm.FdClient(self.runtime.socket_path)
            other.call("runtime/state")
            self.assert_fds(self.n_fds + 1)
            other.call("runtime/state", fds=[file.fileno()] * 10)
            self.assert_fds(self.n_fds + 1)
            other.close()

    def test_a_client_that_goes(self):
        for _ in range(5):
            other = shm.FdClient(self.runtime.socket_path)
            other.call("runtime/info", shared_memory={"min_bytes": LEAST})
            descriptor, payload = shm.describe("u8", bytes(1 << 20), 1)
            fd, tensor = shm.make_memfd(descriptor, payload)
            line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "runtime/echo",
                               "params": {"tensor": tensor}}).encode() + b"\n"
            socket.send_fds(other.socket, [line], [fd])
            os.close(fd)
            other.close()
        eventually(lambda: self.count_fds() == self.n_fds, "all closed")


if __name__ == "__main__":
    unittest.main()
