//! Sections of unified kernel images: PE files that carry a kernel, its initrd and what belongs to
//! them (UAPI.5, "Unified Kernel Image").
//!
//! A section may begin at any multiple of 512 bytes, so a kernel of another size moves the initrd
//! behind it. With a region for each section, an initrd that did not change keeps its chunks, and a
//! packed one is found as a file of its own. A PE file without a kernel or an initrd stays whole:
//! its sections are parts of one program, and a kernel without an initrd is one packed file.

use std::ops::Range;

use super::archive::{self, DATA_MIN, NAME_SEPARATOR};
use super::bytes::{u16_at, u32_at};
use super::found::Found;
use super::gzip::Budget;
use super::{Joined, ReadAt, RegionKind, Regions, len_of};

/// Most sections read. The format has room for 65535; firmware and tools stop far below.
const SECTIONS_MAX: usize = 256;

/// Most files of a file system that are searched for sections. Each may cost a search through an
/// archive, and a boot partition has a handful.
const FILES_MAX: u32 = 64;

/// Most parts of a file that is searched for sections.
const PARTS_MAX: usize = 1024;

/// Length of the DOS header, bytes.
const DOS_HEADER: usize = 64;
/// Length of the PE signature and the COFF header behind it, bytes.
const COFF_HEADER: usize = 24;
/// Length of one entry of the section table, bytes.
const SECTION_HEADER: usize = 40;

/// Sections that hold archives.
const ARCHIVES: [&[u8]; 2] = [b".initrd", b".ucode"];

/// Part of a unified kernel image, from the end of the part before it.
struct Piece {
    len: u64,
    kind: RegionKind,
    /// Text behind the file's name.
    suffix: Vec<u8>,
}

/// Returns the regions of an artifact that is a unified kernel image.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R, budget: &mut Budget) -> Option<Regions> {
    let pieces = pieces(artifact, budget)?;
    // The artifact has no name, so the name of a section begins with the section's.
    let name = |piece: &Piece| piece.suffix[NAME_SEPARATOR.len()..].to_vec();
    let named: Vec<_> = pieces.iter().map(|piece| (piece.len, piece.kind, name(piece))).collect();
    Regions::from_parts(named.iter().map(|(len, kind, name)| (*len, *kind, Some(&name[..]))))
}

/// Returns whether an artifact begins like a PE file, which is never a disk: a kernel has the
/// signature of a boot sector too.
pub(super) fn is_pe<R: ReadAt + ?Sized>(artifact: &R) -> bool {
    let mut magic = [0; 2];
    artifact.read_exact_at(&mut magic, 0).is_ok() && &magic == b"MZ"
}

/// Unified kernel images among the files of a file system.
pub(super) struct KernelImages {
    left: u32,
    /// Bytes of such files that may still be read: files may share their blocks.
    bytes_left: u64,
}

impl KernelImages {
    /// Begins with a file system of `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        Self { left: FILES_MAX, bytes_left: len }
    }

    /// Replaces the runs of a file, added to `found` since `mark` in file order, by the runs of its
    /// sections, and names them. Returns whether it did; if not, the file's runs are as before.
    ///
    /// The file has `size` bytes; runs may have padding behind, and a short end may be missing.
    /// `None` if there are too many runs.
    pub(super) fn split<R: ReadAt + ?Sized>(
        &mut self,
        artifact: &R,
        path: &[u8],
        size: u64,
        mark: usize,
        found: &mut Found,
        budget: &mut Budget,
    ) -> Option<bool> {
        if self.left == 0 || !has_suffix(path) {
            return Some(false);
        }
        let parts = found.since(mark);
        if parts.is_empty() || parts.len() > PARTS_MAX {
            return Some(false);
        }
        let whole = len_of(&parts);
        let Some(bytes_left) = self.bytes_left.checked_sub(whole) else { return Some(false) };
        (self.left, self.bytes_left) = (self.left - 1, bytes_left);
        let own = within(&parts, 0..size.min(whole));
        let Some(pieces) = pieces(&Joined { artifact, parts: &own }, budget) else { return Some(false) };
        found.take_back(mark);
        let mut at = 0;
        let mut add = |len: u64, kind, name: &[u8]| {
            let mark = found.mark();
            for part in within(&parts, at..at + len) {
                found.add(part.start, part.end, kind)?;
            }
            found.finish_file(mark, name);
            at += len;
            Some(())
        };
        for piece in pieces {
            add(piece.len, piece.kind, &[path, &piece.suffix].concat())?;
        }
        add(whole - size.min(whole), RegionKind::Metadata, &[path, NAME_SEPARATOR].concat())?;
        Some(true)
    }
}

fn has_suffix(path: &[u8]) -> bool {
    path.len() >= 4 && path[path.len() - 4..].eq_ignore_ascii_case(b".efi")
}

/// Returns the parts of the range of a file whose bytes are `parts`.
fn within(parts: &[Range<u64>], range: Range<u64>) -> Vec<Range<u64>> {
    let (mut out, mut at) = (Vec::new(), 0);
    for part in parts {
        let len = part.end - part.start;
        let (from, to) = (range.start.clamp(at, at + len), range.end.clamp(at, at + len));
        if from < to {
            out.push(part.start + (from - at)..part.start + (to - at));
        }
        at += len;
    }
    out
}

/// Splits a unified kernel image; `None` for any other file.
fn pieces<R: ReadAt + ?Sized>(file: &R, budget: &mut Budget) -> Option<Vec<Piece>> {
    let sections = sections(file)?;
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut seen: Vec<&[u8]> = Vec::new();
    for Section { name, data } in &sections {
        let count = seen.iter().filter(|other| ***other == name[..]).count();
        seen.push(name);
        if data.end - data.start < DATA_MIN {
            continue;
        }
        if data.start > at {
            let suffix = NAME_SEPARATOR.to_vec();
            pieces.push(Piece { len: data.start - at, kind: RegionKind::Metadata, suffix });
        }
        let mut suffix = [NAME_SEPARATOR, name].concat();
        if count > 0 {
            suffix.extend_from_slice(format!("~{}", count + 1).as_bytes());
        }
        let inside = ARCHIVES.contains(&&name[..]).then(|| {
            let parts = std::slice::from_ref(data);
            archive::regions(&Joined { artifact: file, parts }, budget)
        });
        match inside.flatten() {
            Some(inside) => pieces.extend(inside.all().iter().map(|region| {
                // The rest behind the archives may be a packed file of its own.
                let (kind, name) = match (region.kind, inside.name(region)) {
                    (RegionKind::Plain, None) => (RegionKind::File, &b"rest"[..]),
                    (kind, name) => (kind, name.unwrap_or_default()),
                };
                Piece { len: region.len, kind, suffix: [&suffix[..], NAME_SEPARATOR, name].concat() }
            })),
            None => pieces.push(Piece { len: data.end - data.start, kind: RegionKind::File, suffix }),
        }
        at = data.end;
    }
    if file.len() > at {
        let suffix = NAME_SEPARATOR.to_vec();
        pieces.push(Piece { len: file.len() - at, kind: RegionKind::Metadata, suffix });
    }
    Some(pieces)
}

struct Section {
    name: Vec<u8>,
    /// Range of the data in the file, without padding.
    data: Range<u64>,
}

/// Reads the section table of a unified kernel image. The sections are in file order and do not
/// overlap.
fn sections<R: ReadAt + ?Sized>(file: &R) -> Option<Vec<Section>> {
    let mut dos = [0; DOS_HEADER];
    file.read_exact_at(&mut dos, 0).ok()?;
    if !dos.starts_with(b"MZ") {
        return None;
    }
    let start = u64::from(u32_at(&dos, 60));
    let mut coff = [0; COFF_HEADER];
    file.read_exact_at(&mut coff, start).ok()?;
    let count = usize::from(u16_at(&coff, 6));
    if !coff.starts_with(b"PE\0\0") || count > SECTIONS_MAX {
        return None;
    }
    let optional = u64::from(u16_at(&coff, 20));
    let mut table = vec![0; count * SECTION_HEADER];
    file.read_exact_at(&mut table, start + COFF_HEADER as u64 + optional).ok()?;
    let mut sections: Vec<Section> = table
        .chunks_exact(SECTION_HEADER)
        .map(|entry| {
            let name = entry[..8].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            let (used, stored) = (u64::from(u32_at(entry, 8)), u64::from(u32_at(entry, 16)));
            let start = u64::from(u32_at(entry, 20));
            // Data is padded in the file; a section longer in memory than in the file ends in
            // zeros that the file lacks.
            let len = if used == 0 { stored } else { used.min(stored) };
            Section { name, data: start..start + len }
        })
        .filter(|section| !section.data.is_empty())
        .collect();
    if !sections.iter().any(|section| matches!(&section.name[..], b".linux" | b".initrd")) {
        return None;
    }
    sections.sort_by_key(|section| section.data.start);
    let apart = sections.windows(2).all(|two| two[0].data.end <= two[1].data.start);
    // A short end of the file may have no region of its own in a file system.
    let last = sections.last_mut()?;
    last.data.end = last.data.end.min(file.len());
    (apart && last.data.start < last.data.end).then_some(sections)
}
