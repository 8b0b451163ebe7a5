#!/usr/bin/env bash
# Formatting, lints, licence and source checks, every unit, property and end-to-end test. Installs what it needs,
# starts its own PostgreSQL and S3 server and stops them.
#
# --quick: formatting, lints, checks of the tree, unit and property tests. Installs nothing but cargo-nextest, needs no
# root, and starts no server.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/lib/install.sh
. tests/lib/later_debian.sh
. tests/lib/servers.sh

quick=
case "${1:-}" in
  "") ;;
  --quick) quick=1 ;;
  *) echo "usage: tests/run.sh [--quick]" >&2; exit 2 ;;
esac
began=$SECONDS

# A first build in a clone has nothing to build upon: what incremental builds keep would only fill the disk.
[ -d "${CARGO_TARGET_DIR:-target}" ] || export CARGO_INCREMENTAL=0

[ -n "$quick" ] || need gpg:gpg gpgv:gpgv swupdate:swupdate mkfs.erofs:erofs-utils python3:python3 curl:curl xz:xz-utils mandoc:mandoc zstd:zstd bzip2:bzip2 lz4:lz4 cc:gcc make:make ip:iproute2 nft:nftables tinyproxy:tinyproxy faketime:faketime strace:strace mount.exfat-fuse:exfat-fuse mkfs.exfat:exfatprogs grub-editenv:grub-common fw_setenv:libubootenv-tool rauc:rauc dbus-daemon:dbus-daemon wget:wget aria2c:aria2 casync:casync mksquashfs:squashfs-tools openssl:openssl cpio:cpio unshare:util-linux sgdisk:gdisk sfdisk:fdisk mkfs.vfat:dosfstools mcopy:mtools mke2fs:e2fsprogs objcopy:binutils veritysetup:cryptsetup-bin chromium-headless-shell:chromium-headless-shell node:nodejs npm:npm promtool:prometheus mmdebstrap:mmdebstrap dpkg-shlibdeps:dpkg-dev
# The outside verifier of receipts needs it.
[ -n "$quick" ] || python3 -c 'import cryptography' 2>/dev/null || need no-command:python3-cryptography
command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
work=$(mktemp -d); chmod 755 "$work"
pids=()
cleanup() {
  stop_postgres
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT

# A Debian that tests/install boots comes over the network, which is idle while this builds.
debian=
if [ -z "$quick" ] && [ "$(id -u)" = 0 ]; then
  export DISTD_TEST_DEBIAN_ROOT=$PWD/target/tmp/debian.tar
  (. tests/lib/machine.sh; debian_root "$DISTD_TEST_DEBIAN_ROOT") >"$work/debian.log" 2>&1 & debian=$!
fi

echo "== formatting"
cargo fmt --all --check
echo "== lints"
cargo clippy --workspace --all-targets --locked -- -D warnings
echo "== licences, sources, words"
python3 tests/lib/check_tree.py
if [ -n "$quick" ]; then
  echo "== unit and property tests"
  # Without the fuzz corpus, real images and end-to-end tests.
  cargo nextest run --locked --no-fail-fast -p cabac -p distd-core -p distd-peer -p distd-client -p distd-server \
    -E 'kind(lib) + kind(bin) + (package(distd-core) & kind(test) - binary(/^(fuzz_|cut_erofs|patch_)/))'
  echo "quick run: $((SECONDS - began)) s"
  exit
fi
echo "== documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked -q

echo "== PostgreSQL and S3 for the contract tests"
start_postgres "$work"
start_s3 "$work"; pids+=("$s3_pid")
export DISTD_TEST_PYTHON=$python

echo "== an outside TUF client on our repository"
# In one resolution of features with the tests: programs that are built alone have others, and every library would be
# built twice. Of the examples, which clippy has checked, only this one: linking them takes minutes.
cargo build --workspace --bins --tests --example tuf-cases --locked
"${CARGO_TARGET_DIR:-target}/debug/examples/tuf-cases" "$work/tuf-cases"
"$python" tests/python/tuf_check.py --cases "$work/tuf-cases"

# Updaters, and a mkfs.erofs that packs with deflate, zstd and lzma too.
DISTD_TEST_LATER_DEBIAN=$(later_debian "$PWD/target/tmp/later-debian" base-files erofs-utils systemd-container gpg gpgv swupdate apt dpkg)
export DISTD_TEST_LATER_DEBIAN
if mkfs.erofs --help 2>&1 | grep -q zstd; then
  DISTD_TEST_NEWER_MKFS=$(command -v mkfs.erofs)
else
  DISTD_TEST_NEWER_MKFS=$work/mkfs.erofs
  printf '#!/bin/sh\nlib=$(echo "%s"/usr/lib/*-linux-gnu*)\nexec "$lib"/ld-linux-*.so.* --library-path "$lib" "%s/usr/bin/mkfs.erofs" "$@"\n' \
    "$DISTD_TEST_LATER_DEBIAN" "$DISTD_TEST_LATER_DEBIAN" >"$DISTD_TEST_NEWER_MKFS"
  chmod +x "$DISTD_TEST_NEWER_MKFS"
fi
export DISTD_TEST_NEWER_MKFS

# The page is visited by a real browser. The script stands beside its packages.
mkdir "$work/web"; cp tests/web/* "$work/web/"
(cd "$work/web" && npm ci --silent --ignore-scripts)
export DISTD_TEST_WEB=$work/web DISTD_TEST_BROWSER; DISTD_TEST_BROWSER=$(command -v chromium-headless-shell)

echo "== tests"
cargo nextest run --workspace --tests --locked --no-fail-fast
cargo test --workspace --doc --locked

echo "== packages on booted systems"
if [ -z "$debian" ] || ! wait "$debian"; then
  echo "NOT RUN: the packages on booted systems: not root, or no Debian root: $(tail -n 1 "$work/debian.log" 2>/dev/null || true)"
else
  deploy/packages.sh --debug "$work/packages"
  tests/install/run.sh "$work/packages"
fi

echo "== what pulls do, once more where UDP is dropped"
# Without tests of neighbours and sites: these exchange over QUIC only.
tests/lib/no_udp.sh cargo nextest run --workspace --tests --locked --offline --no-fail-fast \
  -E 'package(distd-tests) & binary(/^(bad_input|kills|kills_patched|liars|patches|update)$/)'
echo "full run: $((SECONDS - began)) s"
