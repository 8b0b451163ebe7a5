//! Parts of a view: the members of archives, or else one part.

use std::io;
use std::ops::Range;

use crate::bounds::REGIONS_MAX;
use crate::cut::archive::{Members, NAME_SEPARATOR};
use crate::cut::{ReadAt, RegionKind};

/// Returns lengths, kinds and names of the parts of a view that lies in `range` and belongs to the
/// region `name`: the input of [`Regions::from_parts`](crate::cut::Regions::from_parts).
///
/// A file's data is named `name//path` and its header `name//path//`, so that an old header is
/// paired with the new one, and data with the file of that path in the image. At the first damage,
/// one part covers the rest.
///
/// # Errors
/// Any error from reading the view.
pub fn parts<R: ReadAt + ?Sized>(
    view: &R,
    range: Range<u64>,
    name: &[u8],
) -> io::Result<Vec<(u64, RegionKind, Vec<u8>)>> {
    let join = |path: &[u8], end: &[u8]| [name, NAME_SEPARATOR, path, end].concat();
    let mut members = Members::new(view, range.clone());
    let (mut out, mut done) = (Vec::new(), range.start);
    while out.len() < REGIONS_MAX / 2
        && let Some(member) = members.next()?
    {
        // The padding behind the previous file belongs to the next header, so that data is cut as
        // in the image.
        let Range { start, end } = member.data;
        out.push((start - done, RegionKind::File, join(&member.path, NAME_SEPARATOR)));
        out.push((end - start, RegionKind::File, join(&member.path, b"")));
        done = end;
    }
    out.push((range.end - done, RegionKind::File, join(b"", b"")));
    out.retain(|(len, ..)| *len > 0);
    Ok(out)
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
        fn parts_cover_damaged_archives_too(
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
