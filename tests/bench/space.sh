#!/usr/bin/env bash
# Space after many small releases were pushed and retired: stored bytes beside those that the live ones need.
# Arguments: number of releases (1000), how many are kept (30), chunks of each (64).
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --locked -p distd-server --example space
target/release/examples/space "$@"
