//! Reaction to chunks that a peer refuses to send.

use std::time::Duration;

use super::config::CHOKES_MAX;
use super::{BatchId, Fetch, PeerFault, PeerId, Tier};
use crate::ranges::ChunkRanges;
use crate::swarm::recently_sent::LEFT_RETRY;
use crate::time::Timestamp;

impl Fetch {
    /// The peer leaves these chunks of a batch to a neighbour that has them or is fetching them.
    /// The peer is asked again after a while.
    pub fn handle_leased(&mut self, now: Timestamp, batch: BatchId, ranges: &ChunkRanges) {
        let Some((id, given_back)) = self.give_back(now, batch, ranges) else { return };
        if let Some(peer) = self.peers.get_mut(&id) {
            let again = if peer.tier == Tier::Site { LEFT_RETRY } else { self.config.lease_retry };
            peer.leased.push_back((now + again, given_back));
        }
    }

    /// A relay's parent could not help. The first time, and when this side cannot reach the origin
    /// either, that is not the relay's fault, and the relay is asked again before the origin.
    pub fn handle_upstream_failed(&mut self, now: Timestamp, batch: BatchId, ranges: &ChunkRanges) {
        let asked = self.batches.get(&batch).map_or(now, |b| b.asked);
        let Some((id, _)) = self.give_back(now, batch, ranges) else { return };
        let farther =
            self.peers.values().any(|p| p.tier == Tier::Origin && p.is_well(now) && p.since <= asked);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // Batches that were open at the same time failed for the same reason.
        let first = *peer.upstream_failed.get_or_insert(now);
        peer.excused = !farther || asked < first;
        if peer.not_before <= now {
            self.back_off(now, id, PeerFault::Failed);
        }
    }

    /// The peer will not send these chunks of a batch, and other peers are asked. With `for_now`
    /// the peer is asked again after a backoff that counts as a failure, otherwise never.
    pub fn handle_dont_have(&mut self, now: Timestamp, batch: BatchId, ranges: &ChunkRanges, for_now: bool) {
        let Some((id, given_back)) = self.give_back(now, batch, ranges) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !for_now {
            peer.lacks.extend(&given_back);
        } else if peer.not_before <= now {
            self.back_off(now, id, PeerFault::Failed);
        }
    }

    /// Removes refused chunks from a batch. Returns the peer and the removed chunks.
    fn give_back(
        &mut self,
        now: Timestamp,
        batch: BatchId,
        ranges: &ChunkRanges,
    ) -> Option<(PeerId, ChunkRanges)> {
        self.changed();
        self.progressed(now, batch);
        let b = self.batches.get_mut(&batch)?;
        let given_back = b.open.intersection(ranges);
        b.open = b.open.difference(ranges);
        let peer = b.peer;
        self.want_again(&given_back);
        Some((peer, given_back))
    }

    /// The peer will answer nothing for a while. Chunks it has wait for it rather than go to a
    /// farther peer. The choke counts as a failure only after several in a row while no chunk comes
    /// from any peer.
    pub fn handle_choked(&mut self, now: Timestamp, peer: PeerId, retry_after: Duration) {
        self.changed();
        let Some(p) = self.peers.get_mut(&peer) else { return };
        // Chokes of batches that were open at the same time count once.
        let is_news = p.choked_until <= now;
        p.choked_until = p.choked_until.max(now + retry_after.min(self.config.backoff_max));
        p.chokes = if p.choked_at == self.came { p.chokes.saturating_add(is_news.into()) } else { 1 };
        p.choked_at = self.came;
        if p.chokes > CHOKES_MAX {
            self.back_off(now, peer, PeerFault::Failed);
        }
    }
}
