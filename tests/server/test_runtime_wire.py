"""`kr runtime`: lines, limits, credits, cancels, clients, and how it ends."""
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from runtime_program import RpcError, Runtime, RuntimeTest, entries, text_of  # noqa: E402
from serve_program import KR, WAIT_S, environment, eventually  # noqa: E402

FIXED = {"model_id": "llama", "temperature": 0, "ignore_eos": True}
PING = b'{"jsonrpc":"2.0","id":"ping","method":"runtime/state"}\n'


class Lines(RuntimeTest, unittest.TestCase):
    def assert_alive(self):
        with self.client.changed:
            self.client.answers.pop("ping", None)
        self.client.send_line(PING)
        self.client.answer("ping")

    def refuse(self, line, code):
        self.client.send_line(line)
        message = self.client.other()
        self.assertEqual((message["id"], message["error"]["code"]), (None, code), message)
        self.assert_alive()  # lesson 4: the next line is not spoilt
        return message["error"]

    def test_malformed_lines(self):
        before = self.client.call("runtime/state")["bad_lines"]
        bad = (b"x\n", b"{\n", b"}{\n", b'{"jsonrpc":"2.0","id":1,"method":"x"\n', b"nul\n",
               b"[1\n", b'{"a":1,"a":2}\n', b'{"a":"\xff\xfe"}\n', b'"\xc3\n', b"\x00\n",
               b'{"a":1e999}\n', b"[" * 200 + b"]" * 200 + b"\n", b'[{"a":1}],{"b":[]}\n')
        for line in bad:
            self.assertEqual(self.refuse(line, -32700)["data"]["kr_status"], 5, line)
        state = self.client.call("runtime/state")
        self.assertEqual(state["bad_lines"], before + len(bad))

    def test_what_is_no_request(self):
        for line in ('{}', '{"jsonrpc":"1.0","method":"x"}', '{"jsonrpc":"2.0"}',
                     '{"jsonrpc":"2.0","method":5}', '{"jsonrpc":"2.0","method":"x","id":1.5}',
                     '{"jsonrpc":"2.0","method":"x","id":[]}',
                     '{"jsonrpc":"2.0","method":"x","result":1}'):
            self.client.send_line(line + "\n")
            self.assertEqual(self.client.other()["error"]["code"], -32600)
            self.assert_alive()
        for line in ("7", "null", "true", '"x"', " -1.5e3 ", "[]", "[" + "1," * 64 + "1]"):
            self.assertEqual(self.refuse(line + "\n", -32600)["data"]["type"], "InvalidRequest")
        self.client.send_line('{"jsonrpc":"2.0","id":"list","method":"runtime/info","params":[]}'
                              "\n")
        with self.assertRaises(RpcError) as caught:
            self.client.answer("list")
        self.assertEqual((caught.exception.code, caught.exception.data["param"]),
                         (-32602, "params"))

    def test_ids_come_back_as_they_were(self):
        for number in (0, -7, 2 ** 53 + 1, "", "a\u20ac\"\\", "x" * 256):
            self.client.send_line(json.dumps({"jsonrpc": "2.0", "id": number,
                                              "method": "runtime/state"}) + "\n")
            self.client.answer(number)
        self.client.send_line(b'{"jsonrpc":"2.0","id":null,"method":"runtime/state"}\n')
        self.assertIn("result", self.client.other())

    def test_blank_lines_crlf_and_cuts(self):
        self.client.send_line(b"\n  \n\r\n\t\n")
        self.client.send_line(PING[:-1] + b"\r\n")
        self.client.answer("ping")
        for size in (1, 2, 7):
            for at in range(0, len(PING), size):
                self.client.send_line(PING[at:at + size])
        self.assert_alive()

    def test_lines_around_the_limit(self):
        head = b'{"jsonrpc":"2.0","id":"big","method":"tokenize","params":{"model_id":"none",' \
               b'"text":"'
        for size, code in ((1 << 24, -32005), ((1 << 24) + 1, -32600), (1 << 26, -32600)):
            line = head + b"a" * (size - len(head) - 3) + b'"}}'
            self.assertEqual(len(line), size)
            with self.client.changed:
                self.client.answers.pop("big", None)
            self.client.send_line(line + b"\n")
            # Lesson 5: the caller of a line that is too long is told.
            with self.assertRaises(RpcError) as caught:
                self.client.answer("big")
            self.assertEqual(caught.exception.code, code)
            self.assert_alive()
        self.client.send_line(b'{"params":{"id":5},' + b" " * (1 << 24) + b"\n")
        self.assertIsNone(self.client.other()["id"])
        self.assert_alive()

    def test_in_flight(self):
        for i in range(255):
            self.client.notify("generate", **FIXED, prompt="a", max_tokens=50, credits=1,
                               stream_id=f"f{i}")
        eventually(lambda: self.client.call("runtime/state")["active_streams"] == 255,
                   "255 streams")
        error = self.try_two()  # an answer and what it leaves of the limit come in one
        self.assertEqual((error["code"], error["data"]["kr_status"]), (-32000, 14))
        for i in range(255):
            self.client.call("cancel", stream_id=f"f{i}")
        for i in range(255):
            self.client.end_of(f"f{i}")
        self.client.call("generate", **FIXED, prompt="a", max_tokens=1, stream=False)

    def try_two(self):
        """With 255 streams one call has a place; a stream that takes it leaves none."""
        self.client.call("generate", **FIXED, prompt="a", max_tokens=50, credits=1, stream_id="g")
        try:
            return self.client.fail("generate", **FIXED, prompt="a", max_tokens=1, stream=False)
        finally:
            self.client.call("cancel", stream_id="g")
            self.client.end_of("g")
            self.client.streams.pop("g")


class Streams(RuntimeTest, unittest.TestCase):
    def start(self, stream, **more):
        self.client.call("generate", **{**FIXED, "prompt": "Hello", "max_tokens": 200,
                                        "stream_id": stream, **more})

    def tokens(self, stream):
        return len([e for e in entries(self.client.streams.get(stream, [])) if "token_id" in e])

    def test_credits_pause_one_stream_only(self):
        self.start("slow", credits=5)
        eventually(lambda: self.tokens("slow") == 5, "five tokens")
        self.start("free", max_tokens=100)
        self.assertEqual(self.client.end_of("free")[-1][1]["finish_reason"], "length")
        self.assertEqual(self.tokens("slow"), 5)
        self.assertEqual(self.client.call("stream.credit", stream_id="slow", credits=40),
                         {"success": True})
        eventually(lambda: self.tokens("slow") == 45, "45 tokens")
        self.client.notify("stream.credit", stream_id="slow", credits=1000)
        self.assertEqual(self.client.end_of("slow")[-1][1]["finish_reason"], "length")
        self.assertEqual(self.tokens("slow"), 200)
        self.assertEqual(self.client.call("stream.credit", stream_id="slow", credits=1),
                         {"success": False})
        self.assertEqual(self.client.fail("stream.credit", stream_id="slow",
                                          credits=0)["data"]["param"], "credits")

    def test_many_credits_are_no_more_than_the_tokens(self):
        before = self.client.call("runtime/telemetry")["engine"]["tokens_generated"]["value"]
        self.start("many", max_tokens=400, credits=1 << 20)
        self.client.end_of("many")
        after = self.client.call("runtime/telemetry")["engine"]["tokens_generated"]["value"]
        self.assertEqual(after - before, 400)

    def test_credit_while_the_call_is_worked_on(self):
        """From the moment on that the stream is known no credit is lost."""
        for i in range(120):
            stream = f"soon{i}"
            self.client.send_line("".join(json.dumps(
                {"jsonrpc": "2.0", "id": name, "method": method, "params": params}) + "\n"
                for name, method, params in (
                    (f"g{i}", "generate", {**FIXED, "prompt": "word " * 60, "max_tokens": 8,
                                           "stream_id": stream, "credits": 1}),
                    *((f"s{i}.{k}", "runtime/state", {}) for k in range(i % 40)),
                    (f"c{i}", "stream.credit", {"stream_id": stream, "credits": 7}))))
            self.client.answer(f"g{i}")
            if not self.client.answer(f"c{i}")["success"]:  # it came before
                self.client.call("stream.credit", stream_id=stream, credits=7)
            self.assertEqual(self.client.end_of(stream)[-1][1]["finish_reason"], "length")

    def test_cancel(self):
        """Lesson 7 and 15: it ends in the engine, and is called cancelled."""
        self.start("gone", credits=3)
        self.assertEqual(self.client.call("cancel", stream_id="gone"),
                         {"success": True, "cancelled": True})
        got = self.client.end_of("gone")
        event = got[-1][1]
        self.assertEqual((event["event"], event["finish_reason"]), ("error", "cancelled"))
        self.assertEqual((event["error"]["code"], event["error"]["data"]["type"],
                          event["error"]["data"]["kr_status"]), (-32002, "Cancelled", 16))
        self.assertEqual([kind for kind, _ in got].count("stream.stats"), 1)
        self.assertEqual(self.client.call("cancel", stream_id="gone"),
                         {"success": True, "cancelled": False})
        figures = lambda: self.client.call("runtime/telemetry")["engine"]  # noqa: E731
        eventually(lambda: figures()["requests_running"]["value"] == 0, "nothing runs")
        eventually(lambda: figures()["kv_bytes_used"]["value"] == 0, "its pages are free")

    def test_cancel_before_the_call_is_looked_at(self):
        for i in range(20):
            stream = f"early{i}"
            line = json.dumps({"jsonrpc": "2.0", "method": "generate", "params": {
                **FIXED, "prompt": f"word {i}", "max_tokens": 400, "stream_id": stream,
                "credits": 1}})
            cancel = json.dumps({"jsonrpc": "2.0", "method": "cancel",
                                 "params": {"stream_id": stream}})
            # Every other one is so long that it is read by a worker.
            self.client.send_line(line + " " * (200000 if i % 2 else 0) + "\n" + cancel + "\n")
            event = self.client.end_of(stream)[-1][1]
            self.assertEqual(event["finish_reason"], "cancelled")

    def caught(self, waits):
        """Cancels a call without stream, at once or when it is seen to run. Nothing can hold such
        a call, so it may have ended before: whether it was caught."""
        number = self.client.send("generate", **FIXED, prompt="a", max_tokens=500, stream=False,
                                  stream_id="whole")
        if waits:
            eventually(lambda: self.client.call("runtime/state")["active_streams"] == 1 or
                       number in self.client.answers, "it runs")
        self.client.notify("cancel", stream_id="whole")
        try:
            got = self.client.answer(number)
        except RpcError as error:
            self.assertEqual((error.code, error.data["type"], error.data["kr_status"]),
                             (-32002, "Cancelled", 16))
            return True
        self.assertEqual((got["finish_reason"], got["stats"]["tokens_generated"]), ("length", 500))
        return False

    def test_cancel_of_a_call_without_stream(self):
        for waits in (False, True):
            eventually(lambda w=waits: self.caught(w), "a call that is cancelled")
        self.assertEqual(self.client.call("runtime/state")["active_streams"], 0)

    def test_one_write_for_a_step_and_no_text_twice(self):
        """Lesson 2: what is sent grows with the tokens, not with their square."""
        self.start("sizes", max_tokens=300)
        got = self.client.end_of("sizes")
        for method, params in got:
            self.assertNotIn("cumulative_text", params)
            self.assertLess(len(json.dumps(params)), 4096 + 100 * len(params.get("tokens", [])))

    def test_sixteen_streams_with_aborts(self):
        """Lessons 10 to 13: no cross-talk, each ends once."""
        alone = [self.client.call("generate", **FIXED, prompt=f"prompt {i}", max_tokens=120,
                                  stream=False)["text"] for i in range(16)]
        rng = random.Random(7)
        for turn in range(6):
            names = [f"t{turn}.{i}" for i in range(16)]
            for i, name in enumerate(names):
                self.client.send("generate", **FIXED, prompt=f"prompt {i}", max_tokens=120,
                                 stream_id=name)
            aborted = rng.sample(range(16), 6)
            for i in aborted:
                wanted = rng.randrange(0, 60)
                eventually(lambda n=names[i], w=wanted: self.tokens(n) >= w, "some tokens")
                self.client.notify("cancel", stream_id=names[i])
            for i, name in enumerate(names):
                got = self.client.end_of(name)
                self.assertEqual([kind for kind, _ in got].count("stream.event"), 1)
                reason, text = got[-1][1]["finish_reason"], text_of(got)
                if reason == "cancelled":
                    self.assertIn(i, aborted)
                    self.assertTrue(alone[i].startswith(text), name)
                else:
                    self.assertEqual((reason, text), ("length", alone[i]), name)
        self.assertEqual(self.client.call("runtime/state")["active_streams"], 0)
        # Nothing comes behind an end.
        for stream, got in self.client.streams.items():
            self.assertEqual(got[-1][0], "stream.event", stream)


class Held(unittest.TestCase):
    """A client whose bytes nobody takes."""

    def test_the_generation_waits_for_the_reader(self):
        runtime = Runtime(is_socket=True)
        try:
            lazy, other = runtime.connect(), runtime.connect()
            lazy.may_read.clear()
            # More than a socket's buffers and the runtime's 1 MiB hold, many times over.
            for _ in range(40):
                lazy.send("batch_tokenize", requests=[
                    {"model_id": "llama", "text": "word " * 2000}] * 2)
            eventually(lambda: other.call("runtime/telemetry")["tokenization"]["calls"] == 80,
                       "all of it waits for the reader")
            number = lazy.send("generate", **FIXED, prompt="a", max_tokens=400, stream_id="x")
            figures = lambda: other.call("runtime/telemetry")["engine"]  # noqa: E731
            eventually(lambda: figures()["requests_started"]["value"] == 1, "it is submitted")
            # Another client is served meanwhile, and the stream of the first has not ended.
            got = other.call("generate", **FIXED, prompt="a", max_tokens=400, stream=False)
            self.assertEqual(got["stats"]["tokens_generated"], 400)
            self.assertEqual(other.call("runtime/state")["active_streams"], 1)
            self.assertLess(figures()["tokens_generated"]["value"], 400 + 400)
            lazy.may_read.set()
            lazy.answer(number)
            self.assertEqual(lazy.end_of("x")[-1][1]["finish_reason"], "length")
            self.assertEqual(text_of(lazy.streams["x"]), got["text"])
            lazy.close()
            other.close()
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime.process.poll() is None:
                runtime.kill()


class Ends(unittest.TestCase):
    def run_lines(self, lines, *words):
        """Input that ends at once: exit status and messages."""
        runtime = Runtime()
        try:
            for line in lines:
                runtime.client.send_line(line)
            status = runtime.stop()
            return status, runtime.client, runtime
        finally:
            if runtime.process.poll() is None:
                runtime.kill()

    def test_end_of_input_lets_calls_finish(self):
        """For a second: a machine that was busy for so long is asked again."""
        def finishes():
            status, client, _ = self.run_lines([PING, json.dumps(
                {"jsonrpc": "2.0", "id": 2, "method": "generate",
                 "params": {**FIXED, "prompt": "a", "max_tokens": 1, "stream": False}}) + "\n"])
            self.assertEqual(status, 0)
            answer = client.answers.get(2, {})
            if "error" in answer:
                self.assertEqual(answer["error"]["data"]["type"], "Cancelled")
            return "result" in client.answers.get("ping", {}) and \
                answer.get("result", {}).get("finish_reason") == "length"
        eventually(finishes, "both are answered")

    def test_sockets_as_stdin_and_stdout(self):
        """As Node hands them over."""
        (ours_in, theirs_in), (ours_out, theirs_out) = socket.socketpair(), socket.socketpair()
        process = subprocess.Popen([KR, "runtime"], stdin=theirs_in, stdout=theirs_out,
                                   stderr=subprocess.DEVNULL, env=environment())
        try:
            theirs_in.close()
            theirs_out.close()
            ours_in.sendall(PING * 3)
            lines = ours_out.makefile("rb")
            for _ in range(3):
                self.assertEqual(json.loads(lines.readline())["id"], "ping")
            ours_in.shutdown(socket.SHUT_WR)
            self.assertEqual((lines.read(), process.wait(WAIT_S)), (b"", 0))
            lines.close()
        finally:
            process.kill()
            process.wait()
            ours_in.close()
            ours_out.close()

    def test_half_a_line_at_the_end_is_dropped(self):
        status, client, _ = self.run_lines([PING, PING[:-5]])
        self.assertEqual(status, 0)
        self.assertEqual((len(client.answers), client.others), (1, []))

    @staticmethod
    def ends_of(client, streams):
        """(event, finish_reason) of each stream's last notification."""
        last = [client.streams.get(stream, [("", {})])[-1][1] for stream in streams]
        return [(event.get("event"), event.get("finish_reason")) for event in last]

    def test_end_of_input_cancels_what_does_not_end(self):
        """Within 2 s, or nothing more is said: a machine that was too busy is asked again."""
        def is_cancelled():
            status, client, _ = self.run_lines([json.dumps(
                {"jsonrpc": "2.0", "id": 1, "method": "generate",
                 "params": {**FIXED, "prompt": "a", "max_tokens": 100, "stream_id": "s",
                            "credits": 1}}) + "\n"])
            self.assertEqual(status, 0)
            return self.ends_of(client, ["s"]) == [("error", "cancelled")]
        eventually(is_cancelled, "the stream is told")

    def ends_with_streams(self, end):
        """Whether all streams were told, in the 2 s that there are for it."""
        runtime = Runtime()
        try:
            streams = [f"s{i}" for i in range(3)]
            for stream in streams:
                runtime.client.call("generate", **FIXED, prompt="a", max_tokens=100, credits=1,
                                    stream_id=stream)
            end(runtime)
            self.assertEqual(runtime.wait(), 0)
            runtime.client.thread.join(WAIT_S)
            runtime.tidy()
            return self.ends_of(runtime.client, streams) == [("error", "shutdown")] * 3
        finally:
            if runtime.process.poll() is None:
                runtime.kill()

    def test_shutdown(self):
        def end(runtime):
            self.assertEqual(runtime.client.call("shutdown"), {"success": True})
        eventually(lambda: self.ends_with_streams(end), "the streams are told")

    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            eventually(lambda n=number: self.ends_with_streams(
                lambda r: r.process.send_signal(n)), "the streams are told")

    def test_nobody_reads_any_more(self):
        runtime = Runtime()
        try:
            runtime.client.call("generate", **FIXED, prompt="a", max_tokens=500, stream_id="s",
                                credits=1)
            # The reading end is closed while its thread waits for more.
            os.close(os.dup(runtime.process.stdout.fileno()))
            read_fd, write_fd = os.pipe()
            os.close(write_fd)
            os.dup2(read_fd, runtime.process.stdout.fileno())
            os.close(read_fd)
            try:
                for _ in range(3):
                    runtime.client.send_line(PING)
            except BrokenPipeError:
                pass
            self.assertEqual(runtime.wait(), 0)
            runtime.tidy()
        finally:
            if runtime.process.poll() is None:
                runtime.kill()

    def test_kill(self):
        """Lesson 34: the pipe ends with the process, whatever it was doing; the next one works."""
        for _ in range(3):
            runtime = Runtime()
            runtime.client.call("generate", **FIXED, prompt="a", max_tokens=400, stream_id="s")
            runtime.process.kill()
            runtime.client.thread.join(WAIT_S)
            self.assertTrue(runtime.client.is_over)
            runtime.kill()

    def test_what_is_printed_stays_out_of_the_protocol(self):
        """Lesson 3: stdout is stderr for everything but the protocol."""
        with Path("/dev/null").open("rb") as nothing:
            done = subprocess.run([KR, "runtime"], stdin=nothing, capture_output=True,
                                  timeout=WAIT_S, env=environment(), check=False)
        self.assertEqual((done.returncode, done.stdout), (0, b""))
        self.assertIn(b"kr runtime ready", done.stderr)
        runtime = Runtime()
        try:
            fds = {os.readlink(f"/proc/{runtime.process.pid}/fd/{fd}") for fd in (1, 2)}
            self.assertEqual(len(fds), 1)
            self.assertEqual(os.readlink(f"/proc/{runtime.process.pid}/fd/0"), "/dev/null")
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime.process.poll() is None:
                runtime.kill()

    def test_options(self):
        for words, code, text in ((["--socket", ""], 2, "socket"), (["--port", "1"], 2, "port"),
                                  (["--socket", "/none/x"], 10, "/none/x"),
                                  (["-m", "/none/x.gguf"], 3, "x.gguf")):
            done = subprocess.run([KR, "runtime", *words], stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=WAIT_S, env=environment(),
                                  check=False)
            self.assertEqual((done.returncode, done.stdout), (code, b""), done.stderr)
            self.assertIn(text, done.stderr.decode())


class Config(unittest.TestCase):
    def test_reload(self):
        runtime = None
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        path = folder / "kr.json"
        path.write_text('{"deadline-s": 50, "queue": 10}')
        try:
            runtime = Runtime("--config", path)
            client = runtime.client
            self.assertEqual(client.call("reload_config"),
                             {"success": True, "changed": [], "needs_restart": []})
            base = {**FIXED, "prompt": "a", "max_tokens": 1, "stream": False}
            self.assertEqual(client.fail("generate", **base, timeout_ms=50001)["data"]["param"],
                             "timeout_ms")
            path.write_text('{"deadline-s": 60, "queue": 11}')
            self.assertEqual(client.call("reload_config"),
                             {"success": True, "changed": ["deadline-s"],
                              "needs_restart": ["queue"]})
            client.call("generate", **base, timeout_ms=50001)
            path.write_text('{"deadline-s": "x"}')
            error = client.fail("reload_config")
            self.assertEqual((error["code"], error["data"]["param"]), (-32000, "deadline-s"))
            client.call("generate", **base, timeout_ms=50001)
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime and runtime.process.poll() is None:
                runtime.kill()

    def test_without_a_file(self):
        runtime = Runtime()
        try:
            error = runtime.client.fail("reload_config")
            self.assertEqual((error["code"], error["data"]["kr_status"]), (-32000, 4))
            self.assertEqual(runtime.stop(), 0)
        finally:
            if runtime.process.poll() is None:
                runtime.kill()


class Socket(RuntimeTest, unittest.TestCase):
    IS_SOCKET = True

    def test_file(self):
        info = self.runtime.socket_path.lstat()
        self.assertTrue(stat.S_ISSOCK(info.st_mode))
        self.assertEqual(stat.S_IMODE(info.st_mode), 0o600)
        done = subprocess.run([KR, "runtime", "--socket", self.runtime.socket_path],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S,
                              env=environment(), check=False)
        self.assertEqual(done.returncode, 10)
        self.assertIn(b"in use", done.stderr)

    def test_clients_do_not_see_each_other(self):
        clients = [self.runtime.connect() for _ in range(4)]
        for i, client in enumerate(clients):
            client.call("generate", **FIXED, prompt=f"client {i}", max_tokens=80, stream_id="same")
        texts = [text_of(client.end_of("same")) for client in clients]
        for i, client in enumerate(clients):
            alone = client.call("generate", **FIXED, prompt=f"client {i}", max_tokens=80,
                                stream=False)
            self.assertEqual(alone["text"], texts[i])
            self.assertEqual(list(client.streams), ["same"])
            self.assertEqual(client.call("cancel", stream_id="other")["cancelled"], False)
        for client in clients:
            client.close()

    def test_a_client_that_goes_is_cancelled(self):
        keeper = self.runtime.connect()
        goer = self.runtime.connect()
        goer.call("generate", **FIXED, prompt="a", max_tokens=100, credits=1, stream_id="s")
        self.assertEqual(keeper.call("runtime/state")["active_streams"], 1)
        goer.close()
        eventually(lambda: keeper.call("runtime/state")["active_streams"] == 0, "it is cancelled")
        figures = lambda: keeper.call("runtime/telemetry")["engine"]  # noqa: E731
        eventually(lambda: figures()["kv_bytes_used"]["value"] == 0, "its pages are free")
        keeper.close()

    def test_more_clients_than_the_limit_wait(self):
        clients = [self.runtime.connect() for _ in range(64)]
        for client in clients:
            client.call("runtime/info")
        late = self.runtime.connect()
        number = late.send("runtime/info")
        eventually(lambda: clients[0].call("runtime/state")["clients"] == 64, "64 clients")
        self.assertNotIn(number, late.answers)
        clients.pop().close()
        self.assertEqual(late.answer(number)["protocol"], "json-rpc-2.0")
        for client in [*clients, late]:
            client.close()
        keeper = self.runtime.connect()
        eventually(lambda: keeper.call("runtime/state")["clients"] == 1, "they are gone")
        keeper.close()

    def test_input_that_ends_is_answered(self):
        client = self.runtime.connect()
        number = client.send("count_tokens", model_id="llama", text="a")
        client.connection.shutdown(socket.SHUT_WR)
        self.assertGreater(client.answer(number)["count"], 0)
        client.thread.join(WAIT_S)
        self.assertTrue(client.is_over)
        client.close()

    def test_models_are_shared_and_loads_block_nobody(self):
        one, two = self.runtime.connect(), self.runtime.connect()
        one.call("load_model", model_id="second", local_path=str(self.runtime.model))
        self.assertEqual(two.call("count_tokens", model_id="second", text="a")["count"] > 0, True)
        two.call("unload_model", model_id="second")
        self.assertEqual(one.fail("tokenize", model_id="second", text="a")["code"], -32005)
        for client in (one, two):
            client.close()


class Stale(unittest.TestCase):
    def test_a_stale_socket_is_replaced_and_the_file_goes_at_the_end(self):
        runtime = Runtime(is_socket=True)
        client = runtime.connect()
        runtime.process.kill()
        runtime.process.wait()
        client.close()
        self.assertTrue(runtime.socket_path.exists())
        second = subprocess.Popen([KR, "runtime", "--socket", runtime.socket_path],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, env=environment())
        try:
            self.assertIn(b"kr runtime ready", second.stderr.readline())
            client = runtime.connect()
            client.call("shutdown")
            client.close()
            self.assertEqual(second.wait(WAIT_S), 0)
            self.assertFalse(runtime.socket_path.exists())
        finally:
            second.kill()
            second.wait()
            second.stderr.close()
            runtime.tidy()


if __name__ == "__main__":
    unittest.main()
