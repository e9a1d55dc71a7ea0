#!/usr/bin/env python3
"""Token ids of varied texts by llama-cpp-python (an independent implementation).

make_tokens.py ALIAS=FILE.gguf ...   writes tokens_ALIAS.txt

One case a line: parse_special (0 or 1), the text in hex ("-" for none), the ids; separated by tabs,
the ids by spaces. BOS is never added. The fuzz texts come from a fixed seed.
Code points that Python does not know are left out of the fuzz texts, so that any Python makes the same file.
Needs: llama-cpp-python 0.3.36.
"""
import pathlib
import random
import sys
import unicodedata

from llama_cpp import Llama

HERE = pathlib.Path(__file__).parent
N_FUZZ = 260

CODE = """#include <stdio.h>\r
int main(int argc, char **argv) {\r
\tfor (size_t i = 0; i < 10; ++i) { printf("%zu\\n", i*2+1); }  // 0x1F, 3.14e-10f\r
\treturn argc > 1 ? argv[1][0] : 0;\r
}\r
"""
PYTHON = '''def f(x: int = 42) -> str:
    """Doc\u2014string."""
    if x != 0 and not (x % 2 == 1 or x >= 1_000_000):
        return f"{x!r:>10}" + 'it\\'s'
        # trailing   spaces   \n
\n\n\n    return None\n'''
FIXED = [
    "", " ", "  ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "a", " a", "a ", "Hello", "Hello, world!",
    "The quick brown fox jumps over the lazy dog. It's 3 o'clock; we'll see, they've gone, I'd say.",
    "DON'T SHOUT: I'M, YOU'RE, WE'LL, THEY'VE, HE'D, IT'S", "'s 't 're 've 'm 'll 'd ''s '", "can’t won’t",
    "1 12 123 1234 12345 123456 1234567 3.14159 1e-9 0x1F 1,000,000 ٣٤٥ ²³¼ Ⅷ 〇一二三",
    CODE, PYTHON, "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\\u00e9\": \"b\"}}",
    "SELECT * FROM t WHERE a<>'b' AND c!=d; -- comment", "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "日本語のテキストです。カタカナ、ひらがな、漢字。", "你好，世界！这是一个测试。繁體中文測試。", "한국어 텍스트입니다. 안녕하세요?",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "مرحبا بالعالم، كيف حالك؟ ١٢٣", "שלום עולם", "हिन्दी में लिखा हुआ पाठ", "Ελληνικά κείμενο", "Привет, мир!",
    "ქართული հայերեն বাংলা தமிழ் తెలుగు", "😀😃👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇩🇪🇯🇵❤️‍🔥 1️⃣", "e\u0301 é a\u0308 ä n\u0303 ñ \u1112\u1161\u11ab 한",
    "zero\u200bwidth\u200djoin\u200cer \ufeffbom \u00a0nbsp \u3000wide\u2003em \u2028ls \u2029ps \u0085nel",
    "".join(map(chr, range(0, 128))), "".join(map(chr, range(128, 256))), "\x00\x00\x01\x1f\x7f\x1b[31mred\x1b[0m",
    "a" * 300, " " * 300, "\n" * 100, "\t" * 70, "ab" * 100, "=" * 130, "-" * 81 + "\n" + "#" * 33, "ha" * 50 + "!" * 40,
    "\n".join(" " * n + "x" for n in range(40)), "\n".join("\t" * n + "y" for n in range(20)), " \t \t\n \n\t\n  \r\n\r\r\n",
    "word" + " " * 17 + "word" + "\n" * 7 + "word" + "\t" * 5 + "word", "aAaAbBbB CamelCaseWord snake_case_word SCREAMING_CASE kebab-case",
    "$x + y_1 = \\frac{a}{b} \\sum_{i=0}^{n} x^2$ ≤ ≥ ≠ ∑ ∫ √ ∞ → ⇒ ∀x∈ℝ", "«guillemets» “quotes” ‘single’ „low“ …—–‐",
    "<html><body><h1>Title</h1><p>a &amp; b</p><s>old</s><table></table></body></html>", "▁▁ under▁score ▁ Ġ Ċ <0x0A> <0x41>",
    "Lopadotemachoselachogaleokranioleipsanodrimhypotrimmatosilphioparaomelitokatakechymenokichlepikossyphophattoperisteralektryonoptekephalliokigklopeleiolagoiosiraiobaphetraganopterygon",
    "\U00010348\U0001F9FF\U0002070E\U000E0041\U0010FFFD\uFFFD\uE000\uFDD0", "ſtraße ﬁ ﬀ ŉ ǆ İi ıI K Å",
]
PIECES = ["a", "B", "z", "é", "e\u0301", "ß", "ñ", "日", "本", "語", "한국", "ไทย", "ن", "ا", "क", "ु", "👍🏽", "👨‍👩‍👧", "🇩🇪", " ", "  ", "\n",
          "\r\n", "\t", "   ", "\u00a0", "\u3000", "\u200b", "0", "12", "345", "٣", "²", "Ⅷ", "'s", "'S", "'re", "'LL", "'", "’s", "!",
          "?!", "...", "(", ")", "{", "}", "_", "-", "+", "=", "<", ">", "</", "|", "$", "^", "~", "`", "\\", "/", "//", "\x00",
          "\x01", "\x1c", "\x7f", "\u0085", "\ufeff", "\ufffd", "\ue000", "the", " the", " and", "ing", "function", "return ", "def",
          "▁", "Ġ", "<0x0A>", "</s>", "<b>", "\n\n\n", "        "]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>",
            "<tool_call>", "</tool_call>", "<|fim_pad|>", "<|fim_prefix|>", "[multimodal]", "<unused5>", "<mask>", "<|im_start|",
            "im_end|>", "<table>", "</h1>", "<repo_name>", "<reponame>", "<file_sep>", "<|file_sep|>", "[PAD151665]",
            "<start_of_image>", "<s>", "</s>"]


def texts():
    yield from ((text, special) for text in FIXED for special in (0, 1))
    for spelling in SPECIALS:
        for text in (spelling, f"a {spelling} b", f"{spelling}{spelling}\n{spelling}"):
            yield text, 0
            yield text, 1
    rng = random.Random(20240613)
    for n in range(N_FUZZ):
        pool = PIECES + SPECIALS * 2 if n % 3 == 0 else PIECES
        parts = []
        for _ in range(rng.randint(1, 28)):
            code = rng.choice([rng.randint(0, 0x7F), rng.randint(0x80, 0x7FF), rng.randint(0x800, 0xD7FF),
                               rng.randint(0xE000, 0x1FFFF), rng.randint(0x20000, 0x10FFFF)])
            part = rng.choice(pool)
            if rng.random() < 0.15 and unicodedata.category(chr(code)) != "Cn":
                part = chr(code)
            parts.append(part)
        yield "".join(parts), n % 2


def main():
    for argument in sys.argv[1:]:
        alias, path = argument.split("=", 1)
        model = Llama(path, vocab_only=True, verbose=False)
        lines = []
        for text, special in texts():
            data = text.encode()
            ids = model.tokenize(data, add_bos=False, special=bool(special)) if data else []
            lines.append(f"{special}\t{data.hex() or '-'}\t{' '.join(map(str, ids))}")
        (HERE / f"tokens_{alias}.txt").write_text("\n".join(lines) + "\n")
        print(f"{alias}: {len(lines)} texts")


main()
