//! QUIC endpoints with distd's windows and timers, which connections over TCP have too.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustix::net::sockopt;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::congestion::Congestion;

/// Unacknowledged bytes a peer may have in flight to us on one stream: one batch's chunks in compressed form mostly fit.
pub(super) const STREAM_WINDOW: u32 = 3 << 20;

/// The same over all streams: fills 1 Gbit/s at 50 ms, and bounds what one connection can make us buffer. On a fast link all of it waits for the
/// disk.
pub(super) const CONNECTION_WINDOW: u32 = 6 << 20;

/// Bytes written to a connection and not acknowledged, before anything is known of the path.
const SEND_WINDOW_MIN: u64 = 512 << 10;

/// Streams a peer may have open: control streams of a few swarms and their batches.
pub(super) const STREAMS_MAX: u32 = 128;

/// Streams that any peer may have open: a relay has on one connection what all its own askers have.
pub(super) const STREAMS_MOST: u32 = 1024;

/// Silence after which a connection counts as lost.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// Silence after which a peer is asked for a sign of life.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Largest packet probed for, bytes: path MTU discovery settles on what the path carries. The ten packets that QUIC hands to the system at once
/// must fit one datagram of IPv4 (65 507 bytes), or the system takes none of them and all ten are lost.
const MTU_MAX: u16 = 6550;

/// Bytes of datagrams that may wait in a socket until this process gets to run: what a link of 1 Gbit/s brings in 30 ms.
const SOCKET_BUFFER: usize = 4 << 20;

/// A UDP socket with room for what arrives while this process waits for a processor. What overflows the system's own default (some 200 KiB) is lost, and
/// sent again.
///
/// # Errors
/// Those of binding.
pub fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    // Root may have as much as it wants, others as much as `net.core.rmem_max` says; less only costs speed.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

/// Why an endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {address}: choose another address, or stop what uses it")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The operating system's answer.
    #[source]
    pub cause: io::Error,
}

/// What an asker may have unread at a node that answers: requests are far smaller than answers.
pub(super) const REQUEST_STREAM_WINDOW: u32 = 1_200_000;

/// The same over all streams of a connection, which may be one of thousands and, for enrolment, anyone's.
pub(super) const REQUEST_CONNECTION_WINDOW: u32 = 1_500_000;

/// What a connection's speed depends on. The defaults are measured: docs/benchmarks.md, "Speed".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Of the side that sends chunks.
    pub congestion: Congestion,
    /// Bytes an asker takes in flight on one stream.
    pub stream_window: u32,
    /// The same over all streams.
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
    /// For who asks for chunks.
    pub fn asking(&self) -> Arc<TransportConfig> {
        self.transport(self.stream_window, self.connection_window)
    }

    /// For who sends them.
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

/// Bounds what is written and not acknowledged to twice what the path has in flight: enough that there is always something to send, and a
/// thousand connections do not each hold megabytes. To be called as bytes are written.
pub fn fit_send_window(connection: &quinn::Connection) {
    let in_flight = connection.stats().path.cwnd;
    let most = u64::from(CONNECTION_WINDOW);
    connection.set_send_window(in_flight.saturating_mul(2).clamp(SEND_WINDOW_MIN, most));
}

/// What makes stateless resets of this node the same after a restart (RFC 9000 §10.3): without it a peer of a process that was
/// killed waits for its idle timeout before it dials again.
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// From the node's private key, PKCS#8.
    pub fn of_node(private_key: &PrivateKeyDer<'_>) -> Self {
        Self(blake3::derive_key("distd 2026-11-20 quic stateless reset v1", private_key.secret_der()))
    }
}

fn endpoint_config(reset: Option<&ResetKey>) -> EndpointConfig {
    let Some(ResetKey(seed)) = reset else { return EndpointConfig::default() };
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, seed)));
    // Connection ids carry a check of this key; a packet whose id does not pass is answered with nothing.
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

/// An endpoint that only dials.
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

/// An endpoint of a device: dials parents and neighbours, and is dialled by neighbours, from one port, so that who is dialled sees
/// where it listens.
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

/// The address of this host on the way to `remote`, with `port`. Nothing is sent.
///
/// # Errors
/// The system's: no way there.
pub fn own_address(remote: SocketAddr, port: u16) -> io::Result<SocketAddr> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let any: SocketAddr = if remote.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(SocketAddr::new(socket.local_addr()?.ip(), port))
}

/// An endpoint that listens.
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

/// Bounds what strangers' packets hold before a handshake has begun: each is accepted or refused within moments.
fn bound_incoming(config: &mut quinn::ServerConfig) {
    config.max_incoming(4096).incoming_buffer_size(16 << 10).incoming_buffer_size_total(16 << 20);
}

/// Times a port that the system chose for UDP is tried for TCP too.
const PORT_TRIES: u32 = 32;

/// What a parent listens on: QUIC, and TCP at the same port number.
///
/// # Errors
/// [`BindError`].
pub fn parent_sockets(
    address: SocketAddr,
    config: &quinn::ServerConfig,
    reset: &ResetKey,
) -> Result<(Endpoint, TcpListener), BindError> {
    let mut tries = PORT_TRIES;
    loop {
        let endpoint = server_endpoint(address, config.clone(), reset)?;
        let failed = |cause| BindError { address, cause };
        let listen = || {
            let listener = std::net::TcpListener::bind(endpoint.local_addr()?)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        tries -= 1;
        match listen() {
            Ok(listener) => return Ok((endpoint, listener)),
            // Taken for TCP by somebody else.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries > 0 => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Resolves `HOST:PORT`.
///
/// # Errors
/// The resolver's, or `NotFound` for a name without addresses.
pub async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(address).await?;
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}
