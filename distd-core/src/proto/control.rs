//! One side of one swarm's control stream, sans-io.
//!
//! Feed every frame of the stream to [`Control::handle_frame`]; send what [`Control::poll_transmit`] returns until it
//! returns `None`, again after each call that changes something.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::Frame;
use super::close::CloseCode;
use super::frame::{Choke, Handshake, PROTOCOL_VERSION, PeerRecord, PeerRecords, Ranges, Shun};
use crate::limits::SHUN_NODES_MAX;
use crate::ranges::ChunkRanges;
use crate::{ManifestId, NodeId};

/// Most disjoint HAVE ranges kept of a peer. Beyond it further ones are dropped: the peer is asked less than it could
/// be, nothing else.
const HAVE_RANGES_MAX: usize = 1024;

/// Which side opened the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opened the stream: speaks first.
    Opener,
    /// Answers.
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
    /// The peer answers for another swarm.
    #[error("peer answered for manifest {0}")]
    OtherSwarm(ManifestId),
    /// No version in common.
    #[error(
        "peer speaks versions {0} to {1} of the protocol, this build version {PROTOCOL_VERSION}: upgrade the older side"
    )]
    Version(u8, u8),
    /// A frame that belongs on another kind of stream.
    #[error("peer sent a frame that does not belong on a control stream")]
    Misplaced,
}

impl ControlError {
    /// The code to end the stream with.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::Version(..) => CloseCode::Version,
            _ => CloseCode::Protocol,
        }
    }
}

/// What a frame changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// The handshake is complete.
    Open(Handshake),
    /// The peer announced chunks.
    Have(ChunkRanges),
    /// The peer will not answer requests until then.
    Choked(Choke),
    /// The peer answers new requests.
    Unchoked,
    /// The peer wants to know its neighbours.
    PeersWanted,
    /// Where the peer listens, or its neighbours do; not yet verified.
    Peers(Vec<PeerRecord>),
    /// The peer takes nothing of these nodes any more, nor of those it named before: all it named, by its word alone.
    Shuns(BTreeSet<NodeId>),
}

/// State of one side.
#[derive(Debug)]
pub struct Control {
    side: Side,
    manifest: ManifestId,
    state: State,
    out: VecDeque<Frame>,
    remote_have: ChunkRanges,
    /// Announced to the peer already: never announced twice.
    announced: ChunkRanges,
    choked_for: Option<Duration>,
    /// Whom this side told the peer it shuns, and whom the peer shuns by its word.
    shun_told: BTreeSet<NodeId>,
    remote_shuns: BTreeSet<NodeId>,
    unknown_frames: u64,
}

impl Control {
    /// Starts one side with the handshake it sends.
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
    /// [`ControlError`]: end the stream with its code.
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
            // A request stream is withdrawn by STOP_SENDING; CANCEL here is for what was never sent, so for us nothing.
            (State::Open, Frame::Cancel(_)) => Ok(None),
            (State::Open, _) => Err(ControlError::Misplaced),
        }
    }

    /// Announces what this side holds and has verified; what was announced before is left out.
    pub fn announce(&mut self, held: &ChunkRanges) {
        let fresh = held.difference(&self.announced);
        self.out.extend(Ranges::split(&fresh).map(Frame::Have));
        self.announced.extend(&fresh);
    }

    /// Tells the peer where this side, or a neighbour of the peer, listens; at most `PEX_RECORDS_MAX` records.
    pub fn send_peers(&mut self, records: Vec<PeerRecord>) {
        self.out.push_back(Frame::PeerRecords(PeerRecords(records)));
    }

    /// Tells the peer whom this side takes nothing of; who was named before is left out, and who comes after `SHUN_NODES_MAX` too.
    pub fn shun<'n>(&mut self, nodes: impl IntoIterator<Item = &'n NodeId>) {
        let room = SHUN_NODES_MAX - self.shun_told.len();
        let fresh = nodes.into_iter().filter(|node| !self.shun_told.contains(node)).take(room);
        let fresh: Vec<_> = fresh.copied().collect();
        self.shun_told.extend(&fresh);
        if !fresh.is_empty() {
            self.out.push_back(Frame::Shun(Shun(fresh)));
        }
    }

    /// Asks for neighbours, now and as they change.
    pub fn want_peers(&mut self) {
        self.out.push_back(Frame::PexRequest);
    }

    /// Tells the peer not to ask for a while.
    pub fn choke(&mut self, choke: Choke) {
        self.out.push_back(Frame::Choke(choke));
    }

    /// Tells the peer it may ask again.
    pub fn unchoke(&mut self) {
        self.out.push_back(Frame::Unchoke);
    }

    /// The next frame to send. The answerer says nothing before it has heard the opener's handshake
    /// (RFC 7574 §8.4: no answer to a handshake that does not fit).
    pub fn poll_transmit(&mut self) -> Option<Frame> {
        if self.side == Side::Answerer && self.state == State::AwaitHandshake {
            return None;
        }
        self.out.pop_front()
    }

    /// Chunks the peer announced.
    pub fn remote_have(&self) -> &ChunkRanges {
        &self.remote_have
    }

    /// How long the peer asked not to be asked, while it does.
    pub fn choked_for(&self) -> Option<Duration> {
        self.choked_for
    }

    /// Frames of unknown type seen so far.
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
        let frames: [(&str, Frame); 12] = [
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
            ("unknown", Frame::Unknown { frame_type: 200, len: 3 }),
        ];
        let mut table = String::new();
        for open in [false, true] {
            for (name, frame) in &frames {
                let mut control = control(Side::Answerer);
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
                table += &format!("{} + {name}: {outcome}\n", if open { "open" } else { "await" });
            }
        }
        assert_eq!(table, include_str!("testdata/control_table.txt"));
    }

    #[test]
    fn who_is_shunned_is_told_once_and_no_more_of_them_than_is_bearable() {
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
    fn what_was_announced_is_not_announced_again() {
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
