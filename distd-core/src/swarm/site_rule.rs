//! [`SiteRule`]: assignment of nodes to sites, by the name in a node's record and by the address
//! where the node was seen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::SiteKey;
use crate::proto::frame::PeerRecord;

/// Rule that decides which nodes are of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteRule {
    /// All askers are of one site, whatever name they state: the neighbours of a device.
    All,
    /// Nodes that name the same site form one site, and all nodes that name none form another: the
    /// office of a relay.
    Named,
    /// Nodes that name the same site form one site. Nodes that name none form one site if they are
    /// seen at one network: behind one public IPv4 address, in one IPv4 /24 of private addresses,
    /// or in one IPv6 /64.
    NamedOrNetwork,
}

impl SiteRule {
    /// Returns the site of a node that was seen at `seen`. `None` if its record must not be
    /// advertised: the record names an address where its node was not seen and that is not a
    /// private address behind a NAT.
    ///
    /// A private address leads to different hosts in different networks. Records with private
    /// addresses behind a NAT are therefore advertised only to nodes seen at the same network,
    /// whichever site the records name: any node can name any site.
    pub fn site_of(self, record: &PeerRecord, seen: IpAddr) -> Option<SiteKey> {
        if record.addresses.iter().all(|address| address.ip() == seen) {
            return Some(SiteKey(match self {
                Self::All => String::new(),
                _ if !record.site.is_empty() => format!("site {}", record.site),
                Self::Named => String::new(),
                Self::NamedOrNetwork => network_of(seen),
            }));
        }
        let behind = is_public(seen) && record.addresses.iter().all(|address| is_private(address.ip()));
        // A neighbour is seen at the address where it listens.
        if !behind || self == Self::All {
            return None;
        }
        let network = network_of(seen);
        Some(SiteKey(match self {
            _ if !record.site.is_empty() => format!("site {} behind {network}", record.site),
            // Together with nodes behind no NAT, and with those that state no address because they
            // serve nobody.
            Self::NamedOrNetwork => network,
            _ => format!("behind {network}"),
        }))
    }
}

/// Whether the address can be reached only inside a private network (RFC 1918, RFC 4193). Excludes
/// link-local addresses, which mean nothing without an interface.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Whether the address may be that of a NAT. Without this check, all nodes that come through a load
/// balancer or a carrier's inner network would be taken for one site.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared(ip)),
        IpAddr::V6(ip) => !(ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local()),
    }
}

/// Whether the address lies between a carrier's NAT and those of its customers (RFC 6598).
fn is_shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && b & 0xc0 == 64
}

/// Returns the name of the network that contains an address.
fn network_of(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) if ip.is_private() || ip.is_loopback() || ip.is_link_local() => {
            let [a, b, c, _] = ip.octets();
            format!("network {a}.{b}.{c}.0/24")
        }
        IpAddr::V4(ip) => format!("network {ip}/32"),
        IpAddr::V6(ip) => {
            let prefix = ip.to_bits() >> 64 << 64;
            format!("network {}/64", Ipv6Addr::from_bits(prefix))
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn site(rule: SiteRule, name: &str, addresses: &[&str], seen: &str) -> Option<String> {
        let record = PeerRecord {
            sequence: 1,
            expires: 1,
            resident: false,
            site: name.into(),
            addresses: addresses
                .iter()
                .map(|ip| (ip.parse::<IpAddr>().expect("an address"), 4434).into())
                .collect(),
            certificate: Bytes::new(),
            signature: [0; 64],
        };
        rule.site_of(&record, seen.parse().expect("an address")).map(|site| site.0)
    }

    #[test]
    fn a_node_without_a_site_name_is_of_the_network_it_is_seen_at() {
        for (ip, network) in [
            ("192.168.7.9", "network 192.168.7.0/24"),
            ("203.0.113.9", "network 203.0.113.9/32"),
            ("2001:db8:1:2:3:4:5:6", "network 2001:db8:1:2::/64"),
        ] {
            let found = site(SiteRule::NamedOrNetwork, "", &[ip], ip);
            assert_eq!(found.as_deref(), Some(network));
            // A node that serves nobody is of the same site.
            assert_eq!(site(SiteRule::NamedOrNetwork, "", &[], ip), found);
            assert_eq!(site(SiteRule::NamedOrNetwork, "hall", &[ip], ip).as_deref(), Some("site hall"));
            assert_eq!(site(SiteRule::Named, "", &[ip], ip).as_deref(), Some(""));
        }
    }

    #[test]
    fn an_address_behind_a_nat_is_advertised_only_in_its_network() {
        let at = |name, addresses: &[&str], seen| site(SiteRule::NamedOrNetwork, name, addresses, seen);
        let (public, private) = ("203.0.113.9", ["192.168.1.7"]);
        assert_eq!(at("", &private, public).as_deref(), Some("network 203.0.113.9/32"));
        assert_eq!(at("", &["10.0.0.1", "fd00::1"], public), at("", &[public], public));
        // A name neither leads out of the network nor lets a node into the site of that name.
        assert_eq!(at("hall", &private, public).as_deref(), Some("site hall behind network 203.0.113.9/32"));
        assert_ne!(at("hall", &private, public), at("hall", &private, "203.0.113.10"));
        assert_ne!(at("hall", &private, public), at("hall", &[public], public));
        assert_eq!(at("", &["fd00::7"], "2001:db8:1:2::1").as_deref(), Some("network 2001:db8:1:2::/64"));
        let relay = site(SiteRule::Named, "", &private, public);
        assert_eq!(relay.as_deref(), Some("behind network 203.0.113.9/32"));
    }

    #[test]
    fn an_address_neither_seen_nor_private_behind_a_public_one_is_refused() {
        for (addresses, seen) in [
            (&["198.51.100.1"][..], "203.0.113.9"),
            (&["192.168.1.7", "198.51.100.1"], "203.0.113.9"),
            (&["192.168.1.7", "203.0.113.9"], "203.0.113.9"),
            (&["169.254.1.1"], "203.0.113.9"),
            (&["127.0.0.1"], "203.0.113.9"),
            (&["100.64.0.1"], "203.0.113.9"),
            (&["fe80::1"], "2001:db8::1"),
            // A NAT does not look like this from outside.
            (&["192.168.1.7"], "192.168.1.8"),
            (&["192.168.1.7"], "10.0.0.1"),
            (&["192.168.1.7"], "100.64.0.1"),
            (&["192.168.1.7"], "127.0.0.1"),
            (&["fd00::7"], "fd00::8"),
        ] {
            for name in ["", "hall"] {
                for rule in [SiteRule::All, SiteRule::Named, SiteRule::NamedOrNetwork] {
                    assert_eq!(site(rule, name, addresses, seen), None, "{addresses:?} seen at {seen}");
                }
            }
        }
        assert_eq!(
            site(SiteRule::All, "", &["192.168.1.7"], "203.0.113.9"),
            None,
            "a neighbour is no parent"
        );
    }
}
