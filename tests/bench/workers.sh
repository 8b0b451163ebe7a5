#!/usr/bin/env bash
# Patch sets per hour of one origin, and of two origins with two workers, on one PostgreSQL and one S3 server (moto). Each
# process makes patches with one thread; with more cores than processes the others are idle. Arguments: number of pairs of
# releases [12], MiB of each release [24].
#
# PROGRAMS is the directory of the programs [target/release].
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
. tests/lib/servers.sh
need curl:curl python3:python3
pairs=${1:-12} mib=${2:-24} programs=${PROGRAMS:-target/release}
work=$(mktemp -d); chmod 755 "$work"
pids=()
cleanup() {
  for pid in "${pids[@]}" ${s3_pid:-}; do kill "$pid" 2>/dev/null || true; done
  stop_postgres
  wait
  rm -rf "$work"
}
trap cleanup EXIT
start_postgres "$work"
start_s3 "$work"

# Releases of programs: text-like data of which each version changes a little everywhere.
python3 - "$work" "$pairs" "$mib" <<'PY'
import random, sys
work, pairs, mib = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(16)
words = [bytes(rng.randrange(256) for _ in range(rng.randrange(4, 40))) for _ in range(4000)]
def base(n):
    rng = random.Random(n)
    out = bytearray()
    while len(out) < mib << 20:
        out += rng.choice(words)
    return out[: mib << 20]
for pair in range(pairs):
    data = base(pair)
    open(f"{work}/{pair}.old", "wb").write(data)
    rng = random.Random(1000 + pair)
    for _ in range(mib * 400):
        at = rng.randrange(len(data) - 8)
        data[at:at + 4] = rng.randbytes(4)
    open(f"{work}/{pair}.new", "wb").write(data)
PY

# measure NAME ORIGINS WORKERS : prints seconds until every set is made, and seconds of the publications.
measure() {
  local name=$1 origins=$2 workers=$3 n http quic began ended pushed
  local db="${DISTD_TEST_POSTGRES_URL%/*}/$name" store="${DISTD_TEST_S3_URL%%\?*}/$name?${DISTD_TEST_S3_URL#*\?}"
  "$pg_bin/psql" -q "$DISTD_TEST_POSTGRES_URL" -c "CREATE DATABASE $name"
  local own=()
  for ((n = 0; n < origins; n++)); do
    http=$(free_port) quic=$(free_port)
    local data=$work/$name-$n
    if [ "$n" -gt 0 ]; then
      mkdir -p "$data/realm"; chmod 700 "$data" "$data/realm"
      cp "$work/$name-0/realm/ca.key" "$work/$name-0/realm/ca.pem" "$data/realm/"
      cp -r "$work/$name-0/tuf-keys" "$data/"
    fi
    "$programs/distd-server" serve --data "$data" --replica --db "$db" --store "$store" --http "127.0.0.1:$http" --quic "127.0.0.1:$quic" \
      --patch-threads 1 --solid-sets false >"$data.out" 2>"$data.log" & own+=($!); pids+=($!)
    wait_for 60 grep -q listening "$data.out"
  done
  for ((n = 0; n < workers; n++)); do
    "$programs/distd-server" work --data "$work/$name-w$n" --db "$db" --store "$store" --patch-threads 1 >"$work/$name-w$n.out" 2>"$work/$name-w$n.log" & own+=($!); pids+=($!)
    wait_for 60 grep -q "makes patch sets" "$work/$name-w$n.out"
  done
  local admin=("$programs/distd" -q --data "$work/$name-admin")
  "${admin[@]}" login --server "https://127.0.0.1:$http" --token-file "$work/$name-0/admin.token" >/dev/null
  began=$(date +%s.%N)
  for ((n = 0; n < pairs; n++)); do
    "${admin[@]}" push "$work/$n.old" --product "p$n" --version 1 >/dev/null
    "${admin[@]}" push "$work/$n.new" --product "p$n" --version 2 >/dev/null
  done
  pushed=$(date +%s.%N)
  until [ "$("$pg_bin/psql" -qtA "$db" -c "SELECT COUNT(*) FROM patch_sets WHERE state = 'ready'")" = "$pairs" ]; do sleep 0.2; done
  ended=$(date +%s.%N)
  kill "${own[@]}"; wait "${own[@]}" 2>/dev/null || true
  python3 - "$began" "$pushed" "$ended" "$pairs" "$name" <<'PY'
import sys
began, pushed, ended, pairs = map(float, sys.argv[1:5])
print(f"{sys.argv[5]}: {pairs:.0f} sets in {ended - began:.1f} s, {pairs * 3600 / (ended - began):.0f} an hour; "
      f"{2 * pairs / (pushed - began):.2f} publications a second")
PY
}
measure alone 1 0
measure together 2 2
