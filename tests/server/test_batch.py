"""`kr batch`: files of requests in OpenAI's batch form, errors of lines, and that a run that was
killed at any point goes on with one line for each request."""
import json
import os
import random
import signal
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from serve_program import KR, WAIT_S, environment, eventually  # noqa: E402
from kr_program import ProgramTest, kr  # noqa: E402

ANSWERED = ('{"id":"batch_req_AAAAAAAAAAAAAAAAAAAAAAAA","custom_id":"%s",'
            '"response":null,"error":{}}\n')


def request(custom_id, url="/v1/chat/completions", method="POST", **body):
    if not body:
        body = {"messages": [{"role": "user", "content": f"say {custom_id}"}], "max_tokens": 20,
                "seed": len(custom_id)}
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


class BatchTest(ProgramTest):
    def setUp(self):
        self.number = getattr(BatchTest, "number", 0) + 1
        BatchTest.number = self.number
        self.source = self.scratch / f"in{self.number}.jsonl"
        self.target = self.scratch / f"out{self.number}.jsonl"

    def write(self, *lines):
        self.source.write_text("".join(json.dumps(line) + "\n" if isinstance(line, dict) else line
                                       for line in lines))

    def words(self, *more):
        return ("batch", "-m", self.model, self.source, self.target, "-t", "1", *more)

    def run_batch(self, *more):
        """The summary of a run that must be good."""
        return self.assert_done(*self.words("--json", *more)).json()

    def answers(self):
        lines = [json.loads(line) for line in self.target.read_bytes().splitlines()]
        for line in lines:
            self.assertEqual(list(line), ["id", "custom_id", "response", "error"])
            self.assertRegex(line["id"], "^batch_req_[A-Za-z0-9]{24}$")
        ids = [line["custom_id"] for line in lines]
        self.assertEqual(len(ids), len(set(ids)), "a custom_id stands twice")
        self.assertEqual(len(set(line["id"] for line in lines)), len(lines))
        return {line["custom_id"]: line for line in lines}


class Form(BatchTest):
    def test_every_request_has_an_answer(self):
        self.write(request("a"),
                   request("b", "/v1/completions", prompt="x", max_tokens=5, n=2, logprobs=1),
                   "\n", " \t\n",
                   request('quote " and \\ and ü', "/v1/completions", prompt=[5, 6], max_tokens=3))
        result = self.run_batch()
        self.assertEqual((result["total"], result["completed"], result["failed"],
                          result["skipped"], result["left"]), (3, 3, 0, 0, 0))
        answers = self.answers()
        self.assertEqual(set(answers), {"a", "b", 'quote " and \\ and ü'})
        for answer in answers.values():
            self.assertIsNone(answer["error"])
            self.assertEqual(answer["response"]["status_code"], 200)
            self.assertRegex(answer["response"]["request_id"], "^req_")
        body = answers["a"]["response"]["body"]
        self.assertEqual(body["object"], "chat.completion")
        self.assertEqual(body["usage"]["completion_tokens"],
                         len(body["choices"]) and body["timings"]["n_generated"])
        self.assertEqual(len(answers["b"]["response"]["body"]["choices"]), 2)

    def test_errors_belong_to_their_line(self):
        self.write(request("good"), request("method", method="GET"),
                   request("url", url="/v1/nothing"), request("route", url="/v1/models"),
                   {**request("body"), "body": "x"}, {"custom_id": "bare"},
                   request("field", "/v1/completions", prompt="x", grammar="y"),
                   request("stream", "/v1/completions", prompt="x", stream=True),
                   request("model", "/v1/completions", prompt="x", model="other"),
                   request("long", "/v1/completions", prompt=[1] * 600))
        result = self.run_batch()
        self.assertEqual((result["completed"], result["failed"]), (1, 9))
        answers = self.answers()
        codes = {name: line["error"]["code"] for name, line in answers.items() if line["error"]}
        self.assertEqual(codes, {"method": "invalid_method", "url": "invalid_url",
                                 "route": "invalid_url", "body": "invalid_body",
                                 "bare": "invalid_method"})
        statuses = {name: (line["response"]["status_code"],
                           line["response"]["body"].get("error", {}).get("code"))
                    for name, line in answers.items() if line["response"]}
        self.assertEqual(statuses, {"good": (200, None), "field": (400, "unsupported_parameter"),
                                    "stream": (400, "unsupported_parameter"),
                                    "model": (404, "model_not_found"),
                                    "long": (400, "context_length_exceeded")})

    def test_a_bad_file_is_refused_before_anything_runs(self):
        good = json.dumps(request("a")) + "\n"
        for pattern, *lines in (
                ("line 3: custom_id \"a\" stands in line 1 already", good, "\n", good),
                ("line 2: it is no valid JSON", good, "{\"custom_id\":\n"),
                ("line 1: .*custom_id must be", "{}\n"),
                ("line 1: .*custom_id must be", "{\"custom_id\":5}\n"),
                ("line 1: .*custom_id must be", "{\"custom_id\":\"\"}\n"),
                ("line 1: .*custom_id must be", json.dumps({"custom_id": "x" * 513}) + "\n"),
                ("line 1: \"more\" is not a member", "{\"custom_id\":\"x\",\"more\":1}\n"),
                ("line 1: it must be a JSON object", "[]\n")):
            self.write(*lines)
            self.assert_fails(11, pattern, *self.words())
            self.assertFalse(self.target.exists())

    def test_files_that_cannot_be(self):
        self.assert_fails(3, "in.*No such file", *self.words())
        self.write(request("a"))
        self.assert_fails(2, "two files", "batch", "-m", self.model, self.source)
        self.assert_fails(11, "same file", "batch", "-m", self.model, self.source, self.source)
        self.assert_fails(11, "not a regular file", "batch", "-m", self.model, self.scratch,
                          self.target)
        self.assert_fails(9, "No such file", "batch", "-m", self.model, self.source,
                          self.scratch / "none" / "out")
        self.assertEqual(self.source.read_text(), json.dumps(request("a")) + "\n")
        os.mkfifo(self.target)
        self.assert_fails(11, "not a regular file", *self.words())

    def test_an_empty_file_is_a_batch(self):
        self.write()
        self.assertEqual(self.run_batch()["total"], 0)
        self.assertEqual(self.target.read_bytes(), b"")

    def test_a_full_disk_ends_it_with_whole_lines(self):
        self.write(*(request(f"r{i}") for i in range(40)))

        def limit():
            import resource
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # as a shell leaves it
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

        result = kr(*self.words("--no-cache"), preexec_fn=limit)
        self.assertEqual(result.code, 9, result.err)
        self.assertIn("File too large", result.err)
        self.assertGreater(len(self.answers()), 0)
        self.assertTrue(self.target.read_bytes().endswith(b"}\n"))
        result = self.run_batch()
        self.assertEqual(result["left"], 0)
        self.assertEqual(len(self.answers()), 40)


class Resume(BatchTest):
    def start(self, *more):
        process = subprocess.Popen([str(word) for word in (KR, *self.words(*more))],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, env=environment())
        self.addCleanup(process.stderr.close)
        return process

    def n_lines(self):
        return self.target.read_bytes().count(b"\n") if self.target.exists() else 0

    def test_killed_runs_go_on_until_every_request_has_one_line(self):
        n = 300
        wanted = {f"id-{i}" for i in range(n)}
        self.write(*(request(f"id-{i}", "/v1/completions", prompt=f"p{i}", max_tokens=40, seed=i,
                             ignore_eos=True) for i in range(n)))
        dice, done, kills = random.Random(5), 0, 0
        while done < n - 40 and kills < 8:
            process = self.start("--parallel", "4")
            goal = done + dice.randrange(1, 40)
            eventually(lambda: self.n_lines() >= goal or process.poll() is not None, "progress")
            process.kill()
            process.wait()
            if process.returncode == 0 and kills == 0:  # it ended while this test slept: again
                self.target.unlink()
                continue
            if process.returncode == 0:
                break
            kills += 1
            self.assertGreaterEqual(self.n_lines(), min(goal, n))
            done = self.n_lines()
            if dice.random() < 0.5:  # as a crash in the middle of a write leaves it
                with open(self.target, "ab") as file:
                    file.write(b'{"id":"batch_req_Bo' if dice.random() < 0.5 else b"\0" * 100)
        before = self.target.read_bytes()
        before = before[:before.rindex(b"\n") + 1]
        result = self.run_batch()
        self.assertEqual((result["total"], result["left"]), (n, 0))
        self.assertEqual(result["skipped"], before.count(b"\n"))
        self.assertTrue(self.target.read_bytes().startswith(before), "what was there has changed")
        answers = self.answers()
        self.assertEqual(set(answers), wanted)
        # Seeds: the answers are those of one run.
        target, self.target = self.target, self.scratch / "whole.jsonl"
        self.assertEqual(self.run_batch()["completed"], n)
        texts = [{name: line["response"]["body"]["choices"][0]["text"]
                  for name, line in found.items()} for found in (answers, self.answers())]
        self.assertEqual(*texts)
        self.target = target
        size = self.target.stat().st_size
        self.assertEqual(self.run_batch()["skipped"], n)
        self.assertEqual(self.target.stat().st_size, size)

    def test_an_interrupt_leaves_whole_lines(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            self.target.unlink(missing_ok=True)
            self.write(*(request(f"{i}", "/v1/completions", prompt="x", max_tokens=400,
                                 ignore_eos=True) for i in range(500)))
            process = self.start("--parallel", "2")
            eventually(lambda: self.n_lines() > 3 or process.poll() is not None, "progress")
            process.send_signal(number)
            self.assertEqual(process.wait(WAIT_S), code)
            self.assertIn(b"interrupted", process.stderr.read())
            for line in self.answers().values():
                self.assertEqual(line["response"]["status_code"], 200)

    def test_a_foreign_file_is_not_touched(self):
        self.write(request("a"), request("b"))
        for pattern, text in (("end of .* is not what kr batch writes", "notes"),
                              ("end of .* is not what kr batch writes", "{"),
                              ("end of .* is not what kr batch writes", '{"id":"batch_req'),
                              ("line 1 is not what kr batch writes", "notes\n"),
                              ("line 2 is not what", ANSWERED % "a" + "{}\n"),
                              ("custom_id \"c\" is not in", ANSWERED % "c"),
                              ("line 2: custom_id \"a\" again", ANSWERED % "a" * 2)):
            self.target.write_text(text)
            self.assert_fails(11, pattern, *self.words())
            self.assertEqual(self.target.read_text(), text)
        for torn, n_skipped in (('{"id":"batch_req_AAAA', 0), (ANSWERED % "a" + "{", 1),
                                (ANSWERED % "a" + '{"id":"batch_req_AAAA', 1)):
            self.target.write_text(torn)
            self.assertEqual(self.run_batch()["skipped"], n_skipped)
            self.assertEqual(set(self.answers()), {"a", "b"})

    def test_two_runs_do_not_write_one_file(self):
        self.write(*(request(f"{i}", "/v1/completions", prompt="x", max_tokens=400,
                             ignore_eos=True) for i in range(2000)))
        process = self.start("--parallel", "1")
        try:
            eventually(lambda: self.n_lines() > 0, "progress")
            self.assert_fails(1, "another process writes", *self.words())
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    unittest.main()
