#!/bin/sh
# Installs what building and testing kr needs on Debian 12 or Ubuntu 24.04; does nothing when all
# is there. usage: tools/setup.sh [run|test|fuzz|bench]   ("test" adds the second compiler, C++,
# where it is not ARM the compiler and emulator for that and NVIDIA's nvcc, the official clients of
# the server's protocols in build/clients, Prometheus in build/prometheus and what bindings/node is
# compiled with; "fuzz" the second compiler's sanitizers; "bench" C++ and Python environments for
# bench/peers.py)
set -eu
what=${1:-run}
rust_min_minor=89

packages="gcc:gcc cmake:cmake ninja:ninja-build pkg-config:pkg-config"
packages="$packages python3:python3 git:git"
libraries="libxxhash:libxxhash-dev jansson:libjansson-dev cmocka:libcmocka-dev"
libraries="$libraries libcrypto:libssl-dev"
case $what in
run) ;;
bench) packages="$packages g++:g++" ;;
*) packages="$packages g++:g++ clang:clang" ;;
esac
[ "$what" != test ] || packages="$packages node:nodejs npm:npm"
cross=no
if [ "$what" = test ] && [ "$(uname -m)" != aarch64 ]; then
    cross=yes
    packages="$packages aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu qemu-aarch64:qemu-user"
fi

say() { printf 'setup: %s\n' "$*" >&2; }
missing=""
for row in $packages; do
    command -v "${row%%:*}" >/dev/null 2>&1 || missing="$missing ${row##*:}"
done
for row in $libraries; do
    command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "${row%%:*}" 2>/dev/null ||
        missing="$missing ${row##*:}"
done
if [ "$what" = fuzz ]; then
    case $(clang -print-file-name="libclang_rt.fuzzer-$(uname -m).a" 2>/dev/null) in
    /*) ;;
    *) missing="$missing libclang-rt-dev" ;;
    esac
fi
if [ "$what" = bench ]; then
    python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
fi
python3 -c 'import pip' >/dev/null 2>&1 || missing="$missing python3-pip"
[ -f /usr/include/features.h ] || missing="$missing libc6-dev"
[ "$cross" = no ] || [ -f /usr/aarch64-linux-gnu/include/stdio.h ] ||
    missing="$missing libc6-dev-arm64-cross"
[ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ] ||
    missing="$missing ca-certificates"

as_root=""
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi

refreshed=no
refresh() {
    if [ -n "$as_root" ] && ! command -v sudo >/dev/null 2>&1; then
        say "there is no sudo here; please run tools/setup.sh $what as root"
        exit 1
    fi
    $as_root apt-get update -qq >&2
    refreshed=yes
}

install() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "this system has no apt-get; please install: $*"
        exit 1
    fi
    [ "$refreshed" = yes ] || refresh
    say "installing: $*"
    log=$(mktemp)
    if ! $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        say "installing failed: $*"
        exit 1
    fi
    rm -f "$log"
}
# shellcheck disable=SC2086
[ -z "$missing" ] || install $missing

[ "$what" != test ] || python3 "$(dirname "$0")/client_packages.py"

# What bindings/node is compiled and tested with, exactly as its lock file says.
node_packages() {
    folder=$(cd "$(dirname "$0")/../bindings/node" && pwd)
    stamp=$folder/node_modules/.kr-lock
    ! cmp -s "$folder/package-lock.json" "$stamp" || return 0
    say "installing the packages of bindings/node"
    (cd "$folder" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2)
    cp "$folder/package-lock.json" "$stamp"
}
[ "$what" != test ] || node_packages

# Prometheus itself, which the tests let scrape a server. It is only unpacked: installing the
# package would start its service.
unpack_prometheus() {
    folder=$(cd "$(dirname "$0")/.." && pwd)/build/prometheus
    [ ! -x "$folder/usr/bin/promtool" ] || return 0
    say "unpacking: prometheus"
    part=$folder.part
    rm -rf "$part" && mkdir -p "$part"
    if ! (cd "$part" && apt-get download -qq prometheus >&2); then
        [ "$refreshed" = yes ] || refresh
        (cd "$part" && apt-get download -qq prometheus >&2)
    fi
    dpkg -x "$part"/prometheus_*.deb "$part" && rm -f "$part"/prometheus_*.deb
    rm -rf "$folder" && mv "$part" "$folder"
}
if [ "$what" = test ] && ! command -v promtool >/dev/null 2>&1; then unpack_prometheus; fi

# nvcc compiles src/cuda/kernels (no GPU is needed for that). 13.0, so that its machine code loads
# with every driver of CUDA 13; cmake/cuda.cmake looks for it in this folder.
nvcc_dir="$HOME/.cache/kr/nvcc"
if [ "$what" = test ] && [ "$(uname -m)" = x86_64 ] && ! command -v nvcc >/dev/null 2>&1 &&
    ! [ -x "$nvcc_dir/nvidia/cu13/bin/nvcc" ]; then
    say "installing nvcc 13.0 from PyPI into $nvcc_dir"
    part=$nvcc_dir.part
    rm -rf "$part"
    if ! python3 -m pip install --quiet --disable-pip-version-check --no-deps --root-user-action \
        ignore --target "$part" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2; then
        rm -rf "$part"
        say "installing nvcc failed"
        exit 1
    fi
    rm -rf "$nvcc_dir" && mv "$part" "$nvcc_dir"
fi

# Rust for the text library: at least 1.89 (edition 2024 and what the tokenizer crates need).
# A toolchain of the user's own goes before the system's, as the Makefile has it.
PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
rust_ok() {
    version=$(cargo --version 2>/dev/null && rustc --version 2>/dev/null) || return 1
    minor=$(printf '%s\n' "$version" | sed -n 's/^rustc 1\.\([0-9]*\).*/\1/p')
    [ -n "$minor" ] && [ "$minor" -ge "$rust_min_minor" ]
}
rust_ok && exit 0
found=$(rustc --version 2>/dev/null || echo none)
say "rustc 1.$rust_min_minor or newer is needed, found: $found"
if command -v apt-get >/dev/null 2>&1; then
    [ "$refreshed" = yes ] || refresh
    # Debian 12 has a newer compiler as rustc-web, Ubuntu numbers its packages.
    numbered=$(apt-cache pkgnames rustc-1 | sed -n 's/^rustc-\(1\.[0-9]*\)$/\1/p' | sort -t. -rnk2)
    for suffix in "" -web $(printf -- '-%s ' $numbered); do
        minor=$(apt-cache policy "rustc$suffix" "cargo$suffix" 2>/dev/null |
            sed -n 's/^ *Candidate: 1\.\([0-9]*\).*/\1/p' | sort -n | head -1)
        [ -n "$minor" ] && [ "$minor" -ge "$rust_min_minor" ] || continue
        install "rustc$suffix" "cargo$suffix"
        rust_ok && exit 0
        for tool in rustc cargo; do # numbered packages install numbered programs
            for path in "/usr/lib/rust$suffix/bin/$tool" "/usr/bin/$tool$suffix"; do
                [ ! -x "$path" ] || [ -e "/usr/local/bin/$tool" ] ||
                    $as_root ln -s "$path" "/usr/local/bin/$tool"
            done
        done
        hash -r
        rust_ok && exit 0
    done
fi
cat >&2 <<'TEXT'
setup: no package here gives rustc 1.89. Ways to get it:
setup:   Debian 12: enable the suite bookworm-security (component main) in your apt sources, then
setup:              apt-get update && apt-get install rustc-web cargo-web
setup:   elsewhere: install rustup and run: rustup toolchain install stable
TEXT
exit 1
