//! Scenarios of the simulated swarm (`tests/src/sim`). Each runs with a few fixed numbers; a failure prints the line that replays it.

mod machine;
mod relays;
