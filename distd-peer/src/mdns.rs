//! Discovery of neighbours on the same local network by multicast DNS (RFC 6762, RFC 6763), service
//! `_distd._udp.local`.
//!
//! The beacon says which node of a realm listens here. It does not say what the node holds: the
//! node tells that only to peers that have shown a certificate. A beacon is only a hint; the node
//! dialled because of it must show the certificate of the advertised node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use distd_core::swarm::Neighbour;
use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::task::AbortHandle;

use crate::neighbours::Neighbourhood;

/// DNS-SD name of the service.
const SERVICE: &str = "_distd._udp.local.";

/// Number of leading bytes of the CA's fingerprint that name the realm in a beacon.
const REALM_BYTES: usize = 8;

/// Beacon and listener of this device; both end when this value is dropped.
pub struct Mdns {
    daemon: ServiceDaemon,
    listening: AbortHandle,
}

impl Mdns {
    /// Listens for neighbours. Also sends a beacon if this device is resident and serves.
    ///
    /// # Errors
    /// If the host has no network that carries multicast.
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
        // An error means that the daemon has already stopped.
        let _ = self.daemon.shutdown();
    }
}

/// Returns the neighbour that a beacon of this realm describes.
fn neighbour_of(service: &ResolvedService, realm: &str) -> Option<Neighbour> {
    let text = |name| service.txt_properties.get_property_val_str(name);
    if text("realm") != Some(realm) {
        return None;
    }
    let node = text("node")?.parse().ok()?;
    let mut addresses: Vec<IpAddr> = service.addresses.iter().map(|address| address.to_ip_addr()).collect();
    // A link-local address is useless without its interface, for which the record has no field.
    addresses.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    });
    addresses.sort_unstable();
    let ip = *addresses.first()?;
    Some(Neighbour { node, address: SocketAddr::new(ip, service.port) })
}
