//! METADATA_REQUEST and METADATA: TUF files by name. They verify themselves, so any tier may forward them.

use bytes::{Buf, BufMut, Bytes};

use crate::limits::{METADATA_BYTES_MAX, METADATA_NAMES_MAX, NAME_BYTES_MAX};
use crate::proto::codec::DecodeError;

/// Longest metadata name: a target's has two names, a hash and separators.
const METADATA_NAME_MAX: usize = 2 * NAME_BYTES_MAX + 100;

/// Asks for metadata: an opaque body that the origin's TUF repository answers (docs/trust.md, "One round trip").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// File names, or the names with arguments that docs/trust.md defines.
    pub names: Vec<String>,
}

fn put_name(out: &mut impl BufMut, name: &str) {
    out.put_u16(u16::try_from(name.len()).expect("callers stay within METADATA_NAME_MAX"));
    out.put_slice(name.as_bytes());
}

fn take_name(frame: &'static str, body: &mut Bytes) -> Result<String, DecodeError> {
    let len = body.try_get_u16().map_err(|_| DecodeError::Length(frame))? as usize;
    if len == 0 || len > METADATA_NAME_MAX {
        return Err(DecodeError::Field(frame, "name"));
    }
    if len > body.remaining() {
        return Err(DecodeError::Length(frame));
    }
    String::from_utf8(body.split_to(len).to_vec()).map_err(|_| DecodeError::Field(frame, "name"))
}

impl MetadataRequest {
    const NAME: &'static str = "METADATA_REQUEST";

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        for name in &self.names {
            put_name(out, name);
        }
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let mut names = Vec::new();
        while body.has_remaining() {
            if names.len() == METADATA_NAMES_MAX {
                return Err(DecodeError::Field(Self::NAME, "number of names"));
            }
            names.push(take_name(Self::NAME, &mut body)?);
        }
        if names.is_empty() {
            return Err(DecodeError::Length(Self::NAME));
        }
        Ok(Self { names })
    }
}

/// One metadata file, or word that there is none of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its bytes; `None` when there is no such file.
    pub bytes: Option<Bytes>,
}

impl Metadata {
    const NAME: &'static str = "METADATA";

    pub(in crate::proto) fn encode(&self, out: &mut impl BufMut) {
        put_name(out, &self.name);
        out.put_u8(u8::from(self.bytes.is_some()));
        out.put_slice(self.bytes.as_deref().unwrap_or_default());
    }

    pub(in crate::proto) fn decode(mut body: Bytes) -> Result<Self, DecodeError> {
        let name = take_name(Self::NAME, &mut body)?;
        let bytes = match body.try_get_u8().map_err(|_| DecodeError::Length(Self::NAME))? {
            0 if body.is_empty() => None,
            1 if body.len() <= METADATA_BYTES_MAX => Some(body),
            0 | 1 => return Err(DecodeError::Length(Self::NAME)),
            _ => return Err(DecodeError::Field(Self::NAME, "presence flag")),
        };
        Ok(Self { name, bytes })
    }
}
