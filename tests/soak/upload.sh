#!/usr/bin/env bash
# Memory of a large upload, in both ways: resident memory of the origin and of the pushing client.
#
#   tests/soak/upload.sh [GB]      default 20; needs 1.3 times as much disk under $TMPDIR; some ten minutes
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need curl:curl time:time python3:python3
gb=${1:-20}
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-upload.XXXXXX")
realm_dir=$work/realm; bin=$here/target/release; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT
(cd "$here" && cargo build --release --locked --bins) >&2

# bytes SEED: that many GB, no two blocks the same, a quarter of each random.
bytes() { python3 - "$gb" "$1" <<'P'
import random, sys
source = random.Random(int(sys.argv[2]))
pad = bytes(range(256)) * 48
for _ in range(int(sys.argv[1]) * 10**9 // (1 << 20)):
    sys.stdout.buffer.write(b"".join(source.randbytes(4096) + pad for _ in range(64)))
P
}

start_origin
token=$(cat "$realm_dir/origin/admin.token")
start=$SECONDS
bytes 1 | curl -fsS --cacert "$realm_dir/origin/realm/ca.pem" -H "Authorization: Bearer $token" -T - \
  "https://$origin_https/v1/products/big/releases/streamed/content" >/dev/null
echo "curl -T of $gb GB: $((SECONDS - start)) s, origin $(peak_mib origin) MiB"
stop_realm; rm -rf "$realm_dir"; mkdir -p "$realm_dir"

bytes 2 >"$work/image"
start_origin
start=$SECONDS
/usr/bin/time -f %M -o "$work/peak" "$bin/distd" -q --data "$realm_dir/admin" push "$work/image" --product big --version pushed >/dev/null
echo "distd push of $gb GB: $((SECONDS - start)) s, client $(($(cat "$work/peak") / 1024)) MiB, origin $(peak_mib origin) MiB"
