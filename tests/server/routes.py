"""The routes of app/server/endpoints.def, and one connection that asks them."""
import http.client
import json
import re

from serve_program import ROOT, WAIT_S

ROW = re.compile(r'^KR_ENDPOINT\((\w+), "(\w+)", "([^"]+)", (\w+), (\w+), (true|false)\)', re.M)
STYLES = {"OPENAI", "ANTHROPIC", "OLLAMA"}


class Row:
    """An endpoint. path: with "x" for "{id}". body: b"{}" where it takes one, else None."""

    def __init__(self, name, method, path, scope, style, has_body):
        self.name, self.method, self.scope, self.style = name, method, scope, style
        self.path = path.replace("{id}", "x")
        self.body = b"{}" if has_body == "true" else None

    def __str__(self):
        return f"{self.method} {self.path}"


def rows():
    text = (ROOT / "app" / "server" / "endpoints.def").read_text()
    found = [Row(*match.groups()) for match in ROW.finditer(text)]
    if len(found) != text.count("\nKR_ENDPOINT(") or not all(r.style in STYLES for r in found):
        raise AssertionError("endpoints.def is not as routes.py reads it")
    return found


class Client:
    """Requests on one kept connection, opened anew where the server has closed it."""

    def __init__(self, port):
        self.port, self.connection = port, None

    def ask(self, method, path, fields=(), body=None):
        """(status, headers, body); fields: (name, value) pairs, sent as they are."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        self.connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in fields:
            self.connection.putheader(name, value)
        if body is not None:
            self.connection.putheader("Content-Length", len(body))
        self.connection.endheaders(body)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, answer.headers, content

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def error_of(style, body):
    """(message, type, code) of an error body, whose form is checked; what a style lacks is None."""
    data = json.loads(body)
    if style == "OLLAMA":
        if set(data) != {"error"} or not isinstance(data["error"], str):
            raise AssertionError(f"not Ollama's error: {body!r}")
        return data["error"], None, None
    if style == "ANTHROPIC":
        if set(data) != {"type", "error", "request_id"} or data["type"] != "error" or \
                set(data["error"]) != {"type", "message"}:
            raise AssertionError(f"not Anthropic's error: {body!r}")
        return data["error"]["message"], data["error"]["type"], None
    error = data["error"]
    if set(data) != {"error"} or not {"message", "type", "param", "code"} <= set(error):
        raise AssertionError(f"not OpenAI's error: {body!r}")
    return error["message"], error["type"], error["code"]
