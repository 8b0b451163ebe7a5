#!/usr/bin/env bash
# The static program of a device, on its processor or under qemu-user: enrol, first installation, update, verify. With a
# limit of 64 MiB for its memory, page cache included, where this machine has the memory controller of cgroups. By hand.
#
#   tests/static/run.sh DISTD [OLD NEW]     DISTD: what deploy/static.sh has made; OLD, NEW: two releases, else some are made
#   DISTD_TEST_BIN=DIR                      distd and distd-server of this machine; default: target/debug
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
. tests/lib/realm.sh

program=$(realpath "$1"); bin=${DISTD_TEST_BIN:-$PWD/target/debug}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/distd-static.XXXXXX"); realm_dir=$work
group=
trap 'stop_realm; [ -z "$group" ] || rmdir "$group"; rm -rf "$work"' EXIT
old=${2:-$work/old.img} new=${3:-$work/new.img}
[ $# -gt 1 ] || python3 - "$old" "$new" <<'S'
import random, sys
random.seed(7)
words = [random.randbytes(random.randrange(20, 400)) for _ in range(4000)]
old = [random.choice(words) for _ in range(300_000)]
new = list(old)
for at in range(0, len(new), 997):
    new[at] = random.randbytes(200)
for path, parts in zip(sys.argv[1:], (old, new)):
    open(path, "wb").write(b"".join(parts))
S
run=()
"$program" --version >/dev/null 2>&1 || {
  case $(od -An -tu2 -j18 -N2 "$program") in *40) run=(qemu-arm-static) ;; *183) run=(qemu-aarch64-static) ;; esac
  need "${run[0]}:qemu-user-static"
}
# Either version of cgroups.
for place in /sys/fs/cgroup/memory /sys/fs/cgroup; do
  for limit in memory.limit_in_bytes memory.max; do
    [ -z "$group" ] && mkdir "$place/distd-static.$$" 2>/dev/null || continue
    group=$place/distd-static.$$
    [ -e "$group/$limit" ] && echo $((64 << 20)) >"$group/$limit" || { rmdir "$group"; group=; }
  done
done
[ -n "$group" ] || echo "NOT LIMITED: no memory controller of cgroups here"
# In the group is the program alone, with its emulator.
device() {
  ( [ -z "$group" ] || echo $BASHPID >"$group/cgroup.procs"; exec "${run[@]}" "$program" --data "$work/device" "$@" )
}

start_origin
admin -q push "$old" --product os --version 1 --channel stable
admin -q push "$new" --product os --version 2
admin patch make os 1 2 --wait >/dev/null
device enroll --parent "$origin_quic" --token "$(join_token leaf 1)" --label device >/dev/null
device --json -q pull os@1 --out "$work/slot" | json wire_bytes | sed 's/$/ bytes for the first installation/'
cmp "$old" "$work/slot"
device --json -q pull os@2 --out "$work/slot" | json wire_bytes | sed "s/$/ bytes for the update/"
cmp "$new" "$work/slot"
device verify "$work/slot" >/dev/null
for peak in memory.max_usage_in_bytes memory.peak; do
  [ ! -e "$group/$peak" ] || echo "$(($(cat "$group/$peak") >> 20)) MiB at most, page cache included; limit 64 MiB"
done
echo "$(stat -c %s "$program") bytes of program; enrolled, installed, updated, verified ${run[*]:+under ${run[*]}}"
