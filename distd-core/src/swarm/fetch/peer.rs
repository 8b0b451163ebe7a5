//! One peer of a [`Fetch`](super::Fetch): its announcements, its record so far, and the time it may
//! be asked again.

use std::collections::VecDeque;

use super::capacity::Capacity;
use super::{Tier, config};
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) tier: Tier,
    /// Whether the fetch shares its work with neighbours (`FetchConfig::shared_batch` is set).
    shares: bool,
    /// Chunks the peer said it does not have.
    pub(super) lacks: ChunkRanges,
    /// Chunks the peer announced; `None` for a parent, which may be asked for any chunk.
    pub(super) announced: Option<ChunkRanges>,
    /// Chunks that neighbours are fetching, by this peer's word, each with the time until which
    /// they are left to them.
    pub(super) leased: VecDeque<(Timestamp, ChunkRanges)>,
    pub(super) not_before: Timestamp,
    /// The peer choked and answers nothing until then, although it has or will have the chunks.
    pub(super) choked_until: Timestamp,
    /// The peer left a whole batch to neighbours and is not asked for another until then.
    pub(super) left_until: Timestamp,
    /// End of the announce grace: until then the peer may announce more.
    pub(super) announce_until: Timestamp,
    /// Time when the peer was added, or when its connection came up.
    pub(super) since: Timestamp,
    pub(super) failures: u32,
    /// Number of chokes in a row while no chunk came from any peer, and the number of chunks that
    /// had come at the last choke.
    pub(super) chokes: u32,
    pub(super) choked_at: u64,
    pub(super) in_flight: usize,
    /// The relay's parent failed, for the first time or while no farther parent could be reached
    /// either. The relay is asked again before farther parents.
    pub(super) excused: bool,
    /// Time of its parent's first failure since the peer's last chunk.
    pub(super) upstream_failed: Option<Timestamp>,
    /// The peer made no progress when it was asked last. Farther peers do not wait for it.
    pub(super) stalled: bool,
    /// Number of right chunks the peer has sent, and the time of the last.
    pub(super) right: u64,
    pub(super) came_at: Timestamp,
    /// The peer has sent a wrong chunk.
    pub(super) lied: bool,
    /// The origin says that several nodes of the site shun this relay. The origin is asked before
    /// it.
    pub(super) distrusted_by_origin: bool,
    pub(super) connected: bool,
    pub(super) dropped: bool,
    pub(super) capacity: Capacity,
}

impl Peer {
    pub(super) fn new(now: Timestamp, tier: Tier, shares: bool) -> Self {
        Self {
            tier,
            shares,
            lacks: ChunkRanges::new(),
            announced: (tier == Tier::Site).then(ChunkRanges::new),
            leased: VecDeque::new(),
            not_before: now,
            choked_until: now,
            left_until: now,
            announce_until: now,
            since: now,
            failures: 0,
            chokes: 0,
            choked_at: 0,
            in_flight: 0,
            excused: false,
            upstream_failed: None,
            stalled: false,
            right: 0,
            came_at: now,
            lied: false,
            distrusted_by_origin: false,
            connected: true,
            dropped: false,
            capacity: Capacity::default(),
        }
    }

    /// Returns the chunks of `wanted` that the peer has or will have, as far as it said.
    pub(super) fn could_send(&self, wanted: &ChunkRanges) -> ChunkRanges {
        match &self.announced {
            Some(announced) if self.lacks.is_empty() => wanted.intersection(announced),
            Some(announced) => wanted.intersection(announced).difference(&self.lacks),
            None => wanted.difference(&self.lacks),
        }
    }

    /// Returns the same chunks without those the peer leaves to neighbours now.
    pub(super) fn could_send_now(&mut self, now: Timestamp, wanted: &ChunkRanges) -> ChunkRanges {
        while self.leased.front().is_some_and(|(until, _)| *until <= now) {
            self.leased.pop_front();
        }
        let mut could = self.could_send(wanted);
        for (_, leased) in &self.leased {
            could = could.difference(leased);
        }
        could
    }

    /// Whether the peer may be asked now, if it has room.
    pub(super) fn is_well(&self, now: Timestamp) -> bool {
        self.connected && !self.dropped && self.not_before <= now
    }

    /// Whether the peer may be asked now and has fewer than `most` batches to answer.
    pub(super) fn has_room(&self, now: Timestamp, most: usize) -> bool {
        // A peer that has sent nothing yet gets one batch, so that little is lost if it lies.
        let unproven = self.shares && self.right == 0;
        let most = if self.stalled || unproven { most.min(1) } else { most };
        self.is_well(now) && self.in_flight < most && self.choked_until.max(self.left_until) <= now
    }

    /// Whether chunks the peer could send wait for it rather than go to a farther peer: uplinks are
    /// for chunks that no near peer has.
    pub(super) fn is_waited_for(&self, now: Timestamp) -> bool {
        !self.stalled && (self.is_well(now) || (self.excused && self.connected && !self.dropped))
    }

    /// Whether the peer is a neighbour that is being dialled, or has just connected, and may hold
    /// any chunk.
    pub(super) fn is_settling(&self, now: Timestamp) -> bool {
        self.settles_at(now).is_some()
    }

    /// Returns the time when the peer counts as settled; `None` if it has settled already.
    pub(super) fn settles_at(&self, now: Timestamp) -> Option<Timestamp> {
        let silent = self.announced.as_ref().is_some_and(ChunkRanges::is_empty);
        let at = self.since + if self.connected { config::SETTLED } else { config::SETTLING };
        (silent && !self.dropped && self.failures == 0 && now < at).then_some(at)
    }
}
