//! What is made of relays that sent wrong bytes, to this side or to others of the site.

use super::config::{DISBELIEVED, OTHERS_FETCH};
use super::peer::Peer;
use super::{Batch, Fetch, PeerId, Tier};
use crate::time::Timestamp;

impl Fetch {
    /// Somebody who asked this side had wrong bytes of it, and left. Others will, and what it has not fetched yet it will fetch in vain: batches of
    /// which nobody waits for half are withdrawn, now and for a moment. What of the other half is on its way comes twice, which is less.
    pub fn handle_disbelieved(&mut self, now: Timestamp) {
        self.disbelieved_until = now + DISBELIEVED;
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

    /// The origin says that several of the site had wrong bytes of this relay: it is asked only when the origin cannot be, and what it has not
    /// begun to send is taken back.
    pub fn handle_disowned(&mut self, now: Timestamp, peer: PeerId) {
        let relay = self.peers.get_mut(&peer).filter(|p| p.tier == Tier::Relay && !p.disowned);
        let Some(relay) = relay else { return };
        relay.disowned = true;
        self.changed();
        let unbegun = |b: &Batch| b.peer == peer && b.got == 0;
        let theirs: Vec<_> = self.batches.iter().filter(|(_, b)| unbegun(b)).map(|(id, _)| *id).collect();
        theirs.into_iter().for_each(|batch| self.withdraw(now, batch));
    }

    /// Neighbours bring what they have of a relay that lied to this side and, as far as the origin knows, to no other: until when, if nothing
    /// more comes, they are let. What this side fetched past the relay meanwhile would cross the uplink twice.
    pub(super) fn others_fetch_until(&self, now: Timestamp) -> Option<Timestamp> {
        let lied = |p: &Peer| p.tier == Tier::Relay && p.lied && !p.disowned;
        if !self.peers.values().any(lied) {
            return None;
        }
        self.site_brings_until(now, OTHERS_FETCH)
    }
}
