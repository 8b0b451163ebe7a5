//! The proxy for apt of a device (docs/apt.md): `distd_peer::apt` does the work, this module starts
//! it in the agent. [`enable`] makes the apt of this machine use it.

pub mod enable;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use distd_peer::apt::{self, AptSettings, Proxy, Relays};
use distd_peer::trust::tls::https_parent_client;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::failure::{Code, Failure};
use crate::share::{Connectivity, DeviceNode};

/// A proxy that listens.
pub struct DeviceProxy {
    /// Address that it listens on; `None` if it listens nowhere.
    pub address: Option<SocketAddr>,
    /// The proxy.
    pub proxy: Arc<Proxy>,
    listener: Option<TcpListener>,
}

impl DeviceProxy {
    /// Opens the cache and the address of the proxy of `node`, whose packets may go as far as
    /// `connectivity`.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when the address cannot be used, with [`Code::Local`] when the
    /// cache cannot.
    pub async fn open(
        mut settings: AptSettings,
        node: &DeviceNode,
        connectivity: Connectivity,
    ) -> anyhow::Result<Self> {
        settings.asks_mirrors = connectivity == Connectivity::Online;
        let ca = node.identity.ca_der().context("the device has no CA certificate")?;
        let tls = https_parent_client(node.credentials.clone(), ca)
            .map_err(|error| Failure::new(Code::Refused, error.into()))?;
        let relays = Relays::new(node.parent_addresses.clone(), tls, settings.stall);
        let (listen, directory) = (settings.listen, settings.directory_in(&node.data));
        let opened = tokio::task::spawn_blocking(move || {
            Proxy::open(settings, &directory, Some(relays))
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
        Ok(Self { address, proxy, listener })
    }

    /// Serves until `stop` is set or its sender is gone.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        if let Some(listener) = self.listener {
            apt::serve(listener, self.proxy, stop).await;
        }
    }
}
