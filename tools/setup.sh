#!/bin/sh
# Installs what building and testing kr needs on Debian 12 or Ubuntu 24.04; does nothing when all
# is there. usage: tools/setup.sh [run|test]   ("test" adds the second compiler)
set -eu
what=${1:-run}
rust_min_minor=89

packages="gcc:gcc g++:g++ cmake:cmake ninja:ninja-build pkg-config:pkg-config"
packages="$packages python3:python3 git:git"
libraries="libxxhash:libxxhash-dev jansson:libjansson-dev cmocka:libcmocka-dev"
libraries="$libraries libcrypto:libssl-dev"
[ "$what" = test ] && packages="$packages clang:clang"

say() { printf 'setup: %s\n' "$*" >&2; }
missing=""
for row in $packages; do
    command -v "${row%%:*}" >/dev/null 2>&1 || missing="$missing ${row##*:}"
done
for row in $libraries; do
    command -v pkg-config >/dev/null 2>&1 && pkg-config --exists "${row%%:*}" 2>/dev/null ||
        missing="$missing ${row##*:}"
done
python3 -c 'import pip' >/dev/null 2>&1 || missing="$missing python3-pip"
[ -f /usr/include/features.h ] || missing="$missing libc6-dev"
[ -n "$(ls /etc/ssl/certs 2>/dev/null)" ] || missing="$missing ca-certificates"

as_root=""
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi

install() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "this system has no apt-get; please install:$*"
        exit 1
    fi
    say "installing:$*"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $* >&2
}
# shellcheck disable=SC2086
[ -z "$missing" ] || install $missing

# Rust for the text library: at least 1.89 (edition 2024 and what the tokenizer crates need).
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
rust_ok() {
    version=$(cargo --version 2>/dev/null && rustc --version 2>/dev/null) || return 1
    minor=$(printf '%s\n' "$version" | sed -n 's/^rustc 1\.\([0-9]*\).*/\1/p')
    [ -n "$minor" ] && [ "$minor" -ge "$rust_min_minor" ]
}
rust_ok && exit 0
found=$(rustc --version 2>/dev/null || echo none)
say "rustc 1.$rust_min_minor or newer is needed, found: $found"
if command -v apt-get >/dev/null 2>&1; then
    $as_root apt-get update -qq
    # Debian 12 has a newer compiler as rustc-web, Ubuntu numbers its packages.
    for pair in "rustc-web cargo-web" "rustc-1.91 cargo-1.91" "rustc-1.89 cargo-1.89" \
        "rustc cargo"; do
        # shellcheck disable=SC2086
        set -- $pair
        candidate=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \(.*\)/\1/p')
        minor=$(printf '%s\n' "$candidate" | sed -n 's/^1\.\([0-9]*\).*/\1/p')
        [ -n "$minor" ] && [ "$minor" -ge "$rust_min_minor" ] || continue
        install "$1" "$2"
        for tool in rustc cargo; do # numbered packages install numbered programs
            number=${1#rustc-}
            if [ -x "/usr/bin/$tool-$number" ] && [ ! -e "/usr/local/bin/$tool" ]; then
                $as_root ln -s "/usr/bin/$tool-$number" "/usr/local/bin/$tool"
            fi
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
