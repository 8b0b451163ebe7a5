//! Cost of an image's compressed files without compression: their content, cut like that of any
//! other file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;

use super::chunks::{Held, Key, Keys};
use super::unpack::{ContentError, Unpacker};
use crate::cut::erofs::{ExtentData, PACKED_INODE_NAME, PackedFile, Reader};
use crate::cut::{CutChunk, CutParams, Cutter, Joined, ReadAt, volumes};
use crate::packing::Packer;

/// Bytes of content in a run of files that one thread takes: long enough that neighbours stay
/// together, short enough that both threads get about the same work.
const SHARE_BYTES: u64 = 32 << 20;

/// Share of the files: number `index` of `of` shares.
#[derive(Clone, Copy)]
pub(super) struct Share {
    pub(super) index: u64,
    pub(super) of: u64,
}

/// Selection of the files that may have fresh content.
pub(super) struct Wanted<'w> {
    /// Selects a file by its path.
    pub(super) path: &'w (dyn Fn(&[u8]) -> bool + Sync),
    /// Whether all files with a fragment are selected.
    pub(super) fragments: bool,
}

/// Chunk of content that occurs nowhere in the old image.
struct FreshContent {
    key: Key,
    /// Number of the file, in directory order.
    file: u64,
    raw: u32,
    wire: u32,
}

/// Fresh content of the new image's compressed files.
#[derive(Default)]
pub(super) struct Contents {
    fresh: Vec<FreshContent>,
    /// Path of each file, by number.
    names: BTreeMap<u64, Box<[u8]>>,
    /// Numbers of the files that could not be unpacked.
    failed: BTreeSet<u64>,
}

/// Cost of one file's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) raw: u64,
    pub(super) wire: u64,
    pub(super) failed: bool,
}

/// Returns the chunks of the content of all compressed files in a share.
pub(super) fn list<R: ReadAt + ?Sized>(
    artifact: &R,
    share: Share,
    params: CutParams,
) -> io::Result<Vec<(Key, u32)>> {
    let mut out = Vec::new();
    let (mut keys, cutter) = (Keys::default(), Cutter::new(params));
    each_file(artifact, share, |_, _, file, unpacker| {
        cut_file(file, unpacker, &cutter, |chunk| out.push((keys.of(&chunk), 0)))
    })?;
    Ok(out)
}

/// Finds the fresh chunks in the content of the wanted files of a share.
pub(super) fn scan<R: ReadAt + ?Sized>(
    artifact: &R,
    share: Share,
    (params, level): (CutParams, i32),
    wanted: &Wanted<'_>,
    held: &[&Held],
) -> io::Result<Contents> {
    let (mut contents, mut packer) = (Contents::default(), Packer::new(level));
    let (mut keys, cutter, mut seen) = (Keys::default(), Cutter::new(params), BTreeSet::new());
    each_file(artifact, share, |number, name, file, unpacker| {
        if !((wanted.path)(name) || wanted.fragments && has_fragment(file)) {
            return Ok(());
        }
        contents.names.insert(number, name.into());
        let before = contents.fresh.len();
        let result = cut_file(file, unpacker, &cutter, |chunk| {
            let key = keys.of(&chunk);
            if held.iter().all(|held| held.find(&key).is_none()) && seen.insert(key) {
                let wire = packer.pack(chunk.data).bytes.len() as u32;
                contents.fresh.push(FreshContent { key, file: number, raw: chunk.data.len() as u32, wire });
            }
        });
        if let Err(ContentError::NotUnpacked) = result {
            // Forget the chunks of this file: they are fresh in the next file that has them.
            for fresh in contents.fresh.drain(before..) {
                seen.remove(&fresh.key);
            }
            contents.failed.insert(number);
            return Ok(());
        }
        result
    })?;
    Ok(contents)
}

impl Contents {
    /// Merges all shares and sums their costs by path.
    pub(super) fn by_path(shares: impl IntoIterator<Item = Self>) -> BTreeMap<Box<[u8]>, Content> {
        let mut all = Self::default();
        for share in shares {
            all.fresh.extend(share.fresh);
            all.names.extend(share.names);
            all.failed.extend(share.failed);
        }
        // Sort in directory order, so that the file that counts a shared chunk does not depend on
        // the number of threads.
        all.fresh.sort_by_key(|fresh| fresh.file);
        let mut seen = BTreeSet::new();
        let mut by_number: BTreeMap<u64, Content> = BTreeMap::new();
        for fresh in all.fresh.iter().filter(|fresh| seen.insert(fresh.key)) {
            let content = by_number.entry(fresh.file).or_default();
            content.raw += u64::from(fresh.raw);
            content.wire += u64::from(fresh.wire);
        }
        let content = |number: &u64| Content {
            failed: all.failed.contains(number),
            ..by_number.get(number).copied().unwrap_or_default()
        };
        all.names.iter().map(|(number, name)| (name.clone(), content(number))).collect()
    }
}

fn has_fragment<R: ReadAt + ?Sized>(file: &PackedFile<'_, '_, R>) -> bool {
    let last = file.extents().ok().and_then(|extents| extents.map_while(Result::ok).last());
    last.is_some_and(|extent| matches!(extent.data, ExtentData::Fragment { .. }))
}

/// Calls `each` with the numbers, names and files of a share, over all images. Stops at the first
/// error in reading the artifact; `each` has to count the files that do not unpack.
fn each_file<R: ReadAt + ?Sized>(
    artifact: &R,
    share: Share,
    mut each: impl for<'v> FnMut(
        u64,
        &[u8],
        &PackedFile<'_, '_, Joined<'v, R>>,
        &mut Unpacker<'_, '_, Joined<'v, R>>,
    ) -> Result<(), ContentError>,
) -> io::Result<()> {
    let (mut number, mut bytes, mut failure) = (0, 0u64, None);
    for volume in volumes(artifact) {
        let image = volume.reader(artifact);
        let Some(reader) = Reader::open(&image) else { continue };
        let Some(mut unpacker) = Unpacker::new(&image, &reader) else { continue };
        // `None` means that the image is not sound. No region of it is packed, so none of its files
        // has fresh clusters.
        let _ = reader.packed_files(|file| {
            let own = bytes / SHARE_BYTES % share.of == share.index;
            bytes = bytes.saturating_add(file.size());
            number += 1;
            // The content of the packed inode belongs to other files.
            if !own || file.path() == PACKED_INODE_NAME {
                return ControlFlow::Continue(());
            }
            match each(number, &volume.name(file.path()), &file, &mut unpacker) {
                Err(ContentError::Read(error)) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
                Ok(()) | Err(ContentError::NotUnpacked) => ControlFlow::Continue(()),
            }
        });
        if failure.is_some() {
            break;
        }
    }
    failure.map_or(Ok(()), Err)
}

fn cut_file<R: ReadAt + ?Sized>(
    file: &PackedFile<'_, '_, R>,
    unpacker: &mut Unpacker<'_, '_, R>,
    cutter: &Cutter,
    mut each: impl FnMut(CutChunk<'_>),
) -> Result<(), ContentError> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut offset = 0;
    let mut cut = |buffer: &mut Vec<u8>, rest: usize| {
        let mut at = 0;
        while at < buffer.len() && buffer.len() - at >= rest {
            let (len, zero) = cutter.next(&buffer[at..]);
            each(CutChunk { offset, data: &buffer[at..at + len], zero });
            at += len;
            offset += len as u64;
        }
        buffer.drain(..at);
    };
    unpacker.content(file, |piece| {
        buffer.extend_from_slice(piece);
        cut(&mut buffer, cutter.max());
    })?;
    cut(&mut buffer, 0);
    Ok(())
}
