#!/usr/bin/env bash
# Fuzzes: run.sh SECONDS [TARGET...], each target that long, all of them if none is named. Needs cargo-fuzz.
# What it finds is in artifacts/TARGET; `cargo fuzz tmin TARGET FILE` makes it small, and it then belongs in seeds/.
set -euo pipefail
cd "$(dirname "$0")"
seconds=$1; shift
# cargo-fuzz asks for options that only a nightly compiler takes without this.
export RUSTC_BOOTSTRAP=1
[ $# -gt 0 ] || set -- $(ls fuzz_targets | sed 's/\.rs$//')
for target in "$@"; do
  seeds=seeds/$target; [ -d "$seeds" ] || seeds=seeds/artifacts
  mkdir -p "corpus/$target"
  # No sanitizer: there is no unsafe code of ours, and arithmetic is checked as in a debug build.
  cargo fuzz run --sanitizer none "$target" "corpus/$target" "$seeds" -- \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1
done
