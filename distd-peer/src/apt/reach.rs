//! Hosts that the proxy may ask, and addresses that it may connect to.
//!
//! A client of the proxy may be anybody on the machine, and a mirror may redirect anywhere. So a
//! host has to be on the list, and no address is connected to that the public Internet does not
//! have, unless the operator named the host for that. The address is looked at after the resolver,
//! at each redirect and each connection: the socket is opened to the very address that was looked
//! at.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::address::{Address, AddressError, host_and_port};
use crate::net::resolve;

/// Hosts that are always on the list: the archives of Debian and Ubuntu and their mirrors by
/// country.
const USUAL: [&str; 4] = ["*.debian.org", "debian.org", "*.ubuntu.com", "deb.debian.net"];

/// Longest time for the resolver and the connection together, however many addresses a name has.
/// apt gives up after 30 s without a byte.
const CONNECT: Duration = Duration::from_secs(10);

/// Time after which the next address of a host is dialled beside those before (RFC 8305, section
/// 5). The RFC has 250 ms; a mirror far away should not be dialled twice, and 8 addresses fit into
/// [`CONNECT`].
const STEP: Duration = Duration::from_secs(1);

/// Time for which a host that was silent is not asked again. Short: a network that comes back is
/// used soon.
const SILENT: Duration = Duration::from_secs(15);

/// Most hosts of which it is remembered that they were silent.
const SILENT_MAX: usize = 256;

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
    /// Nothing answered in time.
    #[error("{0} did not answer within {1} s")]
    Silent(String, u64),
    /// Nothing answered a moment ago.
    #[error("{0} did not answer some seconds ago")]
    WasSilent(String),
}

/// Hosts that did not answer in time. A network that drops packets costs one wait and not one for
/// each file.
#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<HashMap<String, Instant>>);

impl Silence {
    /// Takes note that `host` was silent.
    pub(super) fn note(&self, host: &str) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= SILENT_MAX {
            hosts.retain(|_, since| since.elapsed() < SILENT);
        }
        if hosts.len() < SILENT_MAX {
            hosts.insert(host.to_owned(), Instant::now());
        }
    }

    /// Whether `host` was silent in the last [`SILENT`].
    pub(super) fn has(&self, host: &str) -> bool {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(host).is_some_and(|since| since.elapsed() < SILENT)
    }
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

    /// Connects to `host`, within 10 seconds.
    ///
    /// # Errors
    /// `Unreachable`.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Unreachable> {
        let connected = tokio::time::timeout(CONNECT, self.connect_to_any(host, port)).await;
        connected.unwrap_or_else(|_| Err(Unreachable::Silent(format!("{host}:{port}"), CONNECT.as_secs())))
    }

    async fn connect_to_any(&self, host: &str, port: u16) -> Result<TcpStream, Unreachable> {
        let name = format!("{host}:{port}");
        let may_be_private = self.private.iter().any(|pattern| pattern.has(host, port));
        let mut addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => resolve(&name).await.map_err(|error| Unreachable::Resolve(name.clone(), error))?,
        };
        let private = addresses.iter().map(SocketAddr::ip).find(|address| !is_public(*address));
        if !may_be_private {
            addresses.retain(|address| is_public(address.ip()));
        }
        if let Some(private) = private.filter(|_| addresses.is_empty()) {
            return Err(Unreachable::Private(name, private));
        }
        let stream = first_of(&addresses).await.map_err(|error| Unreachable::Connect(name, error))?;
        // A socket that refuses the option is about to fail anyway.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

/// Connects to the first of these addresses that answers. One that is silent is not waited for:
/// the next is dialled beside it.
async fn first_of(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut left = addresses.iter();
    let mut dials = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        match left.next() {
            Some(address) => dials.push(TcpStream::connect(*address)),
            None if dials.is_empty() => return Err(last),
            None => {}
        }
        // Without another address there is nothing but to wait.
        let step = tokio::time::timeout(if left.len() > 0 { STEP } else { CONNECT }, dials.next());
        match step.await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last = error,
            Ok(None) | Err(_) => {}
        }
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

    /// Listeners that take no connection: their queue is full, so the system drops what else comes.
    async fn silent_listeners(number: usize) -> (Vec<SocketAddr>, Vec<Box<dyn std::any::Any>>) {
        let (mut addresses, mut held) = (Vec::new(), Vec::<Box<dyn std::any::Any>>::new());
        for _ in 0..number {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
            let listener = socket.listen(0).expect("a listener");
            let address = listener.local_addr().expect("an address");
            for _ in 0..4 {
                let dial = tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(address));
                held.push(Box::new(dial.await));
            }
            addresses.push(address);
            held.push(Box::new(listener));
        }
        (addresses, held)
    }

    #[tokio::test]
    async fn addresses_that_are_silent_are_passed_over_and_bounded_together() {
        let (mut addresses, _held) = silent_listeners(8).await;
        // The clock leaps to the next timer whenever nothing else moves.
        tokio::time::pause();
        let begun = Instant::now();
        let port = addresses[0].port();
        let host = "127.0.0.1";
        let reach = Reach::new(&[], &[format!("{host}:{port}").parse().expect("a host")]);
        let error = reach.connect(host, port).await.expect_err("silent");
        assert!(matches!(error, Unreachable::Silent(..)), "{error:?}");
        assert_eq!(begun.elapsed().as_secs(), CONNECT.as_secs());
        let begun = Instant::now();
        let all = tokio::time::timeout(CONNECT, first_of(&addresses)).await;
        assert!(all.is_err() && begun.elapsed().as_secs() == CONNECT.as_secs(), "{all:?}");
        // One that answers is found behind seven that do not.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        addresses[7] = listener.local_addr().expect("an address");
        let found = tokio::time::timeout(CONNECT, first_of(&addresses)).await.expect("in time");
        assert_eq!(found.and_then(|stream| stream.peer_addr()).expect("connects"), addresses[7]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_remembered_for_a_short_time() {
        let silence = Silence::default();
        silence.note("h:80");
        assert!(silence.has("h:80") && !silence.has("h:81"));
        tokio::time::advance(SILENT).await;
        assert!(!silence.has("h:80"));
        for n in 0..2 * SILENT_MAX {
            silence.note(&n.to_string());
        }
        assert_eq!(silence.0.lock().expect("a lock").len(), SILENT_MAX);
    }
}
