#!/usr/bin/env bash
# Large simulated fleets: how long the last of 1000 leaves behind a relay takes beside one alone; 10 000 behind 100 relays.
#
#   tests/soak/sim.sh                            some minutes on one core; DISTD_TEST_RNG_SEED sets the run
#   tests/soak/sim.sh RELAYS LEAVES CHUNKS MBIT   one fleet
#   tests/soak/sim.sh draw DIRECTORY             curves, as SVG
set -euo pipefail
cd "$(dirname "$0")/../.."
# Dependencies and the core are optimised in the ordinary profile; for this the simulation around them is too.
exec cargo run --locked -p distd-tests --example fleet --config 'profile.dev.package.distd-tests.opt-level=2' -- "$@"
