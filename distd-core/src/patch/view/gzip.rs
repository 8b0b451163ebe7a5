//! The view of a gzip file, as a device makes it.

use std::io::{self, Write};

use crate::cut::ReadAt;
use crate::cut::gzip::{TRAILER, header, stream};

/// Writes the view of a packed file, its sound part at least; its length.
///
/// Stops at the first damage, at the end of the last member, and at `max` bytes: this is a base, and a short one is
/// still one. Memory: 400 KiB.
///
/// # Errors
/// What reading or writing reports.
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
