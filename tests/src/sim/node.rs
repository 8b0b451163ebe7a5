//! A node: the chunks it holds, the peers it asks, and its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use distd_core::proto::batch::BatchAsk;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    Asker, BatchId, Demand, DialBackoff, PeerId, QuarantineList, SiteMembers, UPLOAD_SLOTS, UploadSlots,
    WaitId, WaiterId,
};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, NodeId};

use super::conn::ConnNo;
use super::net::Pipe;

/// Number of a node in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNo(pub usize);

impl NodeNo {
    pub(super) fn id(self) -> NodeId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.0 as u64).to_be_bytes());
        NodeId(id)
    }

    /// The address encodes the node's number: the simulation has no certificates, and nothing else
    /// in a record names the node.
    pub(super) fn address(self) -> SocketAddr {
        let [_, a, b, c] = (self.0 as u32).to_be_bytes();
        ([10, a, b, c], 4434).into()
    }

    /// The address at which a node of this site is seen from other sites: that of its NAT.
    pub(super) fn public_address(site: usize) -> IpAddr {
        let [_, _, high, low] = (site as u32).to_be_bytes();
        Ipv4Addr::new(198, 18, high, low).into()
    }

    pub(super) fn at(address: SocketAddr) -> Option<Self> {
        match address {
            SocketAddr::V4(v4) => {
                let [_, a, b, c] = v4.ip().octets();
                Some(Self(u32::from_be_bytes([0, a, b, c]) as usize))
            }
            SocketAddr::V6(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Origin,
    Relay,
    Leaf,
}

/// How an answering node differs from an honest one.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Number of chunks in a thousand that the node sends with wrong bytes.
    pub lies_permille: u64,
    /// Number of chunks in a thousand at which the node drops the connection instead.
    pub drops_permille: u64,
    /// The node announces every chunk, whether it holds it or not.
    pub boasts: bool,
    /// The node tells its parents that every other node sent it wrong bytes.
    pub slanders: bool,
    /// The node takes requests and never answers.
    pub silent: bool,
    /// Number of batches answered at once; others wait, and are choked after a while.
    pub upload_slots: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            lies_permille: 0,
            drops_permille: 0,
            boasts: false,
            slanders: false,
            silent: false,
            upload_slots: UPLOAD_SLOTS,
        }
    }
}

/// How a leaf takes part.
#[derive(Clone, Copy, Debug)]
pub struct LeafConfig {
    /// Whether it takes part in the exchange at all.
    pub exchanges: bool,
    /// Whether it serves others.
    pub serves: bool,
    /// Whether it still listens when it has everything: an agent does, a pull does not.
    pub resident: bool,
    /// Longest time for which a finished pull serves nodes that fetch from it (`pull/run.rs`).
    pub linger: Duration,
}

impl Default for LeafConfig {
    fn default() -> Self {
        Self { exchanges: true, serves: true, resident: true, linger: Duration::from_secs(5) }
    }
}

/// A peer that a node dials or is connected to.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) node: NodeNo,
    pub(super) conn: Option<ConnNo>,
    /// Chunks that the peer announced; only for the check of requests.
    pub(super) announced: ChunkRanges,
}

/// A batch that was requested.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) ask: BatchAsk,
    pub(super) peer: PeerId,
    pub(super) conn: ConnNo,
    /// Number of frames that arrived, and number of all frames once that is known.
    pub(super) frames: u64,
    pub(super) frames_all: Option<u64>,
}

/// The asking side while it runs.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) asker: Asker,
    pub(super) contacts: BTreeMap<PeerId, Contact>,
    pub(super) asks: BTreeMap<BatchId, Ask>,
    pub(super) wanted: ChunkRanges,
    /// The wake-up that is due, in virtual time.
    pub(super) wake_at: Option<Timestamp>,
}

/// The answering side, in memory only.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) sites: SiteMembers,
    /// Made with the first request.
    pub(super) slots: Option<UploadSlots<NodeId>>,
    /// Batches that wait for an upload slot.
    pub(super) waiting: BTreeMap<WaitId, (ConnNo, BatchId)>,
    /// Batches that wait for each chunk, at a relay.
    pub(super) demand: Demand<NodeNo>,
    pub(super) waiters: BTreeMap<WaiterId, (ConnNo, BatchId)>,
}

impl Answering {
    /// The answering side of a node that has just started.
    pub(super) fn of(role: Role) -> Self {
        Self {
            sites: SiteMembers::new(role == Role::Origin),
            slots: None,
            waiting: BTreeMap::new(),
            demand: Demand::default(),
            waiters: BTreeMap::new(),
        }
    }
}

/// Chunks on a disk, which a crash leaves as they are.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// Chunks that the node regards as held and verified.
    pub(super) held: ChunkRanges,
    /// The bytes on the disk.
    pub(super) bytes: BTreeMap<ChunkId, [u8; 8]>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) role: Role,
    pub(super) site: usize,
    pub(super) parents: Vec<NodeNo>,
    pub(super) leaf: LeafConfig,
    pub(super) behaviour: Behaviour,
    pub(super) up: bool,
    /// Number of starts.
    pub(super) starts: u64,
    pub(super) store: Store,
    pub(super) asking: Option<Asking>,
    pub(super) answering: Answering,
    pub(super) conns: BTreeSet<ConnNo>,
    /// Kept over restarts.
    pub(super) quarantine: QuarantineList,
    /// Lost in a crash.
    pub(super) dial_backoff: DialBackoff,
    pub(super) tx: Pipe,
    pub(super) rx: Pipe,
    /// Messages pass only between nodes of one island.
    pub(super) island: usize,
    /// Lead of the node's monotonic clock over virtual time, microseconds, and of its wall clock
    /// over the true time, seconds.
    pub(super) clock_ahead: i64,
    pub(super) wall_ahead: i64,
    /// Time at which the node had everything.
    pub(super) done: Option<Timestamp>,
    pub(super) began: Timestamp,
    /// Number of attempts that ended because no peer was left to ask.
    pub(super) failed_attempts: u32,
    /// Number of chunks that the node verified and stored, by sender; that arrived although it held
    /// them; and that were wrong, by sender.
    pub(super) received: BTreeMap<NodeNo, u64>,
    pub(super) twice: u64,
    pub(super) wrong: BTreeMap<NodeNo, u64>,
}
