//! Limits on where a device may send packets.

use std::net::{IpAddr, SocketAddr};

use distd_core::error::Chain;
use serde::{Deserialize, Serialize};

/// Networks to which packets may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connectivity {
    /// Anywhere.
    #[default]
    Online,
    /// Only to hosts on the networks this host is attached to: neighbours, and parents given as
    /// addresses there. No name is resolved.
    LanOnly,
    /// Nowhere: only seeds and earlier signed metadata are used.
    Offline,
}

impl Connectivity {
    /// Returns the entries of `parents` (`HOST:PORT`) that may be connected to.
    pub fn allowed(self, parents: Vec<String>) -> Vec<String> {
        match self {
            Self::Online => parents,
            Self::Offline => Vec::new(),
            Self::LanOnly => {
                let attached = attached();
                let here = |parent: &String| {
                    parent.parse::<SocketAddr>().is_ok_and(|at| is_attached(&attached, at.ip()))
                };
                parents.into_iter().filter(here).collect()
            }
        }
    }

    /// Returns whether a neighbour at this address may be dialled.
    pub fn allows_neighbour(self, address: SocketAddr) -> bool {
        match self {
            Self::Online => true,
            Self::Offline => false,
            Self::LanOnly => is_attached(&attached(), address.ip()),
        }
    }
}

/// Network that an interface is attached to: the interface's address and prefix length.
type Network = (IpAddr, u8);

fn attached() -> Vec<Network> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "could not list the networks of this host, so no address counts as local");
        Vec::new()
    });
    let network = |interface: &if_addrs::Interface| match &interface.addr {
        if_addrs::IfAddr::V4(at) => (at.ip.into(), at.prefixlen),
        if_addrs::IfAddr::V6(at) => (at.ip.into(), at.prefixlen),
    };
    interfaces.iter().map(network).collect()
}

fn is_attached(networks: &[Network], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    networks.iter().any(|(network, prefix)| match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) => {
            let shift = 32 - u32::from((*prefix).min(32));
            (network.to_bits() ^ ip.to_bits()).checked_shr(shift).is_none_or(|rest| rest == 0)
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) => {
            let shift = 128 - u32::from((*prefix).min(128));
            (network.to_bits() ^ ip.to_bits()).checked_shr(shift).is_none_or(|rest| rest == 0)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_on_attached_networks_are_local() {
        let ip = |text: &str| text.parse().expect("an address");
        let networks = [(ip("10.1.2.3"), 24), (ip("fd00::1"), 64), (ip("127.0.0.1"), 8)];
        for (address, near) in [
            ("10.1.2.99", true),
            ("10.1.3.99", false),
            ("127.0.0.1", true),
            ("203.0.113.1", false),
            ("fd00::2", true),
            ("fd00:0:0:1::2", false),
            ("::ffff:10.1.2.4", true),
        ] {
            assert_eq!(is_attached(&networks, ip(address)), near, "{address}");
        }
        let parents = vec!["localhost:1".to_owned(), "127.0.0.1:1".to_owned(), "203.0.113.1:1".to_owned()];
        assert_eq!(Connectivity::LanOnly.allowed(parents.clone()), ["127.0.0.1:1"]);
        assert!(Connectivity::Offline.allowed(parents.clone()).is_empty());
        assert_eq!(Connectivity::Online.allowed(parents.clone()), parents);
    }
}
