#!/usr/bin/env bash
# Speed of a pull from a relay, beside QUIC alone with the same settings, in one run; beside other tools; then over a
# link of 1 Gbit/s, a shared link, and a link with loss and delay. Markdown on standard output, progress on standard
# error.
#
#   tests/bench/speed.sh [PART...]     loopback, link, share, loss (default: these), others
#
# Needs root (namespaces). The content is 512 MB that no compressor shrinks. `others` installs sendme and rqbit with cargo
# if they are missing, which takes half an hour.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
. "$here/tests/hosts/net.sh"
parts=("$@"); [ ${#parts[@]} -gt 0 ] || parts=(loopback link share loss)
wanted() { local p; for p in "${parts[@]}"; do [ "$p" = "$1" ] && return 0; done; return 1; }
need ip:iproute2 tc:iproute2 python3:python3 cmp:diffutils >&2
(cd "$here" && cargo build --release --locked --bins --example speed) >&2
# Files are in memory: the time of flushing to a disk is measured elsewhere.
work=$(mktemp -d /dev/shm/distd-speed.XXXXXX); bin=$here/target/release; speed=$bin/examples/speed
realm_dir=$work/realm; mkdir -p "$realm_dir"
declare -a raw=()
end_raw() { local pid; for pid in "${raw[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done; raw=(); }
trap 'end_raw; stop_realm; net_stop; rm -rf "$work"' EXIT
bytes=512000000 streams=3
rows=()
row() { rows+=("| $1 | $2 | $3 | $4 |"); echo "${rows[-1]}" >&2; }
rate() { awk -v b="$bytes" -v s="$1" 'BEGIN { printf "%.0f", b / 1e6 / s }'; }
# torrent FILE: makes a torrent of it, without a tracker.
torrent() {
  python3 - "$1" <<'P'
import hashlib, os, sys
piece = 1 << 20
with open(sys.argv[1], "rb") as f:
    hashes = b"".join(hashlib.sha1(block).digest() for block in iter(lambda: f.read(piece), b""))
text = lambda s: b"%d:%s" % (len(s), s)
info = b"d6:lengthi%de4:name%s12:piece lengthi%de6:pieces%se" % (os.path.getsize(sys.argv[1]), text(os.path.basename(sys.argv[1]).encode()), piece, text(hashes))
sys.stdout.buffer.write(b"d4:info" + info + b"e")
P
}
# listening FILE: waits for the address in it and prints the address.
listening() { wait_for 10 grep -q 'listening on' "$1"; sed -n 's/^listening on //p' "$1"; }
# serve_raw [SETTINGS...]: serves QUIC alone, sets raw_address. fetch_raw ADDRESS BYTES [SETTINGS...]: MB/s from there.
serve_raw() { : >"$work/raw.out"; "$speed" serve "$realm_dir/relay" "${listen:-127.0.0.1:0}" "$@" >"$work/raw.out" & raw+=($!); raw_address=$(listening "$work/raw.out"); }
# impair ADDRESS LINK: makes a bad link to ADDRESS, sets through.
# shellcheck disable=SC2086
impair() { : >"$work/impair.out"; "$speed" impair 127.0.0.1:0 "$1" $2 >"$work/impair.out" 2>/dev/null & raw+=($!); through=$(listening "$work/impair.out"); }
fetch_raw() { "$speed" fetch "$realm_dir/device" "$1" "$2" "$streams" "${@:3}" | json mb_s; }

# start_far N FILE: starts an origin in the namespace of that name, with FILE as release 1. enroll_far H: enrols a
# device on that host of site 1.
start_far() {
  far_data=$realm_dir/admin$1
  in_place_of_shell origin "$bin/distd-server" serve --data "$realm_dir/origin$1" --http 127.0.0.1:8443 --quic 10.90.0.2:4433 --patches false --solid-sets false >"$work/origin$1.out" 2>"$work/origin$1.log" & raw+=($!)
  wait_for 30 grep -q 'origin listening on' "$work/origin$1.out"
  far login --server https://127.0.0.1:8443 --token-file "$realm_dir/origin$1/admin.token" >/dev/null
  far grant add everyone '*' --by-certificate >/dev/null
  far -q push "$2" --product os --version 1 >/dev/null
}
far() { on origin "$bin/distd" --data "$far_data" "$@"; }
enroll_far() { rm -rf "$realm_dir/far$1"; on "s1-h$1" "$bin/distd" --data "$realm_dir/far$1" enroll --parent 10.90.0.2:4433 --token "$(far --json token join --role leaf --uses 1 --label far | json token)" --label far >/dev/null; }

start_origin --patches false --solid-sets false
python3 -c 'import random,sys; random.seed(5); [sys.stdout.buffer.write(random.randbytes(1 << 20)) for _ in range(489)]' | head -c "$bytes" >"$work/file"
admin -q push "$work/file" --product os --version 1 >/dev/null
start_relay relay
enroll_device device "$relay_address"

if wanted loopback; then
  device device -q pull os@1 --out "$work/out"; rm -f "$work"/out*
  for congestion in cubic bbr follow; do
    serve_raw --congestion "$congestion"; row "loopback, $congestion" "" "$(fetch_raw "$raw_address" "$bytes" --congestion "$congestion") (QUIC alone)" ""; end_raw
  done
  for round in 1 2 3; do
    serve_raw; alone=$(fetch_raw "$raw_address" "$bytes"); end_raw
    serve_raw --file "$work/file"; least=$(fetch_raw "$raw_address" "$bytes" --file "$work/least"); end_raw; rm "$work/least"
    device device --json pull os@1 --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*
    ours=$(rate "$(json seconds <"$work/pull.json")")
    row "loopback, round $round" "$ours" "$alone (QUIC alone)" "$(awk -v a="$ours" -v b="$alone" 'BEGIN { printf "%.2f", a / b }')"
    row "the same" "$ours" "$least (QUIC; read, hashed, written, read back, hashed; nothing else)" "$(awk -v a="$ours" -v b="$least" 'BEGIN { printf "%.2f", a / b }')"
  done
fi
if wanted link; then
  net_start 1 1 1gbit - 
  start_far 2 "$work/file"
  enroll_far 10
  for round in 1 2; do
    before=$(into_site 1)
    on s1-h10 "$bin/distd" --data "$realm_dir/far10" --json pull os@1 --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*
    took=$(json seconds <"$work/pull.json")
    row "1 Gbit/s, round $round" "$(rate "$took")" "125 (the link)" "$(awk -v b="$(( $(into_site 1) - before ))" -v s="$took" 'BEGIN { printf "%.2f of the link used", b * 8 / 1e9 / s }')"
  done
  end_raw; net_stop
fi
if wanted share; then
  # A download over TCP (the kernel's CUBIC) and a pull at the same time over 100 Mbit/s; and two pulls.
  net_start 1 2 100mbit -
  head -c 100000000 "$work/file" >"$work/some"
  start_far 3 "$work/some"
  enroll_far 10; enroll_far 11
  one() { on "s1-h$1" "$bin/distd" --data "$realm_dir/far$1" --json pull os@1 --no-share --out "$work/out$1" >"$work/pull$1.json"; rm -f "$work/out$1"; json seconds <"$work/pull$1.json"; }
  mb() { awk -v b="$1" -v s="$2" 'BEGIN { printf "%.1f", b / 1e6 / s }'; }
  alone=$(one 10); row "100 Mbit/s, one pull alone" "$(mb 100000000 "$alone")" "12.5 (the link)" ""
  (one 11 >"$work/second") & second=$!
  first=$(one 10); wait "$second"
  row "100 Mbit/s, two pulls" "$(mb 100000000 "$first")" "$(mb 100000000 "$(cat "$work/second")") (the other)" ""
  in_place_of_shell origin python3 -m http.server --bind 10.90.0.2 --directory "$work" 8080 >/dev/null 2>&1 & raw+=($!)
  wait_for 10 on s1-h11 curl -fs -o /dev/null -r 0-9 http://10.90.0.2:8080/some
  # TCP sends for as long as the pull runs.
  on s1-h11 curl -fs -o /dev/null -w '%{speed_download}' --max-time 20 http://10.90.0.2:8080/file >"$work/tcp" & second=$!
  first=$(one 10); wait "$second" || true
  row "100 Mbit/s, beside a download over TCP" "$(mb 100000000 "$first")" "$(mb "$(cat "$work/tcp")" 1) (TCP, in 20 s)" ""
  end_raw; net_stop
fi
if wanted others; then
  for tool in sendme rqbit; do command -v "$tool" >/dev/null || cargo install --locked --no-default-features "$tool" $([ "$tool" = sendme ] || echo --features rust-tls) >&2; done
  ours() { device device --json pull os@1 --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*; rate "$(json seconds <"$work/pull.json")"; }
  since() { rate "$(awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { print b - a }')"; }
  beside() { row "loopback, round $1" "$2" "$3 ($4)" "$(awk -v a="$2" -v b="$3" 'BEGIN { printf "%.2f", a / b }')"; }
  mkdir -p "$work/send" "$work/got"; ln "$work/file" "$work/send/file"
  # Each has only a loopback interface of its own: neither looks for other nodes.
  add_space alone
  (cd "$work/send" && in_place_of_shell alone sendme send --no-progress --relay disabled file </dev/null >"$work/sendme.out" 2>&1) & raw+=($!)
  wait_for 60 grep -q 'receive blob' "$work/sendme.out"
  ticket=$(grep -o 'blob[a-z0-9]*' "$work/sendme.out" | head -n 1)
  for round in 1 2 3; do
    ours=$(ours)
    from=$(date +%s.%N); (cd "$work/got" && on alone sendme receive --no-progress --relay disabled "$ticket" >"$work/receive.out" 2>&1); took=$(since "$from")
    cmp "$work/got/file" "$work/file"; rm -rf "$work/got"; mkdir "$work/got"
    beside "$round" "$ours" "$took" "$(sendme --version)"
  done
  end_raw
  torrent "$work/file" >"$work/file.torrent"
  quiet=(--disable-dht --disable-lsd --disable-trackers --disable-upnp-port-forward --ipv4-only)
  in_place_of_shell alone rqbit "${quiet[@]}" --listen-port 6881 download --disable-http-api --overwrite -o "$work/send" "$work/file.torrent" >"$work/rqbit.out" 2>&1 & raw+=($!)
  wait_for 60 grep -q '100.00%' "$work/rqbit.out"
  for round in 1 2 3; do
    ours=$(ours)
    from=$(date +%s.%N); on alone rqbit "${quiet[@]}" --listen-port 6882 download --disable-http-api -e --initial-peers 127.0.0.1:6881 -o "$work/got" "$work/file.torrent" >"$work/receive.out" 2>&1; took=$(since "$from")
    cmp "$work/got/file" "$work/file"; rm -f "$work/got/file"
    beside "$round" "$ours" "$took" "$(rqbit --version): TCP, no encryption"
  done
  end_raw; net_stop
fi
if wanted loss; then
  # Loss %, delay one way ms, Mbit/s, queue ms.
  for link in "0 20 1000 40" "1 20 1000 40" "1 20 100 40" "0 20 100 5" "0 0.5 1000 20"; do
    for congestion in cubic newreno bbr follow; do
      serve_raw --congestion "$congestion" 2>"$work/raw.err"
      impair "$raw_address" "$link"
      some=100000000; [[ ${congestion} == cubic || ${congestion} == newreno ]] && some=20000000
      got=$(fetch_raw "$through" "$some" --congestion "$congestion" || echo failed)
      sleep 0.3
      row "loss %, delay ms, Mbit/s, queue ms: $link" "$got" "QUIC alone, $congestion" "$(sed -n 's/^lost \([0-9]*\) of \([0-9]*\) packets.*/\1 \2/p' "$work/raw.err" | awk '{ printf "%.1f %% lost", $1 * 100 / $2 }')"
      end_raw
    done
    impair "$relay_address" "$link"
    device device --json pull os@1 --parent "$through" --out "$work/out" >"$work/pull.json"; cmp "$work/out" "$work/file"; rm -f "$work"/out*
    row "loss %, delay ms, Mbit/s, queue ms: $link" "$(rate "$(json seconds <"$work/pull.json")")" "a pull" ""
    end_raw
  done
fi
echo "$bytes bytes; $(nproc) cores; MB/s."
echo
echo "| | distd | beside | ratio |"
echo "|---|---|---|---|"
printf '%s\n' "${rows[@]}"
