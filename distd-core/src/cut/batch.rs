//! Cutting of consecutive regions, one window at a time.

use std::io;

use super::{CutParams, Cutter, ReadAt, Region};
use crate::bounds::CHUNK_BYTES_MAX;

/// Bytes read at once. Four times the largest chunk, so that each window yields chunks; and long
/// enough that the rest carried over to the next window (less than one chunk) costs nothing.
pub const WINDOW_BYTES: usize = 4 << 20;

const _: () = assert!(WINDOW_BYTES >= 2 * CHUNK_BYTES_MAX);

/// One chunk and its place in a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutChunk<'a> {
    /// Offset of the first byte in the artifact.
    pub offset: u64,
    /// Raw bytes, `1..=params.max()` of them.
    pub data: &'a [u8],
    /// Whether the chunk is known to be all zero. All such chunks have the same length, so hashing
    /// one of them is enough. `false` means that nothing is known.
    pub zero: bool,
}

/// Up to [`WINDOW_BYTES`] of an artifact, and where to cut them. A batch owns its bytes, so that
/// one thread can hash and compress it while another cuts the next batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    offset: u64,
    data: Vec<u8>,
    /// Length of each chunk, and whether it is known to be zero.
    lens: Vec<(u32, bool)>,
}

impl Batch {
    /// Returns the chunks in artifact order. They cover the batch.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = CutChunk<'_>> {
        let mut at = 0;
        self.lens.iter().map(move |&(len, zero)| {
            let data = &self.data[at..at + len as usize];
            let offset = self.offset + at as u64;
            at += len as usize;
            CutChunk { offset, data, zero }
        })
    }

    /// Offset of the batch's first byte in the artifact.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Raw bytes of all chunks.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Returns the buffer, for the next call of [`Batches::next_batch`].
    pub fn into_buffer(self) -> Vec<u8> {
        self.data
    }
}

/// Cuts consecutive regions of an artifact into batches of chunks. Reads each byte once, in order.
///
/// Holds less than one chunk between calls. To use several threads, give each its own `Batches`
/// over a part of [`Regions::split`](super::Regions::split), or cut in one thread and hash the
/// batches in others.
#[derive(Debug)]
pub struct Batches<'a, R: ReadAt + ?Sized> {
    artifact: &'a R,
    regions: &'a [Region],
    cutter: Cutter,
    window: usize,
    /// Artifact offset of the next byte to read.
    read: u64,
    /// Bytes read but not cut yet, fewer than `cutter.max()`.
    carry: Vec<u8>,
}

impl<'a, R: ReadAt + ?Sized> Batches<'a, R> {
    /// Creates a cutter of `regions`, which must be consecutive regions of `artifact` (all of
    /// [`Regions::all`](super::Regions::all) or a slice of it).
    pub fn new(artifact: &'a R, regions: &'a [Region], params: CutParams) -> Self {
        Self {
            artifact,
            regions,
            cutter: Cutter::new(params),
            window: WINDOW_BYTES,
            read: regions.first().map_or(0, |region| region.start),
            carry: Vec::new(),
        }
    }

    /// Reads `bytes` at once instead of [`WINDOW_BYTES`], but at least twice the largest chunk.
    /// This changes memory and speed, never a cut.
    pub fn with_window(mut self, bytes: usize) -> Self {
        self.window = bytes.max(2 * self.cutter.max());
        self
    }

    /// Returns the next chunks, or `None` behind the last. `buffer` is any vector whose memory may
    /// be reused.
    ///
    /// # Errors
    /// Any error of [`ReadAt::read_exact_at`]. A further call reads the same window again.
    pub fn next_batch(&mut self, mut buffer: Vec<u8>) -> io::Result<Option<Batch>> {
        let Some(end) = self.regions.last().map(Region::end) else { return Ok(None) };
        let carried = self.carry.len();
        let fresh = (self.window - carried).min(usize::try_from(end - self.read).unwrap_or(usize::MAX));
        buffer.clear();
        buffer.extend_from_slice(&self.carry);
        buffer.resize(carried + fresh, 0);
        self.artifact.read_exact_at(&mut buffer[carried..], self.read)?;

        let offset = self.read - carried as u64;
        let mut lens = Vec::with_capacity(buffer.len() / self.cutter.max() + 16);
        let mut at = 0;
        while let Some(region) = self.regions.first() {
            let left = usize::try_from(region.end() - (offset + at as u64)).unwrap_or(usize::MAX);
            let held = buffer.len() - at;
            if left > held && held < self.cutter.max() {
                break;
            }
            let (len, zero) = self.cutter.next(&buffer[at..at + left.min(held)]);
            lens.push((len as u32, zero));
            at += len;
            if len == left {
                self.regions = &self.regions[1..];
            }
        }
        self.read += fresh as u64;
        self.carry.clear();
        self.carry.extend_from_slice(&buffer[at..]);
        buffer.truncate(at);
        Ok(Some(Batch { offset, data: buffer, lens }))
    }
}
