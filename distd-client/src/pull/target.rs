//! Where the artifact grows: a file beside its final place, a block device, or a tree.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use distd_core::manifest::{Kind, Manifest};

use super::kept::{is_block_device, sync_parent, with_suffix};
use super::tree::TreeTarget;
use crate::exit::{Code, Failure};

/// A place that takes an artifact's bytes by offset. Calls come from several threads.
pub(super) trait Target: Send + Sync {
    /// Writes verified bytes.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes verified bytes that follow one another.
    fn write_pieces_at(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        for piece in pieces {
            self.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads what is there; an error for what was never written.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;

    /// Whether bytes that were never written read as zeros.
    fn is_zeroed(&self) -> bool;

    /// Whether anything may be in it from before.
    fn may_hold_bytes(&self) -> bool;

    /// What the final check reads, by offset, so that it sees the medium and not the cache: a handle that takes only
    /// aligned reads. `None` where there is none; then the check uses [`read_at`](Self::read_at).
    fn medium(&self) -> Option<File>;

    /// Puts the complete, verified artifact in its final place.
    fn finish(&self) -> anyhow::Result<()>;
}

/// A file that becomes `out` at the end, or a block device written in place.
pub(super) struct FileTarget {
    file: File,
    out: PathBuf,
    /// `None` for a block device.
    part: Option<PathBuf>,
    resumed: bool,
}

impl FileTarget {
    fn open(out: &Path, bytes: u64) -> anyhow::Result<Self> {
        let device = is_block_device(out);
        let path = if device { out.to_owned() } else { with_suffix(out, ".distd-part") };
        let resumed = device || path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(!device)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("could not open {}", path.display()))
            .map_err(|e| Failure::new(Code::Local, e))?;
        if file.try_lock().is_err() {
            let error = anyhow::anyhow!("another pull writes {}", path.display());
            return Err(Failure::new(Code::Local, error)
                .next("wait for it to end, or choose another --out")
                .into());
        }
        if device {
            let room = size_of(&file).with_context(|| format!("could not size {}", out.display()))?;
            if room < bytes {
                let error = anyhow::anyhow!("{} has {room} bytes, the artifact {bytes}", out.display());
                return Err(Failure::new(Code::Local, error).next("choose a larger install slot").into());
            }
        } else {
            check_room(&path, &file, bytes)?;
            file.set_len(bytes)
                .with_context(|| format!("could not size {}", path.display()))
                .map_err(|e| Failure::new(Code::Local, e))?;
        }
        Ok(Self { file, out: out.to_owned(), part: (!device).then_some(path), resumed })
    }
}

/// Refuses before a byte moves what cannot fit.
fn check_room(path: &Path, file: &File, bytes: u64) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let allocated = file.metadata().map(|m| m.blocks() * 512).unwrap_or(0);
    let stat = rustix::fs::fstatvfs(file).map_err(io::Error::from).context("could not ask for free space")?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // An image with holes needs less than its length: only a tenth of it missing is surely too little.
    if free.saturating_add(allocated) < bytes / 10 {
        let error =
            anyhow::anyhow!("{} free bytes are not enough for {} ({bytes} bytes)", free, path.display());
        let _ = fs::remove_file(path);
        return Err(Failure::new(Code::Local, error).next("free some space, or choose another --out").into());
    }
    Ok(())
}

fn size_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

impl Target for FileTarget {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// In one call, which takes the file's lock once.
    fn write_pieces_at(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match rustix::io::pwritev(&self.file, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn is_zeroed(&self) -> bool {
        !self.resumed
    }

    fn may_hold_bytes(&self) -> bool {
        self.resumed
    }

    fn medium(&self) -> Option<File> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let path = self.part.as_ref().unwrap_or(&self.out);
        let file = OpenOptions::new().read(true).custom_flags(direct).open(path);
        if file.is_err() {
            // Advice only: without it the check may read the cache, which is no worse than other tools do.
            let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        }
        file.ok()
    }

    fn finish(&self) -> anyhow::Result<()> {
        let Some(part) = &self.part else { return Ok(()) };
        fs::rename(part, &self.out)
            .and_then(|()| sync_parent(&self.out))
            .with_context(|| format!("could not put {} in place", self.out.display()))
            .map_err(|e| Failure::new(Code::Local, e).into())
    }
}

/// Opens the target for an artifact.
///
/// # Errors
/// Failures with [`Code::Local`]: no room, no permission, another pull at work.
pub(super) fn open(out: &Path, manifest: &Manifest) -> anyhow::Result<Box<dyn Target>> {
    let bytes = manifest.root().bytes;
    match manifest.root().kind {
        Kind::File if out.is_dir() => {
            let error = anyhow::anyhow!("{} is a directory, the artifact a file", out.display());
            Err(Failure::new(Code::Usage, error).next("name a file with --out").into())
        }
        Kind::File => Ok(Box::new(FileTarget::open(out, bytes)?)),
        Kind::Tree { listing_bytes } => {
            Ok(Box::new(TreeTarget::open(out, manifest.id(), listing_bytes, bytes)?))
        }
        Kind::PatchSet { .. } => {
            let error = anyhow::anyhow!("the release is a set of patches, which is nothing to install");
            Err(Failure::new(Code::Integrity, error).next("tell whoever runs the origin").into())
        }
    }
}
