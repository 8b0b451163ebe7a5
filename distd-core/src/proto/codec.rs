//! Frames to bytes and back: type, varint length, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{
    Choke, Cost, Data, DontHave, EnrollBody, Handshake, Metadata, MetadataRequest, Node, NodeRequest,
    NodesEnd, PeerRecords, Ranges, Shun,
};
use super::varint::{put_varint, take_varint};
use crate::limits::FRAME_BODY_MAX;

/// Message types: RFC 7574 §8.2's where it has one, from 128 up our own (docs/protocol.md, "Frames").
pub(super) mod types {
    pub(in crate::proto) const HANDSHAKE: u8 = 0;
    pub(in crate::proto) const DATA: u8 = 1;
    pub(in crate::proto) const HAVE: u8 = 3;
    pub(in crate::proto) const INTEGRITY: u8 = 4;
    pub(in crate::proto) const PEX_REQ: u8 = 6;
    pub(in crate::proto) const REQUEST: u8 = 8;
    pub(in crate::proto) const CANCEL: u8 = 9;
    pub(in crate::proto) const CHOKE: u8 = 10;
    pub(in crate::proto) const UNCHOKE: u8 = 11;
    pub(in crate::proto) const PEX_RES_CERT: u8 = 13;
    pub(in crate::proto) const DONT_HAVE: u8 = 128;
    pub(in crate::proto) const NODE_REQUEST: u8 = 129;
    pub(in crate::proto) const NODES_END: u8 = 130;
    pub(in crate::proto) const METADATA_REQUEST: u8 = 131;
    pub(in crate::proto) const METADATA: u8 = 132;
    pub(in crate::proto) const ENROLL: u8 = 133;
    pub(in crate::proto) const ENROLLED: u8 = 134;
    pub(in crate::proto) const COST_REQUEST: u8 = 135;
    pub(in crate::proto) const COST: u8 = 136;
    pub(in crate::proto) const SHUN: u8 = 137;
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First on every control stream, each way.
    Handshake(Handshake),
    /// One chunk.
    Data(Data),
    /// The sender holds and has verified these chunks.
    Have(Ranges),
    /// One manifest node.
    Integrity(Node),
    /// Tell me of my neighbours, now and as they change.
    PexRequest,
    /// Send these chunks.
    Request(Ranges),
    /// These chunks are no longer wanted.
    Cancel(Ranges),
    /// Requests will not be answered for a while.
    Choke(Choke),
    /// New requests will be answered.
    Unchoke,
    /// Where the sender listens, or where its neighbours do.
    PeerRecords(PeerRecords),
    /// These requested chunks will not come.
    DontHave(DontHave),
    /// Send the nodes that I lack.
    NodeRequest(NodeRequest),
    /// All nodes that will come have come.
    NodesEnd(NodesEnd),
    /// A question for TUF metadata.
    MetadataRequest(MetadataRequest),
    /// A piece of its answer.
    Metadata(Metadata),
    /// Enrolment or renewal request.
    Enroll(EnrollBody),
    /// Its answer.
    Enrolled(EnrollBody),
    /// What would these chunks cost?
    CostRequest(Ranges),
    /// So much.
    Cost(Cost),
    /// I take nothing of these nodes any more.
    Shun(Shun),
    /// A type this build does not know: counted and ignored (RFC 7574 §9.1 leaves room for extensions).
    Unknown {
        /// The type.
        frame_type: u8,
        /// Length of its body.
        len: usize,
    },
}

/// Why bytes are no frame. The stream cannot be read on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The stated length is above the limit; nothing was allocated.
    #[error("frame of {0} bytes is above the limit of {FRAME_BODY_MAX}")]
    TooLong(u64),
    /// The body ends too soon or has bytes left over.
    #[error("{0} frame has a body of the wrong length")]
    Length(&'static str),
    /// A field has a value it cannot have.
    #[error("{0} frame has a bad {1}")]
    Field(&'static str, &'static str),
}

impl Frame {
    /// Appends the frame's bytes in as many pieces as are there; a chunk's are not copied.
    pub fn encode_pieces(&self, out: &mut Vec<Bytes>) {
        match self {
            Self::Data(data) => out.extend([data.encode_head(), data.bytes.clone()]),
            _ => out.push(self.encode()),
        }
    }

    /// The frame's bytes.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        let frame_type = match self {
            Self::Handshake(f) => {
                f.encode(&mut body);
                types::HANDSHAKE
            }
            Self::Data(f) => return [f.encode_head(), f.bytes.clone()].concat().into(),
            Self::Have(f) => {
                f.encode(&mut body);
                types::HAVE
            }
            Self::Integrity(f) => {
                f.encode(&mut body);
                types::INTEGRITY
            }
            Self::PexRequest => types::PEX_REQ,
            Self::Request(f) => {
                f.encode(&mut body);
                types::REQUEST
            }
            Self::Cancel(f) => {
                f.encode(&mut body);
                types::CANCEL
            }
            Self::Choke(f) => {
                f.encode(&mut body);
                types::CHOKE
            }
            Self::Unchoke => types::UNCHOKE,
            Self::PeerRecords(f) => {
                f.encode(&mut body);
                types::PEX_RES_CERT
            }
            Self::DontHave(f) => {
                f.encode(&mut body);
                types::DONT_HAVE
            }
            Self::NodeRequest(f) => {
                f.encode(&mut body);
                types::NODE_REQUEST
            }
            Self::NodesEnd(f) => {
                f.encode(&mut body);
                types::NODES_END
            }
            Self::MetadataRequest(f) => {
                body.put_slice(&f.0);
                types::METADATA_REQUEST
            }
            Self::Metadata(f) => {
                body.put_slice(&f.0);
                types::METADATA
            }
            Self::Enroll(f) => {
                body.put_slice(&f.0);
                types::ENROLL
            }
            Self::Enrolled(f) => {
                body.put_slice(&f.0);
                types::ENROLLED
            }
            Self::CostRequest(f) => {
                f.encode(&mut body);
                types::COST_REQUEST
            }
            Self::Cost(f) => {
                f.encode(&mut body);
                types::COST
            }
            Self::Shun(f) => {
                f.encode(&mut body);
                types::SHUN
            }
            Self::Unknown { frame_type, len } => {
                body.put_bytes(0, *len);
                *frame_type
            }
        };
        let mut out = BytesMut::with_capacity(body.len() + 9);
        put_header(&mut out, frame_type, body.len());
        out.put_slice(&body);
        out.freeze()
    }

    fn decode(frame_type: u8, body: Bytes) -> Result<Self, DecodeError> {
        Ok(match frame_type {
            types::HANDSHAKE => Self::Handshake(Handshake::decode(body)?),
            types::DATA => Self::Data(Data::decode(body)?),
            types::HAVE => Self::Have(Ranges::decode("HAVE", body)?),
            types::INTEGRITY => Self::Integrity(Node::decode(body)?),
            types::PEX_REQ if body.is_empty() => Self::PexRequest,
            types::PEX_REQ => return Err(DecodeError::Length("PEX_REQ")),
            types::REQUEST => Self::Request(Ranges::decode("REQUEST", body)?),
            types::CANCEL => Self::Cancel(Ranges::decode("CANCEL", body)?),
            types::CHOKE => Self::Choke(Choke::decode(body)?),
            types::UNCHOKE if body.is_empty() => Self::Unchoke,
            types::UNCHOKE => return Err(DecodeError::Length("UNCHOKE")),
            types::PEX_RES_CERT => Self::PeerRecords(PeerRecords::decode(body)?),
            types::DONT_HAVE => Self::DontHave(DontHave::decode(body)?),
            types::NODE_REQUEST => Self::NodeRequest(NodeRequest::decode(body)?),
            types::NODES_END => Self::NodesEnd(NodesEnd::decode(body)?),
            types::METADATA_REQUEST => Self::MetadataRequest(MetadataRequest::decode(body)?),
            types::METADATA => Self::Metadata(Metadata::decode(body)?),
            types::ENROLL => Self::Enroll(EnrollBody(body)),
            types::ENROLLED => Self::Enrolled(EnrollBody(body)),
            types::COST_REQUEST => Self::CostRequest(Ranges::decode("COST_REQUEST", body)?),
            types::COST => Self::Cost(Cost::decode(body)?),
            types::SHUN => Self::Shun(Shun::decode(body)?),
            _ => Self::Unknown { frame_type, len: body.len() },
        })
    }
}

pub(super) fn put_header(out: &mut impl BufMut, frame_type: u8, body_len: usize) {
    out.put_u8(frame_type);
    put_varint(out, body_len as u64);
}

/// Cuts a byte stream into frames, whatever pieces it arrives in.
///
/// Holds at most one frame and what came in the same piece behind it.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The same with room made once: growing piece by piece copies what is there each time.
    pub fn push_all(&mut self, pieces: &[Bytes]) {
        self.buffer.reserve(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| self.push(piece));
    }

    /// The next complete frame; `Ok(None)` when more bytes are needed. Call until it says so.
    ///
    /// # Errors
    /// [`DecodeError`]; the stream is then of no further use.
    pub fn poll(&mut self) -> Result<Option<Frame>, DecodeError> {
        let mut rest = &self.buffer[..];
        let Some((&frame_type, tail)) = rest.split_first() else { return Ok(None) };
        rest = tail;
        let Some(len) = take_varint(&mut rest) else { return Ok(None) };
        if len > FRAME_BODY_MAX as u64 {
            return Err(DecodeError::TooLong(len));
        }
        let len = len as usize;
        let header = self.buffer.len() - rest.len();
        if rest.len() < len {
            self.buffer.reserve(header + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(header);
        let body = self.buffer.split_to(len).freeze();
        Frame::decode(frame_type, body).map(Some)
    }

    /// Bytes received that are not yet a frame: not zero at the end of a stream means it was cut off.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }
}
