//! Dialling of parents over QUIC, over HTTPS, or over whichever gets through.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::{Carrier, Connection};
use super::endpoint::{BindError, client_endpoint, first_of, resolve};
use super::https::{Dialled, Wire};
use super::outbound::{Outbound, Transport};
use super::proxy::{ProxyError, tunnel};
use crate::trust::identity::PARENT_NAME;
use crate::trust::tls::{
    Credentials, TlsError, TrustAnchor, https_enroll_client, https_parent_client, quic_enroll_client,
};

/// Time that a dialled parent may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Time for which the transport dialled first is tried alone: enough for a handshake over any
/// terrestrial link. QUIC repeats a lost first packet only after a second.
const HEAD_START: Duration = Duration::from_millis(300);

/// First pause before a TCP port on which nobody listens is tried again; doubles up to
/// [`TCP_PAUSE_MAX`]. A parent that is just being restarted is found this way. QUIC repeats its
/// packets likewise.
const TCP_PAUSE: Duration = Duration::from_millis(200);
const TCP_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Reason why a parent could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address does not resolve.
    #[error("could not resolve {0}")]
    Resolve(String, #[source] io::Error),
    /// A node answered, but not as a parent of this realm.
    #[error("could not connect to {0}: check that it runs and belongs to this realm")]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The TCP connection failed.
    #[error("could not connect to {0} over TCP: check that it runs and that TCP reaches it")]
    Tcp(String, #[source] io::Error),
    /// No answer came in time.
    #[error("{address} did not answer: check that it runs and that {over} reaches it")]
    Silent {
        /// Address that did not answer.
        address: String,
        /// Transports tried: UDP, TCP or both.
        over: &'static str,
    },
    /// The proxy did not open a tunnel.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl DialError {
    /// Whether dialling again may help: nothing listens there at the moment, or the node that
    /// listened went away.
    fn may_pass(&self) -> bool {
        match self {
            Self::Tcp(_, error) => error.kind() == io::ErrorKind::ConnectionRefused || went_away(error),
            // Statuses by which a proxy reports the same.
            Self::Proxy(ProxyError::Refused { status, .. }) => (502..=504).contains(status),
            _ => false,
        }
    }

    /// Of the errors of two transports, returns the one that says most about the cause.
    fn or(self, other: Self) -> Self {
        let weight = |error: &Self| match error {
            Self::Resolve(..) => 0,
            Self::Tcp(..) => 1,
            Self::Silent { .. } => 2,
            Self::Proxy(_) => 3,
            Self::Connect(..) => 4,
        };
        match if weight(&other) > weight(&self) { other } else { self } {
            Self::Silent { address, .. } => Self::Silent { address, over: "UDP or TCP" },
            error => error,
        }
    }
}

/// Opens an endpoint that dials, for IPv4 and IPv6 if the machine has both.
///
/// # Errors
/// [`BindError`], or the error of `config`.
pub(crate) fn endpoint_of_both<E: From<BindError>>(
    config: impl Fn() -> Result<quinn::ClientConfig, E>,
) -> Result<Endpoint, E> {
    match client_endpoint(true, config()?) {
        Ok(endpoint) => Ok(endpoint),
        Err(_) => Ok(client_endpoint(false, config()?)?),
    }
}

async fn addresses(address: &str) -> Result<Vec<SocketAddr>, DialError> {
    resolve(address).await.map_err(|e| DialError::Resolve(address.to_owned(), e))
}

fn without_address(address: &str) -> DialError {
    DialError::Resolve(address.to_owned(), io::ErrorKind::NotFound.into())
}

/// Whether the peer was gone before it had sent anything: a parent that was just killed may be
/// started again.
fn went_away(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Dialler of a node's parents.
#[derive(Clone)]
pub struct Dialer {
    quic: Endpoint,
    tls: Arc<rustls::ClientConfig>,
    outbound: Arc<Outbound>,
}

impl Dialer {
    /// Creates the dialler of a node with a certificate, which dials QUIC from `quic`.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        quic: Endpoint,
        credentials: Arc<Credentials>,
        ca: &CertificateDer<'static>,
        outbound: Arc<Outbound>,
    ) -> Result<Self, TlsError> {
        Ok(Self { quic, tls: Arc::new(https_parent_client(credentials, ca)?), outbound })
    }

    /// Creates the dialler of a node without a certificate, which can only enrol or renew.
    ///
    /// # Errors
    /// [`BindError`].
    pub(crate) fn enrolling(anchor: &TrustAnchor, outbound: Arc<Outbound>) -> Result<Self, BindError> {
        let quic = endpoint_of_both(|| Ok(quic_enroll_client(anchor)))?;
        Ok(Self { quic, tls: Arc::new(https_enroll_client(anchor)), outbound })
    }

    /// Creates the dialler of a node of no realm, which can only dial parents inside this process.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn local(outbound: Arc<Outbound>) -> Result<Self, BindError> {
        // No certificate has this fingerprint.
        Self::enrolling(&TrustAnchor::Fingerprint([0; 32]), outbound)
    }

    /// Settings and memory for reaching parents: transport, proxy, and the transports that worked
    /// before.
    pub(crate) fn outbound(&self) -> &Arc<Outbound> {
        &self.outbound
    }

    /// Dials the parent at `address` (`HOST:PORT`). The parent has shown a certificate of the realm
    /// with a parent's name.
    ///
    /// # Errors
    /// [`DialError`].
    pub(crate) async fn dial(&self, address: &str) -> Result<Connection, DialError> {
        if let Some(parent) = self.outbound.local(address) {
            return Ok(Connection::Local(parent.connect()));
        }
        let first = match self.outbound.transport {
            Transport::Quic => return self.over(Carrier::Quic, address).await,
            Transport::Https => return self.over(Carrier::Https, address).await,
            Transport::Auto => self.outbound.first(address),
        };
        let connection = self.race(first, address).await?;
        self.outbound.reached(address, first, connection.carrier());
        Ok(connection)
    }

    /// Dials over `first`, and after its head start over the other carrier, too. Returns the first
    /// connection.
    async fn race(&self, first: Carrier, address: &str) -> Result<Connection, DialError> {
        let second = match first {
            Carrier::Https => Carrier::Quic,
            Carrier::Quic | Carrier::Local => Carrier::Https,
        };
        let mut leading = pin!(self.over(first, address));
        match tokio::time::timeout(HEAD_START, &mut leading).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => return self.over(second, address).await.map_err(|other| error.or(other)),
            Err(_) => {}
        }
        let mut following = pin!(self.over(second, address));
        tokio::select! {
            led = &mut leading => match led {
                Ok(connection) => Ok(connection),
                Err(error) => following.await.map_err(|other| error.or(other)),
            },
            followed = &mut following => match followed {
                Ok(connection) => Ok(connection),
                Err(other) => leading.await.map_err(|error| error.or(other)),
            },
        }
    }

    async fn over(&self, carrier: Carrier, address: &str) -> Result<Connection, DialError> {
        let deadline = Instant::now() + CONNECT;
        let silent = |over| DialError::Silent { address: address.to_owned(), over };
        if carrier == Carrier::Quic {
            let dialled = tokio::time::timeout_at(deadline, self.quic(address)).await;
            return dialled.unwrap_or_else(|_| Err(silent("UDP")));
        }
        let mut pause = TCP_PAUSE;
        loop {
            let dialled = tokio::time::timeout_at(deadline, self.https(address)).await;
            match dialled.unwrap_or_else(|_| Err(silent("TCP"))) {
                Err(error) if error.may_pass() && Instant::now() + pause < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(TCP_PAUSE_MAX);
                }
                dialled => return dialled,
            }
        }
    }

    async fn quic(&self, address: &str) -> Result<Connection, DialError> {
        let found = addresses(address).await?;
        let connect = |remote| async move {
            let failed =
                |e: Box<dyn std::error::Error + Send + Sync>| DialError::Connect(address.to_owned(), e);
            let connecting = self.quic.connect(remote, PARENT_NAME).map_err(|e| failed(e.into()))?;
            Ok(Connection::Quic(connecting.await.map_err(|e| failed(e.into()))?))
        };
        first_of(&found, connect).await.unwrap_or_else(|| Err(without_address(address)))
    }

    async fn https(&self, address: &str) -> Result<Connection, DialError> {
        let (wire, remote): (Box<dyn Wire>, _) = match self.outbound.proxies.for_parent(address) {
            Some(proxy) => {
                let (tunnel, remote) = tunnel(&proxy, address).await?;
                (Box::new(tunnel), remote)
            }
            None => {
                let failed = |e| DialError::Tcp(address.to_owned(), e);
                let found = addresses(address).await?;
                let stream = first_of(&found, TcpStream::connect).await;
                let stream = stream.ok_or_else(|| without_address(address))?.map_err(failed)?;
                let remote = stream.peer_addr().map_err(failed)?;
                // A socket that refuses the option is about to fail anyway.
                let _ = stream.set_nodelay(true);
                (Box::new(stream), remote)
            }
        };
        let dialled = Dialled::establish(wire, remote, self.tls.clone()).await;
        let dialled = dialled.map_err(|e| match went_away(&e) {
            true => DialError::Tcp(address.to_owned(), e),
            false => DialError::Connect(address.to_owned(), e.into()),
        })?;
        Ok(Connection::Https(dialled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_the_transport_that_got_farther_is_reported() {
        let silent = |over| DialError::Silent { address: "a:1".into(), over };
        let refused = || DialError::Tcp("a:1".into(), io::ErrorKind::ConnectionRefused.into());
        let stranger = || DialError::Connect("a:1".into(), "unknown issuer".into());
        let both = silent("UDP").or(refused()).to_string();
        assert!(both.contains("UDP or TCP"), "{both}");
        assert!(matches!(silent("UDP").or(stranger()), DialError::Connect(..)));
        assert!(matches!(stranger().or(silent("TCP")), DialError::Connect(..)));
        let proxy = || DialError::Proxy(ProxyError::Credentials("p:1".into()));
        assert!(matches!(silent("UDP").or(proxy()), DialError::Proxy(_)));
        let unknown = || DialError::Resolve("a:1".into(), io::ErrorKind::NotFound.into());
        assert!(matches!(unknown().or(proxy()), DialError::Proxy(_)));
    }
}
