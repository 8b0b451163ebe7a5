//! Members of tar archives: POSIX (ustar and pax) and GNU.

use std::io;
use std::ops::Range;

use super::ReadAt;
use super::archive::{Member, relative};
use crate::bounds::PATH_BYTES_MAX;

const BLOCK: u64 = 512;

/// Longest extended header read, bytes: room for a path and some attributes. No archive we know has
/// a longer one.
const EXTENDED_MAX: u64 = 64 << 10;

/// Returns the member whose header starts at `range.start`; `None` if there is none. The extended
/// headers before the member and all its data must lie within `range`. The end of an archive, a
/// block of zeros, is returned as a member without a path.
///
/// # Errors
/// Any error from reading the artifact.
pub(super) fn member<R: ReadAt + ?Sized>(artifact: &R, range: Range<u64>) -> io::Result<Option<Member>> {
    let (mut at, mut told) = (range.start, Told::default());
    loop {
        let mut block = [0; BLOCK as usize];
        if range.end.saturating_sub(at) < BLOCK {
            return Ok(None);
        }
        artifact.read_exact_at(&mut block, at)?;
        at += BLOCK;
        if at == range.start + BLOCK && block == [0; BLOCK as usize] {
            return Ok(Some(Member { path: Vec::new(), data: at..at, next: at, is_last: true }));
        }
        let Some(header) = Header::read(&block) else { return Ok(None) };
        let size = match header.kind {
            b'x' | b'g' | b'L' | b'K' => header.size,
            _ => told.size.unwrap_or(header.size),
        };
        let Some(end) = at.checked_add(size).filter(|end| *end <= range.end) else { return Ok(None) };
        // Blocks are aligned to the start of the archive, which need not be aligned in the
        // artifact.
        let next = at + size.next_multiple_of(BLOCK);
        match header.kind {
            b'x' | b'g' | b'L' | b'K' if size > EXTENDED_MAX => return Ok(None),
            b'x' | b'L' => {
                let mut text = vec![0; size as usize];
                artifact.read_exact_at(&mut text, at)?;
                if header.kind == b'x' {
                    told.read(&text)
                } else {
                    told.path = Some(until_nul(&text).to_vec())
                }
                at = next;
            }
            // Skipped: a global header and a long link name give neither the path nor the length.
            b'g' | b'K' => at = next,
            // Links, devices, directories and pipes have no data.
            b'1'..=b'6' if size > 0 => return Ok(None),
            // A sparse file of GNU tar whose map continues behind the header.
            b'S' if block[482] != 0 => return Ok(None),
            _ => {
                let path = told.path.filter(|path| path.len() <= PATH_BYTES_MAX).unwrap_or(header.path);
                return Ok(Some(Member { path: relative(&path), data: at..end, next, is_last: false }));
            }
        }
    }
}

/// Fields of extended headers that override those of the member behind them.
#[derive(Default)]
struct Told {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Told {
    /// Reads records of the form `LENGTH KEY=VALUE\n`, where the length includes itself.
    fn read(&mut self, mut text: &[u8]) {
        while let Some(space) = text.iter().position(|byte| *byte == b' ') {
            let len = std::str::from_utf8(&text[..space]).ok().and_then(|digits| digits.parse().ok());
            let Some((record, rest)) = len.and_then(|len| text.split_at_checked(len)) else { return };
            let Some(record) = record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n")) else {
                return;
            };
            if let Some(path) = record.strip_prefix(b"path=") {
                self.path = Some(path.to_vec());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|digits| digits.parse().ok());
            }
            text = rest;
        }
    }
}

struct Header {
    path: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    fn read(block: &[u8; BLOCK as usize]) -> Option<Self> {
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let field: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
        // The checksum is computed as if its own field were blanks.
        if &block[257..262] != b"ustar" || number(&block[148..156]) != Some(sum - field + 8 * u64::from(b' '))
        {
            return None;
        }
        let name = until_nul(&block[..100]);
        // POSIX has the front of a long path here; GNU's format uses these bytes for other fields.
        let prefix = if block[262] == 0 { until_nul(&block[345..500]) } else { &[] };
        let path = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        Some(Self { path, size: number(&block[124..136])?, kind: block[156] })
    }
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Parses an octal number among blanks and zeros, or GNU's form of a large number: bit 7 of the
/// first byte set, then big-endian.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        return rest.iter().try_fold(0u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    let digits = std::str::from_utf8(&digits[..end]).ok()?;
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}
