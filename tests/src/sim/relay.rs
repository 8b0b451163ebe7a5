//! A relay's chunks from upstream: carries out what the core's `Demand` and `RelayedBatch` decide.

use distd_core::ChunkId;
use distd_core::proto::frame::DontHaveReason;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, RelayedBatch, RelayedNext, RelayedRead, WaiterId};

use super::conn::ConnNo;
use super::node::NodeNo;
use super::rules::Rule;
use super::world::{Event, Sim};

impl Sim {
    pub(super) fn relayed(&mut self, conn: ConnNo, batch: BatchId) -> Option<&mut (WaiterId, RelayedBatch)> {
        self.serving(conn, batch)?.relayed.as_mut()
    }

    /// Carries out what is next for a batch at a relay: requests chunks upstream, or refuses those
    /// that did not come. The permits and the credit of the asker's node are never short here.
    pub(super) fn relay_batch(&mut self, conn: ConnNo, batch: BatchId) {
        let n = self.conns[conn.0].answerer;
        let now = self.clock(n);
        while let Some((_, relayed)) = self.relayed(conn, batch) {
            relayed.return_room();
            let next = match relayed.poll_room(usize::MAX, || false) {
                0 => relayed.poll_next(now, || false),
                room => RelayedNext::Room(room),
            };
            match next {
                RelayedNext::Room(room) => self.request_upstream(conn, batch, room),
                RelayedNext::Chunk(deadline) => {
                    let deadline = self.when(n, deadline);
                    if let Some(serving) = self.serving(conn, batch)
                        && serving.look_at.is_none_or(|at| deadline < at)
                    {
                        serving.look_at = Some(deadline);
                        self.queue.at(deadline, Event::Upstream(conn, batch));
                    }
                    return;
                }
                RelayedNext::Refuse(chunks, reason) => {
                    self.note("upstream", n.0, [conn.0 as u64, chunks.len()]);
                    self.refuse(conn, batch, &chunks, reason);
                }
                RelayedNext::Done => {
                    // The batch ends when the chunks that are ready have been sent.
                    let relayed = self.serving(conn, batch).and_then(|serving| serving.relayed.take());
                    self.leave_demand(n, relayed);
                    self.conns[conn.0].turn.push_back(batch);
                }
            }
        }
    }

    fn request_upstream(&mut self, conn: ConnNo, batch: BatchId, room: usize) {
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let Some((waiter, relayed)) = self.relayed(conn, batch) else { return };
        let (waiter, requested) = (*waiter, relayed.handle_room(room));
        let fresh = self.nodes[n.0].answering.demand.wait_for(waiter, &asker, &requested);
        if let Some((_, relayed)) = self.relayed(conn, batch) {
            relayed.handle_fresh(&fresh);
        }
        // Chunks that came since the batch began are not requested again.
        let here = requested.intersection(&self.nodes[n.0].store.held);
        for id in here.ids() {
            let waiters = self.nodes[n.0].answering.demand.handle_not_fetched(id);
            self.held_upstream(n, waiters, id);
        }
        if let Some(asking) = &mut self.nodes[n.0].asking {
            asking.asker.want(&requested.difference(&here));
        }
        self.drive(n);
    }

    /// A batch has waited for its relay's parent.
    pub(super) fn upstream_waited(&mut self, conn: ConnNo, batch: BatchId) {
        let now = self.queue.now();
        if let Some(serving) = self.serving(conn, batch)
            && serving.look_at.take_if(|at| *at <= now).is_some()
        {
            self.relay_batch(conn, batch);
            self.pump(conn);
        }
    }

    /// A batch does not wait for chunks from upstream any more.
    pub(super) fn leave_demand(&mut self, n: NodeNo, relayed: Option<(WaiterId, RelayedBatch)>) {
        let Some((waiter, relayed)) = relayed else { return };
        let (now, cancels) = (self.clock(n), self.has(Rule::Unwanted));
        let answering = &mut self.nodes[n.0].answering;
        answering.waiters.remove(&waiter);
        let end = relayed.finish();
        let last = answering.demand.leave(waiter, &end.open);
        if !end.wants_no_more || last.is_empty() || !cancels {
            return;
        }
        if let Some(asking) = &mut self.nodes[n.0].asking {
            let given_up = asking.asker.want_no_more(now, &last);
            self.nodes[n.0].answering.demand.handle_given_up(&given_up);
            self.drive(n);
        }
    }

    /// A chunk came from upstream: sends it to all batches that wait for it.
    pub(super) fn arrived_upstream(&mut self, n: NodeNo, id: ChunkId) {
        let waiters = self.nodes[n.0].answering.demand.handle_fetched(id).waiters;
        self.held_upstream(n, waiters, id);
    }

    fn held_upstream(&mut self, n: NodeNo, waiters: Vec<WaiterId>, id: ChunkId) {
        for (conn, batch) in self.batches_of(n, &waiters) {
            let Some((_, relayed)) = self.relayed(conn, batch) else { continue };
            if relayed.handle_held(id) && relayed.handle_read(id, true) == RelayedRead::Send {
                if let Some(serving) = self.serving(conn, batch) {
                    serving.ready.push_back(id);
                }
                if !self.conns[conn.0].turn.contains(&batch) {
                    self.conns[conn.0].turn.push_back(batch);
                }
                self.pump(conn);
            }
        }
    }

    /// No parent has these chunks.
    pub(super) fn gone_upstream(&mut self, n: NodeNo, chunks: &ChunkRanges) {
        for id in chunks.ids() {
            let waiters = self.nodes[n.0].answering.demand.handle_not_fetched(id);
            for (conn, batch) in self.batches_of(n, &waiters) {
                let Some((_, relayed)) = self.relayed(conn, batch) else { continue };
                if relayed.handle_gone(id) {
                    self.refuse(conn, batch, &[id].into_iter().collect(), DontHaveReason::NotHeld);
                    self.relay_batch(conn, batch);
                    self.pump(conn);
                }
            }
        }
    }

    fn batches_of(&self, n: NodeNo, waiters: &[WaiterId]) -> Vec<(ConnNo, BatchId)> {
        waiters.iter().filter_map(|waiter| self.nodes[n.0].answering.waiters.get(waiter).copied()).collect()
    }
}
