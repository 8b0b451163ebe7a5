//! QUIC endpoints with distd's windows and timers, which connections over TCP share.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustix::net::sockopt;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::congestion::Congestion;

/// Maximum number of unread bytes on one stream of an asker. The compressed chunks of one batch
/// mostly fit.
pub(super) const STREAM_WINDOW: u32 = 3 << 20;

/// The same over all streams of a connection. Fills 1 Gbit/s at 50 ms, and bounds what one
/// connection can make the asker buffer. On a fast link all of it waits for the disk.
pub(super) const CONNECTION_WINDOW: u32 = 6 << 20;

/// Bytes written to a connection and not acknowledged, before the path has been measured.
const SEND_WINDOW_MIN: u64 = 512 << 10;

/// Maximum number of streams that a peer may have open: control streams of a few swarms and their
/// batches.
pub(super) const STREAMS_MAX: u32 = 128;

/// Maximum number of streams for any peer: a relay has on one connection everything that its own
/// askers have.
pub(super) const STREAMS_MOST: u32 = 1024;

/// Duration of silence after which a connection counts as lost.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// Duration of silence after which a peer is probed.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Largest packet probed for, bytes. Path MTU discovery settles on what the path carries. QUIC
/// gives the system ten packets at once, and these must fit one IPv4 datagram (65 507 bytes):
/// otherwise the system accepts none of them and all ten are lost.
const MTU_MAX: u16 = 6550;

/// Size of a socket's buffers, bytes. It holds what a link of 1 Gbit/s brings in 30 ms while this
/// process waits for a processor.
const SOCKET_BUFFER: usize = 4 << 20;

/// Opens a UDP socket with room for the datagrams that arrive while this process waits for a
/// processor. Datagrams that overflow the system's default (some 200 KiB) are lost, and sent again.
///
/// # Errors
/// The error of binding.
pub fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    // Root may set any size, other users at most `net.core.rmem_max`. A smaller buffer only costs
    // speed.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

/// Reason why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}: choose another address, or stop what uses it")]
pub struct BindError {
    /// Address that could not be bound.
    pub address: SocketAddr,
    /// Error of the operating system.
    #[source]
    pub cause: io::Error,
}

/// Maximum number of unread bytes on one stream of an answerer. Requests are far smaller than
/// answers.
pub(super) const REQUEST_STREAM_WINDOW: u32 = 1_200_000;

/// The same over all streams of a connection, which may be one of thousands and, for enrolment,
/// from any sender.
pub(super) const REQUEST_CONNECTION_WINDOW: u32 = 1_500_000;

/// Parameters on which a connection's speed depends. The defaults are measured (docs/benchmarks.md,
/// "Speed").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Congestion control of the side that sends chunks.
    pub congestion: Congestion,
    /// Maximum number of unread bytes on one stream of an asker.
    pub stream_window: u32,
    /// The same over all streams of a connection.
    pub connection_window: u32,
    /// Largest packet probed for, bytes.
    pub mtu_max: u16,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::Follow,
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            mtu_max: MTU_MAX,
        }
    }
}

impl Tuning {
    /// Transport settings of an asker.
    pub fn asking(&self) -> Arc<TransportConfig> {
        self.transport(self.stream_window, self.connection_window)
    }

    /// Transport settings of an answerer.
    pub fn answering(&self) -> Arc<TransportConfig> {
        self.transport(REQUEST_STREAM_WINDOW, REQUEST_CONNECTION_WINDOW)
    }

    fn transport(&self, stream_window: u32, connection_window: u32) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let idle = IdleTimeout::try_from(IDLE).expect("30 s fit a varint of milliseconds");
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu_max);
        config
            .congestion_controller_factory(self.congestion.factory())
            .stream_receive_window(VarInt::from_u32(stream_window))
            .receive_window(VarInt::from_u32(connection_window))
            .send_window(SEND_WINDOW_MIN)
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .mtu_discovery_config(Some(mtu));
        Arc::new(config)
    }
}

/// Sets the bound on unacknowledged bytes to twice the congestion window of the path. There is
/// always something to send, and a thousand connections do not hold megabytes each. Call it
/// whenever bytes are written.
pub fn fit_send_window(connection: &quinn::Connection) {
    let in_flight = connection.stats().path.cwnd;
    let most = u64::from(CONNECTION_WINDOW);
    connection.set_send_window(in_flight.saturating_mul(2).clamp(SEND_WINDOW_MIN, most));
}

/// Key that keeps the stateless resets of this node the same over a restart (RFC 9000 §10.3).
/// Without it, the peer of a process that was killed waits for its idle timeout before it dials
/// again.
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// Derives the key from the node's private key, PKCS#8.
    pub fn of_node(private_key: &PrivateKeyDer<'_>) -> Self {
        Self(blake3::derive_key("distd 2026-11-20 quic stateless reset v1", private_key.secret_der()))
    }
}

fn endpoint_config(reset: Option<&ResetKey>) -> EndpointConfig {
    let Some(ResetKey(seed)) = reset else { return EndpointConfig::default() };
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, seed)));
    // Connection ids contain a check made with this key. A packet whose id fails the check is not
    // answered.
    let id_key = blake3::derive_key("distd 2026-11-20 quic connection id v1", seed);
    let id_key = u64::from_be_bytes(id_key[..8].try_into().expect("eight of 32 bytes"));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

fn endpoint(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
    reset: Option<&ResetKey>,
) -> Result<Endpoint, BindError> {
    let open = || {
        let socket = udp_socket(address)?;
        let mut config = endpoint_config(reset);
        config.max_udp_payload_size(MTU_MAX).expect("above the minimum of 1200");
        Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
    };
    open().map_err(|cause| BindError { address, cause })
}

/// Opens an endpoint that only dials.
///
/// # Errors
/// [`BindError`].
pub fn client_endpoint(dual_stack: bool, mut config: quinn::ClientConfig) -> Result<Endpoint, BindError> {
    let address: SocketAddr = if dual_stack { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    config.transport_config(Tuning::default().asking());
    let mut endpoint = endpoint(address, None, None)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Opens the endpoint of a device. It dials parents and neighbours and is dialled by neighbours,
/// all from one port, so that a dialled node sees where the device listens.
///
/// # Errors
/// [`BindError`].
pub fn device_endpoint(
    address: SocketAddr,
    mut client: quinn::ClientConfig,
    mut server: quinn::ServerConfig,
    reset: &ResetKey,
) -> Result<Endpoint, BindError> {
    client.transport_config(Tuning::default().asking());
    server.transport_config(Tuning::default().answering());
    bound_incoming(&mut server);
    let mut endpoint = endpoint(address, Some(server), Some(reset))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// Returns the address of this host on the route to `remote`, with `port`. Sends nothing.
///
/// # Errors
/// The system's error, if there is no route.
pub fn own_address(remote: SocketAddr, port: u16) -> io::Result<SocketAddr> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let any: SocketAddr = if remote.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(SocketAddr::new(socket.local_addr()?.ip(), port))
}

/// Opens an endpoint that listens.
///
/// # Errors
/// [`BindError`].
pub fn server_endpoint(
    address: SocketAddr,
    mut config: quinn::ServerConfig,
    reset: &ResetKey,
) -> Result<Endpoint, BindError> {
    config.transport_config(Tuning::default().answering());
    bound_incoming(&mut config);
    endpoint(address, Some(config), Some(reset))
}

/// Bounds the memory for packets of unknown peers before a handshake begins: each is accepted or
/// refused within moments.
fn bound_incoming(config: &mut quinn::ServerConfig) {
    config.max_incoming(4096).incoming_buffer_size(16 << 10).incoming_buffer_size_total(16 << 20);
}

/// Number of attempts to find a port, chosen by the system for UDP, that is also free for TCP.
const PORT_TRIES: u32 = 32;

/// Opens the sockets of a parent: QUIC, and TCP at the same port number.
///
/// # Errors
/// [`BindError`].
pub fn parent_sockets(
    address: SocketAddr,
    config: &quinn::ServerConfig,
    reset: &ResetKey,
) -> Result<(Endpoint, TcpListener), BindError> {
    let (endpoint, listener) = with_tcp(address, || server_endpoint(address, config.clone(), reset))?;
    let listener = listener.map_err(|cause| BindError { address, cause })?;
    Ok((endpoint, listener))
}

/// Opens the sockets of a device that gives its neighbours packages: QUIC as [`device_endpoint`],
/// and TCP at the same port number, or the error of TCP.
///
/// # Errors
/// [`BindError`] of QUIC.
pub fn device_sockets(
    address: SocketAddr,
    client: &quinn::ClientConfig,
    server: &quinn::ServerConfig,
    reset: &ResetKey,
) -> Result<(Endpoint, io::Result<TcpListener>), BindError> {
    with_tcp(address, || device_endpoint(address, client.clone(), server.clone(), reset))
}

/// Opens an endpoint, and TCP at its port number. Where the system chooses the port, it is one that
/// both have free.
fn with_tcp(
    address: SocketAddr,
    open: impl Fn() -> Result<Endpoint, BindError>,
) -> Result<(Endpoint, io::Result<TcpListener>), BindError> {
    let mut tries = PORT_TRIES;
    loop {
        let endpoint = open()?;
        let listen = || {
            let listener = std::net::TcpListener::bind(endpoint.local_addr()?)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = listen();
        tries -= 1;
        match &listener {
            // Another process has this port for TCP.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries > 0 => {}
            _ => return Ok((endpoint, listener)),
        }
    }
}

/// Maximum number of addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Returns all addresses of `HOST:PORT` in the order in which they should be tried: the resolver's
/// order, with address families alternating (RFC 8305 §4). A link-local address may name its
/// interface, as in `[fe80::1%eth0]:4433`.
///
/// # Errors
/// The resolver's error, or `NotFound` for a name without addresses.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Some(scoped) = scoped_address(address) {
        return Ok(vec![scoped?]);
    }
    let found: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    let Some(first) = found.first() else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    };
    let v6_first = first.is_ipv6();
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == v6_first);
    let mut out = Vec::new();
    while out.len() < ADDRESSES_MAX && !(first.is_empty() && second.is_empty()) {
        out.extend(first.pop_front());
        out.extend(second.pop_front());
    }
    out.truncate(ADDRESSES_MAX);
    Ok(out)
}

/// Parses `[ADDRESS%INTERFACE]:PORT`, which the system's resolver does not accept; `None` for
/// anything else.
fn scoped_address(address: &str) -> Option<io::Result<SocketAddr>> {
    let (host, port) = address.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, zone) = host.split_once('%')?;
    let (ip, port): (Ipv6Addr, u16) = (ip.parse().ok()?, port.parse().ok()?);
    let scope = match zone.parse() {
        Ok(index) => Ok(index),
        Err(_) => interface_index(zone),
    };
    Some(scope.map(|scope| SocketAddrV6::new(ip, port, 0, scope).into()))
}

fn interface_index(name: &str) -> io::Result<u32> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    rustix::net::netdevice::name_to_index(&socket, name)
        .map_err(|e| io::Error::new(e.kind(), format!("there is no network interface {name}")))
}

/// Time for which one address is tried alone, before the next one is tried too (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Tries addresses one after the other, each while the earlier attempts continue, and returns the
/// first that succeeds. An address that does not answer costs a quarter of a second, not the whole
/// timeout.
///
/// # Errors
/// The last failure, if all have failed. `None` if there is no address.
pub(super) async fn first_of<T, E, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut left = addresses.iter();
    let mut under_way = FuturesUnordered::new();
    let mut last = None;
    under_way.extend(left.next().map(|address| connect(*address)));
    loop {
        tokio::select! {
            Some(done) = under_way.next() => match done {
                Ok(connected) => return Some(Ok(connected)),
                Err(error) => last = Some(Err(error)),
            },
            () = tokio::time::sleep(ATTEMPT_DELAY), if !under_way.is_empty() && left.len() > 0 => {}
            else => return last,
        }
        match left.next() {
            Some(address) => under_way.push(connect(*address)),
            None if under_way.is_empty() => return last,
            None => {}
        }
    }
}

/// Whether binding failed because the machine has no IPv6.
pub fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL)
    )
}

/// The wildcard IPv4 address with the same port: the fallback of a default wildcard address on a
/// host without IPv6.
pub fn everywhere_ipv4(address: SocketAddr) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, address.port()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_delays_the_next_one_only_briefly() {
        let start = tokio::time::Instant::now();
        let addresses = [at(1), at(2), at(3)];
        let got = first_of(&addresses, |address| async move {
            match address.port() {
                1 => std::future::pending().await,
                2 => Err("refused"),
                port => Ok(port),
            }
        });
        assert_eq!(got.await, Some(Ok(3)));
        assert_eq!(start.elapsed(), ATTEMPT_DELAY, "a failure makes way at once");
        let all: Option<Result<u16, _>> =
            first_of(&[at(1), at(2)], |address| async move { Err(address) }).await;
        assert_eq!(all, Some(Err(at(2))));
        let none: Option<Result<u16, ()>> = first_of(&[], |_| std::future::ready(Ok(1))).await;
        assert_eq!(none, None);
    }

    #[tokio::test]
    async fn a_link_local_address_may_name_its_interface() {
        let found = resolve("[fe80::1%lo]:4433").await.expect("an address");
        assert_eq!(found.len(), 1);
        let SocketAddr::V6(address) = found[0] else { panic!("{found:?}") };
        assert!(address.scope_id() > 0 && address.port() == 4433);
        let error = resolve("[fe80::1%no-such-if]:4433").await.expect_err("no such interface");
        assert!(error.to_string().contains("no-such-if"), "{error}");
        assert_eq!(resolve("127.0.0.1:5").await.expect("an address"), [at(5)]);
    }

    #[tokio::test]
    async fn a_port_that_the_system_chooses_is_free_for_tcp_too() {
        // A port that another program has for TCP, and nobody for UDP.
        let (taken, first) = loop {
            let taken = std::net::TcpListener::bind(at(0)).expect("a listener");
            if let Ok(first) = endpoint(taken.local_addr().expect("bound"), None, None) {
                break (taken, first);
            }
        };
        let taken = taken.local_addr().expect("bound");
        let first = std::cell::Cell::new(Some(first));
        let open = |address| first.take().map_or_else(|| endpoint(address, None, None), Ok);
        let (endpoint, tcp) = with_tcp(at(0), || open(at(0))).expect("another port");
        let found = endpoint.local_addr().expect("bound");
        assert_eq!(tcp.expect("free for TCP").local_addr().expect("bound"), found);
        assert_ne!(found, taken);
    }

    #[tokio::test]
    async fn a_port_that_was_named_is_kept_without_tcp() {
        let (_other, opened) = loop {
            let other = std::net::TcpListener::bind(at(0)).expect("a listener");
            let address = other.local_addr().expect("bound");
            if let Ok(opened) = with_tcp(address, || endpoint(address, None, None)) {
                break (other, opened);
            }
        };
        assert_eq!(opened.1.expect_err("another program has it").kind(), io::ErrorKind::AddrInUse);
    }
}
