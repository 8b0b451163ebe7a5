//! Views of files of gzip members.

use std::io::{self, Read, Write};

use super::error::RecipeError;
use super::format::{Packed, Unpacked, ViewFormat, ViewLimits, ViewSink};
use super::pieces::{self, PieceKinds, Pieces};
use crate::cut::ReadAt;
use crate::cut::gzip::{TRAILER, header, is_magic, stream};

/// Files of gzip members (RFC 1952): an initrd, a changelog. The view is the concatenated plain
/// text of the members.
#[derive(Debug)]
pub(super) struct Gzip;

impl ViewFormat for Gzip {
    fn version(&self) -> u8 {
        1
    }

    fn name(&self) -> &'static str {
        "gzip"
    }

    fn detects(&self, head: &[u8]) -> bool {
        is_magic(head)
    }

    fn unpack(
        &self,
        packed: &Packed<'_>,
        limits: ViewLimits,
        view: &mut dyn ViewSink,
    ) -> io::Result<Unpacked> {
        pieces::unpack(self.version(), members, packed, limits.bytes, view)
    }

    fn repack(&self, recipe: &[u8], view: &mut dyn Read, packed: &mut dyn Write) -> Result<u64, RecipeError> {
        pieces::repack(PieceKinds::Streams, recipe, view, packed)
    }

    /// Stops behind the last member too. Memory: 400 KiB.
    fn unpack_base(
        &self,
        _recipe: &[u8],
        packed: &dyn ReadAt,
        max: u64,
        mut view: &mut dyn Write,
    ) -> Result<u64, RecipeError> {
        let (mut at, mut total) = (0, 0);
        while let Some(header) = header(packed, at..packed.len())? {
            let (end, plain) = stream(packed, at + header.len..packed.len(), max - total, &mut view)?;
            total += plain;
            match end {
                Some(end) => at = end.saturating_add(TRAILER),
                None => break,
            }
        }
        Ok(total)
    }
}

/// Takes gzip members apart.
fn members(file: &dyn ReadAt, until: u64, pieces: &mut Pieces, sink: &mut dyn Write) -> io::Result<u64> {
    let mut at = 0;
    while let Some(header) = header(file, at..file.len())? {
        let before = pieces.mark();
        let begin = at + header.len;
        pieces.literal(file, at..begin)?;
        let (reached, is_whole) = pieces.stream(file, begin..file.len(), until, sink)?;
        if reached == begin {
            // Not a single piece was made: the header belongs to the rest.
            pieces.back_to(before);
            return Ok(at);
        }
        at = reached;
        if !is_whole {
            break;
        }
        let trailer = (at + TRAILER).min(file.len());
        pieces.literal(file, at..trailer)?;
        at = trailer;
    }
    Ok(at)
}
