#!/usr/bin/env bash
# Large simulated fleets: time of the last of 1000 leaves behind a relay, relative to one alone; 10 000 leaves behind
# 100 relays.
#
#   tests/soak/sim.sh                            some minutes on one core; DISTD_TEST_RNG_SEED sets the run
#   tests/soak/sim.sh RELAYS LEAVES CHUNKS MBIT   one fleet
#   tests/soak/sim.sh draw DIRECTORY             curves, as SVG
set -euo pipefail
cd "$(dirname "$0")/../.."
# The ordinary profile optimises only dependencies and the core; here the simulation around them is optimised too.
exec cargo run --locked -p distd-tests --example fleet --config 'profile.dev.package.distd-tests.opt-level=2' -- "$@"
