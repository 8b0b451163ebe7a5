//! The answering side: carries out what `SiteMembers` and `UploadSlots` decide, and sends the
//! chunks of several batches in turn. `relay` has the chunks that a relay lacks.

use std::time::Duration;

use bytes::Bytes;
use distd_core::proto::Frame;
use distd_core::proto::frame::{Choke, Codec, Data, DontHave, DontHaveReason, Ranges};
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::{BatchId, RelayedBatch, SlotAsk, SlotTold, UPLOAD_SLOT_WAIT, UploadSlots, WaitId};
use distd_core::{ChunkId, NodeId};

use super::build::right_bytes;
use super::conn::{ConnNo, End, Payload, Serving};
use super::node::{NodeNo, Role};
use super::rules::Rule;
use super::world::{Event, Sim};

impl Sim {
    pub(super) fn serving(&mut self, conn: ConnNo, batch: BatchId) -> Option<&mut Serving> {
        self.conns[conn.0].serving.get_mut(&batch)
    }

    /// Handles a request for a batch.
    pub(super) fn requested(&mut self, conn: ConnNo, batch: BatchId, wanted: ChunkRanges) {
        let n = self.conns[conn.0].answerer;
        self.conns[conn.0].serving.insert(batch, Serving { wanted, ..Serving::default() });
        let behaviour = self.nodes[n.0].behaviour;
        if behaviour.silent {
            return;
        }
        if self.leave_to_neighbours(conn, batch) {
            return self.end(conn, batch);
        }
        let asker = self.conns[conn.0].opener.id();
        match self.slots(n).handle_ask(asker) {
            SlotAsk::Granted => self.begin(conn, batch),
            SlotAsk::Choked(retry_after) => self.choke(conn, batch, retry_after),
            SlotAsk::Waits(wait) => {
                self.nodes[n.0].answering.waiting.insert(wait, (conn, batch));
                if let Some(serving) = self.serving(conn, batch) {
                    serving.wait = Some(wait);
                }
                self.queue.after(UPLOAD_SLOT_WAIT, Event::SlotWait(conn, batch, wait));
            }
        }
        self.tell_waiting(n);
    }

    fn slots(&mut self, n: NodeNo) -> &mut UploadSlots<NodeId> {
        let slots = self.nodes[n.0].behaviour.upload_slots;
        self.nodes[n.0].answering.slots.get_or_insert_with(|| UploadSlots::new(slots, slots))
    }

    /// Begins or chokes the batches whose wait for an upload slot is over.
    fn tell_waiting(&mut self, n: NodeNo) {
        while let Some((wait, outcome)) = self.slots(n).poll_told() {
            let Some((conn, batch)) = self.nodes[n.0].answering.waiting.remove(&wait) else { continue };
            if let Some(serving) = self.serving(conn, batch) {
                serving.wait = None;
            }
            match outcome {
                SlotTold::Granted => self.begin(conn, batch),
                SlotTold::Choked(retry_after) => self.choke(conn, batch, retry_after),
            }
        }
    }

    /// Duplicate suppression: with many askers, refuses chunks that neighbours were sent recently.
    /// Returns true when no other chunk was requested.
    fn leave_to_neighbours(&mut self, conn: ConnNo, batch: BatchId) -> bool {
        let n = self.conns[conn.0].answerer;
        let Some(member) = self.conns[conn.0].member else { return false };
        let now = self.clock(n);
        let is_suppressing = self.has(Rule::SuppressDuplicates) && self.slots(n).suppresses_duplicates();
        let by_relay = self.nodes[n.0].role == Role::Relay;
        let Some(wanted) = self.serving(conn, batch).map(|serving| std::mem::take(&mut serving.wanted))
        else {
            return false;
        };
        let sites = &mut self.nodes[n.0].answering.sites;
        let (granted, left) = sites.suppress_duplicates(now, member, wanted, is_suppressing, by_relay);
        let nothing = granted.is_empty();
        if let Some(serving) = self.serving(conn, batch) {
            serving.wanted = granted;
        }
        self.refuse(conn, batch, &left, DontHaveReason::Leased);
        nothing
    }

    /// Chokes a batch that still waits for a slot.
    pub(super) fn slot_waited(&mut self, conn: ConnNo, batch: BatchId, wait: WaitId) {
        let (n, asker) = (self.conns[conn.0].answerer, self.conns[conn.0].opener.id());
        if self.nodes[n.0].answering.waiting.get(&wait) != Some(&(conn, batch)) {
            return;
        }
        self.nodes[n.0].answering.waiting.remove(&wait);
        if let Some(serving) = self.serving(conn, batch) {
            serving.wait = None;
        }
        let retry_after = self.slots(n).handle_left(asker, wait);
        self.choke(conn, batch, retry_after);
        self.tell_waiting(n);
    }

    fn choke(&mut self, conn: ConnNo, batch: BatchId, retry_after: Duration) {
        self.note("choke", self.conns[conn.0].answerer.0, [conn.0 as u64, batch.0]);
        self.frame(conn, batch, Frame::Choke(Choke { retry_after, alternates: Vec::new() }));
        self.end(conn, batch);
    }

    /// A batch got a slot: takes leases, refuses chunks, sends held chunks and asks upstream for
    /// the rest.
    fn begin(&mut self, conn: ConnNo, batch: BatchId) {
        let (n, member) = (self.conns[conn.0].answerer, self.conns[conn.0].member);
        let now = self.clock(n);
        let Some(serving) = self.serving(conn, batch) else { return };
        serving.slot_since = Some(now);
        let mut wanted = std::mem::take(&mut serving.wanted);
        let role = self.nodes[n.0].role;
        if let Some(member) = member {
            let division = self.nodes[n.0].answering.sites.handle_request(now, member, &wanted);
            if division.newly_alone {
                self.note("alone", self.conns[conn.0].opener.0, [0, 0]);
            }
            if let Some(serving) = self.serving(conn, batch) {
                serving.lease = division.lease;
            }
            self.refuse(conn, batch, &division.refused, DontHaveReason::Leased);
            wanted = division.granted;
        }
        let here = wanted.intersection(&self.nodes[n.0].store.held);
        let absent = wanted.difference(&here);
        let answering = &mut self.nodes[n.0].answering;
        let relayed =
            (role == Role::Relay).then(|| (answering.demand.waiter(), RelayedBatch::new(absent.clone())));
        if let Some((waiter, _)) = &relayed {
            answering.waiters.insert(*waiter, (conn, batch));
        } else {
            self.refuse(conn, batch, &absent, DontHaveReason::NotHeld);
        }
        if let Some(serving) = self.serving(conn, batch) {
            serving.ready.extend(here.ids());
            serving.relayed = relayed;
        }
        self.conns[conn.0].turn.push_back(batch);
        self.relay_batch(conn, batch);
        self.pump(conn);
    }

    fn frame(&mut self, conn: ConnNo, batch: BatchId, frame: Frame) {
        if let Some(serving) = self.serving(conn, batch) {
            serving.frames += 1;
            self.send(conn, End::Answerer, Payload::Answer(batch, frame));
        }
    }

    pub(super) fn refuse(
        &mut self,
        conn: ConnNo,
        batch: BatchId,
        chunks: &ChunkRanges,
        reason: DontHaveReason,
    ) {
        for ranges in Ranges::split(chunks) {
            self.frame(conn, batch, Frame::DontHave(DontHave { reason, ranges }));
        }
    }

    /// A chunk has left the path.
    pub(super) fn acked(&mut self, conn: ConnNo) {
        let c = &mut self.conns[conn.0];
        c.in_flight = c.in_flight.saturating_sub(1);
        self.pump(conn);
    }

    /// Sends as many chunks as the window allows, the batches in turn.
    pub(super) fn pump(&mut self, conn: ConnNo) {
        while self.conns[conn.0].answerer_open
            && let Some(batch) = self.conns[conn.0].turn.front().copied()
        {
            let c = &mut self.conns[conn.0];
            let Some(serving) = c.serving.get_mut(&batch) else {
                c.turn.pop_front();
                continue;
            };
            if serving.ready.is_empty() {
                c.turn.pop_front();
                if serving.relayed.is_none() {
                    self.end(conn, batch);
                }
                continue;
            }
            if c.in_flight >= c.window {
                return;
            }
            let Some(id) = serving.ready.pop_front() else { continue };
            c.in_flight += 1;
            c.turn.rotate_left(1);
            if !self.send_chunk(conn, batch, id) {
                return;
            }
            if let Some((_, relayed)) = self.relayed(conn, batch) {
                relayed.handle_sent(id);
                self.relay_batch(conn, batch);
            }
        }
    }

    /// Sends one chunk in the way this node behaves. Returns false when the connection is gone
    /// afterwards.
    fn send_chunk(&mut self, conn: ConnNo, batch: BatchId, id: ChunkId) -> bool {
        let (n, to) = (self.conns[conn.0].answerer, self.conns[conn.0].opener);
        let behaviour = self.nodes[n.0].behaviour;
        if behaviour.drops_permille > 0 && self.rng.below(1000) < behaviour.drops_permille {
            self.note("drop", n.0, [conn.0 as u64, id.0]);
            self.close(conn, End::Answerer);
            return false;
        }
        let mut bytes = right_bytes(id);
        if behaviour.lies_permille > 0 && self.rng.below(1000) < behaviour.lies_permille {
            bytes[0] ^= 0xff;
        }
        let now = self.clock(n);
        if self.nodes[n.0].role == Role::Origin {
            self.count_egress(to);
            let c = &self.conns[conn.0];
            if let (Some(member), Some(lease)) = (c.member, c.serving.get(&batch).and_then(|s| s.lease)) {
                self.nodes[n.0].answering.sites.handle_sent(now, member, lease, id);
            }
        }
        let data = Data { id, codec: Codec::Raw, bytes: Bytes::copy_from_slice(&bytes) };
        self.frame(conn, batch, Frame::Data(data));
        true
    }

    /// Ends the answer of a batch.
    fn end(&mut self, conn: ConnNo, batch: BatchId) {
        if let Some(serving) = self.serving(conn, batch) {
            let frames = serving.frames;
            self.send(conn, End::Answerer, Payload::Fin(batch, frames));
            self.withdrawn(conn, batch);
        }
    }

    /// A batch needs no further answer: frees its slot, its lease and its place among waiting
    /// batches.
    pub(super) fn withdrawn(&mut self, conn: ConnNo, batch: BatchId) {
        let Some(serving) = self.conns[conn.0].serving.remove(&batch) else { return };
        let (n, member, asker) =
            (self.conns[conn.0].answerer, self.conns[conn.0].member, self.conns[conn.0].opener.id());
        let now = self.clock(n);
        if let (Some(member), Some(lease)) = (member, serving.lease) {
            self.nodes[n.0].answering.sites.handle_lease_end(now, member, lease);
        }
        self.leave_demand(n, serving.relayed);
        if let Some(wait) = serving.wait {
            self.nodes[n.0].answering.waiting.remove(&wait);
            self.slots(n).handle_left(asker, wait);
        }
        if let Some(since) = serving.slot_since {
            self.slots(n).handle_freed(asker, now.since(since));
        }
        self.tell_waiting(n);
    }
}
