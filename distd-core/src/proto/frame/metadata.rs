//! METADATA_REQUEST and METADATA: a question for TUF metadata and its answer, opaque to the
//! protocol. The answer's signatures prove it, so any tier may forward both (docs/trust.md,
//! "Metadata exchange").

use bytes::{BufMut, Bytes};

use crate::bounds::{METADATA_PIECE_MAX, METADATA_QUERY_MAX};
use crate::proto::codec::DecodeError;

/// A question for metadata, at most [`METADATA_QUERY_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest(pub Bytes);

impl MetadataRequest {
    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(in crate::proto) fn decode(name: &'static str, body: Bytes) -> Result<Self, DecodeError> {
        if body.is_empty() || body.len() > METADATA_QUERY_MAX {
            return Err(DecodeError::Length(name));
        }
        Ok(Self(body))
    }
}

/// A piece of an answer, at most [`METADATA_PIECE_MAX`] bytes. The stream's end ends the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata(pub Bytes);

impl Metadata {
    /// Splits an answer into frames.
    pub fn split(answer: &Bytes) -> impl Iterator<Item = Self> + '_ {
        (0..answer.len()).step_by(METADATA_PIECE_MAX).map(|at| {
            let end = answer.len().min(at + METADATA_PIECE_MAX);
            Self(answer.slice(at..end))
        })
    }

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.0);
    }

    pub(in crate::proto) fn decode(name: &'static str, body: Bytes) -> Result<Self, DecodeError> {
        if body.len() > METADATA_PIECE_MAX {
            return Err(DecodeError::Length(name));
        }
        Ok(Self(body))
    }
}
