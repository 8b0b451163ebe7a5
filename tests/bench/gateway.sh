#!/usr/bin/env bash
# A gateway beside nginx, which serves the same file: the rate and the processor time of whole downloads, the time of
# random reads of 4 KiB as RAUC's NBD client makes them, and what the uplink carries for an update beside a pull.
# Markdown on standard output, progress on standard error.
#
#   tests/bench/gateway.sh OLD NEW     two releases of one image
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
old=$(realpath "${1:?usage: gateway.sh OLD NEW}"); new=$(realpath "${2:?usage: gateway.sh OLD NEW}")
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need nginx:nginx curl:curl python3:python3 >&2
[ -n "${DISTD_TEST_BIN:-}" ] || (cd "$here" && cargo build --release --locked --bins) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-gateway.XXXXXX"); bin=${DISTD_TEST_BIN:-$here/target/release}
realm_dir=$work/realm; mkdir -p "$realm_dir"
trap '[ -z "${nginx_pid:-}" ] || kill "$nginx_pid"; stop_realm; rm -rf "$work"' EXIT
# cpu PID...: seconds of processor time so far.
cpu() { local pid; for pid in "$@"; do cut -d' ' -f14,15 "/proc/$pid/stat"; done | awk -v hz="$(getconf CLK_TCK)" '{ s += $1 + $2 } END { printf "%.2f", s / hz }'; }

start_origin
admin -q push "$old" --product os --version 1
admin -q channel set os:stable 1
enroll_device till "$origin_quic"; enroll_device other "$origin_quic"
device other -q pull os@1 --out "$work/other"
"$bin/distd" --data "$realm_dir/till" agent --listen 127.0.0.1:0 --gateway 127.0.0.1:0 --offer os:stable --follow-poll-seconds 1 >"$work/agent.out" 2>"$work/agent.log" & agent=$!
realm_pids[agent]=$agent
wait_for 60 grep -q '^gateway on' "$work/agent.out"
url=$(sed -n 's/^gateway on //p' "$work/agent.out")os/stable/image
wait_for 600 test -e "$realm_dir/till/gateway/os/1/image.distd"

admin -q push "$new" --product os --version 2
while admin --json patch ls os | grep -qE '"(queued|building)"'; do sleep 1; done
before=$(origin_served)
admin -q channel set os:stable 2
wait_for 600 test -e "$realm_dir/till/gateway/os/2/image.distd"
by_gateway=$(($(origin_served) - before))
# From whomever: the gateway's device is a neighbour.
by_pull=$(device other --json pull os:stable --out "$work/other" | json wire_bytes)
curl -fsS "$url" | cmp - "$new"

port=$(free_port); mkdir "$work/www"; cp "$new" "$work/www/image"
cat >"$work/nginx.conf" <<N
daemon off; worker_processes 2; pid $work/nginx.pid; error_log $work/nginx.err; user root;
events { worker_connections 4096; }
http { access_log off; sendfile on; keepalive_requests 100000; server { listen 127.0.0.1:$port; root $work/www; } }
N
nginx -c "$work/nginx.conf" & nginx_pid=$!
wait_for 10 curl -fs -o /dev/null -r 0-10 "http://127.0.0.1:$port/image"
mapfile -t workers < <(pgrep -P "$nginx_pid")
bytes=$(stat -c %s "$new")
# whole URL PID...: seconds of five downloads, and of the server's processor for each.
whole() {
  local url=$1 before from; shift
  before=$(cpu "$@"); from=$(date +%s.%N)
  for _ in 1 2 3 4 5; do curl -fs -o /dev/null "$url"; done
  awk -v a="$from" -v b="$(date +%s.%N)" -v c="$before" -v d="$(cpu "$@")" 'BEGIN { printf "%.3f %.3f", (b - a) / 5, (d - c) / 5 }'
}
for _ in 1 2 3; do
  read -r ours_s ours_cpu < <(whole "$url" "$agent"; echo); read -r theirs_s theirs_cpu < <(whole "http://127.0.0.1:$port/image" "${workers[@]}"; echo)
  echo "$ours_s $ours_cpu $theirs_s $theirs_cpu"
done | tee "$work/rates" >&2
read -r ours_s ours_cpu theirs_s theirs_cpu < <(sort -n "$work/rates" | sed -n 2p)
# random URL: median and 99th percentile of 4000 reads of 4 KiB on one connection, milliseconds.
random() {
  python3 - "$1" "$bytes" <<'P'
import http.client, random, sys, time, urllib.parse
url, size = urllib.parse.urlsplit(sys.argv[1]), int(sys.argv[2])
connection, rng, times = http.client.HTTPConnection(url.netloc), random.Random(7), []
for _ in range(4000):
    at = rng.randrange(size // 4096) * 4096
    began = time.perf_counter()
    connection.request("GET", url.path, headers={"Range": f"bytes={at}-{min(at + 4095, size - 1)}"})
    answer = connection.getresponse()
    assert answer.status == 206 and len(answer.read()) == min(4096, size - at)
    times.append(time.perf_counter() - began)
times.sort()
print(f"{times[2000] * 1e3:.2f} {times[3960] * 1e3:.2f}")
P
}
read -r ours_half ours_99 < <(random "$url"); read -r theirs_half theirs_99 < <(random "http://127.0.0.1:$port/image")
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
echo "| $(awk -v b="$bytes" 'BEGIN { printf "%.0f", b / 1e6 }') MB, loopback, $(nproc) cores | gateway | nginx | ratio |"
echo "|---|---|---|---|"
echo "| whole file, s | $ours_s | $theirs_s | rate $(ratio "$theirs_s" "$ours_s") |"
echo "| whole file, s of processor | $ours_cpu | $theirs_cpu | $(ratio "$ours_cpu" "$theirs_cpu") |"
echo "| 4 KiB at random, median ms | $ours_half | $theirs_half | $(ratio "$ours_half" "$theirs_half") |"
echo "| 4 KiB at random, 99th percentile ms | $ours_99 | $theirs_99 | $(ratio "$ours_99" "$theirs_99") |"
echo
echo "| update over the uplink, bytes | gateway | distd pull | ratio |"
echo "|---|---|---|---|"
echo "| | $by_gateway | $by_pull | $(ratio "$by_gateway" "$by_pull") |"
echo
echo "agent: $(awk '/VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$agent/status") MiB at most"
