//! A connection between two nodes, and the messages on it.

use std::collections::{BTreeMap, VecDeque};

use distd_core::proto::Frame;
use distd_core::proto::control::Control;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, LeaseId, PeerId, SiteKey};
use distd_core::time::Timestamp;
use distd_core::{ChunkId, NodeId};

use super::node::NodeNo;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConnNo(pub(super) usize);

/// One end of a connection: the node that dialled, or the node that was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Opener,
    Answerer,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Opener => Self::Answerer,
            Self::Answerer => Self::Opener,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// The handshake of TLS: to the answerer, and back.
    Hello,
    Welcome,
    Control(Frame),
    Request(BatchId, ChunkRanges),
    Answer(BatchId, Frame),
    /// The stream of a batch ended after this number of frames.
    Fin(BatchId, u64),
    /// STOP_SENDING.
    Withdraw(BatchId),
    /// CONNECTION_CLOSE, and whether wrong bytes are the reason. Also the reply of a process that
    /// does not know the connection.
    Close(bool),
}

#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) conn: ConnNo,
    pub(super) to: End,
    pub(super) bytes: u64,
    pub(super) payload: Payload,
}

/// A batch that is being answered.
#[derive(Debug, Default)]
pub(super) struct Serving {
    pub(super) wanted: ChunkRanges,
    pub(super) ready: VecDeque<ChunkId>,
    /// At a relay: chunks that are on their way from upstream.
    pub(super) waiting: ChunkRanges,
    pub(super) lease: Option<LeaseId>,
    /// Number of frames sent.
    pub(super) frames: u64,
    /// Number of chunks that came from upstream, to see whether any came.
    pub(super) arrived: u64,
    /// Time since which the batch has an upload slot.
    pub(super) slot_since: Option<Timestamp>,
}

/// A node of the site that takes part in the swarm, as its record says.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) site: SiteKey,
    pub(super) serves: bool,
    pub(super) resident: bool,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) opener: NodeNo,
    /// The answerer as a peer of the opener.
    pub(super) peer: PeerId,
    pub(super) answerer: NodeNo,
    /// Whether each end regards the connection as open.
    pub(super) opener_open: bool,
    pub(super) answerer_open: bool,
    pub(super) opener_control: Control,
    pub(super) answerer_control: Control,
    /// Time of the last small message to each end: small messages of one direction stay in order.
    pub(super) last_to_opener: Timestamp,
    pub(super) last_to_answerer: Timestamp,
    pub(super) member: Option<Member>,
    /// Sequence of each record that was advertised; `None` until the opener asks for records.
    pub(super) told: Option<BTreeMap<NodeId, u64>>,
    pub(super) serving: BTreeMap<BatchId, Serving>,
    /// Batches with chunks to send, in turn.
    pub(super) turn: VecDeque<BatchId>,
    /// Number of chunks that the path holds, and number on the path now.
    pub(super) window: u64,
    pub(super) in_flight: u64,
}

impl Conn {
    pub(super) fn node(&self, end: End) -> NodeNo {
        match end {
            End::Opener => self.opener,
            End::Answerer => self.answerer,
        }
    }

    pub(super) fn is_open(&self, end: End) -> bool {
        match end {
            End::Opener => self.opener_open,
            End::Answerer => self.answerer_open,
        }
    }

    pub(super) fn set_open(&mut self, end: End, open: bool) {
        match end {
            End::Opener => self.opener_open = open,
            End::Answerer => self.answerer_open = open,
        }
    }

    pub(super) fn last_to(&mut self, end: End) -> &mut Timestamp {
        match end {
            End::Opener => &mut self.last_to_opener,
            End::Answerer => &mut self.last_to_answerer,
        }
    }

    pub(super) fn end_of(&self, node: NodeNo) -> End {
        if self.opener == node { End::Opener } else { End::Answerer }
    }
}
