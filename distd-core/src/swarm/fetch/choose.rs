//! Requests of a [`Fetch`]: which chunks are requested from which peer.

use std::time::Duration;

use super::config::{
    BATCH_CHUNKS_MIN, BATCH_TIME, CLAIM_AFTER, CLAIM_AFTER_BY_RELAY, ENDGAME_LEAST, ENDGAME_MIN,
    ENDGAME_PART, EXPLORE, RELAY_HELPS, SEVERAL, SHARED_BATCHES, SITE_BRINGS,
};
use super::peer::Peer;
use super::{Batch, BatchId, Fetch, FetchEvent, PeerFault, PeerId, Tier};
use crate::random::splitmix;
use crate::ranges::ChunkRanges;
use crate::time::Timestamp;

type Request = (PeerId, BatchId, ChunkRanges);

impl Fetch {
    /// Returns the next batch to request; `None` until something changes. Costs nothing if nothing
    /// has changed since the last `None`.
    ///
    /// Nearer peers come first, among neighbours the faster ones more often, among parents the
    /// first that is well. Chunks that a nearer peer will send when it has room again are not
    /// requested from a farther one.
    pub fn poll_request(&mut self, now: Timestamp) -> Option<Request> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        self.expire(now);
        let request = self
            .choose(now)
            .or_else(|| if self.claim(now) { self.choose(now) } else { None })
            .or_else(|| self.ask_twice(now));
        if request.is_none() {
            self.report_unavailable(now);
            self.quiet_until = Some(self.next_timeout(now).unwrap_or(Timestamp(u64::MAX)));
        }
        request
    }

    /// Returns the time to call [`Fetch::poll_request`] again if nothing happens before; it is
    /// later than `now`, at which `poll_request` was just called.
    pub fn poll_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        match self.quiet_until {
            Some(until) if until > now => (until < Timestamp(u64::MAX)).then_some(until),
            _ => self.next_timeout(now),
        }
    }

    fn next_timeout(&self, now: Timestamp) -> Option<Timestamp> {
        let deadlines = self.batches.values().map(|b| b.deadline);
        let waits = self.peers.values().filter(|p| !p.dropped && !self.wanted.is_empty()).flat_map(|p| {
            let asked_again = p.connected.then(|| {
                let leased = p.leased.front().map_or(Timestamp(0), |(until, _)| *until);
                p.not_before.max(p.choked_until).max(p.left_until).max(leased)
            });
            asked_again.into_iter().chain(p.announced.as_ref().map(|_| p.announce_until))
        });
        // Origins are asked for more when neighbours have settled.
        let origins =
            !self.wanted.is_empty() && self.peers.values().any(|p| p.tier == Tier::Origin && p.connected);
        let settled = self.peers.values().filter_map(|p| p.settles_at(now)).filter(|_| origins).max();
        // Another peer may be asked for chunks of a slow one.
        let others = self.peers.len() > 1;
        let unstarted = self.batches.values().filter(|b| others && b.got == 0);
        let claims = unstarted.flat_map(|b| [b.progress + CLAIM_AFTER, b.progress + CLAIM_AFTER_BY_RELAY]);
        let ends = others && self.wanted.is_empty() && !self.batches.is_empty() && self.may_double() > 0;
        let end = ends.then(|| now + ENDGAME_MIN);
        let dry = [self.others_fetch_until(now), self.site_brings_until(now, SITE_BRINGS)];
        deadlines
            .chain(dry.into_iter().flatten())
            .chain(waits)
            .chain(settled)
            .chain(claims)
            .chain(end)
            .filter(|at| *at > now)
            .min()
    }

    fn random(&mut self) -> u64 {
        splitmix(&mut self.random)
    }

    fn has_neighbours(&self) -> bool {
        self.peers.values().any(|p| p.tier == Tier::Site && p.connected && !p.dropped)
    }

    /// Returns how many batches may be in flight to one peer of a tier.
    fn batches_max(&self, now: Timestamp, tier: Tier) -> usize {
        let most = self.config.batches_per_peer;
        if self.config.shared_batch.is_none() || tier == Tier::Site {
            return most;
        }
        // Parents are asked for little until the other nodes and their chunks are known.
        let settling = tier == Tier::Origin && self.peers.values().any(|p| p.is_settling(now));
        match self.has_neighbours() {
            _ if settling || self.came == 0 => 1,
            true => most.min(SHARED_BATCHES),
            false => most,
        }
    }

    /// Returns the most chunks the next batch to a peer may have.
    fn batch_size(&self, now: Timestamp, peer: &Peer) -> u64 {
        let most = self.config.batch_chunks;
        let Some(shared) = self.config.shared_batch else { return most };
        let least = BATCH_CHUNKS_MIN.min(shared);
        if peer.tier == Tier::Origin && self.peers.values().any(|p| p.is_settling(now)) {
            return least;
        }
        if !self.has_neighbours() {
            return self.alone_batch.clamp(1, most);
        }
        if peer.stalled {
            return least;
        }
        let shown = if peer.tier == Tier::Relay { peer.right.max(1).saturating_mul(4) } else { u64::MAX };
        let in_time = peer.capacity.rate().map_or(0.0, |rate| rate * BATCH_TIME.as_secs_f64());
        (in_time as u64).clamp(least, shared.max(least)).min(most).min(shown)
    }

    /// Returns a batch of chunks that no peer has been asked for.
    fn choose(&mut self, now: Timestamp) -> Option<Request> {
        if self.wanted.is_empty() {
            return None;
        }
        let able = self.able_neighbours(now);
        let (id, could) = match self.weigh(able) {
            Some(chosen) => chosen,
            None => self.able_parent(now)?,
        };
        let chunks = self.pick(now, id, could);
        self.wanted = self.wanted.difference(&chunks);
        Some(self.ask(now, id, chunks))
    }

    /// Returns the neighbours with room, and the chunks each could send now.
    fn able_neighbours(&mut self, now: Timestamp) -> Vec<(PeerId, ChunkRanges)> {
        let most = self.batches_max(now, Tier::Site);
        let near = self.peers.iter_mut().filter(|(_, p)| p.tier == Tier::Site && p.has_room(now, most));
        let could = near.map(|(id, p)| (*id, p.could_send_now(now, &self.wanted)));
        could.filter(|(_, could)| !could.is_empty()).collect()
    }

    /// Returns the first parent with room, and chunks that no nearer peer will send.
    fn able_parent(&mut self, now: Timestamp) -> Option<(PeerId, ChunkRanges)> {
        let most = [Tier::Relay, Tier::Origin].map(|tier| (tier, self.batches_max(now, tier)));
        let origin = self.peers.values().any(|p| p.tier == Tier::Origin && p.is_well(now));
        let is_avoided = |p: &Peer| origin && p.tier == Tier::Relay && p.distrusted_by_origin;
        let has_room = |p: &Peer| most.iter().any(|(tier, most)| p.tier == *tier && p.has_room(now, *most));
        if !self.peers.values().any(has_room) {
            return None;
        }
        let mut left = self.wanted.clone();
        let site = self.peers.values().filter(|p| p.tier == Tier::Site && p.is_waited_for(now));
        for p in site {
            left = left.difference(&p.could_send(&left));
        }
        let near = self.pace_of_neighbours(now);
        let by_others = self.others_fetch_until(now).is_some();
        for (tier, most) in most {
            if tier == Tier::Origin {
                if by_others {
                    return None;
                }
                left = left.difference(&self.left_to_stalled(now, &left));
            }
            // Of several parents of a tier, only the first is asked. Each would fetch everything
            // over the uplink that they share.
            let mut lacks = left.clone();
            for (id, p) in self.peers.iter_mut().filter(|(_, p)| p.tier == tier && !is_avoided(p)) {
                let waits = p.is_waited_for(now);
                if p.has_room(now, most) {
                    let mut could = p.could_send_now(now, &left);
                    if could.is_empty() && tier == Tier::Relay && p.in_flight == 0 && helps_with(p, near) {
                        could = p.could_send_now(now, &self.wanted);
                    }
                    if !could.is_empty() {
                        return Some((*id, could));
                    }
                }
                if waits {
                    let could = p.could_send(&lacks);
                    lacks = lacks.difference(&could);
                    if p.choked_until <= now {
                        left = left.difference(&could);
                    }
                }
            }
            left = lacks;
        }
        None
    }

    /// Returns the chunks of `wanted` that are not requested from the origin although their local
    /// holders have stalled: at least three neighbours hold them, and the site is still making
    /// progress. Sixty nodes that start at once beside ten holders with slow links stall each other
    /// at these links, while the chunks that the ten send spread through the site.
    fn left_to_stalled(&self, now: Timestamp, wanted: &ChunkRanges) -> ChunkRanges {
        let mut held: [ChunkRanges; SEVERAL] = Default::default();
        if self.site_brings_until(now, SITE_BRINGS).is_some() {
            let stalled = |p: &&Peer| p.tier == Tier::Site && p.stalled && p.connected && !p.dropped;
            for p in self.peers.values().filter(stalled) {
                let mut could = p.could_send(wanted);
                // After each peer, `held[n]` has the chunks that more than `n` peers hold.
                for held in &mut held {
                    let again = held.intersection(&could);
                    held.extend(&could);
                    could = again;
                }
            }
        }
        let [.., held] = held;
        held
    }

    /// Returns the time until which neighbours count as bringing chunks if no more come:
    /// `recently_sent` after the last one. `None` if they do not count now.
    pub(super) fn site_brings_until(&self, now: Timestamp, recently_sent: Duration) -> Option<Timestamp> {
        let near = self.peers.values().filter(|p| p.tier == Tier::Site && p.is_well(now) && p.right > 0);
        near.map(|p| p.came_at + recently_sent).max().filter(|until| *until > now)
    }

    /// Returns the chunks a second that neighbours bring together, as far as their pace is known;
    /// `None` if it is not known of any.
    fn pace_of_neighbours(&self, now: Timestamp) -> Option<f64> {
        let near = self.peers.values().filter(|p| p.tier == Tier::Site && p.is_well(now));
        near.filter_map(|p| p.capacity.rate()).reduce(|sum, rate| sum + rate)
    }

    /// Chooses one of the peers that could send something, by chance. A peer that is twice as fast
    /// is chosen twice as often.
    fn weigh(&mut self, mut able: Vec<(PeerId, ChunkRanges)>) -> Option<(PeerId, ChunkRanges)> {
        if able.len() < 2 {
            return able.pop();
        }
        let explores = self.random().is_multiple_of(EXPLORE);
        let rates = || able.iter().filter_map(|(id, _)| self.peers[id].capacity.rate());
        // A peer of unknown pace counts as an average one.
        let usual = rates().sum::<f64>().max(1.0) / rates().count().max(1) as f64;
        let weight = |(id, _): &(PeerId, ChunkRanges)| {
            let p = &self.peers[id];
            if explores { 1.0 } else { p.capacity.rate().unwrap_or(usual) / (1 + p.in_flight) as f64 }
        };
        let weights: Vec<f64> = able.iter().map(weight).collect();
        let mut at = (self.random() >> 11) as f64 / (1u64 << 53) as f64 * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|weight| {
            at -= weight;
            at < 0.0
        });
        Some(able.swap_remove(chosen.unwrap_or(0)))
    }

    /// Returns the chunks of the next batch to a peer, out of those it could send.
    fn pick(&mut self, now: Timestamp, id: PeerId, mut could: ChunkRanges) -> ChunkRanges {
        let peer = &self.peers[&id];
        let count = self.batch_size(now, peer);
        if peer.tier == Tier::Relay && self.config.shared_batch.is_some() && peer.right == 0 && !peer.stalled
        {
            // All nodes that start at once request the same chunk: if the relay lies, this chunk is
            // all it fetched in vain.
            return could.take_first(1);
        }
        if peer.tier != Tier::Site {
            if self.pivot.is_none() && self.config.shared_batch.is_some() {
                let start = self.random();
                self.pivot = self.wanted.nth(start % self.wanted.len().max(1));
            }
            return match self.pivot {
                Some(pivot) => could.take_from(pivot, count),
                None => could.take_first(count),
            };
        }
        // Chunks that no other neighbour has come first, because their holder may leave. They are
        // taken from a random place, so that other askers of the same peer get other chunks.
        let mut rare = could.clone();
        let others = self.peers.iter().filter(|(other, p)| **other != id && p.connected && !p.dropped);
        for announced in others.filter_map(|(_, p)| p.announced.as_ref()) {
            if rare.is_empty() {
                break;
            }
            rare = rare.difference(announced);
        }
        let mut chunks = self.take_somewhere(&mut rare, count);
        if chunks.len() < count {
            could = could.difference(&chunks);
            let more = self.take_somewhere(&mut could, count - chunks.len());
            chunks.extend(&more);
        }
        chunks
    }

    fn take_somewhere(&mut self, chunks: &mut ChunkRanges, count: u64) -> ChunkRanges {
        match chunks.len() {
            len if len > count => {
                let from = self.random() % len;
                let from = chunks.nth(from).expect("below the length");
                chunks.take_from(from, count)
            }
            _ => std::mem::take(chunks),
        }
    }

    fn ask(&mut self, now: Timestamp, id: PeerId, chunks: ChunkRanges) -> Request {
        let peer = self.peers.get_mut(&id).expect("chosen among the peers");
        if peer.in_flight == 0 {
            peer.capacity.begin(now);
        }
        peer.in_flight += 1;
        peer.excused = false;
        let batch = BatchId(self.next_batch);
        self.next_batch += 1;
        let deadline = now + self.patience(id);
        let (open, got, held_back) = (chunks.clone(), 0, false);
        let fresh = Batch { peer: id, open, asked: now, progress: now, got, deadline, held_back };
        self.batches.insert(batch, fresh);
        (id, batch, chunks)
    }

    /// Takes back a batch that has brought nothing yet when another peer has room and half of it.
    /// Chunks that wait in one peer's queue can come from another. Nothing was sent, so nothing
    /// comes twice. Called only when no peer has anything else to send.
    fn claim(&mut self, now: Timestamp) -> bool {
        let late = |b: &Batch, after: Duration| b.got == 0 && now.since(b.progress) >= after;
        let claimed = self.batches.iter().filter(|(_, b)| late(b, CLAIM_AFTER)).find_map(|(batch, b)| {
            let at = self.peers.get(&b.peer)?.tier;
            let helps = |(id, p): (&PeerId, &Peer)| {
                let by_relay = at == Tier::Site && p.tier == Tier::Relay && late(b, CLAIM_AFTER_BY_RELAY);
                *id != b.peer
                    && (p.tier == Tier::Site || by_relay)
                    && p.has_room(now, self.batches_max(now, p.tier))
                    && p.could_send(&b.open).len() * 2 >= b.open.len()
            };
            self.peers.iter().any(|(id, p)| helps((id, p))).then_some((*batch, b.peer, at))
        });
        let Some((batch, peer, tier)) = claimed else { return false };
        if tier == Tier::Site {
            // A neighbour was asked only for chunks it announced, and had time to send them.
            self.handle_fault(now, peer, PeerFault::Stalled);
        } else {
            self.withdraw(now, batch);
        }
        true
    }

    /// Returns how many more chunks may be requested from a second peer.
    fn may_double(&self) -> u64 {
        (self.wanted_ever / ENDGAME_PART).max(ENDGAME_LEAST).saturating_sub(self.doubled_ever)
    }

    /// The end-game: every chunk is requested, and a peer with room would send the rest of the
    /// slowest batch much sooner. The origin is never such a peer, and a relay's own fetch never
    /// does this, so chunks that come twice cross no uplink twice.
    fn ask_twice(&mut self, now: Timestamp) -> Option<Request> {
        let most = self.may_double();
        if self.config.shared_batch.is_none()
            || most == 0
            || !self.wanted.is_empty()
            || self.batches.is_empty()
        {
            return None;
        }
        let mut slowest: Option<(Duration, PeerId, ChunkRanges)> = None;
        for b in self.batches.values().filter(|b| !b.held_back) {
            let Some(at) = self.peers.get(&b.peer) else { continue };
            let rest = at.capacity.time_for(self.open_at(b.peer)).unwrap_or_default();
            let rest = rest.max(now.since(b.progress));
            if rest < ENDGAME_MIN || slowest.as_ref().is_some_and(|(longest, ..)| rest <= *longest) {
                continue;
            }
            let open = b.open.difference(&self.doubled);
            for (id, p) in &self.peers {
                if *id == b.peer
                    || p.tier == Tier::Origin
                    || p.tier > at.tier.max(Tier::Relay)
                    || !p.has_room(now, self.batches_max(now, p.tier))
                {
                    continue;
                }
                let could = p.could_send(&open);
                let size = could.len().min(self.batch_size(now, p)).min(most);
                // A peer of unknown pace may be as slow as this one.
                let Some(time) = p.capacity.time_for(self.open_at(*id) + size) else { continue };
                if size > 0 && time * 2 < rest {
                    slowest = Some((rest, *id, last_of(could, size)));
                    break;
                }
            }
        }
        let (_, id, chunks) = slowest?;
        self.doubled.extend(&chunks);
        self.doubled_ever += chunks.len();
        Some(self.ask(now, id, chunks))
    }

    /// Returns the number of chunks open at a peer.
    fn open_at(&self, peer: PeerId) -> u64 {
        self.batches.values().filter(|b| b.peer == peer).map(|b| b.open.len()).sum()
    }

    /// Reports chunks that every remaining peer lacks, once: they will never come.
    fn report_unavailable(&mut self, now: Timestamp) {
        let mut unavailable = self.wanted.clone();
        for peer in self.peers.values().filter(|p| !p.dropped) {
            if unavailable.is_empty() || peer.announced.is_some() && peer.announce_until > now {
                return;
            }
            unavailable = unavailable.difference(&peer.could_send(&unavailable));
        }
        if !unavailable.is_empty() {
            self.wanted = self.wanted.difference(&unavailable);
            // A caller that wants these chunks later asks all peers anew.
            for peer in self.peers.values_mut() {
                peer.lacks = peer.lacks.difference(&unavailable);
            }
            self.events.push_back(FetchEvent::Unavailable(unavailable));
        }
    }
}

/// Whether a relay is asked for chunks that neighbours have too, because they are slow compared
/// with it.
fn helps_with(relay: &Peer, near: Option<f64>) -> bool {
    match (relay.capacity.rate(), near) {
        (Some(rate), Some(near)) => rate >= near * RELAY_HELPS,
        _ => false,
    }
}

/// Returns the highest `count` ids. A batch is mostly answered in order, so these would come last.
fn last_of(mut chunks: ChunkRanges, count: u64) -> ChunkRanges {
    let before = chunks.len().saturating_sub(count);
    chunks.take_first(before);
    chunks
}
