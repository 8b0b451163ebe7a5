//! Header in front of the index of a compressed file.

use erofs_rs::types::{Inode, Layout, MapHeader};

use super::codec::{Coding, FEATURE_CODECS, available};
use super::index::Index;
use super::{MapError, NID_METABOX, Reader};
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

/// Checked header of one compressed file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Codings of the two kinds of compressed heads; `None` for a coding that the superblock does
    /// not list.
    pub(super) codings: [Option<Coding>; 2],
    /// Whether extents of each of the two kinds have block counts.
    pub(super) big: [bool; 2],
    /// Coding of plain heads.
    pub(super) plain: Coding,
    /// Length of the inline cluster in bytes, 0 if there is none.
    pub(super) inline_bytes: u16,
    /// Offset in the packed inode of the fragment that is the last extent, if there is one; in a
    /// full index only the low 32 bits of it.
    pub(super) fragment: Option<u64>,
    /// Whether the head of a fragment holds the high bits of the fragment's offset.
    pub(super) wide_fragment: bool,
}

impl Header {
    /// Reads the header and works out the layout of the index. The index has no entries if the
    /// whole file is one fragment.
    ///
    /// # Errors
    /// [`MapError`], see docs/formats.md, "Map of a compressed file".
    pub(super) fn read<R: ReadAt + ?Sized>(
        reader: &Reader<'_, R>,
        inode: &Inode,
    ) -> Result<(Self, Index), MapError> {
        if inode.id() & NID_METABOX != 0 {
            return Err(MapError::Unsupported("an inode in the metabox"));
        }
        let geometry = &reader.geometry;
        let (_, behind) = reader.behind_inode(inode).ok_or(MapError::Unreadable)?;
        let start = behind
            .checked_next_multiple_of(8)
            .filter(|start| *start <= geometry.len.saturating_sub(MapHeader::size() as u64))
            .ok_or(MapError::Damaged("an index behind the end of the image"))?;
        let mut raw = [0; MapHeader::size()];
        reader.image.read(&mut raw, start).ok_or(MapError::Unreadable)?;

        let full = inode.layout() == Some(Layout::CompressedFull);
        let block_bits = u32::from(geometry.block_bits);
        let entries = start + if full { 16 } else { 8 };
        let whole = raw[7] & WHOLE_FRAGMENT != 0;
        let advice = if whole { ADVICE_FRAGMENT } else { u16_at(&raw, 4) };
        let fragment = advice & ADVICE_FRAGMENT != 0;
        if fragment && reader.packed_nid().is_none_or(|nid| nid == inode.id()) {
            return Err(MapError::Damaged(
                "a fragment in an image without a packed inode, or in the packed inode itself",
            ));
        }
        if whole {
            let index = Index::new(entries, 0, (block_bits, block_bits), None, false)?;
            let offset = u64::from_le_bytes(raw) & !(1 << 63);
            let header = Self {
                codings: [None; 2],
                big: [false; 2],
                plain: Coding::Shifted,
                inline_bytes: 0,
                fragment: Some(offset),
                wide_fragment: false,
            };
            return Ok((header, index));
        }

        if full && advice & ADVICE_EXTENTS != 0 {
            return Err(MapError::Unsupported("an index of encoded extents"));
        }
        if advice & !ADVICE_KNOWN != 0 || raw[7] & !CLUSTER_BITS != 0 {
            return Err(MapError::Unsupported("unknown bits in the header of an index"));
        }
        let algorithms = [raw[6] & 15, raw[6] >> 4];
        if algorithms.iter().any(|number| Coding::of_algorithm(*number).is_none()) {
            return Err(MapError::Unsupported("an unknown algorithm"));
        }
        let big = [advice & ADVICE_BIG_1 != 0, advice & ADVICE_BIG_2 != 0];
        if big != [false; 2] && geometry.features & FEATURE_CODECS == 0 {
            return Err(MapError::Damaged("block counts in an image without that feature"));
        }
        if !full && big[0] != big[1] {
            return Err(MapError::Damaged("a compact index with block counts for one algorithm"));
        }
        let inline = advice & ADVICE_INLINE != 0;
        let inline_bytes = u16_at(&raw, 2);
        if inline && (fragment || inline_bytes == 0) {
            return Err(MapError::Damaged("an inline cluster of zero bytes, or together with a fragment"));
        }
        let cluster_bits = block_bits + u32::from(raw[7] & CLUSTER_BITS);
        let compact = (!full).then_some(advice & ADVICE_SHORT != 0);
        let index = Index::new(entries, inode.data_size(), (block_bits, cluster_bits), compact, big[0])?;

        let listed = available(reader.fs.super_block());
        let interlaced = advice & ADVICE_INTERLACED != 0;
        let header = Self {
            codings: algorithms
                .map(|number| Coding::of_algorithm(number).filter(|_| listed & 1 << number != 0)),
            big,
            plain: if interlaced { Coding::Interlaced } else { Coding::Shifted },
            inline_bytes: if inline { inline_bytes } else { 0 },
            fragment: fragment.then(|| u64::from(u32_at(&raw, 0))),
            wide_fragment: full,
        };
        Ok((header, index))
    }
}

const ADVICE_SHORT: u16 = 0x1;
/// Meaning of the same bit in a full index: the map is encoded as extents.
const ADVICE_EXTENTS: u16 = 0x1;
const ADVICE_BIG_1: u16 = 0x2;
const ADVICE_BIG_2: u16 = 0x4;
const ADVICE_INLINE: u16 = 0x8;
const ADVICE_INTERLACED: u16 = 0x10;
const ADVICE_FRAGMENT: u16 = 0x20;
const ADVICE_KNOWN: u16 = 0x3f;

/// Bit in the last byte of the header: the rest of the header is an offset in the packed inode.
const WHOLE_FRAGMENT: u8 = 0x80;
/// Mask in the last byte of the header: log2 of the blocks in a logical cluster.
const CLUSTER_BITS: u8 = 0xf;
