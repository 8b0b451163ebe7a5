//! One side of one swarm's control stream, sans-io.
//!
//! Pass every frame of the stream to [`Control::handle_frame`]. After each call that changes
//! something, send the frames that [`Control::poll_transmit`] returns until it returns `None`.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::Frame;
use super::close::CloseCode;
use super::frame::{
    CapabilityBody, Choke, HaltBody, Handshake, PROTOCOL_VERSION, PeerRecord, PeerRecords, Ranges, Shun,
};
use crate::bounds::SHUN_NODES_MAX;
use crate::ranges::ChunkRanges;
use crate::{ManifestId, NodeId};

/// Most disjoint HAVE ranges kept of a peer. Further ranges are dropped, and the peer is asked for
/// less than it has.
const HAVE_RANGES_MAX: usize = 1024;

/// Side of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opened the stream and speaks first.
    Opener,
    /// Accepted the stream and speaks second.
    Answerer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitHandshake,
    Open,
}

/// A breach of the protocol, with the code to end the stream with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Another frame came before HANDSHAKE.
    #[error("peer sent another frame before its handshake")]
    HandshakeExpected,
    /// HANDSHAKE came twice.
    #[error("peer sent a second handshake")]
    SecondHandshake,
    /// The peer's handshake names another swarm.
    #[error("peer sent a handshake for another manifest, {0}")]
    OtherSwarm(ManifestId),
    /// The two sides have no version in common: the peer's lowest and highest version.
    #[error(
        "peer speaks versions {0} to {1} of the protocol, this build version {PROTOCOL_VERSION}: upgrade the older side"
    )]
    Version(u8, u8),
    /// The peer sent a frame that belongs on another kind of stream.
    #[error("peer sent a frame that does not belong on a control stream")]
    Misplaced,
}

impl ControlError {
    /// Returns the code to end the stream with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Version(..) => CloseCode::Version,
            _ => CloseCode::Protocol,
        }
    }
}

/// Effect of a received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// The handshake is complete.
    Open(Handshake),
    /// The peer announced chunks.
    Have(ChunkRanges),
    /// The peer will not answer requests before the CHOKE's retry-after is over.
    Choked(Choke),
    /// The peer answers new requests.
    Unchoked,
    /// The peer asks for its neighbours.
    PeersWanted,
    /// Peer records of the sender or of neighbours. They are not verified yet.
    Peers(Vec<PeerRecord>),
    /// All nodes the peer shuns: the ones it has just named and the ones it named before. The peer
    /// gives no proof.
    Shuns(BTreeSet<NodeId>),
    /// A newer capability of the peer. It is not verified yet.
    Capability(Bytes),
    /// A halt notice. It is not verified yet.
    Halt(Bytes),
}

/// State of one side of the stream.
#[derive(Debug)]
pub struct Control {
    side: Side,
    manifest: ManifestId,
    state: State,
    out: VecDeque<Frame>,
    remote_have: ChunkRanges,
    /// Chunks already announced to the peer. They are never announced again.
    announced: ChunkRanges,
    choked_for: Option<Duration>,
    /// Nodes this side told the peer it shuns, and nodes the peer says it shuns.
    shun_told: BTreeSet<NodeId>,
    remote_shuns: BTreeSet<NodeId>,
    unknown_frames: u64,
}

impl Control {
    /// Starts one side. `handshake` is the first frame this side sends.
    pub fn new(side: Side, handshake: Handshake) -> Self {
        Self {
            side,
            manifest: handshake.manifest,
            state: State::AwaitHandshake,
            out: VecDeque::from([Frame::Handshake(handshake)]),
            remote_have: ChunkRanges::new(),
            announced: ChunkRanges::new(),
            choked_for: None,
            shun_told: BTreeSet::new(),
            remote_shuns: BTreeSet::new(),
            unknown_frames: 0,
        }
    }

    /// Takes the next frame of the stream.
    ///
    /// # Errors
    /// [`ControlError`]. The caller ends the stream with [`ControlError::close_code`].
    pub fn handle_frame(&mut self, frame: Frame) -> Result<Option<ControlEvent>, ControlError> {
        match (self.state, frame) {
            (_, Frame::Unknown { .. }) => {
                self.unknown_frames += 1;
                Ok(None)
            }
            (State::AwaitHandshake, Frame::Handshake(theirs)) => {
                if theirs.manifest != self.manifest {
                    return Err(ControlError::OtherSwarm(theirs.manifest));
                }
                if theirs.minimum_version > PROTOCOL_VERSION || theirs.version < PROTOCOL_VERSION {
                    return Err(ControlError::Version(theirs.minimum_version, theirs.version));
                }
                self.state = State::Open;
                Ok(Some(ControlEvent::Open(theirs)))
            }
            (State::AwaitHandshake, _) => Err(ControlError::HandshakeExpected),
            (State::Open, Frame::Handshake(_)) => Err(ControlError::SecondHandshake),
            (State::Open, Frame::Have(ranges)) => {
                let added = ranges.to_set();
                for range in added.iter() {
                    if self.remote_have.range_count() < HAVE_RANGES_MAX {
                        self.remote_have.insert_range(range);
                    }
                }
                Ok(Some(ControlEvent::Have(added)))
            }
            (State::Open, Frame::Choke(choke)) => {
                self.choked_for = Some(choke.retry_after);
                Ok(Some(ControlEvent::Choked(choke)))
            }
            (State::Open, Frame::Unchoke) => {
                self.choked_for = None;
                Ok(Some(ControlEvent::Unchoked))
            }
            (State::Open, Frame::PexRequest) => Ok(Some(ControlEvent::PeersWanted)),
            (State::Open, Frame::PeerRecords(PeerRecords(records))) => Ok(Some(ControlEvent::Peers(records))),
            (State::Open, Frame::Shun(Shun(nodes))) => {
                for node in nodes {
                    if self.remote_shuns.len() < SHUN_NODES_MAX {
                        self.remote_shuns.insert(node);
                    }
                }
                Ok(Some(ControlEvent::Shuns(self.remote_shuns.clone())))
            }
            (State::Open, Frame::Capability(CapabilityBody(newer))) => {
                Ok(Some(ControlEvent::Capability(newer)))
            }
            (State::Open, Frame::Halt(HaltBody(notice))) => Ok(Some(ControlEvent::Halt(notice))),
            // An asker withdraws a batch with STOP_SENDING. CANCEL concerns only chunks of no open
            // batch, for which this side keeps no state.
            (State::Open, Frame::Cancel(_)) => Ok(None),
            (State::Open, _) => Err(ControlError::Misplaced),
        }
    }

    /// Announces chunks this side holds and has verified. Chunks announced before are left out.
    pub fn announce(&mut self, held: &ChunkRanges) {
        let fresh = held.difference(&self.announced);
        self.out.extend(Ranges::split(&fresh).map(Frame::Have));
        self.announced.extend(&fresh);
    }

    /// Sends peer records: this side's own, or those of the peer's neighbours. At most
    /// `PEX_RECORDS_MAX`.
    pub fn send_peers(&mut self, records: Vec<PeerRecord>) {
        self.out.push_back(Frame::PeerRecords(PeerRecords(records)));
    }

    /// Tells the peer which nodes this side shuns. Nodes named before are left out, and so are
    /// nodes beyond `SHUN_NODES_MAX` in all.
    pub fn shun<'n>(&mut self, nodes: impl IntoIterator<Item = &'n NodeId>) {
        let room = SHUN_NODES_MAX - self.shun_told.len();
        let fresh = nodes.into_iter().filter(|node| !self.shun_told.contains(node)).take(room);
        let fresh: Vec<_> = fresh.copied().collect();
        self.shun_told.extend(&fresh);
        if !fresh.is_empty() {
            self.out.push_back(Frame::Shun(Shun(fresh)));
        }
    }

    /// Sends a newer capability of this side.
    pub fn prove(&mut self, capability: Bytes) {
        self.out.push_back(Frame::Capability(CapabilityBody(capability)));
    }

    /// Passes a signed halt notice on.
    pub fn pass_halt(&mut self, notice: Bytes) {
        self.out.push_back(Frame::Halt(HaltBody(notice)));
    }

    /// Asks the peer for neighbours now, and for further ones as they come.
    pub fn want_peers(&mut self) {
        self.out.push_back(Frame::PexRequest);
    }

    /// Tells the peer to send no requests for a while.
    pub fn choke(&mut self, choke: Choke) {
        self.out.push_back(Frame::Choke(choke));
    }

    /// Tells the peer that it may send requests again.
    pub fn unchoke(&mut self) {
        self.out.push_back(Frame::Unchoke);
    }

    /// Returns the next frame to send. The answerer says nothing before it has received the
    /// opener's handshake (RFC 7574 §8.4: no answer to a handshake that does not fit).
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if self.side == Side::Answerer && self.state == State::AwaitHandshake {
            return None;
        }
        self.out.pop_front()
    }

    /// Returns the chunks the peer announced.
    pub fn remote_have(&self) -> &ChunkRanges {
        &self.remote_have
    }

    /// Returns the retry-after of the peer's last CHOKE, until the peer sends UNCHOKE.
    pub fn choked_for(&self) -> Option<Duration> {
        self.choked_for
    }

    /// Returns the number of frames of unknown type received so far.
    pub fn unknown_frames(&self) -> u64 {
        self.unknown_frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkId;

    fn id(n: u8) -> ManifestId {
        ManifestId([n; 32])
    }

    fn control(side: Side) -> Control {
        Control::new(side, Handshake::new(id(1)))
    }

    fn ranges(start: u64, end: u64) -> Ranges {
        Ranges(vec![ChunkId(start)..=ChunkId(end)])
    }

    #[test]
    fn the_answerer_is_silent_until_the_openers_handshake_fits() {
        let (mut opener, mut answerer) = (control(Side::Opener), control(Side::Answerer));
        assert_eq!(answerer.poll_transmit(), None);
        let hello = opener.poll_transmit().expect("the opener speaks first");
        assert!(matches!(answerer.handle_frame(hello), Ok(Some(ControlEvent::Open(_)))));
        let answer = answerer.poll_transmit().expect("now it answers");
        assert!(matches!(opener.handle_frame(answer), Ok(Some(ControlEvent::Open(_)))));
        assert_eq!((opener.poll_transmit(), answerer.poll_transmit()), (None, None));
    }

    #[test]
    fn every_state_and_frame_has_the_outcome_of_this_table() {
        let frames: [(&str, Frame); 14] = [
            ("handshake", Frame::Handshake(Handshake::new(id(1)))),
            ("other swarm", Frame::Handshake(Handshake::new(id(2)))),
            (
                "version 9",
                Frame::Handshake(Handshake { version: 9, minimum_version: 9, ..Handshake::new(id(1)) }),
            ),
            ("have", Frame::Have(ranges(1, 5))),
            ("choke", Frame::Choke(Choke::default())),
            ("unchoke", Frame::Unchoke),
            ("cancel", Frame::Cancel(ranges(1, 1))),
            ("request", Frame::Request(ranges(1, 1))),
            ("pex request", Frame::PexRequest),
            ("peer records", Frame::PeerRecords(PeerRecords(Vec::new()))),
            ("shun", Frame::Shun(Shun(vec![NodeId([1; 16])]))),
            ("capability", Frame::Capability(CapabilityBody(Bytes::from_static(b"c")))),
            ("halt", Frame::Halt(HaltBody(Bytes::from_static(b"h")))),
            ("unknown", Frame::Unknown { frame_type: 200, len: 3 }),
        ];
        let mut table = String::new();
        let sides = [("opener", Side::Opener), ("answerer", Side::Answerer)];
        for ((who, side), open) in sides.into_iter().flat_map(|side| [(side, false), (side, true)]) {
            for (name, frame) in &frames {
                let mut control = control(side);
                if open {
                    control.handle_frame(Frame::Handshake(Handshake::new(id(1)))).expect("fits");
                }
                let outcome = match control.handle_frame(frame.clone()) {
                    Ok(None) => "-".to_owned(),
                    Ok(Some(event)) => {
                        format!("{event:?}").split(['(', ' ']).next().unwrap_or_default().to_owned()
                    }
                    Err(e) => format!("close {}", e.close_code()),
                };
                table += &format!("{who}, {} + {name}: {outcome}\n", if open { "open" } else { "await" });
            }
        }
        assert_eq!(table, include_str!("testdata/control_table.txt"));
    }

    #[test]
    fn each_shunned_node_is_sent_once_and_never_more_than_the_limit() {
        let (mut opener, mut answerer) = (control(Side::Opener), control(Side::Answerer));
        answerer.handle_frame(opener.poll_transmit().expect("handshake")).expect("fits");
        let nodes: Vec<_> = (0..SHUN_NODES_MAX as u8 + 9).map(|n| NodeId([n; 16])).collect();
        opener.shun(&nodes[..3]);
        opener.shun(&nodes);
        let told: Vec<_> = std::iter::from_fn(|| opener.poll_transmit()).collect();
        assert_eq!(told[0], Frame::Shun(Shun(nodes[..3].to_vec())));
        assert_eq!(told[1], Frame::Shun(Shun(nodes[3..SHUN_NODES_MAX].to_vec())));
        assert_eq!(told.len(), 2);
        for frame in told.into_iter().chain([Frame::Shun(Shun(nodes[SHUN_NODES_MAX..].to_vec()))]) {
            answerer.handle_frame(frame).expect("allowed");
        }
        let known = answerer.handle_frame(Frame::Shun(Shun(nodes[..1].to_vec())));
        assert_eq!(known, Ok(Some(ControlEvent::Shuns(nodes[..SHUN_NODES_MAX].iter().copied().collect()))));
    }

    #[test]
    fn announced_chunks_are_not_announced_again() {
        let mut control = control(Side::Opener);
        control.poll_transmit();
        let mut held: ChunkRanges = [ChunkId(1)..=ChunkId(5)].into_iter().collect();
        control.announce(&held);
        assert_eq!(control.poll_transmit(), Some(Frame::Have(ranges(1, 5))));
        held.insert_range(ChunkId(6)..=ChunkId(9));
        control.announce(&held);
        assert_eq!(control.poll_transmit(), Some(Frame::Have(ranges(6, 9))));
        control.announce(&held);
        assert_eq!(control.poll_transmit(), None);
    }
}
