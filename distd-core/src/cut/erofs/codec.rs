//! Compression algorithms of an image, according to its superblock.

use erofs_rs::types::{SB_EXTSLOT_SIZE, SUPER_BLOCK_OFFSET, SuperBlock};

use super::image::Image;
use crate::cut::ReadAt;
use crate::cut::bytes::{u16_at, u32_at};

/// Coding that turns the bytes of a physical cluster into the bytes of its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Coding {
    /// Stored bytes, from the first byte of the cluster on.
    Shifted,
    /// Stored bytes, rotated within the block: the byte at logical offset `n` is at `n` modulo the
    /// block size in the cluster.
    Interlaced,
    /// LZ4 block. See [`Codecs::zeros_in_front`].
    Lz4,
    /// MicroLZMA stream.
    Lzma,
    /// Raw deflate stream.
    Deflate,
    /// Zstd frame.
    Zstd,
}

impl Coding {
    /// Returns the coding that has this number in an index header.
    pub(super) fn of_algorithm(number: u8) -> Option<Self> {
        [Self::Lz4, Self::Lzma, Self::Deflate, Self::Zstd].get(usize::from(number)).copied()
    }
}

/// Parameters of an image's algorithms, from its superblock. They decide no cut; code that unpacks
/// or packs clusters needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codecs {
    /// Whether zeros fill a cluster in front of its stream instead of behind it. True for all
    /// images but those with old LZ4.
    pub zeros_in_front: bool,
    /// Largest distance of an LZ4 match in bytes; 0 stands for 65 535.
    pub lz4_distance: u16,
    /// Most blocks in an LZ4 cluster; 0 stands for 1.
    pub lz4_cluster_blocks: u16,
    /// Size of the LZMA dictionary in bytes, 0 if the image has no LZMA.
    pub lzma_dictionary_bytes: u32,
    /// Log2 of the deflate window, 0 if the image has no deflate.
    pub deflate_window_bits: u8,
    /// Log2 of the zstd window, 0 if the image has no zstd.
    pub zstd_window_bits: u8,
}

/// Returns the set of algorithms in use, with the bit of each algorithm's number set.
pub(super) fn available(superblock: &SuperBlock) -> u16 {
    // Without the feature this field is the LZ4 distance, and LZ4 is the only algorithm.
    if superblock.feature_incompat & FEATURE_CODECS != 0 { superblock.compr_algs } else { 1 }
}

/// Reads the parameters of the algorithms; `None` if the records behind the superblock do not parse
/// or are of an unknown kind.
pub(super) fn codecs<R: ReadAt + ?Sized>(image: &Image<'_, R>, superblock: &SuperBlock) -> Option<Codecs> {
    let mut codecs = Codecs {
        zeros_in_front: superblock.feature_incompat & FEATURE_ZEROS_IN_FRONT != 0,
        ..Codecs::default()
    };
    if superblock.feature_incompat & FEATURE_CODECS == 0 {
        codecs.lz4_distance = superblock.compr_algs;
        return Some(codecs);
    }
    if superblock.compr_algs >= 1 << 4 {
        return None;
    }
    let slots = usize::from(superblock.ext_slots) * SB_EXTSLOT_SIZE;
    let mut at = SUPER_BLOCK_OFFSET + (SuperBlock::size() + slots) as u64;
    for algorithm in (0..4).filter(|number| superblock.compr_algs & 1 << number != 0) {
        let mut len = [0; 2];
        image.read(&mut len, at)?;
        let mut record = [0; 6];
        if usize::from(u16_at(&len, 0)) < record.len() {
            return None;
        }
        image.read(&mut record, at + 2)?;
        match algorithm {
            0 => {
                codecs.lz4_distance = u16_at(&record, 0);
                codecs.lz4_cluster_blocks = u16_at(&record, 2);
            }
            1 if u16_at(&record, 4) == 0 => codecs.lzma_dictionary_bytes = u32_at(&record, 0),
            2 if record[0] <= 15 => codecs.deflate_window_bits = record[0],
            3 if record[0] == 0 && record[1] <= 10 => codecs.zstd_window_bits = record[1] + 10,
            _ => return None,
        }
        at = (at + 2 + u64::from(u16_at(&len, 0))).next_multiple_of(4);
    }
    Some(codecs)
}

const FEATURE_ZEROS_IN_FRONT: u32 = 0x1;
/// Superblock feature: records of the algorithms follow the superblock. Linux uses the same bit for
/// clusters with block counts.
pub(super) const FEATURE_CODECS: u32 = 0x2;
