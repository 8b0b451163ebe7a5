//! DATA: one chunk, packed as the origin stores it (RFC 7574 §8.6 without the timestamp).

use bytes::{Buf, BufMut, Bytes};

use crate::ChunkId;
use crate::bounds::CHUNK_BYTES_MAX;
use crate::proto::codec::DecodeError;

/// Packing of a chunk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The raw bytes.
    Raw,
    /// One zstd frame (RFC 8878).
    Zstd,
}

impl Codec {
    /// Returns the number of the codec on the wire and in stores.
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// Returns the codec with this number; `None` if this build does not know it.
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// One chunk on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Id of the chunk. The range in RFC 7574 always has one chunk here.
    pub id: ChunkId,
    /// Packing of `bytes`.
    pub codec: Codec,
    /// The packed bytes, `1..=CHUNK_BYTES_MAX` of them. A chunk that does not shrink is sent raw.
    pub bytes: Bytes,
}

impl Data {
    /// Bytes of range and codec.
    const HEADER: usize = 17;

    /// Appends all fields but the packed bytes, which follow as a piece of their own.
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.id.0);
        out.put_u64(self.id.0);
        out.put_u8(self.codec.code());
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        if body.len() <= Self::HEADER || body.len() > Self::HEADER + CHUNK_BYTES_MAX {
            return Err(DecodeError::Length(name));
        }
        let (start, end, codec) = (body.get_u64(), body.get_u64(), body.get_u8());
        if start == 0 || start != end || end > i64::MAX as u64 {
            return Err(DecodeError::Field(name, "range"));
        }
        let codec = Codec::from_code(codec).ok_or(DecodeError::Field(name, "codec"))?;
        Ok(Self { id: ChunkId(start), codec, bytes: body })
    }
}
