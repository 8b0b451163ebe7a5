#!/usr/bin/env bash
# Builds the packages distd-server, distd-peer and distd for this machine's architecture, and prints their names.
#
# packages.sh [--debug] [DIR]: DIR, by default target/debian, gets the packages. --debug takes the binaries of a debug
# build, for tests: they are larger and slower.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/lib/install.sh

profile=release out=
while [ $# -gt 0 ]; do
  case "$1" in
    --debug) profile=debug ;;
    -*) echo "usage: deploy/packages.sh [--debug] [DIR]" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$(realpath -m "${out:-$target/debian}")
# dpkg-shlibdeps finds the libraries that a program needs.
need dpkg-shlibdeps:dpkg-dev
command -v cargo-deb >/dev/null || cargo install --locked cargo-deb

# Debug programs are those of the tests, which have been built with other features of libraries than programs alone.
options=(--tests); [ "$profile" = debug ] || options=(--release)
cargo build --workspace --bins --locked "${options[@]}"
# cargo-deb takes the files of a release build, and strips copies of them. It finds those of a debug build by links.
files=$target/packages-$profile
mkdir -p "$files" "$out"
rm -rf "$files/release"; mkdir "$files/release"
for program in distd distd-server distd-peer; do ln "$target/$profile/$program" "$files/release/$program"; done
# Manual pages and completions are made by tests, which any profile gives alike: "demo" builds fastest.
pages=(--profile demo); [ "$profile" = release ] || pages=()
DISTD_WRITE_PAGES=$files/release/pages \
  cargo test -q --workspace --bins --locked "${pages[@]}" each_command_has_a_page_and_completions >/dev/null
gzip -9n "$files"/release/pages/man/*
fast=(); [ "$profile" = release ] || fast=(--fast)
for package in distd-server distd-peer distd-client; do
  CARGO_TARGET_DIR=$files cargo deb -q --no-build --locked --strip -p "$package" -o "$out/" "${fast[@]}"
done
