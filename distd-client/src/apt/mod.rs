//! The proxy for apt of a device (docs/apt.md): `distd_peer::apt` does the work, this module starts
//! it in the agent. [`enable`] makes the apt of this machine use it.

pub mod enable;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use distd_core::error::Chain;
use distd_peer::apt::{self, AptSettings, Nodes, Proxy};
use distd_peer::neighbours::Neighbourhood;
use distd_peer::trust::tls::{apt_neighbour, apt_neighbour_client, https_parent_client};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::failure::{Code, Failure};
use crate::share::{Connectivity, DeviceNode, Sharing};

/// A proxy that listens.
pub struct DeviceProxy {
    /// Address that it listens on; `None` if it listens nowhere.
    pub address: Option<SocketAddr>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    listener: Option<TcpListener>,
    /// Where neighbours ask, and the configuration of TLS for them.
    lateral: Option<(TcpListener, rustls::ServerConfig)>,
}

/// Returns whether a device with these settings gives its neighbours packages.
pub fn gives_neighbours(settings: &AptSettings, sharing: &Sharing) -> bool {
    settings.use_neighbours && sharing.serves
}

impl DeviceProxy {
    /// Opens the cache and the address of the proxy of `node`, which shares as `sharing` says.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when the address cannot be used, with [`Code::Local`] when the
    /// cache cannot.
    pub async fn open(
        mut settings: AptSettings,
        node: &mut DeviceNode,
        sharing: &Sharing,
        neighbourhood: &Arc<Neighbourhood>,
    ) -> anyhow::Result<Self> {
        settings.asks_mirrors = sharing.connectivity == Connectivity::Online;
        let ca = node.identity.ca_der().context("the device has no CA certificate")?;
        let tls = https_parent_client(node.credentials.clone(), ca)
            .map_err(|error| Failure::new(Code::Refused, error.into()))?;
        let relays = Nodes::relays(node.parent_addresses.clone(), tls, settings.stall);
        let tls = apt_neighbour_client(node.credentials.clone(), ca)
            .map_err(|error| Failure::new(Code::Refused, error.into()))?;
        let (known, reach) = (neighbourhood.clone(), sharing.connectivity);
        let find = move || {
            let found = known.local().borrow().iter().cloned().chain(known.remembered()).collect::<Vec<_>>();
            let mut addresses: Vec<String> = Vec::new();
            for neighbour in found.iter().filter(|neighbour| reach.allows_neighbour(neighbour.address)) {
                let address = neighbour.address.to_string();
                if neighbour.node != known.node_id() && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        };
        let neighbours = Nodes::neighbours(Box::new(find), tls, settings.stall);
        let lateral = node.tcp.take().map(|tcp| lateral(tcp, node, ca)).transpose()?.flatten();
        let (listen, directory) = (settings.listen, settings.directory_in(&node.data));
        let opened = tokio::task::spawn_blocking(move || {
            Proxy::open(settings, &directory, Some(relays), Some(neighbours))
                .with_context(|| format!("could not open the cache of packages {}", directory.display()))
        });
        let proxy = opened.await.map_err(|_| anyhow!("the cache of packages was given up"))?;
        let proxy = proxy.map_err(|error| Failure::new(Code::Local, error))?;
        let listener = match listen {
            Some(at) => {
                let bound = TcpListener::bind(at).await;
                let bound = bound.with_context(|| format!("the proxy for apt could not listen on {at}"));
                Some(bound.map_err(|error| Failure::new(Code::Usage, error))?)
            }
            None => None,
        };
        let address = listener.as_ref().map(TcpListener::local_addr).transpose().context("no address")?;
        Ok(Self { address, proxy, listener, lateral })
    }

    /// Serves until `stop` is set or its sender is gone.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { proxy, listener, lateral, .. } = self;
        let (for_neighbours, until) = (proxy.clone(), stop.clone());
        let neighbours = async move {
            if let Some((listener, tls)) = lateral {
                apt::serve_neighbours(listener, tls, for_neighbours, until).await;
            }
        };
        let programs = async move {
            if let Some(listener) = listener {
                apt::serve(listener, proxy, stop).await;
            }
        };
        tokio::join!(neighbours, programs);
    }
}

/// The TCP port with the number of the agent's UDP port, which neighbours know. Where another
/// program has it, they find nothing here.
fn lateral(
    tcp: io::Result<TcpListener>,
    node: &DeviceNode,
    ca: &CertificateDer<'static>,
) -> anyhow::Result<Option<(TcpListener, rustls::ServerConfig)>> {
    let tls = apt_neighbour(node.credentials.clone(), ca)
        .map_err(|error| Failure::new(Code::Refused, error.into()))?;
    match tcp {
        Ok(listener) => Ok(Some((listener, tls))),
        Err(error) => {
            let at = node.endpoint.local_addr().context("the socket has no address")?;
            tracing::warn!(%at, error = %Chain(&error), "neighbours get no packages from here: the TCP port is taken");
            Ok(None)
        }
    }
}
