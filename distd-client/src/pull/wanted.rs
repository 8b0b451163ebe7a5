//! From `PRODUCT@VERSION` or `PRODUCT:CHANNEL` to a verified manifest.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::manifest::Manifest;
use distd_core::names::Wanted;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_peer::clock::unix_now;
use distd_peer::driver::{ChunkSink, Driver, FetchError};
use distd_peer::enrollment;
use distd_peer::manifest_fetch::fetch_manifest;
use distd_peer::net::{client_endpoint, resolve};
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::table::ChunkTable;
use distd_peer::trust::identity::NodeIdentity;
use distd_peer::trust::tls::{Credentials, quic_client};
use distd_peer::trust::tuf::{Resolved, TufClient, TufError};

use super::metadata::{LOST_MAX, ParentMetadata, pause_after};
use crate::exit::{Code, Failure};

/// A device's connection to its realm.
pub(super) struct Realm {
    pub(super) parents: Arc<Parents>,
    tuf: TufClient,
}

impl Realm {
    /// Loads the identity in `data` and prepares to dial `parents`.
    ///
    /// # Errors
    /// Failures with [`Code::Refused`] when the device is not enrolled.
    pub(super) async fn open(data: &Path, parents: Vec<String>) -> anyhow::Result<Self> {
        if parents.is_empty() {
            let next = "name one with --parent HOST:PORT, or enrol with --parent so that it is remembered";
            return Err(Failure::new(Code::Usage, anyhow!("no parent to ask")).next(next).into());
        }
        let mut identity =
            NodeIdentity::load_or_create(data).map_err(|e| Failure::new(Code::Refused, e.into()))?;
        if identity.cert().is_none() {
            let error = anyhow!("this device is not enrolled (looked in {})", data.display());
            let next = "enrol it: distd enroll --parent HOST:PORT --token TOKEN";
            return Err(Failure::new(Code::Refused, error).next(next).into());
        }
        if identity.needs_renewal(unix_now())
            && let Err(error) = enrollment::renew(&mut identity, &parents).await
        {
            // Until it has ended the old certificate will do.
            let expired = identity.cert().is_none_or(|cert| cert.is_expired(unix_now()));
            if expired {
                let error = anyhow::Error::new(error)
                    .context("the device's certificate has ended and was not renewed");
                let next =
                    "check the connection and the clock; if it stays so, enrol again with a new join token";
                return Err(Failure::new(Code::Refused, error).next(next).into());
            }
            tracing::warn!(%error, "certificate not renewed yet");
        }
        let refused = |e: anyhow::Error| Failure::new(Code::Refused, e);
        let ca = identity.ca_der().context("the device has no CA certificate").map_err(refused)?.clone();
        let credentials = Credentials::of_node(&identity).map_err(|e| refused(e.into()))?;
        let config = quic_client(credentials, &ca).map_err(|e| refused(e.into()))?;
        let dual = resolve(&parents[0]).await.is_ok_and(|a| a.is_ipv6());
        let endpoint = client_endpoint(dual, config).map_err(|e| Failure::new(Code::Network, e.into()))?;
        let quarantine = Arc::new(Quarantine::load(&data.join("quarantine.json")));
        let root = identity.root_json().context("the device has no TUF root").map_err(refused)?;
        let tuf = TufClient::open(data, root).map_err(|e| refused(e.into()))?;
        Ok(Self { parents: Arc::new(Parents::new(endpoint, parents, quarantine)), tuf })
    }

    /// Learns which manifest `wanted` is, by signed metadata. A parent whose answer does not verify is passed over.
    pub(super) async fn resolve(&self, wanted: &Wanted) -> anyhow::Result<Resolved> {
        let mut last = None;
        for first in 0..self.parents.len() {
            let source = Arc::new(ParentMetadata { parents: self.parents.clone(), first });
            match self.tuf.resolve(source, wanted, unix_now()).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => {
                    let retry = blames_the_parent(&error);
                    last = Some(error);
                    if !retry {
                        break;
                    }
                }
            }
        }
        let error = last.map_or_else(|| anyhow!("no parent to ask"), anyhow::Error::new);
        let code = crate::exit::code_of(&error);
        Err(Failure::new(code, error).into())
    }

    /// Gets the manifest, fetching only nodes that none of `held` has; the next parent is asked when one fails.
    pub(super) async fn manifest(&self, resolved: &Resolved, held: &[&Manifest]) -> anyhow::Result<Manifest> {
        self.manifest_of(resolved.manifest, Some(resolved.root_node.clone()), held).await
    }

    /// The same for any manifest of which at least the id is known.
    pub(super) async fn manifest_of(
        &self,
        id: ManifestId,
        root: Option<Bytes>,
        held: &[&Manifest],
    ) -> anyhow::Result<Manifest> {
        let mut last = anyhow!("no parent to ask");
        for index in 0..self.parents.len() {
            match self.manifest_from(index, id, root.clone(), held).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => last = error,
            }
        }
        let next = "check that the parent runs and reaches the origin, then run the same command again";
        Err(Failure::new(Code::Network, last.context("could not get the manifest")).next(next).into())
    }

    /// Fetches chunks of a manifest into `sink` from whichever parents have them.
    ///
    /// # Errors
    /// [`FetchError`]: the sink failed, or some chunks could not be had.
    pub(super) async fn fetch(
        &self,
        manifest: ManifestId,
        table: Arc<ChunkTable>,
        sink: Arc<dyn ChunkSink>,
        wanted: ChunkRanges,
    ) -> Result<(), FetchError> {
        // The handle asks for more; it lives as long as the fetch.
        let (driver, _handle) =
            Driver::new(self.parents.clone(), manifest, table, sink, FetchConfig::default());
        driver.fetch_all(wanted).await
    }

    async fn manifest_from(
        &self,
        index: usize,
        id: ManifestId,
        root: Option<Bytes>,
        held: &[&Manifest],
    ) -> anyhow::Result<Manifest> {
        for lost in 0.. {
            let link = self.parents.link(index).await?;
            let attempt = async {
                let swarm = link.open_swarm(id).await?;
                let fetched = fetch_manifest(&swarm.handle(), id, root.clone(), held).await;
                swarm.leave();
                fetched
            };
            match attempt.await {
                Ok(manifest) => return Ok(manifest),
                Err(error) if lost < LOST_MAX && link.is_closed() && !error.is_breach() => {
                    tokio::time::sleep(pause_after(lost)).await;
                }
                Err(error) => {
                    if error.is_breach() {
                        self.parents.quarantine(&link);
                    }
                    return Err(error.into());
                }
            }
        }
        unreachable!("the loop ends by returning")
    }
}

/// Whether another parent could answer better.
fn blames_the_parent(error: &TufError) -> bool {
    !matches!(
        error,
        TufError::UnknownTarget(_)
            | TufError::BadTarget { .. }
            | TufError::ClockBackwards(_)
            | TufError::Source(_)
            | TufError::File(_)
            | TufError::Store(_)
    )
}
