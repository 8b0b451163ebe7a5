//! Import of bundles: an operator hands a bundle over with `distd-peer import`, and the running
//! relay takes what is in it as if it had fetched it (docs/bundles.md, "At a relay").
//!
//! Bundles come through a directory, because the relay has no other door on its own machine. A
//! bundle there is the relay's own copy, and is removed once it is imported or refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::ManifestId;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::names::{Wanted, patches_target};
use distd_core::packing::{HashedChunk, PackedChunk, UnpackError, Unpacker};
use serde::{Deserialize, Serialize};

use super::Relay;
use crate::bundle::{Bundle, BundleError, Head, Release, SwarmPart, connect};
use crate::clock::unix_now;
use crate::filesystem::{self, Space};
use crate::manifest_fetch::{ManifestFetchError, fetch_manifest};
use crate::net::LinkError;
use crate::random;
use crate::store::StoreError;
use crate::table::ChunkTable;
use crate::trust::tuf::wire::{Answer, Query};
use crate::trust::tuf::{self, Answerer, MetadataSource, Resolved, SourceError, TufClient, TufError};

/// Directory for bundles below the relay's state directory.
const DIR: &str = "import";

/// Suffixes of a bundle that waits, and of the word about it when it is done.
const WAITING: &str = ".bundle";
const RESULT: &str = ".result";

/// How often a relay looks for bundles, and a command for its result.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Age at which a result that nobody has read is removed.
const RESULT_AGE: Duration = Duration::from_secs(24 * 3600);

/// Reason why a bundle was not imported. What was imported before the reason was found stays: each
/// chunk was verified.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is not a whole bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's metadata is not what the realm signed, has expired, or is older than what this
    /// relay knows.
    #[error("the bundle's metadata does not verify")]
    Metadata(#[from] TufError),
    /// The relay has served newer metadata.
    #[error("the bundle is older than what this relay knows: export it again")]
    Older,
    /// The signed metadata names another manifest for the release.
    #[error("the bundle does not bring what the realm signed as {0}")]
    OtherRelease(String),
    /// The relay lacks the release that the bundle continues.
    #[error(
        "the bundle continues {0}, which this relay does not have: import that first, or export without --since"
    )]
    Needs(String),
    /// The relay would evict chunks of the bundle to make room for others of it.
    #[error("the bundle has {0} bytes of chunks, and this relay keeps {1}: raise cache.max_bytes")]
    NoRoom(u64, u64),
    /// Nodes of a manifest are missing or wrong.
    #[error("the bundle's manifest {0} is incomplete or wrong")]
    Manifest(ManifestId, #[source] ManifestFetchError),
    /// The bundle could not be opened as a parent.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A chunk is not what the manifest says.
    #[error("the bundle has a wrong chunk")]
    Chunk(#[from] UnpackError),
    /// The relay's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The relay's metadata could not be written.
    #[error(transparent)]
    Kept(#[from] tuf::StoreError),
    /// Reading the file failed.
    #[error("could not read the bundle")]
    Io(#[from] io::Error),
    /// The relay is ending.
    #[error("the relay stopped meanwhile; it imports the bundle at its next start")]
    Stopped(#[from] tokio::task::JoinError),
}

/// What an import brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Release, as in `os@2`.
    pub release: String,
    /// Chunks that the relay did not have.
    pub new_chunks: u64,
    /// Chunks that it had.
    pub held_chunks: u64,
}

/// Word about a bundle that was handed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportResult {
    /// It was imported.
    Imported(Imported),
    /// It was not, and why.
    Refused(String),
}

/// Metadata of a bundle, for a TUF client.
struct OfBundle(Answerer);

#[async_trait]
impl MetadataSource for OfBundle {
    async fn query(&self, query: Vec<u8>) -> Result<Vec<u8>, SourceError> {
        Ok(self.0.answer(&query).await?)
    }
}

impl Relay {
    /// Imports the bundle at `path`; `tuf` remembers the newest metadata of earlier imports.
    async fn import(&self, path: PathBuf, tuf: &TufClient) -> Result<Imported, ImportError> {
        let bundle = Arc::new(tokio::task::spawn_blocking(move || Bundle::open(&path)).await??);
        let head = bundle.head().clone();
        let chunk_bytes = bundle.swarms().iter().map(SwarmPart::chunk_bytes).sum();
        if chunk_bytes > self.store().max_bytes() {
            return Err(ImportError::NoRoom(chunk_bytes, self.store().max_bytes()));
        }
        let before = match &head.since {
            Some(since) => vec![self.kept_manifest(&head, since).await?],
            None => Vec::new(),
        };
        // Last of the checks: it remembers the metadata, and an older bundle that this one
        // continues would be refused from then on.
        let resolved = self.check_metadata(&bundle, &head, tuf).await?;
        let is_signed =
            |id: ManifestId| id == resolved.manifest || resolved.patches.iter().any(|set| set.set == id);
        let link = Arc::new(connect(&bundle));
        let mut imported = Imported { release: release_name(&head, &head.release), ..Imported::default() };
        for (number, part) in bundle.swarms().iter().enumerate() {
            let id = part.manifest();
            if !is_signed(id) {
                return Err(ImportError::OtherRelease(imported.release));
            }
            let held: Vec<&Manifest> = before.iter().filter(|_| id == resolved.manifest).collect();
            let swarm = link.open_swarm(id, Bytes::new()).await?;
            let manifest = fetch_manifest(&swarm.handle(), id, None, &held).await;
            swarm.leave();
            let manifest = manifest.map_err(|cause| ImportError::Manifest(id, cause))?;
            let (store, from) = (self.store().clone(), bundle.clone());
            let storing = tokio::task::spawn_blocking(move || {
                let table = ChunkTable::of(&manifest);
                store.put_manifest(&manifest)?;
                let mut unpacker = Unpacker::default();
                let (mut new, mut held) = (0, 0);
                for id in from.swarms()[number].held().ids() {
                    // A chunk that the manifest does not list is nobody's.
                    let Some((entry, chunk)) = table.get(id).zip(from.chunk(number, id)?) else { continue };
                    if store.contains(&entry.hash)? {
                        held += 1;
                        continue;
                    }
                    let packed = PackedChunk { codec: chunk.codec, raw_len: entry.len, bytes: chunk.bytes };
                    let hashed = HashedChunk { hash: entry.hash, packed };
                    hashed.verify(&mut unpacker)?;
                    store.put(&hashed.hash, &hashed.packed)?;
                    new += 1;
                }
                store.commit()?;
                Ok::<_, ImportError>((new, held))
            });
            let (new, held) = storing.await??;
            imported.new_chunks += new;
            imported.held_chunks += held;
        }
        // Only now may a device learn of the release.
        self.keep_imported(&bundle, &head).await?;
        Ok(imported)
    }

    /// Verifies the metadata in a bundle.
    async fn check_metadata(
        &self,
        bundle: &Bundle,
        head: &Head,
        tuf: &TufClient,
    ) -> Result<Resolved, ImportError> {
        let wanted = Wanted::Release { product: head.product.clone(), version: head.release.version.clone() };
        let resolved = tuf.resolve(Arc::new(OfBundle(bundle.answerer())), &wanted, unix_now()).await?;
        if resolved.manifest != head.release.manifest {
            return Err(ImportError::OtherRelease(release_name(head, &head.release)));
        }
        let known = match self.mirror() {
            Some(mirror) => mirror.timestamp().await?,
            None => None,
        };
        match bundle.timestamp() {
            Some(brought) if known.is_none_or(|known| known <= brought) => Ok(resolved),
            _ => Err(ImportError::Older),
        }
    }

    /// Returns the manifest of the release that a bundle continues.
    async fn kept_manifest(&self, head: &Head, since: &Release) -> Result<Manifest, ImportError> {
        let (store, id) = (self.store().clone(), since.manifest);
        let kept = tokio::task::spawn_blocking(move || store.manifest(&id)).await??;
        kept.ok_or_else(|| ImportError::Needs(release_name(head, since)))
    }

    /// Keeps the metadata and capabilities of a bundle whose chunks are in the store.
    async fn keep_imported(&self, bundle: &Bundle, head: &Head) -> Result<(), ImportError> {
        for capability in bundle.capabilities() {
            if let Err(error) = self.parents().capabilities().take_of_any(capability) {
                tracing::warn!(error = %Chain(&error), "a bundle brought a capability that is not the realm's");
            }
        }
        let Some(mirror) = self.mirror() else { return Ok(()) };
        let release = &head.release.version;
        let of_channel =
            head.channel.clone().map(|channel| Wanted::Channel { product: head.product.clone(), channel });
        let of_release = Wanted::Release { product: head.product.clone(), version: release.clone() };
        let wanted = of_channel.unwrap_or(of_release);
        let targets = vec![wanted.target_name(), patches_target(&head.product)];
        let question = Query { targets, ..Query::default() }.encode();
        let answer = Bytes::from(Answer { files: bundle.metadata().to_vec() }.encode());
        mirror.keep_of_device(&question, &answer).await?;
        mirror.keep(&answer).await?;
        Ok(())
    }
}

fn release_name(head: &Head, release: &Release) -> String {
    format!("{}@{}", head.product, release.version)
}

/// Imports bundles that are handed over, for as long as the relay runs. `root` is the root metadata
/// that the relay got when it enrolled.
pub(super) async fn import_regularly(relay: Arc<Relay>, data: PathBuf, root: Vec<u8>) {
    let dir = data.join(DIR);
    if let Err(error) = fs::create_dir_all(dir.join("tuf")) {
        tracing::error!(error = %Chain(&error), "bundles cannot be imported");
        return;
    }
    let tuf = match TufClient::open(&dir.join("tuf"), &root) {
        Ok(tuf) => tuf,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "bundles cannot be imported");
            return;
        }
    };
    loop {
        let looking = dir.clone();
        let waiting = tokio::task::spawn_blocking(move || waiting(&looking)).await;
        for path in waiting.unwrap_or_default() {
            let result = match relay.import(path.clone(), &tuf).await {
                Err(ImportError::Stopped(_)) => return,
                Ok(imported) => {
                    tracing::warn!(
                        release = imported.release,
                        chunks = imported.new_chunks,
                        "bundle imported"
                    );
                    ImportResult::Imported(imported)
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %Chain(&error), "bundle not imported");
                    ImportResult::Refused(Chain(&error).to_string())
                }
            };
            let settling = tokio::task::spawn_blocking(move || settle(&path, &result));
            if let Ok(Err(error)) = settling.await {
                tracing::error!(error = %Chain(&error), "a bundle that was dealt with could not be removed");
                tokio::time::sleep(RESULT_AGE).await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Bundles that wait, oldest first. Removes results that nobody came for, and copies that were not
/// finished.
fn waiting(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        let Some(modified) = meta.modified().ok().filter(|_| meta.is_file()) else { continue };
        let is_old = modified.elapsed().is_ok_and(|age| age > RESULT_AGE);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("bundle") => found.push((modified, path)),
            // Left by a command that was killed; gone already if another look removed it.
            Some("result" | "part") if is_old => drop(fs::remove_file(path)),
            _ => {}
        }
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Removes a bundle, and leaves the word about it.
fn settle(path: &Path, result: &ImportResult) -> io::Result<()> {
    let json = serde_json::to_vec(result).map_err(io::Error::other)?;
    let word = path.with_extension(&RESULT[1..]);
    let part = path.with_extension("part");
    fs::write(&part, json)?;
    fs::rename(&part, word)?;
    fs::remove_file(path)
}

/// Reason why a bundle could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The file is not a whole bundle.
    #[error("could not use {0}")]
    Bundle(PathBuf, #[source] BundleError),
    /// There is no relay in the directory.
    #[error("there is no relay in {0}: name its state directory with --data, and start it once")]
    NoRelay(PathBuf),
    /// The copy would fill the disk.
    #[error("{0} has no room for a copy of {1} bytes: free some space, or move the relay's data")]
    NoSpace(PathBuf, u64),
    /// A file operation failed.
    #[error("could not copy the bundle to {0}")]
    Io(PathBuf, #[source] io::Error),
}

/// A bundle that was handed over to the relay of this machine.
pub struct HandedOver {
    path: PathBuf,
    cache: PathBuf,
}

/// Hands the bundle at `path` over to the relay with the state directory `data`, which leaves
/// `min_free` bytes of its disk free.
///
/// # Errors
/// [`HandOverError`].
pub fn hand_over(path: &Path, data: &Path, min_free: u64) -> Result<HandedOver, HandOverError> {
    let bundle = Bundle::open(path).map_err(|cause| HandOverError::Bundle(path.to_owned(), cause))?;
    let cache = data.join("cache");
    let owner = fs::metadata(&cache).map_err(|_| HandOverError::NoRelay(data.to_owned()))?;
    let dir = data.join(DIR);
    let failed = |cause| HandOverError::Io(dir.clone(), cause);
    if !dir.exists() {
        fs::create_dir(&dir).map_err(failed)?;
        give_to(&dir, &owner).map_err(failed)?;
    }
    let space = Space::at(&dir).map_err(failed)?;
    if space.free < bundle.bytes().saturating_add(min_free) {
        return Err(HandOverError::NoSpace(dir, bundle.bytes()));
    }
    let to = dir.join(format!("{:016x}{WAITING}", random::number()));
    let part = to.with_extension("part");
    let copy = || -> io::Result<()> {
        let mut into = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        io::copy(&mut File::open(path)?, &mut into)?;
        into.sync_all()?;
        give_to(&part, &owner)?;
        filesystem::rename(&part, &to)
    };
    copy().map_err(|cause| {
        // It is of no use, and the first error matters more than one of its removal.
        let _ = fs::remove_file(&part);
        failed(cause)
    })?;
    Ok(HandedOver { path: to, cache })
}

/// Gives a file to the relay's user, where this process may.
fn give_to(path: &Path, owner: &fs::Metadata) -> io::Result<()> {
    let is_its = fs::metadata(path).is_ok_and(|meta| meta.uid() == owner.uid() && meta.gid() == owner.gid());
    if is_its { Ok(()) } else { chown(path, Some(owner.uid()), Some(owner.gid())) }
}

impl HandedOver {
    /// Waits for the word of the relay. `None`: no relay runs there; it takes the bundle when it is
    /// started.
    ///
    /// # Errors
    /// When the word cannot be read.
    pub fn wait(self) -> io::Result<Option<ImportResult>> {
        let word = self.path.with_extension(&RESULT[1..]);
        loop {
            match fs::read(&word) {
                Ok(json) => {
                    fs::remove_file(&word)?;
                    return Ok(Some(serde_json::from_slice(&json)?));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_) => {}
            }
            if !crate::store::is_in_use(&self.cache) && !word.exists() {
                return Ok(None);
            }
            std::thread::sleep(LOOK_EVERY / 4);
        }
    }
}
