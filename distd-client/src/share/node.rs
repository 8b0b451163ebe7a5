//! A device on the network: its identity, its one endpoint, and the parents it may connect to.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use distd_core::error::Chain;
use distd_peer::capabilities::Capabilities;
use distd_peer::clock::unix_now;
use distd_peer::enrollment;
use distd_peer::net::{BindError, Dialer, Outbound, ResetKey, device_endpoint, device_sockets};
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::tls::{Credentials, quic_client, quic_neighbour};
use quinn::Endpoint;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;

use super::{Connectivity, Sharing};
use crate::failure::{Code, Failure, code_of_enrollment};

/// An enrolled device with an open endpoint.
pub struct DeviceNode {
    pub(crate) data: PathBuf,
    pub(crate) identity: NodeIdentity,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) endpoint: Endpoint,
    /// The TCP port with the number of the endpoint's, or why it could not be opened; `None` if
    /// none was wanted.
    pub(crate) tcp: Option<io::Result<TcpListener>>,
    pub(crate) parents: Arc<Parents>,
    /// Addresses of the parents that `connectivity` allows.
    pub parent_addresses: Vec<String>,
    pub(crate) quarantine: Arc<Quarantine>,
}

/// Returns the address that listens on `port` in both address families, where the system has both.
pub fn anywhere(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

impl DeviceNode {
    /// Loads the identity in `data`, renews its certificate if it is due, and opens the endpoint at
    /// `listen`, with TCP at the same port number if `with_tcp` is set.
    ///
    /// # Errors
    /// Failures with [`Code::Refused`] when the device is not enrolled, with [`Code::Local`] when
    /// another program uses the port.
    pub async fn open(
        data: &Path,
        parents: Vec<String>,
        listen: SocketAddr,
        with_tcp: bool,
        sharing: &Sharing,
        outbound: Arc<Outbound>,
    ) -> anyhow::Result<Self> {
        if parents.is_empty() && sharing.connectivity == Connectivity::Online {
            let next = "name one with --parent HOST:PORT, or enrol with --parent so that it is remembered";
            return Err(Failure::new(Code::Usage, anyhow!("no parent to ask")).next(next).into());
        }
        let (mut parents, others): (Vec<_>, Vec<_>) =
            parents.into_iter().partition(|parent| outbound.is_local(parent));
        let asks_nobody = others.is_empty() && !parents.is_empty();
        parents.extend(sharing.connectivity.allowed(others));
        let mut identity = NodeIdentity::load_or_create(data).map_err(|e| Failure::refused(e.into()))?;
        if identity.cert().is_none() {
            let error = anyhow!("this device is not enrolled (looked in {})", data.display());
            let next = "enrol it: distd enroll --parent HOST:PORT --token-file FILE";
            return Err(Failure::new(Code::Refused, error).next(next).into());
        }
        // A parent that is a file asks for no certificate: the device verifies the realm's
        // signatures.
        if identity.needs_renewal(unix_now())
            && !asks_nobody
            && let Err(error) = enrollment::renew(&mut identity, &parents, &outbound).await
        {
            // The old certificate is good until it expires; offline, nobody asks for one.
            let expired = identity.cert().is_none_or(|cert| cert.is_expired(unix_now()));
            if expired && sharing.connectivity != Connectivity::Offline {
                // An unreachable parent will come back, and the certificate is renewed then.
                let code = match code_of_enrollment(&error) {
                    Code::Usage => Code::Network,
                    other => other,
                };
                let error = anyhow::Error::new(error)
                    .context("the device's certificate has expired and could not be renewed");
                let next = "check the connection and the clock; if the error remains, enrol again with a new join token";
                return Err(Failure::new(code, error).next(next).into());
            }
            tracing::warn!(error = %Chain(&error), "certificate not renewed yet");
        }
        let refused = |e: anyhow::Error| Failure::new(Code::Refused, e);
        let credentials = Credentials::of_node(&identity).map_err(|e| refused(e.into()))?;
        let ca = identity.ca_der().context("the device has no CA certificate").map_err(refused)?;
        let reset = ResetKey::of_node(&identity.private_key());
        let (endpoint, tcp) = open_sockets(ca, &reset, &credentials, listen, with_tcp)?;
        if !sharing.serves {
            endpoint.set_server_config(None);
        }
        let quarantine = Arc::new(Quarantine::load(&data.join("quarantine.json")));
        let dialer = Dialer::new(endpoint.clone(), credentials.clone(), ca, outbound)
            .map_err(|e| refused(e.into()))?;
        let node = identity.node_id();
        let capabilities = Capabilities::load(node, ca.clone(), &data.join("capabilities"));
        let parents_of = Parents::new(dialer, parents.clone(), quarantine.clone(), capabilities);
        Ok(Self {
            data: data.to_owned(),
            identity,
            credentials,
            endpoint,
            tcp,
            parents: Arc::new(parents_of),
            parent_addresses: parents,
            quarantine,
        })
    }
}

/// Opens one endpoint that listens and dials from the same port, and TCP at that number if
/// `with_tcp` is set.
pub(crate) fn open_sockets(
    ca: &CertificateDer<'static>,
    reset: &ResetKey,
    credentials: &Arc<Credentials>,
    listen: SocketAddr,
    with_tcp: bool,
) -> anyhow::Result<(Endpoint, Option<io::Result<TcpListener>>)> {
    let refused = |e: anyhow::Error| Failure::new(Code::Refused, e);
    let client = quic_client(credentials.clone(), ca).map_err(|e| refused(e.into()))?;
    let server = quic_neighbour(credentials.clone(), ca).map_err(|e| refused(e.into()))?;
    let open = |address| -> Result<_, BindError> {
        Ok(match with_tcp {
            true => {
                let (endpoint, tcp) = device_sockets(address, &client, &server, reset)?;
                (endpoint, Some(tcp))
            }
            false => (device_endpoint(address, client.clone(), server.clone(), reset)?, None),
        })
    };
    let opened = match open(listen) {
        // Some machines have only one address family.
        Err(_) if listen.ip() == Ipv6Addr::UNSPECIFIED => open((Ipv4Addr::UNSPECIFIED, listen.port()).into()),
        other => other,
    };
    Ok(opened.map_err(|e| Failure::new(Code::Local, e.into()))?)
}
