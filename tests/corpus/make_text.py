#!/usr/bin/env python3
"""Seeds of the fuzz targets tokenizer, template and detok; run in any folder."""
import pathlib

HERE = pathlib.Path(__file__).parent


def write(target, name, data):
    folder = HERE / target
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def entry(text, kind=1, score=1):
    return bytes([len(text), kind - 1, score]) + text


def vocabulary(mode, pre, entries, text):
    return bytes([mode, pre, len(entries)]) + b"".join(entries) + text


HELLO = [entry(b"h e"), entry(b"l l"), entry(b"he ll"), entry(b"hell o"), entry("Ġ hello".encode()),
         entry(b"<|im_end|>", 3), entry(b"<tool>", 4)]
TEXT = "hello hello<|im_end|> 12345 it's\r\n\t naïve 日本語 👨‍👩‍👧 <tool>  \n\n".encode()
PIECES = [entry("▁".encode(), 1, 3), entry(b"a", 1, 9), entry(b"b", 1, 9), entry(b"ab", 1, 2), entry("▁ab".encode(), 1, 1),
          entry(b"aba", 1, 2), entry(b"<bos>", 3), entry(b"\n\n", 4)]
for pre in range(9):
    write("tokenizer", f"bpe_{pre}", vocabulary(pre % 2 * 2, pre, HELLO, TEXT))
write("tokenizer", "spm", vocabulary(1, 0, PIECES, "abab aba  ▁ab\n\n<bos>é🙂".encode()))
write("tokenizer", "spm_special", vocabulary(3, 0, PIECES, b"ab<bos>ab<bos> <0x41>"))
write("tokenizer", "run_of_a", vocabulary(0, 1, [entry(b"a a"), entry(b"aa aa"), entry(b"aaaa aaaa")], b"a" * 3000))
write("tokenizer", "run_of_spaces", vocabulary(0, 2, [entry("Ġ Ġ".encode())], b" " * 3000 + b"x"))
write("tokenizer", "spm_run", vocabulary(1, 0, [entry(b"a" * n, 1, n) for n in range(1, 40)], b"a" * 3000))
write("tokenizer", "invalid_utf8", vocabulary(0, 1, HELLO, b"hello \xff\xfe"))
write("tokenizer", "bad_rule", vocabulary(0, 1, [entry(b"q w"), entry(b"zz zz")], b"x"))
write("tokenizer", "empty_control", vocabulary(0, 1, [entry(b"", 3)], b"x"))
write("tokenizer", "duplicates", vocabulary(1, 0, [entry(b"a"), entry(b"a", 3), entry(b"a", 2), entry(b"a", 6)], b"aaa"))
write("tokenizer", "overlapping_control", vocabulary(2, 1, [entry(b"<a>", 3), entry(b"a><", 3), entry(b"<a><", 3)], b"<a><a><a>"))

CHATS = b"\0Hello\0You <|im_end|> me\0<|im_start|>\0" + "naïve 日本語 <".encode()
for path in sorted((HERE.parent / "golden" / "templates").glob("*.jinja")):
    write("template", path.stem, path.read_bytes() + CHATS)
HOSTILE = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "sharing": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s ~ '' }}",
    "cycle": "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
    "deep_value": "{% set ns = namespace(s=[1]) %}{% for i in range(20000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
    "macro": "{% macro m(a) %}{{ m([a, a]) }}{% endmacro %}{{ m(1) }}",
    "format": "{{ '{:>99999999999}'.format('x') }}{{ '%99999999d' | format(1) }}",
    "plus_chain": "{{ 1" + "+1" * 20000 + " }}",
    "attribute_chain": "{{ x" + ".a" * 20000 + " }}",
    "minus_chain": "{{ " + "-" * 40000 + "1 }}",
    "elif_chain": "{% if 0 %}" + "{% elif 0 %}" * 3000 + "{% endif %}",
    "brackets": "{{ " + "[" * 20000,
    "include": "{% include 'x' %}",
    "unclosed": "{% if x %}{{ y",
    "raise": "{{ raise_exception('no') }}{{ strftime_now('%d %b %Y') }}",
    "noncharacters": "{{ messages[0].content }}\ufdd0{{ '\\ufdd0' }}<|im_end|>",
}
for name, source in HOSTILE.items():
    write("template", name, source.encode() + CHATS)
write("template", "all_markers", b"{{ messages[0].content }}\0" + "".join(map(chr, range(0xFDD0, 0xFDF0))).encode())

STOPS = bytes([2, 3]) + b"END" + bytes([2]) + b"\n\n"
write("detok", "stops", STOPS + b"\x07one EN two END three")
write("detok", "newlines", STOPS + b"\x01a\nb\n\nc")
write("detok", "emoji", b"\x00\x05" + "👨‍👩‍👧 日本 é".encode())
write("detok", "invalid", b"\x00\x09a\xffb\xe2\x82c\xf0\x9f\x98\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80")
write("detok", "cut_character", b"\x00\x02ab\xf0\x9f\x98")
write("detok", "stop_in_replacement", bytes([1, 4]) + "b\ufffd".encode() + b"\x03ab\xff\xffab\xe2")
write("detok", "overlapping_stops", bytes([2, 2]) + b"bc" + bytes([4]) + b"abcd" + b"\x0bxabcdabc")
write("detok", "periodic_stop", bytes([1, 4]) + b"aaab" + b"\x11aaaaaaaaaaaabaaaa")
