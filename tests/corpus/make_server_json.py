#!/usr/bin/env python3
"""Seeds of fuzz_server_json: bodies at and over each bound, and what JSON does not allow.

    python3 tests/corpus/make_server_json.py tests/corpus/server_json"""
import sys
from pathlib import Path

GOOD = {
    "empty": "{}",
    "types": '{"a":1,"b":"x","n":null,"t":true,"f":false,"r":2.5e-3,"l":[],"o":{}}',
    "space": ' \t\r\n{ "a" : [ 1 , 2 ] } \n',
    "escapes": r'{"a":"\"\\\/\b\f\n\r\t\u0041\u00e9\u20ac\ud83d\ude00\u0000"}',
    "utf8": '{"\u00e9\u20ac\U0001f600":"\u00e9\u20ac\U0001f600\x7f"}',
    "integers": '{"a":9223372036854775807,"b":-9223372036854775808,"n":-0}',
    "reals": '{"a":1.7976931348623157e308,"b":5e-324,"n":-0.0,"stop":1E+2,"c":2.0}',
    "long_number": '{"a":0.' + "1" * 62 + "}",
    "deep": '{"a":' + "[" * 127 + "]" * 127 + "}",
    "chat": '{"model":"m","messages":[{"role":"user","content":"hi"}],"n":1,"stop":["a","b"]}',
    "empty_key": '{"":1}',
}
BAD = {
    "nothing": "", "array": "[]", "number": "1", "string": '"a"', "null": "null",
    "cut": '{"a":', "cut_string": '{"a":"', "cut_escape": '{"a":"\\', "cut_key": '{"a',
    "comma": '{"a":1,}', "two_commas": '{"a":[1,,2]}', "tail": "{} {}", "tail_byte": "{}x",
    "twice": '{"a":1,"a":2}', "twice_escaped": '{"a":1,"\\u0061":2}', "nul_key": '{"\\u0000":1}',
    "nul": "{}\0", "bom": b"\xef\xbb\xbf{}", "latin1": b'{"a":"\xe9"}',
    "overlong": b'{"a":"\xc0\xaf"}', "surrogate": b'{"a":"\xed\xa0\x80"}',
    "past_unicode": b'{"a":"\xf4\x90\x80\x80"}', "low": '{"a":"\\udc00"}', "high": '{"a":"\\ud800"}',
    "high_high": '{"a":"\\ud800\\ud800"}', "control": '{"a":"\n"}', "escape": '{"a":"\\x41"}',
    "leading_zero": '{"a":01}', "plus": '{"a":+1}', "dot": '{"a":.5}', "dot_end": '{"a":1.}',
    "exponent": '{"a":1e}', "hex": '{"a":0x10}', "nan": '{"a":NaN}', "infinity": '{"a":-Infinity}',
    "over_int64": '{"a":9223372036854775808}', "over_double": '{"a":1e999}',
    "too_long_number": '{"a":0.' + "1" * 63 + "}", "too_deep": '{"a":' + "[" * 128 + "]" * 128 + "}",
    "open_deep": "[" * 5000, "open_objects": '{"a":' * 200, "closes": "]}" * 100,
    "comment": "{/**/}", "single": "{'a':1}", "literal": '{"a":True}', "colon": '{"a"1}',
}


def main(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, rows in (("ok", GOOD), ("bad", BAD)):
        for name, body in rows.items():
            raw = body if isinstance(body, bytes) else body.encode("utf-8")
            (folder / f"{prefix}_{name}").write_bytes(raw)


if __name__ == "__main__":
    main(sys.argv[1])
