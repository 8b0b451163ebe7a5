#!/usr/bin/env bash
# Two realistic offices: an origin, two sites behind uplinks of 100 Mbit/s with a relay and ten devices each, all real
# processes in network namespaces. Traffic over an uplink is counted at its veth. Markdown on standard output, progress on
# standard error.
#
#   tests/hosts/run.sh [OLD NEW]     two images; default: two images made here, 60 MB, a quarter of it new
#
# Needs root and some ten minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
. "$here/tests/hosts/net.sh"
need ip:iproute2 tc:iproute2 cmp:diffutils mkfs.erofs:erofs-utils python3:python3 >&2
(cd "$here" && cargo build --release --locked --bins) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-hosts.XXXXXX"); bin=$here/target/release; realm_dir=$work
declare -A pids=()
leaves=10
cleanup() {
  local name
  for name in "${!pids[@]}"; do kill "${pids[$name]}" 2>/dev/null || true; done
  for name in "${!pids[@]}"; do wait "${pids[$name]}" 2>/dev/null || true; done
  umount "$work/small" 2>/dev/null || true
  net_stop; rm -rf "$work"
}
trap cleanup EXIT

# images: two releases of a tree of 240 files, a quarter of which are new bytes in the second.
images() {
  python3 - "$work/tree" <<'P'
import os, random, sys
random.seed(7); root = sys.argv[1]
for i in range(240):
    os.makedirs(f"{root}/1/d{i % 8}", exist_ok=True); os.makedirs(f"{root}/2/d{i % 8}", exist_ok=True)
    bytes_ = random.randbytes(250_000)
    for v in (1, 2):
        with open(f"{root}/{v}/d{i % 8}/f{i}", "wb") as f: f.write(bytes_ if v == 1 or i % 4 else random.randbytes(250_000))
P
  for v in 1 2; do mkfs.erofs -T1700000000 -U 11111111-2222-3333-4444-555555555555 "$work/image$v" "$work/tree/$v" >/dev/null 2>&1; done
  rm -rf "$work/tree"; old=$work/image1 new=$work/image2
}
admin() { on origin "$bin/distd" --data "$work/admin" "$@"; }
origin_up() {
  in_place_of_shell origin "$bin/distd-server" serve --data "$work/origin" --http 127.0.0.1:8443 --quic 10.90.0.2:4433 --patches false >"$work/origin.out" 2>>"$work/origin.log" & pids[origin]=$!
  wait_for 30 grep -q 'origin listening on' "$work/origin.out"
}
relay_up() { # relay_up SITE
  local s=$1 token=()
  [ -e "$work/relay$s" ] || export DISTD_JOIN_TOKEN="$(join_token relay 1)"
  in_place_of_shell "s$s-h10" "$bin/distd-peer" run --parent 10.90.0.2:4433 --data "$work/relay$s" --listen "10.90.$s.10:4433" --label "relay$s" >"$work/relay$s.out" 2>>"$work/relay$s.log" & pids[relay$s]=$!
  wait_for 30 grep -q "relay listening on" "$work/relay$s.out" || { tail -n 20 "$work/relay$s.log" >&2; return 1; }
  unset DISTD_JOIN_TOKEN
}
down() { # down NAME [SIGNAL]
  kill "-${2:-TERM}" "${pids[$1]}" 2>/dev/null || true; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"
}
# fresh SITE: empties its relay, and leaves its devices only the old release.
fresh() {
  local s=$1 l
  [ -z "${pids[relay$s]:-}" ] || down "relay$s"
  rm -rf "$work/relay$s/cache" "$work/relay$s/quarantine.json"; relay_up "$s"
  for ((l = 11; l < 11 + leaves; l++)); do rm -rf "$work/d$s-$l"/out* "$work/d$s-$l/peers.json" "$work/d$s-$l/quarantine.json"; done
}
# pull SITE LEAF [ARGS...]: pulls in the background, process id in pids[pull-SITE-LEAF]. Parents: the relay, then the
# origin.
pull() {
  local s=$1 l=$2 d=$work/d$1-$2; shift 2
  in_place_of_shell "s$s-h$l" "$bin/distd" --data "$d" --json pull os@2 --out "$d/out" --seed "$work/seed" --parent "10.90.$s.10:4433" --parent 10.90.0.2:4433 "$@" \
    >"$d/pull.json" 2>"$d/pull.err" & pids[pull-$s-$l]=$!
}
# pulled SITE LEAF: waits for the pull; fails unless the leaf has the new release.
pulled() {
  local d=$work/d$1-$2 pid=${pids[pull-$1-$2]}; unset "pids[pull-$1-$2]"
  wait "$pid" || { echo "device $2 of site $1 failed:" >&2; tail -n 5 "$d/pull.err" "$d/pull.json" >&2; return 1; }
  cmp "$d/out" "$new"
}
all() { local l; for ((l = 11; l < 11 + leaves; l++)); do "$1" "$2" "$l" "${@:3}"; done; }
seconds() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }'; }
rows=()
# row NAME SITE BEFORE START NOTE: bytes into the site since BEFORE, relative to those of one device alone.
row() {
  local bytes=$(( $(into_site "$2") - $3 )) ratio
  ratio=$(awk -v a="$bytes" -v b="${alone:-$bytes}" 'BEGIN { printf "%.3f", a / b }')
  rows+=("| $1 | $(awk -v b="$bytes" 'BEGIN { printf "%.2f", b / 1e6 }') | $ratio | $(seconds "$4") | $5 |"); echo "${rows[-1]}" >&2
}
# sources SITE: bytes that its devices took from each source, in MB.
sources() {
  local l kind sums=()
  for kind in wire_bytes_by_source.peer wire_bytes_by_source.relay wire_bytes_by_source.origin; do
    sums+=("$(for ((l = 11; l < 11 + leaves; l++)); do json "$kind" <"$work/d$1-$l/pull.json"; done | awk '{ s += $1 } END { printf "%.1f", s / 1e6 }')")
  done
  echo "from neighbours ${sums[0]}, relay ${sums[1]}, origin ${sums[2]} MB"
}
wire() { json wire_bytes <"$work/d$1-$2/pull.json"; }

[ $# -eq 2 ] && { old=$(realpath "$1"); new=$(realpath "$2"); } || images
net_start 2 $((leaves + 1)) 100mbit 1gbit
origin_up
admin login --server https://127.0.0.1:8443 --token-file "$work/origin/admin.token" >/dev/null
admin grant add everyone '*' --by-certificate >/dev/null
admin -q push "$old" --product os --version 1 >/dev/null; admin -q push "$new" --product os --version 2 >/dev/null
for s in 1 2; do
  relay_up "$s"
  for ((l = 11; l < 11 + leaves; l++)); do
    on "s$s-h$l" "$bin/distd" --data "$work/d$s-$l" enroll --parent "10.90.$s.10:4433" --token "$(join_token leaf 1)" --label "d$s-$l" >/dev/null
  done
done
on s1-h11 "$bin/distd" --data "$work/d1-11" -q pull os@1 --out "$work/seed"; cmp "$work/seed" "$old"

echo "one device alone" >&2
fresh 1; before=$(into_site 1); start=$(date +%s.%N)
pull 1 11; pulled 1 11
row "one device, relay empty" 1 "$before" "$start" "$(wire 1 11) bytes on its wire"
alone=$(( $(into_site 1) - before ))

echo "ten at once in each of two sites" >&2
fresh 1; fresh 2; before=$(into_site 1); before2=$(into_site 2); start=$(date +%s.%N)
all pull 1; all pull 2; all pulled 1; all pulled 2
row "ten devices at once, relay empty" 1 "$before" "$start" "$(sources 1)"
row "the same" 2 "$before2" "$start" "$(sources 2)"

echo "relay killed half way" >&2
fresh 1; before=$(into_site 1); start=$(date +%s.%N); all pull 1
until [ $(( $(into_site 1) - before )) -gt $((alone / 2)) ]; do sleep 0.05; done
down relay1 KILL
all pulled 1
row "relay killed half way, for good" 1 "$before" "$start" "$(sources 1)"

echo "relay down from the start" >&2
fresh 1; down relay1; before=$(into_site 1); start=$(date +%s.%N); all pull 1; all pulled 1
row "relay down from the start" 1 "$before" "$start" "$(sources 1)"

echo "uplink cut for 20 s" >&2
fresh 1; before=$(into_site 1); start=$(date +%s.%N); all pull 1
until [ $(( $(into_site 1) - before )) -gt $((alone / 3)) ]; do sleep 0.05; done
cut_site 1; sleep 20; heal_site 1
all pulled 1
row "uplink cut for 20 s" 1 "$before" "$start" "$(sources 1)"

echo "devices killed and started again" >&2
fresh 1; before=$(into_site 1); start=$(date +%s.%N); all pull 1
until [ $(( $(into_site 1) - before )) -gt $((alone / 2)) ]; do sleep 0.05; done
for l in 11 12 13 14 15; do down "pull-1-$l" KILL; pull 1 "$l"; done
all pulled 1
refetched=0; for l in 11 12 13 14 15; do refetched=$((refetched + $(json refetched_verified_bytes <"$work/d1-$l/pull.json"))); done
row "five devices killed half way and started again" 1 "$before" "$start" "$refetched verified bytes fetched again"

echo "cache of the relay rotten" >&2
fresh 1; pull 1 11; pulled 1 11; down relay1
python3 - "$work/relay1/cache" <<'P'
import os, random, sys
random.seed(3)
for root, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(root, name); size = os.path.getsize(path)
        if size < 1 << 20: continue
        with open(path, "r+b") as f:
            for _ in range(20):
                at = random.randrange(size); f.seek(at); byte = f.read(1); f.seek(at); f.write(bytes([byte[0] ^ 0x55]))
P
relay_up 1; rm -rf "$work"/d1-*/out*; before=$(into_site 1); start=$(date +%s.%N); all pull 1; all pulled 1
row "relay's cache has 20 flipped bytes a file" 1 "$before" "$start" "$(grep -c . "$work/relay1/quarantine.json" 2>/dev/null || echo 0) of devices' quarantines name it"

echo "a full disk" >&2
fresh 1; mkdir -p "$work/small"; mount -t tmpfs -o size=16m tmpfs "$work/small"; rm -rf "$work/d1-11/out"; before=$(into_site 1); start=$(date +%s.%N)
in_place_of_shell s1-h11 "$bin/distd" --data "$work/d1-11" --json pull os@2 --out "$work/small/out" --seed "$work/seed" --parent 10.90.1.10:4433 >"$work/full.json" 2>"$work/full.err" & pids[full]=$!
for ((l = 12; l < 11 + leaves; l++)); do pull 1 "$l"; done
for ((l = 12; l < 11 + leaves; l++)); do pulled 1 "$l"; done
code=0; wait "${pids[full]}" || code=$?; unset 'pids[full]'
row "one disk is full" 1 "$before" "$start" "that device ends with exit $code, the others have the release"
umount "$work/small"

echo "idle agents" >&2
fresh 1; all pull 1; all pulled 1
for ((l = 11; l < 11 + leaves; l++)); do
  in_place_of_shell "s1-h$l" "$bin/distd" --data "$work/d1-$l" agent --parent "10.90.1.10:4433" --parent 10.90.0.2:4433 >"$work/d1-$l/agent.out" 2>&1 & pids[agent-1-$l]=$!
done
sleep 30
heard() { local l sum=0; for ((l = 11; l < 11 + leaves; l++)); do sum=$((sum + $(on "s1-h$l" cat /sys/class/net/eth0/statistics/tx_packets))); done; echo "$sum"; }
sent=$(heard); sleep 60; sent=$(( $(heard) - sent ))
most=0; for ((l = 11; l < 11 + leaves; l++)); do kib=$(awk '/VmRSS/ { print $2 }' "/proc/${pids[agent-1-$l]}/status"); [ "$kib" -le "$most" ] || most=$kib; done
rows+=("| ten idle agents | | | 60 | $(awk -v n="$sent" -v l="$leaves" 'BEGIN { printf "%.2f", n / 60 / l }') packets a second from each; the largest has $((most / 1024)) MiB |"); echo "${rows[-1]}" >&2
for ((l = 11; l < 11 + leaves; l++)); do down "agent-1-$l"; done

echo "Old $(stat -c %s "$old") bytes, new $(stat -c %s "$new"); $(nproc) cores."
echo
echo "| | MB into the site | beside one alone | s | |"
echo "|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
