#!/usr/bin/env bash
# A share by ticket beside sendme (of the iroh project), over loopback: the time until the ticket is there, and the time
# of a whole fetch, from the start of the command to its end. The file is random. Then a sparse file of 64 GiB, with the
# peak memory of both sides. Markdown on standard output, progress on standard error. sendme is installed into a temporary
# folder unless $SENDME names it.
#
#   tests/bench/share.sh [MB] [TIMES]
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
mb=${1:-512}; times=${2:-5}
version=${SENDME_VERSION:-0.37.1}
[ -n "${DISTD_TEST_BIN:-}" ] || (cd "$here" && cargo build --release --locked -p distd-client --bins) >&2
bin=${DISTD_TEST_BIN:-$here/target/release}
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-share.XXXXXX")
sharer=
trap '[ -z "$sharer" ] || kill "$sharer" 2>/dev/null || true; rm -rf "$work"' EXIT
if [ -z "${SENDME:-}" ]; then
  cargo install sendme --version "$version" --locked --root "$work/sendme" >&2
  SENDME=$work/sendme/bin/sendme
fi
head -c "${mb}000000" /dev/urandom >"$work/file"
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }'; }
# until_says FILE PATTERN: waits for a line, and prints its match.
until_says() {
  local n
  for n in $(seq 3000); do
    grep -oE -m1 "$2" "$1" 2>/dev/null && return
    sleep 0.02
  done
  echo "no $2 in $1" >&2; return 1
}
ended() { kill "$sharer" 2>/dev/null || true; wait "$sharer" 2>/dev/null || true; sharer=; }

ours() {
  local from made
  rm -rf "$work/got"; mkdir "$work/got"; from=$(now)
  "$bin/distd" -q --data "$work/data" share "$work/file" --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" & sharer=$!
  ticket=$(until_says "$work/out" 'distd-ticket-v1\.[a-z2-7]+'); made=$(since "$from"); from=$(now)
  "$bin/distd" -q --data "$work/data" fetch "$ticket" --out "$work/got/file" >/dev/null
  echo "$made $(since "$from")"
  ended; cmp "$work/file" "$work/got/file" >&2
}
theirs() {
  local from made
  rm -rf "$work/got"; mkdir "$work/got"; from=$(now)
  # It keeps its store in the directory that it runs in.
  (mkdir -p "$work/send" && cd "$work/send" && exec "$SENDME" send $SENDME_ARGS "$work/file" </dev/null >"$work/out" 2>&1) & sharer=$!
  ticket=$(until_says "$work/out" 'blob[a-z0-9]{40,}'); made=$(since "$from"); from=$(now)
  (cd "$work/got" && "$SENDME" receive $SENDME_ARGS "$ticket" </dev/null >"$work/recv" 2>&1)
  echo "$made $(since "$from")"
  ended; cmp "$work/file" "$work/got/file" >&2; rm -rf "$work/send"
}
SENDME_ARGS=${SENDME_ARGS:---relay disabled}
for n in $(seq "$times"); do
  echo "round $n" >&2
  ours >>"$work/ours"; theirs >>"$work/theirs"
done
median() { cut -d' ' -f"$2" "$1" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
echo "| tool | ticket s | fetch s | MB/s |"
echo "|---|---|---|---|"
for tool in ours theirs; do
  fetch=$(median "$work/$tool" 2)
  name=$([ "$tool" = ours ] && echo "distd share, fetch" || echo "sendme $version")
  echo "| $name | $(median "$work/$tool" 1) | $fetch ($(cut -d' ' -f2 "$work/$tool" | tr '\n' ' ' | sed 's/ $//')) | $(awk -v m="$mb" -v s="$fetch" 'BEGIN { printf "%.0f", m / s }') |"
done

[ "${SPARSE:-64G}" != none ] || exit 0
truncate -s "${SPARSE:-64G}" "$work/sparse"; printf data | dd of="$work/sparse" bs=1 seek=400000000 conv=notrunc status=none
from=$(now)
"$bin/distd" -q --data "$work/data" share "$work/sparse" --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" & sharer=$!
for n in $(seq 100); do ticket=$(until_says "$work/out" 'distd-ticket-v1\.[a-z2-7]+' 2>/dev/null) && break; done
made=$(since "$from"); from=$(now)
fetched=$( { /usr/bin/time -f %M "$bin/distd" -q --data "$work/data" fetch "$ticket" --out "$work/sparse.got" >/dev/null; } 2>&1 | tail -1)
took=$(since "$from"); held=$(awk '/VmHWM/ { print $2 }' "/proc/$sharer/status")
cmp -n 500000000 "$work/sparse" "$work/sparse.got" >&2
echo
echo "A sparse file of ${SPARSE:-64G}: ticket after $made s, fetched in $took s; peak MiB: sharer $((held / 1024)), fetcher $((fetched / 1024));" \
  "$(du -k "$work/sparse.got" | cut -f1) KiB on the disk."
ended
