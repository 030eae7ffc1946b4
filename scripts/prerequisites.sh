#!/usr/bin/env bash
# What `make` needs before it can build: Python >= 3.11 with venv, Rust >= 1.85, a C linker. Root with apt-get: what is
# missing is installed. Otherwise what to install is printed, and the exit status is 1. Some more programs let more
# tests run: without them those tests are skipped with a reason, or use what is built in.
set -u

python=${PYTHON:-python3}
packages=()
missing=()

has_python() { "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_linker() { command -v cc >/dev/null; }
has_rust() { command -v cargo >/dev/null && rust_is_new "$(rustc --version 2>/dev/null | cut -d' ' -f2)"; }
rust_is_new() { [ -n "$1" ] && [ "$(printf '%s\n1.85.0\n' "${1%%[-+]*}" | sort -V | head -n 1)" = 1.85.0 ]; }
# Debian 12 carries Rust 1.63, which is too old; Debian 13 carries 1.85.
packaged_rust_is_new() { rust_is_new "$(apt-cache policy rustc 2>/dev/null | sed -n 's/ *Candidate: //p')"; }

wants() { has_"$1" || { packages+=("$2"); missing+=("$3"); }; }

wants python python3 "Python 3.11 or newer (Debian: python3)"
wants venv python3-venv "Python's venv module (Debian: python3-venv)"
wants linker gcc "a C linker (Debian: gcc)"

extras=()
command -v ip >/dev/null || extras+=(iproute2)
command -v nft >/dev/null || [ -x /usr/sbin/nft ] || extras+=(nftables)
# Only the program: the package apache2 would also start a server.
command -v apache2 >/dev/null || [ -x /usr/sbin/apache2 ] || extras+=(apache2-bin)
# The website's video, and a browser that plays it.
command -v ffmpeg >/dev/null || extras+=(ffmpeg)
command -v chromium >/dev/null || extras+=(chromium)
# Where there is Docker: a base image without a registry.
! command -v docker >/dev/null || command -v mmdebstrap >/dev/null || extras+=(mmdebstrap)
command -v shellcheck >/dev/null || extras+=(shellcheck)

if [ ${#extras[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing for the tests: ${extras[*]}" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${extras[@]}" >/dev/null ||
            echo "could not install ${extras[*]}: some tests will be skipped" >&2
    else
        echo "not found, so some tests will be skipped (Debian's packages: ${extras[*]})" >&2
    fi
fi

if [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing: ${packages[*]}" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
    missing=()
    has_python || missing+=("Python 3.11 or newer: this distribution's python3 is older")
    has_venv || missing+=("Python's venv module")
    has_linker || missing+=("a C linker")
fi

if ! has_rust; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && packaged_rust_is_new; then
        echo "installing: cargo rustc" >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq cargo rustc >/dev/null
    fi
    has_rust || missing+=("Rust 1.85 or newer (https://rustup.rs, or Debian 13: cargo rustc)")
fi

[ ${#missing[@]} -eq 0 ] && exit 0
{
    echo "flowlb needs, and could not find:"
    printf '  - %s\n' "${missing[@]}"
    echo "Install them, then run the same command again."
} >&2
exit 1
