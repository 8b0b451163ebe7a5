#!/usr/bin/env bash
# Cost of a publication and of a small update with ten releases in the realm, and with many. Markdown on standard output,
# progress on standard error.
#
#   tests/bench/releases.sh [RELEASES]     default 10000
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
many=${1:-10000}
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need curl:curl python3:python3 strace:strace >&2
(cd "$here" && cargo build --release --locked --bins) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-releases.XXXXXX"); bin=$here/target/release; realm_dir=$work/realm; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT
start_origin --patches false --solid-sets false
cat >"$work/put.py" <<'P'
import http.client, random, ssl, sys, time
host, ca, token, first, last = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
connection = http.client.HTTPSConnection(host, context=ssl.create_default_context(cafile=ca))
times = []
for version in range(first, last + 1):
    start = time.monotonic()
    body = random.Random(version).randbytes(64)
    path = f"/v1/products/many/releases/{version}/content"
    connection.request("PUT", path, body, {"Authorization": f"Bearer {token}", "Content-Length": "64"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 201, (answer.status, text)
    times.append(time.monotonic() - start)
    if version % 1000 == 0:
        print(f"{version} releases", file=sys.stderr)
print(f"{sorted(times)[len(times) // 2] * 1000:.1f}")
P
put() { python3 "$work/put.py" "$origin_https" "$realm_dir/origin/realm/ca.pem" "$(cat "$realm_dir/origin/admin.token")" "$1" "$2"; }
metadata() { du -sb "$realm_dir/origin/objects/tuf" | cut -f1; }
small_update() { device d --json pull "many@$1" --out "$work/out" | json metadata_bytes; }
echo "| releases | a publication, ms (median of 40) | metadata written by one, bytes | metadata of a small update, bytes |"
echo "|---|---|---|---|"
row() {
  local ms before written
  ms=$(put $(($1 + 1)) $(($1 + 40)))
  small_update $(($1 + 40)) >/dev/null
  before=$(metadata); put $(($1 + 41)) $(($1 + 41)) >/dev/null; written=$(($(metadata) - before))
  echo "| $1 | $ms | $written | $(small_update $(($1 + 41))) |"
}
put 1 10 >/dev/null
enroll_device d "$origin_quic"
row 10
put 52 "$many" >/dev/null
row "$many"
