#!/usr/bin/env bash
# Every fault at every system call of pulls, a push and a relay's fetch. Prints for each command the number of points and
# the number that ended right. Some 25 minutes on two cores. Further arguments choose tests by name.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
need strace:strace
export DISTD_TEST_FAULTS=all
cargo build --workspace --bins --tests --locked
cargo test -p distd-tests --test faults --locked -- --nocapture "$@"
