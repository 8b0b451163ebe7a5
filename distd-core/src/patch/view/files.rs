//! Packed files of an artifact, as one run of bytes each wherever their parts lie.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use super::version::version_of;
use crate::cut::{ReadAt, Regions, gzip};

/// Smallest file worth a view, bytes.
const PACKED_MIN: u64 = 4096;

/// Parts of a file that are as long as whole blocks of this size are its body; another part is its tail.
const BLOCK: u64 = 512;

/// A file that starts like something with a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedFile {
    /// The name of its regions.
    pub name: Vec<u8>,
    /// First byte of its recipes; of the one that unpacks it all there is.
    pub version: u8,
    /// Where its bytes lie in the artifact, in file order.
    pub parts: Vec<Range<u64>>,
}

/// The packed files of an artifact in order of name. Reads ten bytes of every file, twenty at most.
///
/// A tail that lies among the inodes, before the body, is put behind it. Where the order is guessed wrong, or a
/// short tail has no region, the view ends early and what is left of the file is part of its recipe.
///
/// # Errors
/// What reading reports.
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
        // Members of one gzip file lie one behind the other, whatever their lengths.
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

/// The bytes of a file whose parts lie apart.
#[derive(Clone, Debug)]
pub struct Joined<'a, R: ?Sized> {
    /// What the parts are parts of.
    pub artifact: &'a R,
    /// The parts, in file order.
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
