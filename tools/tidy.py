#!/usr/bin/env python3
"""tidy: house rules that a program can check; one line per finding, exit status 1 if any.

    python3 tools/tidy.py [ROOT]

Works on text, not on a parse tree: comments and literals are blanked, preprocessor lines dropped
where braces are counted. That is enough for code in the house style and keeps the tool free of
dependencies; it does not try to see through macros.

A function or file over its limit is accepted when a comment directly above the function (or the
first comment of the file) says `tidy: long because ...`.
"""
import ast
import os
import re
import sys

COLUMNS_MAX = 100
FILE_LINES_MAX = 1000
FUNCTION_LINES_MAX = 70
README_LINES_MAX = 15
EXCUSE = "tidy: long because"

# Folders that hold data, foreign or generated files.
SKIPPED = {"target", "node_modules", "__pycache__", "corpus", "golden", "cases", "gen"}
C_CODE = (".c", ".h", ".def", ".cu", ".cuh", ".cpp")
CODE = C_CODE + (".py", ".rs", ".sh")
TEXT = CODE + (".cmake", ".md", ".txt", ".toml", ".map", ".json", ".yml")
# Split so that this file passes its own check.
MARKERS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")

# Which folder may include which; the folder itself and kr.h are always allowed.
LOW = {"base", "telemetry"}
NUMERIC = LOW | {"tensor", "ops"}
ARROWS = {
    "kr.h": set(),
    "base": set(),
    "telemetry": {"base"},
    "tensor": LOW,
    "text": LOW | {"krt"},
    "ops": LOW | {"tensor"},
    "cpu": NUMERIC,
    "cuda": NUMERIC,
    "model": NUMERIC | {"text"},
    "cache": NUMERIC | {"text"},
    "sample": NUMERIC | {"text"},
    "engine": NUMERIC | {"text", "cpu", "cuda", "model", "cache", "sample"},
    "api": LOW | {"engine", "model", "sample", "cpu"},  # nouns handed through unchanged
    "bench": NUMERIC | {"cpu", "cuda", "cache"},
    "app": LOW | {"bench"},
}

STDIO = "kri_log, or kri_buffer_printf for text that is kept"
HEAP = "kri_alloc, kri_calloc, kri_realloc, kri_strndup or kri_free (base/alloc.h)"
NUMBER = "a checked parser: strtol with errno and the end pointer"
UNSAFE = {
    "gets": "fgets with a size",
    "strcpy": "memcpy with a known length, or kri_buffer_append",
    "strcat": "kri_buffer_append",
    "sprintf": "snprintf",
    "strtok": "a loop with strcspn or memchr",
    "atoi": NUMBER,
}
BANNED_SRC = dict(UNSAFE)
BANNED_SRC.update({
    "vsprintf": "vsnprintf", "atol": NUMBER, "atoll": NUMBER, "atof": NUMBER,
    "alloca": "kri_alloc, or a fixed array", "setlocale": "nothing: the locale is the host's",
    "signal": "nothing: handlers belong to the host program",
})
BANNED_SRC.update(dict.fromkeys(["exit", "_exit", "quick_exit", "abort"],
                                "a returned status; KR_ASSERT for bugs"))
BANNED_SRC.update(dict.fromkeys(["printf", "vprintf", "fprintf", "vfprintf", "dprintf", "puts",
                                 "fputs", "putchar", "putc", "fputc", "perror"], STDIO))
BANNED_SRC.update(dict.fromkeys(["malloc", "calloc", "realloc", "free", "strdup", "strndup",
                                 "aligned_alloc", "posix_memalign"], HEAP))
HEAP_FILE = "src/base/alloc.c"
ABORT_FUNCTIONS = (["kri_assert_failed"], ["kri_panic"])  # the end of a failed KR_ASSERT


class Findings:
    def __init__(self):
        self.lines = []

    def add(self, path, line, text):
        self.lines.append((path, line, text))


def blank(text):
    """Comments and the insides of literals become spaces; line structure stays."""
    pattern = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.S)

    def spaces(match):
        found = match.group(0)
        if found[0] in "\"'":
            return found[0] + " " * (len(found) - 2) + found[-1]
        return re.sub(r"[^\n]", " ", found)

    return pattern.sub(spaces, text)


def without_directives(text):
    """Preprocessor lines, continuations included, become empty."""
    out, inside = [], False
    for line in text.split("\n"):
        is_directive = inside or line.lstrip().startswith("#")
        inside = is_directive and line.rstrip().endswith("\\")
        out.append("" if is_directive else line)
    return "\n".join(out)


def functions(blanked):
    """(name, first line, last line) of each function body; lines count from 1."""
    text = without_directives(blanked)
    # A linkage block is not a nesting level.
    text = re.sub(r'extern\s*"\s*"\s*\{', lambda m: re.sub(r"[^\n]", " ", m.group(0)), text)
    found, depth, begin, head = [], 0, 0, None
    for at, char in enumerate(text):
        if char == "{":
            if depth == 0:
                head = text[begin:at]
            depth += 1
        elif char == "}":
            depth = max(depth - 1, 0)
            if depth == 0 and head is not None:
                name = function_name(head)
                if name:
                    start = begin + len(head) - len(head.lstrip())
                    found.append((name, text.count("\n", 0, start) + 1,
                                  text.count("\n", 0, at) + 1))
                begin, head = at + 1, None
        elif char == ";" and depth == 0:
            begin = at + 1
    return found


def function_name(head):
    head = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", head, flags=re.S).strip()
    if "=" in head or not head.endswith(")"):
        return None
    if re.match(r"(static\s+)?(const\s+)?(struct|union|enum)\s+\w*\s*$", head):
        return None
    match = re.search(r"(\w+)\s*\(", head)
    if not match:
        return None
    inner = re.match(r"\s*(\w+)", head[match.end():])
    if match.group(1) == "TEST" and inner:
        return inner.group(1)
    return match.group(1)


def has_excuse_above(lines, first):
    """A comment that ends on the line before `first` (1-based) and holds the excuse."""
    at = first - 2
    if at < 0 or not re.search(r"\*/\s*$|^\s*(//|#)", lines[at]):
        return False
    while at >= 0:
        if EXCUSE in lines[at]:
            return True
        is_begin = lines[at].lstrip().startswith("/*")
        is_line_comment = re.match(r"\s*(//|#)", lines[at])
        above_too = at > 0 and re.match(r"\s*(//|#)", lines[at - 1])
        if is_begin or (is_line_comment and not above_too):
            return False
        at -= 1
    return False


def first_comment(text):
    match = re.match(r"\s*(/\*.*?\*/|(?:(?://|#)[^\n]*\n)+|\"\"\".*?\"\"\")", text, re.S)
    return match.group(1) if match else ""


def check_lines(path, text, findings):
    is_code = path.endswith(CODE)
    for number, line in enumerate(text.split("\n"), 1):
        if "\t" in line:
            findings.add(path, number, "tab; indent with 4 spaces")
        if line != line.rstrip():
            findings.add(path, number, "white space at the end of the line")
        if is_code and len(line) > COLUMNS_MAX:
            findings.add(path, number, f"{len(line)} columns; at most {COLUMNS_MAX}")
        if not path.endswith(".md"):
            marker = MARKERS.search(line)
            if marker:
                findings.add(path, number, f"{marker.group(1)} left in; finish it or file it")


def check_sizes(path, text, blanked, findings):
    lines = text.split("\n")
    n_lines = len(lines) - (lines[-1] == "")
    if n_lines > FILE_LINES_MAX and EXCUSE not in first_comment(text):
        findings.add(path, 1, f"{n_lines} lines; at most {FILE_LINES_MAX}: look for the second "
                              f"noun inside, or say `{EXCUSE} ...` in the first comment")
    if path.endswith(".py"):
        try:
            nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        except SyntaxError as error:
            findings.add(path, error.lineno or 1, "does not parse as Python")
            return
        found = [(n.name, n.lineno, n.end_lineno) for n in nodes]
    elif path.endswith(C_CODE):
        found = functions(blanked)
    else:
        return
    for name, first, last in found:
        length = last - first + 1
        if length > FUNCTION_LINES_MAX and not has_excuse_above(lines, first):
            findings.add(path, first, f"{name} has {length} lines; at most {FUNCTION_LINES_MAX}, "
                                      f"or say `{EXCUSE} ...` in the comment directly above")


def banned_calls(path):
    if path.startswith("src/"):
        if path == HEAP_FILE:
            return {name: use for name, use in BANNED_SRC.items() if use != HEAP}
        return BANNED_SRC
    if path.startswith("app/"):
        return UNSAFE
    return {}


def check_calls(path, blanked, findings):
    banned = banned_calls(path)
    if not banned:
        return
    names = "|".join(sorted(banned))
    bodies = functions(blanked)
    # A member of that name (allocator.free) is not the library's function.
    for match in re.finditer(r"(?<![\w.>])(" + names + r")\s*\(", blanked):
        name = match.group(1)
        line = blanked.count("\n", 0, match.start()) + 1
        inside = [body for body, first, last in bodies if first <= line <= last]
        if name == "abort" and inside in ABORT_FUNCTIONS:
            continue
        findings.add(path, line, f"{name} is banned here; use {banned[name]}")
    if path.startswith("src/"):
        for match in re.finditer(r"\b(stdout|stderr)\b", blanked):
            line = blanked.count("\n", 0, match.start()) + 1
            findings.add(path, line, f"{match.group(1)} is banned here; use {STDIO}")


def layer_of(path):
    """The row of ARROWS that a path belongs to, or None."""
    parts = path.split("/")
    if parts[0] == "include":
        return "kr.h"
    if parts[0] in ("app", "bench"):
        return parts[0]
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    if parts[0] == "text":
        return "krt"
    return None


def check_includes(root, path, text, blanked, findings):
    layer = layer_of(path)
    if layer is None or layer == "krt":
        return
    if layer not in ARROWS:
        findings.add(path, 1, f"folder {layer} is not in the table of arrows (tools/tidy.py)")
        return
    for match in re.finditer(r'^[ ]*#[ ]*include[ ]*"([^"\n]+)"', text, re.M):
        # Blanking keeps the directive itself, unless it stands in a comment.
        if blanked[match.start():match.end()].strip() == "":
            continue
        line = text.count("\n", 0, match.start()) + 1
        name = match.group(1)
        target = resolve(root, path, name)
        if target is None:
            findings.add(path, line, f'"{name}" is no file of this tree; write system headers <>')
            continue
        other = layer_of(target)
        if other in (layer, "kr.h") or other in ARROWS[layer]:
            continue
        findings.add(path, line, f'{layer} may not include {other} ("{name}")')


def resolve(root, path, name):
    folders = [os.path.dirname(path), "src", "include", "app", "text", ""]
    for folder in folders:
        candidate = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def check_def(path, text, findings):
    lines = text.rstrip().split("\n")
    if not lines[-1].startswith("#undef "):
        findings.add(path, len(lines), "a .def ends with #undef of its macro")


def check_readmes(root, paths, findings):
    folders = set()
    for path in paths:
        parts = path.split("/")
        if parts[0] in ("app", "bench", "text", "tests", "tools") and len(parts) > 1:
            folders.add(parts[0])
        if parts[0] in ("src", "bindings") and len(parts) > 2:
            folders.add("/".join(parts[:2]))
    for folder in sorted(folders):
        if not os.path.isfile(os.path.join(root, folder, "README.md")):
            findings.add(folder, 1, "folder without a README.md (what it is, what it may include, "
                                    "where to start)")
    for path in paths:
        if path.startswith("src/") and path.endswith("README.md"):
            n_lines = len(read(root, path).splitlines())
            if n_lines > README_LINES_MAX:
                findings.add(path, 1, f"{n_lines} lines; at most {README_LINES_MAX}")


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", newline="") as file:
        return file.read()


def find_paths(root):
    paths = []
    for folder, folders, files in os.walk(root):
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        at_root = relative == "."
        folders[:] = sorted(
            name for name in folders
            if name not in SKIPPED and not name.startswith(".")
            and not (at_root and name.startswith("build")))
        for name in sorted(files):
            if name.endswith(TEXT) and not name.startswith("."):
                paths.append(name if at_root else f"{relative}/{name}")
    return paths


def check_tree(root):
    findings = Findings()
    paths = find_paths(root)
    for path in paths:
        try:
            text = read(root, path)
        except UnicodeDecodeError:
            findings.add(path, 1, "not valid UTF-8")
            continue
        check_lines(path, text, findings)
        if not path.endswith(CODE):
            continue
        blanked = blank(text) if path.endswith(C_CODE) else text
        check_sizes(path, text, blanked, findings)
        if path.endswith(C_CODE):
            check_calls(path, blanked, findings)
            check_includes(root, path, text, blanked, findings)
        if path.endswith(".def"):
            check_def(path, text, findings)
    check_readmes(root, paths, findings)
    return sorted(findings.lines)


def main(arguments):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    findings = check_tree(arguments[0] if arguments else here)
    for path, line, text in findings:
        print(f"{path}:{line}: {text}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
