//! Admission of connections: budgets for handshakes and enrolments by unknown peers ("strangers"),
//! and for connections of nodes.
//!
//! - A QUIC packet whose source address may be forged allocates nothing that lasts: when
//!   [`UNVALIDATED_MAX`] such handshakes are in progress, further ones are answered with Retry (RFC
//!   9000 §8.1.2).
//! - At most [`STRANGERS_MAX`] connections from validated addresses shake hands or enrol at once,
//!   shared by address prefix.
//! - At most [`super::ServeConfig::connections_max`] connections of nodes are open, shared by node
//!   id. A device has up to eight connections, a relay up to sixty-four; a further one takes the
//!   place of its oldest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use distd_core::NodeId;
use distd_core::swarm::{Admission, PlaceId, Places};
use tokio::sync::{Semaphore, oneshot};

use crate::clock::monotonic_now;
use distd_core::role::Role;

/// Maximum number of QUIC handshakes at once from addresses that may be forged.
const UNVALIDATED_MAX: usize = 256;

/// Maximum number of handshakes and enrolments at once from validated addresses.
const STRANGERS_MAX: usize = 512;

/// How long a handshake or the request of an enrolment may take.
pub(super) const STRANGER_TIME: Duration = Duration::from_secs(10);

/// How long a stranger's place is safe from newcomers of the same address: the time of a handshake
/// over a slow line. A site of a thousand devices behind one address that wakes at once gets in at
/// some hundred a second.
const STRANGER_SAFE: Duration = Duration::from_secs(2);

/// Maximum number of connections of one device: a pull, an agent, and lost connections that have
/// not been noticed.
const LEAF_CONNECTIONS: usize = 8;

/// Maximum number of connections of one relay.
const RELAY_CONNECTIONS: usize = 64;

/// Prefix by which strangers are counted: the whole IPv4 address, or the /56 that one IPv6 customer
/// gets.
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

/// A bounded set of places shared by key. The holder of a place learns when it loses the place.
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
            Admission::In(id) => id,
            Admission::InsteadOf(id, gone) => {
                // The task that held the place may have ended already.
                let _ = room.leave.remove(&gone).map(|leave| leave.send(()));
                id
            }
            Admission::Full => return None,
        };
        let (leave, lost) = oneshot::channel();
        room.leave.insert(id, leave);
        Some(Place { room: self.clone(), key, id, lost })
    }
}

/// A place in a room, freed on drop.
pub(super) struct Place<K: Ord + Copy> {
    room: Arc<Room<K>>,
    key: K,
    id: PlaceId,
    lost: oneshot::Receiver<()>,
}

impl<K: Ord + Copy> Place<K> {
    /// Returns when the place has been given to another connection.
    pub(super) async fn lost(&mut self) {
        if (&mut self.lost).await.is_err() {
            // The sender is dropped only together with the place.
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

/// Place of a connection whose peer is not known yet.
pub(super) enum Stranger {
    /// The address may be forged.
    Unvalidated(
        #[expect(dead_code, reason = "held for as long as the handshake goes on")]
        tokio::sync::OwnedSemaphorePermit,
    ),
    /// The address was validated.
    Validated(AddressPlace),
}

/// A place in the room shared by address prefix.
pub(super) struct AddressPlace(Place<Prefix>);

impl Stranger {
    /// Returns when the place has been given to another connection.
    pub(super) async fn lost(&mut self) {
        match self {
            Self::Unvalidated(_) => std::future::pending().await,
            Self::Validated(place) => place.0.lost().await,
        }
    }
}

/// All admission budgets of an answering side.
pub(super) struct Door {
    unvalidated: Arc<Semaphore>,
    strangers: Arc<Room<Prefix>>,
    nodes: Arc<Room<NodeId>>,
}

impl Door {
    /// Creates a door with room for `connections_max` connections of nodes.
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            unvalidated: Arc::new(Semaphore::new(UNVALIDATED_MAX)),
            strangers: Room::new(STRANGERS_MAX, STRANGER_SAFE),
            nodes: Room::new(connections_max, Duration::ZERO),
        }
    }

    /// Takes a place for a QUIC handshake from an address that may be forged. `None`: the client
    /// must prove its address first.
    pub(super) fn unvalidated(&self) -> Option<Stranger> {
        self.unvalidated.clone().try_acquire_owned().ok().map(Stranger::Unvalidated)
    }

    /// Takes a place for a handshake from a validated address.
    pub(super) fn stranger(&self, remote: SocketAddr) -> Option<Stranger> {
        let place = self.strangers.enter(Prefix::of(remote.ip()), STRANGERS_MAX)?;
        Some(Stranger::Validated(AddressPlace(place)))
    }

    /// Takes a place for a connection of a node.
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
        // All places are taken: the node with the most connections makes room for a newcomer.
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
