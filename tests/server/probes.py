"""Raw bytes that a server must refuse, and raw bytes that it must take: one table for every route.

    for probe in probes(Route("POST", "/v1/completions", body=b'{"prompt":"a"}')): ...

A refused probe gets one answer of the statuses it names, then the connection ends: behind each of
them stands a complete second request, which must never be answered. `run` says what was wrong, or
None. Nothing here half-closes: for this server a client that does has gone."""
import json
import re
import socket

WAIT_S = 120
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")


class Route:
    """A request that is answered with one of `ok` when nothing is wrong with its bytes. headers:
    more lines, each with its CR LF (a key, a media type)."""

    def __init__(self, method, path, body=None, headers=b"", ok=(200,), host=b"localhost"):
        self.method, self.path, self.ok, self.host = method.encode(), path.encode(), ok, host
        self.body = body
        self.headers = headers
        if body is not None and b"content-type" not in headers.lower():
            self.headers += b"Content-Type: application/json\r\n"

    def line(self, target=None, version=b"HTTP/1.1"):
        return b"%s %s %s\r\n" % (self.method, self.path if target is None else target, version)

    def host_line(self):
        return b"Host: " + self.host + b"\r\n"

    def fields(self):
        return self.host_line() + self.headers

    def length(self):
        return b"" if self.body is None else b"Content-Length: %d\r\n" % len(self.body)

    def request(self, extra=b"", version=b"HTTP/1.1", target=None):
        """A good one, with more header lines."""
        return (self.line(target, version) + self.fields() + extra + self.length() + b"\r\n" +
                (self.body or b""))

    def chunked(self, chunks, extra=b""):
        return (self.line() + self.fields() + b"Transfer-Encoding: chunked\r\n" + extra + b"\r\n" +
                chunks)


class Probe:
    """statuses: of the one answer. closes: the connection must end with it. n_answers: how many
    are due, for requests that follow each other. may_be_silent: closing without a word will do."""

    def __init__(self, name, data, statuses, closes, n_answers=1, pieces=None):
        self.name, self.data, self.statuses, self.closes = name, data, statuses, closes
        self.n_answers = n_answers
        self.pieces = pieces or [data]


class Answers:
    """What came back, taken apart. complete: no byte is left over, no answer cut."""

    def __init__(self):
        self.statuses, self.heads, self.bodies, self.interim = [], [], [], 0
        self.rest, self.ended = b"", False

    def feed(self, data, is_head):
        self.rest += data
        while self.take(is_head):
            pass

    def take(self, is_head):
        end = self.rest.find(b"\r\n\r\n")
        match = STATUS_LINE.match(self.rest)
        if end < 0 or not match:
            return False
        status, head = int(match.group(1)), self.rest[:end + 4]
        body, at = b"", end + 4
        length = re.search(rb"(?im)^content-length: (\d+)\r$", head)
        if status == 100:
            self.interim += 1
            self.rest = self.rest[at:]
            return True
        if is_head:
            pass
        elif length:
            at += int(length.group(1))
            if len(self.rest) < at:
                return False
            body = self.rest[end + 4:at]
        elif re.search(rb"(?im)^transfer-encoding: chunked\r$", head):
            found = self.chunks(at)
            if found is None:
                return False
            body, at = found
        else:
            return False
        self.statuses.append(status)
        self.heads.append(head)
        self.bodies.append(body)
        self.rest = self.rest[at:]
        return True

    def chunks(self, at):
        body = b""
        while True:
            line = re.compile(rb"([0-9a-f]+)\r\n").match(self.rest, at)
            if not line:
                return None
            size, begin = int(line.group(1), 16), line.end()
            if len(self.rest) < begin + size + 2:
                return None
            body += self.rest[begin:begin + size]
            at = begin + size + 2
            if size == 0:
                return body, at


def exchange(connect, probe, is_head=False):
    """Sends a probe on a new connection; reads until the server closes or all answers are there."""
    answers = Answers()
    with connect() as connection:
        connection.settimeout(WAIT_S)
        try:
            for piece in probe.pieces:
                connection.sendall(piece)
        except OSError:
            pass  # refused in the middle; the answer is still there to be read
        while probe.closes or len(answers.statuses) < probe.n_answers:
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                answers.ended = True
                break
            if not data:
                answers.ended = True
                break
            answers.feed(data, is_head)
    return answers


def error_fault(head, body):
    if not re.search(rb"(?im)^x-request-id: [A-Za-z0-9._-]{1,64}\r$", head):
        return "no X-Request-Id"
    if not re.search(rb"(?im)^content-type: application/json\r$", head):
        return "the error is not application/json"
    if not re.search(rb"(?im)^connection: close\r$", head):
        return "refused without Connection: close"
    if re.search(rb"(?im)^server:", head):
        return "a Server header"
    try:
        data = json.loads(body)
        error = data["error"]
    except (ValueError, KeyError, TypeError):
        return f"no error body: {body[:100]!r}"
    if isinstance(error, str) and error:  # the endpoint's own, of the Ollama family
        return None
    fields = ("message", "type") if data.get("type") == "error" else ("message", "type", "code")
    if not all(isinstance(error.get(k), str) and error[k] for k in fields):
        return f"error body lacks a field: {error}"
    return None


def run(connect, probe):
    """None, or what was wrong. connect() gives a connected socket."""
    try:
        answers = exchange(connect, probe, is_head=probe.data.startswith(b"HEAD "))
    except socket.timeout:
        return f"nothing happened for {WAIT_S} s"
    if len(answers.statuses) != probe.n_answers:
        return (f"{len(answers.statuses)} answers {answers.statuses}, expected {probe.n_answers}; "
                f"rest {answers.rest[:80]!r}")
    if any(status not in probe.statuses for status in answers.statuses):
        return f"answered {answers.statuses}, expected {sorted(probe.statuses)}"
    if answers.rest:
        return f"bytes behind the answer: {answers.rest[:80]!r}"
    if probe.closes and not answers.ended:
        return "the connection did not end"
    if probe.closes and answers.statuses[-1] >= 400:
        return error_fault(answers.heads[-1], answers.bodies[-1])
    return None


# ---- what must be refused ------------------------------------------------------------------------

LINES = [  # whole request lines; {m} method, {p} path
    (b"{m}  {p} HTTP/1.1", 400), (b"{m} {p}  HTTP/1.1", 400), (b" {m} {p} HTTP/1.1", 400),
    (b"{m}\t{p} HTTP/1.1", 400), (b"{m} {p}\tHTTP/1.1", 400), (b"{m} {p} HTTP/1.1 ", 400),
    (b"{m} {p} HTTP/1.1\t", 400), (b"{m} {p}", 400), (b"{m}", 400), (b"{p} HTTP/1.1", 400),
    (b"{m} HTTP/1.1", 400), (b"{m} {p} {p} HTTP/1.1", 400), (b"{m} {p} http/1.1", 400),
    (b"{m} {p} HTTP/1.2", 505), (b"{m} {p} HTTP/2.0", 505), (b"{m} {p} HTTP/0.9", 505),
    (b"{m} {p} HTTP/1.", 400), (b"{m} {p} HTTP/1", 400), (b"{m} {p} HTTP/11", 400),
    (b"{m} {p} HTTP/1.10", 400), (b"{m} {p} HTTP/01.1", 505), (b"{m} {p} HTTP/1.01", 400),
    (b"{m} {p} HTTP /1.1", 400), (b"{m} {p} HTTP/ 1.1", 400), (b"{m} {p} HTTP/+1.1", 400),
    (b"{m} {p} HTTP/-1.1", 400), (b"{m} {p} HTTP/1,1", 400), (b"{m} {p} HTTP/1.1.1", 400),
    (b"{m} {p} ICY", 400), (b"{m} {p} SIP/2.0", 400), (b"{m}({p} HTTP/1.1", 400),
    (b"{m}: {p} HTTP/1.1", 400), (b"\"{m}\" {p} HTTP/1.1", 400), (b"{m}/ {p} HTTP/1.1", 400),
    (b"\xc3\xa4{m} {p} HTTP/1.1", 400), (b"{m} {p}\xa0HTTP/1.1", 400),
    (b"{m}\x0b{p} HTTP/1.1", 400), (b"{m}\x00 {p} HTTP/1.1", 400), (b"\x00{m} {p} HTTP/1.1", 400),
    (b"{m} {p}\x00 HTTP/1.1", 400), (b"{m} {p} HTTP/1.1\x00", 400), (b"{m} {p}\r HTTP/1.1", 400),
    (b"{m} {p}\n HTTP/1.1", 400), (b"\xef\xbb\xbf{m} {p} HTTP/1.1", 400),
    (b"M" * 33 + b" {p} HTTP/1.1", 400), (b"\r\n\r\n{m} {p} HTTP/1.1", 400),
    (b"\n{m} {p} HTTP/1.1", 400), (b"\r{m} {p} HTTP/1.1", 400),
]

TARGETS = [  # in place of the path
    b"*", b"a", b"{q}", b"http://localhost{p}", b"https://localhost{p}", b"HTTP://localhost{p}",
    b"//localhost{p}", b"/{p}", b"{p}//", b"/.{p}", b"/..{p}", b"/a/..{p}", b"/%2e{p}",
    b"/%2e%2e{p}", b"/%2E./..{p}", b"{p}/.", b"{p}/..", b"{p}/%2e%2e", b"{p}%", b"{p}%4",
    b"{p}%zz", b"{p}%u0041", b"{p}%00", b"{p}%0d%0aX:y", b"{p}%0a", b"{p}%7f", b"{p}#a", b"{p}?a#b",
    b"{p}\\", b"\\{p}", b"/a\\..{p}", b"{p}\"", b"{p}<a>", b"{p}|", b"{p}^", b"{p}`", b"{p}{{",
    b"{p}}}", b"{p}[", b"{p}]", b"{p}?a=\"b\"", b"{p}?<", b"{p}?a\\b", b"{p}%ff", b"{p}%c0%af",
    b"{p}%ed%a0%80", b"/%2f{p}", b"{p}%2f%2f", b"{p}\x7f", b"{p}\xff", b"{p}\x01", b"localhost:80",
    b"user@localhost:80", b"javascript:alert(1)", b"file:///etc/passwd",
]

FIELDS = [  # header lines without their end
    b"A : b", b"A\t: b", b" A: b", b"\tA: b", b"A b: c", b": b", b"A", b"A=b", b"A\x80: b",
    b"\xc3\xa4: b", b"A(: b", b"A): b", b"A,: b", b"A/: b", b"A;: b", b"\"A\": b", b"A[: b",
    b"A{: b", b"A@: b", b"A\\: b", b"A?: b", b"A<: b", b"A\x00: b", b"A\x0b: b", b"A\x7f: b",
    b"A: b\x00c", b"A: \x00", b"A: b\x01", b"A: b\x08", b"A: b\x0b", b"A: b\x0c", b"A: b\x1b",
    b"A: b\x1f", b"A: b\x7f", b"A: b\rc", b"A: b\r", b"A: b\nc", b"A:\n b", b"A:\r\n b",
    b"A: b\r\n c", b"A: b\r\n\tc", b"A: b\r\n :c", b"A: b\r\n \r\n c", b"A: b\n\n", b"A: b\n\r",
    b"A: b\nB: c", b"A\r\n: b", b"A\n: b", b"Connection: \"close\"", b"Connection: a b",
    b"Connection: close;x",
]

HOSTS = [  # values; None: no such line
    None, b"", b" ", b":80", b"a:", b"a:x", b"a:65536", b"a:99999", b"a:000080", b"a:-1", b"a:+1",
    b"a:1:2", b"u@a", b"a/b", b"a b", b"a,b", b"a, a", b"[::1", b"::1", b"[]", b"[::1]x",
    b"[::1]:", b"[gg::1]:x", b"\xc3\xa4", b"a%20", b"http://a", b"a?", b"a#b", b"a;b", b"a\tb",
    b"<a>", b"\"a\"", b"a\\b", b"(a)", b"a=b",
]

LENGTHS = [  # values of Content-Length; the body stands behind all of them
    b"", b" ", b"+{n}", b"-{n}", b"-0", b"{n} {n}", b"{n},{n}", b"{n}, {n}", b"0x{n}", b"{n}a",
    b"a",     b"{n};", b"{n}.0", b"1e1", b"\"{n}\"", b"({n})", b"0{z}{n}", b"12345678901234567890",
    b"18446744073709551616", b"18446744073709551615", b"99999999999999999999999", b"{n}\x0b",
    b"\x0b{n}", b"{n}\x00", b"{n}\xa0", b"\xef\xbc\x95", b"{n}\r\n {n}", b"{n}_0", b"NaN", b"inf",
    b"${n}", b"{n}%",
]

CODINGS = [  # header lines, (lines, status); {n}: length of the chunked body
    (b"Transfer-Encoding: chunked\r\nContent-Length: {n}", 400),
    (b"Content-Length: {n}\r\nTransfer-Encoding: chunked", 400),
    (b"Content-Length: 0\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 0", 400),
    (b"Content-Length: {n}\r\nTransfer-Encoding: identity", 400),
    (b"Content-Length: {n}\r\nTransfer-Encoding:", 400),
    (b"Content-Length: {n}\r\nContent-Length: {n}", 400),
    (b"Content-Length: {n}\r\nContent-Length: 0", 400),
    (b"Content-Length: 0\r\nContent-Length: {n}", 400),
    (b"content-length: {n}\r\nCONTENT-LENGTH: {n}", 400),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400),
    (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: \r\nTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding: chunked, chunked", 400), (b"Transfer-Encoding: chunked, identity", 400),
    (b"Transfer-Encoding: chunked, gzip", 400), (b"Transfer-Encoding: chunked,", 400),
    (b"Transfer-Encoding: ,chunked", 400), (b"Transfer-Encoding: , chunked", 400),
    (b"Transfer-Encoding: \"chunked\"", 400), (b"Transfer-Encoding: 'chunked', a", 400),
    (b"Transfer-Encoding: chunked;a=b", 400), (b"Transfer-Encoding: chunked; q=1", 400),
    (b"Transfer-Encoding: chunked a", 400), (b"Transfer-Encoding: a chunked", 400),
    (b"Transfer-Encoding: \x0bchunked", 400), (b"Transfer-Encoding: chunked\x0b", 400),
    (b"Transfer-Encoding: chunked\x00", 400), (b"Transfer-Encoding: \xa0chunked", 400),
    (b"Transfer-Encoding : chunked", 400), (b"Transfer-Encoding\t: chunked", 400),
    (b" Transfer-Encoding: chunked", 400), (b"A: b\r\n Transfer-Encoding: chunked", 400),
    (b"Transfer-Encoding:\r\n chunked", 400), (b"Transfer-Encoding: chunked\r\n ", 400),
    (b"A: b\nTransfer-Encoding: chunked", 400), (b"A: b\rTransfer-Encoding: chunked", 400),
    (b"Transfer-Encoding:", 400), (b"Transfer-Encoding: gzip, chunked", 501),
    (b"Transfer-Encoding: deflate", 501), (b"Transfer-Encoding: identity", 501),
    (b"Transfer-Encoding: xchunked", 501), (b"Transfer-Encoding: chunke", 501),
    (b"Transfer-Encoding: chunkedd", 501), (b"Transfer-Encoding: compress", 501),
]

CHUNKS = [  # bodies behind Transfer-Encoding: chunked, (body, status)
    (b"\r\n", 400), (b"g\r\n", 400), (b"-1\r\nx\r\n", 400), (b"+1\r\nx\r\n", 400),
    (b" 1\r\nx\r\n", 400), (b"\t1\r\nx\r\n", 400), (b"1 \r\nx\r\n", 400), (b"1\t\r\nx\r\n", 400),
    (b"1 ;a\r\nx\r\n", 400), (b"0x1\r\nx\r\n", 400), (b"1h\r\nx\r\n", 400), (b"1\nx\r\n", 400),
    (b"1\r\nxy\r\n", 400), (b"2\r\nx\r\n0\r\n\r\n", 400), (b"1\r\nx\n0\r\n\r\n", 400),
    (b"1\r\nx0\r\n\r\n", 400), (b"1\rx\r\n", 400), (b"1\r\rx", 400), (b"1,\r\nx\r\n", 400),
    (b"1;\r\nx\r\n", 400), (b"1;a b\r\nx\r\n", 400), (b"1;a=\r\nx\r\n", 400),
    (b"1;a=b c\r\nx\r\n", 400), (b"1;a=\"b\r\nx\r\n", 400), (b"1;a=\"b\"c\r\nx\r\n", 400),
    (b"1;=b\r\nx\r\n", 400), (b"1;a=b=c\r\nx\r\n", 400), (b"1;;a\r\nx\r\n", 400),
    (b"1; a\r\nx\r\n", 400), (b"1;a\nx\r\n", 400), (b"1;\nx\r\n", 400), (b"1;a\x00\r\nx\r\n", 400),
    (b"1;a=\"\x01\"\r\nx\r\n", 400), (b"1;" + b"a" * 255 + b"\r\nx\r\n", 400),
    (b"0" * 256 + b"1\r\nx\r\n", 400), ((b"1;" + b"a" * 200 + b"\r\nx\r\n") * 21, 400),
    (b"ffffffffffffffff\r\nx", 413), (b"10000000000000000\r\nx", 413),
    (b"8000000000000000\r\n", 413),
    (b"1\r\nx\r\nffffffffffffffff\r\nx", 413), (b"7fffffffffffffff\r\nx", 413),
    (b"0\n\r\n", 400), (b"0\r\n\n", 400), (b"0\r\nA\r\n\r\n", 400), (b"0\r\nA : b\r\n\r\n", 400),
    (b"0\r\n A: b\r\n\r\n", 400), (b"0\r\nA: b\r\n c\r\n\r\n", 400), (b"0\r\nA: b\n\r\n", 400),
    (b"0\r\nA: \x00\r\n\r\n", 400), (b"0\r\n: b\r\n\r\n", 400), (b"0\r\n" + b"A: b\r\n" * 17, 400),
    (b"0\r\nA: " + b"b" * 4096 + b"\r\n\r\n", 400), (b"0\r\n\rx", 400),
    (b"0\r\nGET / HTTP/1.1\r\n", 400),
]

EXPECTATIONS = [b"", b"100", b"200-ok", b"100-continue, x", b"100-continue;a=b", b"100-continued",
                b"100-continue\r\nExpect: 100-continue", b"\"100-continue\""]

NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.0\r\n", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"EHLO a\r\n",
    b"{\"a\":1}\r\n", b"<policy-file-request/>\x00", b"HTTP/1.1 200 OK\r\n\r\n", b"\r\r", b"\n\n",
]


def fill(template, route, n_body=0):
    out = template.replace(b"{m}", route.method).replace(b"{p}", route.path)
    out = out.replace(b"{q}", route.path.lstrip(b"/") or b"a").replace(b"{z}", b"0" * 19)
    return out.replace(b"{n}", b"%d" % n_body).replace(b"{{", b"{").replace(b"}}", b"}")


def refused_heads(route):
    behind = route.headers + route.length() + b"\r\n" + (route.body or b"")
    for template, status in LINES:
        yield "line", template, fill(template, route) + b"\r\n" + route.host_line() + behind, status
    for template in TARGETS:
        head = route.line(fill(template, route)) + route.host_line()
        yield "target", template, head + behind, 400
    for field in FIELDS:
        yield "field", field, route.request(field + b"\r\n"), 400
        yield "first field", field, route.line() + field + b"\r\n" + route.host_line() + behind, 400
    for host in HOSTS:
        lines = b"" if host is None else b"Host: " + host + b"\r\n"
        yield "host", host, route.line() + lines + behind, 400
    for extra in (b"Host: localhost\r\n", b"host: other\r\n", b"Host:\r\n"):
        yield "second host", extra, route.request(extra), 400
    for value in EXPECTATIONS:
        yield "expect", value, route.request(b"Expect: " + value + b"\r\n"), 417


def refused_bodies(route):
    body = route.body or b"12345"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for template in LENGTHS:
        line = b"Content-Length: " + fill(template, route, len(body)) + b"\r\n\r\n"
        yield "length", template, route.line() + route.fields() + line + body, 400
    for lines, status in CODINGS:
        lines = fill(lines, route, len(chunked)) + b"\r\n\r\n"
        yield "coding", lines, route.line() + route.fields() + lines + chunked, status
    yield ("coding", b"chunked in HTTP/1.0", route.line(version=b"HTTP/1.0") + route.fields() +
           b"Transfer-Encoding: chunked\r\n\r\n" + chunked, 400)
    for lines in (b"Content-Length: 9223372036854775807", b"Content-Length: 268435457",
                  b"Content-Length: 9999999999999999999"):
        if route.body is not None:
            yield "too large", lines, route.line() + route.fields() + lines + b"\r\n\r\n", 413
    if route.body is not None:
        for chunks, status in CHUNKS:
            yield "chunk", chunks, route.chunked(chunks), status


def refused_sizes(route):
    yield "long path", b"", route.request(target=route.path + b"?" + b"a" * 8192), 414
    yield "long line", b"", route.request(b"A: " + b"b" * 8190 + b"\r\n"), 431
    yield "long name", b"", route.request(b"A" * 8192 + b": b\r\n"), 431
    yield "many lines", b"", route.request(b"A: b\r\n" * 101), 431
    yield "long block", b"", route.request((b"A: " + b"b" * 4000 + b"\r\n") * 9), 431
    yield "endless line", b"", route.method + b" /" + b"a" * 100000, 414
    yield "endless header", b"", route.line() + b"A: " + b"b" * 100000, 431


def refused(route):
    """(kind, what, bytes, status); a second request stands behind each."""
    for rows in (refused_heads(route), refused_bodies(route), refused_sizes(route)):
        yield from rows
    for data in NOT_HTTP:
        yield "not http", data, data, {400, 505}


# ---- what must be taken --------------------------------------------------------------------------

def accepted_heads(route):
    yield "plain", route.request()
    for extra in (b"X-Empty:\r\n", b"X-Blank: \t \r\n", b"X-Tab:\ta\tb\t\r\n",
                  b"X-High: \x80\xff\r\n",
                  b"!#$%&'*+-.^_`|~: a\r\n", b"A:b\r\nA: b\r\n", b"A: " + b"b" * 8189 + b"\r\n",
                  b"A: b\r\n" * 90, b"Cookie: a=b; c=\"d\"\r\n", b"Connection: keep-alive\r\n",
                  b"Connection: , a,\tb ,\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
                  b"Transfer_Encoding: chunked\r\n", b"Content_Length: 7\r\n", b"TE: trailers\r\n",
                  b"X-Request-Id: a.b-c_D9\r\n", b"X-Request-Id: not one of ours!\r\n",
                  b"Accept-Encoding: gzip\r\n", b"Trailer: A\r\n"):
        yield extra[:20], route.request(extra)
    for target in (b"?", b"?a=b&c=d", b"?a=%20%zz", b"?/../..//", b"?a[]=1", b"?!$&'()*+,;=:@/?"):
        yield target, route.request(target=route.path + target)
    encoded = b"/" + b"".join(b"%%%02x" % byte if byte != 47 else b"/" for byte in route.path[1:])
    yield "percent-encoded path", route.request(target=encoded)
    yield "longest line", route.request(
        target=route.path + b"?" + b"a" * (8192 - len(route.line()) + 1))
    yield "empty line before", b"\r\n" + route.request()
    for name in (b"HOST", b"host", b"hOsT"):
        yield name, route.request().replace(b"Host:", name + b":", 1)


def accepted_bodies(route):
    if route.body is None:
        return
    body = route.body
    whole, half = b"%x\r\n%s\r\n" % (len(body), body), len(body) // 2
    split = b"%x\r\n%s\r\n%X\r\n%s\r\n" % (half, body[:half], len(body) - half, body[half:])
    bytewise = b"".join(b"1\r\n" + body[i:i + 1] + b"\r\n" for i in range(len(body)))
    for name, chunks in (("one chunk", whole + b"0\r\n\r\n"), ("two chunks", split + b"0\r\n\r\n"),
                         ("a byte a chunk", bytewise + b"0\r\n\r\n"),
                         ("zeros", b"000" + whole + b"0000\r\n\r\n"),
                         ("trailers", whole + b"0\r\nA: b\r\nContent-Length: 7\r\n\r\n"),
                         ("16 trailers", whole + b"0\r\n" + b"A: b\r\n" * 16 + b"\r\n"),
                         ("extensions", whole.replace(b"\r\n", b";a;b=c;d=\"e\\\"f\"\r\n", 1) +
                          b"0;x=y\r\n\r\n")):
        yield name, route.chunked(chunks)
    yield "coding in capitals", route.chunked(whole + b"0\r\n\r\n").replace(b"chunked", b"CHUNKED")
    yield "zeros before the length", route.request().replace(b"Content-Length: ",
                                                             b"Content-Length: 000")


def accepted(route):
    for name, data in accepted_heads(route):
        yield name, data
    yield from accepted_bodies(route)


def probes(route):
    """Every probe for this route."""
    second = route.request()
    for kind, what, data, status in refused(route):
        statuses = status if isinstance(status, set) else {status}
        yield Probe(f"{kind} {what!r:.60}", data + second, statuses, closes=True)
    ok = set(route.ok)
    for name, data in accepted(route):
        yield Probe(f"accept {name!r}", data, ok, closes=False)
        yield Probe(f"accept {name!r}, then another", data + second, ok, closes=False, n_answers=2)
    if route.method == b"GET":
        yield Probe("accept HEAD", route.request().replace(b"GET", b"HEAD", 1), ok, closes=False)
    yield Probe("accept close", route.request(b"Connection: close\r\n") + second, ok, closes=True)
    yield Probe("accept HTTP/1.0", route.request(version=b"HTTP/1.0") + second, ok, closes=True)
    yield Probe("accept HTTP/1.0 keep-alive",
                route.request(b"Connection: keep-alive\r\n", version=b"HTTP/1.0") + second, ok,
                closes=False, n_answers=2)
    data = route.request() + second
    yield Probe("accept a byte a time", data, ok, closes=False, n_answers=2,
                pieces=[data[i:i + 1] for i in range(len(data))])
    yield Probe("accept many at once", second * 8, ok, closes=False, n_answers=8)
