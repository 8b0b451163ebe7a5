#!/usr/bin/env bash
# How fast a device takes a release from a relay, beside QUIC alone with the same settings, in one run; then over a
# link of 1 Gbit/s, and over one that loses and delays. Markdown on standard output, progress on standard error.
#
#   tests/bench/speed.sh [PART...]     loopback, link, loss (default: all)
#
# Needs root (namespaces). What is sent is 512 MB that nothing packs.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
. "$here/tests/hosts/net.sh"
parts=("$@"); [ ${#parts[@]} -gt 0 ] || parts=(loopback link loss)
wanted() { local p; for p in "${parts[@]}"; do [ "$p" = "$1" ] && return 0; done; return 1; }
need ip:iproute2 tc:iproute2 python3:python3 cmp:diffutils >&2
(cd "$here" && cargo build --release --locked --bins --example speed) >&2
# Memory is the disk: what a disk takes to be flushed is measured elsewhere.
work=$(mktemp -d /dev/shm/distd-speed.XXXXXX); bin=$here/target/release; speed=$bin/examples/speed
realm_dir=$work/realm; mkdir -p "$realm_dir"
declare -a raw=()
end_raw() { local pid; for pid in "${raw[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; raw=(); }
trap 'end_raw; stop_realm; net_stop; rm -rf "$work"' EXIT
bytes=512000000 streams=3
rows=()
row() { rows+=("| $1 | $2 | $3 | $4 |"); echo "${rows[-1]}" >&2; }
rate() { awk -v b="$bytes" -v s="$1" 'BEGIN { printf "%.0f", b / 1e6 / s }'; }
# listening FILE: the address in it, once it is there.
listening() { wait_for 10 grep -q 'listening on' "$1"; sed -n 's/^listening on //p' "$1"; }
# serve_raw [SETTINGS...]: QUIC alone, as raw_address. fetch_raw ADDRESS BYTES [SETTINGS...]: MB/s from there.
serve_raw() { "$speed" serve "$realm_dir/relay" "${listen:-127.0.0.1:0}" "$@" >"$work/raw.out" & raw+=($!); raw_address=$(listening "$work/raw.out"); }
fetch_raw() { "$speed" fetch "$realm_dir/device" "$1" "$2" "$streams" "${@:3}" | json mb_s; }

start_origin --patches false --solid-sets false
python3 -c 'import random,sys; random.seed(5); [sys.stdout.buffer.write(random.randbytes(1 << 20)) for _ in range(489)]' | head -c "$bytes" >"$work/file"
admin -q push "$work/file" --product os --version 1 >/dev/null
start_relay relay
enroll_device device "$relay_address"

if wanted loopback; then
  device device -q pull os@1 --out "$work/out"; rm -f "$work"/out*
  for congestion in cubic bbr; do
    serve_raw --congestion "$congestion"; row "loopback, $congestion" "" "$(fetch_raw "$raw_address" "$bytes" --congestion "$congestion") (QUIC alone)" ""; end_raw
  done
  for round in 1 2 3; do
    serve_raw; alone=$(fetch_raw "$raw_address" "$bytes"); end_raw
    device device --json pull os@1 --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*
    ours=$(rate "$(json seconds <"$work/pull.json")")
    row "loopback, round $round" "$ours" "$alone (QUIC alone)" "$(awk -v a="$ours" -v b="$alone" 'BEGIN { printf "%.2f", a / b }')"
  done
fi
if wanted link; then
  net_start 1 1 1gbit - 
  in_place_of_shell origin "$bin/distd-server" serve --data "$realm_dir/origin2" --http 127.0.0.1:8443 --quic 10.90.0.2:4433 --patches false --solid-sets false >"$work/origin2.out" 2>"$work/origin2.log" & raw+=($!)
  wait_for 30 grep -q 'origin listening on' "$work/origin2.out"
  far() { on origin "$bin/distd" --data "$realm_dir/admin2" "$@"; }
  far login --server https://127.0.0.1:8443 --token-file "$realm_dir/origin2/admin.token" >/dev/null
  far -q push "$work/file" --product os --version 1 >/dev/null
  token=$(far --json token join --role leaf --uses 1 --label far | json token)
  on s1-h10 "$bin/distd" --data "$realm_dir/far" enroll --parent 10.90.0.2:4433 --token "$token" --label far >/dev/null
  for round in 1 2; do
    before=$(into_site 1)
    on s1-h10 "$bin/distd" --data "$realm_dir/far" --json pull os@1 --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*
    took=$(json seconds <"$work/pull.json")
    row "1 Gbit/s, round $round" "$(rate "$took")" "125 (the link)" "$(awk -v b="$(( $(into_site 1) - before ))" -v s="$took" 'BEGIN { printf "%.2f of the link used", b * 8 / 1e9 / s }')"
  done
  end_raw; net_stop
fi
if wanted loss; then
  # What waits in a socket while the other processes run must not count as lost.
  sysctl -qw net.core.rmem_max=16777216
  # Loss %, delay one way ms, Mbit/s, queue ms.
  for link in "0 20 1000 40" "1 20 1000 40" "1 20 100 40" "0 0.5 1000 20"; do
    # shellcheck disable=SC2086
    for setting in "cubic 6" "newreno 6" "bbr 6" "bbr 16"; do
      read -r congestion window <<<"$setting"
      serve_raw --congestion "$congestion" --window "$window"
      "$speed" impair 127.0.0.1:0 "$raw_address" $link >"$work/impair.out" 2>/dev/null & raw+=($!)
      through=$(listening "$work/impair.out")
      some=100000000; [[ $congestion != bbr && $link == 1* ]] && some=8000000
      got=$(fetch_raw "$through" "$some" --congestion "$congestion" --window "$window" || echo failed)
      row "loss %, delay ms, Mbit/s, queue ms: $link" "$got" "QUIC alone, $congestion, window $window MiB" ""
      end_raw
    done
  done
fi
echo "$bytes bytes; $(nproc) cores; MB/s."
echo
echo "| | distd | beside | ratio |"
echo "|---|---|---|---|"
printf '%s\n' "${rows[@]}"
