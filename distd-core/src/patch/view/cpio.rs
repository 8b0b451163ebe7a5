//! What is inside a view: the files of a cpio archive (`newc`, what an initrd is), else one part.

use std::io;
use std::ops::Range;

use crate::cut::{ReadAt, RegionKind};
use crate::limits::{PATH_BYTES_MAX, REGIONS_MAX};
use crate::patch::pair::VIEW_SEPARATOR;

/// Bytes of a header before the name: magic and thirteen numbers of eight hexadecimal digits.
const HEADER: usize = 110;

/// Shortest padding that is a part: less belongs to the next header.
const PADDING_MIN: u64 = 4;

/// Lengths, kinds and names of the parts of a view that lies in `range` and belongs to the region `name`: input of
/// [`Regions::from_parts`](crate::cut::Regions::from_parts).
///
/// A file's data is named `name//path`, its header `name//path//`, so that old header meets new header and data
/// meets the file of that path in the image. Damage ends the list with one part for the rest.
///
/// # Errors
/// What reading reports.
pub fn parts<R: ReadAt + ?Sized>(
    view: &R,
    range: Range<u64>,
    name: &[u8],
) -> io::Result<Vec<(u64, RegionKind, Vec<u8>)>> {
    let join = |path: &[u8], end: &[u8]| [name, VIEW_SEPARATOR, path, end].concat();
    let mut out = Vec::new();
    let (mut done, mut at) = (range.start, range.start);
    while out.len() < REGIONS_MAX / 2 {
        let Some(entry) = entry(view, at..range.end)? else { break };
        // Padding of the file before goes with the header: then data is cut like in the image.
        out.push((entry.data.start - done, RegionKind::File, join(&entry.path, VIEW_SEPARATOR)));
        if !entry.data.is_empty() {
            out.push((entry.data.end - entry.data.start, RegionKind::File, join(&entry.path, b"")));
        }
        done = entry.data.end;
        at = aligned(done - range.start) + range.start;
        if entry.path == b"TRAILER!!!" {
            // The next archive of the same view, if any, follows zeros.
            let mut zeros = [0; 512];
            while range.end.saturating_sub(at) >= PADDING_MIN {
                let len = zeros.len().min((range.end - at) as usize);
                view.read_exact_at(&mut zeros[..len], at)?;
                let used = zeros[..len].iter().take_while(|byte| **byte == 0).count();
                at += (used / 4 * 4) as u64;
                if used < len {
                    break;
                }
            }
        }
    }
    out.push((range.end - done, RegionKind::File, join(b"", b"")));
    out.retain(|(len, ..)| *len > 0);
    Ok(out)
}

struct Entry {
    path: Vec<u8>,
    data: Range<u64>,
}

fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(4)
}

/// The entry whose header starts at `range.start`.
fn entry<R: ReadAt + ?Sized>(view: &R, range: Range<u64>) -> io::Result<Option<Entry>> {
    if range.end.saturating_sub(range.start) < HEADER as u64 {
        return Ok(None);
    }
    let mut head = [0; HEADER];
    view.read_exact_at(&mut head, range.start)?;
    let number = |n: usize| {
        let digits = std::str::from_utf8(&head[6 + 8 * n..14 + 8 * n]).ok()?;
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
    };
    let (Some(size), Some(name_len)) = (number(6), number(11)) else { return Ok(None) };
    let body = range.start + HEADER as u64;
    let data = aligned(HEADER as u64 + name_len) + range.start;
    if !(&head[..6] == b"070701" || &head[..6] == b"070702")
        || !(1..=PATH_BYTES_MAX as u64).contains(&name_len)
        || data + size > range.end
    {
        return Ok(None);
    }
    let mut path = vec![0; name_len as usize - 1];
    view.read_exact_at(&mut path, body)?;
    let skip = path.iter().take_while(|byte| matches!(byte, b'.' | b'/')).count();
    Ok(Some(Entry { path: path.split_off(skip), data: data..data + size }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, data: &[u8]) -> Vec<u8> {
        let mut out = b"070701".to_vec();
        for n in 0..13 {
            let number = match n {
                6 => data.len(),
                11 => path.len() + 1,
                _ => 0,
            };
            out.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        out.extend_from_slice(path.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn files_of_two_archives_have_parts_of_their_own() {
        let archive = |path| [file(path, b"12345"), file("TRAILER!!!", b"")].concat();
        let mut view = archive("early/microcode");
        view.resize(1024, 0);
        view.extend(archive("./usr/bin/x"));
        let parts = parts(&view, 0..view.len() as u64, b"i").expect("memory reads");
        let names: Vec<_> = parts.iter().map(|(_, _, name)| String::from_utf8_lossy(name)).collect();
        assert_eq!(
            names,
            [
                "i//early/microcode//",
                "i//early/microcode",
                "i//TRAILER!!!//",
                "i//usr/bin/x//",
                "i//usr/bin/x",
                "i//TRAILER!!!//"
            ]
        );
        assert_eq!(parts.iter().map(|(len, ..)| len).sum::<u64>(), view.len() as u64);
        assert_eq!(parts[1].0, 5);
    }

    proptest! {
        #[test]
        fn damaged_archives_are_covered_all_the_same(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut view = [file("a", b"data"), file("b/c", &[7; 300]), file("TRAILER!!!", b"")].concat();
            let len = view.len();
            view[at.index(len)] = byte;
            view.truncate(cut.index(len));
            let parts = parts(&view, 0..view.len() as u64, b"i").expect("memory reads");
            prop_assert_eq!(parts.iter().map(|(len, ..)| len).sum::<u64>(), view.len() as u64);
        }
    }
}
