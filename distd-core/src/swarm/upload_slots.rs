//! [`UploadSlots`]: batches that are answered now, with the slots shared fairly between nodes.
//!
//! Goals: a node gets slots whatever other nodes ask for; a node alone may use all slots it is
//! allowed; no batch waits for a slot in vain. Non-goals: the content of a batch, its speed and its
//! stalls, which are the caller's.
//!
//! Example with four slots: node A asks for six batches; four are answered and two wait. Node B
//! asks for two, which wait. Two active nodes may have two slots each, so the next two slots that A
//! gives back go to B, before A's fifth batch gets one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::slots::SlotPace;

/// Number of upload slots, unless the configuration sets another number.
pub const UPLOAD_SLOTS: usize = 128;

/// How long a batch may wait for an upload slot before it is choked.
pub const UPLOAD_SLOT_WAIT: Duration = Duration::from_secs(5);

/// Number of batches answered at once from which a node suppresses duplicates: it leaves to
/// neighbours the chunks that it sent them recently ([`RecentlySent`](super::RecentlySent)). With
/// fewer batches, its link has room for all copies.
const SUPPRESSION_BATCHES: usize = 32;

/// Fewest slots that a node may hold while other nodes wait.
const SHARE_MIN: usize = 2;

/// A waiting batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(u64);

/// Answer to a batch that asks for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAsk {
    /// The batch has a slot.
    Granted,
    /// The batch waits for a slot. [`UploadSlots::poll_told`] reports the outcome.
    Waits(WaitId),
    /// The asker has to ask again after this time.
    Choked(Duration),
}

/// Outcome for a batch that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotTold {
    /// The batch has a slot now.
    Granted,
    /// The batch lost its waiting place to a node that has fewer. Its asker has to ask again after
    /// this time.
    Choked(Duration),
}

#[derive(Debug, Default)]
struct NodeSlots {
    held: usize,
    /// Waiting batches, the oldest first.
    waiting: VecDeque<WaitId>,
}

/// The upload slots of one answerer. `N` identifies the node that a batch belongs to.
#[derive(Debug)]
pub struct UploadSlots<N> {
    slots: usize,
    node_max: usize,
    pace: SlotPace,
    held: usize,
    waiting: usize,
    next: u64,
    nodes: BTreeMap<N, NodeSlots>,
    /// The last node that got a slot for a waiting batch.
    last: Option<N>,
    told: VecDeque<(WaitId, SlotTold)>,
}

impl<N: Ord + Copy> UploadSlots<N> {
    /// Makes `slots` slots and as many waiting places. A node holds at most `node_max` slots.
    pub fn new(slots: usize, node_max: usize) -> Self {
        Self {
            slots,
            node_max,
            pace: SlotPace::new(slots),
            held: 0,
            waiting: 0,
            next: 0,
            nodes: BTreeMap::new(),
            last: None,
            told: VecDeque::new(),
        }
    }

    /// Returns the number of batches answered now.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether so many batches are answered now that duplicates are suppressed.
    pub fn suppresses_duplicates(&self) -> bool {
        self.held >= SUPPRESSION_BATCHES
    }

    /// Whether a batch of a node other than `node` waits.
    pub fn others_wait(&self, node: N) -> bool {
        self.waiting > self.nodes.get(&node).map_or(0, |own| own.waiting.len())
    }

    /// Returns the number of slots a node may hold while other nodes wait.
    fn share(&self) -> usize {
        (self.slots / self.nodes.len().max(1)).max(SHARE_MIN).min(self.node_max)
    }

    /// A batch of `node` asks for a slot.
    pub fn handle_ask(&mut self, node: N) -> SlotAsk {
        let own = self.nodes.entry(node).or_default();
        // Waiting batches come first, unless their nodes are at their own limit.
        if self.held < self.slots && own.waiting.is_empty() && own.held < self.node_max && self.waiting == 0 {
            own.held += 1;
            self.held += 1;
            return SlotAsk::Granted;
        }
        let before = own.waiting.len();
        // As many batches may wait as there are slots, so a batch waits about as long as it takes
        // to answer one. While a batch waits here, its asker does not request the chunks from
        // neighbours that may hold them meanwhile, so further batches are choked at once.
        if self.waiting >= self.slots && !self.make_room(before) {
            let retry_after = self.pace.retry_after(self.waiting);
            self.forget_idle(node);
            return SlotAsk::Choked(retry_after);
        }
        self.next += 1;
        let id = WaitId(self.next);
        self.nodes.entry(node).or_default().waiting.push_back(id);
        self.waiting += 1;
        self.grant();
        // The batch may have got a slot at once.
        match self.told.iter().position(|told| *told == (id, SlotTold::Granted)) {
            Some(at) => {
                self.told.remove(at);
                SlotAsk::Granted
            }
            None => SlotAsk::Waits(id),
        }
    }

    /// Frees the newest waiting place of the node with most of them, if this node has at least two
    /// more than `own`.
    fn make_room(&mut self, own: usize) -> bool {
        let most = self.nodes.iter().max_by_key(|(_, node)| node.waiting.len());
        let Some((most, _)) = most.filter(|(_, node)| node.waiting.len() > own + 1) else { return false };
        let most = *most;
        let retry_after = self.pace.retry_after(self.waiting);
        if let Some(id) = self.nodes.get_mut(&most).and_then(|node| node.waiting.pop_back()) {
            self.waiting -= 1;
            self.told.push_back((id, SlotTold::Choked(retry_after)));
        }
        true
    }

    /// A batch of `node` kept its slot for `held` and gave it back.
    pub fn handle_freed(&mut self, node: N, held: Duration) {
        self.pace.handle_freed(held);
        if let Some(own) = self.nodes.get_mut(&node) {
            own.held = own.held.saturating_sub(1);
            self.held = self.held.saturating_sub(1);
        }
        self.forget_idle(node);
        self.grant();
    }

    /// A batch of `node` no longer waits, because its time is over or its asker left. Returns its
    /// retry-after.
    pub fn handle_left(&mut self, node: N, id: WaitId) -> Duration {
        let retry_after = self.pace.retry_after(self.waiting);
        if let Some(own) = self.nodes.get_mut(&node)
            && let Some(at) = own.waiting.iter().position(|waiting| *waiting == id)
        {
            own.waiting.remove(at);
            self.waiting -= 1;
        }
        self.forget_idle(node);
        // With fewer nodes, each may have more slots.
        self.grant();
        retry_after
    }

    fn forget_idle(&mut self, node: N) {
        if self.nodes.get(&node).is_some_and(|own| own.held == 0 && own.waiting.is_empty()) {
            self.nodes.remove(&node);
        }
    }

    /// Gives free slots to waiting batches: first to the node that holds the fewest, and between
    /// equals to the next in turn.
    fn grant(&mut self) {
        while self.held < self.slots && self.waiting > 0 {
            let share = self.share();
            let after = |node: &N| self.last.is_none_or(|last| *node <= last);
            let next = self
                .nodes
                .iter()
                .filter(|(_, own)| !own.waiting.is_empty() && own.held < self.node_max)
                .min_by_key(|(node, own)| (own.held >= share, own.held, after(node), **node))
                .map(|(node, _)| *node);
            let Some(node) = next else { return };
            let Some(own) = self.nodes.get_mut(&node) else { return };
            let Some(id) = own.waiting.pop_front() else { return };
            own.held += 1;
            self.held += 1;
            self.waiting -= 1;
            self.last = Some(node);
            self.told.push_back((id, SlotTold::Granted));
        }
    }

    /// Returns the next outcome for a waiting batch. Call this until it returns `None`, after each
    /// call of another method.
    pub fn poll_told(&mut self) -> Option<(WaitId, SlotTold)> {
        self.told.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BATCH: Duration = Duration::from_millis(100);

    fn told<N: Ord + Copy>(slots: &mut UploadSlots<N>) -> Vec<(WaitId, SlotTold)> {
        std::iter::from_fn(|| slots.poll_told()).collect()
    }

    #[test]
    fn one_node_may_use_all_slots_and_makes_way_for_others() {
        let mut slots = UploadSlots::new(4, 4);
        let asked: Vec<_> = (0..6).map(|_| slots.handle_ask('a')).collect();
        assert_eq!(asked[..4], [SlotAsk::Granted; 4]);
        let [SlotAsk::Waits(fifth), SlotAsk::Waits(sixth)] = asked[4..] else { panic!("{asked:?}") };
        assert!(!slots.others_wait('a'));
        let SlotAsk::Waits(first) = slots.handle_ask('b') else { panic!("all are held") };
        let SlotAsk::Waits(second) = slots.handle_ask('b') else { panic!("all are held") };
        assert!(slots.others_wait('a') && told(&mut slots).is_empty());
        for expected in [first, second, fifth] {
            slots.handle_freed('a', BATCH);
            assert_eq!(told(&mut slots), [(expected, SlotTold::Granted)]);
        }
        slots.handle_left('a', sixth);
        slots.handle_freed('b', BATCH);
        assert_eq!((told(&mut slots), slots.held()), (Vec::new(), 3));
    }

    #[test]
    fn waiting_places_go_to_the_node_with_fewest() {
        let mut slots = UploadSlots::new(2, 2);
        let asked: Vec<_> = (0..5).map(|_| slots.handle_ask(1)).collect();
        let SlotAsk::Waits(newest) = asked[3] else { panic!("{asked:?}") };
        assert!(matches!(asked[4], SlotAsk::Choked(_)), "as many wait as there are slots");
        assert!(matches!(slots.handle_ask(2), SlotAsk::Waits(_)));
        assert!(matches!(told(&mut slots)[..], [(id, SlotTold::Choked(_))] if id == newest));
        assert!(matches!(slots.handle_ask(3), SlotAsk::Choked(_)), "each has one place");
    }

    #[test]
    fn an_answerer_without_slots_chokes() {
        assert!(matches!(UploadSlots::new(0, 0).handle_ask('a'), SlotAsk::Choked(_)));
    }

    #[test]
    fn a_node_at_its_own_limit_keeps_no_other_from_a_free_slot() {
        let mut slots = UploadSlots::new(4, 1);
        let asked: Vec<_> = (0..9).map(|_| slots.handle_ask(1)).collect();
        assert!(matches!(asked[4], SlotAsk::Waits(_)) && matches!(asked[8], SlotAsk::Choked(_)));
        assert_eq!(slots.handle_ask(2), SlotAsk::Granted);
    }

    #[test]
    fn a_greedy_node_costs_twenty_others_at_most_half_their_pace() {
        // Each honest node takes 50 batches, one after the other, each a tick long; with 8 slots,
        // twenty nodes need 125 ticks. The attacker asks for 128 batches at once, again and again.
        // It keeps each slot for 2 ticks.
        let (honest, batches) = (20_u32, 50);
        let mut slots = UploadSlots::new(8, 8);
        let mut running: Vec<(u32, u32)> = Vec::new();
        let mut waits: BTreeMap<WaitId, u32> = BTreeMap::new();
        let mut left: BTreeMap<u32, u32> = (1..=honest).map(|node| (node, batches)).collect();
        let mut again: Vec<u32> = (1..=honest).collect();
        let mut ticks = 0;
        while left.values().any(|n| *n > 0) {
            ticks += 1;
            assert!(ticks < 500, "{left:?}");
            let askers = std::iter::repeat_n(0, 128).chain(std::mem::take(&mut again));
            for node in askers {
                match slots.handle_ask(node) {
                    SlotAsk::Granted => running.push((node, ticks)),
                    SlotAsk::Waits(id) => drop(waits.insert(id, node)),
                    SlotAsk::Choked(_) if node > 0 => again.push(node),
                    SlotAsk::Choked(_) => {}
                }
                for (id, what) in told(&mut slots) {
                    let node = waits.remove(&id).expect("it waits");
                    match what {
                        SlotTold::Granted => running.push((node, ticks)),
                        SlotTold::Choked(_) if node > 0 => again.push(node),
                        SlotTold::Choked(_) => {}
                    }
                }
            }
            let ended = |(node, since): &(u32, u32)| ticks - since >= if *node == 0 { 2 } else { 1 };
            let (ends, go_on) = std::mem::take(&mut running).into_iter().partition(ended);
            running = go_on;
            for (node, _) in ends as Vec<(u32, u32)> {
                slots.handle_freed(node, BATCH);
                if node > 0 {
                    let left = left.get_mut(&node).expect("known");
                    *left -= 1;
                    again.extend((*left > 0).then_some(node));
                }
                for (id, what) in told(&mut slots) {
                    let node = waits.remove(&id).expect("it waits");
                    match what {
                        SlotTold::Granted => running.push((node, ticks)),
                        SlotTold::Choked(_) => again.extend((node > 0).then_some(node)),
                    }
                }
            }
        }
        assert!(ticks <= 2 * honest * batches / 8 + 10, "{ticks} ticks");
    }

    proptest! {
        /// Held slots and waiting places stay bounded, and no batch waits beside a slot it could
        /// have.
        #[test]
        fn bounds_hold_and_no_slot_is_idle_while_a_batch_may_have_it(
            events in proptest::collection::vec((0_u8..4, 0_u8..3), 1..300),
        ) {
            let mut slots = UploadSlots::new(5, 3);
            let mut held = BTreeMap::<u8, usize>::new();
            let mut waits: Vec<(WaitId, u8)> = Vec::new();
            for (node, what) in events {
                match what {
                    0 | 1 => match slots.handle_ask(node) {
                        SlotAsk::Granted => *held.entry(node).or_default() += 1,
                        SlotAsk::Waits(id) => waits.push((id, node)),
                        SlotAsk::Choked(_) => {}
                    },
                    _ if held.get(&node).is_some_and(|n| *n > 0) => {
                        *held.entry(node).or_default() -= 1;
                        slots.handle_freed(node, BATCH);
                    }
                    _ => if let Some(at) = waits.iter().position(|(_, of)| *of == node) {
                        let (id, node) = waits.remove(at);
                        slots.handle_left(node, id);
                    }
                }
                for (id, what) in told(&mut slots) {
                    let at = waits.iter().position(|(other, _)| *other == id).expect("it waits");
                    let (_, node) = waits.remove(at);
                    if what == SlotTold::Granted {
                        *held.entry(node).or_default() += 1;
                    }
                }
                prop_assert_eq!(slots.held(), held.values().sum::<usize>());
                prop_assert!(slots.held() <= 5 && held.values().all(|n| *n <= 3) && waits.len() <= 5);
                let idle = slots.held() < 5;
                prop_assert!(!idle || waits.iter().all(|(_, of)| held.get(of) == Some(&3)));
            }
        }
    }
}
