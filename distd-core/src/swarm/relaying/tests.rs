//! Tests of the rules of a [`RelayedBatch`], and of several batches with one [`Demand`].

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ChunkId;
use crate::proto::frame::DontHaveReason;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

const T0: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn set(start: u64, end: u64) -> ChunkRanges {
    [ChunkId(start)..=ChunkId(end)].into_iter().collect()
}

/// A batch of chunks 1 to `count`, of which those up to `open` are requested, on its own behalf.
fn requested(count: u64, open: usize) -> RelayedBatch {
    let mut batch = RelayedBatch::new(set(1, count));
    let next = batch.handle_room(open);
    batch.handle_fresh(&next);
    batch
}

fn send(batch: &mut RelayedBatch, chunks: &ChunkRanges) {
    for id in chunks.ids() {
        assert!(batch.handle_held(id));
        assert_eq!(batch.handle_read(id, true), RelayedRead::Send);
        batch.handle_sent(id);
    }
}

#[test]
fn a_batch_requests_128_chunks_ahead_and_64_more_when_as_many_are_answered() {
    let mut batch = RelayedBatch::new(set(1, 1000));
    assert_eq!(batch.poll_room(256, || false), 128);
    assert_eq!(batch.handle_room(128), set(1, 128));
    assert_eq!(batch.poll_room(128, || false), 0);
    send(&mut batch, &set(1, 63));
    assert_eq!(batch.poll_room(256, || false), 0, "too few for a request");
    send(&mut batch, &set(64, 64));
    assert_eq!(batch.poll_room(256, || false), 64);
}

#[test]
fn the_last_chunks_of_a_batch_are_requested_however_few_they_are() {
    let mut batch = requested(130, 128);
    send(&mut batch, &set(1, 1));
    assert_eq!(batch.poll_room(256, || false), 0, "only one of two");
    send(&mut batch, &set(2, 2));
    assert_eq!(batch.poll_room(256, || false), 2);
    assert_eq!(batch.handle_room(2), set(129, 130));
}

#[test]
fn a_node_with_few_permits_gets_them_only_for_a_batch_that_has_nothing_open() {
    let mut batch = RelayedBatch::new(set(1, 1000));
    assert_eq!(batch.poll_room(0, || false), 0);
    assert_eq!(batch.poll_next(T0, || false), RelayedNext::Room(64));
    assert_eq!(batch.poll_room(5, || false), 5);
    batch.handle_room(5);
    assert_eq!(batch.poll_room(63, || false), 0);
    assert_eq!(batch.poll_room(64, || false), 64);
    assert_eq!(RelayedBatch::new(set(1, 3)).poll_next(T0, || false), RelayedNext::Room(3));
}

#[test]
fn a_spent_credit_ends_requests_but_not_those_under_way() {
    let mut batch = requested(100, 2);
    assert_eq!(batch.poll_room(256, || true), 0);
    assert_eq!(batch.poll_next(T0, || true), RelayedNext::Chunk(T0 + UPSTREAM_WAIT));
    send(&mut batch, &set(1, 2));
    let refused = RelayedNext::Refuse(set(3, 100), DontHaveReason::Busy);
    assert_eq!(batch.poll_next(T0, || true), refused);
    let unasked = || -> bool { panic!("nothing is left to request") };
    assert_eq!(batch.poll_room(256, unasked), 0);
    assert_eq!(batch.poll_next(T0, unasked), RelayedNext::Done);
    assert!(batch.finish().wants_no_more);
}

#[test]
fn permits_come_back_when_chunks_are_answered_and_at_the_end() {
    let mut batch = requested(10, 6);
    assert_eq!(batch.return_room(), 0);
    send(&mut batch, &set(1, 3));
    assert!(batch.handle_gone(ChunkId(4)));
    assert_eq!(batch.return_room(), 4);
    assert_eq!(batch.return_room(), 0);
    batch.handle_room(1);
    assert_eq!(batch.finish().room, 3);
}

#[test]
fn an_evicted_chunk_is_requested_twice_more_and_then_refused() {
    let mut batch = requested(2, 2);
    for expected in [RelayedRead::Again, RelayedRead::Again, RelayedRead::Refuse(DontHaveReason::Busy)] {
        assert!(batch.handle_held(ChunkId(1)));
        assert_eq!(batch.handle_read(ChunkId(1), false), expected);
    }
    assert_eq!(batch.handle_read(ChunkId(1), true), RelayedRead::Nothing, "it was answered");
    batch.handle_held(ChunkId(2));
    assert_eq!(batch.handle_read(ChunkId(2), false), RelayedRead::Again, "each chunk has its own tries");
    let end = batch.finish();
    assert_eq!((end.open, end.charged), (set(2, 2), ChunkRanges::new()), "it is on its way again");
}

#[test]
fn a_chunk_lost_before_it_was_sent_is_fetched_like_the_others() {
    let mut batch = RelayedBatch::new(ChunkRanges::new());
    batch.handle_lost(ChunkId(7));
    assert_eq!(batch.poll_room(256, || false), 1);
    assert_eq!(batch.handle_room(1), set(7, 7));
}

#[test]
fn ten_seconds_without_a_chunk_end_the_wait_and_each_chunk_begins_a_new_one() {
    let mut batch = requested(100, 3);
    assert_eq!(batch.poll_next(T0, || false), RelayedNext::Chunk(T0 + SECOND * 10));
    assert_eq!(batch.poll_next(T0 + SECOND * 5, || false), RelayedNext::Chunk(T0 + SECOND * 10));
    send(&mut batch, &set(1, 1));
    let now = T0 + SECOND * 9;
    assert_eq!(batch.poll_next(now, || false), RelayedNext::Chunk(now + SECOND * 10));
    assert!(batch.handle_gone(ChunkId(2)));
    let now = T0 + SECOND * 18;
    assert_eq!(batch.poll_next(now, || false), RelayedNext::Chunk(now + SECOND * 10));
    batch.handle_held(ChunkId(3));
    assert_eq!(batch.handle_read(ChunkId(3), false), RelayedRead::Again);
    let now = T0 + SECOND * 27;
    assert_eq!(batch.poll_next(now, || false), RelayedNext::Chunk(now + SECOND * 10), "it came");
    let now = now + SECOND * 10;
    let refused = RelayedNext::Refuse(set(3, 100), DontHaveReason::Upstream);
    assert_eq!(batch.poll_next(now, || false), refused);
    assert_eq!(batch.poll_room(256, || false), 0, "nothing is requested any more");
    assert_eq!(batch.poll_next(now, || false), RelayedNext::Done);
}

#[test]
fn an_asker_that_is_slow_to_take_a_chunk_does_not_end_its_own_wait() {
    let mut batch = requested(2, 2);
    batch.poll_next(T0, || false);
    batch.handle_held(ChunkId(1));
    for seconds in [0, 9, 18, 27] {
        let now = T0 + SECOND * seconds;
        assert_eq!(batch.poll_next(now, || false), RelayedNext::Chunk(now + UPSTREAM_WAIT));
    }
    batch.handle_sent(ChunkId(1));
    let now = T0 + SECOND * 30;
    assert_eq!(batch.poll_next(now, || false), RelayedNext::Chunk(now + UPSTREAM_WAIT));
}

#[test]
fn chunks_of_an_asker_that_was_told_to_ask_again_stay_wanted() {
    let mut batch = requested(2, 2);
    batch.poll_next(T0, || false);
    batch.poll_next(T0 + UPSTREAM_WAIT, || false);
    assert!(!batch.handle_held(ChunkId(1)) && !batch.handle_gone(ChunkId(2)), "both were refused");
    assert_eq!(batch.handle_read(ChunkId(1), true), RelayedRead::Nothing);
    let end = batch.finish();
    assert_eq!(end.open, set(1, 2));
    assert!(!end.wants_no_more);
    assert!(requested(2, 2).finish().wants_no_more, "an asker that went away waits no more");
}

#[test]
fn an_asker_pays_for_chunks_that_came_for_it_alone_and_that_it_did_not_take() {
    let mut batch = RelayedBatch::new(set(1, 4));
    batch.handle_room(4);
    batch.handle_fresh(&set(1, 3));
    send(&mut batch, &set(1, 1));
    for id in [2, 4] {
        batch.handle_held(ChunkId(id));
    }
    assert_eq!(batch.handle_read(ChunkId(2), true), RelayedRead::Send, "and the asker goes away");
    assert_eq!(batch.finish().charged, set(2, 2));
}

/// One asker in the property below.
struct AskerState {
    waiter: WaiterId,
    batch: RelayedBatch,
    /// Chunks that came and are to be read, and those that were read and are to be sent.
    ready: Vec<ChunkId>,
    reading: Vec<ChunkId>,
    /// Number of answers to each chunk.
    answers: BTreeMap<ChunkId, u32>,
}

/// A relay whose parents are played by the test.
#[derive(Default)]
struct Relay {
    now: Timestamp,
    demand: Demand<usize>,
    free: usize,
    is_spent: bool,
    askers: BTreeMap<usize, AskerState>,
    /// Chunks that the parents are to send.
    wanted: ChunkRanges,
}

/// Permits of all askers together, so few that batches have to wait for them.
const PERMITS: usize = 6;

/// Chunks of each batch.
const CHUNKS: u64 = 9;

impl Relay {
    fn new(askers: usize) -> Self {
        let mut relay = Self { free: PERMITS, ..Self::default() };
        for asker in 0..askers {
            let (waiter, batch) = (relay.demand.waiter(), RelayedBatch::new(set(1, CHUNKS)));
            let (ready, reading) = (Vec::new(), Vec::new());
            let state = AskerState { waiter, batch, ready, reading, answers: BTreeMap::new() };
            relay.askers.insert(asker, state);
        }
        relay
    }

    fn request(&mut self, asker: usize, chunks: &ChunkRanges) {
        let Some(state) = self.askers.get_mut(&asker) else { return };
        let fresh = self.demand.wait_for(state.waiter, &asker, chunks);
        state.batch.handle_fresh(&fresh);
        self.wanted.extend(chunks);
    }

    fn take_room(&mut self, asker: usize, permits: usize) {
        let Some(state) = self.askers.get_mut(&asker) else { return };
        self.free -= permits;
        let next = state.batch.handle_room(permits);
        self.request(asker, &next);
    }

    fn answer(&mut self, asker: usize, chunks: &ChunkRanges) {
        let Some(state) = self.askers.get_mut(&asker) else { return };
        chunks.ids().for_each(|id| *state.answers.entry(id).or_default() += 1);
    }

    /// Goes on with an asker as far as it can without an event.
    fn step(&mut self, asker: usize) {
        let is_spent = self.is_spent;
        loop {
            let Some(state) = self.askers.get_mut(&asker) else { return };
            self.free += state.batch.return_room();
            let permits = state.batch.poll_room(self.free, || is_spent);
            if permits > 0 {
                self.take_room(asker, permits);
                continue;
            }
            match state.batch.poll_next(self.now, || is_spent) {
                RelayedNext::Room(few) if few <= self.free => self.take_room(asker, few),
                RelayedNext::Chunk(_) | RelayedNext::Room(_) => return,
                RelayedNext::Refuse(chunks, _) => {
                    assert!(!chunks.is_empty());
                    self.answer(asker, &chunks);
                }
                RelayedNext::Done => return self.leave(asker, true),
            }
        }
    }

    /// The `pick`-th chunk on its way comes, or does not, or was held before it was fetched.
    fn news(&mut self, pick: u64, is_held: bool) {
        let Some(id) = self.wanted.nth(pick % self.wanted.len().max(1)) else { return };
        self.wanted.remove(id);
        let waiters = match is_held {
            true => self.demand.handle_fetched(id).waiters,
            false => self.demand.handle_not_fetched(id),
        };
        let told: Vec<usize> =
            self.askers.iter().filter(|(_, a)| waiters.contains(&a.waiter)).map(|(n, _)| *n).collect();
        assert_eq!(told.len(), waiters.len(), "nothing waits after it left");
        for asker in told {
            let Some(state) = self.askers.get_mut(&asker) else { continue };
            if is_held {
                state.ready.extend(state.batch.handle_held(id).then_some(id));
            } else if state.batch.handle_gone(id) {
                self.answer(asker, &[id].into_iter().collect());
            }
        }
    }

    /// A chunk that came for an asker is read.
    fn read(&mut self, asker: usize, found: bool) {
        let Some(state) = self.askers.get_mut(&asker) else { return };
        let Some(id) = state.ready.pop() else { return };
        match state.batch.handle_read(id, found) {
            RelayedRead::Send => state.reading.push(id),
            RelayedRead::Again => self.request(asker, &[id].into_iter().collect()),
            RelayedRead::Refuse(_) => self.answer(asker, &[id].into_iter().collect()),
            RelayedRead::Nothing => panic!("a chunk that came and is not sent is open"),
        }
    }

    /// An asker takes a chunk.
    fn take(&mut self, asker: usize) {
        let Some(state) = self.askers.get_mut(&asker) else { return };
        let Some(id) = state.reading.pop() else { return };
        state.batch.handle_sent(id);
        self.answer(asker, &[id].into_iter().collect());
    }

    /// An asker goes away, or its answer is complete.
    fn leave(&mut self, asker: usize, is_done: bool) {
        let Some(state) = self.askers.remove(&asker) else { return };
        let end = state.batch.finish();
        self.free += end.room;
        let unwanted = self.demand.leave(state.waiter, &end.open);
        assert!(!self.demand.is_waiting(state.waiter), "nothing waits after it left");
        if end.wants_no_more {
            self.wanted = self.wanted.difference(&unwanted);
            self.demand.handle_given_up(&unwanted);
        }
        assert!(state.answers.values().all(|count| *count == 1), "{:?}", state.answers);
        assert!(!is_done || state.answers.keys().copied().eq(set(1, CHUNKS).ids()), "{:?}", state.answers);
    }
}

proptest! {
    /// Each chunk of a batch is answered once, whatever happens in whatever order; permits are
    /// neither lost nor made; a batch that left waits for nothing.
    #[test]
    fn each_chunk_is_answered_once_whatever_comes_in_whatever_order(
        events in prop::collection::vec((0_u8..16, 0_usize..3, 0_u64..9), 0..200),
    ) {
        let mut relay = Relay::new(3);
        for (event, asker, pick) in events {
            match event {
                0..=4 => relay.news(pick, true),
                5 => relay.news(pick, false),
                6..=8 => relay.read(asker, true),
                9 => relay.read(asker, false),
                10..=12 => relay.take(asker),
                13 => relay.now = relay.now + SECOND * 4,
                14 => relay.is_spent = pick < 2,
                _ if pick == 0 => relay.leave(asker, false),
                _ => {}
            }
            (0..3).for_each(|asker| relay.step(asker));
            let came: usize = relay.askers.values().map(|a| a.ready.len() + a.reading.len()).sum();
            prop_assert!(relay.free + came <= PERMITS, "a chunk that came keeps its permit");
        }
        // Everything under way comes to an end.
        relay.is_spent = false;
        for round in 0..400 {
            for asker in 0..3 {
                relay.read(asker, true);
                relay.take(asker);
                relay.step(asker);
            }
            relay.news(round, true);
        }
        prop_assert!(relay.askers.is_empty(), "every batch is answered");
        prop_assert_eq!(relay.free, PERMITS);
    }
}
