//! Members of cpio archives in the format `newc`, with or without checksums: the format of an
//! initrd.

use std::io;
use std::ops::Range;

use super::ReadAt;
use super::archive::{Member, relative};
use crate::bounds::PATH_BYTES_MAX;

/// Bytes of a header before the name: magic and thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;

/// Name of the member that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!";

/// Returns whether a member's header may start with `head`.
pub(crate) fn is_magic(head: &[u8]) -> bool {
    head.starts_with(b"070701") || head.starts_with(b"070702")
}

/// Returns the member whose header starts at `range.start`; `None` if there is none, or if the
/// member does not lie within `range`.
///
/// # Errors
/// Any error from reading the artifact.
pub(super) fn member<R: ReadAt + ?Sized>(artifact: &R, range: Range<u64>) -> io::Result<Option<Member>> {
    if range.end.saturating_sub(range.start) < HEADER as u64 {
        return Ok(None);
    }
    let mut head = [0; HEADER];
    artifact.read_exact_at(&mut head, range.start)?;
    let number = |n: usize| {
        let digits = std::str::from_utf8(&head[6 + 8 * n..14 + 8 * n]).ok()?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
    };
    let (Some(size), Some(name_len)) = (number(6), number(11)) else { return Ok(None) };
    let data = range.start + (HEADER as u64 + name_len).next_multiple_of(4);
    if !is_magic(&head) || !(1..=PATH_BYTES_MAX as u64).contains(&name_len) || data + size > range.end {
        return Ok(None);
    }
    let mut path = vec![0; name_len as usize - 1];
    artifact.read_exact_at(&mut path, range.start + HEADER as u64)?;
    let next = data + size.next_multiple_of(4);
    Ok(Some(Member { is_last: path == TRAILER, path: relative(&path), data: data..data + size, next }))
}
