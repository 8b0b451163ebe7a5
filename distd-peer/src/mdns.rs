//! Neighbours on the same cable, by multicast DNS (RFC 6762, RFC 6763): `_distd._udp.local`.
//!
//! The beacon says that a node of a realm listens here, and which node. Nothing of what it holds: that it tells those who have
//! shown a certificate. A beacon is a hint; whoever is dialled on it must show the certificate of that node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::task::AbortHandle;

use crate::neighbours::{Neighbour, Neighbourhood};

/// Name of the service.
const SERVICE: &str = "_distd._udp.local.";

/// Bytes of the CA's fingerprint that name the realm.
const REALM_BYTES: usize = 8;

/// Beacon and ear of this device; both end when it is dropped.
pub struct Mdns {
    daemon: ServiceDaemon,
    listening: AbortHandle,
}

impl Mdns {
    /// Listens for neighbours, and sends a beacon when this device is there to stay and serves.
    ///
    /// # Errors
    /// When the host has no network that carries multicast.
    pub fn start(neighbourhood: &Arc<Neighbourhood>) -> Result<Self, mdns_sd::Error> {
        let daemon = ServiceDaemon::new()?;
        let realm = hex::encode(&neighbourhood.realm()[..REALM_BYTES]);
        if let Some(port) = neighbourhood.resident_port() {
            let node = neighbourhood.node_id().to_string();
            let name = &node[..16];
            let properties = [("realm", realm.as_str()), ("node", node.as_str())];
            let info = ServiceInfo::new(SERVICE, name, &format!("{name}.local."), "", port, &properties[..])?;
            daemon.register(info.enable_addr_auto())?;
        }
        let events = daemon.browse(SERVICE)?;
        let neighbourhood = neighbourhood.clone();
        let listening = tokio::spawn(async move {
            while let Ok(event) = events.recv_async().await {
                if let ServiceEvent::ServiceResolved(service) = event
                    && let Some(neighbour) = neighbour_of(&service, &realm)
                {
                    neighbourhood.found(neighbour);
                }
            }
        });
        Ok(Self { daemon, listening: listening.abort_handle() })
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        self.listening.abort();
        // It is gone already otherwise.
        let _ = self.daemon.shutdown();
    }
}

/// The neighbour that a beacon of this realm speaks of.
fn neighbour_of(service: &ResolvedService, realm: &str) -> Option<Neighbour> {
    let text = |name| service.txt_properties.get_property_val_str(name);
    if text("realm") != Some(realm) {
        return None;
    }
    let node = text("node")?.parse().ok()?;
    let mut addresses: Vec<IpAddr> = service.addresses.iter().map(|address| address.to_ip_addr()).collect();
    // A link-local address is none without its interface, which the record has no place for.
    addresses.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    addresses.sort_unstable();
    let ip = *addresses.first()?;
    Some(Neighbour { node, address: SocketAddr::new(ip, service.port) })
}
