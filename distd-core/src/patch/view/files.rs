//! Packed files of an artifact, each joined from its parts.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::version::version_of;
use crate::cut::{ReadAt, Regions, gzip};

/// Smallest file worth a view, bytes.
const PACKED_MIN: u64 = 4096;

/// Parts whose length is a multiple of this block size belong to a file's body; any other part is
/// its tail.
const BLOCK: u64 = 512;

/// File whose first bytes show a format that has views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedFile {
    /// Name of the file's regions.
    pub name: Vec<u8>,
    /// First byte of the file's recipes. The unpack recipe is this byte alone.
    pub version: u8,
    /// Ranges of the file's bytes in the artifact, in file order.
    pub parts: Vec<Range<u64>>,
}

/// Finds the packed files of an artifact, in order of name. Reads ten bytes of every file, at most
/// twenty.
///
/// A tail that lies among the inodes, before the body, is moved behind the body. If the guessed
/// order is wrong, or a short tail has no region, the view ends early and the rest of the file
/// becomes part of its recipe.
///
/// # Errors
/// Any error from reading the artifact.
pub fn packed_files<R: ReadAt + ?Sized>(artifact: &R, regions: &Regions) -> io::Result<Vec<PackedFile>> {
    let mut files: BTreeMap<&[u8], Vec<Range<u64>>> = BTreeMap::new();
    for region in regions.all() {
        if let Some(name) = regions.name(region) {
            files.entry(name).or_default().push(region.start..region.end());
        }
    }
    let mut found = Vec::new();
    for (name, mut parts) in files {
        let len: u64 = parts.iter().map(|part| part.end - part.start).sum();
        if len < PACKED_MIN {
            continue;
        }
        parts.sort_by_key(|part| part.start);
        let in_a_row = parts.windows(2).all(|two| two[0].end == two[1].start);
        // The members of one gzip file lie one behind the other, whatever their lengths, so keep
        // their order.
        if !in_a_row || packed_as(artifact, &parts[0])?.is_none() {
            parts.sort_by_key(|part| (!(part.end - part.start).is_multiple_of(BLOCK), part.start));
        }
        if let Some(version) = packed_as(artifact, &parts[0])? {
            found.push(PackedFile { name: name.to_vec(), version, parts });
        }
    }
    Ok(found)
}

fn packed_as<R: ReadAt + ?Sized>(artifact: &R, part: &Range<u64>) -> io::Result<Option<u8>> {
    let mut head = [0; gzip::HEADER_MIN];
    if part.end - part.start < head.len() as u64 {
        return Ok(None);
    }
    artifact.read_exact_at(&mut head, part.start)?;
    Ok(version_of(&head))
}

/// Reader of a file whose parts lie apart.
#[derive(Clone, Debug)]
pub struct Joined<'a, R: ?Sized> {
    /// Artifact that contains the parts.
    pub artifact: &'a R,
    /// Ranges of the parts in the artifact, in file order.
    pub parts: &'a [Range<u64>],
}

impl<R: ReadAt + ?Sized> ReadAt for Joined<'_, R> {
    fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }

    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        for part in self.parts {
            let len = part.end - part.start;
            if offset >= len {
                offset -= len;
                continue;
            }
            let here = buf.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
            let (now, later) = buf.split_at_mut(here);
            self.artifact.read_exact_at(now, part.start + offset)?;
            (buf, offset) = (later, 0);
            if buf.is_empty() {
                break;
            }
        }
        if buf.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
