//! [`RelayedBatch`]: one batch that an asker requests from a relay, as far as the relay lacks its
//! chunks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ChunkId;
use crate::proto::frame::DontHaveReason;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

/// How long an asker waits for its relay's parent. Each chunk that comes begins a new wait, and the
/// time in which the asker takes chunks does not count.
pub(in crate::swarm) const UPSTREAM_WAIT: Duration = Duration::from_secs(10);

/// Maximum number of chunks that one batch requests from upstream ahead of those its asker has
/// taken.
const AHEAD: usize = 128;

/// While others are in flight, fewer chunks than this are not requested on their own: each request
/// costs the driver a turn, and the parent may have to answer it with a batch of its own.
const AHEAD_STEP: usize = AHEAD / 2;

/// Maximum number of attempts, for one asker, to read a chunk that is evicted between arriving and
/// being read.
const EVICTED_TRIES: u32 = 3;

/// Next action for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayedNext {
    /// Wait for news of a chunk until this time, and call [`RelayedBatch::poll_next`] again after
    /// either.
    Chunk(Timestamp),
    /// Nothing is requested. Wait until the asker's node has this number of free permits, 64 at
    /// most, take them and call [`RelayedBatch::handle_room`].
    Room(usize),
    /// Refuse these chunks.
    Refuse(ChunkRanges, DontHaveReason),
    /// End the answer: every chunk has been sent or refused.
    Done,
}

/// Action for a chunk that came and was read from the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayedRead {
    /// Send the chunk, and call [`RelayedBatch::handle_sent`] when the asker has taken it.
    Send,
    /// The chunk was evicted before it was read. Request it again, like the chunks that
    /// [`RelayedBatch::handle_room`] returns.
    Again,
    /// Refuse the chunk: it was evicted too often.
    Refuse(DontHaveReason),
    /// Do nothing: the chunk was answered before.
    Nothing,
}

/// Remains of a batch whose answer ended, complete or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedEnd {
    /// Chunks that are requested and not answered, for [`Demand::leave`](super::Demand::leave).
    pub open: ChunkRanges,
    /// Chunks that came on behalf of this batch and that the asker did not take. Its node is
    /// charged for them.
    pub charged: ChunkRanges,
    /// Whether those of `open` for which no other batch waits are unwanted. They are still wanted
    /// if the asker was told to ask again.
    pub wants_no_more: bool,
    /// Number of permits that the asker's node gets back.
    pub room: usize,
}

/// The chunks of one batch that come from upstream, requested as far ahead as the asker's node is
/// allowed: one permit for each chunk that is requested and not answered.
#[derive(Debug, Default)]
pub struct RelayedBatch {
    /// Chunks not yet requested.
    later: ChunkRanges,
    /// Chunks requested and not answered yet.
    open: ChunkRanges,
    /// Requested chunks that nobody waited for before: their cost is this asker's.
    own: ChunkRanges,
    /// Open chunks that came and were not sent to the asker yet.
    unsent: ChunkRanges,
    /// Number of times that an open chunk was evicted before it was read.
    evicted: BTreeMap<ChunkId, u32>,
    /// Permits held, for the open chunks and for those answered since [`Self::return_room`].
    room: usize,
    /// End of the wait for the next chunk; `None` before the wait begins.
    deadline: Option<Timestamp>,
    /// Whether the asker was told that its wait failed. It will ask again, so its open chunks are
    /// still to be fetched.
    is_told: bool,
}

impl RelayedBatch {
    /// Creates the batch from the requested chunks that the relay lacks.
    pub fn new(lacking: ChunkRanges) -> Self {
        Self { later: lacking, ..Self::default() }
    }

    /// A chunk that the relay held when the batch began could not be read: it is evicted or
    /// damaged, and is fetched like those that the relay lacked.
    pub fn handle_lost(&mut self, id: ChunkId) {
        self.later.insert(id);
    }

    /// Returns the number of permits that go back to the asker's node: those of chunks answered
    /// since the last call. Call this before [`Self::poll_room`].
    pub fn return_room(&mut self) -> usize {
        let surplus = self.room.saturating_sub(count(&self.open));
        self.room -= surplus;
        surplus
    }

    /// Returns the number of further permits to take now for [`Self::handle_room`], 128 at most,
    /// given the `free` ones of the asker's node. Zero: request nothing more now. `is_spent` says
    /// whether the node's credit is spent, and is called only if that matters. Call this when
    /// chunks have been answered.
    pub fn poll_room(&self, free: usize, is_spent: impl FnOnce() -> bool) -> usize {
        let (open, left) = (count(&self.open), count(&self.later));
        let want = AHEAD.saturating_sub(open).min(left);
        if want == 0 || is_spent() {
            return 0;
        }
        let room = want.min(free);
        if open > 0 && room < AHEAD_STEP.min(left) { 0 } else { room }
    }

    /// This number of permits was taken for the batch. Returns the chunks to request: enter the
    /// batch as their waiter ([`Demand::wait_for`](super::Demand::wait_for)) and report the result
    /// to [`Self::handle_fresh`].
    pub fn handle_room(&mut self, permits: usize) -> ChunkRanges {
        self.room += permits;
        let next = self.later.take_first(permits as u64);
        self.open.extend(&next);
        next
    }

    /// Nobody waited for these requested chunks before.
    pub fn handle_fresh(&mut self, fresh: &ChunkRanges) {
        self.own.extend(fresh);
    }

    /// A chunk came and is in the store. Returns whether it is to be read for this batch; report
    /// the result to [`Self::handle_read`].
    pub fn handle_held(&mut self, id: ChunkId) -> bool {
        let is_open = self.open.contains(id);
        if is_open {
            self.unsent.insert(id);
            self.deadline = None;
        }
        is_open && !self.is_told
    }

    /// No parent has a chunk. Returns whether it is to be refused with
    /// [`DontHaveReason::NotHeld`].
    pub fn handle_gone(&mut self, id: ChunkId) -> bool {
        !self.is_told && self.answered(id)
    }

    /// A chunk that came was read from the store, and `found` or not.
    pub fn handle_read(&mut self, id: ChunkId, found: bool) -> RelayedRead {
        if self.is_told || !self.open.contains(id) {
            return RelayedRead::Nothing;
        }
        if found {
            return RelayedRead::Send;
        }
        let tries = self.evicted.entry(id).or_default();
        *tries += 1;
        if *tries < EVICTED_TRIES {
            self.unsent.remove(id);
            return RelayedRead::Again;
        }
        self.answered(id);
        RelayedRead::Refuse(DontHaveReason::Busy)
    }

    /// The asker has taken a chunk.
    pub fn handle_sent(&mut self, id: ChunkId) {
        self.answered(id);
    }

    /// A chunk needs no further answer. Returns whether it was open.
    fn answered(&mut self, id: ChunkId) -> bool {
        self.unsent.remove(id);
        self.deadline = None;
        self.open.remove(id)
    }

    /// Returns the next action, until it is [`RelayedNext::Done`]. While chunks that came are not
    /// sent yet, no wait for the parent runs. `is_spent` is that of [`Self::poll_room`].
    pub fn poll_next(&mut self, now: Timestamp, is_spent: impl FnOnce() -> bool) -> RelayedNext {
        if self.is_told || (self.open.is_empty() && self.later.is_empty()) {
            return RelayedNext::Done;
        }
        if self.open.is_empty() {
            if is_spent() {
                return RelayedNext::Refuse(std::mem::take(&mut self.later), DontHaveReason::Busy);
            }
            return RelayedNext::Room(AHEAD_STEP.min(count(&self.later)));
        }
        if !self.unsent.is_empty() {
            // The asker's own pace must not end its wait.
            return RelayedNext::Chunk(now + UPSTREAM_WAIT);
        }
        let deadline = *self.deadline.get_or_insert(now + UPSTREAM_WAIT);
        if now < deadline {
            return RelayedNext::Chunk(deadline);
        }
        self.is_told = true;
        let mut rest = std::mem::take(&mut self.later);
        rest.extend(&self.open);
        RelayedNext::Refuse(rest, DontHaveReason::Upstream)
    }

    /// Ends the batch, because it is answered or because its asker went away. Report all chunks
    /// that came meanwhile to [`Self::handle_held`] first.
    pub fn finish(self) -> RelayedEnd {
        RelayedEnd {
            charged: self.unsent.intersection(&self.own),
            open: self.open,
            wants_no_more: !self.is_told,
            room: self.room,
        }
    }
}

fn count(chunks: &ChunkRanges) -> usize {
    usize::try_from(chunks.len()).unwrap_or(usize::MAX)
}
