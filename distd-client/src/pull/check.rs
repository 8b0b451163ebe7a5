//! The final check before an artifact is used: the whole artifact is read from the medium and
//! hashed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use distd_core::ArtifactHash;

use super::target::Target;
use crate::whole_hash::{PIECE_BYTES, Pieces, whole_hash};

/// Alignment of offsets, lengths and addresses of direct reads, in bytes; no medium needs more.
const ALIGN: usize = 4096;

/// A buffer suitable for direct reads.
struct Piece<'t> {
    target: &'t dyn Target,
    /// Handle that bypasses the page cache. It reads the data on the medium, in a third of the time
    /// of reads through an emptied cache.
    direct: Option<&'t File>,
    buffer: Vec<u8>,
    start: usize,
}

impl<'t> Piece<'t> {
    fn new(target: &'t dyn Target, direct: Option<&'t File>) -> Self {
        let buffer = vec![0; PIECE_BYTES + ALIGN];
        // The heap block stays in place when the vector is moved.
        let start = buffer.as_ptr().align_offset(ALIGN);
        Self { target, direct, buffer, start }
    }
}

impl Pieces for Piece<'_> {
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let whole = &mut self.buffer[self.start..self.start + len.next_multiple_of(ALIGN)];
        // Not every file system supports direct reads, and some report that only at the read.
        if self.direct.is_none_or(|file| read_direct(file, offset, whole, len).is_err()) {
            self.target.read_at(offset, &mut whole[..len])?;
        }
        Ok(&whole[..len])
    }
}

/// Reads at least the first `len` bytes of `whole`; fails if the file ends before them.
fn read_direct(file: &File, offset: u64, whole: &mut [u8], len: usize) -> io::Result<()> {
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut whole[filled..], offset + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the hash of the first `total` bytes of the target; `None` when some cannot be read.
///
/// # Errors
/// The error of making the target durable.
pub(super) fn hash_medium(target: &dyn Target, total: u64) -> io::Result<Option<ArtifactHash>> {
    target.sync()?;
    let direct = target.medium();
    // Bytes that cannot be read back count as missing.
    Ok(whole_hash(total, || Piece::new(target, direct.as_ref())).ok())
}
