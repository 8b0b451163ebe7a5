//! Numbers for the behaviour of nodes towards each other outside the state machines of this module.
//! They are shared by the code that runs nodes with sockets and the code that simulates them.

use std::time::Duration;

/// Shortest time a pull that has every chunk lingers for nodes that fetch from it. The pull may be
/// the only holder here of the chunks it got last, and without it they would cross the uplink
/// again. The time covers several hops between neighbours, each with the delay of coalesced
/// announcements.
pub const HAND_ON: Duration = Duration::from_millis(500);

/// How long an asker waits for its relay's parent.
pub const UPSTREAM_WAIT: Duration = Duration::from_secs(10);
