//! Numbers by which nodes behave towards each other around the machines of this module, in one place for those that run them with
//! sockets and those that simulate them.

use std::time::Duration;

/// First pause before a lost peer is dialled again; doubles up to [`REDIAL_MAX`].
pub const REDIAL: Duration = Duration::from_millis(100);

/// Longest such pause.
pub const REDIAL_MAX: Duration = Duration::from_secs(5);

/// How often in a row a neighbour is dialled in vain; there are others.
pub const NEIGHBOUR_TRIES: u32 = 4;

/// Most neighbours one swarm's fetch is connected to at once.
pub const NEIGHBOURS_MAX: usize = 16;

/// Most of them that are dialled by the word of others; the other places are for those who dial this one and are dialled back. Who came early is told to
/// all that come later, and who came last to nobody: with all places filled by hearsay the former send three times what they need, and the latter nothing.
pub const NEIGHBOURS_TOLD: usize = 10;

/// How long nearer parents may take to connect before a farther one is asked: a round trip over a slow link, and a repetition.
pub const NEARER_GRACE: Duration = Duration::from_secs(1);

/// How long one that answers gathers new holdings before it announces them, and new neighbours before it tells of them.
pub const GATHER: Duration = Duration::from_millis(25);

/// How long one that asks gathers new holdings for those it dialled, who only tell others of it.
pub const GATHER_UP: Duration = Duration::from_millis(500);

/// Neighbours told of at once; who has so many is told of further ones now and then.
pub const TOLD_ENOUGH: usize = NEIGHBOURS_MAX;

/// Records told that are remembered of one peer.
pub const TOLD_MAX: usize = 64;

/// How long at least a pull that has everything stays for those that fetch from it: what it got last it alone may have, and then it would cross the
/// uplink again. Some hops from one neighbour to the next, each with the gathering of announcements.
pub const HAND_ON: Duration = Duration::from_millis(500);

/// Batches answered at once, unless the configuration says otherwise.
pub const UPLOAD_SLOTS: usize = 128;

/// How long a batch may wait for one of them before it is choked.
pub const UPLOAD_SLOT_WAIT: Duration = Duration::from_secs(5);

/// Batches answered at once from which on a relay leaves to neighbours what it sent them lately ([`Lately`](super::Lately)): with fewer,
/// its link has room for all.
pub const CROWD: usize = 32;

/// How long an asker waits for a relay's parent.
pub const UPSTREAM_WAIT: Duration = Duration::from_secs(10);
