#!/usr/bin/env bash
# Fuzzes each TARGET for SECONDS, all targets if none is named: run.sh SECONDS [TARGET...]. Needs
# cargo-fuzz. Findings are in artifacts/TARGET; make them small with `cargo fuzz tmin TARGET FILE`
# and add them to seeds/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=$1; shift
# Lets a stable compiler accept the nightly options that cargo-fuzz uses.
export RUSTC_BOOTSTRAP=1
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed 's/\.rs$//')
for target in "$@"; do
  seeds=seeds/$target; [ -d "$seeds" ] || seeds=seeds/artifacts
  mkdir -p "corpus/$target"
  # No sanitizer: distd-core has no unsafe code, and arithmetic is checked as in a debug build.
  cargo fuzz run --sanitizer none "$target" "corpus/$target" "$seeds" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1
done
