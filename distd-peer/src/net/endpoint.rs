//! QUIC endpoints with distd's windows and timers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// Unacknowledged bytes a peer may have in flight to us on one stream: one batch's chunks in compressed form mostly fit,
/// and 4 MiB fill 1 Gbit/s at 30 ms.
const STREAM_WINDOW: u32 = 4 << 20;

/// The same over all streams: bounds what one connection can make us buffer.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Streams a peer may have open: control streams of a few swarms and their batches.
const STREAMS_MAX: u32 = 128;

/// Largest packet probed for: jumbo frames and loopback; path MTU discovery settles on what the path carries.
const MTU_MAX: u16 = 8952;

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

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(Duration::from_secs(30)).expect("30 s fit a varint of milliseconds");
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(Duration::from_secs(10)))
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}

fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint, BindError> {
    let open = || {
        let socket = std::net::UdpSocket::bind(address)?;
        let mut config = EndpointConfig::default();
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
    config.transport_config(transport());
    let mut endpoint = endpoint(address, None)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// An endpoint that listens.
///
/// # Errors
/// [`BindError`].
pub fn server_endpoint(address: SocketAddr, mut config: quinn::ServerConfig) -> Result<Endpoint, BindError> {
    config.transport_config(transport());
    endpoint(address, Some(config))
}

/// Resolves `HOST:PORT`.
///
/// # Errors
/// The resolver's, or `NotFound` for a name without addresses.
pub async fn resolve(address: &str) -> io::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(address).await?;
    found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
}
