//! LZ4 as `mkfs.erofs` calls it.

use lzzzz::{lz4, lz4_hc};

/// How a cluster is packed: 0 the fast way, else a level of the slow one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting(u8);

impl Setting {
    /// Those an image may have been made with, the likeliest first. The library changed what it makes at level 2 and
    /// below since most images were made.
    pub(super) const ALL: [Self; 11] = [
        Self(9),
        Self(0),
        Self(12),
        Self(11),
        Self(10),
        Self(8),
        Self(7),
        Self(6),
        Self(5),
        Self(4),
        Self(3),
    ];

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.0 == number)
    }

    pub(super) fn number(self) -> u8 {
        self.0
    }

    /// Packs as much of `plain` as `out` takes: bytes taken and bytes made. `None` when nothing fits.
    pub(super) fn fill(self, plain: &[u8], out: &mut [u8]) -> Option<(usize, usize)> {
        let filled = if self.0 == 0 {
            lz4::compress_fill(plain, out)
        } else {
            lz4_hc::compress_fill(plain, out, i32::from(self.0))
        };
        filled.ok().filter(|(taken, made)| *taken > 0 && *made > 0)
    }
}

/// Unpacks a cluster, zeros in front or not, until `out` is full or the cluster is used up; bytes made. `None` for
/// damage.
pub(super) fn unpack(cluster: &[u8], out: &mut [u8]) -> Option<usize> {
    // No LZ4 block begins with a zero: that would be a match with nothing before it.
    let front = cluster.iter().take_while(|byte| **byte == 0).count();
    let len = out.len();
    lz4::decompress_partial(&cluster[front..], out, len).ok()
}
