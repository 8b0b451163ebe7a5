#!/usr/bin/env bash
# Runs distd from nothing: builds it, makes two real EROFS releases out of Debian packages, starts an origin, a relay and
# three devices on loopback, pushes, pulls, updates, compares bit for bit and prints a table of costs.
#
# For a fresh Debian with Rust, as root. Everything is made in a temporary directory, which is removed at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need mkfs.erofs:erofs-utils curl:curl python3:python3 xz:xz-utils zstd:zstd xdelta3:xdelta3 casync:casync cc:gcc make:make dpkg-deb:dpkg
[ -x /usr/bin/time ] || { apt-get update -qq; apt-get install -y -qq --no-install-recommends time >/dev/null; }

echo "building origin, relay and device (a few minutes on two cores)"
(cd "$here" && cargo build --profile demo --locked --bins)
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-demo.XXXXXX")
realm_dir=$work/realm; bin=$here/target/demo; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT

echo "making two releases out of Debian packages"
# Release 1 has these packages in the version of the point release, release 2 in the newest version of the archive. Where
# both are the same, release 2 still differs: it gets more packages and edited configuration.
packages=(git perl-base vim-runtime vim-common openssl libc6 libc-bin libc6-dev coreutils bash curl libcurl4 nginx-common sqlite3
  libsqlite3-0 libpq5 tzdata systemd udev openssh-client openssh-server ca-certificates login passwd binutils-common)
# These name the versioned packages that hold the files.
apt-get update -qq
for meta in perl python3-minimal python3 libpython3-stdlib postgresql-client; do
  mapfile -t -O "${#packages[@]}" packages < <(apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null | awk '/ Depends: [a-z]/ { print $2 }' | head -n 4)
done
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
extra=(jq libjq1 libonig5 htop nftables libnftables1)
mkdir -p "$work/deb1" "$work/deb2" "$work/tree1" "$work/tree2"
# versions PACKAGE: its versions in the archive, newest first.
versions() { apt-cache madison "$1" 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | sort -Vru; }
found=0; changed=0
for package in "${packages[@]}"; do
  mapfile -t offered < <(versions "$package")
  [ ${#offered[@]} -gt 0 ] || continue
  found=$((found + 1)); [ ${#offered[@]} -lt 2 ] || changed=$((changed + 1))
  (cd "$work/deb1" && apt-get download -qq "$package=${offered[-1]}" 2>/dev/null) || continue
  (cd "$work/deb2" && apt-get download -qq "$package=${offered[0]}" 2>/dev/null)
done
for package in "${extra[@]}"; do (cd "$work/deb2" && apt-get download -qq "$package" 2>/dev/null) || true; done
for deb in "$work"/deb1/*.deb; do dpkg-deb -x "$deb" "$work/tree1"; done
for deb in "$work"/deb2/*.deb; do dpkg-deb -x "$deb" "$work/tree2"; done
for n in 1 2; do
  mkdir -p "$work/tree$n/etc"
  printf 'NAME=demo\nVERSION_ID=%s\n' "$n" >"$work/tree$n/etc/os-release"
  (cd "$work/tree$n" && find . -type f | sort >etc/file-list)
  mkfs.erofs -T1700000000 -U 11111111-2222-3333-4444-555555555555 "$work/v$n.erofs" "$work/tree$n" >/dev/null 2>&1
done
echo "  $found packages, $changed with an update in the archive, $(ls "$work"/deb2 | wc -l) in release 2"

full=$(stat -c %s "$work/v2.erofs")
echo "starting an origin, a relay and three devices"
start_origin
start_relay relay
admin push "$work/v1.erofs" --product demo --version 1 --channel stable
for n in 1 2 3; do
  enroll_device "device$n" "$relay_address"
  device "device$n" --json pull demo:stable --out "$work/slot$n" >"$work/first$n.json"
  cmp "$work/slot$n" "$work/v1.erofs"
done
admin push "$work/v2.erofs" --product demo --version 2 --channel stable
# Devices can install the release at once; its patches are made in the background.
admin patch make demo 1 2 --wait
for n in 1 2 3; do
  device "device$n" plan demo:stable --seed "$work/slot$n" --optimize bytes
  device "device$n" --json pull demo:stable --out "$work/new$n" --seed "$work/slot$n" --optimize bytes >"$work/update$n.json"
  cmp "$work/new$n" "$work/v2.erofs"
  [ "$(b3sum --no-names "$work/new$n" 2>/dev/null || json blake3 <"$work/update$n.json")" = "$(json blake3 <"$work/update$n.json")" ]
done

mb() { awk -v b="$1" 'BEGIN { printf "%.2f", b / 1e6 }'; }
share() { awk -v b="$1" -v f="$full" 'BEGIN { printf "%.1f %%", 100 * b / f }'; }
line() { printf '%-34s %10s %10s %9s %9s\n' "$@"; }
echo
echo "update of an image of $(mb "$full") MB, every result compared bit for bit"
line "" "MB" "of full" "make s" "apply s"
for n in 1 2 3; do
  read -r wire relay origin seconds < <(json wire_bytes wire_bytes_by_source.relay wire_bytes_by_source.origin seconds <"$work/update$n.json")
  line "distd device $n (relay $(mb "$relay"), origin $(mb "$origin"))" "$(mb "$wire")" "$(share "$wire")" "" "$(printf %.1f "$seconds")"
done
timed() { local t=$1; shift; /usr/bin/time -f %e -o "$work/$t" "$@" >/dev/null 2>&1; cat "$work/$t"; }
rival() { cmp -s "$work/out" "$work/v2.erofs" || { echo "$1 did not reproduce the image" >&2; exit 1; }; line "$1" "$(mb "$2")" "$(share "$2")" "$3" "$4"; rm -f "$work/out"; }
make=$(timed t zstd -q -f -3 --long=31 --patch-from="$work/v1.erofs" "$work/v2.erofs" -o "$work/d.zst")
apply=$(timed t zstd -q -f -d --long=31 --patch-from="$work/v1.erofs" "$work/d.zst" -o "$work/out")
rival "zstd -3 --patch-from" "$(stat -c %s "$work/d.zst")" "$make" "$apply"
make=$(timed t xdelta3 -f -e -9 -B 536870912 -s "$work/v1.erofs" "$work/v2.erofs" "$work/d.xd3")
apply=$(timed t xdelta3 -f -d -B 536870912 -s "$work/v1.erofs" "$work/d.xd3" "$work/out")
rival "xdelta3 -9" "$(stat -c %s "$work/d.xd3")" "$make" "$apply"
casync make --store="$work/castr" "$work/v1.caibx" "$work/v1.erofs" >/dev/null 2>&1
make=$(timed t casync make --store="$work/castr" "$work/v2.caibx" "$work/v2.erofs")
wire=$(( $(find "$work/castr" -name '*.cacnk' -newer "$work/v1.caibx" -printf '%s\n' | awk '{ s += $1 } END { printf "%d", s }') + $(stat -c %s "$work/v2.caibx") ))
apply=$(timed t casync extract --store="$work/castr" --seed="$work/v1.erofs" "$work/v2.caibx" "$work/out")
rival "casync" "$wire" "$make" "$apply"
echo
echo "the origin served the relay; devices 2 and 3 got theirs from the relay's store"
