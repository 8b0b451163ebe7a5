//! The last look before an artifact is used: all of it read off the medium, as one hash.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use distd_core::ArtifactHash;

use super::target::Target;

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces in memory: one being read, one waiting, one being hashed.
const PIECES: usize = 3;

/// What offsets, lengths and addresses of direct reads are multiples of: no medium wants more.
const ALIGN: usize = 4096;

/// A buffer that a direct read may fill.
struct Piece {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
}

impl Piece {
    fn new() -> Self {
        let buffer = vec![0; PIECE_BYTES + ALIGN];
        // The heap block does not move when the vector does.
        let start = buffer.as_ptr().align_offset(ALIGN);
        Self { buffer, start, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// Reads `len` bytes from `offset` on, a multiple of [`PIECE_BYTES`].
    fn fill(&mut self, from: &Reader<'_>, offset: u64, len: usize) -> io::Result<()> {
        self.len = len;
        let whole = &mut self.buffer[self.start..self.start + len.next_multiple_of(ALIGN)];
        let Reader { direct: Some(file), .. } = from else {
            return from.target.read_at(offset, &mut whole[..len]);
        };
        let mut filled = 0;
        while filled < len {
            match file.read_at(&mut whole[filled..], offset + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not every file system can, and some say so only now.
                Err(_) => return from.target.read_at(offset, &mut whole[..len]),
            }
        }
        Ok(())
    }
}

struct Reader<'t> {
    target: &'t dyn Target,
    /// Past the page cache: reads what the medium holds, in a third of the time of reading through an emptied cache.
    direct: Option<File>,
}

/// The hash of the first `total` bytes of the target; `None` when some cannot be read.
///
/// # Errors
/// What making the target durable fails with.
pub(super) fn hash_medium(target: &dyn Target, total: u64) -> io::Result<Option<ArtifactHash>> {
    target.sync()?;
    let reader = Reader { target, direct: target.medium() };
    let mut hasher = blake3::Hasher::new();
    let (full_tx, full_rx) = mpsc::sync_channel::<io::Result<Piece>>(1);
    let (empty_tx, empty_rx) = mpsc::channel::<Piece>();
    for _ in 0..PIECES {
        // Received by the thread below.
        let _ = empty_tx.send(Piece::new());
    }
    std::thread::scope(|scope| {
        // Reading and hashing side by side.
        scope.spawn(move || {
            let mut offset = 0;
            while offset < total {
                let Ok(mut piece) = empty_rx.recv() else { return };
                let len = PIECE_BYTES.min(usize::try_from(total - offset).unwrap_or(PIECE_BYTES));
                let read = piece.fill(&reader, offset, len);
                offset += len as u64;
                if full_tx.send(read.map(|()| piece)).is_err() {
                    return;
                }
            }
        });
        for piece in full_rx {
            // What cannot be read back is not there.
            let Ok(piece) = piece else { return Ok(None) };
            hasher.update_rayon(piece.bytes());
            let _ = empty_tx.send(piece);
        }
        Ok(Some(hasher.finalize().into()))
    })
}
