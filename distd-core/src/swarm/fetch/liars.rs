//! Reaction to relays that sent wrong bytes, to this side or to other nodes of the site.

use super::config::{OTHERS_FETCH, REPORTED_BAD_DATA};
use super::peer::Peer;
use super::{Batch, Fetch, PeerId, Tier};
use crate::time::Timestamp;

impl Fetch {
    /// An asker reported this side for bad data and left. Other askers will leave too, and chunks
    /// this side has not fetched yet would be fetched in vain. Withdraws batches of which at least
    /// half of the open chunks are unwanted, now and for one second. Chunks of the wanted half that
    /// are already on their way come twice, which costs less.
    pub fn handle_reported_bad_data(&mut self, now: Timestamp) {
        self.reported_until = now + REPORTED_BAD_DATA;
        self.withdraw_unwanted(now);
    }

    pub(super) fn withdraw_unwanted(&mut self, now: Timestamp) {
        let is_idle = |b: &Batch| {
            let idle = b.open.intersection(&self.unwanted).len();
            idle > 0 && idle * 2 >= b.open.len()
        };
        let idle: Vec<_> = self.batches.iter().filter(|(_, b)| is_idle(b)).map(|(id, _)| *id).collect();
        idle.into_iter().for_each(|batch| self.withdraw(now, batch));
        self.wanted = self.wanted.difference(&self.unwanted);
    }

    /// The origin says that several nodes of the site had wrong bytes from this relay. From now
    /// on the relay is asked only when the origin cannot be reached. Batches of which it has sent
    /// nothing are withdrawn.
    pub fn handle_distrusted(&mut self, now: Timestamp, peer: PeerId) {
        let relay = self.peers.get_mut(&peer).filter(|p| p.tier == Tier::Relay && !p.distrusted_by_origin);
        let Some(relay) = relay else { return };
        relay.distrusted_by_origin = true;
        self.changed();
        let unbegun = |b: &Batch| b.peer == peer && b.got == 0;
        let theirs: Vec<_> = self.batches.iter().filter(|(_, b)| unbegun(b)).map(|(id, _)| *id).collect();
        theirs.into_iter().for_each(|batch| self.withdraw(now, batch));
    }

    /// Returns until when this side leaves chunks to neighbours, if no more come from them. A relay
    /// lied to this side but, as far as the origin knows, to no other node, so neighbours still
    /// fetch through it. Chunks that this side fetched past the relay meanwhile would cross the
    /// uplink twice.
    pub(super) fn others_fetch_until(&self, now: Timestamp) -> Option<Timestamp> {
        let lied = |p: &Peer| p.tier == Tier::Relay && p.lied && !p.distrusted_by_origin;
        if !self.peers.values().any(lied) {
            return None;
        }
        self.site_brings_until(now, OTHERS_FETCH)
    }
}
