#!/usr/bin/env python3
"""Builds and runs the tests and adds them up; the last line is "N passed, N failed".

usage: run_tests.py SUITE...   with SUITE one of
  all      release, clang, asan, arm, tools
  release  everything on the shipped build: unit, ops, models, corpora, command line, node
  node     the package of bindings/node on the shipped build
  clang    the same sources compiled by clang, with assertions: unit, ops, corpora
  asan     gcc with ASan + UBSan and assertions: unit, ops, tiny models, corpora
  tsan     gcc with TSan: the tests that use threads
  arm      cross-compiled for AArch64, run under emulation: base, kernels, each level as highest
  tools    tidy, its self-test, ABI and header checks

A skipped test counts as failed unless its name is in tests/skips.txt: CI must not skip by
silence. Output of passing tests is dropped, of failing ones printed."""
import glob
import os
import platform
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REAL_MODEL_TESTS = ("model_test_real", "model_test_tokens", "model_test_memory")
TSAN_TESTS = ("base_test_threads", "base_test_team", "base_test_alloc", "base_test_log",
              "telemetry_", "engine_", "model_test_tiny", "model_test_artifact_cache",
              "model_test_image", "server_test_http", "server_test_job", "server_test_log",
              "server_test_keys", "server_test_route")
# Tests of the server that need neither real models nor foreign clients: also run with sanitizers.
SANITIZED = ("test_wire.py", "test_routes.py", "test_serve.py", "test_serve_[ckl]*.py",
             "test_*_raw.py", "test_batch.py", "test_load.py")
# Emulated CPUs, the highest level of each, and its tests: what differs from the row above.
ARM_CPUS = (("cortex-a53", "neon", ("",)),
            ("cortex-a76", "dotprod", ("cpu_", "ops_test_linear")),
            ("max", "i8mm", ("cpu_", "ops_test_exec", "ops_test_linear")))
ARM_LEVELS = ("neon", "dotprod", "i8mm")
TIMEOUT_S = 1500


class Totals:
    def __init__(self):
        self.passed, self.failed, self.skipped = 0, 0, 0


def allowed_skips():
    rows = open(os.path.join(ROOT, "tests", "skips.txt")).read().splitlines()
    return [re.compile(r.split("#")[0].strip()) for r in rows if r.split("#")[0].strip()]


def call(command, **kw):
    return subprocess.run(command, cwd=ROOT, text=True, errors="replace", stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)


def build(preset, folder, totals):
    print(f"== build {preset}", flush=True)
    for command in (["cmake", "--preset", preset], ["cmake", "--build", folder]):
        done = call(command)
        if done.returncode:
            print(done.stdout[-8000:])
            print(f"FAILED build {preset}")
            totals.failed += 1
            return False
    return True


def report(name, passed, failed, skipped, seconds, output, totals):
    totals.passed += passed
    totals.failed += failed
    totals.skipped += skipped
    note = f", {skipped} skipped" if skipped else ""
    print(f"{'FAILED' if failed else 'ok':6} {name}: {passed} passed, {failed} failed{note}"
          f" ({seconds:.1f} s)", flush=True)
    if failed:
        print(output[-12000:])


def run_cmocka(path, totals, env, emulator=(), note=""):
    name, begin = os.path.relpath(path, ROOT) + note, time.time()
    try:
        done = call([*emulator, path], timeout=TIMEOUT_S, env=env)
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as e:
        output, code = str(e.stdout), "time-out"
    ok = re.findall(r"^\[       OK \] (\S+)", output, re.M)
    bad = set(re.findall(r"^\[  FAILED  \] (?:\S+: )?([A-Za-z_]\w*)$", output, re.M))
    skipped = set(re.findall(r"^\[  SKIPPED \] (?:\S+: )?([A-Za-z_]\w*)", output, re.M))
    rules = allowed_skips()
    silent = {s for s in skipped if not any(r.fullmatch(s) for r in rules)}
    if silent:
        output += f"\nskipped but not in tests/skips.txt: {sorted(silent)}\n"
    failed = len(bad) + len(silent)
    if code != 0 and failed == 0:
        failed, output = 1, output + f"\nexit {code}\n"
    if not ok and not failed and not skipped:
        failed, output = 1, output + "\nno test ran\n"
    report(name, len(ok), failed, len(skipped) - len(silent), time.time() - begin, output, totals)
    return output


def run_replays(folder, totals, env):
    for path in sorted(glob.glob(os.path.join(ROOT, folder, "tests", "replay_*"))):
        target = os.path.basename(path)[len("replay_"):]
        begin = time.time()
        corpus = os.path.join("tests", "corpus", target)
        n = len(glob.glob(os.path.join(ROOT, corpus, "*")))
        done = call([path, corpus], timeout=TIMEOUT_S, env=env)
        good = done.returncode == 0 and n > 0
        report(f"{folder}/replay_{target} ({n} files)", int(good), int(not good), 0,
               time.time() - begin, done.stdout, totals)


def run_command(name, command, totals, env=None):
    begin = time.time()
    done = call(command, timeout=TIMEOUT_S, env=env)
    good = done.returncode == 0
    report(name, int(good), int(not good), 0, time.time() - begin, done.stdout, totals)


def run_unittest(path, totals, env, note=""):
    begin = time.time()
    done = call([sys.executable, "-m", "unittest", "-v", path], timeout=TIMEOUT_S, env=env)
    ran = re.search(r"^Ran (\d+) test", done.stdout, re.M)
    n = int(ran.group(1)) if ran else 0
    bad = set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+\))", done.stdout, re.M))
    failed = len(bad)  # several parts of one test are one failure
    skipped = sum(int(x) for x in re.findall(r"skipped=(\d+)", done.stdout))
    failed += skipped  # these tests have no reason to skip in `make test`
    if done.returncode and not failed or n == 0:
        failed = max(failed, 1)
    report(path + note, max(n - failed, 0), failed, 0, time.time() - begin, done.stdout, totals)


def run_sanitized(folder, totals, env):
    """The server as a whole. What a sanitizer reports is its exit status, which tests look at."""
    env = dict(env, KR_BUILD_DIR=os.path.join(ROOT, folder))
    for pattern in SANITIZED:
        for path in sorted(glob.glob(os.path.join(ROOT, "tests", "server", pattern))):
            run_unittest(os.path.relpath(path, ROOT), totals, env, f" on {folder}")


def suite_binaries(folder, totals, keep=lambda name: True, env_extra=None):
    env = dict(os.environ, **(env_extra or {}))
    for path in sorted(glob.glob(os.path.join(ROOT, folder, "tests", "*"))):
        name = os.path.basename(path)
        if "_test_" in name and os.access(path, os.X_OK) and keep(name):
            run_cmocka(path, totals, env)
    return env


def is_real(name):
    return name.startswith(REAL_MODEL_TESTS)


def emulated_cuda(totals):
    """tests/cuda on the emulated device, which is built where nvcc is."""
    folder = os.path.join(ROOT, "build", "tests", "emulated")
    if platform.machine() != "x86_64":
        return
    if not os.path.exists(os.path.join(folder, "libcuda.so.1")):
        print("FAILED tests/cuda: no emulated device was built (tools/setup.sh test brings nvcc)")
        totals.failed += 1
        return
    env = dict(os.environ, LD_LIBRARY_PATH=folder, KR_TEST_CUDA="emulated")
    for path in sorted(glob.glob(os.path.join(ROOT, "build", "tests", "cuda_test_*"))):
        run_cmocka(path, totals, env, note=" emulated")


def release(totals):
    if not build("release", "build", totals):
        return
    env = suite_binaries("build", totals, env_extra={"KR_BUILD_DIR": os.path.join(ROOT, "build")})
    emulated_cuda(totals)
    run_replays("build", totals, env)
    for path in sorted(glob.glob(os.path.join(ROOT, "tests", "cli", "test_*.py")) +
                       glob.glob(os.path.join(ROOT, "tests", "server", "test_*.py"))):
        run_unittest(os.path.relpath(path, ROOT), totals, env)
    run_node(totals)


def run_node(totals):
    """bindings/node: compiled once, then each file of tests by node's own runner."""
    folder = os.path.join(ROOT, "bindings", "node")
    env = dict(os.environ, KR_BUILD_DIR=os.path.join(ROOT, "build"))
    begin = time.time()
    done = call(["npm", "run", "--silent", "--prefix", folder, "build:test"], env=env)
    if done.returncode:
        report("bindings/node compiles (tools/setup.sh test brings its packages)", 0, 1, 0,
               time.time() - begin, done.stdout, totals)
        return
    pattern = os.path.join(folder, "build", "test", "**", "*.test.js")
    for path in sorted(glob.glob(pattern, recursive=True)):
        name = os.path.relpath(path, os.path.join(folder, "build"))
        run_node_file(path, f"bindings/node/{name[:-len('.js')]}.ts", totals, env)


def run_node_file(path, name, totals, env):
    begin = time.time()
    try:
        done = call(["node", "--test", "--test-reporter=tap", path], timeout=TIMEOUT_S, env=env)
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as e:
        output, code = str(e.stdout), "time-out"
    count = {word: int(n) for word, n in re.findall(r"^# (\w+) (\d+)$", output, re.M)}
    passed = count.get("pass", 0)
    failed = sum(count.get(word, 0) for word in ("fail", "cancelled", "skipped", "todo"))
    if failed == 0 and (code != 0 or passed == 0):
        failed, output = 1, output + f"\nexit {code}\n"
    report(name, passed, failed, 0, time.time() - begin, output, totals)


def node(totals):
    if build("release", "build", totals):
        run_node(totals)


def clang(totals):
    if build("clang", "build-clang", totals):
        env = suite_binaries("build-clang", totals, lambda n: not is_real(n))
        run_replays("build-clang", totals, env)


def asan(totals):
    if build("asan", "build-asan", totals):
        options = {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
                   "UBSAN_OPTIONS": "print_stacktrace=1"}
        env = suite_binaries("build-asan", totals, lambda n: not is_real(n), options)
        run_replays("build-asan", totals, env)
        run_sanitized("build-asan", totals, env)


def tsan(totals):
    if build("tsan", "build-tsan", totals):
        env = suite_binaries("build-tsan", totals, lambda n: n.startswith(TSAN_TESTS))
        run_sanitized("build-tsan", totals, env)


def arm(totals):
    """Each level of ARM is once the highest of an emulated CPU: that its kernels use no instruction
    from above shows as a crash, and that the levels above are missing must be said aloud."""
    if platform.machine() == "aarch64":
        print("== arm: this machine is one, the release suite has run its kernels", flush=True)
        return
    if not build("aarch64", "build-aarch64", totals):
        return
    programs = sorted(glob.glob(os.path.join(ROOT, "build-aarch64", "tests", "*_test_*")))
    for cpu, level, prefixes in ARM_CPUS:
        emulator = ("qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu")
        env = dict(os.environ, KR_TEST_ISA=level)
        missing = list(ARM_LEVELS[ARM_LEVELS.index(level) + 1:])
        for path in programs:
            name = os.path.basename(path)
            if not name.startswith(prefixes):
                continue
            output = run_cmocka(path, totals, env, emulator, f" on {cpu}")
            if name == "ops_test_linear":
                said = re.findall(r"^SKIP linear_f32: no (\w+) on this machine", output, re.M)
                good = sorted(set(said)) == sorted(missing)
                report(f"levels that {cpu} lacks: {', '.join(missing) or 'none'}", int(good),
                       int(not good), 0, 0, output, totals)


def tools(totals):
    if not os.path.exists(os.path.join(ROOT, "build", "libkr.so")):
        if not build("release", "build", totals):
            return
    run_command("tools/tidy.py", [sys.executable, "tools/tidy.py"], totals)
    run_command("tools/check_abi.py", [sys.executable, "tools/check_abi.py", "build"], totals)
    for path in sorted(glob.glob(os.path.join(ROOT, "tests", "tools", "test_*.py"))):
        run_unittest(os.path.relpath(path, ROOT), totals, dict(os.environ))


SUITES = {"release": [release], "node": [node], "clang": [clang], "asan": [asan], "tsan": [tsan],
          "arm": [arm], "tools": [tools], "all": [release, clang, asan, arm, tools]}


def main(names):
    if not names or any(n not in SUITES for n in names):
        print(__doc__)
        return 2
    totals = Totals()
    for name in names:
        for suite in SUITES[name]:
            suite(totals)
    if totals.skipped:
        print(f"{totals.skipped} skipped by name (tests/skips.txt)")
    print(f"{totals.passed} passed, {totals.failed} failed")
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
