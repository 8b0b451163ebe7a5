//! View of a gzip file, as a device makes it.

use std::io::{self, Write};

use crate::cut::ReadAt;
use crate::cut::gzip::{TRAILER, header, stream};

/// Writes the view of a gzip file, or at least of its sound part, and returns the view's length.
///
/// Stops at the first damage, behind the last member, and at `max` bytes. The view serves as base,
/// so a short one is still useful. Memory: 400 KiB.
///
/// # Errors
/// Any error from reading the file or writing to `sink`.
pub fn inflate<R: ReadAt + ?Sized>(file: &R, max: u64, sink: &mut impl Write) -> io::Result<u64> {
    let (mut at, mut total) = (0, 0);
    while let Some(header) = header(file, at..file.len())? {
        let (end, plain) = stream(file, at + header.len..file.len(), max - total, sink)?;
        total += plain;
        match end {
            Some(end) => at = end.saturating_add(TRAILER),
            None => break,
        }
    }
    Ok(total)
}
