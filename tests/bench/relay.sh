#!/usr/bin/env bash
# A relay with a thousand connected devices: its memory, and its processor time for each GB it sends, beside nginx, which
# sends the same bytes over TLS. Markdown on standard output, progress on standard error.
#
#   tests/bench/relay.sh [CONNECTIONS]     default 1000
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
connections=${1:-1000}
. "$here/tests/lib/install.sh"
. "$here/tests/lib/realm.sh"
need nginx:nginx curl:curl openssl:openssl python3:python3 >&2
(cd "$here" && cargo build --release --locked --bins --example crowd) >&2
work=$(mktemp -d "${TMPDIR:-/tmp}/distd-relay.XXXXXX"); bin=$here/target/release; realm_dir=$work/realm; mkdir -p "$realm_dir"
trap '[ -z "${nginx_pid:-}" ] || kill "$nginx_pid"; stop_realm; rm -rf "$work"' EXIT
fetching=20
# cpu PID...: seconds of processor time so far.
cpu() { local pid; for pid in "$@"; do cut -d' ' -f14,15 "/proc/$pid/stat"; done | awk -v hz="$(getconf CLK_TCK)" '{ s += $1 + $2 } END { printf "%.2f", s / hz }'; }
rss() { awk '/VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$1/status"; }
per_gb() { awk -v a="$1" -v b="$2" -v n="$3" 'BEGIN { printf "%.2f", (b - a) / n * 1e9 }'; }

python3 -c 'import random,sys; random.seed(5); [sys.stdout.buffer.write(random.randbytes(1 << 20)) for _ in range(200)]' >"$work/file"
start_origin --patches false --solid-sets false
admin --json push "$work/file" --product os --version 1 >"$work/push.json"
start_relay relay; enroll_device device "$relay_address"
device device -q pull os@1 --out "$work/out"
relay=${realm_pids[relay]}; alone=$(rss "$relay")
ulimit -n 8192
mkfifo "$work/go"
token=$(admin -q token join --role leaf --uses "$connections")
"$bin/examples/crowd" "$realm_dir/device" "$token" "$relay_address" "$(json manifest <"$work/push.json")" "$connections" "$fetching" 1 <"$work/go" >"$work/crowd.out" & crowd=$!
exec 9>"$work/go"
wait_for 300 grep -q connected "$work/crowd.out"
connected=$(rss "$relay"); before=$(cpu "$relay")
echo >&9; wait "$crowd"; exec 9>&-
after=$(cpu "$relay"); bytes=$(json bytes <"$work/crowd.out"); peak=$(peak_mib relay)
relay_gb=$(per_gb "$before" "$after" "$bytes")
seconds=$(json seconds <"$work/crowd.out")

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$work/key.pem" -out "$work/cert.pem" -days 2 -subj /CN=localhost >/dev/null 2>&1
port=$(free_port)
cat >"$work/nginx.conf" <<N
daemon off; worker_processes 2; pid $work/nginx.pid; error_log $work/nginx.err; user root;
events { worker_connections 4096; }
http { access_log off; sendfile on;
  server { listen 127.0.0.1:$port ssl; ssl_certificate $work/cert.pem; ssl_certificate_key $work/key.pem; ssl_protocols TLSv1.3; root $work; } }
N
nginx -c "$work/nginx.conf" & nginx_pid=$!
wait_for 10 curl -fsk -o /dev/null -r 0-10 "https://127.0.0.1:$port/file"
mapfile -t workers < <(pgrep -P "$nginx_pid")
before=$(cpu "${workers[@]}"); from=$(date +%s.%N); pids=()
for ((i = 0; i < fetching; i++)); do curl -fsk -o /dev/null "https://127.0.0.1:$port/file" & pids+=($!); done
wait "${pids[@]}"
nginx_seconds=$(awk -v a="$from" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }')
nginx_gb=$(per_gb "$before" "$(cpu "${workers[@]}")" $((fetching * $(stat -c %s "$work/file"))))

echo "| $connections connections, $fetching of them fetch 210 MB each at once; $(nproc) cores | relay | nginx, TLS 1.3 |"
echo "|---|---|---|"
echo "| resident, one connection / all of them idle / at most, MiB | $alone / $connected / $peak | |"
echo "| seconds of processor for each GB sent | $relay_gb | $nginx_gb |"
echo "| seconds | $seconds | $nginx_seconds |"
