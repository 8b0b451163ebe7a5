//! Chunks between verification and the sink, coalesced so that chunks that arrive together are
//! written together.

use distd_core::manifest::Entry;
use distd_core::packing::{PackedChunk, UnpackError, Unpacker};
use distd_core::proto::frame::{Codec, Data};

use super::{ChunkSink, SinkError};

/// Raw bytes after which the sink is called: about six chunks. A device keeps this much in memory
/// for each batch.
const ENOUGH_BYTES: usize = 128 << 10;

/// A chunk whose bytes matched its hash.
#[derive(Clone, Copy)]
pub struct Verified<'v> {
    /// The chunk's entry in the manifest.
    pub entry: &'v Entry,
    /// The chunk as received, packed.
    pub packed: &'v PackedChunk,
    /// The chunk's unpacked bytes.
    pub raw: &'v [u8],
}

/// Verified chunks that the sink has not been given yet.
#[derive(Default)]
pub(super) struct Coalesced {
    unpacker: Unpacker,
    chunks: Vec<(Entry, PackedChunk)>,
    /// Raw bytes of the chunks that came compressed, one after the other.
    unpacked: Vec<u8>,
    raw_bytes: usize,
}

impl Coalesced {
    /// Unpacks, verifies and keeps a chunk. Returns true when there is enough for a call of the
    /// sink.
    ///
    /// # Errors
    /// [`UnpackError`]; chunks added before stay.
    pub(super) fn add(&mut self, entry: Entry, data: Data) -> Result<bool, UnpackError> {
        let packed = PackedChunk { codec: data.codec, raw_len: entry.len, bytes: data.bytes };
        let raw = self.unpacker.unpack(packed.codec, &packed.bytes, entry.len, &entry.hash)?;
        if packed.codec == Codec::Zstd {
            self.unpacked.extend_from_slice(raw);
        }
        self.raw_bytes += raw.len();
        self.chunks.push((entry, packed));
        Ok(self.raw_bytes >= ENOUGH_BYTES)
    }

    /// Gives all chunks to the sink and returns their entries.
    ///
    /// # Errors
    /// The sink's error.
    pub(super) fn hand_to(
        &mut self,
        sink: &dyn ChunkSink,
    ) -> Result<impl Iterator<Item = Entry> + '_, SinkError> {
        let mut unpacked = &self.unpacked[..];
        let verified: Vec<_> = self
            .chunks
            .iter()
            .map(|(entry, packed)| {
                let raw = match packed.codec {
                    Codec::Raw => &packed.bytes[..],
                    Codec::Zstd => unpacked.split_off(..entry.len as usize).unwrap_or_default(),
                };
                Verified { entry, packed, raw }
            })
            .collect();
        if !verified.is_empty() {
            sink.accept_all(&verified)?;
        }
        self.unpacked.clear();
        self.raw_bytes = 0;
        Ok(self.chunks.drain(..).map(|(entry, _)| entry))
    }
}
