//! Limits on open connections, in total and for each address.
//!
//! When a limit is reached, the server closes the oldest connection that has not shown a valid
//! token: the oldest one from the same address if that address is at its limit, otherwise the
//! oldest of all. So a new caller gets in even while other callers hold connections open, and a
//! connection that has shown a token is never closed for another one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Number of connections open at once. Each takes about 100 KiB while it answers a request.
const CONNECTIONS_MAX: usize = 512;

/// Number of those connections that may be unauthenticated. The rest is reserved for callers with a
/// token.
const UNAUTHENTICATED_MAX: usize = 480;

/// Number of unauthenticated connections from one address.
const UNAUTHENTICATED_PER_ADDRESS_MAX: usize = 32;

/// Flag that tells whether a connection has shown a valid token. Each request of the connection
/// carries it in its extensions, and whoever checks the token sets it.
#[derive(Clone, Debug, Default)]
pub struct Authenticated(Arc<AtomicBool>);

impl Authenticated {
    /// Marks the connection as authenticated, for as long as it lasts.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// All open connections, in the order in which they were accepted.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    all: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    authenticated: Authenticated,
    evicted: CancellationToken,
}

/// Permission to keep one connection open; the drop gives it back.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    connections: Arc<Connections>,
    number: u64,
    /// Mark that keeps the connection open once its caller has shown a token.
    pub(super) authenticated: Authenticated,
    /// Cancelled when the connection has to close, because a newer one needs its slot.
    pub(super) evicted: CancellationToken,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.connections.open().all.remove(&self.number);
    }
}

impl Connections {
    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a new connection from `address`; `None` if callers with tokens have all slots.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionSlot> {
        // An IPv4 caller on an IPv6 socket has a mapped address, which counts as the IPv4 one.
        let address = address.to_canonical();
        let mut open = self.open();
        let unauthenticated = |connection: &&Connection| !connection.authenticated.is_set();
        let of_address =
            open.all.values().filter(unauthenticated).filter(|other| other.address == address).count();
        let of_all = open.all.values().filter(unauthenticated).count();
        let address_full = of_address >= UNAUTHENTICATED_PER_ADDRESS_MAX;
        if address_full || of_all >= UNAUTHENTICATED_MAX || open.all.len() >= CONNECTIONS_MAX {
            let oldest = open
                .all
                .iter()
                .find(|(_, other)| unauthenticated(other) && (!address_full || other.address == address))
                .map(|(number, _)| *number)?;
            if let Some(connection) = open.all.remove(&oldest) {
                connection.evicted.cancel();
            }
        }
        let (authenticated, evicted) = (Authenticated::default(), CancellationToken::new());
        let number = open.next;
        open.next += 1;
        let connection =
            Connection { address, authenticated: authenticated.clone(), evicted: evicted.clone() };
        open.all.insert(number, connection);
        Some(ConnectionSlot { connections: self.clone(), number, authenticated, evicted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn a_new_connection_evicts_the_oldest_unauthenticated_one_of_its_address() {
        let connections = Arc::new(Connections::default());
        let held: Vec<_> = (0..UNAUTHENTICATED_PER_ADDRESS_MAX)
            .map(|_| connections.admit(address(1)).expect("a slot"))
            .collect();
        assert!(held.iter().all(|slot| !slot.evicted.is_cancelled()));
        held[0].authenticated.set();
        let _more =
            [connections.admit(address(1)).expect("a slot"), connections.admit(address(1)).expect("a slot")];
        let evicted: Vec<_> = held.iter().map(|slot| slot.evicted.is_cancelled()).collect();
        assert!(
            !evicted[0] && evicted[1] && !evicted[2],
            "a connection with a token stays and is not counted"
        );
        let _mapped = connections.admit("::ffff:10.0.0.1".parse().expect("an address")).expect("a slot");
        assert!(held[2].evicted.is_cancelled(), "the mapped address counts as the same address");
    }

    #[test]
    fn unauthenticated_connections_never_take_all_slots_and_authenticated_ones_are_never_evicted() {
        let connections = Arc::new(Connections::default());
        let unauthenticated: Vec<_> =
            (0..600).map(|n| connections.admit(address(n)).expect("a slot")).collect();
        let stay = unauthenticated.iter().filter(|slot| !slot.evicted.is_cancelled()).count();
        assert_eq!(stay, UNAUTHENTICATED_MAX);
        let authenticated: Vec<_> = (0..CONNECTIONS_MAX as u32)
            .map(|n| {
                let slot = connections.admit(address(1000 + n)).expect("a slot");
                slot.authenticated.set();
                slot
            })
            .collect();
        assert!(authenticated.iter().all(|slot| !slot.evicted.is_cancelled()));
        assert!(connections.admit(address(5000)).is_none(), "callers with tokens have all slots");
        drop(authenticated);
        assert!(connections.admit(address(5000)).is_some());
    }
}
