//! The packers as `mkfs.erofs` calls them.

use libdeflater::{CompressionLvl, Compressor};
use lzzzz::{lz4, lz4_hc};
use zstd::zstd_safe::{CCtx, CParameter};

use crate::cut::erofs::Coding;

/// Room beyond a cluster that mkfs.erofs gives packers that do not stop early.
const ROOM: usize = 32;

/// Log2 of the longest zstd window an image may ask for: with it the slowest level takes some 20 MB.
pub(super) const ZSTD_WINDOW_BITS_MAX: u8 = 20;

/// How a cluster is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// `LZ4_compress_destSize`.
    Lz4,
    /// `LZ4_compress_HC_destSize` at a level.
    Lz4Hc(u8),
    /// libdeflate at a level.
    Deflate(u8),
    /// zstd at a level.
    Zstd(i8),
}

/// Those an image may have been made with, the likeliest first. LZ4 changed what it makes at level 2 and below since most
/// images were made.
const LZ4: [Setting; 11] = [
    Setting::Lz4Hc(9),
    Setting::Lz4,
    Setting::Lz4Hc(12),
    Setting::Lz4Hc(11),
    Setting::Lz4Hc(10),
    Setting::Lz4Hc(8),
    Setting::Lz4Hc(7),
    Setting::Lz4Hc(6),
    Setting::Lz4Hc(5),
    Setting::Lz4Hc(4),
    Setting::Lz4Hc(3),
];

/// mkfs.erofs takes 1 where no level is given.
const DEFLATE: [Setting; 12] = [
    Setting::Deflate(1),
    Setting::Deflate(12),
    Setting::Deflate(9),
    Setting::Deflate(6),
    Setting::Deflate(8),
    Setting::Deflate(7),
    Setting::Deflate(11),
    Setting::Deflate(10),
    Setting::Deflate(5),
    Setting::Deflate(4),
    Setting::Deflate(3),
    Setting::Deflate(2),
];

/// mkfs.erofs takes −1 where no level is given.
const ZSTD: [Setting; 23] = [
    Setting::Zstd(-1),
    Setting::Zstd(3),
    Setting::Zstd(19),
    Setting::Zstd(22),
    Setting::Zstd(15),
    Setting::Zstd(12),
    Setting::Zstd(9),
    Setting::Zstd(6),
    Setting::Zstd(1),
    Setting::Zstd(2),
    Setting::Zstd(4),
    Setting::Zstd(5),
    Setting::Zstd(7),
    Setting::Zstd(8),
    Setting::Zstd(10),
    Setting::Zstd(11),
    Setting::Zstd(13),
    Setting::Zstd(14),
    Setting::Zstd(16),
    Setting::Zstd(17),
    Setting::Zstd(18),
    Setting::Zstd(20),
    Setting::Zstd(21),
];

/// Numbers of settings: 0 LZ4, 3…12 its slow way, from here libdeflate's levels, from there zstd's, beginning with −1.
const DEFLATE_FROM: u8 = 32;
const ZSTD_FROM: u8 = 65;

impl Setting {
    /// Those to try for clusters of an algorithm.
    pub(super) fn of(coding: Coding) -> &'static [Self] {
        match coding {
            Coding::Lz4 => &LZ4,
            Coding::Deflate => &DEFLATE,
            Coding::Zstd => &ZSTD,
            Coding::Lzma | Coding::Shifted | Coding::Interlaced => &[],
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        let all = LZ4.iter().chain(&DEFLATE).chain(&ZSTD);
        all.copied().find(|setting| setting.number() == number)
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Lz4 => 0,
            Self::Lz4Hc(level) => level,
            Self::Deflate(level) => DEFLATE_FROM + level,
            Self::Zstd(level) => ZSTD_FROM.wrapping_add_signed(level),
        }
    }

    /// Whether it packs all it is given or nothing. Others take what fits.
    pub(super) fn takes_all(self) -> bool {
        matches!(self, Self::Deflate(_) | Self::Zstd(_))
    }
}

/// Packs clusters, one at a time, and keeps what the packers need.
#[derive(Default)]
pub(super) struct Packer {
    zstd: Option<((i8, u8), CCtx<'static>)>,
    deflate: Option<(u8, Compressor)>,
}

impl Packer {
    /// Packs `plain`, as much as `capacity` bytes take, into `out`: bytes taken and bytes made. `None` when nothing fits, or
    /// not all for a setting that [takes all](Setting::takes_all); then it may make up to [`ROOM`] bytes more.
    /// `window_bits` is log2 of zstd's window, at most [`ZSTD_WINDOW_BITS_MAX`].
    pub(super) fn fill(
        &mut self,
        setting: Setting,
        window_bits: u8,
        plain: &[u8],
        capacity: usize,
        out: &mut Vec<u8>,
    ) -> Option<(usize, usize)> {
        out.resize(if setting.takes_all() { capacity + ROOM } else { capacity }, 0);
        let (taken, made) = match setting {
            Setting::Lz4 => lz4::compress_fill(plain, out).ok()?,
            Setting::Lz4Hc(level) => lz4_hc::compress_fill(plain, out, i32::from(level)).ok()?,
            Setting::Deflate(level) => {
                let compressor = match &mut self.deflate {
                    Some((of, compressor)) if *of == level => compressor,
                    kept => {
                        let level_of = CompressionLvl::new(i32::from(level)).ok()?;
                        &mut kept.insert((level, Compressor::new(level_of))).1
                    }
                };
                (plain.len(), compressor.deflate_compress(plain, out).ok()?)
            }
            Setting::Zstd(level) => {
                let context = match &mut self.zstd {
                    Some((of, context)) if *of == (level, window_bits) => context,
                    kept => {
                        let mut context = CCtx::try_create()?;
                        context.set_parameter(CParameter::CompressionLevel(i32::from(level))).ok()?;
                        if window_bits > 0 {
                            context.set_parameter(CParameter::WindowLog(u32::from(window_bits))).ok()?;
                        }
                        &mut kept.insert(((level, window_bits), context)).1
                    }
                };
                (plain.len(), context.compress2(&mut out[..], plain).ok()?)
            }
        };
        (taken > 0 && made > 0).then_some((taken, made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_number_of_its_own() {
        let mut numbers: Vec<u8> =
            (0..=255).filter(|number| Setting::from_number(*number).is_some()).collect();
        assert_eq!(numbers.len(), LZ4.len() + DEFLATE.len() + ZSTD.len());
        numbers.retain(|number| Setting::from_number(*number).map(Setting::number) != Some(*number));
        assert_eq!(numbers, []);
    }
}
