//! Regions of files made of archives and gzip members, one behind the other: a tar, an initrd.

use std::io;
use std::ops::Range;

use super::{ReadAt, RegionKind, Regions, cpio, gzip, tar};
use crate::bounds::{ARTIFACT_BYTES_MAX, REGIONS_MAX};

/// Separator in name hints. Appended to a member's path it names the member's header. Between two
/// names, it joins the name of a packed region and the name of a file inside:
/// `boot/initrd.img-6.1//usr/bin/mount`. No path of a file system has two slashes in a row.
pub const NAME_SEPARATOR: &[u8] = b"//";

/// Shortest data that is a region of its own, bytes. Sending shorter data again costs about as much
/// as an entry in the manifest.
pub(super) const DATA_MIN: u64 = 256;

/// Step in bytes by which zeros behind an archive are skipped.
const PADDING: u64 = 4;

/// Member of an archive. Its header begins where the data of the member before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Path without leading slashes and dots; unchecked.
    pub(crate) path: Vec<u8>,
    /// Range of the data in the artifact; empty for a member that is not a file.
    pub(crate) data: Range<u64>,
    /// Offset at which the next header is expected.
    pub(super) next: u64,
    /// Whether this member ends the archive.
    pub(super) is_last: bool,
}

/// Strips the prefixes by which `./a` and `/a` differ from `a`.
pub(super) fn relative(mut path: &[u8]) -> Vec<u8> {
    while let Some(rest) = path.strip_prefix(b"/").or_else(|| path.strip_prefix(b"./")) {
        path = rest;
    }
    if path == b"." { Vec::new() } else { path.to_vec() }
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Cpio,
    Tar,
}

/// Iterator over the members of the archives at the start of a range. It ends at the first bytes
/// that are not a member.
pub(crate) struct Members<'a, R: ?Sized> {
    artifact: &'a R,
    /// Rest of the range; the next header is expected at its start.
    range: Range<u64>,
    /// Format of the archive being read; `None` between archives.
    format: Option<Format>,
}

impl<'a, R: ReadAt + ?Sized> Members<'a, R> {
    pub(crate) fn new(artifact: &'a R, range: Range<u64>) -> Self {
        Self { artifact, range, format: None }
    }

    /// Offset behind the members read so far, and behind the zeros at the end of an archive.
    pub(crate) fn rest(&self) -> u64 {
        self.range.start
    }

    /// Returns the next member; `None` behind the last archive or at a damaged member.
    ///
    /// # Errors
    /// Any error from reading the artifact.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let formats = match self.format {
            Some(format) => &[format][..],
            None => &[Format::Cpio, Format::Tar],
        };
        for format in formats {
            let member = match format {
                Format::Cpio => cpio::member(self.artifact, self.range.clone())?,
                Format::Tar => tar::member(self.artifact, self.range.clone())?,
            };
            // Zeros end a tar, so no archive begins with zeros.
            let is_tar_end = |member: &Member| matches!(format, Format::Tar) && member.is_last;
            let Some(member) = member.filter(|member| self.format.is_some() || !is_tar_end(member)) else {
                continue;
            };
            self.range.start = member.next.min(self.range.end);
            self.format = (!member.is_last).then_some(*format);
            if member.is_last {
                self.skip_zeros()?;
            }
            return Ok(Some(member));
        }
        Ok(None)
    }

    fn skip_zeros(&mut self) -> io::Result<()> {
        let mut zeros = [0; 4096];
        while self.range.end - self.range.start >= PADDING {
            let len = zeros.len().min((self.range.end - self.range.start) as usize);
            self.artifact.read_exact_at(&mut zeros[..len], self.range.start)?;
            let used = zeros[..len].iter().take_while(|byte| **byte == 0).count() as u64;
            self.range.start += used / PADDING * PADDING;
            if used < len as u64 {
                break;
            }
        }
        Ok(())
    }
}

/// Finds the regions of an artifact that consists of archives and gzip files in any order, with
/// anything behind them. `None` if the artifact begins with neither, if an archive has no end, or
/// if the artifact cannot be read.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R, budget: &mut gzip::Budget) -> Option<Regions> {
    let len = artifact.len();
    if len > ARTIFACT_BYTES_MAX {
        return None;
    }
    let mut members = Members::new(artifact, 0..len);
    let mut found = Regions::default();
    let mut packed_files = 0;
    loop {
        if let Some(member) = members.next().ok()? {
            let Range { start, end } = member.data;
            let header = [&member.path, NAME_SEPARATOR].concat();
            if member.is_last {
                // The region includes the zeros behind the archive, so that the region behind it
                // starts with its own data.
                add(&mut found, members.range.start, RegionKind::Metadata, Some(&header))?;
            } else if end - start >= DATA_MIN {
                add(&mut found, start, RegionKind::Metadata, Some(&header))?;
                add(&mut found, end, RegionKind::File, Some(&member.path))?;
            }
            continue;
        }
        if members.format.is_some() {
            return None;
        }
        let file = gzip::members(artifact, members.range.clone(), budget).ok()?;
        let Some(last) = file.ends.last() else { break };
        packed_files += 1;
        let name = file.name.unwrap_or_else(|| format!("gzip-{packed_files}").into_bytes());
        for end in &file.ends {
            add(&mut found, *end, RegionKind::File, Some(&name))?;
        }
        members.range.start = *last;
        members.skip_zeros().ok()?;
        add(&mut found, members.range.start, RegionKind::Plain, None)?;
    }
    if found.total() == 0 {
        return None;
    }
    add(&mut found, len, RegionKind::Plain, None)?;
    Some(found)
}

/// Adds a region from the end of the last region to `end`.
fn add(found: &mut Regions, end: u64, kind: RegionKind, name: Option<&[u8]>) -> Option<()> {
    if found.all().len() == REGIONS_MAX {
        return None;
    }
    found.push(end.checked_sub(found.total())?, kind, name);
    Some(())
}
