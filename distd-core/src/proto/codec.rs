//! Frames to bytes and back: type, varint length, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::Frame;
use super::varint::{put_varint, take_varint};
use crate::bounds::FRAME_BODY_MAX;

/// Makes [`Frame`] and its codec from the list of frames. A line of the list has the documentation,
/// the type number, the frame's name in errors, the variant, and the type of the body if there is
/// one. A body type has `encode` and `decode`; `decode` gets the frame's name.
macro_rules! frames {
    ($($(#[$doc:meta])* $number:literal $name:ident = $variant:ident $(($body:ty))?,)*) => {
        /// One message.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Frame {
            $($(#[$doc])* $variant $(($body))?,)*
            /// A frame of a type this build does not know. It is counted and ignored (RFC 7574 §9.1
            /// leaves room for extensions).
            Unknown {
                /// Type number of the frame.
                frame_type: u8,
                /// Length of the frame's body in bytes.
                len: usize,
            },
        }

        impl Frame {
            /// Appends the body, without the bytes of a chunk, and returns the type number.
            pub(in crate::proto) fn encode_body(&self, out: &mut bytes::BytesMut) -> u8 {
                match self {
                    $($(Self::$variant(body) => <$body>::encode(body, out),)?)*
                    Self::Unknown { len, .. } => bytes::BufMut::put_bytes(out, 0, *len),
                    _ => {}
                }
                match self {
                    $(Self::$variant { .. } => $number,)*
                    Self::Unknown { frame_type, .. } => *frame_type,
                }
            }

            /// Reads a body.
            pub(in crate::proto) fn decode(
                frame_type: u8,
                mut body: bytes::Bytes,
            ) -> Result<Self, $crate::proto::DecodeError> {
                let (frame, name) = match frame_type {
                    $($number => {
                        let name = stringify!($name);
                        (Self::$variant $((<$body>::decode(name, std::mem::take(&mut body))?))?, name)
                    })*
                    _ => return Ok(Self::Unknown { frame_type, len: body.len() }),
                };
                // A frame without a body leaves the bytes it should not have.
                if body.is_empty() { Ok(frame) } else { Err($crate::proto::DecodeError::Length(name)) }
            }
        }
    };
}
pub(super) use frames;

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
        let mut body = BytesMut::new();
        let frame_type = self.encode_body(&mut body);
        let chunk = match self {
            Self::Data(data) => data.bytes.clone(),
            _ => Bytes::new(),
        };
        let mut head = BytesMut::with_capacity(body.len() + 9);
        head.put_u8(frame_type);
        put_varint(&mut head, (body.len() + chunk.len()) as u64);
        head.put_slice(&body);
        out.push(head.freeze());
        if !chunk.is_empty() {
            out.push(chunk);
        }
    }

    /// Returns the frame's bytes.
    pub fn encode(&self) -> Bytes {
        let mut pieces = Vec::with_capacity(2);
        self.encode_pieces(&mut pieces);
        match &mut pieces[..] {
            [whole] => std::mem::take(whole),
            _ => pieces.concat().into(),
        }
    }
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
