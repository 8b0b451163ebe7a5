//! The way from a ticket to the connections of a fetcher (docs/tickets.md, "Admission").

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::manifest::{Kind, Manifest};
use distd_core::ticket::{Audience, SharedKind, SignedTicket};
use distd_peer::capabilities::Capabilities;
use distd_peer::clock::unix_now;
use distd_peer::driver::FetchError;
use distd_peer::net::{Dialer, Outbound, ResetKey};
use distd_peer::parents::Parents;
use distd_peer::quarantine::Quarantine;
use distd_peer::serve::NodeBudget;
use distd_peer::share::{DeviceContent, InstalledArtifacts, SharedSwarm};
use distd_peer::tickets::admission::{AdmissionError, Admitted, Candidate};
use distd_peer::tickets::{MemberProof, Refusal};
use distd_peer::trust::identity::{NodeIdentity, key_of};
use distd_peer::trust::record::{RecordSigner, RecordText};
use distd_peer::trust::token::sha256;

use super::network::Network;
use crate::failure::{Code, Failure, cause_of, is_shut_out};
use crate::share::{Lateral, Sharing, Station, open_sockets};

/// Pause before the connection to the sharer is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Most chunks of a shared artifact: some 500 GB of them, and as many MB of tables at the fetcher.
/// A realm's manifests are signed. This one comes from whoever made the ticket, and a few nodes
/// that repeat each other may stand for any number of chunks.
pub(crate) const SHARED_CHUNKS_MAX: u64 = 1 << 23;

/// A ticket, and the way to its sharer.
pub struct TicketAccess {
    /// The ticket, whose signature was checked.
    pub ticket: SignedTicket,
    /// Addresses of the sharer in place of those in the ticket, `HOST:PORT`.
    pub addresses: Vec<String>,
    /// Hash that the artifact or its manifest must have.
    pub expected: Option<[u8; 32]>,
    /// State directory, which has the identity of a machine that is in a realm.
    pub data: PathBuf,
    /// Address to serve other fetchers at.
    pub listen: SocketAddr,
    /// Settings of the exchange with other fetchers.
    pub sharing: Sharing,
    /// Settings for reaching the sharer.
    pub outbound: Arc<Outbound>,
}

/// A fetcher has no artifact but the one that it fetches.
struct NothingElse;

#[async_trait]
impl InstalledArtifacts for NothingElse {
    async fn find(
        &self,
        _id: ManifestId,
        _budget: &NodeBudget,
        _content: &Arc<DeviceContent>,
    ) -> Option<Arc<SharedSwarm>> {
        None
    }

    fn manifest(&self, _id: &ManifestId) -> Option<Arc<Manifest>> {
        None
    }

    fn is_installed(&self, _id: &ManifestId) -> bool {
        false
    }
}

/// Checks all of a ticket that can be checked without a connection.
///
/// # Errors
/// Failures with [`Code::Refused`] for a ticket that has ended or is for other nodes,
/// [`Code::Integrity`] for another manifest than the expected one.
pub(super) fn check_ticket(request: &TicketAccess) -> anyhow::Result<Option<NodeIdentity>> {
    let ticket = &request.ticket.ticket;
    let refused = |error: anyhow::Error| Failure::new(Code::Refused, error);
    if unix_now() >= ticket.not_after {
        let ended = crate::text::time(i64::try_from(ticket.not_after).unwrap_or(i64::MAX));
        let next = "ask for a new ticket; if the time is not over, set this machine's clock";
        return Err(refused(anyhow!("the ticket's time was over at {ended}")).next(next).into());
    }
    let Some(realm) = ticket.audience.realm() else { return Ok(None) };
    let identity = match request.data.join("node.key").exists() {
        true => Some(NodeIdentity::load_or_create(&request.data).map_err(|e| Failure::refused(e.into()))?),
        false => None,
    };
    let next = "fetch on the machine that the ticket is for, or ask for a ticket for this one";
    let Some(identity) = identity.filter(|identity| identity.cert().is_some()) else {
        let error = anyhow!("the ticket is for nodes of a realm, and this machine is in none");
        return Err(refused(error).next(next).into());
    };
    if identity.ca_der().is_none_or(|ca| sha256(ca) != *realm) {
        return Err(refused(anyhow!("the ticket is for nodes of another realm")).next(next).into());
    }
    if let Audience::Node { node, .. } = &ticket.audience
        && *node != identity.node_id()
    {
        let error = anyhow!("the ticket is for node {node}, and this is {}", identity.node_id());
        return Err(refused(error).next(next).into());
    }
    Ok(Some(identity))
}

fn not_admitted(error: AdmissionError) -> Failure {
    let (code, next) = match &error {
        AdmissionError::Refused(Refusal::Internal | Refusal::Request) => {
            (Code::Other, "use the same version of distd on both sides")
        }
        AdmissionError::Refused(_) => (Code::Refused, "ask for a new ticket"),
        AdmissionError::NoAddress => (Code::Usage, "name one: --address HOST:PORT"),
        AdmissionError::Stranger(..) => {
            (Code::Refused, "check the address with whoever gave you the ticket: the share may have ended")
        }
        AdmissionError::Unreachable(_) | AdmissionError::Wire(..) | AdmissionError::Socket(_) => (
            Code::Network,
            "check that the share still runs and that this machine reaches it; --address HOST:PORT names another way",
        ),
        AdmissionError::BadReply | AdmissionError::Tls(_) => {
            (Code::Integrity, "use the same version of distd on both sides")
        }
        AdmissionError::Key(_) => (Code::Other, "run the same command again"),
    };
    Failure::new(code, error.into()).next(next)
}

/// Shows the ticket and opens the connections of a fetcher.
pub(super) async fn join(request: &TicketAccess, identity: Option<&NodeIdentity>) -> anyhow::Result<Network> {
    let candidate = Candidate::new().map_err(|e| not_admitted(e.into()))?;
    let member = match identity.and_then(|identity| Some((identity, identity.cert_der()?))) {
        Some((identity, cert)) => {
            let key = key_of(identity).map_err(|e| not_admitted(e.into()))?;
            let proof = MemberProof::new(&request.ticket, candidate.csr_der(), cert, &key);
            Some(proof.map_err(|e| not_admitted(e.into()))?)
        }
        None => None,
    };
    let admitted = candidate.admit(&request.ticket, &request.addresses, member, &request.outbound).await;
    let Admitted { key, node, ca, credentials, address, private } = admitted.map_err(not_admitted)?;
    let reset = ResetKey::of_node(&private);
    let (endpoint, _) = open_sockets(&ca, &reset, &credentials, request.listen, false)?;
    let sharing = &request.sharing;
    if !sharing.serves {
        endpoint.set_server_config(None);
    }
    let dialer = Dialer::new(endpoint.clone(), credentials.clone(), &ca, request.outbound.clone());
    let dialer = dialer.map_err(|e| not_admitted(e.into()))?;
    let quarantine = Arc::new(Quarantine::in_memory());
    let capabilities = Capabilities::in_memory(node, ca.clone());
    let parents = Arc::new(Parents::new(dialer, vec![address], quarantine.clone(), capabilities));
    let lateral = sharing.enabled.then(|| {
        let text = RecordText { site: sharing.site.clone(), resident: false };
        let station = Station {
            endpoint: endpoint.clone(),
            ca,
            signer: RecordSigner::of_key(key, credentials, text),
            quarantine,
            remembered: None,
            installed: Arc::new(NothingElse),
            parents: parents.clone(),
        };
        Arc::new(Lateral::open(station, sharing, None))
    });
    Ok(Network::new(parents, endpoint, lateral, sharing.download()))
}

/// Checks that a manifest is the one that the ticket describes.
pub(super) fn check_manifest(request: &TicketAccess, manifest: &Manifest) -> anyhow::Result<()> {
    let (ticket, root) = (&request.ticket.ticket, manifest.root());
    let kind = match root.kind {
        Kind::File => Some(SharedKind::File),
        Kind::Tree { .. } => Some(SharedKind::Tree),
        Kind::PatchSet { .. } => None,
    };
    if kind != Some(ticket.kind) || root.bytes != ticket.bytes {
        let error = anyhow!("the shared manifest has another kind or length than the ticket says");
        return Err(Failure::new(Code::Integrity, error).next("ask for a new ticket").into());
    }
    check_chunks(root.chunks)?;
    if let Some(expected) = request.expected
        && ![manifest.id().0, root.blake3.0].contains(&expected)
    {
        let error = anyhow!(
            "the share has manifest {} and BLAKE3 {}, not the expected {}",
            manifest.id(),
            root.blake3,
            hex::encode(expected)
        );
        return Err(Failure::new(Code::Integrity, error).next("nothing was fetched").into());
    }
    Ok(())
}

/// Checks the number of chunks of a manifest that anybody may have made.
fn check_chunks(chunks: u64) -> anyhow::Result<()> {
    if chunks <= SHARED_CHUNKS_MAX {
        return Ok(());
    }
    let error = anyhow!("the shared manifest has {chunks} chunks, more than a share may have");
    Err(Failure::new(Code::Integrity, error).next("ask for the artifact in several shares").into())
}

/// Returns the failure of a fetcher that was told to end.
pub(super) fn withdrawn() -> Failure {
    let error = anyhow!("the share was withdrawn, or its time is over");
    Failure::new(Code::Refused, error).next("ask for a new ticket")
}

/// Returns the failure of a fetch in the words of a share.
pub(super) fn failed(error: anyhow::Error) -> anyhow::Error {
    if error.chain().any(is_shut_out) {
        return withdrawn().into();
    }
    match cause_of::<FetchError>(&error) {
        Some(FetchError::Unavailable { is_shut_out: true, .. }) => withdrawn().into(),
        Some(FetchError::Unavailable { count, last: None, .. }) => {
            let error = anyhow!("the artifact changed since it was shared: {count} chunks of it are gone");
            Failure::new(Code::Unusable, error).next("ask for a new ticket").into()
        }
        Some(FetchError::Unavailable { count, last: Some(last), .. }) => {
            let error =
                anyhow!("the sharer does not answer any more, and {count} chunks are missing: {last}");
            let next = "check that the share still runs, then run the same command again: it resumes";
            Failure::new(Code::Network, error).next(next).into()
        }
        _ => error,
    }
}

/// Returns when the sharer says that this fetcher may not fetch any more.
pub(super) async fn shut_out(network: &Network) {
    loop {
        if let Ok(link) = network.parents.link(0).await {
            link.closed().await;
            // A question on a closed connection fails with the reason of its end.
            let end = link.metadata(Bytes::new()).await;
            if end.is_err_and(|error| is_shut_out(&error)) {
                return;
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use distd_core::cut::CutParams;
    use distd_core::manifest::{Builder, Entry};
    use distd_core::{ChunkHash, ChunkId};

    use super::*;

    #[test]
    fn a_small_manifest_may_not_stand_for_any_number_of_chunks() {
        let entry = Entry { id: ChunkId(1), hash: ChunkHash::of(b"x"), len: 1 };
        let mut builder = Builder::new(CutParams::default(), Kind::File);
        (0..=SHARED_CHUNKS_MAX).for_each(|_| builder.push(entry));
        let manifest = builder.finish(distd_core::ArtifactHash([0; 32]));
        assert!(manifest.nodes_bytes() < 4 << 20, "{} bytes of nodes", manifest.nodes_bytes());
        let error = check_chunks(manifest.root().chunks).expect_err("too many");
        assert_eq!(crate::failure::code_of(&error), Code::Integrity);
        check_chunks(SHARED_CHUNKS_MAX).expect("as many as there may be");
    }
}
