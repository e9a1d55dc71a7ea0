"""Options of `kr serve`: one table is flag, environment and configuration file. What is refused is
refused before a model is opened; what is taken shows in how the server behaves."""
import json
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cli"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from kr_program import ProgramTest, environment, kr  # noqa: E402
from serve_program import Server, eventually  # noqa: E402


class Refusals(ProgramTest):
    def config(self, text):
        path = self.scratch / "kr.json"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    def assert_refused(self, text, pattern, code=2):
        self.assert_fails(code, pattern, "serve", "-m", self.model, "--config", self.config(text))

    def test_what_is_no_object_or_no_json(self):
        self.assert_refused("", "kr.json line 1: ")
        self.assert_refused('{"port": 1', "kr.json line 1: ")
        self.assert_refused("[]", "kr.json holds no JSON object")
        self.assert_refused('{"port": 1, "port": 2}', "kr.json line 1: duplicate")
        self.assert_refused('{"port": NaN}', "kr.json line 1: ")
        self.assert_refused('{"host": "\\u0000"}', "kr.json line 1: ")

    def test_unknown_keys(self):
        self.assert_refused({"prot": 1}, "kr.json: unknown key 'prot'; did you mean 'port'")
        self.assert_refused({"--port": 1}, "kr.json: unknown key '--port'; did you mean 'port'")
        self.assert_refused({"zzzzzz": 1}, "kr.json: unknown key 'zzzzzz'")
        self.assert_refused({"temp": 1}, "kr.json: unknown key 'temp'")
        self.assert_refused({"config": "x"}, "kr.json: unknown key 'config'")
        self.assert_refused({"help": True}, "kr.json: unknown key 'help'")

    def test_wrong_types(self):
        for value in ("8080", True, None, [1], {}):
            self.assert_refused({"port": value}, "kr.json: port wants a number")
        for value in (1, True, None, ["a"]):
            self.assert_refused({"host": value}, "kr.json: host wants a text")
            self.assert_refused({"log-format": value}, "kr.json: log-format wants a text")
        for value in (1, "true", None):
            self.assert_refused({"log-prompts": value}, "kr.json: log-prompts wants true or false")
        for value in ("a", 1, [1], [["a"]], None):
            self.assert_refused({"allowed-host": value},
                                "kr.json: allowed-host wants a list of texts")

    def test_values_out_of_bounds(self):
        for value in (-1, 65536, 2**63 - 1, 0.5, 1e30):
            self.assert_refused({"port": value},
                                "kr.json: port wants a whole number from 0 to 65535, not '")
        self.assert_refused({"port": 2**63}, "kr.json line 1: ")
        self.assert_refused({"log-format": "xml"}, "kr.json: log-format wants one of text, json")
        self.assert_refused({"isa": "neon"}, "kr.json: isa neon is not built")
        self.assert_refused({"host": "x" * 4096}, "kr.json: host is longer than 4095 bytes")
        self.assert_refused({"allowed-host": ["a"] * 1025}, "more than 1024 items")

    def test_a_bad_value_is_refused_also_where_a_flag_wins(self):
        path = self.config({"port": 65536})
        self.assert_fails(2, "kr.json: port wants", "serve", "-m", self.model, "--port", "0",
                          "--config", path)

    def test_files_that_cannot_be_read(self):
        self.assert_fails(3, "nosuch", "serve", "-m", self.model, "--config",
                          self.scratch / "nosuch")
        self.assert_fails(2, "regular file", "serve", "-m", self.model, "--config", self.scratch)
        large = self.scratch / "large.json"
        large.write_bytes(b" " * (1 << 20) + b"{}")
        self.assert_fails(2, "large.json", "serve", "-m", self.model, "--config", large)

    def test_environment_names_exist_for_all_options(self):
        for name, value, pattern in (
                ("KR_PORT", "tcp://10.0.0.1:80", "KR_PORT wants a whole number from 0 to 65535"),
                ("KR_LOG_FORMAT", "xml", "KR_LOG_FORMAT wants one of text, json"),
                ("KR_LOG_PROMPTS", "yes", "KR_LOG_PROMPTS wants one of 1, true, 0, false"),
                ("KR_ALLOWED_HOST", "a,,b", "KR_ALLOWED_HOST has an empty item"),
                ("KR_MAX_BODY_MB", "0", "KR_MAX_BODY_MB wants a whole number from 1 to 256"),
                ("KR_CONFIG", self.scratch / "nosuch", "nosuch")):
            with self.subTest(name=name):
                result = kr("serve", "-m", self.model, env=environment(**{name: value}))
                self.assertNotEqual(result.code, 0)
                self.assertRegex(result.err, pattern)

    def test_batch_has_them_too(self):
        words = ("batch", "-m", self.model, "in", "out")
        self.assert_fails(2, "kr.json: parallel wants a number", *words, "--config",
                          self.config({"parallel": "8"}))
        self.assert_fails(2, "kr.json: unknown key 'port'", *words, "--config",
                          self.config({"port": 1}))
        for key in ("json", "help"):
            self.assert_fails(2, f"kr.json: unknown key '{key}'", *words, "--config",
                              self.config({key: True}))
        self.assert_fails(2, "KR_PARALLEL wants a whole number", *words,
                          env=environment(KR_PARALLEL="0"))

    def test_help_names_flag_and_environment_of_every_option(self):
        text = kr("help", "serve").out.decode()
        for flag in ("port", "config", "api-key-file", "allowed-host", "drain-s", "log-format",
                     "max-connections-per-address", "kv"):
            name = "KR_" + flag.upper().replace("-", "_")
            self.assertRegex(text, rf"(?m)^ .*--{flag} .*\{{{name}\}}$")


class Precedence(ProgramTest):
    """The form of the log's lines tells which source has won."""

    def is_json(self, *words, config=None, **env):
        if config is not None:
            path = self.scratch / "kr.json"
            path.write_text(json.dumps(config))
            words += ("--config", path)
        server = Server(self.model, *words, env=environment(**env))
        try:
            self.assertEqual(server.call("GET", "/livez").status, 200)
            line = eventually(lambda: [x for x in server.lines if "/livez" in x], "a line")[0]
            return line.startswith("{")
        finally:
            self.assertEqual(server.stop(), 0)

    def test_flag_environment_file_default(self):
        file = {"log-format": "json"}
        self.assertFalse(self.is_json())
        self.assertTrue(self.is_json(config=file))
        self.assertFalse(self.is_json(config=file, KR_LOG_FORMAT="text"))
        self.assertTrue(self.is_json("--log-format", "json", config=file, KR_LOG_FORMAT="text"))
        self.assertTrue(self.is_json(KR_LOG_FORMAT="json"))

    def test_a_list_comes_whole_from_one_source(self):
        path = self.scratch / "hosts.json"
        path.write_text(json.dumps({"allowed-host": ["one.example", "two.example"]}))

        def granted(*words, **env):
            server = Server(self.model, *words, env=environment(**env))
            try:
                hosts = ("one.example", "two.example", "three.example", "four.example")
                return [host.split(".")[0] for host in hosts
                        if server.call("GET", "/livez", headers={"Host": host}).status == 200]
            finally:
                self.assertEqual(server.stop(), 0)

        self.assertEqual(granted(), [])
        self.assertEqual(granted("--config", path), ["one", "two"])
        self.assertEqual(granted("--config", path, KR_ALLOWED_HOST="three.example,four.example"),
                         ["three", "four"])
        self.assertEqual(granted("--allowed-host", "four.example", KR_CONFIG=path),
                         ["four"])

    def test_the_model_may_stand_in_the_file(self):
        path = self.scratch / "model.json"
        socket = self.scratch / "no such folder" / "socket"
        path.write_text(json.dumps({"model": [f"tiny={self.model}"], "unix-socket": str(socket)}))
        result = kr("serve", "--config", path)  # gets as far as binding
        self.assertEqual(result.code, 10, result.err)
        self.assertNotIn("which model", result.err)


if __name__ == "__main__":
    unittest.main()
