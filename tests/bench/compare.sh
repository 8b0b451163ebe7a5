#!/usr/bin/env bash
# Measures distd and its rivals on one pair of images in one run: bytes on the wire, seconds to make, seconds to apply,
# peak memory. Every result is compared bit for bit. Markdown on standard output, progress on standard error.
#
#   tests/bench/compare.sh OLD NEW [TOOL...]     TOOL: distd casync bita zstd-3 zstd-19 xdelta3 hdiffz (default: all)
#
# Needs root for installing what is missing. zstd-19 and xdelta3 take minutes on an 800 MB pair, hdiffz ten of them and
# 5 GB of memory. $ZSTD names another zstd than the installed one.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
old=$(realpath "${1:?usage: compare.sh OLD NEW [TOOL...]}"); new=$(realpath "${2:?usage: compare.sh OLD NEW [TOOL...]}"); shift 2
tools=("$@"); [ ${#tools[@]} -gt 0 ] || tools=(distd casync bita zstd-3 zstd-19 xdelta3 hdiffz)
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
# Lower bounds for any tool that writes an image: copying it and hashing the copy, in the page cache, and with the copy on
# the disk and read back from there.
copied() {
  warm; /usr/bin/time -f %e -o "$work/copy" sh -c "cp '$new' '$work/out' && b3sum --no-names '$work/out'" >/dev/null; read -r in_cache <"$work/copy"
  rm -f "$work/out"; warm
  /usr/bin/time -f %e -o "$work/copy" sh -c "cp '$new' '$work/out' && sync '$work/out' && dd if='$work/out' iflag=nocache count=0 2>/dev/null && b3sum --no-names '$work/out'" >/dev/null
  read -r on_disk <"$work/copy"; rm -f "$work/out"
}
rows=()
# row TOOL WIRE_BYTES MAKE_FILE APPLY_FILE NOTE
row() {
  local make apply; read -r -a make <"$3"; read -r -a apply <"$4"
  rows+=("| $1 | $(mb "$2") | ${make[0]} | $(mib "${make[1]}") | ${apply[0]} | $(mib "${apply[1]}") | $5 |")
  echo "${rows[-1]}" >&2
}
same() { cmp -s "$1" "$new" || { echo "$2: result differs from the new image" >&2; exit 1; }; }
# Time until the result of an apply is on the disk. distd's own times include this and reading the result back.
flushed() { measure "$work/flush" sync "$1"; read -r flush _ <"$work/flush"; echo "flushing the result: $flush s more"; }
# Puts both images into the page cache and writes everything back before each tool, so that no tool pays for
# another's disk.
warm() { sync; cat "$old" "$new" >/dev/null; }

if wanted distd; then
  (cd "$here" && cargo build --release --locked --bins) >&2
  # The sets from nothing would take the cores for minutes; tests/bench/installs.sh measures them.
  start_origin --solid-sets false
  warm; measure "$work/push1" "$bin/distd" --data "$realm_dir/admin" push "$old" --product os --version 1 >&2
  warm; measure "$work/push2" "$bin/distd" --data "$realm_dir/admin" push "$new" --product os --version 2 >&2
  patches_from=$(date +%s.%N)
  admin -q patch make os 1 2 --wait >/dev/null
  patches=$(awk -v a="$patches_from" -v b="$(date +%s.%N)" 'BEGIN { printf "%.0f", b - a }')
  start_relay relay
  for device in device1 device2 device3 device4; do enroll_device "$device" "$relay_address"; done
  device device1 --json pull os@1 --out "$work/slot1" >"$work/first.json"
  cmp "$work/slot1" "$old"
  # pull DEVICE SEED MANIFEST OPTIMIZE: result in $work/DEVICE.json; MANIFEST is "kept" or "none" beside the seed.
  pull() {
    cp "$work/slot1" "$work/seed"; [ "$3" = none ] || cp "$work/slot1.distd" "$work/seed.distd"
    warm; measure "$work/apply-$1" "$bin/distd" --data "$realm_dir/$1" --json pull os@2 --out "$work/out" --seed "$work/seed" --optimize "$4" \
      >"$work/$1.json" 2>"$work/$1.err" || { cat "$work/$1.err" >&2; exit 1; }
    same "$work/out" distd; rm -f "$work"/out "$work"/out.distd "$work"/seed "$work"/seed.distd
  }
  note() { echo "$(json requests <"$work/$1.json") requests, $(json round_trips <"$work/$1.json") round trips, $(json patches_failed <"$work/$1.json") patches failed"; }
  read -r push1 push1_kib <"$work/push1"
  pull device1 seed kept bytes
  row "distd --optimize bytes (relay empty)" "$(json wire_bytes <"$work/device1.json")" "$work/push2" "$work/apply-device1" "$(note device1); patches in $patches s in the background; first push $push1 s; first install $(mb "$(json wire_bytes <"$work/first.json")") MB"
  before=$(origin_served)
  pull device2 seed kept bytes
  row "distd --optimize bytes (relay full)" "$(json wire_bytes <"$work/device2.json")" "$work/push2" "$work/apply-device2" "$(note device2); cost the origin $(( $(origin_served) - before )) bytes"
  copied
  pull device3 seed kept time
  row "distd --optimize time" "$(json wire_bytes <"$work/device3.json")" "$work/push2" "$work/apply-device3" "$(note device3); cp and b3sum: $in_cache s, flushed and read back $on_disk s"
  pull device4 seed none time
  row "distd, chunks alone" "$(json wire_bytes <"$work/device4.json")" "$work/push2" "$work/apply-device4" "$(note device4); peak MiB: push $(mib "$push1_kib"), origin $(peak_mib origin), relay $(peak_mib relay)"
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
  # Bytes that a clone over HTTP would fetch: bita's own count of bytes taken from the archive.
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
zstd=${ZSTD:-zstd}
for level in 3 19; do
  if wanted "zstd-$level"; then
    warm; measure "$work/make" "$zstd" -q -f "-$level" --long=31 --patch-from="$old" "$new" -o "$work/new.zst"
    warm; measure "$work/apply" "$zstd" -q -f -d --long=31 --patch-from="$old" "$work/new.zst" -o "$work/out"
    flushed=$(flushed "$work/out")
    same "$work/out" zstd
    row "zstd $("$zstd" --version | grep -o '[0-9]*\.[0-9]*\.[0-9]*') -$level --patch-from" "$(stat -c %s "$work/new.zst")" "$work/make" "$work/apply" "whole image; $flushed"
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
if wanted hdiffz; then
  need python3:python3-venv >&2
  python3 -m venv "$work/venv" >&2; "$work/venv/bin/pip" install -q hdiffpatch==2.6.0 >&2
  warm; measure "$work/make" "$work/venv/bin/python" - "$old" "$new" "$work/new.hdiff" <<'P'
import sys, hdiffpatch
old, new = (open(path, "rb").read() for path in sys.argv[1:3])
open(sys.argv[3], "wb").write(hdiffpatch.diff(old, new, hdiffpatch.COMPRESSION_LZMA2, validate=False))
P
  warm; measure "$work/apply" "$work/venv/bin/python" - "$old" "$work/new.hdiff" "$work/out" <<'P'
import sys, hdiffpatch
old, patch = (open(path, "rb").read() for path in sys.argv[1:3])
open(sys.argv[3], "wb").write(hdiffpatch.apply(old, patch))
P
  flushed=$(flushed "$work/out")
  same "$work/out" hdiffz
  row "hdiffz, LZMA2 (hdiffpatch 2.6.0)" "$(stat -c %s "$work/new.hdiff")" "$work/make" "$work/apply" "whole image; $flushed"
fi
echo "Pair: $(basename "$old") ($(mb "$(stat -c %s "$old")") MB) to $(basename "$new") ($(mb "$(stat -c %s "$new")") MB); $(nproc) cores."
echo
echo "| tool | wire MB | make s | make MiB | apply s | apply MiB | notes |"
echo "|---|---|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
