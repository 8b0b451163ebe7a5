//! One peer of a [`Fetch`](super::Fetch): what it said, how it did, and when it is asked again.

use std::collections::VecDeque;

use super::capacity::Capacity;
use super::{Tier, config};
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) tier: Tier,
    /// Whether it is one of several that share the work.
    shares: bool,
    /// What it said it does not have.
    pub(super) lacks: ChunkRanges,
    /// What it announced; `None` for a parent, which may be asked for anything.
    pub(super) announced: Option<ChunkRanges>,
    /// What neighbours are fetching by its word, and until when that is left to them.
    pub(super) leased: VecDeque<(Timestamp, ChunkRanges)>,
    pub(super) not_before: Timestamp,
    /// It answers nothing until then, though it will have the chunks.
    pub(super) choked_until: Timestamp,
    /// It left a whole batch to neighbours, and is not asked for another until then.
    pub(super) left_until: Timestamp,
    /// It may yet announce more until then.
    pub(super) hope_until: Timestamp,
    /// When it was introduced, or its connection came up.
    pub(super) since: Timestamp,
    pub(super) failures: u32,
    /// While nothing came from anybody; and how much had come when it last choked.
    pub(super) chokes: u32,
    pub(super) choked_at: u64,
    pub(super) in_flight: usize,
    /// A relay whose parent was away, for the first time or when farther parents were too: it is asked before them again.
    pub(super) excused: bool,
    /// When its parent failed first, since its last chunk.
    pub(super) upstream_failed: Option<Timestamp>,
    /// It made no progress when it was asked last: farther peers do not wait for it.
    pub(super) stalled: bool,
    /// Right chunks it has sent, and when the last of them.
    pub(super) right: u64,
    pub(super) came_at: Timestamp,
    /// It has sent a wrong one.
    pub(super) lied: bool,
    /// Several of the site say so, by the word of the origin: a relay is asked after it.
    pub(super) disowned: bool,
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
            hope_until: now,
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
            disowned: false,
            connected: true,
            dropped: false,
            capacity: Capacity::default(),
        }
    }

    /// What of `wanted` it has, or will have, as far as it said.
    pub(super) fn could_send(&self, wanted: &ChunkRanges) -> ChunkRanges {
        match &self.announced {
            Some(announced) if self.lacks.is_empty() => wanted.intersection(announced),
            Some(announced) => wanted.intersection(announced).difference(&self.lacks),
            None => wanted.difference(&self.lacks),
        }
    }

    /// The same without what it left to neighbours for now.
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

    /// Whether it is asked at all now, when it has room.
    pub(super) fn is_well(&self, now: Timestamp) -> bool {
        self.connected && !self.dropped && self.not_before <= now
    }

    /// Whether it is asked now, if it has less than so many batches to answer.
    pub(super) fn has_room(&self, now: Timestamp, most: usize) -> bool {
        // Of one that has shown nothing yet little is lost if it lies.
        let unproven = self.shares && self.right == 0;
        let most = if self.stalled || unproven { most.min(1) } else { most };
        self.is_well(now) && self.in_flight < most && self.choked_until.max(self.left_until) <= now
    }

    /// Whether what it could send waits for it rather than go to a farther peer: uplinks are for what nobody near has.
    pub(super) fn is_waited_for(&self, now: Timestamp) -> bool {
        !self.stalled && (self.is_well(now) || (self.excused && self.connected && !self.dropped))
    }

    /// A neighbour that is being dialled, or has just connected, and may hold anything.
    pub(super) fn is_settling(&self, now: Timestamp) -> bool {
        self.settles_at(now).is_some()
    }

    /// When it will have settled, if it has not.
    pub(super) fn settles_at(&self, now: Timestamp) -> Option<Timestamp> {
        let silent = self.announced.as_ref().is_some_and(ChunkRanges::is_empty);
        let at = self.since + if self.connected { config::SETTLED } else { config::SETTLING };
        (silent && !self.dropped && self.failures == 0 && now < at).then_some(at)
    }
}
