//! First bytes of every stream: its purpose and its swarm.

use super::varint::{put_varint, take_varint};

/// Purpose of a bidirectional stream. The opener writes it first (docs/protocol.md, "Streams").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Control stream of a swarm: HANDSHAKE first, open as long as the swarm is of interest.
    Control,
    /// One batch of chunks of the swarm whose control stream has this QUIC stream id.
    Batch {
        /// QUIC stream id of the control stream.
        control: u64,
    },
    /// Manifest nodes of the swarm whose control stream has this QUIC stream id.
    Nodes {
        /// QUIC stream id of the control stream.
        control: u64,
    },
    /// TUF metadata: METADATA_REQUEST in, METADATA out.
    Metadata,
    /// Certificate renewal or, on the enrolment ALPN, enrolment.
    Enroll,
    /// News: halt notices in both directions, and NEWER from the answerer, for as long as the
    /// opener keeps its side open.
    News,
}

/// Longest header: kind and an eight-byte varint.
pub const STREAM_HEADER_MAX: usize = 9;

impl StreamKind {
    /// Returns the header's bytes.
    pub fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(STREAM_HEADER_MAX);
        match self {
            Self::Control => out.push(0),
            Self::Batch { control } => {
                out.push(1);
                put_varint(&mut out, control);
            }
            Self::Nodes { control } => {
                out.push(2);
                put_varint(&mut out, control);
            }
            Self::Metadata => out.push(3),
            Self::Enroll => out.push(4),
            Self::News => out.push(5),
        }
        out
    }

    /// Takes a header from the front of `input`; `Ok(None)` while it is incomplete.
    ///
    /// # Errors
    /// The number of the kind, when this build does not know it.
    pub fn take(input: &mut &[u8]) -> Result<Option<Self>, u8> {
        let mut rest = *input;
        let Some((&kind, tail)) = rest.split_first() else { return Ok(None) };
        rest = tail;
        let header = match kind {
            0 => Self::Control,
            1 | 2 => {
                let Some(control) = take_varint(&mut rest) else { return Ok(None) };
                if kind == 1 { Self::Batch { control } } else { Self::Nodes { control } }
            }
            3 => Self::Metadata,
            4 => Self::Enroll,
            5 => Self::News,
            other => return Err(other),
        };
        *input = rest;
        Ok(Some(header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back_and_wait_for_their_last_byte() {
        for kind in [
            StreamKind::Control,
            StreamKind::Batch { control: 4 },
            StreamKind::Nodes { control: 70_000 },
            StreamKind::Metadata,
            StreamKind::Enroll,
            StreamKind::News,
        ] {
            let bytes = kind.encode();
            for cut in 0..bytes.len() {
                assert_eq!(StreamKind::take(&mut &bytes[..cut]), Ok(None));
            }
            let mut all = &bytes[..];
            assert_eq!(StreamKind::take(&mut all), Ok(Some(kind)));
            assert!(all.is_empty());
        }
        assert_eq!(StreamKind::take(&mut &[9u8][..]), Err(9));
    }
}
