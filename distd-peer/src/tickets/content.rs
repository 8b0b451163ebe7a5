//! The sharer's side: the content that it serves to those that it admitted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::fleet::Rights;
use distd_core::ticket::{Audience, SignedTicket};
use rustls::pki_types::CertificateDer;
use serde_bytes::ByteBuf;
use tokio::sync::watch;

use super::COMPLETED;
use super::message::{AdmissionReply, AdmissionRequest, Refusal};
use crate::capabilities::Permit;
use crate::clock::unix_now;
use crate::serve::{Content, NodeBudget, ServeError, Swarm};
use crate::share::SharedSwarm;
use crate::trust::capability;
use crate::trust::identity::NodeId;
use crate::trust::share_realm::ShareRealm;
use crate::trust::tls::PeerIdentity;
use crate::trust::tuf::wire::{Answer, Query};

/// Nodes of a realm that a share is for.
pub struct Members {
    /// Certificate of the realm's CA.
    pub ca: CertificateDer<'static>,
    /// The nodes.
    pub nodes: BTreeSet<NodeId>,
}

/// One shared artifact.
pub struct ShareContent {
    realm: ShareRealm,
    ticket: SignedTicket,
    encoded: Bytes,
    swarm: Arc<SharedSwarm>,
    members: Option<Members>,
    /// Counts up when the share is withdrawn; 0 until then.
    withdrawn: watch::Sender<u64>,
    /// Number of fetchers that said that they have the whole artifact.
    completed: watch::Sender<u64>,
    /// Number of certificates given to fetchers.
    pub admitted: AtomicU64,
}

impl ShareContent {
    /// Creates the content of the share of `swarm` with this ticket. `members` are the nodes of its
    /// audience, unless anyone may have it.
    pub fn new(
        realm: ShareRealm,
        ticket: SignedTicket,
        swarm: Arc<SharedSwarm>,
        members: Option<Members>,
    ) -> Arc<Self> {
        let encoded = ticket.encode();
        let (withdrawn, completed) = (watch::Sender::new(0), watch::Sender::new(0));
        let admitted = AtomicU64::new(0);
        Arc::new(Self { realm, ticket, encoded, swarm, members, withdrawn, completed, admitted })
    }

    /// Ends the share: nobody is admitted, and those that fetch are told that they may not any
    /// more.
    pub fn withdraw(&self) {
        self.withdrawn.send_modify(|times| *times += 1);
    }

    /// Number of fetchers that have the whole artifact, now and as it grows.
    pub fn completed(&self) -> watch::Receiver<u64> {
        self.completed.subscribe()
    }

    fn is_over(&self) -> Option<Refusal> {
        if *self.withdrawn.borrow() > 0 {
            return Some(Refusal::Unknown);
        }
        (unix_now() >= self.ticket.ticket.not_after).then_some(Refusal::Expired)
    }

    fn admit(&self, body: &[u8]) -> Result<AdmissionReply, Refusal> {
        let request = AdmissionRequest::decode(body).ok_or(Refusal::Request)?;
        if request.ticket[..] != self.encoded[..] {
            return Err(Refusal::Unknown);
        }
        if let Some(refusal) = self.is_over() {
            return Err(refusal);
        }
        let now = unix_now();
        if !matches!(self.ticket.ticket.audience, Audience::Anyone) {
            let members = self.members.as_ref().ok_or(Refusal::Audience)?;
            let node =
                request.member.and_then(|proof| proof.node(&self.ticket, &request.csr, &members.ca, now));
            if !node.is_some_and(|node| members.nodes.contains(&node)) {
                return Err(Refusal::Audience);
            }
        }
        let cert = self.realm.admit(&request.csr, now).map_err(|error| {
            tracing::info!(error = %Chain(&error), "a fetcher was not admitted");
            Refusal::Request
        })?;
        self.admitted.fetch_add(1, Ordering::Relaxed);
        Ok(AdmissionReply::Admitted {
            cert: ByteBuf::from(cert.to_vec()),
            ca: ByteBuf::from(self.realm.ca().to_vec()),
        })
    }
}

#[async_trait]
impl Content for ShareContent {
    /// Certificates of the share are given to its fetchers alone, and TLS has verified this one.
    async fn permit(
        &self,
        _peer: &PeerIdentity,
        _budget: &Arc<NodeBudget>,
        manifest: ManifestId,
        _shown: &Bytes,
    ) -> Result<Permit, ServeError> {
        if manifest != self.ticket.ticket.manifest {
            return Err(ServeError::NoManifest(manifest));
        }
        match self.is_over() {
            None => Ok(Permit { rights: Rights::ALL, until: self.ticket.ticket.not_after }),
            Some(_) => Err(ServeError::Unauthorised),
        }
    }

    fn permit_changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.withdrawn.subscribe())
    }

    async fn swarm(
        &self,
        _peer: &PeerIdentity,
        _budget: &Arc<NodeBudget>,
        manifest: ManifestId,
    ) -> Result<Arc<dyn Swarm>, ServeError> {
        match manifest == self.ticket.ticket.manifest {
            true => Ok(SharedSwarm::serving(self.swarm.clone())),
            false => Err(ServeError::NoManifest(manifest)),
        }
    }

    /// Answers a question for a capability, and notes that a fetcher is done.
    async fn metadata(&self, peer: &PeerIdentity, query: Bytes) -> Result<Bytes, ServeError> {
        if query == COMPLETED {
            self.completed.send_modify(|count| *count += 1);
            return Ok(Bytes::new());
        }
        let asked = Query::decode(&query).ok().and_then(|query| query.capability);
        if asked.is_none() || self.is_over().is_some() {
            return Err(ServeError::Unauthorised);
        }
        let signed = self.realm.capability(peer.node_id, self.ticket.ticket.manifest, unix_now());
        let signed = signed.map_err(|error| ServeError::Internal(error.into()))?;
        let files = vec![(capability::FILE.to_owned(), signed.encode())];
        Ok(Answer { files }.encode().into())
    }

    async fn enroll(&self, body: Bytes) -> Result<Bytes, ServeError> {
        let reply = self.admit(&body).unwrap_or_else(|refusal| {
            tracing::info!(%refusal, "a fetcher was refused");
            AdmissionReply::Refused(refusal)
        });
        Ok(reply.encode().into())
    }
}
