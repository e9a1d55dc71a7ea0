#!/usr/bin/env python3
"""Writes tests/corpus/http: inputs of fuzz_http, a byte for the body's limit, cuts, then what a
client sends. Real clients, each edge of the framing, and the probes of tests/server/probes.py.

usage: make_http.py"""
import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "server"))
from probes import Route, accepted, refused  # noqa: E402

OUT = HERE / "http"
CURL = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/7.88.1\r\n" \
       b"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n" \
       b"{\"messages\":[],\"n\":\"abc\"}"[:24]
HTTPX = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n" \
        b"Connection: keep-alive\r\nAccept: application/json\r\nX-Stainless-Lang: python\r\n" \
        b"Authorization: Bearer sk-abc\r\nTransfer-Encoding: chunked\r\n\r\n" \
        b"5\r\nhello\r\n0\r\n\r\n"
BROWSER = b"GET /?a=b%20c HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" \
          b"Origin: http://example.com\r\nSec-Fetch-Mode: cors\r\nCookie: a=b\r\n\r\n"
METHODS = b"".join(b"%s /%s HTTP/1.1\r\nHost: [::1]:1\r\n\r\n" % (m, m.lower()) for m in
                   (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH"))


def main():
    OUT.mkdir(exist_ok=True)
    for old in OUT.glob("seed_*"):
        old.unlink()
    seeds = {"curl": CURL, "httpx": HTTPX, "browser": BROWSER, "methods": METHODS,
             "two": CURL + HTTPX + BROWSER}
    for route in (Route("GET", "/a"), Route("POST", "/b", body=b"{\"c\":1}")):
        rows = [(kind, data) for kind, _, data, _ in refused(route)]
        rows += [("accept", data) for _, data in accepted(route)]
        for n, (kind, data) in enumerate(rows):
            if len(data) <= 700 and (n % 7 == 0 or kind in ("chunk", "accept") and n % 2 == 0):
                digest = hashlib.sha256(data).hexdigest()[:10]
                seeds[f"{kind.replace(' ', '_')}_{digest}"] = data
    for name, data in seeds.items():
        cuts = bytes([1 + data[0] % 7, 1 + len(data) % 50, 3])
        (OUT / f"seed_{name}").write_bytes(bytes([10, len(cuts)]) + cuts + data)
    print(f"{len(seeds)} seeds")


if __name__ == "__main__":
    main()
