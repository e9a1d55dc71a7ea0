#!/usr/bin/env python3
"""check_abi: the binary interface of libkr against kr.h and the list that reviewers see.

    python3 tools/check_abi.py BUILD_DIR      exit status 1 with one line per difference
    python3 tools/check_abi.py --write        rewrites tests/abi/symbols.txt from kr.h

1. kr.h compiles alone, strictly, as C11 and as C++17 (also with clang where it is installed), and
   tests/abi/header_cxx.cpp uses it from C++.
2. The functions marked KR_API in kr.h are those of tests/abi/symbols.txt, so that a change of the
   interface shows in review as a changed line.
3. libkr.so exports exactly these and nothing else, under the SONAME of its ABI version.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADER = os.path.join(ROOT, "include", "kr.h")
LIST = os.path.join(ROOT, "tests", "abi", "symbols.txt")
CXX_USE = os.path.join(ROOT, "tests", "abi", "header_cxx.cpp")
STRICT = ["-fsyntax-only", "-Wall", "-Wextra", "-pedantic-errors", "-Werror",
          "-I" + os.path.join(ROOT, "include")]
C = ["-x", "c", "-std=c11", "-Wstrict-prototypes", "-Wc++-compat"]
CXX = ["-x", "c++", "-std=c++17"]


def header_functions(text):
    """Names declared with KR_API, sorted. Comments and the macro's own definition are left out."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)
    text = re.sub(r"^[ ]*#.*$", "", text, flags=re.M)
    return sorted(re.findall(r"\bKR_API\b[^;(]*?\b(\w+)\s*\(", text))


def exported_symbols(listing):
    """Names of `nm -D --defined-only` without versions; A marks the version nodes themselves."""
    names = set()
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] != "A":
            names.add(fields[2].split("@")[0])
    return sorted(names)


def differences(left, right, left_name, right_name):
    out = [f"{name}: in {left_name}, not in {right_name}"
           for name in sorted(set(left) - set(right))]
    return out + [f"{name}: in {right_name}, not in {left_name}"
                  for name in sorted(set(right) - set(left))]


def run(command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_header():
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        alone = os.path.join(folder, "alone.c")
        with open(alone, "w", encoding="utf-8") as file:
            file.write('#include "kr.h"\n#include "kr.h"\n')
        jobs = [("gcc", C, alone), ("g++", CXX, alone), ("g++", CXX, CXX_USE)]
        for compiler, flags in (("clang", C), ("clang++", CXX)):
            if shutil.which(compiler):
                jobs.append((compiler, flags, alone))
        for compiler, flags, source in jobs:
            done = run([compiler] + STRICT + flags + [source])
            if done.returncode != 0:
                first = (done.stderr.strip().splitlines() or ["no message"])[0]
                findings.append(f"{compiler} {flags[2]} refuses "
                                f"{os.path.basename(source)}: {first}")
    return findings


def check_library(build, names):
    path = os.path.join(build, "libkr.so")
    if not os.path.exists(path):
        return [f"{path}: no such file; build the target kr first"]
    listing = run(["nm", "-D", "--defined-only", path])
    if listing.returncode != 0:
        return [listing.stderr.strip()]
    findings = differences(names, exported_symbols(listing.stdout), "kr.h", "libkr.so")
    with open(HEADER, encoding="utf-8") as file:
        major = re.search(r"#define KR_VERSION_MAJOR (\d+)", file.read()).group(1)
    wanted = f"[libkr.so.{major}]"
    dynamic = run(["readelf", "-d", path]).stdout
    soname = re.search(r"SONAME.*?(\[.*?\])", dynamic)
    if not soname or soname.group(1) != wanted:
        findings.append(f"SONAME is {soname.group(1) if soname else 'missing'}, not {wanted}")
    return findings


def main(arguments):
    with open(HEADER, encoding="utf-8") as file:
        names = header_functions(file.read())
    if arguments == ["--write"]:
        with open(LIST, "w", encoding="utf-8") as file:
            file.write("".join(name + "\n" for name in names))
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    findings = []
    if len(names) != len(set(names)):
        findings.append("kr.h declares a function twice")
    findings += [f"{name}: a public name begins with kr_" for name in names
                 if not name.startswith("kr_")]
    with open(LIST, encoding="utf-8") as file:
        listed = file.read().split()
    findings += differences(names, listed, "kr.h", "tests/abi/symbols.txt (see --write)")
    if listed != sorted(listed):
        findings.append("tests/abi/symbols.txt is not sorted (see --write)")
    findings += check_header()
    findings += check_library(arguments[0], names)
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
