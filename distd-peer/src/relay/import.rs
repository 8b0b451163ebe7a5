//! Import of bundles: an operator hands a bundle over with `distd-peer import`, and the running
//! relay takes what is in it as if it had fetched it (docs/bundles.md, "At a relay").
//!
//! Bundles come through a directory: a relay answers no request of its own machine. A
//! bundle there is the relay's own copy, and is removed once it is imported or refused.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use distd_core::error::Chain;
use distd_core::manifest::Manifest;
use distd_core::names::{Wanted, patches_target};
use distd_core::packing::{HashedChunk, PackedChunk, UnpackError, Unpacker};
use distd_core::{ChunkHash, ManifestId};
use rustix::fs::OFlags;
use rustix::process::{Gid, Uid};
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
use crate::trust::capability::CapabilityRefused;
use crate::trust::tuf::wire::{Query, role_file};
use crate::trust::tuf::{
    self, Answerer, ChannelDoc, Choice, Chosen, MetadataSource, Resolved, SourceError, TufClient, TufError,
};

/// Directory for bundles below the relay's state directory.
const DIR: &str = "import";

/// Extensions of a bundle that waits, of one that the relay is importing, of the result of an
/// import, and of a file that is being written.
const WAITING: &str = "bundle";
const TAKEN: &str = "taken";
const RESULT: &str = "result";
const PART: &str = "part";

/// Most bytes of a result.
const RESULT_BYTES_MAX: u64 = 64 << 10;

/// How long a relay may let a bundle lie before the command that brought it says so. It may be
/// importing another one.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

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
    /// The relay's disk took no further chunk.
    #[error("this relay's disk is full: free some space, or lower cache.min_free_bytes")]
    Full,
    /// Chunks are missing after all.
    #[error("{0} chunks are missing: the bundle lacks them, or this relay evicted them for lack of room")]
    Lacking(u64),
    /// A capability in the bundle is not the realm's.
    #[error("the bundle's capability is refused")]
    Capability(#[from] CapabilityRefused),
    /// Reading the bundle ended in a fault of this program.
    #[error("the bundle made the import fail; please report this")]
    Fault,
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

/// Result of the import of a bundle that was handed over.
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
        let (resolved, verified) = self.check_metadata(&bundle, &head, tuf).await?;
        let is_signed =
            |id: ManifestId| id == resolved.manifest || resolved.patches.iter().any(|set| set.set == id);
        let link = Arc::new(connect(&bundle));
        let mut tables = Vec::new();
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
                    if !store.put(&hashed.hash, &hashed.packed)? {
                        return Err(ImportError::Full);
                    }
                    new += 1;
                }
                store.commit()?;
                Ok::<_, ImportError>((new, held, table))
            });
            let (new, held, table) = storing.await??;
            imported.new_chunks += new;
            imported.held_chunks += held;
            tables.push(table);
        }
        self.check_complete(&bundle, tables).await?;
        // Only now may a device learn of the release.
        self.keep_imported(&bundle, &head, verified).await?;
        Ok(imported)
    }

    /// Checks that the store has every chunk of the bundle now, and of a bundle without an earlier
    /// release every chunk of the release: storing one may have evicted another.
    async fn check_complete(&self, bundle: &Arc<Bundle>, tables: Vec<ChunkTable>) -> Result<(), ImportError> {
        let (store, bundle) = (self.store().clone(), bundle.clone());
        let is_whole = bundle.head().since.is_none();
        let checking = tokio::task::spawn_blocking(move || {
            let mut lacking = 0;
            for (number, (part, table)) in bundle.swarms().iter().zip(&tables).enumerate() {
                let wanted = if is_whole && number == 0 { table.ids() } else { part.held() };
                for entry in wanted.ids().filter_map(|id| table.get(id)) {
                    // Devices make zeros themselves.
                    let is_zero = || ChunkHash::of(&vec![0; entry.len as usize]) == entry.hash;
                    lacking += u64::from(!store.contains(&entry.hash)? && !is_zero());
                }
            }
            if lacking == 0 { Ok(()) } else { Err(ImportError::Lacking(lacking)) }
        });
        checking.await?
    }

    /// Verifies the metadata in a bundle, and returns the files that were looked at.
    async fn check_metadata(
        &self,
        bundle: &Bundle,
        head: &Head,
        tuf: &TufClient,
    ) -> Result<(Resolved, Verified), ImportError> {
        let release =
            Wanted::Release { product: head.product.clone(), version: head.release.version.clone() };
        let wanted = match head.channel.clone() {
            Some(channel) => Wanted::Channel { product: head.product.clone(), channel },
            None => release.clone(),
        };
        let choose = |doc: &ChannelDoc| {
            let is_of_rollout =
                doc.rollout.as_ref().is_some_and(|rollout| rollout.version == head.release.version);
            let release = if is_of_rollout { Chosen::OfRollout } else { Chosen::OfChannel };
            Choice { release, held: None }
        };
        let source = Arc::new(OfBundle(bundle.answerer()));
        let roots_before = tuf.root_version()?;
        let also = [release.target_name()];
        let resolved = tuf.resolve_choosing(source, &wanted, unix_now(), &also, &choose).await?;
        // Roots that were known before are not looked at again.
        let roots = roots_before + 1..=tuf.root_version()?;
        if resolved.manifest != head.release.manifest {
            return Err(ImportError::OtherRelease(release_name(head, &head.release)));
        }
        let known = match self.mirror() {
            Some(mirror) => mirror.timestamp().await?,
            None => None,
        };
        match bundle.timestamp() {
            Some(brought) if known.is_none_or(|known| known <= brought) => Ok((
                resolved,
                Verified { files: tuf.kept_files(), roots, targets: vec![wanted.target_name()] },
            )),
            _ => Err(ImportError::Older),
        }
    }

    /// Returns the manifest of the release that a bundle continues.
    async fn kept_manifest(&self, head: &Head, since: &Release) -> Result<Manifest, ImportError> {
        let (store, id) = (self.store().clone(), since.manifest);
        let kept = tokio::task::spawn_blocking(move || store.manifest(&id)).await??;
        kept.ok_or_else(|| ImportError::Needs(release_name(head, since)))
    }

    /// Keeps the metadata and capabilities of a bundle whose chunks are in the store. Of the
    /// metadata it keeps what was verified.
    async fn keep_imported(
        &self,
        bundle: &Bundle,
        head: &Head,
        verified: Verified,
    ) -> Result<(), ImportError> {
        for capability in bundle.capabilities() {
            self.parents().capabilities().take_of_any(capability)?;
        }
        let Some(mirror) = self.mirror() else { return Ok(()) };
        let Verified { mut files, roots, mut targets } = verified;
        for (name, bytes) in bundle.metadata() {
            if let Some(("root", version)) = role_file(name)
                && roots.contains(&version)
            {
                files.insert(name.clone(), bytes.clone());
            }
        }
        targets.push(patches_target(&head.product));
        let question = Query { targets, ..Query::default() }.encode();
        mirror.keep_state(&question, files.into_iter().collect()).await?;
        Ok(())
    }
}

/// Metadata of a bundle that was verified.
struct Verified {
    /// Timestamp, snapshot, roles and targets, by name.
    files: BTreeMap<String, Bytes>,
    /// Versions of the roots that were verified.
    roots: RangeInclusive<u64>,
    /// Target that devices ask for.
    targets: Vec<String>,
}

fn release_name(head: &Head, release: &Release) -> String {
    format!("{}@{}", head.product, release.version)
}

/// Imports bundles that are handed over, for as long as the relay runs. `root` is the root metadata
/// that the relay got when it enrolled.
pub(super) async fn import_regularly(relay: Arc<Relay>, data: PathBuf, root: Vec<u8>) {
    let dir = data.join(DIR);
    // Bundles that could not be removed; each is looked at once.
    let mut stuck = HashSet::new();
    let mut is_readable = true;
    loop {
        let looking = dir.clone();
        let found = tokio::task::spawn_blocking(move || waiting(&looking)).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = &found
            && is_readable
        {
            tracing::error!(path = %dir.display(), error = %Chain(error), "bundles cannot be imported");
        }
        is_readable = found.is_ok();
        for path in found.unwrap_or_default() {
            if !stuck.contains(&path) && !import_one(&relay, &dir, &root, &path).await {
                stuck.insert(path);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Imports the bundle at `path`, removes it and leaves the result; `false` when it stays.
async fn import_one(relay: &Arc<Relay>, dir: &Path, root: &[u8], path: &Path) -> bool {
    let taken = path.with_extension(TAKEN);
    if let Err(error) = fs::rename(path, &taken) {
        tracing::error!(path = %path.display(), error = %Chain(&error), "a bundle cannot be taken");
        return false;
    }
    let result = match import_remembering(relay, dir, root, taken.clone()).await {
        Ok(imported) => {
            tracing::warn!(release = imported.release, chunks = imported.new_chunks, "bundle imported");
            ImportResult::Imported(imported)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error = %Chain(&error), "bundle not imported");
            ImportResult::Refused(Chain(&error).to_string())
        }
    };
    match tokio::task::block_in_place(|| settle(&taken, &result)) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "a bundle that was dealt with could not be removed");
            false
        }
    }
}

/// Imports a bundle by a copy of what earlier imports remember, and keeps the copy when the import
/// succeeds: a bundle that is refused leaves nothing behind that refuses another.
async fn import_remembering(
    relay: &Arc<Relay>,
    dir: &Path,
    root: &[u8],
    path: PathBuf,
) -> Result<Imported, ImportError> {
    let (kept, next) = (dir.join("tuf"), dir.join("tuf-next"));
    tokio::task::block_in_place(|| copy_dir(&kept, &next))?;
    let tuf = TufClient::open(&next, root)?;
    let (importing, client) = (relay.clone(), tuf);
    // In a task of its own, so that a fault in it ends no other import.
    let imported = tokio::spawn(async move { importing.import(path, &client).await }).await;
    let imported = imported.unwrap_or(Err(ImportError::Fault));
    tokio::task::block_in_place(|| {
        if imported.is_err() {
            return fs::remove_dir_all(&next);
        }
        match fs::remove_dir_all(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        filesystem::rename(&next, &kept)
    })?;
    imported
}

/// Replaces the directory `to` by a copy of `from`, which may be missing. What a TUF client keeps
/// is a few files and directories.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(to)?;
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Bundles that wait, oldest first; none when there is no directory. Removes results that nobody
/// came for, and copies that were not finished.
fn waiting(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        let Some(modified) = meta.modified().ok().filter(|_| meta.is_file()) else { continue };
        let is_old = modified.elapsed().is_ok_and(|age| age > RESULT_AGE);
        match path.extension().and_then(|extension| extension.to_str()) {
            // One that was taken waits again after a stop of the relay.
            Some(WAITING | TAKEN) => found.push((modified, path)),
            // Left by a command that was killed; gone already if another look removed it.
            Some(RESULT | PART) if is_old => drop(fs::remove_file(path)),
            _ => {}
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Removes a bundle, and leaves the result of its import.
fn settle(path: &Path, result: &ImportResult) -> io::Result<()> {
    let json = serde_json::to_vec(result).map_err(io::Error::other)?;
    let part = path.with_extension(PART);
    fs::write(&part, json)?;
    fs::rename(&part, path.with_extension(RESULT))?;
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

/// What became of a bundle that was handed over.
#[derive(Debug)]
pub enum Outcome {
    /// The relay is done with it.
    Done(ImportResult),
    /// No relay runs there; it takes the bundle when it is started.
    NotRunning,
    /// A relay runs there and does not take the bundle.
    NotTaken,
}

/// Hands the bundle at `path` over to the relay with the state directory `data`, which leaves
/// `min_free` bytes of its disk free. Run by root, this thread goes on as the relay's user: the
/// directory belongs to that user, who must not be able to lead root elsewhere by it.
///
/// # Errors
/// [`HandOverError`].
pub fn hand_over(path: &Path, data: &Path, min_free: u64) -> Result<HandedOver, HandOverError> {
    let unusable = |cause| HandOverError::Bundle(path.to_owned(), cause);
    let bundle = Bundle::open(path).map_err(unusable)?;
    let mut from = File::open(path).map_err(|cause| unusable(cause.into()))?;
    let cache = data.join("cache");
    let owner = fs::metadata(&cache).map_err(|_| HandOverError::NoRelay(data.to_owned()))?;
    let dir = data.join(DIR);
    let failed = |cause| HandOverError::Io(dir.clone(), cause);
    become_user(&owner).map_err(failed)?;
    match fs::create_dir(&dir) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(failed(cause)),
        _ => {}
    }
    // The copy, and the chunks that the relay takes out of it.
    let room = bundle.bytes().saturating_mul(2);
    if Space::at(&dir).map_err(failed)?.free < room.saturating_add(min_free) {
        return Err(HandOverError::NoSpace(dir, room));
    }
    let to = dir.join(format!("{:016x}.{WAITING}", random::number()));
    let part = to.with_extension(PART);
    let mut copy = || -> io::Result<()> {
        let mut into = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        io::copy(&mut from, &mut into)?;
        into.sync_all()?;
        filesystem::rename(&part, &to)
    };
    copy().map_err(|cause| {
        // It is of no use, and the first error matters more than one of its removal.
        let _ = fs::remove_file(&part);
        failed(cause)
    })?;
    Ok(HandedOver { path: to, cache })
}

/// Lets this thread go on as the owner of a file, if it is root's and the file is not.
fn become_user(owner: &fs::Metadata) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    rustix::thread::set_thread_groups(&[gid])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

impl HandedOver {
    /// Waits for what the relay makes of the bundle.
    ///
    /// # Errors
    /// When its result cannot be read.
    pub fn wait(self) -> io::Result<Outcome> {
        let began = Instant::now();
        loop {
            if let Some(result) = read_result(&self.path.with_extension(RESULT))? {
                return Ok(Outcome::Done(result));
            }
            if !crate::store::is_in_use(&self.cache) {
                return Ok(Outcome::NotRunning);
            }
            if self.path.exists() && began.elapsed() > TAKEN_WITHIN {
                return Ok(Outcome::NotTaken);
            }
            std::thread::sleep(LOOK_EVERY / 4);
        }
    }
}

/// Reads and removes a result, if it is there.
fn read_result(path: &Path) -> io::Result<Option<ImportResult>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut json = Vec::new();
    file.take(RESULT_BYTES_MAX).read_to_end(&mut json)?;
    fs::remove_file(path)?;
    Ok(Some(serde_json::from_slice(&json)?))
}
