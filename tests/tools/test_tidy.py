"""test_tidy.py: small bad trees, each proving that one rule of tools/tidy.py fires, and good ones
that it does not fire where it must not.

    python3 -m unittest discover -s tests/tools
"""
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOL = os.path.join(ROOT, "tools", "tidy.py")
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.dont_write_bytecode = True
import tidy  # noqa: E402  (found through the path above)

GOOD = "/* a.c: a file. */\n"
BODY = "int f(void);\nint f(void) {\n%s}\n"


class TidyTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = self.folder.name
        self.write("include/kr.h", "/* kr.h */\n")
        for name in ("base", "telemetry", "tensor", "text", "ops", "cpu", "cuda", "model", "cache",
                     "sample", "engine", "api"):
            self.write(f"src/{name}/README.md", f"# {name}\n")
            self.write(f"src/{name}/{name}.h", f"/* {name}.h */\n")
        for name in ("app", "text", "tests", "tools"):
            self.write(f"{name}/README.md", f"# {name}\n")

    def write(self, path, text):
        full = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8", newline="") as file:
            file.write(text)

    def findings(self):
        return [f"{path}:{line}: {text}" for path, line, text in tidy.check_tree(self.root)]

    def assert_clean(self):
        self.assertEqual(self.findings(), [])

    def assert_one(self, start, *parts):
        found = self.findings()
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(start), found)
        for part in parts:
            self.assertIn(part, found[0])

    def include(self, path, *names):
        self.write(path, GOOD + "".join(f'#include "{name}"\n' for name in names))


class Program(TidyTest):
    def run_tool(self):
        return subprocess.run([sys.executable, TOOL, self.root], capture_output=True, text=True,
                              check=False)

    def test_exit_status_is_0_and_nothing_is_printed_when_clean(self):
        done = self.run_tool()
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_exit_status_is_1_with_one_line_per_finding(self):
        self.write("src/base/a.c", GOOD + "int a; \nint\tb;\n")
        done = self.run_tool()
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stdout.splitlines()), 2)
        self.assertTrue(done.stdout.startswith("src/base/a.c:2: "))


class Includes(TidyTest):
    ALLOWED = {
        "base": [],
        "telemetry": ["base"],
        "tensor": ["base", "telemetry"],
        "text": ["base", "telemetry"],
        "ops": ["tensor", "base", "telemetry"],
        "cpu": ["ops", "tensor", "base", "telemetry"],
        "cuda": ["ops", "tensor", "base", "telemetry"],
        "model": ["ops", "tensor", "text", "base", "telemetry"],
        "cache": ["ops", "tensor", "text", "base", "telemetry"],
        "sample": ["ops", "tensor", "text", "base", "telemetry"],
        "engine": ["ops", "tensor", "text", "base", "telemetry", "cpu", "cuda", "model", "cache",
                   "sample"],
        "api": ["engine", "model", "sample", "cpu", "base", "telemetry"],
        "app": ["base", "telemetry"],
    }

    def test_every_arrow_of_the_table_and_no_other(self):
        for layer, allowed in self.ALLOWED.items():
            path = "app/a.c" if layer == "app" else f"src/{layer}/a.c"
            for other in self.ALLOWED:
                if other in (layer, "app"):
                    continue
                with self.subTest(layer=layer, other=other):
                    self.include(path, "kr.h", f"{other}/{other}.h")
                    if other in allowed:
                        self.assert_clean()
                    else:
                        self.assert_one(f"{path}:3: ", f"{layer} may not include {other}")
            os.remove(os.path.join(self.root, path))

    def test_the_public_header_includes_nothing_of_ours(self):
        self.include("include/kr.h", "base/base.h")
        self.assert_one("include/kr.h:2: ", "kr.h may not include base")

    def test_nothing_includes_the_program(self):
        self.write("app/options.h", GOOD)
        self.include("src/api/a.c", "options.h")
        self.assert_one("src/api/a.c:2: ", "api may not include app")

    def test_a_folder_below_belongs_to_its_parent(self):
        self.write("src/ops/ref/ref.h", GOOD)
        self.include("src/ops/a.c", "ops/ref/ref.h")
        self.include("src/cpu/avx2/a.c", "ops/ops.h", "cpu/cpu.h")
        self.assert_clean()
        self.include("src/cpu/avx2/a.c", "model/model.h")
        self.assert_one("src/cpu/avx2/a.c:2: ", "cpu may not include model")

    def test_a_path_beside_the_file_is_seen_through(self):
        self.include("src/base/a.c", "../engine/engine.h")
        self.assert_one("src/base/a.c:2: ", "base may not include engine")

    def test_a_def_file_counts_like_a_header(self):
        self.write("src/engine/x.def", "X(a)\n#undef X\n")
        self.include("src/model/a.c", "engine/x.def")
        self.assert_one("src/model/a.c:2: ", "model may not include engine")

    def test_only_text_may_include_the_crate(self):
        self.write("text/krt.h", GOOD)
        self.include("src/text/a.c", "krt.h")
        self.assert_clean()
        self.include("src/model/a.c", "krt.h")
        self.assert_one("src/model/a.c:2: ", "model may not include krt")

    def test_an_unknown_header_is_reported(self):
        self.include("src/base/a.c", "nowhere.h")
        self.assert_one("src/base/a.c:2: ", '"nowhere.h"')

    def test_an_unknown_folder_is_reported(self):
        self.write("src/extra/README.md", "# extra\n")
        self.write("src/extra/a.c", GOOD)
        self.assert_one("src/extra/a.c:1: ", "extra is not in the table")

    def test_an_include_in_a_comment_does_not_count(self):
        self.write("src/base/a.c", '/*\n#include "engine/engine.h"\n*/\n')
        self.assert_clean()


class Sizes(TidyTest):
    def test_a_line_of_100_passes_and_101_fails(self):
        self.write("src/base/a.c", GOOD + "/*" + "x" * 96 + "*/\n")
        self.assert_clean()
        self.write("src/base/a.c", GOOD + "/*" + "x" * 97 + "*/\n")
        self.assert_one("src/base/a.c:2: ", "101 columns")

    def test_columns_are_characters_and_text_files_are_free(self):
        self.write("src/base/a.c", GOOD + "/*" + "\u00e9" * 96 + "*/\n")
        self.write("tests/notes.md", "x" * 200 + "\n")
        self.assert_clean()

    def test_rust_and_python_lines_count_too(self):
        self.write("text/src/a.rs", "//" + "x" * 99 + "\n")
        self.assert_one("text/src/a.rs:1: ", "101 columns")

    def test_a_file_of_1000_lines_passes_and_1001_fails(self):
        self.write("src/base/a.c", GOOD + "int a;\n" * 999)
        self.assert_clean()
        self.write("src/base/a.c", GOOD + "int a;\n" * 1000)
        self.assert_one("src/base/a.c:1: ", "1001 lines")

    def test_a_long_file_passes_when_its_first_comment_says_why(self):
        self.write("src/base/a.c", "/* a.c\n * tidy: long because a table */\n" + "int a;\n" * 1000)
        self.assert_clean()

    def test_an_excuse_in_a_later_comment_does_not_count(self):
        self.write("src/base/a.c", GOOD + "/* tidy: long because */\n" + "int a;\n" * 1000)
        self.assert_one("src/base/a.c:1: ", "1002 lines")

    def function(self, n_lines, above=""):
        return GOOD + above + "int f(void) {\n" + "    x();\n" * (n_lines - 2) + "}\n"

    def test_a_function_of_70_lines_passes_and_71_fails(self):
        self.write("src/base/a.c", self.function(70))
        self.assert_clean()
        self.write("src/base/a.c", self.function(71))
        self.assert_one("src/base/a.c:2: ", "f has 71 lines")

    def test_a_long_function_passes_when_the_comment_above_says_why(self):
        self.write("src/base/a.c", self.function(90, "/* f: x.\n * tidy: long because flat. */\n"))
        self.assert_clean()

    def test_an_excuse_that_is_not_directly_above_does_not_count(self):
        self.write("src/base/a.c", self.function(90, "/* tidy: long because flat. */\n\n"))
        self.assert_one("src/base/a.c:4: ", "f has 90 lines")
        self.write("src/base/a.c",
                   self.function(90, "/* tidy: long because. */\nint a;\n/* f: x. */\n"))
        self.assert_one("src/base/a.c:5: ", "f has 90 lines")

    def test_a_long_table_is_no_function(self):
        self.write("src/base/a.c", GOOD + "static const int t[] = {\n" + "    1,\n" * 200 + "};\n"
                   + "struct s {\n" + "    int a;\n" * 200 + "};\n")
        self.assert_clean()

    def test_braces_in_literals_comments_and_macros_do_not_confuse(self):
        text = GOOD + "#define M do { \\\n    {\nint f(void) {\n"
        text += "    x('{', \"{{\"); /* { */ // {\n}\n"
        self.write("src/base/a.c", text + self.function(71)[len(GOOD):])
        self.assert_one("src/base/a.c:7: ", "f has 71 lines")

    def test_a_test_is_named_by_its_behaviour(self):
        self.write("tests/unit/test_a.c", GOOD + "TEST(a_does_b) {\n" + "    x();\n" * 80 + "}\n")
        self.assert_one("tests/unit/test_a.c:2: ", "a_does_b has 82 lines")

    def test_a_function_inside_a_linkage_block_is_seen(self):
        self.write("src/base/a.h", GOOD + 'extern "C" {\n' + self.function(71)[len(GOOD):] + "}\n")
        self.assert_one("src/base/a.h:3: ", "f has 71 lines")

    def test_a_signature_over_two_lines_counts_from_its_first(self):
        head = "int f(int a,\n      int b) {\n"
        self.write("src/base/a.c", GOOD + head + "    x();\n" * 68 + "}\n")
        self.assert_one("src/base/a.c:2: ", "f has 71 lines")

    def test_a_long_python_function_fails(self):
        self.write("tools/a.py", "def f():\n" + "    x()\n" * 70)
        self.assert_one("tools/a.py:1: ", "f has 71 lines")
        self.write("tools/a.py", "# tidy: long because flat\ndef f():\n" + "    x()\n" * 70)
        self.assert_clean()


class Calls(TidyTest):
    SRC = ["exit", "_exit", "abort", "printf", "vprintf", "fprintf", "vfprintf", "puts", "fputs",
           "putchar", "perror", "malloc", "calloc", "realloc", "free", "strdup", "strndup",
           "strcpy", "strcat", "sprintf", "gets", "strtok", "atoi", "alloca", "setlocale",
           "signal"]
    APP = ["gets", "strcpy", "strcat", "sprintf", "strtok", "atoi"]

    def test_each_banned_call_is_found_under_src_with_its_replacement(self):
        for name in self.SRC:
            with self.subTest(name=name):
                self.write("src/base/a.c", GOOD + BODY % f"    {name}(1);\n")
                self.assert_one("src/base/a.c:4: ", f"{name} is banned", "; use ")

    def test_the_program_may_print_and_exit_but_not_use_unsafe_calls(self):
        for name in self.SRC:
            with self.subTest(name=name):
                self.write("app/a.c", GOOD + BODY % f"    {name} (1);\n")
                if name in self.APP:
                    self.assert_one("app/a.c:4: ", f"{name} is banned")
                else:
                    self.assert_clean()

    def test_tests_may_call_anything(self):
        self.write("tests/a.c", GOOD + BODY % "    exit(1); strcpy(a, b);\n")
        self.assert_clean()

    def test_the_heap_belongs_to_alloc_c(self):
        self.write("src/base/alloc.c", GOOD + BODY % "    free(malloc(1));\n")
        self.assert_clean()
        self.write("src/base/alloc.c", GOOD + BODY % "    exit(1);\n")
        self.assert_one("src/base/alloc.c:4: ", "exit is banned")

    def test_only_the_assertion_may_abort(self):
        self.write("src/base/a.c", GOOD + "void kri_assert_failed(void) {\n    abort();\n}\n")
        self.assert_clean()
        self.write("src/base/a.c", GOOD + "void other(void) {\n    abort();\n}\n")
        self.assert_one("src/base/a.c:3: ", "abort is banned")

    def test_members_longer_names_comments_and_texts_are_no_calls(self):
        self.write("src/base/a.c", GOOD + BODY % (
            '    a->free(1); b.free(2); kri_free(3); snprintf(c); x("exit(1)"); /* abort() */\n'
            "    // malloc(1)\n    my_exit(1);\n"))
        self.assert_clean()

    def test_standard_streams_are_banned_under_src_only(self):
        self.write("src/base/a.c", GOOD + BODY % "    fflush(stderr);\n")
        self.assert_one("src/base/a.c:4: ", "stderr is banned")
        self.write("src/base/a.c", GOOD)
        self.write("app/a.c", GOOD + BODY % "    fflush(stdout);\n")
        self.assert_clean()


class Text(TidyTest):
    def test_markers_are_found_in_any_source(self):
        for marker in ("TO" + "DO", "FIX" + "ME", "XX" + "X"):
            for path in ("src/base/a.c", "app/a.h", "tools/a.py", "text/src/a.rs", "a.cmake"):
                with self.subTest(marker=marker, path=path):
                    start = "# " if path.endswith((".py", ".cmake")) else "// "
                    self.write(path, start + marker + ": later\n")
                    self.assert_one(f"{path}:1: ", marker)
                    os.remove(os.path.join(self.root, path))

    def test_a_marker_is_a_whole_word(self):
        self.write("src/base/a.c", "/* mkstemp(name.XX" + "XXXX) */\n")
        self.assert_clean()

    def test_tabs_and_trailing_space_are_found_in_any_text(self):
        for path in ("src/base/a.c", "a.cmake", "tests/a.md", "tools/a.py"):
            with self.subTest(path=path):
                self.write(path, "#\tx\n")
                self.assert_one(f"{path}:1: ", "tab")
                self.write(path, "# x \n")
                self.assert_one(f"{path}:1: ", "white space")
                self.write(path, "# x\r\n")
                self.assert_one(f"{path}:1: ", "white space")
                os.remove(os.path.join(self.root, path))

    def test_invalid_utf_8_is_a_finding(self):
        with open(os.path.join(self.root, "src/base/a.c"), "wb") as file:
            file.write(b"/* \xff */\n")
        self.assert_one("src/base/a.c:1: ", "UTF-8")

    def test_a_def_must_end_with_undef(self):
        self.write("src/base/a.def", "X(a)\n#undef X\n\n")
        self.assert_clean()
        self.write("src/base/a.def", "X(a)\n")
        self.assert_one("src/base/a.def:1: ", "#undef")
        self.write("src/base/a.def", "#undef X\nX(a)\n")
        self.assert_one("src/base/a.def:2: ", "#undef")

    def test_folders_without_readme_are_found(self):
        for folder in ("src/base", "app", "tools", "tests", "text"):
            with self.subTest(folder=folder):
                self.write(f"{folder}/a.py", "A = 1\n")
                self.assert_clean()
                os.remove(os.path.join(self.root, folder, "README.md"))
                self.assert_one(f"{folder}:1: ", "README.md")
                self.write(f"{folder}/README.md", "# x\n")

    def test_a_readme_of_15_lines_passes_and_16_fails(self):
        self.write("src/base/README.md", "x\n" * 15)
        self.assert_clean()
        self.write("src/base/README.md", "x\n" * 16)
        self.assert_one("src/base/README.md:1: ", "16 lines")

    def test_build_data_and_hidden_folders_are_left_out(self):
        for path in ("build/a.c", "build-x/a.c", ".git/a.c", "tests/corpus/a.txt",
                     "tests/golden/a.json", "text/target/a.rs", "tests/server/cases/a.txt"):
            self.write(path, "a\tb \n")
        self.assert_clean()


if __name__ == "__main__":
    unittest.main()
