#!/usr/bin/env bash
# Builds programs as static files that need no library of the system, and prints their names: by default distd-device, the
# commands of a device.
#
# static.sh [-o DIR] [ARCH [PROGRAM...]]: ARCH is x86_64, aarch64 or armv7, by default this machine's. PROGRAM is
# distd-device, distd, distd-peer or distd-server. DIR, by default target/static, gets a file PROGRAM-ARCH of each.
#
# The profile "device" of Cargo.toml makes distd-device small. The other programs have the profile "static": a release
# without what debuggers need.
#
# C code and linking are zig's (the packages cargo-zigbuild and ziglang, installed below target/). The standard library for
# musl comes from rustup, or else, as root on Debian, from Debian's source of it, with the compiler of the same version, in
# a directory of its own: DISTD_STATIC_STD=source takes this way at once.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/lib/install.sh
. tests/lib/later_debian.sh

usage() {
  echo "usage: deploy/static.sh [-o DIR] [x86_64|aarch64|armv7 [distd-device|distd|distd-peer|distd-server]...]" >&2
  exit 2
}
out=
while getopts o: option; do
  case $option in o) out=$OPTARG ;; *) usage ;; esac
done
shift $((OPTIND - 1))
arch=${1:-$(uname -m)}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- distd-device
# Cargo's words for the programs of each profile.
declare -A chosen=()
for program; do
  case $program in
    distd-device) chosen[device]="-p distd-client --bin distd-device" ;;
    distd) chosen[static]+=" -p distd-client --bin distd" ;;
    distd-peer|distd-server) chosen[static]+=" -p $program --bin $program" ;;
    *) usage ;;
  esac
done
case $arch in
  x86_64|aarch64) target_of=$arch-unknown-linux-musl ;;
  # Every processor of that version has the shorter instructions of Thumb-2.
  armv7) target_of=armv7-unknown-linux-musleabihf flags="-C target-feature=+thumb-mode" ;;
  *) usage ;;
esac
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$(realpath -m "${out:-$target/static}")
tools=$target/tmp/static-tools
mkdir -p "$out" "$tools"
[ -x "$tools/zig/bin/python" ] || { need python3:python3; python3 -m venv "$tools/zig"; }
"$tools/zig/bin/pip" install -q --disable-pip-version-check ziglang==0.17.1
[ -x "$tools/bin/cargo-zigbuild" ] ||
  cargo install --quiet --locked --no-default-features --root "$tools" cargo-zigbuild@0.24.1
zig=$(echo "$tools"/zig/lib/python3*/site-packages/ziglang)
export RUSTFLAGS="-C target-feature=+crt-static ${flags:-}"

if [ "${DISTD_STATIC_STD:-}" != source ] && rustup target add "$target_of" >&2; then
  build() { PATH=$tools/bin:$zig:$PATH CARGO_TARGET_DIR=$target/static-build cargo "$@" >&2; }
else
  [ "$(id -u)" = 0 ] || { echo "rustup has no standard library for $target_of: try again as root, on Debian" >&2; exit 1; }
  # The compiler of Debian brings no libc of its own for the linker: zig has it.
  RUSTFLAGS="$RUSTFLAGS -C link-self-contained=no"
  root=$(suite=forky later_debian "$tools/debian" base-files coreutils dash gcc rustc cargo rust-src)
  ln -sf dash "$root/usr/bin/sh"; ln -sf gcc "$root/usr/bin/cc"
  mkdir -p "$root"/{proc,dev,tmp,distd,tools,zig,target,root/.cargo/registry} "$target/static-build" ~/.cargo/registry
  # What has been downloaded is shared, and so are the names of the network.
  cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
  mkdir -p "$root/etc/ssl/certs"; cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  # shellcheck disable=SC2016
  build() {
    unshare --mount --propagation private sh -eu -c '
      root=$1; shift
      mount --bind /dev "$root/dev"; mount -t proc proc "$root/proc"
      for pair in "$PWD:distd" "$1:tools" "$2:zig" "$3:target" "$HOME/.cargo/registry:root/.cargo/registry"; do
        mount --bind "${pair%%:*}" "$root/${pair#*:}"
      done
      shift 3
      # A stable compiler makes its own standard library with RUSTC_BOOTSTRAP alone.
      exec chroot "$root" env -i -C /distd HOME=/root PATH=/tools/bin:/zig:/usr/bin:/usr/sbin RUSTC_BOOTSTRAP=1 \
        RUSTFLAGS="$RUSTFLAGS" CARGO_TARGET_DIR=/target CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt \
        cargo "$@" -Z build-std=std,panic_unwind
    ' static "$root" "$tools" "$zig" "$target/static-build" "$@" >&2
  }
fi
for profile in "${!chosen[@]}"; do
  # shellcheck disable=SC2086
  build zigbuild --locked ${chosen[$profile]} --profile "$profile" --target "$target_of"
done
for program; do
  profile=static; [ "$program" != distd-device ] || profile=device
  install -m 755 "$target/static-build/$target_of/$profile/$program" "$out/$program-$arch"
  echo "$out/$program-$arch"
done
