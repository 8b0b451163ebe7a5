//! Handling of the answers to a node's batches.

use distd_core::ChunkId;
use distd_core::proto::Frame;
use distd_core::proto::batch::BatchEvent;
use distd_core::swarm::{BatchId, PeerFault, PeerId};

use super::build::right_bytes;
use super::conn::{ConnNo, End};
use super::node::NodeNo;
use super::world::Sim;

impl Sim {
    /// Handles a frame of an answer. Frames of a withdrawn batch are ignored.
    pub(super) fn answered(&mut self, n: NodeNo, batch: BatchId, conn: ConnNo, frame: Frame) {
        let now = self.clock(n);
        let sender = self.conns[conn.0].answerer;
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        let Some(ask) = asking.asks.get_mut(&batch).filter(|ask| ask.conn == conn) else { return };
        let peer = ask.peer;
        ask.frames += 1;
        match ask.ask.handle_frame(frame) {
            Ok(BatchEvent::Data(data)) => {
                let right = right_bytes(data.id);
                if self.verifies && data.bytes[..] != right {
                    *self.nodes[n.0].wrong.entry(sender).or_default() += 1;
                    return self.batch_failed(n, peer, PeerFault::WrongBytes);
                }
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&data.bytes[..8]);
                asking.asker.handle_chunk(now, batch, data.id);
                self.stored(n, sender, data.id, bytes);
            }
            Ok(BatchEvent::DontHave(dont)) => {
                asking.asker.handle_dont_have(now, batch, &dont.ranges.to_set(), dont.reason);
            }
            Ok(BatchEvent::Choked(choke)) => asking.asker.handle_choked(now, peer, choke.retry_after),
            Ok(BatchEvent::Unknown) => {}
            Err(_) => return self.batch_failed(n, peer, PeerFault::Protocol),
        }
        if !self.maybe_ended(n, batch) {
            self.drive(n);
        }
    }

    /// The stream of an answer ended after `frames` frames, some of which may still be on their
    /// way.
    pub(super) fn answer_ended(&mut self, n: NodeNo, batch: BatchId, conn: ConnNo, frames: u64) {
        let asking = self.nodes[n.0].asking.as_mut();
        let ask = asking.and_then(|a| a.asks.get_mut(&batch)).filter(|ask| ask.conn == conn);
        if let Some(ask) = ask {
            ask.frames_all = Some(frames);
            self.maybe_ended(n, batch);
        }
    }

    /// Ends a batch if all its frames have arrived.
    fn maybe_ended(&mut self, n: NodeNo, batch: BatchId) -> bool {
        let now = self.clock(n);
        let Some(asking) = &mut self.nodes[n.0].asking else { return false };
        let Some(ask) = asking.asks.get(&batch) else { return false };
        if ask.frames_all != Some(ask.frames) {
            return false;
        }
        let (peer, end) = (ask.peer, ask.ask.handle_end());
        if end.is_err() {
            self.batch_failed(n, peer, PeerFault::Protocol);
            return true;
        }
        asking.asks.remove(&batch);
        asking.asker.handle_batch_end(now, batch);
        self.drive(n);
        true
    }

    fn batch_failed(&mut self, n: NodeNo, peer: PeerId, fault: PeerFault) {
        let (now, unix) = (self.clock(n), self.unix(n));
        let Some(asking) = &mut self.nodes[n.0].asking else { return };
        asking.asker.handle_fault(now, peer, fault);
        let contact = asking.contacts.get_mut(&peer).filter(|_| fault.leads_to_quarantine());
        if let Some((node, conn)) = contact.map(|contact| (contact.node, contact.conn.take())) {
            self.nodes[n.0].quarantine.add(node.id(), unix);
            self.note("quarantine", n.0, [node.0 as u64, 0]);
            self.shuns_changed(n);
            if let Some(conn) = conn {
                self.close_for(conn, End::Opener, true);
            }
        }
        self.drive(n);
    }

    /// Puts a verified chunk on the disk, sends it to askers that wait for it, and announces it
    /// later.
    fn stored(&mut self, n: NodeNo, sender: NodeNo, id: ChunkId, bytes: [u8; 8]) {
        let node = &mut self.nodes[n.0];
        if node.store.held.insert(id) {
            *node.received.entry(sender).or_default() += 1;
        } else {
            node.twice += 1;
        }
        node.store.bytes.insert(id, bytes);
        self.check_stored(n, id);
        self.arrived_upstream(n, id);
        self.grown(n);
    }
}
