//! A connection between two nodes, and the messages on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use distd_core::ChunkId;
use distd_core::proto::Frame;
use distd_core::proto::control::Control;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{
    AnswererGossip, AskerGossip, BatchId, LeaseId, MemberId, PeerId, RelayedBatch, SiteKey, WaitId, WaiterId,
};
use distd_core::time::Timestamp;

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
    /// At a relay: the chunks that come from upstream, and the batch's place in the demand.
    pub(super) relayed: Option<(WaiterId, RelayedBatch)>,
    /// Virtual time at which the wait for a relay's parent is looked at.
    pub(super) look_at: Option<Timestamp>,
    pub(super) lease: Option<LeaseId>,
    /// Number of frames sent.
    pub(super) frames: u64,
    /// The batch's place among those that wait for an upload slot.
    pub(super) wait: Option<WaitId>,
    /// Time since which the batch has an upload slot.
    pub(super) slot_since: Option<Timestamp>,
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
    /// The opener's part in the exchange of its site, if it takes part.
    pub(super) member: Option<MemberId>,
    /// Site of the opener, if it takes part.
    pub(super) site: SiteKey,
    /// Gossip of each end, once that end has opened the swarm: the opener only if it exchanges.
    pub(super) opener_gossip: Option<AskerGossip>,
    pub(super) answerer_gossip: Option<AnswererGossip>,
    /// Virtual times at which each end looks for news.
    pub(super) opener_looks: BTreeSet<Timestamp>,
    pub(super) answerer_looks: BTreeSet<Timestamp>,
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

    pub(super) fn looks(&mut self, end: End) -> &mut BTreeSet<Timestamp> {
        match end {
            End::Opener => &mut self.opener_looks,
            End::Answerer => &mut self.answerer_looks,
        }
    }

    /// Time at which the gossip of an end has news without a further event, by that node's clock.
    pub(super) fn news_timeout(&self, end: End) -> Option<Timestamp> {
        match end {
            End::Opener => self.opener_gossip.as_ref().map(AskerGossip::poll_timeout),
            End::Answerer => self.answerer_gossip.as_ref().map(AnswererGossip::poll_timeout),
        }
    }

    pub(super) fn end_of(&self, node: NodeNo) -> End {
        if self.opener == node { End::Opener } else { End::Answerer }
    }
}
