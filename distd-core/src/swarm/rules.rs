//! Numbers for the behaviour of nodes towards each other outside the state machines of this module.
//! They are shared by the code that runs nodes with sockets and the code that simulates them.

use std::time::Duration;

/// How long an asker waits for its relay's parent.
pub const UPSTREAM_WAIT: Duration = Duration::from_secs(10);
