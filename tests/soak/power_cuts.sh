#!/usr/bin/env bash
# Power cuts during an update of a device with two slots: 120 000 distinct states of its disk, state directory and boot
# environment, and machines that are started from 60 of them. Needs root, loop devices and strace; some 8 minutes.
# power_cuts.sh [STATES [STARTS]]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/lib/install.sh
need strace:strace grub-editenv:grub-common
cargo build --workspace --bins --tests --locked
DISTD_TEST_CUT_STATES=${1:-120000} DISTD_TEST_CUT_STARTS=${2:-60} \
  cargo nextest run --workspace --locked --no-capture --test power_cuts
