//! Shares that the agent of this device serves: `DIR/shares/ID/`, with the share, its key and its
//! manifest. A share is there until it is removed, its time is over, or its only fetch is done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use distd_core::NodeId;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::ticket::{SignedTicket, TicketId};
use distd_peer::clock::unix_now;
use distd_peer::rates::Throttle;
use distd_peer::tickets::Members;
use distd_peer::trust::files;
use distd_peer::trust::ticket::{ShareSigner, open};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{LocalArtifact, Share, ShareRequest};
use crate::disk::side;
use crate::failure::{Code, Failure};
use crate::tickets::share::Ended;

/// Directory of the shares in the state directory.
const DIRECTORY: &str = "shares";

const RECORD: &str = "share.json";
const KEY: &str = "share.key";
const MANIFEST: &str = "manifest";

/// Longest file of a share, bytes: a list of the 10 000 nodes of a group.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// Longest manifest, bytes: that of an artifact of 1 TiB.
const MANIFEST_BYTES_MAX: u64 = 4 << 30;

/// Largest number of shares of one device. Each has a port of its own.
const SHARES_MAX: usize = 64;

/// Interval at which the agent looks for shares that came or went.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Pause before a share that could not be served is tried again: its manifest may be large.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// A share that the agent serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptShare {
    /// Path of the artifact.
    pub path: PathBuf,
    /// Address at which it is served.
    pub listen: SocketAddr,
    /// The ticket as text.
    pub ticket: String,
    /// Ids of the nodes that it is for; `None` when anyone may fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<String>>,
}

impl KeptShare {
    fn signed(&self) -> anyhow::Result<SignedTicket> {
        Ok(open(&self.ticket)?)
    }
}

fn directory(data: &Path, id: TicketId) -> PathBuf {
    data.join(DIRECTORY).join(id.to_string())
}

/// Keeps a share for the agent; the agent serves it within seconds.
///
/// # Errors
/// Failures with [`Code::Local`], or with [`Code::Usage`] when there are too many.
pub fn keep(data: &Path, share: &KeptShare, signer: &ShareSigner, manifest: &Manifest) -> anyhow::Result<()> {
    if list(data).len() >= SHARES_MAX {
        let error = anyhow!("this device has {SHARES_MAX} shares already");
        return Err(Failure::new(Code::Usage, error).next("remove one: distd share --rm ID").into());
    }
    let dir = directory(data, share.signed()?.ticket.id);
    let local = |e: anyhow::Error| Failure::new(Code::Local, e.context("could not keep the share"));
    let write = || -> anyhow::Result<()> {
        files::create_private_dir(&data.join(DIRECTORY))?;
        files::create_private_dir(&dir)?;
        files::create_secret(&dir.join(KEY), signer.to_pem().as_bytes())?;
        files::write_atomic(&dir.join(MANIFEST), &manifest.to_file_bytes(), 0o600)?;
        // The record comes last: a share without it is no share.
        let text = serde_json::to_vec_pretty(share)?;
        Ok(files::write_atomic(&dir.join(RECORD), &text, 0o600)?)
    };
    Ok(write().map_err(local)?)
}

/// Returns the shares that are kept, by id. One that cannot be read is left out.
pub fn list(data: &Path) -> BTreeMap<TicketId, KeptShare> {
    let Ok(names) = fs::read_dir(data.join(DIRECTORY)) else { return BTreeMap::new() };
    let read = |entry: fs::DirEntry| {
        let bytes = side::read(&entry.path().join(RECORD), RECORD_BYTES_MAX).ok()??;
        let share: KeptShare = serde_json::from_slice(&bytes).ok()?;
        let id = share.signed().ok()?.ticket.id;
        (entry.file_name().to_str() == Some(&id.to_string())).then_some((id, share))
    };
    names.flatten().filter_map(read).take(SHARES_MAX).collect()
}

/// Removes a share. The agent ends it within seconds.
///
/// # Errors
/// Failures with [`Code::NotFound`] or [`Code::Local`].
pub fn remove(data: &Path, id: TicketId) -> anyhow::Result<()> {
    let dir = directory(data, id);
    if !dir.join(RECORD).exists() {
        let error = anyhow!("this device has no share {id}");
        return Err(Failure::new(Code::NotFound, error).next("list them: distd share --ls").into());
    }
    let take = || -> anyhow::Result<()> {
        for name in [RECORD, KEY, MANIFEST] {
            files::remove(&dir.join(name))?;
        }
        Ok(fs::remove_dir(&dir)?)
    };
    let local = |e: anyhow::Error| Failure::new(Code::Local, e.context("could not remove the share"));
    Ok(take().map_err(local)?)
}

async fn start(
    data: &Path,
    id: TicketId,
    kept: &KeptShare,
    ca: &CertificateDer<'static>,
    upload: Option<Arc<Throttle>>,
) -> anyhow::Result<Share> {
    let ticket = kept.signed()?;
    let (dir, path) = (directory(data, id), kept.path.clone());
    let opened = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let key = files::read_secret(&dir.join(KEY))?.context("the share has no key")?;
        let manifest = side::read(&dir.join(MANIFEST), MANIFEST_BYTES_MAX)?;
        let manifest =
            Manifest::from_file_bytes(Bytes::from(manifest.context("the share has no manifest")?))?;
        let signer = ShareSigner::from_pem(&key).context("the share's key is damaged")?;
        Ok((signer, LocalArtifact::reopen(&path, Arc::new(manifest))?))
    });
    let (signer, local) = opened.await??;
    let nodes = kept.nodes.as_ref().map(|nodes| {
        let nodes: BTreeSet<NodeId> = nodes.iter().filter_map(|node| node.parse().ok()).collect();
        Members { ca: ca.clone(), nodes }
    });
    let request = ShareRequest {
        path: kept.path.clone(),
        listen: kept.listen,
        addresses: Vec::new(),
        not_after: ticket.ticket.not_after,
        once: ticket.ticket.once,
        audience: ticket.ticket.audience.clone(),
        members: nodes,
        signer,
        ticket: Some(ticket),
        upload,
    };
    Share::start(local, request).await
}

/// A share that runs in this process.
struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<Option<Ended>>,
}

impl Running {
    fn new(data: PathBuf, id: TicketId, share: Share) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let told = async move {
                // The sender lives as long as this task is of interest.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            let ended = share.run(told, &|event| tracing::info!(?event, "share")).await;
            // At once: an agent that is stopped now must not serve it again.
            if matches!(ended, Ended::Once | Ended::Expired) {
                forget(&data, id);
            }
            share.end().await;
            Some(ended)
        });
        Self { stop, task }
    }
}

/// Serves the kept shares of the device until the future is dropped or `stopped`.
pub(crate) async fn serve(
    data: PathBuf,
    ca: CertificateDer<'static>,
    upload: Option<Arc<Throttle>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut running: BTreeMap<TicketId, Running> = BTreeMap::new();
    let mut failed: BTreeMap<TicketId, Instant> = BTreeMap::new();
    loop {
        let look = data.clone();
        let kept = tokio::task::spawn_blocking(move || list(&look)).await.unwrap_or_default();
        failed.retain(|id, _| kept.contains_key(id));
        // Before others are opened, which may take long.
        let gone: Vec<TicketId> = running.keys().filter(|id| !kept.contains_key(id)).copied().collect();
        for id in gone {
            end(running.remove(&id)).await;
        }
        for (id, share) in &kept {
            let waits = failed.get(id).is_some_and(|at| at.elapsed() < TRY_AGAIN);
            let is_over = share.signed().is_ok_and(|signed| unix_now() >= signed.ticket.not_after);
            if is_over {
                forget(&data, *id);
            } else if !running.contains_key(id) && !waits {
                match start(&data, *id, share, &ca, upload.clone()).await {
                    Ok(share) => drop(running.insert(*id, Running::new(data.clone(), *id, share))),
                    Err(error) => {
                        let is_first = failed.insert(*id, Instant::now()).is_none();
                        let error = tracing::field::display(Chain(error.as_ref()));
                        match is_first {
                            true => tracing::warn!(%id, error, "a share is not served"),
                            false => tracing::debug!(%id, error, "a share is not served yet"),
                        }
                    }
                }
            }
        }
        let done: Vec<TicketId> =
            running.iter().filter(|(_, share)| share.task.is_finished()).map(|(id, _)| *id).collect();
        for id in done {
            running.remove(&id);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    for (_, share) in running {
        end(Some(share)).await;
    }
}

async fn end(running: Option<Running>) {
    let Some(Running { stop, task }) = running else { return };
    stop.send_replace(true);
    let _ = task.await;
}

/// Removes a share that has ended.
fn forget(data: &Path, id: TicketId) {
    if let Err(error) = remove(data, id) {
        tracing::warn!(%id, error = %Chain(error.as_ref()), "a share that ended stays listed");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use distd_core::ArtifactHash;
    use distd_core::cut::CutParams;
    use distd_core::manifest::{Builder, Kind};
    use distd_core::ticket::{Audience, SharedKind, SharedName, Ticket};

    use super::*;
    use crate::failure::code_of;

    #[test]
    fn a_share_is_listed_until_it_is_removed_and_a_damaged_one_is_left_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = dir.path().join("data");
        let manifest = Builder::new(CutParams::default(), Kind::File).finish(ArtifactHash([0; 32]));
        let signer = ShareSigner::generate().expect("a key");
        let mut ids = Vec::new();
        for n in 0..3 {
            let ticket = Ticket {
                key: signer.public(),
                id: TicketId([n; 8]),
                manifest: manifest.id(),
                kind: SharedKind::File,
                bytes: 0,
                not_after: u64::MAX,
                audience: Audience::Anyone,
                once: false,
                name: SharedName::new("a").expect("a name"),
                addresses: Vec::new(),
            };
            ids.push(ticket.id);
            let ticket = signer.sign(ticket).expect("sign").to_text();
            let listen = "127.0.0.1:1".parse().expect("an address");
            let share = KeptShare { path: "/a".into(), listen, ticket, nodes: None };
            keep(&data, &share, &signer, &manifest).expect("keep");
        }
        let key = directory(&data, ids[0]).join(KEY);
        assert_eq!(fs::metadata(key).expect("stat").permissions().mode() & 0o777, 0o600);
        assert_eq!(list(&data).into_keys().collect::<Vec<_>>(), ids);
        // A ticket with a wrong letter, and a share under the name of another one.
        let record = directory(&data, ids[1]).join(RECORD);
        let text = fs::read_to_string(&record).expect("read");
        fs::write(&record, text.replace("distd-ticket-v1.a", "distd-ticket-v1.b")).expect("write");
        fs::rename(directory(&data, ids[2]), directory(&data, TicketId([9; 8]))).expect("rename");
        assert_eq!(list(&data).into_keys().collect::<Vec<_>>(), [ids[0]]);
        remove(&data, ids[0]).expect("remove");
        assert!(list(&data).is_empty() && !directory(&data, ids[0]).exists());
        assert_eq!(code_of(&remove(&data, ids[0]).expect_err("gone")), Code::NotFound);
    }
}
