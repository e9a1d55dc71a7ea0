"""/metrics: read by the real Prometheus and checked by its own tool; numbers move with what was
asked; who may see them."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ops_program import Stream, bearer, key_line, long_server, metric  # noqa: E402
from serve_program import ROOT, WAIT_S, ServedTest, Server, eventually  # noqa: E402

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find(program):
    unpacked = ROOT / "build" / "prometheus" / "usr" / "bin" / program
    found = shutil.which(program) or (unpacked if unpacked.exists() else None)
    if found is None:
        raise AssertionError(f"no {program}: tools/setup.sh test unpacks it")
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """The server of that name, scraping `server` each second."""

    def __init__(self, scratch, server, key):
        scratch = Path(scratch)
        (scratch / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            "  - job_name: kr\n"
            f"    authorization: {{credentials: {key}}}\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{server.port}']}}]\n")
        self.log = open(scratch / "prometheus.log", "wb")
        for _ in range(5):  # the port may be taken by another in between
            self.port = free_port()
            self.process = subprocess.Popen(
                [find("prometheus"), f"--config.file={scratch / 'prometheus.yml'}",
                 f"--storage.tsdb.path={scratch / 'data'}",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                env={**os.environ, "GOMAXPROCS": "1"})
            if eventually(lambda: self.process.poll() is not None or self.is_up(), "Prometheus"):
                if self.process.poll() is None:
                    return
        raise AssertionError((scratch / "prometheus.log").read_text())

    def is_up(self):
        try:
            with DIRECT.open(f"http://127.0.0.1:{self.port}/-/ready", timeout=WAIT_S) as answer:
                return answer.status == 200
        except OSError:
            return False

    def query(self, text):
        """The result of an instant query: [(labels, value)]; [] also while it starts."""
        url = (f"http://127.0.0.1:{self.port}/api/v1/query?" +
               urllib.parse.urlencode({"query": text}))
        try:
            with DIRECT.open(url, timeout=WAIT_S) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [(row["metric"], float(row["value"][1])) for row in result]

    def end(self):
        self.process.terminate()
        self.process.wait(WAIT_S)
        self.log.close()


class RealPrometheus(unittest.TestCase):
    def test_it_scrapes_and_answers_a_query(self):
        with tempfile.TemporaryDirectory() as scratch:
            keys = Path(scratch) / "keys"
            keys.write_text(key_line("prom", "sk-prom", "metrics") +
                            key_line("user", "sk-user", "generate"))
            server = Server.of_tiny("--api-key-file", keys)
            try:
                for _ in range(3):
                    answer = server.call("POST", "/v1/completions",
                                         {"prompt": "the", "max_tokens": 8, "ignore_eos": True},
                                         bearer("sk-user"))
                    self.assertEqual(answer.status, 200)
                prometheus = Prometheus(scratch, server, "sk-prom")
                try:
                    self.check(prometheus)
                finally:
                    prometheus.end()
            finally:
                self.assertEqual(server.stop(), 0)

    def check(self, prometheus):
        """Each figure by itself: a scrape that takes over a second on a busy machine has none."""
        for query, is_good in (
                ('up{job="kr"}', lambda v: v == 1),
                # At least what clients made; the server's own probes come on top.
                ("kr_tokens_generated_total", lambda v: v >= 24),
                ('vllm:generation_tokens_total{model_name="llama"}', lambda v: v >= 24),
                ("histogram_quantile(0.5, sum by (le) (kr_ttft_seconds_bucket))",
                 lambda v: 0 < v < 600),
                ('kr_http_requests_total{endpoint="completions",method="POST",status="2xx"}',
                 lambda v: v == 3)):
            rows = eventually(lambda q=query, good=is_good: [v for _, v in prometheus.query(q)
                                                             if good(v)], query)
            self.assertEqual(len(rows), 1, query)
        self.assertEqual(prometheus.query("scrape_series_added < 0"), [])


class Text(ServedTest, unittest.TestCase):
    def test_promtool_finds_nothing_but_the_colons_of_vllm(self):
        self.server.post("/v1/completions", {"prompt": "the", "max_tokens": 4})
        text = self.server.call("GET", "/metrics").body
        done = subprocess.run([find("promtool"), "check", "metrics"], input=text,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        lines = done.stdout.decode().splitlines()
        self.assertIn(done.returncode, (0, 3), lines)
        other = [x for x in lines
                 if not re.fullmatch(r"vllm:\w+ metric names should not contain ':'", x)]
        self.assertEqual(other, [])
        self.assertTrue(lines)

    def test_content_type(self):
        answer = self.server.call("GET", "/metrics")
        self.assertEqual(answer.headers["Content-Type"],
                         "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(self.server.call("HEAD", "/metrics").body, b"")

    def test_every_row_of_the_telemetry_is_there(self):
        rows = re.findall(r'^KR_METRIC\((\w+), (\w+), "([^"]*)", "([^"]*)"',
                          (ROOT / "src" / "telemetry" / "metrics.def").read_text(), re.M)
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$",
                                self.server.call("GET", "/metrics").text, re.M))
        self.assertGreater(len(rows), 20)
        for name, kind, alias, unit in rows:
            suffix = {"HISTOGRAM": "_seconds", "COUNTER": "_total"}.get(
                kind, "_ratio" if unit == "1" else "")
            self.assertEqual(types.get(f"kr_{name}{suffix}"), kind.lower(), name)
            if alias:
                self.assertEqual(types.get(alias), kind.lower(), alias)

    def test_numbers_move_with_what_is_asked(self):
        body = {"prompt": [5] * 40, "max_tokens": 7, "ignore_eos": True}
        done = 'kr_http_requests_total{endpoint="completions",method="POST",status="2xx"}'
        series = ("kr_tokens_generated_total", "kr_tokens_prompt_total", "kr_ttft_seconds_count",
                  "kr_generate_seconds_count", "kr_requests_finished_total",
                  "kr_http_request_bytes_total", "kr_http_response_bytes_total",
                  'kr_http_first_byte_seconds_count{endpoint="completions"}', done)
        before = {name: metric(self.server, name) or 0 for name in series}
        answer = self.server.post("/v1/completions", body)
        self.assertEqual(answer.status, 200)
        least = {**dict.fromkeys(series, 1), "kr_tokens_generated_total": 7,
                 "kr_http_request_bytes_total": len(json.dumps(body)),
                 "kr_http_response_bytes_total": len(answer.body)}
        for name in series:  # a request is counted when its answer has left
            eventually(lambda n=name: metric(self.server, n) - before[n] >= least[n], name)

    def test_refusals_are_counted_by_class(self):
        def n(endpoint, method, status):
            return metric(self.server, f'kr_http_requests_total{{endpoint="{endpoint}",'
                                       f'method="{method}",status="{status}"}}') or 0

        cases = ((("other", "GET", "4xx"), ("GET", "/nosuch", None)),
                 (("completions", "POST", "4xx"), ("POST", "/v1/completions", {"n": "x"})),
                 (("other", "other", "4xx"), ("BREW", "/nosuch", None)))
        for labels, request in cases:
            before = n(*labels)
            self.assertGreaterEqual(self.server.call(*request).status, 400)
            eventually(lambda labels=labels, before=before: n(*labels) == before + 1, labels)

    def test_process_and_build(self):
        self.assertGreater(metric(self.server, "process_resident_memory_bytes"), 1 << 20)
        self.assertGreater(metric(self.server, "process_open_fds"), 5)
        self.assertGreater(metric(self.server, "process_start_time_seconds"), 1.6e9)
        text = self.server.call("GET", "/metrics").text
        self.assertRegex(text, r'(?m)^kr_build_info\{version="[^"]+",commit="[^"]+",isa="\w+"\} 1$')
        self.assertRegex(text, r'(?m)^kr_model_kv_max_bytes\{model="llama"\} [1-9]\d*$')

    def test_a_client_that_goes_is_counted_apart(self):
        gone = 'kr_http_requests_total{endpoint="completions",method="POST",status="gone"}'
        with tempfile.TemporaryDirectory() as scratch:
            server = long_server(scratch)
            try:
                stream = Stream(server)
                self.assertIsNotNone(stream.event())
                eventually(lambda: metric(server, "kr_requests_running") == 1, "it runs")
                eventually(lambda: metric(server, "kr_kv_usage_ratio") > 0, "its pages")
                self.assertGreaterEqual(metric(server, "kr_http_requests_in_flight"), 2)
                self.assertGreaterEqual(metric(server, "kr_http_connections"), 2)
                stream.close()
                eventually(lambda: metric(server, gone) == 1, "a client that has gone")
                eventually(lambda: metric(server, "kr_requests_cancelled_total") == 1, "a cancel")
                eventually(lambda: metric(server, "kr_requests_running") == 0, "its end")
            finally:
                self.assertEqual(server.stop(), 0)


class Off(ServedTest, unittest.TestCase):
    WORDS = ("--metrics", "off")

    def test_there_is_nothing_to_see(self):
        answer = self.server.call("GET", "/metrics")
        self.assertEqual((answer.status, answer.error()["code"]), (404, "unknown_route"))
        answer = self.server.post("/v1/completions", {"prompt": "the", "max_tokens": 4})
        self.assertEqual(answer.status, 200)


if __name__ == "__main__":
    unittest.main()
