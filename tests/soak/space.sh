#!/usr/bin/env bash
# 100 kills -9 of a process that collects releases (the first argument sets another number), and 100 random orders of
# pushes, removals, collections and compactions that are cut off anywhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DISTD_TEST_KILLS=${1:-100} DISTD_TEST_ROUNDS=${1:-100} DISTD_TEST_RNG_SEED=${DISTD_TEST_RNG_SEED:-$RANDOM}
cargo nextest run -p distd-server --test space --locked --no-capture
