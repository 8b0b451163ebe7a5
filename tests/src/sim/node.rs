//! A node: what it holds, whom it asks, what it answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use distd_core::proto::batch::BatchAsk;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::rules::UPLOAD_SLOTS;
use distd_core::swarm::{BatchId, Directory, Fetch, Lately, Leases, SiteKey, SlotPace};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, NodeId};

use super::conn::ConnNo;
use super::net::Pipe;

/// A node of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNo(pub usize);

impl NodeNo {
    pub(super) fn id(self) -> NodeId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.0 as u64).to_be_bytes());
        NodeId(id)
    }

    /// The address says who it is, as nothing else does in a record whose certificate is not looked at.
    pub(super) fn address(self) -> SocketAddr {
        let [_, a, b, c] = (self.0 as u32).to_be_bytes();
        ([10, a, b, c], 4434).into()
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

/// How a node that answers departs from an honest one.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Chunks in a thousand that it sends wrong.
    pub lies_permille: u64,
    /// Chunks in a thousand at which it drops the connection instead.
    pub drops_permille: u64,
    /// It announces every chunk, whether it holds it or not.
    pub boasts: bool,
    /// It tells its parents that everybody else sent it wrong bytes.
    pub slanders: bool,
    /// It takes requests and never answers.
    pub silent: bool,
    /// Batches it answers at once; the others wait, and are choked after a while.
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
    /// Whether it goes on listening when it has everything: an agent does, a pull does not.
    pub resident: bool,
    /// How long a pull at most goes on serving those that fetch from it (`pull/run.rs`).
    pub linger: Duration,
}

impl Default for LeafConfig {
    fn default() -> Self {
        Self { exchanges: true, serves: true, resident: true, linger: Duration::from_secs(5) }
    }
}

/// Somebody a node asks; its place in the list is its `PeerId`.
#[derive(Debug)]
pub(super) struct Contact {
    pub(super) node: NodeNo,
    pub(super) conn: Option<ConnNo>,
    pub(super) tries: u32,
    pub(super) pause: Duration,
    /// It has connected or failed once.
    pub(super) heard: bool,
    /// Not dialled any more.
    pub(super) gone: bool,
    /// What it announced, for the invariant alone.
    pub(super) announced: ChunkRanges,
}

/// A batch asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) ask: BatchAsk,
    pub(super) peer: usize,
    pub(super) conn: ConnNo,
    /// Frames that came, and how many there are once that is known.
    pub(super) frames: u64,
    pub(super) frames_all: Option<u64>,
}

/// The asking side while it runs.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) fetch: Fetch,
    pub(super) contacts: Vec<Contact>,
    pub(super) parents: usize,
    pub(super) asks: BTreeMap<BatchId, Ask>,
    pub(super) wanted: ChunkRanges,
    /// Of whom several had wrong bytes, by the origin's word.
    pub(super) disowned: BTreeSet<NodeId>,
    pub(super) started: Timestamp,
    /// The wake-up that is due, in virtual time.
    pub(super) wake_at: Option<Timestamp>,
}

/// The answering side, in memory only.
#[derive(Debug, Default)]
pub(super) struct Answering {
    pub(super) directory: Directory,
    /// By site, where chunks are leased.
    pub(super) leases: BTreeMap<SiteKey, Leases>,
    /// By site, where they are not.
    pub(super) lately: BTreeMap<SiteKey, Lately>,
    /// Batches that have an upload slot.
    pub(super) active: usize,
    pub(super) queued: VecDeque<(ConnNo, BatchId)>,
    /// How long batches kept their slots; made with the first.
    pub(super) pace: Option<SlotPace>,
    /// Who waits for which chunk at a relay.
    pub(super) demand: BTreeMap<ChunkId, Vec<(ConnNo, BatchId)>>,
    /// Word of new neighbours, or of new chunks, is being gathered.
    pub(super) tell_due: bool,
    pub(super) announce_due: bool,
    pub(super) announce_up_due: bool,
}

/// Chunks on a disk, which a crash leaves as they are.
#[derive(Debug, Default)]
pub(super) struct Store {
    /// What the node takes itself to hold, verified.
    pub(super) held: ChunkRanges,
    /// The bytes that are there.
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
    /// Times it was started.
    pub(super) starts: u64,
    pub(super) store: Store,
    pub(super) asking: Option<Asking>,
    pub(super) answering: Answering,
    pub(super) conns: BTreeSet<ConnNo>,
    /// Persistent.
    pub(super) quarantine: BTreeSet<NodeNo>,
    pub(super) tx: Pipe,
    pub(super) rx: Pipe,
    /// Messages pass between nodes of one island.
    pub(super) island: usize,
    /// What its monotonic clock shows beyond virtual time, microseconds; and its wall clock beyond the true one, seconds.
    pub(super) clock_ahead: i64,
    pub(super) wall_ahead: i64,
    /// When it had everything.
    pub(super) done: Option<Timestamp>,
    pub(super) began: Timestamp,
    /// Attempts that ended because nobody was left to ask.
    pub(super) failed_attempts: u32,
    /// Chunks it verified and stored, by sender; those that came although it held them; wrong ones by sender.
    pub(super) received: BTreeMap<NodeNo, u64>,
    pub(super) twice: u64,
    pub(super) wrong: BTreeMap<NodeNo, u64>,
}
