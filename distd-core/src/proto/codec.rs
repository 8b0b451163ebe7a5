//! Frames to bytes and back: type, varint length, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{
    Choke, Cost, Data, DontHave, EnrollBody, Handshake, Metadata, MetadataRequest, Node, NodeRequest,
    NodesEnd, PeerRecords, Ranges, Shun,
};
use super::varint::{put_varint, take_varint};
use crate::bounds::FRAME_BODY_MAX;

/// Message types: the RFC 7574 §8.2 number where the message is in the RFC, private numbers from
/// 128 up (docs/protocol.md, "Frames").
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
    /// First frame on every control stream, in each direction.
    Handshake(Handshake),
    /// One chunk.
    Data(Data),
    /// Chunks the sender holds and has verified.
    Have(Ranges),
    /// One manifest node.
    Integrity(Node),
    /// Request for neighbours, now and as further ones come.
    PexRequest,
    /// Request for chunks.
    Request(Ranges),
    /// Chunks the sender no longer wants.
    Cancel(Ranges),
    /// The sender answers no requests for a while.
    Choke(Choke),
    /// The sender answers new requests.
    Unchoke,
    /// Addresses where the sender, or neighbours of the receiver, listen.
    PeerRecords(PeerRecords),
    /// Requested chunks that will not come.
    DontHave(DontHave),
    /// Request for manifest nodes that the sender lacks.
    NodeRequest(NodeRequest),
    /// End of the answer to a NODE_REQUEST.
    NodesEnd(NodesEnd),
    /// A question for TUF metadata.
    MetadataRequest(MetadataRequest),
    /// A piece of the answer to a METADATA_REQUEST.
    Metadata(Metadata),
    /// Enrolment or renewal request.
    Enroll(EnrollBody),
    /// Answer to an ENROLL.
    Enrolled(EnrollBody),
    /// Request for the cost of chunks.
    CostRequest(Ranges),
    /// Answer to a COST_REQUEST.
    Cost(Cost),
    /// Nodes the sender shuns and asks the receiver not to use.
    Shun(Shun),
    /// A frame of a type this build does not know. It is counted and ignored (RFC 7574 §9.1 leaves
    /// room for extensions).
    Unknown {
        /// Type number of the frame.
        frame_type: u8,
        /// Length of the frame's body in bytes.
        len: usize,
    },
}

/// Reason why bytes are not a frame. Nothing after them in the stream can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The stated length is above the limit. Nothing was allocated.
    #[error("frame of {0} bytes is above the limit of {FRAME_BODY_MAX}")]
    TooLong(u64),
    /// The body ends too soon or has bytes left over.
    #[error("{0} frame has a body of the wrong length")]
    Length(&'static str),
    /// A field has an invalid value.
    #[error("{0} frame has a bad {1}")]
    Field(&'static str, &'static str),
}

impl Frame {
    /// Appends the frame's bytes to `out`, in pieces; the bytes of a chunk are not copied.
    pub fn encode_pieces(&self, out: &mut Vec<Bytes>) {
        match self {
            Self::Data(data) => out.extend([data.encode_head(), data.bytes.clone()]),
            _ => out.push(self.encode()),
        }
    }

    /// Returns the frame's bytes.
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

/// Splits a byte stream into frames, whatever pieces it arrives in.
///
/// It holds at most one frame, and the bytes that came behind it in the same piece.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds several pieces and makes room for them once. Growing piece by piece would copy the
    /// buffered bytes each time.
    pub fn push_all(&mut self, pieces: &[Bytes]) {
        self.buffer.reserve(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| self.push(piece));
    }

    /// Returns the next complete frame; `Ok(None)` when more bytes are needed. Call it until it
    /// returns `Ok(None)`.
    ///
    /// # Errors
    /// [`DecodeError`]. The stream is of no further use then.
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

    /// Returns the number of received bytes that are not a frame yet. A number above zero at the
    /// end of a stream means that the stream was cut off.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }
}
