//! The connections of a pull or a fetch: parents, neighbours, and what travels over them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::manifest::Manifest;
use distd_core::proto::close::CloseCode;
use distd_core::ranges::ChunkRanges;
use distd_core::swarm::FetchConfig;
use distd_peer::bundle::Bundle;
use distd_peer::driver::{ChunkSink, Driver, FetchError};
use distd_peer::manifest_fetch::fetch_manifest;
use distd_peer::net::{MeterReading, close_code};
use distd_peer::parents::Parents;
use distd_peer::random;
use distd_peer::rates::Throttle;
use distd_peer::share::{ChunkBytes, Holdings};
use distd_peer::table::ChunkTable;
use quinn::Endpoint;

use super::bundles;
use super::metadata::{LOST_MAX, pause_after};
use super::run::received;
use crate::failure::{Code, Failure, is_shut_out};
use crate::share::{Lateral, Published};

/// Interval of looks at whether something was received.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long nothing may come before another way to the same chunks is tried. A relay says after
/// 10 s that its parent sends nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Nothing came for a while.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {} s", PATIENCE.as_secs())]
pub(super) struct Silent;

/// Bytes that peers send about chunks that they do not have, within the patience of a pull.
const SMALL_TALK: u64 = 8 << 10;

/// Time limit for closing the connections.
const LEAVE: Duration = Duration::from_millis(200);

/// A node's connections.
pub(super) struct Network {
    pub(super) parents: Arc<Parents>,
    /// Endpoint of a node; `None` when all parents are inside this process.
    pub(super) endpoint: Option<Endpoint>,
    /// The exchange with neighbours; `None` when it is off.
    lateral: Option<Arc<Lateral>>,
    download: Option<Arc<Throttle>>,
    /// The bundle that is the only parent, if there is one.
    pub(super) bundle: Option<Arc<Bundle>>,
}

impl Network {
    /// Takes the connections of a node.
    pub(super) fn new(
        parents: Arc<Parents>,
        endpoint: Endpoint,
        lateral: Option<Arc<Lateral>>,
        download: Option<Arc<Throttle>>,
    ) -> Self {
        Self { parents, endpoint: Some(endpoint), lateral, download, bundle: None }
    }

    /// Takes parents that are inside this process.
    pub(super) fn local(parents: Arc<Parents>) -> Self {
        Self { parents, endpoint: None, lateral: None, download: None, bundle: None }
    }

    /// Advice for a user whose chunks or nodes could not be had.
    pub(super) fn advice(&self) -> String {
        match &self.bundle {
            Some(bundle) => bundles::advice(bundle.head()),
            None => {
                "check that a parent runs and reaches the origin, then run the same command again: it resumes"
                    .to_owned()
            }
        }
    }

    /// Serves the held chunks of a manifest until the returned value is dropped; `None` when the
    /// exchange is off.
    pub(super) fn publish(
        &self,
        manifest: &Arc<Manifest>,
        table: &Arc<ChunkTable>,
        holdings: &Arc<Holdings>,
        bytes: Arc<dyn ChunkBytes>,
    ) -> Option<Published> {
        let lateral = self.lateral.as_ref()?;
        Some(lateral.publish(manifest.clone(), table.clone(), holdings.clone(), bytes))
    }

    /// Returns the counters of what came from neighbours so far.
    pub(super) fn neighbour_reading(&self) -> MeterReading {
        self.lateral.as_ref().map(|lateral| lateral.neighbourhood.reading()).unwrap_or_default()
    }

    /// Returns the number of packed chunk bytes sent to neighbours.
    pub(super) fn served_bytes(&self) -> u64 {
        self.lateral.as_ref().map_or(0, |lateral| lateral.served_bytes())
    }

    /// Lingers for at most `linger` to serve neighbours that fetch this manifest, then closes all
    /// connections, so that no peer waits for this device.
    pub(super) async fn leave(&self, manifest: &ManifestId, linger: Duration) {
        if let Some(lateral) = &self.lateral {
            lateral.linger(manifest, linger).await;
        }
        self.close().await;
    }

    /// Closes all connections.
    pub(super) async fn close(&self) {
        self.parents.close();
        let Some(endpoint) = &self.endpoint else { return };
        endpoint.close(close_code(CloseCode::Done), b"");
        // The close packet is sent or lost; this device need not know which.
        let _ = tokio::time::timeout(LEAVE, endpoint.wait_idle()).await;
    }

    /// Gets a manifest and fetches only nodes that none of `held` has. When one parent fails, the
    /// next is asked, and at last the neighbours.
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
        if let Some(lateral) = &self.lateral
            && let Some(manifest) = lateral.manifest(id, root, held).await
        {
            return Ok(manifest);
        }
        // A parent that refuses this device did answer.
        let code = if last.chain().any(is_shut_out) { Code::Refused } else { Code::Network };
        Err(Failure::new(code, last.context("could not get the manifest")).next(self.advice()).into())
    }

    /// Does `work` until it is done, or until nothing has come for `patience`. `arrived` counts the
    /// bytes of chunks; a chunk that is on its way counts too.
    ///
    /// # Errors
    /// [`Silent`].
    pub(super) async fn unless_silent<T>(
        &self,
        patience: Option<Duration>,
        arrived: impl Fn() -> u64,
        work: impl Future<Output = T>,
    ) -> Result<T, Silent> {
        tokio::select! {
            done = work => Ok(done),
            () = self.silent_for(patience, arrived) => Err(Silent),
        }
    }

    /// Returns when nothing has come for a time; never without one.
    async fn silent_for(&self, patience: Option<Duration>, arrived: impl Fn() -> u64) {
        let Some(patience) = patience else { return std::future::pending().await };
        let (mut before, mut wire, mut since) = (arrived(), received(self), Instant::now());
        while since.elapsed() < patience {
            tokio::time::sleep(LOOK_EVERY).await;
            let (now, on_wire) = (arrived(), received(self));
            if now != before || on_wire > wire + SMALL_TALK {
                (before, wire, since) = (now, on_wire, Instant::now());
            }
        }
    }

    /// Fetches chunks of a manifest into `sink` from the parents, and from neighbours if the
    /// manifest is published.
    ///
    /// # Errors
    /// [`FetchError`]: the sink failed, or some chunks were not available.
    pub(super) async fn fetch(
        &self,
        manifest: ManifestId,
        table: Arc<ChunkTable>,
        sink: Arc<dyn ChunkSink>,
        wanted: ChunkRanges,
        published: Option<&Published>,
    ) -> Result<(), FetchError> {
        let config = match published {
            Some(_) => FetchConfig::sharing(wanted.len(), random::number()),
            None => FetchConfig::default(),
        };
        // The handle can request more chunks; it must live as long as the fetch.
        let (driver, _handle) = Driver::new(self.parents.clone(), manifest, table, sink, config);
        let exchange = published.map(Published::exchange);
        driver.exchanging(exchange).limited(self.download.clone()).fetch_all(wanted).await
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
                let swarm = link.open_swarm(id, self.parents.capability_for(link.role(), id).await).await?;
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
