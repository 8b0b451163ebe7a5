//! Scenarios of the simulated swarm (`tests/src/sim`). Each runs with a few fixed numbers; a
//! failure prints the line that replays it.

mod clocks;
mod crowds;
mod halts;
mod liars;
mod machine;
mod peers;
mod relays;
mod sites;

use std::time::Duration;

/// Virtual time within which every scenario ends.
const LIMIT: Duration = Duration::from_secs(1800);
