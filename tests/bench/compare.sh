#!/usr/bin/env bash
# Measures distd and its rivals on one pair of images in one run: bytes on the wire, seconds to make, seconds to apply,
# peak memory. Every result is compared bit for bit. Markdown on standard output, progress on standard error.
#
#   tests/bench/compare.sh OLD NEW [TOOL...]     TOOL: distd casync bita zstd-3 zstd-19 xdelta3 (default: all)
#
# Needs root for installing what is missing. zstd-19 and xdelta3 take minutes on an 800 MB pair.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
old=$(realpath "${1:?usage: compare.sh OLD NEW [TOOL...]}"); new=$(realpath "${2:?usage: compare.sh OLD NEW [TOOL...]}"); shift 2
tools=("$@"); [ ${#tools[@]} -gt 0 ] || tools=(distd casync bita zstd-3 zstd-19 xdelta3)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
wanted() { local t; for t in "${tools[@]}"; do [ "$t" = "$1" ] && return 0; done; return 1; }
need /usr/bin/time:time b3sum:b3sum cmp:diffutils >&2
[ -x /usr/bin/time ] || { apt-get install -y -qq time >/dev/null; }
wanted casync && need casync:casync >&2
wanted xdelta3 && need xdelta3:xdelta3 >&2
{ wanted zstd-3 || wanted zstd-19; } && need zstd:zstd >&2
if wanted bita && ! command -v bita >/dev/null; then cargo install --locked bita >&2; fi
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-compare.XXXXXX")
realm_dir=$work/realm; bin=$here/target/release; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT

# measure FILE COMMAND...: runs it; FILE gets "seconds peak_kib".
measure() { local out=$1; shift; /usr/bin/time -f '%e %M' -o "$out" "$@"; }
mb() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1e6 }'; }
mib() { awk -v k="$1" 'BEGIN { printf "%.0f", k / 1024 }'; }
rows=()
# row TOOL WIRE_BYTES MAKE_FILE APPLY_FILE NOTE
row() {
  local make apply; read -r -a make <"$3"; read -r -a apply <"$4"
  rows+=("| $1 | $(mb "$2") | ${make[0]} | $(mib "${make[1]}") | ${apply[0]} | $(mib "${apply[1]}") | $5 |")
  echo "${rows[-1]}" >&2
}
same() { cmp -s "$1" "$new" || { echo "$2: result differs from the new image" >&2; exit 1; }; }
# How long the result of an apply takes to reach the disk. distd's own times end when it has, and was read back.
flushed() { measure "$work/flush" sync "$1"; read -r flush _ <"$work/flush"; echo "flushing the result: $flush s more"; }
# Both images in the page cache and nothing left to write before each tool, so that none pays for another's disk.
warm() { sync; cat "$old" "$new" >/dev/null; }

if wanted distd; then
  (cd "$here" && cargo build --release --locked --bins) >&2
  start_origin
  warm; measure "$work/push1" "$bin/distd" --data "$realm_dir/admin" push "$old" --product os --version 1 >&2
  warm; measure "$work/push2" "$bin/distd" --data "$realm_dir/admin" push "$new" --product os --version 2 >&2
  start_relay relay
  enroll_device device1 "$relay_address"; enroll_device device2 "$relay_address"
  device device1 --json pull os@1 --out "$work/slot1" >"$work/pull1.json"
  cmp "$work/slot1" "$old"
  warm; measure "$work/apply" "$bin/distd" --data "$realm_dir/device1" --json pull os@2 --out "$work/slot1b" --seed "$work/slot1" >"$work/pull2.json" 2>"$work/pull2.err" || { cat "$work/pull2.err" >&2; exit 1; }
  same "$work/slot1b" distd
  before=$(origin_served)
  cp "$work/slot1" "$work/slot2"; cp "$work/slot1.distd" "$work/slot2.distd"
  warm; measure "$work/apply2" "$bin/distd" --data "$realm_dir/device2" --json pull os@2 --out "$work/slot2b" --seed "$work/slot2" >"$work/pull3.json"
  same "$work/slot2b" distd
  after=$(origin_served)
  read -r push1 push1_kib <"$work/push1"
  read -r apply2 _ <"$work/apply2"
  wire=$(json wire_bytes <"$work/pull2.json")
  row "distd (relay on loopback, empty)" "$wire" "$work/push2" "$work/apply" "first push $push1 s; $(json requests <"$work/pull2.json") requests, $(json round_trips <"$work/pull2.json") round trips; second device (relay full) applied in $apply2 s and cost the origin $((after - before)) bytes; peak MiB: push $(mib "$push1_kib"), origin $(peak_mib origin), relay $(peak_mib relay)"
  stop_realm; rm -f "$work"/slot*
fi
if wanted casync; then
  export CASYNC_STORE=$work/castr
  warm; measure "$work/make1" casync make --store="$work/castr" "$work/old.caibx" "$old" >&2
  warm; measure "$work/make" casync make --store="$work/castr" "$work/new.caibx" "$new" >&2
  new_bytes=$(( $(find "$work/castr" -name '*.cacnk' -newer "$work/old.caibx" -printf '%s\n' | awk '{ s += $1 } END { printf "%d", s }') + $(stat -c %s "$work/new.caibx") ))
  warm; measure "$work/apply" casync extract --store="$work/castr" --seed="$old" "$work/new.caibx" "$work/out" >&2
  flushed=$(flushed "$work/out")
  same "$work/out" casync
  read -r make1 _ <"$work/make1"
  row "casync (64 KiB, zstd)" "$new_bytes" "$work/make" "$work/apply" "first make $make1 s; $flushed"
  rm -rf "$work/castr" "$work/out"
fi
if wanted bita; then
  warm; measure "$work/make" bita compress -i "$new" "$work/new.cba" >&2
  cp "$old" "$work/seed"
  warm; measure "$work/apply" bita clone --seed "$work/seed" "$work/new.cba" "$work/out" >"$work/bita.log" 2>&1
  flushed=$(flushed "$work/out")
  same "$work/out" bita
  # What a clone over HTTP would fetch: its own count of bytes taken from the archive.
  fetched=$(python3 - "$work/bita.log" <<'P'
import re, sys
text = re.sub(r"\x1b\[[0-9;]*m", "", open(sys.argv[1]).read())
units = {"bytes": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
found = re.findall(r"(?:Fetched|fetched|transferred)[^\d]*([\d.]+)\s*(bytes|KiB|MiB|GiB)", text)
print(int(float(found[-1][0]) * units[found[-1][1]]) if found else 0)
P
)
  row "bita (64 KiB, brotli)" "$fetched" "$work/make" "$work/apply" "local archive; $flushed"
  rm -f "$work/out" "$work/seed" "$work/new.cba"
fi
for level in 3 19; do
  if wanted "zstd-$level"; then
    warm; measure "$work/make" zstd -q -f "-$level" --long=31 --patch-from="$old" "$new" -o "$work/new.zst"
    warm; measure "$work/apply" zstd -q -f -d --long=31 --patch-from="$old" "$work/new.zst" -o "$work/out"
    flushed=$(flushed "$work/out")
    same "$work/out" zstd
    row "zstd -$level --patch-from" "$(stat -c %s "$work/new.zst")" "$work/make" "$work/apply" "whole image; $flushed"
    rm -f "$work/out" "$work/new.zst"
  fi
done
if wanted xdelta3; then
  warm; measure "$work/make" xdelta3 -f -e -9 -B 1073741824 -s "$old" "$new" "$work/new.xd3"
  warm; measure "$work/apply" xdelta3 -f -d -B 1073741824 -s "$old" "$work/new.xd3" "$work/out"
  flushed=$(flushed "$work/out")
  same "$work/out" xdelta3
  row "xdelta3 -9" "$(stat -c %s "$work/new.xd3")" "$work/make" "$work/apply" "whole image; $flushed"
fi
echo "Pair: $(basename "$old") ($(mb "$(stat -c %s "$old")") MB) to $(basename "$new") ($(mb "$(stat -c %s "$new")") MB); $(nproc) cores."
echo
echo "| tool | wire MB | make s | make MiB | apply s | apply MiB | notes |"
echo "|---|---|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
