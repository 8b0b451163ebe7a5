//! HAVE, REQUEST, CANCEL and DONT_HAVE: inclusive 64-bit chunk ranges, big-endian (RFC 7574 §8.5,
//! §8.8, §8.9).

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes};

use crate::ChunkId;
use crate::bounds::RANGES_MAX;
use crate::proto::codec::DecodeError;
use crate::ranges::ChunkRanges;

const RANGE_BYTES: usize = 16;

/// One to [`RANGES_MAX`] ranges. RFC 7574 puts one range in each message; a frame here carries a
/// list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges(pub Vec<RangeInclusive<ChunkId>>);

impl Ranges {
    /// Splits a set into frames of at most [`RANGES_MAX`] ranges.
    pub fn split(set: &ChunkRanges) -> impl Iterator<Item = Self> + '_ {
        let mut ranges = set.iter().peekable();
        std::iter::from_fn(move || {
            ranges.peek()?;
            Some(Self(ranges.by_ref().take(RANGES_MAX).collect()))
        })
    }

    /// Returns the ranges as a set.
    pub fn to_set(&self) -> ChunkRanges {
        self.0.iter().cloned().collect()
    }

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        for range in &self.0 {
            out.put_u64(range.start().0);
            out.put_u64(range.end().0);
        }
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        if body.is_empty() || !body.len().is_multiple_of(RANGE_BYTES) || body.len() > RANGES_MAX * RANGE_BYTES
        {
            return Err(DecodeError::Length(name));
        }
        let mut ranges = Vec::with_capacity(body.len() / RANGE_BYTES);
        while body.has_remaining() {
            let (start, end) = (body.get_u64(), body.get_u64());
            if start == 0 || start > end || end > i64::MAX as u64 {
                return Err(DecodeError::Field(name, "range"));
            }
            ranges.push(ChunkId(start)..=ChunkId(end));
        }
        Ok(Self(ranges))
    }
}

/// Reason why requested chunks will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DontHaveReason {
    /// The answerer does not hold the chunks and cannot get them.
    NotHeld,
    /// The chunks are not part of this swarm's manifest.
    NotInSwarm,
    /// The answerer's parent could not be reached, or failed.
    Upstream,
    /// The answerer is too busy now.
    Busy,
    /// A neighbour of the asker is fetching the chunks. The asker asks this neighbour, and the
    /// answerer again later.
    Leased,
}

/// Chunks of a request that will not be answered with DATA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DontHave {
    /// Reason for all chunks of `ranges`.
    pub reason: DontHaveReason,
    /// Ranges of the refused chunks.
    pub ranges: Ranges,
}

impl DontHave {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(match self.reason {
            DontHaveReason::NotHeld => 0,
            DontHaveReason::NotInSwarm => 1,
            DontHaveReason::Upstream => 2,
            DontHaveReason::Busy => 3,
            DontHaveReason::Leased => 4,
        });
        self.ranges.encode(out);
    }

    pub(in crate::proto) fn decode(name: &'static str, mut body: Bytes) -> Result<Self, DecodeError> {
        let reason = match body.try_get_u8().map_err(|_| DecodeError::Length(name))? {
            1 => DontHaveReason::NotInSwarm,
            2 => DontHaveReason::Upstream,
            3 => DontHaveReason::Busy,
            4 => DontHaveReason::Leased,
            // Reasons of later versions read as the most general one.
            _ => DontHaveReason::NotHeld,
        };
        Ok(Self { reason, ranges: Ranges::decode(name, body)? })
    }
}
