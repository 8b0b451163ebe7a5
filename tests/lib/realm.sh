# Sourced by scripts: an origin, relays and devices on loopback, from the built binaries. All files are under $realm_dir.
# Needs: bin (directory of the binaries), realm_dir.

declare -A realm_pids=()

# start_origin [ARGS...]: starts it, waits until it listens, sets origin_https and origin_quic, and logs the CLI in.
start_origin() {
  "$bin/distd-server" serve --data "$realm_dir/origin" --http 127.0.0.1:0 --quic 127.0.0.1:0 "$@" \
    >"$realm_dir/origin.out" 2>>"$realm_dir/origin.log" &
  realm_pids[origin]=$!
  wait_for 30 grep -q 'origin listening on' "$realm_dir/origin.out"
  origin_https=$(sed -n 's|.*origin listening on https://\([^ ]*\) .*|\1|p' "$realm_dir/origin.out")
  origin_quic=$(sed -n 's|.*quic://\([^ ]*\).*|\1|p' "$realm_dir/origin.out")
  if [ ! -e "$realm_dir/admin/client.toml" ]; then
    admin login --server "https://$origin_https" --token-file "$realm_dir/origin/admin.token" >/dev/null
    admin grant add everyone '*' --by-certificate >/dev/null
  fi
}

# admin ARGS...: the CLI as the release engineer.
admin() { "$bin/distd" --data "$realm_dir/admin" "$@"; }

# join_token ROLE USES: a join token on standard output.
join_token() { admin --json token join --role "$1" --uses "$2" --label "$1" | python3 -c 'import json,sys; print(json.load(sys.stdin)["token"])'; }

# start_relay NAME [ARGS...]: starts a relay under the origin, sets relay_address.
start_relay() {
  local name=$1; shift
  DISTD_JOIN_TOKEN=$(join_token relay 1) "$bin/distd-peer" run --parent "$origin_quic" --data "$realm_dir/$name" \
    --listen 127.0.0.1:0 --label "$name" "$@" >"$realm_dir/$name.out" 2>>"$realm_dir/$name.log" &
  realm_pids[$name]=$!
  wait_for 30 grep -q 'relay listening on' "$realm_dir/$name.out"
  relay_address=$(sed -n 's/^relay listening on //p' "$realm_dir/$name.out")
}

# enroll_device NAME PARENT: makes a device's state.
enroll_device() { "$bin/distd" --data "$realm_dir/$1" enroll --parent "$2" --token "$(join_token leaf 1)" --label "$1" >/dev/null; }

# device NAME ARGS...: the CLI as that device.
device() { local name=$1; shift; "$bin/distd" --data "$realm_dir/$name" "$@"; }

# peak_mib NAME: peak resident memory of a running daemon, MiB.
peak_mib() { awk '/VmHWM/ { printf "%.0f", $2 / 1024 }' "/proc/${realm_pids[$1]}/status"; }

# origin_served: bytes that the origin has served over QUIC: chunks, nodes, metadata.
origin_served() {
  curl -fs --cacert "$realm_dir/origin/realm/ca.pem" "https://$origin_https/metrics" |
    awk '/^distd_quic_(chunk|control)_bytes_total/ { s += $2 } END { printf "%d", s }'
}

stop_realm() {
  local name
  for name in "${!realm_pids[@]}"; do kill "${realm_pids[$name]}" 2>/dev/null || true; done
  for name in "${!realm_pids[@]}"; do wait "${realm_pids[$name]}" 2>/dev/null || true; done
  realm_pids=()
}

# json FIELD...: prints fields (dots descend) of the JSON object in the last line of standard input.
json() { python3 -c '
import json, sys
value = json.loads(sys.stdin.read().strip().splitlines()[-1])
out = []
for path in sys.argv[1:]:
    v = value
    for part in path.split("."):
        v = v[part]
    out.append(str(v))
print(" ".join(out))' "$@"; }
