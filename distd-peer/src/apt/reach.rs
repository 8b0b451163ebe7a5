//! Hosts that the proxy may ask, and addresses that it may connect to.
//!
//! A client of the proxy may be anybody on the machine, and a mirror may redirect anywhere. So a
//! host has to be on the list, and no address is connected to that the public Internet does not
//! have, unless the operator named the host for that. The address is looked at after the resolver,
//! at each redirect and each connection: the socket is opened to the very address that was looked
//! at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::address::{Address, AddressError, host_and_port};

/// Hosts that are always on the list: the archives of Debian and Ubuntu and their mirrors by
/// country.
const USUAL: [&str; 4] = ["*.debian.org", "debian.org", "*.ubuntu.com", "deb.debian.net"];

/// Longest time for the resolver, and for one connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Most addresses of a host that are tried.
const ADDRESSES_MAX: usize = 8;

/// Host, or hosts, by name: `HOST`, `*.DOMAIN`, each with `:PORT` or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    name: String,
    is_suffix: bool,
    port: Option<u16>,
}

impl FromStr for HostPattern {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (is_suffix, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // Port 0 means that the pattern names none.
        let (name, port) = host_and_port(rest, 0)?;
        Ok(Self { name, is_suffix, port: (port != 0).then_some(port) })
    }
}

impl HostPattern {
    fn has(&self, host: &str, port: u16) -> bool {
        let is_name = match self.is_suffix {
            true => host.strip_suffix(&self.name).is_some_and(|before| before.ends_with('.')),
            false => host == self.name,
        };
        // Without a port, those of the two schemes: other services of a host are none of ours.
        is_name && self.port.map_or(port == 80 || port == 443, |wanted| wanted == port)
    }
}

/// Reason why an address is not connected to.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The host is not on the list.
    #[error("{0} is not among the hosts that this proxy asks")]
    Host(String),
    /// Every address of the host belongs to a private network, to this machine or to no host.
    #[error("{0} leads to the private address {1}")]
    Private(String, IpAddr),
    /// The settings keep this device's packets in its networks.
    #[error("{0} is not asked: the packets of this device stay in its networks")]
    Kept(String),
    /// The name does not resolve.
    #[error("could not find the address of {0}")]
    Resolve(String, #[source] io::Error),
    /// No connection.
    #[error("could not connect to {0}")]
    Connect(String, #[source] io::Error),
}

/// Hosts that the proxy asks.
#[derive(Clone, Debug)]
pub struct Reach {
    hosts: Vec<HostPattern>,
    private: Vec<HostPattern>,
}

impl Reach {
    /// The archives of Debian and Ubuntu, `hosts`, and `private`, which may also have private
    /// addresses.
    pub fn new(hosts: &[HostPattern], private: &[HostPattern]) -> Self {
        let usual = USUAL.iter().filter_map(|host| host.parse().ok());
        Self { hosts: usual.chain(hosts.iter().cloned()).collect(), private: private.to_vec() }
    }

    /// Whether a client may ask for files of this host.
    pub fn allows(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().chain(&self.private).any(|pattern| pattern.has(host, port))
    }

    /// Checks that a redirect may lead to `to`. A mirror may send a caller to any public host, on a
    /// port of HTTP.
    ///
    /// # Errors
    /// `Unreachable::Host`.
    pub fn check_redirect(&self, to: &Address) -> Result<(), Unreachable> {
        if to.port == 80 || to.port == 443 || self.allows(&to.host, to.port) {
            return Ok(());
        }
        Err(Unreachable::Host(to.authority()))
    }

    /// Connects to `host`.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Unreachable> {
        let name = format!("{host}:{port}");
        let may_be_private = self.private.iter().any(|pattern| pattern.has(host, port));
        let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => {
                let found = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
                let found = found.unwrap_or_else(|_| Err(timed_out()));
                found.map_err(|error| Unreachable::Resolve(name.clone(), error))?.collect()
            }
        };
        let mut last = None;
        for address in found.into_iter().take(ADDRESSES_MAX) {
            if !may_be_private && !is_public(address.ip()) {
                last = last.or(Some(Unreachable::Private(name.clone(), address.ip())));
                continue;
            }
            let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_| Err(timed_out())) {
                Ok(stream) => {
                    // A socket that refuses the option is about to fail anyway.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = Some(Unreachable::Connect(name.clone(), error)),
            }
        }
        Err(last.unwrap_or_else(|| Unreachable::Resolve(name, io::ErrorKind::NotFound.into())))
    }
}

/// Whether an address is one of the public Internet.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let [a, b, ..] = parts;
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b) {
        // NAT64: the address is an IPv4 one.
        (0x64, 0xff9b) if parts[2..6] == [0; 4] => embedded(parts[6], parts[7]),
        // 6to4 likewise.
        (0x2002, _) => embedded(parts[1], parts[2]),
        // Teredo, and examples.
        (0x2001, 0..0x200) | (0x2001, 0xdb8) => false,
        _ => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "127.8.8.8",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.7",
            "198.18.0.1",
            "203.0.113.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2002:c0a8:101::1",
            "2001:db8::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(text.parse().expect(text)), "{text}");
        }
        for text in
            ["151.101.2.132", "172.32.0.1", "100.128.0.1", "2a04:4e42::644", "64:ff9b::9765:284", "8.8.8.8"]
        {
            assert!(is_public(text.parse().expect(text)), "{text}");
        }
    }

    #[test]
    fn hosts_are_those_of_the_archives_and_those_that_are_named() {
        let named = ["repo.example".parse().expect("a host"), "*.lan.example:8080".parse().expect("hosts")];
        let reach = Reach::new(&named, &["10.0.0.7:3142".parse().expect("a host")]);
        for (host, port, allowed) in [
            ("deb.debian.org", 80, true),
            ("deb.debian.org", 443, true),
            ("deb.debian.org", 22, false),
            ("security.ubuntu.com", 80, true),
            ("evildebian.org", 80, false),
            ("debian.org.evil.example", 80, false),
            ("repo.example", 80, true),
            ("repo.example", 8080, false),
            ("a.lan.example", 8080, true),
            ("a.lan.example", 80, false),
            ("lan.example", 8080, false),
            ("10.0.0.7", 3142, true),
            ("10.0.0.7", 80, false),
        ] {
            assert_eq!(reach.allows(host, port), allowed, "{host}:{port}");
        }
        let away = Address::parse("http://mirror.example/x").expect("an address");
        reach.check_redirect(&away).expect("any public host");
        let port = Address::parse("http://mirror.example:25/x").expect("an address");
        assert!(reach.check_redirect(&port).is_err());
    }

    #[tokio::test]
    async fn nothing_connects_to_this_machine_unless_the_operator_named_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let reach = Reach::new(&[format!("localhost:{port}").parse().expect("a host")], &[]);
        for host in ["localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let error = reach.connect(host, port).await.expect_err("refused");
            assert!(matches!(error, Unreachable::Private(..)), "{host}: {error:?}");
        }
        let named = Reach::new(&[], &[format!("127.0.0.1:{port}").parse().expect("a host")]);
        named.connect("127.0.0.1", port).await.expect("connects");
    }
}
