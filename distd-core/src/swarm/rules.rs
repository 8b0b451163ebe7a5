//! Numbers for the behaviour of nodes towards each other outside the state machines of this module.
//! They are shared by the code that runs nodes with sockets and the code that simulates them.

use std::time::Duration;

pub use super::relaying::UPSTREAM_WAIT;

/// First pause before a lost peer is dialled again. It doubles up to [`REDIAL_MAX`].
pub const REDIAL: Duration = Duration::from_millis(100);

/// Longest pause before a lost peer is dialled again.
pub const REDIAL_MAX: Duration = Duration::from_secs(5);

/// Most dials of a neighbour in a row without success. Other neighbours can serve instead.
pub const NEIGHBOUR_TRIES: u32 = 4;

/// Most neighbours one swarm's fetch is connected to at once.
pub const NEIGHBOURS_MAX: usize = 16;

/// Most neighbours that are dialled because a peer advertised them. The other places are for nodes
/// that dial this node and are dialled back. Early joiners are advertised to everybody who joins
/// later, late joiners to nobody. If every place were filled from advertised addresses, early
/// joiners would upload three times their share and late ones nothing.
pub const HEARSAY_DIALS_MAX: usize = 10;

/// How long nearer parents may take to connect before a farther one is asked: a round trip over a
/// slow link, and one repetition.
pub const NEARER_GRACE: Duration = Duration::from_secs(1);

/// How long an answerer coalesces new holdings before it announces them, and new neighbours before
/// it advertises them.
pub const GATHER: Duration = Duration::from_millis(25);

/// How long an asker coalesces new holdings before it announces them to peers it dialled, which
/// only advertise the asker to other nodes.
pub const GATHER_UP: Duration = Duration::from_millis(500);

/// Number of neighbours that are advertised to a peer as soon as they come. Further ones are
/// advertised now and then.
pub const TOLD_ENOUGH: usize = NEIGHBOURS_MAX;

/// Most advertised records remembered for one peer.
pub const TOLD_MAX: usize = 64;

/// Shortest time a pull that has every chunk lingers for nodes that fetch from it. The pull may be
/// the only holder here of the chunks it got last, and without it they would cross the uplink
/// again. The time covers several hops between neighbours, each with the delay of coalesced
/// announcements.
pub const HAND_ON: Duration = Duration::from_millis(500);

/// Batches answered at once, unless the configuration sets another number.
pub const UPLOAD_SLOTS: usize = 128;

/// How long a batch may wait for an upload slot before it is choked.
pub const UPLOAD_SLOT_WAIT: Duration = Duration::from_secs(5);

/// Number of batches answered at once from which a node suppresses duplicates: it leaves to
/// neighbours the chunks that it sent them recently ([`RecentlySent`](super::RecentlySent)). With
/// fewer batches, its link has room for all copies.
pub const CROWD: usize = 32;
