#!/usr/bin/env bash
# Bytes of bundles against those that pulls receive, for two releases of one image: the update and the first
# installation; and the seconds of export, of the pull from the file, and of the pull over loopback.
# Markdown on standard output, progress on standard error.
#
#   tests/bench/bundles.sh OLD NEW
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
old=$(realpath "${1:?usage: bundles.sh OLD NEW}"); new=$(realpath "${2:?usage: bundles.sh OLD NEW}")
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need python3:python3 curl:curl >&2
[ -n "${DISTD_TEST_BIN:-}" ] || (cd "$here" && cargo build --release --locked --bins) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-bundles.XXXXXX"); bin=${DISTD_TEST_BIN:-$here/target/release}
realm_dir=$work/realm; mkdir -p "$realm_dir"
trap 'stop_realm; rm -rf "$work"' EXIT

start_origin --solid-sets false
admin -q push "$old" --product os --version 1
for name in exporter offline online fresh; do enroll_device "$name" "$origin_quic"; done
for name in offline online; do device "$name" -q pull os@1 --out "$work/$name" --no-share; done
admin -q push "$new" --product os --version 2
while admin --json patch ls os | grep -qE '"(queued|building)"'; do sleep 1; done
read -r update update_s < <(device exporter --json export os@2 --since 1 --out "$work/update" | json bundle_bytes seconds)
read -r whole whole_s < <(device exporter --json export os@2 --out "$work/whole" | json bundle_bytes seconds)
read -r pulled pulled_s < <(device online --json pull os@2 --optimize bytes --out "$work/online" --no-share | json wire_bytes seconds)
read -r first first_s < <(device fresh --json pull os@2 --out "$work/fresh" --no-share | json wire_bytes seconds)
stop_realm
read -r offline_s < <(device offline --json pull os@2 --from "$work/update" --out "$work/offline" | json seconds)
cmp "$work/offline" "$new"; cmp "$work/online" "$new"
read -r whole_pull_s < <(device exporter --json pull os@2 --from "$work/whole" --out "$work/exporter" | json seconds)
cmp "$work/exporter" "$new"
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }
cat <<T
| | bundle, bytes | a pull receives | ratio | export, s | pull from it, s | pull over loopback, s |
|---|---|---|---|---|---|---|
| update | $update | $pulled | $(ratio "$update" "$pulled") | $update_s | $offline_s | $pulled_s |
| first installation | $whole | $first | $(ratio "$whole" "$first") | $whole_s | $whole_pull_s | $first_s |
T
