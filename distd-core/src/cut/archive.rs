//! Archives and gzip files, one behind the other, as they lie in a file: a tar, an initrd.

use std::io;
use std::ops::Range;

use super::{ReadAt, RegionKind, Regions, cpio, gzip, tar};
use crate::limits::{ARTIFACT_BYTES_MAX, REGIONS_MAX};

/// Behind the path of a member, the name of its header; between the name of a packed region and the name of what is in
/// it: `boot/initrd.img-6.1//usr/bin/mount`. No path of a file system has two slashes in a row.
pub const NAME_SEPARATOR: &[u8] = b"//";

/// Shortest data that is a region of its own, bytes: shorter data costs about what its entry in the manifest costs.
const DATA_MIN: u64 = 256;

/// Zeros behind an archive are skipped in steps of these.
const PADDING: u64 = 4;

/// A member of an archive. Its header begins where the data of the one before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// Without leading slashes and dots; unchecked.
    pub(crate) path: Vec<u8>,
    /// Empty for what is no file.
    pub(crate) data: Range<u64>,
    /// Where the next header is looked for.
    pub(super) next: u64,
    /// Whether the archive ends with it.
    pub(super) is_last: bool,
}

/// A path without what makes `./a` and `/a` of `a`.
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

/// The members of the archives at the head of a range, up to what is none.
pub(crate) struct Members<'a, R: ?Sized> {
    artifact: &'a R,
    /// From where the next header is looked for.
    range: Range<u64>,
    /// Of the archive that is open.
    format: Option<Format>,
}

impl<'a, R: ReadAt + ?Sized> Members<'a, R> {
    pub(crate) fn new(artifact: &'a R, range: Range<u64>) -> Self {
        Self { artifact, range, format: None }
    }

    /// The next member; `None` behind the last archive and where one is damaged.
    ///
    /// # Errors
    /// What reading reports.
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
            // Zeros end a tar; nothing begins with its end.
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

/// Regions of an artifact of archives and gzip files in any order, with anything behind them; `None` for what begins
/// with neither, for an archive without its end, and for what cannot be read.
pub(super) fn regions<R: ReadAt + ?Sized>(artifact: &R) -> Option<Regions> {
    let len = artifact.len();
    if len > ARTIFACT_BYTES_MAX {
        return None;
    }
    let mut members = Members::new(artifact, 0..len);
    let mut budget = gzip::Budget::of(len);
    let mut found = Regions::default();
    let mut packed_files = 0;
    loop {
        if let Some(member) = members.next().ok()? {
            let Range { start, end } = member.data;
            let header = [&member.path, NAME_SEPARATOR].concat();
            if member.is_last {
                // With the zeros behind it, so that what follows begins on its own.
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
        let file = gzip::members(artifact, members.range.clone(), &mut budget).ok()?;
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

/// Adds what lies between the last region and `end`.
fn add(found: &mut Regions, end: u64, kind: RegionKind, name: Option<&[u8]>) -> Option<()> {
    if found.all().len() == REGIONS_MAX {
        return None;
    }
    found.push(end.checked_sub(found.total())?, kind, name);
    Some(())
}
