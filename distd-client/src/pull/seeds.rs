//! Seeds: earlier artifacts on this device, and the offsets of their chunks.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use distd_core::ChunkHash;
use distd_core::bounds::TREE_LISTING_BYTES_MAX;
use distd_core::cut::{Batches, CutParams, ReadAt, Regions, regions};
use distd_core::manifest::{Kind, Manifest};
use distd_core::planner::{HeldAt, HeldIndex};
use distd_core::tree::{Entry, EntryKind};

use super::attributes::same_time;
use super::kept::{self, Kept, is_block_device, listing_path};
use super::layout::Layout;
use super::ours::is_listing_of;
use crate::disk::beneath::Beneath;
use crate::disk::side;
use crate::disk::spread::{Places, Spread};
use crate::failure::{Code, Failure};
use crate::local::FileReader;
use crate::tree_source::TreeSource;

/// Number of chunks checked when a seed is opened with its manifest: enough to notice a changed or
/// replaced seed.
const SAMPLES: usize = 16;

/// Bytes of one seed, by offset.
pub(crate) enum SeedFile {
    /// A regular file or a block device.
    File(File),
    /// A disk image whose partitions lie in places of their own.
    Spread(Box<Spread>),
    /// A tree as distd installed it, with the listing kept beside it.
    Tree { beneath: Beneath, listing: Vec<u8>, layout: Box<Layout> },
    /// A directory in its current state.
    Directory(Box<TreeSource>),
}

impl SeedFile {
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Spread(spread) => spread.read_at(offset, buffer),
            Self::Directory(tree) => tree.read_exact_at(buffer, offset),
            Self::Tree { beneath, listing, layout } => {
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
                    let file = beneath.open_file(entry.path.as_bytes(), false)?;
                    file.read_exact_at(&mut rest[range], at)?;
                }
                Ok(())
            }
        }
    }

    /// Opens the bytes of the tree at `path` with the encoded `listing`.
    ///
    /// # Errors
    /// When the listing does not decode, or the directory cannot be opened.
    pub(super) fn of_tree(path: &Path, listing: Vec<u8>) -> anyhow::Result<Self> {
        let layout = Box::new(Layout::new(&listing)?);
        Ok(Self::Tree { beneath: Beneath::open(path)?, listing, layout })
    }
}

/// All seeds of a pull.
#[derive(Default)]
pub(super) struct Seeds {
    pub(super) seeds: Vec<SeedFile>,
    pub(super) manifests: Vec<Manifest>,
    /// Use of each manifest.
    uses: Vec<Use>,
    /// Index and path of each seed that does not match a manifest. These seeds are cut once the cut
    /// parameters of the wanted artifact are known.
    uncut: Vec<(u32, PathBuf)>,
}

/// Use of a manifest kept beside a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// The seed with this index holds the manifest's chunks.
    Index(u32),
    /// Only the nodes are used; they are valid whatever happened to the artifact. Patches do not
    /// start from this manifest, because their bases may be gone.
    Nodes,
}

impl Seeds {
    /// Opens the seeds at `paths` and the artifact at `out`. A seed that cannot be read is an error
    /// because the user named it.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn open(paths: &[PathBuf], out: Option<&Path>, data: &Path) -> anyhow::Result<Self> {
        let mut this = Self::default();
        for path in paths {
            this.add(path, data)?;
        }
        match out {
            // A block device is written in place, and so are the partitions of a spread image:
            // chunks to be copied from it to another offset may be overwritten by then.
            Some(out) if is_block_device(out) || Places::of(out, data)?.is_some() => {
                this.manifests.extend(kept::read_kept_manifest(out, data));
                this.uses.resize(this.manifests.len(), Use::Nodes);
            }
            Some(out) if out.exists() && !paths.iter().any(|path| path == out) => this.add(out, data)?,
            _ => {}
        }
        Ok(this)
    }

    fn add(&mut self, path: &Path, data: &Path) -> anyhow::Result<()> {
        let local = |e: anyhow::Error| {
            Failure::new(Code::Local, e.context(format!("could not read seed {}", path.display())))
        };
        let seed = u32::try_from(self.seeds.len()).map_err(|e| local(e.into()))?;
        let meta = fs::metadata(path).map_err(|e| local(e.into()))?;
        let mut candidates = kept::candidates(path, data);
        for (number, kept) in candidates.iter_mut().enumerate() {
            let Some(bytes) = open_kept(path, data, &meta, kept) else { continue };
            if samples_match(&bytes, &kept.manifest) && is_unchanged(&bytes) {
                self.seeds.push(bytes);
                self.manifests.push(candidates.swap_remove(number).manifest);
                self.uses.push(Use::Index(seed));
                return Ok(());
            }
        }
        let bytes = if meta.is_dir() {
            match TreeSource::open(path) {
                Ok(tree) => SeedFile::Directory(Box::new(tree)),
                Err(error) => {
                    let error = &*error;
                    tracing::warn!(path = %path.display(), error, "directory seed cannot be read and is skipped");
                    return Ok(());
                }
            }
        } else if Places::of(path, data)?.is_some() {
            // Chunks of the image are known by its manifest alone, and that does not fit.
            tracing::warn!(path = %path.display(), "partitions have changed since distd wrote them; they are no seed");
            self.manifests.extend(candidates.into_iter().find(|kept| !kept.part).map(|kept| kept.manifest));
            self.uses.resize(self.manifests.len(), Use::Nodes);
            return Ok(());
        } else {
            SeedFile::File(open_file(path).map_err(|e| local(e.into()))?)
        };
        self.seeds.push(bytes);
        self.uncut.push((seed, path.to_owned()));
        if let Some(kept) = candidates.into_iter().find(|kept| !kept.part) {
            tracing::info!(path = %path.display(), "seed has changed since distd put it there; it is cut as it is");
            self.manifests.push(kept.manifest);
            self.uses.push(Use::Nodes);
        }
        Ok(())
    }

    /// Drops the manifests, once all their chunks are indexed.
    pub(super) fn forget_manifests(&mut self) {
        self.manifests = Vec::new();
    }

    /// Adds a file without a manifest, whose chunks the caller knows; returns the seed's index.
    pub(super) fn add_file(&mut self, file: File) -> u32 {
        self.seeds.push(SeedFile::File(file));
        // A command line has far fewer paths.
        u32::try_from(self.seeds.len() - 1).unwrap_or(u32::MAX)
    }

    /// Returns the manifests kept beside the seeds.
    pub(super) fn held_manifests(&self) -> Vec<&Manifest> {
        self.manifests.iter().collect()
    }

    /// Returns the manifests of the releases that seeds hold.
    pub(super) fn held_releases(&self) -> impl Iterator<Item = &Manifest> {
        let held = |(manifest, what): (_, &Use)| (*what != Use::Nodes).then_some(manifest);
        self.manifests.iter().zip(&self.uses).filter_map(held)
    }

    /// Returns the index of all chunks of the seeds. Seeds that do not match a manifest are cut
    /// now, with `cut`.
    ///
    /// # Errors
    /// Failures with [`Code::Local`].
    pub(super) fn index(&self, cut: CutParams) -> anyhow::Result<HeldIndex> {
        let mut index = HeldIndex::new();
        for (manifest, what) in self.manifests.iter().zip(&self.uses) {
            if let Use::Index(seed) = what {
                index.insert_manifest(*seed, manifest);
            }
        }
        for (seed, path) in &self.uncut {
            match &self.seeds[*seed as usize] {
                SeedFile::Directory(tree) => match tree.regions() {
                    // One thread: `TreeSource` keeps only one file open at a time.
                    Ok(regions) => cut_seed(&**tree, &regions, 1, *seed, cut, &mut index),
                    Err(error) => Err(error),
                },
                _ => FileReader::open(path).map_err(anyhow::Error::from).and_then(|reader| {
                    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
                    cut_seed(&reader, &regions(&reader), threads, *seed, cut, &mut index)
                }),
            }
            .with_context(|| format!("could not read seed {}", path.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        }
        index.finish();
        Ok(index)
    }
}

/// Opens the bytes of an artifact on this device, with the files kept beside it.
pub(crate) fn open_artifact(path: &Path, data: &Path) -> anyhow::Result<SeedFile> {
    if fs::metadata(path)?.is_dir() {
        let listing = side::read_anyones(&listing_path(path), TREE_LISTING_BYTES_MAX)?;
        SeedFile::of_tree(path, listing)
    } else {
        open_bytes(path, data)
    }
}

/// Opens the bytes of an artifact that is no tree.
pub(super) fn open_bytes(path: &Path, data: &Path) -> anyhow::Result<SeedFile> {
    match Places::of(path, data)? {
        Some(places) => Ok(SeedFile::Spread(Box::new(Spread::open(path, &places)?))),
        None => Ok(SeedFile::File(open_file(path)?)),
    }
}

/// Opens a file or block device; a pipe at the path does not block.
pub(super) fn open_file(path: &Path) -> io::Result<File> {
    if is_block_device(path) { File::open(path) } else { side::open_regular(path) }
}

/// Opens the bytes of an artifact as its manifest describes them; `None` when its kind differs, or
/// when a tree's listing is missing or wrong.
fn open_kept(path: &Path, data: &Path, meta: &fs::Metadata, kept: &mut Kept) -> Option<SeedFile> {
    match kept.manifest.root().kind {
        Kind::Tree { listing_bytes } if meta.is_dir() => {
            let listing = kept.listing.take()?;
            is_listing_of(&listing, listing_bytes, &kept.manifest).then_some(())?;
            SeedFile::of_tree(path, listing).ok()
        }
        Kind::File if !meta.is_dir() => open_bytes(path, data).ok(),
        _ => None,
    }
}

/// Returns whether every file of a tree has the length in its listing and, if the listing has one,
/// the time. A file that was written since is cut again.
fn is_unchanged(bytes: &SeedFile) -> bool {
    let SeedFile::Tree { beneath, layout, .. } = bytes else { return true };
    let same = |entry: &Entry| match entry.kind {
        EntryKind::File { size } => {
            let looked =
                beneath.at(entry.path.as_bytes()).and_then(|at| fs::symlink_metadata(at.short_path()));
            looked.is_ok_and(|meta| {
                let on_time = entry.modified.is_none_or(|time| same_time(&meta, time));
                meta.is_file() && meta.size() == size && on_time
            })
        }
        _ => true,
    };
    layout.listing.entries().iter().all(same)
}

/// Returns whether some chunks, spread over the seed, match its manifest.
fn samples_match(bytes: &SeedFile, manifest: &Manifest) -> bool {
    let step = (manifest.root().chunks / SAMPLES as u64).max(1);
    let mut buffer = Vec::new();
    // The last chunk is always checked, so that a truncated seed is noticed.
    let last = manifest.root().chunks.saturating_sub(1);
    manifest.entries().enumerate().filter(|(n, _)| (*n as u64).is_multiple_of(step) || *n as u64 == last).all(
        |(_, at)| {
            buffer.resize(at.entry.len as usize, 0);
            bytes.read_at(at.offset, &mut buffer).is_ok() && ChunkHash::of(&buffer) == at.entry.hash
        },
    )
}

/// Cuts a seed on `threads` threads, divided at region borders.
fn cut_seed<R: ReadAt>(
    reader: &R,
    regions: &Regions,
    threads: usize,
    seed: u32,
    cut: CutParams,
    index: &mut HeldIndex,
) -> anyhow::Result<()> {
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = regions
            .split(threads)
            .into_iter()
            .map(|range| {
                let found = &found;
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
