//! Content that the origin serves over QUIC.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::packing::Unpacker;
use distd_core::proto::frame::{Cost, Data, DontHaveReason, NodeRequest};
use distd_core::ranges::ChunkRanges;
use distd_peer::capabilities::Permit;
use distd_peer::clock::unix_now;
use distd_peer::doctor::about_answer;
use distd_peer::request;
use distd_peer::serve::{ChunkAnswer, Content, NodeBudget, NodesAnswer, ServeError, Swarm, answer_nodes};
use distd_peer::trust::report;
use distd_peer::trust::tls::PeerIdentity;
use distd_peer::trust::tuf::wire::Query;
use tokio::sync::{mpsc, watch};

use super::Origin;
use super::manifests::LoadedManifest;
use super::registry::SqlRegistry;
use super::reports::TakeReportsError;
use crate::ingest::IngestError;
use crate::store::{Chunks, StoredChunk};

/// Stored bytes read ahead for one batch.
const RUN_BYTES: usize = 1 << 20;

/// The origin as content of a [`distd_peer::serve::Server`].
pub struct OriginContent {
    origin: Arc<Origin>,
}

impl OriginContent {
    /// Serves what `origin` has released.
    pub fn new(origin: Arc<Origin>) -> Arc<Self> {
        Arc::new(Self { origin })
    }

    async fn load(&self, id: ManifestId) -> Result<Arc<LoadedManifest>, ServeError> {
        let internal = |e: Box<dyn std::error::Error + Send + Sync>| ServeError::Internal(e);
        // Only manifests that a release or a patch set names are served: nobody may see an
        // uncommitted upload, or a release that was withdrawn since.
        let released = self.origin.db().manifests_released(&[id]).await.map_err(|e| internal(e.into()))?;
        if released != [true] {
            self.origin.manifests().forget(&id);
            return Err(ServeError::NoManifest(id));
        }
        self.origin.manifests().load(&id).await.map_err(|error| {
            if matches!(error, IngestError::MissingManifest(_)) {
                tracing::error!(%id, "a release's manifest is missing from the store");
            }
            internal(error.into())
        })
    }
}

/// One released manifest's swarm at the origin.
struct OriginSwarm {
    loaded: Arc<LoadedManifest>,
    chunks: Chunks,
    /// Source of the manifests that the asker holds.
    others: Arc<OriginContent>,
}

struct Shared(Arc<OriginContent>);

#[async_trait]
impl Content for Shared {
    /// The origin asks its database, whatever the peer showed.
    async fn permit(
        &self,
        peer: &PeerIdentity,
        _budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        _shown: &Bytes,
    ) -> Result<Permit, ServeError> {
        let internal = |e: crate::db::DbError| ServeError::Internal(e.into());
        let origin = &self.0.origin;
        if let Some(permit) = origin.permit(&peer.node_id, manifest).await.map_err(internal)? {
            return Ok(permit);
        }
        // A relay that asks for its devices tells a release that is gone from one it may not read.
        let released = origin.db().manifests_released(&[manifest]).await.map_err(internal)?;
        Err(if released == [true] { ServeError::Unauthorised } else { ServeError::NoManifest(manifest) })
    }

    fn permit_changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.0.origin.fleet_changed())
    }

    async fn swarm(
        &self,
        _peer: &PeerIdentity,
        _budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        let content = &self.0;
        let loaded = content.load(manifest).await?;
        Ok(Arc::new(OriginSwarm { loaded, chunks: content.origin.chunks().clone(), others: content.clone() }))
    }

    async fn metadata(&self, peer: &PeerIdentity, query: Bytes) -> Result<Bytes, ServeError> {
        let origin = &self.0.origin;
        let internal = |e: Box<dyn std::error::Error + Send + Sync>| ServeError::Internal(e);
        if let Ok(question) = Query::decode(&query) {
            if let Some(request) = request::plain(question.request.as_deref()) {
                let node = peer.node_id;
                tracing::debug!(target: request::LOG_TARGET, request, %node, "asked for metadata");
            }
            if question.about {
                return Ok(about_answer());
            }
            if question.revoked {
                return origin.revoked_answer().await.map(Bytes::from).map_err(|e| internal(e.into()));
            }
            if let Some(asked) = &question.capability {
                let answer = origin.capability_answer(peer, asked, &question.targets).await;
                return answer.map(Bytes::from).map_err(|e| internal(e.into()));
            }
            if let Some(asked) = &question.log {
                return origin.log_answer(asked).await.map_err(|e| internal(e.into()));
            }
            if let Some(asked) = &question.statement {
                let answer = origin.statement_answer(peer, asked).await;
                return answer.map(Bytes::from).map_err(|e| internal(e.into()));
            }
            if let Some(asked) = &question.turn {
                let answer = origin.turn_answer(asked).await;
                return answer.map(Bytes::from).map_err(|e| internal(e.into()));
            }
            if !question.reports.is_empty() {
                return match origin.take_reports(peer, question.reports).await {
                    Ok(()) => Ok(report::kept_answer()),
                    Err(error @ TakeReportsError::TooOften(_)) => Err(ServeError::Upstream(error.into())),
                    Err(error) => Err(internal(error.into())),
                };
            }
        }
        let answer = origin.answerer.answer(&query).await;
        answer.map(Bytes::from).map_err(|e| internal(e.into()))
    }

    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError> {
        self.0.origin.enroll(&body).await.map(Bytes::from)
    }
}

impl OriginContent {
    /// Returns the content as the trait object that a server takes.
    pub fn into_content(self: Arc<Self>) -> Arc<dyn Content> {
        Arc::new(Shared(self))
    }
}

impl Origin {
    /// Answers an enrolment or renewal: the bytes of an `EnrollMessage` in, of an `EnrollReply`
    /// out.
    ///
    /// # Errors
    /// [`ServeError::Internal`]; refusals are replies.
    pub async fn enroll(&self, body: &[u8]) -> Result<Vec<u8>, ServeError> {
        let roots = self.repository.roots().await.map_err(|e| ServeError::Internal(e.into()))?;
        let (reply, refused) =
            self.realm.handle_enroll(body, &roots, unix_now(), &SqlRegistry(&self.db)).await;
        if let Some(reason) = refused {
            tracing::info!(error = %Chain(&reason), "enrolment refused");
        }
        Ok(reply)
    }
}

impl OriginSwarm {
    /// Leaves out chunks that rotted in their pack: sent on, each would put the origin into the
    /// quarantine of the asker.
    async fn verified(&self, run: Vec<StoredChunk>) -> Vec<StoredChunk> {
        let check = move || {
            let mut unpacker = Unpacker::default();
            let mut sound = run;
            sound.retain(|chunk| {
                let result = unpacker.unpack(chunk.codec, &chunk.bytes, chunk.raw_len, &chunk.hash);
                if let Err(error) = &result {
                    tracing::error!(id = %chunk.id, error = %Chain(&error), "a stored chunk has rotted and is not served: restore its pack");
                }
                result.is_ok()
            });
            sound
        };
        tokio::task::spawn_blocking(check).await.unwrap_or_default()
    }
}

#[async_trait]
impl Swarm for OriginSwarm {
    fn fetches_upstream(&self) -> bool {
        false
    }

    fn ids(&self) -> ChunkRanges {
        self.loaded.ids.clone()
    }

    async fn held(&self) -> Result<ChunkRanges, ServeError> {
        Ok(self.loaded.ids.clone())
    }

    async fn cost(&self, wanted: &ChunkRanges) -> Result<Cost, ServeError> {
        let known = wanted.intersection(&self.loaded.ids);
        let cost = self.others.origin.db().chunks_cost(&known).await;
        let (chunks, bytes) = cost.map_err(|e| ServeError::Internal(e.into()))?;
        Ok(Cost { chunks, bytes })
    }

    async fn nodes(&self, request: NodeRequest) -> Result<NodesAnswer, ServeError> {
        let find = |id| async move { self.others.load(id).await.ok().map(|found| found.manifest.clone()) };
        Ok(answer_nodes(&self.loaded.manifest, &request, find).await)
    }

    async fn chunks(
        &self,
        _budget: &Arc<NodeBudget>,
        wanted: ChunkRanges,
        answers: mpsc::Sender<ChunkAnswer>,
    ) {
        let known = wanted.intersection(&self.loaded.ids);
        let foreign = wanted.difference(&known);
        if !foreign.is_empty()
            && answers.send(ChunkAnswer::DontHave(foreign, DontHaveReason::NotInSwarm)).await.is_err()
        {
            return;
        }
        for range in known.iter() {
            let mut next = *range.start();
            while next <= *range.end() {
                let mut reason = DontHaveReason::NotHeld;
                let run = match self.chunks.run(next, *range.end(), RUN_BYTES).await {
                    Ok(run) => self.verified(run).await,
                    Err(error) => {
                        tracing::error!(error = %Chain(&error), "chunks could not be read");
                        // The store may be back in a moment, so give no reason that the asker would
                        // remember.
                        reason = DontHaveReason::Busy;
                        Vec::new()
                    }
                };
                let mut missing = ChunkRanges::new();
                if run.is_empty() {
                    missing.insert_range(next..=*range.end());
                    next.0 = range.end().0 + 1;
                }
                for chunk in run {
                    if chunk.id > next {
                        missing.insert_range(next..=distd_core::ChunkId(chunk.id.0 - 1));
                    }
                    next.0 = chunk.id.0 + 1;
                    let data = Data { id: chunk.id, codec: chunk.codec, bytes: chunk.bytes };
                    if answers.send(ChunkAnswer::Data(data)).await.is_err() {
                        return;
                    }
                }
                if !missing.is_empty() && answers.send(ChunkAnswer::DontHave(missing, reason)).await.is_err()
                {
                    return;
                }
            }
        }
    }
}
