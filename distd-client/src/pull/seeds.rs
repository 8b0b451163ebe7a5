//! Seeds: earlier artifacts on this device, and which chunks lie where in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use distd_core::ChunkHash;
use distd_core::cut::{Batches, CutParams, regions};
use distd_core::manifest::{Kind, Manifest};
use distd_core::planner::{HeldAt, HeldIndex};

use super::kept::{read_kept_manifest, with_suffix};
use super::tree::{LISTING_SUFFIX, Layout, path_below};
use crate::exit::{Code, Failure};
use crate::local::FileReader;

/// Chunks tried when a seed is opened with its manifest: enough to notice a seed that was changed or replaced.
const SAMPLES: usize = 16;

/// Bytes of one seed by offset.
pub(crate) enum Bytes {
    File(File),
    Tree { root: PathBuf, listing: Vec<u8>, layout: Box<Layout> },
}

impl Bytes {
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Tree { root, listing, layout } => {
                let in_listing =
                    (listing.len() as u64).saturating_sub(offset).min(buffer.len() as u64) as usize;
                if in_listing > 0 {
                    let at = offset as usize;
                    buffer[..in_listing].copy_from_slice(&listing[at..at + in_listing]);
                }
                let rest = &mut buffer[in_listing..];
                let parts = layout.parts(offset + in_listing as u64, rest.len());
                let covered: usize = parts.iter().map(|(_, _, range)| range.len()).sum();
                if covered != rest.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                for (entry, at, range) in parts {
                    open_regular(&path_below(root, entry))?.read_exact_at(&mut rest[range], at)?;
                }
                Ok(())
            }
        }
    }
}

/// Opens a regular file; a fifo or device in its place must not block or act.
fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// All seeds of a pull.
pub(super) struct Seeds {
    pub(super) seeds: Vec<Bytes>,
    pub(super) manifests: Vec<Manifest>,
    /// Seeds without a usable manifest: cut once the wanted artifact's cut parameters are known.
    uncut: Vec<(u32, PathBuf)>,
    /// Which seed each manifest is of.
    of_seed: Vec<u32>,
}

impl Seeds {
    /// Opens `paths`. One that cannot be read is an error: it was named on the command line.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn open(paths: &[PathBuf], data: &Path) -> anyhow::Result<Self> {
        let mut this =
            Self { seeds: Vec::new(), manifests: Vec::new(), uncut: Vec::new(), of_seed: Vec::new() };
        for path in paths {
            let local = |e: anyhow::Error| {
                Failure::new(Code::Local, e.context(format!("could not read seed {}", path.display())))
            };
            let seed = u32::try_from(this.seeds.len()).map_err(|e| local(e.into()))?;
            let meta = fs::metadata(path).map_err(|e| local(e.into()))?;
            let manifest = read_kept_manifest(path, data);
            let bytes = if meta.is_dir() {
                match open_tree(path) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "directory seed without its listing is passed over");
                        continue;
                    }
                }
            } else {
                Bytes::File(File::open(path).map_err(|e| local(e.into()))?)
            };
            match manifest {
                Some(manifest) if samples_match(&bytes, &manifest) => {
                    this.manifests.push(manifest);
                    this.of_seed.push(seed);
                }
                _ if meta.is_dir() => {
                    tracing::warn!(path = %path.display(), "directory seed has changed and is passed over");
                    continue;
                }
                _ => this.uncut.push((seed, path.clone())),
            }
            this.seeds.push(bytes);
        }
        Ok(this)
    }

    /// Forgets the manifests, once all their chunks are indexed.
    pub(super) fn forget_manifests(&mut self) {
        self.manifests = Vec::new();
    }

    /// Adds a file without a manifest, whose chunks the caller knows; its number.
    pub(super) fn add_file(&mut self, file: File) -> u32 {
        self.seeds.push(Bytes::File(file));
        // The paths of a command line are far fewer.
        u32::try_from(self.seeds.len() - 1).unwrap_or(u32::MAX)
    }

    /// The manifests kept beside the seeds.
    pub(super) fn held_manifests(&self) -> Vec<&Manifest> {
        self.manifests.iter().collect()
    }

    /// Where every chunk of the seeds lies; seeds without manifest are cut now, with `cut`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn index(&self, cut: CutParams) -> anyhow::Result<HeldIndex> {
        let mut index = HeldIndex::new();
        for (manifest, seed) in self.manifests.iter().zip(&self.of_seed) {
            index.insert_manifest(*seed, manifest);
        }
        for (seed, path) in &self.uncut {
            cut_seed(path, *seed, cut, &mut index)
                .with_context(|| format!("could not read seed {}", path.display()))
                .map_err(|e| Failure::new(Code::Local, e))?;
        }
        index.finish();
        Ok(index)
    }
}

/// The bytes of an artifact on this device.
pub(crate) fn open_artifact(path: &Path) -> anyhow::Result<Bytes> {
    if fs::metadata(path)?.is_dir() { open_tree(path) } else { Ok(Bytes::File(File::open(path)?)) }
}

fn open_tree(path: &Path) -> anyhow::Result<Bytes> {
    let listing = fs::read(with_suffix(path, LISTING_SUFFIX))?;
    let layout = Box::new(Layout::new(&listing)?);
    Ok(Bytes::Tree { root: path.to_owned(), listing, layout })
}

/// Whether a few chunks spread over the seed are what its manifest says.
fn samples_match(bytes: &Bytes, manifest: &Manifest) -> bool {
    let step = (manifest.root().chunks / SAMPLES as u64).max(1);
    let mut buffer = Vec::new();
    // The last chunk is among them, so a truncated seed is noticed.
    let last = manifest.root().chunks.saturating_sub(1);
    manifest.entries().enumerate().filter(|(n, _)| (*n as u64).is_multiple_of(step) || *n as u64 == last).all(
        |(_, at)| {
            buffer.resize(at.entry.len as usize, 0);
            bytes.read_at(at.offset, &mut buffer).is_ok() && ChunkHash::of(&buffer) == at.entry.hash
        },
    ) && matches!(
        (manifest.root().kind, bytes),
        (Kind::File, Bytes::File(_)) | (Kind::Tree { .. }, Bytes::Tree { .. })
    )
}

/// Cuts a seed on the spot, on two threads at region borders.
fn cut_seed(path: &Path, seed: u32, cut: CutParams, index: &mut HeldIndex) -> anyhow::Result<()> {
    let reader = FileReader::open(path)?;
    let regions = regions(&reader);
    let found = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = regions
            .split(threads)
            .into_iter()
            .map(|range| {
                let (reader, regions, found) = (&reader, &regions, &found);
                scope.spawn(move || -> io::Result<()> {
                    let mut batches = Batches::new(reader, &regions.all()[range], cut);
                    let mut buffer = Vec::new();
                    let mut mine = Vec::new();
                    while let Some(batch) = batches.next_batch(std::mem::take(&mut buffer))? {
                        mine.extend(
                            batch.chunks().map(|c| (ChunkHash::of(c.data), c.data.len() as u32, c.offset)),
                        );
                        buffer = batch.into_buffer();
                    }
                    found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(mine);
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a cutting thread failed"))??;
        }
        Ok(())
    })?;
    for (hash, len, offset) in found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        index.insert(hash, len, HeldAt { seed, offset });
    }
    Ok(())
}
