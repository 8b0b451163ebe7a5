//! The gateway of a device: releases as files over HTTP, for updaters that know nothing of distd
//! (docs/gateway.md).
//!
//! A release that is asked for is pulled into a directory of the gateway as any release is, from
//! the earlier releases there, patches, neighbours and parents, and is read while it arrives. So an
//! updater sees a file, and the uplink sees what a pull costs.
//!
//! `releases` resolves addresses and starts pulls, `entry` is one release while and after it
//! arrives, `directory` is where releases are and which of them stay.

mod directory;
mod entry;
mod releases;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use distd_core::names::{Name, NameError, Wanted};
use distd_peer::gateway::{self, Access, Counters, Tokens};
use distd_peer::net::Outbound;
use distd_peer::news::Newsroom;
use distd_peer::trust::files;
use distd_peer::trust::tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use self::directory::Directory;
use self::releases::{OnDemand, PulledReleases};
use crate::config::Settings;
use crate::failure::{Code, Failure};
use crate::pull::Downgrade;
use crate::share::Sharing;

/// Name of the directory with the releases in the state directory, if no other is named.
const DIRECTORY: &str = "gateway";

/// Largest certificate chain or key that is read, bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Offer of a gateway: all releases of a product, or those of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Product.
    pub product: Name,
    /// Channel; `None` for the whole product.
    pub channel: Option<Name>,
}

impl FromStr for Offer {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once(':') {
            Some((product, channel)) => {
                Ok(Self { product: product.parse()?, channel: Some(channel.parse()?) })
            }
            None => Ok(Self { product: text.parse()?, channel: None }),
        }
    }
}

impl std::fmt::Display for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.channel {
            Some(channel) => write!(f, "{}:{channel}", self.product),
            None => write!(f, "{}", self.product),
        }
    }
}

impl Offer {
    /// The channel that is offered, which the gateway follows; `None` for a whole product.
    fn wanted(&self) -> Option<Wanted> {
        let channel = self.channel.clone()?;
        Some(Wanted::Channel { product: self.product.clone(), channel })
    }
}

/// Settings of a gateway.
#[derive(Clone)]
pub struct GatewayRequest {
    /// Address to listen on.
    listen: SocketAddr,
    /// Chain and key of its certificate; `None` for plain HTTP, on loopback only.
    certificate: Option<(PathBuf, PathBuf)>,
    /// Products and channels that the gateway offers.
    offers: Vec<Offer>,
    /// Directory of the releases.
    directory: PathBuf,
    /// Number of releases of a product that stay there.
    keep: usize,
    /// Time between two looks at the channels that are offered.
    poll: Duration,
    view_memory: u64,
    data: PathBuf,
    parents: Vec<String>,
    downgrade: Downgrade,
    sharing: Sharing,
    outbound: Arc<Outbound>,
}

impl GatewayRequest {
    /// Makes the request that the settings of the device whose state directory is `data` describe;
    /// `None` when they name no address to listen on.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when nothing is offered, when an address beyond loopback has
    /// no certificate, or when the proxy is unusable.
    pub fn of(settings: &Settings, data: &Path) -> anyhow::Result<Option<Self>> {
        let usage = |text: &str, next: &str| Failure::new(Code::Usage, anyhow!(text.to_owned())).next(next);
        let Some(listen) = settings.gateway_listen else {
            if settings.gateway_offers.is_empty() {
                return Ok(None);
            }
            let next = "name its address: --gateway ADDR:PORT, or listen in [gateway] of client.toml";
            return Err(usage("the gateway offers releases, and has no address to listen on", next).into());
        };
        if settings.gateway_offers.is_empty() {
            let next =
                "name products or channels: --offer PRODUCT:CHANNEL, or offer in [gateway] of client.toml";
            return Err(usage("the gateway has an address, and offers nothing", next).into());
        }
        let certificate = match (&settings.gateway_certificate, &settings.gateway_key) {
            (Some(chain), Some(key)) => Some((chain.clone(), key.clone())),
            (None, None) if listen.ip().to_canonical().is_loopback() => None,
            (None, None) => {
                let text = "the gateway listens beyond loopback, and has no certificate";
                let next = "name one that the site trusts: certificate and key in [gateway] of client.toml";
                return Err(usage(text, next).into());
            }
            _ => {
                let next = "name both: certificate and key in [gateway] of client.toml";
                return Err(
                    usage("the gateway has a certificate without a key, or a key without one", next).into()
                );
            }
        };
        let mut sharing = Sharing::of(settings);
        // The agent serves the releases: nothing waits for neighbours here.
        sharing.linger = Duration::ZERO;
        Ok(Some(Self {
            listen,
            certificate,
            offers: settings.gateway_offers.clone(),
            directory: settings.gateway_directory.clone().unwrap_or_else(|| data.join(DIRECTORY)),
            keep: settings.gateway_keep,
            poll: settings.follow_poll,
            view_memory: settings.view_memory(),
            data: data.to_owned(),
            parents: settings.parents.clone(),
            downgrade: settings.downgrade,
            outbound: settings.outbound(sharing.connectivity)?,
            sharing,
        }))
    }
}

/// A gateway that listens.
pub struct DeviceGateway {
    /// Address that it listens on.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub is_tls: bool,
    /// Counters of requests and bytes.
    pub counters: Arc<Counters>,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    gateway: Arc<gateway::Gateway>,
    releases: Arc<PulledReleases>,
    looks: Arc<Notify>,
}

impl DeviceGateway {
    /// Opens the directory and the address of a gateway. `news` are those of the agent.
    ///
    /// # Errors
    /// Failures with [`Code::Usage`] when the address, the certificate or the key cannot be used;
    /// with [`Code::Local`] when the directory or the tokens cannot.
    pub async fn open(request: GatewayRequest, news: Arc<Newsroom>) -> anyhow::Result<Self> {
        let local = |error: anyhow::Error| Failure::new(Code::Local, error);
        let tls = request.certificate.as_ref().map(|(chain, key)| server_config(chain, key)).transpose()?;
        let tokens = Tokens::open(&request.data).map_err(|error| local(error.into()))?;
        let access = match (request.listen.ip().to_canonical().is_loopback(), tokens.list().is_empty()) {
            (true, true) => Access::Anyone,
            (is_loopback, is_empty) => {
                if is_empty && !is_loopback {
                    tracing::warn!(
                        "nobody has a token of the gateway: make one with distd gateway token add LABEL"
                    );
                }
                Access::Tokens(Mutex::new(tokens))
            }
        };
        let directory = Directory::open(&request.directory, request.keep, &request.data)?;
        let listener = TcpListener::bind(request.listen)
            .await
            .with_context(|| format!("could not listen on {}", request.listen))
            .map_err(|error| Failure::new(Code::Usage, error))?;
        let address = listener.local_addr().context("the socket has no address")?;
        let releases = PulledReleases::new(request, directory, news);
        let gateway = gateway::Gateway::new(Arc::new(OnDemand(releases.clone())), access);
        Ok(Self {
            address,
            is_tls: tls.is_some(),
            counters: gateway.counters.clone(),
            listener,
            tls,
            gateway,
            releases,
            looks: Arc::default(),
        })
    }

    /// Signal to look at the offered channels now.
    pub fn looks(&self) -> Arc<Notify> {
        self.looks.clone()
    }

    /// Serves, and follows the offered channels, until `stop` is set or its sender is gone.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let Self { listener, tls, gateway, releases, looks, .. } = self;
        let serving = gateway::serve(listener, tls, gateway, stop);
        tokio::select! {
            () = serving => {}
            never = releases.follow(&looks) => match never {},
        }
    }
}

/// Reads the certificate and the key of a gateway.
fn server_config(chain: &Path, key: &Path) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let usage = |error: anyhow::Error| Failure::new(Code::Usage, error);
    let unreadable = |path: &Path| format!("could not read {}", path.display());
    let length = std::fs::metadata(chain).map(|meta| meta.len());
    if length.with_context(|| unreadable(chain)).map_err(usage)? > PEM_BYTES_MAX {
        return Err(usage(anyhow!("{} is too long for a certificate", chain.display())).into());
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .with_context(|| unreadable(chain))
        .map_err(usage)
        .map(|certificates: Vec<CertificateDer<'static>>| certificates);
    let secret = files::read_granted(key).map_err(|error| Failure::new(Code::Local, error.into()))?;
    let secret = secret.ok_or_else(|| usage(anyhow!("there is no key at {}", key.display())))?;
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .with_context(|| format!("{} has no private key in PEM form", key.display()))
        .map_err(usage)?;
    let config = tls::gateway_server(certificates?, secret)
        .with_context(|| format!("{} and {} do not fit", chain.display(), key.display()))
        .map_err(usage)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_a_product_or_a_channel() {
        let channel: Offer = "os:stable".parse().expect("an offer");
        assert_eq!(channel.to_string(), "os:stable");
        assert_eq!(channel.wanted().expect("a channel").to_string(), "os:stable");
        let product: Offer = "os".parse().expect("an offer");
        assert_eq!((product.to_string().as_str(), product.wanted()), ("os", None));
        for wrong in ["", ":", "os:", "os:../x", "o s"] {
            assert!(wrong.parse::<Offer>().is_err(), "{wrong}");
        }
    }
}
