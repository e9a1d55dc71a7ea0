#!/usr/bin/env python3
"""Installs what kr is measured beside, outside this repository: llama.cpp, built from the source
package llama-cpp-python (PyPI), and a Python environment with mlx-lm and matplotlib.

usage: peers.py [llama] [batched] [server] [perplexity] [mlx] [plot]    (all without arguments)

Folder: $KR_PEERS_DIR, else ~/.cache/kr/peers. What is there is kept:
  llama/bin/llama-bench   native Release build, static; beside it llama-batched-bench,
                          llama-server (without its web page) and llama-perplexity
  venv/bin/python         mlx-lm with mlx[cpu], numpy, matplotlib
  hf/<alias>              a model's weights for mlx-lm, made by tools/gguf_to_hf.py
Nothing of it is built into kr or needed by it."""
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
CMAKE = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF",
         "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
         "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_UI=OFF",
         "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_CURL=OFF",
         "-DLLAMA_OPENSSL=OFF"]
PIP = {"mlx": ["numpy", "safetensors", "mlx-lm", "mlx[cpu]"], "plot": ["matplotlib"]}
IMPORTS = {"mlx": "import numpy, mlx_lm", "plot": "import matplotlib"}


def folder():
    home = os.environ.get("KR_PEERS_DIR") or Path.home() / ".cache" / "kr" / "peers"
    return Path(home).resolve()


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def call(command, log, **kw):
    """Runs a step with its output in a file; on failure the end of that file is the message."""
    with open(log, "ab") as out:
        done = subprocess.run([str(word) for word in command], stdout=out,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False, **kw)
    if done.returncode != 0:
        tail = Path(log).read_bytes()[-1500:].decode("utf-8", "replace")
        sys.exit(f"peers: failed: {' '.join(map(str, command))}\n{tail}\nfull log: {log}")


def llama_source(home):
    source = home / "src" / f"llama_cpp_python-{VERSION}"
    if not (source / "vendor" / "llama.cpp" / "CMakeLists.txt").is_file():
        say(f"fetching the source package {PACKAGE} {VERSION}")
        (home / "src").mkdir(parents=True, exist_ok=True)
        call([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE,
              f"{PACKAGE}=={VERSION}", "-d", home / "src"], home / "llama.log")
        with tarfile.open(home / "src" / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(home / "src", filter="data")
            else:
                archive.extractall(home / "src")
    return source / "vendor" / "llama.cpp"


def llama_program(name):
    """Path of a program of llama.cpp, built if it is not there."""
    home = folder()
    program = home / "llama" / "bin" / name
    if not program.is_file():
        for tool in ("cmake", "ninja", "c++"):
            if shutil.which(tool) is None:
                sys.exit(f"peers: building llama.cpp needs {tool}; tools/setup.sh bench gets it")
        source = llama_source(home)  # configured anew: an older folder may lack parts of CMAKE
        call(["cmake", "-S", source, "-B", home / "llama", *CMAKE], home / "llama.log")
        say(f"building {name} of llama.cpp (the first time ten minutes and more on two cores)")
        call(["cmake", "--build", home / "llama", "--target", name], home / "llama.log")
    return program


def llama():
    return llama_program("llama-bench")


def batched():
    return llama_program("llama-batched-bench")


def server():
    return llama_program("llama-server")


def perplexity():
    return llama_program("llama-perplexity")


def python(part):
    """The environment's interpreter with the packages of `part` ("mlx" or "plot")."""
    home = folder()
    program = home / "venv" / "bin" / "python"
    if not program.is_file():
        say("making a Python environment")
        home.mkdir(parents=True, exist_ok=True)
        try:
            venv.EnvBuilder(with_pip=True).create(home / "venv")
        except subprocess.CalledProcessError:
            sys.exit("peers: python3 cannot make environments; tools/setup.sh bench gets it")
    done = subprocess.run([program, "-c", IMPORTS[part]], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        say(f"installing {' '.join(PIP[part])}")
        call([program, "-m", "pip", "install", "-q", *PIP[part]], home / "pip.log")
    return program


def hf_weights(alias, gguf):
    """Folder with the model's weights for mlx-lm (float32: four bytes a weight of disk)."""
    home = folder()
    out = home / "hf" / alias
    if not (out / "config.json").is_file():  # written last
        say(f"writing {alias} for mlx-lm")
        call([python("mlx"), ROOT / "tools" / "gguf_to_hf.py", gguf, out], home / "hf.log")
    return out


def main(parts):
    known = {"llama": llama, "batched": batched, "server": server, "perplexity": perplexity,
             "mlx": lambda: python("mlx"), "plot": lambda: python("plot")}
    for part in parts or list(known):
        if part not in known:
            sys.exit(__doc__)
        print(known[part]())


if __name__ == "__main__":
    main(sys.argv[1:])
