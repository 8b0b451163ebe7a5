#!/usr/bin/env bash
# Bytes for a device that holds nothing, or little of use: first install, major upgrade, and an update through two patch
# sets beside a direct one. Every result is compared bit for bit. Markdown on standard output, progress on standard error.
#
#   tests/bench/installs.sh CORPUS [KIND]     CORPUS from tests/bench/corpus.sh; KIND: plain (default) or lz4
#
# For comparison the releases are compressed whole with zstd -19 --long, which takes ten minutes for two of 800 MB; the
# result is kept in CORPUS.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
corpus=$(realpath "${1:?usage: installs.sh CORPUS [KIND]}"); kind=${2:-plain}
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need cmp:diffutils zstd:zstd >&2
[ -x /usr/bin/time ] || { apt-get install -y -qq time >/dev/null; }
image() { printf '%s/%s.%s.erofs' "$corpus" "$1" "$kind"; }
(cd "$here" && cargo build --release --locked --bins) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-installs.XXXXXX")
realm_dir=$work/realm; bin=$here/target/release; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT
mb() { awk -v b="$1" 'BEGIN { printf "%.1f", b / 1e6 }'; }
# whole NAME: bytes of the release under zstd -19 --long.
whole() {
  local to; to=$(image "$1").zst19.bytes
  [ -s "$to" ] || zstd -q -19 --long -T1 -c "$(image "$1")" | wc -c >"$to"
  cat "$to"
}
seconds_of() { # seconds_of COMMAND...
  local from; from=$(date +%s.%N); "$@" >/dev/null
  awk -v a="$from" -v b="$(date +%s.%N)" 'BEGIN { printf "%.0f", b - a }'
}
# set_of FROM TO: bytes of a patch set; FROM is "-" for none.
set_of() {
  admin --json patch ls os | python3 -c '
import json, sys
sets = json.loads(sys.stdin.read().strip().splitlines()[-1])["patches"]
print(next(s["bytes"] for s in sets if (s["from"] or "-", s["to"]) == (sys.argv[1], sys.argv[2])))' "$1" "$2"
}
# pull DEVICE VERSION SEED OUT: a pull with patches, fewest bytes; JSON in DEVICE.json, peak KiB in DEVICE.kib.
pull() {
  local seed=(); [ "$3" = - ] || seed=(--seed "$3")
  sync
  /usr/bin/time -f %M -o "$work/$1.kib" "$bin/distd" --data "$realm_dir/$1" --json pull "os@$2" --out "$4" "${seed[@]}" --optimize bytes >"$work/$1.json" 2>"$work/$1.err" ||
    { cat "$work/$1.err" >&2; exit 1; }
  cmp "$4" "$(image "$2")"
}
wire() { json wire_bytes <"$work/$1.json"; }
note() { echo "$(json seconds <"$work/$1.json" | cut -c1-5) s, $(( $(cat "$work/$1.kib") / 1024 )) MiB, $(json patches_failed <"$work/$1.json") patches failed"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

start_origin --patches true --solid-sets false
for version in base mid update next; do admin push "$(image "$version")" --product os --version "$version" >&2; done
for device in fresh chained direct upgraded; do enroll_device "$device" "$origin_quic"; done
solid=$(seconds_of admin -q patch make os update --wait)
echo "solid set of update: $solid s" >&2
rows=()
pull fresh update - "$work/fresh"
rows+=("| first install | $(mb "$(wire fresh)") | $(mb "$(whole update)") (zstd -19 --long) | $(ratio "$(wire fresh)" "$(whole update)") | $(note fresh); set of $(mb "$(set_of - update)") MB made in $solid s |")
echo "${rows[-1]}" >&2
rm -f "$work"/fresh*

# The pushes have requested the sets from base to mid and from mid to update.
admin -q patch make os base mid --wait >/dev/null
admin -q patch make os mid update --wait >/dev/null
pull chained base - "$work/slot"
pull chained update "$work/slot" "$work/out"
chained=$(wire chained); chained_note=$(note chained); rm -f "$work"/out*
admin -q patch make os base update --wait >/dev/null
cp "$work/slot.distd" "$work/kept"
pull direct update "$work/slot" "$work/out"; rm -f "$work"/out*
rows+=("| base to update through two sets | $(mb "$chained") | $(mb "$(wire direct)") (direct) | $(ratio "$chained" "$(wire direct)") | $chained_note; direct: $(note direct) |")
echo "${rows[-1]}" >&2

admin -q patch make os update next --wait >/dev/null
rm -f "$work"/slot*
pull upgraded update - "$work/slot"
pull upgraded next "$work/slot" "$work/out"
rows+=("| major upgrade, update to next | $(mb "$(wire upgraded)") | $(mb "$(whole next)") (zstd -19 --long) | $(ratio "$(wire upgraded)" "$(whole next)") | $(note upgraded); set of $(mb "$(set_of update next)") MB |")
echo "${rows[-1]}" >&2
echo "Images of kind $kind; $(nproc) cores."
echo
echo "| | distd MB | beside MB | ratio | |"
echo "|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
