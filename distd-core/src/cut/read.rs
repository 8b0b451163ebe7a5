//! Access to the bytes of an artifact.

use std::io;
use std::ops::Range;

/// Random access to the bytes of one artifact, from several threads at once.
///
/// This crate opens nothing; the caller implements this trait over a file, a block device or a
/// spool (`std::os::unix::fs::FileExt::read_exact_at` has the same contract).
pub trait ReadAt: Send + Sync {
    /// Length in bytes. Must not change while the artifact is read.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Any error of the source; [`io::ErrorKind::UnexpectedEof`] if the source ends before `buf` is
    /// full.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns whether the length is zero.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let piece = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buf.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(piece);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        ReadAt::read_exact_at(self.as_slice(), buf, offset)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for std::sync::Arc<R> {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }
}

/// Reader of parts of an artifact as of one artifact: a partition, or a file whose bytes lie apart.
#[derive(Clone, Debug)]
pub struct Joined<'a, R: ?Sized> {
    /// Artifact that contains the parts.
    pub artifact: &'a R,
    /// Ranges of the parts in the artifact, in file order.
    pub parts: &'a [Range<u64>],
}

impl<R: ReadAt + ?Sized> ReadAt for Joined<'_, R> {
    fn len(&self) -> u64 {
        len_of(self.parts)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        read_parts(self.artifact, self.parts, buf, offset)
    }
}

pub(crate) fn len_of<'p>(parts: impl IntoIterator<Item = &'p Range<u64>>) -> u64 {
    parts.into_iter().map(|part| part.end - part.start).sum()
}

pub(crate) fn read_parts<'p, R: ReadAt + ?Sized>(
    artifact: &R,
    parts: impl IntoIterator<Item = &'p Range<u64>>,
    mut buf: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    for part in parts {
        let len = part.end - part.start;
        if offset >= len {
            offset -= len;
            continue;
        }
        let here = buf.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        let (now, later) = buf.split_at_mut(here);
        artifact.read_exact_at(now, part.start + offset)?;
        (buf, offset) = (later, 0);
        if buf.is_empty() {
            break;
        }
    }
    if buf.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
