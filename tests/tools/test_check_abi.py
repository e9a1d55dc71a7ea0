"""test_check_abi.py: the parsing and comparing halves of tools/check_abi.py on small texts."""
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))
sys.dont_write_bytecode = True
import check_abi  # noqa: E402  (found through the path above)


class HeaderFunctions(unittest.TestCase):
    def test_names_are_found_over_lines_and_sorted(self):
        text = ("#define KR_API __attribute__((visibility(\"default\")))\n"
                "KR_API const char *kr_b(void);\n"
                "KR_API kr_status_t kr_a(int x,\n    int y);\n"
                "KR_API\nvoid kr_c(kr_fn fn);\n")
        self.assertEqual(check_abi.header_functions(text), ["kr_a", "kr_b", "kr_c"])

    def test_comments_types_and_unmarked_functions_do_not_count(self):
        text = ("/* KR_API void kr_no(void); */\n// KR_API void kr_no2(void);\n"
                "typedef int (*kr_fn)(int);\nvoid kr_hidden(void);\n")
        self.assertEqual(check_abi.header_functions(text), [])


class ExportedSymbols(unittest.TestCase):
    def test_versions_and_version_nodes_are_dropped(self):
        listing = "0000 T kr_b@@KR_0\n0001 T kr_a\n0000 A KR_0\n0002 D kr_data\n"
        self.assertEqual(check_abi.exported_symbols(listing), ["kr_a", "kr_b", "kr_data"])


class Differences(unittest.TestCase):
    def test_each_side_is_named(self):
        found = check_abi.differences(["a", "b"], ["b", "c"], "L", "R")
        self.assertEqual(found, ["a: in L, not in R", "c: in R, not in L"])
        self.assertEqual(check_abi.differences(["a"], ["a"], "L", "R"), [])


class Library(unittest.TestCase):
    """A library that lacks one function, exports one too many and has a foreign SONAME."""

    def test_a_wrong_library_is_refused_and_a_right_one_accepted(self):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "a.c")
            with open(source, "w", encoding="utf-8") as file:
                file.write("int kr_a(void); int kr_a(void) { return 1; }\n"
                           "int kri_leak(void); int kri_leak(void) { return 1; }\n")
            library = os.path.join(folder, "libkr.so")

            def build(soname, *more):
                subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", library,
                                source, *more], check=True)

            build("libkr.so.99")
            self.assertEqual(check_abi.check_library(folder, ["kr_a", "kr_gone"]), [
                "kr_gone: in kr.h, not in libkr.so",
                "kri_leak: in libkr.so, not in kr.h",
                "SONAME is [libkr.so.99], not [libkr.so.0]"])
            script = os.path.join(ROOT, "src", "api", "libkr.map")
            build("libkr.so.0", f"-Wl,--version-script={script}")
            self.assertEqual(check_abi.check_library(folder, ["kr_a"]), [])

    def test_a_missing_library_is_a_finding(self):
        with tempfile.TemporaryDirectory() as folder:
            found = check_abi.check_library(folder, [])
            self.assertEqual(len(found), 1)
            self.assertIn("build the target kr first", found[0])


class Tree(unittest.TestCase):
    def test_the_list_is_that_of_the_header(self):
        with open(check_abi.HEADER, encoding="utf-8") as file:
            names = check_abi.header_functions(file.read())
        with open(check_abi.LIST, encoding="utf-8") as file:
            self.assertEqual(file.read().split(), names)
        self.assertIn("kr_sampler_create", names)

    def test_the_header_compiles_alone_in_c_and_cxx(self):
        self.assertEqual(check_abi.check_header(), [])


if __name__ == "__main__":
    unittest.main()
