#!/usr/bin/env bash
# 50 kills -9 of device, relay and origin each (the first argument sets another number), without and with patches, on real
# processes.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DISTD_TEST_KILLS=${1:-50} DISTD_TEST_RNG_SEED=${DISTD_TEST_RNG_SEED:-$RANDOM}
cargo build --workspace --bins --tests --locked
cargo nextest run -p distd-tests --test kills --test kills_patched --locked --no-capture
