//! [`News`]: which halt notices a node holds, whom it tells of them and when, and when it looks for
//! newer metadata (docs/protocol.md, "News").
//!
//! Between neighbours a notice spreads as a rumour (Demers et al., "Epidemic algorithms for
//! replicated database maintenance", 1987, section 1.4): a node that hears news tells ten
//! neighbours at random, once. While the parents are away, nodes also exchange all notices in pairs
//! now and then (anti-entropy in that paper), so that a node which was off or cut off learns them
//! too.
//!
//! Pure: the caller verifies notices, opens the connections, and passes the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::NodeId;
use crate::fleet::HaltNotice;
use crate::fleet::rollout::RolloutId;
use crate::random::splitmix;
use crate::time::Timestamp;

/// Most notices that a node holds, one a rollout. The oldest gives way.
pub const NOTICES_MAX: usize = 64;

/// Most neighbours that a node reaches with news from a neighbour. With ten random ones a node is
/// left out once in e^10, 22 000 times. With six it is once in 400, which is the goal of 1 % on
/// average and misses it in one site of a hundred devices in thirty (docs/decisions/0018).
const FANOUT: usize = 10;

/// Most neighbours that a node reaches with news from a parent. The parent tells all of its nodes
/// itself; two guard against a parent that dies while it does, and the spread goes on from there
/// with [`FANOUT`].
const FANOUT_OF_PARENT: usize = 2;

/// Most neighbours that a node dials for one piece of news, reached or not: sites have nodes that
/// are off.
pub const TELLS_MAX: usize = 24;

/// Neighbours that a node tells at once.
const TELLS_OPEN: usize = 4;

/// Time after which a neighbour that has not answered gives its place to another: sites have many
/// nodes that are off, and none of them holds up the others.
const TELL_SLOW: Duration = Duration::from_millis(250);

/// Time in which a neighbour is told, or counts as not reached.
pub const TELL_WITHIN: Duration = Duration::from_secs(1);

/// Time over which nodes that were told of newer metadata spread their looks: ten thousand devices
/// below one relay look 500 times a second.
pub const LOOK_SPREAD: Duration = Duration::from_secs(20);

/// Shortest time until such a look. A relay repeats the answer to a question for a second.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Time between two exchanges with a neighbour while no parent is connected.
const EXCHANGE_EVERY: Duration = Duration::from_secs(5 * 60);

/// Longest time until the first exchange after a parent is lost.
const EXCHANGE_FIRST: Duration = Duration::from_secs(30);

/// Most rollouts of which the newest document is remembered.
const DOCUMENTS_MAX: usize = 16;

/// Source of a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewsFrom {
    /// A parent, which tells all of its nodes.
    Parent,
    /// A node below this relay.
    Child,
    /// A neighbour.
    Neighbour(NodeId),
}

/// Worth of a notice to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The node does not hold it: it keeps the notice and tells others.
    News,
    /// The node holds it, or a later one of the rollout.
    Known,
    /// The node holds a later document of the rollout, for example after `resume`.
    Superseded,
    /// The notice is too old.
    Over,
}

/// Result of telling a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The neighbour did not know.
    News,
    /// The neighbour knew already.
    Knew,
    /// The neighbour was not reached within [`TELL_WITHIN`].
    Unreached,
}

/// Spreading of the latest news.
#[derive(Debug)]
struct Rumour {
    /// Neighbours that were chosen, and the one from which the news came.
    chosen: BTreeSet<NodeId>,
    /// Most neighbours to reach.
    fanout: usize,
    dialled: usize,
    reached: usize,
}

/// The news of one node.
#[derive(Debug)]
pub struct News {
    random: u64,
    notices: BTreeMap<RolloutId, HaltNotice>,
    /// Counter of the newest document of each rollout, most recent first.
    documents: Vec<(RolloutId, u64)>,
    rumour: Option<Rumour>,
    /// Neighbours that are being told, and since when.
    open: BTreeMap<NodeId, Timestamp>,
    /// Latest version that a parent announced.
    version: u64,
    look: Option<Timestamp>,
    /// Next exchange; `None` while a parent is connected.
    exchange: Option<Timestamp>,
}

impl News {
    /// Creates the news of a node that holds none. Nodes have different values of `rng_seed`.
    pub fn new(rng_seed: u64) -> Self {
        Self {
            random: rng_seed,
            notices: BTreeMap::new(),
            documents: Vec::new(),
            rumour: None,
            open: BTreeMap::new(),
            version: 0,
            look: None,
            exchange: None,
        }
    }

    fn random(&mut self) -> u64 {
        splitmix(&mut self.random)
    }

    /// A random part of `most`.
    fn part_of(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.random() % most)
    }

    /// Judges a notice at `unix` (unix seconds), before its signature is checked: notices that are
    /// no news cost no check.
    pub fn judge(&self, unix: u64, notice: &HaltNotice) -> Judged {
        if notice.is_over(unix) {
            return Judged::Over;
        }
        if self.notices.get(&notice.rollout).is_some_and(|held| held.counter >= notice.counter) {
            return Judged::Known;
        }
        if self.documents.iter().any(|(id, counter)| *id == notice.rollout && *counter > notice.counter) {
            return Judged::Superseded;
        }
        let is_full = self.notices.len() >= NOTICES_MAX && !self.notices.contains_key(&notice.rollout);
        if is_full && self.notices.values().all(|held| held.made >= notice.made) {
            return Judged::Over;
        }
        Judged::News
    }

    /// Takes a notice whose signature the caller has checked, unless it is no news. Returns its
    /// worth.
    pub fn handle_notice(&mut self, now: Timestamp, unix: u64, notice: HaltNotice, from: NewsFrom) -> Judged {
        let judged = self.judge(unix, &notice);
        if judged != Judged::News {
            return judged;
        }
        self.restore(notice);
        let fanout = match from {
            NewsFrom::Parent => FANOUT_OF_PARENT,
            NewsFrom::Child | NewsFrom::Neighbour(_) => FANOUT,
        };
        let chosen = match from {
            NewsFrom::Neighbour(node) => [node].into(),
            NewsFrom::Parent | NewsFrom::Child => BTreeSet::new(),
        };
        self.rumour = Some(Rumour { chosen, fanout, dialled: 0, reached: 0 });
        self.look_soon(now);
        judged
    }

    /// Holds a notice that an earlier process took, and tells nobody of it.
    pub fn restore(&mut self, notice: HaltNotice) {
        self.notices.insert(notice.rollout, notice);
        while self.notices.len() > NOTICES_MAX {
            let oldest = self.notices.values().min_by_key(|held| held.made).map(|held| held.rollout);
            oldest.map(|rollout| self.notices.remove(&rollout));
        }
    }

    /// This node holds a verified document of a rollout, with this counter of its channel.
    pub fn handle_document(&mut self, rollout: RolloutId, counter: u64) {
        let known = self.documents.iter().position(|(id, _)| *id == rollout);
        let known = known.map(|at| self.documents.remove(at).1);
        self.documents.insert(0, (rollout, counter.max(known.unwrap_or(0))));
        self.documents.truncate(DOCUMENTS_MAX);
    }

    /// Whether a rollout stands still for a node whose document of it has this counter.
    pub fn is_halted(&self, rollout: &RolloutId, counter: u64) -> bool {
        self.notices.get(rollout).is_some_and(|held| held.counter > counter)
    }

    /// The notices that this node holds, in the order of their rollouts.
    pub fn notices(&self) -> impl Iterator<Item = &HaltNotice> {
        self.notices.values()
    }

    /// Whether [`Self::poll_tell`] or [`Self::poll_exchange`] may choose a neighbour at `now`, and
    /// is to be given a list of them.
    pub fn wants_neighbours(&self, now: Timestamp) -> bool {
        self.rumour.is_some() || self.exchange.is_some_and(|due| due <= now)
    }

    /// Chooses the next of `neighbours` to tell all notices now; `None` when there is nobody to
    /// tell. [`Self::handle_told`] follows for each.
    pub fn poll_tell(&mut self, now: Timestamp, neighbours: &[NodeId]) -> Option<NodeId> {
        let rumour = self.rumour.as_ref()?;
        if rumour.dialled >= TELLS_MAX || rumour.reached >= rumour.fanout {
            self.rumour = None;
            return None;
        }
        let busy = self.open.values().filter(|since| now.since(**since) < TELL_SLOW).count();
        if busy >= TELLS_OPEN.min(rumour.fanout - rumour.reached) {
            return None;
        }
        let left = |node: &&NodeId| !rumour.chosen.contains(node) && !self.open.contains_key(node);
        let left: Vec<NodeId> = neighbours.iter().filter(left).copied().collect();
        if left.is_empty() {
            return None;
        }
        let at = (self.random() % left.len() as u64) as usize;
        let node = left[at];
        let rumour = self.rumour.as_mut()?;
        rumour.chosen.insert(node);
        rumour.dialled += 1;
        self.open.insert(node, now);
        Some(node)
    }

    /// Takes the result of telling a neighbour.
    pub fn handle_told(&mut self, node: NodeId, told: Told) {
        self.open.remove(&node);
        // A neighbour that was told of earlier news alone is told again.
        let Some(rumour) = self.rumour.as_mut().filter(|rumour| rumour.chosen.contains(&node)) else {
            return;
        };
        match told {
            Told::News | Told::Knew => rumour.reached += 1,
            Told::Unreached => {}
        }
    }

    /// A parent is connected, or none is any more.
    pub fn handle_parent(&mut self, now: Timestamp, is_connected: bool) {
        match (is_connected, self.exchange) {
            (true, _) => self.exchange = None,
            (false, None) => self.exchange = Some(now + self.part_of(EXCHANGE_FIRST)),
            (false, Some(_)) => {}
        }
    }

    /// Chooses a neighbour for an exchange of all notices, when one is due: only while no parent is
    /// connected.
    pub fn poll_exchange(&mut self, now: Timestamp, neighbours: &[NodeId]) -> Option<NodeId> {
        if self.exchange.is_none_or(|due| due > now) {
            return None;
        }
        let wait = EXCHANGE_EVERY.mul_f64(0.75) + self.part_of(EXCHANGE_EVERY / 2);
        self.exchange = Some(now + wait);
        let at = self.random() % (neighbours.len() as u64).max(1);
        neighbours.get(at as usize).copied()
    }

    fn look_soon(&mut self, now: Timestamp) {
        // Drawn once: news that come one after the other do not bring the look forward.
        if self.look.is_none() {
            self.look = Some(now + LOOK_AFTER + self.part_of(LOOK_SPREAD - LOOK_AFTER));
        }
    }

    /// A parent announces the version of its newest metadata.
    pub fn handle_newer(&mut self, now: Timestamp, version: u64) {
        if version > self.version {
            self.version = version;
            self.look_soon(now);
        }
    }

    /// Whether this node is to look for newer metadata now; the look is then taken as done.
    pub fn poll_look(&mut self, now: Timestamp) -> bool {
        self.look.take_if(|due| *due <= now).is_some()
    }

    /// Time of the next look, exchange or telling; `None` when none is due without further events.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let slow = self.rumour.as_ref().and_then(|_| self.open.values().max());
        let slow = slow.map(|since| *since + TELL_SLOW).filter(|slow| *slow > now);
        self.look.into_iter().chain(self.exchange).chain(slow).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: Timestamp = Timestamp(1_000_000);
    const UNIX: u64 = 1_700_000_000;

    fn notice(rollout: u8, counter: u64) -> HaltNotice {
        HaltNotice { rollout: RolloutId([rollout; 16]), counter, made: UNIX }
    }

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn heard(news: &mut News, from: NewsFrom) -> Judged {
        news.handle_notice(T0, UNIX, notice(1, 5), from)
    }

    /// Tells neighbours until nobody is left to tell; returns their number.
    fn tell_all(news: &mut News, neighbours: &[NodeId], told: Told) -> usize {
        let mut count = 0;
        while let Some(node) = news.poll_tell(T0, neighbours) {
            news.handle_told(node, told);
            count += 1;
        }
        count
    }

    #[test]
    fn a_notice_holds_until_a_document_that_is_as_new() {
        let mut news = News::new(1);
        assert!(!news.is_halted(&RolloutId([1; 16]), 0));
        assert_eq!(heard(&mut news, NewsFrom::Parent), Judged::News);
        assert!(news.is_halted(&RolloutId([1; 16]), 4));
        assert!(!news.is_halted(&RolloutId([1; 16]), 5) && !news.is_halted(&RolloutId([2; 16]), 4));
        assert_eq!(heard(&mut news, NewsFrom::Parent), Judged::Known);
        assert_eq!(news.judge(UNIX, &notice(1, 4)), Judged::Known);
        assert_eq!(news.judge(UNIX, &notice(1, 6)), Judged::News);
        news.handle_document(RolloutId([1; 16]), 7);
        news.handle_document(RolloutId([1; 16]), 3);
        assert_eq!(news.judge(UNIX, &notice(1, 6)), Judged::Superseded);
        assert_eq!(news.judge(UNIX, &notice(1, 7)), Judged::News, "the document that halted may be lost");
        let over = UNIX + crate::fleet::HALT_SECONDS + 1;
        assert_eq!(news.judge(over, &notice(2, 1)), Judged::Over);
    }

    #[test]
    fn notices_are_bounded_and_the_oldest_gives_way() {
        let mut news = News::new(1);
        for n in 0..NOTICES_MAX as u8 + 5 {
            let notice = HaltNotice { made: UNIX + u64::from(n), ..notice(n, 1) };
            assert_eq!(news.handle_notice(T0, UNIX, notice, NewsFrom::Parent), Judged::News);
        }
        assert_eq!(news.notices().count(), NOTICES_MAX);
        assert_eq!(news.judge(UNIX, &HaltNotice { made: UNIX, ..notice(0, 1) }), Judged::Over);
    }

    #[test]
    fn news_of_a_neighbour_goes_to_ten_others_once() {
        let neighbours: Vec<_> = (0..40).map(node).collect();
        let mut news = News::new(3);
        heard(&mut news, NewsFrom::Neighbour(node(0)));
        let mut told = BTreeSet::new();
        while let Some(to) = news.poll_tell(T0, &neighbours) {
            assert!(to != node(0) && told.insert(to), "{to} twice, or the one that told");
            news.handle_told(to, Told::News);
        }
        assert_eq!(told.len(), FANOUT);
        assert_eq!(heard(&mut news, NewsFrom::Neighbour(node(9))), Judged::Known);
        assert_eq!(news.poll_tell(T0, &neighbours), None);
    }

    #[test]
    fn telling_is_bounded_and_goes_round_dead_ones() {
        let neighbours: Vec<_> = (0..40).map(node).collect();
        for (from, told, count) in [
            (NewsFrom::Parent, Told::News, FANOUT_OF_PARENT),
            (NewsFrom::Parent, Told::Knew, FANOUT_OF_PARENT),
            (NewsFrom::Child, Told::Knew, FANOUT),
            (NewsFrom::Child, Told::Unreached, TELLS_MAX),
        ] {
            let mut news = News::new(4);
            heard(&mut news, from);
            assert_eq!(tell_all(&mut news, &neighbours, told), count, "{from:?} {told:?}");
        }
        let mut news = News::new(4);
        heard(&mut news, NewsFrom::Child);
        assert_eq!((0..9).filter_map(|_| news.poll_tell(T0, &neighbours)).count(), TELLS_OPEN, "at once");
        let slow = T0 + TELL_SLOW;
        assert_eq!(news.poll_timeout(T0), Some(slow));
        assert_eq!((0..9).filter_map(|_| news.poll_tell(slow, &neighbours)).count(), TELLS_OPEN);
        // Later news goes to all again, also to those that are being told.
        news.handle_notice(T0, UNIX, notice(2, 1), NewsFrom::Child);
        let open: Vec<_> = news.open.keys().copied().collect();
        open.into_iter().for_each(|node| news.handle_told(node, Told::Knew));
        assert_eq!(tell_all(&mut news, &neighbours, Told::News), FANOUT);
    }

    #[test]
    fn exchanges_are_due_only_while_no_parent_is_connected() {
        let neighbours = [node(1), node(2)];
        let mut news = News::new(5);
        let later = |seconds| T0 + Duration::from_secs(seconds);
        assert_eq!(news.poll_exchange(later(9999), &neighbours), None);
        news.handle_parent(T0, false);
        news.handle_parent(later(29), false);
        assert!(news.poll_timeout(T0).is_some_and(|due| due <= later(30)));
        assert!(news.poll_exchange(later(30), &neighbours).is_some());
        assert_eq!(news.poll_exchange(later(200), &neighbours), None);
        assert!(news.poll_exchange(later(30 + 376), &neighbours).is_some());
        news.handle_parent(later(500), true);
        assert_eq!((news.poll_exchange(later(9999), &neighbours), news.poll_timeout(T0)), (None, None));
    }

    #[test]
    fn a_version_causes_one_look_and_looks_are_spread() {
        let mut dues = BTreeSet::new();
        for seed in 0..200 {
            let mut news = News::new(seed);
            news.handle_newer(T0, 7);
            let due = news.poll_timeout(T0).expect("a look");
            news.handle_newer(T0, 7);
            news.handle_newer(T0, 6);
            assert!(!news.poll_look(T0 + LOOK_AFTER.mul_f64(0.9)));
            assert!(due <= T0 + LOOK_SPREAD && news.poll_look(due) && !news.poll_look(due));
            dues.insert(due.since(T0).as_secs());
        }
        assert_eq!(dues.len() as u64, LOOK_SPREAD.as_secs() - LOOK_AFTER.as_secs(), "in every second");
    }

    proptest! {
        #[test]
        fn however_news_comes_a_node_dials_few_and_holds_few(
            steps in prop::collection::vec((0u8..5, 0u8..20, 0u64..9), 1..200),
        ) {
            let neighbours: Vec<_> = (0..30).map(node).collect();
            let (mut news, mut fresh, mut dialled) = (News::new(9), 0, 0);
            for (what, who, counter) in steps {
                match what {
                    0 => {
                        let judged = news.handle_notice(T0, UNIX, notice(who, counter), NewsFrom::Child);
                        fresh += usize::from(judged == Judged::News);
                    }
                    1 => news.handle_told(node(who), Told::Unreached),
                    2 => news.handle_told(node(who), Told::Knew),
                    3 => news.handle_document(RolloutId([who; 16]), counter),
                    _ => dialled += usize::from(news.poll_tell(T0, &neighbours).is_some()),
                }
                prop_assert!(dialled <= fresh * TELLS_MAX && news.open.len() <= TELLS_OPEN);
                prop_assert!(news.documents.len() <= DOCUMENTS_MAX);
            }
        }
    }
}
