//! Who gets in: budgets for strangers, for those who shake hands or enrol, and for nodes.
//!
//! - A QUIC packet whose sender's address may be forged costs nothing that is kept: as soon as
//!   [`UNVALIDATED_MAX`] of them shake hands, further ones are answered with Retry (RFC 9000 §8.1.2).
//! - [`STRANGERS_MAX`] connections from real addresses shake hands or enrol at once, shared by address prefix.
//! - [`super::ServeConfig::connections_max`] nodes are connected, shared by node id: a node has eight
//!   connections, a relay sixty-four, and a further one takes the place of its oldest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use distd_core::NodeId;
use distd_core::swarm::{Arrival, PlaceId, Places};
use tokio::sync::{Semaphore, oneshot};

use crate::clock::monotonic_now;
use crate::trust::identity::Role;

/// Handshakes at once over QUIC with addresses that may be forged.
const UNVALIDATED_MAX: usize = 256;

/// Handshakes and enrolments at once with addresses that answered.
const STRANGERS_MAX: usize = 512;

/// How long a handshake or the request of an enrolment may take.
pub(super) const STRANGER_TIME: Duration = Duration::from_secs(10);

/// How long a stranger is safe from others of its own address: a handshake over a slow line. A site of a
/// thousand devices behind one address that wakes at once gets in some hundred a second.
const STRANGER_SAFE: Duration = Duration::from_secs(2);

/// Connections of one device: a pull and an agent, and what they lost and have not noticed.
const LEAF_CONNECTIONS: usize = 8;

/// Connections of one relay.
const RELAY_CONNECTIONS: usize = 64;

/// An address as strangers are counted: IPv4 by address, IPv6 by what one customer gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix([u8; 7]);

impl Prefix {
    fn of(address: IpAddr) -> Self {
        let mut prefix = [0; 7];
        match address.to_canonical() {
            IpAddr::V4(v4) => prefix[..4].copy_from_slice(&v4.octets()),
            // A /56.
            IpAddr::V6(v6) => prefix.copy_from_slice(&v6.octets()[..7]),
        }
        Self(prefix)
    }
}

/// Places in one room, and those who are told when they lose theirs.
struct Room<K> {
    inner: Mutex<RoomState<K>>,
}

struct RoomState<K> {
    places: Places<K>,
    leave: HashMap<PlaceId, oneshot::Sender<()>>,
}

impl<K: Ord + Copy> Room<K> {
    fn new(max: usize, safe: Duration) -> Arc<Self> {
        let state = RoomState { places: Places::new(max, safe), leave: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, RoomState<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, key: K, key_max: usize) -> Option<Place<K>> {
        let mut room = self.lock();
        let id = match room.places.handle_arrival(monotonic_now(), key, key_max) {
            Arrival::In(id) => id,
            Arrival::InsteadOf(id, gone) => {
                // Its task may be at its end already.
                let _ = room.leave.remove(&gone).map(|leave| leave.send(()));
                id
            }
            Arrival::Full => return None,
        };
        let (leave, lost) = oneshot::channel();
        room.leave.insert(id, leave);
        Some(Place { room: self.clone(), key, id, lost })
    }
}

/// A place in a room; free again when dropped.
pub(super) struct Place<K: Ord + Copy> {
    room: Arc<Room<K>>,
    key: K,
    id: PlaceId,
    lost: oneshot::Receiver<()>,
}

impl<K: Ord + Copy> Place<K> {
    /// Returns when the place was given to another.
    pub(super) async fn lost(&mut self) {
        if (&mut self.lost).await.is_err() {
            // The sender goes with the place alone.
            std::future::pending().await
        }
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        let mut room = self.room.lock();
        room.leave.remove(&self.id);
        room.places.handle_left(&self.key, self.id);
    }
}

/// A stranger's place, until it is known who it is.
pub(super) enum Stranger {
    /// Its address may be forged.
    Unvalidated(
        #[expect(dead_code, reason = "held for as long as the handshake goes on")]
        tokio::sync::OwnedSemaphorePermit,
    ),
    /// Its address answered.
    Validated(AddressPlace),
}

/// A place among those of an address.
pub(super) struct AddressPlace(Place<Prefix>);

impl Stranger {
    /// Returns when the place was given to another.
    pub(super) async fn lost(&mut self) {
        match self {
            Self::Unvalidated(_) => std::future::pending().await,
            Self::Validated(place) => place.0.lost().await,
        }
    }
}

/// All budgets of an answering side.
pub(super) struct Door {
    unvalidated: Arc<Semaphore>,
    strangers: Arc<Room<Prefix>>,
    nodes: Arc<Room<NodeId>>,
}

impl Door {
    /// With room for so many connections of nodes.
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            unvalidated: Arc::new(Semaphore::new(UNVALIDATED_MAX)),
            strangers: Room::new(STRANGERS_MAX, STRANGER_SAFE),
            nodes: Room::new(connections_max, Duration::ZERO),
        }
    }

    /// A place for a handshake over QUIC with an address that may be forged; `None`: it is to prove itself.
    pub(super) fn unvalidated(&self) -> Option<Stranger> {
        self.unvalidated.clone().try_acquire_owned().ok().map(Stranger::Unvalidated)
    }

    /// A place for a handshake with an address that answers.
    pub(super) fn stranger(&self, remote: SocketAddr) -> Option<Stranger> {
        let place = self.strangers.enter(Prefix::of(remote.ip()), STRANGERS_MAX)?;
        Some(Stranger::Validated(AddressPlace(place)))
    }

    /// A place for a connection of a node.
    pub(super) fn node(&self, node: NodeId, role: Role) -> Option<Place<NodeId>> {
        let most = match role {
            Role::Leaf => LEAF_CONNECTIONS,
            Role::Relay | Role::Origin => RELAY_CONNECTIONS,
        };
        self.nodes.enter(node, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ninth_connection_of_a_device_takes_the_place_of_its_first_and_of_no_other() {
        let door = Door::new(9);
        let (greedy, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let mut first = door.node(greedy, Role::Leaf).expect("room");
        let rest: Vec<_> = (0..7).map(|_| door.node(greedy, Role::Leaf).expect("room")).collect();
        let mut others = door.node(other, Role::Leaf).expect("room");
        let _ninth = door.node(greedy, Role::Leaf).expect("instead of the first");
        first.lost().await;
        drop(first);
        assert!(tokio::time::timeout(Duration::from_millis(10), others.lost()).await.is_err());
        // Full: whoever has most makes room for a newcomer.
        let _third = door.node(NodeId([3; 16]), Role::Leaf).expect("instead of one of eight");
        drop(rest);
        assert!(door.node(NodeId([4; 16]), Role::Leaf).is_some());
    }

    #[test]
    fn addresses_of_one_customer_count_as_one() {
        let of = |text: &str| Prefix::of(text.parse().expect("an address"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:0:ff00::1"), of("2001:db8:0:ff7f::9"));
        assert_ne!(of("2001:db8:0:ff00::1"), of("2001:db8:0:fe00::1"));
    }
}
