#!/usr/bin/env python3
"""Installs the official clients that tests/server drives, pinned, into the build folder; does
nothing when they are there. tools/setup.sh test calls it.

usage: client_packages.py [FOLDER]    (default build/clients)

  FOLDER/python              what tests/server/clients.txt lists, for the Python that runs this
  FOLDER/node/node_modules   the npm package below: it runs on Node 18 (Debian 12); 7.x does not
The stamp beside each names what is in it, so another pin or another Python installs anew. A folder
appears whole or not at all."""
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "tests" / "server" / "clients.txt"
NPM = "openai@6.49.0"


def call(what, command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.exit(f"client_packages: installing {what} failed\n"
                 + done.stdout.decode("utf-8", "replace")[-3000:])


def pip(folder):
    call(PYTHON.name, [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
                       folder, "--disable-pip-version-check", "--only-binary", ":all:", "-r",
                       PYTHON])


def npm(folder):
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    call(NPM, ["npm", "install", "--prefix", folder, "--silent", "--no-audit", "--no-fund",
               "--ignore-scripts", "--omit=peer", "--save-exact", NPM])


def install(folder, content, make):
    stamp = folder.with_suffix(".stamp")
    if folder.is_dir() and stamp.is_file() and stamp.read_text(encoding="utf-8") == content:
        return
    print(f"client_packages: {folder.name}", file=sys.stderr, flush=True)
    partial = folder.with_suffix(".partial")
    stamp.unlink(missing_ok=True)
    for old in (partial, folder):
        if old.exists():
            shutil.rmtree(old)
    make(partial)
    partial.rename(folder)
    stamp.write_text(content, encoding="utf-8")


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "clients").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    abi = sysconfig.get_config_var("SOABI") or sys.version
    install(folder / "python", f"{abi}\n{PYTHON.read_text(encoding='utf-8')}", pip)
    install(folder / "node", f"{NPM}\n", npm)


if __name__ == "__main__":
    main()
