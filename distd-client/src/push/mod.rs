//! Push: cuts the artifact on this machine, asks the origin which chunks it lacks, sends only
//! those, and commits.
//!
//! [`distd_client::cutting`] makes chunks of a file, a block device, a directory or several files;
//! [`pipeline`] sends the missing chunks to the origin.

mod pipeline;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use self::pipeline::{PipelineError, Sent};
use anyhow::anyhow;
use bytes::Bytes;
use distd_client::api::{Api, CommitRequest, persistently};
use distd_client::cutting::{CutError, Source};
use distd_client::disk::device;
use distd_client::failure::{Code, Failure};
use distd_client::progress::Progress;
use distd_client::text::human_bytes;
use distd_core::api::{Release, ReleaseKind, Word};
use distd_core::cut::ReadAt;
use distd_core::names::Name;
use distd_core::{ArtifactHash, ManifestId};
use serde::Serialize;

/// A request to push an artifact as a release.
pub(crate) struct PushRequest {
    /// The artifact.
    pub(crate) artifact: Pushed,
    /// Product of the release.
    pub(crate) product: Name,
    /// Version of the release.
    pub(crate) version: Name,
    /// zstd level of each chunk.
    pub(crate) level: i32,
    /// Channel to point at the release; `None` to change no channel.
    pub(crate) channel: Option<Name>,
}

/// Artifact of a push.
#[derive(Clone, Debug)]
pub(crate) enum Pushed {
    /// Path of a file, a block device or a directory.
    Path(PathBuf),
    /// Labels of partitions and paths of the files in them, for a disk image.
    Disk(Vec<(String, PathBuf)>),
}

impl Pushed {
    fn open(&self) -> anyhow::Result<Source> {
        match self {
            Self::Path(path) => {
                refuse_written_device(path)?;
                Source::open(path)
            }
            Self::Disk(parts) => {
                parts.iter().try_for_each(|(_, path)| refuse_written_device(path))?;
                Source::disk_of(parts)
            }
        }
    }
}

/// Result of a push; the one object that `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    product: String,
    version: String,
    kind: Word<ReleaseKind>,
    manifest: ManifestId,
    blake3: ArtifactHash,
    bytes: u64,
    chunks: u64,
    uploaded_bytes: u64,
    uploaded_chunks: u64,
    seconds: f64,
    already_existed: bool,
    resumed: bool,
    sockets_skipped: u64,
    mounts_skipped: u64,
    channel: Option<String>,
}

impl Outcome {
    fn of(release: Release, start: Instant) -> Self {
        Self {
            product: release.product,
            version: release.version,
            kind: release.kind,
            manifest: release.manifest,
            blake3: release.blake3,
            bytes: release.bytes,
            chunks: release.chunks,
            uploaded_bytes: 0,
            uploaded_chunks: 0,
            seconds: start.elapsed().as_secs_f64(),
            already_existed: true,
            resumed: false,
            sockets_skipped: 0,
            mounts_skipped: 0,
            channel: None,
        }
    }

    /// Returns a description of the parts of a tree that were left out.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let sockets = (self.sockets_skipped > 0).then(|| format!("{} sockets", self.sockets_skipped));
        let mounts =
            (self.mounts_skipped > 0).then(|| format!("{} mounted file systems", self.mounts_skipped));
        sockets.into_iter().chain(mounts).collect()
    }

    /// Returns the result as text for people.
    pub(crate) fn summary(&self) -> String {
        let Self { product, version, blake3, manifest, .. } = self;
        let first = if self.already_existed {
            format!("{product} {version} is already there with the same bytes")
        } else {
            format!(
                "{product} {version} released: {} in {} chunks, {} of them sent ({}), {:.1} s",
                human_bytes(self.bytes),
                self.chunks,
                self.uploaded_chunks,
                human_bytes(self.uploaded_bytes),
                self.seconds
            )
        };
        let channel = match &self.channel {
            Some(channel) => format!("\nchannel {product}:{channel} points at {version}"),
            None => String::new(),
        };
        format!("{first}\nblake3   {blake3}\nmanifest {manifest}{channel}")
    }
}

/// Pushes an artifact.
///
/// # Errors
/// A [`Failure`] with its exit code. The origin keeps what it received for a day, and the same
/// command continues from there.
pub(crate) async fn push(
    api: &Api,
    request: &PushRequest,
    progress: Arc<dyn Progress>,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let artifact = request.artifact.clone();
    let source = Arc::new(tokio::task::spawn_blocking(move || artifact.open()).await??);
    let label = format!("{} {}", request.product, request.version);
    progress.begin(source.len(), &label);
    let mut outcome = match existing(api, request).await? {
        Some(release) if !release.damaged => compare(release, &source, &progress, start).await?,
        // If the origin lost a part of the release, pushing the release again repairs it.
        _ => upload(api, request, &source, &progress, start).await?,
    };
    outcome.sockets_skipped = source.skipped().sockets;
    outcome.mounts_skipped = source.skipped().mounts;
    if let Some(channel) = &request.channel {
        progress.phase("setting the channel");
        let set =
            || api.set_channel(request.product.as_str(), channel.as_str(), request.version.as_str(), false);
        let set = persistently(set).await;
        outcome.channel = Some(set.map_err(Failure::from)?.channel);
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    progress.end();
    Ok(outcome)
}

/// Refuses a block device whose file system may be written while it is read. The release would be a
/// state that the file system never had, and the metadata of the device node does not show the
/// change.
fn refuse_written_device(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(meta) = std::fs::metadata(path) else { return Ok(()) };
    if !meta.file_type().is_block_device() {
        return Ok(());
    }
    match device::written_through(meta.rdev(), path) {
        Some(used) => {
            let error = anyhow!("{used}, and may be written while it is read");
            let next = "unmount it, mount it read-only (mount -o remount,ro), or push a snapshot of it";
            Err(Failure::new(Code::Unusable, error).next(next).into())
        }
        None => Ok(()),
    }
}

/// Returns the release if the version is taken. With a token that may not read, a taken version is
/// noticed at the commit.
async fn existing(api: &Api, request: &PushRequest) -> anyhow::Result<Option<Release>> {
    let ask = || api.release(request.product.as_str(), request.version.as_str());
    match persistently(ask).await {
        Ok(release) => Ok(Some(release)),
        Err(error) if error.is_not_found() || error.is_forbidden() => Ok(None),
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// Handles a version that is taken: the same bytes are no error, other bytes are.
async fn compare(
    release: Release,
    source: &Arc<Source>,
    progress: &Arc<dyn Progress>,
    start: Instant,
) -> anyhow::Result<Outcome> {
    progress.phase("comparing with the release that is there");
    let same_shape = release.bytes == source.len()
        && (release.kind == ReleaseKind::Tree) == source.listing_bytes().is_some();
    let same = same_shape && {
        let (reader, counter) = (source.clone(), progress.clone());
        let hashed = tokio::task::spawn_blocking(move || pipeline::hash_only(&reader, &*counter)).await?;
        let hash = hashed.map_err(|e| source.read_failure(e))?;
        source.check_unchanged()?;
        hash == release.blake3
    };
    if same {
        return Ok(Outcome::of(release, start));
    }
    let error = anyhow!("{}@{} is released already with other bytes", release.product, release.version);
    let next = format!(
        "push with another --version; to see it: distd release show {}@{}",
        release.product, release.version
    );
    Err(Failure::new(Code::Conflict, error).next(next).into())
}

async fn upload(
    api: &Api,
    request: &PushRequest,
    source: &Arc<Source>,
    progress: &Arc<dyn Progress>,
    start: Instant,
) -> anyhow::Result<Outcome> {
    let begun = api.begin_upload(request.product.as_str(), request.version.as_str(), source.len());
    let begun = begun.await;
    let upload = begun.map_err(Failure::from)?;
    let for_regions = source.clone();
    let regions = tokio::task::spawn_blocking(move || for_regions.regions()).await??;
    let sent =
        pipeline::send_missing(source.clone(), regions, &upload, request.level, progress.clone()).await;
    let (cut, sent) = sent.map_err(|error| failure(error, source))?;
    tracing::info!(
        seconds = start.elapsed().as_secs_f64(),
        chunks = sent.chunks,
        "all chunks are at the origin"
    );
    source.check_unchanged()?;
    progress.phase("committing");
    let commit = CommitRequest {
        listing_bytes: source.listing_bytes(),
        bytes: source.len(),
        blake3: cut.blake3,
        runs: Bytes::from(cut.runs),
    };
    let (release, already_existed) = upload.commit(&commit).await.map_err(|e| failure(e.into(), source))?;
    if release.blake3 != cut.blake3 || release.bytes != commit.bytes || release.chunks != cut.chunks {
        let error = anyhow!("the origin answered with another release than the one committed");
        return Err(Failure::new(Code::Integrity, error)
            .next("use the same version of distd on both sides")
            .into());
    }
    let Sent { bytes, chunks } = sent;
    let outcome = Outcome::of(release, start);
    Ok(Outcome {
        uploaded_bytes: bytes,
        uploaded_chunks: chunks,
        already_existed,
        resumed: upload.is_resumed(),
        ..outcome
    })
}

fn failure(error: PipelineError, source: &Source) -> anyhow::Error {
    match error {
        PipelineError::Api(error) if error.is_upload_gone() => {
            let next = "another push of this version may have ended this upload; run the same command again: the chunks sent so far are kept";
            Failure::new(Code::Conflict, error.into()).next(next).into()
        }
        PipelineError::Api(error) => Failure::from(error).into(),
        PipelineError::Cut(CutError::Read(error)) => source.read_failure(error),
        PipelineError::Cut(error @ CutError::TooManyChunks) => {
            let next = "give the product larger chunks (its cut parameters), or ship it as several products";
            Failure::new(Code::Unusable, error.into()).next(next).into()
        }
        PipelineError::Cut(error @ CutError::Stopped) => Failure::new(Code::Other, error.into()).into(),
    }
}
