//! Who may stay connected when many want to.
//!
//! A connection that has shown no token may have to go: the oldest of its address when that has too many, the oldest of all
//! when all places are taken. So a newcomer always gets in, whoever holds connections open, and whoever has shown a token stays.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Connections at once. Each costs some 100 KiB at work.
const CONNECTIONS_MAX: usize = 512;

/// Of those, how many may be without a token: the rest is for callers who have one.
const STRANGERS_MAX: usize = 480;

/// Connections without a token from one address.
const OF_ADDRESS_MAX: usize = 32;

/// Whether a connection has shown a valid token; in the extensions of its requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<AtomicBool>);

impl Known {
    /// It has.
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Every connection, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Crowd(Mutex<Members>);

#[derive(Debug, Default)]
struct Members {
    next: u64,
    all: BTreeMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    address: IpAddr,
    known: Known,
    leave: CancellationToken,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    pub(super) known: Known,
    /// It has to go.
    pub(super) leave: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.members().all.remove(&self.number);
    }
}

impl Crowd {
    fn members(&self) -> std::sync::MutexGuard<'_, Members> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection from `address`; `None` when callers with tokens have all of them.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        // An IPv4 address is one, whichever way it came.
        let address = address.to_canonical();
        let mut members = self.members();
        let strangers = |member: &&Member| !member.known.is_set();
        let of_address = members.all.values().filter(strangers).filter(|m| m.address == address).count();
        let all_strangers = members.all.values().filter(strangers).count();
        let from_here = of_address >= OF_ADDRESS_MAX;
        if from_here || all_strangers >= STRANGERS_MAX || members.all.len() >= CONNECTIONS_MAX {
            let goes = members
                .all
                .iter()
                .find(|(_, member)| strangers(member) && (!from_here || member.address == address))
                .map(|(number, _)| *number)?;
            if let Some(member) = members.all.remove(&goes) {
                member.leave.cancel();
            }
        }
        let (known, leave) = (Known::default(), CancellationToken::new());
        let number = members.next;
        members.next += 1;
        members.all.insert(number, Member { address, known: known.clone(), leave: leave.clone() });
        Some(Place { crowd: self.clone(), number, known, leave })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn a_newcomer_gets_in_and_the_oldest_stranger_of_its_address_goes() {
        let crowd = Arc::new(Crowd::default());
        let held: Vec<_> = (0..OF_ADDRESS_MAX).map(|_| crowd.enter(address(1)).expect("a place")).collect();
        assert!(held.iter().all(|place| !place.leave.is_cancelled()));
        held[0].known.set();
        let _more = [crowd.enter(address(1)).expect("a place"), crowd.enter(address(1)).expect("a place")];
        let gone: Vec<_> = held.iter().map(|place| place.leave.is_cancelled()).collect();
        assert!(!gone[0] && gone[1] && !gone[2], "whoever has shown a token stays, and is not counted");
        let _mapped = crowd.enter("::ffff:10.0.0.1".parse().expect("an address")).expect("a place");
        assert!(held[2].leave.is_cancelled(), "the same address");
    }

    #[test]
    fn strangers_never_fill_all_places_and_known_callers_keep_theirs() {
        let crowd = Arc::new(Crowd::default());
        let strangers: Vec<_> = (0..600).map(|n| crowd.enter(address(n)).expect("a place")).collect();
        let stay = strangers.iter().filter(|place| !place.leave.is_cancelled()).count();
        assert_eq!(stay, STRANGERS_MAX);
        let known: Vec<_> = (0..CONNECTIONS_MAX as u32)
            .map(|n| {
                let place = crowd.enter(address(1000 + n)).expect("a place");
                place.known.set();
                place
            })
            .collect();
        assert!(known.iter().all(|place| !place.leave.is_cancelled()));
        assert!(crowd.enter(address(5000)).is_none(), "all have a token");
        drop(known);
        assert!(crowd.enter(address(5000)).is_some());
    }
}
