//! One peer of an asker, and when it is dialled.

use std::time::Duration;

use super::{DialTarget, Neighbour};
use crate::NodeId;
use crate::swarm::Tier;
use crate::swarm::dial_backoff::NEIGHBOUR_TRIES;
use crate::time::Timestamp;

/// First pause before a lost peer is dialled again. It doubles up to [`REDIAL_MAX`].
const REDIAL: Duration = Duration::from_millis(100);

/// Longest pause before a lost peer is dialled again.
const REDIAL_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The caller dials the peer.
    Dialling,
    /// The peer is connected, at this distance.
    Connected(Tier),
    /// The peer was lost and is dialled again at this time.
    Paused(Timestamp),
    /// The peer is given up.
    Ended,
}

#[derive(Debug)]
pub(super) struct Contact {
    pub(super) target: DialTarget,
    pub(super) state: State,
    /// The node that answered last, also after the connection has ended.
    pub(super) node: Option<NodeId>,
    /// Whether the peer has connected or failed at least once.
    pub(super) heard: bool,
    /// Dials in a row without an answer to the handshake.
    tries: u32,
    /// Pause after the next loss.
    pause: Duration,
}

/// The largest distance that a peer may turn out to have.
pub(super) fn farthest(target: &DialTarget) -> Tier {
    match target {
        DialTarget::Parent(_) => Tier::Origin,
        DialTarget::Neighbour(_) => Tier::Site,
    }
}

impl Contact {
    /// A peer that is being dialled for the first time.
    pub(super) fn new(target: DialTarget) -> Self {
        Self { target, state: State::Dialling, node: None, heard: false, tries: 0, pause: REDIAL }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    pub(super) fn is_neighbour(&self, neighbour: &Neighbour) -> bool {
        matches!(&self.target, DialTarget::Neighbour(known) if known == neighbour)
    }

    /// The distance of the peer, or the largest possible one while it is not connected.
    pub(super) fn tier(&self) -> Tier {
        match self.state {
            State::Connected(tier) => tier,
            _ => farthest(&self.target),
        }
    }

    /// The peer answered the handshake of the swarm.
    pub(super) fn reached(&mut self) {
        (self.tries, self.pause) = (0, REDIAL);
    }

    /// The peer was lost: it is paused, or ended if it is a neighbour that failed too often.
    pub(super) fn lost(&mut self, now: Timestamp) {
        self.heard = true;
        self.tries += 1;
        if matches!(self.target, DialTarget::Neighbour(_)) && self.tries >= NEIGHBOUR_TRIES {
            self.state = State::Ended;
            return;
        }
        self.state = State::Paused(now + self.pause);
        self.pause = (self.pause * 2).min(REDIAL_MAX);
    }

    /// Time at which the peer is dialled again, if it is paused.
    pub(super) fn due(&self) -> Option<Timestamp> {
        match self.state {
            State::Paused(until) => Some(until),
            _ => None,
        }
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.due().is_some_and(|due| due <= now)
    }
}
