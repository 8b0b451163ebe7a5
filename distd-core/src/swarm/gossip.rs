//! Gossip on a control stream: when each side announces the chunks that it holds, and which
//! neighbours the answerer advertises to the asker.
//!
//! # Goals
//! - Changes that follow each other at once go out as one frame, and a busy stream delays none.
//! - The asker hears of a bounded number of neighbours as soon as they come, and of further ones
//!   now and then; of each neighbour once, and again when the neighbour's record is newer.
//! - The asker's parents learn which nodes the asker shuns; the asker's record is renewed before it
//!   expires.
//!
//! # Non-goals
//! - Frames: [`Control`](crate::proto::control::Control) makes them, and announces only chunks that
//!   it did not announce before.
//! - The choice among neighbours: [`Directory`](super::Directory) ranks them.
//!
//! Both machines are asked for the next news with `poll`, whenever something happened and when
//! `poll_timeout` is reached.

use std::collections::BTreeMap;
use std::time::Duration;

use super::asker::NEIGHBOURS_MAX;
use crate::NodeId;
use crate::proto::frame::PeerRecord;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// How long an answerer coalesces new holdings before it announces them, and new neighbours before
/// it advertises them.
const COALESCE: Duration = Duration::from_millis(25);

/// Shortest time between two announcements of an asker to a peer that it dialled. It is longer than
/// [`COALESCE`]: the peer does not fetch from the asker, but advertises and leases by what it
/// knows.
const ASKER_PACE: Duration = Duration::from_millis(500);

/// Interval at which an answerer announces and advertises although it heard of no change: not every
/// content reports its growth, and neighbours beyond [`ADVERTISED_AT_ONCE`] are advertised then.
const REGULARLY: Duration = Duration::from_secs(30);

/// Number of neighbours that are advertised to an asker as soon as they come.
const ADVERTISED_AT_ONCE: usize = NEIGHBOURS_MAX;

/// Most advertised records remembered for one asker.
const ADVERTISED_MAX: usize = 64;

/// Changes of one source, of which those that follow each other at once count as one.
#[derive(Debug, Default)]
struct Coalesced {
    /// Time at which the changes so far are reported; `None` if there was none. Later changes do
    /// not move it.
    due: Option<Timestamp>,
}

impl Coalesced {
    fn handle_change(&mut self, now: Timestamp) {
        self.due.get_or_insert(now + COALESCE);
    }

    fn take(&mut self, now: Timestamp) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

/// News that an answerer sends to an asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswererNews {
    /// Announce the chunks that are held.
    Announce,
    /// Name the relays that the origin distrusts, and advertise neighbours if
    /// [`AnswererGossip::advertises`].
    Advertise(Advertise),
}

/// Reason to advertise neighbours to an asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advertise {
    /// The asker wants them. It gets an answer even if there are none.
    Wanted,
    /// The directory of the asker's site changed.
    Changed,
    /// The regular interval has passed.
    Regular,
}

/// The answering side of one control stream.
#[derive(Debug)]
pub struct AnswererGossip {
    growth: Coalesced,
    site: Coalesced,
    wanted: bool,
    regular_at: Timestamp,
    /// Whether the regular announcement was made and the regular advertisement was not.
    regular_half: bool,
    /// Sequence numbers of the records already advertised to the asker, by node and residency;
    /// `None` until the asker wants records.
    advertised: Option<BTreeMap<(NodeId, bool), u64>>,
}

impl AnswererGossip {
    /// A stream that opened at `now`. Chunks are announced at once.
    pub fn new(now: Timestamp) -> Self {
        Self {
            growth: Coalesced::default(),
            site: Coalesced::default(),
            wanted: false,
            regular_at: now,
            regular_half: false,
            advertised: None,
        }
    }

    /// More chunks are held.
    pub fn handle_growth(&mut self, now: Timestamp) {
        self.growth.handle_change(now);
    }

    /// Whether growth waits to be announced. Until then the caller need not report more of it.
    pub fn has_growth(&self) -> bool {
        self.growth.due.is_some()
    }

    /// The directory of the asker's site changed.
    pub fn handle_site_change(&mut self, now: Timestamp) {
        self.site.handle_change(now);
    }

    /// Whether a change of the directory waits to be advertised. Until then the caller need not
    /// report more of them.
    pub fn has_site_change(&self) -> bool {
        self.site.due.is_some()
    }

    /// The asker wants the records of neighbours.
    pub fn handle_peers_wanted(&mut self) {
        self.advertised = Some(BTreeMap::new());
        self.wanted = true;
    }

    /// Returns the next news to send. Call this until it returns `None`.
    pub fn poll(&mut self, now: Timestamp) -> Option<AnswererNews> {
        if std::mem::take(&mut self.wanted) {
            return Some(AnswererNews::Advertise(Advertise::Wanted));
        }
        if std::mem::take(&mut self.regular_half) {
            return Some(AnswererNews::Advertise(Advertise::Regular));
        }
        if self.regular_at <= now {
            (self.regular_at, self.regular_half) = (now + REGULARLY, true);
            return Some(AnswererNews::Announce);
        }
        if self.growth.take(now) {
            return Some(AnswererNews::Announce);
        }
        self.site.take(now).then_some(AnswererNews::Advertise(Advertise::Changed))
    }

    /// Returns when [`AnswererGossip::poll`] is to be called again, if nothing happens before.
    pub fn poll_timeout(&self) -> Timestamp {
        [self.growth.due, self.site.due].into_iter().flatten().fold(self.regular_at, Timestamp::min)
    }

    /// Whether records are advertised for this reason: the asker wants records, and a change alone
    /// does not count once the asker knows enough neighbours.
    pub fn advertises(&self, why: Advertise) -> bool {
        let known = self.advertised.as_ref().map(BTreeMap::len);
        known.is_some_and(|known| why != Advertise::Changed || known < ADVERTISED_AT_ONCE)
    }

    /// Chooses the records to send out of `ranked`, the neighbours best first: those that the asker
    /// does not know yet. `None` if nothing is to be sent.
    pub fn advertise(
        &mut self,
        why: Advertise,
        ranked: Vec<(NodeId, PeerRecord)>,
    ) -> Option<Vec<PeerRecord>> {
        let known = self.advertised.as_mut()?;
        let mut fresh = ranked;
        fresh.retain(|(node, record)| {
            known.get(&(*node, record.resident)).is_none_or(|sequence| *sequence < record.sequence)
        });
        known.extend(fresh.iter().map(|(node, record)| ((*node, record.resident), record.sequence)));
        while known.len() > ADVERTISED_MAX {
            known.pop_first();
        }
        let sends = why == Advertise::Wanted || !fresh.is_empty();
        sends.then(|| fresh.into_iter().map(|(_, record)| record).collect())
    }
}

/// News that an asker sends to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskerNews {
    /// Name the nodes that this node shuns.
    Shun,
    /// Announce the chunks that are held ([`AskerGossip::announced`]).
    Announce,
    /// Send a new record of this node.
    Record,
}

/// The asking side of one control stream, of a node that takes part in the exchange.
#[derive(Debug)]
pub struct AskerGossip {
    is_parent: bool,
    shuns: bool,
    grown: bool,
    /// Time before which nothing is announced.
    announce_from: Timestamp,
    /// Half the time for which the node's record is valid, and the time of the next renewal.
    renew_every: Duration,
    renew_at: Timestamp,
}

impl AskerGossip {
    /// A stream that opened at `now`, to a parent or to a neighbour. The node's record, which is
    /// valid for `record_seconds`, has been sent. Chunks are announced and shunned nodes are named
    /// at once.
    pub fn new(now: Timestamp, is_parent: bool, record_seconds: u64) -> Self {
        let renew_every = Duration::from_secs((record_seconds / 2).max(1));
        Self {
            is_parent,
            shuns: is_parent,
            grown: true,
            announce_from: now,
            renew_every,
            renew_at: now + renew_every,
        }
    }

    /// More chunks are held.
    pub fn handle_growth(&mut self) {
        self.grown = true;
    }

    /// Whether growth waits to be announced. Until then the caller need not report more of it.
    pub fn has_growth(&self) -> bool {
        self.grown
    }

    /// This node shuns other nodes than before. Only parents are told: they have the site's nodes
    /// kept away from a node that several shun.
    pub fn handle_shuns(&mut self) {
        self.shuns = self.is_parent;
    }

    /// Returns the next news to send. Call this until it returns `None`.
    pub fn poll(&mut self, now: Timestamp) -> Option<AskerNews> {
        if std::mem::take(&mut self.shuns) {
            return Some(AskerNews::Shun);
        }
        if self.grown && self.announce_from <= now {
            (self.grown, self.announce_from) = (false, now + ASKER_PACE);
            return Some(AskerNews::Announce);
        }
        if self.renew_at <= now {
            self.renew_at = now + self.renew_every;
            return Some(AskerNews::Record);
        }
        None
    }

    /// Returns when [`AskerGossip::poll`] is to be called again, if nothing happens before.
    pub fn poll_timeout(&self) -> Timestamp {
        if self.grown { self.renew_at.min(self.announce_from) } else { self.renew_at }
    }

    /// Returns the chunks to announce, of the held ones. A neighbour may want any chunk. A parent
    /// is told only of the chunks that this fetch wants, which other nodes may fetch from the
    /// parent, too.
    pub fn announced(&self, held: ChunkRanges, wanted: &ChunkRanges) -> ChunkRanges {
        if self.is_parent { held.intersection(wanted) } else { held }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ChunkId;

    const T0: Timestamp = Timestamp(1_000_000);

    fn all(gossip: &mut AnswererGossip, now: Timestamp) -> Vec<AnswererNews> {
        std::iter::from_fn(|| gossip.poll(now)).collect()
    }

    fn record(n: u8, sequence: u64) -> (NodeId, PeerRecord) {
        let record = PeerRecord {
            sequence,
            expires: 1,
            resident: false,
            site: String::new(),
            addresses: Vec::new(),
            certificate: Bytes::new(),
            signature: [0; 64],
        };
        (NodeId([n; 16]), record)
    }

    fn ranked(nodes: std::ops::RangeInclusive<u8>) -> Vec<(NodeId, PeerRecord)> {
        nodes.map(|n| record(n, 1)).collect()
    }

    /// A stream whose asker wants records, after the first regular news.
    fn wanting() -> AnswererGossip {
        let mut gossip = AnswererGossip::new(T0);
        gossip.handle_peers_wanted();
        all(&mut gossip, T0);
        gossip
    }

    #[test]
    fn chunks_are_announced_at_the_start_and_regularly() {
        let mut gossip = AnswererGossip::new(T0);
        let regular = [AnswererNews::Announce, AnswererNews::Advertise(Advertise::Regular)];
        assert_eq!(all(&mut gossip, T0), regular);
        assert_eq!((all(&mut gossip, T0), gossip.poll_timeout()), (Vec::new(), T0 + REGULARLY));
        assert_eq!(all(&mut gossip, T0 + REGULARLY), regular);
    }

    #[test]
    fn changes_that_follow_each_other_are_reported_once_and_none_is_delayed() {
        let mut gossip = wanting();
        let due = T0 + COALESCE;
        for step in 0..5 {
            gossip.handle_growth(T0 + COALESCE / 5 * step);
            gossip.handle_site_change(T0 + COALESCE / 5 * step);
            assert_eq!(all(&mut gossip, T0 + COALESCE / 5 * step), []);
            assert_eq!(gossip.poll_timeout(), due);
        }
        assert_eq!(
            all(&mut gossip, due),
            [AnswererNews::Announce, AnswererNews::Advertise(Advertise::Changed)]
        );
        assert_eq!(all(&mut gossip, due + COALESCE), []);
        gossip.handle_growth(due + COALESCE);
        assert_eq!(all(&mut gossip, due + COALESCE * 2), [AnswererNews::Announce]);
    }

    #[test]
    fn an_asker_that_wants_no_records_gets_none() {
        let mut gossip = AnswererGossip::new(T0);
        assert!(!gossip.advertises(Advertise::Regular));
        assert_eq!(gossip.advertise(Advertise::Regular, ranked(1..=3)), None);
        gossip.handle_peers_wanted();
        assert_eq!(gossip.poll(T0), Some(AnswererNews::Advertise(Advertise::Wanted)));
        assert!(gossip.advertises(Advertise::Wanted));
        assert_eq!(gossip.advertise(Advertise::Wanted, Vec::new()), Some(Vec::new()), "an answer");
    }

    #[test]
    fn a_neighbour_is_advertised_once_and_again_with_a_newer_record() {
        let mut gossip = wanting();
        let count = |sent: Option<Vec<PeerRecord>>| sent.map(|records| records.len());
        assert_eq!(count(gossip.advertise(Advertise::Changed, ranked(1..=2))), Some(2));
        assert_eq!(count(gossip.advertise(Advertise::Changed, ranked(1..=3))), Some(1));
        assert_eq!(count(gossip.advertise(Advertise::Changed, ranked(1..=3))), None);
        assert_eq!(count(gossip.advertise(Advertise::Regular, vec![record(1, 2)])), Some(1));
        let (node, mut resident) = record(1, 1);
        resident.resident = true;
        assert_eq!(count(gossip.advertise(Advertise::Regular, vec![(node, resident)])), Some(1), "an agent");
    }

    #[test]
    fn an_asker_that_knows_enough_neighbours_hears_of_others_only_regularly() {
        let mut gossip = wanting();
        gossip.advertise(Advertise::Wanted, ranked(1..=ADVERTISED_AT_ONCE as u8));
        assert!(!gossip.advertises(Advertise::Changed));
        assert!(gossip.advertises(Advertise::Regular) && gossip.advertises(Advertise::Wanted));
        for n in 0..200 {
            gossip.advertise(Advertise::Regular, ranked(n..=n));
        }
        assert_eq!(gossip.advertised.map(|known| known.len()), Some(ADVERTISED_MAX), "bounded");
    }

    #[test]
    fn an_asker_announces_at_once_and_then_at_its_pace() {
        let mut gossip = AskerGossip::new(T0, true, 3600);
        let news =
            |gossip: &mut AskerGossip, now| -> Vec<_> { std::iter::from_fn(|| gossip.poll(now)).collect() };
        assert_eq!(news(&mut gossip, T0), [AskerNews::Shun, AskerNews::Announce]);
        gossip.handle_growth();
        assert_eq!(news(&mut gossip, T0), []);
        assert_eq!(gossip.poll_timeout(), T0 + ASKER_PACE);
        assert_eq!(news(&mut gossip, T0 + ASKER_PACE), [AskerNews::Announce]);
        // A change after a pause goes out at once.
        let later = T0 + ASKER_PACE * 3;
        gossip.handle_growth();
        assert_eq!(news(&mut gossip, later), [AskerNews::Announce]);
        gossip.handle_shuns();
        assert_eq!(news(&mut gossip, later), [AskerNews::Shun]);
        assert_eq!(gossip.poll_timeout(), T0 + Duration::from_secs(1800));
        let renewal = gossip.poll_timeout();
        assert_eq!(news(&mut gossip, renewal), [AskerNews::Record]);
        assert_eq!(gossip.poll_timeout(), T0 + Duration::from_secs(3600));
    }

    #[test]
    fn only_a_parent_hears_of_shunned_nodes_and_only_a_neighbour_of_all_chunks() {
        let set = |first, last| -> ChunkRanges { [ChunkId(first)..=ChunkId(last)].into_iter().collect() };
        for (is_parent, announced) in [(true, set(5, 9)), (false, set(1, 9))] {
            let mut gossip = AskerGossip::new(T0, is_parent, 3600);
            gossip.handle_shuns();
            assert_eq!(gossip.poll(T0) == Some(AskerNews::Shun), is_parent);
            assert_eq!(gossip.announced(set(1, 9), &set(5, 20)), announced);
        }
    }
}
