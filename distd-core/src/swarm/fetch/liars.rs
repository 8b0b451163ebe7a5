//! What is made of relays that sent wrong bytes, to this side or to others of the site.

use super::config::OTHERS_FETCH;
use super::peer::Peer;
use super::{Batch, Fetch, PeerId, Tier};
use crate::time::Timestamp;

impl Fetch {
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
        let near = self.peers.values().filter(|p| p.tier == Tier::Site && p.is_well(now) && p.right > 0);
        near.map(|p| p.came_at + OTHERS_FETCH).max().filter(|until| *until > now)
    }
}
